//! Nodes that do not bear quantization, found and left in float.

use super::convert::Converted;
use super::finding::{Finding, Symptom};
use super::placement::weight;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::ops::recurrent::Recurrent;
use crate::qconfig::{QConfigMapping, Target};
use crate::tensor::Tensor;

/// Below this ratio of the outputs to their errors, in dB, a model is broken:
/// a third of an output is noise.
const LEAST_SQNR: f64 = 10.0;

/// What `quantize` makes of `float` by the rules of `mapping`, with as few nodes
/// left in float besides as it takes to keep the model from breaking: while an
/// output has an SQNR of less than 10 dB on `probes`, the node that harms it the
/// most when quantized alone is left out. Each is a [`Finding`].
///
/// # Errors
/// What `quantize` reports, or if a probe does not fit the model.
pub fn quantize_sparing(
    float: &Graph,
    mapping: &QConfigMapping,
    probes: &[Vec<Tensor>],
    quantize: impl Fn(&QConfigMapping) -> Result<Converted>,
) -> Result<Converted> {
    let wanted = outputs(float, probes)?;
    let sqnr = |converted: &Converted| -> Result<f64> {
        Ok(worst_sqnr(&wanted, &outputs(&converted.graph, probes)?))
    };
    let mut converted = quantize(mapping)?;
    if sqnr(&converted)? >= LEAST_SQNR {
        return Ok(converted);
    }
    let mut harm = vec![];
    let candidates = candidates(float, mapping)?;
    for name in &candidates {
        let others = candidates.iter().filter(|other| *other != name);
        let alone = others
            .map(String::as_str)
            .try_fold(mapping.clone(), |m, other| Ok::<_, Error>(m.with(Target::exactly(other)?, None)))?;
        harm.push((sqnr(&quantize(&alone)?)?, name.clone()));
    }
    harm.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut mapping, mut spared) = (mapping.clone(), vec![]);
    while let Some((sqnr_db, node)) = harm.pop() {
        mapping = mapping.with(Target::exactly(&node)?, None);
        spared.push(Finding::new(node, Symptom::Spared { sqnr_db }));
        converted = quantize(&mapping)?;
        if sqnr(&converted)? >= LEAST_SQNR {
            break;
        }
    }
    converted.findings.extend(spared);
    Ok(converted)
}

/// The names of the nodes with weights that the rules quantize.
fn candidates(graph: &Graph, mapping: &QConfigMapping) -> Result<Vec<String>> {
    let configs = mapping.resolve(graph)?;
    let with_weight = graph.applied().zip(configs).filter(|((_, _, op, inputs), config)| {
        let w = if op.is::<Recurrent>().is_some() { Some(1) } else { weight(&***op).map(|(w, _)| w) };
        config.is_some() && w.and_then(|w| inputs.get(w)).is_some_and(|v| graph.constant(*v).is_some())
    });
    Ok(with_weight.map(|((_, node, ..), _)| node.name.clone()).collect())
}

fn outputs(graph: &Graph, probes: &[Vec<Tensor>]) -> Result<Vec<Vec<Tensor>>> {
    probes.iter().map(|probe| graph.run(probe)).collect()
}

/// The least SQNR of the f32 outputs over all probes, in dB; infinite without
/// any error, and for outputs of 0.
fn worst_sqnr(wanted: &[Vec<Tensor>], found: &[Vec<Tensor>]) -> f64 {
    let count = wanted.first().map_or(0, Vec::len);
    let of_output = |i: usize| {
        let (mut signal, mut noise) = (0f64, 0f64);
        for (wanted, found) in wanted.iter().zip(found) {
            let (Ok(a), Ok(b)) = (wanted[i].slice::<f32>(), found[i].slice::<f32>()) else { continue };
            for (a, b) in a.iter().zip(b) {
                signal += f64::from(*a).powi(2);
                noise += f64::from(a - b).powi(2);
            }
        }
        if signal > 0.0 && noise > 0.0 { 10.0 * (signal / noise).log10() } else { f64::INFINITY }
    };
    (0..count).map(of_output).fold(f64::INFINITY, f64::min)
}
