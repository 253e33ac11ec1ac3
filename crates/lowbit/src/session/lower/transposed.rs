//! Products of codes that read a transposed operand where it lies.

use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Graph, Kind};
use crate::ops::layout::Transpose;
use crate::session::integer::matmul::QMatMul;

/// The graph with every transpose gone that only such products need.
pub fn read_in_place(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        let Some(product) = op.is::<QMatMul>() else { return b.copy(node, inputs) };
        let (mut product, mut operands) = (product.clone(), inputs.to_vec());
        for (i, operand) in operands.iter_mut().enumerate() {
            let Some((transpose, x)) = b.so_far().made_by::<Transpose>(*operand) else { continue };
            let rank = b.fact(*operand).rank();
            let perm = transpose.perm.clone().unwrap_or_else(|| (0..rank).rev().collect());
            let axes: Vec<usize> = match &product.axes[i] {
                Some(axes) => axes.iter().map(|&a| perm[a]).collect(),
                None => perm,
            };
            if QMatMul::reads(i, &axes) {
                (product.axes[i], *operand) = (Some(axes), x[0]);
            }
        }
        b.apply_all(&node.name, Arc::new(product), &operands, &[&node.outputs[0].name])
    })
}
