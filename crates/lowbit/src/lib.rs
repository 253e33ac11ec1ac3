//! lowbit: quantize, debug, export and run low-bit neural networks.
#![forbid(unsafe_code)]

pub mod error;
pub mod tensor;
pub mod scheme;
pub mod qparams;
pub mod qtensor;
pub mod observer;
pub mod op;
pub mod ops;
pub mod graph;
pub mod onnx;
pub mod qconfig;
pub mod quantize;
pub mod session;
pub mod data;
pub mod analysis;

pub use error::{Error, Result};
pub use tensor::{DType, Tensor};
