//! `lowbit inspect`: what a model consists of, at each stage of its way.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use clap::ValueEnum;
use lowbit::analysis::{Place, Provenance, Quantized, Summary};
use lowbit::graph::Graph;
use lowbit::onnx;
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::quantize::{Role, fuse, prepare};
use lowbit::session::{Report, Session};
use serde::Serialize;

use crate::output::Output;
use crate::quantize::fallbacks;
use crate::table::{Table, bytes, count, percent};

/// Show what a model consists of, and how much of it runs in int8.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit inspect model.onnx                     operators, sizes, MACs
  lowbit inspect model.onnx --stage points      what `quantize` would quantize
  lowbit inspect model.int8.onnx                scales, ranges, int8 coverage
  lowbit inspect model.int8.onnx --stage lowered    what the int8 engine runs")]
pub struct Args {
    /// The model, float or quantized.
    model: PathBuf,
    /// Show one stage in full.
    #[arg(long, value_enum)]
    stage: Option<Stage>,
}

/// A stage of a model's way to int8.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// The nodes as loaded.
    Graph,
    /// The nodes after fusing.
    Fused,
    /// The points that the default preset places; equalizing, which needs data, moves none.
    Points,
    /// The quantized values of a Q/DQ model.
    Quantized,
    /// The nodes that the int8 engine runs.
    Lowered,
}

#[derive(Serialize)]
struct Inspection<'a> {
    opsets: Vec<(String, i64)>,
    provenance: Option<&'a Provenance>,
    summary: &'a Summary,
    quantized: &'a [Quantized],
    coverage: f64,
    session: &'a Report,
}

#[derive(Serialize)]
struct Nodes {
    nodes: Vec<String>,
}

#[derive(Serialize)]
struct Observed {
    value: String,
    role: &'static str,
    scheme: String,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let graph = onnx::load(&args.model)?;
    match args.stage {
        None => whole(args, &graph),
        Some(Stage::Graph) => nodes(&graph),
        Some(Stage::Fused) => nodes(&fuse(&graph)?),
        Some(Stage::Points) => points(&graph),
        Some(Stage::Lowered) => nodes(Session::compile(&graph)?.graph()),
        Some(Stage::Quantized) => {
            let quantized = Quantized::all(&graph)?;
            if quantized.is_empty() {
                bail!(
                    "{}: is a float model; quantize it first: lowbit quantize {} --data PATH",
                    args.model.display(),
                    args.model.display()
                );
            }
            Output::new(quantized_table(&quantized), &quantized)
        }
    }
}

fn whole(args: &Args, graph: &Graph) -> anyhow::Result<Output> {
    let file = lowbit_onnx::read(&args.model).map_err(lowbit::Error::from)?;
    let imports = file.proto().opset_import.iter();
    let opsets: Vec<(String, i64)> = imports.map(|o| (o.domain().to_string(), o.version())).collect();
    let summary = Summary::of(graph);
    let quantized = Quantized::all(graph)?;
    let session = Session::compile(graph)?;
    let report = session.report();
    let mut table = Table::new(&["model", ""]);
    let list = |values: &[(String, String)]| {
        values.iter().map(|(name, of)| format!("{name}: {of}")).collect::<Vec<_>>().join(", ")
    };
    table.row(["inputs".into(), list(&summary.inputs)]);
    table.row(["outputs".into(), list(&summary.outputs)]);
    let named = |(domain, version): &(String, i64)| format!("{domain} {version}").trim().to_string();
    table.row(["opset".into(), opsets.iter().map(named).collect::<Vec<_>>().join(", ")]);
    table.row(["parameters".into(), count(summary.parameters)]);
    let sizes: Vec<String> = summary.bytes.iter().map(|(of, n)| format!("{} {of}", bytes(*n))).collect();
    table.row(["stored".into(), format!("{} ({})", bytes(summary.total_bytes()), sizes.join(", "))]);
    table.row(["MACs".into(), format!("{} a sample", count(summary.macs))]);
    table.row([
        "in int8".into(),
        format!("{} of MACs, {} nodes ({})", percent(report.coverage()), report.integer_nodes, report.isa),
    ]);
    let provenance = Provenance::of(graph);
    let mut text = format!("{table}\n{}", provenance.as_ref().map_or(String::new(), made_from));
    let mut operators = Table::new(&["operator", ">nodes"]);
    for (op, n) in &summary.operators {
        operators.row([op.clone(), n.to_string()]);
    }
    write!(text, "{operators}")?;
    if !quantized.is_empty() {
        write!(text, "\n{}{}", quantized_table(&quantized), fallbacks(report)?)?;
    }
    let inspection = Inspection {
        opsets,
        provenance: provenance.as_ref(),
        summary: &summary,
        quantized: &quantized,
        coverage: report.coverage(),
        session: report,
    };
    Output::new(text, &inspection)
}

/// What a model was made from, and how.
fn made_from(p: &Provenance) -> String {
    let mut table = Table::new(&["made by", ""]);
    table.row(["tool".into(), format!("lowbit {} {}", p.version, p.command)]);
    table.row(["codes".into(), p.codes.clone()]);
    table.row(["float model".into(), format!("sha256 {}", p.model)]);
    if let Some(data) = &p.data {
        let samples = p.samples.map_or("samples".into(), |n| format!("{n} samples"));
        table.row(["data".into(), format!("{samples}, sha256 {data}")]);
    }
    let mut settings = p.settings.lines().filter(|l| !l.trim().is_empty());
    table.row(["settings".into(), settings.next().unwrap_or_default().into()]);
    settings.for_each(|line| table.row([String::new(), line.into()]));
    format!("{table}\n")
}

fn nodes(graph: &Graph) -> anyhow::Result<Output> {
    let text: String = graph.to_string().replace(|c: char| c.is_control() && c != '\n', "?");
    let nodes = Nodes { nodes: text.lines().map(str::to_string).collect() };
    Output::new(text, &nodes)
}

fn points(graph: &Graph) -> anyhow::Result<Output> {
    let prepared = prepare(&fuse(graph)?, &QConfigMapping::global(preset("default")?))?;
    let mut table = Table::new(&["value", "role", "scheme"]);
    let mut points = vec![];
    for p in prepared.points() {
        let role = match p.role {
            Role::Activation => "activation",
            Role::Weight => "weight",
        };
        table.row([p.name.clone(), role.into(), p.scheme.to_string()]);
        points.push(Observed { value: p.name.clone(), role, scheme: p.scheme.to_string() });
    }
    Output::new(table.to_string(), &points)
}

fn quantized_table(quantized: &[Quantized]) -> String {
    let mut table = Table::new(&["value", "kind", "scheme", ">scale", ">zero point", ">range"]);
    for q in quantized {
        let place = match q.place {
            Place::Activation => "activation",
            Place::Weight => "weight",
            Place::Bias => "bias",
        };
        let least = q.scale.iter().copied().fold(f32::INFINITY, f32::min);
        let greatest = q.scale.iter().copied().fold(0.0, f32::max);
        let scale =
            if q.is_per_channel() { format!("{least:.3e}..{greatest:.3e}") } else { format!("{least:.6}") };
        let (first, equal) =
            (q.zero_point.first().copied().unwrap_or(0), q.zero_point.windows(2).all(|w| w[0] == w[1]));
        let zero = if equal { first.to_string() } else { "varies".into() };
        // The 32 bits of a bias are never nearly used.
        let range = if q.place == Place::Bias { String::new() } else { format!("{:.4}..{:.4}", q.lo, q.hi) };
        table.row([q.value.clone(), place.into(), q.scheme.clone(), scale, zero, range]);
    }
    table.to_string()
}
