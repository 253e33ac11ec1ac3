//! Functions of the standard domain for operators of other domains.

use lowbit_onnx::proto::{
    AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto, TensorProto, attribute_proto::AttributeType,
};

use super::Writer;
use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::op::{Fact, Op};

/// The functions that a model's operators are.
#[derive(Default)]
pub struct Functions(Vec<Function>);

struct Function {
    domain: &'static str,
    /// The operator's name; for the second and later functions of one operator,
    /// with a number.
    name: String,
    op: &'static str,
    /// The attributes that calls may have.
    attributes: Vec<&'static str>,
    body: Graph,
}

impl Functions {
    /// Adds the functions of a graph's operators, and of those in their bodies.
    ///
    /// # Errors
    /// If a function holds an operator that is not of the standard domain.
    pub fn collect(&mut self, graph: &Graph) -> Result<()> {
        for (_, node, op, inputs) in graph.applied() {
            op.bodies().iter().try_for_each(|body| self.collect(body))?;
            let Some(body) = body_of(graph, &**op, inputs).map_err(|e| e.at(&node.name))? else { continue };
            let attributes: Vec<&'static str> = op.attributes().into_iter().map(|(name, _)| name).collect();
            let same = |f: &&mut Function| f.domain == op.domain() && f.op == op.name();
            if let Some(f) = self.0.iter_mut().filter(same).find(|f| f.body == body) {
                let new = attributes.iter().filter(|a| !f.attributes.contains(*a)).copied();
                let new: Vec<_> = new.collect();
                f.attributes.extend(new);
                continue;
            }
            let number = self.0.iter_mut().filter(|f| same(f)).count();
            let name = if number == 0 { op.name().into() } else { format!("{}_{number}", op.name()) };
            self.0.push(Function { domain: op.domain(), name, op: op.name(), attributes, body });
        }
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the functions hold.
    pub fn bodies(&self) -> impl Iterator<Item = &Graph> {
        self.0.iter().map(|f| &f.body)
    }

    /// The type of the node that `op` is: the name of its function, if it has one.
    ///
    /// # Errors
    /// As [`Functions::collect`].
    pub fn name(&self, graph: &Graph, op: &dyn Op, inputs: &[Var]) -> Result<String> {
        let Some(body) = body_of(graph, op, inputs)? else { return Ok(op.name().into()) };
        let same = |f: &&Function| f.domain == op.domain() && f.op == op.name() && f.body == body;
        Ok(self.0.iter().find(same).map_or(op.name().into(), |f| f.name.clone()))
    }

    /// The functions as a file holds them.
    ///
    /// # Errors
    /// If a constant is of a type that ONNX does not have.
    pub fn protos(&self, writer: &Writer, imports: &[OperatorSetIdProto]) -> Result<Vec<FunctionProto>> {
        self.0.iter().map(|f| f.proto(writer, imports)).collect()
    }
}

/// The function that an operator is on these operands.
fn body_of(graph: &Graph, op: &dyn Op, inputs: &[Var]) -> Result<Option<Graph>> {
    let facts: Vec<&Fact> = inputs.iter().map(|v| graph.fact(*v)).collect();
    let Some(body) = op.function(&facts).transpose()? else { return Ok(None) };
    if let Some((_, _, inner, _)) = body.applied().find(|(_, _, op, _)| !op.domain().is_empty()) {
        let what = format!("{} in the function of {}", inner.name(), op.name());
        return Err(Error::unsupported("a function", what));
    }
    Ok(Some(body))
}

impl Function {
    fn proto(&self, writer: &Writer, imports: &[OperatorSetIdProto]) -> Result<FunctionProto> {
        let file = writer.graph(&self.body, "", &[])?;
        // Functions have no initializers.
        let constant = |t: TensorProto| NodeProto {
            op_type: Some("Constant".into()),
            output: vec![t.name().into()],
            attribute: vec![AttributeProto {
                name: Some("value".into()),
                r#type: Some(AttributeType::Tensor.into()),
                t: Some(Box::new(t)),
                ..AttributeProto::default()
            }],
            ..NodeProto::default()
        };
        Ok(FunctionProto {
            name: Some(self.name.clone()),
            domain: Some(self.domain.into()),
            input: file.input.iter().map(|i| i.name().into()).collect(),
            output: file.output.iter().map(|o| o.name().into()).collect(),
            attribute: self.attributes.iter().map(|a| (*a).into()).collect(),
            node: file.initializer.into_iter().map(constant).chain(file.node).collect(),
            opset_import: imports.to_vec(),
            ..FunctionProto::default()
        })
    }
}
