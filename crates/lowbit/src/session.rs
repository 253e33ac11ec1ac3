//! The int8 engine: a Q/DQ graph compiled once, run many times.

mod codes;
mod integer;
mod lower;
mod report;

pub use report::{Fallback, Report};

use lowbit_kernels::Kernels;

use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Var};
use crate::tensor::Tensor;

/// A compiled model. Several threads may run one Session at once.
///
/// Compiling replaces every `dequantize* -> operator -> quantize` pattern by an
/// integer operator that follows the numeric specification exactly, chooses
/// channels-last layouts, and packs weights for the CPU. What has no integer
/// form runs in float, and the [`Report`] says why.
#[derive(Debug)]
pub struct Session {
    graph: Graph,
    report: Report,
}

impl Session {
    /// Compiles a Q/DQ graph, made by lowbit or another tool. A float graph
    /// compiles too, and runs in float.
    ///
    /// # Errors
    /// If an operator cannot be lowered for a reason that is an error in the
    /// model, such as scales that do not fit; the error names the node. Or if
    /// `LOWBIT_ISA` names an instruction set that this CPU does not have.
    pub fn compile(graph: &Graph) -> Result<Session> {
        Kernels::select().map_err(Error::Invalid)?;
        let (lowered, report) = lower::lower(graph)?;
        Ok(Session { graph: lowered, report })
    }

    /// The outputs for these inputs, in the graph's order.
    ///
    /// # Errors
    /// If an input does not fit its declaration; the error names it.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.graph.run(inputs)
    }

    /// [`Session::run`], with every input and computed value shown to `see`.
    ///
    /// # Errors
    /// As [`Session::run`], and what `see` returns.
    pub fn run_with(
        &self,
        inputs: &[Tensor],
        see: impl FnMut(Var, &Node, &Tensor) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        self.graph.run_with(inputs, see)
    }

    /// The lowered graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// How much of the model runs in integers, and what does not.
    pub fn report(&self) -> &Report {
        &self.report
    }
}
