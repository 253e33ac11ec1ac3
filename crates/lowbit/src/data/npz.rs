//! NumPy's `.npz`: a ZIP archive (members stored or deflated) of `.npy` arrays.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::compressed::MAX_DEFLATE_RATIO;
use super::files::write_atomically;
use super::npy;
use crate::error::{Error, Result, invalid};
use crate::tensor::Tensor;

/// An open archive whose arrays are read one at a time.
pub struct Npz<R> {
    archive: ZipArchive<R>,
    names: Vec<String>,
}

impl Npz<BufReader<File>> {
    /// Opens a `.npz` file.
    ///
    /// # Errors
    /// If the file cannot be read or [`Npz::new`] refuses it; both name it.
    pub fn open(path: &Path) -> Result<Npz<BufReader<File>>> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        Npz::new(BufReader::new(file)).map_err(|e| e.at(path.display().to_string()))
    }
}

impl<R: Read + Seek> Npz<R> {
    /// Reads the archive's directory. Members that are not `.npy` are left out.
    ///
    /// # Errors
    /// If it is not a ZIP archive, or claims to hold more than deflate can pack
    /// into its size (overlapping members).
    pub fn new(mut reader: R) -> Result<Npz<R>> {
        let length = reader.seek(io::SeekFrom::End(0)).map_err(|e| invalid!("cannot be read: {e}"))?;
        let mut archive = ZipArchive::new(reader).map_err(|e| invalid!("is not an npz archive: {e}"))?;
        let (mut names, mut total) = (vec![], 0u64);
        for index in 0..archive.len() {
            let member = archive
                .by_index_raw(index)
                .map_err(|e| invalid!("member {index} of the npz archive cannot be read: {e}"))?;
            total = total.saturating_add(member.size());
            let name = member.name().map_err(|e| invalid!("member {index} has a bad name: {e}"))?;
            if let Some(name) = name.strip_suffix(".npy") {
                names.push(name.to_owned());
            }
        }
        if total / MAX_DEFLATE_RATIO > length {
            return Err(invalid!("an npz archive of {length} bytes cannot hold {total} bytes"));
        }
        Ok(Npz { archive, names })
    }

    /// The names of the arrays, without `.npy`, in the file's order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Reads the array `name`.
    ///
    /// # Errors
    /// If there is none, or it is damaged, compressed by another method than
    /// deflate, or not what its header says; all name the array.
    pub fn read(&mut self, name: &str) -> Result<Tensor> {
        if !self.names.iter().any(|n| n == name) {
            return Err(invalid!("has no array {name:?}; it has {}", self.names.join(", ")));
        }
        let place = || format!("array {name:?}");
        let member = self.archive.by_name(&format!("{name}.npy"));
        let member = member.map_err(|e| invalid!("cannot be read: {e}").at(place()))?;
        let size = member.size();
        npy::read_from(member, size).map_err(|e| e.at(place()))
    }
}

/// Reads every array of a `.npz` file, in the file's order.
///
/// # Errors
/// Those of [`Npz::open`] and [`Npz::read`]; all name the file.
pub fn read(path: &Path) -> Result<Vec<(String, Tensor)>> {
    read_all(&mut Npz::open(path)?).map_err(|e| e.at(path.display().to_string()))
}

/// Reads every array of the bytes of a `.npz` file, in the file's order.
///
/// # Errors
/// Those of [`Npz::new`] and [`Npz::read`].
pub fn decode(bytes: &[u8]) -> Result<Vec<(String, Tensor)>> {
    read_all(&mut Npz::new(Cursor::new(bytes))?)
}

fn read_all<R: Read + Seek>(npz: &mut Npz<R>) -> Result<Vec<(String, Tensor)>> {
    npz.names.clone().into_iter().map(|name| npz.read(&name).map(|t| (name, t))).collect()
}

/// Writes named arrays as a `.npz` file, uncompressed, whole or not at all.
/// The same arrays give the same bytes: no time is recorded.
///
/// # Errors
/// If NumPy lacks an element type, a name stands twice, or the file cannot be
/// written; all name the file.
pub fn write<'a>(path: &Path, arrays: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    let mut refused = None;
    let written = write_atomically(path, |file| {
        let mut zip = ZipWriter::new(file);
        for (name, tensor) in arrays {
            let bytes = match npy::encode(tensor) {
                Ok(bytes) => bytes,
                Err(e) => {
                    refused = Some(e.at(format!("array {name:?}")));
                    return Err(io::ErrorKind::InvalidData.into());
                }
            };
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .large_file(u32::try_from(bytes.len()).is_err());
            zip.start_file(format!("{name}.npy"), options)?;
            zip.write_all(&bytes)?;
        }
        zip.finish()?;
        Ok(())
    });
    match refused {
        Some(e) => Err(e.at(path.display().to_string())),
        None => written,
    }
}

#[cfg(test)]
mod tests;
