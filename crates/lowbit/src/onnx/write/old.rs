//! What opset 10 can say.

use crate::error::{Result, invalid};
use crate::graph::{Graph, Node, Var};
use crate::op::{Attribute, Op};
use crate::tensor::DType;

/// The first opset that has QuantizeLinear and DequantizeLinear.
pub const OPSET: i64 = 10;

/// Operators whose form has not changed since opset 10, but for what [`check_node`] refuses.
const UNCHANGED: &[&str] = &[
    "Abs",
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "DequantizeLinear",
    "Div",
    "Elu",
    "Erf",
    "Exp",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "LeakyRelu",
    "Log",
    "MatMul",
    "MaxPool",
    "Mul",
    "Neg",
    "PRelu",
    "QuantizeLinear",
    "ReduceMean",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Softmax",
    "Sqrt",
    "Sub",
    "Tanh",
    "Transpose",
];

/// Attributes that came later.
const LATER: &[&str] = &["allowzero", "block_size", "noop_with_empty_axes", "output_dtype", "training_mode"];

/// Checks that every node has the same form in opset 10.
///
/// # Errors
/// If one has not; the error names it.
pub fn check(graph: &Graph) -> Result<()> {
    graph.applied().try_for_each(|(_, node, op, inputs)| {
        check_node(graph, node, &**op, inputs).map_err(|e| e.at(op.name()).at(&node.name))
    })
}

fn check_node(graph: &Graph, node: &Node, op: &dyn Op, inputs: &[Var]) -> Result<()> {
    let refuse = |why: &str| Err(invalid!("{why} in opset {OPSET}: choose 13 or a later one"));
    if !op.domain().is_empty() || !UNCHANGED.contains(&op.name()) {
        return refuse("has no form, or another,");
    }
    let (attributes, operands) = op.written(OPSET);
    for (name, value) in &attributes {
        let counts_back = match value {
            Attribute::Int(axis) => *name == "axis" && *axis < 0,
            Attribute::Ints(axes) => *name == "axes" && axes.iter().any(|axis| *axis < 0),
            _ => false,
        };
        if counts_back {
            return refuse("counts an axis from the end, which is not possible");
        }
        if LATER.contains(name) || (op.name(), *name) == ("AveragePool", "dilations") {
            return refuse(&format!("has the attribute {name}, which is not there"));
        }
    }
    let fact = |i: usize| inputs.get(i).map(|v| graph.fact(*v));
    match op.name() {
        "QuantizeLinear" | "DequantizeLinear" if fact(1).is_some_and(|scale| scale.rank() > 0) => {
            refuse("has scales by channel, which are not there")
        }
        "Gemm" if fact(2).is_none_or(|c| c.is_absent()) => refuse("has no bias, which is not left out"),
        "Clip" if inputs.len() > 1 || fact(0).is_some_and(|x| x.dtype != DType::F32) => {
            refuse("has other bounds than f32 constants, which are not there")
        }
        "ReduceMean" if !operands.is_empty() || inputs.len() > 1 => refuse("has axes that are operands"),
        // It worked on all axes from the given one on.
        "Softmax" => {
            let axis = attributes.iter().find_map(|(name, axis)| (*name == "axis").then_some(axis));
            let last = node.outputs[0].fact.rank() as i64 - 1;
            if axis == Some(&Attribute::Int(last)) { Ok(()) } else { refuse("is not over the last axis") }
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::graph::Builder;
    use crate::onnx::{decode, encode_at};
    use crate::op::Fact;
    use crate::ops::clip::Clip;
    use crate::ops::layout::Concat;
    use crate::ops::linear::Gemm;
    use crate::ops::reduce::{Reduce, Reduction};
    use crate::ops::softmax::Softmax;
    use crate::ops::unary::Unary;
    use crate::tensor::Tensor;

    #[test]
    fn what_has_another_form_is_refused_and_the_rest_is_the_same() {
        use prost::Message;
        let unary: [(Arc<dyn Op>, Result<(), &str>); 9] = [
            (Arc::new(Unary::Relu), Ok(())),
            (Arc::new(Clip::new(0.0, 6.0)), Ok(())),
            (Arc::new(Clip::new(f32::NEG_INFINITY, 6.0)), Ok(())),
            (Arc::new(Softmax { axis: 1, log: false }), Ok(())),
            (Arc::new(Softmax { axis: 0, log: false }), Err("is not over the last axis in opset 10")),
            (Arc::new(Concat { axis: 1 }), Ok(())),
            (Arc::new(Concat { axis: -1 }), Err("y: Concat: counts an axis from the end")),
            (Arc::new(Reduce::new(Reduction::Mean, &[1])), Ok(())),
            (Arc::new(Unary::Round), Err("has no form, or another, in opset 10: choose 13")),
        ];
        let x = Tensor::new(&[2, 3], vec![-1f32, 0.5, 2., 7., -8., 9.]).unwrap();
        for (op, want) in unary {
            let mut b = Builder::default();
            let v = b.input("x", Fact::of(&x));
            let y = b.apply("y", op.clone(), &[v]).unwrap();
            let graph = b.finish([("y".to_string(), y)]).unwrap();
            match (encode_at(&graph, OPSET), want) {
                (Ok(model), Ok(())) => {
                    let read = decode(&model.encode_to_vec()).unwrap();
                    let (got, want) = (
                        read.run(std::slice::from_ref(&x)).unwrap(),
                        graph.run(std::slice::from_ref(&x)).unwrap(),
                    );
                    assert_eq!(got, want, "{op:?}");
                    assert_eq!(model.ir_version, Some(5));
                }
                (Err(e), Err(says)) => assert!(e.to_string().contains(says), "{op:?}: {e}"),
                (found, want) => panic!("{op:?}: {:?}, not {want:?}", found.map(|_| ())),
            }
        }
        let mut b = Builder::default();
        let v = b.input("x", Fact::of(&x));
        let weight = b.constant("w", Tensor::new(&[3, 1], vec![1f32; 3]).unwrap());
        let y = b.apply("y", Arc::new(Gemm::default()), &[v, weight]).unwrap();
        let graph = b.finish([("y".to_string(), y)]).unwrap();
        let error = encode_at(&graph, OPSET).unwrap_err().to_string();
        assert!(error.contains("y: Gemm: has no bias, which is not left out"), "{error}");
        for opset in [13, 17, 25] {
            let model = encode_at(&graph, opset).unwrap();
            assert_eq!(
                decode(&model.encode_to_vec()).unwrap().run(std::slice::from_ref(&x)).unwrap(),
                graph.run(std::slice::from_ref(&x)).unwrap()
            );
        }
    }
}
