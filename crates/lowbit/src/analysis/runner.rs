//! What can be measured: anything that runs a graph.

use std::time::Instant;

use crate::error::Result;
use crate::graph::{Graph, Kind, Node, Var};
use crate::session::{Session, Timing};
use crate::tensor::Tensor;

/// A model that runs: the float reference ([`Graph`]) or the engine ([`Session`]).
pub trait Runner: Sync {
    /// The graph that is run.
    fn graph(&self) -> &Graph;

    /// The outputs for these inputs.
    ///
    /// # Errors
    /// If an input does not fit, or an operator fails.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>>;

    /// [`Runner::run`], with every input and computed value shown to `see`
    /// right after it was computed, with its node.
    ///
    /// # Errors
    /// As [`Runner::run`], and what `see` returns.
    fn run_with(
        &self,
        inputs: &[Tensor],
        see: &mut dyn FnMut(Var, &Node, &Tensor) -> Result<()>,
    ) -> Result<Vec<Tensor>>;

    /// Runs the model and gives what each step of the run cost to `see`.
    ///
    /// # Errors
    /// As [`Runner::run`].
    fn time(&self, inputs: &[Tensor], see: &mut (dyn FnMut(Timing<'_>) + Send)) -> Result<()>;
}

impl Runner for Graph {
    fn graph(&self) -> &Graph {
        self
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Graph::run(self, inputs)
    }

    fn run_with(
        &self,
        inputs: &[Tensor],
        see: &mut dyn FnMut(Var, &Node, &Tensor) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        Graph::run_with(self, inputs, see)
    }

    fn time(&self, inputs: &[Tensor], see: &mut (dyn FnMut(Timing<'_>) + Send)) -> Result<()> {
        let graph = self.at_shapes(inputs.iter().map(Tensor::shape))?;
        let mut last = Instant::now();
        graph.run_with(inputs, |v, node, t| {
            let seconds = last.elapsed().as_secs_f64();
            if let (Kind::Apply { op, inputs }, true) = (&node.kind, v == v.output(0)) {
                let operands = inputs
                    .iter()
                    .map(|v| graph.fact(*v))
                    .map(|f| f.dtype.bytes_of(f.elements() as usize) as u64);
                let bytes = operands.sum::<u64>() + t.byte_len() as u64;
                let macs = graph.node_macs(v);
                see(Timing { node: &node.name, op: op.name(), algorithm: "reference", seconds, macs, bytes });
            }
            last = Instant::now();
            Ok(())
        })?;
        Ok(())
    }
}

impl Runner for Session {
    fn graph(&self) -> &Graph {
        Session::graph(self)
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Session::run(self, inputs)
    }

    fn run_with(
        &self,
        inputs: &[Tensor],
        see: &mut dyn FnMut(Var, &Node, &Tensor) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        Session::run_with(self, inputs, see)
    }

    fn time(&self, inputs: &[Tensor], see: &mut (dyn FnMut(Timing<'_>) + Send)) -> Result<()> {
        Session::time(self, inputs, see)
    }
}
