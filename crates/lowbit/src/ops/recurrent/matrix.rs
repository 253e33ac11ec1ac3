//! The matrices that a recurrent layer multiplies with, in f32 or in codes.
//!
//! A layer in codes quantizes its rows x (all inputs at once, the state at each
//! step) to 8 bits by steps `s, z` that are given, or over the range of what is at
//! hand, widened to hold 0 (docs/quantization.md, equations 28 and 20):
//!
//! ```text
//! s = (max - min) / 255, or 1 where that is 0     z = clamp(rhe(-min / s), 0, 255)
//! q = clamp(rhe(x / s) + z, 0, 255)
//! y[n] = f32(sum_k (q[k] - z) (w[n][k] - z_w)) * (s * s_w[n])
//! ```

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use lowbit_kernels::{
    Grid, Kernels, Matrix, MatrixMut, MinMax, Output, PackedWeights, Panels, Product, Right, Rows, Start,
};
use rayon::prelude::*;

use crate::error::Result;
use crate::parallel;
use crate::tensor::element_count;

/// Elements of f32 panels that pass by all rows together: they stay in the
/// second-level cache.
const PANELS: usize = 96 << 10;
/// Elements that are quantized in one task.
const QUANTIZED: usize = 1 << 16;
/// A multiple of the columns of a panel of codes.
const CODE_PANEL: usize = 32;

/// How codes stand for reals: `x = (q - zero) scale`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) scale: f32,
    /// A code of uint8.
    pub(super) zero: i32,
}

impl Step {
    /// The codes that cover a range and 0.
    pub(super) fn covering(range: MinMax) -> Step {
        let (lo, hi) = (range.min.min(0.0), range.max.max(0.0));
        let scale = (hi - lo) / 255.0;
        let scale = if scale > 0.0 { scale } else { 1.0 };
        Step { scale, zero: (-lo / scale).round_ties_even().clamp(0.0, 255.0) as i32 }
    }

    pub(super) fn encode(self, x: &[f32], codes: &mut [u8]) {
        Kernels::best().quantize_u8(x, self.scale, self.zero, 0, 255, codes);
    }
}

/// The range of nothing but 0.
pub(super) const ZERO: MinMax = MinMax { min: 0.0, max: 0.0, has_nan: false };

/// Where two ranges lie; NaN does not count.
pub(super) fn union(a: MinMax, b: MinMax) -> MinMax {
    MinMax { min: a.min.min(b.min), max: a.max.max(b.max), has_nan: false }
}

/// Where `x` lies, and 0, found by all threads of the pool.
fn range(x: &[f32]) -> MinMax {
    let range = |x: &[f32]| union(ZERO, Kernels::best().min_max(x));
    match x.len() > QUANTIZED && rayon::current_num_threads() > 1 {
        true => x.par_chunks(QUANTIZED).map(range).reduce(|| ZERO, union),
        false => range(x),
    }
}

/// The inputs of all steps, `[step][batch][input]`.
#[derive(Debug)]
pub(super) enum Input<'a> {
    /// In f32.
    Values(Cow<'a, [f32]>),
    /// In codes.
    Codes(Cow<'a, [u8]>, Step),
}

impl Input<'_> {
    /// `x` in codes of this step, or over its range, with memory for as many.
    pub(super) fn quantized<'c>(x: &[f32], step: Option<Step>, codes: &'c mut [u8]) -> Input<'c> {
        let step = step.unwrap_or_else(|| Step::covering(range(x)));
        parallel::chunks(codes, QUANTIZED, |i, codes| {
            step.encode(&x[i * QUANTIZED..][..codes.len()], codes);
        });
        Input::Codes(Cow::Borrowed(codes), step)
    }

    /// The same with the steps of each sequence in reverse order; what lies
    /// beyond its end stays.
    pub(super) fn reversed(&self, lengths: &[usize], depth: usize) -> Input<'static> {
        match self {
            Input::Values(x) => Input::Values(reversed(x, lengths, depth).into()),
            Input::Codes(x, step) => Input::Codes(reversed(x, lengths, depth).into(), *step),
        }
    }

    /// Some rows of `depth` elements, of whose codes `terms` are what
    /// [`Packed::terms`] gives for all rows.
    pub(super) fn rows<'a>(&'a self, rows: Range<usize>, depth: usize, terms: &'a [i32]) -> Left<'a> {
        let elements = rows.start * depth..rows.end * depth;
        match self {
            Input::Values(x) => Left::Values(Matrix::new(&x[elements], rows.len(), depth)),
            Input::Codes(x, step) => {
                let codes = Rows::strided(&x[elements], depth, rows.len(), depth);
                Left::Codes(if terms.is_empty() { codes } else { codes.with_terms(&terms[rows]) }, *step)
            }
        }
    }
}

fn reversed<T: Copy>(x: &[T], lengths: &[usize], depth: usize) -> Vec<T> {
    let mut y = x.to_vec();
    let row = |step: usize, n: usize| {
        let at = (step * lengths.len() + n) * depth;
        at..at + depth
    };
    for (n, &length) in lengths.iter().enumerate() {
        for step in 0..length {
            y[row(length - 1 - step, n)].copy_from_slice(&x[row(step, n)]);
        }
    }
    y
}

/// The left matrix of a product.
#[derive(Clone, Copy, Debug)]
pub(super) enum Left<'a> {
    /// In f32.
    Values(Matrix<'a>),
    /// In codes.
    Codes(Rows<'a>, Step),
}

/// A right matrix, `[unit][depth]` transposed, ready to be multiplied.
pub(super) enum Packed {
    /// In f32.
    Values(PackedValues),
    /// In codes.
    Codes(PackedCodes),
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Packed::Values(p) => write!(f, "f32[{}, {}]", p.depth, p.units),
            Packed::Codes(p) => write!(f, "int8[{}, {}]", p.weights.depth(), p.weights.columns()),
        }
    }
}

impl Packed {
    /// Ranges of units begin at a multiple of this.
    pub(super) fn width(&self) -> usize {
        match self {
            Packed::Values(p) => p.width,
            Packed::Codes(_) => CODE_PANEL,
        }
    }

    /// What is added to the sums of each row of the codes `x`: empty for 0.
    pub(super) fn terms(&self, x: &Input<'_>) -> Vec<i32> {
        let mut terms = vec![];
        if let (Packed::Codes(p), Input::Codes(x, _)) = (self, x) {
            p.terms_into(x, &mut terms);
        }
        terms
    }

    /// `out = left * self`; in f32, on top of `bias`, one for each unit.
    pub(super) fn start(&self, left: Left<'_>, bias: &[f32], out: Out<'_>) {
        match (self, left) {
            (Packed::Values(p), Left::Values(left)) => p.multiply(left, Some(bias), out),
            (Packed::Codes(_), Left::Codes(..)) => self.product(left, out),
            _ => unreachable!("a layer has one form"),
        }
    }

    /// `out = out + left * self` in f32.
    pub(super) fn add(&self, left: Left<'_>, out: Out<'_>) {
        match (self, left) {
            (Packed::Values(p), Left::Values(left)) => p.multiply(left, None, out),
            _ => unreachable!("only values are added to"),
        }
    }

    /// `out = left * self` in codes.
    pub(super) fn product(&self, left: Left<'_>, out: Out<'_>) {
        match (self, left) {
            (Packed::Codes(p), Left::Codes(rows, step)) => p.multiply(&rows, step, out),
            _ => unreachable!("values are added to"),
        }
    }

    /// What is added to the sums of each of the `rows` of `codes`: empty for 0.
    pub(super) fn terms_into(&self, codes: &[u8], terms: &mut Vec<i32>) {
        if let Packed::Codes(p) = self {
            p.terms_into(codes, terms);
        }
    }
}

/// Where some units of a product go.
pub(super) struct Out<'a> {
    /// Which ones; the first is a multiple of [`Packed::width`].
    pub(super) units: Range<usize>,
    /// Rows of them.
    pub(super) data: &'a mut [f32],
    /// The distance of rows.
    pub(super) pitch: usize,
}

/// A matrix in f32: panels of columns.
pub(super) struct PackedValues {
    data: Vec<f32>,
    depth: usize,
    units: usize,
    width: usize,
}

impl PackedValues {
    /// Packs `weights`, `[units][depth]`.
    pub(super) fn new(weights: &[f32], units: usize, depth: usize) -> Result<PackedValues> {
        let kernels = Kernels::best();
        let width = kernels.panel_width();
        let mut data = vec![0.0; element_count(&[units.next_multiple_of(width), depth])?];
        let source = Matrix::new(weights, units, depth);
        for (at, panel) in (0..units).step_by(width).zip(data.chunks_exact_mut((width * depth).max(1))) {
            kernels.transpose(source.rows(at, width.min(units - at)), width, panel);
        }
        Ok(PackedValues { data, depth, units, width })
    }

    /// Chains of fused multiply-adds from `start`, one for each unit, or from
    /// `out` on.
    fn multiply(&self, left: Matrix<'_>, start: Option<&[f32]>, out: Out<'_>) {
        let Out { units, data, pitch } = out;
        let panels = Panels::new(&self.data, self.depth, self.units, self.width);
        let together = (PANELS / (self.width * self.depth).max(1)).max(1) * self.width;
        let mut rest = MatrixMut::strided(data, left.size()[0], units.len(), pitch);
        for first in units.clone().step_by(together) {
            let count = together.min(units.end - first);
            let (mut now, later) = rest.split_cols(count);
            rest = later;
            let right = Right::Panels(panels.cols(first, count));
            let start = start.map_or(Start::Out, |s| Start::Cols(&s[first..][..count]));
            Kernels::best().product(&Product { start, ..Product::new(left, right) }, &mut now);
        }
    }
}

/// A matrix in codes.
pub(super) struct PackedCodes {
    weights: PackedWeights,
    /// The zero point, of codes as int8.
    zero: i32,
    /// One for each unit.
    scale: Vec<f32>,
    /// `sum_k (w[n][k] - zero)`
    sums: Vec<i32>,
}

impl PackedCodes {
    /// Packs `weights`, `[units][depth]`, with a scale for each unit.
    pub(super) fn new(weights: &[i8], zero: i32, scale: &[f32]) -> PackedCodes {
        let units = scale.len();
        let depth = weights.len().checked_div(units).unwrap_or(0);
        let weights = PackedWeights::new(weights, units, depth);
        let shift = zero.wrapping_mul(depth as i32);
        let sums = weights.column_sums().iter().map(|sum| sum.wrapping_sub(shift)).collect();
        PackedCodes { weights, zero, scale: scale.to_vec(), sums }
    }

    /// `-zero sum_k x[k]` for each row; nothing where the zero point is 0.
    fn terms_into(&self, x: &[u8], terms: &mut Vec<i32>) {
        let depth = self.weights.depth();
        let rows = if self.zero == 0 { 0 } else { x.len() / depth.max(1) };
        terms.resize(rows, 0);
        Kernels::best().row_sums(x, depth, depth, -self.zero, terms);
    }

    fn panels(&self, units: &Range<usize>) -> Range<usize> {
        units.start / CODE_PANEL..units.end.div_ceil(CODE_PANEL)
    }

    fn multiply(&self, rows: &Rows<'_>, step: Step, out: Out<'_>) {
        let Out { units, data, pitch } = out;
        let out = Grid::new(data, rows.count(), units.len(), pitch);
        let (sums, multiplier) = (&self.sums[units.clone()], &self.scale[units.clone()]);
        let (scale, zero) = (&[step.scale], &[step.zero]);
        let output = Output::Rows { scale, zero, sums, multiplier, bias: None, out };
        Kernels::best().gemm(rows, self.weights.view(), self.panels(&units), output);
    }
}
