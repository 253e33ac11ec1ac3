//! `lowbit eval`: the accuracy of models, side by side.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lowbit::analysis::{Evaluation, Runner, evaluate};
use lowbit::data::random_inputs;
use lowbit::onnx;

use crate::data::{DataArgs, positive};
use crate::model::Engine;
use crate::output::Output;
use crate::progress::Progress;
use crate::table::{Table, percent};

/// Measure the accuracy of one or more models on the same labelled samples.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit eval model.int8.onnx --data validation/
  lowbit eval model.onnx model.int8.onnx --data validation/ --samples 500

Several models are compared with the first, sample by sample: `agree` is the share of samples with
the same first class; `lost` and `won` are samples that only the first, or only this model, has right;
p is the probability of such counts if both were equally good (McNemar's exact test).")]
pub struct Args {
    /// The models, float or quantized; the others are compared with the first.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    /// Samples that run at once.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive)]
    batch: usize,
    #[command(flatten)]
    engine: Engine,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let mut models: Vec<(String, Box<dyn Runner>)> = vec![];
    let mut data = None;
    for path in &args.models {
        let (name, graph) = (path.display().to_string(), onnx::load(path)?);
        if data.is_none() {
            data = Some(args.data.open(path, &graph)?);
        }
        let inputs = |g: &_| random_inputs(g, args.batch, &BTreeMap::new());
        let (runner, _) = args.engine.runner(graph, inputs).map_err(|e| e.at(&name))?;
        models.push((name, runner));
    }
    let Some(data) = data else { anyhow::bail!("give at least one model") };
    let progress = Progress::new("evaluating", data.len());
    let models: Vec<(&str, &dyn Runner)> = models.iter().map(|(name, m)| (name.as_str(), &**m)).collect();
    let evaluation = evaluate(&models, &data, args.batch, &mut |done| progress.at(done))?;
    Output::new(text(&evaluation), &evaluation)
}

/// A row for each model.
pub fn text(evaluation: &Evaluation) -> String {
    let mut table = Table::new(&["model", ">top-1", ">top-5", ">agree", ">lost", ">won", ">p", ">ms/sample"]);
    let share = |x: Option<f64>| x.map_or("-".into(), percent);
    for s in &evaluation.scores {
        let of = |f: &dyn Fn(&lowbit::analysis::Paired) -> String| s.paired.as_ref().map_or("-".into(), f);
        table.row([
            s.name.clone(),
            share(s.top1),
            share(s.top5),
            percent(s.agreement),
            of(&|p| p.only_first.to_string()),
            of(&|p| p.only_this.to_string()),
            of(&|p| format!("{:.3}", p.p)),
            format!("{:.3}", s.ms_per_sample),
        ]);
    }
    format!("{table}{} samples", evaluation.samples)
}
