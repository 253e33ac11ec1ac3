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

/// Sums that go on side by side.
const LANES: usize = 8;

/// Gives each channel of what a quantized layer makes the mean and the deviation that it has
/// in float, over `batches` (docs/quantization.md, equation 39): what re-estimating the
/// statistics of batch normalization does, for models in which it is folded.
///
/// The layers are convolutions and Gemms whose weights ask for it
/// ([`crate::qconfig::Spec::renormalize`]) and have a scale for each output channel, integer
/// codes, and a constant bias of their own. Codes stay: a channel's scale and its bias change.
/// Each batch runs once in float and once quantized; there, what a layer makes gets the float
/// moments of the batches so far before another layer reads it, so that each layer is measured
/// behind those that have been changed. The bias makes up for all errors before it: bias
/// correction has nothing left to do.
///
/// `prepared` is calibrated; one batch is held at a time. `progress` is called after each
/// batch. If no weight asks for it, nothing is read.
///
/// # Errors
/// If there is no batch or one does not fit the model, a point saw no value, or `progress`
/// stops it.
pub fn renormalize(
    prepared: &Prepared,
    batches: impl Iterator<Item = Result<Vec<Tensor>>>,
    progress: &Progress,
) -> Result<Prepared> {
    let float = prepared.graph();
    let layers = layers(prepared);
    if layers.is_empty() {
        return Ok(prepared.clone());
    }
    let converted = prepared.convert()?.graph;
    let name = |layer: &Layer| float.value(layer.output).name.as_str();
    let quantized: Vec<Option<Var>> = layers.iter().map(|layer| converted.find(name(layer))).collect();
    let in_float = |v| layers.iter().position(|layer| layer.output == v);
    let in_quantized = |v| quantized.iter().position(|output| *output == Some(v));
    let mut moments = vec![Moments::default(); layers.len()];
    for (i, batch) in batches.enumerate() {
        let batch = batch?;
        float.run_watched(
            &batch,
            |v| in_float(v).is_some(),
            |v, _, value| in_float(v).map_or(Ok(()), |layer| moments[layer].float.add(value)),
        )?;
        converted.run_changed(
            &batch,
            |v| in_quantized(v).is_some(),
            |v, _, value| {
                let Some(layer) = in_quantized(v) else { return Ok(()) };
                moments[layer].quantized.add(value)?;
                *value = moments[layer].given_back(value)?;
                Ok(())
            },
        )?;
        progress(i + 1)?;
    }
    if moments.iter().all(|moments| moments.float.count == 0) {
        return Err(invalid!("there is no data to normalize by: give at least one sample"));
    }
    layers.iter().zip(&moments).try_fold(prepared.clone(), |changed, (layer, moments)| {
        layer.renormalized(&changed, &converted, moments).map_err(|e| e.at(&layer.node))
    })
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
            let (mut sums, mut squares) = ([0.0; LANES], [0.0; LANES]);
            for lanes in run.chunks(LANES) {
                for ((x, sum), square) in lanes.iter().zip(&mut sums).zip(&mut squares) {
                    let x = f64::from(*x);
                    *sum += x;
                    *square += x * x;
                }
            }
            self.sums[i % channels] += sums.iter().sum::<f64>();
            self.squares[i % channels] += squares.iter().sum::<f64>();
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

/// The moments of what a layer makes, in float and quantized.
#[derive(Clone, Debug, Default)]
struct Moments {
    float: Channels,
    quantized: Channels,
}

impl Moments {
    /// By what channel `c` of the quantized layer is multiplied, then shifted, to have the
    /// float moments.
    fn line(&self, c: usize) -> (f64, f64) {
        let ((mean, deviation), (found, spread)) = (self.float.moments(c), self.quantized.moments(c));
        let ratio = deviation / spread;
        let ratio = if ratio.is_finite() && ratio > 0.0 { ratio.clamp(1.0 / MOST, MOST) } else { 1.0 };
        (ratio, mean - ratio * found)
    }

    /// What the quantized layer makes, with the float moments.
    fn given_back(&self, made: &Tensor) -> Result<Tensor> {
        let channels = self.quantized.sums.len();
        if channels != self.float.sums.len() {
            return Ok(made.clone());
        }
        let inner: usize = made.shape().iter().skip(2).product();
        let mut values = made.to_f32()?;
        for (i, run) in values.chunks_mut(inner.max(1)).enumerate() {
            let (ratio, shift) = self.line(i % channels.max(1));
            run.iter_mut().for_each(|y| *y = *y * ratio as f32 + shift as f32);
        }
        Tensor::new(made.shape(), values)
    }
}

impl Layer {
    /// `prepared` with another scale for each channel of this layer's weight, and another bias.
    fn renormalized(&self, prepared: &Prepared, converted: &Graph, moments: &Moments) -> Result<Prepared> {
        let mut points = prepared.points().to_vec();
        let point = &mut points[self.point];
        let params = point.params()?;
        let channels = params.scale.len();
        let Some(bias) = stored_bias(converted, &self.node)? else { return Ok(prepared.clone()) };
        if [moments.float.sums.len(), moments.quantized.sums.len(), bias.len()] != [channels; 3] {
            return Ok(prepared.clone());
        }
        let lines = (0..channels).map(|c| moments.line(c));
        let (ratios, shifts): (Vec<f32>, Vec<f64>) = lines.map(|(r, shift)| (r as f32, shift)).unzip();
        let biases = bias.iter().zip(&ratios).zip(&shifts);
        let shifted = biases.map(|((b, r), shift)| (f64::from(*b) * f64::from(*r) + shift) as f32).collect();
        let stored = point.stored()?;
        let inner: usize = stored.shape()[self.axis + 1..].iter().product();
        let values = stored.to_f32()?.into_iter().enumerate().map(|(i, w)| w * ratios[i / inner % channels]);
        point.chosen = Some(Tensor::new(stored.shape(), values.collect())?);
        let scale = params.scale.iter().zip(&ratios).map(|(s, r)| s * r).collect();
        point.given = Some(QParams::new(params.scheme, scale, params.zero_point)?);
        point.means = None;
        let (name, shifted) = (prepared.graph().value(self.bias).name.clone(), Tensor::vector(shifted));
        prepared.with_constants(points, |constant| (constant == name).then_some(&shifted))
    }
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
