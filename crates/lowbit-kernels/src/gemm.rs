//! The matrix product u8 x i8, blocked over register tiles.

use crate::isa::Kernels;
use crate::pack::{NR, PackedWeights};
use crate::requant::Requant;
use crate::rows::Rows;
use crate::tile::{Epilogue, Panel};

/// What becomes of each accumulator `acc` of row `i` and column `n`, and where
/// it goes: `out[i * stride + n]`.
#[derive(Debug)]
pub enum Output<'a> {
    /// Requantized, as [`Requant`] defines it.
    U8 {
        /// Per-channel parameters, one per column.
        requant: Requant<'a>,
        /// The output matrix.
        out: &'a mut [u8],
        /// Elements from one output row to the next.
        stride: usize,
    },
    /// Dequantized: `(acc + bias[n]) as f32 * multiplier[n]`.
    F32 {
        /// Added to the accumulator, in i32.
        bias: &'a [i32],
        /// `s_x * s_w[n]`.
        multiplier: &'a [f32],
        /// The output matrix.
        out: &'a mut [f32],
        /// Elements from one output row to the next.
        stride: usize,
    },
    /// `acc + bias[n]`, or `acc`.
    I32 {
        /// Added to the accumulator, in i32.
        bias: Option<&'a [i32]>,
        /// The output matrix.
        out: &'a mut [i32],
        /// Elements from one output row to the next.
        stride: usize,
    },
}

/// Bytes of the left matrix that are kept in the L2 cache while the panels of
/// weights pass by.
const BLOCK_BYTES: usize = 256 << 10;

impl Kernels {
    /// `acc[i][n] = sum_k a[i * stride + k] * w[n][k]` for `rows` rows, stored
    /// as `output` says.
    ///
    /// Sums are exact in i32 where they fit, which a depth of up to 65,793
    /// guarantees; beyond, they wrap, in every table alike.
    ///
    /// # Panics
    ///
    /// `a` or the output's slices are too short; the output's parameters do not
    /// have one element per column, or its range is empty; the weights have
    /// more than one tap.
    pub fn gemm(&self, a: &[u8], stride: usize, rows: usize, weights: &PackedWeights, output: Output<'_>) {
        assert_eq!(weights.taps(), 1, "weights with several taps need gemm_gathered");
        self.multiply(&Rows::strided(a, stride, rows, weights.depth()), weights, output);
    }

    /// A convolution as a matrix product that reads its rows where they lie:
    ///
    /// `acc[i][n] = sum_t sum_k a[offsets[i * taps + t] + k] * w[n][t][k]`
    ///
    /// with `padding[k]` in place of `a[..]` where the offset is [`PADDING`].
    /// `padding` is one pixel of the input's zero point. [`Window::offsets`]
    /// makes the table; it has `taps` entries per output row.
    ///
    /// [`PADDING`]: crate::PADDING
    /// [`Window::offsets`]: crate::Window::offsets
    ///
    /// # Panics
    ///
    /// As [`Kernels::gemm`]; or `offsets` is not a whole number of rows, an
    /// offset points too near the end of `a`, or `padding` is shorter than the
    /// weights' depth.
    pub fn gemm_gathered(
        &self,
        a: &[u8],
        offsets: &[usize],
        padding: &[u8],
        weights: &PackedWeights,
        output: Output<'_>,
    ) {
        let rows = Rows::gathered(a, offsets, padding, weights.taps(), weights.depth());
        self.multiply(&rows, weights, output);
    }

    fn multiply(&self, rows: &Rows<'_>, weights: &PackedWeights, output: Output<'_>) {
        let mut epilogue = Epilogue::new(output, rows.count(), weights.columns());
        let row_bytes = (weights.taps() * weights.depth()).max(1);
        let block = (BLOCK_BYTES / row_bytes / self.tile_rows).max(1) * self.tile_rows;
        for start in (0..rows.count()).step_by(block) {
            let end = rows.count().min(start + block);
            for index in 0..weights.columns().div_ceil(NR) {
                let panel = Panel::new(weights, index);
                epilogue.enter(&panel);
                for first in (start..end).step_by(self.tile_rows) {
                    let count = self.tile_rows.min(end - first);
                    // SAFETY: tables come only from `Kernels::available`, which yields those
                    // whose instruction set this CPU was found to have.
                    unsafe { (self.tile)(rows, first, count, &panel, &mut epilogue) };
                }
            }
        }
    }
}
