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
        self.run_changed(inputs, watched, |v, node, value| see(v, node, value))
    }

    /// [`Graph::run`], in which `change` may put other values, of the same shape, in place of
    /// those that are `watched`.
    ///
    /// # Errors
    /// As [`Graph::run`], and what `change` returns.
    pub fn run_changed(
        &self,
        inputs: &[Tensor],
        watched: impl Fn(Var) -> bool,
        mut change: impl FnMut(Var, &Node, &mut Tensor) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        self.check_inputs(inputs)?;
        let last = self.last_uses();
        let clamps = self.clamps(&watched);
        let mut values = self.given(inputs);
        for (i, node) in self.nodes.iter().enumerate() {
            match &node.kind {
                Kind::Input => {}
                Kind::Const(t) => {
                    values[i][0] = Some(t.clone());
                    continue;
                }
                Kind::Apply { .. } if values[i].first().is_some_and(Option::is_some) => {}
                Kind::Apply { op, inputs } => {
                    let operands = operands(&mut values, inputs, |v| last[v.node] == i)?;
                    let clamped = clamps[i].and_then(|Clamp { node, lo, hi }| {
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
                    values[to] = made.into_iter().map(Some).take(node.outputs.len()).collect();
                }
            }
            for (slot, value) in values[i].iter_mut().enumerate() {
                let v = Var { node: i, slot };
                if let Some(value) = value.as_mut().filter(|_| watched(v)) {
                    change(v, node, value)?;
                }
            }
        }
        self.outputs
            .iter()
            .map(|(name, v)| {
                values[v.node][v.slot].clone().ok_or_else(|| invalid!("was not computed").at(name))
            })
            .collect()
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
        let mut last = vec![0; self.nodes.len()];
        for (i, n) in self.nodes.iter().enumerate() {
            if let Kind::Apply { inputs, .. } = &n.kind {
                for v in inputs {
                    last[v.node] = i;
                }
            }
        }
        for (_, v) in &self.outputs {
            last[v.node] = usize::MAX;
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

fn check_input<'a>(value: &'a Value, x: &Tensor, bound: &mut HashMap<&'a str, usize>) -> Result<()> {
    let fact = &value.fact;
    let fits = fact.dtype == x.dtype()
        && fact.rank() == x.rank()
        && fact.shape.iter().zip(x.shape()).all(|(d, n)| match d {
            Dim::Known(d) => d == n,
            Dim::Named(name) => *bound.entry(name).or_insert(*n) == *n,
        });
    if fits {
        return Ok(());
    }
    Err(invalid!("the model takes {fact}, found {}{:?}", x.dtype(), x.shape()))
}
