//! A numeric format is data: what the integers are, how reals map to them, and
//! what shares one scale.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, invalid};
use crate::tensor::DType;

/// The codes that values are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Format {
    /// Integers of `bits` bits. A `narrow` range leaves out the lowest code,
    /// so that it is symmetric about 0 (-127..127) when signed.
    Int {
        /// Width, 2 to 32.
        bits: u8,
        /// Two's complement or unsigned.
        signed: bool,
        /// Whether the lowest code is left out.
        narrow: bool,
    },
    /// Floating point of 1 + `exponent` + `mantissa` bits.
    Float {
        /// Exponent bits.
        exponent: u8,
        /// Mantissa bits.
        mantissa: u8,
    },
    /// Places in a list of `2^bits` values ([`crate::codebook`]): for weights of
    /// operators whose activations stay in float.
    Codebook {
        /// Width of a code, 2 to 8.
        bits: u8,
        /// Whether the values are fitted to the weight (k-means), or those of
        /// 4-bit NormalFloat.
        fitted: bool,
    },
}

impl Format {
    /// -128..127.
    pub const INT8: Format = Format::Int { bits: 8, signed: true, narrow: false };
    /// -127..127.
    pub const INT8_NARROW: Format = Format::Int { bits: 8, signed: true, narrow: true };
    /// 0..255.
    pub const UINT8: Format = Format::Int { bits: 8, signed: false, narrow: false };
    /// -8..7.
    pub const INT4: Format = Format::Int { bits: 4, signed: true, narrow: false };
    /// 0..15.
    pub const UINT4: Format = Format::Int { bits: 4, signed: false, narrow: false };
    /// -32768..32767.
    pub const INT16: Format = Format::Int { bits: 16, signed: true, narrow: false };
    /// 0..65535.
    pub const UINT16: Format = Format::Int { bits: 16, signed: false, narrow: false };
    /// The whole of i32: biases.
    pub const INT32: Format = Format::Int { bits: 32, signed: true, narrow: false };
    /// 8-bit float for weights and activations, up to 448.
    pub const E4M3: Format = Format::Float { exponent: 4, mantissa: 3 };
    /// 8-bit float of wider range, up to 57344.
    pub const E5M2: Format = Format::Float { exponent: 5, mantissa: 2 };
    /// IEEE half precision, for weights as they are, without a scale.
    pub const FP16: Format = Format::Float { exponent: 5, mantissa: 10 };
    /// QLoRA's 4-bit NormalFloat: quantiles of the normal distribution.
    pub const NF4: Format = Format::Codebook { bits: 4, fitted: false };

    /// The least and greatest code; for floats the largest magnitude both ways.
    pub fn bounds(self) -> (i32, i32) {
        match self {
            Format::FP16 => (-65504, 65504),
            Format::Codebook { bits, .. } => (0, (1 << bits.min(8)) - 1),
            Format::Int { bits, signed: true, narrow } => {
                let top = i32::MAX >> (32 - u32::from(bits));
                (-top - i32::from(!narrow), top)
            }
            Format::Int { bits, signed: false, narrow } => {
                let top = (u32::MAX >> (32 - u32::from(bits))).min(i32::MAX as u32);
                (i32::from(narrow), top.cast_signed())
            }
            Format::Float { .. } => {
                let top = self.dtype().float_max().unwrap_or(f32::MAX) as i32;
                (-top, top)
            }
        }
    }

    /// The narrowest element type that holds the codes.
    pub fn dtype(self) -> DType {
        match self {
            Format::Int { bits, signed, .. } => match (bits, signed) {
                (..=2, true) => DType::I2,
                (..=2, false) => DType::U2,
                (..=4, true) => DType::I4,
                (..=4, false) => DType::U4,
                (..=8, true) => DType::I8,
                (..=8, false) => DType::U8,
                (..=16, true) => DType::I16,
                (..=16, false) => DType::U16,
                (_, true) => DType::I32,
                (_, false) => DType::U32,
            },
            Format::FP16 => DType::F16,
            Format::Codebook { bits, .. } => match bits {
                ..=2 => DType::U2,
                3..=4 => DType::U4,
                _ => DType::U8,
            },
            Format::Float { exponent: 2, .. } => DType::F4E2M1,
            Format::Float { exponent: 4, .. } => DType::F8E4M3,
            Format::Float { .. } => DType::F8E5M2,
        }
    }

    /// The full-range format whose codes an element type holds.
    pub fn of(dtype: DType) -> Result<Format> {
        let int = |bits, signed| Ok(Format::Int { bits, signed, narrow: false });
        match dtype {
            DType::F8E4M3 => Ok(Format::E4M3),
            DType::F8E5M2 => Ok(Format::E5M2),
            DType::F4E2M1 => Ok(Format::Float { exponent: 2, mantissa: 1 }),
            DType::I2 | DType::I4 | DType::I8 | DType::I16 | DType::I32 => int(dtype.bits() as u8, true),
            DType::U2 | DType::U4 | DType::U8 | DType::U16 | DType::U32 => int(dtype.bits() as u8, false),
            _ => Err(invalid!("{dtype} is not a quantized type")),
        }
    }

    /// The width of a code.
    pub fn bits(self) -> u8 {
        match self {
            Format::Int { bits, .. } | Format::Codebook { bits, .. } => bits,
            Format::Float { exponent, mantissa } => 1 + exponent + mantissa,
        }
    }

    /// Whether codes are floating point.
    pub fn is_float(self) -> bool {
        matches!(self, Format::Float { .. })
    }

    /// Whether codes are signed.
    pub fn is_signed(self) -> bool {
        !matches!(self, Format::Int { signed: false, .. })
    }

    /// Whether only weights beside float activations can have it.
    pub fn is_for_storage(self) -> bool {
        matches!(self, Format::FP16 | Format::Codebook { .. })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Format::Int { bits, signed, narrow } => {
                let (u, narrow) = (if signed { "" } else { "u" }, if narrow { "-narrow" } else { "" });
                write!(f, "{u}int{bits}{narrow}")
            }
            Format::FP16 => f.write_str("fp16"),
            Format::Float { exponent, mantissa } => write!(f, "e{exponent}m{mantissa}"),
            Format::Codebook { bits, fitted: false } => write!(f, "nf{bits}"),
            Format::Codebook { bits, fitted: true } => write!(f, "kmeans{bits}"),
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    /// `int8`, `uint4`, `int8-narrow`, `e4m3`, `e5m2`, `e2m1`, `fp16`, `nf4`, `kmeans4` ...
    fn from_str(s: &str) -> Result<Format> {
        let unknown = || {
            invalid!(
                "unknown format \"{s}\"; known are intN and uintN (N = 2..32), each with -narrow, e4m3, e5m2, e2m1, fp16, nf4 and kmeansN (N = 2..8)"
            )
        };
        match s {
            "e4m3" => return Ok(Format::E4M3),
            "e5m2" => return Ok(Format::E5M2),
            "e2m1" => return Ok(Format::Float { exponent: 2, mantissa: 1 }),
            "fp16" => return Ok(Format::FP16),
            "nf4" => return Ok(Format::NF4),
            _ => {}
        }
        if let Some(bits) = s.strip_prefix("kmeans") {
            let bits = bits.parse().ok().filter(|b| (2..=8).contains(b)).ok_or_else(unknown)?;
            return Ok(Format::Codebook { bits, fitted: true });
        }
        let (rest, narrow) = s.strip_suffix("-narrow").map_or((s, false), |r| (r, true));
        let (rest, signed) = rest.strip_prefix('u').map_or((rest, true), |r| (r, false));
        let bits: u8 = rest.strip_prefix("int").and_then(|b| b.parse().ok()).ok_or_else(unknown)?;
        if !(2..=32).contains(&bits) {
            return Err(unknown());
        }
        Ok(Format::Int { bits, signed, narrow })
    }
}

impl From<Format> for String {
    fn from(f: Format) -> String {
        f.to_string()
    }
}

impl TryFrom<String> for Format {
    type Error = Error;
    fn try_from(s: String) -> Result<Format> {
        s.parse()
    }
}

/// How reals map to codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mapping {
    /// Zero is the middle code: `x = s q` when signed.
    Symmetric,
    /// Any range that holds 0: `x = s (q - z)`.
    Affine,
}

/// What shares one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// The whole tensor.
    Tensor,
    /// Each index of one axis: per channel.
    Axis(usize),
    /// Each run of `size` elements along one axis.
    Block {
        /// The axis that is cut.
        axis: usize,
        /// Elements in one block; the last one may be shorter.
        size: usize,
    },
}

impl Granularity {
    /// How a tensor of `shape` falls into groups.
    ///
    /// # Errors
    /// If the axis is outside the shape or the block size is 0.
    pub fn groups(self, shape: &[usize]) -> Result<Groups> {
        let len = shape.iter().product();
        let (axis, size) = match self {
            Granularity::Tensor => {
                return Ok(Groups { len, inner: len.max(1), size: 1, extent: 1, scale_shape: vec![] });
            }
            Granularity::Axis(axis) => (axis, 1),
            Granularity::Block { axis, size } => (axis, size),
        };
        let Some(&extent) = shape.get(axis) else {
            return Err(invalid!("axis {axis} is outside shape {shape:?}"));
        };
        if size == 0 {
            return Err(invalid!("a block needs at least one element"));
        }
        let inner: usize = shape[axis + 1..].iter().product();
        let scale_shape = match self {
            Granularity::Block { .. } => {
                let mut s = shape.to_vec();
                s[axis] = extent.div_ceil(size);
                s
            }
            _ => vec![extent],
        };
        Ok(Groups { len, inner, size, extent, scale_shape })
    }
}

/// How a tensor's elements fall into groups that share a scale: the one view
/// that serves every [`Granularity`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    len: usize,
    inner: usize,
    size: usize,
    extent: usize,
    scale_shape: Vec<usize>,
}

impl Groups {
    /// The number of groups.
    pub fn count(&self) -> usize {
        self.scale_shape.iter().product()
    }

    /// The shape that ONNX gives to the scales: `[]`, `[channels]`, or the
    /// tensor's with the blocked axis divided.
    pub fn scale_shape(&self) -> &[usize] {
        &self.scale_shape
    }

    /// The group of element `i`.
    pub fn of(&self, i: usize) -> usize {
        let (row, extent) = (i / self.inner.max(1), self.extent.max(1));
        let along = row % extent;
        if self.is_blocked() {
            let blocks = extent.div_ceil(self.size);
            (row / extent * blocks + along / self.size) * self.inner + i % self.inner
        } else {
            along
        }
    }

    fn is_blocked(&self) -> bool {
        self.scale_shape.len() > 1 || self.size > 1
    }

    /// The elements in order, as runs of one group each.
    pub fn runs(&self) -> impl Iterator<Item = (Range<usize>, usize)> + '_ {
        let blocked = self.is_blocked();
        // Blocks along the last axis are contiguous; along others each element
        // of the inner dimensions has a scale of its own.
        let step = match (blocked, self.inner) {
            (false, inner) => inner.max(1),
            (true, 1) => 0,
            (true, _) => 1,
        };
        let mut at = 0;
        std::iter::from_fn(move || {
            if at >= self.len {
                return None;
            }
            let start = at;
            let along = start / self.inner.max(1) % self.extent.max(1);
            let length = if step > 0 { step } else { self.size.min(self.extent - along) };
            at += length;
            Some((start..at.min(self.len), self.of(start)))
        })
    }
}

/// A complete quantization scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheme {
    /// The codes.
    pub format: Format,
    /// How reals map to them.
    pub mapping: Mapping,
    /// What shares one scale.
    #[serde(default = "per_tensor")]
    pub granularity: Granularity,
    /// Codes really used, where they are fewer than the format's
    /// (`reduce_range`, custom `quant_min` and `quant_max`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes: Option<(i32, i32)>,
}

fn per_tensor() -> Granularity {
    Granularity::Tensor
}

impl Scheme {
    /// A per-tensor scheme over the whole format.
    pub const fn new(format: Format, mapping: Mapping) -> Scheme {
        Scheme { format, mapping, granularity: Granularity::Tensor, codes: None }
    }

    /// The same scheme with other groups.
    pub const fn with(self, granularity: Granularity) -> Scheme {
        Scheme { granularity, ..self }
    }

    /// The same scheme one bit narrower: 0..127, -64..63. For kernels whose
    /// 16-bit sums would saturate otherwise; lowbit's own never need it.
    pub fn reduced(self) -> Scheme {
        let (lo, hi) = self.bounds();
        Scheme { codes: Some((lo / 2, hi / 2)), ..self }
    }

    /// The scheme whose codes activations take where they are quantized at run
    /// time, by an operator that fills its element type: narrow and
    /// [reduced](Scheme::reduced) codes only choose the scale. Other codes that
    /// are fewer than the type's are kept by clipping the reals.
    pub fn saturating(self) -> Scheme {
        let Format::Int { bits, signed, .. } = self.format else { return self };
        let whole = Scheme { codes: None, ..self };
        if self.codes.is_some_and(|codes| whole.reduced().codes != Some(codes)) {
            return self;
        }
        Scheme { format: Format::Int { bits, signed, narrow: false }, ..whole }
    }

    /// The least and greatest code in use.
    pub fn bounds(&self) -> (i32, i32) {
        self.codes.unwrap_or_else(|| self.format.bounds())
    }

    /// Checks that the codes lie within the format.
    ///
    /// # Errors
    /// If custom codes are empty or outside the format's.
    pub fn check(&self) -> Result<()> {
        let ((lo, hi), (least, greatest)) = (self.bounds(), self.format.bounds());
        if lo >= hi || lo < least || hi > greatest {
            return Err(invalid!("codes {lo}..{hi} do not lie within {} ({least}..{greatest})", self.format));
        }
        let integers = matches!(self.format, Format::Int { .. });
        if !integers && self.mapping == Mapping::Affine {
            return Err(invalid!("{} has no zero point: its mapping is symmetric", self.format));
        }
        if !integers && self.codes.is_some() {
            return Err(invalid!("{} takes no custom codes: they are for integers", self.format));
        }
        Ok(())
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.format)?;
        if let Some((lo, hi)) = self.codes {
            write!(f, "[{lo}..{hi}]")?;
        }
        f.write_str(match self.mapping {
            Mapping::Symmetric => " symmetric",
            Mapping::Affine => " affine",
        })?;
        match self.granularity {
            Granularity::Tensor => Ok(()),
            Granularity::Axis(a) => write!(f, " per channel (axis {a})"),
            Granularity::Block { axis, size } => write!(f, " per block of {size} (axis {axis})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_named_and_bounded() {
        for (name, bounds, dtype) in [
            ("int8", (-128, 127), DType::I8),
            ("int8-narrow", (-127, 127), DType::I8),
            ("uint8", (0, 255), DType::U8),
            ("int4", (-8, 7), DType::I4),
            ("uint4", (0, 15), DType::U4),
            ("int16", (-32768, 32767), DType::I16),
            ("uint16", (0, 65535), DType::U16),
            ("int32", (i32::MIN, i32::MAX), DType::I32),
            ("int7", (-64, 63), DType::I8),
            ("e4m3", (-448, 448), DType::F8E4M3),
            ("e5m2", (-57344, 57344), DType::F8E5M2),
            ("fp16", (-65504, 65504), DType::F16),
            ("nf4", (0, 15), DType::U4),
            ("kmeans2", (0, 3), DType::U2),
            ("kmeans3", (0, 7), DType::U4),
            ("kmeans8", (0, 255), DType::U8),
        ] {
            let format: Format = name.parse().unwrap();
            assert_eq!((format.bounds(), format.dtype(), format.to_string().as_str()), (bounds, dtype, name));
        }
        for bad in ["int1", "int33", "int", "float8", "uint8-wide", "kmeans1", "kmeans9", "nf3", ""] {
            assert!(bad.parse::<Format>().is_err(), "{bad}");
        }
    }

    #[test]
    fn runs_cover_each_element_once_with_its_group() {
        let shape = [2, 5, 3];
        for (granularity, group) in [
            (Granularity::Tensor, (|_, _, _| 0) as fn(usize, usize, usize) -> usize),
            (Granularity::Axis(0), |a, _, _| a),
            (Granularity::Axis(1), |_, b, _| b),
            (Granularity::Axis(2), |_, _, c| c),
            (Granularity::Block { axis: 0, size: 2 }, |_, b, c| b * 3 + c),
            (Granularity::Block { axis: 1, size: 2 }, |a, b, c| (a * 3 + b / 2) * 3 + c),
            (Granularity::Block { axis: 2, size: 2 }, |a, b, c| (a * 5 + b) * 2 + c / 2),
        ] {
            let groups = granularity.groups(&shape).unwrap();
            let found: Vec<usize> = groups.runs().flat_map(|(r, g)| r.map(move |_| g)).collect();
            let want: Vec<usize> = (0..30).map(|i| group(i / 15, i / 3 % 5, i % 3)).collect();
            assert_eq!(found, want, "{granularity:?}");
            assert_eq!((0..30).map(|i| groups.of(i)).collect::<Vec<_>>(), want, "{granularity:?}");
            assert_eq!(groups.count(), want.iter().max().unwrap() + 1, "{granularity:?}");
        }
        assert!(Granularity::Axis(3).groups(&shape).is_err());
        assert!(Granularity::Block { axis: 0, size: 0 }.groups(&shape).is_err());
        assert_eq!(Granularity::Axis(1).groups(&[2, 0, 3]).unwrap().runs().count(), 0);
    }

    #[test]
    fn reduced_range_halves_the_codes() {
        assert_eq!(Scheme::new(Format::UINT8, Mapping::Affine).reduced().bounds(), (0, 127));
        assert_eq!(Scheme::new(Format::INT8, Mapping::Affine).reduced().bounds(), (-64, 63));
    }
}
