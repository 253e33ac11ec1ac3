//! f32 matrix products on all threads.

use std::cell::RefCell;
use std::ops::Range;

use lowbit_kernels::{Kernels, Matrix, MatrixMut, Panels, Product, Right, Start};
use rayon::prelude::*;

use crate::tensor::buffers::buffer;

/// Elements of the panels of one part: less than half of a typical
/// second-level cache.
const PANELS: usize = 96 << 10;
/// The greatest depth of a product: longer sums are taken up again.
const DEPTH: usize = 1024;
/// Multiply-accumulates that are worth a task.
const TASK: usize = 1 << 18;
/// Tasks for each thread, so that none waits long for the last one.
const TASKS: usize = 4;

/// A part of an output matrix, from row `row` and column `col` on.
pub(super) struct Part<'a> {
    pub(super) row: usize,
    pub(super) col: usize,
    pub(super) out: MatrixMut<'a>,
}

/// Calls `f` for parts that together are `out`, the product of matrices of
/// `depth` columns and rows: parts whose panels fit the cache, several for
/// each thread if `parallel` and worth it.
pub(super) fn for_each_part(out: MatrixMut, depth: usize, parallel: bool, f: impl Fn(Part) + Send + Sync) {
    let kernels = Kernels::best();
    let [rows, cols] = out.size();
    if rows == 0 || cols == 0 {
        return;
    }
    let threads = rayon::current_num_threads();
    let macs = rows.saturating_mul(cols).saturating_mul(depth);
    let wanted = if parallel && threads > 1 { (TASKS * threads).min(macs / TASK).max(1) } else { 1 };
    let width = kernels.panel_width();
    let panels = cols.div_ceil(width);
    let most = (PANELS / (width * depth.clamp(1, DEPTH))).max(1);
    let across = panels.div_ceil(most).max(wanted.min(panels));
    let cols_each = panels.div_ceil(across) * width;
    // Each part packs its panels, so it should have rows enough to use them.
    let down = wanted.div_ceil(across).min(rows / (4 * kernels.product_rows())).max(1);
    let rows_each = rows.div_ceil(down).next_multiple_of(kernels.product_rows());
    let mut parts = Vec::with_capacity(across * down);
    let mut rest = out;
    for col in (0..cols).step_by(cols_each) {
        let (mut column, right) = rest.split_cols(cols_each.min(cols - col));
        rest = right;
        for row in (0..rows).step_by(rows_each) {
            let (out, below) = column.split_rows(rows_each.min(rows - row));
            column = below;
            parts.push(Part { row, col, out });
        }
    }
    if wanted > 1 {
        parts.into_par_iter().for_each(&f);
    } else {
        parts.into_iter().for_each(f);
    }
}

/// The steps in which `count` rows of the right matrix, `together` of which
/// are kept together, are multiplied. There is one even if `count` is 0.
pub(super) fn depth_steps(count: usize, together: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (DEPTH / together.max(1)).max(1);
    (0..count.max(1)).step_by(step).map(move |start| start..count.min(start + step))
}

/// The right operand of [`matmul`].
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    /// `[k][n]`.
    Plain(Matrix<'a>),
    /// `[n][k]`.
    Transposed(Matrix<'a>),
}

impl Operand<'_> {
    fn cols(&self) -> usize {
        match self {
            Operand::Plain(b) => b.size()[1],
            Operand::Transposed(b) => b.size()[0],
        }
    }
}

/// `out = a * b`, or `out += a * b` if `accumulate`: each element is one chain
/// of fused multiply-adds, from 0 or from `out` on.
///
/// # Panics
/// If the sizes do not fit.
pub(crate) fn matmul(a: Matrix, b: Operand, accumulate: bool, out: &mut [f32], parallel: bool) {
    let kernels = Kernels::best();
    let [m, depth] = a.size();
    if let (1, Operand::Transposed(b)) = (m, b) {
        // A row times a transposed matrix is that matrix times a column.
        let column = Operand::Plain(Matrix::new(a.row(0), depth, 1));
        return matmul(b, column, accumulate, out, parallel);
    }
    let out = MatrixMut::new(out, m, b.cols());
    for_each_part(out, depth, parallel, |Part { row, col, mut out }| {
        let [rows, cols] = out.size();
        let a = a.rows(row, rows);
        for step in depth_steps(depth, 1) {
            let (left, depth) = (a.cols(step.start, step.len()), step.len());
            let start = if accumulate || step.start > 0 { Start::Out } else { Start::Zero };
            let mut multiply =
                |right: Right| kernels.product(&Product { start, ..Product::new(left, right) }, &mut out);
            match b {
                Operand::Plain(b) => {
                    multiply(Right::Matrix(b.rows(step.start, depth).cols(col, cols)));
                }
                Operand::Transposed(b) => {
                    let width = kernels.panel_width();
                    with_scratch(Panels::len(depth, cols, width), |data| {
                        let panels = data.chunks_exact_mut((width * depth).max(1));
                        for (at, panel) in (0..cols).step_by(width).zip(panels) {
                            let b = b.rows(col + at, width.min(cols - at)).cols(step.start, depth);
                            kernels.transpose(b, width, panel);
                        }
                        multiply(Right::Panels(Panels::new(data, depth, cols, width)));
                    });
                }
            }
        }
    });
}

/// The columns of a matrix, one after the other.
pub(crate) fn transposed(x: Matrix) -> Vec<f32> {
    /// Columns that are written at once.
    const COLS: usize = 64;
    let [rows, cols] = x.size();
    let mut out = buffer(rows * cols);
    crate::parallel::chunks(&mut out, COLS * rows, |i, out| {
        let cols = COLS.min(cols - i * COLS);
        Kernels::best().transpose(x.cols(i * COLS, cols), rows, out);
    });
    out
}

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` floats of any value, which the thread keeps for later calls.
pub(in crate::ops) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut scratch = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    let result = f(&mut scratch[..len]);
    SCRATCH.with_borrow_mut(|kept| kept.push(scratch));
    result
}
