//! Convolution on codes.

use std::sync::Arc;

use lowbit_kernels::{Bordered, Kernels, MOST_TAPS, PackedDepthwise, PackedWeights, Rows, Window, Windows};

use super::product::{End, Epilogue, Out, Product, Requantized, added};
use crate::error::{Result, invalid};
use crate::op::{
    Attribute, Attributes, Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine,
};
use crate::ops::conv::Conv;
use crate::parallel;
use crate::session::images::{ImageShape, bordered, is_padded};
use crate::tensor::Tensor;

/// Depthwise multiply-accumulates that are worth a task of their own.
const DEPTHWISE_TASK: usize = 1 << 17;

/// A convolution of u8 NHWC images with int8 weights, packed at compile time.
///
/// `acc[p][c] = sum_t sum_k (x[p, t][k] - z_x) w[c][t][k]` in i32, then the
/// [`Epilogue`]. Operands: the codes, and what the epilogue adds, if it does.
#[derive(Clone, Debug)]
pub struct QConv {
    shape: ImageShape,
    weights: Arc<Weights>,
    input_zero: u8,
    /// What becomes of the accumulators.
    pub epilogue: Epilogue,
}

#[derive(Debug)]
enum Weights {
    /// One matrix for each group. The taps of a matrix are the kernel's rows, all
    /// columns and channels of each, filled up with zeros to whole words, where
    /// these lie together; else the kernel's positions.
    Matrices { matrices: Vec<PackedWeights>, by_rows: bool },
    /// `[tap][channel]`, where each channel has a filter of its own.
    Depthwise(Vec<i8>),
}

impl QConv {
    /// The convolution with weights `[out channels][in channels / group][kh][kw]`.
    ///
    /// `bias` is at scale `scale[c] = s_x s_w[c]`; `zero` is the input's zero point.
    pub fn new(conv: &Conv, weight: &Tensor, zero: i32, bias: &[i32], scale: Vec<f32>) -> Result<QConv> {
        let &[outputs, depth, kh, kw] = weight.shape() else {
            return Err(invalid!("a weight of shape {:?} for an image", weight.shape()));
        };
        let groups = conv.group;
        let codes = weight.slice::<i8>()?;
        let taps = kh * kw;
        // [out][k][tap] to [out][tap][k].
        let by_tap: Vec<i8> = (0..codes.len())
            .map(|i| {
                let (c, t, k) = (i / (taps * depth), i / depth % taps, i % depth);
                codes[(c * depth + k) * taps + t]
            })
            .collect();
        let per_channel = taps * depth;
        let sum =
            |c: usize| by_tap[c * per_channel..][..per_channel].iter().map(|&w| i32::from(w)).sum::<i32>();
        let bias = bias.iter().enumerate().map(|(c, b)| b.wrapping_sub(zero.wrapping_mul(sum(c)))).collect();
        let adjacent = conv.window.dilations.get(1).is_none_or(|&d| d == 1);
        let weights = if groups == outputs && depth == 1 && groups > 1 && taps <= MOST_TAPS {
            let transposed = (0..taps * outputs).map(|i| by_tap[i % outputs * taps + i / outputs]).collect();
            Weights::Depthwise(transposed)
        } else {
            let by_rows = groups == 1 && adjacent;
            let (taps, depth) = if by_rows { (kh, kw * depth) } else { (taps, depth) };
            let filled = depth.next_multiple_of(4);
            let mut runs = vec![0; outputs * taps * filled];
            for (to, from) in runs.chunks_exact_mut(filled.max(1)).zip(by_tap.chunks_exact(depth.max(1))) {
                to[..depth].copy_from_slice(from);
            }
            let (share, of_group) = (outputs / groups, outputs / groups * taps * filled);
            let group = |g: usize| &runs[g * of_group..][..of_group];
            let matrices = (0..groups).map(|g| PackedWeights::with_taps(group(g), share, taps, filled));
            Weights::Matrices { matrices: matrices.collect(), by_rows }
        };
        Ok(QConv {
            shape: ImageShape {
                conv: conv.clone(),
                channels: [depth * groups, outputs],
                kernel: [kh, kw],
                planar: false,
            },
            weights: Arc::new(weights),
            input_zero: zero as u8,
            epilogue: Epilogue { bias, scale, codes: None },
        })
    }

    /// The same convolution with another epilogue.
    pub fn with(&self, epilogue: Epilogue) -> QConv {
        QConv { epilogue, ..self.clone() }
    }

    /// The same convolution of NCHW images, where that is as fast.
    pub fn of_planes(&self) -> Option<QConv> {
        let shape = self.shape.of_planes().filter(|_| !self.is_depthwise())?;
        Some(QConv { shape, ..self.clone() })
    }

    /// Whether each channel has a filter of its own.
    pub fn is_depthwise(&self) -> bool {
        matches!(*self.weights, Weights::Depthwise(_))
    }
}

impl Op for QConv {
    fn name(&self) -> &'static str {
        "QConv"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        self.shape.infer(x[0], self.epilogue.dtype())
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let window = self.shape.window(x[0].shape)?;
        let algorithm = match &*self.weights {
            Weights::Depthwise(weights) => match &self.epilogue.codes {
                Some(target) => {
                    let requant = target.requant(&self.epilogue.bias, 0..window.channels);
                    let packed = PackedDepthwise::new(weights, &window, self.input_zero, &requant);
                    Algorithm::Depthwise(Box::new(packed))
                }
                None => Algorithm::DepthwiseToF32,
            },
            Weights::Matrices { matrices, by_rows } => {
                let plain = (window.kernel, window.stride) == ([1, 1], [1, 1]) && !is_padded(&window);
                let filled = matrices.first().map_or(0, PackedWeights::depth);
                let channels = self.shape.channels[0];
                if plain && matrices.len() == 1 && filled == channels {
                    Algorithm::Pointwise
                } else {
                    // Pixels that a window spans, with those that its last run reads beyond its own.
                    let share = channels / matrices.len();
                    let reach = |bytes: usize| bytes.div_ceil(channels.max(1));
                    let (run, columns) = match by_rows {
                        true => (self.shape.kernel[1] * channels, reach(filled)),
                        false => {
                            let last = (self.shape.kernel[1].max(1) - 1) * window.dilation[1];
                            (share, last + reach(channels - share + filled))
                        }
                    };
                    let inside = !self.shape.planar && !is_padded(&window) && filled == run;
                    let border = (!inside).then(|| bordered(&window, self.shape.planar, columns));
                    let size = border.map_or(window.input, |b| b.size);
                    let kernel = if *by_rows { [self.shape.kernel[0], 1] } else { self.shape.kernel };
                    let inside = Window { input: size, kernel, pad: [0, 0], ..window };
                    let windows = Windows::new(&inside, x[0].shape[0])
                        .ok_or_else(|| invalid!("images of {:?} pixels are too large", window.input))?;
                    Algorithm::Gathered { border, windows }
                }
            }
        };
        Prepared::routine(Convolution { op: self.clone(), batch: x[0].shape[0], window, algorithm })
    }
    fn attributes(&self) -> Attributes {
        vec![("group", Attribute::Int(self.shape.conv.group as i64))]
    }
    fn macs(&self, _: &[&Fact], y: &[&Fact]) -> u64 {
        self.shape.macs(y[0])
    }
}

/// A [`QConv`] of known size.
#[derive(Debug)]
struct Convolution {
    op: QConv,
    batch: usize,
    window: Window,
    algorithm: Algorithm,
}

#[derive(Debug)]
enum Algorithm {
    /// A plain product of all pixels.
    Pointwise,
    /// A product of windows, read where they lie, in the image or in a copy of it
    /// with a border.
    Gathered { border: Option<Bordered>, windows: Windows },
    /// Channel by channel.
    Depthwise(Box<PackedDepthwise>),
    /// Channel by channel, by the definition.
    DepthwiseToF32,
}

impl Convolution {
    /// Bytes of one input image.
    fn image(&self) -> usize {
        self.window.input[0] * self.window.input[1] * self.op.shape.channels[0]
    }

    /// The images with a border, in `scratch`.
    fn bordered<'a>(&self, x: &[u8], border: &Bordered, scratch: &'a mut [u8]) -> &'a [u8] {
        let copies = &mut scratch[..self.batch * border.len()];
        parallel::chunks(copies, border.len(), |i, copy| {
            let image = &x[i * self.image()..][..self.image()];
            Kernels::best().border(image, border, self.op.input_zero, copy);
        });
        copies
    }

    /// Calls `f(image, first row, rows)` for tasks of whole output rows of one image.
    fn each_rows<T: Send>(&self, x: &[u8], y: &mut [T], f: impl Fn(&[u8], usize, &mut [T]) + Sync) {
        let [oh, ow] = self.window.output;
        let row = ow * self.window.channels;
        let rows = parallel::rows_of_a_task(DEPTHWISE_TASK, row * self.window.taps(), oh);
        parallel::chunks(y, rows * row, |task, y| {
            let (i, first) = (task * rows / oh, task * rows % oh);
            f(&x[i * self.image()..][..self.image()], first, y);
        });
    }

    /// What a depthwise convolution gives at one output pixel and channel, in f32.
    fn depthwise_value(&self, image: &[u8], weights: &[i8], [oy, ox]: [usize; 2], c: usize) -> f32 {
        let window = &self.window;
        let products = (0..window.taps()).map(|t| {
            let iy = window.position(0, oy, t / window.kernel[1]);
            let ix = window.position(1, ox, t % window.kernel[1]);
            let x = match iy.zip(ix) {
                Some((y, x)) => image[(y * window.input[1] + x) * window.channels + c],
                None => self.op.input_zero,
            };
            i32::from(x) * i32::from(weights[t * window.channels + c])
        });
        let Epilogue { bias, scale, .. } = &self.op.epilogue;
        products.sum::<i32>().wrapping_add(bias[c]) as f32 * scale[c]
    }
}

impl Routine for Convolution {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, scratch: &mut [u8]) -> Result<()> {
        let (op, codes) = (&self.op, x[0].u8()?);
        let [inputs, outputs] = op.shape.channels;
        let [oh, ow] = self.window.output;
        let pixels = self.batch * oh * ow;
        match (&self.algorithm, &*op.weights) {
            (Algorithm::Depthwise(packed), _) => {
                self.each_rows(codes, y.u8()?, |image, first, y| {
                    let rows = first..first + y.len() / (ow * outputs);
                    Kernels::best().depthwise(image, packed, rows, y);
                });
                return Ok(());
            }
            (Algorithm::DepthwiseToF32, Weights::Depthwise(weights)) => {
                self.each_rows(codes, y.f32()?, |image, first, y| {
                    for (i, y) in y.iter_mut().enumerate() {
                        let (pixel, c) = (i / outputs, i % outputs);
                        let at = [first + pixel / ow, pixel % ow];
                        *y = self.depthwise_value(image, weights, at, c);
                    }
                });
                return Ok(());
            }
            _ => {}
        }
        let added = added(&op.epilogue, x, outputs)?;
        let out = Out::new(y, pixels, outputs)?;
        let Weights::Matrices { matrices, .. } = &*op.weights else {
            return Err(invalid!("a convolution was prepared for other weights"));
        };
        let (a, windows) = match &self.algorithm {
            Algorithm::Gathered { border: Some(border), windows } => {
                (self.bordered(codes, border, scratch), Some(windows))
            }
            Algorithm::Gathered { border: None, windows } => (codes, Some(windows)),
            _ => (codes, None),
        };
        let share = inputs / matrices.len();
        let mut rest = out;
        for (g, weights) in matrices.iter().enumerate() {
            let first_column = g * weights.columns();
            let (out, others) = rest.split_columns(weights.columns());
            rest = others;
            Product {
                rows: match windows {
                    Some(windows) => Rows::gathered(&a[g * share..], windows, weights.depth()),
                    None => Rows::strided(a, inputs, pixels, inputs),
                },
                weights: weights.view(),
                panels: 0..weights.panels(),
                end: Requantized { epilogue: &op.epilogue, first_column, added }.beside(first_column),
                out,
            }
            .run();
        }
        Ok(())
    }
    fn scratch(&self) -> usize {
        match &self.algorithm {
            Algorithm::Gathered { border: Some(border), .. } => self.batch * border.len(),
            _ => 0,
        }
    }
    fn strided(&self) -> bool {
        !matches!(self.algorithm, Algorithm::Depthwise(_) | Algorithm::DepthwiseToF32)
    }
    fn algorithm(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Pointwise => "gemm",
            Algorithm::Gathered { border: None, .. } => "indirect gemm",
            Algorithm::Gathered { border: Some(_), .. } => "bordered gemm",
            Algorithm::Depthwise(_) => "depthwise",
            Algorithm::DepthwiseToF32 => "reference",
        }
    }
}
