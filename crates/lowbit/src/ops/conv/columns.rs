//! Convolution as a matrix product: what the taps read for a block of outputs
//! is gathered into panels that stay in the cache.

use lowbit_kernels::{Gather, Kernels, Matrix, MatrixMut, Panels, Product, Right, Run, Start};
use rayon::prelude::*;

use super::planes::Planes;
use super::{Bounds, Geometry};
use crate::ops::product::{Part, depth_steps, for_each_part, with_scratch};
use crate::ops::window::Axis;

/// Where the right matrix of one image and group comes from.
enum Source<'a> {
    /// One tap, every cell, no padding: it is the input itself.
    Plain(Matrix<'a>),
    /// Planes, those of each channel `pitch` apart, and those of each image `image`.
    Planes { planes: &'a Planes, cells: &'a [f32], pitch: usize, image: usize },
    /// The input; cells are looked up one by one.
    Cells { x: &'a [f32], axes: &'a [Axis; 3] },
}

/// One group of one image, or of several that are multiplied together: the product of `w [out_channels][in_channels * taps]`
/// with the columns of a source.
struct Image<'a> {
    g: &'a Geometry,
    w: Matrix<'a>,
    bias: Option<&'a [f32]>,
    bounds: Bounds,
}

/// Convolution by blocks of columns.
pub(super) fn convolve(
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    bounds: Bounds,
    g: &Geometry,
    y: &mut [f32],
) {
    let (k, m, inputs) = (g.in_channels * g.taps(), g.out_channels, g.in_channels * g.inputs());
    let planes = Planes::new(g);
    let several = together(g);
    if let Some(planes) = planes.as_ref().filter(|_| several > 1) {
        return convolve_together(planes, several, x, w, bias, bounds, g, y);
    }
    let image = |index: usize, y: &mut [f32], parallel: bool| {
        let group = index % g.group;
        let x = &x[index * inputs..][..inputs];
        let image = Image {
            g,
            w: Matrix::new(&w[group * m * k..][..m * k], m, k),
            bias: bias.map(|b| &b[group * m..][..m]),
            bounds,
        };
        let y = MatrixMut::new(y, m, g.outputs());
        match &planes {
            Some(_) if is_plain(&g.axes) => {
                image.multiply(&Source::Plain(Matrix::new(x, k, g.outputs())), y, parallel);
            }
            Some(planes) if planes.are_input() => {
                image.multiply(
                    &Source::Planes { planes, cells: x, pitch: g.inputs(), image: 0 },
                    y,
                    parallel,
                );
            }
            Some(planes) => with_scratch(g.in_channels * planes.size(), |cells| {
                fill(planes, x, g.inputs(), cells, parallel);
                image.multiply(
                    &Source::Planes { planes, cells, pitch: planes.size(), image: 0 },
                    y,
                    parallel,
                );
            }),
            None => image.multiply(&Source::Cells { x, axes: &g.axes }, y, parallel),
        }
    };
    let images = y.chunks_exact_mut(m * g.outputs());
    if g.batch * g.group < 2 * rayon::current_num_threads() {
        images.enumerate().for_each(|(i, y)| image(i, y, true));
    } else {
        y.par_chunks_exact_mut(m * g.outputs()).enumerate().for_each(|(i, y)| image(i, y, false));
    }
}

/// Images whose columns are multiplied together: enough of them to fill panels.
fn together(g: &Geometry) -> usize {
    /// Panels that are filled, at least.
    const PANELS: usize = 4;
    let most = (PANELS * Kernels::best().panel_width() / g.outputs()).clamp(1, g.batch);
    g.batch.div_ceil(g.batch.div_ceil(most))
}

/// Convolution of small images, several to a product.
#[allow(clippy::too_many_arguments)]
fn convolve_together(
    planes: &Planes,
    several: usize,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    bounds: Bounds,
    g: &Geometry,
    y: &mut [f32],
) {
    let (k, m, outputs) = (g.in_channels * g.taps(), g.out_channels, g.outputs());
    let inputs = g.in_channels * g.inputs();
    let plane = g.in_channels * planes.size();
    let images = |index: usize, y: &mut [f32], parallel: bool| {
        let count = y.len() / (g.group * m * outputs);
        for group in 0..g.group {
            let x = &x[(index * several * g.group + group) * inputs..];
            let w = Matrix::new(&w[group * m * k..][..m * k], m, k);
            let image = Image { g, w, bias: bias.map(|b| &b[group * m..][..m]), bounds };
            with_scratch(m * count * outputs, |made| {
                let to = MatrixMut::new(made, m, count * outputs);
                if planes.are_input() {
                    let (pitch, apart) = (g.inputs(), g.group * inputs);
                    image.multiply(&Source::Planes { planes, cells: x, pitch, image: apart }, to, parallel);
                } else {
                    with_scratch(count * plane, |cells| {
                        for (i, cells) in cells.chunks_exact_mut(plane).enumerate() {
                            fill(planes, &x[i * g.group * inputs..][..inputs], g.inputs(), cells, parallel);
                        }
                        let pitch = planes.size();
                        image.multiply(&Source::Planes { planes, cells, pitch, image: plane }, to, parallel);
                    });
                }
                for (i, y) in y.chunks_exact_mut(g.group * m * outputs).enumerate() {
                    let y = y[group * m * outputs..][..m * outputs].chunks_exact_mut(outputs);
                    let made = made.chunks_exact(count * outputs);
                    y.zip(made).for_each(|(y, made)| y.copy_from_slice(&made[i * outputs..][..outputs]));
                }
            });
        }
    };
    let size = several * g.group * m * outputs;
    if y.len().div_ceil(size) < 2 * rayon::current_num_threads() {
        y.chunks_mut(size).enumerate().for_each(|(i, y)| images(i, y, true));
    } else {
        y.par_chunks_mut(size).enumerate().for_each(|(i, y)| images(i, y, false));
    }
}

/// Elements that are worth a thread to copy.
const COPIED: usize = 1 << 15;

fn fill(planes: &Planes, x: &[f32], inputs: usize, cells: &mut [f32], parallel: bool) {
    let size = planes.size();
    let fill = |(x, cells): (&[f32], &mut [f32])| planes.fill(x, cells, false);
    if parallel && cells.len() >= 2 * COPIED && rayon::current_num_threads() > 1 {
        let channels = x.par_chunks_exact(inputs).zip(cells.par_chunks_exact_mut(size));
        channels.with_min_len(COPIED.div_ceil(size)).for_each(fill);
    } else {
        x.chunks_exact(inputs).zip(cells.chunks_exact_mut(size)).for_each(fill);
    }
}

impl Image<'_> {
    fn multiply(&self, source: &Source, y: MatrixMut, parallel: bool) {
        for_each_part(y, self.w.size()[1], parallel, |part| self.multiply_part(source, part));
    }

    fn multiply_part(&self, source: &Source, Part { row, col, mut out }: Part) {
        let kernels = Kernels::best();
        let [rows, cols] = out.size();
        let (width, taps) = (kernels.panel_width(), self.g.taps());
        let w = self.w.rows(row, rows);
        let runs = match source {
            Source::Planes { planes, image, .. } => {
                let starts = (0..cols).step_by(width);
                starts.map(|at| self.runs(planes, *image, col + at, width.min(cols - at))).collect()
            }
            _ => vec![],
        };
        for channels in depth_steps(self.g.in_channels, taps) {
            let depth = channels.len() * taps;
            let (first, last) = (channels.start == 0, channels.end == self.g.in_channels);
            let start = match self.bias {
                _ if !first => Start::Out,
                Some(bias) => Start::Rows(&bias[row..][..rows]),
                None => Start::Zero,
            };
            let bounds = if last { self.bounds } else { Bounds::NONE };
            let mut product = |right: Right| {
                let left = w.cols(channels.start * taps, depth).into();
                let Bounds { lo, hi } = bounds;
                kernels.product(&Product { left, right, start, lo, hi }, &mut out);
            };
            match source {
                Source::Plain(x) => {
                    product(Right::Matrix(x.rows(channels.start, depth).cols(col, cols)));
                }
                Source::Planes { planes, cells, pitch, .. } => {
                    with_scratch(Panels::len(depth, cols, width), |panels| {
                        for (i, runs) in runs.iter().enumerate() {
                            let panel = &mut panels[i * width * depth..];
                            let from = Gather { source: cells, pitch: *pitch, taps: planes.taps(), runs };
                            kernels.gather(&from, channels.clone(), width, panel);
                        }
                        product(Right::Panels(Panels::new(panels, depth, cols, width)));
                    });
                }
                Source::Cells { x, axes } => with_scratch(depth * cols, |columns| {
                    let x = &x[channels.start * self.g.inputs()..];
                    look_up(x, axes, taps, col, columns, cols);
                    product(Right::Matrix(Matrix::new(columns, depth, cols)));
                }),
            }
        }
    }

    /// [`Planes::runs`] of the `count` columns from `start`, which go through images
    /// whose planes lie `apart`.
    fn runs(&self, planes: &Planes, apart: usize, start: usize, count: usize) -> Vec<Run> {
        let (outputs, mut runs, mut at) = (self.g.outputs(), vec![], start);
        while at < start + count {
            let (image, first) = (at / outputs, at % outputs);
            let len = (outputs - first).min(start + count - at);
            let moved = |r: Run| Run { from: r.from + image * apart, to: r.to + at - start, ..r };
            runs.extend(planes.runs(first, len).into_iter().map(moved));
            at += len;
        }
        runs
    }
}

/// Whether the columns are the input itself: one tap, every cell, no padding.
fn is_plain(axes: &[Axis; 3]) -> bool {
    axes.iter().all(|a| (a.kernel, a.stride, a.before, a.output) == (1, 1, 0, a.input))
}

/// What each channel and tap reads for the `cols` outputs from `start`.
pub(super) fn look_up(
    x: &[f32],
    axes: &[Axis; 3],
    taps: usize,
    start: usize,
    columns: &mut [f32],
    cols: usize,
) {
    let [depth, height, width] = axes;
    for (row, columns) in columns.chunks_exact_mut(cols).enumerate() {
        let (c, t) = (row / taps, row % taps);
        let tap = [t / (height.kernel * width.kernel), t / width.kernel % height.kernel, t % width.kernel];
        for (i, y) in columns.iter_mut().enumerate() {
            let o = start + i;
            let d = depth.at(o / (height.output * width.output), tap[0]);
            let h = height.at(o / width.output % height.output, tap[1]);
            let w = width.at(o % width.output, tap[2]);
            *y = match (d, h, w) {
                (Some(d), Some(h), Some(w)) => {
                    x[((c * depth.input + d) * height.input + h) * width.input + w]
                }
                _ => 0.0,
            };
        }
    }
}
