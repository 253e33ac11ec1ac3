//! Reverse mode: a run that keeps its values, and the gradients of a scalar.

use std::borrow::Cow;

use rayon::prelude::*;

use super::run::{Values, operands};
use super::{Graph, Kind, Var};
use crate::error::{Result, invalid};
use crate::op::Reverse;
use crate::tensor::buffers::recycle;
use crate::tensor::{DType, Tensor};

/// The values of one run of a graph, as far as the gradients by some of them
/// need them.
#[derive(Debug)]
pub struct Tape<'g> {
    graph: Cow<'g, Graph>,
    values: Values,
    wanted: Vec<Var>,
}

impl Graph {
    /// Runs the graph and keeps what the gradients by the values `wanted` need.
    ///
    /// # Errors
    /// As [`Graph::run`].
    pub fn record(&self, inputs: &[Tensor], wanted: &[Var]) -> Result<Tape<'_>> {
        self.check_inputs(inputs)?;
        let on_path = self.on_path(wanted);
        let (last, mut kept) = (self.last_uses(), on_path.clone());
        for (v, _, _, operands) in self.applied().filter(|(v, ..)| on_path[v.node]) {
            kept[v.node] = true;
            operands.iter().for_each(|x| kept[x.node] = true);
        }
        let mut values = self.given(inputs);
        for (i, node) in self.nodes.iter().enumerate() {
            match &node.kind {
                Kind::Input => {}
                Kind::Const(t) => values[i][0] = Some(t.clone()),
                Kind::Apply { op, inputs } => {
                    let operands = operands(&mut values, inputs, |v| last[v.node] == i && !kept[v.node])?;
                    let made = op.eval_owned(operands).map_err(|e| e.at(op.name()).at(&node.name))?;
                    values[i] = made.into_iter().map(Some).take(node.outputs.len()).collect();
                }
            }
        }
        Ok(Tape { graph: Cow::Borrowed(self), values, wanted: wanted.to_vec() })
    }

    /// The nodes whose f32 values follow from those `wanted`, by f32 values.
    fn on_path(&self, wanted: &[Var]) -> Vec<bool> {
        let mut on_path = vec![false; self.nodes.len()];
        wanted.iter().for_each(|v| on_path[v.node] = true);
        for (i, node) in self.nodes.iter().enumerate() {
            if let Kind::Apply { inputs, .. } = &node.kind
                && node.outputs.iter().any(|o| o.fact.dtype == DType::F32)
            {
                on_path[i] |= inputs.iter().any(|v| on_path[v.node] && self.fact(*v).dtype == DType::F32);
            }
        }
        on_path
    }
}

impl<'g> Tape<'g> {
    /// The tape of a graph whose values are known.
    pub(super) fn new(graph: Graph, values: Values, wanted: Vec<Var>) -> Tape<'g> {
        Tape { graph: Cow::Owned(graph), values, wanted }
    }

    /// The value of `v`, if it was kept.
    pub fn value(&self, v: Var) -> Option<&Tensor> {
        self.values[v.node][v.slot].as_ref()
    }

    /// The outputs, in the graph's order.
    ///
    /// # Errors
    /// If one was not computed; the error names it.
    pub fn outputs(&self) -> Result<Vec<Tensor>> {
        let value = |(name, v): (&str, Var)| {
            self.value(v).cloned().ok_or_else(|| invalid!("was not computed").at(name))
        };
        self.graph.outputs().map(value).collect()
    }

    /// The gradients of a scalar `L` by the wanted values, in their order, given
    /// `dL / dv` for some values `v`. `None` where `L` does not depend on one.
    /// The values are freed on the way.
    ///
    /// # Errors
    /// If an operator on the way has no gradient; the error names the node.
    pub fn backward(mut self, given: impl IntoIterator<Item = (Var, Tensor)>) -> Result<Vec<Option<Tensor>>> {
        let on_path = self.graph.on_path(&self.wanted);
        let mut gradients: Vec<Vec<Option<Tensor>>> =
            self.graph.nodes.iter().map(|n| vec![None; n.outputs.len()]).collect();
        for (v, gradient) in given {
            add_to(&mut gradients[v.node][v.slot], gradient)?;
        }
        for (i, node) in self.graph.nodes.iter().enumerate().rev() {
            let Kind::Apply { op, inputs } = &node.kind else { continue };
            if !on_path[i] || gradients[i].iter().all(Option::is_none) {
                continue;
            }
            let wanted: Vec<bool> =
                inputs.iter().map(|v| on_path[v.node] && self.graph.fact(*v).dtype == DType::F32).collect();
            let of = if self.wanted.iter().any(|v| v.node == i) {
                gradients[i].clone()
            } else {
                std::mem::take(&mut gradients[i])
            };
            if wanted.contains(&true) {
                let kept = |v: &Var| {
                    self.values[v.node][v.slot]
                        .as_ref()
                        .ok_or_else(|| invalid!("a value was freed").at(&node.name))
                };
                let operands: Vec<&Tensor> = inputs.iter().map(kept).collect::<Result<_>>()?;
                let made: Vec<Var> = (0..node.outputs.len()).map(|slot| Var { node: i, slot }).collect();
                let results: Vec<&Tensor> = made.iter().map(kept).collect::<Result<_>>()?;
                let at = Reverse { inputs: &operands, outputs: &results, gradients: &of, wanted: &wanted };
                let back = op.vjp(&at).map_err(|e| e.at(op.name()).at(&node.name))?;
                for ((v, gradient), wanted) in inputs.iter().zip(back).zip(&wanted) {
                    if let (Some(gradient), true) = (gradient, wanted) {
                        add_to(&mut gradients[v.node][v.slot], gradient).map_err(|e| e.at(&node.name))?;
                    }
                }
            }
            of.into_iter().flatten().for_each(recycle);
            self.values[i].drain(..).flatten().for_each(recycle);
        }
        Ok(self.wanted.iter().map(|v| gradients[v.node][v.slot].take()).collect())
    }
}

/// Elements that are worth a task.
const TASK: usize = 1 << 15;

/// `sum += x`.
fn add_to(sum: &mut Option<Tensor>, x: Tensor) -> Result<()> {
    let Some(had) = sum.take() else {
        *sum = Some(x);
        return Ok(());
    };
    if had.shape() != x.shape() {
        return Err(invalid!("gradients of shapes {:?} and {:?} do not add up", had.shape(), x.shape()));
    }
    let shape = had.shape().to_vec();
    let mut total = had.into_vec::<f32>()?;
    let pairs = total.par_chunks_mut(TASK).zip(x.slice::<f32>()?.par_chunks(TASK));
    pairs.for_each(|(sum, x)| sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x));
    recycle(x);
    *sum = Some(Tensor::new(&shape, total)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::graph::Builder;
    use crate::op::Fact;
    use crate::ops::binary::Arithmetic;

    #[test]
    fn gradients_of_a_value_that_is_read_twice_add_up() {
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, [3usize]));
        let square = b.apply("square", Arc::new(Arithmetic::Mul), &[x, x]).unwrap();
        let y = b.apply("y", Arc::new(Arithmetic::Add), &[square, x]).unwrap();
        let graph = b.finish([("y".to_string(), y)]).unwrap();
        let x = graph.find("x").unwrap();
        let tape = graph.record(&[Tensor::vector(vec![1f32, 2., -3.])], &[x]).unwrap();
        assert_eq!(tape.outputs().unwrap()[0], Tensor::vector(vec![2f32, 6., 6.]));
        let y = graph.find("y").unwrap();
        let by = tape.backward([(y, Tensor::vector(vec![1f32, 1., 2.]))]).unwrap();
        assert_eq!(by, [Some(Tensor::vector(vec![3f32, 5., -10.]))]);
    }

    #[test]
    fn an_eager_builder_knows_values_and_gradients() {
        let mut b = Builder::eager();
        let x = b.given("x", Tensor::vector(vec![1f32, -2.]));
        let unknown = b.input("unknown", Fact::new(DType::F32, [2usize]));
        let y = b.apply("y", Arc::new(Arithmetic::Mul), &[x, x]).unwrap();
        let z = b.apply("z", Arc::new(Arithmetic::Mul), &[x, unknown]).unwrap();
        assert_eq!(b.value(y), Some(&Tensor::vector(vec![1f32, 4.])));
        assert_eq!(b.value(z), None);
        let by = b.into_tape(vec![x]).backward([(y, Tensor::vector(vec![1f32, 1.]))]).unwrap();
        assert_eq!(by, [Some(Tensor::vector(vec![2f32, -4.]))]);
    }
}
