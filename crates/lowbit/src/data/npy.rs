//! NumPy's `.npy`: one array behind a header that is a Python dict literal
//! (format versions 1 to 3, as `numpy.lib.format` defines them).

mod header;
mod rows;

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use super::compressed::read_at_most;
use super::files::write_atomically;
use crate::error::{Error, Result, invalid};
use crate::tensor::{DType, Tensor, element_count};
use header::Header;
pub use rows::Rows;

/// The longest header that is read; NumPy's own are 128 bytes or little more.
const MAX_HEADER: u64 = 1 << 16;

/// The highest rank, NumPy's own.
const MAX_RANK: usize = 64;

/// Reads a `.npy` file into memory, into row-major order and the machine's
/// byte order.
///
/// # Errors
/// If the file cannot be read, is truncated or longer than its header says,
/// or has an element type that tensors lack; all name the file.
pub fn read(path: &Path) -> Result<Tensor> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let available = file.metadata().map_err(|e| Error::io(path, e))?.len();
    read_from(BufReader::new(file), available).map_err(|e| e.at(path.display().to_string()))
}

/// Reads the bytes of a `.npy` file.
///
/// # Errors
/// Those of [`read`], without a file's name.
pub fn decode(bytes: &[u8]) -> Result<Tensor> {
    read_from(bytes, bytes.len() as u64)
}

/// Reads an array from a stream of `available` bytes; nothing is allocated for
/// a shape that they cannot hold.
pub(super) fn read_from(mut reader: impl Read, available: u64) -> Result<Tensor> {
    let (header, header_bytes) = read_header(&mut reader, available)?;
    let mut data = read_at_most(reader, available - header_bytes)?;
    if header.fortran && !data.is_empty() && data.len() as u64 == available - header_bytes {
        data = to_row_major(&data, &header.shape, header.dtype.bits() / 8);
    }
    header.elements(&header.shape, data)
}

impl Header {
    /// The tensor of these bytes of the file.
    fn elements(&self, shape: &[usize], mut data: Vec<u8>) -> Result<Tensor> {
        if self.big_endian {
            data.chunks_exact_mut(self.dtype.bits() / 8).for_each(<[u8]>::reverse);
        }
        Tensor::from_bytes(self.dtype, shape, &data)
    }
}

/// The header of `available` bytes, and how many of these it takes; the others are those of the elements.
fn read_header(reader: &mut impl Read, available: u64) -> Result<(Header, u64)> {
    fn bytes<const N: usize>(reader: &mut impl Read) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        reader.read_exact(&mut bytes).map_err(|e| invalid!("the npy header is cut short: {e}"))?;
        Ok(bytes)
    }
    let magic: [u8; 6] = bytes(reader)?;
    if magic != *b"\x93NUMPY" {
        return Err(invalid!("is not an npy array: it does not begin with \\x93NUMPY"));
    }
    let (length, length_bytes) = match bytes(reader)? {
        [1, 0] => (u64::from(u16::from_le_bytes(bytes(reader)?)), 2),
        [2 | 3, 0] => (u64::from(u32::from_le_bytes(bytes(reader)?)), 4),
        [major, minor] => {
            return Err(Error::unsupported("npy", format!("format version {major}.{minor}")));
        }
    };
    if length > MAX_HEADER {
        return Err(invalid!("the npy header is {length} bytes long (at most {MAX_HEADER})"));
    }
    let text = read_at_most(reader.take(length), length)?;
    if text.len() as u64 != length {
        return Err(invalid!("the npy header is cut short: {} of {length} bytes", text.len()));
    }
    let text = str::from_utf8(&text).map_err(|e| invalid!("the npy header is not text: {e}"))?;
    let (header, taken) = (header::parse(text)?, 8 + length_bytes + length);
    let Header { dtype, shape, .. } = &header;
    let bytes = dtype.bytes_of(element_count(shape)?) as u64;
    let left = available.saturating_sub(taken);
    if left != bytes {
        return Err(invalid!("{dtype}{shape:?} takes {bytes} bytes, {left} follow the header"));
    }
    Ok((header, taken))
}

/// Column-major elements of `size` bytes in row-major order.
fn to_row_major(data: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let mut strides = vec![size; shape.len()];
    for axis in 1..shape.len() {
        strides[axis] = strides[axis - 1] * shape[axis - 1];
    }
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0; shape.len()];
    let mut offset = 0;
    while out.len() < data.len() {
        out.extend_from_slice(&data[offset..offset + size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            offset += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            offset -= index[axis] * strides[axis];
            index[axis] = 0;
        }
    }
    out
}

/// Writes `tensor` as a `.npy` file, whole or not at all.
///
/// # Errors
/// If NumPy lacks the element type or the rank, or the file cannot be written.
pub fn write(path: &Path, tensor: &Tensor) -> Result<()> {
    let header = encode_header(tensor).map_err(|e| e.at(path.display().to_string()))?;
    write_atomically(path, |file| {
        file.write_all(&header)?;
        file.write_all(&tensor.to_bytes())
    })
}

/// The bytes of a `.npy` file of `tensor`: version 1.0, row-major,
/// little-endian.
///
/// # Errors
/// If NumPy lacks the element type or the rank.
pub fn encode(tensor: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = encode_header(tensor)?;
    bytes.extend(tensor.to_bytes());
    Ok(bytes)
}

/// Magic, version, length and dict, padded with spaces to a multiple of 64.
fn encode_header(tensor: &Tensor) -> Result<Vec<u8>> {
    if tensor.rank() > MAX_RANK {
        return Err(invalid!("npy holds at most {MAX_RANK} dimensions, not {}", tensor.rank()));
    }
    let mut text = header::format(tensor.dtype(), tensor.shape())?;
    let unpadded = 10 + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    let length =
        u16::try_from(text.len()).map_err(|_| invalid!("the npy header is {} bytes long", text.len()))?;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(text.as_bytes());
    Ok(bytes)
}

/// NumPy's type codes; the byte order stands before them.
const CODES: [(&str, DType); 12] = [
    ("f4", DType::F32),
    ("f8", DType::F64),
    ("f2", DType::F16),
    ("i1", DType::I8),
    ("u1", DType::U8),
    ("i2", DType::I16),
    ("u2", DType::U16),
    ("i4", DType::I32),
    ("u4", DType::U32),
    ("i8", DType::I64),
    ("u8", DType::U64),
    ("b1", DType::Bool),
];

#[cfg(test)]
pub(super) mod tests;
