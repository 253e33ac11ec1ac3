//! The end of a tile by vectors of 256 bits.

use std::arch::x86_64::*;
use std::ptr;

use crate::requant::{Residual, Rounder, SHIFT};
use crate::tile::{Dequantizing, Epilogue, Requantizing};

/// Columns of one vector.
const LANES: usize = 8;

/// [`Epilogue::store`]: the same, faster for u8 outputs and rows of their own codes.
///
/// Not inlined: one epilogue serves the tiles of every height.
#[inline(never)]
#[target_feature(enable = "avx2")]
pub(super) fn finish<const W: usize>(
    epilogue: &mut Epilogue<'_>,
    sums: &[[i32; W]],
    first: usize,
    column: usize,
) {
    if let Some(to) = epilogue.requantizing() {
        requantize(sums, first, column, to);
    } else if let Some(to) = epilogue.dequantizing() {
        dequantize(sums, first, column, to);
    } else {
        epilogue.store(sums, first, column);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn requantize<const W: usize>(sums: &[[i32; W]], first: usize, column: usize, to: Requantizing<'_, '_>) {
    let bounds = Bounds::new(to.rounder);
    let zero = match &to.residual {
        Some((_, rounder)) => rounder.zero(),
        None => to.rounder.zero(),
    };
    let zero = _mm_set1_epi8(zero.cast_signed());
    let sum = to.residual.map(|(residual, rounder)| Addition::new(*residual, rounder));
    let width = to.width.saturating_sub(column).min(W);
    for v in 0..width.div_ceil(LANES) {
        let lanes = (width - v * LANES).min(LANES);
        let bias = load(&to.bias[column..], v);
        let multiplier = _mm256_castsi256_ps(load(&to.multiplier[column..], v));
        let at = to.column + column + v * LANES;
        let (mut out, stride) = to.out.block(first..first + sums.len(), at, lanes);
        for (r, sums) in sums.iter().enumerate() {
            let term = _mm256_set1_epi32(to.terms.get(first + r).copied().unwrap_or(0));
            let acc = _mm256_add_epi32(_mm256_add_epi32(load(sums, v), bias), term);
            let acc = _mm256_cvtepi32_ps(acc);
            let mut shifted = bounds.shifted(_mm256_mul_ps(acc, multiplier));
            if let Some(sum) = &sum {
                shifted = sum.shifted(shifted, &sum.codes[(first + r) * sum.stride + at..][..lanes]);
            }
            let bytes = _mm_add_epi8(low_bytes(_mm256_castps_si256(shifted)), zero);
            // SAFETY: `out` is the row's `lanes` bytes.
            unsafe { store(bytes, out, lanes) };
            out = out.wrapping_add(stride);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn dequantize<const W: usize>(sums: &[[i32; W]], first: usize, column: usize, to: Dequantizing<'_, '_>) {
    let width = to.width.saturating_sub(column).min(W);
    for v in 0..width.div_ceil(LANES) {
        let lanes = (width - v * LANES).min(LANES);
        let weights = load(&to.sums[column..], v);
        let multiplier = _mm256_castsi256_ps(load(&to.multiplier[column..], v));
        let offset = _mm256_castsi256_ps(load(&to.offset[column..], v));
        let at = to.column + column + v * LANES;
        let (mut out, stride) = to.out.block(first..first + sums.len(), at, lanes);
        for (r, sums) in sums.iter().enumerate() {
            let row = if to.scale.len() == 1 { 0 } else { first + r };
            let (scale, zero) = (_mm256_set1_ps(to.scale[row]), _mm256_set1_epi32(to.zero[row]));
            let term = _mm256_set1_epi32(to.terms.get(first + r).copied().unwrap_or(0));
            let acc = _mm256_add_epi32(load(sums, v), term);
            let acc = _mm256_sub_epi32(acc, _mm256_mullo_epi32(zero, weights));
            let y = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), _mm256_mul_ps(scale, multiplier));
            let y = _mm256_add_ps(y, offset);
            match lanes {
                // SAFETY: `out` is the row's 8 elements.
                LANES => unsafe { _mm256_storeu_ps(out, y) },
                _ => {
                    let mut all = [0.0f32; LANES];
                    // SAFETY: `all` is 8 elements, and the row has the first `lanes`.
                    unsafe {
                        _mm256_storeu_ps(all.as_mut_ptr(), y);
                        ptr::copy_nonoverlapping(all.as_ptr(), out, lanes);
                    }
                }
            }
            out = out.wrapping_add(stride);
        }
    }
}

/// # Safety
///
/// `to` is so many writable bytes, at most 8.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(bytes: __m128i, to: *mut u8, lanes: usize) {
    let bytes = _mm_cvtsi128_si64(bytes).to_le_bytes();
    // SAFETY: as this function's.
    unsafe {
        match lanes {
            LANES => to.cast::<[u8; LANES]>().write(bytes),
            _ => ptr::copy_nonoverlapping(bytes.as_ptr(), to, lanes),
        }
    }
}

/// The low byte of each lane, in the low half.
#[inline]
#[target_feature(enable = "avx2")]
fn low_bytes(v: __m256i) -> __m128i {
    let firsts = _mm256_set1_epi32(0x0c08_0400);
    let each = _mm256_shuffle_epi8(v, firsts);
    _mm_unpacklo_epi32(_mm256_castsi256_si128(each), _mm256_extracti128_si256::<1>(each))
}

/// [`Residual`] in registers.
struct Addition<'a> {
    codes: &'a [u8],
    stride: usize,
    a_ratio: __m256,
    zero: __m256i,
    ratio: __m256,
    bounds: Bounds,
}

impl<'a> Addition<'a> {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(residual: Residual<'a>, rounder: Rounder) -> Addition<'a> {
        Addition {
            codes: residual.codes,
            stride: residual.stride,
            a_ratio: _mm256_set1_ps(residual.a_ratio),
            zero: _mm256_set1_epi32(residual.zero.into()),
            ratio: _mm256_set1_ps(residual.ratio),
            bounds: Bounds::new(rounder),
        }
    }

    /// The sum of a product that was rounded and shifted and of at most 8
    /// `codes`, clamped and shifted in its turn.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn shifted(&self, product: __m256, codes: &[u8]) -> __m256 {
        let codes = codes.first_chunk().copied().unwrap_or_else(|| {
            let mut filled = [0; LANES];
            filled[..codes.len()].copy_from_slice(codes);
            filled
        });
        let b = _mm_cvtsi64_si128(i64::from_le_bytes(codes));
        let b = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_cvtepu8_epi32(b), self.zero));
        let a = _mm256_sub_ps(product, _mm256_set1_ps(SHIFT));
        let sum = _mm256_add_ps(_mm256_mul_ps(a, self.a_ratio), _mm256_mul_ps(b, self.ratio));
        // Infinite terms of both signs give NaN, which counts as 0.
        let sum = _mm256_and_ps(sum, _mm256_cmp_ps::<_CMP_ORD_Q>(sum, sum));
        self.bounds.shifted(sum)
    }
}

/// The range to which a value is clamped before it is rounded.
pub(super) struct Bounds {
    lo: __m256,
    hi: __m256,
}

impl Bounds {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new(rounder: Rounder) -> Bounds {
        Bounds { lo: _mm256_set1_ps(rounder.lo), hi: _mm256_set1_ps(rounder.hi) }
    }

    /// `clamp(v) + SHIFT`, whose low byte is the rounded value. `v` is no NaN.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn shifted(&self, v: __m256) -> __m256 {
        let clamped = _mm256_min_ps(_mm256_max_ps(v, self.lo), self.hi);
        _mm256_add_ps(clamped, _mm256_set1_ps(SHIFT))
    }
}

/// Vector `v` of 32-bit values.
#[inline]
#[target_feature(enable = "avx2")]
fn load<T>(from: &[T], v: usize) -> __m256i {
    const { assert!(size_of::<T>() == 4) };
    let from = &from[v * LANES..][..LANES];
    // SAFETY: `from` is 8 elements of 4 readable bytes.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}
