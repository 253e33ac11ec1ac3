//! How the elements of quantized values are spread, and what their codes make of them.

mod tally;

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::compare::scaled_back;
use super::summary::Place;
use crate::data::{Batch, inputs_of};
use crate::error::{Error, Result, invalid};
use crate::graph::{Graph, Kind, Var};
use crate::op::optional;
use crate::ops::quantize::{DequantizeLinear, QuantizeLinear, params};
use crate::passes::ChannelScales;
use crate::qparams::{QParams, Range};
use crate::quantize::weight;
use crate::scheme::Mapping;
use crate::tensor::{KeptMemory, Tensor};
use tally::Tally;

/// The number of bins of a [`Distribution`].
pub const BINS: usize = 128;

/// How the float elements of a quantized value are spread, and where its codes lie.
///
/// With one scale, places on the axis are reals `x`. With several, they are codes before they
/// are rounded, `x / s + z`, so that the elements of all groups share one axis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// The value's name in the float model; of a weight, the name of the node that multiplies
    /// with it.
    pub name: String,
    /// Activation or weight.
    pub place: Place,
    /// Format, mapping and what shares a scale.
    pub scheme: String,
    /// Whether places on the axis are codes, in the place of reals.
    pub in_codes: bool,
    /// The place of the first bin's start.
    pub lo: f64,
    /// The place of the last bin's end.
    pub hi: f64,
    /// [`BINS`] bins of equal width; the last one is closed.
    pub counts: Vec<u64>,
    /// The place of the least code.
    pub clip_lo: f64,
    /// The place of the greatest code.
    pub clip_hi: f64,
    /// Places between neighbouring codes; none of float formats, whose codes are not evenly spaced.
    pub step: Option<f64>,
    /// The finite elements.
    pub elements: u64,
    /// Those more than half a step outside the codes.
    pub clipped: u64,
    /// Infinite elements, which are in no bin; NaN included.
    pub not_finite: u64,
    /// `sum (x - y)^2 / n`, with `y` the dequantized code of `x`.
    pub mse: f64,
    /// `10 log10(sum x^2 / sum (x - y)^2)` in dB: infinite if they are equal (JSON: null).
    pub sqnr_db: f64,
    /// The same codes spread over the same range by each mapping, affine first; none of float formats.
    pub mappings: Vec<Mapped>,
    /// Of a weight, its output channels.
    pub channels: Vec<ChannelRange>,
}

/// What codes would make of a value if a mapping spread them over the part of the elements' range
/// that the codes in use cover.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mapped {
    /// The mapping.
    pub mapping: Mapping,
    /// The reals from the least to the greatest code, if there is one scale.
    pub range: Option<Range>,
    /// The mean squared error.
    pub mse: f64,
    /// The signal to noise ratio in dB; infinite without noise (JSON: null).
    pub sqnr_db: f64,
}

/// One channel of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ChannelRange {
    /// From the least to the greatest element.
    pub elements: Range,
    /// From the least to the greatest real that its codes stand for; of several blocks, all of them.
    pub codes: Range,
}

/// The distributions of the activations that a Q/DQ graph quantizes with constant scales, in its
/// order: the values of `float` over all batches, against the codes of `quantized`.
///
/// The float value of the DequantizeLinear output `t_dq` is `t`; that of another QuantizeLinear
/// is the one called as its input. Values without one are left out. Where the quantized model was
/// equalized ([`ChannelScales`]), the channels of float values are divided first.
///
/// `batches` is called twice: for ranges, then for counts and errors. One batch is held at a time,
/// and of its values only those that are still needed. `progress` is called with the samples that
/// were run, twice each; its error stops the measurement.
///
/// # Errors
/// If there is no sample, a scale does not fit its value, or the float model cannot be run.
pub fn activation_distributions<B: Iterator<Item = Result<Batch>>>(
    float: &Graph,
    quantized: &Graph,
    batches: impl Fn() -> B,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Distribution>> {
    let _kept = KeptMemory::up_to(0);
    let equalized = ChannelScales::of(quantized)?;
    let points = points(float, quantized)?;
    let place: HashMap<Var, usize> = points.iter().enumerate().map(|(i, (v, _))| (*v, i)).collect();
    let divisors: Vec<Option<Vec<f32>>> = points
        .iter()
        .map(|(v, _)| Some(equalized.get(&float.value(*v).name)?.iter().map(|s| 1.0 / s).collect()))
        .collect();
    let mut tallies: Vec<Tally> = points.into_iter().map(|(_, params)| Tally::new(params)).collect();
    let mut samples = 0;
    for pass in 0..2 {
        for batch in batches() {
            let batch = batch?;
            let inputs = inputs_of(float, &batch).map_err(|e| e.at("the float model"))?;
            let ran = float.run_watched(
                &inputs,
                |v| place.contains_key(&v),
                |v, _, t| {
                    let i = place[&v];
                    let divided = divisors[i].as_ref().map(|d| scaled_back(t, d)).transpose()?;
                    let t = divided.as_ref().unwrap_or(t);
                    let seen = if pass == 0 { tallies[i].range(t) } else { tallies[i].count(t) };
                    seen.map_err(|e| e.at(&float.value(v).name))
                },
            );
            ran.map_err(|e| e.at("the float model"))?;
            samples += batch.names.len();
            progress(samples)?;
        }
        if samples == 0 {
            return Err(invalid!("the data holds no sample"));
        }
        if pass == 0 {
            tallies.iter_mut().try_for_each(Tally::settle)?;
        }
    }
    let mut values: Vec<(Var, usize)> = place.into_iter().collect();
    values.sort_by_key(|(_, i)| *i);
    let names = values.into_iter().map(|(v, _)| float.value(v).name.clone());
    Ok(names.zip(tallies).map(|(name, tally)| tally.distribution(name, Place::Activation)).collect())
}

/// The distributions of the weights that a Q/DQ graph stores as evenly spaced or float codes, in
/// its order: those of `float` against the codes of `quantized`, paired as [`super::weights`] pairs
/// them. One weight is unpacked at a time.
///
/// # Errors
/// Those of [`super::weights`].
pub fn weight_distributions(float: &Graph, quantized: &Graph) -> Result<Vec<Distribution>> {
    super::weights::same_channels(float, quantized)?;
    let by_name = super::weights::by_node(float);
    let mut found = vec![];
    for (_, node, op, inputs) in quantized.applied() {
        let Some((w, axis)) = weight(&**op) else { continue };
        let Some(params) = inputs.get(w).map(|v| stored_params(quantized, *v)).transpose()?.flatten() else {
            continue;
        };
        // Names that are not unique name nothing.
        let Some([w]) = by_name.get(node.name.as_str()).map(Vec::as_slice) else { continue };
        let distribution = (|| {
            let mut tally = Tally::new(params);
            tally.range(w)?;
            tally.settle()?;
            tally.count(w)?;
            let channels = tally.channels(w, axis)?;
            Ok(Distribution { channels, ..tally.distribution(node.name.clone(), Place::Weight) })
        })();
        found.push(distribution.map_err(|e: Error| e.at(&node.name))?);
    }
    Ok(found)
}

/// Scale and zero point of a DequantizeLinear of stored codes.
fn stored_params(graph: &Graph, v: Var) -> Result<Option<QParams>> {
    match graph.made_by::<DequantizeLinear>(v) {
        Some((_, inputs)) if graph.constant(inputs[0]).is_some() => constant_params(graph, v),
        _ => Ok(None),
    }
}

/// Scale and zero point of a DequantizeLinear, if they are constants.
fn constant_params(graph: &Graph, v: Var) -> Result<Option<QParams>> {
    let Some((dq, inputs)) = graph.made_by::<DequantizeLinear>(v) else { return Ok(None) };
    let operands: Option<Vec<&Tensor>> = inputs[1..].iter().map(|v| graph.constant(*v)).collect();
    let Some(operands) = operands else { return Ok(None) };
    let codes = graph.fact(inputs[0]);
    let found = params(codes.rank(), codes.dtype, (dq.axis, dq.block), operands[0], optional(&operands, 1));
    // A zero scale would make no place of a value.
    let checked = found.and_then(|p| QParams::new(p.scheme, p.scale, p.zero_point));
    checked.map(Some).map_err(|e| e.at(&graph.node(v).name))
}

/// The float values that are quantized while the model runs, each once.
fn points(float: &Graph, quantized: &Graph) -> Result<Vec<(Var, QParams)>> {
    let by_name: HashMap<&str, Var> = float
        .nodes()
        .filter(|(_, n)| !matches!(n.kind, Kind::Const(_)))
        .flat_map(|(v, n)| n.outputs.iter().enumerate().map(move |(i, o)| (o.name.as_str(), v.output(i))))
        .collect();
    let (mut points, mut taken) = (vec![], HashSet::new());
    for (v, ..) in quantized.applied() {
        let Some((_, codes)) = quantized.made_by::<DequantizeLinear>(v) else { continue };
        let Some((_, x)) = quantized.made_by::<QuantizeLinear>(codes[0]) else { continue };
        let named = quantized.value(v).name.strip_suffix("_dq").and_then(|name| by_name.get(name));
        let Some(&value) = named.or_else(|| by_name.get(quantized.value(x[0]).name.as_str())) else {
            continue;
        };
        if float.fact(value).dtype.is_float()
            && let Some(params) = constant_params(quantized, v)?
            && taken.insert(value)
        {
            points.push((value, params));
        }
    }
    Ok(points)
}

#[cfg(test)]
mod tests;
