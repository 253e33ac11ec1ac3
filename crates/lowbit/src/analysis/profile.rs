//! Where the time of a run goes.

use std::collections::HashMap;
use std::time::Instant;

use serde::Serialize;

use super::runner::Runner;
use crate::error::{Result, invalid};
use crate::tensor::Tensor;

/// Wall-clock times of several runs, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Half of the runs took less.
    pub median_ms: f64,
    /// The fastest run.
    pub min_ms: f64,
    /// Nine of ten runs took less.
    pub p90_ms: f64,
}

impl Latency {
    /// Of times in seconds; none if there are none.
    pub fn of(seconds: &[f64]) -> Option<Latency> {
        let mut sorted: Vec<f64> = seconds.iter().map(|s| 1e3 * s).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let rank = |q: f64| ((q * sorted.len() as f64).ceil() as usize).max(1) - 1;
        let min_ms = *sorted.first()?;
        Some(Latency { median_ms: sorted[rank(0.5)], min_ms, p90_ms: sorted[rank(0.9)] })
    }
}

/// What one node costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeProfile {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// The algorithm, in a few words.
    pub algorithm: String,
    /// Median time of a run, in milliseconds.
    pub median_ms: f64,
    /// Its part of the medians' sum, 0 to 1.
    pub share: f64,
    /// Multiply-accumulate operations of a run.
    pub macs: u64,
    /// 10^9 multiply-accumulate operations per second.
    pub gmacs_per_second: f64,
    /// Bytes of its operands and results.
    pub bytes: u64,
}

/// What a model costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// The number of runs measured.
    pub runs: usize,
    /// Time of a whole run.
    pub latency: Latency,
    /// Multiply-accumulate operations of a run.
    pub macs: u64,
    /// What each node costs, the slowest first.
    pub nodes: Vec<NodeProfile>,
}

/// Runs a model `warm_up` times unmeasured and `runs` times measured as a
/// whole, then `runs` times node by node. `progress` is called after each run
/// with the number of runs done, of `warm_up + 2 runs`; its error stops the
/// measurement.
///
/// # Errors
/// If `runs` is 0, or the model cannot be run.
pub fn profile(
    model: &dyn Runner,
    inputs: &[Tensor],
    warm_up: usize,
    runs: usize,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Profile> {
    for i in 0..warm_up {
        model.run(inputs)?;
        progress(i + 1)?;
    }
    let mut seconds = vec![];
    for i in 0..runs {
        let start = Instant::now();
        model.run(inputs)?;
        seconds.push(start.elapsed().as_secs_f64());
        progress(warm_up + i + 1)?;
    }
    let latency =
        Latency::of(&seconds).ok_or_else(|| invalid!("0 runs cannot be measured; give 1 or more"))?;
    let mut costs = vec![];
    for i in 0..runs {
        measure(model, inputs, &mut costs)?;
        progress(warm_up + runs + i + 1)?;
    }
    let nodes = profiles(costs);
    Ok(Profile { runs, latency, macs: nodes.iter().map(|n| n.macs).sum(), nodes })
}

/// What the steps of one node cost, run by run.
struct Cost {
    profile: NodeProfile,
    seconds: Vec<f64>,
}

/// Adds one run to the costs, in the order of execution.
fn measure(model: &dyn Runner, inputs: &[Tensor], costs: &mut Vec<Cost>) -> Result<()> {
    let mut seen: HashMap<String, f64> = HashMap::new();
    model.time(inputs, &mut |t| {
        *seen.entry(t.node.to_string()).or_insert(0.0) += t.seconds;
        if !costs.iter().any(|c| c.profile.node == t.node) {
            let profile = NodeProfile {
                node: t.node.to_string(),
                op: t.op.to_string(),
                algorithm: t.algorithm.to_string(),
                median_ms: 0.0,
                share: 0.0,
                macs: t.macs,
                gmacs_per_second: 0.0,
                bytes: t.bytes,
            };
            costs.push(Cost { profile, seconds: vec![] });
        }
    })?;
    for cost in costs {
        cost.seconds.extend(seen.get(&cost.profile.node));
    }
    Ok(())
}

/// The medians, the slowest first.
fn profiles(costs: Vec<Cost>) -> Vec<NodeProfile> {
    let mut nodes: Vec<NodeProfile> = costs
        .into_iter()
        .map(|Cost { profile, seconds }| {
            let median_ms = Latency::of(&seconds).map_or(0.0, |l| l.median_ms);
            let rate = profile.macs as f64 / median_ms / 1e6;
            NodeProfile { median_ms, gmacs_per_second: if rate.is_finite() { rate } else { 0.0 }, ..profile }
        })
        .collect();
    let total: f64 = nodes.iter().map(|n| n.median_ms).sum();
    for node in &mut nodes {
        node.share = if total > 0.0 { node.median_ms / total } else { 0.0 };
    }
    nodes.sort_by(|a, b| b.median_ms.total_cmp(&a.median_ms));
    nodes
}

#[cfg(test)]
mod tests;
