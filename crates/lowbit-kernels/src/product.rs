//! The f32 matrix product, with the same bits on every CPU.
//!
//! `out[m][p] = clamp(start + sum_k left[m][k] * right[k][p], lo, hi)`
//!
//! is one chain of fused multiply-adds, `k` ascending, from `start` on: each
//! output is `fma(left[m][k], right[k][p], ..)`. Chains do not depend on each
//! other, so neither the tile's size nor the number of threads shows in the
//! result; nor does a split of the chain, which [`Start::Out`] takes up again.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod panels;
mod portable;

use std::ptr;

use crate::isa::Kernels;
use crate::matrix::{Matrix, MatrixMut};
use crate::rows::Rows;

pub use panels::{Gather, Panels, Run};
pub(crate) use panels::{gather, transpose};

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::AVX2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::AVX512;
pub(crate) use portable::PORTABLE;

/// What the chain of each output begins with.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// 0.
    Zero,
    /// One value for each row.
    Rows(&'a [f32]),
    /// One value for each column.
    Cols(&'a [f32]),
    /// The output as it is.
    Out,
}

/// The right matrix of a product.
#[derive(Clone, Copy, Debug)]
pub enum Right<'a> {
    /// As it lies: good for few rows on the left.
    Matrix(Matrix<'a>),
    /// Packed: good where many rows on the left read it again.
    Panels(Panels<'a>),
}

impl Right<'_> {
    /// The number of rows and of columns.
    pub fn size(&self) -> [usize; 2] {
        match self {
            Right::Matrix(m) => m.size(),
            Right::Panels(p) => p.size(),
        }
    }
}

/// A matrix product.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// `[m][k]`, where `k` counts the elements of all taps.
    pub left: Rows<'a, f32>,
    /// `[k][p]`.
    pub right: Right<'a>,
    /// What the sums begin with.
    pub start: Start<'a>,
    /// Sums below become `lo`; NaN stays.
    pub lo: f32,
    /// Sums above become `hi`; NaN stays.
    pub hi: f32,
}

impl<'a> Product<'a> {
    /// A product from 0 on, without bounds.
    pub fn new(left: impl Into<Rows<'a, f32>>, right: Right<'a>) -> Product<'a> {
        Product { left: left.into(), right, start: Start::Zero, lo: f32::NEG_INFINITY, hi: f32::INFINITY }
    }
}

/// The register tile of an instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// The most rows of a tile, at most [`MOST_ROWS`].
    rows: usize,
    /// The most columns of a tile.
    cols: usize,
    /// What [`Kernels::panel_step`] gives.
    step: usize,
    /// See [`Block`]. The CPU must have the table's instruction set.
    run: unsafe fn(&Block<'_>),
}

/// Rows of the tallest tile.
const MOST_ROWS: usize = 8;

/// One tile's task. The functions that take it rely on:
///
/// - `rows` and `cols` are at least 1 and at most what the [`Tile`] says;
/// - `left` has `rows` rows from `first`;
/// - `right` holds `cols` elements from `k * right_stride`, for each element `k`
///   of a row of `left`, its taps one after the other;
/// - `out` points to the first of `rows` runs of `cols` elements, `out_stride`
///   apart, that nobody else accesses;
/// - what [`Begin`] says.
struct Block<'a> {
    rows: usize,
    cols: usize,
    left: Rows<'a, f32>,
    first: usize,
    right: &'a [f32],
    right_stride: usize,
    begin: Begin,
    lo: f32,
    hi: f32,
    out: *mut f32,
    out_stride: usize,
    /// What to prefetch: of each [`UNROLLED`] elements of a tap this many lines, from here on.
    ahead: *const f32,
    lines: usize,
}

/// Elements of a tap that are multiplied between two looks at what to prefetch.
const UNROLLED: usize = 4;
/// Elements of a line of the cache.
const LINE: usize = 16;

/// What the sums of a tile begin with.
#[derive(Clone, Copy)]
enum Begin {
    /// One value for each row.
    Rows([f32; MOST_ROWS]),
    /// For each row of the tile `cols` elements to be read, this many apart.
    At(*const f32, usize),
}

impl Rows<'_, f32> {
    /// Elements from the first one of the first row to the last one of the last row:
    /// where rows overlap, fewer than they have together.
    pub fn span(&self) -> usize {
        let Some(last) = self.count().checked_sub(1) else { return 0 };
        let ([first], [last]) = (self.starts(0), self.starts(last));
        let apart = (last as usize).saturating_sub(first as usize) / size_of::<f32>();
        apart + self.offsets().iter().max().unwrap_or(&0) + self.depth()
    }
}

impl Kernels {
    /// Columns of a panel (see [`Panels`]) at most.
    pub fn panel_width(&self) -> usize {
        self.product.cols
    }

    /// Columns by which panels may be narrower, once or several times, and are as
    /// efficient unless they are that narrow themselves.
    pub fn panel_step(&self) -> usize {
        self.product.step
    }

    /// Rows of the left matrix that are multiplied together: a product of fewer
    /// is less efficient.
    pub fn product_rows(&self) -> usize {
        self.product.rows
    }

    /// Computes the [`Product`] into `out`.
    ///
    /// # Panics
    ///
    /// The sizes do not fit, or panels were packed for another width.
    pub fn product(&self, product: &Product<'_>, out: &mut MatrixMut<'_>) {
        let Product { left, right, start, lo, hi } = *product;
        let (m, depth) = (left.count(), left.taps() * left.depth());
        let [k, p] = right.size();
        assert!(
            depth == k && out.size() == [m, p],
            "{m}x{depth} times {k}x{p} into {}x{}",
            out.size()[0],
            out.size()[1]
        );
        match start {
            Start::Rows(values) => assert_eq!(values.len(), m, "one start for each row"),
            Start::Cols(values) => assert_eq!(values.len(), p, "one start for each column"),
            Start::Zero | Start::Out => {}
        }
        if m == 0 || p == 0 {
            return;
        }
        let Tile { rows: most, cols, run, .. } = self.product;
        let (data, right_stride, width, panel, next): (_, _, _, _, &[f32]) = match right {
            Right::Matrix(matrix) => (matrix.data(), matrix.stride(), cols, cols, &[]),
            Right::Panels(panels) => {
                let width = panels.width();
                assert!((1..=cols).contains(&width), "panels of {width} columns, not 1 to {cols}");
                (panels.data(), width, width, width * depth, panels.next())
            }
        };
        // Rows are shared out evenly: a low tile keeps too few sums in flight.
        let tiles = m.div_ceil(most);
        let together = m.div_ceil(tiles);
        let looks = left.taps() * (left.depth() / UNROLLED);
        let lines = next.len().div_ceil(LINE).div_ceil((tiles * p.div_ceil(width) * looks).max(1));
        let mut ahead = next.chunks((lines * looks * LINE).max(1));
        for first in (0..m).step_by(together) {
            let rows = together.min(m - first);
            let mut by_row = [0.0; MOST_ROWS];
            if let Start::Rows(values) = start {
                by_row[..rows].copy_from_slice(&values[first..][..rows]);
            }
            for col in (0..p).step_by(width) {
                let (to, out_stride) = out.at(first, col);
                let ahead = ahead.next();
                let block = Block {
                    rows,
                    cols: width.min(p - col),
                    left,
                    first,
                    right: data.get(col / width * panel..).unwrap_or_default(),
                    right_stride,
                    begin: match start {
                        Start::Zero | Start::Rows(_) => Begin::Rows(by_row),
                        Start::Cols(values) => Begin::At(values[col..].as_ptr(), 0),
                        Start::Out => Begin::At(to, out_stride),
                    },
                    lo,
                    hi,
                    out: to,
                    out_stride,
                    ahead: ahead.map_or(ptr::null(), <[f32]>::as_ptr),
                    lines: ahead.map_or(0, |_| lines),
                };
                // SAFETY: tables come only from `Kernels::available`, which yields those
                // whose instruction set this CPU was found to have. `Rows`, a `Matrix`
                // and `Panels` hold all their elements, there is a start for each
                // column, and `out`, exclusively borrowed, has the `rows` x `cols`
                // elements from `(first, col)`.
                unsafe { run(&block) };
            }
        }
    }
}
