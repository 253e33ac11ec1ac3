//! Constants as inputs, so that they can be trained, and back.

use std::collections::HashMap;

use super::{Graph, Value, Var, stored};
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
            |b, _, value| b.input(&value.name, value.fact.clone()),
            |b, value, t| {
                if !is_parameter(value, t) {
                    return b.constant(&value.name, t.clone());
                }
                lifted.push((value.name.clone(), t.clone()));
                b.input(&value.name, Fact::new(t.dtype(), t.shape().iter().copied()))
            },
            |b, _, node, inputs| b.copy(node, inputs),
        )?;
        let given: Vec<&str> = self.inputs().map(|(_, v)| v.name.as_str()).collect();
        let mut inputs = std::mem::take(&mut graph.inputs);
        inputs.sort_by_key(|v| !given.contains(&graph.value(*v).name.as_str()));
        graph.inputs = inputs;
        Ok((graph, lifted))
    }

    /// The graph with the inputs named in `values` as constants; the reverse of
    /// [`Graph::lift`].
    ///
    /// # Errors
    /// If there is no such input, or the value is of another type or shape.
    pub fn bind<'a>(&self, values: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<Graph> {
        let values: HashMap<&str, &Tensor> = values.into_iter().collect();
        for (name, t) in &values {
            let (v, _) = self
                .inputs()
                .find(|(_, value)| value.name == *name)
                .ok_or_else(|| invalid!("the graph has no input {name:?}"))?;
            let fact = self.fact(v);
            if fact.dtype != t.dtype() || fact.known_shape().is_none_or(|shape| shape != t.shape()) {
                return Err(invalid!("takes {fact}, found {}{:?}", t.dtype(), t.shape()).at(*name));
            }
        }
        self.replay_with(
            |b, _, value| match values.get(value.name.as_str()) {
                Some(t) => b.constant(&value.name, (*t).clone()),
                None => b.input(&value.name, value.fact.clone()),
            },
            stored,
            |b, _, node, inputs| b.copy(node, inputs),
        )
    }

    /// The input named `name`.
    pub fn input_named(&self, name: &str) -> Option<Var> {
        self.inputs().find(|(_, value)| value.name == name).map(|(v, _)| v)
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
    fn lifted_constants_come_after_the_inputs_and_are_bound_again() {
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
        assert_eq!(run, graph.run(&[x]).unwrap());
        let bound = lifted.bind(values.iter().map(|(name, t)| (name.as_str(), t))).unwrap();
        assert_eq!(bound, graph);
        let wrong = Tensor::vector(vec![1f32]);
        let error = lifted.bind([("w", &wrong)]).unwrap_err().to_string();
        assert!(error.contains('w') && error.contains("[2]"), "{error}");
        assert!(lifted.bind([("v", &wrong)]).unwrap_err().to_string().contains("no input"));
    }
}
