//! One of two graphs.

use std::sync::Arc;

use super::{at_facts, check_condition, given_captured, outside, run};
use crate::error::{Error, Result, invalid};
use crate::graph::Graph;
use crate::op::{Attribute, Attributes, Dim, Fact, Op};
use crate::tensor::Tensor;

/// The outputs of one graph where the condition, operand 0, holds, and of the
/// other where it does not. Both are given all other operands.
#[derive(Clone, Debug)]
pub struct If {
    /// Then, else.
    branches: Vec<Graph>,
    captured: usize,
}

impl If {
    /// The operator with these two branches, which are given `captured` values each.
    ///
    /// # Errors
    /// If their inputs or their outputs differ in number.
    pub fn new(branches: [Graph; 2], captured: usize) -> Result<If> {
        let [a, b] = &branches;
        if a.outputs().len() != b.outputs().len() {
            let (a, b) = (a.outputs().len(), b.outputs().len());
            return Err(invalid!("then_branch has {a} outputs, else_branch {b}"));
        }
        if branches.iter().any(|branch| branch.inputs().len() != captured) {
            return Err(invalid!("branches take no inputs but what they capture"));
        }
        Ok(If { branches: branches.into(), captured })
    }

    /// The branch that is taken for all operands of these facts, where they say.
    pub fn taken(&self, inputs: &[&Fact]) -> Option<&Graph> {
        taken(inputs.first()?).map(|then| &self.branches[usize::from(!then)])
    }

    fn at(&self, inputs: &[&Fact]) -> Result<Option<If>> {
        let Some((condition, captured)) = inputs.split_first().filter(|(_, c)| c.len() == self.captured)
        else {
            return Err(invalid!("takes a condition and {} values, found {}", self.captured, inputs.len()));
        };
        check_condition(condition)?;
        let mut branches = self.branches.clone();
        let mut changed = false;
        for (branch, name) in branches.iter_mut().zip(["then_branch", "else_branch"]) {
            let made = given_captured(branch, captured).and_then(|facts| at_facts(branch, &facts));
            if let Some(made) = made.map_err(|e| e.at(name))? {
                *branch = made;
                changed = true;
            }
        }
        Ok(changed.then_some(If { branches, captured: self.captured }))
    }
}

/// Whether a condition of this fact holds, where that is known.
pub(crate) fn taken(condition: &Fact) -> Option<bool> {
    match condition.sizes.as_deref()? {
        [Dim::Known(x)] if check_condition(condition).is_ok() => Some(*x != 0),
        _ => None,
    }
}

impl Op for If {
    fn name(&self) -> &'static str {
        "If"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let at = self.at(inputs)?;
        let branches = &at.as_ref().unwrap_or(self).branches;
        let (then, other) = (&branches[0], &branches[1]);
        let merged = |((name, a), (_, b))| {
            let (a, b): (&Fact, &Fact) = (then.fact(a), other.fact(b));
            if a.dtype != b.dtype {
                return Err(invalid!("output {name} is {a} of one branch and {b} of the other"));
            }
            if a.rank() != b.rank() {
                let what =
                    format!("output {name}, {a} of one branch and {b} of the other: a choice of ranks");
                return Err(Error::unsupported("If", what));
            }
            let common = |a: &Dim, b: &Dim| if a == b { outside(a, inputs) } else { Dim::unknown() };
            let shape = a.shape.iter().zip(&b.shape).map(|(a, b)| common(a, b)).collect();
            let sizes = a.sizes.as_ref().zip(b.sizes.as_ref()).filter(|(a, b)| a == b);
            let sizes = sizes.map(|(s, _)| s.clone());
            let sizes = sizes.filter(|s| s.iter().all(|d| outside(d, inputs) == *d));
            Ok(a.with_shape(shape).with_sizes(sizes))
        };
        then.outputs().zip(other.outputs()).map(merged).collect()
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let Some((condition, captured)) = inputs.split_first() else {
            return Err(invalid!("has no condition"));
        };
        let then = condition.item::<bool>().map_err(|e| e.at("condition"))?;
        let captured: Vec<Tensor> = captured.iter().map(|t| (*t).clone()).collect();
        run(&self.branches[usize::from(!then)], &captured)
    }

    fn attributes(&self) -> Attributes {
        let graph = |i: usize| Attribute::Graph(self.branches[i].clone());
        vec![("then_branch", graph(0)), ("else_branch", graph(1))]
    }

    fn folds(&self) -> bool {
        false
    }

    /// Of the branch that has more.
    fn macs(&self, _inputs: &[&Fact], _outputs: &[&Fact]) -> u64 {
        self.branches.iter().map(Graph::macs).max().unwrap_or(0)
    }

    fn bodies(&self) -> &[Graph] {
        &self.branches
    }

    fn captured(&self) -> usize {
        self.captured
    }

    fn with_bodies(&self, bodies: Vec<Graph>, captured: usize) -> Result<Arc<dyn Op>> {
        let branches = bodies.try_into().map_err(|_| invalid!("If has two branches"))?;
        Ok(Arc::new(If::new(branches, captured)?))
    }

    fn fitted(&self, inputs: &[&Fact]) -> Result<Option<Arc<dyn Op>>> {
        Ok(self.at(inputs)?.map(|op| Arc::new(op) as Arc<dyn Op>))
    }
}
