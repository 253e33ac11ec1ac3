//! `lowbit run`: a model's outputs for given data.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::bail;
use lowbit::analysis::top;
use lowbit::data::npz;
use lowbit::data::{batch_size, inputs_of, random_inputs};
use lowbit::onnx;
use lowbit::op::Op;
use lowbit::ops::layout::Concat;
use lowbit::tensor::Tensor;
use serde::Serialize;

use crate::data::{DataArgs, positive};
use crate::model::Engine;
use crate::output::Output;
use crate::progress::Progress;
use crate::table::Table;

/// Run a model: print the best classes of each sample, or write all outputs.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit run model.int8.onnx --data cat.jpg --top 5 --labels classes.txt
  lowbit run model.int8.onnx --data samples.npz --output outputs.npz")]
pub struct Args {
    /// The model, float or quantized.
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Write every output, samples along the first dimension, to this file.
    #[arg(short, long, value_name = "OUT.npz", conflicts_with_all = ["top", "labels"])]
    output: Option<PathBuf>,
    /// Print this many classes for each sample.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = positive)]
    top: usize,
    /// Names of the classes, one a line.
    #[arg(long, value_name = "NAMES.txt")]
    labels: Option<PathBuf>,
    /// Samples that run at once.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    batch: usize,
    #[command(flatten)]
    engine: Engine,
}

#[derive(Serialize)]
struct Class {
    class: usize,
    name: Option<String>,
    score: f32,
}

#[derive(Serialize)]
struct Sample {
    sample: String,
    classes: Vec<Class>,
}

#[derive(Serialize)]
struct Written {
    name: String,
    r#type: String,
    shape: Vec<usize>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let graph = onnx::load(&args.model)?;
    let names: Vec<String> = graph.outputs().map(|(name, _)| name.to_string()).collect();
    let data = args.data.open(&args.model, &graph)?;
    let labels =
        args.labels.as_ref().map(|path| fs::read_to_string(path).map_err(|e| lowbit::Error::io(path, e)));
    let labels = labels.transpose()?;
    let labels: Option<Vec<&str>> = labels.as_deref().map(|text| text.lines().collect());
    let batch = batch_size(&graph, args.batch);
    let (model, _) = args.engine.runner(graph, |g| random_inputs(g, batch, &BTreeMap::new()))?;
    let progress = Progress::new("running", data.len());
    let (mut samples, mut outputs, mut done) = (vec![], vec![vec![]; names.len()], 0);
    for batch in data.batches(batch) {
        let batch = batch?;
        let made = model.run(&inputs_of(model.graph(), &batch)?)?;
        if args.output.is_some() {
            outputs.iter_mut().zip(made).for_each(|(all, t)| all.push(t));
        } else {
            samples.extend(best(args.top, &batch.names, &made, labels.as_deref())?);
        }
        done += batch.names.len();
        progress.at(done)?;
    }
    drop(progress);
    match &args.output {
        Some(path) => {
            let all =
                outputs.iter().zip(&names).map(|(parts, name)| Ok((name.as_str(), joined(parts, name)?)));
            let all: Vec<(&str, Tensor)> = all.collect::<lowbit::Result<_>>()?;
            npz::write(path, all.iter().map(|(name, t)| (*name, t)))?;
            let mut table = Table::new(&["output", "type", "shape"]);
            let mut written = vec![];
            for (name, t) in &all {
                table.row([(*name).into(), t.dtype().to_string(), format!("{:?}", t.shape())]);
                written.push(Written {
                    name: (*name).into(),
                    r#type: t.dtype().to_string(),
                    shape: t.shape().to_vec(),
                });
            }
            Output::new(format!("{table}written to {}", path.display()), &written)
        }
        None => {
            let mut table = Table::new(&["sample", ">rank", ">class", "name", ">score"]);
            for sample in &samples {
                for (i, c) in sample.classes.iter().enumerate() {
                    let name = c.name.clone().unwrap_or_default();
                    let score = format!("{:.4}", c.score);
                    table.row([sample.sample.clone(), (i + 1).to_string(), c.class.to_string(), name, score]);
                }
            }
            Output::new(table.to_string(), &samples)
        }
    }
}

/// The best `k` classes of each sample, by the first output.
fn best(
    k: usize,
    names: &[String],
    outputs: &[Tensor],
    labels: Option<&[&str]>,
) -> anyhow::Result<Vec<Sample>> {
    let Some(scores) = outputs.first() else { bail!("the model has no output") };
    if scores.shape().first() != Some(&names.len()) || scores.is_empty() {
        bail!(
            "the first output has shape {:?}, not one row of class scores per sample; write it with --output OUT.npz",
            scores.shape()
        );
    }
    let values = scores.to_f32()?;
    let rows = values.chunks(values.len() / names.len());
    let class = |row: &[f32], class: usize| Class {
        class,
        name: labels.and_then(|l| l.get(class)).map(|name| (*name).to_string()),
        score: row[class],
    };
    let sample = |(name, row): (&String, &[f32])| Sample {
        sample: name.clone(),
        classes: top(row, k).into_iter().map(|c| class(row, c)).collect(),
    };
    Ok(names.iter().zip(rows).map(sample).collect())
}

/// The parts along the first dimension.
fn joined(parts: &[Tensor], name: &str) -> lowbit::Result<Tensor> {
    if let [one] = parts {
        return Ok(one.clone());
    }
    let parts: Vec<&Tensor> = parts.iter().collect();
    Ok(Concat { axis: 0 }.eval(&parts).map_err(|e| e.at(format!("output {name}")))?.remove(0))
}
