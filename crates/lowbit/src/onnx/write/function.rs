//! Functions of the standard domain for operators of other domains.

use std::collections::BTreeMap;

use lowbit_onnx::proto::{
    AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto, TensorProto, attribute_proto::AttributeType,
};

use super::{LEAST_OPSET, Writer};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Var};
use crate::op::{Fact, Op};

/// The functions that a model's operators are.
#[derive(Default)]
pub struct Functions(Vec<Function>);

struct Function {
    /// The operator's name; for the second and later functions of one operator,
    /// with a number.
    name: String,
    op: &'static str,
    domain: &'static str,
    /// The attributes that calls may have.
    attributes: Vec<&'static str>,
    body: Graph,
    /// What tells it from the operator's other functions, which may be for
    /// other shapes and yet the same.
    form: FunctionProto,
}

impl Functions {
    /// Adds the functions of a graph's operators, and of those in their bodies.
    ///
    /// # Errors
    /// If a function holds an operator that is not of the standard domain.
    pub fn collect(&mut self, graph: &Graph) -> Result<()> {
        for (_, node, op, inputs) in graph.applied() {
            op.bodies().iter().try_for_each(|body| self.collect(body))?;
            self.add(graph, node, &**op, inputs).map_err(|e| e.at(&node.name))?;
        }
        Ok(())
    }

    fn add(&mut self, graph: &Graph, node: &Node, op: &dyn Op, inputs: &[Var]) -> Result<()> {
        let Some((body, form)) = function_of(graph, node, op, inputs)? else { return Ok(()) };
        let attributes = op.attributes().into_iter().map(|(name, _)| name);
        if let Some(f) = self.0.iter_mut().find(|f| f.is(op) && f.form == form) {
            for name in attributes {
                if !f.attributes.contains(&name) {
                    f.attributes.push(name);
                }
            }
            return Ok(());
        }
        let number = self.0.iter().filter(|f| f.is(op)).count();
        let name = if number == 0 { op.name().into() } else { format!("{}_{number}", op.name()) };
        let attributes = attributes.collect();
        self.0.push(Function { name, op: op.name(), domain: op.domain(), attributes, body, form });
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
    pub fn name(&self, graph: &Graph, node: &Node, op: &dyn Op, inputs: &[Var]) -> Result<String> {
        let form = function_of(graph, node, op, inputs)?.map(|(_, form)| form);
        let function = form.and_then(|form| self.0.iter().find(|f| f.is(op) && f.form == form));
        Ok(function.map_or(op.name().into(), |f| f.name.clone()))
    }

    /// The functions as a file holds them.
    ///
    /// # Errors
    /// If a constant is of a type that ONNX does not have.
    pub fn protos(&self, writer: &Writer, imports: &[OperatorSetIdProto]) -> Result<Vec<FunctionProto>> {
        let proto = |f: &Function| {
            Ok(FunctionProto {
                name: Some(f.name.clone()),
                domain: Some(f.domain.into()),
                attribute: f.attributes.iter().map(|a| (*a).into()).collect(),
                opset_import: imports.to_vec(),
                output: f.form.output.clone(),
                ..form(writer, &f.body)?
            })
        };
        self.0.iter().map(proto).collect()
    }
}

impl Function {
    fn is(&self, op: &dyn Op) -> bool {
        (self.domain, self.op) == (op.domain(), op.name())
    }
}

/// The function that an operator is on these operands, and its form, with the
/// outputs that the node names: onnxruntime 1.23 aborts where there are more.
fn function_of(
    graph: &Graph,
    node: &Node,
    op: &dyn Op,
    inputs: &[Var],
) -> Result<Option<(Graph, FunctionProto)>> {
    let facts: Vec<&Fact> = inputs.iter().map(|v| graph.fact(*v)).collect();
    let Some(body) = op.function(&facts).transpose()? else { return Ok(None) };
    if let Some((_, _, inner, _)) = body.applied().find(|(_, _, op, _)| !op.domain().is_empty()) {
        let what = format!("{} in the function of {}", inner.name(), op.name());
        return Err(Error::unsupported("a function", what));
    }
    let (functions, shared) = (Functions::default(), BTreeMap::new());
    let writer = Writer { opset: LEAST_OPSET, functions: &functions, shared: &shared };
    let mut form = form(&writer, &body)?;
    form.output.truncate(node.outputs.len());
    Ok(Some((body, form)))
}

/// The inputs, outputs and nodes of a function, which has no initializers.
fn form(writer: &Writer, body: &Graph) -> Result<FunctionProto> {
    let file = writer.graph(body, "", &[])?;
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
        input: file.input.iter().map(|i| i.name().into()).collect(),
        output: file.output.iter().map(|o| o.name().into()).collect(),
        node: file.initializer.into_iter().map(constant).chain(file.node).collect(),
        ..FunctionProto::default()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;

    use super::super::encode;
    use super::*;
    use crate::graph::Builder;
    use crate::op::{Attribute, Attributes};
    use crate::ops::binary::Arithmetic;
    use crate::ops::control::If;
    use crate::tensor::{DType, Tensor};

    /// `by x`, an operator of a domain of its own; without a factor, one whose
    /// function is of that domain too.
    #[derive(Debug)]
    struct Scaled {
        by: Option<f32>,
    }

    impl Op for Scaled {
        fn name(&self) -> &'static str {
            "Scaled"
        }
        fn domain(&self) -> &'static str {
            "lowbit"
        }
        fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
            Ok(vec![inputs[0].clone()])
        }
        fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
            let by = self.by.unwrap_or(1.0);
            let y = inputs[0].slice::<f32>()?.iter().map(|x| by * x).collect();
            Ok(vec![Tensor::new(inputs[0].shape(), y)?])
        }
        fn attributes(&self) -> Attributes {
            self.by.iter().map(|by| ("by", Attribute::Float(*by))).collect()
        }
        fn function(&self, inputs: &[&Fact]) -> Option<Result<Graph>> {
            let mut b = Builder::default();
            let x = b.input("x", inputs[0].clone());
            let y = match self.by {
                Some(by) => {
                    let by = b.constant("factor", Tensor::scalar(by));
                    b.apply("y", Arc::new(Arithmetic::Mul), &[x, by])
                }
                None => b.apply("y", Arc::new(Scaled { by: None }), &[x]),
            };
            Some(y.and_then(|y| b.finish([("y".into(), y)])))
        }
    }

    fn scaled(b: &mut Builder, name: &str, by: f32, x: Var) -> Var {
        b.apply(name, Arc::new(Scaled { by: Some(by) }), &[x]).unwrap()
    }

    #[test]
    fn operators_with_functions_are_calls() {
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, [2usize]));
        let z = b.input("z", Fact::new(DType::F32, [3usize]));
        let c = b.input("c", Fact::new(DType::Bool, [0usize; 0]));
        let first = scaled(&mut b, "first", 2.0, x);
        let other = scaled(&mut b, "other", 2.0, z);
        let branch = |by: f32| {
            let mut b = Builder::default();
            let v = b.input("v", Fact::new(DType::F32, [2usize]));
            let y = scaled(&mut b, "inner", by, v);
            b.finish([("inner".to_string(), y)]).unwrap()
        };
        let op = If::new([branch(2.0), branch(-1.0)], 1).unwrap();
        let y = b.apply("y", Arc::new(op), &[c, first]).unwrap();
        let graph = b.finish([("y".to_string(), y), ("other".to_string(), other)]).unwrap();

        let model = encode(&graph).unwrap();
        let names: Vec<&str> = model.functions.iter().map(|f| f.name()).collect();
        assert_eq!(names, ["Scaled", "Scaled_1"]);
        assert!(model.ir_version() >= 8);
        for f in &model.functions {
            assert_eq!((f.domain(), &f.opset_import), ("lowbit", &model.opset_import));
            assert_eq!(
                (&f.attribute, &f.input, &f.output),
                (&vec!["by".into()], &vec!["x".into()], &vec!["y".into()])
            );
        }
        let inlined = crate::onnx::decode(&model.encode_to_vec()).unwrap();
        assert!(inlined.applied().all(|(_, _, op, _)| op.domain().is_empty()), "{inlined}");
        for (c, want) in [(true, [4f32, 8.0]), (false, [-2.0, -4.0])] {
            let inputs =
                [Tensor::vector(vec![1f32, 2.0]), Tensor::vector(vec![1f32, 2.0, 3.0]), Tensor::scalar(c)];
            let want = [Tensor::vector(want.to_vec()), Tensor::vector(vec![2f32, 4.0, 6.0])];
            assert_eq!(graph.run(&inputs).unwrap(), want);
            assert_eq!(inlined.run(&inputs).unwrap(), want);
        }
    }

    #[test]
    fn functions_are_of_standard_operators() {
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, [2usize]));
        let y = b.apply("y", Arc::new(Scaled { by: None }), &[x]).unwrap();
        let graph = b.finish([("y".to_string(), y)]).unwrap();
        let e = encode(&graph).unwrap_err().to_string();
        assert!(e.contains("y: a function: Scaled in the function of Scaled is not supported"), "{e}");
    }
}
