//! Convolution as a matrix product: the windows of a block of outputs are
//! copied into the columns of a matrix that stays in the cache.

use std::cell::Cell;

use lowbit_kernels::{Matrix, MatrixMut};
use rayon::prelude::*;

use super::Geometry;
use crate::ops::window::{Axis, each_step};

/// Elements of a block of columns: half of a typical second-level cache.
const BLOCK: usize = 1 << 16;
/// Columns of a block: enough to make good use of each weight that is loaded,
/// and a multiple of the matrix kernel's tile.
const LEAST_COLUMNS: usize = 96;
/// Below this many multiply-accumulates, threads cost more than they save.
pub(super) const SERIAL: usize = 1 << 17;
/// Fewer blocks than this are split further, by output channels.
const FEW_BLOCKS: usize = 8;
/// The fewest output channels that a block is split into.
const LEAST_ROWS: usize = 16;

/// A block of one group of one image: its columns and where they go.
struct Block<'a> {
    image: usize,
    group: usize,
    start: usize,
    y: MatrixMut<'a>,
}

/// Convolution by blocks of columns. The blocks depend on the geometry alone,
/// so results do not depend on the number of threads.
pub(super) fn convolve(x: &[f32], w: &[f32], bias: Option<&[f32]>, g: &Geometry, y: &mut [f32]) {
    let (k, outputs) = (g.in_channels * g.taps(), g.outputs());
    let images = g.batch * g.group;
    let width = block_width(k, outputs);
    let mut blocks = Vec::with_capacity(images * outputs.div_ceil(width));
    for (i, y) in y.chunks_exact_mut(g.out_channels * outputs).enumerate() {
        let mut rest = MatrixMut::new(y, g.out_channels, outputs);
        for start in (0..outputs).step_by(width) {
            let (y, right) = rest.split_cols(width.min(outputs - start));
            rest = right;
            blocks.push(Block { image: i / g.group, group: i % g.group, start, y });
        }
    }
    let rows = rows_per_part(blocks.len(), g.out_channels);
    let run = |block: Block| convolve_block(x, w, bias, g, rows, block);
    if g.out_channels * k * outputs * images < SERIAL {
        blocks.into_iter().for_each(run);
    } else {
        blocks.into_par_iter().for_each(run);
    }
}

/// Columns of a block: a few blocks of equal width where there are many outputs.
fn block_width(k: usize, outputs: usize) -> usize {
    let most = (BLOCK / k.max(1)).clamp(LEAST_COLUMNS, 8 * LEAST_COLUMNS);
    let even = outputs.div_ceil(outputs.div_ceil(most));
    even.next_multiple_of(LEAST_COLUMNS / 2).min(outputs)
}

/// Output channels of one product.
fn rows_per_part(blocks: usize, channels: usize) -> usize {
    if blocks >= FEW_BLOCKS {
        return channels;
    }
    channels.div_ceil(FEW_BLOCKS / blocks).next_multiple_of(LEAST_ROWS).min(channels)
}

fn convolve_block(x: &[f32], w: &[f32], bias: Option<&[f32]>, g: &Geometry, rows: usize, block: Block) {
    let (k, inputs, m) = (g.in_channels * g.taps(), g.inputs(), g.out_channels);
    let [_, count] = block.y.size();
    let channels = g.in_channels * inputs;
    let x = &x[(block.image * g.group + block.group) * channels..][..channels];
    let w = Matrix::new(&w[block.group * m * k..][..m * k], m, k);
    let bias = bias.map(|b| &b[block.group * m..][..m]);
    let product = |columns: Matrix| multiply(w, bias, columns, block.y, rows);
    if is_plain(&g.axes) {
        return product(Matrix::new(x, g.in_channels, inputs).cols(block.start, count));
    }
    with_scratch(k * count, |scratch| {
        let segments = segments(&g.axes, block.start, count);
        let fill = |(c, out): (usize, &mut [f32])| {
            fill_columns(&x[c * inputs..][..inputs], &g.axes, &segments, out);
        };
        if rows < m && k * count >= SERIAL {
            scratch.par_chunks_mut(g.taps() * count).enumerate().for_each(fill);
        } else {
            scratch.chunks_mut(g.taps() * count).enumerate().for_each(fill);
        }
        product(Matrix::new(scratch, k, count));
    });
}

/// `y = bias + w * columns`, `rows` rows at a time.
fn multiply(w: Matrix, bias: Option<&[f32]>, columns: Matrix, y: MatrixMut, rows: usize) {
    let run = |(start, mut y): (usize, MatrixMut)| {
        let [m, _] = y.size();
        if let Some(bias) = bias {
            (0..m).for_each(|i| y.row(i).fill(bias[start + i]));
        }
        y.multiply(1.0, w.rows(start, m), columns, bias.is_some(), false);
    };
    let [m, _] = y.size();
    if rows >= m {
        return run((0, y));
    }
    let mut parts = Vec::with_capacity(m.div_ceil(rows));
    let mut rest = y;
    for start in (0..m).step_by(rows) {
        let (part, below) = rest.split_rows(rows.min(m - start));
        rest = below;
        parts.push((start, part));
    }
    parts.into_par_iter().for_each(run);
}

/// Whether the columns are the input itself: one tap, every cell, no padding.
fn is_plain(axes: &[Axis; 3]) -> bool {
    axes.iter().all(|a| (a.kernel, a.stride, a.before, a.after) == (1, 1, 0, 0))
}

/// A run of positions in one row of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Segment {
    /// Depth and height.
    pub row: [usize; 2],
    /// First width.
    pub start: usize,
    /// Number of positions.
    pub len: usize,
}

/// The rows that the `count` output positions from `start` run through.
pub(in crate::ops) fn segments(axes: &[Axis; 3], start: usize, count: usize) -> Vec<Segment> {
    let [_, height, width] = axes.map(|a| a.output);
    let mut at = start;
    let mut segments = vec![];
    while at < start + count {
        let (row, first) = (at / width, at % width);
        let len = (width - first).min(start + count - at);
        segments.push(Segment { row: [row / height, row % height], start: first, len });
        at += len;
    }
    segments
}

/// Writes, for each tap, what one channel gives to each output position.
fn fill_columns(x: &[f32], axes: &[Axis; 3], segments: &[Segment], out: &mut [f32]) {
    let [depth, height, width] = axes;
    let mut out = out;
    for (d, h) in (0..depth.kernel).flat_map(|d| (0..height.kernel).map(move |h| (d, h))) {
        for w in 0..width.kernel {
            let inside = width.inside(w);
            for s in segments {
                let (cells, rest) = out.split_at_mut(s.len);
                out = rest;
                let row = depth.at(s.row[0], d).zip(height.at(s.row[1], h));
                let start = inside.start.clamp(s.start, s.start + s.len) - s.start;
                let end = inside.end.clamp(s.start, s.start + s.len) - s.start;
                let Some((id, ih)) = row.filter(|_| start < end) else {
                    cells.fill(0.0);
                    continue;
                };
                cells[..start].fill(0.0);
                cells[end..].fill(0.0);
                let first = (s.start + start) * width.stride + w * width.dilation - width.before;
                let x = &x[(id * height.input + ih) * width.input + first..];
                each_step(&mut cells[start..end], x, width.stride, |y, x| *y = x);
            }
        }
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with `len` floats of any value, which the thread keeps for the
/// next call. A nested call on the same thread gets floats of its own.
pub(in crate::ops) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut scratch = SCRATCH.take();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    let result = f(&mut scratch[..len]);
    SCRATCH.set(scratch);
    result
}
