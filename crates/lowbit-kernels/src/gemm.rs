//! The matrix product u8 x i8, blocked over register tiles.

use std::ops::Range;

use crate::block::Block;
use crate::grid::Grid;
use crate::isa::Kernels;
use crate::pack::Weights;
use crate::requant::{Requant, Residual};
use crate::rows::Rows;
use crate::tile::Epilogue;

/// What becomes of each accumulator `acc` of row `i` and column `n`, and the
/// matrix that it goes to. Parameters have one element per column of it.
#[derive(Debug)]
pub enum Output<'a> {
    /// Requantized, as [`Requant`] defines it, and added to another tensor, as
    /// [`Residual`] does.
    U8 {
        /// Per-channel parameters, one per column.
        requant: Requant<'a>,
        /// What is added.
        residual: Option<Residual<'a>>,
        /// The output matrix.
        out: Grid<'a, u8>,
    },
    /// Dequantized: `(acc + bias[n]) as f32 * multiplier[n]`.
    F32 {
        /// Added to the accumulator, in i32.
        bias: &'a [i32],
        /// `s_x * s_w[n]`.
        multiplier: &'a [f32],
        /// The output matrix.
        out: Grid<'a, f32>,
    },
    /// Dequantized, where each row has codes of its own:
    /// `(acc - zero[i] * sums[n]) as f32 * (scale[i] * multiplier[n]) + bias[n]`, the
    /// difference wrapping.
    Rows {
        /// The scale of each row, or that of all.
        scale: &'a [f32],
        /// The zero point of each row, or that of all.
        zero: &'a [i32],
        /// The sum of each column's weights.
        sums: &'a [i32],
        /// `s_w[n]`.
        multiplier: &'a [f32],
        /// Added last, or 0.
        bias: Option<&'a [f32]>,
        /// The output matrix.
        out: Grid<'a, f32>,
    },
    /// `acc + bias[n]`, or `acc`.
    I32 {
        /// Added to the accumulator, in i32.
        bias: Option<&'a [i32]>,
        /// The output matrix.
        out: Grid<'a, i32>,
    },
}

impl Kernels {
    /// `acc[i][n] = sum_k a[i][k] * w[n][k] + term[i]` ([`Rows::with_terms`]) for all rows of `a` and the columns
    /// of the weights' `panels` ([`Weights::panels`]), stored as `output`
    /// says, whose first column is the first of the panels.
    ///
    /// Sums are exact in i32 where they fit, which a depth of up to 65,793
    /// guarantees; beyond, they wrap, in every table alike.
    ///
    /// # Panics
    ///
    /// Rows and weights differ in taps or depth; there are no such panels; the
    /// output has not this size; its parameters do not have one element per
    /// column, or are not valid.
    pub fn gemm(&self, a: &Rows<'_>, weights: Weights<'_>, panels: Range<usize>, output: Output<'_>) {
        assert_eq!(
            (a.taps(), a.depth()),
            (weights.taps(), weights.depth()),
            "taps and depth of the rows and of the weights",
        );
        let columns = weights.columns_of(panels.clone());
        let mut epilogue = Epilogue::new(output, a.terms(), a.count(), columns.len());
        let row_bytes = weights.taps() * weights.depth() + epilogue.row_bytes();
        let tiles = a.count().div_ceil(self.tile_rows);
        let blocks = (a.count() * row_bytes / self.multiply.block_bytes()).clamp(1, tiles.max(1));
        // Blocks of about equal height: a low last one would load all weights for few rows.
        let edge = |block: usize| a.count().min(tiles * block / blocks * self.tile_rows);
        for block in 0..blocks {
            let (start, end) = (edge(block), edge(block + 1));
            let block = Block { left: a, rows: start..end, weights: &weights, panels: panels.clone() };
            // SAFETY: tables come only from `Kernels::available`, which yields those
            // whose instruction set this CPU was found to have.
            unsafe { self.multiply.block(&block, self.tile_rows, &mut epilogue) };
        }
    }

    /// The most rows that are computed together: a good multiple for splitting
    /// a product.
    pub fn rows_together(&self) -> usize {
        self.tile_rows
    }
}
