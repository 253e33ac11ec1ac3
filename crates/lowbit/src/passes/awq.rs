//! Activation-aware weights: inputs that matter get finer steps.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::divisible::{divided, divisible};
use crate::error::{Result, invalid};
use crate::graph::{Graph, Var};
use crate::qconfig::{QConfigMapping, Rounding};
use crate::quantize::{Point, PointOp, Progress, prepare};
use crate::tensor::Tensor;

/// Powers between 0 and 1 that are tried.
const POWERS: u16 = 20;

/// Multiplies the rows of weights that meet great inputs, and divides these
/// inputs where they are made, so that rounding takes less from the outputs
/// (docs/quantization.md, equation 26; Lin et al., "AWQ", 2023).
///
/// Input `k` of the MatMuls and Gemms that read a value is divided by `s_k` and
/// their weights' row `k` multiplied:
///
/// `s_k = r_k^a / sqrt(max_j r_j^a min_j r_j^a)`, with `r_k` the root mean square
/// of the input over `batches`, and `a` the one of 0, 0.05, .. 1 for which the
/// outputs differ least once the weights are quantized. The float function stays the
/// same, but for rounding.
///
/// A value can be divided where nothing but MatMuls and Gemms with
/// [`crate::qconfig::Spec::awq`] read it, and it is made by a product with a
/// constant vector, a LayerNormalization, or a MatMul or Gemm; between these and
/// the readers may stand Relu, addition of a constant vector, and
/// multiplication by another value. Others stay as they are. Values that are
/// divided get names ending in `_awq`: they are not those of the float model.
///
/// `graph` is a fused one. If no node asks for it, `batches` is not read.
///
/// # Errors
/// If a rule of `mapping` cannot be honoured, there is no batch or one does not
/// fit the model, a value is not finite, or `progress` stops it.
pub fn awq(
    graph: &Graph,
    mapping: &QConfigMapping,
    batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
    progress: &Progress,
) -> Result<Graph> {
    let shared = divisible(graph, &mapping.resolve(graph)?, |q| q.weight.awq);
    if shared.is_empty() {
        return Ok(graph.clone());
    }
    let mut watching = mapping.clone();
    for q in watching.rules.iter_mut().filter_map(|r| r.qconfig.as_mut()) {
        q.weight.rounding = if q.weight.awq { Rounding::Gptq } else { Rounding::Nearest };
    }
    let mut prepared = prepare(graph, &watching)?;
    let empty = AtomicBool::new(true);
    prepared.calibrate(batches, &|batch| {
        empty.store(false, Ordering::Relaxed);
        progress(batch)
    })?;
    if empty.into_inner() {
        return Err(invalid!("the calibration data is empty: give at least one sample"));
    }
    let points: HashMap<&str, &Point> = prepared
        .graph()
        .applied()
        .filter_map(|(_, node, _, inputs)| {
            let (op, _) = prepared.graph().made_by::<PointOp>(*inputs.get(1)?)?;
            Some((node.outputs[0].name.as_str(), &prepared.points()[op.point]))
        })
        .collect();
    let mut scaled = vec![];
    for value in shared {
        let of = |v: &Var| points.get(graph.value(*v).name.as_str()).copied();
        let points: Vec<&Point> = value.readers.iter().filter_map(of).collect();
        scaled.extend(best_scales(&points)?.map(|scales| (value, scales)));
    }
    divided(graph, scaled, "awq")
}

/// The scales with which the layers at `points`, which have one input, lose
/// least; `None` if that is none.
fn best_scales(points: &[&Point]) -> Result<Option<Vec<f32>>> {
    let Some(rms) = points.first().and_then(|p| p.moments.as_ref()).and_then(|m| m.root_mean_squares())
    else {
        return Ok(None);
    };
    // What is never seen is as rare as the rarest that is.
    let least = rms.iter().copied().filter(|r| *r > 0.0).fold(f32::MAX, f32::min);
    let scales = |power: u16| -> Vec<f32> {
        let power = f64::from(power) / f64::from(POWERS);
        let raw: Vec<f64> = rms.iter().map(|r| libm::pow(f64::from(r.max(least)), power)).collect();
        let (lo, hi) = raw.iter().fold((f64::MAX, 0f64), |(lo, hi), r| (lo.min(*r), hi.max(*r)));
        raw.iter().map(|r| (r / (lo * hi).sqrt()) as f32).collect()
    };
    let lost = |scales: &[f32]| -> Result<f64> {
        points.iter().map(|p| p.error_scaled_by(scales).map_err(|e| e.at(&p.name))).sum()
    };
    let mut best = (lost(&vec![1.0; rms.len()])?, None);
    for power in 1..=POWERS {
        let scales = scales(power);
        let lost = lost(&scales)?;
        if lost < best.0 {
            best = (lost, Some(scales));
        }
    }
    Ok(best.1)
}

#[cfg(test)]
pub(super) mod tests;
