//! Requantization that packs four vectors into one.

use std::arch::x86_64::*;

use super::{Aligned, LANES, load_parameters};
use crate::requant::Rounder;
use crate::tile::Requantizing;

/// Vectors whose codes are one vector.
const PACKED: usize = 4;

/// The rounding of [`Requant`](crate::Requant) in registers, for products that are
/// no NaN.
///
/// The conversion to i32 rounds, and gives the least i32 for what is too small; what
/// is too large is clamped before. What then saturates is below 0 or above 255.
pub(super) struct Saturated {
    most: __m512,
    zero: __m512i,
    least: __m512i,
}

impl Saturated {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn new(rounder: Rounder) -> Saturated {
        Saturated {
            most: _mm512_set1_ps(rounder.hi),
            zero: _mm512_set1_epi16(rounder.zero().into()),
            least: _mm512_set1_epi8(rounder.least().cast_signed()),
        }
    }

    /// The products of sums and multipliers (f32), rounded.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn rounded(&self, acc: __m512i, multiplier: __m512i) -> __m512i {
        let product = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_castsi512_ps(multiplier));
        _mm512_cvtps_epi32(_mm512_min_ps(product, self.most))
    }

    /// The codes of rounded products: 32 bits of each vector after the other.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn codes(&self, rounded: [__m512i; PACKED]) -> __m512i {
        let low = _mm512_adds_epi16(_mm512_packs_epi32(rounded[0], rounded[1]), self.zero);
        let high = _mm512_adds_epi16(_mm512_packs_epi32(rounded[2], rounded[3]), self.zero);
        _mm512_max_epu8(_mm512_packus_epi16(low, high), self.least)
    }
}

/// Whether [`store`] takes this: whole vectors of rows of a whole panel of `W`
/// columns, and nothing added to the rounded values or to the rows' sums.
#[inline]
pub(super) fn is_plain<const V: usize, const W: usize>(rows: usize, to: &Requantizing<'_, '_>) -> bool {
    let plain = to.residual.is_none() && to.terms.is_empty();
    plain && to.width == W && (rows * V).is_multiple_of(PACKED)
}

/// [`Epilogue::store`](crate::tile::Epilogue::store) of u8 outputs, where
/// [`is_plain`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn store<const V: usize, const W: usize>(
    sums: &Aligned<[[i32; W]]>,
    first: usize,
    to: Requantizing<'_, '_>,
) {
    const { assert!(W == V * LANES && PACKED.is_multiple_of(V)) };
    let bias: [__m512i; V] = load_parameters(to.bias);
    let multiplier = load_parameters::<V, _>(to.multiplier);
    let saturated = Saturated::new(to.rounder);
    // 32 bits of each vector lie side by side: its parts are brought together.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let (mut row, stride) = to.out.block(first..first + sums.0.len(), to.column, W);
    let mut acc = sums.0.as_ptr().cast::<__m512i>();
    for _ in 0..sums.0.len() * V / PACKED {
        let mut values = [_mm512_setzero_si512(); PACKED];
        for (i, value) in values.iter_mut().enumerate() {
            // SAFETY: `sums` is aligned vectors, and `acc` points to the first of `PACKED` of them.
            let acc = unsafe { _mm512_load_si512(acc.add(i)) };
            *value = saturated.rounded(_mm512_add_epi32(acc, bias[i % V]), multiplier[i % V]);
        }
        let codes = _mm512_permutexvar_epi32(order, saturated.codes(values));
        // SAFETY: the `PACKED / V` rows from `row`, `stride` apart, have `W` elements each.
        unsafe {
            if V == 2 {
                _mm256_storeu_si256(row.cast(), _mm512_castsi512_si256(codes));
                _mm256_storeu_si256(row.add(stride).cast(), _mm512_extracti64x4_epi64::<1>(codes));
            } else {
                _mm_storeu_si128(row.cast(), _mm512_castsi512_si128(codes));
                _mm_storeu_si128(row.add(stride).cast(), _mm512_extracti32x4_epi32::<1>(codes));
                _mm_storeu_si128(row.add(2 * stride).cast(), _mm512_extracti32x4_epi32::<2>(codes));
                _mm_storeu_si128(row.add(3 * stride).cast(), _mm512_extracti32x4_epi32::<3>(codes));
            }
        }
        acc = acc.wrapping_add(PACKED);
        row = row.wrapping_add(PACKED / V * stride);
    }
}
