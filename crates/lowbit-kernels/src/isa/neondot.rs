//! NEON with the dot product instructions: `sdot` multiplies i8 by i8 and sums
//! groups of four into i32.
//!
//! Activations become signed as in [`neon`].

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::Kernels;
use super::neon::{self, LANES};
use crate::block::Multiply;
use crate::pack::{KR, last_group};
use crate::rows::Rows;
use crate::tile::{Epilogue, Panel, Tiles};

pub(super) const KERNELS: Kernels = Kernels {
    name: "neondot",
    detected: || is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod"),
    tile_rows: ROWS,
    multiply: Multiply::Tiles(tile),
    loops: neon::KERNELS.loops,
    product: neon::KERNELS.product,
};

/// 6 rows by 4 vectors of columns: 24 accumulators, 4 vectors of weights and a
/// broadcast activation of the 32 registers.
const ROWS: usize = 6;
/// Columns of one tile: half a panel.
const WIDTH: usize = 4 * LANES;

#[target_feature(enable = "neon,dotprod")]
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
#[target_feature(enable = "neon,dotprod")]
fn sized<const R: usize>(
    rows: &Rows<'_>,
    first: usize,
    panel: &Panel<'_>,
    column: usize,
    epilogue: &mut Epilogue<'_>,
) {
    let depth = rows.depth();
    let mut acc = [[vdupq_n_s32(0); 4]; R];
    for tap in 0..rows.taps() {
        let a = rows.get::<R>(first, tap);
        let (whole, last) = panel.groups(tap).split_at(depth / KR);
        for (g, group) in whole.iter().enumerate() {
            let b = neon::load::<4>(group, column);
            for (acc, a) in acc.iter_mut().zip(&a) {
                // SAFETY: each row has `depth` bytes and `g < depth / KR`, so the four
                // bytes from `KR * g` lie within it.
                let word = unsafe { a.as_ptr().add(KR * g).cast::<u32>().read_unaligned() };
                dot(acc, word, b);
            }
        }
        if let [group] = last {
            let b = neon::load::<4>(group, column);
            // Apart from the accumulators, which stay in registers only in a loop that is unrolled.
            let words = a.map(|a| u32::from_le_bytes(last_group(&a[depth - depth % KR..])));
            for (acc, word) in acc.iter_mut().zip(words) {
                dot(acc, word, b);
            }
        }
    }
    let correction = neon::correction::<WIDTH>(panel, column);
    let mut sums = [[0i32; WIDTH]; R];
    for (sums, acc) in sums.iter_mut().zip(acc) {
        let (sums, correction) = (sums.as_chunks_mut::<LANES>().0, correction.as_chunks::<LANES>().0);
        for ((sums, acc), correction) in sums.iter_mut().zip(acc).zip(correction) {
            // SAFETY: `sums` is 16 writable bytes and `correction` 16 readable ones.
            unsafe { vst1q_s32(sums.as_mut_ptr(), vaddq_s32(acc, vld1q_s32(correction.as_ptr()))) };
        }
    }
    neon::finish(epilogue, &sums, first, column);
}

/// Adds the dot products of four activations, the bytes of `word`, with the
/// four weights of each column.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(acc: &mut [int32x4_t; 4], word: u32, weights: [int8x16_t; 4]) {
    let a = neon::broadcast_signed(word);
    for (acc, b) in acc.iter_mut().zip(weights) {
        // SAFETY: `sdot` reads and writes these registers alone, and this function has
        // the feature that it needs.
        unsafe {
            asm!(
                "sdot {acc:v}.4s, {b:v}.16b, {a:v}.16b",
                acc = inlateout(vreg) *acc,
                b = in(vreg) b,
                a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
    }
}
