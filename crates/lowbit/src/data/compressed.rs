//! Reading compressed or plain files without trusting their sizes.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::error::{Error, Result, invalid};

/// The most that deflate can expand its input: 258 bytes from 2 bits.
pub(super) const MAX_DEFLATE_RATIO: u64 = 1032;

/// A file, inflated while it is read if its name ends in `.gz`.
pub(super) fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
    let is_gz = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
    Ok(if is_gz { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

/// Everything that `reader` gives, growing with what really arrives.
///
/// # Errors
/// If reading fails, or there are more than `limit` bytes.
pub(super) fn read_at_most(reader: impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| invalid!("cannot be read: {e}"))?;
    if bytes.len() as u64 > limit {
        return Err(invalid!("holds more than the {limit} bytes expected"));
    }
    Ok(bytes)
}
