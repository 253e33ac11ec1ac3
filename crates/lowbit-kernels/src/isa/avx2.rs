//! AVX2: products by `vpmaddubsw` where the weights and the activations at hand
//! prove that it cannot saturate, else by `vpmaddwd` on widened bytes.
//!
//! `vpmaddubsw` multiplies u8 by i8 and sums pairs into i16, with saturation.
//! [`Limits`] tells up to which activation no sum of a pair, or of a run of
//! groups, leaves the i16 range; the largest activation of a run of the tile's
//! rows is found when they are gathered. Per run and block of columns, the
//! fastest exact way is taken:
//!
//! - sums of a whole run in i16, widened by one `vpmaddwd` with ones;
//! - sums of pairs in i16, each widened;
//! - `vpmaddwd` on the even and the odd bytes, which always fits.

use std::arch::x86_64::*;
use std::array;

use super::Kernels;
use super::gathered::{GROUPS, Gathered};
use crate::loops;
use crate::pack::limits::{BLOCK, BLOCKS, Limits, RUN};
use crate::pack::{Group, KR, NR};
use crate::product;
use crate::rows::Rows;
use crate::tile::{Epilogue, Panel};

pub(super) const KERNELS: Kernels = Kernels {
    name: "avx2",
    detected: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
    tile_rows: ROWS,
    tile,
    product: product::AVX2,
    loops: loops::AVX2,
};

/// 8 rows by one vector of columns: 8 accumulators, a run of 4 vectors of
/// weights, the ones and 3 intermediate results of the 16 registers.
const ROWS: usize = 8;

#[target_feature(enable = "avx2")]
fn tile(rows: &Rows<'_>, first: usize, count: usize, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>) {
    match count {
        1 => sized::<1>(rows, first, panel, epilogue),
        2 => sized::<2>(rows, first, panel, epilogue),
        3 => sized::<3>(rows, first, panel, epilogue),
        4 => sized::<4>(rows, first, panel, epilogue),
        5 => sized::<5>(rows, first, panel, epilogue),
        6 => sized::<6>(rows, first, panel, epilogue),
        7 => sized::<7>(rows, first, panel, epilogue),
        8 => sized::<8>(rows, first, panel, epilogue),
        _ => unreachable!("{count} rows in a tile of {ROWS}"),
    }
}

/// A tile of `R` rows by the columns of the panel.
#[target_feature(enable = "avx2")]
fn sized<const R: usize>(rows: &Rows<'_>, first: usize, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>) {
    let mut sums = [[0; NR]; R];
    let mut gathered = Gathered::new();
    let (mut weights, mut limits) = (panel.all_groups(), panel.limits());
    for tap in 0..rows.taps() {
        let mut a = gathered.extend(rows.get::<R>(first, tap));
        while !a[0].is_empty() {
            add_products(&mut gathered, &weights[..GROUPS], limits, panel.width(), &mut sums);
            (weights, limits) = (&weights[GROUPS..], &limits[GROUPS / RUN..]);
            a = gathered.extend(a);
        }
    }
    add_products(&mut gathered, weights, limits, panel.width(), &mut sums);
    finish(epilogue, &sums, first);
}

/// Adds the products of what is gathered with as many groups of weights, and clears it.
#[target_feature(enable = "avx2")]
fn add_products<const R: usize>(
    a: &mut Gathered<R>,
    weights: &[Group],
    limits: &[[Limits; BLOCKS]],
    width: usize,
    sums: &mut [[i32; NR]; R],
) {
    assert_eq!(weights.len(), a.len());
    let maxima = a.maxima();
    let (runs, rest) = weights.as_chunks::<RUN>();
    for (block, column) in (0..width).step_by(BLOCK).enumerate() {
        let mut acc = [_mm256_setzero_si256(); R];
        for (i, ((run, max), limits)) in runs.iter().zip(maxima).zip(limits).enumerate() {
            let limits = limits[block];
            if max <= limits.run {
                add_run(&mut acc, a, i * RUN, run, column);
            } else {
                add_groups(&mut acc, a, i * RUN, run, column, max <= limits.pair);
            }
        }
        if !rest.is_empty() {
            let pairs_fit = maxima[runs.len()] <= limits[runs.len()][block].pair;
            add_groups(&mut acc, a, runs.len() * RUN, rest, column, pairs_fit);
        }
        for (sums, acc) in sums.iter_mut().zip(acc) {
            let sums: &mut [i32; BLOCK] = sums[column..].first_chunk_mut().expect("columns of NR");
            let sums = sums.as_mut_ptr().cast::<__m256i>();
            // SAFETY: `sums` is 32 readable and writable bytes.
            unsafe { sums.write_unaligned(_mm256_add_epi32(sums.read_unaligned(), acc)) };
        }
    }
    a.clear();
}

/// Adds the products of a run, from group `first`, whose sums fit i16.
#[inline]
#[target_feature(enable = "avx2")]
fn add_run<const R: usize>(
    acc: &mut [__m256i; R],
    a: &Gathered<R>,
    first: usize,
    run: &[Group; RUN],
    column: usize,
) {
    assert!(first + RUN <= a.len());
    let b: [_; RUN] = array::from_fn(|g| load(&run[g], column));
    for (r, acc) in acc.iter_mut().enumerate() {
        let product = |g| {
            // SAFETY: `g < RUN`, so that `first + g < a.len()`.
            let a = _mm256_set1_epi32(unsafe { a.word(r, first + g) });
            _mm256_maddubs_epi16(a, b[g])
        };
        let sum = (1..RUN).fold(product(0), |sum, g| _mm256_add_epi16(sum, product(g)));
        *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
    }
}

/// Adds the products of groups, from group `first`; `pairs_fit` tells whether
/// the sums of pairs fit i16.
#[inline]
#[target_feature(enable = "avx2")]
fn add_groups<const R: usize>(
    acc: &mut [__m256i; R],
    a: &Gathered<R>,
    first: usize,
    groups: &[Group],
    column: usize,
    pairs_fit: bool,
) {
    assert!(first + groups.len() <= a.len());
    for (g, group) in groups.iter().enumerate() {
        let b = load(group, column);
        let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b));
        let odd = _mm256_srai_epi16::<8>(b);
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `g < groups.len()`, so that `first + g < a.len()`.
            let a = _mm256_set1_epi32(unsafe { a.word(r, first + g) });
            let sum = if pairs_fit {
                _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1))
            } else {
                let a_even = _mm256_and_si256(a, _mm256_set1_epi16(0xff));
                let a_odd = _mm256_srli_epi16::<8>(a);
                _mm256_add_epi32(_mm256_madd_epi16(a_even, even), _mm256_madd_epi16(a_odd, odd))
            };
            *acc = _mm256_add_epi32(*acc, sum);
        }
    }
}

/// A block of columns.
#[inline]
#[target_feature(enable = "avx2")]
fn load(group: &Group, column: usize) -> __m256i {
    let columns: &[[i8; KR]; BLOCK] = group.0[column..].first_chunk().expect("columns of NR");
    // SAFETY: `columns` is 32 readable bytes.
    unsafe { _mm256_loadu_si256(columns.as_ptr().cast()) }
}

/// Not inlined: one epilogue serves the tiles of every height.
#[inline(never)]
#[target_feature(enable = "avx2")]
fn finish(epilogue: &mut Epilogue<'_>, acc: &[[i32; NR]], first: usize) {
    epilogue.store(acc, first, 0);
}
