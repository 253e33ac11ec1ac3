//! The definition, by loops over 16 columns.

use std::array;
use std::ops::Range;

use super::{COLUMNS, CodeValues, LANES, LowBitRows, LowBitShape, LowBitWeights, Strips, value_of};
use crate::matrix::MatrixMut;

/// Strips whose sums are in flight together.
const TOGETHER: usize = 4;

#[inline(always)]
pub(crate) fn low_bit_row(weights: &LowBitWeights, groups: Range<usize>, x: &[f32], y: &mut [f32]) {
    let columns = weights.columns_of(groups);
    assert_eq!((x.len(), y.len()), (weights.shape.depth, columns.len()), "lengths of input and output");
    for (first, y) in columns.step_by(TOGETHER * LANES).zip(y.chunks_mut(TOGETHER * LANES)) {
        let strips = weights.strips(first / LANES);
        // Of a constant number of strips the sums stay in registers.
        match y.len().div_ceil(LANES) {
            1 => by_values::<1>(weights, strips, x, y),
            2 => by_values::<2>(weights, strips, x, y),
            3 => by_values::<3>(weights, strips, x, y),
            _ => by_values::<TOGETHER>(weights, strips, x, y),
        }
    }
}

#[inline(always)]
fn by_values<const S: usize>(weights: &LowBitWeights, strips: Strips<'_>, x: &[f32], y: &mut [f32]) {
    let integers = CodeValues::Integers;
    match (weights.shape.bits, &weights.values) {
        (2, CodeValues::Integers) => chains::<S, 2>(weights, &integers, strips, x, y),
        (4, CodeValues::Integers) => chains::<S, 4>(weights, &integers, strips, x, y),
        (8, CodeValues::Integers) => chains::<S, 8>(weights, &integers, strips, x, y),
        (2, values) => chains::<S, 2>(weights, values, strips, x, y),
        (4, values) => chains::<S, 4>(weights, values, strips, x, y),
        (_, values) => chains::<S, 8>(weights, values, strips, x, y),
    }
}

/// The chains of `S` strips.
#[inline(always)]
fn chains<const S: usize, const BITS: usize>(
    weights: &LowBitWeights,
    values: &CodeValues,
    strips: Strips<'_>,
    x: &[f32],
    y: &mut [f32],
) {
    let mut sums = [[0.0; LANES]; S];
    sums.as_flattened_mut()[..y.len()].copy_from_slice(y);
    for (b, x) in x.chunks(weights.shape.block).enumerate() {
        let [scales, zeros] = of_block::<S>(strips, b);
        let first = b * (weights.shape.block / (32 / BITS));
        for (w, x) in x.chunks(32 / BITS).enumerate() {
            let lines = &strips.lines[(first + w) * strips.pitch..][..S];
            for (i, &x) in x.iter().enumerate() {
                let shift = 8 * (i % 4) + BITS * (i / 4);
                for s in 0..S {
                    for j in 0..LANES {
                        let code = lines[s].0[j] >> shift & ((1 << BITS) - 1);
                        let weight = (value_of(values, BITS, code) - zeros[s][j]) * scales[s][j];
                        sums[s][j] = x.mul_add(weight, sums[s][j]);
                    }
                }
            }
        }
    }
    y.copy_from_slice(&sums.as_flattened()[..y.len()]);
}

/// Scales and zero points.
#[inline(always)]
fn of_block<const S: usize>(strips: Strips<'_>, b: usize) -> [[[f32; LANES]; S]; 2] {
    let at = b * strips.pitch;
    let zero = |s: usize| match strips.zeros.get(at + s) {
        Some(zeros) => zeros.0.map(f32::from),
        None => [0.0; LANES],
    };
    [array::from_fn(|s| strips.scales[at + s].0), array::from_fn(zero)]
}

#[inline(always)]
pub(crate) fn low_bit_unpack(
    weights: &LowBitWeights,
    strip: usize,
    rows: Range<usize>,
    width: usize,
    out: &mut [f32],
) {
    let LowBitShape { bits, block, columns, .. } = weights.shape;
    let count = weights.check_unpacked(strip, &rows, width, out);
    for s in 0..count {
        let strips = weights.strips(strip + s);
        debug_assert!((strip + s) * LANES < columns);
        for (k, out) in rows.clone().zip(out.chunks_exact_mut(width)) {
            let [[scales], [zeros]] = of_block::<1>(strips, k / block);
            let (word, i) = (k / (32 / bits), k % (32 / bits));
            let (line, shift) = (&strips.lines[word * strips.pitch].0, 8 * (i % 4) + bits * (i / 4));
            let out = &mut out[s * LANES..][..LANES];
            for j in 0..LANES {
                let code = line[j] >> shift & ((1 << bits) - 1);
                out[j] = (value_of(&weights.values, bits, code) - zeros[j]) * scales[j];
            }
        }
    }
}

impl LowBitWeights {
    /// The strips of a panel.
    ///
    /// # Panics
    ///
    /// There are no such rows, or the panel does not fit.
    pub(crate) fn check_unpacked(
        &self,
        strip: usize,
        rows: &Range<usize>,
        width: usize,
        out: &[f32],
    ) -> usize {
        let LowBitShape { depth, .. } = self.shape;
        assert!(rows.start <= rows.end && rows.end <= depth, "rows {rows:?} of {depth}");
        assert!(rows.start.is_multiple_of(self.shape.per_word()), "row {} lies within a word", rows.start);
        assert!(width.is_multiple_of(LANES), "a panel of {width} columns");
        assert_eq!(out.len(), rows.len() * width, "length of the panel");
        if rows.is_empty() { 0 } else { (width / LANES).min(self.shape.strips().saturating_sub(strip)) }
    }

    /// The columns of a product in integers.
    ///
    /// # Panics
    ///
    /// As [`Kernels::low_bit_integers`](crate::Kernels::low_bit_integers).
    pub(crate) fn check_integers(
        &self,
        groups: Range<usize>,
        x: &LowBitRows<'_>,
        out: &MatrixMut<'_>,
    ) -> Range<usize> {
        let columns = self.columns_of(groups);
        assert!(self.has_integers(), "no integers: {self:?}");
        assert_eq!(x.shape(), self.shape, "the sizes that the rows are for");
        assert_eq!(out.size(), [x.count(), columns.len()], "size of the output");
        columns
    }
}

#[inline(always)]
pub(crate) fn low_bit_integers(
    weights: &LowBitWeights,
    groups: Range<usize>,
    x: &LowBitRows<'_>,
    out: &mut MatrixMut<'_>,
) {
    let columns = weights.check_integers(groups, x, out);
    for first in columns.clone().step_by(LANES) {
        let at = first - columns.start..columns.len().min(first - columns.start + LANES);
        for m in 0..x.count() {
            let y = &mut out.row(m)[at.clone()];
            match weights.shape.bits {
                2 => sums::<2>(weights, first / LANES, x, m, y),
                4 => sums::<4>(weights, first / LANES, x, m, y),
                _ => sums::<8>(weights, first / LANES, x, m, y),
            }
        }
    }
}

#[inline(always)]
fn sums<const BITS: usize>(
    weights: &LowBitWeights,
    strip: usize,
    x: &LowBitRows<'_>,
    m: usize,
    y: &mut [f32],
) {
    let strips = weights.strips(strip);
    let mut totals = [0.0; LANES];
    totals[..y.len()].copy_from_slice(y);
    let words = x.codes(m).chunks_exact(32 / BITS);
    let mut lines = strips.lines.iter().step_by(strips.pitch).zip(words);
    let per_block = weights.shape.block.div_ceil(32 / BITS);
    for (b, of_block) in x.blocks(m).iter().enumerate() {
        let mut acc = [0i32; LANES];
        for (line, x) in lines.by_ref().take(per_block) {
            for (i, &x) in x.iter().enumerate() {
                let shift = 32 - BITS - 8 * (i % 4) - BITS * (i / 4);
                for (acc, word) in acc.iter_mut().zip(&line.0) {
                    *acc += i32::from(x) * ((word << shift).cast_signed() >> (32 - BITS));
                }
            }
        }
        if !strips.zeros.is_empty() {
            let zeros = &strips.zeros[b * strips.pitch].0;
            acc.iter_mut().zip(zeros).for_each(|(acc, &zero)| *acc -= i32::from(zero) * of_block.sum);
        }
        let scales = &strips.scales[b * strips.pitch].0;
        for j in 0..LANES {
            totals[j] = (of_block.scale * scales[j]).mul_add(acc[j] as f32, totals[j]);
        }
    }
    y.copy_from_slice(&totals[..y.len()]);
}

/// Columns of a group are whole strips.
const _: () = assert!(COLUMNS.is_multiple_of(TOGETHER * LANES));
