//! Element types.

use std::fmt;

use float8::{F8E4M3, F8E5M2};

use crate::error::{Error, Result};

/// The type of a tensor's elements, as ONNX defines them.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    F64,
    F16,
    BF16,
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    Bool,
    I4,
    U4,
    I2,
    U2,
    /// 4 exponent bits, 3 mantissa bits, no infinities (FLOAT8E4M3FN).
    F8E4M3,
    /// 5 exponent bits, 2 mantissa bits, with infinities.
    F8E5M2,
    /// 2 exponent bits, 1 mantissa bit: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
    F4E2M1,
}

/// ONNX's numbers for element types (`TensorProto.DataType`).
const ONNX_NUMBERS: [(i32, DType); 20] = [
    (1, DType::F32),
    (2, DType::U8),
    (3, DType::I8),
    (4, DType::U16),
    (5, DType::I16),
    (6, DType::I32),
    (7, DType::I64),
    (9, DType::Bool),
    (10, DType::F16),
    (11, DType::F64),
    (12, DType::U32),
    (13, DType::U64),
    (16, DType::BF16),
    (17, DType::F8E4M3),
    (19, DType::F8E5M2),
    (21, DType::U4),
    (22, DType::I4),
    (23, DType::F4E2M1),
    (25, DType::U2),
    (26, DType::I2),
];

const F4E2M1_VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

impl DType {
    /// The type with this number in ONNX.
    ///
    /// # Errors
    /// If it is a type that tensors here do not have (strings, complex numbers ...).
    pub fn from_onnx(number: i64) -> Result<DType> {
        let known = ONNX_NUMBERS.iter().find(|(n, _)| i64::from(*n) == number);
        known.map(|(_, dtype)| *dtype).ok_or_else(|| Error::unsupported("element type", number.to_string()))
    }

    /// The type's number in ONNX.
    pub fn onnx_number(self) -> i32 {
        ONNX_NUMBERS.iter().find(|(_, dtype)| *dtype == self).map_or(0, |(n, _)| *n)
    }

    /// The type that holds one element in memory: the type itself, or the
    /// 8-bit integer that carries a narrower type's code.
    pub fn storage(self) -> DType {
        match self {
            DType::I4 | DType::I2 => DType::I8,
            DType::U4 | DType::U2 | DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 => DType::U8,
            other => other,
        }
    }

    /// Bits that one element takes in a file.
    pub fn bits(self) -> usize {
        match self {
            DType::F64 | DType::I64 | DType::U64 => 64,
            DType::F32 | DType::I32 | DType::U32 => 32,
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => 16,
            DType::I4 | DType::U4 | DType::F4E2M1 => 4,
            DType::I2 | DType::U2 => 2,
            _ => 8,
        }
    }

    /// Bytes that `n` elements take in a file, the last byte padded.
    pub fn bytes_of(self, n: usize) -> usize {
        (n * self.bits()).div_ceil(8)
    }

    /// Whether elements are integers (not booleans).
    pub fn is_integer(self) -> bool {
        self.integer_range().is_some() || self == DType::U64
    }

    /// Whether elements are floating-point numbers of 16 bits or more.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
    }

    /// The least and greatest value of an integer type that `i64` holds.
    pub fn integer_range(self) -> Option<(i64, i64)> {
        let (bits, signed) = match self {
            DType::I2 => (2, true),
            DType::U2 => (2, false),
            DType::I4 => (4, true),
            DType::U4 => (4, false),
            DType::I8 => (8, true),
            DType::U8 => (8, false),
            DType::I16 => (16, true),
            DType::U16 => (16, false),
            DType::I32 => (32, true),
            DType::U32 => (32, false),
            DType::I64 => return Some((i64::MIN, i64::MAX)),
            _ => return None,
        };
        Some(if signed { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) })
    }

    /// The value of an 8-bit or 4-bit float's code; an integer code as it is.
    pub fn decode(self, code: u8) -> f32 {
        match self {
            DType::F8E4M3 => F8E4M3::from_bits(code).to_f32(),
            DType::F8E5M2 => F8E5M2::from_bits(code).to_f32(),
            DType::F4E2M1 => {
                let magnitude = F4E2M1_VALUES[usize::from(code & 7)];
                if code & 8 == 0 { magnitude } else { -magnitude }
            }
            _ => f32::from(code),
        }
    }

    /// The code of the nearest value, ties to even, saturating at the largest
    /// finite value; NaN stays NaN where the type has one and becomes the
    /// largest magnitude where it has none.
    pub fn encode(self, x: f32) -> u8 {
        match self {
            DType::F8E4M3 if x.is_nan() => 0x7f,
            DType::F8E4M3 => F8E4M3::from_f32(x.clamp(-448.0, 448.0)).to_bits(),
            DType::F8E5M2 if x.is_nan() => 0x7f,
            DType::F8E5M2 => F8E5M2::from_f32(x.clamp(-57344.0, 57344.0)).to_bits(),
            DType::F4E2M1 => {
                let (magnitude, sign) = (x.abs(), if x.is_sign_negative() { 8 } else { 0 });
                // Halfway points between neighbours; a tie goes to the even code.
                let nearest = (0..7u8)
                    .find(|&i| {
                        let i = usize::from(i);
                        let middle = (F4E2M1_VALUES[i] + F4E2M1_VALUES[i + 1]) / 2.0;
                        magnitude < middle || (magnitude == middle && i % 2 == 0)
                    })
                    .unwrap_or(7);
                nearest | sign
            }
            _ => x.round_ties_even() as u8,
        }
    }

    /// The largest finite value of an 8-bit or 4-bit float.
    pub fn float_max(self) -> Option<f32> {
        match self {
            DType::F8E4M3 => Some(448.0),
            DType::F8E5M2 => Some(57344.0),
            DType::F4E2M1 => Some(6.0),
            _ => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I8 => "int8",
            DType::U8 => "uint8",
            DType::I16 => "int16",
            DType::U16 => "uint16",
            DType::I32 => "int32",
            DType::U32 => "uint32",
            DType::I64 => "int64",
            DType::U64 => "uint64",
            DType::Bool => "bool",
            DType::I4 => "int4",
            DType::U4 => "uint4",
            DType::I2 => "int2",
            DType::U2 => "uint2",
            DType::F8E4M3 => "e4m3",
            DType::F8E5M2 => "e5m2",
            DType::F4E2M1 => "e2m1",
        })
    }
}
