//! Requantization that packs four vectors into one.

use std::arch::x86_64::*;
use std::{array, ptr};

use super::LANES;
use crate::pack::NR;
use crate::requant::Rounder;
use crate::tile::{Epilogue, Requantizing};

/// Vectors whose codes are one vector.
const PACKED: usize = 4;

/// The rounding of [`Requant`](crate::Requant) in registers, for products that are
/// no NaN.
///
/// The conversion to i32 rounds, and gives the least i32 for what is too small; what
/// is too large is clamped before. What then saturates is below 0 or above 255.
#[derive(Clone, Copy)]
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
        self.integers(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_castsi512_ps(multiplier)))
    }

    /// Values that are no NaN, rounded.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn integers(&self, values: __m512) -> __m512i {
        _mm512_cvtps_epi32(_mm512_min_ps(values, self.most))
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

/// [`Epilogue::store`] of sums in registers, if they become u8 codes of a whole panel of `W` columns;
/// whether they do.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn store<const R: usize, const V: usize, const W: usize>(
    acc: &[[__m512i; V]; R],
    first: usize,
    epilogue: &mut Epilogue<'_>,
) -> bool {
    let Some(to) = epilogue.requantizing().filter(|to| to.width == W && to.terms.is_empty()) else {
        return false;
    };
    match to.residual {
        None => packed::<R, V, W, false>(acc, first, to),
        Some((residual, _)) if is_small(residual.a_ratio) && is_small(residual.ratio) => {
            packed::<R, V, W, true>(acc, first, to);
        }
        Some(_) => return false,
    }
    true
}

/// Whether products of codes with this ratio are finite, and so are sums of two.
fn is_small(ratio: f32) -> bool {
    ratio.abs() < f32::MAX / 1024.0
}

/// [`Epilogue::store`] of u8 outputs of a whole panel of `W` columns, nothing added to the rows'
/// sums, and codes added to the rounded values if `ADD`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn packed<const R: usize, const V: usize, const W: usize, const ADD: bool>(
    acc: &[[__m512i; V]; R],
    first: usize,
    to: Requantizing<'_, '_>,
) {
    const { assert!(W == V * LANES && PACKED.is_multiple_of(V)) };
    let mut end = End::<V, ADD> {
        bias: load(to.bias),
        multiplier: load(to.multiplier),
        least: _mm512_set1_ps(to.rounder.lo),
        most: _mm512_set1_ps(to.rounder.hi),
        added: ptr::null(),
        added_stride: 0,
        a_ratio: _mm512_setzero_ps(),
        zero: _mm512_setzero_si512(),
        ratio: _mm512_setzero_ps(),
        saturated: Saturated::new(to.residual.map_or(to.rounder, |(_, rounder)| rounder)),
    };
    if let (true, Some((residual, _))) = (ADD, to.residual) {
        let codes = &residual.codes[first * residual.stride + to.column..];
        assert!(codes.len() >= (R - 1) * residual.stride + W, "codes to add to each sum");
        end.added = codes.as_ptr();
        end.added_stride = residual.stride;
        end.a_ratio = _mm512_set1_ps(residual.a_ratio);
        end.zero = _mm512_set1_epi32(residual.zero.into());
        end.ratio = _mm512_set1_ps(residual.ratio);
    }
    let (mut row, stride) = to.out.block(first..first + R, to.column, W);
    let sums = |i: usize| acc[i / V][i % V];
    // Written out, since sums stay in registers only where their places are constants.
    macro_rules! each {
        ($($group:literal)*) => {
            $(if PACKED * ($group + 1) <= R * V {
                let at = PACKED * $group;
                // SAFETY: if `ADD`, the codes of `PACKED / V` rows of `W` columns can be read.
                let codes = unsafe { end.codes([sums(at), sums(at + 1), sums(at + 2), sums(at + 3)]) };
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
                (row, end) = (row.wrapping_add(PACKED / V * stride), end.below(PACKED / V));
            })*
        };
    }
    each!(0 1 2 3 4 5);
    // What is left is less than four vectors: one row of two, or some of one.
    macro_rules! rest {
        ($($i:literal)*) => {
            $(if $i < R % (PACKED / V) {
                let at = (R - R % (PACKED / V) + $i) * V;
                // SAFETY: if `ADD`, the codes of a row of `W` columns can be read.
                let codes = unsafe { end.below($i).codes_of_row([sums(at), sums(at + V - 1)]) };
                // SAFETY: the row has `W` elements.
                unsafe { _mm512_mask_storeu_epi8(row.add($i * stride).cast(), u64::MAX >> (64 - W), codes) };
            })*
        };
    }
    rest!(0 1 2);
}

/// What makes codes of the sums of `V` vectors of columns.
#[derive(Clone, Copy)]
struct End<const V: usize, const ADD: bool> {
    bias: [__m512i; V],
    multiplier: [__m512i; V],
    /// Bounds of the products, if codes are added.
    least: __m512,
    most: __m512,
    /// The codes that are added, those of the rows to come.
    added: *const u8,
    added_stride: usize,
    a_ratio: __m512,
    zero: __m512i,
    ratio: __m512,
    saturated: Saturated,
}

impl<const V: usize, const ADD: bool> End<V, ADD> {
    /// The same for the rows from `rows` on.
    #[inline(always)]
    fn below(self, rows: usize) -> Self {
        End { added: self.added.wrapping_add(rows * self.added_stride), ..self }
    }

    /// The codes of vectors of sums, one after the other.
    ///
    /// # Safety
    ///
    /// If `ADD`, the codes of their rows can be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn codes(&self, acc: [__m512i; PACKED]) -> __m512i {
        // SAFETY: by the contract.
        let values = unsafe {
            [self.value(0, acc[0]), self.value(1, acc[1]), self.value(2, acc[2]), self.value(3, acc[3])]
        };
        self.packed(values)
    }

    /// The codes of a row of at most two vectors, and others.
    ///
    /// # Safety
    ///
    /// If `ADD`, the codes of the row can be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn codes_of_row(&self, acc: [__m512i; 2]) -> __m512i {
        // SAFETY: by the contract.
        let (first, second) = unsafe { (self.value(0, acc[0]), self.value(V - 1, acc[V - 1])) };
        self.packed([first, second, second, second])
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn packed(&self, values: [__m512i; PACKED]) -> __m512i {
        // 32 bits of each vector lie side by side: its parts are brought together.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_permutexvar_epi32(order, self.saturated.codes(values))
    }

    /// The rounded values of vector `i` of some rows.
    ///
    /// # Safety
    ///
    /// If `ADD`, its codes can be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn value(&self, i: usize, acc: __m512i) -> __m512i {
        let product = _mm512_cvtepi32_ps(_mm512_add_epi32(acc, self.bias[i % V]));
        let product = _mm512_mul_ps(product, _mm512_castsi512_ps(self.multiplier[i % V]));
        self.saturated.integers(match ADD {
            // SAFETY: by the contract.
            true => unsafe { self.sum(product, self.added.add(i / V * self.added_stride + i % V * LANES)) },
            false => product,
        })
    }

    /// The sums of products, once rounded, and codes.
    ///
    /// # Safety
    ///
    /// At `codes`, there are 16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn sum(&self, product: __m512, codes: *const u8) -> __m512 {
        let a = _mm512_min_ps(_mm512_max_ps(product, self.least), self.most);
        let a = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT }>(a);
        // SAFETY: by the contract.
        let b = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(codes.cast()) });
        let b = _mm512_cvtepi32_ps(_mm512_sub_epi32(b, self.zero));
        _mm512_add_ps(_mm512_mul_ps(a, self.a_ratio), _mm512_mul_ps(b, self.ratio))
    }
}

/// The first `V` vectors of the panel's parameters, of 32 bits each.
#[inline]
#[target_feature(enable = "avx512f")]
fn load<const V: usize, T>(from: &[T; NR]) -> [__m512i; V] {
    const { assert!(size_of::<T>() == 4 && V * LANES <= NR) };
    // SAFETY: `V` vectors of 16 lanes are within the `NR` elements.
    array::from_fn(|v| unsafe { _mm512_loadu_si512(from.as_ptr().add(v * LANES).cast()) })
}
