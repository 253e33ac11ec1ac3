//! Graphs inside operators (branches, loops): rebuilt with the graph around
//! them, from which they capture values.

use std::sync::Arc;

use super::{Builder, Graph, Kind, Var, stored};
use crate::error::{Result, invalid};
use crate::op::{Fact, Op};
use crate::tensor::Tensor;

impl Graph {
    /// Whether an operator has bodies.
    pub fn has_bodies(&self) -> bool {
        self.applied().any(|(_, _, op, _)| !op.bodies().is_empty())
    }

    /// The graph with `f` of every body of its operators, innermost first. `f`
    /// keeps the number, types and order of inputs and outputs.
    ///
    /// # Errors
    /// What `f` reports, or if a new body does not fit its operator; the error
    /// names the node.
    pub fn map_bodies(&self, mut f: impl FnMut(&Graph) -> Result<Graph>) -> Result<Graph> {
        self.map_inner(&mut f)
    }

    fn map_inner(&self, f: &mut dyn FnMut(&Graph) -> Result<Graph>) -> Result<Graph> {
        if !self.has_bodies() {
            return Ok(self.clone());
        }
        self.rebuild(|b, _, node, inputs| {
            let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
            let mut bodies = Vec::with_capacity(op.bodies().len());
            for body in op.bodies() {
                let inner = body.map_inner(f).map_err(|e| e.at(&node.name))?;
                bodies.push(f(&inner).map_err(|e| e.at(&node.name))?);
            }
            if bodies.is_empty() {
                return b.copy(node, inputs);
            }
            let op = op.with_bodies(bodies, op.captured()).map_err(|e| e.at(&node.name))?;
            b.replace(node, op, inputs)
        })
    }

    /// The graph for inputs of these facts.
    ///
    /// # Errors
    /// If an operator does not fit them; the error names the node.
    pub(crate) fn at_facts(&self, facts: &[Fact]) -> Result<Graph> {
        self.replay(|_, i| facts[i].clone(), |b, _, node, inputs| b.copy(node, inputs))
    }

    /// Whether something reads input `i`.
    fn reads(&self, i: usize) -> bool {
        let v = self.inputs[i];
        self.outputs.iter().any(|(_, o)| *o == v) || self.applied().any(|(_, _, _, x)| x.contains(&v))
    }

    /// The graph with the inputs from `from` on, which capture values, become
    /// `values`; those that stay have these names.
    fn recaptured(&self, from: usize, kept: &[&str], values: &[Captured]) -> Result<Graph> {
        let mut b = Builder::default();
        let mut given: Vec<Var> =
            self.inputs().take(from).map(|(_, v)| b.input(&v.name, v.fact.clone())).collect();
        let fact_of = |k: usize| {
            let i = values.iter().position(|v| matches!(v, Captured::Operand(at) if *at == k));
            i.map(|i| self.fact(self.inputs[from + i]).clone())
        };
        let facts: Option<Vec<Fact>> = (0..kept.len()).map(fact_of).collect();
        let facts = facts.ok_or_else(|| invalid!("a captured value is not among the operands"))?;
        let kept: Vec<Var> = kept.iter().zip(facts).map(|(name, fact)| b.input(name, fact)).collect();
        for value in values {
            given.push(match value {
                Captured::Operand(i) => kept[*i],
                Captured::Constant(name, t) => b.constant(name, t.clone()),
                Captured::Unread => b.absent(),
            });
        }
        let outputs = self.replay_onto(
            &mut b,
            |_, i, _| Ok(given[i]),
            stored,
            |b, _, node, inputs| b.copy(node, inputs),
        )?;
        self.finished(b, outputs)
    }
}

/// What becomes of an input that captures a value.
enum Captured {
    /// It is this one of the captured operands that stay.
    Operand(usize),
    /// It is a constant of the body.
    Constant(String, Tensor),
    /// Nothing reads it.
    Unread,
}

impl Builder {
    /// Appends the nodes of `body` with `inputs` in the place of its inputs.
    /// Its outputs take the given names.
    pub(crate) fn splice(&mut self, body: &Graph, inputs: &[Var], outputs: &[&str]) -> Result<Vec<Var>> {
        let before = self.so_far().nodes.len();
        let mut made = body.replay_onto(
            self,
            |_, i, _| Ok(inputs[i]),
            stored,
            |b, _, node, inputs| b.copy(node, inputs),
        )?;
        if made.len() < outputs.len() {
            return Err(invalid!("the branch has {} outputs, not {}", made.len(), outputs.len()));
        }
        made.truncate(outputs.len());
        for (i, name) in outputs.iter().enumerate() {
            let v = made[i];
            let is_new = v.node >= before && Some(v) != self.absent;
            if is_new && !name.is_empty() && !made[..i].contains(&v) {
                self.rename(v, name);
            }
        }
        Ok(made)
    }

    /// The operator with its bodies made for these operands, and the operands
    /// that it then has: captured values that are constant are constants of the
    /// bodies, and the others stand once each, in the order of the graph.
    pub(super) fn fitted(&self, op: Arc<dyn Op>, inputs: &[Var]) -> Result<(Arc<dyn Op>, Vec<Var>)> {
        if op.bodies().is_empty() {
            return Ok((op, inputs.to_vec()));
        }
        let own = inputs.len().checked_sub(op.captured());
        let own = own.ok_or_else(|| invalid!("captures {} values, found fewer", op.captured()))?;
        let (own, captured) = inputs.split_at(own);
        let graph = self.so_far();
        let declared: Vec<usize> =
            op.bodies().iter().map(|body| body.inputs.len() - captured.len()).collect();
        let is_read = |i: usize| op.bodies().iter().zip(&declared).any(|(body, from)| body.reads(from + i));
        let mut kept: Vec<Var> = captured
            .iter()
            .enumerate()
            .filter(|(i, v)| graph.constant(**v).is_none() && is_read(*i))
            .map(|(_, v)| *v)
            .collect();
        // Inputs first, as files have them.
        kept.sort_by_key(|v| (!matches!(graph.node(*v).kind, Kind::Input), *v));
        kept.dedup();
        let op = if kept == captured {
            op
        } else {
            let names: Vec<&str> = kept.iter().map(|v| self.name(*v)).collect();
            let becomes = |(i, v): (usize, &Var)| match (kept.iter().position(|k| k == v), graph.constant(*v))
            {
                (Some(at), _) => Captured::Operand(at),
                (None, Some(t)) if is_read(i) => Captured::Constant(self.name(*v).into(), t.clone()),
                _ => Captured::Unread,
            };
            let values: Vec<Captured> = captured.iter().enumerate().map(becomes).collect();
            let bodies = op.bodies().iter().zip(&declared);
            let bodies = bodies.map(|(body, from)| body.recaptured(*from, &names, &values));
            op.with_bodies(bodies.collect::<Result<_>>()?, kept.len())?
        };
        let inputs = [own, &kept].concat();
        let facts: Vec<&Fact> = inputs.iter().map(|v| self.fact(*v)).collect();
        let op = op.fitted(&facts).map_err(|e| e.at(op.name()))?.unwrap_or(op);
        Ok((op, inputs))
    }
}
