//! Gradients of a convolution. With `g = dL / dy`:
//!
//! - by x: what each cell gave to the outputs, `sum over m, taps of w[m, c, tap] g[m, o]`;
//! - by w: `sum over images, outputs o of g[m, o] x[c, what the tap reads for o]`;
//! - by the bias: `sum over images, outputs of g[m]`.

use rayon::prelude::*;

use super::by_weight::by_weight;
use super::{Bounds, Conv, Geometry, convolve};
use crate::error::Result;
use crate::op::Reverse;
use crate::ops::conv_transpose;
use crate::ops::window::Axis;
use crate::parallel;
use crate::tensor::Tensor;
use crate::tensor::buffers::{buffer, recycle};

pub(super) fn vjp(op: &Conv, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let (x, w) = (at.inputs[0], at.inputs[1]);
    let dy = at.gradient()?.slice::<f32>()?;
    let g = op.geometry(x.shape(), w.shape())?;
    at.each(|i| match i {
        0 => Tensor::new(x.shape(), by_input(dy, w.slice()?, &g)),
        1 => Tensor::new(w.shape(), by_weight(x.slice()?, dy, &g)),
        _ => Tensor::new(at.inputs[i].shape(), by_bias(dy, g.batch, g.group * g.out_channels)),
    })
}

/// Of a transposed convolution, the adjoint of one of geometry `g`: by x it is
/// that convolution of the gradient, and by w the two change places.
pub(in crate::ops) fn transposed_vjp(g: &Geometry, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let (x, w) = (at.inputs[0], at.inputs[1]);
    let dy = at.gradient()?.slice::<f32>()?;
    at.each(|i| match i {
        0 => Tensor::new(x.shape(), convolve(dy, w.slice()?, None, Bounds::NONE, g)),
        1 => Tensor::new(w.shape(), by_weight(dy, x.slice()?, g)),
        _ => Tensor::new(at.inputs[i].shape(), by_bias(dy, g.batch, g.group * g.in_channels)),
    })
}

/// The sum of each channel of `dy [batch, channels, ..]`.
fn by_bias(dy: &[f32], batch: usize, channels: usize) -> Vec<f32> {
    let cells = dy.len().checked_div(batch * channels).unwrap_or(0);
    let plane =
        |n: usize, c: usize| crate::ops::reduce::sum(&dy[(n * channels + c) * cells..][..cells], |g| g);
    let channel = |c: usize| (0..batch).map(|n| plane(n, c)).sum::<f64>() as f32;
    (0..channels)
        .into_par_iter()
        .with_min_len(((1 << 14) / (batch * cells).max(1)).max(1))
        .map(channel)
        .collect()
}

/// Every `stride`-th cell of one axis of the input, and the taps that give to
/// them: the gradient by these cells is a convolution of `dy` with these taps in
/// reverse.
struct Phase {
    first: usize,
    /// From the last one on.
    taps: Vec<usize>,
    axis: Axis,
}

/// The phases of an axis; `None` if the first cells of one follow from an output
/// that is not the first one.
fn phases(a: &Axis) -> Option<Vec<Phase>> {
    let phase = |first: usize| {
        let distance = |t: usize| (first + a.before) as i64 - (t * a.dilation) as i64;
        let meets = |t: &usize| distance(*t) % a.stride as i64 == 0;
        let taps: Vec<usize> = (0..a.kernel).rev().filter(meets).collect();
        let before = taps.first().map_or(0, |&last| -distance(last) / a.stride as i64);
        let axis = Axis {
            input: a.output,
            kernel: taps.len(),
            stride: 1,
            dilation: if let [t, u, ..] = taps[..] { (t - u) * a.dilation / a.stride } else { 1 },
            before: usize::try_from(before).ok()?,
            after: 0,
            output: (a.input - first).div_ceil(a.stride),
        };
        Some(Phase { first, taps, axis })
    };
    (0..a.stride.min(a.input)).map(phase).collect()
}

/// The gradient by x, which is the convolution's adjoint: `dy` has its outputs,
/// the result its inputs.
fn by_input(dy: &[f32], w: &[f32], g: &Geometry) -> Vec<f32> {
    let axes = g.axes.map(|a| phases(&a));
    let [Some(depths), Some(heights), Some(widths)] = &axes else {
        return conv_transpose::scatter(dy, w, None, g);
    };
    let (channels, cells) = (g.group * g.in_channels, g.inputs());
    if g.batch * channels * cells == 0 {
        return vec![];
    }
    let phases =
        depths.iter().flat_map(|d| heights.iter().flat_map(move |h| widths.iter().map(move |w| [d, h, w])));
    let mut dx = None;
    for of in phases {
        let adjoint = Geometry {
            batch: g.batch,
            group: g.group,
            in_channels: g.out_channels,
            out_channels: g.in_channels,
            axes: of.map(|p| p.axis),
        };
        let made = if adjoint.taps() == 0 || g.outputs() == 0 || w.is_empty() {
            None
        } else {
            let reversed = reversed(w, g, of);
            let made = convolve(dy, &reversed, None, Bounds::NONE, &adjoint);
            recycle(Tensor::vector(reversed));
            Some(made)
        };
        if g.axes.iter().all(|a| a.stride == 1) {
            return made.unwrap_or_else(|| vec![0.0; g.batch * channels * cells]);
        }
        let dx = dx.get_or_insert_with(|| buffer(g.batch * channels * cells));
        place(made.as_deref(), g, &adjoint, of.map(|p| p.first), dx);
    }
    dx.unwrap_or_default()
}

/// The weights of a phase: `[group][in_channels][out_channels][taps]`.
fn reversed(w: &[f32], g: &Geometry, [d, h, v]: [&Phase; 3]) -> Vec<f32> {
    let [_, height, width] = g.axes;
    let mut taps = Vec::with_capacity(d.taps.len() * h.taps.len() * v.taps.len());
    for (d, h) in d.taps.iter().flat_map(|d| h.taps.iter().map(move |h| (d, h))) {
        taps.extend(v.taps.iter().map(|v| (d * height.kernel + h) * width.kernel + v));
    }
    // Channels together: what is read of each output channel is one run.
    const TOGETHER: usize = 16;
    let (c, m, all) = (g.in_channels, g.out_channels, g.taps());
    let each = m * taps.len();
    let mut out = buffer(g.group * c * each);
    for (w, out) in w.chunks_exact(m * c * all).zip(out.chunks_exact_mut(c * each)) {
        parallel::chunks(out, TOGETHER * each, |i, out| {
            for (o, w) in w.chunks_exact(c * all).enumerate() {
                let w = w[i * TOGETHER * all..].chunks_exact(all);
                for (w, out) in w.zip(out.chunks_exact_mut(each)) {
                    let out = &mut out[o * taps.len()..][..taps.len()];
                    out.iter_mut().zip(&taps).for_each(|(out, t)| *out = w[*t]);
                }
            }
        });
    }
    out
}

/// Writes the cells of a phase to their places in `dx`; zeros if none were made.
fn place(made: Option<&[f32]>, g: &Geometry, phase: &Geometry, first: [usize; 3], dx: &mut [f32]) {
    let [depth, height, width] = g.axes;
    let [d, h, v] = phase.axes.map(|a| a.output);
    dx.par_chunks_exact_mut(g.inputs()).enumerate().for_each(|(plane, dx)| {
        for (row, (d, h)) in (0..d).flat_map(|d| (0..h).map(move |h| (d, h))).enumerate() {
            let at = (first[0] + d * depth.stride) * height.input + first[1] + h * height.stride;
            let dx = dx[at * width.input..][first[2]..width.input].iter_mut().step_by(width.stride);
            match made {
                Some(made) => {
                    let made = &made[plane * phase.outputs() + row * v..][..v];
                    dx.zip(made).for_each(|(dx, made)| *dx = *made);
                }
                None => dx.for_each(|dx| *dx = 0.0),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{Case, check};
    use crate::ops::window::{Padding, Window};

    type Row = (
        &'static [usize],
        &'static [usize],
        &'static [usize],
        &'static [usize],
        &'static [(usize, usize)],
        usize,
    );

    /// x, w, strides, dilations, pads, groups.
    pub const GEOMETRIES: [Row; 18] = [
        (&[2, 3, 5, 6], &[4, 3, 3, 3], &[], &[], &[(1, 1), (1, 1)], 1),
        (&[2, 3, 5, 6], &[4, 3, 3, 3], &[], &[], &[], 1),
        (&[1, 4, 6, 7], &[4, 2, 3, 2], &[], &[], &[(2, 0), (0, 1)], 2),
        (&[2, 3, 7, 8], &[4, 3, 3, 3], &[2, 2], &[], &[(1, 1), (1, 1)], 1),
        (&[2, 3, 8, 7], &[4, 3, 1, 1], &[2, 2], &[], &[], 1),
        (&[1, 2, 13, 12], &[3, 2, 7, 7], &[2, 2], &[], &[(3, 3), (3, 3)], 1),
        (&[1, 2, 9, 11], &[3, 2, 3, 3], &[3, 2], &[2, 1], &[(2, 1), (0, 2)], 1),
        (&[1, 2, 11, 11], &[3, 2, 3, 3], &[2, 3], &[2, 3], &[(0, 1), (3, 0)], 1),
        (&[1, 2, 11, 9], &[2, 2, 2, 3], &[4, 3], &[1, 2], &[(1, 1), (2, 2)], 1),
        (&[1, 2, 4, 4], &[3, 2, 1, 1], &[], &[], &[(1, 2), (0, 1)], 1),
        (&[1, 2, 6, 6], &[3, 2, 2, 2], &[3, 3], &[], &[(1, 1), (2, 0)], 1),
        (&[2, 5, 6, 7], &[5, 1, 3, 3], &[], &[], &[(1, 1), (1, 1)], 5),
        (&[2, 3, 7, 9], &[6, 1, 3, 3], &[2, 2], &[], &[(1, 1), (0, 1)], 3),
        (&[2, 2, 9, 9], &[2, 1, 5, 3], &[2, 1], &[1, 2], &[(2, 2), (2, 2)], 2),
        (&[2, 3, 17], &[4, 3, 5], &[3], &[2], &[(4, 1)], 1),
        (&[1, 2, 4, 5, 6], &[3, 2, 2, 3, 3], &[1, 2, 1], &[], &[(0, 1), (1, 1), (1, 0)], 1),
        (&[3, 20, 2, 2], &[17, 20, 3, 3], &[], &[], &[(1, 1), (1, 1)], 1),
        (&[1, 1, 5, 5], &[2, 1, 9, 9], &[], &[], &[(4, 4), (4, 4)], 1),
    ];

    fn conv((x, w, strides, dilations, pads, group): Row) -> Case {
        let padding = Padding::Explicit(pads.to_vec());
        let window = Window { strides: strides.to_vec(), dilations: dilations.to_vec(), padding };
        Case::new(Conv { window, group, kernel: None }, &[x, w, &w[..1]])
    }

    #[test]
    fn gradients_are_those_of_differences() {
        check(GEOMETRIES.map(conv));
        let same = Window { strides: vec![2, 3], padding: Padding::SameLower, ..Window::default() };
        check([Case::new(Conv { window: same, group: 1, kernel: None }, &[&[1, 2, 7, 8], &[3, 2, 3, 4]])]);
    }
}
