//! The float reference: every node evaluated in order, each value freed after
//! its last use. A clamp of a value that nothing else reads and nobody watches
//! is computed with it ([`Op::eval_clamped`](crate::op::Op::eval_clamped)).

use std::collections::HashMap;

use super::{Graph, Kind, Node, Value, Var};
use crate::error::{Result, invalid};
use crate::op::{Dim, Quant};
use crate::tensor::buffers::recycle;
use crate::tensor::{DType, Tensor};

/// A node that restricts its operand to a range.
#[derive(Clone, Copy)]
struct Clamp {
    node: usize,
    lo: f32,
    hi: f32,
}

/// The values of a run, for each node and output, as far as they are known and
/// still needed.
pub(super) type Values = Vec<Vec<Option<Tensor>>>;

/// What a node reads, each of its operands freed where it is `spent`.
pub(super) fn operands(
    values: &mut Values,
    inputs: &[Var],
    spent: impl Fn(Var) -> bool,
) -> Result<Vec<Tensor>> {
    let value = |v: &Var| values[v.node][v.slot].clone().ok_or_else(|| invalid!("an operand was freed"));
    let operands = inputs.iter().map(value).collect::<Result<_>>()?;
    for v in inputs.iter().filter(|v| spent(**v)) {
        values[v.node][v.slot] = None;
    }
    Ok(operands)
}

impl Graph {
    /// The values before the first node is computed: those of the inputs.
    pub(super) fn given(&self, inputs: &[Tensor]) -> Values {
        let mut values: Values = self.nodes.iter().map(|n| vec![None; n.outputs.len()]).collect();
        for (v, x) in self.inputs.iter().zip(inputs) {
            values[v.node][v.slot] = Some(x.clone());
        }
        values
    }

    /// The outputs for these inputs, in the graph's order.
    ///
    /// # Errors
    /// If an input does not fit its declaration, or an operator fails; the
    /// error names the input or the node.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        // Enters the thread pool once rather than for each operator.
        rayon::scope(|_| self.run_watched(inputs, |_| false, |_, _, _| Ok(())))
    }

    /// [`Graph::run`], showing every input and every computed value to `see`.
    ///
    /// # Errors
    /// As [`Graph::run`], and what `see` returns.
    pub fn run_with(
        &self,
        inputs: &[Tensor],
        see: impl FnMut(Var, &Node, &Tensor) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        self.run_watched(inputs, |_| true, see)
    }

    /// [`Graph::run`], showing the values that are `watched` to `see`.
    ///
    /// # Errors
    /// As [`Graph::run`], and what `see` returns.
    pub fn run_watched(
        &self,
        inputs: &[Tensor],
        watched: impl Fn(Var) -> bool,
        mut see: impl FnMut(Var, &Node, &Tensor) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        self.check_inputs(inputs)?;
        let mut steps = Steps { last: self.last_uses(), ..self.steps(watched) };
        steps.values = self.given(inputs);
        while let Some((v, value)) = steps.advance()? {
            see(v, self.node(v), &value)?;
        }
        let output = |(name, v): &(String, Var)| {
            steps.values[v.node][v.slot].clone().ok_or_else(|| invalid!("was not computed").at(name))
        };
        self.outputs.iter().map(output).collect()
    }

    /// A run that stops at each value that is `watched`, and has no inputs yet. Outputs that are
    /// not watched are computed for nobody: like all values they are freed after their last use.
    pub fn steps<W: Fn(Var) -> bool>(&self, watched: W) -> Steps<'_, W> {
        Steps {
            graph: self,
            last: self.last_reads(),
            clamps: self.clamps(&watched),
            watched,
            values: self.given(&[]),
            sizes: HashMap::new(),
            next: Var { node: 0, slot: 0 },
            computed: false,
        }
    }

    /// For each node, the clamp that is the only reader of its only value, an
    /// unwatched f32.
    fn clamps(&self, watched: impl Fn(Var) -> bool) -> Vec<Option<Clamp>> {
        let uses = self.uses();
        let mut clamps = vec![None; self.nodes.len()];
        for (clamp, _, op, inputs) in self.applied() {
            if let (Quant::Clamp { lo, hi }, [v]) = (op.quant(), inputs)
                && let node = &self.nodes[v.node]
                && node.outputs.len() == 1
                && node.outputs[0].fact.dtype == DType::F32
                && uses.of(*v) == 1
                && !watched(*v)
            {
                clamps[v.node] = Some(Clamp { node: clamp.node, lo, hi });
            }
        }
        clamps
    }

    /// The last node that reads each node's values; outputs are read at the end.
    pub(super) fn last_uses(&self) -> Vec<usize> {
        let mut last = self.last_reads();
        for (_, v) in &self.outputs {
            last[v.node] = usize::MAX;
        }
        last
    }

    /// The last node that reads each node's values; 0 if none does.
    fn last_reads(&self) -> Vec<usize> {
        let mut last = vec![0; self.nodes.len()];
        for (i, n) in self.nodes.iter().enumerate() {
            if let Kind::Apply { inputs, .. } = &n.kind {
                for v in inputs {
                    last[v.node] = i;
                }
            }
        }
        last
    }

    /// Checks number, types and shapes of inputs; a named dimension must have
    /// one size throughout.
    ///
    /// # Errors
    /// If an input does not fit; the error names it.
    pub fn check_inputs(&self, inputs: &[Tensor]) -> Result<()> {
        if inputs.len() != self.inputs.len() {
            let names: Vec<&str> = self.inputs().map(|(_, v)| v.name.as_str()).collect();
            return Err(invalid!(
                "the model takes {} inputs ({}), found {}",
                names.len(),
                names.join(", "),
                inputs.len()
            ));
        }
        let mut bound = HashMap::new();
        for ((_, value), x) in self.inputs().zip(inputs) {
            check_input(value, x, &mut bound).map_err(|e| e.at(format!("input {}", value.name)))?;
        }
        Ok(())
    }
}

/// A run that is gone on with as its values are asked for, so that several models can run side
/// by side, value by value ([`Graph::steps`]).
pub struct Steps<'g, W> {
    graph: &'g Graph,
    watched: W,
    last: Vec<usize>,
    clamps: Vec<Option<Clamp>>,
    values: Values,
    /// Sizes that named dimensions have.
    sizes: HashMap<&'g str, usize>,
    /// The value to be looked at next.
    next: Var,
    /// Whether the node of `next` has been computed.
    computed: bool,
}

impl<W: Fn(Var) -> bool> Steps<'_, W> {
    /// Gives the input of index `i` its value.
    ///
    /// # Errors
    /// If there is no such input, or the value does not fit; the error names the input.
    pub fn give(&mut self, i: usize, x: Tensor) -> Result<()> {
        let v = *self.graph.inputs.get(i).ok_or_else(|| invalid!("the model has no input {i}"))?;
        let value = self.graph.value(v);
        check_input(value, &x, &mut self.sizes).map_err(|e| e.at(format!("input {}", value.name)))?;
        self.values[v.node][v.slot] = Some(x);
        Ok(())
    }

    /// Computes up to the next watched value. None at the end, and before an input that has not
    /// been given yet.
    ///
    /// # Errors
    /// If an operator fails; the error names the node.
    pub fn advance(&mut self) -> Result<Option<(Var, Tensor)>> {
        while let Some(node) = self.graph.nodes.get(self.next.node) {
            let i = self.next.node;
            if !self.computed {
                if matches!(node.kind, Kind::Input) && self.values[i][0].is_none() {
                    return Ok(None);
                }
                self.compute(i, node)?;
                self.computed = true;
            }
            while self.next.slot < node.outputs.len() {
                let v = self.next;
                self.next.slot += 1;
                if let Some(value) = &self.values[i][v.slot]
                    && !matches!(node.kind, Kind::Const(_))
                    && (self.watched)(v)
                {
                    return Ok(Some((v, value.clone())));
                }
            }
            if self.last[i] <= i {
                self.values[i].fill(None);
            }
            (self.next, self.computed) = (Var { node: i + 1, slot: 0 }, false);
        }
        Ok(None)
    }

    /// Puts another value in the place of the one that was shown last.
    ///
    /// # Errors
    /// If no value was shown yet.
    pub fn replace(&mut self, x: Tensor) -> Result<()> {
        let Var { node, slot } = self.next;
        let shown = slot.checked_sub(1).map(|slot| &mut self.values[node][slot]);
        *shown.ok_or_else(|| invalid!("no value was shown"))? = Some(x);
        Ok(())
    }

    /// Computes the values of node `i`, if a clamp was not computed with its operand.
    fn compute(&mut self, i: usize, node: &Node) -> Result<()> {
        let (op, inputs) = match &node.kind {
            Kind::Input => return Ok(()),
            Kind::Const(t) => {
                self.values[i][0] = Some(t.clone());
                return Ok(());
            }
            Kind::Apply { .. } if self.values[i].first().is_some_and(Option::is_some) => return Ok(()),
            Kind::Apply { op, inputs } => (op, inputs),
        };
        let operands = operands(&mut self.values, inputs, |v| self.last[v.node] == i)?;
        let clamped = self.clamps[i].and_then(|Clamp { node, lo, hi }| {
            let made = op.eval_clamped(&operands.iter().collect::<Vec<_>>(), lo, hi)?;
            Some((node, made))
        });
        let (to, made) = match clamped {
            Some(clamped) => {
                operands.into_iter().for_each(recycle);
                clamped
            }
            None => (i, op.eval_owned(operands)),
        };
        let made = made.map_err(|e| e.at(op.name()).at(&node.name))?;
        self.values[to] = made.into_iter().map(Some).take(node.outputs.len()).collect();
        Ok(())
    }
}

fn check_input<'a>(value: &'a Value, x: &Tensor, sizes: &mut HashMap<&'a str, usize>) -> Result<()> {
    let fact = &value.fact;
    let fits = fact.dtype == x.dtype()
        && fact.rank() == x.rank()
        && fact.shape.iter().zip(x.shape()).all(|(d, n)| match d {
            Dim::Known(d) => d == n,
            Dim::Named(name) => *sizes.entry(name).or_insert(*n) == *n,
        });
    if fits {
        return Ok(());
    }
    Err(invalid!("the model takes {fact}, found {}{:?}", x.dtype(), x.shape()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::graph::Builder;
    use crate::op::Fact;
    use crate::ops::binary::Arithmetic;
    use crate::ops::unary::Unary;

    #[test]
    fn steps_stop_at_watched_values_and_before_missing_inputs() {
        let mut b = Builder::default();
        let vector = || Fact::new(DType::F32, [Dim::Named("N".into())]);
        let x = b.input("x", vector());
        let a = b.apply("a", Arc::new(Unary::Neg), &[x]).unwrap();
        let z = b.input("z", vector());
        let y = b.apply("y", Arc::new(Arithmetic::Add), &[a, z]).unwrap();
        let graph = b.finish([("y".to_string(), y), ("a".to_string(), a)]).unwrap();
        let named = |found: Option<(Var, Tensor)>| {
            found.map(|(v, t)| (graph.value(v).name.clone(), t.to_f32().unwrap()))
        };
        let mut steps = graph.steps(|v| graph.value(v).name != "x");
        assert_eq!(named(steps.advance().unwrap()), None, "x is missing");
        steps.give(0, Tensor::vector(vec![1f32, 2.0])).unwrap();
        assert_eq!(named(steps.advance().unwrap()), Some(("a".into(), vec![-1.0, -2.0])));
        assert_eq!(named(steps.advance().unwrap()), None, "z is missing");
        for (i, x, says) in [(1, vec![1f32], "input z"), (2, vec![1.0, 2.0], "no input 2")] {
            let error = steps.give(i, Tensor::vector(x)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        steps.give(1, Tensor::vector(vec![10f32, 20.0])).unwrap();
        assert_eq!(named(steps.advance().unwrap()), Some(("z".into(), vec![10.0, 20.0])));
        assert_eq!(named(steps.advance().unwrap()), Some(("y".into(), vec![9.0, 18.0])));
        assert_eq!(named(steps.advance().unwrap()), None);
    }
}
