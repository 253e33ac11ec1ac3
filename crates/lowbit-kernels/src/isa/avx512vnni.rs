//! AVX-512 with VNNI: `vpdpbusd` multiplies u8 by i8 and sums groups of four
//! into i32 without saturating.

mod columns;
mod depthwise;
mod low_bit;
pub(super) mod saturate;

use std::arch::x86_64::*;
use std::hint::black_box;
use std::{array, slice};

use self::saturate::Codes;
use super::finish512::finish;
use super::{Kernels, lookup, low_bit512};
use crate::block::Multiply;
use crate::loops::{self, Loops};
use crate::pack::{Group, KR, NR, last_group};
use crate::product;
use crate::rows::Rows;
use crate::tile::{Epilogue, Panel, Tiles};

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
    multiply: Multiply::Tiles(tile),
    product: product::AVX512,
    loops: Loops {
        depthwise: depthwise::depthwise,
        map: lookup::map,
        low_bit_row: low_bit512::row,
        low_bit_unpack: low_bit512::unpack,
        low_bit_integers: low_bit::integers,
        ..loops::AVX512VNNI
    },
};

/// 12 rows by 2 vectors of columns: 24 accumulators, 2 vectors of weights and
/// one broadcast activation of the 32 registers.
pub(super) const ROWS: usize = 12;
/// Groups whose addresses share a base, a multiple of the number of chains.
const UNROLLED: usize = 4;
/// Columns of one vector of i32.
const LANES: usize = 16;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn tile(rows: &Rows<'_>, tiles: Tiles, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>) {
    macro_rules! by_height {
        ($($rows:literal)*) => {
            match (tiles.height, panel.width() <= LANES) {
                $(($rows, true) => sized::<$rows, 1, LANES, { chains($rows) }>(rows, tiles, panel, epilogue),
                ($rows, false) => sized::<$rows, 2, NR, { chains($rows) }>(rows, tiles, panel, epilogue),)*
                (height, _) => unreachable!("{height} rows in a tile of {ROWS}"),
            }
        };
    }
    by_height!(1 2 3 4 5 6 7 8 9 10 11 12)
}

/// Rows of the lowest tile that loads the next panel ahead. Lower ones are bound by what they load
/// themselves.
const AHEAD: usize = 4;

/// Sums whose vectors do not straddle cache lines: what is read right after it
/// was written then need not wait for the cache.
#[repr(align(64))]
struct Aligned<T>(T);

/// Parts of the depth with accumulators of their own, so that even a tile of few
/// rows has as many sums in flight as the dot products take cycles.
const fn chains(rows: usize) -> usize {
    match rows {
        1 => 4,
        2..=3 => 2,
        _ => 1,
    }
}

/// Tiles of `R` rows by `V` vectors, that is `W = V * LANES` columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn sized<const R: usize, const V: usize, const W: usize, const C: usize>(
    rows: &Rows<'_>,
    tiles: Tiles,
    panel: &Panel<'_>,
    epilogue: &mut Epilogue<'_>,
) {
    const { assert!(W == V * LANES) };
    let codes = Codes::<V>::new(epilogue, tiles.first..tiles.first + R * tiles.count);
    let start = codes.as_ref().map_or([_mm512_setzero_si512(); V], |codes| codes.bias);
    for (tile, first) in tiles.firsts().enumerate() {
        let acc = sums::<R, V, C>(rows, first, panel, tiles.before + tile, start);
        if let Some(codes) = &codes {
            // SAFETY: the epilogue is used by nobody else, and has these rows.
            unsafe { codes.store::<R, W>(&acc, tile * R) };
            continue;
        }
        let mut sums = Aligned([[0i32; W]; R]);
        for (sums, acc) in sums.0.iter_mut().zip(&acc) {
            for (sums, acc) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
                // SAFETY: `sums` is 64 writable bytes.
                unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), *acc) };
            }
        }
        finish(epilogue, &sums.0, first, 0);
    }
}

/// The sums of tile `tile`, of `R` rows by `V` vectors, which begin with `start`, in `C` chains.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn sums<const R: usize, const V: usize, const C: usize>(
    rows: &Rows<'_>,
    first: usize,
    panel: &Panel<'_>,
    tile: usize,
    start: [__m512i; V],
) -> [[__m512i; V]; R] {
    let depth = rows.depth();
    let mut chains = [[[_mm512_setzero_si512(); V]; R]; C];
    chains[0] = [start; R];
    // In memory for good: kept in registers, many sums of addresses would be, each stored in turn,
    // and more stores than the CPU holds keep it from running ahead into the next tile.
    let mut starts = rows.starts::<R>(first);
    let starts = &*black_box(&mut starts);
    let (mut ahead, step) = match if R < AHEAD { &[] } else { panel.ahead(tile) } {
        [] => (panel.all_groups().as_ptr(), 0),
        groups => (groups.as_ptr(), 1),
    };
    for (tap, &offset) in rows.offsets().iter().enumerate() {
        let (whole, last) = panel.groups(tap).split_at(depth / KR);
        let (together, rest) = whole.as_chunks::<UNROLLED>();
        macro_rules! add {
            ($chain:expr, $at:expr, $group:expr) => {
                let b = load::<V>($group);
                for (acc, start) in $chain.iter_mut().zip(starts) {
                    // SAFETY: `depth` bytes can be read at the tap's offset, and `$at` is beyond it
                    // by a multiple of `KR` that is less than `depth - depth % KR`.
                    let word = unsafe { start.add($at).cast::<i32>().read_unaligned() };
                    for (acc, b) in acc.iter_mut().zip(b) {
                        *acc = _mm512_dpbusd_epi32(*acc, _mm512_set1_epi32(word), b);
                    }
                }
            };
        }
        let mut at = offset;
        for groups in together {
            if R >= AHEAD {
                // Any address may be given: it is not read.
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast::<i8>().wrapping_add(64));
                ahead = ahead.wrapping_add(step);
            }
            for (u, group) in groups.iter().enumerate() {
                add!(chains[u % C], at + KR * u, group);
            }
            at += KR * UNROLLED;
        }
        for group in rest {
            add!(chains[0], at, group);
            at += KR;
        }
        if let [group] = last {
            let b = load::<V>(group);
            // Apart from the accumulators, which stay in registers only in a loop that is unrolled.
            let mut words = [0; R];
            for (word, start) in words.iter_mut().zip(starts) {
                // SAFETY: `depth` bytes can be read at the tap's offset; these are the last.
                let bytes = unsafe { slice::from_raw_parts(start.add(at), depth % KR) };
                *word = i32::from_le_bytes(last_group(bytes));
            }
            for (acc, word) in chains[0].iter_mut().zip(words) {
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm512_dpbusd_epi32(*acc, _mm512_set1_epi32(word), b);
                }
            }
        }
    }
    let (acc, others) = chains.split_first_mut().expect("at least one chain");
    for other in others {
        for (acc, other) in acc.as_flattened_mut().iter_mut().zip(other.as_flattened()) {
            *acc = _mm512_add_epi32(*acc, *other);
        }
    }
    *acc
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load<const V: usize>(group: &Group) -> [__m512i; V] {
    let columns = group.0.as_chunks::<LANES>().0;
    // SAFETY: each of the `columns` is 16 groups of 4 bytes: 64 readable bytes.
    array::from_fn(|v| unsafe { _mm512_loadu_si512(columns[v].as_ptr().cast()) })
}
