//! What can go wrong with an ONNX file, where, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::DataType;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried, such as "open".
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A folder, a pipe or a device.
    #[error("{} is not a regular file; give the path of an .onnx file", path.display())]
    NotAFile {
        /// The path as given.
        path: PathBuf,
    },
    /// A protobuf message is limited to 2 GiB.
    #[error(
        "the message has {bytes} bytes or more, over the 2 GiB that protobuf allows; \
         keep the weights in initializers, stored as external data"
    )]
    MessageTooLarge {
        /// The size found, of which the whole may be larger.
        bytes: u64,
    },
    /// The bytes are no protobuf message of the expected kind.
    #[error("not an ONNX {message}, or cut short: {error}; get the file again")]
    Decode {
        /// The message that was expected, such as "model".
        message: &'static str,
        /// Where the decoding stopped.
        error: prost::DecodeError,
    },
    /// A required part of the model is not there.
    #[error("the model has no {part}: the file is empty, cut short, or no ONNX model; get it again")]
    Missing {
        /// The missing part.
        part: &'static str,
    },
    /// A tensor is malformed.
    #[error("tensor {tensor:?}: {fault}")]
    Tensor {
        /// The tensor's name; an attribute's tensor often has none.
        tensor: String,
        /// What is wrong with it.
        fault: TensorFault,
    },
    /// An error in the file at `path`.
    #[error("{}: {error}", path.display())]
    InFile {
        /// The file read or written.
        path: PathBuf,
        /// What is wrong in it.
        error: Box<Error>,
    },
}

/// What is wrong with one tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorFault {
    /// `data_type` is absent, `UNDEFINED`, or newer than this crate.
    #[error("unknown element type number {number}; convert the model to a supported type")]
    UnknownType {
        /// The number found; 0 where there is none.
        number: i32,
    },
    /// A legal tensor of a kind that has no packed bytes.
    #[error("{what} are not supported; remove the tensor or store it otherwise")]
    Unsupported {
        /// The kind, such as "strings".
        what: &'static str,
    },
    /// A negative dimension.
    #[error("dimension {axis} is {dim}; the dimensions of stored data must be 0 or more")]
    NegativeDim {
        /// Which dimension.
        axis: usize,
        /// Its value.
        dim: i64,
    },
    /// The shape asks for more bytes than an address space has.
    #[error("shape {dims:?} of {dtype} does not fit in memory; the shape is wrong")]
    ShapeTooLarge {
        /// The shape.
        dims: Vec<usize>,
        /// The element type.
        dtype: DataType,
    },
    /// The data do not fill the shape, or overfill it.
    #[error("shape {dims:?} of {dtype} needs {expected} {unit} but {place} holds {found}")]
    WrongLength {
        /// The shape.
        dims: Vec<usize>,
        /// The element type.
        dtype: DataType,
        /// How many the shape needs.
        expected: usize,
        /// "bytes" or "values".
        unit: &'static str,
        /// Where the data are: a field of `TensorProto`, or "external data".
        place: &'static str,
        /// How many there are.
        found: u64,
    },
    /// Data in a field that its type does not use, or in two places.
    #[error("{dtype} data belong in {expected} alone, but {found} holds data")]
    WrongField {
        /// The element type.
        dtype: DataType,
        /// The field that holds, or should hold, the data.
        expected: &'static str,
        /// The field that should be empty.
        found: &'static str,
    },
    /// A stored value that the type does not have.
    #[error("value {index} is {value}, outside {min}..={max}, the range of {dtype} in {place}")]
    OutOfRange {
        /// Position of the value in its field.
        index: usize,
        /// The value.
        value: i128,
        /// Smallest legal value.
        min: i128,
        /// Largest legal value.
        max: i128,
        /// The element type.
        dtype: DataType,
        /// The field.
        place: &'static str,
    },
    /// An external-data entry that is absent or unreadable.
    #[error("external data: {what}; export the model again, or mend the entry")]
    BadEntry {
        /// Which entry and why.
        what: String,
    },
    /// A location that leaves the folder of the model.
    #[error(
        "external data: location {location:?} is outside the folder of the model; \
         put the file beside the model and use a relative path"
    )]
    OutsideFolder {
        /// The location as stored.
        location: String,
    },
    /// The model was decoded from bytes, so it has no folder.
    #[error("external data in file {location:?}, but the model came without a folder; read it from its file")]
    NoFolder {
        /// The location as stored.
        location: String,
    },
    /// The range of bytes ends after its file.
    #[error(
        "external data: {length} bytes at offset {offset} end after {}, which has {file_len} bytes; \
         the file is cut short or belongs to another model", path.display()
    )]
    PastEnd {
        /// Where the data begin.
        offset: u64,
        /// How many bytes are wanted.
        length: u64,
        /// The file.
        path: PathBuf,
        /// Its size.
        file_len: u64,
    },
    /// The external file could not be read.
    #[error("external data: cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl Error {
    pub(crate) fn in_file(self, path: impl Into<PathBuf>) -> Error {
        Error::InFile { path: path.into(), error: Box::new(self) }
    }
}
