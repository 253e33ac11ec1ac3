//! Products with weights in codes, in vectors of AVX2: half a line of codes is a
//! vector, whose fields are shifted to the top and back for their signs.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::low_bit::{CodeValues, LANES, LowBitRows, LowBitWeights, Strips};
use crate::matrix::MatrixMut;

/// Columns of a vector: half a strip.
const HALF: usize = LANES / 2;
/// Vectors whose sums are in flight together.
const TOGETHER: usize = 8;

/// The weights of one vector of columns.
#[derive(Clone, Copy)]
struct Column<'a> {
    strips: Strips<'a>,
    strip: usize,
    half: usize,
}

impl<'a> Column<'a> {
    /// Vector `v` of those from the first strip.
    fn new(strips: Strips<'a>, v: usize) -> Column<'a> {
        Column { strips, strip: v / 2, half: v % 2 * HALF }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn words(&self, word: usize) -> __m256i {
        let line = &self.strips.lines[word * self.strips.pitch + self.strip].0[self.half..][..HALF];
        // SAFETY: 8 readable words.
        unsafe { _mm256_loadu_si256(line.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn scales(&self, b: usize) -> __m256 {
        let scales = &self.strips.scales[b * self.strips.pitch + self.strip].0[self.half..][..HALF];
        // SAFETY: 8 readable values.
        unsafe { _mm256_loadu_ps(scales.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn zeros(&self, b: usize) -> __m256i {
        let Some(zeros) = self.strips.zeros.get(b * self.strips.pitch + self.strip) else {
            return _mm256_setzero_si256();
        };
        let zeros = &zeros.0[self.half..][..HALF];
        // SAFETY: 8 readable bytes.
        _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(zeros.as_ptr().cast()) })
    }
}

/// What the codes stand for.
#[derive(Clone, Copy)]
struct Values<'a> {
    bits: usize,
    table: Option<&'a [f32]>,
}

impl<'a> Values<'a> {
    fn of(weights: &'a LowBitWeights) -> Values<'a> {
        let bits = weights.shape().bits;
        let table = match weights.values() {
            CodeValues::Table(table) => Some(table.as_slice()),
            CodeValues::Integers => None,
        };
        assert!(table.is_none_or(|table| table.len() == 1 << bits), "entries of a table for {bits} bits");
        Values { bits, table }
    }

    /// The values of the codes `i` of each word.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn at(&self, words: __m256i, i: usize) -> __m256 {
        let count = |bits: usize| _mm_cvtsi32_si128(bits as i32);
        let top = _mm256_sll_epi32(words, count(32 - self.bits - 8 * (i % 4) - self.bits * (i / 4)));
        match self.table {
            None => _mm256_cvtepi32_ps(_mm256_sra_epi32(top, count(32 - self.bits))),
            Some(table) => {
                let index = _mm256_srl_epi32(top, count(32 - self.bits));
                // SAFETY: the table has an entry for each code.
                unsafe { _mm256_i32gather_ps::<4>(table.as_ptr(), index) }
            }
        }
    }
}

/// The mask of the first `count` lanes, and of all if there are more.
#[inline]
#[target_feature(enable = "avx2")]
fn lanes(count: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(HALF) as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// [`Kernels::low_bit_row`](crate::Kernels::low_bit_row).
#[target_feature(enable = "avx2,fma")]
pub(super) fn row(weights: &LowBitWeights, groups: Range<usize>, x: &[f32], y: &mut [f32]) {
    let columns = weights.columns_of(groups);
    assert_eq!((x.len(), y.len()), (weights.shape().depth, columns.len()), "lengths of input and output");
    for (first, y) in columns.step_by(TOGETHER * HALF).zip(y.chunks_mut(TOGETHER * HALF)) {
        let strips = weights.strips(first / LANES);
        macro_rules! by_kind {
            ($($vectors:literal)*) => {
                // What is constant here is constant in the loops that are inlined.
                match (weights.shape().bits, weights.values(), y.len().div_ceil(HALF)) {
                    $((2, CodeValues::Integers, $vectors) => chains::<$vectors, 2, false>(weights, strips, x, y),
                    (4, CodeValues::Integers, $vectors) => chains::<$vectors, 4, false>(weights, strips, x, y),
                    (8, CodeValues::Integers, $vectors) => chains::<$vectors, 8, false>(weights, strips, x, y),
                    (2, _, $vectors) => chains::<$vectors, 2, true>(weights, strips, x, y),
                    (4, _, $vectors) => chains::<$vectors, 4, true>(weights, strips, x, y),
                    (_, _, $vectors) => chains::<$vectors, 8, true>(weights, strips, x, y),)*
                    (_, _, vectors) => unreachable!("{vectors} vectors of columns"),
                }
            };
        }
        by_kind!(1 2 3 4 5 6 7 8);
    }
}

/// The chains of `V` vectors of columns.
#[target_feature(enable = "avx2,fma")]
fn chains<const V: usize, const BITS: usize, const TABLE: bool>(
    weights: &LowBitWeights,
    strips: Strips<'_>,
    x: &[f32],
    y: &mut [f32],
) {
    let mut values = Values::of(weights);
    values.bits = BITS;
    if !TABLE {
        values.table = None;
    }
    let count = y.len();
    let mut sums = [_mm256_setzero_ps(); V];
    for (v, sum) in sums.iter_mut().enumerate() {
        // SAFETY: what the mask admits lies in `y`.
        *sum = unsafe { _mm256_maskload_ps(y[v * HALF..].as_ptr(), lanes(count - v * HALF)) };
    }
    let per_word = const { 32 / BITS };
    for (b, x) in x.chunks(weights.shape().block).enumerate() {
        let mut of_block = [[_mm256_setzero_ps(); 2]; V];
        for (v, of_block) in of_block.iter_mut().enumerate() {
            let column = Column::new(strips, v);
            *of_block = [column.scales(b), _mm256_cvtepi32_ps(column.zeros(b))];
        }
        let first = b * (weights.shape().block / per_word);
        for (w, x) in x.chunks(per_word).enumerate() {
            let mut words = [_mm256_setzero_si256(); V];
            for (v, words) in words.iter_mut().enumerate() {
                *words = Column::new(strips, v).words(first + w);
            }
            for (i, &x) in x.iter().enumerate() {
                let x = _mm256_set1_ps(x);
                for v in 0..V {
                    let weight = _mm256_sub_ps(values.at(words[v], i), of_block[v][1]);
                    sums[v] = _mm256_fmadd_ps(x, _mm256_mul_ps(weight, of_block[v][0]), sums[v]);
                }
            }
        }
    }
    for (v, sum) in sums.into_iter().enumerate() {
        // SAFETY: what the mask admits lies in `y`.
        unsafe { _mm256_maskstore_ps(y[v * HALF..].as_mut_ptr(), lanes(count - v * HALF), sum) };
    }
}

/// [`Kernels::low_bit_unpack`](crate::Kernels::low_bit_unpack).
#[target_feature(enable = "avx2,fma")]
pub(super) fn unpack(
    weights: &LowBitWeights,
    strip: usize,
    rows: Range<usize>,
    width: usize,
    out: &mut [f32],
) {
    let count = weights.check_unpacked(strip, &rows, width, out);
    let (values, block, per_word) = (Values::of(weights), weights.shape().block, 32 / weights.shape().bits);
    for s in 0..count {
        for half in 0..2 {
            let column = Column::new(weights.strips(strip + s), half);
            let mut out = out.chunks_exact_mut(width);
            let mut k = rows.start;
            while k < rows.end {
                let end = rows.end.min((k / block + 1) * block);
                let (scale, zero) = (column.scales(k / block), _mm256_cvtepi32_ps(column.zeros(k / block)));
                for word in k / per_word..end.div_ceil(per_word) {
                    let words = column.words(word);
                    for (i, out) in out.by_ref().take((end - word * per_word).min(per_word)).enumerate() {
                        let weight = _mm256_mul_ps(_mm256_sub_ps(values.at(words, i), zero), scale);
                        let out = &mut out[s * LANES + half * HALF..][..HALF];
                        // SAFETY: 8 writable values.
                        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), weight) };
                    }
                }
                k = end;
            }
        }
    }
}

/// [`Kernels::low_bit_integers`](crate::Kernels::low_bit_integers).
#[target_feature(enable = "avx2,fma")]
pub(super) fn integers(
    weights: &LowBitWeights,
    groups: Range<usize>,
    x: &LowBitRows<'_>,
    out: &mut MatrixMut<'_>,
) {
    let columns = weights.check_integers(groups, x, out);
    for first in columns.clone().step_by(LANES) {
        let strips = weights.strips(first / LANES);
        let at = first - columns.start..columns.len().min(first - columns.start + LANES);
        for m in 0..x.count() {
            let y = &mut out.row(m)[at.clone()];
            match weights.shape().bits {
                2 => sums::<2>(weights, strips, x, m, y),
                4 => sums::<4>(weights, strips, x, m, y),
                _ => sums::<8>(weights, strips, x, m, y),
            }
        }
    }
}

/// The sums of one strip. Codes of activations and of weights are widened to 16 bits,
/// those of even and those of odd bytes.
#[target_feature(enable = "avx2,fma")]
fn sums<const BITS: usize>(
    weights: &LowBitWeights,
    strips: Strips<'_>,
    x: &LowBitRows<'_>,
    m: usize,
    y: &mut [f32],
) {
    let per_word = const { 32 / BITS };
    let (words, of_block) = (weights.shape().words(), weights.shape().block.div_ceil(per_word));
    let mut totals = [_mm256_setzero_ps(); 2];
    let count = y.len();
    let vectors = count.div_ceil(HALF);
    for (v, total) in totals.iter_mut().enumerate().take(vectors) {
        // SAFETY: what the mask admits lies in `y`.
        *total = unsafe { _mm256_maskload_ps(y[v * HALF..].as_ptr(), lanes(count - v * HALF)) };
    }
    let odd = |bytes: __m256i| _mm256_srai_epi16::<8>(bytes);
    let even = |bytes: __m256i| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes));
    for (b, of_row) in x.blocks(m).iter().enumerate() {
        let mut acc = [_mm256_setzero_si256(); 2];
        let range = b * of_block..words.min((b + 1) * of_block);
        for (word, codes) in range.clone().zip(x.codes(m)[range.start * per_word..].chunks_exact(per_word)) {
            let lines = [0, 1].map(|v| Column::new(strips, v).words(word));
            for (field, four) in codes.as_chunks::<4>().0.iter().enumerate() {
                let four = _mm256_set1_epi32(i32::from_le_bytes(four.map(i8::cast_unsigned)));
                let [four_even, four_odd] = [even(four), odd(four)];
                for (acc, line) in acc.iter_mut().zip(lines) {
                    // The field at the top of each byte, whose bits below it are no part of it.
                    let shift = _mm_cvtsi32_si128((8 - BITS - BITS * field) as i32);
                    let top = _mm256_sll_epi16(line, shift);
                    let [low, high] = if BITS == 8 {
                        [even(line), odd(line)]
                    } else {
                        let down = _mm_cvtsi32_si128(16 - BITS as i32);
                        [_mm256_sra_epi16(_mm256_slli_epi16::<8>(top), down), _mm256_sra_epi16(top, down)]
                    };
                    let product = _mm256_add_epi32(
                        _mm256_madd_epi16(low, four_even),
                        _mm256_madd_epi16(high, four_odd),
                    );
                    *acc = _mm256_add_epi32(*acc, product);
                }
            }
        }
        for (v, total) in totals.iter_mut().enumerate() {
            let column = Column::new(strips, v);
            let zeros = _mm256_mullo_epi32(column.zeros(b), _mm256_set1_epi32(of_row.sum));
            let scale = _mm256_mul_ps(_mm256_set1_ps(of_row.scale), column.scales(b));
            *total = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(_mm256_sub_epi32(acc[v], zeros)), *total);
        }
    }
    for (v, total) in totals.into_iter().enumerate().take(vectors) {
        // SAFETY: what the mask admits lies in `y`.
        unsafe { _mm256_maskstore_ps(y[v * HALF..].as_mut_ptr(), lanes(count - v * HALF), total) };
    }
}
