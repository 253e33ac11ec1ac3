//! AVX-512 with VNNI: `vpdpbusd` multiplies u8 by i8 and sums groups of four
//! into i32 without saturating.

use std::arch::x86_64::*;
use std::array;

use super::Kernels;
use crate::loops;
use crate::pack::{Group, KR, NR, last_group};
use crate::product;
use crate::rows::Rows;
use crate::tile::{Epilogue, Panel};

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
    loops: loops::AVX512VNNI,
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
    for tap in 0..rows.taps() {
        let a = rows.get::<R>(first, tap);
        let (whole, last) = panel.groups(tap).split_at(depth / KR);
        for (g, group) in whole.iter().enumerate() {
            let b = load::<V>(group);
            for (acc, a) in acc.iter_mut().zip(&a) {
                // SAFETY: each row has `depth` bytes and `g < depth / KR`, so the four
                // bytes from `KR * g` lie within it.
                let word = unsafe { a.as_ptr().add(KR * g).cast::<i32>().read_unaligned() };
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm512_dpbusd_epi32(*acc, _mm512_set1_epi32(word), b);
                }
            }
        }
        if let [group] = last {
            let b = load::<V>(group);
            // Apart from the accumulators, which stay in registers only in a loop that is unrolled.
            let words = a.map(|a| i32::from_le_bytes(last_group(&a[depth - depth % KR..])));
            for (acc, word) in acc.iter_mut().zip(words) {
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm512_dpbusd_epi32(*acc, _mm512_set1_epi32(word), b);
                }
            }
        }
    }
    let mut sums = [[0i32; W]; R];
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(acc) {
            // SAFETY: `sums` is 64 writable bytes.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), acc) };
        }
    }
    finish(epilogue, &sums, first, 0);
}

/// Not inlined: one epilogue serves the tiles of every height.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn finish<const W: usize>(epilogue: &mut Epilogue<'_>, acc: &[[i32; W]], first: usize, column: usize) {
    epilogue.store(acc, first, column);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load<const V: usize>(group: &Group) -> [__m512i; V] {
    let columns = group.0.as_chunks::<LANES>().0;
    // SAFETY: each of the `columns` is 16 groups of 4 bytes: 64 readable bytes.
    array::from_fn(|v| unsafe { _mm512_loadu_si512(columns[v].as_ptr().cast()) })
}
