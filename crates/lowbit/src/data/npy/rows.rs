//! The rows of an array, left in its file until they are asked for.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::header::Header;
use super::read_header;
use crate::error::{Error, Result, invalid};
use crate::tensor::{DType, Tensor, element_count};

/// The rows of a `.npy` file, along its first dimension: a file of any size takes no memory.
#[derive(Debug)]
pub struct Rows {
    path: PathBuf,
    file: Mutex<File>,
    header: Header,
    /// The byte at which the elements begin.
    start: u64,
}

impl Rows {
    /// Opens a file; `None` if its rows do not lie together: the array is column-major, or has no
    /// dimension.
    ///
    /// # Errors
    /// Those of [`read`](super::read) that the header shows; all name the file.
    pub fn open(path: &Path) -> Result<Option<Rows>> {
        let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
        let available = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let (header, start) =
            read_header(&mut file, available).map_err(|e| e.at(path.display().to_string()))?;
        let rows = Rows { path: path.to_owned(), file: Mutex::new(file), header, start };
        Ok(Some(rows).filter(|rows| !rows.header.fortran && !rows.header.shape.is_empty()))
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.header.dtype
    }

    /// The shape of the whole array.
    pub fn shape(&self) -> &[usize] {
        &self.header.shape
    }

    /// The rows of these indices, as one tensor.
    ///
    /// # Errors
    /// If there is no such row, or the file cannot be read, or ends before it; the file is named.
    pub fn read(&self, rows: &[usize]) -> Result<Tensor> {
        let mut shape = self.header.shape.clone();
        let count = std::mem::replace(&mut shape[0], 1);
        if let Some(row) = rows.iter().find(|&&row| row >= count) {
            return Err(invalid!("has {count} rows, and no row {row}").at(self.path.display().to_string()));
        }
        let size = self.header.dtype.bytes_of(element_count(&shape)?);
        let data = self.bytes(rows, size).map_err(|e| Error::io(&self.path, e))?;
        shape[0] = rows.len();
        self.header.elements(&shape, data)
    }

    /// Rows of `size` bytes, one after another; those that lie together are read together.
    fn bytes(&self, rows: &[usize], size: usize) -> io::Result<Vec<u8>> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut data = Vec::with_capacity(rows.len() * size);
        for run in rows.chunk_by(|a, b| b.checked_sub(1) == Some(*a)) {
            file.seek(SeekFrom::Start(self.start + (run[0] * size) as u64))?;
            let wanted = run.len() * size;
            let read = (&mut *file).take(wanted as u64).read_to_end(&mut data)?;
            if read < wanted {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("ends before row {}", run[run.len() - 1]),
                ));
            }
        }
        Ok(data)
    }
}
