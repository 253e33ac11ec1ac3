//! Graph to ModelProto.

use lowbit_onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_shape_proto, type_proto,
};

use super::elements;
use crate::error::Result;
use crate::graph::{Graph, Kind, Node, Var};
use crate::op::{Attribute, Dim, Fact, Op};
use crate::tensor::{DType, Tensor};

/// The lowest opset that is written: per-channel Q/DQ, and the widest reach.
const LEAST_OPSET: i64 = 13;

/// The model that `graph` is. The opset is the lowest that has everything the
/// graph uses, 13 at least.
///
/// # Errors
/// If a constant is of a type that ONNX does not have.
pub fn encode(graph: &Graph) -> Result<ModelProto> {
    let opset = opset(graph);
    let mut domains: Vec<&str> =
        graph.applied().map(|(_, _, op, _)| op.domain()).filter(|d| !d.is_empty()).collect();
    domains.sort_unstable();
    domains.dedup();
    let import =
        |domain: &str, version| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
    Ok(ModelProto {
        ir_version: Some(ir_version(opset)),
        opset_import: std::iter::once(import("", opset))
            .chain(domains.into_iter().map(|d| import(d, 1)))
            .collect(),
        producer_name: Some("lowbit".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(graph_proto(graph, opset)?),
        metadata_props: graph
            .metadata
            .iter()
            .map(|(k, v)| StringStringEntryProto { key: Some(k.clone()), value: Some(v.clone()) })
            .collect(),
        ..ModelProto::default()
    })
}

/// The lowest opset that has every operator and element type of the graph.
fn opset(graph: &Graph) -> i64 {
    let of_types = |v: &Var| match graph.fact(*v).dtype {
        DType::F8E4M3 | DType::F8E5M2 => 19,
        DType::I4 | DType::U4 => 21,
        DType::F4E2M1 => 23,
        DType::I2 | DType::U2 => 25,
        _ => LEAST_OPSET,
    };
    graph
        .applied()
        .map(|(_, node, op, inputs)| {
            let quantizes = matches!(op.name(), "QuantizeLinear" | "DequantizeLinear");
            let wide =
                |d: DType| if quantizes && matches!(d, DType::I16 | DType::U16) { 21 } else { LEAST_OPSET };
            let types = inputs.iter().map(|v| of_types(v).max(wide(graph.fact(*v).dtype)));
            types.chain(node.outputs.iter().map(|o| wide(o.fact.dtype))).fold(op.opset(), i64::max)
        })
        .fold(LEAST_OPSET, i64::max)
}

/// The file format version of the release that introduced an opset.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

fn graph_proto(graph: &Graph, opset: i64) -> Result<GraphProto> {
    let name = if graph.name.is_empty() { "graph" } else { &graph.name };
    let mut file = GraphProto { name: Some(name.into()), ..GraphProto::default() };
    for (v, node) in graph.nodes() {
        match &node.kind {
            Kind::Input => file.input.push(value_info(&graph.value(v).name, graph.fact(v))),
            Kind::Const(t) => {
                if !graph.value(v).name.is_empty() {
                    file.initializer.push(elements::stored(&graph.value(v).name, t)?);
                }
            }
            Kind::Apply { op, inputs } => {
                let (node, operands) = node_proto(graph, node, &**op, inputs, opset)?;
                file.initializer.extend(operands);
                file.node.push(node);
            }
        }
    }
    file.output = graph.outputs().map(|(name, v)| value_info(name, graph.fact(v))).collect();
    Ok(file)
}

fn node_proto(
    graph: &Graph,
    node: &Node,
    op: &dyn Op,
    inputs: &[Var],
    opset: i64,
) -> Result<(NodeProto, Vec<TensorProto>)> {
    let (attributes, operands) = op.written(opset);
    let mut input: Vec<String> = inputs.iter().map(|v| graph.value(*v).name.clone()).collect();
    let mut stored = vec![];
    for t in &operands {
        let name =
            if t.shape() == [0] { String::new() } else { format!("{}.operand{}", node.name, input.len()) };
        if !name.is_empty() {
            stored.push(elements::stored(&name, t)?);
        }
        input.push(name);
    }
    // Without a name a node has that of its output: most nodes of a quantized model save it.
    let quantizes = matches!(op.name(), "QuantizeLinear" | "DequantizeLinear");
    let implied = quantizes && node.outputs.first().is_some_and(|o| o.name == node.name);
    let proto = NodeProto {
        name: (!implied).then(|| node.name.clone()),
        op_type: Some(op.name().into()),
        domain: (!op.domain().is_empty()).then(|| op.domain().into()),
        input,
        output: node.outputs.iter().map(|o| o.name.clone()).collect(),
        attribute: attributes.iter().map(|(name, a)| attribute(name, a)).collect::<Result<_>>()?,
        ..NodeProto::default()
    };
    Ok((proto, stored))
}

fn attribute(name: &str, a: &Attribute) -> Result<AttributeProto> {
    let mut p = AttributeProto { name: Some(name.into()), ..AttributeProto::default() };
    let kind = match a {
        Attribute::Int(x) => {
            p.i = Some(*x);
            AttributeType::Int
        }
        Attribute::Float(x) => {
            p.f = Some(*x);
            AttributeType::Float
        }
        Attribute::Text(x) => {
            p.s = Some(x.clone().into_bytes());
            AttributeType::String
        }
        Attribute::Ints(x) => {
            p.ints.clone_from(x);
            AttributeType::Ints
        }
        Attribute::Floats(x) => {
            p.floats.clone_from(x);
            AttributeType::Floats
        }
        Attribute::Texts(x) => {
            p.strings = x.iter().map(|x| x.clone().into_bytes()).collect();
            AttributeType::Strings
        }
        Attribute::Tensor(x) => {
            p.t = Some(stored_attribute(x)?);
            AttributeType::Tensor
        }
    };
    p.r#type = Some(kind.into());
    Ok(p)
}

fn stored_attribute(t: &Tensor) -> Result<Box<TensorProto>> {
    Ok(Box::new(elements::stored("", t)?))
}

fn value_info(name: &str, fact: &Fact) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value as DimValue};
    let dim = |d: &Dim| Dimension {
        value: Some(match d {
            Dim::Known(n) => DimValue::DimValue(*n as i64),
            Dim::Named(name) => DimValue::DimParam(name.clone()),
        }),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(fact.dtype.onnx_number()),
        shape: Some(TensorShapeProto { dim: fact.shape.iter().map(dim).collect() }),
    };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
