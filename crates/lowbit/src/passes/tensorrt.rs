//! Quantized models in the form that TensorRT reads.

use std::sync::Arc;

use crate::error::{Error, Result, invalid};
use crate::graph::{Builder, Graph, Kind, Node, Var};
use crate::ops::quantize::{DequantizeLinear, QuantizeLinear};
use crate::tensor::{DType, Tensor};

/// A Q/DQ model in TensorRT's dialect, which is also the one that `pytorch-quantization`
/// exports:
///
/// - codes are int8 (or e4m3), and zero points 0, those of activations too;
/// - a weight is stored in float, with a QuantizeLinear and a DequantizeLinear behind
///   it, along an axis if it has scales by channel;
/// - a bias is stored in float.
///
/// Weights are those that the codes stand for, so that quantizing them again gives the
/// same codes. Written to a file, the model needs opset 13, for e4m3 19;
/// [`onnx::save_at`](crate::onnx::save_at) writes models with a scale for each tensor
/// in opset 10 too. (onnxruntime 1.23 runs those with graph optimizations disabled: its own
/// add a Round, which opset 10 does not have.)
///
/// # Errors
/// If a node quantizes to other codes or to other zero points, activations by channel,
/// or by the ranges of each run, or is an operator of another domain; the error names it.
pub fn tensorrt_dialect(graph: &Graph) -> Result<Graph> {
    dialect(&graph.map_bodies(dialect)?)
}

fn dialect(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        let constant = b.so_far().constant(inputs[0]).cloned();
        let made = if let Some(dq) = op.is::<DequantizeLinear>() {
            match constant {
                Some(codes) if codes.dtype() == DType::I32 => stored_in_float(b, node, inputs).map(Some),
                Some(_) => requantized(b, node, (dq, inputs)).map(Some),
                None => {
                    let quantized = b.so_far().made_by::<QuantizeLinear>(inputs[0]);
                    let constant = quantized.is_some_and(|(_, x)| b.so_far().constant(x[0]).is_some());
                    check(b, inputs, dq.block, constant).map(|()| None)
                }
            }
        } else if let Some(q) = op.is::<QuantizeLinear>() {
            check(b, inputs, q.block, constant.is_some()).map(|()| None)
        } else if !op.domain().is_empty() {
            Err(Error::unsupported("TensorRT", format!("the operator {} of {}", op.name(), op.domain())))
        } else if matches!(op.name(), "DynamicQuantizeLinear" | "MatMulInteger" | "ConvInteger") {
            Err(Error::unsupported("TensorRT", format!("{}: quantize statically", op.name())))
        } else {
            Ok(None)
        };
        match made.map_err(|e| e.at(&node.name))? {
            Some(v) => Ok(vec![v]),
            None => b.copy(node, inputs),
        }
    })
}

/// The name of a dequantized constant without what says so.
fn float_name(node: &Node) -> String {
    let name = &node.outputs[0].name;
    name.strip_suffix("_dq").unwrap_or(name).to_string()
}

/// A dequantized constant as a float one.
fn stored_in_float(b: &mut Builder, node: &Node, inputs: &[Var]) -> Result<Var> {
    Ok(b.constant(&float_name(node), dequantized(b, node, inputs)?))
}

/// The value of a DequantizeLinear of constants.
fn dequantized(b: &Builder, node: &Node, inputs: &[Var]) -> Result<Tensor> {
    let operands: Option<Vec<&Tensor>> = inputs.iter().map(|v| b.so_far().constant(*v)).collect();
    match (&node.kind, operands) {
        (Kind::Apply { op, .. }, Some(operands)) => Ok(op.eval(&operands)?.remove(0)),
        _ => Err(invalid!("its scale or zero point is not a constant")),
    }
}

/// A dequantized constant as a float one that is quantized and dequantized.
fn requantized(b: &mut Builder, node: &Node, (dq, inputs): (&DequantizeLinear, &[Var])) -> Result<Var> {
    check(b, inputs, dq.block, true)?;
    let (name, values) = (float_name(node), dequantized(b, node, inputs)?);
    let zero = match inputs.get(2) {
        Some(zero) => *zero,
        None => {
            let shape = b.fact(inputs[1]).known_shape().unwrap_or_default();
            let count = shape.iter().product();
            let zero = match b.fact(inputs[0]).dtype {
                DType::I8 => Tensor::new(&shape, vec![0i8; count])?,
                dtype => Tensor::coded(dtype, &shape, vec![0u8; count])?,
            };
            b.constant(&format!("{name}_zp"), zero)
        }
    };
    let q = QuantizeLinear { axis: dq.axis, block: 0, dtype: None };
    let weight = b.constant(&name, values);
    let codes = b.apply(&format!("{name}_q"), Arc::new(q), &[weight, inputs[1], zero])?;
    let dq = b.replace(node, Arc::new(dq.clone()), &[codes, inputs[1], zero])?;
    Ok(dq[0])
}

/// Checks the codes, the zero point and the scale of a QuantizeLinear or DequantizeLinear.
fn check(b: &Builder, inputs: &[Var], block: usize, constant: bool) -> Result<()> {
    let of_input = b.fact(inputs[0]).dtype;
    let zero = inputs.get(2).filter(|v| !b.fact(**v).is_absent());
    let codes = match zero {
        Some(zero) => b.fact(*zero).dtype,
        None if of_input == DType::F32 => DType::U8,
        None => of_input,
    };
    if !matches!(codes, DType::I8 | DType::F8E4M3) {
        return Err(invalid!(
            "has {codes} codes: TensorRT has int8, symmetric, and e4m3 (quantize with preset = \"tensorrt\")"
        ));
    }
    if let Some(zero) = zero {
        let zero = b.so_far().constant(*zero).ok_or_else(|| invalid!("its zero point is not a constant"))?;
        if let Some(z) = zero.to_f32()?.iter().find(|z| **z != 0.0) {
            return Err(invalid!(
                "has zero point {z}: TensorRT has 0 alone (quantize with preset = \"tensorrt\")"
            ));
        }
    }
    if block > 0 {
        return Err(invalid!("has scales for blocks: TensorRT has them for tensors and channels"));
    }
    if !constant && b.fact(inputs[1]).known_shape().is_none_or(|s| s.iter().product::<usize>() != 1) {
        return Err(invalid!("has scales by channel: TensorRT has one for an activation"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
