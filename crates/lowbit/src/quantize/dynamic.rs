//! Activations quantized by the ranges of each run.

use std::collections::HashMap;
use std::sync::Arc;

use super::placement::operands;
use super::point::unchanging;
use crate::error::{Result, invalid};
use crate::graph::{Builder, Graph, Node, Var};
use crate::op::{Attribute, Op};
use crate::ops::binary::Arithmetic;
use crate::ops::cast::Cast;
use crate::ops::conv::Conv;
use crate::ops::integer::{ConvInteger, MatMulInteger};
use crate::ops::layout::Transpose;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::quantize::{DynamicFakeQuantize, DynamicQuantizeLinear};
use crate::ops::recurrent::Recurrent;
use crate::qconfig::{Per, Spec};
use crate::qparams::QParams;
use crate::scheme::Granularity;
use crate::tensor::{DType, Tensor};

/// The operands of a node that are quantized in each run: those of products
/// with a constant matrix, of convolutions with constant filters, of recurrent
/// layers, and, if [`Spec::products`] says so, of products of two activations. Of
/// convolutions in groups only weights are quantized.
pub fn dynamic_operands(graph: &Graph, op: &dyn Op, inputs: &[Var], spec: &Spec) -> Vec<usize> {
    let operands = operands(graph, op, inputs);
    let product = op.is::<MatMul>().is_some();
    if op.is::<Recurrent>().is_some() {
        return operands.activations;
    }
    match operands.weight {
        Some((w, _)) if graph.fact(inputs[w]).rank() == 2 && (product || op.is::<Gemm>().is_some()) => {
            vec![0]
        }
        Some(_) if op.is::<Conv>().is_some_and(|conv| conv.group == 1) => vec![0],
        None if product && spec.products => operands.activations,
        _ => vec![],
    }
}

/// The operator that stands in a prepared graph where a value will be quantized
/// by the range that it has in each run. It changes nothing.
#[derive(Clone, Debug)]
pub struct DynamicOp {
    /// What shares one scale.
    pub per: Per,
    /// What shares one scale of the weights of the operator that reads it.
    pub weight_per: Per,
}

impl DynamicOp {
    /// That of the values that `op` reads: only matrix products tell rows apart.
    pub fn new(op: &dyn Op, activation: &Spec, weight: &Spec) -> DynamicOp {
        let product = op.is::<MatMul>().is_some() || op.is::<Gemm>().is_some();
        DynamicOp { per: if product { activation.per } else { Per::Tensor }, weight_per: weight.per }
    }
}

unchanging!(DynamicOp, "Dynamic", |op| vec![("rows", Attribute::Int(i64::from(op.per == Per::Row)))]);

/// A weight that an operator on integers multiplies with.
pub struct IntegerWeight {
    /// The name of the float weight.
    pub name: String,
    /// Its codes, int8 or uint8.
    pub codes: Tensor,
    /// What they stand for.
    pub params: QParams,
}

/// The dynamically quantized values of a graph so far.
#[derive(Default)]
pub struct Dynamic {
    /// Codes, scale and zero point of each value.
    codes: HashMap<Var, [Var; 3]>,
    /// Each value with its rows quantized and dequantized.
    rows: HashMap<Var, Var>,
}

impl Dynamic {
    /// `x`, each row quantized and dequantized by its own range.
    pub fn rows(&mut self, b: &mut Builder, x: Var) -> Result<Var> {
        if let Some(v) = self.rows.get(&x) {
            return Ok(*v);
        }
        let name = format!("{}_rows", b.name(x));
        let v = b.apply(&name, Arc::new(DynamicFakeQuantize), &[x])?;
        self.rows.insert(x, v);
        Ok(v)
    }

    fn codes(&mut self, b: &mut Builder, x: Var) -> Result<[Var; 3]> {
        if let Some(codes) = self.codes.get(&x) {
            return Ok(*codes);
        }
        let name = b.name(x).to_string();
        let names = ["q", "s", "z"].map(|part| format!("{name}_dynamic_{part}"));
        let op = Arc::new(DynamicQuantizeLinear);
        let made =
            b.apply_all(&format!("{name}_dynamic"), op, &[x], &names.each_ref().map(String::as_str))?;
        let codes = [made[0], made[1], made[2]];
        self.codes.insert(x, codes);
        Ok(codes)
    }

    /// `node` on integers: its operator on codes, then the scales, then the bias.
    ///
    /// # Errors
    /// If the weight's codes are not of 8 bits with one scale a channel.
    pub fn integer_form(
        &mut self,
        b: &mut Builder,
        node: &Node,
        op: &dyn Op,
        inputs: &[Var],
        weight: Option<IntegerWeight>,
    ) -> Result<Vec<Var>> {
        let part = |part: &str| format!("{}_{part}", node.name);
        let [x, x_scale, x_zero] = self.codes(b, inputs[0])?;
        let (y, y_scale, y_zero) = match weight {
            Some(weight) => stored(b, op, weight)?,
            None => {
                let [y, scale, zero] = self.codes(b, inputs[1])?;
                (y, scale, zero)
            }
        };
        let integer: Arc<dyn Op> = match op.is::<Conv>() {
            Some(conv) => Arc::new(ConvInteger(conv.clone())),
            None => Arc::new(MatMulInteger),
        };
        let product = b.apply(&part("integer"), integer, &[x, y, x_zero, y_zero])?;
        let product = b.apply(&part("float"), Arc::new(Cast { to: DType::F32 }), &[product])?;
        let scale = b.apply(&part("scale"), Arc::new(Arithmetic::Mul), &[x_scale, y_scale])?;
        let (mul, output) = (Arc::new(Arithmetic::Mul), &node.outputs[0].name);
        let Some(bias) = inputs.get(2).copied().filter(|v| !b.fact(*v).is_absent()) else {
            return b.apply_all(&node.name, mul, &[product, scale], &[output]);
        };
        let scaled = b.apply(&part("scaled"), mul, &[product, scale])?;
        let bias = match b.so_far().constant(bias).filter(|t| op.is::<Conv>().is_some() && t.rank() == 1) {
            Some(t) => {
                let (t, name) = (along_channels(t.clone(), b.fact(scaled).rank())?, b.name(bias).to_string());
                b.constant(&format!("{name}_r"), t)
            }
            None => bias,
        };
        b.apply_all(&node.name, Arc::new(Arithmetic::Add), &[scaled, bias], &[output])
    }
}

/// Codes, scales and zero point of the weight of `op`, as its form on integers
/// takes them.
fn stored(b: &mut Builder, op: &dyn Op, weight: IntegerWeight) -> Result<(Var, Var, Var)> {
    let IntegerWeight { name, codes, params } = weight;
    if !matches!(codes.dtype(), DType::I8 | DType::U8)
        || matches!(params.scheme.granularity, Granularity::Block { .. })
    {
        let scheme = params.scheme;
        return Err(invalid!(
            "{scheme}: integer products take weights of 8 bits, per tensor or per channel; choose weight-only \
             quantization, or activations per row"
        )
        .at(name));
    }
    let (scale, zero) = params.operands();
    let rank = codes.rank();
    let symmetric = params.zero_point.iter().all(|z| *z == 0);
    let (codes, scale, zero) = match op.is::<Gemm>() {
        Some(gemm) if gemm.trans_b => (Transpose { perm: None }.eval(&[&codes])?.remove(0), scale, zero),
        // Runtimes take filters as uint8 alone, with one zero point.
        _ if op.is::<Conv>().is_some() => {
            let (codes, zero) = unsigned(&codes, &params)?;
            (codes, along_channels(scale, rank)?, zero)
        }
        _ => (codes, scale, zero),
    };
    let zero = match symmetric && codes.dtype() == DType::I8 {
        true => b.absent(),
        false => b.constant(&format!("{name}_z"), zero),
    };
    let codes = b.constant(&format!("{name}_q"), codes);
    let scale = b.constant(&format!("{name}_s"), scale);
    Ok((codes, scale, zero))
}

/// The same weights in uint8 codes, and their zero point.
///
/// # Errors
/// If channels have zero points that differ.
fn unsigned(codes: &Tensor, params: &QParams) -> Result<(Tensor, Tensor)> {
    let zero = params.zero_point.first().copied().unwrap_or(0);
    if params.zero_point.iter().any(|z| *z != zero) {
        return Err(invalid!("convolutions take filters with one zero point; choose symmetric weights"));
    }
    let offset = if codes.dtype() == DType::I8 { 128 } else { 0 };
    let shifted = codes.integers()?.into_iter().map(|q| (q + offset) as u8).collect();
    Ok((Tensor::new(codes.shape(), shifted)?, Tensor::scalar((i64::from(zero) + offset) as u8)))
}

/// One value a channel in the shape that adds it to, or multiplies, images of
/// this rank; a scalar as it is.
fn along_channels(t: Tensor, rank: usize) -> Result<Tensor> {
    if t.rank() != 1 {
        return Ok(t);
    }
    let mut shape = vec![1; rank];
    shape[1] = t.len();
    t.reshaped(&shape)
}
