//! Means and deviations of channels, given back to what quantized layers make.

use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::graph::{Node, Var};
use crate::op::Op;
use crate::ops::conv::Conv;
use crate::ops::linear::Gemm;
use crate::quantize::{Line, Point, PointOp, Prepared, Progress};
use crate::scheme::{Format, Granularity};
use crate::tensor::{KeptMemory, Tensor};

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
/// codes, and no bias that is computed. Codes stay: a channel's scale and its bias change,
/// when they are converted ([`Point::regained`]).
///
/// Each batch runs once in float and once quantized; there, what a layer makes gets the float
/// moments of the batches so far before another layer reads it, so that each layer is measured
/// behind those that have been changed. The bias makes up for all errors before it: bias
/// correction has nothing left to do.
///
/// `prepared` is calibrated; two batches are held at a time, of which one runs in float while
/// the one before runs quantized. `progress` is called after each batch. If no weight asks for
/// it, nothing is read.
///
/// # Errors
/// If there is no batch or one does not fit the model, a point saw no value, or `progress`
/// stops it.
pub fn renormalize(
    prepared: &Prepared,
    mut batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
    progress: &Progress,
) -> Result<Prepared> {
    let float = prepared.graph();
    let layers = layers(prepared);
    if layers.is_empty() {
        return Ok(prepared.clone());
    }
    let mut points = prepared.points().to_vec();
    points.iter_mut().for_each(|point| point.regained = None);
    let converted = prepared.with(points.clone()).convert()?.graph;
    let name = |layer: &Layer| float.value(layer.output).name.as_str();
    let quantized: Vec<Option<Var>> = layers.iter().map(|layer| converted.find(name(layer))).collect();
    let in_float = |v| layers.iter().position(|layer| layer.output == v);
    let in_quantized = |v| quantized.iter().position(|output| *output == Some(v));
    let in_float = |batch: Vec<Tensor>| -> Result<(Vec<Tensor>, Vec<Channels>)> {
        let _kept = KeptMemory::up_to(0);
        let mut seen = vec![Channels::default(); layers.len()];
        float.run_watched(
            &batch,
            |v| in_float(v).is_some(),
            |v, _, value| in_float(v).map_or(Ok(()), |layer| seen[layer].add(value)),
        )?;
        Ok((batch, seen))
    };
    let walk = |batch: Vec<Tensor>, moments: &mut [Moments]| -> Result<()> {
        let _kept = KeptMemory::up_to(0);
        let mut steps = converted.steps(|v| in_quantized(v).is_some());
        batch.into_iter().enumerate().try_for_each(|(i, x)| steps.give(i, x))?;
        while let Some((v, made)) = steps.advance()? {
            let Some(layer) = in_quantized(v) else { continue };
            moments[layer].quantized.add(&made)?;
            steps.replace(moments[layer].given_back(&made)?)?;
        }
        Ok(())
    };
    let mut moments = vec![Moments::default(); layers.len()];
    let mut next = || batches.next().map(|batch| in_float(batch?)).transpose();
    let (mut ready, mut done) = (next()?, 0);
    while let Some((batch, seen)) = ready.take() {
        moments.iter_mut().zip(&seen).for_each(|(moments, seen)| moments.float.merge(seen));
        let (walked, following) = rayon::join(|| walk(batch, &mut moments), &mut next);
        walked?;
        ready = following?;
        done += 1;
        progress(done)?;
    }
    if moments.iter().all(|moments| moments.float.count == 0) {
        return Err(invalid!("there is no data to normalize by: give at least one sample"));
    }
    for (layer, moments) in layers.iter().zip(&moments) {
        points[layer.point].regained = moments.lines();
    }
    Ok(prepared.with(points))
}

/// A layer whose channels can be rescaled.
struct Layer {
    /// What it makes, before any activation function.
    output: Var,
    /// The point of its weight.
    point: usize,
}

fn layers(prepared: &Prepared) -> Vec<Layer> {
    let graph = prepared.graph();
    let uses = graph.uses();
    let of = |(output, _, op, inputs): (Var, &Node, &Arc<dyn Op>, &[Var])| {
        let linear = op.is::<Conv>().is_some() || op.is::<Gemm>().is_some_and(|g| g.beta == 1.0);
        let weight = *inputs.get(1)?;
        let (PointOp { point, .. }, _) = graph.made_by::<PointOp>(weight)?;
        let Point { scheme, renormalizes, .. } = &prepared.points()[*point];
        let steps = matches!(scheme.format, Format::Int { .. });
        let channels = matches!(scheme.granularity, Granularity::Axis(_));
        // Where conversion stores a bias as integers, it can be another one.
        let integers = graph.made_by::<PointOp>(inputs[0]).is_some();
        let bias = inputs.get(2).filter(|bias| !graph.fact(**bias).is_absent());
        let shifts = integers && bias.is_none_or(|b| graph.constant(*b).is_some_and(|t| t.rank() == 1));
        let rescaled = *renormalizes && steps && channels && uses.of(weight) == 1;
        (linear && rescaled && shifts).then_some(Layer { output, point: *point })
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

    /// Adds what `other` has seen.
    fn merge(&mut self, other: &Channels) {
        let most = self.sums.len().max(other.sums.len());
        for (ours, theirs) in [(&mut self.sums, &other.sums), (&mut self.squares, &other.squares)] {
            ours.resize(most, 0.0);
            ours.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        }
        self.count += other.count;
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
    /// For each channel of the quantized layer, what gives it the float moments; none if the
    /// layer was not seen.
    fn lines(&self) -> Option<Vec<Line>> {
        let channels = self.quantized.sums.len();
        (channels > 0 && channels == self.float.sums.len())
            .then(|| (0..channels).map(|c| self.line(c)).collect())
    }

    fn line(&self, c: usize) -> Line {
        let ((mean, deviation), (found, spread)) = (self.float.moments(c), self.quantized.moments(c));
        let ratio = deviation / spread;
        let ratio = if ratio.is_finite() && ratio > 0.0 { ratio.clamp(1.0 / MOST, MOST) } else { 1.0 };
        Line { ratio: ratio as f32, shift: (mean - ratio * found) as f32 }
    }

    /// What the quantized layer makes, with the float moments.
    fn given_back(&self, made: &Tensor) -> Result<Tensor> {
        let Some(lines) = self.lines() else { return Ok(made.clone()) };
        let inner: usize = made.shape().iter().skip(2).product();
        let mut values = made.to_f32()?;
        for (run, line) in values.chunks_mut(inner.max(1)).zip(lines.iter().cycle()) {
            run.iter_mut().for_each(|y| *y = *y * line.ratio + line.shift);
        }
        Tensor::new(made.shape(), values)
    }
}

#[cfg(test)]
mod tests;
