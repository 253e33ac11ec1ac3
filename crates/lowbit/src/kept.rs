//! Tensors of many batches, kept on disk: one batch at a time is needed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Mutex;

use crate::error::{Error, Result};
use crate::quantize::lock;
use crate::tensor::{DType, Tensor};

/// Tensors by batch, in a file without a name that is gone with the value.
#[derive(Debug)]
pub struct Kept {
    file: Mutex<File>,
    batches: Vec<Option<Batch>>,
    end: u64,
}

#[derive(Debug)]
struct Batch {
    offset: u64,
    tensors: Vec<(DType, Vec<usize>, usize)>,
    crc: u32,
}

fn failed(e: std::io::Error) -> Error {
    Error::io(&std::env::temp_dir(), e)
}

impl Kept {
    /// Nothing so far.
    ///
    /// # Errors
    /// If the folder of temporary files cannot be written to.
    pub fn new() -> Result<Kept> {
        Ok(Kept { file: Mutex::new(tempfile::tempfile().map_err(failed)?), batches: vec![], end: 0 })
    }

    /// Keeps the tensors of batch `index`; batches come in any order.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn add(&mut self, index: usize, tensors: &[Tensor]) -> Result<()> {
        let mut file = lock(&self.file);
        file.seek(SeekFrom::Start(self.end)).map_err(failed)?;
        let (mut crc, mut end, mut shapes) = (flate2::Crc::new(), self.end, vec![]);
        for t in tensors {
            let bytes = t.to_bytes();
            crc.update(&bytes);
            file.write_all(&bytes).map_err(failed)?;
            shapes.push((t.dtype(), t.shape().to_vec(), bytes.len()));
            end += bytes.len() as u64;
        }
        if self.batches.len() <= index {
            self.batches.resize_with(index + 1, || None);
        }
        self.batches[index] = Some(Batch { offset: self.end, tensors: shapes, crc: crc.sum() });
        self.end = end;
        Ok(())
    }

    /// The tensors of batch `index`, if it is there.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn get(&self, index: usize) -> Result<Option<Vec<Tensor>>> {
        let Some(Some(batch)) = self.batches.get(index) else { return Ok(None) };
        let mut file = lock(&self.file);
        file.seek(SeekFrom::Start(batch.offset)).map_err(failed)?;
        let tensors = batch.tensors.iter().map(|(dtype, shape, bytes)| {
            let mut read = vec![0; *bytes];
            file.read_exact(&mut read).map_err(failed)?;
            Tensor::from_bytes(*dtype, shape, &read)
        });
        tensors.collect::<Result<_>>().map(Some)
    }

    /// A checksum of all batches, in their order.
    pub fn checksum(&self) -> u32 {
        let mut crc = flate2::Crc::new();
        self.batches.iter().flatten().for_each(|batch| crc.update(&batch.crc.to_le_bytes()));
        crc.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_in_any_order() {
        let batch = |i: usize| {
            let few: Vec<f32> = (0..6 + i).map(|x| (x * i) as f32).collect();
            vec![Tensor::vector(few), Tensor::new(&[2, 1], vec![i as i64, -1]).unwrap(), Tensor::scalar(7u8)]
        };
        let [mut ordered, mut shuffled] = [Kept::new().unwrap(), Kept::new().unwrap()];
        for i in 0..4 {
            ordered.add(i, &batch(i)).unwrap();
        }
        for i in [2, 0, 3, 1] {
            shuffled.add(i, &batch(i)).unwrap();
            assert_eq!(shuffled.get(i).unwrap(), Some(batch(i)));
        }
        for i in 0..4 {
            assert_eq!(ordered.get(i).unwrap(), Some(batch(i)));
            assert_eq!(shuffled.get(i).unwrap(), Some(batch(i)));
        }
        assert_eq!(ordered.get(4).unwrap(), None);
        assert_eq!(ordered.checksum(), shuffled.checksum());
        shuffled.add(0, &batch(1)).unwrap();
        assert_ne!(ordered.checksum(), shuffled.checksum());
    }
}
