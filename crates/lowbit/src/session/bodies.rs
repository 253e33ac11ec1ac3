//! A graph compiled, and the bodies of its operators with it.

use std::collections::HashMap;

use super::clamped::fold_clamps;
use super::float::matmul::pack_products;
use super::float::recurrent::pack_recurrent;
use super::lower::lower;
use super::report::{Fallback, Report};
use crate::error::Result;
use crate::graph::{Graph, Kind};
use crate::quantize::fuse_outside;

/// The graph that a session runs, and what it runs in integers; nodes of bodies
/// are called `node/inner`. `reasons` says of nodes why they stay in float, where
/// that is known beforehand.
///
/// # Errors
/// If an operator cannot be lowered; the error names the node.
pub fn compiled(graph: &Graph, reasons: HashMap<String, String>) -> Result<(Graph, Report)> {
    let folded = match graph.applied().any(|(_, _, op, _)| op.name().ends_with("QuantizeLinear")) {
        true => graph.clone(),
        false => fuse_outside(graph)?,
    };
    let mut inner: Vec<(String, Report)> = vec![];
    let folded = match folded.has_bodies() {
        false => folded,
        true => folded.rebuild(|b, v, node, inputs| {
            let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
            if op.bodies().is_empty() {
                return b.copy(node, inputs);
            }
            let made = op.bodies().iter().map(|body| compiled(body, HashMap::new()));
            let made = made.collect::<Result<Vec<_>>>().map_err(|e| e.at(&node.name))?;
            let (bodies, reports): (Vec<Graph>, Vec<Report>) = made.into_iter().unzip();
            inner.push((node.name.clone(), of_node(&reports, folded.node_macs(v), &node.name)));
            let op = op.with_bodies(bodies, op.captured()).map_err(|e| e.at(&node.name))?;
            b.replace(node, op, inputs)
        })?,
    };
    let (lowered, mut report) = lower(&folded, reasons)?;
    for (node, inner) in inner {
        // What of it runs in float, its bodies say.
        report.fallbacks.retain(|f| f.node != node);
        report.integer_macs += inner.integer_macs;
        report.integer_nodes += inner.integer_nodes;
        report.fallbacks.extend(inner.fallbacks);
    }
    let graph = pack_products(&fold_clamps(&lowered)?)?;
    Ok((pack_recurrent(&graph)?, report))
}

/// What a node of `macs` multiply-accumulates whose bodies these are runs in
/// integers: as a share of the body that has most.
fn of_node(bodies: &[Report], macs: u64, node: &str) -> Report {
    let most = bodies.iter().max_by_key(|r| r.macs);
    let runs = |r: &Report| macs.checked_div(r.macs).unwrap_or(0);
    Report {
        macs,
        integer_macs: most.map_or(0, |r| r.integer_macs.saturating_mul(runs(r))),
        integer_nodes: bodies.iter().map(|r| r.integer_nodes).sum(),
        fallbacks: bodies
            .iter()
            .flat_map(|r| &r.fallbacks)
            .map(|f| Fallback {
                node: format!("{node}/{}", f.node),
                macs: f.macs.saturating_mul(most.map_or(0, runs)),
                ..f.clone()
            })
            .collect(),
        ..Report::default()
    }
}
