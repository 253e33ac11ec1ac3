//! Quantization that needs no data.

use super::convert::Converted;
use super::fuse::fuse;
use super::prepare::prepare;
use crate::error::Result;
use crate::graph::Graph;
use crate::qconfig::{QConfigMapping, Target, preset};
use crate::scheme::Format;

/// Quantizes the weights of the nodes `which` (of all nodes, if there is none)
/// to `weights`, per output channel, and their activations by the range that
/// they have in each run: no data is needed.
///
/// The result is made of ONNX's integer operators:
/// `y = cast(MatMulInteger(q, w, z)) * (s * s_w[n]) + bias[n]`, where
/// `q, s, z = DynamicQuantizeLinear(x)`.
///
/// # Errors
/// If a target matches nothing or cannot be quantized, or a weight is NaN.
pub fn quantize_dynamic(graph: &Graph, which: &[Target], weights: Format) -> Result<Converted> {
    let mut config = preset("dynamic")?;
    config.weight.format = weights;
    let mapping = match which {
        [] => QConfigMapping::global(config),
        some => some.iter().fold(QConfigMapping::default(), |mapping, target| {
            mapping.with(target.clone(), Some(config.clone()))
        }),
    };
    let mut converted = prepare(&fuse(graph)?, &mapping)?.convert()?;
    converted.graph = quantize_bodies(&converted.graph, &mapping)?;
    Ok(converted)
}

/// The graph with the bodies of its branches, loops and scans quantized by the
/// rules of `mapping` that need no calibration. They are observed by nobody, so
/// rules that need it leave them in float.
///
/// # Errors
/// As those of [`prepare`] and [`Prepared::convert`](super::Prepared::convert).
pub fn quantize_bodies(graph: &Graph, mapping: &QConfigMapping) -> Result<Graph> {
    if mapping.is_static() {
        return Ok(graph.clone());
    }
    graph.map_bodies(|body| Ok(prepare(body, &mapping.matching(body))?.convert()?.graph))
}

#[cfg(test)]
mod tests;
