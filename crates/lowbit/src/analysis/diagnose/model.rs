//! What can be said of a quantized model without running it.

use std::collections::HashSet;

use super::{few_codes, narrow};
use crate::error::Result;
use crate::graph::{Graph, Var};
use crate::qparams::Range;
use crate::quantize::{Finding, PointOp, Prepared, Role, Symptom, weight};
use crate::scheme::{Format, Granularity};
use crate::session::Report;

/// Weights with one scale for output channels of very unlike range.
///
/// # Errors
/// If a weight is not of floating point.
pub(super) fn weights(prepared: &Prepared) -> Result<Vec<Finding>> {
    let graph = prepared.graph();
    let (mut found, mut seen): (Vec<Finding>, HashSet<Var>) = (vec![], HashSet::new());
    for (_, node, op, inputs) in graph.applied() {
        let Some((v, axis)) = weight(&**op).and_then(|(w, axis)| Some((*inputs.get(w)?, axis))) else {
            continue;
        };
        let Some((point, stored)) = graph.made_by::<PointOp>(v) else { continue };
        let (point, Some(values)) = (&prepared.points()[point.point], graph.constant(stored[0])) else {
            continue;
        };
        let scheme = point.scheme;
        let steps = !scheme.format.is_float() && !matches!(scheme.format, Format::Codebook { .. });
        if point.role != Role::Weight || scheme.granularity != Granularity::Tensor || !steps {
            continue;
        }
        if !seen.insert(v) {
            continue;
        }
        let scale = point.params()?.scale[0];
        let ranges = ranges(&values.to_f32()?, values.shape(), axis);
        let (channels, of, codes) = narrow(&ranges, scale, few_codes(&scheme));
        if !channels.is_empty() {
            let name = if node.name.is_empty() { &graph.value(v).name } else { &node.name };
            found.push(Finding::new(name, Symptom::UnlikeWeightChannels { channels, of, codes }));
        }
    }
    Ok(found)
}

/// Least and greatest element along an axis.
fn ranges(x: &[f32], shape: &[usize], axis: usize) -> Vec<Range> {
    let channels = shape.get(axis).copied().unwrap_or(0);
    let inner: usize = shape.iter().skip(axis + 1).product();
    let mut ranges = vec![Range { lo: f32::INFINITY, hi: f32::NEG_INFINITY }; channels];
    for (run, c) in x.chunks(inner.max(1)).zip((0..channels).cycle()) {
        let all = run.iter().map(|&x| Range { lo: x, hi: x });
        ranges[c] = all.fold(ranges[c], Range::union);
    }
    ranges
}

/// The nodes that the engine runs in float, those of one operator and reason together, the
/// costliest first; but for those that `known` findings name already.
pub(super) fn in_float(report: &Report, known: &[Finding]) -> Vec<Finding> {
    let known: HashSet<&str> = known
        .iter()
        .filter(|f| matches!(f.symptom, Symptom::InFloat { .. } | Symptom::Spared { .. }))
        .map(|f| f.subject.as_str())
        .collect();
    let mut groups: Vec<(&str, &str, Vec<String>, u64)> = vec![];
    for f in report.fallbacks.iter().filter(|f| !known.contains(f.node.as_str())) {
        match groups.iter_mut().find(|(op, reason, ..)| (*op, *reason) == (&*f.op, &*f.reason)) {
            Some((_, _, nodes, macs)) => {
                nodes.push(f.node.clone());
                *macs += f.macs;
            }
            None => groups.push((&f.op, &f.reason, vec![f.node.clone()], f.macs)),
        }
    }
    groups.sort_by_key(|(.., macs)| std::cmp::Reverse(*macs));
    let all = report.macs.max(1) as f64;
    let finding = |(op, reason, nodes, macs): (&str, &str, Vec<String>, u64)| {
        let subject = if let [one] = &nodes[..] { one.clone() } else { op.to_string() };
        let share = Some(macs as f64 / all);
        Finding::new(subject, Symptom::InFloat { nodes, reason: reason.into(), share })
    };
    groups.into_iter().map(finding).collect()
}

/// What `fastest` leaves in float of what `int8` computes in integers, of the nodes of `graph`.
pub(super) fn slower(graph: &Graph, int8: &Report, fastest: &Report) -> Option<Finding> {
    let names: HashSet<&str> = graph.applied().map(|(_, node, ..)| node.name.as_str()).collect();
    let known: HashSet<&str> = int8.fallbacks.iter().map(|f| f.node.as_str()).collect();
    let moved = fastest.fallbacks.iter().filter(|f| !known.contains(&*f.node) && names.contains(&*f.node));
    let nodes: Vec<(String, String)> = moved.map(|f| (f.node.clone(), f.reason.clone())).collect();
    let subject = match &nodes[..] {
        [] => return None,
        _ if fastest.integer_nodes == 0 => "the whole model".into(),
        [(node, _)] => node.clone(),
        _ => "several nodes".to_string(),
    };
    Some(Finding::new(subject, Symptom::Slower { nodes }))
}
