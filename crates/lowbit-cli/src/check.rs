//! `lowbit check`: what may be wrong with a model, its calibration data and its quantization.

use std::fmt::Write as _;
use std::path::PathBuf;

use lowbit::analysis::{Diagnosis, Stretching, Subject, diagnose};
use lowbit::data::{Dataset, batch_size};
use lowbit::graph::Graph;
use lowbit::quantize::{Converted, Finding, Severity, fuse};
use lowbit::recipe::{self, Quantized, Samples};
use lowbit::session::{Report, Session};

use crate::data::{DataArgs, positive};
use crate::model::load_float;
use crate::output::Output;
use crate::progress::{Progress, Stages};
use crate::quantize::rules;
use crate::table::Table;

/// Findings of one code that are printed.
const MOST: usize = 3;

/// Quantize a float model without writing it, and say what deserves attention: in the model, in
/// its quantization, and in the samples.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit check model.onnx --data calibration/
  lowbit check model.onnx --data calibration/ --eval validation/    are the samples like those?
  lowbit check model.onnx --data calibration/ --preset tensorrt
  lowbit check model.onnx --data calibration/ --json                everything, for programs

Findings have stable codes, which docs/findings.md explains. The last lines say whether more
samples would help, and which samples stretch ranges. Exit code 1 if there is an error, which keeps the
model from being quantized.")]
pub struct Args {
    /// The float model.
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Other samples, prepared alike, that the model will be evaluated on.
    #[arg(long, value_name = "PATH")]
    eval: Option<PathBuf>,
    /// How nodes are quantized, by the name of a preset.
    #[arg(long, value_name = "NAME", default_value = "default", conflicts_with = "config")]
    preset: String,
    /// Rules for each node, in TOML.
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Do not measure which operators are slower in int8.
    #[arg(long)]
    untimed: bool,
    /// Samples that run at once while calibrating.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    batch: usize,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let mapping = rules(args.config.as_deref(), &args.preset)?;
    let float = load_float(&args.model)?;
    let data = args.data.open(&args.model, &float)?;
    let samples = &args.data.samples;
    let other = args.eval.as_ref().map(|path| samples.open(path, &args.model, &float)).transpose()?;
    let stages = Stages::default();
    let samples = Samples { data: &data, batch: args.batch };
    let quantized = recipe::quantize(&float, &mapping, Some(samples), &|step| stages.at(step));
    drop(stages);
    match quantized {
        Ok(Quantized { calibrated, graph, findings }) => {
            let converted = Converted { graph, findings };
            let fastest = if args.untimed { None } else { fastest(&converted.graph, &data)? };
            let subject = Subject {
                float: &calibrated.float,
                mapping: &mapping,
                quantized: Some((&calibrated.prepared, &converted)),
                fastest: fastest.as_ref(),
            };
            let diagnosis = diagnosed(&subject, &data, other.as_ref())?;
            Output::new(text(&diagnosis), &diagnosis)
        }
        Err(lowbit::Error::Interrupted) => Err(lowbit::Error::Interrupted.into()),
        Err(error) => {
            // The findings may say why; otherwise the error does.
            let float = fuse(&float)?;
            let subject = Subject { float: &float, mapping: &mapping, quantized: None, fastest: None };
            match diagnosed(&subject, &data, other.as_ref()) {
                Err(lowbit::Error::Interrupted) => Err(lowbit::Error::Interrupted.into()),
                Ok(diagnosis) if explains(&diagnosis) => {
                    Ok(Output::new(format!("error: {error}\n\n{}", text(&diagnosis)), &diagnosis)?.failing())
                }
                _ => Err(error.into()),
            }
        }
    }
}

/// Whether the findings say why a model cannot be quantized.
fn explains(diagnosis: &Diagnosis) -> bool {
    diagnosis.findings.iter().any(|f| matches!(f.code(), "LB-Q101" | "LB-Q102"))
}

/// What runs in float where that is measured to be faster, for the first sample.
fn fastest(graph: &Graph, data: &Dataset) -> lowbit::Result<Option<Report>> {
    let Some(inputs) = data.tensors(graph, 1).next() else { return Ok(None) };
    Ok(Some(Session::compile_fastest(graph, &inputs?)?.report().clone()))
}

fn diagnosed(subject: &Subject, data: &Dataset, other: Option<&Dataset>) -> lowbit::Result<Diagnosis> {
    let size = batch_size(subject.float, 1);
    let progress = Progress::new("checking", data.len() + other.map_or(0, Dataset::len));
    diagnose(subject, data.batches(size), other.map(|data| data.batches(size)), None, &|_| progress.step())
}

fn text(d: &Diagnosis) -> String {
    let mut text = String::new();
    for (severity, title) in
        [(Severity::Error, "errors"), (Severity::Warning, "warnings"), (Severity::Note, "notes")]
    {
        let findings: Vec<&Finding> = d.findings.iter().filter(|f| f.severity() == severity).collect();
        if findings.is_empty() {
            continue;
        }
        _ = writeln!(text, "{title}:");
        for same in findings.chunk_by(|a, b| a.code() == b.code()) {
            for f in same.iter().take(MOST) {
                _ = writeln!(text, "  {} {}: {}", f.code(), shown(&f.subject), shown(&f.text()));
            }
            if same.len() > MOST {
                _ = writeln!(text, "  {} ... and {} more, in --json", same[0].code(), same.len() - MOST);
            }
            for suggestion in suggestions(same) {
                _ = writeln!(text, "          -> {suggestion}");
            }
        }
        text.push('\n');
    }
    if d.findings.is_empty() {
        text += "nothing found\n\n";
    }
    let evaluated = d.evaluated.map_or(String::new(), |n| format!(", {n} evaluation samples"));
    _ = writeln!(text, "{} calibration samples{evaluated}", d.samples);
    _ = writeln!(text, "ranges: {}", shown(&d.advice.to_string()));
    if !d.advice.stretching.is_empty() {
        _ = write!(text, "\n{}", stretching(&d.advice.stretching));
    }
    text
}

/// What to do about findings of one code, each advice once.
fn suggestions(findings: &[&Finding]) -> Vec<&'static str> {
    let mut all: Vec<&str> = findings.iter().map(|f| f.suggestion()).collect();
    all.dedup();
    all
}

/// Without control characters, which names in a file may hold.
fn shown(text: &str) -> String {
    text.replace(char::is_control, "?")
}

fn stretching(samples: &[Stretching]) -> Table {
    let mut table = Table::new(&[
        "sample that stretches ranges",
        ">values",
        "most of all",
        ">others' range",
        ">reaches",
        ">by",
    ]);
    for s in samples {
        table.row([
            s.sample.clone(),
            s.values.to_string(),
            s.value.clone(),
            format!("{:.3} to {:.3}", s.others.lo, s.others.hi),
            format!("{:.3}", s.reaches),
            format!("{:.0} %", 100.0 * s.by),
        ]);
    }
    table
}
