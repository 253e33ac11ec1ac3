//! `lowbit sensitivity`: which layers bear quantization.

use std::path::PathBuf;

use anyhow::bail;
use lowbit::analysis::{Metric, Scores, Sensitivity, SensitivityOptions, sensitivity};
use lowbit::data::batch_size;
use lowbit::recipe::{self, Calibrated, Samples};
use serde::Serialize;

use crate::data::{DataArgs, named, positive};
use crate::model::load_float;
use crate::output::Output;
use crate::progress::{Progress, Stages};
use crate::quantize::rules;
use crate::table::{Table, decibel, percent};

/// Rank the layers of a float model by what quantizing each alone does to its outputs.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit sensitivity model.onnx --data calibration/
  lowbit sensitivity model.onnx --data calibration/ --metric kl --worst 5
  lowbit sensitivity model.onnx --data calibration/ --all-but-one --resume state.jsonl
  lowbit sensitivity model.onnx --data calibration/ --by '/layer1/*' --by '/layer2/*'

Ranges are found once on the samples; each layer is then quantized alone and run on them. The layer
that harms the most comes first: keep it in float with `lowbit quantize --skip`, or give it more bits.")]
pub struct Args {
    /// The float model.
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// What layers are ranked by: sqnr, mse, kl, agreement or, with labels, top1.
    #[arg(long, default_value = "sqnr", value_parser = named::<Metric>)]
    metric: Metric,
    /// Quantize all layers but one, and rank by what leaving that one in float gains.
    #[arg(long)]
    all_but_one: bool,
    /// Measure the nodes whose name, or whose output's name, matches as one layer, in place of
    /// each node with a weight. May be repeated.
    #[arg(long, value_name = "GLOB")]
    by: Vec<String>,
    /// Keep results in this file as they come, and go on from those that it holds.
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Print only the K layers that harm the most.
    #[arg(long, value_name = "K", value_parser = positive)]
    worst: Option<usize>,
    /// How nodes are quantized, by the name of a preset.
    #[arg(long, value_name = "NAME", default_value = "default", conflicts_with = "config")]
    preset: String,
    /// Rules for each node, in TOML.
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Threads that measure, two layers at a time; by default one for each core.
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// Samples that run at once.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    batch: usize,
}

/// A measurement, and the layers' names in the order of their harm.
#[derive(Serialize)]
struct Ranked<'a> {
    metric: Metric,
    ranked: Vec<&'a str>,
    #[serde(flatten)]
    sensitivity: &'a Sensitivity,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let mapping = rules(args.config.as_deref(), &args.preset)?;
    let float = load_float(&args.model)?;
    let data = args.data.open(&args.model, &float)?;
    if args.metric == Metric::Top1 && data.labels().is_none() {
        bail!("--metric top1 needs labels, which the data does not have: choose sqnr, kl or agreement");
    }
    let batch = batch_size(&float, args.batch);
    let (samples, stages) = (Samples { data: &data, batch }, Stages::default());
    let Calibrated { prepared, .. } =
        recipe::calibrate(&float, &mapping, Some(samples), &|step| stages.at(step))?;
    drop(stages);
    let options = SensitivityOptions {
        all_but_one: args.all_but_one,
        by: args.by.clone(),
        resume: args.resume.clone(),
        threads: args.threads,
    };
    let count = if args.by.is_empty() { prepared.layers().count() } else { args.by.len() };
    let progress = Progress::new("measuring layers", count);
    let found = sensitivity(&prepared, || data.batches(batch), &options, &|done| progress.at(done))?;
    drop(progress);
    let layers = found.ranked(args.metric)?;
    let ranked = layers.iter().map(|l| l.layer.as_str()).collect();
    let text = text(&found, args.metric, args.worst)?;
    Output::new(text, &Ranked { metric: args.metric, ranked, sensitivity: &found })
}

fn text(s: &Sensitivity, metric: Metric, worst: Option<usize>) -> lowbit::Result<String> {
    let title = if s.all_but_one { "layer in float" } else { "layer quantized" };
    let mut table = Table::new(&["", title, ">SQNR dB", ">MSE", ">KL", ">agree", ">top-1"]);
    let mut row = |rank: String, name: &str, s: &Scores| {
        table.row([
            rank,
            name.into(),
            decibel(s.sqnr_db),
            format!("{:.2e}", s.mse),
            s.kl.map_or("-".into(), |kl| format!("{kl:.2e}")),
            s.agreement.map_or("-".into(), percent),
            s.top1.map_or("-".into(), percent),
        ]);
    };
    for (i, layer) in s.ranked(metric)?.into_iter().take(worst.unwrap_or(usize::MAX)).enumerate() {
        row((i + 1).to_string(), &layer.layer, &layer.scores);
    }
    row(String::new(), if s.all_but_one { "none" } else { "all" }, &s.everything);
    let top1 = s.float_top1.map_or(String::new(), |share| format!(", float top-1 {}", percent(share)));
    Ok(format!("{table}{} samples{top1}", s.samples))
}
