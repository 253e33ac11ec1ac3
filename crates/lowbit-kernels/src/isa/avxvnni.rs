//! AVX-VNNI, for CPUs without AVX-512: `vpdpbusd` multiplies u8 by i8 and sums
//! groups of four into i32 without saturating.

use std::arch::x86_64::*;
use std::array;

use super::finish256::finish;
use super::{Kernels, avx2};
use crate::block::Multiply;
use crate::pack::{Group, KR, last_group};
use crate::rows::Rows;
use crate::tile::{Epilogue, Panel, Tiles};

pub(super) const KERNELS: Kernels = Kernels {
    name: "avxvnni",
    detected: || (avx2::KERNELS.detected)() && is_x86_feature_detected!("avxvnni"),
    tile_rows: ROWS,
    multiply: Multiply::Tiles(tile),
    loops: avx2::KERNELS.loops,
    product: avx2::KERNELS.product,
};

/// 6 rows by 2 vectors of columns: 12 accumulators, 2 vectors of weights and
/// one broadcast activation of the 16 registers.
const ROWS: usize = 6;
/// Columns of one vector of i32.
const LANES: usize = 8;
/// Columns of one tile: half a panel.
const WIDTH: usize = 2 * LANES;

#[target_feature(enable = "avx2,avxvnni")]
fn tile(rows: &Rows<'_>, tiles: Tiles, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>) {
    for first in tiles.firsts() {
        for column in (0..panel.width()).step_by(WIDTH) {
            macro_rules! by_count {
                ($($rows:literal)*) => {
                    match tiles.height {
                        $($rows => sized::<$rows, { chains($rows) }>(rows, first, panel, column, epilogue),)*
                        height => unreachable!("{height} rows in a tile of {ROWS}"),
                    }
                };
            }
            by_count!(1 2 3 4 5 6);
        }
    }
}

/// Parts of the depth with accumulators of their own, so that even a tile of few
/// rows has as many sums in flight as the dot products take cycles.
const fn chains(rows: usize) -> usize {
    match rows {
        1 => 4,
        2..=3 => 2,
        _ => 1,
    }
}

/// A tile of `R` rows by the `WIDTH` columns from `column` of the panel, in `C` chains.
#[target_feature(enable = "avx2,avxvnni")]
fn sized<const R: usize, const C: usize>(
    rows: &Rows<'_>,
    first: usize,
    panel: &Panel<'_>,
    column: usize,
    epilogue: &mut Epilogue<'_>,
) {
    let depth = rows.depth();
    let mut chains = [[[_mm256_setzero_si256(); 2]; R]; C];
    for tap in 0..rows.taps() {
        let a = rows.get::<R>(first, tap);
        let (whole, last) = panel.groups(tap).split_at(depth / KR);
        let (together, rest) = whole.as_chunks::<C>();
        macro_rules! add {
            ($chain:expr, $g:expr, $group:expr) => {
                let b = load($group, column);
                for (acc, a) in $chain.iter_mut().zip(&a) {
                    // SAFETY: each row has `depth` bytes and `$g < depth / KR`, so the four
                    // bytes from `KR * $g` lie within it.
                    let word = unsafe { a.as_ptr().add(KR * $g).cast::<i32>().read_unaligned() };
                    for (acc, b) in acc.iter_mut().zip(b) {
                        *acc = _mm256_dpbusd_avx_epi32(*acc, _mm256_set1_epi32(word), b);
                    }
                }
            };
        }
        for (i, groups) in together.iter().enumerate() {
            for (c, (chain, group)) in chains.iter_mut().zip(groups).enumerate() {
                add!(chain, C * i + c, group);
            }
        }
        for (g, group) in (C * together.len()..).zip(rest) {
            add!(chains[0], g, group);
        }
        if let [group] = last {
            let b = load(group, column);
            // Apart from the accumulators, which stay in registers only in a loop that is unrolled.
            let words = a.map(|a| i32::from_le_bytes(last_group(&a[depth - depth % KR..])));
            for (acc, word) in chains[0].iter_mut().zip(words) {
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm256_dpbusd_avx_epi32(*acc, _mm256_set1_epi32(word), b);
                }
            }
        }
    }
    let (acc, others) = chains.split_first_mut().expect("at least one chain");
    for other in others {
        for (acc, other) in acc.as_flattened_mut().iter_mut().zip(other.as_flattened()) {
            *acc = _mm256_add_epi32(*acc, *other);
        }
    }
    let mut sums = [[0i32; WIDTH]; R];
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
            // SAFETY: `sums` is 32 writable bytes.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), *acc) };
        }
    }
    finish(epilogue, &sums, first, column);
}

/// The `WIDTH` columns from `column`.
#[inline]
#[target_feature(enable = "avx2")]
fn load(group: &Group, column: usize) -> [__m256i; 2] {
    let columns = group.0[column..][..WIDTH].as_chunks::<LANES>().0;
    // SAFETY: each of the `columns` is 8 groups of 4 bytes: 32 readable bytes.
    array::from_fn(|v| unsafe { _mm256_loadu_si256(columns[v].as_ptr().cast()) })
}
