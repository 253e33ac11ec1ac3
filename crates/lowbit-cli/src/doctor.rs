//! `lowbit doctor`: the fastest model that is good enough.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use lowbit::analysis::{Metric, Provenance};
use lowbit::data::{Dataset, write_atomically};
use lowbit::doctor::{Case, Event, Goal, Options, Outcome, examine};
use lowbit::graph::Graph;
use lowbit::onnx;
use lowbit::qconfig::QConfigMapping;
use lowbit::recipe::Samples;
use lowbit::report::{Noted, Step};
use serde::Serialize;

use crate::data::{SampleArgs, positive};
use crate::lint::Runtime;
use crate::model::load_float;
use crate::output::{Output, warn};
use crate::progress::Stages;
use crate::quantize::{output_of, rules, save};
use crate::report::{ENDING, Page};
use crate::table::{Table, bytes, percent};

/// Weights and activations that a page draws.
const WORST: usize = 12;

/// Quantize a float model, find what hurts, and mend it until it is good enough.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit doctor model.onnx --data images/                          without labels: 99 % as the float model
  lowbit doctor model.onnx --data calibration/ --eval validation/ --drop 0.5
  lowbit doctor model.onnx --data images/ --agreement 98 --most-ms 2.5 --minutes 5

It begins with everything in int8, then tries what costs no speed, and then leaves the layers in float
that hurt most, as few as it takes. The best model so far is always at --output. What was measured is
kept in --folder: a search that was stopped goes on from there, to the same model.")]
pub struct Args {
    /// The float model.
    model: PathBuf,
    /// Calibration samples: folder of images, .jpg, .png, .npy, .npz (arrays named as the inputs, or
    /// x), CIFAR-10 .bin(.gz), IDX -ubyte(.gz).
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Samples that models are judged by; by default those of --data.
    #[arg(long, value_name = "PATH")]
    eval: Option<PathBuf>,
    #[command(flatten)]
    samples: SampleArgs,
    /// Where the best model is written; by default MODEL with .int8.onnx.
    #[arg(short, long, value_name = "OUT.onnx")]
    output: Option<PathBuf>,
    #[command(flatten)]
    bar: BarArgs,
    /// The longest that a sample may take, in milliseconds.
    #[arg(long, value_name = "MS")]
    most_ms: Option<f64>,
    /// When to stop looking for something better; earlier runs of the same search count.
    #[arg(long, value_name = "N", default_value_t = 30.0)]
    minutes: f64,
    /// Where results are kept as they come; by default the output with .doctor.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// How nodes are quantized at first, by the name of a preset.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "target"])]
    preset: Option<String>,
    /// The runtime that the model is for: chooses the preset and how the model is written.
    #[arg(long, value_enum, value_name = "RUNTIME", conflicts_with = "config")]
    target: Option<Runtime>,
    /// How nodes are quantized at first: rules in TOML, as of `lowbit quantize`.
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Write a page about the best model and the search, as of `lowbit report`: the output with
    /// .report.html.
    #[arg(long)]
    report: bool,
    /// Samples that run at once.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    batch: usize,
}

/// How good the model must be.
#[derive(clap::Args)]
#[group(multiple = false)]
struct BarArgs {
    /// The samples, in percent, that must have the same first class as in float; the default where
    /// the samples have no labels, 99.
    #[arg(long, value_name = "PERCENT")]
    agreement: Option<f64>,
    /// The samples, in percent, that must be right.
    #[arg(long, value_name = "PERCENT")]
    accuracy: Option<f64>,
    /// How many percent of the samples fewer than in float may be right; the default where the
    /// samples have labels, 1.
    #[arg(long, value_name = "POINTS")]
    drop: Option<f64>,
    /// For models without classes: the ratio of the outputs to their errors; the default there, 20.
    #[arg(long, value_name = "DB")]
    sqnr: Option<f64>,
}

impl BarArgs {
    fn goal(&self) -> Option<Goal> {
        let share = |percent: f64| percent / 100.0;
        let of = |value: Option<f64>, goal: fn(f64) -> Goal| value.map(goal);
        of(self.agreement.map(share), Goal::Agreement)
            .or(of(self.accuracy.map(share), Goal::Accuracy))
            .or(of(self.drop.map(share), Goal::Drop))
            .or(of(self.sqnr, Goal::Sqnr))
    }
}

impl Args {
    fn mapping(&self) -> lowbit::Result<QConfigMapping> {
        let standard = self.target.map_or("default", |runtime| runtime.target().preset());
        rules(self.config.as_deref(), self.preset.as_deref().unwrap_or(standard))
    }
}

#[derive(Serialize)]
struct Summary<'a> {
    output: &'a Path,
    report: Option<PathBuf>,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let output = output_of(args.output.as_ref(), &args.model, "int8.onnx")?;
    let folder = args.folder.clone().unwrap_or_else(|| output.with_extension("doctor"));
    let mapping = args.mapping()?;
    let float = load_float(&args.model)?;
    let Some(time) = Duration::try_from_secs_f64(60.0 * args.minutes).ok() else {
        bail!("--minutes {}: is no time", args.minutes);
    };
    let calibration = args.samples.open(&args.data, &args.model, &float)?;
    let eval = args.eval.as_ref().map(|path| args.samples.open(path, &args.model, &float)).transpose()?;
    if eval.is_none() {
        warn("models are judged by the samples that they are calibrated on: --eval names others");
    }
    std::fs::create_dir_all(&folder).map_err(|e| lowbit::Error::io(&folder, e))?;
    let samples = |data| Samples { data, batch: args.batch };
    let case = Case {
        float: &float,
        calibration: samples(&calibration),
        judged: samples(eval.as_ref().unwrap_or(&calibration)),
    };
    let options = Options {
        goal: args.bar.goal(),
        most_ms: args.most_ms,
        mapping,
        time: Some(time),
        folder: Some(folder),
    };
    let preprocess = args.samples.preprocess.of(&args.model)?;
    let stages = Stages::default();
    let outcome = examine(&case, &options, &|event| match event {
        Event::Step(step) => stages.at(step),
        Event::Said(text) => {
            stages.say(text);
            Ok(())
        }
        Event::Tried(trial) => {
            stages.say(&format!("{}: {}", trial.title, trial.text));
            Ok(())
        }
        Event::Best(graph, trial) => {
            let mut graph = graph.clone();
            Provenance::new("doctor", &trial.mapping, &args.model, Some(&calibration))?.record(&mut graph)?;
            if let Some(runtime) = args.target {
                graph = runtime.target().dialect(graph)?;
            }
            save(&graph, &preprocess, &output)
        }
    })?;
    drop(stages);
    let report = args.report.then(|| {
        let data = match (&args.eval, &eval) {
            (Some(path), Some(data)) => (path.as_path(), data),
            _ => (args.data.as_path(), &calibration),
        };
        page(args, &float, &output, data, &outcome)
    });
    let report = report.transpose()?;
    let text = text(&outcome, &output, report.as_deref());
    Output::new(text, &Summary { output: &output, report, outcome: &outcome })
}

/// Writes a page about the best model and how it was found. Returns its path.
fn page(
    args: &Args,
    float: &Graph,
    output: &Path,
    data: (&Path, &Dataset),
    outcome: &Outcome,
) -> anyhow::Result<PathBuf> {
    let quantized = onnx::load(output)?;
    let page = Page {
        float: (&args.model, float),
        quantized: (output, &quantized),
        data,
        worst: WORST,
        batch: args.batch,
    };
    let mut report = page.measured(false)?;
    report.steps = outcome.trials.iter().map(Step::from).collect();
    report.findings.extend(outcome.findings.iter().map(Noted::from));
    report.sensitivity = outcome.sensitivity.clone().map(|s| (Metric::Sqnr, s));
    let path = output.with_extension(ENDING);
    write_atomically(&path, |f| f.write_all(report.html().as_bytes()))?;
    Ok(path)
}

fn text(d: &Outcome, output: &Path, report: Option<&Path>) -> String {
    let mut table =
        Table::new(&["", "tried", ">agree", ">top-1", ">SQNR dB", ">in int8", ">size", ">ms", "and"]);
    let share = |x: Option<f64>| x.map_or("-".into(), percent);
    for (i, trial) in d.trials.iter().enumerate() {
        let m = &trial.measured;
        let came = match (i == d.best, trial.meets, trial.kept) {
            (true, ..) => "the best",
            (_, true, _) => "enough",
            (_, _, true) => "kept",
            _ => "dropped",
        };
        table.row([
            (i + 1).to_string(),
            trial.title.clone(),
            share(m.scores.agreement),
            share(m.scores.top1),
            crate::table::decibel(m.scores.sqnr_db),
            percent(m.integer_share),
            bytes(m.bytes),
            format!("{:.3}", m.ms),
            came.into(),
        ]);
    }
    let mut text = format!("{table}{} samples\n\n{}\nwritten to {}", d.samples, d.verdict, output.display());
    if let Some(report) = report {
        text += &format!("\nreport in {}", report.display());
    }
    if !d.met {
        text += "\nnext: more calibration samples, or train it: lowbit qat";
    }
    text
}
