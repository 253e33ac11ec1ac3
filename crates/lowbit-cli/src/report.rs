//! `lowbit report`: what was measured of a quantized model, as one HTML file.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::bail;
use lowbit::analysis::{
    Latency, Metric, Provenance, Runner, Sensitivity, SensitivityOptions, Target, activation_distributions,
    compare, evaluate, lint, profile, sensitivity, shadow as own_errors, weight_distributions, weights,
};
use lowbit::data::{Dataset, batch_size, inputs_of, write_atomically};
use lowbit::graph::Graph;
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::quantize::fuse;
use lowbit::recipe::{self, Calibrated, Samples};
use lowbit::report::{Measured, Noted, Report};
use lowbit::session::Session;
use lowbit::{Error, onnx};
use serde::Serialize;

use crate::data::{DataArgs, positive};
use crate::interrupt;
use crate::model::file_bytes;
use crate::output::Output;
use crate::progress::{Progress, Stages};
use crate::quantize::{output_of, read_config};
use crate::table::{bytes, decibel, percent};

/// What a page's name ends in.
pub const ENDING: &str = "report.html";

/// Latency is the median of this many runs.
const RUNS: usize = 30;

/// Write a page about a quantized model: one HTML file that shows what quantization did to it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit report model.onnx model.int8.onnx --data validation/
  lowbit report model.onnx model.int8.onnx --data validation/ --samples 200 --shadow --sensitivity
  lowbit report model.onnx model.int8.onnx --data samples.npz -o report.html

The page needs nothing but a browser. It has accuracy and agreement, size, latency, the error of each
value and weight, histograms with clipping ranges and codes, findings, and what the model was made from.")]
pub struct Args {
    /// The float model.
    float: PathBuf,
    /// The model made from it, by lowbit or another tool.
    quantized: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// The page; by default `QUANTIZED.report.html`, beside the quantized model.
    #[arg(short, long, value_name = "FILE.html")]
    output: Option<PathBuf>,
    /// Tell each layer's own error from the one that it inherits.
    #[arg(long)]
    shadow: bool,
    /// Rank the layers by what quantizing each alone does.
    #[arg(long)]
    sensitivity: bool,
    /// The rules of --sensitivity, in TOML; by default those that the model was made by.
    #[arg(long, value_name = "FILE.toml", requires = "sensitivity")]
    config: Option<PathBuf>,
    /// Draw the K weights and the K activations that lose the most.
    #[arg(long, value_name = "K", default_value_t = 12)]
    worst: usize,
    /// Samples that run at once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = positive)]
    batch: usize,
}

/// Where the page is, and what it shows.
#[derive(Serialize)]
struct Written<'a> {
    output: &'a Path,
    bytes: usize,
    #[serde(flatten)]
    report: &'a Report,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let beside = args.quantized.with_extension(ENDING);
    let output = output_of(args.output.as_ref().or(Some(&beside)), &args.float, ENDING)?;
    if let (Ok(a), Ok(b)) = (fs::canonicalize(&output), fs::canonicalize(&args.quantized))
        && a == b
    {
        bail!("{}: would overwrite the quantized model; give another name", output.display());
    }
    let (float, quantized) = (onnx::load(&args.float)?, onnx::load(&args.quantized)?);
    let data = args.data.open(&args.float, &float)?;
    let page = Page {
        float: (&args.float, &float),
        quantized: (&args.quantized, &quantized),
        data: (&args.data.data, &data),
        worst: args.worst,
        batch: args.batch,
    };
    let mut report = page.measured(args.shadow)?;
    if args.sensitivity {
        report.sensitivity = Some((Metric::Sqnr, ranked(args, &float, &quantized, &data)?));
    }
    let page = report.html();
    write_atomically(&output, |f| f.write_all(page.as_bytes()))?;
    let written = Written { output: &output, bytes: page.len(), report: &report };
    Output::new(text(&written), &written)
}

/// What a page is about: files, and what they hold.
pub struct Page<'a> {
    pub float: (&'a Path, &'a Graph),
    pub quantized: (&'a Path, &'a Graph),
    pub data: (&'a Path, &'a Dataset),
    /// Weights and activations that are drawn.
    pub worst: usize,
    /// Samples that run at once.
    pub batch: usize,
}

impl Page<'_> {
    /// Measures everything but sensitivity; own errors where `shadow` asks for them.
    pub fn measured(&self, shadow: bool) -> anyhow::Result<Report> {
        let ((float_path, float), (quantized_path, quantized)) = (self.float, self.quantized);
        let (data_path, data) = self.data;
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let batch = batch_size(float, self.batch);
        let fused = fuse(float)?;
        let mut report = Report {
            title: name(quantized_path),
            data: name(data_path),
            samples: data.len(),
            drawn: self.worst,
            provenance: Provenance::of(quantized),
            ..Report::default()
        };

        let sessions = [Session::compile(&fused)?, Session::compile(quantized)?];
        for (name, path, session) in
            [("float", float_path, &sessions[0]), ("quantized", quantized_path, &sessions[1])]
        {
            report.models.push(Measured {
                name: name.into(),
                bytes: Some(file_bytes(path)?),
                score: None,
                latency: Some(latency(session, data)?),
                coverage: Some(session.report().coverage()),
            });
        }
        let named: [(&str, &dyn Runner); 2] = [("float", &sessions[0]), ("quantized", &sessions[1])];
        let progress = Progress::new("evaluating", data.len());
        match evaluate(&named, data, batch, &mut |done| progress.at(done)) {
            Ok(evaluation) => {
                let scores = evaluation.scores.into_iter();
                report.models.iter_mut().zip(scores).for_each(|(model, score)| model.score = Some(score));
            }
            // Without labels nobody said that the outputs are scores of classes.
            Err(e) if data.labels().is_none() && !matches!(e, Error::Interrupted) => {
                report.missing.push(("accuracy and agreement".into(), e.to_string()));
            }
            Err(e) => return Err(e.into()),
        }
        drop(progress);
        // The rest runs the reference: what the engine holds is not needed any more.
        drop(sessions);

        let progress = Progress::new("comparing", data.len());
        let comparison = compare(float, quantized, data.batches(batch), &mut |done| progress.at(done))?;
        report.comparison = Some(comparison);
        drop(progress);
        if shadow {
            let progress = Progress::new("telling own errors", data.len());
            let at = &mut |done| progress.at(done);
            report.shadow = Some(own_errors(float, quantized, data.batches(batch), None, at)?);
        }

        let progress = Progress::new("counting", 2 * data.len());
        report.distributions =
            activation_distributions(float, quantized, || data.batches(batch), &mut |done| {
                progress.at(done)
            })?;
        drop(progress);
        match weights(&fused, quantized).and_then(|w| Ok((w, weight_distributions(&fused, quantized)?))) {
            Ok((errors, distributions)) => {
                report.weights = errors;
                report.distributions.extend(distributions);
            }
            // Those of an equalized model are others, and a model of another tool may have fused otherwise.
            Err(e) => report.missing.push(("weights".into(), e.to_string())),
        }
        report.findings = lint(quantized, Target::Session)?.remarks.iter().map(Noted::from).collect();
        Ok(report)
    }
}

/// The time of the first sample, or of as many as the model fixes.
fn latency(session: &Session, data: &Dataset) -> anyhow::Result<Latency> {
    let Some(sample) = data.batches(batch_size(session.graph(), 1)).next() else {
        bail!("the data holds no sample");
    };
    let inputs = inputs_of(session.graph(), &sample?)?;
    Ok(profile(session, &inputs, RUNS / 10, RUNS, &mut |_| interrupt::check())?.latency)
}

/// The layers' harm, quantized by the rules that the model was made by.
fn ranked(args: &Args, float: &Graph, quantized: &Graph, data: &Dataset) -> anyhow::Result<Sensitivity> {
    // Training records other settings.
    let recorded = Provenance::of(quantized).filter(|p| !p.command.starts_with("qat"));
    let mapping = match (&args.config, recorded) {
        (Some(path), _) => read_config(path)?,
        (None, Some(p)) => {
            QConfigMapping::from_toml(&p.settings).map_err(|e| e.at("the model's settings"))?
        }
        (None, None) => QConfigMapping::global(preset("default")?),
    };
    let batch = batch_size(float, args.batch);
    let (samples, stages) = (Samples { data, batch }, Stages::default());
    let Calibrated { prepared, .. } =
        recipe::calibrate(float, &mapping, Some(samples), &|step| stages.at(step))?;
    drop(stages);
    let progress = Progress::new("measuring layers", prepared.layers().count());
    let options = SensitivityOptions::default();
    Ok(sensitivity(&prepared, || data.batches(batch), &options, &|done| progress.at(done))?)
}

fn text(written: &Written<'_>) -> String {
    let mut lines = vec![];
    for m in &written.report.models {
        let score = m.score.as_ref();
        let parts = [
            m.bytes.map(bytes),
            score.and_then(|s| s.top1).map(|x| format!("top-1 {}", percent(x))),
            score.map(|s| format!("agreement {}", percent(s.agreement))),
            m.latency.map(|l| format!("{:.3} ms", l.median_ms)),
            m.coverage.map(|c| format!("{} of MACs in int8", percent(c))),
        ];
        lines.push(format!("{:<10} {}", m.name, parts.into_iter().flatten().collect::<Vec<_>>().join(", ")));
    }
    if let Some(e) = written.report.comparison.as_ref().and_then(|c| c.worst().first().copied()) {
        lines.push(format!("{:<10} {} ({}): SQNR {} dB", "weakest", e.value, e.node, decibel(e.sqnr_db)));
    }
    for (what, why) in &written.report.missing {
        lines.push(format!("not measured: {what}: {why}"));
    }
    lines.push(format!("{} findings, {} samples", written.report.findings.len(), written.report.samples));
    lines.push(format!("written to {} ({})", written.output.display(), bytes(written.bytes as u64)));
    // Names come from files.
    let shown = |line: &String| line.replace(char::is_control, "?");
    lines.iter().map(shown).collect::<Vec<_>>().join("\n")
}
