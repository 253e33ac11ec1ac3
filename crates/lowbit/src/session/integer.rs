//! Integer operators: u8 codes in, u8 codes (or f32 values) out. Images are
//! channels-last (NHWC).

pub mod boundary;
pub mod conv;
pub mod elementwise;
pub mod linear;
pub mod pool;

use lowbit_kernels::{Output, Requant, Window};

use super::codes::Codes;
use crate::error::Result;
use crate::op::{Dim, Fact};
use crate::ops::window::{Axis, Window as Geometry};
use crate::tensor::{DType, Tensor, element_count};

/// Multiply-accumulates that are worth a task of their own: tens of microseconds.
const TASK: usize = 1 << 21;

/// The least divisor of `rows`, each of `work` multiply-accumulates, that makes
/// a worthwhile task.
pub fn rows_of_a_task(work: usize, rows: usize) -> usize {
    let least = (TASK / work.max(1)).max(1);
    (least..rows).find(|r| rows.is_multiple_of(*r)).unwrap_or(rows).max(1)
}

/// What becomes of an accumulator: `acc + bias` at scale `s_x s_w[c]`.
#[derive(Clone, Debug)]
pub struct Epilogue {
    /// Bias less `z_x sum(w[c])`, one per output channel.
    pub bias: Vec<i32>,
    /// `s_x s_w[c]`.
    pub scale: Vec<f32>,
    /// The codes of the output, or none for f32.
    pub codes: Option<Target>,
}

/// Codes of an output, restricted by the activation function folded in.
#[derive(Clone, Debug)]
pub struct Target {
    /// Scale and zero point.
    pub codes: Codes,
    /// Least code.
    pub lo: u8,
    /// Greatest code.
    pub hi: u8,
    /// `s_x s_w[c] / s_y` (docs/quantization.md, equation 6).
    multiplier: Vec<f32>,
}

impl Target {
    /// The kernels' form, with all channels.
    pub fn requant<'a>(&'a self, bias: &'a [i32]) -> Requant<'a> {
        Requant { bias, multiplier: &self.multiplier, zero: self.codes.zero, lo: self.lo, hi: self.hi }
    }
}

impl Epilogue {
    /// The same accumulators requantized.
    pub fn requantized(&self, codes: Codes, lo: u8, hi: u8) -> Epilogue {
        let multiplier = self.scale.iter().map(|s| s / codes.scale).collect();
        Epilogue { codes: Some(Target { codes, lo, hi, multiplier }), ..self.clone() }
    }

    /// Element type of the output.
    pub fn dtype(&self) -> DType {
        if self.codes.is_some() { DType::U8 } else { DType::F32 }
    }
}

/// The output of a product under way, u8 or f32.
pub enum Rows<'a> {
    /// Codes.
    U8(&'a mut [u8]),
    /// Values.
    F32(&'a mut [f32]),
}

impl Epilogue {
    /// The kernel's output for columns `first..first + count` of `rows`, which
    /// lie `stride` apart.
    pub fn output<'a>(&'a self, rows: Rows<'a>, first: usize, count: usize, stride: usize) -> Output<'a> {
        let bias = &self.bias[first..first + count];
        match (rows, &self.codes) {
            (Rows::U8(out), Some(t)) => Output::U8 {
                requant: Requant {
                    bias,
                    multiplier: &t.multiplier[first..first + count],
                    zero: t.codes.zero,
                    lo: t.lo,
                    hi: t.hi,
                },
                out: &mut out[first..],
                stride,
            },
            (Rows::F32(out), _) => Output::F32 {
                bias,
                multiplier: &self.scale[first..first + count],
                out: &mut out[first..],
                stride,
            },
            (Rows::U8(_), None) => unreachable!("codes are written only where there is a target"),
        }
    }

    /// Computes a matrix of `shape`, whose last axis has `columns` elements,
    /// in tasks of whole rows: `compute(first row, rows)`.
    pub fn matrix(
        &self,
        shape: &[usize],
        columns: usize,
        rows_per_task: usize,
        compute: impl Fn(usize, Rows) + Sync,
    ) -> Result<Tensor> {
        use rayon::prelude::*;
        let n = element_count(shape)?;
        let chunk = (rows_per_task * columns).max(1);
        if self.codes.is_some() {
            let mut out = vec![0u8; n];
            out.par_chunks_mut(chunk).enumerate().for_each(|(i, c)| compute(i * rows_per_task, Rows::U8(c)));
            Tensor::new(shape, out)
        } else {
            let mut out = vec![0f32; n];
            out.par_chunks_mut(chunk).enumerate().for_each(|(i, c)| compute(i * rows_per_task, Rows::F32(c)));
            Tensor::new(shape, out)
        }
    }
}

impl Rows<'_> {
    /// Elements to be written.
    pub fn len(&self) -> usize {
        match self {
            Rows::U8(x) => x.len(),
            Rows::F32(x) => x.len(),
        }
    }
}

/// An NHWC shape from batch, spatial sizes and channels.
pub fn nhwc(batch: &Dim, spatial: Vec<Dim>, channels: usize) -> Vec<Dim> {
    std::iter::once(batch.clone()).chain(spatial).chain([Dim::Known(channels)]).collect()
}

/// The kernels' form of a window over an image of this size.
///
/// # Errors
/// If the window does not fit.
pub fn window(
    window: &Geometry,
    kernel: &[usize; 2],
    input: [usize; 2],
    channels: usize,
    ceil: bool,
) -> Result<Window> {
    let axes = window.resolve(kernel, &input, ceil)?;
    let pair = |f: fn(&Axis) -> usize| [f(&axes[0]), f(&axes[1])];
    Ok(Window {
        input,
        channels,
        kernel: *kernel,
        stride: pair(|a| a.stride),
        dilation: pair(|a| a.dilation),
        pad: pair(|a| a.before),
        output: pair(|a| a.output),
    })
}

/// The fact of an operator's output.
pub fn fact(dtype: DType, shape: Vec<Dim>) -> Result<Vec<Fact>> {
    Ok(vec![Fact { dtype, shape, sizes: None }])
}
