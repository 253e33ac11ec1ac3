//! Products of codes of activations with codes of weights: `vpdpbusd` takes the
//! weights as its unsigned operand, their sign bits flipped.

use std::arch::x86_64::*;
use std::array;
use std::ops::Range;

use crate::low_bit::{COLUMNS, LANES, LowBitRows, LowBitWeights, STRIPS, Strips};
use crate::matrix::MatrixMut;

/// Rows whose sums are in flight together with those of half a group.
const ROWS: usize = 4;

/// The sign bit of each code of a byte.
const fn sign_bits(bits: usize) -> i8 {
    let byte: u8 = match bits {
        2 => 0xaa,
        4 => 0x88,
        _ => 0x80,
    };
    byte.cast_signed()
}

/// [`Kernels::low_bit_integers`](crate::Kernels::low_bit_integers).
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,fma")]
pub(super) fn integers(
    weights: &LowBitWeights,
    groups: Range<usize>,
    x: &LowBitRows<'_>,
    out: &mut MatrixMut<'_>,
) {
    let columns = weights.check_integers(groups, x, out);
    macro_rules! by_bits {
        ($($bits:literal)*) => {
            match weights.shape().bits {
                $($bits => columns.clone().step_by(COLUMNS).for_each(|first| {
                    let part = first - columns.start..columns.len().min(first - columns.start + COLUMNS);
                    group::<$bits>(weights, first / LANES, x, out, part);
                }),)*
                bits => unreachable!("codes of {bits} bits"),
            }
        };
    }
    by_bits!(2 4 8);
}

/// The columns of a group, which are those of `columns` of the output.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,fma")]
fn group<const BITS: usize>(
    weights: &LowBitWeights,
    strip: usize,
    x: &LowBitRows<'_>,
    out: &mut MatrixMut<'_>,
    columns: Range<usize>,
) {
    let mut m = 0;
    while m < x.count() {
        let rows = if x.count() - m >= ROWS { ROWS } else { 1 };
        let mut at = columns.start;
        while at < columns.end {
            let left = (columns.end - at).div_ceil(LANES);
            let strips = weights.strips(strip + (at - columns.start) / LANES);
            macro_rules! tile {
                ($r:expr, $s:literal) => {{
                    tile::<BITS, { $r }, $s>(
                        weights,
                        &strips,
                        x,
                        m,
                        out,
                        at..columns.end.min(at + $s * LANES),
                    );
                    $s
                }};
            }
            let done = match (rows, left) {
                (1, STRIPS..) => tile!(1, 8),
                (1, 4..) => tile!(1, 4),
                (1, _) => tile!(1, 1),
                (_, 4..) => tile!(ROWS, 4),
                _ => tile!(ROWS, 1),
            };
            at += done * LANES;
        }
        m += rows;
    }
}

/// The sums of `R` rows from `m` and `S` strips.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,fma")]
fn tile<const BITS: usize, const R: usize, const S: usize>(
    weights: &LowBitWeights,
    strips: &Strips<'_>,
    x: &LowBitRows<'_>,
    m: usize,
    out: &mut MatrixMut<'_>,
    columns: Range<usize>,
) {
    let (block, per_word) = (weights.shape().block, const { 32 / BITS });
    let middle = 1 << (BITS - 1);
    let fields = _mm512_set1_epi8(if BITS == 8 { -1 } else { (1i8 << BITS) - 1 });
    let signs = _mm512_set1_epi8(const { sign_bits(BITS) });
    let mask = |s: usize| u16::MAX >> LANES.saturating_sub(columns.len() - s * LANES);
    let mut totals = [[_mm512_setzero_ps(); S]; R];
    for (r, totals) in totals.iter_mut().enumerate() {
        let y = &out.row(m + r)[columns.clone()];
        for (s, total) in totals.iter_mut().enumerate() {
            // SAFETY: what the mask admits lies in `y`.
            *total = unsafe { _mm512_maskz_loadu_ps(mask(s), y[s * LANES..].as_ptr()) };
        }
    }
    let codes: [&[i8]; R] = array::from_fn(|r| x.codes(m + r));
    let mut word = 0;
    let words = weights.shape().words();
    for b in 0..weights.shape().blocks() {
        let of_block: [_; R] = array::from_fn(|r| x.blocks(m + r)[b]);
        let mut acc = [[_mm512_setzero_si512(); S]; R];
        for (acc, of_block) in acc.iter_mut().zip(&of_block) {
            *acc = [_mm512_set1_epi32(-middle * of_block.sum); S];
        }
        let end = words.min(word + block.div_ceil(per_word));
        let lines = &strips.lines[word * strips.pitch..];
        let codes = codes.map(|codes| &codes[word * per_word..end * per_word]);
        for (i, lines) in lines.chunks(strips.pitch).take(end - word).enumerate() {
            let mut parts: [__m512i; S] = array::from_fn(|s| {
                // SAFETY: a line is 64 readable bytes.
                let line = unsafe { _mm512_loadu_si512(lines[s].0.as_ptr().cast()) };
                _mm512_xor_si512(line, signs)
            });
            for field in 0..const { 8 / BITS } {
                let weights = parts.map(|part| if BITS == 8 { part } else { _mm512_and_si512(part, fields) });
                for (acc, codes) in acc.iter_mut().zip(&codes) {
                    // SAFETY: there are `per_word` codes for each word.
                    let four = unsafe {
                        codes.as_ptr().add(i * per_word + 4 * field).cast::<i32>().read_unaligned()
                    };
                    let four = _mm512_set1_epi32(four);
                    for (acc, &weights) in acc.iter_mut().zip(&weights) {
                        *acc = _mm512_dpbusd_epi32(*acc, weights, four);
                    }
                }
                if BITS < 8 {
                    parts = parts.map(|part| match BITS {
                        2 => _mm512_srli_epi32::<2>(part),
                        _ => _mm512_srli_epi32::<4>(part),
                    });
                }
            }
        }
        for s in 0..S {
            let at = b * strips.pitch + s;
            // SAFETY: the scales of a strip are 64 readable bytes.
            let scales = unsafe { _mm512_loadu_ps(strips.scales[at].0.as_ptr()) };
            let zeros = strips.zeros.get(at).map(|zeros| {
                // SAFETY: the zero points of a strip are 16 readable bytes.
                _mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(zeros.0.as_ptr().cast()) })
            });
            for r in 0..R {
                let mut acc = acc[r][s];
                if let Some(zeros) = zeros {
                    acc =
                        _mm512_sub_epi32(acc, _mm512_mullo_epi32(zeros, _mm512_set1_epi32(of_block[r].sum)));
                }
                let scale = _mm512_mul_ps(_mm512_set1_ps(of_block[r].scale), scales);
                totals[r][s] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(acc), totals[r][s]);
            }
        }
        word = end;
    }
    for (r, totals) in totals.iter().enumerate() {
        let y = &mut out.row(m + r)[columns.clone()];
        for (s, total) in totals.iter().enumerate() {
            // SAFETY: what the mask admits lies in `y`.
            unsafe { _mm512_mask_storeu_ps(y[s * LANES..].as_mut_ptr(), mask(s), *total) };
        }
    }
}
