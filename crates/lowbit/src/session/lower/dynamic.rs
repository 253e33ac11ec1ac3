//! Products of values quantized in each run, recognized.

use std::sync::Arc;

use super::rows_of_channels;
use super::weights::weight;
use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Node, Var};
use crate::op::Op;
use crate::ops::binary::Arithmetic;
use crate::ops::cast::Cast;
use crate::ops::integer::MatMulInteger;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::quantize::{DynamicFakeQuantize, DynamicQuantizeLinear};
use crate::session::integer::dynamic::DynamicLinear;
use crate::tensor::{DType, Tensor};

/// The graph with each product of a value quantized in the run and a constant
/// matrix as one operator: `cast(MatMulInteger(q, w, z)) * (s * s_w)` with
/// `q, s, z = DynamicQuantizeLinear(x)`, or `MatMul(DynamicFakeQuantize(x),
/// DequantizeLinear(w))`, and a bias added to it.
pub fn fold_products(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        let folded = if op.is::<Arithmetic>() == Some(&Arithmetic::Mul) {
            scaled(b, inputs[0], inputs[1])?.or(scaled(b, inputs[1], inputs[0])?)
        } else if op.is::<Arithmetic>() == Some(&Arithmetic::Add) {
            biased(b, inputs[0], inputs[1])?.or(biased(b, inputs[1], inputs[0])?)
        } else {
            of_rows(b, &**op, inputs)?
        };
        match folded {
            Some((x, op)) => named(b, node, op, x),
            None => b.copy(node, inputs),
        }
    })
}

fn named(b: &mut Builder, node: &Node, op: DynamicLinear, x: Var) -> Result<Vec<Var>> {
    b.apply_all(&node.name, Arc::new(op), &[x], &[&node.outputs[0].name])
}

/// `product` times `scale`, if these are the two halves of such a product.
fn scaled(b: &Builder, product: Var, scale: Var) -> Result<Option<(Var, DynamicLinear)>> {
    let g = b.so_far();
    let Some((Cast { to: DType::F32 }, [integers])) = g.made_by::<Cast>(product) else { return Ok(None) };
    let Some((MatMulInteger, [q, w, z, rest @ ..])) = g.made_by::<MatMulInteger>(*integers) else {
        return Ok(None);
    };
    let Some((DynamicQuantizeLinear, [x])) = g.made_by::<DynamicQuantizeLinear>(*q) else { return Ok(None) };
    let (Some((Arithmetic::Mul, [s, w_scale])), Some(codes)) =
        (g.made_by::<Arithmetic>(scale), g.constant(*w))
    else {
        return Ok(None);
    };
    let (s, w_scale) = if *s == q.output(1) { (*s, *w_scale) } else { (*w_scale, *s) };
    let whole = (*q, *z, s) == (q.output(0), q.output(2), q.output(1));
    let no_zero = rest.iter().all(|v| g.constant(*v).is_some_and(is_zero));
    let (Some(w_scale), DType::I8, 2) = (g.constant(w_scale), codes.dtype(), codes.rank()) else {
        return Ok(None);
    };
    let columns = codes.shape()[1];
    let one_axis = w_scale.shape().last().is_none_or(|&n| n == w_scale.len());
    if !(whole && no_zero && one_axis && [1, columns].contains(&w_scale.len())) {
        return Ok(None);
    }
    let scale = per_column(w_scale.slice()?, columns);
    Ok(Some((*x, DynamicLinear::new(&rows_of_channels(codes, 1)?, columns, scale, false))))
}

/// `product`, a [`DynamicLinear`] already, with the constant `bias`.
fn biased(b: &Builder, product: Var, bias: Var) -> Result<Option<(Var, DynamicLinear)>> {
    let (Some((op, x)), Some(bias)) =
        (b.so_far().made_by::<DynamicLinear>(product), b.so_far().constant(bias))
    else {
        return Ok(None);
    };
    if bias.dtype() != DType::F32 || bias.shape().last().is_none_or(|&n| n != bias.len()) {
        return Ok(None);
    }
    let grows = bias.rank() > b.fact(product).rank();
    Ok(op.biased(bias.slice()?).filter(|_| !grows).map(|op| (x[0], op)))
}

/// A product of rows quantized each by its range, and dequantized weights.
fn of_rows(b: &mut Builder, op: &dyn Op, inputs: &[Var]) -> Result<Option<(Var, DynamicLinear)>> {
    let axis = match (op.is::<MatMul>(), op.is::<Gemm>()) {
        (Some(_), _) => 1,
        (_, Some(g)) if !g.trans_a && g.alpha == 1.0 && g.beta == 1.0 => usize::from(!g.trans_b),
        _ => return Ok(None),
    };
    let Some((_, [x])) = b.so_far().made_by::<DynamicFakeQuantize>(inputs[0]) else { return Ok(None) };
    let x = *x;
    if b.fact(inputs[1]).rank() != 2 {
        return Ok(None);
    }
    let Ok((w, scale)) = weight(b, inputs[1], axis)? else { return Ok(None) };
    let columns = w.shape()[axis];
    let op = DynamicLinear::new(&rows_of_channels(&w, axis)?, columns, per_column(&scale, columns), true);
    match inputs.get(2).filter(|v| !b.fact(**v).is_absent()) {
        None => Ok(Some((x, op))),
        Some(bias) => {
            let bias = b.so_far().constant(*bias).filter(|t| t.dtype() == DType::F32);
            Ok(bias.map(|t| t.slice()).transpose()?.and_then(|bias| op.biased(bias)).map(|op| (x, op)))
        }
    }
}

fn per_column(scale: &[f32], columns: usize) -> Vec<f32> {
    if scale.len() == 1 { vec![scale[0]; columns] } else { scale.to_vec() }
}

fn is_zero(t: &Tensor) -> bool {
    t.integers().is_ok_and(|x| x.iter().all(|x| *x == 0)) || t.shape() == [0]
}
