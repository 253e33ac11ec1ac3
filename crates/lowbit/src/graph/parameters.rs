//! Constants as inputs, so that they can be trained, and back.

use super::{Graph, Value};
use crate::error::{Result, invalid};
use crate::op::Fact;
use crate::tensor::Tensor;

impl Graph {
    /// The graph with the constants that `is_parameter` names as further inputs,
    /// and their values in the order of those. What was folded into a constant
    /// stays folded.
    ///
    /// # Errors
    /// If an operator needs one of them to be constant; the error names the node.
    pub fn lift(
        &self,
        is_parameter: impl Fn(&Value, &Tensor) -> bool,
    ) -> Result<(Graph, Vec<(String, Tensor)>)> {
        let mut lifted = vec![];
        let mut graph = self.replay_with(
            |b, _, value| Ok(b.input(&value.name, value.fact.clone())),
            |b, value, t| {
                if !is_parameter(value, t) {
                    return Ok(b.constant(&value.name, t.clone()));
                }
                lifted.push((value.name.clone(), t.clone()));
                Ok(b.input(&value.name, Fact::new(t.dtype(), t.shape().iter().copied())))
            },
            |b, _, node, inputs| b.copy(node, inputs),
        )?;
        let given: Vec<&str> = self.inputs().map(|(_, v)| v.name.as_str()).collect();
        let mut inputs = std::mem::take(&mut graph.inputs);
        inputs.sort_by_key(|v| !given.contains(&graph.value(*v).name.as_str()));
        graph.inputs = inputs;
        Ok((graph, lifted))
    }

    /// The graph with other values for the constants that `value` names.
    ///
    /// # Errors
    /// If one is of another type or shape; the error names it.
    pub fn with_constants<'a>(&self, value: impl Fn(&str) -> Option<&'a Tensor>) -> Result<Graph> {
        for (v, _) in self.nodes() {
            let name = &self.value(v).name;
            if let (Some(had), Some(t)) = (self.constant(v), value(name))
                && (had.dtype(), had.shape()) != (t.dtype(), t.shape())
            {
                let (a, b) = (had.dtype(), t.dtype());
                return Err(invalid!("is {a}{:?}, found {b}{:?}", had.shape(), t.shape()).at(name));
            }
        }
        self.replay_with(
            |b, _, value| Ok(b.input(&value.name, value.fact.clone())),
            |b, v, t| Ok(b.constant(&v.name, value(&v.name).unwrap_or(t).clone())),
            |b, _, node, inputs| b.copy(node, inputs),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::graph::Builder;
    use crate::op::Dim;
    use crate::ops::binary::Arithmetic;
    use crate::tensor::DType;

    #[test]
    fn lifted_constants_come_after_the_inputs_and_others_take_their_place() {
        let mut b = Builder::default();
        let w = b.constant("w", Tensor::vector(vec![2f32, 3.]));
        let two = b.constant("two", Tensor::scalar(2f32));
        let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2)]));
        let y = b.apply("scaled", Arc::new(Arithmetic::Mul), &[x, w]).unwrap();
        let y = b.apply("y", Arc::new(Arithmetic::Add), &[y, two]).unwrap();
        let graph = b.finish([("y".to_string(), y)]).unwrap();
        let (lifted, values) = graph.lift(|v, _| v.name == "w").unwrap();
        let names: Vec<&str> = lifted.inputs().map(|(_, v)| v.name.as_str()).collect();
        assert_eq!(names, ["x", "w"]);
        let x = Tensor::new(&[1, 2], vec![1f32, -1.]).unwrap();
        let run = lifted.run(&[x.clone(), values[0].1.clone()]).unwrap();
        assert_eq!(run, graph.run(std::slice::from_ref(&x)).unwrap());
        let doubled = Tensor::vector(vec![4f32, 6.]);
        let other = graph.with_constants(|name| (name == "w").then_some(&doubled)).unwrap();
        assert_eq!(other.run(&[x]).unwrap(), [Tensor::new(&[1, 2], vec![6f32, -4.]).unwrap()]);
        assert_eq!(graph.with_constants(|_| None).unwrap(), graph);
        let wrong = Tensor::vector(vec![1f32]);
        let error = graph.with_constants(|name| (name == "w").then_some(&wrong)).unwrap_err().to_string();
        assert!(error.contains('w') && error.contains("[2]"), "{error}");
    }
}
