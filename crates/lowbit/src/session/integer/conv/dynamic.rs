//! Convolution of images that are quantized in each run.

use std::sync::Arc;

use super::filters::{Filters, WindowProduct};
use crate::error::Result;
use crate::op::{Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::ops::conv::Conv;
use crate::session::integer::dynamic::{Dequantized, quantize_all};
use crate::session::integer::product::Out;
use crate::tensor::{DType, Tensor};

/// `y[p][c] = acc[p][c] as f32 * (s * s_w[c]) + bias[c]`, where the accumulators
/// are those of [`QConv`](super::QConv) for the codes and parameters that the range
/// of all images gives (docs/quantization.md, equation 23).
///
/// Operand: f32 NHWC images.
#[derive(Clone, Debug)]
pub struct DynamicConv {
    filters: Filters,
    sums: Arc<[i32]>,
    scale: Arc<[f32]>,
    bias: Option<Arc<[f32]>>,
}

impl DynamicConv {
    /// The convolution with int8 weights `[out channels][in channels / group][kh][kw]`
    /// of scale `scale[c]`; `None` if each channel has a filter of its own.
    ///
    /// # Errors
    /// If the weights are no int8 images.
    pub fn new(conv: &Conv, weight: &Tensor, scale: Vec<f32>) -> Result<Option<DynamicConv>> {
        let (filters, sums) = Filters::new(conv, weight)?;
        let products = !filters.is_depthwise();
        Ok(products.then(|| DynamicConv { filters, sums: sums.into(), scale: scale.into(), bias: None }))
    }

    /// The same convolution with a bias for each channel; `None` if it has one or
    /// another number of channels.
    pub fn biased(&self, bias: &[f32]) -> Option<DynamicConv> {
        let fits = self.bias.is_none() && bias.len() == self.sums.len();
        fits.then(|| DynamicConv { bias: Some(bias.into()), ..self.clone() })
    }
}

impl Op for DynamicConv {
    fn name(&self) -> &'static str {
        "DynamicConv"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        self.filters.shape.infer(x[0], DType::F32)
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let (batch, window) = (x[0].shape[0], self.filters.shape.window(x[0].shape)?);
        let product = WindowProduct::new(&self.filters, batch, window)?;
        Prepared::routine(Convolution { op: self.clone(), product, values: x[0].shape.iter().product() })
    }
    fn macs(&self, _: &[&Fact], y: &[&Fact]) -> u64 {
        self.filters.shape.macs(y[0])
    }
}

/// A [`DynamicConv`] of known size.
#[derive(Debug)]
struct Convolution {
    op: DynamicConv,
    product: WindowProduct,
    values: usize,
}

impl Routine for Convolution {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, scratch: &mut [u8]) -> Result<()> {
        let DynamicConv { filters, sums, scale: of_weights, bias } = &self.op;
        let (codes, scratch) = scratch.split_at_mut(self.values);
        let (scale, zero) = quantize_all(x[0].f32()?, codes);
        let out = Out::new(y, self.product.pixels(), filters.shape.channels[1])?;
        let (scale, zeros) = ([scale], [zero]);
        self.product.run(codes, zero as u8, out, scratch, |first, weights| {
            let columns = first..first + weights.columns();
            Dequantized {
                scale: &scale,
                zero: &zeros,
                sums: &sums[columns.clone()],
                of_weights: &of_weights[columns.clone()],
                bias: bias.as_ref().map(|b| &b[columns]),
            }
        })
    }
    fn scratch(&self) -> usize {
        self.values + self.product.scratch()
    }
    fn strided(&self) -> bool {
        true
    }
    fn algorithm(&self) -> &'static str {
        self.product.algorithm()
    }
}
