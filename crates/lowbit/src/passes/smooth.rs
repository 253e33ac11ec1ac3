//! Outliers moved from activations into the weights that read them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::divisible::{Shared, divided, divisible, row_ranges};
use crate::error::{Result, invalid};
use crate::graph::{Graph, Var};
use crate::qconfig::{QConfig, QConfigMapping};
use crate::quantize::{Progress, lock, run_all, threads};
use crate::tensor::Tensor;

/// Divides what MatMuls and Gemms read along its last axis, and multiplies the rows of their
/// weights, so that the one scale of an activation, static or dynamic, serves all of it
/// (docs/quantization.md, equation 37; Xiao et al., "SmoothQuant", 2022):
///
/// `s_k = x_k^a / w_k^(1 - a)`, with `x_k` the greatest magnitude of element `k` over
/// `batches`, `w_k` that of the rows that it is multiplied with, and `a` the readers'
/// [`crate::qconfig::Spec::smooth`] (the least of them). Where one of the two is 0, `s_k` is 1.
/// The float function stays the same, but for rounding.
///
/// The values are those that [`super::awq`] divides, and their names end in `_smooth`
/// afterwards. `graph` is a fused one. If no node asks for it, `batches` is not read.
///
/// # Errors
/// If a rule of `mapping` cannot be honoured, there is no batch or one does not fit the model,
/// a value is not finite, or `progress` stops it.
pub fn smooth(
    graph: &Graph,
    mapping: &QConfigMapping,
    batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
    progress: &Progress,
) -> Result<Graph> {
    let configs = mapping.resolve(graph)?;
    let strength = |q: &QConfig| q.activation.as_ref().map_or(0.0, |a| a.smooth);
    let values = divisible(graph, &configs, |q| strength(q) > 0.0);
    if values.is_empty() {
        return Ok(graph.clone());
    }
    let of_node: HashMap<Var, f32> =
        graph.applied().zip(&configs).map(|((v, ..), q)| (v, q.map_or(0.0, strength))).collect();
    let ranges = observe(graph, &values, batches, progress)?;
    let scaled = values.into_iter().zip(ranges).map(|(value, range)| {
        let strength = value.readers.iter().map(|v| of_node[v]).fold(1f32, f32::min);
        let mut rows = vec![0f32; range.len()];
        for reader in &value.readers {
            rows.iter_mut().zip(row_ranges(graph, *reader)?).for_each(|(most, w)| *most = most.max(w));
        }
        let scale = |(x, w): (&f32, &f32)| {
            let power = |x: f32, a: f32| libm::pow(f64::from(x), f64::from(a));
            let s = (power(*x, strength) / power(*w, 1.0 - strength)) as f32;
            if *x > 0.0 && *w > 0.0 && s.is_normal() { s } else { 1.0 }
        };
        Ok((value, range.iter().zip(&rows).map(scale).collect()))
    });
    divided(graph, scaled.collect::<Result<_>>()?, "smooth")
}

/// The greatest magnitude of each element along the last axis of the values.
fn observe(
    graph: &Graph,
    values: &[Shared],
    batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
    progress: &Progress,
) -> Result<Vec<Vec<f32>>> {
    let place: HashMap<Var, usize> = values.iter().enumerate().map(|(i, shared)| (shared.value, i)).collect();
    let ranges: Mutex<Vec<Vec<f32>>> = Mutex::new(vec![vec![]; values.len()]);
    let see = |_, v: Var, value: &Tensor| {
        let Some(i) = place.get(&v) else { return Ok(()) };
        let width = value.shape().last().copied().unwrap_or(1);
        let mut most = vec![0f32; width];
        for row in value.slice::<f32>()?.chunks(width.max(1)) {
            for (most, x) in most.iter_mut().zip(row) {
                // f32::max would drop NaN.
                *most = if x.abs() <= *most { *most } else { x.abs() };
            }
        }
        if let Some(x) = most.iter().find(|x| !x.is_finite()) {
            return Err(invalid!("holds {x}").at(&graph.value(v).name));
        }
        let range = &mut lock(&ranges)[*i];
        range.resize(width, 0.0);
        range.iter_mut().zip(most).for_each(|(range, most)| *range = range.max(most));
        Ok(())
    };
    run_all(threads(), graph, batches, progress, |v| place.contains_key(&v), see, || ())?;
    let ranges = ranges.into_inner().unwrap_or_else(PoisonError::into_inner);
    if ranges.iter().any(Vec::is_empty) {
        return Err(invalid!(
            "smoothing looks at samples, and the calibration data is empty: give at least one"
        ));
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests;
