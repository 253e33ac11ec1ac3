//! AVX-512 with VNNI: `vpdpbusd` multiplies u8 by i8 and sums groups of four
//! into i32 without saturating.

mod depthwise;
mod saturate;

use std::arch::x86_64::*;
use std::array;

use super::{Kernels, lookup};
use crate::loops::{self, Loops};
use crate::pack::{Group, KR, NR, last_group};
use crate::product;
use crate::requant::{Residual, Rounder, SHIFT};
use crate::rows::Rows;
use crate::tile::{Epilogue, Panel, Requantizing};

pub(super) const KERNELS: Kernels = Kernels {
    name: "avx512vnni",
    detected: || {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("fma")
    },
    tile_rows: ROWS,
    tile,
    product: product::AVX512,
    loops: Loops { depthwise: depthwise::depthwise, map: lookup::map, ..loops::AVX512VNNI },
};

/// 12 rows by 2 vectors of columns: 24 accumulators, 2 vectors of weights and
/// one broadcast activation of the 32 registers.
const ROWS: usize = 12;
/// Columns of one vector of i32.
const LANES: usize = 16;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tile(rows: &Rows<'_>, first: usize, count: usize, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>) {
    macro_rules! by_count {
        ($($rows:literal)*) => {
            match (count, panel.width() <= LANES) {
                $(($rows, true) => sized::<$rows, 1, LANES>(rows, first, panel, epilogue),
                ($rows, false) => sized::<$rows, 2, NR>(rows, first, panel, epilogue),)*
                _ => unreachable!("{count} rows in a tile of {ROWS}"),
            }
        };
    }
    by_count!(1 2 3 4 5 6 7 8 9 10 11 12)
}

/// Sums whose vectors do not straddle cache lines: what is read right after it
/// was written then need not wait for the cache.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

/// A tile of `R` rows by `V` vectors, that is `W = V * LANES` columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn sized<const R: usize, const V: usize, const W: usize>(
    rows: &Rows<'_>,
    first: usize,
    panel: &Panel<'_>,
    epilogue: &mut Epilogue<'_>,
) {
    const { assert!(W == V * LANES) };
    let depth = rows.depth();
    let mut acc = [[_mm512_setzero_si512(); V]; R];
    let starts = rows.starts::<R>(first);
    for (tap, &offset) in rows.offsets().iter().enumerate() {
        let (whole, last) = panel.groups(tap).split_at(depth / KR);
        for (g, group) in whole.iter().enumerate() {
            let b = load::<V>(group);
            for (acc, start) in acc.iter_mut().zip(starts) {
                // SAFETY: `depth` bytes can be read at the tap's offset and `g < depth / KR`,
                // so the four bytes from `KR * g` are among them.
                let word = unsafe { start.add(offset + KR * g).cast::<i32>().read_unaligned() };
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm512_dpbusd_epi32(*acc, _mm512_set1_epi32(word), b);
                }
            }
        }
        if let [group] = last {
            let b = load::<V>(group);
            // Apart from the accumulators, which stay in registers only in a loop that is unrolled.
            let a = rows.get::<R>(first, tap);
            let words = a.map(|a| i32::from_le_bytes(last_group(&a[depth - depth % KR..])));
            for (acc, word) in acc.iter_mut().zip(words) {
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm512_dpbusd_epi32(*acc, _mm512_set1_epi32(word), b);
                }
            }
        }
    }
    let mut sums = Aligned([[0i32; W]; R]);
    for (sums, acc) in sums.0.iter_mut().zip(acc) {
        for (sums, acc) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
            // SAFETY: `sums` is 64 writable bytes.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), acc) };
        }
    }
    match epilogue.requantizing() {
        Some(to) if saturate::is_plain::<V, W>(R, &to) => saturate::store::<V, W>(&sums, first, to),
        Some(to) => requantize::<V, W>(&sums.0, first, to),
        None => finish(epilogue, &sums.0, first, 0),
    }
}

/// Not inlined: one epilogue serves the tiles of every height.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn finish<const W: usize>(epilogue: &mut Epilogue<'_>, acc: &[[i32; W]], first: usize, column: usize) {
    epilogue.store(acc, first, column);
}

/// [`Epilogue::store`] of u8 outputs, by vectors.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn requantize<const V: usize, const W: usize>(sums: &[[i32; W]], first: usize, to: Requantizing<'_, '_>) {
    let bias: [__m512i; V] = load_parameters(to.bias);
    let multiplier = load_parameters::<V, _>(to.multiplier).map(|m| _mm512_castsi512_ps(m));
    let bounds = Bounds::new(to.rounder);
    let zero = match &to.residual {
        Some((_, rounder)) => rounder.zero(),
        None => to.rounder.zero(),
    };
    let zero = _mm_set1_epi8(zero.cast_signed());
    let sum = to.residual.map(|(residual, rounder)| Addition::new(residual, rounder));
    for (r, sums) in sums.iter().enumerate() {
        let out = to.out.run(first + r, to.column, to.width);
        let term = _mm512_set1_epi32(to.terms.get(first + r).copied().unwrap_or(0));
        for v in 0..V {
            // SAFETY: `sums` has 16 elements of 4 bytes for each of V vectors.
            let acc = unsafe { _mm512_loadu_si512(sums.as_ptr().add(v * LANES).cast()) };
            let acc = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_add_epi32(acc, bias[v]), term));
            let mut shifted = bounds.shifted(_mm512_mul_ps(acc, multiplier[v]));
            let lanes = to.width.saturating_sub(v * LANES).min(LANES);
            if let Some(sum) = &sum {
                let at = (first + r) * sum.stride + to.column + v * LANES;
                shifted = sum.shifted(shifted, &sum.codes[at..][..lanes]);
            }
            // The low byte of each lane is the rounded value.
            let bytes = _mm_add_epi8(_mm512_cvtepi32_epi8(_mm512_castps_si512(shifted)), zero);
            let out = &mut out[v * LANES..][..lanes];
            match out.first_chunk_mut::<LANES>() {
                // SAFETY: `out` is 16 writable bytes.
                Some(out) => unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) },
                // SAFETY: the mask has as many lanes as `out` has bytes.
                None => unsafe { _mm_mask_storeu_epi8(out.as_mut_ptr().cast(), mask(lanes), bytes) },
            }
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
        self.bounds.shifted(_mm512_add_ps(_mm512_mul_ps(a, self.a_ratio), _mm512_mul_ps(b, self.ratio)))
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

/// The first `V` vectors of 32-bit parameters.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_parameters<const V: usize, T>(from: &[T; NR]) -> [__m512i; V] {
    const { assert!(size_of::<T>() == 4 && V * LANES <= NR) };
    // SAFETY: `V` vectors of 16 lanes of 4 bytes are within the `NR` elements.
    array::from_fn(|v| unsafe { _mm512_loadu_si512(from.as_ptr().add(v * LANES).cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load<const V: usize>(group: &Group) -> [__m512i; V] {
    let columns = group.0.as_chunks::<LANES>().0;
    // SAFETY: each of the `columns` is 16 groups of 4 bytes: 64 readable bytes.
    array::from_fn(|v| unsafe { _mm512_loadu_si512(columns[v].as_ptr().cast()) })
}
