//! SHA-256 of files and samples: what a model was made from.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::dataset::Batch;
use crate::error::{Error, Result};

/// A SHA-256 hash in hexadecimal digits.
pub type Digest = String;

/// The hash of a file's bytes, as `sha256sum` prints it; of a model without its external data.
///
/// # Errors
/// If it cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<Digest> {
    let at = |e| Error::io(path, e);
    let mut file = File::open(path).map_err(at)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(at)? {
            0 => return Ok(hex(hash)),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// The hash of samples that [`Dataset::sha256`](super::Dataset::sha256) defines, batch after batch.
#[derive(Clone, Debug, Default)]
pub(super) struct SampleHash(Sha256);

impl SampleHash {
    /// Goes on with the samples of a batch.
    pub fn update(&mut self, batch: &Batch) {
        let count = batch.names.len();
        let inputs: Vec<(String, Vec<u8>)> = batch
            .inputs
            .iter()
            .map(|(name, x)| {
                let mut shape = x.shape().to_vec();
                shape.iter_mut().take(1).for_each(|n| *n = 1);
                (format!("{name} {}{shape:?}\n", x.dtype()), x.to_bytes())
            })
            .collect();
        for i in 0..count {
            for (line, bytes) in &inputs {
                let size = bytes.len() / count;
                self.0.update(line);
                self.0.update(&bytes[i * size..][..size]);
            }
        }
    }

    /// The hash of all samples so far.
    pub fn finish(self) -> Digest {
        hex(self.0)
    }
}

fn hex(hash: Sha256) -> Digest {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
