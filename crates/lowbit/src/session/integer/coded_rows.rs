//! Rows of values quantized in the run: the codes of a row, and behind them how they
//! stand for values.

use rayon::prelude::*;

use lowbit_kernels::Kernels;

use crate::error::{Result, invalid};
use crate::op::{Dim, Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::ops::quantize::dynamic_step;
use crate::parallel;
use crate::session::images::fact;
use crate::tensor::{DType, Tensor};

/// Elements that one task looks at or quantizes.
pub const CHUNK: usize = 1 << 15;

/// Bytes of a row's scale, in f32, and of its zero point, in i32.
const STEP: usize = 8;

/// Bytes of a row of `depth` codes and their step.
pub const fn pitch(depth: usize) -> usize {
    depth + STEP
}

/// The least and the greatest of some values and 0; NaN does not count.
pub fn range(x: &[f32]) -> [f32; 2] {
    let found = Kernels::best().min_max(x);
    [found.min.min(0.0), found.max.max(0.0)]
}

/// [`range`], by all threads of the pool.
pub fn range_of_all(x: &[f32]) -> [f32; 2] {
    let union = |[a, b]: [f32; 2], [c, d]: [f32; 2]| [a.min(c), b.max(d)];
    match x.len() > CHUNK && rayon::current_num_threads() > 1 {
        true => x.par_chunks(CHUNK).map(range).reduce(|| [0.0; 2], union),
        false => range(x),
    }
}

/// Quantizes rows of `depth` values: each by its own range, or all by that of all,
/// which is found if it is not known.
pub fn quantize(x: &[f32], depth: usize, by_rows: bool, known: Option<[f32; 2]>, coded: &mut [u8]) {
    let of_all = (!by_rows).then(|| known.unwrap_or_else(|| range_of_all(x)));
    let together = (CHUNK / depth.max(1)).max(1);
    parallel::chunks(coded, together * pitch(depth), |i, coded| {
        for (row, coded) in coded.chunks_exact_mut(pitch(depth)).enumerate() {
            let x = &x[(i * together + row) * depth..][..depth];
            let [lo, hi] = of_all.unwrap_or_else(|| range(x));
            let (scale, zero) = dynamic_step(lo, hi);
            let (codes, step) = coded.split_at_mut(depth);
            Kernels::best().quantize_u8(x, scale, zero, 0, 255, codes);
            step.copy_from_slice(&(u64::from(scale.to_bits()) | (zero as u64) << 32).to_le_bytes());
        }
    });
}

/// Scale and zero point of row `row`.
pub fn step(coded: &[u8], depth: usize, row: usize) -> (f32, i32) {
    let bytes = coded[row * pitch(depth) + depth..].first_chunk().expect("a step behind the codes");
    let step = u64::from_le_bytes(*bytes);
    (f32::from_bits(step as u32), (step >> 32) as i32)
}

/// The rows of an operand, of known length, coded: once for several products.
#[derive(Clone, Copy, Debug)]
pub struct DynamicQuantize {
    /// Whether each row has a range of its own.
    pub by_rows: bool,
}

impl Op for DynamicQuantize {
    fn name(&self) -> &'static str {
        "DynamicQuantize"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        let mut shape = x[0].shape.clone();
        match shape.last_mut() {
            Some(Dim::Known(depth)) => *depth = pitch(*depth),
            _ => return Err(invalid!("rows of unknown length")),
        }
        fact(DType::U8, shape)
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        match x[0].shape.last() {
            Some(&depth) => Prepared::routine(Rows { by_rows: self.by_rows, depth }),
            None => Err(invalid!("a scalar has no rows")),
        }
    }
}

/// A [`DynamicQuantize`] of rows of known length.
#[derive(Debug)]
struct Rows {
    by_rows: bool,
    depth: usize,
}

impl Routine for Rows {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        quantize(x[0].f32()?, self.depth, self.by_rows, None, y.u8()?);
        Ok(())
    }
}
