//! Requantization that packs four vectors into one.

use std::arch::x86_64::*;
use std::array;
use std::ops::Range;

use super::LANES;
use crate::pack::NR;
use crate::requant::Rounder;
use crate::tile::{Epilogue, Requantizing};

/// Vectors whose codes are one vector.
const PACKED: usize = 4;

/// The rounding of [`Requant`](crate::Requant) in registers, for values in the range of
/// i32: rounded, they saturate, at last as u8.
#[derive(Clone, Copy)]
pub(super) struct Saturated {
    zero: __m512i,
    least: __m512i,
    greatest: __m512i,
}

impl Saturated {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn new(rounder: Rounder) -> Saturated {
        Saturated {
            zero: _mm512_set1_epi16(rounder.zero().into()),
            least: _mm512_set1_epi8(rounder.least().cast_signed()),
            greatest: _mm512_set1_epi8(rounder.greatest().cast_signed()),
        }
    }

    /// The products of sums and multipliers (f32), rounded.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn rounded(acc: __m512i, multiplier: __m512i) -> __m512i {
        _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_castsi512_ps(multiplier)))
    }

    /// The codes of rounded values: 32 bits of each vector after the other.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn codes(&self, rounded: [__m512i; PACKED]) -> __m512i {
        let low = _mm512_adds_epi16(_mm512_packs_epi32(rounded[0], rounded[1]), self.zero);
        let high = _mm512_adds_epi16(_mm512_packs_epi32(rounded[2], rounded[3]), self.zero);
        let codes = _mm512_max_epu8(_mm512_packus_epi16(low, high), self.least);
        _mm512_min_epu8(codes, self.greatest)
    }
}

/// [`Epilogue::store`] of sums in registers that become u8 codes of values in the range
/// of i32: that of some rows of `V` vectors of columns.
pub(in crate::isa) struct Codes<const V: usize> {
    /// What the sums begin with.
    pub(in crate::isa) bias: [__m512i; V],
    multiplier: [__m512i; V],
    saturated: Saturated,
    /// The first row, and the distance of rows.
    out: *mut u8,
    stride: usize,
    /// A bit for each column that exists.
    columns: u64,
    addition: Option<Addition>,
}

/// Codes that are added to the rounded products.
struct Addition {
    /// Bounds of the products.
    least: __m512,
    most: __m512,
    /// The first row of the codes, and the distance of rows.
    codes: *const u8,
    stride: usize,
    a_ratio: __m512,
    zero: __m512i,
    ratio: __m512,
}

impl<const V: usize> Codes<V> {
    /// That of `rows`, if it is one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(in crate::isa) fn new(epilogue: &mut Epilogue<'_>, rows: Range<usize>) -> Option<Codes<V>> {
        let bias = load(epilogue.small_bias()?);
        let Requantizing { out, multiplier, rounder, column, width, residual, .. } =
            epilogue.requantizing()?;
        let addition = residual.map(|(residual, _)| {
            let codes = &residual.codes[rows.start * residual.stride + column..];
            assert!(codes.len() >= (rows.len() - 1) * residual.stride + width, "codes to add to each sum");
            Addition {
                least: _mm512_set1_ps(rounder.lo),
                most: _mm512_set1_ps(rounder.hi),
                codes: codes.as_ptr(),
                stride: residual.stride,
                a_ratio: _mm512_set1_ps(residual.a_ratio),
                zero: _mm512_set1_epi32(residual.zero.into()),
                ratio: _mm512_set1_ps(residual.ratio),
            }
        });
        let (out, stride) = out.block(rows, column, width);
        Some(Codes {
            bias,
            multiplier: load(multiplier),
            saturated: Saturated::new(residual.map_or(rounder, |(_, rounder)| rounder)),
            out,
            stride,
            columns: u64::MAX >> (64 - width),
            addition,
        })
    }

    /// Stores the codes of the `R` rows from `first` of these.
    ///
    /// # Safety
    ///
    /// There are such rows, and what the epilogue borrows is borrowed still.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(in crate::isa) unsafe fn store<const R: usize, const W: usize>(
        &self,
        acc: &[[__m512i; V]; R],
        first: usize,
    ) {
        let whole = self.columns == u64::MAX >> (64 - W);
        // SAFETY: by the contract.
        unsafe {
            match (&self.addition, whole) {
                (None, true) => self.rows::<R, false, true>(acc, first, None),
                (None, false) => self.rows::<R, false, false>(acc, first, None),
                (Some(added), true) => self.rows::<R, true, true>(acc, first, Some(added)),
                (Some(added), false) => self.rows::<R, true, false>(acc, first, Some(added)),
            }
        }
    }

    /// [`Codes::store`] of all columns of the vectors if `WHOLE`, codes being added if `ADD`.
    ///
    /// # Safety
    ///
    /// As [`Codes::store`]'s.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn rows<const R: usize, const ADD: bool, const WHOLE: bool>(
        &self,
        acc: &[[__m512i; V]; R],
        first: usize,
        addition: Option<&Addition>,
    ) {
        const { assert!(PACKED.is_multiple_of(V)) };
        let row = |i: usize| self.out.wrapping_add((first + i) * self.stride);
        let value = |i: usize| {
            let (row, v) = (i / V, i % V);
            let product = _mm512_cvtepi32_ps(acc[row][v]);
            let product = _mm512_mul_ps(product, _mm512_castsi512_ps(self.multiplier[v]));
            match addition {
                Some(added) if ADD => {
                    let columns = (self.columns >> (v * LANES)) as u16;
                    let at = added.codes.wrapping_add((first + row) * added.stride + v * LANES);
                    // SAFETY: the row has these columns, all those of the vector if `WHOLE`.
                    let codes = unsafe {
                        match WHOLE {
                            true => _mm_loadu_si128(at.cast()),
                            false => _mm_maskz_loadu_epi8(columns, at.cast()),
                        }
                    };
                    _mm512_cvtps_epi32(added.sum(product, codes))
                }
                _ => _mm512_cvtps_epi32(product),
            }
        };
        // 32 bits of each vector lie side by side: its parts are brought together.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let packed = |values| _mm512_permutexvar_epi32(order, self.saturated.codes(values));
        // Written out, since sums stay in registers only where their places are constants.
        macro_rules! each {
            ($($group:literal)*) => {
                $(if PACKED * ($group + 1) <= R * V {
                    let at = PACKED * $group;
                    let codes = packed([value(at), value(at + 1), value(at + 2), value(at + 3)]);
                    // SAFETY: there are these rows, which have these columns.
                    unsafe { store_rows::<V, WHOLE>(codes, row(at / V), self.stride, self.columns) };
                })*
            };
        }
        each!(0 1 2 3 4 5);
        // What is left is less than four vectors: one row of two, or some of one.
        macro_rules! rest {
            ($($i:literal)*) => {
                $(if $i < R % (PACKED / V) {
                    let at = (R - R % (PACKED / V) + $i) * V;
                    let (left, right) = (value(at), value(at + V - 1));
                    let codes = packed([left, right, right, right]);
                    // SAFETY: there is this row, which has these columns.
                    unsafe { _mm512_mask_storeu_epi8(row(at / V).cast(), self.columns, codes) };
                })*
            };
        }
        rest!(0 1 2);
    }
}

/// Stores the codes of rows of `V` vectors, `stride` apart: of all columns if `WHOLE`.
///
/// # Safety
///
/// From `row` on, there are such rows of these columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn store_rows<const V: usize, const WHOLE: bool>(
    codes: __m512i,
    row: *mut u8,
    stride: usize,
    columns: u64,
) {
    let halves = [_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64::<1>(codes)];
    let quarters = [
        _mm512_castsi512_si128(codes),
        _mm512_extracti32x4_epi32::<1>(codes),
        _mm512_extracti32x4_epi32::<2>(codes),
        _mm512_extracti32x4_epi32::<3>(codes),
    ];
    for i in 0..PACKED / V {
        let row = row.wrapping_add(i * stride);
        // SAFETY: as this function's.
        unsafe {
            match (V, WHOLE) {
                (2, true) => _mm256_storeu_si256(row.cast(), halves[i]),
                (2, false) => _mm256_mask_storeu_epi8(row.cast(), columns as u32, halves[i]),
                (_, true) => _mm_storeu_si128(row.cast(), quarters[i]),
                (_, false) => _mm_mask_storeu_epi8(row.cast(), columns as u16, quarters[i]),
            }
        }
    }
}

impl Addition {
    /// The sums of products, once rounded, and codes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn sum(&self, product: __m512, codes: __m128i) -> __m512 {
        let a = _mm512_min_ps(_mm512_max_ps(product, self.least), self.most);
        let a = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT }>(a);
        let b = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(codes), self.zero));
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
