//! AVX-512 without VNNI: the scheme of `avx2`, on vectors of twice the width.

use std::arch::x86_64::*;
use std::array;

use super::finish512::finish;
use super::gathered::{GROUPS, Gathered};
use super::{Kernels, depthwise256, lookup, low_bit256, low_bit512};
use crate::block::Multiply;
use crate::loops::{self, Loops};
use crate::pack::limits::{BLOCK, BLOCKS, Limits, RUN};
use crate::pack::{Group, KR, NR};
use crate::product;
use crate::rows::Rows;
use crate::tile::{Epilogue, Panel, Tiles};

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
    multiply: Multiply::Tiles(tile),
    loops: Loops {
        depthwise: depthwise256::depthwise,
        map: lookup::map,
        low_bit_row: low_bit512::row,
        low_bit_unpack: low_bit512::unpack,
        low_bit_integers: low_bit256::integers,
        ..loops::AVX512
    },
    product: product::AVX512,
};

/// 12 rows by one vector of columns: 12 accumulators, a run of 4 vectors of
/// weights, the ones and intermediate results of the 32 registers.
const ROWS: usize = 12;
/// Columns of a vector: two blocks.
const WIDTH: usize = 2 * BLOCK;

/// The most products of groups by vectors of columns of a tile whose activations
/// are not worth gathering.
const SHALLOW: usize = 12;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn tile(rows: &Rows<'_>, tiles: Tiles, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>) {
    for first in tiles.firsts() {
        macro_rules! by_count {
            ($($rows:literal)*) => {
                match tiles.height {
                    $($rows => sized::<$rows>(rows, first, panel, epilogue),)*
                    height => unreachable!("{height} rows in a tile of {ROWS}"),
                }
            };
        }
        by_count!(1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

/// A tile of `R` rows by the columns of the panel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn sized<const R: usize>(rows: &Rows<'_>, first: usize, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>) {
    let vectors = panel.width().div_ceil(WIDTH);
    if rows.depth().is_multiple_of(KR) && panel.all_groups().len() * vectors <= SHALLOW {
        return shallow::<R>(rows, first, panel, epilogue);
    }
    let mut sums = [[0i32; NR]; R];
    let mut a = Gathered::<R>::new();
    let mut maxima = [0; GROUPS / RUN];
    let (mut weights, mut limits) = (panel.all_groups(), panel.limits());
    let starts = rows.starts::<R>(first);
    let (mut taps, mut done) = (rows.offsets().iter(), 0);
    let mut tap = taps.next();
    loop {
        while let Some(&offset) = tap {
            let len = (rows.depth() - done).min(a.room());
            // SAFETY: `depth` bytes can be read at each start and tap.
            unsafe { a.extend(&starts, offset + done, len) };
            done += len;
            if done < rows.depth() {
                break;
            }
            (tap, done) = (taps.next(), 0);
        }
        a.maxima(&mut maxima);
        let (now, later) = weights.split_at(a.len());
        for column in (0..panel.width()).step_by(WIDTH) {
            let acc = products(&a, &maxima, now, limits, column);
            for (sums, acc) in sums.iter_mut().zip(acc) {
                let sums: &mut [i32; WIDTH] = sums[column..].first_chunk_mut().expect("columns of NR");
                let sums = sums.as_mut_ptr().cast::<__m512i>();
                // SAFETY: `sums` is as many readable and writable bytes as `acc` has.
                unsafe { sums.write_unaligned(_mm512_add_epi32(sums.read_unaligned(), acc)) };
            }
        }
        if later.is_empty() {
            break;
        }
        (weights, limits) = (later, &limits[GROUPS / RUN..]);
        a.clear();
    }
    finish(epilogue, &sums, first, 0);
}

/// [`sized`], of rows that are a multiple of [`KR`] deep and are read where they lie.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn shallow<const R: usize>(rows: &Rows<'_>, first: usize, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>) {
    let starts = rows.starts::<R>(first);
    for column in (0..panel.width()).step_by(WIDTH) {
        let mut acc = [_mm512_setzero_si512(); R];
        for (tap, &offset) in rows.offsets().iter().enumerate() {
            for (g, group) in panel.groups(tap).iter().enumerate() {
                let b = load(group, column);
                let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b));
                let odd = _mm512_srai_epi16::<8>(b);
                for (acc, start) in acc.iter_mut().zip(starts) {
                    // SAFETY: `depth` bytes can be read at the tap's offset, four for each group.
                    let word = unsafe { start.add(offset + KR * g).cast::<i32>().read_unaligned() };
                    *acc = add_widened(*acc, _mm512_set1_epi32(word), even, odd);
                }
            }
        }
        let mut sums = [[0i32; WIDTH]; R];
        for (sums, acc) in sums.iter_mut().zip(acc) {
            // SAFETY: `sums` is as many writable bytes as `acc` has.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), acc) };
        }
        finish(epilogue, &sums, first, column);
    }
}

/// The products of what is gathered with as many groups of weights, of one vector of columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn products<const R: usize>(
    a: &Gathered<R>,
    maxima: &[u8; GROUPS / RUN],
    weights: &[Group],
    limits: &[[Limits; BLOCKS]],
    column: usize,
) -> [__m512i; R] {
    assert_eq!(weights.len(), a.len());
    let mut acc = [_mm512_setzero_si512(); R];
    for (i, ((run, &max), limits)) in weights.chunks(RUN).zip(maxima).zip(limits).enumerate() {
        let limits = limits_of(limits, column);
        match run.first_chunk() {
            Some(run) if max <= limits.run => add_run(&mut acc, a, i * RUN, run, column),
            _ if max <= limits.pair => add_pairs(&mut acc, a, i * RUN, run, column),
            _ => add_each(&mut acc, a, i * RUN, run, column),
        }
    }
    acc
}

/// What both blocks of a vector allow.
#[inline(always)]
fn limits_of(limits: &[Limits; BLOCKS], column: usize) -> Limits {
    let [a, b] = [limits[column / BLOCK], limits[column / BLOCK + 1]];
    Limits { run: a.run.min(b.run), pair: a.pair.min(b.pair) }
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

/// Adds the products of groups, from group `first`, whose sums of pairs fit i16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn add_pairs<const R: usize>(
    acc: &mut [__m512i; R],
    a: &Gathered<R>,
    first: usize,
    groups: &[Group],
    column: usize,
) {
    assert!(first + groups.len() <= a.len());
    for (g, group) in groups.iter().enumerate() {
        let b = load(group, column);
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `g < groups.len()`, so that `first + g < a.len()`.
            let a = _mm512_set1_epi32(unsafe { a.word(r, first + g) });
            let sum = _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1));
            *acc = _mm512_add_epi32(*acc, sum);
        }
    }
}

/// Adds the products of groups, from group `first`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn add_each<const R: usize>(
    acc: &mut [__m512i; R],
    a: &Gathered<R>,
    first: usize,
    groups: &[Group],
    column: usize,
) {
    assert!(first + groups.len() <= a.len());
    for (g, group) in groups.iter().enumerate() {
        let b = load(group, column);
        let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b));
        let odd = _mm512_srai_epi16::<8>(b);
        for (r, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `g < groups.len()`, so that `first + g < a.len()`.
            let a = _mm512_set1_epi32(unsafe { a.word(r, first + g) });
            *acc = add_widened(*acc, a, even, odd);
        }
    }
}

/// Adds the products of the bytes of `a` with weights in 16 bits, the even and the odd ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn add_widened(acc: __m512i, a: __m512i, even: __m512i, odd: __m512i) -> __m512i {
    let a_even = _mm512_and_si512(a, _mm512_set1_epi16(0xff));
    let a_odd = _mm512_srli_epi16::<8>(a);
    let sum = _mm512_add_epi32(_mm512_madd_epi16(a_even, even), _mm512_madd_epi16(a_odd, odd));
    _mm512_add_epi32(acc, sum)
}

/// Two blocks of columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load(group: &Group, column: usize) -> __m512i {
    let columns: &[[i8; KR]; WIDTH] = group.0[column..].first_chunk().expect("columns of NR");
    // SAFETY: `columns` is 64 readable bytes.
    unsafe { _mm512_loadu_si512(columns.as_ptr().cast()) }
}
