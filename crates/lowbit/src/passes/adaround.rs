//! Learned rounding: codes with which layers or blocks answer as in float.

mod block;
mod part;
mod reconstruct;
mod rounding;
mod stream;

use std::collections::HashMap;

pub use block::Blocks;

use crate::error::{Result, invalid};
use crate::graph::Var;
use crate::quantize::{Prepared, Role};
use crate::tensor::Tensor;
use block::{blocks, weight_point};
use part::Form;
use reconstruct::reconstruct;
use stream::Stream;

/// How roundings are learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaroundOptions {
    /// What is reconstructed at once.
    pub blocks: Blocks,
    /// Samples that are used, counted along the first axis of the first input; the
    /// batches after them are not read.
    pub samples: usize,
    /// Steps for each block, each with one of the batches.
    pub steps: usize,
    /// The learning rate of Adam.
    pub rate: f32,
    /// What the regularizer counts beside the reconstruction error in units of that of
    /// the nearest codes.
    pub lambda: f32,
    /// The regularizer's exponent after the warm-up, and at the end.
    pub beta: (f32, f32),
    /// The share of the steps in which there is no regularizer.
    pub warm_up: f32,
    /// What the order of the batches follows from.
    pub seed: u64,
}

impl Default for AdaroundOptions {
    fn default() -> AdaroundOptions {
        AdaroundOptions {
            blocks: Blocks::Residual,
            samples: 1024,
            steps: 500,
            rate: 3e-2,
            lambda: 10.0,
            beta: (20.0, 2.0),
            warm_up: 0.2,
            seed: 0,
        }
    }
}

impl AdaroundOptions {
    /// The regularizer's exponent in step `step`, from 1, if it is on.
    fn beta(&self, step: usize) -> Option<f32> {
        let done = step as f32 / self.steps as f32;
        let annealed = (done - self.warm_up) / (1.0 - self.warm_up);
        (annealed > 0.0).then_some(self.beta.0 + (self.beta.1 - self.beta.0) * annealed)
    }

    fn check(&self) -> Result<()> {
        let positive = |name: &str, x: f32| match x.is_finite() && x > 0.0 {
            true => Ok(()),
            false => Err(invalid!("{name} = {x} is not a positive number")),
        };
        positive("rate", self.rate)?;
        positive("lambda", self.lambda)?;
        positive("beta", self.beta.0.min(self.beta.1 - 1.0))?;
        if !(0.0..1.0).contains(&self.warm_up) {
            return Err(invalid!("warm_up = {} does not lie from 0 to below 1", self.warm_up));
        }
        if self.samples == 0 || self.steps == 0 {
            return Err(invalid!("samples and steps must be at least 1"));
        }
        Ok(())
    }
}

/// A block that has been reconstructed.
#[derive(Clone, Debug, PartialEq)]
pub struct Reconstructed {
    /// Its number, from 1.
    pub number: usize,
    /// How many there are.
    pub blocks: usize,
    /// The value that was reconstructed.
    pub output: String,
    /// The weights whose codes were learned.
    pub weights: Vec<String>,
    /// The mean squared error of the output with the nearest codes, its inputs quantized.
    pub nearest: f64,
    /// The mean squared error with the codes found: at most `nearest`.
    pub error: f64,
}

/// Learns for each weight which of its elements are rounded down and which up, so that what
/// layers or blocks give, with their inputs quantized, is nearest to what they give in
/// float (docs/quantization.md, equation 33; Nagel et al., "Up or Down? Adaptive Rounding
/// for Post-Training Quantization", 2020; Li et al., "BRECQ", 2021).
///
/// `prepared` is calibrated; what is returned has the same points and weights, and the codes
/// chosen, which [`Prepared::convert`] stores and [`Prepared::settled`] begins training with.
/// Blocks are reconstructed in evaluation order: a block's inputs come from those before it with
/// their codes, activations and interior points fake-quantized; its target is its output
/// in the float model. Scales and zero points stay what they are. A block keeps the nearest
/// codes where these give the smaller error on the samples. Biases of the layers learned are not corrected any more (equation 17): what is
/// learned has next to no mean error, and takes into account what the layer's inputs have.
///
/// Weights whose rules do not ask for it ([`crate::qconfig::Rounding::Adaround`]), those whose codes have no steps (floats, codebooks), those of recurrent layers, and
/// those of more than 16 bits stay as they are; activations that are quantized by the range of each
/// run count as float.
///
/// Memory: for the samples used, the values that one block and those after it read and that
/// have been made, twice (in float and quantized), and the targets of a block; in a chain of
/// residual blocks that is three values. Batches stay as they are given, and a step takes
/// one of them: 32 samples each are a good choice. The result does not depend on the number of
/// threads.
///
/// # Errors
/// If an option makes no sense, there is no batch or one does not fit the model, a point
/// saw no value, an operator within a block has no gradient or a value is not finite (the
/// error names the block's output and the node), or `progress` stops it.
pub fn adaround(
    prepared: &Prepared,
    batches: impl Iterator<Item = Result<Vec<Tensor>>>,
    options: &AdaroundOptions,
    progress: &mut dyn FnMut(&Reconstructed) -> Result<()>,
) -> Result<Prepared> {
    options.check()?;
    let (original, prepared) = (prepared, prepared.frozen()?);
    let batches = sampled(batches, options.samples)?;
    if !prepared.points().iter().any(|point| point.learns) {
        return Err(invalid!("no rule asks for a learned rounding: give weights rounding = \"adaround\""));
    }
    let graph = prepared.graph();
    let mut weights = stored(&prepared)?;
    let mut found = HashMap::new();
    let mut float = Stream::new(&prepared, &batches)?;
    let mut quantized = Stream::new(&prepared, &batches)?;
    drop(batches);
    let mut all = blocks(&prepared, options.blocks);
    let mut known: Vec<usize> = vec![];
    // A weight that several blocks read is learned with the first.
    for block in &mut all {
        block.weights.retain(|v| weight_point(&prepared, *v).is_some_and(|p| !known.contains(&p)));
        known.extend(block.weights.iter().filter_map(|v| weight_point(&prepared, *v)));
    }
    all.retain(|block| !block.weights.is_empty());
    for (i, block) in all.iter().enumerate() {
        let output = &graph.value(block.output).name;
        float.run_before(&block.nodes, Form::Float)?;
        float.run(&block.nodes, Form::Float, &[block.output])?;
        quantized.run_before(&block.nodes, Form::Quantized(&weights))?;
        let streams = (&float, &quantized);
        let learned =
            reconstruct(&prepared, block, i, &weights, streams, options).map_err(|e| e.at(output))?;
        weights.extend(learned.weights.clone());
        found.extend(learned.weights);
        quantized.run(&block.nodes, Form::Quantized(&weights), &[])?;
        let name = |v: &Var| weight_point(&prepared, *v).map(|p| prepared.points()[p].name.clone());
        progress(&Reconstructed {
            number: i + 1,
            blocks: all.len(),
            output: output.clone(),
            weights: block.weights.iter().filter_map(name).collect(),
            nearest: learned.nearest,
            error: learned.error,
        })?;
    }
    let mut points = original.points().to_vec();
    for (i, values) in found {
        points[i].given.clone_from(&prepared.points()[i].given);
        points[i].chosen = Some(values);
        points[i].means = None;
    }
    Ok(original.with(points))
}

/// The batches that hold the first `samples` samples.
fn sampled(batches: impl Iterator<Item = Result<Vec<Tensor>>>, samples: usize) -> Result<Vec<Vec<Tensor>>> {
    let (mut taken, mut count) = (vec![], 0);
    for (i, batch) in batches.enumerate() {
        let batch = batch.map_err(|e| e.at(format!("calibration batch {i}")))?;
        count += batch.first().and_then(|x| x.shape().first()).copied().unwrap_or(1);
        taken.push(batch);
        if count >= samples {
            break;
        }
    }
    match taken.is_empty() {
        true => Err(invalid!("the calibration data is empty: give at least one sample")),
        false => Ok(taken),
    }
}

/// The values that conversion would store of each weight, by point.
fn stored(prepared: &Prepared) -> Result<HashMap<usize, Tensor>> {
    let mut stored = HashMap::new();
    for (i, point) in prepared.points().iter().enumerate().filter(|(_, p)| p.role == Role::Weight) {
        let values = point.stored().map_err(|e| e.at(&point.name))?;
        stored.insert(i, values);
    }
    Ok(stored)
}

#[cfg(test)]
mod tests;
