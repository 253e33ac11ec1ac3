//! Convolution on codes.

mod dynamic;
mod filters;

use lowbit_kernels::{Kernels, PackedDepthwise, Window};

pub use self::dynamic::DynamicConv;
use self::filters::{Filters, Weights, WindowProduct};
use super::product::{End, Epilogue, Out, Requantized, added};
use crate::error::Result;
use crate::op::{
    Attribute, Attributes, Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine,
};
use crate::ops::conv::Conv;
use crate::parallel;
use crate::tensor::Tensor;

/// Depthwise multiply-accumulates that are worth a task of their own.
const DEPTHWISE_TASK: usize = 1 << 17;

/// A convolution of u8 NHWC images with int8 weights, packed at compile time.
///
/// `acc[p][c] = sum_t sum_k (x[p, t][k] - z_x) w[c][t][k]` in i32, then the
/// [`Epilogue`]. Operands: the codes, and what the epilogue adds, if it does.
#[derive(Clone, Debug)]
pub struct QConv {
    filters: Filters,
    input_zero: u8,
    /// What becomes of the accumulators.
    pub epilogue: Epilogue,
}

impl QConv {
    /// The convolution with weights `[out channels][in channels / group][kh][kw]`.
    ///
    /// `bias` is at scale `scale[c] = s_x s_w[c]`; `zero` is the input's zero point.
    ///
    /// # Errors
    /// If the weights are no int8 images.
    pub fn new(conv: &Conv, weight: &Tensor, zero: i32, bias: &[i32], scale: Vec<f32>) -> Result<QConv> {
        let (filters, sums) = Filters::new(conv, weight)?;
        let bias = bias.iter().zip(sums).map(|(b, sum)| b.wrapping_sub(zero.wrapping_mul(sum))).collect();
        Ok(QConv { filters, input_zero: zero as u8, epilogue: Epilogue { bias, scale, codes: None } })
    }

    /// The same convolution with another epilogue.
    pub fn with(&self, epilogue: Epilogue) -> QConv {
        QConv { epilogue, ..self.clone() }
    }

    /// The same convolution of NCHW images, where that is as fast.
    pub fn of_planes(&self) -> Option<QConv> {
        Some(QConv { filters: self.filters.of_planes()?, ..self.clone() })
    }

    /// Whether each channel has a filter of its own.
    pub fn is_depthwise(&self) -> bool {
        self.filters.is_depthwise()
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
        self.filters.shape.infer(x[0], self.epilogue.dtype())
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let (batch, window) = (x[0].shape[0], self.filters.shape.window(x[0].shape)?);
        let algorithm = match (&*self.filters.weights, &self.epilogue.codes) {
            (Weights::Depthwise(weights), Some(target)) => {
                let requant = target.requant(&self.epilogue.bias, 0..window.channels);
                let packed = PackedDepthwise::new(weights, &window, self.input_zero, &requant);
                Algorithm::Depthwise(Box::new(packed))
            }
            (Weights::Depthwise(_), None) => Algorithm::DepthwiseToF32,
            _ => Algorithm::Product(Box::new(WindowProduct::new(&self.filters, batch, window)?)),
        };
        Prepared::routine(Convolution { op: self.clone(), window, algorithm })
    }
    fn attributes(&self) -> Attributes {
        vec![("group", Attribute::Int(self.filters.shape.conv.group as i64))]
    }
    fn macs(&self, _: &[&Fact], y: &[&Fact]) -> u64 {
        self.filters.shape.macs(y[0])
    }
}

/// A [`QConv`] of known size.
#[derive(Debug)]
struct Convolution {
    op: QConv,
    window: Window,
    algorithm: Algorithm,
}

#[derive(Debug)]
enum Algorithm {
    /// Windows times filters.
    Product(Box<WindowProduct>),
    /// Channel by channel.
    Depthwise(Box<PackedDepthwise>),
    /// Channel by channel, by the definition.
    DepthwiseToF32,
}

impl Convolution {
    /// Calls `f(image, first row, rows)` for tasks of whole output rows of one image.
    fn each_rows<T: Send>(&self, x: &[u8], y: &mut [T], f: impl Fn(&[u8], usize, &mut [T]) + Sync) {
        let image = self.window.input[0] * self.window.input[1] * self.window.channels;
        let [oh, ow] = self.window.output;
        let row = ow * self.window.channels;
        let rows = parallel::rows_of_a_task(DEPTHWISE_TASK, row * self.window.taps(), oh);
        parallel::chunks(y, rows * row, |task, y| {
            let (i, first) = (task * rows / oh, task * rows % oh);
            f(&x[i * image..][..image], first, y);
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
        let (outputs, ow) = (op.filters.shape.channels[1], self.window.output[1]);
        match (&self.algorithm, &*op.filters.weights) {
            (Algorithm::Depthwise(packed), _) => {
                self.each_rows(codes, y.u8()?, |image, first, y| {
                    let rows = first..first + y.len() / (ow * outputs);
                    Kernels::best().depthwise(image, packed, rows, y);
                });
                Ok(())
            }
            (Algorithm::Product(product), _) => {
                let (epilogue, added) = (&op.epilogue, added(&op.epilogue, x, outputs)?);
                let out = Out::new(y, product.pixels(), outputs)?;
                product.run(codes, op.input_zero, out, scratch, |first_column, _| {
                    Requantized { epilogue, first_column, added }.beside(first_column)
                })
            }
            (Algorithm::DepthwiseToF32, Weights::Depthwise(weights)) => {
                self.each_rows(codes, y.f32()?, |image, first, y| {
                    for (i, y) in y.iter_mut().enumerate() {
                        let (pixel, c) = (i / outputs, i % outputs);
                        let at = [first + pixel / ow, pixel % ow];
                        *y = self.depthwise_value(image, weights, at, c);
                    }
                });
                Ok(())
            }
            (Algorithm::DepthwiseToF32, Weights::Matrices { .. }) => {
                unreachable!("chosen for depthwise filters")
            }
        }
    }
    fn scratch(&self) -> usize {
        if let Algorithm::Product(product) = &self.algorithm { product.scratch() } else { 0 }
    }
    fn strided(&self) -> bool {
        matches!(self.algorithm, Algorithm::Product(_))
    }
    fn algorithm(&self) -> &'static str {
        match &self.algorithm {
            Algorithm::Product(product) => product.algorithm(),
            Algorithm::Depthwise(_) => "depthwise",
            Algorithm::DepthwiseToF32 => "reference",
        }
    }
}
