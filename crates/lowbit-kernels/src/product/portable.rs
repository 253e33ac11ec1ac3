//! The definition, for every CPU.

use super::{Block, Tile};

pub(crate) const PORTABLE: Tile = Tile { rows: 4, cols: COLS, run: tile };

const COLS: usize = 16;

/// # Safety
///
/// What [`Block`] says.
unsafe fn tile(block: &Block<'_>) {
    for i in 0..block.rows {
        // SAFETY: by the contract of `Block`, row `i` of `out` is `cols` elements that
        // nobody else accesses.
        let out = unsafe { std::slice::from_raw_parts_mut(block.out.add(i * block.out_stride), block.cols) };
        let mut sums = [0.0; COLS];
        let sums = &mut sums[..block.cols];
        match block.start {
            Some(start) => sums.fill(start[i]),
            None => sums.copy_from_slice(out),
        }
        for k in 0..block.depth {
            let left = block.left[i * block.left_stride + k];
            let right = &block.right[k * block.right_stride..][..block.cols];
            sums.iter_mut().zip(right).for_each(|(sum, x)| *sum = left.mul_add(*x, *sum));
        }
        for (out, &sum) in out.iter_mut().zip(&*sums) {
            let sum = if sum < block.lo { block.lo } else { sum };
            *out = if sum > block.hi { block.hi } else { sum };
        }
    }
}
