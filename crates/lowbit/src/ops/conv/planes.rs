//! The input of a convolution, padded and split by stride.
//!
//! A channel is copied into a padded plane that is split by stride into
//! phases: cell `c` of an axis goes to phase `c % stride` at index
//! `c / stride`. A tap then reads, for every output, the cell at one constant
//! distance, so that what a tap reads are shifted runs without borders.

use lowbit_kernels::Run;

use super::Geometry;
use crate::ops::vectorized::vectorized;
use crate::ops::window::{Axis, copy_steps};

/// The padded plane in phases.
pub(super) struct Planes {
    axes: [Axis; 3],
    /// Cells of a phase along each axis.
    len: [usize; 3],
    copies: Vec<Copy>,
    taps: Vec<usize>,
}

/// A run of one row of the input, `stride` apart, and its place in the planes.
struct Copy {
    from: usize,
    to: usize,
    len: usize,
}

/// Cells of the padded axis that are read.
fn needed(a: &Axis) -> usize {
    (a.output - 1) * a.stride + a.span()
}

impl Planes {
    /// The planes for `g`, which has outputs; `None` if they were much larger
    /// than what is read and written.
    pub(super) fn new(g: &Geometry) -> Option<Planes> {
        let size = g.axes.iter().try_fold(1, |n: usize, a| n.checked_mul(needed(a)))?;
        if size / 4 > g.inputs() + g.outputs() + 1024 {
            return None;
        }
        let len = g.axes.map(|a| needed(&a).div_ceil(a.stride));
        let mut planes = Planes { axes: g.axes, len, copies: vec![], taps: vec![] };
        planes.copies = planes.find_copies();
        planes.taps = planes.find_taps();
        Some(planes)
    }

    /// Cells of all phases.
    pub(super) fn size(&self) -> usize {
        self.axes.iter().zip(self.len).map(|(a, n)| a.stride * n).product()
    }

    /// Whether the planes are the input.
    pub(super) fn are_input(&self) -> bool {
        self.axes.iter().all(|a| (a.stride, a.before) == (1, 0) && needed(a) == a.input)
    }

    /// Cells of a row of a phase.
    pub(super) fn pitch(&self) -> usize {
        self.len[2]
    }

    /// The cell that output `[depth, height, 0]` reads at distance 0.
    pub(super) fn row(&self, depth: usize, height: usize) -> usize {
        (depth * self.len[1] + height) * self.len[2]
    }

    /// The distance of each tap from its output.
    pub(super) fn taps(&self) -> &[usize] {
        &self.taps
    }

    /// Copies a channel into its planes. What is padding stays as it is where
    /// they hold another channel.
    pub(super) fn fill(&self, x: &[f32], cells: &mut [f32], again: bool) {
        if !again {
            cells.fill(0.0);
        }
        let stride = self.axes[2].stride;
        vectorized(
            #[inline(always)]
            || {
                for Copy { from, to, len } in &self.copies {
                    copy_steps(&mut cells[*to..][..*len], &x[*from..], stride);
                }
            },
        );
    }

    /// Where the cells that the `count` outputs from `start` read at distance 0 lie.
    pub(super) fn runs(&self, start: usize, count: usize) -> Vec<Run> {
        let [_, height, width] = self.axes.map(|a| a.output);
        let mut runs = vec![];
        let mut at = start;
        while at < start + count {
            let (row, first) = (at / width, at % width);
            let len = (width - first).min(start + count - at).min(Run::MOST);
            let from = self.row(row / height, row % height) + first;
            runs.push(Run { from, to: at - start, len });
            at += len;
        }
        runs
    }

    /// Where padded cell `c` lies.
    fn at(&self, c: [usize; 3]) -> usize {
        let phase = (0..3).fold(0, |n, i| n * self.axes[i].stride + c[i] % self.axes[i].stride);
        (0..3).fold(phase, |n, i| n * self.len[i] + c[i] / self.axes[i].stride)
    }

    /// What each row of the input gives to the planes.
    fn find_copies(&self) -> Vec<Copy> {
        // Input cells of an axis, in a phase that some tap reads.
        let used = |i: usize| {
            let a = self.axes[i];
            let count = a.input.min(needed(&a).saturating_sub(a.before));
            let phases: Vec<usize> = (0..a.kernel).map(|t| t * a.dilation % a.stride).collect();
            (0..count).filter(move |c| phases.contains(&((c + a.before) % a.stride)))
        };
        let [depth, height, width] = self.axes;
        let count = width.input.min(needed(&width).saturating_sub(width.before));
        let rows = used(0).flat_map(|d| used(1).map(move |h| (d, h)));
        rows.flat_map(|(d, h)| {
            let row = (d * height.input + h) * width.input;
            used(2).take_while(|&skip| skip < width.stride).map(move |skip| Copy {
                from: row + skip,
                to: self.at([d + depth.before, h + height.before, skip + width.before]),
                len: (count - skip).div_ceil(width.stride),
            })
        })
        .collect()
    }

    fn find_taps(&self) -> Vec<usize> {
        let [d, h, w] = self.axes;
        let mut taps = Vec::with_capacity(d.kernel * h.kernel * w.kernel);
        for (i, j) in (0..d.kernel).flat_map(|i| (0..h.kernel).map(move |j| (i, j))) {
            let tap = |k| self.at([i * d.dilation, j * h.dilation, k * w.dilation]);
            taps.extend((0..w.kernel).map(tap));
        }
        taps
    }
}
