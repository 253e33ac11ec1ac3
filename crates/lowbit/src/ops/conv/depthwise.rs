//! Depthwise convolution: each output channel reads one input channel.
//! Rows are sums of shifted runs of the channel's planes.

use lowbit_kernels::Kernels;
use rayon::prelude::*;

use super::planes::Planes;
use super::{Bounds, Geometry};
use crate::ops::product::with_scratch;

/// Output cells computed in one run.
const RUN: usize = 1024;
/// Multiply-accumulates that are worth a task.
const TASK: usize = 1 << 16;

/// The planes by which this file's algorithm computes the geometry, where it is
/// fast: one input channel for few output channels.
pub(super) fn planes(g: &Geometry) -> Option<Planes> {
    if g.in_channels == 1 && g.out_channels <= 4 { Planes::new(g) } else { None }
}

/// Depthwise convolution, whole channels to a thread.
pub(super) fn convolve(
    planes: &Planes,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    bounds: Bounds,
    g: &Geometry,
    y: &mut [f32],
) {
    let (outputs, taps) = (g.outputs(), g.taps());
    let channels = g.group * g.out_channels;
    // The channels of one task: as many as are worth a thread.
    let together = (TASK / (outputs * taps)).clamp(1, y.len() / outputs);
    let run = |(task, y): (usize, &mut [f32])| {
        with_scratch(planes.size() + RUN, |scratch| {
            let (cells, run) = scratch.split_at_mut(planes.size());
            let mut filled = None;
            for (i, y) in y.chunks_exact_mut(outputs).enumerate() {
                let channel = task * together + i;
                let (image, m) = (channel / channels, channel % channels);
                let source = image * g.group + m / g.out_channels;
                match filled.replace(source) {
                    Some(before) if before == source => {}
                    before => planes.fill(&x[source * g.inputs()..][..g.inputs()], cells, before.is_some()),
                }
                let weights = &w[m * taps..][..taps];
                sum_taps(planes, cells, weights, bias.map_or(0.0, |b| b[m]), bounds, g, run, y);
            }
        });
    };
    if y.len() <= together * outputs || rayon::current_num_threads() == 1 {
        y.chunks_mut(together * outputs).enumerate().for_each(run);
    } else {
        y.par_chunks_mut(together * outputs).enumerate().for_each(run);
    }
}

/// One output channel. Rows are computed together as far as a run reaches:
/// between them lie cells that are dropped.
#[allow(clippy::too_many_arguments)]
fn sum_taps(
    planes: &Planes,
    cells: &[f32],
    weights: &[f32],
    bias: f32,
    bounds: Bounds,
    g: &Geometry,
    run: &mut [f32],
    y: &mut [f32],
) {
    let [depth, height, width] = g.axes.map(|a| a.output);
    let pitch = planes.pitch();
    let together = (RUN / pitch).max(1);
    let sum = |cells: &[f32], y: &mut [f32]| {
        Kernels::best().shifted_sums(cells, planes.taps(), weights, bias, [bounds.lo, bounds.hi], y);
    };
    for d in 0..depth {
        for h in (0..height).step_by(together) {
            let count = together.min(height - h);
            let cells = &cells[planes.row(d, h)..];
            let y = &mut y[(d * height + h) * width..][..count * width];
            if count == 1 || pitch == width {
                sum(cells, y);
                continue;
            }
            let run = &mut run[..(count - 1) * pitch + width];
            sum(cells, run);
            for (y, run) in y.chunks_exact_mut(width).zip(run.chunks(pitch)) {
                y.copy_from_slice(&run[..width]);
            }
        }
    }
}
