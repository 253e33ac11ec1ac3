//! Folds what follows a linear operator into its weight and bias, and drops
//! operators that do nothing.

use std::sync::Arc;

use rayon::prelude::*;

use crate::error::{Result, invalid};
use crate::graph::{Builder, Graph, Kind, Node, Var};
use crate::op::{Dim, Quant};
use crate::ops::binary::Arithmetic;
use crate::ops::conv::Conv;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::norm::BatchNormalization;
use crate::ops::shape::{Dropout, Identity};
use crate::ops::window::Window;
use crate::tensor::buffers::buffer;
use crate::tensor::{DType, Tensor};

/// `y = scale[c] x + shift[c]` for each channel c of axis 1.
struct Affine {
    x: usize,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// Folds BatchNormalization and multiplication or addition of constants into
/// the convolution, transposed convolution or matrix product before it:
///
/// `W'[c] = scale[c] W[c]`, `b'[c] = scale[c] b[c] + shift[c]`.
///
/// A BatchNormalization with no such operator before it becomes a depthwise
/// 1x1 convolution; Identity and Dropout disappear. Node names are those of
/// the linear operators, value names those of the last value folded. Bodies of
/// operators are folded too.
///
/// # Errors
/// If a BatchNormalization has malformed parameters.
pub fn fuse(graph: &Graph) -> Result<Graph> {
    fuse_outside(&graph.map_bodies(fuse_outside)?)
}

/// [`fuse`] of a graph alone, its bodies left as they are.
pub(crate) fn fuse_outside(graph: &Graph) -> Result<Graph> {
    let uses = graph.uses();
    graph.rebuild(|b, v, node, inputs| {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        let idle = op.is::<Identity>().is_some() || op.is::<Dropout>().is_some_and(|d| d.training.is_none());
        if idle && node.outputs.len() == 1 {
            return Ok(vec![inputs[0]]);
        }
        let Some(affine) = affine(b, node, inputs)? else { return b.copy(node, inputs) };
        if uses.of(old[affine.x]) == 1
            && let Some(fused) = absorb(b, node, inputs[affine.x], &affine)?
        {
            return Ok(fused);
        }
        match op.is::<BatchNormalization>() {
            Some(_) if graph.fact(v).rank() == 4 => depthwise(b, node, inputs, &affine),
            _ => b.copy(node, inputs),
        }
    })
}

/// The affine map that a node is, if it is one.
fn affine(b: &Builder, node: &Node, inputs: &[Var]) -> Result<Option<Affine>> {
    let Kind::Apply { op, .. } = &node.kind else { return Ok(None) };
    let graph = b.so_far();
    if let Some(bn) = op.is::<BatchNormalization>().filter(|bn| bn.training.is_none()) {
        let Some(p) = inputs[1..].iter().map(|v| graph.constant(*v)).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let p = p.into_iter().map(Tensor::to_f32).collect::<Result<Vec<_>>>()?;
        let [gamma, beta, mean, var] = &p[..] else { return Err(invalid!("takes 5 inputs").at(&node.name)) };
        let (scale, shift) = bn.affine(gamma, beta, mean, var).map_err(|e| e.at(&node.name))?;
        return Ok(Some(Affine { x: 0, scale, shift }));
    }
    let Some(arithmetic) = op.is::<Arithmetic>() else { return Ok(None) };
    let constant = |i: usize| graph.constant(inputs[i]).filter(|t| t.dtype() == DType::F32);
    let (x, t) = match (constant(0), constant(1)) {
        (None, Some(t)) => (0, t),
        (Some(t), None) => (1, t),
        _ => return Ok(None),
    };
    let Some(values) = per_channel(&graph.fact(inputs[x]).shape, t) else { return Ok(None) };
    let n = values.len();
    Ok(match arithmetic {
        Arithmetic::Add => Some(Affine { x, scale: vec![1.0; n], shift: values }),
        Arithmetic::Mul => Some(Affine { x, shift: vec![0.0; n], scale: values }),
        _ => None,
    })
}

/// The values that `t`, broadcast to `shape`, has for each channel of axis 1,
/// if it varies along no other axis and does not widen the shape.
fn per_channel(shape: &[Dim], t: &Tensor) -> Option<Vec<f32>> {
    let channels = shape.get(1)?.known()?;
    let lead = shape.len().checked_sub(t.rank())?;
    let along = |axis: usize| axis.checked_sub(lead).map_or(1, |i| t.shape()[i]);
    let elsewhere = (0..shape.len()).all(|axis| axis == 1 || along(axis) == 1);
    let values = t.slice::<f32>().ok()?;
    match along(1) {
        1 if elsewhere => Some(vec![values[0]; channels]),
        n if elsewhere && n == channels => Some(values.to_vec()),
        _ => None,
    }
}

/// The linear operator that makes `v` with `affine` folded in, in the place of `node`.
fn absorb(b: &mut Builder, node: &Node, v: Var, affine: &Affine) -> Result<Option<Vec<Var>>> {
    let linear = b.so_far().node(v).clone();
    let Kind::Apply { mut op, inputs } = linear.kind else { return Ok(None) };
    if op.is::<MatMul>().is_some() && b.fact(inputs[0]).rank() == 2 && b.fact(inputs[1]).rank() == 2 {
        op = Arc::new(Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false });
    }
    let Quant::Compute { weight: Some((w, axis)), bias: Some(bias) } = op.quant() else { return Ok(None) };
    let graph = b.so_far();
    let Some(weight) = graph.constant(inputs[w]).filter(|t| t.dtype() == DType::F32) else { return Ok(None) };
    let given = inputs.get(bias).filter(|v| !graph.fact(**v).is_absent());
    let channels = affine.scale.len();
    if weight.shape().get(axis) != Some(&channels) {
        return Ok(None);
    }
    let old_bias = match given {
        None => vec![0.0; channels],
        Some(v) => match graph.constant(*v).map(|t| t.slice::<f32>()) {
            Some(Ok(b)) if b.len() == channels => b.to_vec(),
            _ => return Ok(None),
        },
    };
    let (new_weight, new_bias) = folded(weight, axis, &old_bias, (&affine.scale, &affine.shift))?;
    let (weight_name, bias_name) = (b.name(inputs[w]).to_string(), given.map(|v| b.name(*v).to_string()));
    let bias_name = bias_name.unwrap_or_else(|| format!("{}.bias", linear.name));
    let operands =
        [inputs[0], b.constant(&weight_name, new_weight), b.constant(&bias_name, Tensor::vector(new_bias))];
    let output = [node.outputs[0].name.as_str()];
    b.apply_all(&linear.name, op, &operands, &output).map(Some)
}

/// Weight, with channels along `axis`, and bias of a linear operator whose results
/// are multiplied by `scale[c]`, and `shift[c]` added to them.
pub(crate) fn folded(
    weight: &Tensor,
    axis: usize,
    bias: &[f32],
    (scale, shift): (&[f32], &[f32]),
) -> Result<(Tensor, Vec<f32>)> {
    let bias = bias
        .iter()
        .zip(scale.iter().zip(shift))
        .map(|(b, (scale, shift))| (f64::from(*b) * f64::from(*scale) + f64::from(*shift)) as f32);
    Ok((scaled(weight, axis, scale)?, bias.collect()))
}

/// Elements that are worth a task.
const TASK: usize = 1 << 15;

/// `t` with index c of `axis` multiplied by `scale[c]`.
pub(crate) fn scaled(t: &Tensor, axis: usize, scale: &[f32]) -> Result<Tensor> {
    let inner = t.shape()[axis + 1..].iter().product::<usize>().max(1);
    let (x, mut y) = (t.slice::<f32>()?, buffer(t.len()));
    let runs = y.par_chunks_mut(inner).zip(x.par_chunks(inner)).enumerate();
    runs.with_min_len((TASK / inner).max(1)).for_each(|(i, (y, x))| {
        let scale = scale[i % scale.len()];
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x * scale);
    });
    Tensor::new(t.shape(), y)
}

/// A channelwise affine map as a depthwise 1x1 convolution.
fn depthwise(b: &mut Builder, node: &Node, inputs: &[Var], affine: &Affine) -> Result<Vec<Var>> {
    let channels = affine.scale.len();
    let weight = Tensor::new(&[channels, 1, 1, 1], affine.scale.clone())?;
    let weight = b.constant(&format!("{}.weight", node.name), weight);
    let bias = b.constant(&format!("{}.bias", node.name), Tensor::vector(affine.shift.clone()));
    b.replace(
        node,
        Arc::new(Conv { window: Window::default(), group: channels, kernel: None }),
        &[inputs[0], weight, bias],
    )
}
