//! Which models compute each sample of a batch by itself, and in how large parts.
//!
//! A part at a time, values stay in the caches between one operator and the next;
//! and threads that have parts of their own need not wait for each other after
//! each operator.

use std::collections::HashSet;

use crate::graph::{Graph, Kind, Node, Var};
use crate::op::{Dim, Op};
use crate::ops::binary::Arithmetic;
use crate::ops::clip::Clip;
use crate::ops::layout::{Concat, Transpose};
use crate::ops::linear::MatMul;
use crate::ops::norm::LayerNormalization;
use crate::ops::pad::Pad;
use crate::ops::shape::{Flatten, Identity, Reshape, Squeeze, Unsqueeze};
use crate::ops::slice::Slice;
use crate::ops::softmax::Softmax;
use crate::ops::unary::Unary;
use crate::session::float::conv::ImageConv;
use crate::session::integer::boundary::{Dequantize, FlipSign, Quantize};
use crate::session::integer::conv::QConv;
use crate::session::integer::elementwise::{QBinary, Table};
use crate::session::integer::linear::QLinear;
use crate::session::integer::matmul::QMatMul;
use crate::session::integer::mean::ChannelMeans;
use crate::session::pool::{ImageAveragePool, ImageMaxPool, QAveragePool};

/// Bytes of a part's values, about: they stay in the last levels of the caches.
const KEPT: usize = 4 << 20;

/// Samples of a part, a divisor of `batch`: as many as keep their values near, where
/// one sample's take `bytes`; more where the weights, `weights` bytes of them, are
/// worth it, which each part reads anew; but few enough to leave a part to each of
/// the threads.
pub fn size(batch: usize, threads: usize, bytes: usize, weights: usize) -> usize {
    let most = (KEPT.max(weights) / bytes.max(1)).min(batch / threads.max(1)).clamp(1, batch.max(1));
    (1..=most).rev().find(|size| batch.is_multiple_of(*size)).unwrap_or(1)
}

/// Whether dimension 0 of every input and output counts samples, each computed
/// by itself by operators known for it.
pub fn are_apart(graph: &Graph) -> bool {
    let Some(batch) = graph.inputs().next().and_then(|(v, _)| named_batch(graph, v)) else { return false };
    let counts = |v: Var| graph.fact(v).shape.first() == Some(batch);
    let mut of_samples: HashSet<Var> = graph.inputs().map(|(v, _)| v).collect();
    for (v, node) in graph.nodes() {
        let Kind::Apply { op, inputs } = &node.kind else { continue };
        if !inputs.iter().any(|v| of_samples.contains(v)) {
            continue;
        }
        let apart = node.outputs.len() == 1 && counts(v) && is_apart(graph, node, &**op, inputs, &of_samples);
        if !apart {
            return false;
        }
        of_samples.insert(v);
    }
    graph.inputs().all(|(v, _)| counts(v)) && graph.outputs().all(|(_, v)| of_samples.contains(&v))
}

/// The first dimension of `v`, if every run binds it.
fn named_batch(graph: &Graph, v: Var) -> Option<&Dim> {
    graph.fact(v).shape.first().filter(|d| d.known().is_none())
}

/// Whether one of the operators that compute each sample by itself does so here:
/// its operands in `of_samples` and its result have one dimension 0.
fn is_apart(graph: &Graph, node: &Node, op: &dyn Op, inputs: &[Var], of_samples: &HashSet<Var>) -> bool {
    let rank = |v: &Var| graph.fact(*v).rank();
    let result = &node.outputs[0].fact;
    let batched = |v: &Var| of_samples.contains(v) && graph.fact(*v).shape.first() == result.shape.first();
    let first = inputs.first().is_some_and(batched);
    let alone = || first && inputs[1..].iter().all(|v| graph.constant(*v).is_some());
    let axis = |axis: i64| if axis < 0 { axis + result.rank() as i64 } else { axis };
    // Constants that are broadcast along dimension 0, and values that count samples there.
    let broadcast = || {
        inputs.iter().all(|v| match graph.constant(*v) {
            Some(t) => t.rank() < result.rank() || t.shape().first() == Some(&1),
            None => batched(v) && rank(v) == result.rank(),
        })
    };
    if op.is::<QConv>().is_some() || op.is::<QLinear>().is_some() {
        // What is added is of the same samples, or a constant row.
        let added = |v: &Var| match graph.constant(*v) {
            Some(t) => t.shape().iter().rev().skip(1).all(|&n| n == 1),
            None => batched(v) && rank(v) == result.rank(),
        };
        return first && rank(&inputs[0]) >= 2 && inputs[1..].iter().all(added);
    }
    if let Some(transpose) = op.is::<Transpose>() {
        return first && transpose.perm.as_ref().is_some_and(|perm| perm.first() == Some(&0));
    }
    if let Some(concat) = op.is::<Concat>() {
        return axis(concat.axis) != 0 && inputs.iter().all(batched);
    }
    if let Some(pad) = op.is::<Pad>() {
        let axes = pad.axes.clone().unwrap_or_else(|| (0..result.rank() as i64).collect());
        let kept = axes.iter().enumerate().all(|(i, &a)| {
            axis(a) != 0 || (pad.pads.get(i), pad.pads.get(i + axes.len())) == (Some(&0), Some(&0))
        });
        return alone() && kept;
    }
    if op.is::<Slice>().is_some() {
        // The axes are given, and dimension 0 is not among them.
        let axes = inputs.get(3).and_then(|v| graph.constant(*v)).and_then(|t| t.integers().ok());
        return alone() && axes.is_some_and(|axes| axes.iter().all(|&a| axis(a) != 0));
    }
    if let Some(softmax) = op.is::<Softmax>() {
        return first && axis(softmax.axis) != 0;
    }
    if let Some(norm) = op.is::<LayerNormalization>() {
        return alone() && axis(norm.axis) != 0;
    }
    if let Some(product) = op.is::<QMatMul>() {
        let kept = |axes: &Option<Vec<usize>>| axes.as_ref().is_none_or(|axes| axes.first() == Some(&0));
        let stacked = |v: &Var| batched(v) && rank(v) == result.rank() && rank(v) > 2;
        return product.axes.0.iter().all(kept) && inputs.iter().all(stacked);
    }
    if op.is::<MatMul>().is_some() {
        return alone() && rank(&inputs[0]) >= 2 && inputs.get(1).is_some_and(|v| rank(v) == 2);
    }
    if op.is::<QBinary>().is_some() || op.is::<Arithmetic>().is_some() {
        return broadcast();
    }
    let of_image = op.is::<ImageConv>().is_some()
        || op.is::<ImageMaxPool>().is_some()
        || op.is::<QAveragePool>().is_some()
        || op.is::<ImageAveragePool>().is_some()
        || op.is::<ChannelMeans>().is_some();
    let of_element = op.is::<Quantize>().is_some()
        || op.is::<Dequantize>().is_some()
        || op.is::<FlipSign>().is_some()
        || op.is::<Table>().is_some()
        || op.is::<Unary>().is_some()
        || op.is::<Identity>().is_some()
        || op.is::<Clip>().is_some();
    // As long as dimension 0 stays, so does all that is behind it.
    let of_shape = op.is::<Reshape>().is_some()
        || op.is::<Flatten>().is_some()
        || op.is::<Squeeze>().is_some()
        || op.is::<Unsqueeze>().is_some();
    alone() && (of_image || of_element || of_shape)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::error::Result;
    use crate::graph::Builder;
    use crate::op::Fact;
    use crate::ops::cast::Cast;
    use crate::ops::pad::Fill;
    use crate::ops::shape::Shape;
    use crate::tensor::{DType, Tensor};

    #[test]
    fn samples_are_apart_only_where_that_is_known() {
        type Make = fn(&mut Builder, Var) -> Result<Var>;
        let cases: &[(&str, Make, bool)] = &[
            ("relu", |b, x| b.apply("y", Arc::new(Unary::Relu), &[x]), true),
            ("transpose", |b, x| transpose(b, x, &[0, 2, 3, 1]), true),
            ("transpose of the batch", |b, x| transpose(b, x, &[1, 0, 2, 3]), false),
            ("concat", |b, x| b.apply("y", Arc::new(Concat { axis: -3 }), &[x, x]), true),
            ("concat of the batch", |b, x| b.apply("y", Arc::new(Concat { axis: -4 }), &[x, x]), false),
            ("softmax", |b, x| b.apply("y", Arc::new(Softmax { axis: -1, log: false }), &[x]), true),
            (
                "softmax of the batch",
                |b, x| b.apply("y", Arc::new(Softmax { axis: 0, log: false }), &[x]),
                false,
            ),
            ("pad", |b, x| pad(b, x, &[0, 1, 0, 0, 0, 0, 0, 2]), true),
            ("shift of the batch", |b, x| pad(b, x, &[1, 0, 0, 0, -1, 0, 0, 0]), false),
            ("slice", |b, x| slice(b, x, 2), true),
            ("the batch backwards", |b, x| slice(b, x, 0), false),
            ("flatten", |b, x| b.apply("y", Arc::new(Flatten { axis: 1 }), &[x]), true),
            ("one row of all", |b, x| b.apply("y", Arc::new(Flatten { axis: 0 }), &[x]), false),
            ("a constant for all", |b, x| plus(b, x, &[3, 1, 1]), true),
            ("a constant for each", |b, x| plus(b, x, &[1, 3, 1, 1]), true),
            ("a constant of a batch", |b, x| plus(b, x, &[2, 3, 1, 1]), false),
            ("the size of the batch", size_of_batch, false),
        ];
        for (name, make, want) in cases {
            let mut b = Builder::default();
            let shape = [Dim::Named("N".into()), 3.into(), 4.into(), 4.into()];
            let x = b.input("x", Fact::new(DType::F32, shape));
            let y = make(&mut b, x).unwrap();
            let graph = b.finish([("y".to_string(), y)]).unwrap();
            assert_eq!(are_apart(&graph), *want, "{name}\n{graph}");
        }
    }

    fn transpose(b: &mut Builder, x: Var, perm: &[usize]) -> Result<Var> {
        b.apply("y", Arc::new(Transpose { perm: Some(perm.to_vec()) }), &[x])
    }

    fn pad(b: &mut Builder, x: Var, pads: &[i64]) -> Result<Var> {
        let op = Pad { pads: pads.to_vec(), axes: None, fill: Fill::Edge };
        b.apply("y", Arc::new(op), &[x])
    }

    /// All of an axis, the last first.
    fn slice(b: &mut Builder, x: Var, axis: i64) -> Result<Var> {
        let operands = [-1, i64::MIN, axis, -1].map(|n| b.constant("n", Tensor::vector(vec![n])));
        b.apply("y", Arc::new(Slice), &[x, operands[0], operands[1], operands[2], operands[3]])
    }

    fn plus(b: &mut Builder, x: Var, shape: &[usize]) -> Result<Var> {
        let c = b.constant("c", Tensor::full(shape, 1f32)?);
        b.apply("y", Arc::new(Arithmetic::Add), &[x, c])
    }

    fn size_of_batch(b: &mut Builder, x: Var) -> Result<Var> {
        let shape = b.apply("shape", Arc::new(Shape { start: 0, end: Some(1) }), &[x])?;
        let size = b.apply("size", Arc::new(Cast { to: DType::F32 }), &[shape])?;
        b.apply("y", Arc::new(Arithmetic::Div), &[x, size])
    }

    #[test]
    fn parts_divide_the_batch() {
        for (batch, threads, bytes, weights, want) in [
            (32, 1, 1 << 20, 0, 4),
            (32, 1, 1 << 20, 9 << 20, 8),
            (32, 2, 1 << 10, 0, 16),
            (30, 1, 1 << 20, 7 << 20, 6),
            (31, 1, 1 << 20, 0, 1),
            (3, 2, 1, 0, 1),
            (1, 2, 1, 0, 1),
            (8, 1, 5 << 20, 0, 1),
            (8, 1, 0, 0, 8),
            (0, 2, 1, 0, 1),
        ] {
            assert_eq!(size(batch, threads, bytes, weights), want, "{batch} samples of {bytes} bytes");
        }
    }
}
