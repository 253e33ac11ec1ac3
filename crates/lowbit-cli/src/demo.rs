//! `lowbit demo`: everything once, on a small model that is built in.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use lowbit::analysis::{Latency, Runner, compare, evaluate, profile};
use lowbit::data::{Dataset, Preprocess, npz, random_inputs, write_atomically};
use lowbit::graph::Graph;
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::quantize::fuse;
use lowbit::recipe::{self, Samples};
use lowbit::session::Session;
use lowbit::tensor::Tensor;
use lowbit::{Error, onnx};
use serde::Serialize;

use crate::interrupt;
use crate::model::{file_bytes, inputs};
use crate::output::Output;
use crate::progress::{Progress, Stages};
use crate::quantize::save;
use crate::table::{Table, bytes, decibel, percent};

const MODEL: &[u8] = include_bytes!("../../../demo/digits.onnx");
const DATA: &[u8] = include_bytes!("../../../demo/digits.npz");

/// Pixels of the demo's pictures are 0..16, those of its model 0..1.
const SCALE: f32 = 1.0 / 16.0;

/// Latency is the median of this many runs.
const RUNS: usize = 100;

/// Quantize a small built-in classifier of handwritten digits, and compare it with the original.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lowbit demo --output try
  lowbit compare try/digits.onnx try/digits.int8.onnx --data try/test.npz")]
pub struct Args {
    /// Folder for the models and the data.
    #[arg(short, long, value_name = "DIR", default_value = "lowbit-demo")]
    output: PathBuf,
}

#[derive(Serialize)]
struct Row {
    model: &'static str,
    path: PathBuf,
    bytes: u64,
    top1: Option<f64>,
    agreement: f64,
    latency: Latency,
}

#[derive(Serialize)]
struct Demo {
    models: Vec<Row>,
    samples: usize,
    coverage: f64,
    worst_value: String,
    worst_node: String,
    worst_sqnr_db: f64,
    seconds: f64,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let start = Instant::now();
    let dir = &args.output;
    let (float_path, int8_path) = (dir.join("digits.onnx"), dir.join("digits.int8.onnx"));
    let preprocess = Preprocess { scale: SCALE, ..Preprocess::default() };
    let [calibration, test] = unpack(args, &preprocess)?;
    let float = onnx::load(&float_path)?;
    let open = |path: &PathBuf| Dataset::open(path, &preprocess, &inputs(&float));
    let (calibration, test) = (open(&calibration)?, open(&test)?);

    let (samples, stages) = (Samples { data: &calibration, batch: 8 }, Stages::default());
    let mapping = QConfigMapping::global(preset("default")?);
    let graph = recipe::quantize(&float, &mapping, Some(samples), &|step| stages.at(step))?.graph;
    drop(stages);
    save(&graph, &preprocess, &int8_path)?;

    let (float_session, session) = (Session::compile(&fuse(&float)?)?, Session::compile(&graph)?);
    let models: [(&str, &dyn Runner); 2] = [("float", &float_session), ("int8", &session)];
    let progress = Progress::new("evaluating", test.len());
    let evaluation = evaluate(&models, &test, 16, &mut |done| progress.at(done))?;
    drop(progress);
    let comparison = compare(&float, &graph, test.batches(16), &mut |_| interrupt::check())?;
    let worst = comparison.worst();
    let Some(worst) = worst.first() else { anyhow::bail!("the models have no value in common") };

    let paths = [float_path, int8_path];
    let rows = models.iter().zip(paths).zip(&evaluation.scores).map(|(((name, model), path), score)| {
        let latency = latency(*model, &float)?;
        Ok(Row {
            model: name,
            bytes: file_bytes(&path)?,
            path,
            top1: score.top1,
            agreement: score.agreement,
            latency,
        })
    });
    let demo = Demo {
        models: rows.collect::<lowbit::Result<_>>()?,
        samples: evaluation.samples,
        coverage: session.report().coverage(),
        worst_value: worst.value.clone(),
        worst_node: worst.node.clone(),
        worst_sqnr_db: worst.sqnr_db,
        seconds: start.elapsed().as_secs_f64(),
    };
    Output::new(text(&demo, args), &demo)
}

/// Writes the model and its data, and returns the paths of calibration and
/// test data.
fn unpack(args: &Args, preprocess: &Preprocess) -> lowbit::Result<[PathBuf; 2]> {
    let dir = &args.output;
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let model = dir.join("digits.onnx");
    write_atomically(&model, |f| f.write_all(MODEL))?;
    let text = preprocess.to_toml()?;
    write_atomically(&Preprocess::path_beside(&model), |f| f.write_all(text.as_bytes()))?;
    let arrays: BTreeMap<String, Tensor> = npz::decode(DATA)?.into_iter().collect();
    let (calibration, test) = (dir.join("calibration.npz"), dir.join("test.npz"));
    npz::write(&calibration, [("x", &arrays["calibration"])])?;
    npz::write(&test, [("x", &arrays["test"]), ("y", &arrays["test_labels"])])?;
    Ok([calibration, test])
}

/// The latency of one sample.
fn latency(model: &dyn Runner, float: &Graph) -> lowbit::Result<Latency> {
    let sample = random_inputs(float, 1, &BTreeMap::new())?;
    Ok(profile(model, &sample, RUNS / 10, RUNS, &mut |_| interrupt::check())?.latency)
}

fn text(demo: &Demo, args: &Args) -> String {
    let mut table = Table::new(&["digits", ">size", ">top-1", ">agree", ">latency", ">speed", "file"]);
    let float_ms = demo.models[0].latency.median_ms;
    for m in &demo.models {
        table.row([
            m.model.into(),
            bytes(m.bytes),
            m.top1.map_or("-".into(), percent),
            percent(m.agreement),
            format!("{:.1} us", 1e3 * m.latency.median_ms),
            format!("{:.2}x", float_ms / m.latency.median_ms),
            m.path.display().to_string(),
        ]);
    }
    let dir = args.output.display();
    format!(
        "{table}
int8 coverage     {} of MACs
weakest value     {} ({}): SQNR {} dB
measured on       {} test images, in {:.1} s

Try next:
  lowbit compare {dir}/digits.onnx {dir}/digits.int8.onnx --data {dir}/test.npz
  lowbit inspect {dir}/digits.int8.onnx
  lowbit quantize {dir}/digits.onnx --data {dir}/calibration.npz --per-tensor -o {dir}/per-tensor.onnx
  lowbit eval {dir}/digits.onnx {dir}/digits.int8.onnx {dir}/per-tensor.onnx --data {dir}/test.npz
",
        percent(demo.coverage),
        demo.worst_value,
        demo.worst_node,
        decibel(demo.worst_sqnr_db),
        demo.samples,
        demo.seconds
    )
}
