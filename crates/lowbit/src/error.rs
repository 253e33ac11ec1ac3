//! The library's one error type: what is wrong, where, and what to do.

use std::path::{Path, PathBuf};

/// What went wrong. Operators and formulas say *what* ([`Error::Invalid`],
/// [`Error::Unsupported`]); whoever knows the place wraps it once with
/// [`Error::at`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input or the request is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The input is legal, and lowbit cannot do it.
    #[error("{op}: {what} is not supported")]
    Unsupported {
        /// The operator or feature asked for.
        op: String,
        /// The part of it that is missing.
        what: String,
    },
    /// An error and the node, tensor or file that it is about.
    #[error("{place}: {source}")]
    At {
        /// Node, tensor, file or configuration rule.
        place: String,
        /// What is wrong there.
        source: Box<Error>,
    },
    /// The operating system refused a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An ONNX file could not be read or written.
    #[error(transparent)]
    Onnx(#[from] lowbit_onnx::Error),
    /// The caller asked to stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
}

/// A result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Says where the error happened; saying the same place twice is saying it once.
    pub fn at(self, place: impl Into<String>) -> Error {
        let place = place.into();
        match self {
            Error::At { place: ref inner, .. } | Error::Unsupported { op: ref inner, .. }
                if *inner == place =>
            {
                self
            }
            Error::Interrupted => self,
            other => Error::At { place, source: Box::new(other) },
        }
    }

    /// An operator or feature that is legal and missing.
    pub fn unsupported(op: impl Into<String>, what: impl Into<String>) -> Error {
        Error::Unsupported { op: op.into(), what: what.into() }
    }

    /// A file that the operating system refused.
    pub fn io(path: &Path, source: std::io::Error) -> Error {
        Error::Io { path: path.to_path_buf(), source }
    }
}

/// `Error::Invalid` with a formatted message.
macro_rules! invalid {
    ($($t:tt)*) => { $crate::error::Error::Invalid(format!($($t)*)) };
}
pub(crate) use invalid;
