//! Calls of the model's functions, replaced by what the functions hold.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use lowbit_onnx::proto::{
    AttributeProto, FunctionProto, ModelProto, NodeProto, attribute_proto::AttributeType,
};

use super::{DEEPEST_CALL, Reader, Scope, kind, opsets, plain};
use crate::error::{Error, Result, invalid};
use crate::graph::Var;

/// A model's functions by domain, name and overload.
pub struct Functions<'a>(HashMap<(&'a str, &'a str, &'a str), &'a FunctionProto>);

/// The functions of a model.
pub fn functions(model: &ModelProto) -> Result<Functions<'_>> {
    let mut found = HashMap::new();
    for f in &model.functions {
        if found.insert((plain(f.domain()), f.name(), f.overload()), f).is_some() {
            return Err(invalid!("is defined twice").at(format!("function {}", f.name())));
        }
    }
    Ok(Functions(found))
}

impl<'a> Functions<'a> {
    /// The function that a node calls, if it calls one.
    pub fn get(&self, node: &NodeProto) -> Option<&'a FunctionProto> {
        self.0.get(&(plain(node.domain()), node.op_type(), node.overload())).copied()
    }
}

impl<'a> Reader<'a> {
    /// The nodes of `function` in the place of the node that calls it, whose
    /// name precedes theirs.
    pub(super) fn call(
        &mut self,
        node: &'a NodeProto,
        function: &'a FunctionProto,
        name: &str,
        inputs: &[Var],
        outputs: &[&str],
    ) -> Result<Vec<Var>> {
        let place = || format!("function {}", function.name());
        if self.scope.calls.iter().any(|f| std::ptr::eq(*f, function)) {
            return Err(invalid!("calls itself").at(place()));
        }
        if inputs.len() > function.input.len() || outputs.len() > function.output.len() {
            return Err(invalid!(
                "has {} inputs and {} outputs, and is called with {} and {}",
                function.input.len(),
                function.output.len(),
                inputs.len(),
                outputs.len()
            )
            .at(place()));
        }
        if self.scope.calls.len() == DEEPEST_CALL {
            return Err(invalid!("functions call one another more than {DEEPEST_CALL} deep").at(place()));
        }
        let mut calls = self.scope.calls.clone();
        calls.push(function);
        let renamed = function.output.iter().zip(outputs).filter(|(_, o)| !o.is_empty());
        let scope = Scope {
            opsets: opsets(&function.opset_import).map_err(|e| e.at(place()))?,
            prefix: format!("{name}/"),
            renamed: renamed.map(|(inner, outer)| (inner.as_str(), (*outer).to_string())).collect(),
            attributes: Rc::new(self.arguments(node, function)?),
            calls,
            bodies: self.scope.bodies,
        };
        let scope = std::mem::replace(&mut self.scope, scope);
        let values = std::mem::take(&mut self.values);
        for (i, name) in function.input.iter().enumerate() {
            let v = inputs.get(i).copied().unwrap_or_else(|| self.builder.absent());
            self.define(name, v).map_err(|e| e.at(place()))?;
        }
        self.nodes(&function.node).map_err(|e| e.at(place()))?;
        let made = function.output.iter().take(outputs.len()).map(|o| {
            let v = self.values.get(o.as_str()).copied();
            v.ok_or_else(|| invalid!("nothing makes output {o:?}").at(place()))
        });
        let made = made.collect::<Result<Vec<_>>>()?;
        self.scope = scope;
        self.values = values;
        Ok(made)
    }

    /// The attributes that a function's nodes can refer to: those of the call,
    /// and for others the function's defaults.
    fn arguments(
        &self,
        node: &'a NodeProto,
        function: &'a FunctionProto,
    ) -> Result<HashMap<&'a str, AttributeProto>> {
        let mut found: HashMap<&str, AttributeProto> =
            function.attribute_proto.iter().map(|a| (a.name(), a.clone())).collect();
        let declared: HashSet<&str> =
            function.attribute.iter().map(String::as_str).chain(found.keys().copied()).collect();
        for (a, given) in node.attribute.iter().filter_map(|a| Some((a, self.resolved(a)?))) {
            if !declared.contains(a.name()) {
                let what = format!("attribute {}, which it does not declare,", a.name());
                return Err(Error::unsupported(format!("function {}", function.name()), what));
            }
            if matches!(kind(&given), AttributeType::Graph | AttributeType::Graphs) {
                let what = format!("attribute {}, a graph,", a.name());
                return Err(Error::unsupported(format!("function {}", function.name()), what));
            }
            found.insert(a.name(), given.into_owned());
        }
        Ok(found)
    }
}
