//! Branches and loops: nodes that hold graphs.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use lowbit_onnx::proto::{GraphProto, NodeProto, ValueInfoProto, attribute_proto::AttributeType, type_proto};

use super::order::captured;
use super::{DEEPEST_BODY, Reader, Scope, kind};
use crate::error::{Error, Result, invalid};
use crate::graph::{Builder, Graph, Var};
use crate::op::{Attribute, Fact};
use crate::ops::control::{If, Loop, Scan, Track, element, settled, taken};
use crate::tensor::DType;

/// The values that bodies capture, each with its name in the file.
type Captured<'a> = Vec<(&'a str, Var)>;

impl<'a> Reader<'a> {
    /// `If`: only the branch that is taken, where that is known.
    pub(super) fn branch(
        &mut self,
        node: &'a NodeProto,
        name: &str,
        inputs: &[Var],
        outputs: &[&str],
    ) -> Result<Vec<Var>> {
        let [condition] = inputs else {
            return Err(invalid!("If takes one condition, found {}", inputs.len()));
        };
        self.check_attributes(node, &["then_branch", "else_branch"])?;
        let branches = [graph_of(node, "then_branch")?, graph_of(node, "else_branch")?];
        let read = |reader: &Self, i: usize, captured: &Captured| {
            let at = ["then_branch", "else_branch"][i];
            reader.body(branches[i], name, &[], captured).map_err(|e| e.at(at))
        };
        if let Some(then) = taken(self.builder.fact(*condition)) {
            let i = usize::from(!then);
            let (captured, values) = self.captured([branches[i]]);
            let body = read(self, i, &captured)?;
            return self.builder.splice(&body, &values, outputs);
        }
        let (captured, values) = self.captured(branches);
        let branches = [read(self, 0, &captured)?, read(self, 1, &captured)?];
        let op = If::new(branches, values.len()).map_err(|e| e.at("If"))?;
        self.builder.apply_all(name, Arc::new(op), &[inputs, &values].concat(), outputs)
    }

    /// `Loop`.
    pub(super) fn repeat(
        &mut self,
        node: &'a NodeProto,
        name: &str,
        inputs: &[Var],
        outputs: &[&str],
    ) -> Result<Vec<Var>> {
        self.check_attributes(node, &["body"])?;
        let graph = graph_of(node, "body")?;
        let carried = inputs.get(2..).unwrap_or_default();
        let names: Vec<String> = graph.input.iter().skip(2).map(|i| self.name(i.name())).collect();
        if graph.input.len() != 2 + carried.len() {
            return Err(invalid!(
                "the body takes {} inputs, and iteration, condition and carried values are {}",
                graph.input.len(),
                2 + carried.len()
            )
            .at("Loop"));
        }
        if graph.output.len() < 1 + carried.len() {
            let (found, carried) = (graph.output.len(), carried.len());
            return Err(invalid!(
                "the body has {found} outputs, fewer than condition and {carried} carried values"
            )
            .at("Loop"));
        }
        let scalar = |i: usize, dtype| match declared_rank(&graph.input[i]) {
            Some(1) => Fact::new(dtype, [1usize]),
            _ => Fact::new(dtype, [0usize; 0]),
        };
        let scalars = [scalar(0, DType::I64), scalar(1, DType::Bool)];
        let (captured, values) = self.captured([graph]);
        let start = carried.iter().map(|v| self.builder.fact(*v).clone()).collect();
        let body = settled(start, &names, |carried| {
            self.body(graph, name, &[&scalars, carried].concat(), &captured).map_err(|e| e.at("body"))
        });
        let op =
            body.and_then(|body| Loop::new(body, carried.len(), values.len())).map_err(|e| e.at("Loop"))?;
        let mut operands = inputs.to_vec();
        while operands.len() < 2 {
            operands.push(self.builder.absent());
        }
        operands.extend(values);
        self.builder.apply_all(name, Arc::new(op), &operands, outputs)
    }

    /// `Scan`.
    pub(super) fn scan(
        &mut self,
        node: &'a NodeProto,
        opset: i64,
        name: &str,
        inputs: &[Var],
        outputs: &[&str],
    ) -> Result<Vec<Var>> {
        if opset < 9 {
            return Err(Error::unsupported("Scan", "the batched form of opset 8"));
        }
        const LISTS: [&str; 4] =
            ["scan_input_axes", "scan_input_directions", "scan_output_axes", "scan_output_directions"];
        self.check_attributes(node, &[&["body", "num_scan_inputs"], &LISTS[..]].concat())?;
        let graph = graph_of(node, "body")?;
        let mut numbers: HashMap<String, Vec<i64>> = HashMap::new();
        for a in self.attributes(node).iter().filter(|a| a.name() != "body") {
            let ints = match self.attribute(a)? {
                Attribute::Int(x) => vec![x],
                Attribute::Ints(x) => x,
                _ => return Err(invalid!("attribute {} holds no integers", a.name()).at("Scan")),
            };
            numbers.insert(a.name().into(), ints);
        }
        let count = numbers.get("num_scan_inputs").and_then(|n| usize::try_from(*n.first()?).ok());
        let states = count.filter(|n| *n > 0).and_then(|n| inputs.len().checked_sub(n));
        let states = states
            .ok_or_else(|| invalid!("num_scan_inputs = {count:?} of {} inputs", inputs.len()).at("Scan"))?;
        let fits = inputs.len() == graph.input.len() && states <= graph.output.len();
        if !fits {
            return Err(invalid!(
                "the body has {} inputs and {} outputs for {} operands, {states} of them states",
                graph.input.len(),
                graph.output.len(),
                inputs.len()
            )
            .at("Scan"));
        }
        let tracks = |kind: &str, count: usize| -> Result<Vec<Track>> {
            let list = |what: &str| match numbers.get(&format!("scan_{kind}_{what}")) {
                None => Ok(vec![0; count]),
                Some(x) if x.len() == count => Ok(x.clone()),
                Some(x) => Err(invalid!("scan_{kind}_{what} = {x:?} for {count} values").at("Scan")),
            };
            let tracks = list("axes")?.into_iter().zip(list("directions")?);
            Ok(tracks.map(|(axis, direction)| Track { axis, reverse: direction != 0 }).collect())
        };
        let sequences = tracks("input", inputs.len() - states)?;
        let collected = tracks("output", graph.output.len() - states)?;
        let fact = |(i, v): (usize, &Var)| {
            let fact = self.builder.fact(*v);
            match i.checked_sub(states) {
                None => Ok(fact.with_shape(fact.shape.clone())),
                Some(k) => element(fact, sequences[k]),
            }
        };
        let facts =
            inputs.iter().enumerate().map(fact).collect::<Result<Vec<_>>>().map_err(|e| e.at("Scan"))?;
        let (captured, values) = self.captured([graph]);
        let body = self.body(graph, name, &facts, &captured).map_err(|e| e.at("body").at("Scan"))?;
        let op = Scan::new(body, sequences, collected, values.len()).map_err(|e| e.at("Scan"))?;
        self.builder.apply_all(name, Arc::new(op), &[inputs, &values].concat(), outputs)
    }

    /// What these graphs capture: values of this one, and of those around it.
    fn captured<const N: usize>(&self, graphs: [&'a GraphProto; N]) -> (Captured<'a>, Vec<Var>) {
        let names: BTreeSet<&str> = graphs.into_iter().flat_map(captured).collect();
        let named: Captured = names.into_iter().map(|name| (name, self.values[name])).collect();
        let values = named.iter().map(|(_, v)| *v).collect();
        (named, values)
    }

    /// A body whose inputs are of these facts, and which captures these values:
    /// the constants among them are its own.
    fn body(
        &self,
        graph: &'a GraphProto,
        node: &str,
        facts: &[Fact],
        captured: &[(&'a str, Var)],
    ) -> Result<Graph> {
        let bodies = self.scope.bodies + 1;
        if bodies > DEEPEST_BODY {
            return Err(invalid!("branches and loops are nested more than {DEEPEST_BODY} deep"));
        }
        let scope = Scope { renamed: HashMap::new(), bodies, ..self.scope.clone() };
        let mut reader =
            Reader { file: self.file, scope, builder: Builder::default(), values: HashMap::new() };
        let outputs = reader.whole(graph, |reader, inputs| {
            if inputs.len() != facts.len() {
                return Err(invalid!("takes {} inputs, not {}", inputs.len(), facts.len()));
            }
            for (input, fact) in inputs.iter().zip(facts) {
                check_type(input).map_err(|e| e.at(format!("input {}", input.name())))?;
                let name = reader.name(input.name());
                let v = reader.builder.input(&name, fact.clone());
                reader.define(input.name(), v)?;
            }
            for (name, v) in captured {
                let (outer, fact) = (self.builder.name(*v), self.builder.fact(*v).clone());
                // An input in any case: all bodies of a node capture the same.
                let v = match self.builder.so_far().constant(*v) {
                    Some(t) => {
                        reader.builder.input("", fact);
                        reader.builder.constant(outer, t.clone())
                    }
                    None => reader.builder.input(outer, fact),
                };
                reader.values.insert((*name).to_string(), v);
            }
            Ok(())
        })?;
        // Each output is a value of the body's own.
        let mut taken: HashSet<String> = captured.iter().map(|(_, v)| self.builder.name(*v).into()).collect();
        let mut renamed = vec![];
        for (i, (name, v)) in outputs.into_iter().enumerate() {
            let name = if taken.insert(name.clone()) { name } else { format!("{node}/{name}.{i}") };
            renamed.push((name, v));
        }
        let mut body = reader.builder.finish(renamed)?;
        if !graph.name().is_empty() {
            body.name = graph.name().to_string();
        }
        Ok(body)
    }

    /// Refuses attributes that the operator does not have.
    fn check_attributes(&self, node: &'a NodeProto, known: &[&str]) -> Result<()> {
        match self.attributes(node).iter().find(|a| !known.contains(&a.name())) {
            Some(a) => Err(Error::unsupported(node.op_type(), format!("attribute {}", a.name()))),
            None => Ok(()),
        }
    }
}

/// The graph that attribute `name` is.
fn graph_of<'a>(node: &'a NodeProto, name: &str) -> Result<&'a GraphProto> {
    let found = node.attribute.iter().find(|a| a.name() == name);
    let graph = found.filter(|a| kind(a) == AttributeType::Graph).and_then(|a| a.g.as_deref());
    graph.ok_or_else(|| invalid!("has no graph as attribute {name}").at(node.op_type()))
}

/// Refuses inputs that are no tensors.
fn check_type(input: &ValueInfoProto) -> Result<()> {
    match input.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        None | Some(type_proto::Value::TensorType(_)) => Ok(()),
        Some(_) => Err(Error::unsupported("an input", "a type other than a tensor's")),
    }
}

/// The number of dimensions that an input declares.
fn declared_rank(input: &ValueInfoProto) -> Option<usize> {
    match input.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(t) => Some(t.shape.as_ref()?.dim.len()),
        _ => None,
    }
}
