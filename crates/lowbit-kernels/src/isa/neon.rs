//! NEON, which every AArch64 CPU has: i8 products in i16 (`smull`), of which
//! pairs are summed into i32 (`sadalp`).
//!
//! Activations become signed by `x ^ 0x80`, which is `x - 128`, so that each
//! product lies in -16256..=16384. What that takes from a sum, 128 times the sum
//! of the column's weights, is added at the end.

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;
use std::array;

use super::Kernels;
use crate::block::Multiply;
use crate::loops;
use crate::pack::{Group, KR, last_group};
use crate::product;
use crate::rows::Rows;
use crate::tile::{Epilogue, Panel, Tiles};

pub(super) const KERNELS: Kernels = Kernels {
    name: "neon",
    detected: || is_aarch64_feature_detected!("neon"),
    tile_rows: ROWS,
    multiply: Multiply::Tiles(tile),
    // AArch64 compiles all code for NEON.
    loops: loops::SCALAR,
    product: product::PORTABLE,
};

/// 6 rows by 2 vectors of weights: 24 accumulators, 2 vectors of weights, a
/// broadcast activation and the products of the 32 registers.
const ROWS: usize = 6;
/// Columns of one vector of i32.
pub(super) const LANES: usize = 4;
/// Columns of one tile.
const WIDTH: usize = 2 * LANES;

#[target_feature(enable = "neon")]
fn tile(rows: &Rows<'_>, tiles: Tiles, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>) {
    for first in tiles.firsts() {
        for column in (0..panel.width()).step_by(WIDTH) {
            match tiles.height {
                1 => sized::<1>(rows, first, panel, column, epilogue),
                2 => sized::<2>(rows, first, panel, column, epilogue),
                3 => sized::<3>(rows, first, panel, column, epilogue),
                4 => sized::<4>(rows, first, panel, column, epilogue),
                5 => sized::<5>(rows, first, panel, column, epilogue),
                6 => sized::<6>(rows, first, panel, column, epilogue),
                height => unreachable!("{height} rows in a tile of {ROWS}"),
            }
        }
    }
}

/// A tile of `R` rows by the `WIDTH` columns from `column` of the panel.
#[target_feature(enable = "neon")]
fn sized<const R: usize>(
    rows: &Rows<'_>,
    first: usize,
    panel: &Panel<'_>,
    column: usize,
    epilogue: &mut Epilogue<'_>,
) {
    let depth = rows.depth();
    // The sums of two columns each, by halves of groups.
    let mut acc = [[[vdupq_n_s32(0); 2]; 2]; R];
    for tap in 0..rows.taps() {
        let a = rows.get::<R>(first, tap);
        let (whole, last) = panel.groups(tap).split_at(depth / KR);
        for (g, group) in whole.iter().enumerate() {
            let b = load::<2>(group, column);
            for (acc, a) in acc.iter_mut().zip(&a) {
                // SAFETY: each row has `depth` bytes and `g < depth / KR`, so the four
                // bytes from `KR * g` lie within it.
                let word = unsafe { a.as_ptr().add(KR * g).cast::<u32>().read_unaligned() };
                dot(acc, word, b);
            }
        }
        if let [group] = last {
            let b = load::<2>(group, column);
            // Apart from the accumulators, which stay in registers only in a loop that is unrolled.
            let words = a.map(|a| u32::from_le_bytes(last_group(&a[depth - depth % KR..])));
            for (acc, word) in acc.iter_mut().zip(words) {
                dot(acc, word, b);
            }
        }
    }
    let correction = correction::<WIDTH>(panel, column);
    let mut sums = [[0i32; WIDTH]; R];
    for (sums, acc) in sums.iter_mut().zip(acc) {
        let (sums, correction) = (sums.as_chunks_mut::<LANES>().0, correction.as_chunks::<LANES>().0);
        for ((sums, acc), correction) in sums.iter_mut().zip(acc).zip(correction) {
            let acc = vpaddq_s32(acc[0], acc[1]);
            // SAFETY: `sums` is 16 writable bytes and `correction` 16 readable ones.
            unsafe { vst1q_s32(sums.as_mut_ptr(), vaddq_s32(acc, vld1q_s32(correction.as_ptr()))) };
        }
    }
    finish(epilogue, &sums, first, column);
}

/// Not inlined: one epilogue serves the tiles of every height.
#[inline(never)]
#[target_feature(enable = "neon")]
pub(super) fn finish<const W: usize>(
    epilogue: &mut Epilogue<'_>,
    acc: &[[i32; W]],
    first: usize,
    column: usize,
) {
    epilogue.store(acc, first, column);
}

/// Adds the dot products of four activations, the bytes of `word`, with the
/// four weights of each column.
#[inline]
#[target_feature(enable = "neon")]
fn dot(acc: &mut [[int32x4_t; 2]; 2], word: u32, weights: [int8x16_t; 2]) {
    let a = broadcast_signed(word);
    for ([low, high], b) in acc.iter_mut().zip(weights) {
        *low = vpadalq_s16(*low, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
        *high = vpadalq_s16(*high, vmull_high_s8(a, b));
    }
}

/// `x - 128` of the four bytes `x` of `word`, for every column of a vector.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn broadcast_signed(word: u32) -> int8x16_t {
    vreinterpretq_s8_u32(veorq_u32(vdupq_n_u32(word), vdupq_n_u32(0x8080_8080)))
}

/// What `x - 128` in place of `x` takes from the sums of the `W` columns from
/// `column`, modulo 2^32.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn correction<const W: usize>(panel: &Panel<'_>, column: usize) -> [i32; W] {
    let sums = panel.column_sums();
    array::from_fn(|j| sums.get(column + j).map_or(0, |sum| sum.wrapping_mul(128)))
}

/// `V` vectors of the columns from `column`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load<const V: usize>(group: &Group, column: usize) -> [int8x16_t; V] {
    let columns = group.0[column..].as_chunks::<LANES>().0;
    // SAFETY: each of the `columns` is 4 groups of 4 bytes: 16 readable bytes.
    array::from_fn(|v| unsafe { vld1q_s8(columns[v].as_ptr().cast()) })
}
