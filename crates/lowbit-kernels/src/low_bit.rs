//! Matrices of weights in codes of 2, 4 or 8 bits, which products read as they are.
//!
//! Column `n` of the matrix has at depth `k` the weight
//!
//! `w[k][n] = (value(q[k][n]) - zero[b][n]) * scale[b][n]`, `b = k / block`,
//!
//! in f32, each operation rounded; `value` is the code as a signed integer or an
//! entry of a table. There are two products with it:
//!
//! - in f32 ([`Kernels::low_bit_product`]): the chain of fused multiply-adds over
//!   `w` that [`Kernels::product`] is, with the same bits, for any number of rows;
//! - in integers ([`Kernels::low_bit_integers`]): exact sums over each block with
//!   activations of 8 bits, from which a chain over the blocks is made.

mod activations;
mod loops;

use std::fmt;
use std::ops::Range;

use crate::isa::Kernels;
use crate::matrix::MatrixMut;
use crate::product::{Panels, Product, Right, Start};
use crate::rows::Rows;

pub(crate) use activations::quantize_blocks;
pub use activations::{CodedBlock, LowBitRows};
pub(crate) use loops::{low_bit_integers, low_bit_row, low_bit_unpack};

/// Columns that lie side by side.
pub(crate) const LANES: usize = 16;
/// Strips of `LANES` columns whose lines take turns.
pub(crate) const STRIPS: usize = 8;
/// Columns of a group.
pub(crate) const COLUMNS: usize = LANES * STRIPS;
/// Rows of a panel that is unpacked at once: with its width, some tens of KiB.
const UNPACKED: usize = 256;
/// The widest panel of a product.
const WIDEST: usize = 48;
/// Products of one block are summed in i32.
const MOST_DEPTH: usize = 65_793;

/// 32 bits of codes of each of 16 columns.
///
/// Of `32 / bits` consecutive codes of a column, code `i` has the bits from
/// `8 * (i % 4) + bits * (i / 4)` on: the four bytes of a word, shifted and
/// masked, are four consecutive codes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; LANES]);

/// The scales of 16 columns.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Scales(pub(crate) [f32; LANES]);

/// The zero points of 16 columns.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Zeros(pub(crate) [i8; LANES]);

/// What the codes of a [`LowBitWeights`] stand for.
#[derive(Clone, Debug, PartialEq)]
pub enum CodeValues {
    /// Signed integers, in two's complement.
    Integers,
    /// The entries of a table of `2^bits`.
    Table(Vec<f32>),
}

/// Sizes of a [`LowBitWeights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowBitShape {
    /// Bits of a code: 2, 4 or 8.
    pub bits: usize,
    /// Codes of a column, K.
    pub depth: usize,
    /// Columns, N.
    pub columns: usize,
    /// Codes of a column that share a scale: a multiple of `32 / bits`, or at
    /// least `depth`.
    pub block: usize,
}

impl LowBitShape {
    /// Whether there are weights of these sizes.
    pub fn is_valid(&self) -> bool {
        matches!(self.bits, 2 | 4 | 8)
            && self.block > 0
            && (self.block >= self.depth || self.block.is_multiple_of(32 / self.bits))
    }

    /// Scales of a column.
    pub fn blocks(&self) -> usize {
        self.depth.div_ceil(self.block)
    }

    /// Codes of a word.
    pub(crate) fn per_word(&self) -> usize {
        32 / self.bits
    }

    /// Words of a column.
    pub(crate) fn words(&self) -> usize {
        self.depth.div_ceil(self.per_word())
    }

    fn strips(&self) -> usize {
        self.columns.div_ceil(LANES)
    }
}

/// A matrix of weights in codes, packed once and read by every table.
///
/// Layout: groups of 128 columns, the last one of as many strips of 16 as it
/// needs. Of a group, for each 32 bits of codes down the depth, a `Line` of
/// each strip; and for each block the scales of each strip, and the zero points
/// if any differs from 0. Missing columns have scales of 0.
#[derive(Clone)]
pub struct LowBitWeights {
    shape: LowBitShape,
    values: CodeValues,
    /// The values of codes of up to 4 bits, for each pattern of 4 bits.
    sixteen: [f32; LANES],
    lines: Vec<Line>,
    scales: Vec<Scales>,
    zeros: Vec<Zeros>,
}

/// Some strips of a group: slices start at the first one's.
#[derive(Clone, Copy)]
pub(crate) struct Strips<'a> {
    /// For each word of a column, one in `pitch` is the first strip's.
    pub(crate) lines: &'a [Line],
    /// For each block, one in `pitch` is the first strip's.
    pub(crate) scales: &'a [Scales],
    /// Likewise; empty where all are 0.
    pub(crate) zeros: &'a [Zeros],
    /// Strips of the group.
    pub(crate) pitch: usize,
}

impl fmt::Debug for LowBitWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LowBitShape { bits, depth, columns, block } = self.shape;
        write!(f, "[{depth}, {columns}] of {bits} bits in blocks of {block}")
    }
}

impl LowBitWeights {
    /// Packs the codes `code(k, n)`, of which the lower bits count, with
    /// `scale(b, n)` and `zero(b, n)`.
    ///
    /// # Panics
    ///
    /// The shape is not valid, or a table has another length than `2^bits`.
    pub fn new(
        shape: LowBitShape,
        values: CodeValues,
        code: impl Fn(usize, usize) -> u8,
        scale: impl Fn(usize, usize) -> f32,
        zero: impl Fn(usize, usize) -> i8,
    ) -> LowBitWeights {
        assert!(shape.is_valid(), "{shape:?}");
        let LowBitShape { bits, depth, columns, .. } = shape;
        if let CodeValues::Table(table) = &values {
            assert_eq!(table.len(), 1 << bits, "entries of a table for {bits} bits");
        }
        let (per_word, mask) = (shape.per_word(), ((1u32 << bits) - 1) as u8);
        let word = |word: usize, n: usize| {
            let codes = (word * per_word..depth.min((word + 1) * per_word)).enumerate();
            let bit = |i: usize| 8 * (i % 4) + bits * (i / 4);
            codes.fold(0, |word, (i, k)| word | u32::from(code(k, n) & mask) << bit(i))
        };
        let lanes = |strip: usize| (strip * LANES..columns.min((strip + 1) * LANES)).enumerate();
        let (mut lines, mut scales, mut zeros) = (vec![], vec![], vec![]);
        lines.reserve_exact(shape.words() * shape.strips());
        scales.reserve_exact(shape.blocks() * shape.strips());
        for first in (0..shape.strips()).step_by(STRIPS) {
            let strips = first..shape.strips().min(first + STRIPS);
            for w in 0..shape.words() {
                for strip in strips.clone() {
                    let mut line = Line([0; LANES]);
                    lanes(strip).for_each(|(lane, n)| line.0[lane] = word(w, n));
                    lines.push(line);
                }
            }
            for b in 0..shape.blocks() {
                for strip in strips.clone() {
                    let (mut scale_of, mut zero_of) = (Scales([0.0; LANES]), Zeros([0; LANES]));
                    for (lane, n) in lanes(strip) {
                        (scale_of.0[lane], zero_of.0[lane]) = (scale(b, n), zero(b, n));
                    }
                    scales.push(scale_of);
                    zeros.push(zero_of);
                }
            }
        }
        if zeros.iter().all(|zeros| zeros.0 == [0; LANES]) {
            zeros = vec![];
        }
        let mut sixteen = [0.0; LANES];
        if bits < 8 {
            let pattern = |i: usize| value_of(&values, bits, i as u32 & u32::from(mask));
            sixteen = std::array::from_fn(pattern);
        }
        LowBitWeights { shape, values, sixteen, lines, scales, zeros }
    }

    /// The sizes.
    pub fn shape(&self) -> LowBitShape {
        self.shape
    }

    /// What the codes stand for.
    pub fn values(&self) -> &CodeValues {
        &self.values
    }

    /// Whether [`Kernels::low_bit_integers`] takes the weights: codes are integers,
    /// and no sum over a block overflows.
    pub fn has_integers(&self) -> bool {
        self.values == CodeValues::Integers && self.shape.block.min(self.shape.depth) <= MOST_DEPTH
    }

    /// Bytes of codes, scales and zero points.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(&*self.scales) + size_of_val(&*self.zeros)
    }

    /// Groups of columns: a product computes whole ones.
    pub fn groups(&self) -> usize {
        self.shape.columns.div_ceil(COLUMNS)
    }

    /// The columns of some groups.
    ///
    /// # Panics
    ///
    /// There are no such groups.
    pub fn columns_of(&self, groups: Range<usize>) -> Range<usize> {
        assert!(groups.start <= groups.end && groups.end <= self.groups(), "groups {groups:?}");
        groups.start * COLUMNS..self.shape.columns.min(groups.end * COLUMNS)
    }

    /// The weights of column `n`, one after the other.
    ///
    /// # Panics
    ///
    /// There is no such column, or `out` has another length than the depth.
    pub fn column(&self, n: usize, out: &mut [f32]) {
        assert!(n < self.shape.columns && out.len() == self.shape.depth, "column {n} of {self:?}");
        let (strips, lane) = (self.strips(n / LANES), n % LANES);
        for (b, out) in out.chunks_mut(self.shape.block).enumerate() {
            let scale = strips.scales[b * strips.pitch].0[lane];
            let zero = strips.zeros.get(b * strips.pitch).map_or(0.0, |zeros| f32::from(zeros.0[lane]));
            for (i, out) in out.iter_mut().enumerate() {
                let k = b * self.shape.block + i;
                let (word, i) = (k / self.shape.per_word(), k % self.shape.per_word());
                let code =
                    strips.lines[word * strips.pitch].0[lane] >> (8 * (i % 4) + self.shape.bits * (i / 4));
                let value = value_of(&self.values, self.shape.bits, code & ((1 << self.shape.bits) - 1));
                *out = (value - zero) * scale;
            }
        }
    }

    /// The strips from `strip` to the end of its group.
    pub(crate) fn strips(&self, strip: usize) -> Strips<'_> {
        let (first, within) = (strip / STRIPS * STRIPS, strip % STRIPS);
        let pitch = STRIPS.min(self.shape.strips() - first);
        let from = |of_column: usize| first * of_column + within;
        let zeros = self.zeros.get(from(self.shape.blocks())..).unwrap_or_default();
        Strips {
            lines: &self.lines[from(self.shape.words()).min(self.lines.len())..],
            scales: &self.scales[from(self.shape.blocks()).min(self.scales.len())..],
            zeros,
            pitch,
        }
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn sixteen(&self) -> &[f32; LANES] {
        &self.sixteen
    }
}

/// What a code of `bits` bits stands for.
#[inline(always)]
fn value_of(values: &CodeValues, bits: usize, code: u32) -> f32 {
    match values {
        CodeValues::Integers => ((code << (32 - bits)).cast_signed() >> (32 - bits)) as f32,
        CodeValues::Table(table) => table[code as usize],
    }
}

impl Kernels {
    /// `out[m][n] = out[m][n] + sum_k x[m][k] * w[k][n]` for the columns of some
    /// groups, each one chain of fused multiply-adds, `k` ascending, from `out` on:
    /// what [`Kernels::product`] gives with the weights in f32, bit for bit.
    ///
    /// # Panics
    ///
    /// There are no such groups, or sizes do not fit.
    pub fn low_bit_product(
        &self,
        weights: &LowBitWeights,
        groups: Range<usize>,
        x: Rows<'_, f32>,
        out: &mut MatrixMut<'_>,
    ) {
        let LowBitShape { depth, .. } = weights.shape;
        let columns = weights.columns_of(groups.clone());
        assert_eq!((x.taps(), x.depth()), (1, depth), "taps and depth of the rows");
        assert_eq!(out.size(), [x.count(), columns.len()], "size of the output");
        if x.count() == 1 {
            return self.low_bit_row(weights, groups, x.get::<1>(0, 0)[0], out.row(0));
        }
        let width = self.panel_width();
        let mut memory = [0.0; UNPACKED * WIDEST];
        for first in columns.clone().step_by(width) {
            let count = width.min(columns.end - first);
            let mut out = out.reborrow().split_cols(first - columns.start).1.split_cols(count).0;
            for k in (0..depth).step_by(UNPACKED) {
                let rows = k..depth.min(k + UNPACKED);
                let panel = &mut memory[..rows.len() * width];
                self.low_bit_unpack(weights, first / LANES, rows.clone(), width, panel);
                let right = Right::Panels(Panels::new(panel, rows.len(), count, width));
                let left = x.within(0..1, rows);
                self.product(&Product { start: Start::Out, ..Product::new(left, right) }, &mut out);
            }
        }
    }
}
