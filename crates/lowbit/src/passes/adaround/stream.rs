//! The values between what has been reconstructed and what has not.

use std::collections::{HashMap, HashSet};

use super::block::weight_point;
use super::part::{Form, Part, reads};
use crate::error::{Result, invalid};
use crate::graph::{Graph, Kind, Var};
use crate::quantize::Prepared;
use crate::tensor::Tensor;

/// A run of all samples at once, block by block: it holds the values that nodes not yet
/// run read, and no others.
pub struct Stream<'a> {
    prepared: &'a Prepared,
    graph: &'a Graph,
    /// For each value one tensor a batch.
    values: HashMap<Var, Vec<Tensor>>,
    done: HashSet<Var>,
}

impl<'a> Stream<'a> {
    /// The run of `batches`, at its beginning.
    ///
    /// # Errors
    /// If a batch does not fit the model; the error has its index.
    pub fn new(prepared: &'a Prepared, batches: &[Vec<Tensor>]) -> Result<Stream<'a>> {
        let graph = prepared.graph();
        for (i, batch) in batches.iter().enumerate() {
            graph.check_inputs(batch).map_err(|e| e.at(format!("calibration batch {i}")))?;
        }
        let value = |i: usize| batches.iter().map(|batch| batch[i].clone()).collect();
        let values = graph.inputs().enumerate().map(|(i, (v, _))| (v, value(i))).collect();
        Ok(Stream { prepared, graph, values, done: HashSet::new() })
    }

    /// The value `v` of each batch.
    ///
    /// # Errors
    /// If it is not known here.
    pub fn value(&self, v: Var) -> Result<&[Tensor]> {
        let values = self.values.get(&v).map(Vec::as_slice);
        values.ok_or_else(|| invalid!("is not known here").at(&self.graph.value(v).name))
    }

    /// Runs what the inputs of `nodes` need.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn run_before(&mut self, nodes: &[Var], form: Form) -> Result<()> {
        let mut needed = HashSet::new();
        let mut open = reads(self.prepared, nodes);
        while let Some(v) = open.pop() {
            let v = v.output(0);
            let Kind::Apply { inputs, .. } = &self.graph.node(v).kind else { continue };
            if weight_point(self.prepared, v).is_none() && !self.done.contains(&v) && needed.insert(v) {
                open.extend(inputs);
            }
        }
        let mut before: Vec<Var> = needed.into_iter().collect();
        before.sort_unstable();
        self.run(&before, form, &[])
    }

    /// Runs `nodes`, in evaluation order, and keeps of their values those that others read
    /// and those `wanted`; frees what nobody reads any more.
    ///
    /// # Errors
    /// If a node fails; the error names it.
    pub fn run(&mut self, nodes: &[Var], form: Form, wanted: &[Var]) -> Result<()> {
        self.done.extend(nodes);
        let mut read: HashSet<Var> = wanted.iter().copied().collect();
        for (_, _, _, inputs) in self.graph.applied().filter(|(v, ..)| !self.done.contains(v)) {
            read.extend(inputs);
        }
        let outputs = |v: Var| (0..self.graph.node(v).outputs.len()).map(move |slot| v.output(slot));
        let makes: Vec<Var> = nodes.iter().flat_map(|v| outputs(*v)).filter(|v| read.contains(v)).collect();
        if !makes.is_empty() {
            let part = Part::new(self.prepared, nodes, &makes, form, &[])?;
            let inputs = part.reads.iter().map(|v| self.value(*v)).collect::<Result<Vec<_>>>()?;
            let mut made: Vec<Vec<Tensor>> = vec![vec![]; makes.len()];
            for i in 0..self.batches() {
                let inputs: Vec<Tensor> = inputs.iter().map(|x| x[i].clone()).collect();
                made.iter_mut().zip(part.graph.run(&inputs)?).for_each(|(all, value)| all.push(value));
            }
            self.values.extend(makes.into_iter().zip(made));
        }
        self.values.retain(|v, _| read.contains(v));
        Ok(())
    }

    fn batches(&self) -> usize {
        self.values.values().next().map_or(0, Vec::len)
    }
}
