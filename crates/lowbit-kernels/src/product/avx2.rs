//! AVX2 with FMA: 6 rows by 2 vectors of columns.

use std::arch::x86_64::*;

use super::{Begin, Block, LINE, Tile, UNROLLED};

pub(crate) const AVX2: Tile = Tile { rows: ROWS, cols: 2 * LANES, step: 2 * LANES, run: tile };

/// 6 rows by 2 vectors: 12 accumulators, 2 vectors of the right matrix and one
/// broadcast element of the left one of the 16 registers.
const ROWS: usize = 6;
const LANES: usize = 8;

/// # Safety
///
/// What [`Block`] says.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile(block: &Block<'_>) {
    let whole = block.cols.is_multiple_of(LANES);
    macro_rules! by_size {
        ($($rows:literal)*) => {
            // SAFETY: the contract is the same.
            unsafe {
                match (block.rows, block.cols.div_ceil(LANES), whole) {
                    $(($rows, 1, true) => sized::<$rows, 1, true>(block),
                    ($rows, 2, true) => sized::<$rows, 2, true>(block),
                    ($rows, 1, false) => sized::<$rows, 1, false>(block),
                    ($rows, 2, false) => sized::<$rows, 2, false>(block),)*

                    (rows, vectors, _) => unreachable!("{rows} rows by {vectors} vectors"),
                }
            }
        };
    }
    by_size!(1 2 3 4 5 6)
}

/// A tile of `R` rows by `V` vectors, the last of which is partial unless `WHOLE`.
///
/// # Safety
///
/// What [`Block`] says, of `R` rows and more than `V - 1` vectors of columns.
#[target_feature(enable = "avx2,fma")]
unsafe fn sized<const R: usize, const V: usize, const WHOLE: bool>(block: &Block<'_>) {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let count = block.cols - (V - 1) * LANES;
    let last = _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes);
    macro_rules! load {
        ($v:ident, $from:expr) => {
            if WHOLE || $v + 1 < V { _mm256_loadu_ps($from) } else { _mm256_maskload_ps($from, last) }
        };
    }
    let mut acc = [[_mm256_setzero_ps(); V]; R];
    for (r, acc) in acc.iter_mut().enumerate() {
        for (v, acc) in acc.iter_mut().enumerate() {
            *acc = match &block.begin {
                Begin::Rows(values) => _mm256_set1_ps(values[r]),
                // SAFETY: of each row, `cols` elements can be read, and no others are.
                Begin::At(start, stride) => unsafe { load!(v, start.add(r * stride + v * LANES)) },
            };
        }
    }
    let (starts, depth) = (block.left.starts::<R>(block.first), block.left.depth());
    let (mut right, mut ahead) = (block.right.as_ptr(), block.ahead);
    macro_rules! step {
        ($at:expr) => {
            let mut x = [_mm256_setzero_ps(); V];
            for (v, x) in x.iter_mut().enumerate() {
                // SAFETY: `right` points to row `k`, which has `cols` elements, and no
                // others are read.
                *x = unsafe { load!(v, right.add(v * LANES)) };
            }
            right = right.wrapping_add(block.right_stride);
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `depth` elements can be read from each start at each tap's offset,
                // which `$at` is beyond by fewer.
                let w = _mm256_set1_ps(unsafe { *starts[r].add($at) });
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = _mm256_fmadd_ps(w, x, *acc);
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
    let (lo, hi) = (_mm256_set1_ps(block.lo), _mm256_set1_ps(block.hi));
    for (r, acc) in acc.into_iter().enumerate() {
        for (v, acc) in acc.into_iter().enumerate() {
            // The second operand is the result where one is NaN.
            let y = _mm256_min_ps(hi, _mm256_max_ps(lo, acc));
            let to = block.out.wrapping_add(r * block.out_stride + v * LANES);
            // SAFETY: row `r` of `out` has `cols` elements, and no others are written.
            unsafe {
                if WHOLE || v + 1 < V {
                    _mm256_storeu_ps(to, y);
                } else {
                    _mm256_maskstore_ps(to, last, y);
                }
            }
        }
    }
}
