//! Convolution of f32 images.

use std::sync::Arc;

use lowbit_kernels::{Bordered, Filters, Kernels, MatrixMut, Rows, Window, Windows};

use super::product::{PackedMatrix, WeightedRows};
use crate::error::{Result, invalid};
use crate::op::{
    Attribute, Attributes, Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine,
};
use crate::ops::conv::Conv;
use crate::parallel;
use crate::session::images::{self, ImageShape, bordered, is_padded};
use crate::tensor::{DType, Tensor};

/// Depthwise multiply-accumulates that are worth a task of their own.
const DEPTHWISE_TASK: usize = 1 << 16;

/// A convolution of f32 NHWC images with constant weights, packed at compile time:
///
/// `y[p][c] = clamp(bias[c] + sum_t sum_k x[p, t][k] w[c][t][k], lo, hi)`,
///
/// each a chain of fused multiply-adds, taps and then channels ascending. NaN stays.
#[derive(Clone, Debug)]
pub struct ImageConv {
    shape: ImageShape,
    weights: Arc<Weights>,
    bias: Arc<[f32]>,
    bounds: [f32; 2],
}

#[derive(Debug)]
enum Weights {
    /// One matrix for each group. The taps of its rows are the kernel's rows, all
    /// columns and channels of each, where these lie together; else the kernel's
    /// positions.
    Matrices { matrices: Vec<PackedMatrix>, by_rows: bool },
    /// Where each channel has a filter of its own.
    Depthwise(Filters),
}

impl ImageConv {
    /// The convolution with weights `[out channels][in channels / group][kh][kw]`.
    ///
    /// # Errors
    /// If the weights are no f32 images.
    pub fn new(conv: &Conv, weight: &Tensor, bias: Option<&Tensor>) -> Result<ImageConv> {
        let &[outputs, depth, kh, kw] = weight.shape() else {
            return Err(invalid!("a weight of shape {:?} for an image", weight.shape()));
        };
        let (w, taps, groups) = (weight.slice::<f32>()?, kh * kw, conv.group);
        let at = |c: usize, t: usize, k: usize| w[(c * depth + k) * taps + t];
        let bias = match bias {
            Some(bias) => bias.slice::<f32>()?.to_vec(),
            None => vec![0.0; outputs],
        };
        let weights = if groups == outputs && depth == 1 && groups > 1 {
            let by_tap: Vec<f32> = (0..taps * outputs).map(|i| at(i % outputs, i / outputs, 0)).collect();
            Weights::Depthwise(Filters::new(&by_tap, &bias))
        } else {
            let share = outputs / groups;
            let by_rows = groups == 1 && conv.window.dilations.get(1).is_none_or(|&d| d == 1);
            let of_group = |g: usize| {
                let element = |row: usize, column: usize| at(g * share + column, row / depth, row % depth);
                let (taps, run) = if by_rows { (kh, kw * depth) } else { (taps, depth) };
                PackedMatrix::new(taps, run, share, element)
            };
            Weights::Matrices { matrices: (0..groups).map(of_group).collect(), by_rows }
        };
        Ok(ImageConv {
            shape: ImageShape {
                conv: conv.clone(),
                channels: [depth * groups, outputs],
                kernel: [kh, kw],
                planar: false,
            },
            weights: Arc::new(weights),
            bias: bias.into(),
            bounds: [f32::NEG_INFINITY, f32::INFINITY],
        })
    }

    /// The same convolution, its results restricted to `lo..=hi` too.
    pub fn clamped(&self, lo: f32, hi: f32) -> ImageConv {
        let [least, most] = self.bounds;
        ImageConv { bounds: [least.max(lo).min(most), most.min(hi).max(least)], ..self.clone() }
    }

    /// The same convolution of NCHW images, where that is as fast.
    pub fn of_planes(&self) -> Option<ImageConv> {
        let shape = self.shape.of_planes().filter(|_| matches!(*self.weights, Weights::Matrices { .. }))?;
        Some(ImageConv { shape, ..self.clone() })
    }
}

impl Op for ImageConv {
    fn name(&self) -> &'static str {
        "ImageConv"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        self.shape.infer(x[0], DType::F32)
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let (batch, window) = (x[0].shape[0], self.shape.window(x[0].shape)?);
        let too_large = || invalid!("images of {:?} pixels are too large", window.input);
        let algorithm = match &*self.weights {
            Weights::Depthwise(_) => Algorithm::Depthwise,
            Weights::Matrices { matrices, by_rows } => {
                let plain = (window.kernel, window.stride) == ([1, 1], [1, 1]) && !is_padded(&window);
                if plain && matrices.len() == 1 && !self.shape.planar {
                    Algorithm::Pointwise
                } else {
                    let reach = (self.shape.kernel[1].max(1) - 1) * window.dilation[1] + 1;
                    let inside = !self.shape.planar && !is_padded(&window);
                    let border = (!inside).then(|| bordered(&window, self.shape.planar, reach));
                    let input = border.map_or(window.input, |b| b.size);
                    let kernel = if *by_rows { [self.shape.kernel[0], 1] } else { self.shape.kernel };
                    let inside = Window { input, kernel, pad: [0, 0], ..window };
                    let windows = Windows::new(&inside, batch).ok_or_else(too_large)?;
                    let columns = if *by_rows { self.shape.kernel[1] } else { 1 };
                    Algorithm::Gathered { border, windows, run: columns * window.channels / matrices.len() }
                }
            }
        };
        Prepared::routine(Convolution { op: self.clone(), batch, window, algorithm })
    }
    fn attributes(&self) -> Attributes {
        let [lo, hi] = self.bounds;
        let group = ("group", Attribute::Int(self.shape.conv.group as i64));
        vec![group, ("lo", Attribute::Float(lo)), ("hi", Attribute::Float(hi))]
    }
    fn macs(&self, _: &[&Fact], y: &[&Fact]) -> u64 {
        self.shape.macs(y[0])
    }
}

/// An [`ImageConv`] of known size.
#[derive(Debug)]
struct Convolution {
    op: ImageConv,
    batch: usize,
    window: Window,
    algorithm: Algorithm,
}

#[derive(Debug)]
enum Algorithm {
    /// A plain product of all pixels.
    Pointwise,
    /// A product of windows, read where they lie, in the image or in a copy of it
    /// with a border: `run` elements for each tap.
    Gathered { border: Option<Bordered>, windows: Windows, run: usize },
    /// Channel by channel.
    Depthwise,
}

impl Convolution {
    /// Elements of one input image.
    fn image(&self) -> usize {
        self.window.input[0] * self.window.input[1] * self.op.shape.channels[0]
    }

    /// The images with a border, in `scratch`.
    fn bordered<'a>(&self, x: &[f32], border: &Bordered, scratch: &'a mut [u8]) -> &'a [f32] {
        let (_, copies, _) = bytemuck::pod_align_to_mut(scratch);
        let copies = &mut copies[..self.batch * border.len()];
        images::each_bordered(copies, border, |i, rows, copy| {
            Kernels::best().border_f32(&x[i * self.image()..][..self.image()], border, rows, copy);
        });
        copies
    }

    fn depthwise(&self, x: &[f32], filters: &Filters, y: &mut [f32]) {
        let [oh, ow] = self.window.output;
        let row = ow * self.window.channels;
        let rows = parallel::rows_of_a_task(DEPTHWISE_TASK, row * self.window.taps(), oh);
        parallel::chunks(y, rows * row, |task, y| {
            let (i, first) = (task * rows / oh, task * rows % oh);
            let image = &x[i * self.image()..][..self.image()];
            let rows = first..first + rows;
            Kernels::best().depthwise_f32(image, &self.window, filters, self.op.bounds, rows, y);
        });
    }
}

impl Routine for Convolution {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, scratch: &mut [u8]) -> Result<()> {
        let (op, values) = (&self.op, x[0].f32()?);
        let [inputs, outputs] = op.shape.channels;
        let pitch = y.pitch;
        let matrices = match (&self.algorithm, &*op.weights) {
            (Algorithm::Depthwise, Weights::Depthwise(filters)) => {
                self.depthwise(values, filters, y.f32()?);
                return Ok(());
            }
            (_, Weights::Matrices { matrices, .. }) => matrices,
            _ => return Err(invalid!("a convolution was prepared for other weights")),
        };
        let pixels = self.batch * self.window.output[0] * self.window.output[1];
        let (values, windows) = match &self.algorithm {
            Algorithm::Gathered { border, windows, run } => {
                let values = match border {
                    Some(border) => self.bordered(values, border, scratch),
                    None => values,
                };
                (values, Some((windows, *run)))
            }
            _ => (values, None),
        };
        let mut rest = MatrixMut::strided(y.f32()?, pixels, outputs, pitch);
        let mut bias = &*op.bias;
        for (g, matrix) in matrices.iter().enumerate() {
            let (out, others) = rest.split_cols(matrix.columns());
            let (of_group, others_bias) = bias.split_at(matrix.columns());
            (rest, bias) = (others, others_bias);
            let rows = match windows {
                Some((windows, run)) => Rows::gathered(&values[g * inputs / matrices.len()..], windows, run),
                None => Rows::strided(values, inputs, pixels, inputs),
            };
            let product = WeightedRows {
                rows,
                weights: matrix,
                columns: 0..matrix.columns(),
                bias: Some(of_group),
                bounds: op.bounds,
                out,
            };
            product.run();
        }
        Ok(())
    }
    fn scratch(&self) -> usize {
        match &self.algorithm {
            // Bytes have no alignment: there is one element to spare.
            Algorithm::Gathered { border: Some(border), .. } => {
                (self.batch * border.len() + 1) * size_of::<f32>()
            }
            _ => 0,
        }
    }
    fn strided(&self) -> bool {
        !matches!(self.algorithm, Algorithm::Depthwise)
    }
    fn algorithm(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Pointwise => "gemm",
            Algorithm::Gathered { border: None, .. } => "indirect gemm",
            Algorithm::Gathered { border: Some(_), .. } => "bordered gemm",
            Algorithm::Depthwise => "depthwise",
        }
    }
}
