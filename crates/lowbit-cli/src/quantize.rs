//! `lowbit quantize`: a float model in, an int8 model out.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::bail;
use clap::ValueEnum;
use lowbit::analysis::Provenance;
use lowbit::data::{Dataset, Preprocess, write_atomically};
use lowbit::graph::Graph;
use lowbit::observer::ObserverConfig;
use lowbit::onnx;
use lowbit::passes::products_of_few_bits;
use lowbit::qconfig::{BiasCorrection, Per, QConfig, QConfigMapping, Rounding, Target, preset};
use lowbit::quantize::{Finding, Role};
use lowbit::recipe::{self, Samples};
use lowbit::scheme::Format;
use lowbit::session::{Report, Session};
use serde::Serialize;

use crate::data::{SampleArgs, named, positive};
use crate::lint::Runtime;
use crate::model::{file_bytes, load_float};
use crate::output::{Output, warn};
use crate::progress::Stages;
use crate::table::{Table, bytes, count, percent};

/// Fewer samples than this hardly show the range of a value.
const FEW_SAMPLES: usize = 8;

/// Quantize a float ONNX model, to int8 or fewer bits.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit quantize model.onnx --data images/ --resize 256 --crop 224 --scale 0.00392157
  lowbit quantize model.onnx --data samples.npz --calibrator percentile=99.99
  lowbit quantize model.onnx --data samples.npz --skip '/classifier/*' -o small.onnx
  lowbit quantize model.onnx --data samples.npz --config rules.toml
  lowbit quantize model.onnx --data samples.npz --target tensorrt
  lowbit quantize model.onnx --method dynamic
  lowbit quantize model.onnx --method weight-only --weights uint4 --block 32 --data texts.npz

A hundred samples or so, like those that the model will see, are enough; the dynamic and weight-only methods
need none, but weights of few bits are better for them.
In rules.toml, the last rule that matches a node decides:
  preset = \"default\"
  [[rule]]
  op = \"Softmax\"       # or name = \"layer4.*\", or regex = \"^conv1$\"
  float = true")]
pub struct Args {
    /// The float model.
    model: PathBuf,
    /// Calibration samples, which only the static method needs: folder of images, .jpg, .png,
    /// .npy, .npz (arrays named as the inputs, or x), CIFAR-10 .bin(.gz), IDX -ubyte(.gz).
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    #[command(flatten)]
    samples: SampleArgs,
    /// Where to write; by default MODEL with .int8.onnx, or the format of --weights.
    #[arg(short, long, value_name = "OUT.onnx")]
    output: Option<PathBuf>,
    /// How activations are quantized.
    #[arg(long, value_enum, default_value_t = Method::Static)]
    method: Method,
    /// The codes of weights that are all that is quantized: int8, uint4 (affine), int4, nf4, kmeans4,
    /// fp16, e4m3, e5m2 ...; by default int8.
    #[arg(long, value_name = "FORMAT", value_parser = named::<Format>, conflicts_with_all = ["config", "preset"])]
    weights: Option<Format>,
    /// Elements of a weight that share a scale; by default 32 for formats of less than 8 bits, and
    /// a whole output channel for others.
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with_all = ["config", "preset", "per_tensor"])]
    block: Option<usize>,
    /// Move factors into weights that meet great inputs on the samples, so that these get finer steps.
    #[arg(long, conflicts_with = "config")]
    awq: bool,
    /// Write products with weights of few bits as onnxruntime's MatMulNBits, which computes in float
    /// or, faster for many rows, in int8; by default as standard operators.
    #[arg(long, value_enum, value_name = "COMPUTE")]
    matmul_nbits: Option<Compute>,
    /// How the ranges of activations are chosen: min-max, moving-average, histogram,
    /// percentile, percentile=99.99, entropy, mse, or measured: for each value that of these which
    /// changes the outputs the least; by default what the preset says.
    #[arg(long, value_parser = calibrator)]
    calibrator: Option<ObserverConfig>,
    /// default, or for other backends: x86, fbgemm, onednn, qnnpack, tensorrt, onnxruntime, openvino;
    /// dynamic, or dynamic-rows with a range for each row (token); by default what the method says.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    preset: Option<String>,
    /// The runtime that the model is for: chooses the preset and how the model is written
    /// (`lowbit lint` says what of it runs in int8 there).
    #[arg(long, value_enum, value_name = "RUNTIME")]
    target: Option<Runtime>,
    /// Rules for each node, in TOML.
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["calibrator", "per_tensor", "equalize", "rounding"])]
    config: Option<PathBuf>,
    /// One scale for each weight, in place of one for each of its output channels; with the default
    /// preset also --cross-layer.
    #[arg(long)]
    per_tensor: bool,
    /// Make the channels of weights that have one scale alike in range, by moving factors between
    /// the layers that make a value and those that read it; --cross-layer=false does not.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        conflicts_with = "config"
    )]
    cross_layer: Option<bool>,
    /// How much the channels of a value are made alike in range, by moving factors into the
    /// weights around it: 0, not at all, to 1, completely; by default what the preset says.
    #[arg(long, value_name = "STRENGTH")]
    equalize: Option<f32>,
    /// How much the outliers of what matrix products read are moved into their weights: 0, not at
    /// all, to 1, completely; for transformers 0.5 (SmoothQuant).
    #[arg(long, value_name = "STRENGTH", conflicts_with = "config")]
    smooth: Option<f32>,
    /// Give channels of what layers make the mean and the deviation back that they have in float;
    /// by default what the preset says; --renormalize=false does not.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        conflicts_with = "config"
    )]
    renormalize: Option<bool>,
    /// How biases make up for the mean error of weights: off, observed, by the means of the samples,
    /// or analytic, by the batch normalization before a layer; by default what the preset says.
    #[arg(long, value_name = "HOW", value_parser = named::<BiasCorrection>, conflicts_with = "config")]
    correct_bias: Option<BiasCorrection>,
    /// How the codes of weights are chosen: nearest; gptq, which looks at the layers'
    /// inputs on the samples; or adaround, which learns them in minutes, the best for few
    /// bits; by default what the preset says.
    #[arg(long, value_name = "HOW", value_parser = named::<Rounding>)]
    rounding: Option<Rounding>,
    /// Keep nodes whose name, or whose output's name, matches in float. May be repeated.
    #[arg(long, value_name = "GLOB")]
    skip: Vec<String>,
    /// Samples that run at once while calibrating.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    batch: usize,
}

/// How activations are quantized.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// With ranges found beforehand, on sample data.
    Static,
    /// With the ranges of each run: for matrix products, convolutions and recurrent layers.
    Dynamic,
    /// Not at all: only weights are.
    WeightOnly,
}

impl Method {
    fn preset(self) -> &'static str {
        match self {
            Method::Static => "default",
            Method::Dynamic => "dynamic",
            Method::WeightOnly => "weight-only",
        }
    }
}

/// What a product with weights of few bits computes in.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compute {
    /// In float.
    Float,
    /// In int8: the other operand is quantized in each run, block by block.
    Int8,
}

/// The name of an option's value.
fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or(String::new(), |v| v.get_name().to_string())
}

fn calibrator(text: &str) -> Result<ObserverConfig, String> {
    if let Some(percentile) = text.strip_prefix("percentile=") {
        let percentile = percentile.parse().map_err(|_| format!("{percentile:?} is not a number"))?;
        return Ok(ObserverConfig::Percentile { percentile });
    }
    match text {
        "min-max" | "moving-average" | "histogram" | "percentile" | "entropy" | "mse" | "measured" => named(text),
        _ => {
            Err("choose min-max, moving-average, histogram, percentile, percentile=99.99, entropy, mse or measured"
                .into())
        }
    }
}

/// The rules of a file.
pub fn read_config(path: &Path) -> lowbit::Result<QConfigMapping> {
    let text = fs::read_to_string(path).map_err(|e| lowbit::Error::io(path, e))?;
    QConfigMapping::from_toml(&text).map_err(|e| e.at(path.display().to_string()))
}

/// The rules of a file, if there is one, or a preset for every node.
pub fn rules(config: Option<&Path>, name: &str) -> lowbit::Result<QConfigMapping> {
    match config {
        Some(path) => read_config(path),
        None => Ok(QConfigMapping::global(preset(name)?)),
    }
}

/// Where a model made of `model` is written: `given`, or beside it with this ending.
pub fn output_of(given: Option<&PathBuf>, model: &Path, ending: &str) -> anyhow::Result<PathBuf> {
    let output = given.cloned().unwrap_or_else(|| model.with_extension(ending));
    let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        bail!("{}: the folder {} does not exist; make it first", output.display(), folder.display());
    }
    if output.is_dir() {
        bail!("{}: is a folder; give a file name", output.display());
    }
    if let (Ok(a), Ok(b)) = (fs::canonicalize(&output), fs::canonicalize(model))
        && a == b
    {
        bail!("{}: would overwrite the float model; give another name", output.display());
    }
    Ok(output)
}

impl Args {
    /// The preset where none is named.
    fn standard_preset(&self) -> &'static str {
        match (self.method, self.target) {
            (Method::Static, Some(runtime)) => runtime.target().preset(),
            (method, _) => method.preset(),
        }
    }

    /// The command, with the options that the mapping does not hold.
    fn command(&self) -> String {
        let mut command = "quantize".to_string();
        if let Some(runtime) = self.target {
            command += &format!(" --target {}", value_name(&runtime));
        }
        if let Some(compute) = self.matmul_nbits {
            command += &format!(" --matmul-nbits {}", value_name(&compute));
        }
        command
    }

    fn mapping(&self) -> lowbit::Result<QConfigMapping> {
        let mapping = match &self.config {
            Some(path) => read_config(path)?,
            None => {
                let name = self.preset.as_deref().unwrap_or(self.standard_preset());
                let mut q = preset(name)?;
                if self.method == Method::Dynamic && q.dynamic().is_none() {
                    return Err(lowbit::Error::Invalid(format!("preset {name} is not for --method dynamic")));
                }
                if self.method == Method::WeightOnly && q.activation.is_some() {
                    return Err(lowbit::Error::Invalid(format!(
                        "preset {name} is not for --method weight-only"
                    )));
                }
                if q.activation.is_some() && (self.weights.is_some() || self.block.is_some() || self.awq) {
                    let text = "--weights, --block and --awq are for --method weight-only";
                    return Err(lowbit::Error::Invalid(text.into()));
                }
                if self.weights.is_some() || self.block.is_some() {
                    q = QConfig::weight_only(
                        self.weights.unwrap_or(q.weight.format),
                        self.block.map(Per::Block),
                    );
                }
                q.weight.awq = self.awq;
                if q.observed().is_none() && (self.calibrator.is_some() || self.equalize.is_some()) {
                    let text = "--calibrator and --equalize are for static quantization";
                    return Err(lowbit::Error::Invalid(text.into()));
                }
                if let Some(activation) = &mut q.activation {
                    activation.observer = self.calibrator.unwrap_or(activation.observer);
                    activation.equalize = self.equalize.unwrap_or(activation.equalize);
                    activation.smooth = self.smooth.unwrap_or(activation.smooth);
                }
                if q.activation.is_none() && self.smooth.is_some() {
                    let text = "--smooth is for quantized activations: --method static or dynamic";
                    return Err(lowbit::Error::Invalid(text.into()));
                }
                q.weight.correct_bias = self.correct_bias.unwrap_or(q.weight.correct_bias);
                if let Some(rounding) = self.rounding {
                    q.weight.rounding = rounding;
                }
                if self.per_tensor {
                    q.weight = q.weight.per(Per::Tensor);
                    q.weight.cross_layer = name == "default";
                }
                if self.cross_layer == Some(true) && q.weight.per != Per::Tensor {
                    let text = "--cross-layer is for weights with one scale: add --per-tensor";
                    return Err(lowbit::Error::Invalid(text.into()));
                }
                if self.renormalize == Some(true) && q.weight.per != Per::Channel {
                    let text = "--renormalize is for weights with a scale for each channel";
                    return Err(lowbit::Error::Invalid(text.into()));
                }
                q.weight.cross_layer = self.cross_layer.unwrap_or(q.weight.cross_layer);
                q.weight.renormalize = self.renormalize.unwrap_or(q.weight.renormalize);
                QConfigMapping::global(q)
            }
        };
        self.skip.iter().try_fold(mapping, |mapping, glob| Ok(mapping.with(Target::name(glob)?, None)))
    }
}

/// Writes a model, and its preprocessing beside it where it has one.
pub fn save(graph: &Graph, preprocess: &Preprocess, path: &Path) -> lowbit::Result<()> {
    onnx::save(graph, path)?;
    let beside = Preprocess::path_beside(path);
    // A file from an earlier run must not say something else.
    if *preprocess != Preprocess::default() || beside.exists() {
        let text = preprocess.to_toml()?;
        write_atomically(&beside, |f| f.write_all(text.as_bytes()))?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Summary<'a> {
    model: &'a Path,
    output: &'a Path,
    float_bytes: u64,
    int8_bytes: u64,
    activations: usize,
    weights: usize,
    calibration_samples: Option<usize>,
    coverage: f64,
    session: &'a Report,
    findings: &'a [Finding],
    seconds: f64,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let start = Instant::now();
    let ending = format!("{}.onnx", args.weights.unwrap_or(Format::INT8));
    let output = output_of(args.output.as_ref(), &args.model, &ending)?;
    let mapping = args.mapping()?;
    let float = load_float(&args.model)?;
    let data = args.data.as_ref().map(|path| args.samples.open(path, &args.model, &float)).transpose()?;
    let samples = data.as_ref().map(Dataset::len);
    match (&args.data, samples) {
        (None, _) if mapping.is_static() => bail!(
            "static quantization finds ranges on sample data: give it with --data, or choose --method dynamic"
        ),
        (None, _) if mapping.is_aware_of_activations() => {
            bail!("--awq looks at the inputs of weights on sample data: give it with --data")
        }
        (Some(path), Some(found)) if found < FEW_SAMPLES => warn(&format!(
            "{}: only {found} calibration samples; ranges will be poor: give a hundred or so",
            path.display()
        )),
        _ => {}
    }
    let calibration = data.as_ref().map(|data| Samples { data, batch: args.batch });
    let stages = Stages::default();
    let recipe::Quantized { calibrated, mut graph, findings } =
        recipe::quantize(&float, &mapping, calibration, &|step| stages.at(step))?;
    drop(stages);
    if let Some(compute) = args.matmul_nbits {
        let rewritten = products_of_few_bits(&graph, compute == Compute::Int8)?;
        if rewritten == graph {
            bail!(
                "{}: no MatMul has weights of 2, 4 or 8 bits alone for --matmul-nbits",
                args.model.display()
            );
        }
        graph = rewritten;
    }
    let provenance = Provenance::new(&args.command(), &mapping, &args.model, data.as_ref())?;
    provenance.record(&mut graph)?;
    if let Some(runtime) = args.target {
        graph = runtime.target().dialect(graph)?;
    }
    let session = Session::compile(&graph)?;
    let points = |role| calibrated.prepared.points().iter().filter(|p| p.role == role).count();
    let (activations, weights) = (points(Role::Activation), points(Role::Weight));
    if weights == 0 {
        warn(&format!(
            "{}: no weight was quantized: it has no layer that lowbit quantizes, or rules keep all of them in float",
            args.model.display()
        ));
    }
    save(&graph, &args.samples.preprocess.of(&args.model)?, &output)?;
    let summary = Summary {
        model: &args.model,
        output: &output,
        float_bytes: file_bytes(&args.model)?,
        int8_bytes: file_bytes(&output)?,
        activations,
        weights,
        calibration_samples: samples,
        coverage: session.report().coverage(),
        session: session.report(),
        findings: &findings,
        seconds: start.elapsed().as_secs_f64(),
    };
    Output::new(text(&summary)?, &summary)
}

fn text(s: &Summary<'_>) -> anyhow::Result<String> {
    let ratio = s.int8_bytes as f64 / s.float_bytes.max(1) as f64;
    let mut table = Table::new(&["quantized", ""]);
    table.row([
        "size".into(),
        format!("{} -> {} ({})", bytes(s.float_bytes), bytes(s.int8_bytes), percent(ratio)),
    ]);
    table.row(["points".into(), format!("{} activations, {} weights", s.activations, s.weights)]);
    let samples = s.calibration_samples.map_or("nothing".into(), |n| format!("{n} samples"));
    table.row(["calibrated on".into(), samples]);
    let macs = format!("{} of {} MACs ({})", percent(s.coverage), count(s.session.macs), s.session.isa);
    table.row(["in int8".into(), macs]);
    table.row(["time".into(), format!("{:.1} s", s.seconds)]);
    table.row(["written to".into(), s.output.display().to_string()]);
    let mut text = table.to_string();
    text += &fallbacks(s.session)?;
    if !s.findings.is_empty() {
        writeln!(text, "\nfindings:")?;
        for finding in s.findings {
            writeln!(text, "  {finding}")?;
        }
    }
    Ok(text)
}

/// What a compiled model runs in float, and why, of many nodes those that
/// compute the most; empty if nothing.
pub fn fallbacks(report: &Report) -> anyhow::Result<String> {
    const MOST: usize = 20;
    let mut text = String::new();
    if report.fallbacks.is_empty() {
        return Ok(text);
    }
    let mut nodes: Vec<_> = report.fallbacks.iter().collect();
    if nodes.len() > MOST {
        nodes.sort_by_key(|f| std::cmp::Reverse(f.macs));
    }
    let mut table = Table::new(&["stays in float", "op", ">MACs", "because"]);
    for f in nodes.iter().take(MOST) {
        table.row([f.node.clone(), f.op.clone(), count(f.macs), f.reason.clone()]);
    }
    write!(text, "\n{table}")?;
    if nodes.len() > MOST {
        write!(text, "... and {} nodes more, in --json", nodes.len() - MOST)?;
    }
    Ok(text)
}
