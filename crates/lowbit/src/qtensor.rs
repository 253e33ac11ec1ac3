//! Quantized tensors, and files that hold them beside plain ones.

mod file;

pub use file::{Stored, load, save};

use crate::error::{Result, invalid};
use crate::qparams::QParams;
use crate::tensor::Tensor;

/// Codes and the parameters that give them meaning: `x = scale (q - zero_point)`.
#[derive(Clone, Debug, PartialEq)]
pub struct QTensor {
    codes: Tensor,
    params: QParams,
}

impl QTensor {
    /// Codes given as they are.
    ///
    /// # Errors
    /// If the codes are not of the format's element type, or their shape has
    /// another number of groups than the parameters.
    pub fn new(codes: Tensor, params: QParams) -> Result<QTensor> {
        let (scheme, dtype) = (params.scheme, params.scheme.format.dtype());
        if codes.dtype() != dtype {
            return Err(invalid!("{scheme} has {dtype} codes, not {}", codes.dtype()));
        }
        let (groups, have) = (scheme.granularity.groups(codes.shape())?.count(), params.scale.len());
        if groups != have {
            return Err(invalid!("{scheme}: shape {:?} has {groups} groups, not {have}", codes.shape()));
        }
        Ok(QTensor { codes, params })
    }

    /// `x`, quantized.
    ///
    /// # Errors
    /// Those of [`QParams::quantize`].
    pub fn quantize(x: &Tensor, params: QParams) -> Result<QTensor> {
        Ok(QTensor { codes: params.quantize(x)?, params })
    }

    /// The reals that the codes stand for.
    ///
    /// # Errors
    /// Those of [`QParams::dequantize`].
    pub fn dequantize(&self) -> Result<Tensor> {
        self.params.dequantize(&self.codes)
    }

    /// The codes.
    pub fn int_repr(&self) -> &Tensor {
        &self.codes
    }

    /// Scheme, scales and zero points.
    pub fn params(&self) -> &QParams {
        &self.params
    }

    /// One scale for each group.
    pub fn scale(&self) -> &[f32] {
        &self.params.scale
    }

    /// One zero point for each group.
    pub fn zero_point(&self) -> &[i32] {
        &self.params.zero_point
    }

    /// The size of each dimension.
    pub fn shape(&self) -> &[usize] {
        self.codes.shape()
    }

    /// Bytes of one code in memory: 1 for sub-byte types, which are packed in
    /// files only.
    pub fn element_size(&self) -> usize {
        self.codes.dtype().storage().bits() / 8
    }
}
