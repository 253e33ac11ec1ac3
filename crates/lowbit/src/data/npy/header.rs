//! The header's dict literal: `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.

use super::{CODES, MAX_RANK};
use crate::error::{Error, Result, invalid};
use crate::tensor::DType;

/// What the header says of the bytes that follow.
#[derive(Debug, PartialEq)]
pub(super) struct Header {
    pub dtype: DType,
    pub big_endian: bool,
    /// Column-major: the first index varies fastest.
    pub fortran: bool,
    pub shape: Vec<usize>,
}

/// The dict of a row-major little-endian array.
pub(super) fn format(dtype: DType, shape: &[usize]) -> Result<String> {
    let (code, _) = CODES
        .iter()
        .find(|(_, d)| *d == dtype)
        .ok_or_else(|| Error::unsupported("npy", format!("element type {dtype}")))?;
    let order = if dtype.bits() == 8 { '|' } else { '<' };
    let mut dims = String::new();
    for d in shape {
        dims += &format!("{d}, ");
    }
    // `(3,)` keeps its comma: without it Python reads a number.
    let dims = if shape.len() == 1 { dims.trim_end() } else { dims.trim_end_matches(", ") };
    Ok(format!("{{'descr': '{order}{code}', 'fortran_order': False, 'shape': ({dims}), }}"))
}

/// Reads the dict; its keys may stand in any order.
pub(super) fn parse(text: &str) -> Result<Header> {
    let mut cursor = Cursor { rest: text };
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    cursor.expect('{')?;
    while !cursor.take('}') {
        let key = cursor.text()?;
        cursor.expect(':')?;
        match key {
            "descr" => descr = Some(cursor.descr()?),
            "fortran_order" => fortran = Some(cursor.truth()?),
            "shape" => shape = Some(cursor.shape()?),
            other => return Err(invalid!("the npy header has an unknown key {other:?}")),
        }
        if !cursor.take(',') {
            cursor.expect('}')?;
            break;
        }
    }
    if !cursor.rest.trim().is_empty() {
        return Err(cursor.unexpected("the end of the header"));
    }
    match (descr, fortran, shape) {
        (Some((dtype, big_endian)), Some(fortran), Some(shape)) => {
            Ok(Header { dtype, big_endian, fortran, shape })
        }
        _ => Err(invalid!("the npy header lacks one of descr, fortran_order and shape")),
    }
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn unexpected(&self, wanted: &str) -> Error {
        let found: String = self.rest.trim_start().chars().take(20).collect();
        invalid!("the npy header should have {wanted} where it has {found:?}")
    }

    /// Moves past `c`, if it is next.
    fn take(&mut self, c: char) -> bool {
        match self.rest.trim_start().strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, c: char) -> Result<()> {
        if self.take(c) { Ok(()) } else { Err(self.unexpected(&format!("{c:?}"))) }
    }

    /// A quoted string without escapes.
    fn text(&mut self) -> Result<&'a str> {
        let rest = self.rest.trim_start();
        let quoted = ['\'', '"'].into_iter().find_map(|q| rest.strip_prefix(q)?.split_once(q));
        let (text, rest) = quoted.ok_or_else(|| self.unexpected("a quoted string"))?;
        self.rest = rest;
        Ok(text)
    }

    fn truth(&mut self) -> Result<bool> {
        let rest = self.rest.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.unexpected("True or False"))
    }

    /// Element type, and whether it is big-endian.
    fn descr(&mut self) -> Result<(DType, bool)> {
        if self.rest.trim_start().starts_with('[') {
            return Err(Error::unsupported("npy", "a structured element type"));
        }
        let descr = self.text()?;
        let no = || Error::unsupported("npy", format!("element type {descr:?}"));
        let code = descr.get(1..).ok_or_else(no)?;
        let (_, dtype) = *CODES.iter().find(|(c, _)| *c == code).ok_or_else(no)?;
        match descr.as_bytes()[0] {
            b'<' => Ok((dtype, false)),
            b'>' => Ok((dtype, true)),
            b'|' if dtype.bits() == 8 => Ok((dtype, false)),
            _ => Err(no()),
        }
    }

    /// A tuple of sizes; Python 2 wrote them with a final `L`.
    fn shape(&mut self) -> Result<Vec<usize>> {
        self.expect('(')?;
        let mut shape = vec![];
        while !self.take(')') {
            let rest = self.rest.trim_start();
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let size = rest[..end].parse().map_err(|_| self.unexpected("a size"))?;
            if shape.len() == MAX_RANK {
                return Err(invalid!("the npy header has more than {MAX_RANK} dimensions"));
            }
            shape.push(size);
            self.rest = rest[end..].strip_prefix('L').unwrap_or(&rest[end..]);
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(shape)
    }
}
