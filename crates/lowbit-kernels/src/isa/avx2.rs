//! AVX2: bytes are widened to 16 bits and multiplied by `vpmaddwd`, which
//! cannot saturate on them.

use std::arch::x86_64::*;
use std::array;

use super::Kernels;
use crate::loops;
use crate::pack::{Group, KR};
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

/// 4 rows by 2 vectors of columns: 8 accumulators, 4 vectors of widened weights
/// and 2 of widened activations of the 16 registers.
const ROWS: usize = 4;
/// Columns of one vector of i32.
const LANES: usize = 8;
/// Columns of one tile: half a panel.
const WIDTH: usize = 2 * LANES;

#[target_feature(enable = "avx2")]
fn tile(rows: &Rows<'_>, first: usize, count: usize, panel: &Panel<'_>, epilogue: &mut Epilogue<'_>) {
    for column in (0..panel.width()).step_by(WIDTH) {
        match count {
            1 => sized::<1>(rows, first, panel, column, epilogue),
            2 => sized::<2>(rows, first, panel, column, epilogue),
            3 => sized::<3>(rows, first, panel, column, epilogue),
            4 => sized::<4>(rows, first, panel, column, epilogue),
            _ => unreachable!("{count} rows in a tile of {ROWS}"),
        }
    }
}

/// A tile of `R` rows by the `WIDTH` columns from `column` of the panel.
#[target_feature(enable = "avx2")]
fn sized<const R: usize>(
    rows: &Rows<'_>,
    first: usize,
    panel: &Panel<'_>,
    column: usize,
    epilogue: &mut Epilogue<'_>,
) {
    let depth = rows.depth();
    let mut acc = [[_mm256_setzero_si256(); 2]; R];
    for tap in 0..rows.taps() {
        let a = rows.get::<R>(first, tap);
        let (whole, last) = panel.groups(tap).split_at(depth / KR);
        for (g, group) in whole.iter().enumerate() {
            let b = load(group, column);
            for (acc, a) in acc.iter_mut().zip(&a) {
                // SAFETY: each row has `depth` bytes and `g < depth / KR`, so the four
                // bytes from `KR * g` lie within it.
                let word = unsafe { a.as_ptr().add(KR * g).cast::<i32>().read_unaligned() };
                dot(acc, word, b);
            }
        }
        if let [group] = last {
            let b = load(group, column);
            for (acc, a) in acc.iter_mut().zip(&a) {
                let mut word = [0; KR];
                word[..depth % KR].copy_from_slice(&a[depth - depth % KR..]);
                dot(acc, i32::from_le_bytes(word), b);
            }
        }
    }
    let mut sums = [[0i32; WIDTH]; R];
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
            // SAFETY: `sums` is 32 writable bytes.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), acc) };
        }
    }
    finish(epilogue, &sums, first, column);
}

/// Not inlined: one epilogue serves the tiles of every height.
#[inline(never)]
#[target_feature(enable = "avx2")]
fn finish<const W: usize>(epilogue: &mut Epilogue<'_>, acc: &[[i32; W]], first: usize, column: usize) {
    epilogue.store(acc, first, column);
}

/// Adds the dot products of four activations, the bytes of `word`, with the
/// four weights of each column. Even and odd bytes are widened apart, so that
/// each 32-bit lane stays one column.
#[inline]
#[target_feature(enable = "avx2")]
fn dot(acc: &mut [__m256i; 2], word: i32, weights: [[__m256i; 2]; 2]) {
    let bytes = _mm256_set1_epi32(word);
    let even = _mm256_and_si256(bytes, _mm256_set1_epi16(0xff));
    let odd = _mm256_srli_epi16::<8>(bytes);
    for (acc, [b_even, b_odd]) in acc.iter_mut().zip(weights) {
        let sum = _mm256_add_epi32(_mm256_madd_epi16(even, b_even), _mm256_madd_epi16(odd, b_odd));
        *acc = _mm256_add_epi32(*acc, sum);
    }
}

/// The `WIDTH` columns from `column`: even and odd bytes of each, sign-extended.
#[inline]
#[target_feature(enable = "avx2")]
fn load(group: &Group, column: usize) -> [[__m256i; 2]; 2] {
    let columns = group.0[column..][..WIDTH].as_chunks::<LANES>().0;
    array::from_fn(|v| {
        // SAFETY: each of the `columns` is 8 groups of 4 bytes: 32 readable bytes.
        let b = unsafe { _mm256_loadu_si256(columns[v].as_ptr().cast()) };
        [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)), _mm256_srai_epi16::<8>(b)]
    })
}
