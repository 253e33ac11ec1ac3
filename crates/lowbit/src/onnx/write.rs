//! Graph to ModelProto.

mod function;
mod old;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use lowbit_onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_shape_proto, type_proto,
};

use self::function::Functions;
use super::elements;
use crate::error::{Result, invalid};
use crate::graph::{Graph, Kind, Node, Var, is_same};
use crate::op::{Attribute, Dim, Fact, Op};
use crate::tensor::{DType, Tensor};

/// The lowest opset that is written unless another is asked for: per-channel Q/DQ, and
/// the widest reach.
const LEAST_OPSET: i64 = 13;

/// The greatest opset that is written.
const GREATEST_OPSET: i64 = 25;

/// The first file format version that has functions.
const FUNCTIONS_SINCE: i64 = 8;

/// Bytes from which on a body's constant stands in the main graph.
const LARGE: usize = 1024;

/// The model that `graph` is. The opset is the lowest that has everything the
/// graph uses, 13 at least. Operators that have a [function](Op::function) are
/// calls of it, and the model holds it.
///
/// # Errors
/// If a constant is of a type that ONNX does not have.
pub fn encode(graph: &Graph) -> Result<ModelProto> {
    written(graph, None)
}

/// [`encode`] in opset `opset`, from 10 on. Opsets below 13 have only operators whose
/// form has not changed since 10.
///
/// # Errors
/// Those of [`encode`], and if the opset lacks what the graph uses; the error names the
/// node, or the opset that has all of it.
pub fn encode_at(graph: &Graph, opset: i64) -> Result<ModelProto> {
    written(graph, Some(opset))
}

fn written(graph: &Graph, wanted: Option<i64>) -> Result<ModelProto> {
    let mut functions = Functions::default();
    functions.collect(graph)?;
    let all = || std::iter::once(graph).chain(functions.bodies());
    let least = all().map(opset).fold(LEAST_OPSET, i64::max);
    let opset = wanted.unwrap_or(least);
    if !(old::OPSET..=GREATEST_OPSET).contains(&opset) {
        return Err(invalid!("opset {opset}: choose {} to {GREATEST_OPSET}", old::OPSET));
    }
    if opset < least && least > LEAST_OPSET {
        return Err(invalid!("opset {opset} lacks what the model uses: choose {least} or a later one"));
    }
    if opset < LEAST_OPSET {
        old::check(graph)?;
    }
    let mut domains = BTreeSet::new();
    all().for_each(|graph| add_domains(graph, &mut domains));
    let imports: Vec<OperatorSetIdProto> =
        std::iter::once(import("", opset)).chain(domains.into_iter().map(|d| import(d, 1))).collect();
    let shared = shared_constants(graph);
    let writer = Writer { opset, functions: &functions, shared: &shared };
    let mut file = writer.graph(graph, "", &[])?;
    for (name, t) in &shared {
        if graph.find(name).is_none() {
            file.initializer.push(elements::stored(name, t)?);
        }
    }
    let least_version = if functions.is_empty() { 0 } else { FUNCTIONS_SINCE };
    Ok(ModelProto {
        ir_version: Some(ir_version(opset).max(least_version)),
        functions: functions.protos(&writer, &imports)?,
        opset_import: imports,
        producer_name: Some("lowbit".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(file),
        metadata_props: graph
            .metadata
            .iter()
            .map(|(k, v)| StringStringEntryProto { key: Some(k.clone()), value: Some(v.clone()) })
            .collect(),
        ..ModelProto::default()
    })
}

fn import(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) }
}

/// The domains of a graph's operators but the standard one.
fn add_domains<'a>(graph: &'a Graph, domains: &mut BTreeSet<&'a str>) {
    for (_, _, op, _) in graph.applied() {
        domains.extend(Some(op.domain()).filter(|d| !d.is_empty()));
        op.bodies().iter().for_each(|body| add_domains(body, domains));
    }
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
            let types = types.chain(node.outputs.iter().map(|o| wide(o.fact.dtype)));
            types.chain(op.bodies().iter().map(opset)).fold(op.opset(), i64::max)
        })
        .fold(LEAST_OPSET, i64::max)
}

/// The file format version of the release that introduced an opset.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

/// Bodies' constants that the main graph holds: the large ones, as several
/// bodies may have them, and as only the main graph's constants can lie beside
/// the model in a file of their own.
fn shared_constants(graph: &Graph) -> BTreeMap<String, Tensor> {
    /// What bodies call by each name: one constant, or nothing that can be shared.
    fn add(graph: &Graph, found: &mut BTreeMap<String, Option<Tensor>>) {
        for body in graph.applied().flat_map(|(_, _, op, _)| op.bodies()) {
            let outputs: HashSet<Var> = body.outputs().map(|(_, v)| v).collect();
            for (v, node) in body.nodes() {
                let constant = body.constant(v).filter(|t| !outputs.contains(&v) && t.byte_len() >= LARGE);
                for output in &node.outputs {
                    let known = found.entry(output.name.clone()).or_insert_with(|| constant.cloned());
                    if !known.as_ref().zip(constant).is_some_and(|(a, b)| is_same(a, b)) {
                        *known = None;
                    }
                }
            }
            add(body, found);
        }
    }
    let mut found = BTreeMap::new();
    add(graph, &mut found);
    let is_free = |name: &str, t: &Tensor| {
        graph.find(name).is_none_or(|v| graph.constant(v).is_some_and(|c| is_same(c, t)))
    };
    found.into_iter().filter_map(|(name, t)| Some((name, t?))).filter(|(name, t)| is_free(name, t)).collect()
}

/// What the nodes of a file are written with.
struct Writer<'a> {
    opset: i64,
    functions: &'a Functions,
    /// Bodies' constants that stand in the main graph.
    shared: &'a BTreeMap<String, Tensor>,
}

impl Writer<'_> {
    /// A graph inside those `around` it; `place` precedes the names of what it
    /// gains, to tell them from theirs.
    fn graph(&self, graph: &Graph, place: &str, around: &[&Graph]) -> Result<GraphProto> {
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
                    let (node, operands) =
                        self.node(&[around, &[graph]].concat(), node, &**op, inputs, place)?;
                    file.initializer.extend(operands);
                    file.node.push(node);
                }
            }
        }
        file.output = graph.outputs().map(|(name, v)| value_info(name, graph.fact(v))).collect();
        Ok(file)
    }

    /// A body of an operator: what it captures, constants among it, is named
    /// only by its nodes.
    fn body(&self, body: &Graph, captured: usize, place: &str, around: &[&Graph]) -> Result<GraphProto> {
        let mut file = self.graph(body, place, around)?;
        file.input.truncate(body.inputs().len() - captured);
        let held = |name: &str| around.iter().any(|g| g.find(name).is_some_and(|v| g.constant(v).is_some()));
        let outside = |name: &str| self.shared.contains_key(name) || held(name);
        let outputs: HashSet<&str> = body.outputs().map(|(name, _)| name).collect();
        file.initializer.retain(|t| outputs.contains(t.name()) || !outside(t.name()));
        Ok(file)
    }

    /// A node of the last of `graphs`, which stands inside the others, and the
    /// constant operands that it gains.
    fn node(
        &self,
        graphs: &[&Graph],
        node: &Node,
        op: &dyn Op,
        inputs: &[Var],
        place: &str,
    ) -> Result<(NodeProto, Vec<TensorProto>)> {
        let graph = graphs[graphs.len() - 1];
        let (attributes, operands) = op.written(self.opset);
        let own = inputs.len() - op.captured();
        let mut input: Vec<String> = inputs[..own].iter().map(|v| graph.value(*v).name.clone()).collect();
        let mut stored = vec![];
        for t in &operands {
            let name = match t.shape() {
                [0] => String::new(),
                _ => format!("{place}{}.operand{}", node.name, input.len()),
            };
            if !name.is_empty() {
                stored.push(elements::stored(&name, t)?);
            }
            input.push(name);
        }
        while op.captured() > 0 && input.last().is_some_and(String::is_empty) {
            input.pop();
        }
        // Without a name a node has that of its output: most nodes of a quantized model save it.
        let quantizes = matches!(op.name(), "QuantizeLinear" | "DequantizeLinear");
        let implied = quantizes && node.outputs.first().is_some_and(|o| o.name == node.name);
        let inside = format!("{place}{}/", node.name);
        let attribute = |(name, a): &(&'static str, Attribute)| match a {
            Attribute::Graph(body) => Ok(AttributeProto {
                name: Some((*name).into()),
                r#type: Some(AttributeType::Graph.into()),
                g: Some(Box::new(self.body(body, op.captured(), &inside, graphs)?)),
                ..AttributeProto::default()
            }),
            a => attribute(name, a),
        };
        let proto = NodeProto {
            name: (!implied).then(|| node.name.clone()),
            op_type: Some(self.functions.name(graph, node, op, inputs)?),
            domain: (!op.domain().is_empty()).then(|| op.domain().into()),
            input,
            output: node.outputs.iter().map(|o| o.name.clone()).collect(),
            attribute: attributes.iter().map(attribute).collect::<Result<_>>()?,
            ..NodeProto::default()
        };
        Ok((proto, stored))
    }
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
        Attribute::Graph(_) => return Err(invalid!("attribute {name}: only bodies of operators are graphs")),
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
