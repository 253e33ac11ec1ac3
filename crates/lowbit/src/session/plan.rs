//! A compiled graph at known shapes: a list of steps over one arena.

mod batch;
mod build;
mod memory;
mod parts;

use std::ops::Range;

pub use batch::Inputs;
pub use build::plan;
pub use parts::{are_apart, size};

use self::memory::{Arena, Reader};
use crate::error::{Result, invalid};
use crate::graph::{Graph, Kind, Var};
use crate::op::{DataMut, Op, Routine, View, ViewMut};
use crate::tensor::buffers::recycle;
use crate::tensor::{DType, Tensor};

/// Operands that one routine may have.
const MOST_OPERANDS: usize = 8;

/// What a run does for one set of input shapes.
#[derive(Debug)]
pub struct Plan {
    /// The graph at these shapes.
    graph: Graph,
    steps: Vec<Step>,
    /// Bytes of the arena.
    bytes: usize,
    /// Bytes that the routine which needs most has to work with.
    scratch: usize,
    /// The number of values that lie outside the arena.
    loose: usize,
    outputs: Vec<Place>,
}

/// One operator, or one part of a concatenation.
#[derive(Debug)]
pub struct Step {
    /// The node of the plan's graph.
    pub node: Var,
    work: Work,
    operands: Vec<Place>,
    results: Vec<Place>,
    /// Values outside the arena that nothing reads afterwards.
    freed: Vec<usize>,
}

#[derive(Debug)]
enum Work {
    Routine(Box<dyn Routine>),
    Eval(std::sync::Arc<dyn Op>),
    Copy,
}

impl Work {
    fn scratch(&self) -> usize {
        match self {
            Work::Routine(routine) => routine.scratch(),
            Work::Eval(_) | Work::Copy => 0,
        }
    }
}

/// Where a value lies.
#[derive(Clone, Debug)]
enum Place {
    /// With the caller.
    Input(usize),
    /// In the model.
    Constant(Tensor),
    /// In the arena.
    Arena(Region),
    /// In a tensor of its own, made during the run.
    Loose(usize),
}

/// A value in the arena: `rows` rows of `width` elements, `pitch` elements apart.
#[derive(Clone, Debug)]
struct Region {
    dtype: DType,
    shape: Vec<usize>,
    /// Bytes from the start of the arena.
    start: usize,
    rows: usize,
    width: usize,
    pitch: usize,
}

impl Region {
    /// Bytes from the first element to the last.
    fn bytes(&self) -> Range<usize> {
        let elements = if self.rows == 0 { 0 } else { (self.rows - 1) * self.pitch + self.width };
        self.start..self.start + elements * size_of_dtype(self.dtype)
    }

    fn view<'a>(&self, reader: Reader<'a>) -> Result<View<'a>> {
        let bytes = reader.get(self.bytes()).ok_or_else(|| invalid!("an operand is being written"))?;
        Ok(match self.dtype {
            DType::F32 => View::F32(bytemuck::cast_slice(bytes)),
            DType::I8 => View::I8(bytemuck::cast_slice(bytes)),
            _ => View::U8(bytes),
        })
    }

    fn view_mut<'a>(&self, bytes: &'a mut [u8]) -> ViewMut<'a> {
        let data = match self.dtype {
            DType::F32 => DataMut::F32(bytemuck::cast_slice_mut(bytes)),
            DType::I8 => DataMut::I8(bytemuck::cast_slice_mut(bytes)),
            _ => DataMut::U8(bytes),
        };
        ViewMut { data, pitch: self.pitch }
    }

    fn tensor(&self, reader: Reader<'_>) -> Result<Tensor> {
        match self.view(reader)? {
            View::F32(x) => Tensor::new(&self.shape, x.to_vec()),
            View::U8(x) => Tensor::new(&self.shape, x.to_vec()),
            View::I8(x) => Tensor::new(&self.shape, x.to_vec()),
            View::Other => Err(invalid!("a value of this type has no place in the arena")),
        }
    }
}

/// Bytes of one element of a type that the arena holds.
fn size_of_dtype(dtype: DType) -> usize {
    if dtype == DType::F32 { 4 } else { 1 }
}

/// What one run at a time writes to.
#[derive(Debug)]
pub struct Memory {
    arena: Arena,
    scratch: Vec<u8>,
    loose: Vec<Option<Tensor>>,
}

impl Plan {
    /// Memory for one run at a time.
    pub fn memory(&self) -> Memory {
        Memory {
            arena: Arena::new(self.bytes),
            scratch: vec![1; self.scratch],
            loose: vec![None; self.loose],
        }
    }

    /// The number of steps.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Bytes that a run writes to.
    pub fn bytes(&self) -> usize {
        self.bytes + self.scratch
    }

    /// Bytes of the weights that a run reads, about: for each row of results, every
    /// weight is multiplied once.
    pub fn weight_bytes(&self) -> usize {
        let of_step = |step: &Step| match step.results.as_slice() {
            [Place::Arena(y)] if !matches!(step.work, Work::Copy) => {
                let weights = self.graph.node_macs(step.node) / y.rows.max(1) as u64;
                usize::try_from(weights).unwrap_or(0) * size_of_dtype(y.dtype)
            }
            _ => 0,
        };
        self.steps.iter().map(of_step).sum()
    }

    /// Runs all steps; `done` is called after each.
    ///
    /// # Errors
    /// If an operator fails; the error names the node.
    pub fn run(&self, inputs: Inputs<'_>, memory: &mut Memory, mut done: impl FnMut(&Step)) -> Result<()> {
        for step in &self.steps {
            step.run(inputs, memory).map_err(|e| {
                let node = self.graph.node(step.node);
                e.at(&node.name)
            })?;
            done(step);
        }
        Ok(())
    }

    /// Output `i` after a run, as a new tensor.
    ///
    /// # Errors
    /// If there was no run.
    pub fn output(&self, i: usize, inputs: &[Tensor], memory: &Memory) -> Result<Tensor> {
        self.outputs[i].tensor(Inputs::whole(inputs), memory)
    }

    /// Output `i` after a run, copied into `to`, which gets a new buffer only if
    /// it has another type or shape, or shares its elements.
    ///
    /// # Errors
    /// If there was no run.
    pub fn copy_output(&self, i: usize, inputs: &[Tensor], memory: &Memory, to: &mut Tensor) -> Result<()> {
        if let Place::Arena(region) = &self.outputs[i]
            && (to.dtype(), to.shape()) == (region.dtype, region.shape.as_slice())
        {
            let done = match region.view(memory.arena.reader())? {
                View::F32(x) => to.slice_mut().map(|y| y.copy_from_slice(x)),
                View::U8(x) => to.slice_mut().map(|y| y.copy_from_slice(x)),
                View::I8(x) => to.slice_mut().map(|y| y.copy_from_slice(x)),
                View::Other => None,
            };
            if done.is_some() {
                return Ok(());
            }
        }
        *to = self.output(i, inputs, memory)?;
        Ok(())
    }
}

/// What one step of a run cost.
#[derive(Clone, Copy, Debug)]
pub struct Timing<'a> {
    /// The node.
    pub node: &'a str,
    /// Its operator.
    pub op: &'a str,
    /// The algorithm, in a few words.
    pub algorithm: &'static str,
    /// Seconds.
    pub seconds: f64,
    /// Multiply-accumulate operations.
    pub macs: u64,
    /// Bytes of operands and results.
    pub bytes: u64,
}

impl Plan {
    /// What `step` cost in all parts of a batch, given the seconds that it took.
    pub fn timing(&self, step: &Step, seconds: f64, parts: usize) -> Timing<'_> {
        let node = self.graph.node(step.node);
        let (op, operands) = match &node.kind {
            Kind::Apply { op, inputs } => (op.name(), inputs.as_slice()),
            _ => ("", [].as_slice()),
        };
        let copied = matches!(step.work, Work::Copy);
        let facts = operands.iter().map(|v| self.graph.fact(*v)).chain(node.outputs.iter().map(|o| &o.fact));
        Timing {
            node: &node.name,
            op,
            algorithm: step.algorithm(),
            seconds,
            macs: if copied { 0 } else { self.graph.node_macs(step.node) * parts as u64 },
            bytes: parts as u64 * facts.map(|f| f.dtype.bytes_of(f.elements() as usize) as u64).sum::<u64>(),
        }
    }
}

impl Step {
    /// The algorithm of the step, in a few words.
    pub fn algorithm(&self) -> &'static str {
        match &self.work {
            Work::Routine(routine) => routine.algorithm(),
            Work::Eval(_) => "reference",
            Work::Copy => "copy",
        }
    }

    fn run(&self, inputs: Inputs<'_>, memory: &mut Memory) -> Result<()> {
        match (&self.work, self.results.as_slice()) {
            (Work::Eval(op), results) => {
                let operands = self.operands.iter().map(|p| p.tensor(inputs, memory));
                let operands = operands.collect::<Result<Vec<_>>>()?;
                self.free(memory);
                let made = op.eval_owned(operands).map_err(|e| e.at(op.name()))?;
                for (result, made) in results.iter().zip(made) {
                    if let Place::Loose(i) = result {
                        memory.loose[*i] = Some(made);
                    }
                }
                return Ok(());
            }
            (work, [Place::Arena(result)]) => {
                let (reader, written) = memory.arena.split(result.bytes());
                let mut views = [View::Other; MOST_OPERANDS];
                for (view, place) in views.iter_mut().zip(&self.operands) {
                    *view = match place {
                        Place::Input(i) => inputs.view(*i),
                        Place::Constant(t) => View::of(t),
                        Place::Arena(region) => region.view(reader)?,
                        Place::Loose(i) => View::of(made(&memory.loose, *i)?),
                    };
                }
                let views = &views[..self.operands.len()];
                let y = result.view_mut(written);
                match work {
                    Work::Routine(routine) => routine.run(views, y, &mut memory.scratch)?,
                    _ => copy_rows(views[0], result.width, y)?,
                }
            }
            _ => return Err(invalid!("a routine writes one value of the arena")),
        }
        self.free(memory);
        Ok(())
    }

    fn free(&self, memory: &mut Memory) {
        for i in &self.freed {
            memory.loose[*i].take().into_iter().for_each(recycle);
        }
    }
}

impl Place {
    fn tensor(&self, inputs: Inputs<'_>, memory: &Memory) -> Result<Tensor> {
        match self {
            Place::Input(i) => inputs.tensor(*i),
            Place::Constant(t) => Ok(t.clone()),
            Place::Arena(region) => region.tensor(memory.arena.reader()),
            Place::Loose(i) => made(&memory.loose, *i).cloned(),
        }
    }
}

fn made(loose: &[Option<Tensor>], i: usize) -> Result<&Tensor> {
    loose[i].as_ref().ok_or_else(|| invalid!("an operand was not computed"))
}

/// Copies rows of `width` elements to rows that lie further apart.
fn copy_rows(x: View<'_>, width: usize, y: ViewMut<'_>) -> Result<()> {
    fn copy<T: Copy>(x: &[T], width: usize, y: &mut [T], pitch: usize) {
        if width > 0 {
            for (x, y) in x.chunks_exact(width).zip(y.chunks_mut(pitch)) {
                y[..width].copy_from_slice(x);
            }
        }
    }
    let pitch = y.pitch;
    match x {
        View::F32(x) => copy(x, width, y.f32()?, pitch),
        View::U8(x) => copy(x, width, y.u8()?, pitch),
        View::I8(x) => copy(x, width, y.i8()?, pitch),
        View::Other => return Err(invalid!("a value of this type is not copied")),
    }
    Ok(())
}
