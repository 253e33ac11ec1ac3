//! ModelProto to Graph.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use lowbit_onnx::Model;
use lowbit_onnx::proto::{
    AttributeProto, NodeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_shape_proto::dimension::Value as DimValue, type_proto,
};

use super::elements;
use super::expand::{self, Abbreviated};
use crate::error::{Error, Result, invalid};
use crate::graph::{Builder, Graph, Var};
use crate::op::{Attribute, Dim, Fact, Reading};
use crate::ops;
use crate::tensor::{Tensor, element_count};

/// The opsets of the standard domain that are read.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=25;

/// The graph of a model.
pub fn graph(model: &Model) -> Result<Graph> {
    let proto = model.proto();
    let opsets = opsets(proto)?;
    let file = model.graph();
    if let Some(t) = file.sparse_initializer.first() {
        let name = t.values.as_ref().map_or("", |v| v.name());
        return Err(Error::unsupported("sparse initializer", name));
    }
    let mut reader = Reader { model, opsets, builder: Builder::default(), values: HashMap::new() };
    reader.inputs_and_constants()?;
    for node in in_order(&file.node, &reader.values)? {
        let place = place(node);
        reader.node(node).map_err(|e| e.at(place))?;
    }
    let outputs: Vec<(String, Var)> = file
        .output
        .iter()
        .map(|o| match reader.values.get(o.name()) {
            _ if o.name().is_empty() => Err(invalid!("an output has no name")),
            Some(v) => Ok((o.name().to_string(), *v)),
            None => Err(invalid!("nothing makes it").at(format!("output {}", o.name()))),
        })
        .collect::<Result<_>>()?;
    if outputs.is_empty() {
        return Err(invalid!("the model has no output"));
    }
    let mut graph = reader.builder.finish(outputs)?;
    if !file.name().is_empty() {
        graph.name = file.name().to_string();
    }
    graph.metadata =
        proto.metadata_props.iter().map(|p| (p.key().to_string(), p.value().to_string())).collect();
    Ok(graph)
}

/// The opset of each domain.
fn opsets(proto: &lowbit_onnx::proto::ModelProto) -> Result<HashMap<String, i64>> {
    let mut found = HashMap::new();
    for import in &proto.opset_import {
        let domain = if import.domain() == "ai.onnx" { "" } else { import.domain() };
        if domain.is_empty() && !OPSETS.contains(&import.version()) {
            let (least, greatest) = (OPSETS.start(), OPSETS.end());
            return Err(Error::unsupported(
                format!("opset {}", import.version()),
                format!(
                    "(opsets {least} to {greatest} are; convert the model with onnx.version_converter) it"
                ),
            ));
        }
        found.insert(domain.to_string(), import.version());
    }
    Ok(found)
}

/// A node's name, or where it has none, that of its first output.
fn place(node: &NodeProto) -> String {
    match (node.name(), node.output.iter().find(|o| !o.is_empty())) {
        ("", Some(output)) => output.clone(),
        (name, _) => name.to_string(),
    }
}

/// The nodes so that each comes after those whose values it reads, otherwise
/// in the file's order.
fn in_order<'a>(nodes: &'a [NodeProto], given: &HashMap<String, Var>) -> Result<Vec<&'a NodeProto>> {
    let mut made: HashSet<&str> = given.keys().map(String::as_str).collect();
    let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
    let mut missing = vec![0usize; nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        let unmade: HashSet<&str> =
            node.input.iter().map(String::as_str).filter(|n| !n.is_empty() && !made.contains(n)).collect();
        missing[i] = unmade.len();
        for name in unmade {
            readers.entry(name).or_default().push(i);
        }
    }
    let mut ready: BTreeSet<usize> = (0..nodes.len()).filter(|&i| missing[i] == 0).collect();
    let mut sorted = Vec::with_capacity(nodes.len());
    while let Some(i) = ready.pop_first() {
        sorted.push(&nodes[i]);
        for output in nodes[i].output.iter().map(String::as_str) {
            if made.insert(output) {
                for &reader in readers.get(output).into_iter().flatten() {
                    missing[reader] -= 1;
                    if missing[reader] == 0 {
                        ready.insert(reader);
                    }
                }
            }
        }
    }
    if sorted.len() < nodes.len() {
        let waiting: Vec<&NodeProto> =
            nodes.iter().zip(&missing).filter(|(_, m)| **m > 0).map(|(n, _)| n).collect();
        return Err(stuck(&waiting, &made));
    }
    Ok(sorted)
}

/// Why none of `waiting` can be computed: a value that nothing makes, or a cycle.
fn stuck(waiting: &[&NodeProto], made: &HashSet<&str>) -> Error {
    let will_make: HashSet<&str> = waiting.iter().flat_map(|n| n.output.iter().map(String::as_str)).collect();
    for node in waiting {
        for input in node.input.iter().filter(|i| !i.is_empty() && !made.contains(i.as_str())) {
            if !will_make.contains(input.as_str()) {
                return invalid!("reads {input:?}, which is no input, initializer or output of a node")
                    .at(place(node));
            }
        }
    }
    let names: Vec<String> = waiting.iter().take(5).map(|n| place(n)).collect();
    invalid!("the nodes {} depend on one another in a cycle", names.join(", "))
}

struct Reader<'a> {
    model: &'a Model,
    opsets: HashMap<String, i64>,
    builder: Builder,
    values: HashMap<String, Var>,
}

impl Reader<'_> {
    fn inputs_and_constants(&mut self) -> Result<()> {
        let file = self.model.graph();
        let constants: HashSet<&str> = file.initializer.iter().map(|t| t.name()).collect();
        for input in file.input.iter().filter(|i| !constants.contains(i.name())) {
            if input.name().is_empty() {
                return Err(invalid!("an input has no name"));
            }
            let fact = input_fact(input).map_err(|e| e.at(format!("input {}", input.name())))?;
            let v = self.builder.input(input.name(), fact);
            self.define(input.name(), v)?;
        }
        for t in &file.initializer {
            let place = || format!("initializer {}", t.name());
            let value = self.model.tensor(t).map_err(Error::from).and_then(|d| elements::tensor(&d));
            let v = self.builder.constant(t.name(), value.map_err(|e| e.at(place()))?);
            self.define(t.name(), v)?;
        }
        Ok(())
    }

    fn define(&mut self, name: &str, v: Var) -> Result<()> {
        match self.values.insert(name.to_string(), v) {
            Some(_) if !name.is_empty() => Err(invalid!("{name:?} is defined twice")),
            _ => Ok(()),
        }
    }

    fn node(&mut self, node: &NodeProto) -> Result<()> {
        let domain = if node.domain() == "ai.onnx" { "" } else { node.domain() };
        let unknown = || {
            let of = if domain.is_empty() { String::new() } else { format!(" of domain {domain}") };
            Error::unsupported(format!("operator {}{of}", node.op_type()), "it")
        };
        let opset = *self.opsets.get(domain).ok_or_else(|| {
            invalid!("operator {} is of domain {domain:?}, which the model does not import", node.op_type())
        })?;
        let expansion = expand::expansion(domain, node.op_type(), opset);
        let read = ops::reader(domain, node.op_type());
        if expansion.is_none() && read.is_none() {
            return Err(unknown());
        }
        let mut inputs: Vec<Var> = node
            .input
            .iter()
            .map(|i| if i.is_empty() { self.builder.absent() } else { self.values[i.as_str()] })
            .collect();
        let outputs: Vec<&str> = node.output.iter().map(String::as_str).collect();
        let named = outputs.iter().rposition(|o| !o.is_empty()).map_or(0, |i| i + 1);
        let outputs = &outputs[..named];
        let constants = inputs.iter().map(|v| self.builder.so_far().constant(*v).cloned()).collect();
        let mut attributes = BTreeMap::new();
        for a in &node.attribute {
            attributes.insert(a.name().to_string(), self.attribute(a)?);
        }
        let mut reading = Reading::new(node.op_type(), opset, attributes, constants, outputs.len());
        let name = place(node);
        let made = if let Some(expand) = expansion {
            let b = &mut self.builder;
            let mut node = Abbreviated { b, reading: &mut reading, name: &name, inputs: &inputs, outputs };
            let made = expand(&mut node)?;
            reading.finish()?;
            made
        } else {
            let op = read.ok_or_else(unknown)?(&mut reading).map_err(|e| e.at(node.op_type()))?;
            let (taken, added) = reading.finish()?;
            for i in taken {
                inputs[i] = self.builder.absent();
            }
            for (i, t) in added {
                let operand = self.builder.constant(&format!("{name}.operand{i}"), t);
                while inputs.len() <= i {
                    inputs.push(self.builder.absent());
                }
                inputs[i] = operand;
            }
            self.builder.apply_all(&name, op, &inputs, outputs)?
        };
        for (output, v) in outputs.iter().zip(made) {
            self.define(output, v)?;
        }
        Ok(())
    }

    fn attribute(&self, a: &AttributeProto) -> Result<Attribute> {
        let text = |s: &[u8]| {
            String::from_utf8(s.to_vec()).map_err(|_| invalid!("attribute {} is not UTF-8", a.name()))
        };
        let kind = match a.r#type() {
            AttributeType::Undefined => kind_by_content(a),
            kind => kind,
        };
        Ok(match kind {
            AttributeType::Int => Attribute::Int(a.i()),
            AttributeType::Float => Attribute::Float(a.f()),
            AttributeType::String => Attribute::Text(text(a.s())?),
            AttributeType::Ints => Attribute::Ints(a.ints.clone()),
            AttributeType::Floats => Attribute::Floats(a.floats.clone()),
            AttributeType::Strings => {
                Attribute::Texts(a.strings.iter().map(|s| text(s)).collect::<Result<_>>()?)
            }
            AttributeType::Tensor => Attribute::Tensor(self.attribute_tensor(a)?),
            other => {
                return Err(Error::unsupported(format!("attribute {}", a.name()), format!("type {other:?}")));
            }
        })
    }

    fn attribute_tensor(&self, a: &AttributeProto) -> Result<Tensor> {
        let t = a.t.as_ref().ok_or_else(|| invalid!("attribute {} has no tensor", a.name()))?;
        elements::tensor(&self.model.tensor(t)?).map_err(|e| e.at(format!("attribute {}", a.name())))
    }
}

/// The type of an attribute of an old file that does not state it.
fn kind_by_content(a: &AttributeProto) -> AttributeType {
    if a.f.is_some() {
        AttributeType::Float
    } else if a.i.is_some() {
        AttributeType::Int
    } else if a.s.is_some() {
        AttributeType::String
    } else if a.t.is_some() {
        AttributeType::Tensor
    } else if !a.floats.is_empty() {
        AttributeType::Floats
    } else if !a.strings.is_empty() {
        AttributeType::Strings
    } else {
        AttributeType::Ints
    }
}

/// Type and shape that an input declares.
fn input_fact(input: &ValueInfoProto) -> Result<Fact> {
    let Some(type_proto::Value::TensorType(t)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return Err(Error::unsupported("an input", "a type other than a tensor's"));
    };
    let shape = t
        .shape
        .as_ref()
        .ok_or_else(|| invalid!("declares no shape; give it one, with names for the dimensions that vary"))?;
    let dims = shape.dim.iter().enumerate().map(|(i, d)| match &d.value {
        Some(DimValue::DimValue(n)) if *n >= 0 => Ok(Dim::Known(usize::try_from(*n).unwrap_or(usize::MAX))),
        Some(DimValue::DimValue(n)) if *n < -1 => Err(invalid!("dimension {i} is {n}")),
        Some(DimValue::DimParam(name)) if !name.is_empty() && !is_negative(name) => {
            Ok(Dim::Named(name.clone()))
        }
        // Not said, or said by the -1 of older exporters.
        _ => Ok(Dim::Named(format!("{}.{i}", input.name()))),
    });
    let dims = dims.collect::<Result<Vec<Dim>>>()?;
    element_count(&dims.iter().map(|d| d.known().unwrap_or(1)).collect::<Vec<_>>())?;
    Ok(Fact::new(elements::dtype(t.elem_type())?, dims))
}

/// Whether a dimension's name is a number such as -1, which names no size and
/// has a meaning of its own in shape arithmetic ([`Dim::as_integer`]).
fn is_negative(name: &str) -> bool {
    Dim::Named(name.into()).as_integer().is_some()
}
