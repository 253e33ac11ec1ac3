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

use self::plan::{Inputs, Memory, Plan};
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
    /// Whether each sample of a batch is computed by itself.
    apart: bool,
    report: Report,
    plans: Mutex<Vec<Arc<Planned>>>,
}

/// A plan, the threads and the types and shapes of the inputs that it is for, and
/// memory for as many runs as went on at once.
#[derive(Debug)]
struct Planned {
    threads: usize,
    inputs: Vec<(DType, Vec<usize>)>,
    /// For an equal part of the batch.
    plan: Plan,
    /// How many there are.
    parts: usize,
    /// For each run, memory for each of its threads that has parts of its own.
    idle: Mutex<Vec<Vec<Memory>>>,
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
        let apart = plan::are_apart(&graph);
        Ok(Session { graph, apart, report, plans: Mutex::default() })
    }

    /// The outputs for these inputs, in the graph's order.
    ///
    /// # Errors
    /// If an input does not fit its declaration; the error names it.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let count = self.graph.outputs().len();
        self.with_plan(inputs, |plan, parts, memory| match (parts, &mut *memory) {
            (1, [memory]) => {
                plan.run(Inputs::whole(inputs), memory, |_| ())?;
                (0..count).map(|i| plan.output(i, inputs, memory)).collect()
            }
            _ => {
                let mut outputs = vec![Tensor::scalar(0u8); count];
                plan.run_parts(inputs, parts, &mut outputs, memory)?;
                Ok(outputs)
            }
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
        self.with_plan(inputs, |plan, parts, memory| match (parts, &mut *memory) {
            (1, [memory]) => {
                plan.run(Inputs::whole(inputs), memory, |_| ())?;
                let mut outputs = outputs.iter_mut().enumerate();
                outputs.try_for_each(|(i, to)| plan.copy_output(i, inputs, memory, to))
            }
            _ => plan.run_parts(inputs, parts, outputs, memory),
        })
    }

    /// Runs the model once and gives each step's [`Timing`] to `see`, in the
    /// order of execution.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn time(&self, inputs: &[Tensor], see: &mut (dyn FnMut(Timing<'_>) + Send)) -> Result<()> {
        self.with_plan(inputs, |plan, parts, memory| {
            let Some(memory) = memory.first_mut() else { return Ok(()) };
            let mut seconds = vec![0.0; plan.len()];
            let mut last = std::time::Instant::now();
            let mut ends = 0;
            plan.follow_parts(inputs, parts, memory, |i, step| {
                seconds[i] += last.elapsed().as_secs_f64();
                ends += usize::from(i == 0);
                if ends == parts {
                    see(plan.timing(step, seconds[i], parts));
                }
                last = std::time::Instant::now();
            })
        })
    }

    /// Calls `f` with the plan for parts of these inputs, how many parts there are, and
    /// memory that no other run uses.
    fn with_plan<T: Send>(
        &self,
        inputs: &[Tensor],
        f: impl FnOnce(&Plan, usize, &mut [Memory]) -> Result<T> + Send,
    ) -> Result<T> {
        let planned = self.planned(inputs)?;
        let idle = planned.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let lanes = planned.threads.min(planned.parts).max(1);
        let mut memory = idle.unwrap_or_else(|| (0..lanes).map(|_| planned.plan.memory()).collect());
        let done = with_threads_awake(|| f(&planned.plan, planned.parts, &mut memory));
        planned.idle.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
        done
    }

    fn planned(&self, inputs: &[Tensor]) -> Result<Arc<Planned>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = rayon::current_num_threads();
        let fits = |p: &Arc<Planned>| {
            let wanted = p.inputs.iter().map(|(dtype, shape)| (*dtype, shape.as_slice()));
            p.threads == threads && wanted.eq(inputs.iter().map(|t| (t.dtype(), t.shape())))
        };
        if let Some(planned) = plans.iter().find(|p| fits(p)) {
            return Ok(planned.clone());
        }
        self.graph.check_inputs(inputs)?;
        let (plan, parts) = self.plan_of_parts(inputs, threads)?;
        let inputs = inputs.iter().map(|t| (t.dtype(), t.shape().to_vec())).collect();
        let planned = Arc::new(Planned { threads, inputs, plan, parts, idle: Mutex::default() });
        if plans.len() == PLANS {
            plans.remove(0);
        }
        plans.push(planned.clone());
        Ok(planned)
    }

    /// A plan for parts of these inputs, and how many parts there are.
    fn plan_of_parts(&self, inputs: &[Tensor], threads: usize) -> Result<(Plan, usize)> {
        let plan_of = |batch: Option<usize>| {
            let mut shapes: Vec<Vec<usize>> = inputs.iter().map(|t| t.shape().to_vec()).collect();
            if let Some(batch) = batch {
                shapes.iter_mut().filter_map(|shape| shape.first_mut()).for_each(|n| *n = batch);
            }
            plan::plan(&self.graph, shapes.iter().map(Vec::as_slice))
        };
        let batch = inputs.first().and_then(|t| t.shape().first()).copied().unwrap_or(0);
        if self.apart && batch > 1 {
            let of_one = plan_of(Some(1))?;
            let size = plan::size(batch, threads, of_one.bytes(), of_one.weight_bytes());
            if of_one.runs_in_parts() && size < batch {
                let plan = if size == 1 { of_one } else { plan_of(Some(size))? };
                return Ok((plan, batch / size));
            }
        }
        Ok((plan_of(None)?, 1))
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
