//! Recurrent layers with weights in codes.

use std::sync::Arc;

use super::point::unchanging;
use crate::error::Result;
use crate::graph::{Builder, Node, Var};
use crate::op::{Attribute, Op};
use crate::ops::recurrent::{DynamicRecurrent, QuantizedRecurrent, quantize_recurrent};
use crate::qconfig::Per;

/// The operator that stands in a prepared graph between a point and a recurrent
/// layer that will compute with the codes of the value there. It changes nothing.
#[derive(Clone, Debug)]
pub struct LayerOp {
    /// What shares one scale of the weights.
    pub weight_per: Per,
}

unchanging!(LayerOp, "Layer", |op| {
    vec![("per_channel", Attribute::Int(i64::from(op.weight_per != Per::Tensor)))]
});

/// The recurrent layer `node` with weights in codes. It quantizes x and h by
/// `steps`, their scales and zero points, or else each as it comes.
///
/// # Errors
/// If the weights are not finite.
pub fn coded_layer(
    b: &mut Builder,
    node: &Node,
    op: &dyn Op,
    inputs: &[Var],
    weight_per: Per,
    steps: Option<[Var; 4]>,
) -> Result<Vec<Var>> {
    let form = match (b.so_far().constant(inputs[1]), b.so_far().constant(inputs[2])) {
        (Some(w), Some(r)) => quantize_recurrent(op, w, r, weight_per != Per::Tensor)?,
        _ => None,
    };
    let Some((DynamicRecurrent(layer), operands)) = form else { return b.copy(node, inputs) };
    let mut inputs = inputs.to_vec();
    for (i, t) in operands {
        while inputs.len() <= i {
            inputs.push(b.absent());
        }
        inputs[i] = b.constant(&format!("{}.operand{i}", node.name), t);
    }
    match steps {
        None => b.replace(node, Arc::new(DynamicRecurrent(layer)), &inputs),
        Some(steps) => {
            inputs.extend(steps);
            b.replace(node, Arc::new(QuantizedRecurrent(layer)), &inputs)
        }
    }
}

#[cfg(test)]
mod tests;
