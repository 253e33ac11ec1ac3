//! Files of pictures of one size: CIFAR-10 binary records and MNIST's IDX.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::compressed::{open, read_at_most};
use super::image::Picture;
use crate::error::{Error, Result, invalid};

/// CIFAR-10: one label byte, then 32 x 32 pixels in three planes R, G, B.
const CIFAR_RECORD: usize = 1 + 3 * 32 * 32;

/// The most bytes that a record file may hold, inflated; CIFAR-10 is 184 MB.
const MAX_BYTES: u64 = 1 << 30;

/// Pictures of one size, held in memory as they are in the file.
#[derive(Debug)]
pub(super) struct Records {
    bytes: Vec<u8>,
    /// Bytes from one record to the next, and before the picture in it.
    stride: usize,
    offset: usize,
    height: usize,
    width: usize,
    channels: usize,
    pub labels: Option<Vec<usize>>,
}

impl Records {
    pub fn len(&self) -> usize {
        self.bytes.len() / self.stride
    }

    /// Record `i`; the samples stand in planes.
    pub fn picture(&self, i: usize) -> Result<Picture> {
        let record = &self.bytes[i * self.stride..(i + 1) * self.stride];
        Picture::planar(self.width, self.height, self.channels, &record[self.offset..])
    }
}

/// Reads a CIFAR-10 file, `.bin` or `.bin.gz`.
pub(super) fn cifar(path: &Path) -> Result<Records> {
    let place = || path.display().to_string();
    let bytes = read_at_most(open(path)?, MAX_BYTES).map_err(|e| e.at(place()))?;
    if bytes.is_empty() || bytes.len() % CIFAR_RECORD != 0 {
        return Err(invalid!(
            "{} bytes are not CIFAR-10 records of {CIFAR_RECORD} (a label byte and 3 x 32 x 32 samples)",
            bytes.len()
        )
        .at(place()));
    }
    let labels = Some(bytes.iter().step_by(CIFAR_RECORD).map(|&x| usize::from(x)).collect());
    Ok(Records { bytes, stride: CIFAR_RECORD, offset: 1, height: 32, width: 32, channels: 3, labels })
}

/// Reads an IDX file of 8-bit pictures, plain or `.gz`, and its labels from
/// the file beside it whose name has `labels` for `images` and `idx1` for
/// `idx3`, if there is one.
pub(super) fn idx(path: &Path) -> Result<Records> {
    let (dims, bytes) = read_idx(path)?;
    let &[count, height, width] = dims.as_slice() else {
        return Err(invalid!("is an IDX file of {} dimensions, pictures have 3", dims.len())
            .at(path.display().to_string()));
    };
    let stride = height * width;
    let labels = match labels_beside(path) {
        None => None,
        Some(path) => {
            let (dims, labels) = read_idx(&path)?;
            if dims != [count] {
                return Err(invalid!("has labels of shape {dims:?} for {count} pictures")
                    .at(path.display().to_string()));
            }
            Some(labels.into_iter().map(usize::from).collect())
        }
    };
    Ok(Records { bytes, stride, offset: 0, height, width, channels: 1, labels })
}

fn labels_beside(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    let labels = name.replace("images", "labels").replace("idx3", "idx1");
    let plain = labels.strip_suffix(".gz").map_or(format!("{labels}.gz"), str::to_owned);
    (labels != name)
        .then(|| [labels, plain].map(|n| images.with_file_name(n)).into_iter().find(|p| p.is_file()))
        .flatten()
}

/// Sizes and bytes of an IDX file: 0, 0, type 8 (unsigned byte), rank, then
/// each size as a big-endian u32.
fn read_idx(path: &Path) -> Result<(Vec<usize>, Vec<u8>)> {
    let mut reader = open(path)?;
    let mut parse = || {
        let mut word = [0; 4];
        let mut next = |reader: &mut dyn Read| {
            reader.read_exact(&mut word).map_err(|e| invalid!("the IDX header is cut short: {e}"))?;
            Ok::<[u8; 4], Error>(word)
        };
        let rank = match next(&mut reader)? {
            [0, 0, 8, rank @ 1..=3] => rank,
            [0, 0, kind, rank] => {
                return Err(invalid!(
                    "is an IDX file of element type {kind:#x} and rank {rank}; bytes (0x8) of rank 1 to 3 are read"
                ));
            }
            _ => return Err(invalid!("is not an IDX file: it does not begin with 0, 0")),
        };
        let mut dims = vec![];
        for _ in 0..rank {
            dims.push(u32::from_be_bytes(next(&mut reader)?) as usize);
        }
        let count = dims
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(d as u64))
            .filter(|n| (1..=MAX_BYTES).contains(n))
            .ok_or_else(|| invalid!("IDX sizes {dims:?} do not make 1 to {MAX_BYTES} bytes"))?;
        let bytes = read_at_most(&mut reader, count)?;
        if bytes.len() as u64 != count {
            return Err(invalid!(
                "is cut short: IDX sizes {dims:?} take {count} bytes, found {}",
                bytes.len()
            ));
        }
        Ok((dims, bytes))
    };
    parse().map_err(|e| e.at(path.display().to_string()))
}

#[cfg(test)]
mod tests;
