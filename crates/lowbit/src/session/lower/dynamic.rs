//! Products of values quantized in each run, recognized.

use std::sync::Arc;

use super::layout::{channels_first, channels_last, is_first_of_last};
use super::lines::{filters, image, line, of_images};
use super::rows_of_channels;
use super::weights::weight;
use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Node, Var};
use crate::op::Op;
use crate::ops::binary::Arithmetic;
use crate::ops::cast::Cast;
use crate::ops::integer::{ConvInteger, MatMulInteger};
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::quantize::{DynamicFakeQuantize, DynamicQuantizeLinear};
use crate::ops::shape::Squeeze;
use crate::session::integer::conv::DynamicConv;
use crate::session::integer::dynamic::DynamicLinear;
use crate::tensor::{DType, Tensor};

/// The graph with each product of a value quantized in the run and constant
/// weights as one operator: `cast(MatMulInteger(q, w, z)) * (s * s_w)` with
/// `q, s, z = DynamicQuantizeLinear(x)`, the same of ConvInteger, or
/// `MatMul(DynamicFakeQuantize(x), DequantizeLinear(w))`, and a bias added to it.
pub fn fold_products(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        let folded = match op.is::<Arithmetic>() {
            Some(Arithmetic::Mul) => {
                scaled(b, node, inputs[0], inputs[1])?.or(scaled(b, node, inputs[1], inputs[0])?)
            }
            Some(Arithmetic::Add) => {
                biased(b, node, inputs[0], inputs[1])?.or(biased(b, node, inputs[1], inputs[0])?)
            }
            _ => of_rows(b, node, &**op, inputs)?,
        };
        match folded {
            Some(y) => Ok(vec![y]),
            None => b.copy(node, inputs),
        }
    })
}

/// `op` of the rows `x`, in the place of `node`.
fn linear(b: &mut Builder, node: &Node, op: DynamicLinear, x: Var) -> Result<Option<Var>> {
    let made = b.apply_all(&node.name, Arc::new(op), &[x], &[&node.outputs[0].name])?;
    Ok(made.first().copied())
}

/// `op` of the NHWC images `x`, in the place of `node`.
fn convolution(b: &mut Builder, node: &Node, op: DynamicConv, x: Var) -> Result<Option<Var>> {
    let y = b.apply(&node.name, Arc::new(op), &[x])?;
    let y = channels_first(b, y)?;
    if node.outputs[0].fact.rank() == 3 { line(b, y).map(Some) } else { Ok(Some(y)) }
}

/// `product` times `scale`, if these are the two halves of such a product.
fn scaled(b: &mut Builder, node: &Node, product: Var, scale: Var) -> Result<Option<Var>> {
    let g = b.so_far();
    let Some((Cast { to: DType::F32 }, &[integers])) = g.made_by::<Cast>(product) else { return Ok(None) };
    let Kind::Apply { op, inputs } = &g.node(integers).kind else { return Ok(None) };
    let (op, [q, w, z, rest @ ..]) = (op.clone(), inputs.as_slice()) else { return Ok(None) };
    let Some((DynamicQuantizeLinear, &[x])) = g.made_by::<DynamicQuantizeLinear>(*q) else { return Ok(None) };
    let Some((Arithmetic::Mul, &[s, w_scale])) = g.made_by::<Arithmetic>(scale) else { return Ok(None) };
    let (s, w_scale) = if s == q.output(1) { (s, w_scale) } else { (w_scale, s) };
    let whole = (*q, *z, s) == (q.output(0), q.output(2), q.output(1));
    let (Some(codes), Some(w_scale)) = (g.constant(*w), g.constant(w_scale)) else { return Ok(None) };
    let zero = rest.first().map(|v| g.constant(*v));
    let Some(codes) = centred(codes, zero)?.filter(|_| whole && w_scale.dtype() == DType::F32) else {
        return Ok(None);
    };
    let w_scale = w_scale.clone();
    if op.is::<MatMulInteger>().is_some() && codes.rank() == 2 {
        let columns = codes.shape()[1];
        let Some(scale) = per_channel(&w_scale, w_scale.rank().saturating_sub(1), columns)? else {
            return Ok(None);
        };
        let op = DynamicLinear::new(&rows_of_channels(&codes, 1)?, columns, scale, false);
        return linear(b, node, op, x);
    }
    let Some(ConvInteger(conv)) = op.is::<ConvInteger>() else { return Ok(None) };
    let Some(scale) = per_channel(&w_scale, 1, codes.shape()[0])? else { return Ok(None) };
    let (conv, codes, x) = match codes.rank() {
        3 => (of_images(conv), filters(&codes)?, image(b, x)?),
        4 => (conv.clone(), codes, x),
        _ => return Ok(None),
    };
    let Some(op) = DynamicConv::new(&conv, &codes, scale)? else { return Ok(None) };
    let x = channels_last(b, x)?;
    convolution(b, node, op, x)
}

/// `product`, made by one of these operators already, with the constant `bias`.
fn biased(b: &mut Builder, node: &Node, product: Var, bias: Var) -> Result<Option<Var>> {
    let Some(bias) = b.so_far().constant(bias).filter(|t| t.dtype() == DType::F32).cloned() else {
        return Ok(None);
    };
    if bias.rank() > b.fact(product).rank() {
        return Ok(None);
    }
    if let Some((op, x)) = b.so_far().made_by::<DynamicLinear>(product) {
        let along = bias.shape().last().is_some_and(|&n| n == bias.len());
        let (op, x) = (op.biased(bias.slice()?).filter(|_| along), x[0]);
        return op.map_or(Ok(None), |op| linear(b, node, op, x));
    }
    let spatial = b.fact(product).rank().saturating_sub(2);
    let product = b.so_far().made_by::<Squeeze>(product).map_or(product, |(_, x)| x[0]);
    if is_first_of_last(b, product) {
        let last = channels_last(b, product)?;
        let Some((op, x)) = b.so_far().made_by::<DynamicConv>(last) else { return Ok(None) };
        let axis = bias.rank().checked_sub(spatial + 1);
        let along = axis.is_some_and(|axis| bias.shape()[axis] == bias.len());
        let (op, x) = (op.biased(bias.slice()?).filter(|_| along), x[0]);
        return op.map_or(Ok(None), |op| convolution(b, node, op, x));
    }
    Ok(None)
}

/// A product of rows quantized each by its range, and dequantized weights.
fn of_rows(b: &mut Builder, node: &Node, op: &dyn Op, inputs: &[Var]) -> Result<Option<Var>> {
    let axis = match (op.is::<MatMul>(), op.is::<Gemm>()) {
        (Some(_), _) => 1,
        (_, Some(g)) if !g.trans_a && g.alpha == 1.0 && g.beta == 1.0 => usize::from(!g.trans_b),
        _ => return Ok(None),
    };
    let Some((_, &[x])) = b.so_far().made_by::<DynamicFakeQuantize>(inputs[0]) else { return Ok(None) };
    if b.fact(inputs[1]).rank() != 2 {
        return Ok(None);
    }
    let Ok((w, scale)) = weight(b, inputs[1], axis)? else { return Ok(None) };
    let columns = w.shape()[axis];
    let scale = if scale.len() == 1 { vec![scale[0]; columns] } else { scale };
    let op = DynamicLinear::new(&rows_of_channels(&w, axis)?, columns, scale, true);
    match inputs.get(2).filter(|v| !b.fact(**v).is_absent()) {
        None => linear(b, node, op, x),
        Some(bias) => {
            let bias = b.so_far().constant(*bias).filter(|t| t.dtype() == DType::F32);
            let op = bias.map(|t| t.slice()).transpose()?.and_then(|bias| op.biased(bias));
            op.map_or(Ok(None), |op| linear(b, node, op, x))
        }
    }
}

/// `t` as one value for each of so many channels: a scalar, or values along `axis` alone.
fn per_channel(t: &Tensor, axis: usize, channels: usize) -> Result<Option<Vec<f32>>> {
    let values: &[f32] = t.slice()?;
    Ok(match values {
        [one] => Some(vec![*one; channels]),
        _ if t.shape().get(axis) == Some(&channels) && t.len() == channels => Some(values.to_vec()),
        _ => None,
    })
}

/// 8-bit codes less their zero point, which is the constant of one element that
/// `zero` is, or 0 where there is none, if that fits int8.
fn centred(codes: &Tensor, zero: Option<Option<&Tensor>>) -> Result<Option<Tensor>> {
    let zero = match zero {
        None => 0,
        Some(Some(t)) if t.shape() == [0] => 0,
        Some(Some(t)) => match t.integers()?[..] {
            [zero] => zero,
            ref all if all.iter().all(|z| *z == 0) => 0,
            _ => return Ok(None),
        },
        Some(None) => return Ok(None),
    };
    if zero == 0 && codes.dtype() == DType::I8 {
        return Ok(Some(codes.clone()));
    }
    let centred: Option<Vec<i8>> = codes.integers()?.iter().map(|q| i8::try_from(q - zero).ok()).collect();
    centred.map(|less| Tensor::new(codes.shape(), less)).transpose()
}
