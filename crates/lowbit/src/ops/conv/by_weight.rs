//! The gradient by the weight: the product of what the taps read with the
//! outputs' gradients.
//!
//! `dw[m, (c, tap)] = sum over images, outputs of x[(c, tap), o] dy[m, o]` is made
//! transposed: a row of the left matrix is what a tap reads, which lies in the planes
//! of the channel in runs, one for each row of outputs; the right matrix is the
//! transpose of `dy`.
//!
//! Images are summed in several parts that depend on the sizes alone, and these in
//! order, so that the number of threads does not show.

use lowbit_kernels::{Kernels, Matrix, MatrixMut, Panels, Product, Right, Rows, Start, Windows};
use rayon::prelude::*;

use super::planes::Planes;
use super::{Geometry, columns, depthwise};
use crate::ops::product::{Operand, matmul, transposed, with_scratch};
use crate::ops::vectorized::vectorized;
use crate::parallel;
use crate::tensor::Tensor;
use crate::tensor::buffers::{buffer, recycle};

/// The gradient by w of a convolution of `x`, given that by its outputs.
pub(super) fn by_weight(x: &[f32], dy: &[f32], g: &Geometry) -> Vec<f32> {
    let (k, m) = (g.in_channels * g.taps(), g.out_channels);
    if g.batch * g.outputs() * g.inputs() * m * k == 0 {
        return vec![0.0; g.group * m * k];
    }
    if let Some(planes) = depthwise::planes(g) {
        return by_channel(&planes, x, dy, g);
    }
    match Planes::new(g).and_then(|planes| Images::new(x, dy, g, planes)) {
        Some(images) => images.multiply(),
        None => by_columns(x, dy, g),
    }
}

/// Outputs whose gradients are multiplied at once.
const DEPTH: usize = 768;
/// The most parts.
const PARTS: usize = 16;
/// Elements of all parts together.
const SUMMED: usize = 1 << 20;
/// Rows of the left matrix that are worth a task.
const ROWS: usize = 64;

struct Images<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    g: &'a Geometry,
    planes: Planes,
    /// Elements between channels in the planes, and between images.
    pitch: usize,
    image: usize,
    /// Images that are multiplied together.
    together: usize,
    /// Of each row, for each of these images and each of its runs, the place; and the
    /// same for the images that are left over.
    windows: [Windows; 2],
    /// Runs of an image, and their length.
    runs: usize,
    len: usize,
}

impl<'a> Images<'a> {
    fn new(x: &'a [f32], dy: &'a [f32], g: &'a Geometry, planes: Planes) -> Option<Images<'a>> {
        let [depth, height, width] = g.axes.map(|a| a.output);
        let (pitch, image) = if planes.are_input() {
            (g.inputs(), g.group * g.in_channels * g.inputs())
        } else {
            (planes.size(), g.in_channels * planes.size())
        };
        let mut rows: Vec<usize> = (0..depth)
            .flat_map(|d| (0..height).map(move |h| (d, h)))
            .map(|(d, h)| planes.row(d, h))
            .collect();
        let mut len = width;
        if g.outputs() <= DEPTH && rows.windows(2).all(|w| w[1] == w[0] + width) {
            len = g.outputs();
            rows.truncate(1);
        }
        let together = (DEPTH / g.outputs()).clamp(1, g.batch);
        let windows = |images: usize| {
            let starts = (0..g.in_channels).flat_map(|c| planes.taps().iter().map(move |t| c * pitch + t));
            let runs = (0..images).flat_map(|i| rows.iter().map(move |row| i * image + row));
            Windows::at(starts, runs.collect())
        };
        let windows = [windows(together)?, windows((g.batch - 1) % together + 1)?];
        Some(Images { x, dy, g, pitch, image, together, windows, runs: rows.len(), len, planes })
    }

    fn multiply(&self) -> Vec<f32> {
        let g = self.g;
        let (k, m) = (g.in_channels * g.taps(), g.out_channels);
        let size = g.group * k * m;
        let steps = g.batch.div_ceil(self.together);
        let parts = steps.min(PARTS).min(SUMMED / size).max(1);
        let mut sums = buffer(parts * size);
        sums.fill(0.0);
        let part = |(part, sum): (usize, &mut [f32])| {
            for step in part * steps / parts..(part + 1) * steps / parts {
                for (group, sum) in sum.chunks_exact_mut(k * m).enumerate() {
                    let first = step * self.together;
                    self.add(first, self.together.min(g.batch - first), group, parts < PARTS, sum);
                }
            }
        };
        sums.par_chunks_exact_mut(size).enumerate().for_each(part);
        let (sum, others) = sums.split_at_mut(size);
        parallel::chunks(sum, 1 << 14, |i, sum| {
            for other in others.chunks_exact(size) {
                sum.iter_mut().zip(&other[i << 14..]).for_each(|(sum, x)| *sum += x);
            }
        });
        let flip = |dw: &[f32]| transposed(Matrix::new(dw, k, m));
        let dw = if g.group == 1 { flip(sum) } else { sum.chunks_exact(k * m).flat_map(flip).collect() };
        recycle(Tensor::vector(sums));
        dw
    }

    /// Adds what `count` images from `first` give to one group.
    fn add(&self, first: usize, count: usize, group: usize, parallel: bool, sum: &mut [f32]) {
        let g = self.g;
        let channels = g.in_channels * g.inputs();
        let plane = |image: usize| ((first + image) * g.group + group) * channels;
        if self.planes.are_input() {
            return self.add_filled(&self.x[plane(0)..], first, count, group, parallel, sum);
        }
        with_scratch(count * self.image, |cells| {
            let fill = |(at, cells): (usize, &mut [f32])| {
                let x = plane(at / g.in_channels) + at % g.in_channels * g.inputs();
                self.planes.fill(&self.x[x..][..g.inputs()], cells, false);
            };
            if parallel {
                let least = ((1 << 14) / self.pitch).max(1);
                cells.par_chunks_exact_mut(self.pitch).with_min_len(least).enumerate().for_each(fill);
            } else {
                cells.chunks_exact_mut(self.pitch).enumerate().for_each(fill);
            }
            self.add_filled(cells, first, count, group, parallel, sum);
        });
    }

    fn add_filled(
        &self,
        cells: &[f32],
        first: usize,
        count: usize,
        group: usize,
        parallel: bool,
        sum: &mut [f32],
    ) {
        let (kernels, g) = (Kernels::best(), self.g);
        let (k, m) = (g.in_channels * g.taps(), g.out_channels);
        let width = kernels.panel_width();
        let windows = &self.windows[usize::from(count < self.together)];
        let runs = count * self.runs;
        let step = (DEPTH / self.len).max(1);
        for start in (0..runs).step_by(step) {
            let taken = step.min(runs - start);
            let depth = taken * self.len;
            let panels = if m <= width { depth * m } else { Panels::len(depth, m, width) };
            with_scratch(panels, |panels| {
                let each = m.min(width);
                let turn = |(panel, out): (usize, &mut [f32])| {
                    let rows = each.min(m - panel * each);
                    for (run, out) in (start..start + taken).zip(out.chunks_exact_mut(self.len * each)) {
                        let (image, run) = (first + run / self.runs, run % self.runs);
                        let channel = (image * g.group + group) * m + panel * each;
                        let dy = &self.dy[channel * g.outputs() + run * self.len..];
                        kernels.transpose(Matrix::strided(dy, rows, self.len, g.outputs()), each, out);
                    }
                };
                let right = if parallel && m > width {
                    panels.par_chunks_exact_mut(depth * each).enumerate().for_each(turn);
                    Right::Panels(Panels::new(panels, depth, m, width))
                } else {
                    panels.chunks_exact_mut(depth * each).enumerate().for_each(turn);
                    match m <= width {
                        true => Right::Matrix(Matrix::new(panels, depth, m)),
                        false => Right::Panels(Panels::new(panels, depth, m, width)),
                    }
                };
                let left = Rows::gathered(cells, windows, self.len);
                let left = left.within(start..start + taken, 0..self.len);
                let product = |(i, out): (usize, &mut [f32])| {
                    let rows = out.len() / m;
                    let left = left.range(i * ROWS..i * ROWS + rows);
                    let product = Product { start: Start::Out, ..Product::new(left, right) };
                    kernels.product(&product, &mut MatrixMut::new(out, rows, m));
                };
                if parallel && k * m * depth >= 1 << 20 {
                    sum.par_chunks_mut(ROWS * m).enumerate().for_each(product);
                } else {
                    sum.chunks_mut(ROWS * m).enumerate().for_each(product);
                }
            });
        }
    }
}

/// Of a geometry whose planes would be too large: by columns that are looked up.
fn by_columns(x: &[f32], dy: &[f32], g: &Geometry) -> Vec<f32> {
    let (k, m, outputs) = (g.in_channels * g.taps(), g.out_channels, g.outputs());
    let mut dw = vec![0.0; g.group * m * k];
    let mut cols = vec![0.0; k * outputs];
    for index in 0..g.batch * g.group {
        let x = &x[index * g.in_channels * g.inputs()..];
        columns::look_up(x, &g.axes, g.taps(), 0, &mut cols, outputs);
        let dy = Matrix::new(&dy[index * m * outputs..], m, outputs);
        let dw = &mut dw[index % g.group * m * k..][..m * k];
        matmul(dy, Operand::Transposed(Matrix::new(&cols, k, outputs)), true, dw, true);
    }
    dw
}

/// Few channels in a group: for each tap the product of two planes, whose cells
/// between the rows of outputs are multiplied by 0.
fn by_channel(planes: &Planes, x: &[f32], dy: &[f32], g: &Geometry) -> Vec<f32> {
    let ([depth, height, width], m) = (g.axes.map(|a| a.output), g.out_channels);
    let reach = planes.row(depth - 1, height - 1) + width;
    let mut dw = vec![0.0; g.group * m * g.taps()];
    let groups = dw.par_chunks_exact_mut(m * g.taps()).enumerate();
    groups.for_each(|(group, dw)| {
        let mut sums = vec![0f64; dw.len()];
        with_scratch(planes.size() + reach, |scratch| {
            let (cells, spread) = scratch.split_at_mut(planes.size());
            spread.fill(0.0);
            for image in 0..g.batch {
                let at = image * g.group + group;
                planes.fill(&x[at * g.inputs()..][..g.inputs()], cells, image > 0);
                for (o, sums) in sums.chunks_exact_mut(g.taps()).enumerate() {
                    let dy = &dy[(at * m + o) * g.outputs()..][..g.outputs()];
                    for (row, dy) in dy.chunks_exact(width).enumerate() {
                        let to = planes.row(row / height, row % height);
                        spread[to..][..width].copy_from_slice(dy);
                    }
                    for (sum, tap) in sums.iter_mut().zip(planes.taps()) {
                        let cells = &cells[*tap..][..reach];
                        *sum += f64::from(vectorized(
                            #[inline(always)]
                            || dot(cells, spread),
                        ));
                    }
                }
            }
        });
        dw.iter_mut().zip(sums).for_each(|(dw, sum)| *dw = sum as f32);
    });
    dw
}

/// The sum of products, in partial sums.
#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    const LANES: usize = 64;
    let mut lanes = [0f32; LANES];
    let ((x, last_x), (y, last_y)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for j in 0..LANES {
            lanes[j] += x[j] * y[j];
        }
    }
    let last: f32 = last_x.iter().zip(last_y).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + last
}
