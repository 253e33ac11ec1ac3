//! Tensors between the two crates.

use lowbit_onnx::proto::TensorProto;
use lowbit_onnx::{DataType, TensorData};

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// The tensor that a file's bytes are.
pub fn tensor(data: &TensorData) -> Result<Tensor> {
    let dtype = DType::from_onnx(data.dtype.to_onnx().into())
        .map_err(|_| Error::unsupported("element type", data.dtype.to_string()))?;
    Tensor::from_bytes(dtype, &data.dims, &data.bytes)
}

/// A tensor as it is stored in a file.
pub fn stored(name: &str, t: &Tensor) -> Result<TensorProto> {
    let dtype = DataType::from_onnx(t.dtype().onnx_number())
        .ok_or_else(|| Error::unsupported("element type", t.dtype().to_string()))?;
    Ok(TensorData::new(name.to_string(), dtype, t.shape().to_vec(), t.to_bytes())?.into_proto()?)
}
