//! What stays in f32: convolutions and pools of images, channels-last.
//!
//! As the integer operators, these put transposes around themselves, which cancel
//! between neighbours: operators of one element at a time, sums of images and
//! concatenations between them are moved to the other side of a transpose.

use std::sync::Arc;

use super::layout::{self, channels_first, channels_last, is_first_of_last};
use super::{average, sliding};
use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Node, Var};
use crate::op::{Op, Quant};
use crate::ops::binary::Arithmetic;
use crate::ops::clip::Clip;
use crate::ops::conv::Conv;
use crate::ops::layout::Concat;
use crate::ops::pool::MaxPool;
use crate::ops::unary::Unary;
use crate::session::float::conv::ImageConv;
use crate::session::integer::boundary::{Dequantize, Quantize};
use crate::session::pool::{ImageAveragePool, ImageMaxPool};
use crate::tensor::DType;

/// The graph with channels-last operators for what it does to f32 images, and
/// every clamp folded into the convolution before it, where nothing else reads
/// that.
pub fn channels_last_images(graph: &Graph) -> Result<Graph> {
    let uses = graph.uses();
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        let only_use = old.first().is_some_and(|v| uses.of(*v) == 1);
        match of_images(b, node, op, inputs, only_use).map_err(|e| e.at(&node.name))? {
            Some(y) => Ok(vec![y]),
            None => b.copy(node, inputs),
        }
    })
}

fn of_images(
    b: &mut Builder,
    node: &Node,
    op: &Arc<dyn Op>,
    inputs: &[Var],
    only_use: bool,
) -> Result<Option<Var>> {
    let images = |b: &Builder, v: Var| b.fact(v).rank() == 4 && b.fact(v).dtype == DType::F32;
    let Some(&x) = inputs.first() else { return Ok(None) };
    if let Some(conv) = op.is::<Conv>() {
        return if images(b, x) { convolution(b, node, conv, inputs) } else { Ok(None) };
    }
    if let (Quant::Clamp { lo, hi }, true) = (op.quant(), only_use)
        && let Some(y) = clamped(b, node, x, [lo, hi])?
    {
        return Ok(Some(y));
    }
    if let Some(pool) = op.is::<MaxPool>().filter(|_| images(b, x)) {
        let Some(windows) = sliding(&pool.pool) else { return Ok(None) };
        return last(b, node, Arc::new(ImageMaxPool { windows }), &[x]).map(Some);
    }
    if let Some((windows, count_include_pad)) = average(&**op).filter(|_| images(b, x)) {
        return last(b, node, Arc::new(ImageAveragePool { windows, count_include_pad }), &[x]).map(Some);
    }
    if op.is::<Concat>().is_some() && inputs.iter().all(|v| images(b, *v)) {
        return layout::concat(b, &node.name, op, inputs).map(Some);
    }
    let by_element = op.is::<Unary>().is_some()
        || op.is::<Clip>().is_some_and(|clip| !clip.dynamic)
        || op.is::<Quantize>().is_some()
        || op.is::<Dequantize>().is_some();
    let alike = || inputs.iter().all(|v| images(b, *v) && b.fact(*v).shape == b.fact(x).shape);
    let movable = by_element || (op.is::<Arithmetic>().is_some() && alike());
    if movable && inputs.iter().any(|v| is_first_of_last(b, *v)) {
        return last(b, node, op.clone(), inputs).map(Some);
    }
    Ok(None)
}

/// `op` applied to NHWC images, as NCHW.
fn last(b: &mut Builder, node: &Node, op: Arc<dyn Op>, inputs: &[Var]) -> Result<Var> {
    let inputs = inputs.iter().map(|v| channels_last(b, *v)).collect::<Result<Vec<_>>>()?;
    let y = b.apply(&node.name, op, &inputs)?;
    channels_first(b, y)
}

/// A convolution with constant weights.
fn convolution(b: &mut Builder, node: &Node, conv: &Conv, inputs: &[Var]) -> Result<Option<Var>> {
    let constants: Option<Vec<_>> = inputs[1..].iter().map(|v| b.so_far().constant(*v)).collect();
    let Some(constants) = constants.filter(|c| c.iter().all(|t| t.dtype() == DType::F32)) else {
        return Ok(None);
    };
    let bias = constants.get(1).copied().filter(|t| !t.is_empty());
    let op = ImageConv::new(conv, constants[0], bias)?;
    let (op, x) = match op.of_planes().filter(|_| !is_first_of_last(b, inputs[0])) {
        Some(op) => (op, inputs[0]),
        None => (op, channels_last(b, inputs[0])?),
    };
    let y = b.apply(&node.name, Arc::new(op), &[x])?;
    channels_first(b, y).map(Some)
}

/// The convolution that makes `x`, if one does, with its results in these bounds.
fn clamped(b: &mut Builder, node: &Node, x: Var, [lo, hi]: [f32; 2]) -> Result<Option<Var>> {
    if !is_first_of_last(b, x) {
        return Ok(None);
    }
    let y = channels_last(b, x)?;
    let Some((conv, operands)) = b.so_far().made_by::<ImageConv>(y) else { return Ok(None) };
    let (op, operands) = (conv.clamped(lo, hi), operands.to_vec());
    let name = b.so_far().node(y).name.clone();
    let y = b.apply_all(&name, Arc::new(op), &operands, &[&format!("{}_nhwc", node.outputs[0].name)])?;
    channels_first(b, y[0]).map(Some)
}
