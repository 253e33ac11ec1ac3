//! What is known of the inputs of a layer before any was seen.

use crate::graph::{Graph, Var};
use crate::ops::binary::Arithmetic;
use crate::ops::norm::LayerNormalization;

/// The mean square of each element of `v` along its last axis, up to a factor,
/// if it is made by multiplying alike elements by constants, as normalizations
/// do: `g_k^2`, or `g_k^2 + b_k^2` of a layer normalization with bias.
pub fn gains(graph: &Graph, v: Var) -> Option<Vec<f32>> {
    let n = graph.fact(v).shape.last()?.known()?;
    let vector = |v: &Var| -> Option<Vec<f32>> {
        let t = graph.constant(*v).filter(|t| t.len() == n && t.shape().last() == Some(&n))?;
        t.to_f32().ok()
    };
    if let Some((Arithmetic::Mul, factors)) = graph.made_by::<Arithmetic>(v) {
        let gains = factors.iter().find_map(vector)?;
        return Some(gains.iter().map(|g| g * g).collect());
    }
    let (_, inputs) = graph.made_by::<LayerNormalization>(v)?;
    let (gains, bias) = (vector(inputs.get(1)?)?, inputs.get(2).and_then(vector));
    let bias = bias.unwrap_or_else(|| vec![0.0; n]);
    Some(gains.iter().zip(bias).map(|(g, b)| g * g + b * b).collect())
}
