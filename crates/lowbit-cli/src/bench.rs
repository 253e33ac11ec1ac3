//! `lowbit bench`: how long a model takes, and where.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lowbit::analysis::{Profile, profile};
use lowbit::data::random_inputs;
use lowbit::onnx;
use lowbit::session::Report;
use serde::Serialize;

use crate::data::positive;
use crate::model::Engine;
use crate::output::Output;
use crate::progress::Progress;
use crate::table::{Table, bytes, count, percent};

/// Measure latency, as a whole and node by node, on random inputs.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit bench model.int8.onnx
  lowbit bench model.onnx --batch 8 --threads 1 --runs 100
  lowbit bench model.int8.onnx --fastest
  lowbit bench text.onnx --dim T=128")]
pub struct Args {
    /// The model, float or quantized.
    model: PathBuf,
    /// Size of the first dimension of each input, where the model leaves it open.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    batch: usize,
    /// Size of another named dimension; 1 if not given. May be repeated.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = dimension)]
    dims: Vec<(String, usize)>,
    /// Threads; by default one for each CPU.
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// Measured runs.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = positive)]
    runs: usize,
    /// Runs before, unmeasured.
    #[arg(long, value_name = "N", default_value_t = 5)]
    warm_up: usize,
    /// Nodes to list, the slowest first.
    #[arg(long, value_name = "K", default_value_t = 20)]
    nodes: usize,
    #[command(flatten)]
    engine: Engine,
}

fn dimension(text: &str) -> Result<(String, usize), String> {
    let (name, size) = text.rsplit_once('=').ok_or_else(|| format!("{text:?} is not NAME=N"))?;
    Ok((name.to_string(), positive(size)?))
}

#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    profile: Profile,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<Report>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    // This thread is one of the pool: it works in a run rather than wait for its end.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0));
    pool.use_current_thread().build_global()?;
    let graph = onnx::load(&args.model)?;
    let sizes: BTreeMap<String, usize> = args.dims.iter().cloned().collect();
    let inputs = random_inputs(&graph, args.batch, &sizes)?;
    let (model, report) = args.engine.runner(graph, |_| Ok(inputs.clone()))?;
    let progress = Progress::new("running", args.warm_up.saturating_add(args.runs.saturating_mul(2)));
    let profile = profile(&*model, &inputs, args.warm_up, args.runs, &mut |done| progress.at(done))?;
    drop(progress);
    let report_text = report.as_ref().map_or(String::new(), |report| format!("\n{report}"));
    let text = text(&profile, args.nodes) + &report_text;
    Output::new(text, &Measured { profile, report })
}

fn text(p: &Profile, listed: usize) -> String {
    let mut table = Table::new(&["node", "op", "algorithm", ">ms", ">share", ">MACs", ">GMAC/s", ">bytes"]);
    for n in p.nodes.iter().take(listed) {
        table.row([
            n.node.clone(),
            n.op.clone(),
            n.algorithm.clone(),
            format!("{:.4}", n.median_ms),
            percent(n.share),
            count(n.macs),
            format!("{:.2}", n.gmacs_per_second),
            bytes(n.bytes),
        ]);
    }
    let rest = p.nodes.len().saturating_sub(listed);
    let rest = if rest > 0 { format!("... and {rest} nodes more (--nodes)\n") } else { String::new() };
    let l = &p.latency;
    format!(
        "latency: median {:.3} ms, min {:.3} ms, p90 {:.3} ms ({} runs, {} threads, {} MACs)\n\n{table}{rest}",
        l.median_ms,
        l.min_ms,
        l.p90_ms,
        p.runs,
        rayon::current_num_threads(),
        count(p.macs)
    )
}
