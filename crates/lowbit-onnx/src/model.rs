//! Reading of models and tensors.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use prost::Message;

use crate::TensorData;
use crate::error::{Error, Result};
use crate::proto::{GraphProto, ModelProto, TensorProto};
use crate::write::{self, WriteOptions};

/// The largest message that protobuf allows, in bytes.
pub(crate) const MESSAGE_LIMIT: u64 = i32::MAX as u64;

/// The first IR version whose models must say which operator sets they use.
const OPSET_IMPORT_SINCE: i64 = 3;

/// A model with a graph, and the folder of its external data.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    proto: ModelProto,
    folder: Option<PathBuf>,
}

/// Reads the model file at `path`; external data wait until [`Model::tensor`] asks for them.
///
/// # Errors
/// [`Error::Io`] and [`Error::NotAFile`]; [`Error::InFile`] around what [`Model::decode`] finds.
pub fn read(path: impl AsRef<Path>) -> Result<Model> {
    let path = path.as_ref();
    let mut model = Model::decode(&read_file(path)?).map_err(|error| error.in_file(path))?;
    model.folder = Some(folder_of(path).to_owned());
    Ok(model)
}

/// Reads a file that holds one `TensorProto`, as the standard's test data do (`input_0.pb`).
///
/// # Errors
/// As [`read`], and those of [`TensorData::from_proto`].
pub fn read_tensor(path: impl AsRef<Path>) -> Result<TensorData> {
    let path = path.as_ref();
    decode_message("tensor", &read_file(path)?)
        .and_then(|proto: TensorProto| TensorData::from_proto(&proto, Some(folder_of(path))))
        .map_err(|error| error.in_file(path))
}

impl Model {
    /// Decodes a model from the bytes of an `.onnx` file.
    ///
    /// Memory is bounded by a constant times the number of bytes, and nesting by 100 messages.
    ///
    /// # Errors
    /// [`Error::Decode`] where the bytes are no such message or are cut short,
    /// [`Error::MessageTooLarge`], and those of [`Model::new`].
    pub fn decode(bytes: &[u8]) -> Result<Model> {
        Model::new(decode_message("model", bytes)?)
    }

    /// A model without a folder: its external data, if any, cannot be read.
    ///
    /// # Errors
    /// [`Error::Missing`] where there is no graph, or no operator set though the IR version
    /// demands one. Protobuf takes an empty file, and most files cut between two fields, for a
    /// whole message; this tells them apart.
    pub fn new(proto: ModelProto) -> Result<Model> {
        check(&proto)?;
        Ok(Model { proto, folder: None })
    }

    /// The whole message; its `graph` is never `None`.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The whole message; its `graph` is never `None`.
    pub fn into_proto(self) -> ModelProto {
        self.proto
    }

    /// The main graph.
    pub fn graph(&self) -> &GraphProto {
        let graph = self.proto.graph.as_ref();
        graph.expect("Model::new refuses a message without a graph")
    }

    /// The data of one of the model's tensors, read from its external file where it has one.
    ///
    /// # Errors
    /// Those of [`TensorData::from_proto`].
    pub fn tensor(&self, tensor: &TensorProto) -> Result<TensorData> {
        TensorData::from_proto(tensor, self.folder.as_deref())
    }

    /// As [`write()`](crate::write()), for a model whose external data are in its own folder:
    /// they are copied, one tensor at a time, into the new files.
    ///
    /// A model written over itself must be read again before its tensors are.
    ///
    /// # Errors
    /// As [`write()`](crate::write()).
    pub fn write(&self, path: impl AsRef<Path>, options: &WriteOptions) -> Result<()> {
        write::save(&self.proto, self.folder.as_deref(), path.as_ref(), options, MESSAGE_LIMIT)
    }
}

/// What a decoder cannot know: that the parts every model has are there.
pub(crate) fn check(proto: &ModelProto) -> Result<()> {
    if proto.graph.is_none() {
        return Err(Error::Missing { part: "graph" });
    }
    let versioned = proto.ir_version.is_none_or(|v| v >= OPSET_IMPORT_SINCE);
    if versioned && proto.opset_import.is_empty() {
        return Err(Error::Missing { part: "operator set (opset_import)" });
    }
    Ok(())
}

/// The folder that holds the file at `path`.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn decode_message<M: Message + Default>(message: &'static str, bytes: &[u8]) -> Result<M> {
    if bytes.len() as u64 > MESSAGE_LIMIT {
        return Err(Error::MessageTooLarge { bytes: bytes.len() as u64 });
    }
    M::decode(bytes).map_err(|error| Error::Decode { message, error })
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let fault = |action| move |error| Error::Io { action, path: path.to_owned(), error };
    let metadata = path.metadata().map_err(fault("open"))?;
    if !metadata.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    let too_large = |bytes| Error::MessageTooLarge { bytes }.in_file(path);
    if metadata.len() > MESSAGE_LIMIT {
        return Err(too_large(metadata.len()));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(fault("open"))?
        .take(MESSAGE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(fault("read"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
