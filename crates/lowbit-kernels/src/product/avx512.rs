//! AVX-512: 8 rows by 3 vectors of columns.

use std::arch::x86_64::*;

use super::{Begin, Block, LINE, Tile, UNROLLED};

pub(crate) const AVX512: Tile = Tile { rows: ROWS, cols: 3 * LANES, step: LANES, run: tile };

/// 8 rows by 3 vectors: 24 accumulators, 3 vectors of the right matrix and one
/// broadcast element of the left one of the 32 registers.
const ROWS: usize = 8;
const LANES: usize = 16;

/// # Safety
///
/// What [`Block`] says.
#[target_feature(enable = "avx512f")]
unsafe fn tile(block: &Block<'_>) {
    macro_rules! by_size {
        ($($rows:literal)*) => {
            // SAFETY: the contract is the same.
            unsafe {
                match (block.rows, block.cols.div_ceil(LANES)) {
                    $(($rows, 1) => sized::<$rows, 1>(block),
                    ($rows, 2) => sized::<$rows, 2>(block),
                    ($rows, 3) => sized::<$rows, 3>(block),)*
                    (rows, vectors) => unreachable!("{rows} rows by {vectors} vectors"),
                }
            }
        };
    }
    by_size!(1 2 3 4 5 6 7 8)
}

/// A tile of `R` rows by `V` vectors, the last of which may be partial.
///
/// # Safety
///
/// What [`Block`] says, of `R` rows and more than `V - 1` vectors of columns.
#[target_feature(enable = "avx512f")]
unsafe fn sized<const R: usize, const V: usize>(block: &Block<'_>) {
    let last = u16::MAX >> (V * LANES - block.cols);
    let mask = |v: usize| if v + 1 == V { last } else { u16::MAX };
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    for (r, acc) in acc.iter_mut().enumerate() {
        for (v, acc) in acc.iter_mut().enumerate() {
            *acc = match &block.begin {
                Begin::Rows(values) => _mm512_set1_ps(values[r]),
                // SAFETY: of each row, `cols` elements can be read, and no others are.
                Begin::At(start, stride) => unsafe {
                    _mm512_maskz_loadu_ps(mask(v), start.add(r * stride + v * LANES))
                },
            };
        }
    }
    let (starts, depth) = (block.left.starts::<R>(block.first), block.left.depth());
    let (mut right, mut ahead) = (block.right.as_ptr(), block.ahead);
    macro_rules! step {
        ($at:expr) => {
            let mut x = [_mm512_setzero_ps(); V];
            for (v, x) in x.iter_mut().enumerate() {
                // SAFETY: `right` points to row `k`, which has all elements that the
                // mask admits.
                *x = unsafe { _mm512_maskz_loadu_ps(mask(v), right.add(v * LANES)) };
            }
            right = right.wrapping_add(block.right_stride);
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `depth` elements can be read from each start at each tap's offset,
                // which `$at` is beyond by fewer.
                let w = _mm512_set1_ps(unsafe { *starts[r].add($at) });
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = _mm512_fmadd_ps(w, x, *acc);
                }
            }
        };
    }
    for &offset in block.left.offsets() {
        let mut at = offset;
        for _ in 0..depth / UNROLLED {
            for _ in 0..block.lines {
                // Any address may be prefetched.
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                ahead = ahead.wrapping_add(LINE);
            }
            step!(at);
            step!(at + 1);
            step!(at + 2);
            step!(at + 3);
            at += UNROLLED;
        }
        for _ in 0..depth % UNROLLED {
            step!(at);
            at += 1;
        }
    }
    let (lo, hi) = (_mm512_set1_ps(block.lo), _mm512_set1_ps(block.hi));
    for (r, acc) in acc.into_iter().enumerate() {
        for (v, acc) in acc.into_iter().enumerate() {
            // The second operand is the result where one is NaN.
            let y = _mm512_min_ps(hi, _mm512_max_ps(lo, acc));
            // SAFETY: row `r` of `out` has all elements that the mask admits.
            unsafe {
                _mm512_mask_storeu_ps(block.out.add(r * block.out_stride + v * LANES), mask(v), y);
            }
        }
    }
}
