//! The units of a layer in parts, one for each thread.

use std::mem;
use std::ops::Range;

use lowbit_kernels::{Grid, Kernels, MinMax};

use super::layer::State;
use super::matrix::{ZERO, union};
use crate::error::Result;
use crate::parallel;
use crate::tensor::element_count;

/// Multiply-accumulates of a step that are worth a thread.
const OF_STEP: usize = 1 << 17;
/// Elements of a state that several threads quantize sooner than one.
const QUANTIZED: usize = 1 << 13;

/// What is computed of a layer.
pub(super) struct Plan {
    pub(super) batch: usize,
    pub(super) hidden: usize,
    /// Gates of a unit.
    pub(super) gates: usize,
    /// Steps whose gates are at hand.
    pub(super) together: usize,
    pub(super) is_coded: bool,
    /// Whether the cell is a GRU.
    pub(super) has_candidate: bool,
}

/// Some units of a layer, which one thread computes, and their memory.
pub(super) struct Part<'m> {
    pub(super) units: Range<usize>,
    /// `[step][batch][gate][unit]`
    pub(super) gates: &'m mut [f32],
    /// The state, `[batch][unit]`.
    pub(super) h: &'m mut [f32],
    /// Of an LSTM.
    pub(super) c: &'m mut [f32],
    /// GRU: `r * h`, or `R h + Rb` if the reset applies to the product.
    pub(super) candidate: &'m mut [f32],
    /// Where the states go.
    pub(super) y: Grid<'m, f32>,
    /// Of codes: what the state adds to the gates, laid out as these.
    pub(super) products: &'m mut [f32],
    /// Of codes: where what is quantized next lies, and 0.
    pub(super) range: MinMax,
}

impl Plan {
    /// Elements of memory.
    pub(super) fn elements(&self) -> Result<usize> {
        let of_unit = self.gates * (self.together + usize::from(self.is_coded));
        element_count(&[self.batch, self.hidden, of_unit + 2 + usize::from(self.has_candidate)])
    }

    /// The units, one part for each thread that a step is worth, each of whole panels of `width`
    /// columns, with [`Plan::elements`] of memory.
    pub(super) fn parts<'m>(
        &self,
        width: usize,
        state: &State<'_>,
        y: Grid<'m, f32>,
        mut memory: &'m mut [f32],
    ) -> Vec<Part<'m>> {
        let panels = self.hidden.div_ceil(width);
        let work = (self.batch * self.gates * self.hidden).saturating_mul(self.hidden);
        let count = (work / OF_STEP).clamp(1, rayon::current_num_threads().min(panels));
        let edge = |i: usize| self.hidden.min(panels * i / count * width);
        let mut take = |len: usize| {
            let (taken, rest) = mem::take(&mut memory).split_at_mut(len);
            memory = rest;
            taken
        };
        let of_products = if self.is_coded { self.gates } else { 0 };
        let mut rest = Some(y);
        let mut part = |i: usize| {
            let units = edge(i)..edge(i + 1);
            let of_state = self.batch * units.len();
            let (y, others) = rest.take()?.split_columns(units.len());
            rest = Some(others);
            let (h, c) = (take(of_state), take(of_state));
            for (own, all) in [(&mut *h, &*state.h), (&mut *c, &*state.c)] {
                let rows = own.chunks_exact_mut(units.len()).zip(all.chunks_exact(self.hidden));
                rows.for_each(|(own, all)| own.copy_from_slice(&all[units.clone()]));
            }
            Some(Part {
                gates: take(of_state * self.gates * self.together),
                range: if self.is_coded { union(ZERO, Kernels::best().min_max(h)) } else { ZERO },
                h,
                c,
                candidate: take(if self.has_candidate { of_state } else { 0 }),
                y,
                products: take(of_state * of_products),
                units,
            })
        };
        (0..count).filter_map(&mut part).collect()
    }
}

/// Calls `f` for all parts, each on a thread.
pub(super) fn each(parts: &mut [Part<'_>], f: &(impl Fn(&mut Part<'_>) + Sync)) {
    match parts {
        [] => {}
        [part] => f(part),
        _ => {
            let (some, others) = parts.split_at_mut(parts.len() / 2);
            parallel::join(|| each(some, f), || each(others, f));
        }
    }
}

/// Calls `f` for all parts with their columns of `codes`, each on a thread.
pub(super) fn each_with(
    parts: &mut [Part<'_>],
    codes: Grid<'_, u8>,
    f: &(impl Fn(&mut Part<'_>, Grid<'_, u8>) + Sync),
) {
    match parts {
        [] => {}
        [part] => f(part, codes),
        _ => {
            let (some, others) = parts.split_at_mut(parts.len() / 2);
            let at = others[0].units.start - some[0].units.start;
            let count = codes.rows() * codes.columns();
            let (left, right) = codes.split_columns(at);
            if count < QUANTIZED {
                each_with(some, left, f);
                each_with(others, right, f);
            } else {
                parallel::join(|| each_with(some, left, f), || each_with(others, right, f));
            }
        }
    }
}
