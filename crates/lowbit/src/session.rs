//! The int8 engine: a Q/DQ graph compiled once, run many times.

mod bodies;
mod clamped;
mod codes;
mod fastest;
mod float;
mod images;
mod integer;
mod lower;
mod plan;
mod pool;
mod report;
mod stacks;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use plan::Timing;
pub use report::{Fallback, Report};

use lowbit_kernels::Kernels;

use self::plan::{Memory, Plan};
use crate::error::{Error, Result, invalid};
use crate::graph::{Graph, Node, Var};
use crate::parallel::with_threads_awake;
use crate::tensor::{DType, Tensor};

/// Sets of input shapes whose plans are kept.
const PLANS: usize = 8;

/// A compiled model. Several threads may run one Session at once.
///
/// Compiling replaces every `dequantize* -> operator -> quantize` pattern by an
/// integer operator that follows the numeric specification exactly, chooses
/// channels-last layouts, and packs weights for the CPU. What has no integer
/// form runs in float, and the [`Report`] says why.
///
/// The first run with inputs of new shapes makes a plan for them: where each
/// value lies in one piece of memory, and what each operator needs beside its
/// operands. Later runs only compute.
///
/// A run is spread over the current rayon pool, whose threads look for more work
/// for 200 microseconds after it. A caller outside the pool sleeps meanwhile, and
/// waking it up takes as long as a small model does: run such a model within
/// [`rayon::ThreadPool::install`], or from a thread that
/// [`rayon::ThreadPoolBuilder::use_current_thread`] made one of the pool's.
#[derive(Debug)]
pub struct Session {
    graph: Graph,
    report: Report,
    plans: Mutex<Vec<Arc<Planned>>>,
}

/// A plan, the types and shapes of the inputs that it is for, and memory for as
/// many runs as went on at once.
#[derive(Debug)]
struct Planned {
    inputs: Vec<(DType, Vec<usize>)>,
    plan: Plan,
    idle: Mutex<Vec<Memory>>,
}

impl Session {
    /// Compiles a Q/DQ graph, made by lowbit or another tool. A float graph
    /// compiles too, and runs in float, with what [`fuse`](crate::quantize::fuse)
    /// folds folded. So do the bodies of branches and loops.
    ///
    /// # Errors
    /// If an operator cannot be lowered for a reason that is an error in the
    /// model, such as scales that do not fit; the error names the node. Or if
    /// `LOWBIT_ISA` names an instruction set that this CPU does not have.
    pub fn compile(graph: &Graph) -> Result<Session> {
        Session::compiled(graph, HashMap::new())
    }

    /// [`Session::compile`], with what is known beforehand of why nodes stay in float.
    fn compiled(graph: &Graph, reasons: HashMap<String, String>) -> Result<Session> {
        Kernels::select().map_err(Error::Invalid)?;
        let (graph, report) = bodies::compiled(graph, reasons)?;
        Ok(Session { graph, report, plans: Mutex::default() })
    }

    /// The outputs for these inputs, in the graph's order.
    ///
    /// # Errors
    /// If an input does not fit its declaration; the error names it.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.with_plan(inputs, |plan, memory| {
            plan.run(inputs, memory, |_| ())?;
            (0..self.graph.outputs().len()).map(|i| plan.output(i, inputs, memory)).collect()
        })
    }

    /// [`Session::run`] into tensors of an earlier run: where types and shapes
    /// are the same, and every operator has a routine, nothing is allocated.
    ///
    /// # Errors
    /// As [`Session::run`], or if there are not as many tensors as outputs.
    pub fn run_into(&self, inputs: &[Tensor], outputs: &mut [Tensor]) -> Result<()> {
        let count = self.graph.outputs().len();
        if outputs.len() != count {
            return Err(invalid!("the model has {count} outputs, and {} tensors were given", outputs.len()));
        }
        self.with_plan(inputs, |plan, memory| {
            plan.run(inputs, memory, |_| ())?;
            let mut outputs = outputs.iter_mut().enumerate();
            outputs.try_for_each(|(i, to)| plan.copy_output(i, inputs, memory, to))
        })
    }

    /// Runs the model once and gives each step's [`Timing`] to `see`, in the
    /// order of execution.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn time(&self, inputs: &[Tensor], see: &mut (dyn FnMut(Timing<'_>) + Send)) -> Result<()> {
        self.with_plan(inputs, |plan, memory| {
            let mut last = std::time::Instant::now();
            plan.run(inputs, memory, |step| {
                let seconds = last.elapsed().as_secs_f64();
                see(plan.timing(step, seconds));
                last = std::time::Instant::now();
            })
        })
    }

    /// Calls `f` with the plan for these inputs and memory that no other run uses.
    fn with_plan<T: Send>(
        &self,
        inputs: &[Tensor],
        f: impl FnOnce(&Plan, &mut Memory) -> Result<T> + Send,
    ) -> Result<T> {
        let planned = self.planned(inputs)?;
        let idle = planned.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut memory = idle.unwrap_or_else(|| planned.plan.memory());
        let done = with_threads_awake(|| f(&planned.plan, &mut memory));
        planned.idle.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
        done
    }

    fn planned(&self, inputs: &[Tensor]) -> Result<Arc<Planned>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |p: &Arc<Planned>| {
            let wanted = p.inputs.iter().map(|(dtype, shape)| (*dtype, shape.as_slice()));
            wanted.eq(inputs.iter().map(|t| (t.dtype(), t.shape())))
        };
        if let Some(planned) = plans.iter().find(|p| fits(p)) {
            return Ok(planned.clone());
        }
        self.graph.check_inputs(inputs)?;
        let plan = plan::plan(&self.graph, inputs)?;
        let inputs = inputs.iter().map(|t| (t.dtype(), t.shape().to_vec())).collect();
        let planned = Arc::new(Planned { inputs, plan, idle: Mutex::default() });
        if plans.len() == PLANS {
            plans.remove(0);
        }
        plans.push(planned.clone());
        Ok(planned)
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

#[cfg(test)]
mod tests;
