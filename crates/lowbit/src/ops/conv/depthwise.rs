//! Depthwise convolution: each output channel reads one input channel.
//!
//! A channel is copied into a padded plane that is split by stride into
//! phases: cell `c` of an axis goes to phase `c % stride` at index
//! `c / stride`. A tap then reads, for every output, the cell at one constant
//! distance, so that whole rows are sums of shifted runs without borders.

use std::array;

use rayon::prelude::*;

use super::Geometry;
use super::columns::{SERIAL, with_scratch};
use crate::ops::vectorized::vectorized;
use crate::ops::window::{Axis, each_step};

/// Output cells computed in one run.
const RUN: usize = 1024;

/// Whether this file's algorithm is fast for the geometry: one input channel
/// for few output channels, and a padded plane not much larger than the input.
pub(super) fn applies(g: &Geometry) -> bool {
    let padded: Option<usize> = g.axes.iter().try_fold(1, |n: usize, a| n.checked_mul(needed(a)));
    g.in_channels == 1
        && g.out_channels <= 4
        && padded.is_some_and(|n| n / 4 <= g.inputs() + g.outputs() + RUN)
}

/// Cells of the padded axis that are read.
fn needed(a: &Axis) -> usize {
    (a.output - 1) * a.stride + a.span()
}

/// A run of one row of the input, `stride` apart, and its place in the planes.
struct Copy {
    from: usize,
    to: usize,
    len: usize,
}

/// Copies a channel; what is padding is left as it is.
#[inline(always)]
fn fill(copies: &[Copy], stride: usize, x: &[f32], planes: &mut [f32]) {
    for Copy { from, to, len } in copies {
        each_step(&mut planes[*to..][..*len], &x[*from..], stride, |y, x| *y = x);
    }
}

/// The padded plane in phases.
struct Planes {
    axes: [Axis; 3],
    /// Cells of a phase along each axis.
    len: [usize; 3],
}

impl Planes {
    fn new(axes: [Axis; 3]) -> Planes {
        Planes { axes, len: axes.map(|a| needed(&a).div_ceil(a.stride)) }
    }

    /// Cells of all phases.
    fn size(&self) -> usize {
        self.axes.iter().zip(self.len).map(|(a, n)| a.stride * n).product()
    }

    /// Where padded cell `c` lies.
    fn at(&self, c: [usize; 3]) -> usize {
        let phase = (0..3).fold(0, |n, i| n * self.axes[i].stride + c[i] % self.axes[i].stride);
        (0..3).fold(phase, |n, i| n * self.len[i] + c[i] / self.axes[i].stride)
    }

    /// What each row of the input gives to the planes.
    fn copies(&self) -> Vec<Copy> {
        let [depth, height, width] = self.axes;
        // Cells of an axis that some window reads.
        let used = |a: &Axis| a.input.min(needed(a).saturating_sub(a.before));
        let rows = (0..used(&depth)).flat_map(|d| (0..used(&height)).map(move |h| (d, h)));
        rows.flat_map(|(d, h)| {
            let row = (d * height.input + h) * width.input;
            (0..width.stride.min(used(&width))).map(move |skip| Copy {
                from: row + skip,
                to: self.at([d + depth.before, h + height.before, skip + width.before]),
                len: (used(&width) - skip).div_ceil(width.stride),
            })
        })
        .collect()
    }

    /// The distance of each tap from its output.
    fn taps(&self) -> Vec<usize> {
        let [d, h, w] = self.axes;
        let mut taps = Vec::with_capacity(d.kernel * h.kernel * w.kernel);
        for (i, j) in (0..d.kernel).flat_map(|i| (0..h.kernel).map(move |j| (i, j))) {
            let tap = |k| self.at([i * d.dilation, j * h.dilation, k * w.dilation]);
            taps.extend((0..w.kernel).map(tap));
        }
        taps
    }
}

/// Depthwise convolution, whole channels to a thread.
pub(super) fn convolve(x: &[f32], w: &[f32], bias: Option<&[f32]>, g: &Geometry, y: &mut [f32]) {
    let (outputs, taps) = (g.outputs(), g.taps());
    let planes = Planes::new(g.axes);
    let (offsets, copies) = (planes.taps(), planes.copies());
    let channels = g.group * g.out_channels;
    // The channels of one task: as many as are worth a thread.
    let together = (SERIAL / (outputs * taps)).clamp(1, y.len() / outputs);
    let run = |(task, y): (usize, &mut [f32])| {
        with_scratch(planes.size() + RUN, |scratch| {
            let (cells, run) = scratch.split_at_mut(planes.size());
            cells.fill(0.0);
            let mut filled = None;
            for (i, y) in y.chunks_exact_mut(outputs).enumerate() {
                let channel = task * together + i;
                let (image, m) = (channel / channels, channel % channels);
                let source = image * g.group + m / g.out_channels;
                let (fresh, b) = (filled.replace(source) != Some(source), bias.map_or(0.0, |b| b[m]));
                vectorized(
                    #[inline(always)]
                    || {
                        if fresh {
                            let x = &x[source * g.inputs()..][..g.inputs()];
                            fill(&copies, g.axes[2].stride, x, cells);
                        }
                        sum_taps(&planes, cells, &offsets, &w[m * taps..][..taps], b, run, y);
                    },
                );
            }
        });
    };
    if y.len() <= together * outputs {
        run((0, y));
    } else {
        y.par_chunks_mut(together * outputs).enumerate().for_each(run);
    }
}

/// One output channel. Rows are computed together as far as a run reaches:
/// between them lie cells that are dropped.
#[inline(always)]
fn sum_taps(
    planes: &Planes,
    cells: &[f32],
    offsets: &[usize],
    w: &[f32],
    bias: f32,
    run: &mut [f32],
    y: &mut [f32],
) {
    let [depth, height, width] = planes.axes.map(|a| a.output);
    let [_, rows, pitch] = planes.len;
    let together = (RUN / pitch).max(1);
    for d in 0..depth {
        for h in (0..height).step_by(together) {
            let count = together.min(height - h);
            let cells = &cells[(d * rows + h) * pitch..];
            let y = &mut y[(d * height + h) * width..][..count * width];
            if count == 1 || pitch == width {
                sum_run(cells, offsets, w, bias, y);
                continue;
            }
            let run = &mut run[..(count - 1) * pitch + width];
            sum_run(cells, offsets, w, bias, run);
            for (y, run) in y.chunks_exact_mut(width).zip(run.chunks(pitch)) {
                y.copy_from_slice(&run[..width]);
            }
        }
    }
}

/// `y[i] = bias + sum over t of w[t] * cells[offsets[t] + i]`.
#[inline(always)]
fn sum_run(cells: &[f32], offsets: &[usize], w: &[f32], bias: f32, y: &mut [f32]) {
    y.fill(bias);
    let (nines, threes) = (w.len() / 9 * 9, w.len() / 3 * 3);
    for t in (0..nines).step_by(9) {
        add_taps::<9>(cells, &offsets[t..], &w[t..], y);
    }
    for t in (nines..threes).step_by(3) {
        add_taps::<3>(cells, &offsets[t..], &w[t..], y);
    }
    for t in threes..w.len() {
        add_taps::<1>(cells, &offsets[t..], &w[t..], y);
    }
}

#[inline(always)]
fn add_taps<const T: usize>(cells: &[f32], offsets: &[usize], w: &[f32], y: &mut [f32]) {
    let n = y.len();
    let x: [&[f32]; T] = array::from_fn(|t| &cells[offsets[t]..][..n]);
    let w: [f32; T] = array::from_fn(|t| w[t]);
    for i in 0..n {
        let mut sum = y[i];
        for t in 0..T {
            sum += w[t] * x[t][i];
        }
        y[i] = sum;
    }
}
