//! AVX-512 without VNNI: the scheme of `avx2`, on vectors of twice the width.

use std::arch::x86_64::*;
use std::array;

use super::gathered::{GROUPS, Gathered};
use super::{Kernels, lookup};
use crate::loops::{self, Loops};
use crate::pack::limits::{BLOCK, BLOCKS, Limits, RUN};
use crate::pack::{Group, KR, NR};
use crate::product;
use crate::rows::Rows;
use crate::tile::{Epilogue, Panel};

pub(super) const KERNELS: Kernels = Kernels {
    name: "avx512",
    detected: || {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
    },
    tile_rows: ROWS,
    tile,
    loops: Loops { map: lookup::map, ..loops::AVX512 },
    product: product::AVX512,
};

/// 12 rows by one vector of columns: 12 accumulators, a run of 4 vectors of
/// weights, the ones and intermediate results of the 32 registers.
const ROWS: usize = 12;
/// Columns of a vector: two blocks.
const WIDTH: usize = 2 * BLOCK;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn tile(rows: &Rows<'_>, first: usize, count: usize, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>) {
    macro_rules! by_count {
        ($($rows:literal)*) => {
            match count {
                $($rows => sized::<$rows>(rows, first, panel, epilogue),)*
                _ => unreachable!("{count} rows in a tile of {ROWS}"),
            }
        };
    }
    by_count!(1 2 3 4 5 6 7 8 9 10 11 12)
}

/// A tile of `R` rows by the columns of the panel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
    for (pair, column) in (0..width).step_by(WIDTH).enumerate() {
        let mut acc = [_mm512_setzero_si512(); R];
        let limits = |run: usize| {
            let [a, b] = [limits[run][2 * pair], limits[run][2 * pair + 1]];
            Limits { run: a.run.min(b.run), pair: a.pair.min(b.pair) }
        };
        for (i, (run, max)) in runs.iter().zip(maxima).enumerate() {
            let limits = limits(i);
            if max <= limits.run {
                add_run(&mut acc, a, i * RUN, run, column);
            } else {
                add_groups(&mut acc, a, i * RUN, run, column, max <= limits.pair);
            }
        }
        if !rest.is_empty() {
            let pairs_fit = maxima[runs.len()] <= limits(runs.len()).pair;
            add_groups(&mut acc, a, runs.len() * RUN, rest, column, pairs_fit);
        }
        for (sums, acc) in sums.iter_mut().zip(acc) {
            let sums: &mut [i32; WIDTH] = sums[column..].first_chunk_mut().expect("columns of NR");
            let sums = sums.as_mut_ptr().cast::<__m512i>();
            // SAFETY: `sums` is 64 readable and writable bytes.
            unsafe { sums.write_unaligned(_mm512_add_epi32(sums.read_unaligned(), acc)) };
        }
    }
    a.clear();
}

/// Adds the products of a run, from group `first`, whose sums fit i16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn add_run<const R: usize>(
    acc: &mut [__m512i; R],
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
            let a = _mm512_set1_epi32(unsafe { a.word(r, first + g) });
            _mm512_maddubs_epi16(a, b[g])
        };
        let sum = (1..RUN).fold(product(0), |sum, g| _mm512_add_epi16(sum, product(g)));
        *acc = _mm512_add_epi32(*acc, _mm512_madd_epi16(sum, _mm512_set1_epi16(1)));
    }
}

/// Adds the products of groups, from group `first`; `pairs_fit` tells whether
/// the sums of pairs fit i16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn add_groups<const R: usize>(
    acc: &mut [__m512i; R],
    a: &Gathered<R>,
    first: usize,
    groups: &[Group],
    column: usize,
    pairs_fit: bool,
) {
    assert!(first + groups.len() <= a.len());
    for (g, group) in groups.iter().enumerate() {
        let b = load(group, column);
        let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b));
        let odd = _mm512_srai_epi16::<8>(b);
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `g < groups.len()`, so that `first + g < a.len()`.
            let a = _mm512_set1_epi32(unsafe { a.word(r, first + g) });
            let sum = if pairs_fit {
                _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1))
            } else {
                let a_even = _mm512_and_si512(a, _mm512_set1_epi16(0xff));
                let a_odd = _mm512_srli_epi16::<8>(a);
                _mm512_add_epi32(_mm512_madd_epi16(a_even, even), _mm512_madd_epi16(a_odd, odd))
            };
            *acc = _mm512_add_epi32(*acc, sum);
        }
    }
}

/// Two blocks of columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load(group: &Group, column: usize) -> __m512i {
    let columns: &[[i8; KR]; WIDTH] = group.0[column..].first_chunk().expect("columns of NR");
    // SAFETY: `columns` is 64 readable bytes.
    unsafe { _mm512_loadu_si512(columns.as_ptr().cast()) }
}

/// Not inlined: one epilogue serves the tiles of every height.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn finish(epilogue: &mut Epilogue<'_>, acc: &[[i32; NR]], first: usize) {
    epilogue.store(acc, first, 0);
}
