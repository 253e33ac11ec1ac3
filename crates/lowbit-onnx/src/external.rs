//! Tensor data in files beside the model.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use crate::error::TensorFault;
use crate::proto::StringStringEntryProto;

/// A range of bytes in a file: the `external_data` entries of a tensor.
#[derive(Debug)]
pub(crate) struct ExternalRef {
    pub location: String,
    pub offset: u64,
    pub length: Option<u64>,
}

impl ExternalRef {
    /// Reads the keys `location`, `offset` (default 0) and `length`; others are let be.
    pub fn parse(entries: &[StringStringEntryProto]) -> Result<ExternalRef, TensorFault> {
        let text = |key: &str| {
            let mut found = entries.iter().filter(|entry| entry.key() == key);
            match (found.next(), found.next()) {
                (_, Some(_)) => Err(TensorFault::BadEntry { what: format!("{key} is given twice") }),
                (first, None) => Ok(first.map(StringStringEntryProto::value)),
            }
        };
        let number = |key: &str| {
            let parse = |value: &str| {
                let digits = value.bytes().all(|b| b.is_ascii_digit());
                let number = value.parse().ok().filter(|_| digits);
                number.ok_or_else(|| TensorFault::BadEntry {
                    what: format!("{key} is {value:?}, not a number from 0 to {}", u64::MAX),
                })
            };
            text(key)?.map(parse).transpose()
        };
        let location = text("location")?.filter(|location| !location.is_empty());
        Ok(ExternalRef {
            location: location
                .ok_or_else(|| TensorFault::BadEntry { what: "there is no location".to_owned() })?
                .to_owned(),
            offset: number("offset")?.unwrap_or(0),
            length: number("length")?,
        })
    }

    /// The `length` bytes at `offset`.
    ///
    /// Nothing is allocated before the range is known to lie inside the file.
    pub fn read(&self, folder: Option<&Path>, length: usize) -> Result<Vec<u8>, TensorFault> {
        let path = self.path(folder)?;
        let fault = |action| {
            let path = &path;
            move |error| TensorFault::Io { action, path: path.clone(), error }
        };
        let metadata = path.metadata().map_err(fault("inspect"))?;
        if !metadata.is_file() {
            let error = io::Error::other("not a regular file");
            return Err(fault("open")(error));
        }
        let end = self.offset.checked_add(length as u64);
        if end.is_none_or(|end| end > metadata.len()) {
            return Err(TensorFault::PastEnd {
                offset: self.offset,
                length: length as u64,
                file_len: metadata.len(),
                path,
            });
        }
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(length)
            .map_err(|_| fault("hold in memory")(io::ErrorKind::OutOfMemory.into()))?;
        bytes.resize(length, 0);
        let mut file = File::open(&path).map_err(fault("open"))?;
        file.seek(SeekFrom::Start(self.offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(fault("read"))?;
        Ok(bytes)
    }

    /// The real path of the file, which must be inside the real path of `folder`.
    fn path(&self, folder: Option<&Path>) -> Result<PathBuf, TensorFault> {
        let location = || self.location.clone();
        let folder = folder.ok_or_else(|| TensorFault::NoFolder { location: location() })?;
        let outside = || TensorFault::OutsideFolder { location: location() };
        let inner = Path::new(&self.location)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !inner {
            return Err(outside());
        }
        let real = |path: PathBuf| {
            path.canonicalize().map_err(|error| TensorFault::Io { action: "find", path, error })
        };
        let path = real(folder.join(&self.location))?;
        if path.starts_with(real(folder.to_owned())?) { Ok(path) } else { Err(outside()) }
    }
}

#[cfg(test)]
mod tests;
