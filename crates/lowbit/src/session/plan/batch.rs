//! A plan for a part of a batch, run for all of it.

use std::array;
use std::mem::replace;
use std::ops::Range;

use super::{Memory, Place, Plan, Step};
use crate::error::{Result, invalid};
use crate::op::{DataMut, View};
use crate::tensor::{DType, Tensor};

/// Outputs that a model may have whose batches are run in parts.
pub const MOST_OUTPUTS: usize = 8;

/// The inputs of a run, or an equal part of each.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    tensors: &'a [Tensor],
    part: usize,
    parts: usize,
}

impl<'a> Inputs<'a> {
    /// All of the tensors.
    pub fn whole(tensors: &'a [Tensor]) -> Inputs<'a> {
        Inputs { tensors, part: 0, parts: 1 }
    }

    /// Part `part` of `parts` along dimension 0.
    pub fn part(self, part: usize, parts: usize) -> Inputs<'a> {
        Inputs { part, parts, ..self }
    }

    /// The elements of input `i`.
    pub(super) fn view(self, i: usize) -> View<'a> {
        fn part<T>(x: &[T], at: usize, of: usize) -> &[T] {
            &x[x.len() / of * at..][..x.len() / of]
        }
        let Inputs { tensors, part: at, parts: of } = self;
        match View::of(&tensors[i]) {
            View::F32(x) => View::F32(part(x, at, of)),
            View::U8(x) => View::U8(part(x, at, of)),
            View::I8(x) => View::I8(part(x, at, of)),
            View::Other => View::Other,
        }
    }

    /// Input `i`, of which there are no parts.
    pub(super) fn tensor(self, i: usize) -> Result<Tensor> {
        match self.parts {
            1 => Ok(self.tensors[i].clone()),
            _ => Err(invalid!("an input is needed whole, and its batch is run in parts")),
        }
    }
}

/// The outputs of some samples, to be written.
struct Outputs<'a>([DataMut<'a>; MOST_OUTPUTS]);

impl<'a> Outputs<'a> {
    fn of(tensors: &'a mut [Tensor]) -> Result<Outputs<'a>> {
        let mut all = array::from_fn(|_| DataMut::U8(&mut []));
        for (to, t) in all.iter_mut().zip(tensors) {
            let shared = || invalid!("an output is shared");
            *to = match t.dtype() {
                DType::F32 => DataMut::F32(t.slice_mut().ok_or_else(shared)?),
                DType::I8 => DataMut::I8(t.slice_mut().ok_or_else(shared)?),
                _ => DataMut::U8(t.slice_mut().ok_or_else(shared)?),
            };
        }
        Ok(Outputs(all))
    }

    /// The first `at` of `of` equal parts, and the others.
    fn split(self, at: usize, of: usize) -> (Outputs<'a>, Outputs<'a>) {
        fn halves<T>(x: &mut [T], at: usize, of: usize) -> (&mut [T], &mut [T]) {
            x.split_at_mut(x.len() / of * at)
        }
        let (mut first, mut second) = (self.0, array::from_fn(|_| DataMut::U8(&mut [])));
        for (first, second) in first.iter_mut().zip(&mut second) {
            (*first, *second) = match replace(first, DataMut::U8(&mut [])) {
                DataMut::F32(x) => both(halves(x, at, of), DataMut::F32),
                DataMut::U8(x) => both(halves(x, at, of), DataMut::U8),
                DataMut::I8(x) => both(halves(x, at, of), DataMut::I8),
            };
        }
        (Outputs(first), Outputs(second))
    }
}

fn both<T, U>((a, b): (T, T), f: impl Fn(T) -> U) -> (U, U) {
    (f(a), f(b))
}

impl Plan {
    /// Whether it may run for parts of a batch: nothing lies outside the arena
    /// but inputs and constants.
    pub fn runs_in_parts(&self) -> bool {
        let in_arena = |place: &Place| matches!(place, Place::Arena(_));
        self.loose == 0 && self.outputs.len() <= MOST_OUTPUTS && self.outputs.iter().all(in_arena)
    }

    /// Runs all `parts` parts of a batch, each of what the plan is for: on as many
    /// threads as there are memories, some parts on each.
    ///
    /// # Errors
    /// If an operator fails; the error names the node.
    pub fn run_parts(
        &self,
        inputs: &[Tensor],
        parts: usize,
        outputs: &mut [Tensor],
        memory: &mut [Memory],
    ) -> Result<()> {
        for (place, to) in self.outputs.iter().zip(&mut *outputs) {
            let Place::Arena(region) = place else { return Err(invalid!("an output outside the arena")) };
            let fits = to.dtype() == region.dtype
                && to.shape().split_first().zip(region.shape.split_first()).is_some_and(
                    |((batch, shape), (part, of_part))| *batch == part * parts && shape == of_part,
                );
            let exclusive = match to.dtype() {
                DType::F32 => to.slice_mut::<f32>().is_some(),
                DType::I8 => to.slice_mut::<i8>().is_some(),
                _ => to.slice_mut::<u8>().is_some(),
            };
            if !(fits && exclusive) {
                let mut shape = region.shape.clone();
                shape.first_mut().into_iter().for_each(|batch| *batch *= parts);
                *to = match region.dtype {
                    DType::F32 => Tensor::full(&shape, 0f32)?,
                    DType::I8 => Tensor::full(&shape, 0i8)?,
                    _ => Tensor::full(&shape, 0u8)?,
                };
            }
        }
        let all = Parts { plan: self, inputs: Inputs::whole(inputs), parts, range: 0..parts };
        all.run(Outputs::of(outputs)?, memory)
    }

    /// As [`Plan::run_parts`], one part after the other on all threads; the outputs are
    /// not kept. `done` is called after each step of each part, with its number.
    ///
    /// # Errors
    /// If an operator fails; the error names the node.
    pub fn follow_parts(
        &self,
        inputs: &[Tensor],
        parts: usize,
        memory: &mut Memory,
        mut done: impl FnMut(usize, &Step),
    ) -> Result<()> {
        for part in 0..parts {
            let mut step = 0..;
            self.run(Inputs::whole(inputs).part(part, parts), memory, |s| {
                step.next().into_iter().for_each(|i| done(i, s));
            })?;
        }
        Ok(())
    }

    /// Copies the outputs of the last run.
    fn write_outputs(&self, memory: &Memory, to: &mut Outputs<'_>) -> Result<()> {
        for (place, to) in self.outputs.iter().zip(&mut to.0) {
            let Place::Arena(region) = place else { continue };
            match (region.view(memory.arena.reader())?, to) {
                (View::F32(x), DataMut::F32(y)) => y.copy_from_slice(x),
                (View::U8(x), DataMut::U8(y)) => y.copy_from_slice(x),
                (View::I8(x), DataMut::I8(y)) => y.copy_from_slice(x),
                _ => return Err(invalid!("an output of another type")),
            }
        }
        Ok(())
    }
}

/// Some parts of a batch.
struct Parts<'a> {
    plan: &'a Plan,
    inputs: Inputs<'a>,
    parts: usize,
    range: Range<usize>,
}

impl Parts<'_> {
    fn run(self, mut outputs: Outputs<'_>, memory: &mut [Memory]) -> Result<()> {
        let Parts { plan, inputs, parts, range } = self;
        match memory {
            [] => Err(invalid!("no memory to run in")),
            [memory] => {
                let end = range.end;
                for part in range {
                    plan.run(inputs.part(part, parts), memory, |_| ())?;
                    let (mut now, others) = outputs.split(1, end - part);
                    plan.write_outputs(memory, &mut now)?;
                    outputs = others;
                }
                Ok(())
            }
            _ => {
                let lanes = memory.len();
                let (left, right) = memory.split_at_mut(lanes / 2);
                let at = range.len() * left.len() / lanes;
                let (first, others) = outputs.split(at, range.len());
                let middle = range.start + at;
                let of = |range| Parts { plan, inputs, parts, range };
                let (a, b) = rayon::join(
                    || of(range.start..middle).run(first, left),
                    || of(middle..range.end).run(others, right),
                );
                a.and(b)
            }
        }
    }
}
