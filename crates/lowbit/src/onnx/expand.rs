//! Operators that abbreviate several: QLinear operators are the Q/DQ patterns
//! `QLinearF(x, s_x, z_x, ..., s_y, z_y) = Q(F(DQ(x, s_x, z_x), ...), s_y, z_y)`,
//! and Softmax before opset 13 is one over flattened axes.

use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::graph::{Builder, Var};
use crate::op::{Attribute, Dim, Op, Reading};
use crate::ops::binary::Arithmetic;
use crate::ops::quantize::{DequantizeLinear, QuantizeLinear};
use crate::ops::shape::{Flatten, Reshape, Shape};
use crate::ops::softmax::Softmax;
use crate::ops::{self, cast::Cast};
use crate::tensor::DType;

/// Builds what an operator abbreviates and returns its outputs.
pub type Expansion = fn(&mut Abbreviated) -> Result<Vec<Var>>;

/// The expansion of an operator of this opset, if it is an abbreviation.
pub fn expansion(domain: &str, op: &str, opset: i64) -> Option<Expansion> {
    Some(match (domain, op) {
        ("", "Softmax" | "LogSoftmax") if opset < 13 => flattened_softmax,
        ("", "QLinearConv") => convolution,
        ("", "QLinearMatMul") => matrix_product,
        ("com.microsoft", "QGemm") => gemm,
        ("com.microsoft", "QLinearAdd" | "QLinearMul") => binary,
        ("com.microsoft", "QLinearConcat") => concat,
        (
            "com.microsoft",
            "QLinearGlobalAveragePool"
            | "QLinearAveragePool"
            | "QLinearSigmoid"
            | "QLinearLeakyRelu"
            | "QLinearSoftmax",
        ) => unary,
        ("com.microsoft", "QuantizeLinear" | "DequantizeLinear") => same,
        _ => return None,
    })
}

/// A node that is being expanded. Everything that it becomes is named after it.
pub struct Abbreviated<'a> {
    /// The graph so far.
    pub b: &'a mut Builder,
    /// Type and attributes.
    pub reading: &'a mut Reading,
    /// The node's name.
    pub name: &'a str,
    /// Its operands.
    pub inputs: &'a [Var],
    /// The names of its outputs.
    pub outputs: &'a [&'a str],
}

impl Abbreviated<'_> {
    fn need(&self, least: usize) -> Result<()> {
        need(self.inputs, least)
    }

    /// Operand `i`, unless the node leaves it out.
    fn given(&self, i: usize) -> Option<Var> {
        self.inputs.get(i).copied().filter(|v| !self.b.fact(*v).is_absent())
    }

    /// The operator that is abbreviated, with the node's attributes.
    fn read(&mut self, op: &str) -> Result<Arc<dyn Op>> {
        read(op, self.reading)
    }

    /// The result of `op`, not yet quantized.
    fn result(&mut self, op: Arc<dyn Op>, operands: &[Var]) -> Result<Var> {
        let name = format!("{}.{}", self.name, op.name().to_lowercase());
        self.b.apply(&name, op, operands)
    }

    fn apply(&mut self, part: &str, op: impl Op, inputs: &[Var]) -> Result<Var> {
        self.b.apply(&format!("{}.{part}", self.name), Arc::new(op), inputs)
    }

    /// Scales of 16 bits are widened: the arithmetic is in f32.
    fn scale(&mut self, part: &str, scale: Var) -> Result<Var> {
        match self.b.fact(scale).dtype {
            DType::F32 => Ok(scale),
            _ => self.apply(&format!("{part}.scale"), Cast { to: DType::F32 }, &[scale]),
        }
    }

    fn dequantized(&mut self, part: &str, axis: usize, operand: &[Var]) -> Result<Var> {
        let scale = self.scale(part, operand[1])?;
        let mut inputs = vec![operand[0], scale];
        inputs.extend(operand.get(2));
        self.apply(part, DequantizeLinear::along(axis as i64), &inputs)
    }

    fn quantized(&mut self, y: Var, scale: Var, zero: Var) -> Result<Vec<Var>> {
        let scale = self.scale("y", scale)?;
        let inputs = if self.b.fact(zero).is_absent() { vec![y, scale] } else { vec![y, scale, zero] };
        self.b.apply_all(self.name, Arc::new(QuantizeLinear::default()), &inputs, self.outputs)
    }
}

fn need(inputs: &[Var], least: usize) -> Result<()> {
    if inputs.len() >= least {
        return Ok(());
    }
    Err(invalid!("takes at least {least} inputs, found {}", inputs.len()))
}

fn read(op: &str, reading: &mut Reading) -> Result<Arc<dyn Op>> {
    let reader = ops::reader("", op).ok_or_else(|| invalid!("{op} is not known"))?;
    reader(reading)
}

/// x, s_x, z_x, w, s_w, z_w, s_y, z_y, bias in i32 at scale s_x s_w.
fn convolution(e: &mut Abbreviated) -> Result<Vec<Var>> {
    let inputs = e.inputs;
    e.need(8)?;
    let op = e.read("Conv")?;
    let mut operands = vec![e.dequantized("x", 1, &inputs[..3])?, e.dequantized("w", 0, &inputs[3..6])?];
    if let Some(bias) = e.given(8) {
        operands.push(bias_at(e, bias, inputs[1], inputs[4])?);
    }
    let y = e.result(op, &operands)?;
    e.quantized(y, inputs[6], inputs[7])
}

fn bias_at(e: &mut Abbreviated, bias: Var, x_scale: Var, w_scale: Var) -> Result<Var> {
    let (x_scale, w_scale) = (e.scale("x", x_scale)?, e.scale("w", w_scale)?);
    let scale = e.apply("bias.scale", Arithmetic::Mul, &[x_scale, w_scale])?;
    e.dequantized("bias", 0, &[bias, scale])
}

/// a, s_a, z_a, b, s_b, z_b, s_y, z_y; scales along the rows of a and the columns of b.
fn matrix_product(e: &mut Abbreviated) -> Result<Vec<Var>> {
    let inputs = e.inputs;
    e.need(8)?;
    let op = e.read("MatMul")?;
    let (rows, columns) =
        (e.b.fact(inputs[0]).rank().saturating_sub(2), e.b.fact(inputs[3]).rank().saturating_sub(1));
    let operands = [e.dequantized("a", rows, &inputs[..3])?, e.dequantized("b", columns, &inputs[3..6])?];
    let y = e.result(op, &operands)?;
    e.quantized(y, inputs[6], inputs[7])
}

/// a, s_a, z_a, b, s_b, z_b, c in i32 at scale s_a s_b, and s_y, z_y unless the result is float.
fn gemm(e: &mut Abbreviated) -> Result<Vec<Var>> {
    let inputs = e.inputs;
    e.need(6)?;
    let transposed = e.reading.int("transB")?.unwrap_or(0);
    let mut attributes =
        std::collections::BTreeMap::from([("transB".to_string(), Attribute::Int(transposed))]);
    for attribute in ["alpha", "transA"] {
        if attribute == "alpha" {
            attributes.insert(attribute.into(), Attribute::Float(e.reading.float(attribute, 1.0)?));
        } else if let Some(x) = e.reading.int(attribute)? {
            attributes.insert(attribute.into(), Attribute::Int(x));
        }
    }
    let op = read("Gemm", &mut Reading::new("Gemm", 13, attributes, vec![None; 3], 1))?;
    let channel = usize::from(transposed == 0);
    let mut operands =
        vec![e.dequantized("a", 0, &inputs[..3])?, e.dequantized("b", channel, &inputs[3..6])?];
    if let Some(bias) = e.given(6) {
        operands.push(bias_at(e, bias, inputs[1], inputs[4])?);
    }
    let Some(scale) = e.given(7) else {
        return e.b.apply_all(e.name, op, &operands, e.outputs);
    };
    e.need(9)?;
    let y = e.result(op, &operands)?;
    e.quantized(y, scale, inputs[8])
}

/// a, s_a, z_a, b, s_b, z_b, s_y, z_y.
fn binary(e: &mut Abbreviated) -> Result<Vec<Var>> {
    let inputs = e.inputs;
    e.need(7)?;
    let f = if e.reading.op() == "QLinearAdd" { Arithmetic::Add } else { Arithmetic::Mul };
    let zero = inputs.get(7).copied().unwrap_or_else(|| e.b.absent());
    let operands = [e.dequantized("a", 0, &inputs[..3])?, e.dequantized("b", 0, &inputs[3..6])?];
    let y = e.apply("result", f, &operands)?;
    e.quantized(y, inputs[6], zero)
}

/// s_y, z_y, then x, s_x, z_x of each part.
fn concat(e: &mut Abbreviated) -> Result<Vec<Var>> {
    let inputs = e.inputs;
    e.need(5)?;
    let op = e.read("Concat")?;
    let parts = inputs[2..]
        .chunks(3)
        .enumerate()
        .map(|(i, part)| {
            need(part, 3)?;
            e.dequantized(&format!("x{i}"), 0, part)
        })
        .collect::<Result<Vec<_>>>()?;
    let y = e.result(op, &parts)?;
    e.quantized(y, inputs[0], inputs[1])
}

/// x, s_x, z_x, s_y, z_y.
fn unary(e: &mut Abbreviated) -> Result<Vec<Var>> {
    let inputs = e.inputs;
    e.need(4)?;
    e.reading.only("channels_last", &Attribute::Int(0))?;
    if e.reading.op() == "QLinearSoftmax" {
        e.reading.ignore("opset");
    }
    let plain = e.reading.op().trim_start_matches("QLinear").to_string();
    let op = e.read(&plain)?;
    let zero = inputs.get(4).copied().unwrap_or_else(|| e.b.absent());
    let x = e.dequantized("x", 0, &inputs[..3])?;
    let y = e.result(op, &[x])?;
    e.quantized(y, inputs[3], zero)
}

/// Q and DQ of the contributed domain, which had 16-bit types first.
fn same(e: &mut Abbreviated) -> Result<Vec<Var>> {
    let plain = e.reading.op().to_string();
    let op = e.read(&plain)?;
    e.b.apply_all(e.name, op, e.inputs, e.outputs)
}

/// Softmax over the axis and all that follow it.
fn flattened_softmax(e: &mut Abbreviated) -> Result<Vec<Var>> {
    let inputs = e.inputs;
    e.need(1)?;
    let axis = e.reading.int("axis")?.unwrap_or(1);
    let log = e.reading.op() == "LogSoftmax";
    let x = e.b.fact(inputs[0]);
    let rank = x.rank() as i64;
    let from = if axis < 0 { axis.saturating_add(rank) } else { axis };
    let after = usize::try_from(from).ok().and_then(|at| x.shape.get(at + 1..));
    if after.is_none_or(|sizes| sizes.iter().all(|d| *d == Dim::Known(1))) {
        // Nothing follows, or the axis is outside, which the operator refuses.
        return e.b.apply_all(e.name, Arc::new(Softmax { axis, log }), inputs, e.outputs);
    }
    let sizes = e.apply("shape", Shape { start: 0, end: None }, inputs)?;
    let flat = e.apply("flat", Flatten { axis }, inputs)?;
    let y = e.apply("softmax", Softmax { axis: 1, log }, &[flat])?;
    e.b.apply_all(e.name, Arc::new(Reshape::default()), &[y, sizes], e.outputs)
}
