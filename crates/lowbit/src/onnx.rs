//! Graphs from ONNX models, and back.
//!
//! Every opset from 7 to 25 is read into one form, that of opset 13 and later:
//! attributes that became operands are operands. Models quantized by other
//! tools are read too: QLinear operators become the Q/DQ pattern that they
//! abbreviate.

mod elements;
mod expand;
mod read;
mod write;

use std::path::Path;

pub use write::{encode, encode_at};

use crate::error::Result;
use crate::graph::Graph;

/// Reads the model at `path`, with the external data beside it.
///
/// # Errors
/// If the file is not a valid model, or uses what lowbit does not have; the
/// error names the node or the tensor.
pub fn load(path: impl AsRef<Path>) -> Result<Graph> {
    let path = path.as_ref();
    let model = lowbit_onnx::read(path)?;
    read::graph(&model).map_err(|e| e.at(path.display().to_string()))
}

/// Reads a model from bytes. It cannot have external data.
///
/// # Errors
/// As [`load`].
pub fn decode(bytes: &[u8]) -> Result<Graph> {
    read::graph(&lowbit_onnx::Model::decode(bytes)?)
}

/// Writes `graph` to `path`, beside it first and then renamed, so that a
/// failure leaves what was there. Models that do not fit into one file get an
/// external data file `<path>.data`.
///
/// # Errors
/// If the graph holds what ONNX cannot express, or the file cannot be written.
pub fn save(graph: &Graph, path: impl AsRef<Path>) -> Result<()> {
    Ok(lowbit_onnx::write(&encode(graph)?, path, &lowbit_onnx::WriteOptions::default())?)
}

/// [`save`] in opset `opset` ([`encode_at`]), for readers that know no later one.
///
/// # Errors
/// Those of [`save`] and [`encode_at`].
pub fn save_at(graph: &Graph, path: impl AsRef<Path>, opset: i64) -> Result<()> {
    Ok(lowbit_onnx::write(&encode_at(graph, opset)?, path, &lowbit_onnx::WriteOptions::default())?)
}
