//! Tensors between the two crates.

use lowbit_onnx::proto::TensorProto;
use lowbit_onnx::{DataType, TensorData};

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// The element type with this number in ONNX; an error says its ONNX name.
pub fn dtype(number: i32) -> Result<DType> {
    DType::from_onnx(number.into()).map_err(|e| match DataType::from_onnx(number) {
        Some(known) => Error::unsupported("element type", format!("{known:?}")),
        None => e,
    })
}

/// The tensor that a file's bytes are.
pub fn tensor(data: &TensorData) -> Result<Tensor> {
    Tensor::from_bytes(dtype(data.dtype.to_onnx())?, &data.dims, &data.bytes)
}

/// A tensor as it is stored in a file.
pub fn stored(name: &str, t: &Tensor) -> Result<TensorProto> {
    let dtype = DataType::from_onnx(t.dtype().onnx_number())
        .ok_or_else(|| Error::unsupported("element type", t.dtype().to_string()))?;
    Ok(TensorData::new(name.to_string(), dtype, t.shape().to_vec(), t.to_bytes())?.into_proto()?)
}
