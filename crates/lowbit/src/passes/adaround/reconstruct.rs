//! One block: the codes with which its output is nearest to the float model's.

use std::collections::HashMap;

use super::AdaroundOptions;
use super::block::{Block, weight_point};
use super::part::{Form, Part};
use super::rounding::{Regularizer, Rounding};
use super::stream::Stream;
use crate::error::{Result, invalid};
use crate::graph::Var;
use crate::quantize::{PointOp, Prepared};
use crate::random::SplitMix;
use crate::tensor::Tensor;
use crate::train::Optimizer;

/// Values for weights that are on their grids, and what they give.
pub struct Found {
    /// By point.
    pub weights: HashMap<usize, Tensor>,
    /// The mean squared error of the output with the nearest codes.
    pub nearest: f64,
    /// The mean squared error with those found.
    pub error: f64,
}

/// A block with the data that it is reconstructed on.
pub struct Reconstruction<'a> {
    options: &'a AdaroundOptions,
    part: Part,
    /// The inputs of the part that are weights.
    open: Vec<Var>,
    output: Var,
    /// For each input of the part but the weights one tensor a batch.
    inputs: Vec<&'a [Tensor]>,
    targets: &'a [Tensor],
}

impl<'a> Reconstruction<'a> {
    /// That of `block` with the inputs that `quantized` has and the output that `float` has.
    ///
    /// # Errors
    /// If the block cannot be built; the error names a node.
    pub fn new(
        prepared: &Prepared,
        block: &Block,
        weights: &HashMap<usize, Tensor>,
        (float, quantized): (&'a Stream, &'a Stream),
        options: &'a AdaroundOptions,
    ) -> Result<Reconstruction<'a>> {
        let form = Form::Quantized(weights);
        let part = Part::new(prepared, &block.nodes, &[block.output], form, &block.weights)?;
        let inputs = part.reads.iter().map(|v| quantized.value(*v)).collect::<Result<Vec<_>>>()?;
        let open = part.graph.inputs().skip(inputs.len()).map(|(v, _)| v).collect();
        let output = part.graph.outputs().map(|(_, v)| v).next();
        let output = output.ok_or_else(|| invalid!("a block has no output"))?;
        Ok(Reconstruction { options, part, open, output, inputs, targets: float.value(block.output)? })
    }

    /// The inputs of the part for a batch.
    fn given(&self, batch: usize, weights: &[Tensor]) -> Vec<Tensor> {
        self.inputs.iter().map(|x| x[batch].clone()).chain(weights.iter().cloned()).collect()
    }

    /// The mean squared error of the output over all batches.
    fn error(&self, weights: &[Tensor]) -> Result<f64> {
        let (mut sum, mut count) = (0f64, 0);
        for (i, target) in self.targets.iter().enumerate() {
            let y = self.part.graph.run(&self.given(i, weights))?.remove(0);
            sum += differences(&y, target)?.iter().map(|d| f64::from(*d) * f64::from(*d)).sum::<f64>();
            count += y.len();
        }
        Ok(sum / count.max(1) as f64)
    }

    /// The gradients of `sum (y - t)^2` by the weights, over one batch.
    fn gradients(&self, batch: usize, weights: &[Tensor], factor: f32) -> Result<Vec<Option<Tensor>>> {
        let tape = self.part.graph.record(&self.given(batch, weights), &self.open)?;
        let y = tape.outputs()?.remove(0);
        let by_y = differences(&y, &self.targets[batch])?.into_iter().map(|d| 2.0 * factor * d).collect();
        let by_y = Tensor::new(y.shape(), by_y)?;
        drop(y);
        tape.backward([(self.output, by_y)])
    }
}

/// `y - target`.
fn differences(y: &Tensor, target: &Tensor) -> Result<Vec<f32>> {
    if y.shape() != target.shape() {
        return Err(invalid!("has shape {:?}, in the float model {:?}", y.shape(), target.shape()));
    }
    Ok(y.slice::<f32>()?.iter().zip(target.slice::<f32>()?).map(|(y, t)| y - t).collect())
}

/// Learns the rounding of the block's weights; what is drawn follows from its `number`.
///
/// # Errors
/// If an operator of the block has no gradient, or a value is not finite; the error names a node.
pub fn reconstruct(
    prepared: &Prepared,
    block: &Block,
    number: usize,
    weights: &HashMap<usize, Tensor>,
    streams: (&Stream, &Stream),
    options: &AdaroundOptions,
) -> Result<Found> {
    let at = Reconstruction::new(prepared, block, weights, streams, options)?;
    let points: Vec<usize> = block.weights.iter().filter_map(|v| weight_point(prepared, *v)).collect();
    let optimizer = Optimizer::adam();
    let (mut roundings, mut nearest) = (vec![], vec![]);
    for (v, point) in block.weights.iter().zip(&points) {
        let point = &prepared.points()[*point];
        let source = prepared.graph().made_by::<PointOp>(*v).map(|(_, inputs)| inputs[0]);
        let weight = source.and_then(|v| prepared.graph().constant(v));
        let weight = weight.ok_or_else(|| invalid!("is no constant").at(&point.name))?;
        let params = point.params().map_err(|e| e.at(&point.name))?;
        nearest.push(params.fake_quantize(weight)?);
        roundings.push(Rounding::new(weight, &params, &optimizer).map_err(|e| e.at(&point.name))?);
    }
    let current: Vec<Tensor> = points.iter().filter_map(|p| weights.get(p).cloned()).collect();
    let of_nearest = at.error(&nearest)?;
    if !of_nearest.is_finite() {
        return Err(invalid!("its values are not finite"));
    }
    let mut candidates = vec![(of_nearest, nearest)];
    if of_nearest > 0.0 {
        candidates.push((at.error(&current)?, current));
        learn(&at, &mut roundings, &optimizer, of_nearest, number)?;
        let found = roundings.iter().map(Rounding::hard).collect::<Result<Vec<_>>>()?;
        candidates.push((at.error(&found)?, found));
    }
    let best = candidates.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
    let (error, values) = best.ok_or_else(|| invalid!("has no codes"))?;
    Ok(Found { weights: points.into_iter().zip(values).collect(), nearest: of_nearest, error })
}

/// Moves the roundings against the gradient of the reconstruction error, in units of that with
/// the nearest codes, plus the regularizer.
fn learn(
    at: &Reconstruction,
    roundings: &mut [Rounding],
    optimizer: &Optimizer,
    unit: f64,
    number: usize,
) -> Result<()> {
    let options = at.options;
    let mut random = SplitMix::of(&[options.seed, number as u64]);
    let count: usize = roundings.iter().map(Rounding::len).sum();
    for step in 1..=options.steps {
        let factor = options.lambda / count as f32;
        let regularizer = options.beta(step).map(|beta| Regularizer { factor, beta });
        let soft = roundings.iter().map(Rounding::soft).collect::<Result<Vec<_>>>()?;
        let batch = random.below(at.targets.len());
        let elements = at.targets[batch].len().max(1) as f64;
        let by = at.gradients(batch, &soft, (1.0 / (unit * elements)) as f32)?;
        for (rounding, by) in roundings.iter_mut().zip(by) {
            let Some(by) = by else { continue };
            rounding.descend(&by, regularizer, optimizer, options.rate, step as u64)?;
        }
    }
    Ok(())
}
