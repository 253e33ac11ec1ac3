//! Products of two matrices of the run that read a transposed operand where it
//! lies.

use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Var};
use crate::ops::layout::Transpose;
use crate::ops::linear::MatMul;
use crate::session::float::stack::StackedMatMul;
use crate::session::integer::matmul::QMatMul;
use crate::session::stacks::Axes;
use crate::tensor::DType;

/// The graph with every transpose gone that only such products need.
pub fn read_in_place(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        if let Some(product) = op.is::<QMatMul>() {
            let (axes, inputs) = in_place(b, &product.axes, inputs);
            b.replace(node, Arc::new(QMatMul { axes, ..product.clone() }), &inputs)
        } else if op.is::<MatMul>().is_some() && is_stacked(b, inputs) {
            let (axes, inputs) = in_place(b, &Axes::default(), inputs);
            b.replace(node, Arc::new(StackedMatMul { axes, ..StackedMatMul::default() }), &inputs)
        } else {
            b.copy(node, inputs)
        }
    })
}

/// Whether this is a product of f32 matrices, the right ones not constant.
fn is_stacked(b: &Builder, inputs: &[Var]) -> bool {
    let is_matrix = |v: &Var| b.fact(*v).dtype == DType::F32 && b.fact(*v).rank() >= 2;
    inputs.iter().all(is_matrix) && b.so_far().constant(inputs[1]).is_none()
}

/// The operands of a product without the transposes that make them, where they
/// can be read so, and the order of their axes.
fn in_place(b: &Builder, axes: &Axes, inputs: &[Var]) -> (Axes, Vec<Var>) {
    let (mut axes, mut operands) = (axes.clone(), inputs.to_vec());
    for (i, operand) in operands.iter_mut().enumerate() {
        let Some((transpose, x)) = b.so_far().made_by::<Transpose>(*operand) else { continue };
        let perm = transpose.perm.clone().unwrap_or_else(|| (0..b.fact(*operand).rank()).rev().collect());
        if let Some(read) = axes.transposed(i, &perm) {
            (axes, *operand) = (read, x[0]);
        }
    }
    (axes, operands)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Dim, Fact};
    use crate::session::Session;
    use crate::tensor::Tensor;

    fn noise(shape: &[usize], seed: u64) -> Tensor {
        let n = shape.iter().product::<usize>() as u64;
        let value = |i: u64| ((i * 2 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 1e7 - 0.8;
        Tensor::new(shape, (0..n).map(value).collect()).unwrap()
    }

    #[test]
    fn products_of_the_run_need_no_transposes() {
        let heads = || Some(vec![0, 2, 1, 3]);
        // The orders of the operands' axes, and how many transposes are left.
        let cases = [
            ([heads(), Some(vec![0, 2, 3, 1])], 0),
            ([None, Some(vec![0, 1, 3, 2])], 0),
            ([Some(vec![0, 1, 3, 2]), None], 1),
            ([Some(vec![0, 3, 1, 2]), Some(vec![0, 3, 1, 2])], 2),
            ([Some(vec![0, 1, 2, 3]), heads()], 0),
        ];
        let all = [noise(&[2, 6, 6, 6], 1), noise(&[2, 6, 6, 6], 5)];
        for (orders, left) in cases {
            let mut b = Builder::default();
            let fact = Fact::new(DType::F32, vec![Dim::Named("N".into()), 6.into(), 6.into(), 6.into()]);
            let inputs = ["a", "b"].map(|name| b.input(name, fact.clone()));
            let operands = [0, 1].map(|i| {
                let Some(perm) = orders[i].clone() else { return inputs[i] };
                b.apply("t", Arc::new(Transpose { perm: Some(perm) }), &inputs[i..=i]).unwrap()
            });
            let y = b.apply("y", Arc::new(MatMul), &operands).unwrap();
            let graph = b.finish([("y".to_string(), y)]).unwrap();
            let session = Session::compile(&graph).unwrap();
            let lowered = session.graph();
            let transposes = lowered.applied().filter(|(_, _, op, _)| op.name() == "Transpose").count();
            assert_eq!(transposes, left, "{orders:?}\n{lowered}");
            assert_eq!(session.run(&all).unwrap(), graph.run(&all).unwrap(), "{orders:?}");
            assert_eq!(lowered.run(&all).unwrap(), graph.run(&all).unwrap(), "{orders:?}");
            assert_eq!(lowered.macs(), graph.macs());
        }
    }
}
