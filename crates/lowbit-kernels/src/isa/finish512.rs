//! The end of a tile by vectors of 512 bits.

use std::arch::x86_64::*;

use crate::requant::{Residual, Rounder, SHIFT};
use crate::tile::{Dequantizing, Epilogue, Requantizing, Scaling, Summing};

/// Columns of one vector.
const LANES: usize = 16;

/// What is added to the sums of each row where nothing is: the tiles have no more rows.
const NO_TERMS: [i32; 16] = [0; 16];

/// [`Epilogue::store`], in vectors.
///
/// Not inlined: one epilogue serves the tiles of every height.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
    } else if let Some(to) = epilogue.scaling() {
        scale(sums, first, column, to);
    } else if let Some(to) = epilogue.summing() {
        sum(sums, first, column, to);
    } else {
        epilogue.store(sums, first, column);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
        let multiplier = _mm512_castsi512_ps(load(&to.multiplier[column..], v));
        let at = to.column + column + v * LANES;
        let (mut out, stride) = to.out.block(first..first + sums.len(), at, lanes);
        for (r, sums) in sums.iter().enumerate() {
            let term = _mm512_set1_epi32(to.terms.get(first + r).copied().unwrap_or(0));
            let acc = _mm512_add_epi32(_mm512_add_epi32(load(sums, v), bias), term);
            let acc = _mm512_cvtepi32_ps(acc);
            let mut shifted = bounds.shifted(_mm512_mul_ps(acc, multiplier));
            if let Some(sum) = &sum {
                shifted = sum.shifted(shifted, &sum.codes[(first + r) * sum.stride + at..][..lanes]);
            }
            let bytes = _mm_add_epi8(low_bytes(_mm512_castps_si512(shifted)), zero);
            // SAFETY: `out` is the row's `lanes` bytes.
            unsafe { store(bytes, out, lanes) };
            out = out.wrapping_add(stride);
        }
    }
}

/// For each vector of the columns of a tile that exist, the first of which is column
/// `$at` of `$to.out`: `$make` of its number, then for each row `$r` of the tile what
/// `$end` makes of its sums, stored.
macro_rules! store_rows {
    ($sums:ident, $first:ident, $column:ident, $to:ident, |$v:ident| $make:expr, |$acc:ident, $r:ident, $with:pat_param| $end:expr) => {
        let width = $to.width.saturating_sub($column).min(W);
        let terms = match $to.terms {
            [] => &NO_TERMS[..$sums.len()],
            terms => &terms[$first..][..$sums.len()],
        };
        for $v in 0..width.div_ceil(LANES) {
            let lanes = (width - $v * LANES).min(LANES);
            let $with = $make;
            let at = $to.column + $column + $v * LANES;
            let (mut out, stride) = $to.out.block($first..$first + $sums.len(), at, lanes);
            let rows = $sums.iter().zip(terms).enumerate();
            if lanes == LANES {
                for ($r, (sums, term)) in rows {
                    let $acc = _mm512_add_epi32(load(sums, $v), _mm512_set1_epi32(*term));
                    // SAFETY: `out` is the row's 16 elements.
                    unsafe { _mm512_storeu_si512(out.cast(), $end) };
                    out = out.wrapping_add(stride);
                }
            } else {
                for ($r, (sums, term)) in rows {
                    let $acc = _mm512_add_epi32(load(sums, $v), _mm512_set1_epi32(*term));
                    // SAFETY: the mask has as many lanes as the row has elements.
                    unsafe { _mm512_mask_storeu_epi32(out.cast(), mask(lanes), $end) };
                    out = out.wrapping_add(stride);
                }
            }
        }
    };
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dequantize<const W: usize>(sums: &[[i32; W]], first: usize, column: usize, to: Dequantizing<'_, '_>) {
    if let ([scale], [zero]) = (to.scale, to.zero) {
        let (scale, zero) = (_mm512_set1_ps(*scale), _mm512_set1_epi32(*zero));
        store_rows!(
            sums,
            first,
            column,
            to,
            |v| {
                let multiplier = _mm512_castsi512_ps(load(&to.multiplier[column..], v));
                let shift = _mm512_mullo_epi32(zero, load(&to.sums[column..], v));
                let offset = _mm512_castsi512_ps(load(&to.offset[column..], v));
                (shift, _mm512_mul_ps(scale, multiplier), offset)
            },
            |acc, _r, (shift, factor, offset)| {
                let y = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(acc, shift)), factor);
                _mm512_castps_si512(_mm512_add_ps(y, offset))
            }
        );
        return;
    }
    let (scale, zero) = (&to.scale[first..][..sums.len()], &to.zero[first..][..sums.len()]);
    store_rows!(
        sums,
        first,
        column,
        to,
        |v| {
            let multiplier = _mm512_castsi512_ps(load(&to.multiplier[column..], v));
            let offset = _mm512_castsi512_ps(load(&to.offset[column..], v));
            (load(&to.sums[column..], v), multiplier, offset)
        },
        |acc, r, (weights, multiplier, offset)| {
            let shift = _mm512_mullo_epi32(_mm512_set1_epi32(zero[r]), weights);
            let factor = _mm512_mul_ps(_mm512_set1_ps(scale[r]), multiplier);
            let y = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(acc, shift)), factor);
            _mm512_castps_si512(_mm512_add_ps(y, offset))
        }
    );
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn scale<const W: usize>(sums: &[[i32; W]], first: usize, column: usize, to: Scaling<'_, '_>) {
    store_rows!(
        sums,
        first,
        column,
        to,
        |v| { (load(&to.bias[column..], v), _mm512_castsi512_ps(load(&to.multiplier[column..], v))) },
        |acc, _r, (bias, multiplier)| {
            let acc = _mm512_cvtepi32_ps(_mm512_add_epi32(acc, bias));
            _mm512_castps_si512(_mm512_mul_ps(acc, multiplier))
        }
    );
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn sum<const W: usize>(sums: &[[i32; W]], first: usize, column: usize, to: Summing<'_, '_>) {
    store_rows!(sums, first, column, to, |v| load(&to.bias[column..], v), |acc, _r, bias| _mm512_add_epi32(
        acc, bias
    ));
}

/// The low byte of each lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn low_bytes(v: __m512i) -> __m128i {
    _mm512_cvtepi32_epi8(v)
}

/// # Safety
///
/// `to` is so many writable bytes, at most 16.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl")]
unsafe fn store(bytes: __m128i, to: *mut u8, lanes: usize) {
    // SAFETY: as this function's; the mask has as many lanes as there are bytes.
    unsafe {
        match lanes {
            LANES => _mm_storeu_si128(to.cast(), bytes),
            _ => _mm_mask_storeu_epi8(to.cast(), mask(lanes), bytes),
        }
    }
}

fn mask(lanes: usize) -> u16 {
    u16::MAX.checked_shr((LANES - lanes) as u32).unwrap_or(0)
}

/// [`Residual`] in registers.
struct Addition<'a> {
    codes: &'a [u8],
    stride: usize,
    a_ratio: __m512,
    zero: __m512i,
    ratio: __m512,
    bounds: Bounds,
}

impl<'a> Addition<'a> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(residual: Residual<'a>, rounder: Rounder) -> Addition<'a> {
        Addition {
            codes: residual.codes,
            stride: residual.stride,
            a_ratio: _mm512_set1_ps(residual.a_ratio),
            zero: _mm512_set1_epi32(residual.zero.into()),
            ratio: _mm512_set1_ps(residual.ratio),
            bounds: Bounds::new(rounder),
        }
    }

    /// The sum of a product that was rounded and shifted and of at most 16
    /// `codes`, clamped and shifted in its turn.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn shifted(&self, product: __m512, codes: &[u8]) -> __m512 {
        let b = match codes.first_chunk::<LANES>() {
            // SAFETY: `codes` is 16 readable bytes.
            Some(codes) => unsafe { _mm_loadu_si128(codes.as_ptr().cast()) },
            // SAFETY: the mask has as many lanes as `codes` has bytes.
            None => unsafe { _mm_maskz_loadu_epi8(mask(codes.len()), codes.as_ptr().cast()) },
        };
        let b = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(b), self.zero));
        let a = _mm512_sub_ps(product, _mm512_set1_ps(SHIFT));
        let sum = _mm512_add_ps(_mm512_mul_ps(a, self.a_ratio), _mm512_mul_ps(b, self.ratio));
        // Infinite terms of both signs give NaN, which counts as 0.
        let sum = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_ORD_Q>(sum, sum), sum);
        self.bounds.shifted(sum)
    }
}

/// The range to which a value is clamped before it is rounded.
struct Bounds {
    lo: __m512,
    hi: __m512,
}

impl Bounds {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(rounder: Rounder) -> Bounds {
        Bounds { lo: _mm512_set1_ps(rounder.lo), hi: _mm512_set1_ps(rounder.hi) }
    }

    /// `clamp(v) + SHIFT`, whose low byte is the rounded value. `v` is no NaN.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn shifted(&self, v: __m512) -> __m512 {
        let clamped = _mm512_min_ps(_mm512_max_ps(v, self.lo), self.hi);
        _mm512_add_ps(clamped, _mm512_set1_ps(SHIFT))
    }
}

/// Vector `v` of 32-bit values.
#[inline]
#[target_feature(enable = "avx512f")]
fn load<T>(from: &[T], v: usize) -> __m512i {
    const { assert!(size_of::<T>() == 4) };
    let from = &from[v * LANES..][..LANES];
    // SAFETY: `from` is 16 elements of 4 readable bytes.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}
