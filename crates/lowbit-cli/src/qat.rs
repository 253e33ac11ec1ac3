//! `lowbit qat`: a float model in, a quantized one that was trained to be as good out.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use clap::ValueEnum;
use lowbit::analysis::{Evaluation, Provenance, Runner, evaluate};
use lowbit::data::{Augment, Dataset};
use lowbit::graph::Graph;
use lowbit::onnx;
use lowbit::passes::ChannelScales;
use lowbit::qconfig::{QConfigMapping, Target as Nodes, preset};
use lowbit::quantize::Finding;
use lowbit::recipe::{self, Calibrated, Samples};
use lowbit::scheme::Format;
use lowbit::session::Session;
use lowbit::tensor::Tensor;
use lowbit::train::{
    Agreement, BatchNorm, Loss, Optimizer, Options, Qat, QatOptions, Ranges, Schedule, Target, Training,
    WarmUp,
};
use serde::Serialize;

use crate::data::{SampleArgs, named, positive};
use crate::output::{Output, warn};
use crate::progress::{Progress, Stages};
use crate::quantize::{output_of, read_config, save};
use crate::table::{Table, percent};

/// Train a float ONNX model so that its quantized form is as good.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit qat model.onnx --data images/                        no labels: learn what the float model says
  lowbit qat model.onnx --data images/ --weights int4 --activations uint4 --rate 0.02 --flip --shift 4
  lowbit qat model.onnx --data train/ --labels --test validation/ --checkpoint run.safetensors

A hundred samples help, thousands help more. Steps of scales are learned with the weights (LSQ).
A training that was stopped goes on from its --checkpoint, to the same model.")]
pub struct Args {
    /// The float model.
    model: PathBuf,
    /// Training samples: folder of images, .npy, .npz, CIFAR-10 .bin(.gz), IDX -ubyte(.gz).
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Samples to measure both models on at the end; by default those of --data.
    #[arg(long, value_name = "PATH")]
    test: Option<PathBuf>,
    #[command(flatten)]
    samples: SampleArgs,
    /// Where to write; by default MODEL with .qat.onnx.
    #[arg(short, long, value_name = "OUT.onnx")]
    output: Option<PathBuf>,
    /// Learn the labels of the data, in place of what the float model says.
    #[arg(long)]
    labels: bool,
    /// The codes of weights: int8, int4, int3 ...; by default what the preset says.
    #[arg(long, value_name = "FORMAT", value_parser = named::<Format>, conflicts_with = "config")]
    weights: Option<Format>,
    /// The codes of activations: uint8, uint4, uint3 ...; by default what the preset says.
    #[arg(long, value_name = "FORMAT", value_parser = named::<Format>, conflicts_with = "config")]
    activations: Option<Format>,
    /// As of `lowbit quantize`.
    #[arg(long, value_name = "NAME", default_value = "default", conflicts_with = "config")]
    preset: String,
    /// Rules for each node, in TOML, as of `lowbit quantize`.
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Keep nodes whose name, or whose output's name, matches in float. May be repeated.
    #[arg(long, value_name = "GLOB")]
    skip: Vec<String>,
    /// Passes over the data.
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = positive)]
    epochs: usize,
    /// Samples of a step.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    batch: usize,
    /// The learning rate at its highest: the default suits 8 bits, fewer need up to a hundred times more.
    #[arg(long, value_name = "X", default_value_t = 0.0002)]
    rate: f32,
    /// How the learning rate changes.
    #[arg(long, value_enum, default_value_t = Course::Cosine)]
    schedule: Course,
    /// The share of the training in which the rate rises.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    warm_up: f64,
    /// What moves the weights.
    #[arg(long, value_enum, default_value_t = Mover::Sgd)]
    optimizer: Mover,
    /// Weight decay.
    #[arg(long, value_name = "X", default_value_t = 1e-4)]
    decay: f32,
    /// The greatest norm of the gradients.
    #[arg(long, value_name = "NORM", default_value_t = 5.0)]
    clip: f32,
    /// Where the ranges of activations and weights come from.
    #[arg(long, value_enum, default_value_t = RangeSource::Learned)]
    ranges: RangeSource,
    /// Normalize by the statistics of batches for the first N steps, in place of the running ones.
    #[arg(long, value_name = "N")]
    batch_norm_steps: Option<u64>,
    /// Steps before values are quantized.
    #[arg(long, value_name = "N", default_value_t = 0)]
    delay: u64,
    /// Steps after which ranges of moving averages stay.
    #[arg(long, value_name = "N")]
    observe_until: Option<u64>,
    /// Mirror every other picture.
    #[arg(long)]
    flip: bool,
    /// Move pictures by up to N pixels.
    #[arg(long, value_name = "N", default_value_t = 0)]
    shift: usize,
    /// Softens what the float model says.
    #[arg(long, value_name = "T", default_value_t = 4.0, conflicts_with = "labels")]
    temperature: f32,
    /// Softens the labels.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, requires = "labels")]
    smoothing: f32,
    /// The order of samples.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// File to save the training to after each epoch, and to go on from.
    #[arg(long, value_name = "FILE.safetensors")]
    checkpoint: Option<PathBuf>,
    /// Write the trained float model too.
    #[arg(long, value_name = "OUT.onnx")]
    float: Option<PathBuf>,
}

/// How the learning rate changes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Course {
    /// Down a cosine.
    Cosine,
    /// From 1 % of the rate, that of the first training, down half of a cosine to 1 % of that.
    HalfCosine,
    /// Not at all.
    Constant,
}

/// What moves the weights.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mover {
    /// With momentum 0.9.
    Sgd,
    /// With PyTorch's defaults.
    Adam,
    /// With PyTorch's defaults.
    Adamw,
}

/// Where ranges come from.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RangeSource {
    /// Scales are learned (LSQ).
    Learned,
    /// Scales and zero points are learned (LSQ+).
    LearnedWithOffset,
    /// Clipping bounds of activations are learned (PACT).
    Clipped,
    /// Moving averages of the values' ranges.
    MovingAverage,
}

impl Args {
    fn mapping(&self) -> lowbit::Result<QConfigMapping> {
        let mapping = match &self.config {
            Some(path) => read_config(path)?,
            None => {
                let mut q = preset(&self.preset)?;
                q.weight.format = self.weights.unwrap_or(q.weight.format);
                if let Some(activation) = &mut q.activation {
                    activation.format = self.activations.unwrap_or(activation.format);
                }
                QConfigMapping::global(q)
            }
        };
        self.skip.iter().try_fold(mapping, |mapping, glob| Ok(mapping.with(Nodes::name(glob)?, None)))
    }

    fn options(&self) -> Options {
        Options {
            epochs: self.epochs as u64,
            batch: self.batch,
            optimizer: match self.optimizer {
                Mover::Sgd => Optimizer::sgd(self.decay),
                Mover::Adam => Optimizer::Adam { betas: (0.9, 0.999), epsilon: 1e-8, decay: self.decay },
                Mover::Adamw => Optimizer::AdamW { betas: (0.9, 0.999), epsilon: 1e-8, decay: self.decay },
            },
            rate: self.rate,
            schedule: match self.schedule {
                Course::Cosine => Schedule::Cosine,
                Course::HalfCosine => Schedule::HalfCosine,
                Course::Constant => Schedule::Constant,
            },
            warm_up: WarmUp { share: self.warm_up },
            loss: match self.labels {
                true => Loss::CrossEntropy { smoothing: self.smoothing },
                false => Loss::Distillation { temperature: self.temperature },
            },
            clip: Some(self.clip),
            augment: Augment { flip: self.flip, shift: self.shift },
            seed: self.seed,
        }
    }

    fn qat(&self) -> QatOptions {
        QatOptions {
            ranges: match self.ranges {
                RangeSource::Learned => Ranges::Learned,
                RangeSource::LearnedWithOffset => Ranges::LearnedWithOffset,
                RangeSource::Clipped => Ranges::Clipped,
                RangeSource::MovingAverage => Ranges::MovingAverage(0.01),
            },
            batch_norm: match self.batch_norm_steps {
                Some(frozen_after) => BatchNorm::Batch { frozen_after },
                None => BatchNorm::Frozen,
            },
            delay: self.delay,
            observe_until: self.observe_until,
        }
    }
}

/// What decides the trained model, beside the model and the data.
#[derive(Serialize)]
struct Settings<'a> {
    training: Options,
    quantizers: QatOptions,
    nodes: &'a QConfigMapping,
}

#[derive(Serialize)]
struct Summary {
    output: PathBuf,
    samples: usize,
    steps: u64,
    loss: Option<f64>,
    agreement: Agreement,
    evaluation: Evaluation,
    findings: Vec<Finding>,
    seconds: f64,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let start = Instant::now();
    let output = output_of(args.output.as_ref(), &args.model, "qat.onnx")?;
    let mapping = args.mapping()?;
    if !mapping.is_static() {
        bail!("only static quantization is trained: ranges that each run finds have nothing to learn");
    }
    let float = onnx::load(&args.model)?;
    let data = args.samples.open(&args.data, &args.model, &float)?;
    let test = args.test.as_ref().map(|path| args.samples.open(path, &args.model, &float)).transpose()?;
    let settings = Settings { training: args.options(), quantizers: args.qat(), nodes: &mapping };
    let provenance = Provenance::new("qat", &settings, &args.model, Some(&data))?;
    let (qat, base) = calibrated(args, &float, &mapping, &data)?;
    let teacher = Session::compile(&base)?;
    let mut training = Training::new(qat, args.options())?;
    if let Some(path) = args.checkpoint.as_ref().filter(|path| path.exists()) {
        training.resume(path)?;
        warn(&format!("{}: going on from step {}", path.display(), training.step()));
    }
    let loss = train(args, &mut training, &data, &teacher)?;
    let mut converted = training.learner.convert()?;
    provenance.record(&mut converted.graph)?;
    let session = Session::compile(&converted.graph)?;
    save(&converted.graph, &args.samples.preprocess.of(&args.model)?, &output)?;
    if let Some(path) = &args.float {
        onnx::save(&training.learner.float()?, path)?;
    }
    let measured = test.as_ref().unwrap_or(&data);
    let progress = Progress::new("checking", measured.len().div_ceil(args.batch));
    let mut batches = measured.tensors(&base, args.batch).inspect(|_| _ = progress.step());
    let agreement = Agreement::of(&training.learner, &session, &mut batches)?;
    drop(batches);
    drop(progress);
    let progress = Progress::new("evaluating", measured.len());
    let models: [(&str, &dyn Runner); 2] = [("float", &teacher), ("trained", &session)];
    let evaluation = evaluate(&models, measured, args.batch, &mut |done| progress.at(done))?;
    drop(progress);
    if agreement.differ > 0 {
        warn(&format!("{agreement}"));
    }
    let summary = Summary {
        output,
        samples: data.len(),
        steps: training.step(),
        loss,
        agreement,
        evaluation,
        findings: converted.findings,
        seconds: start.elapsed().as_secs_f64(),
    };
    Output::new(text(&summary), &summary)
}

/// The model with calibrated points, and the float model that it is trained from.
fn calibrated(
    args: &Args,
    float: &Graph,
    mapping: &QConfigMapping,
    data: &Dataset,
) -> anyhow::Result<(Qat, Graph)> {
    let (samples, stages) = (Samples { data, batch: args.batch }, Stages::default());
    let Calibrated { float: fused, prepared, .. } =
        recipe::calibrate(float, mapping, Some(samples), &|step| stages.at(step))?;
    drop(stages);
    if args.batch_norm_steps.is_some() {
        if !ChannelScales::of(&fused)?.is_empty() {
            bail!(
                "--batch-norm-steps trains normalizations that equalization moves factors out of: choose one"
            );
        }
        return Ok((Qat::new(prepared, float, args.qat())?, float.clone()));
    }
    let (prepared, settled) = prepared.settled(&fused)?;
    Ok((Qat::new(prepared, &settled, args.qat())?, fused))
}

/// Trains to the end. Returns the mean loss of the last epoch.
fn train(
    args: &Args,
    training: &mut Training<Qat>,
    data: &Dataset,
    teacher: &Session,
) -> anyhow::Result<Option<f64>> {
    let teach = |x: &[Tensor]| teacher.run(x);
    let target = if args.labels { Target::Labels } else { Target::Teacher(&teach) };
    let steps = (data.len() / args.batch.min(data.len())) * args.epochs;
    let bar = Progress::new("training", steps);
    let mut loss = None;
    let each = steps / args.epochs;
    let what = if args.labels { "right" } else { "as the float model" };
    let trained = training.run(data, &target, &mut |training, p| {
        loss = Some(p.mean_loss);
        bar.at(p.step as usize)?;
        if p.step % each as u64 == 0 {
            let accuracy = p.accuracy.map_or(String::new(), |a| format!(", {} {what}", percent(a)));
            bar.say(&format!("epoch {} of {}: loss {:.4}{accuracy}", p.epoch + 1, args.epochs, p.mean_loss));
            if let Some(path) = &args.checkpoint {
                training.save(path)?;
            }
        }
        Ok(())
    });
    if let (Err(lowbit::Error::Interrupted), Some(path)) = (&trained, &args.checkpoint) {
        training.save(path)?;
        warn(&format!(
            "{}: stopped at step {}; the same command goes on from here",
            path.display(),
            training.step()
        ));
    }
    trained?;
    Ok(loss)
}

fn text(s: &Summary) -> String {
    let mut table = Table::new(&["trained", ""]);
    table.row(["samples, steps".into(), format!("{}, {}", s.samples, s.steps)]);
    table.row(["loss".into(), s.loss.map_or("-".into(), |l| format!("{l:.4}"))]);
    table.row(["simulation".into(), s.agreement.to_string()]);
    table.row(["time".into(), format!("{:.1} s", s.seconds)]);
    table.row(["written to".into(), s.output.display().to_string()]);
    let findings: String = s.findings.iter().map(|f| format!("\n  {f}")).collect();
    let findings = if findings.is_empty() { findings } else { format!("\nfindings:{findings}\n") };
    format!("{table}{findings}\n{}", crate::eval::text(&s.evaluation))
}
