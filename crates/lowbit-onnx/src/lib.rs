//! ONNX files: reading and writing of `ModelProto` and `TensorProto`, with external data.
//!
//! This crate knows protobuf and files; what an operator means is decided elsewhere.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use lowbit_onnx::proto::{GraphProto, ModelProto, OperatorSetIdProto};
//! use lowbit_onnx::{DataType, TensorData, WriteOptions};
//!
//! let bytes = [1.0f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
//! let weight = TensorData::new("weight", DataType::Float, vec![2], bytes)?;
//! let proto = ModelProto {
//!     ir_version: Some(10),
//!     opset_import: vec![OperatorSetIdProto { domain: None, version: Some(21) }],
//!     graph: Some(GraphProto {
//!         initializer: vec![weight.clone().into_proto()?],
//!         ..GraphProto::default()
//!     }),
//!     ..ModelProto::default()
//! };
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("model.onnx");
//! lowbit_onnx::write(&proto, &path, &WriteOptions::default())?;
//! let model = lowbit_onnx::read(&path)?;
//! let initializer = &model.graph().initializer[0];
//! assert_eq!(model.tensor(initializer)?, weight);
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! - Bytes are untrusted. Any input gives a value or an [`Error`], never a panic, and uses
//!   memory in proportion to the bytes that are really there, whatever they claim.
//! - External data stays in the folder of the model file, and is read only when a tensor is
//!   asked for, so a model of many gigabytes costs the memory of one tensor at a time.
//! - A file is written beside its target and then renamed: no half-written model is left.
//!
//! # What is not
//!
//! - Fields newer than the schema (IR version 14) are dropped when a model is read.
//! - The `checksum` of external data is not verified.
//! - Tensors of strings, and tensors split in segments, stay `TensorProto`s:
//!   [`Model::tensor`] refuses them.

#![forbid(unsafe_code)]

mod data_type;
mod error;
mod external;
mod model;
/// The messages of the ONNX schema, generated from `onnx-ml.proto`.
#[allow(missing_docs, unused_qualifications, clippy::all)]
#[rustfmt::skip]
pub mod proto;
#[cfg(test)]
mod sample;
mod tensor;
mod typed_fields;
mod write;

pub use data_type::DataType;
pub use error::{Error, Result, TensorFault};
pub use model::{Model, read, read_tensor};
pub use tensor::TensorData;
pub use write::{WriteOptions, write};
