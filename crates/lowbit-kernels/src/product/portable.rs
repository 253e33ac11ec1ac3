//! The definition, for every CPU.

use super::{Begin, Block, Tile};

pub(crate) const PORTABLE: Tile = Tile { rows: 4, cols: COLS, step: COLS, run: tile };

const COLS: usize = 16;

/// # Safety
///
/// What [`Block`] says.
unsafe fn tile(block: &Block<'_>) {
    for i in 0..block.rows {
        let mut sums = [0.0; COLS];
        let sums = &mut sums[..block.cols];
        match block.begin {
            Begin::Rows(values) => sums.fill(values[i]),
            Begin::At(start, stride) => {
                // SAFETY: by the contract of `Block`, `cols` elements can be read there.
                let start = unsafe { std::slice::from_raw_parts(start.add(i * stride), block.cols) };
                sums.copy_from_slice(start);
            }
        }
        let taps = (0..block.left.taps()).flat_map(|tap| block.left.get::<1>(block.first + i, tap)[0]);
        for (k, left) in taps.enumerate() {
            let right = &block.right[k * block.right_stride..][..block.cols];
            sums.iter_mut().zip(right).for_each(|(sum, x)| *sum = left.mul_add(*x, *sum));
        }
        // SAFETY: by the contract of `Block`, row `i` of `out` is `cols` elements that
        // nobody else accesses.
        let out = unsafe { std::slice::from_raw_parts_mut(block.out.add(i * block.out_stride), block.cols) };
        for (out, &sum) in out.iter_mut().zip(&*sums) {
            let sum = if sum < block.lo { block.lo } else { sum };
            *out = if sum > block.hi { block.hi } else { sum };
        }
    }
}
