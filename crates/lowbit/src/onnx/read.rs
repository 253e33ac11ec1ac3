//! ModelProto to Graph.

mod body;
mod function;
mod order;

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use lowbit_onnx::Model;
use lowbit_onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_shape_proto::dimension::Value as DimValue, type_proto,
};

use self::function::{Functions, functions};
use self::order::{in_order, place};
use super::elements;
use super::expand::{self, Abbreviated};
use crate::error::{Error, Result, invalid};
use crate::graph::{Builder, Graph, Var};
use crate::op::{Attribute, Dim, Fact, ReadOp, Reading};
use crate::ops;
use crate::tensor::{Tensor, element_count};

/// The opsets of the standard domain that are read.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=25;

/// How deep bodies may be nested in one another: a body is read again for each
/// change of what the loops around it carry.
const DEEPEST_BODY: usize = 10;

/// How deep calls of functions may be nested in one another.
const DEEPEST_CALL: usize = 32;

/// How many nodes of bodies and functions are read, those that are read again
/// with other shapes or called again counted again: a small file cannot grow
/// without bound.
const NESTED_NODES: usize = 1 << 18;

/// The graph of a model.
pub fn graph(model: &Model) -> Result<Graph> {
    let proto = model.proto();
    let scope = Scope { opsets: opsets(&proto.opset_import)?, ..Scope::default() };
    let file = File { model, functions: functions(proto)?, left: Cell::new(NESTED_NODES) };
    let mut reader = Reader { file: &file, scope, builder: Builder::default(), values: HashMap::new() };
    let outputs = reader.whole(model.graph(), |reader, inputs| {
        for input in inputs {
            let fact = input_fact(input).map_err(|e| e.at(format!("input {}", input.name())))?;
            let v = reader.builder.input(input.name(), fact);
            reader.define(input.name(), v)?;
        }
        Ok(())
    })?;
    if outputs.is_empty() {
        return Err(invalid!("the model has no output"));
    }
    let mut graph = reader.builder.finish(outputs)?;
    if !model.graph().name().is_empty() {
        graph.name = model.graph().name().to_string();
    }
    graph.metadata =
        proto.metadata_props.iter().map(|p| (p.key().to_string(), p.value().to_string())).collect();
    Ok(graph)
}

/// The opset of each domain.
fn opsets(imports: &[OperatorSetIdProto]) -> Result<Rc<HashMap<String, i64>>> {
    let mut found = HashMap::new();
    for import in imports {
        let domain = plain(import.domain());
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
    Ok(Rc::new(found))
}

/// A domain's name: the standard one is empty.
fn plain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// What all graphs of a file share.
struct File<'a> {
    model: &'a Model,
    functions: Functions<'a>,
    /// Nodes of bodies and functions that may still be read.
    left: Cell<usize>,
}

/// Where a node stands.
#[derive(Clone, Default)]
struct Scope<'a> {
    opsets: Rc<HashMap<String, i64>>,
    /// What precedes the names of nodes and values.
    prefix: String,
    /// The names that values have instead.
    renamed: HashMap<&'a str, String>,
    /// The functions that are being read, and the attributes of the innermost call.
    calls: Vec<&'a FunctionProto>,
    attributes: Rc<HashMap<&'a str, AttributeProto>>,
    /// The number of bodies around it.
    bodies: usize,
}

struct Reader<'a> {
    file: &'a File<'a>,
    scope: Scope<'a>,
    builder: Builder,
    values: HashMap<String, Var>,
}

impl<'a> Reader<'a> {
    /// Reads a graph, whose `inputs` that are no constants `declare` defines.
    /// Returns the outputs with their names.
    fn whole(
        &mut self,
        graph: &'a GraphProto,
        declare: impl FnOnce(&mut Self, &[&ValueInfoProto]) -> Result<()>,
    ) -> Result<Vec<(String, Var)>> {
        if let Some(t) = graph.sparse_initializer.first() {
            let name = t.values.as_ref().map_or("", |v| v.name());
            return Err(Error::unsupported("sparse initializer", name));
        }
        let constants: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
        let inputs: Vec<&ValueInfoProto> =
            graph.input.iter().filter(|i| !constants.contains(i.name())).collect();
        if inputs.iter().any(|i| i.name().is_empty()) {
            return Err(invalid!("an input has no name"));
        }
        declare(self, &inputs)?;
        for t in &graph.initializer {
            let place = || format!("initializer {}", t.name());
            let value = self.file.model.tensor(t).map_err(Error::from).and_then(|d| elements::tensor(&d));
            let v = self.builder.constant(&self.name(t.name()), value.map_err(|e| e.at(place()))?);
            self.define(t.name(), v)?;
        }
        self.nodes(&graph.node)?;
        let output = |o: &ValueInfoProto| match self.values.get(o.name()) {
            _ if o.name().is_empty() => Err(invalid!("an output has no name")),
            Some(v) => Ok((self.name(o.name()), *v)),
            None => Err(invalid!("nothing makes it").at(format!("output {}", o.name()))),
        };
        graph.output.iter().map(output).collect()
    }

    fn nodes(&mut self, nodes: &'a [NodeProto]) -> Result<()> {
        for node in in_order(nodes, &self.values)? {
            if self.scope.bodies > 0 || !self.scope.calls.is_empty() {
                let left = self.file.left.get().checked_sub(1);
                let left = left.ok_or_else(|| {
                    invalid!("bodies and functions come to more than {NESTED_NODES} nodes").at(place(node))
                })?;
                self.file.left.set(left);
            }
            self.node(node).map_err(|e| e.at(place(node)))?;
        }
        Ok(())
    }

    /// The name in the graph of what the file calls `name`.
    fn name(&self, name: &str) -> String {
        match self.scope.renamed.get(name) {
            Some(renamed) => renamed.clone(),
            None if name.is_empty() => String::new(),
            None => format!("{}{name}", self.scope.prefix),
        }
    }

    fn define(&mut self, name: &str, v: Var) -> Result<()> {
        match self.values.insert(name.to_string(), v) {
            Some(_) if !name.is_empty() => Err(invalid!("{name:?} is defined twice")),
            _ => Ok(()),
        }
    }

    fn node(&mut self, node: &'a NodeProto) -> Result<()> {
        let domain = plain(node.domain());
        let opset = *self.scope.opsets.get(domain).ok_or_else(|| {
            invalid!("operator {} is of domain {domain:?}, which the model does not import", node.op_type())
        })?;
        let inputs: Vec<Var> = node
            .input
            .iter()
            .map(|i| if i.is_empty() { self.builder.absent() } else { self.values[i.as_str()] })
            .collect();
        let named = node.output.iter().rposition(|o| !o.is_empty()).map_or(0, |i| i + 1);
        let outputs: Vec<String> = node.output[..named].iter().map(|o| self.name(o)).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let name = format!("{}{}", self.scope.prefix, place(node));
        let made = match (domain, node.op_type()) {
            ("", "If") => self.branch(node, &name, &inputs, &outputs)?,
            ("", "Loop") => self.repeat(node, &name, &inputs, &outputs)?,
            ("", "Scan") => self.scan(node, opset, &name, &inputs, &outputs)?,
            _ => self.operator(node, (domain, opset), &name, inputs, &outputs)?,
        };
        for (output, v) in node.output[..named].iter().zip(made) {
            self.define(output, v)?;
        }
        Ok(())
    }

    fn operator(
        &mut self,
        node: &'a NodeProto,
        (domain, opset): (&str, i64),
        name: &str,
        mut inputs: Vec<Var>,
        outputs: &[&str],
    ) -> Result<Vec<Var>> {
        let expansion = expand::expansion(domain, node.op_type(), opset);
        let function = self.file.functions.get(node);
        let read = known(domain, node.op_type(), function.is_some());
        if let (None, None, Some(function)) = (expansion, read, function) {
            return self.call(node, function, name, &inputs, outputs);
        }
        let unknown = || {
            let of = if domain.is_empty() { String::new() } else { format!(" of domain {domain}") };
            Error::unsupported(format!("operator {}{of}", node.op_type()), "it")
        };
        if expansion.is_none() && read.is_none() {
            return Err(unknown());
        }
        let constants = inputs.iter().map(|v| self.builder.so_far().constant(*v).cloned()).collect();
        let mut attributes = BTreeMap::new();
        for a in self.attributes(node) {
            attributes.insert(a.name().to_string(), self.attribute(&a)?);
        }
        let mut reading = Reading::new(node.op_type(), opset, attributes, constants, outputs.len());
        if let Some(expand) = expansion {
            let b = &mut self.builder;
            let mut node = Abbreviated { b, reading: &mut reading, name, inputs: &inputs, outputs };
            let made = expand(&mut node)?;
            reading.finish()?;
            return Ok(made);
        }
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
        self.builder.apply_all(name, op, &inputs, outputs)
    }

    /// The attributes of a node.
    fn attributes(&self, node: &'a NodeProto) -> Vec<Cow<'a, AttributeProto>> {
        node.attribute.iter().filter_map(|a| self.resolved(a)).collect()
    }

    /// An attribute, or that of the call around it which it refers to, if that is given.
    fn resolved(&self, a: &'a AttributeProto) -> Option<Cow<'a, AttributeProto>> {
        match a.ref_attr_name() {
            "" => Some(Cow::Borrowed(a)),
            referred => {
                let given = self.scope.attributes.get(referred)?;
                Some(Cow::Owned(AttributeProto { name: a.name.clone(), ..given.clone() }))
            }
        }
    }

    fn attribute(&self, a: &AttributeProto) -> Result<Attribute> {
        let text = |s: &[u8]| {
            String::from_utf8(s.to_vec()).map_err(|_| invalid!("attribute {} is not UTF-8", a.name()))
        };
        Ok(match kind(a) {
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
        elements::tensor(&self.file.model.tensor(t)?).map_err(|e| e.at(format!("attribute {}", a.name())))
    }
}

/// The type of an attribute: by its content in an old file that does not state it.
fn kind(a: &AttributeProto) -> AttributeType {
    if a.r#type() != AttributeType::Undefined {
        a.r#type()
    } else if a.f.is_some() {
        AttributeType::Float
    } else if a.i.is_some() {
        AttributeType::Int
    } else if a.s.is_some() {
        AttributeType::String
    } else if a.t.is_some() {
        AttributeType::Tensor
    } else if a.g.is_some() {
        AttributeType::Graph
    } else if !a.floats.is_empty() {
        AttributeType::Floats
    } else if !a.strings.is_empty() {
        AttributeType::Strings
    } else {
        AttributeType::Ints
    }
}

/// How nodes of this type are read. Of its own operators, lowbit writes those
/// that need another function than the first of their name with a number.
fn known(domain: &str, op_type: &str, is_function: bool) -> Option<ReadOp> {
    let numbered = || {
        let (name, number) = op_type.rsplit_once('_')?;
        let is_numbered = domain == "lowbit" && is_function && number.parse::<u32>().is_ok();
        is_numbered.then(|| ops::reader(domain, name))?
    };
    ops::reader(domain, op_type).or_else(numbered)
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
