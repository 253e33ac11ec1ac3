//! Means and deviations of channels, given back to what quantized layers make.

use crate::error::{Result, invalid};
use crate::graph::{Graph, Var};
use crate::ops::conv::Conv;
use crate::ops::linear::Gemm;
use crate::ops::quantize::DequantizeLinear;
use crate::qparams::QParams;
use crate::quantize::{PointOp, Prepared, Progress};
use crate::scheme::{Format, Granularity};
use crate::tensor::Tensor;

/// How much a deviation is changed at most, either way: more is not the rounding's doing.
const MOST: f64 = 2.0;

/// Gives each channel of what a quantized layer makes the mean and the deviation that it has
/// in float, over `batches` (docs/quantization.md, equation 39): what re-estimating the
/// statistics of batch normalization does, for models in which it is folded.
///
/// The layers are convolutions and Gemms whose weights ask for it
/// ([`crate::qconfig::Spec::renormalize`]) and have a scale for each output channel, integer
/// codes, and a constant bias of their own. Codes stay: a channel's scale and its bias change.
/// Layers are taken in evaluation order, each behind those that have been changed. The bias
/// makes up for all errors before it, so that bias correction has nothing left to do.
///
/// `prepared` is calibrated. `batches` is called once, and once for each layer; one batch is
/// held at a time.
/// `progress` is called after each batch. If no weight asks for it, nothing is read.
///
/// # Errors
/// If there is no batch or one does not fit the model, a point saw no value, or `progress`
/// stops it.
pub fn renormalize<B: Iterator<Item = Result<Vec<Tensor>>>>(
    prepared: &Prepared,
    batches: impl Fn() -> B,
    progress: &Progress,
) -> Result<Prepared> {
    let layers = layers(prepared);
    if layers.is_empty() {
        return Ok(prepared.clone());
    }
    let mut done = 0;
    let mut seen = |graph: &Graph, outputs: &[Option<Var>]| -> Result<Vec<Channels>> {
        let mut channels = vec![Channels::default(); outputs.len()];
        for batch in batches() {
            watch(graph, &batch?, outputs, &mut channels)?;
            done += 1;
            progress(done)?;
        }
        Ok(channels)
    };
    let outputs: Vec<Option<Var>> = layers.iter().map(|layer| Some(layer.output)).collect();
    let float = seen(prepared.graph(), &outputs)?;
    if float.iter().all(|channels| channels.count == 0) {
        return Err(invalid!("there is no data to normalize by: give at least one sample"));
    }
    let mut renormalized = prepared.clone();
    for (layer, float) in layers.iter().zip(&float) {
        let converted = renormalized.convert()?.graph;
        let output = converted.find(&prepared.graph().value(layer.output).name);
        let quantized = seen(&converted, &[output])?;
        renormalized =
            changed(&renormalized, &converted, layer, float, &quantized[0]).map_err(|e| e.at(&layer.node))?;
    }
    Ok(renormalized)
}

/// How often the data is read.
pub fn passes_of_renormalization(prepared: &Prepared) -> usize {
    match layers(prepared).len() {
        0 => 0,
        layers => layers + 1,
    }
}

/// A layer whose channels can be rescaled.
struct Layer {
    /// The name of its node.
    node: String,
    /// What it makes, before any activation function.
    output: Var,
    /// The point of its weight.
    point: usize,
    /// The axis of the weight that its output channels lie along.
    axis: usize,
    /// Its bias.
    bias: Var,
}

fn layers(prepared: &Prepared) -> Vec<Layer> {
    let graph = prepared.graph();
    let uses = graph.uses();
    let of =
        |(v, node, op, inputs): (Var, &crate::graph::Node, &std::sync::Arc<dyn crate::op::Op>, &[Var])| {
            let (weight, bias) = (*inputs.get(1)?, *inputs.get(2)?);
            let linear = op.is::<Conv>().is_some() || op.is::<Gemm>().is_some_and(|g| g.beta == 1.0);
            let (PointOp { point, .. }, _) = graph.made_by::<PointOp>(weight)?;
            let of_weight = &prepared.points()[*point];
            let Granularity::Axis(axis) = of_weight.scheme.granularity else { return None };
            let steps = matches!(of_weight.scheme.format, Format::Int { .. });
            let own = uses.of(weight) == 1 && uses.of(bias) == 1;
            let constant = graph.constant(bias).is_some_and(|t| t.rank() == 1 && !t.is_empty());
            (linear && of_weight.renormalizes && steps && own && constant).then(|| Layer {
                node: node.name.clone(),
                output: v,
                point: *point,
                axis,
                bias,
            })
        };
    graph.applied().filter_map(of).collect()
}

/// Sums over the values of each channel (axis 1).
#[derive(Clone, Debug, Default)]
struct Channels {
    count: u64,
    sums: Vec<f64>,
    squares: Vec<f64>,
}

impl Channels {
    fn add(&mut self, value: &Tensor) -> Result<()> {
        let channels = value.shape().get(1).copied().unwrap_or(0);
        let inner: usize = value.shape().iter().skip(2).product();
        if channels == 0 || inner == 0 {
            return Ok(());
        }
        self.sums.resize(channels, 0.0);
        self.squares.resize(channels, 0.0);
        for (i, run) in value.slice::<f32>()?.chunks(inner).enumerate() {
            for x in run {
                self.sums[i % channels] += f64::from(*x);
                self.squares[i % channels] += f64::from(*x) * f64::from(*x);
            }
        }
        self.count += (value.len() / channels) as u64;
        Ok(())
    }

    /// Mean and deviation of channel `c`.
    fn moments(&self, c: usize) -> (f64, f64) {
        let n = self.count.max(1) as f64;
        let mean = self.sums[c] / n;
        (mean, (self.squares[c] / n - mean * mean).max(0.0).sqrt())
    }
}

/// Adds what `graph` makes of a batch at `outputs`.
fn watch(graph: &Graph, batch: &[Tensor], outputs: &[Option<Var>], channels: &mut [Channels]) -> Result<()> {
    let watched = |v: Var| outputs.contains(&Some(v));
    graph.run_watched(batch, watched, |v, _, value| {
        let of = outputs.iter().zip(channels.iter_mut()).filter(|(output, _)| **output == Some(v));
        of.into_iter().try_for_each(|(_, channels)| channels.add(value))
    })?;
    Ok(())
}

/// The same with another scale for each channel of a layer's weight, and another bias.
fn changed(
    prepared: &Prepared,
    converted: &Graph,
    layer: &Layer,
    float: &Channels,
    quantized: &Channels,
) -> Result<Prepared> {
    let mut points = prepared.points().to_vec();
    let point = &mut points[layer.point];
    let params = point.params()?;
    let channels = params.scale.len();
    let Some(bias) = stored_bias(converted, &layer.node)? else { return Ok(prepared.clone()) };
    if [float.sums.len(), quantized.sums.len(), bias.len()] != [channels; 3] {
        return Ok(prepared.clone());
    }
    let (mut ratios, mut shifted) = (vec![], vec![]);
    for (c, bias) in bias.iter().enumerate() {
        let ((mean, deviation), (found, spread)) = (float.moments(c), quantized.moments(c));
        let ratio = deviation / spread;
        let ratio = if ratio.is_finite() && ratio > 0.0 { ratio.clamp(1.0 / MOST, MOST) } else { 1.0 };
        ratios.push(ratio as f32);
        shifted.push((ratio * (f64::from(*bias) - found) + mean) as f32);
    }
    let stored = point.stored()?;
    let inner: usize = stored.shape()[layer.axis + 1..].iter().product();
    let values = stored.to_f32()?.into_iter().enumerate().map(|(i, w)| w * ratios[i / inner % channels]);
    point.chosen = Some(Tensor::new(stored.shape(), values.collect())?);
    let scale = params.scale.iter().zip(&ratios).map(|(s, r)| s * r).collect();
    point.given = Some(QParams::new(params.scheme, scale, params.zero_point)?);
    point.means = None;
    let (name, shifted) = (prepared.graph().value(layer.bias).name.clone(), Tensor::vector(shifted));
    prepared.with_constants(points, |constant| (constant == name).then_some(&shifted))
}

/// The bias of a node as conversion has stored it.
fn stored_bias(converted: &Graph, node: &str) -> Result<Option<Vec<f32>>> {
    let Some((_, _, _, inputs)) = converted.applied().find(|(_, n, ..)| n.name == node) else {
        return Ok(None);
    };
    let Some(bias) = inputs.get(2) else { return Ok(None) };
    if let Some(t) = converted.constant(*bias) {
        return t.to_f32().map(Some);
    }
    let Some((op, operands)) = converted.made_by::<DequantizeLinear>(*bias) else { return Ok(None) };
    let Some(operands) = operands.iter().map(|v| converted.constant(*v)).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    crate::op::Op::eval(op, &operands)?.remove(0).to_f32().map(Some)
}

#[cfg(test)]
mod tests;
