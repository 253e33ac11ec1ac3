//! The element types of ONNX tensors.

use std::fmt;

/// An element type: the values of `TensorProto.DataType` but `UNDEFINED`.
#[allow(missing_docs)] // The names are the standard's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum DataType {
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Uint16 = 4,
    Int16 = 5,
    Int32 = 6,
    Int64 = 7,
    String = 8,
    Bool = 9,
    Float16 = 10,
    Double = 11,
    Uint32 = 12,
    Uint64 = 13,
    Complex64 = 14,
    Complex128 = 15,
    Bfloat16 = 16,
    Float8E4m3fn = 17,
    Float8E4m3fnuz = 18,
    Float8E5m2 = 19,
    Float8E5m2fnuz = 20,
    Uint4 = 21,
    Int4 = 22,
    Float4E2m1 = 23,
    Float8E8m0 = 24,
    Uint2 = 25,
    Int2 = 26,
    Float6E2m3 = 27,
    Float6E3m2 = 28,
}

impl DataType {
    /// Every type, in the order of its ONNX number.
    pub const ALL: [DataType; 28] = [
        DataType::Float,
        DataType::Uint8,
        DataType::Int8,
        DataType::Uint16,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::String,
        DataType::Bool,
        DataType::Float16,
        DataType::Double,
        DataType::Uint32,
        DataType::Uint64,
        DataType::Complex64,
        DataType::Complex128,
        DataType::Bfloat16,
        DataType::Float8E4m3fn,
        DataType::Float8E4m3fnuz,
        DataType::Float8E5m2,
        DataType::Float8E5m2fnuz,
        DataType::Uint4,
        DataType::Int4,
        DataType::Float4E2m1,
        DataType::Float8E8m0,
        DataType::Uint2,
        DataType::Int2,
        DataType::Float6E2m3,
        DataType::Float6E3m2,
    ];

    /// The type with this ONNX number (`TensorProto.data_type`, `TypeProto.Tensor.elem_type`).
    pub fn from_onnx(number: i32) -> Option<DataType> {
        DataType::ALL.into_iter().find(|t| t.to_onnx() == number)
    }

    /// The ONNX number of this type.
    pub fn to_onnx(self) -> i32 {
        self as i32
    }

    /// Bits of one element as stored; `None` for strings, which have no fixed width.
    pub fn bits(self) -> Option<u32> {
        use DataType::*;
        Some(match self {
            String => return None,
            Uint2 | Int2 => 2,
            Uint4 | Int4 | Float4E2m1 => 4,
            Float6E2m3 | Float6E3m2 => 6,
            Uint8 | Int8 | Bool | Float8E4m3fn | Float8E4m3fnuz | Float8E5m2 | Float8E5m2fnuz
            | Float8E8m0 => 8,
            Uint16 | Int16 | Float16 | Bfloat16 => 16,
            Float | Int32 | Uint32 => 32,
            Double | Int64 | Uint64 | Complex64 => 64,
            Complex128 => 128,
        })
    }

    /// Bytes of `elements` packed elements, `ceil(elements * bits / 8)`.
    ///
    /// `None` for strings, and where the count does not fit in memory (`isize::MAX` bytes).
    pub fn byte_len(self, elements: usize) -> Option<usize> {
        let bits = elements as u128 * u128::from(self.bits()?);
        let bytes = usize::try_from(bits.div_ceil(8)).ok()?;
        (bytes <= isize::MAX as usize).then_some(bytes)
    }
}

/// The standard's name, such as `FLOAT8E4M3FN`.
impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_uppercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tensor_proto::DataType as Generated;

    #[test]
    fn mirrors_the_generated_enum() {
        for number in -1..64 {
            let ours = DataType::from_onnx(number).map(|t| t.to_string());
            let schema = Generated::try_from(number)
                .ok()
                .filter(|t| *t != Generated::Undefined)
                .map(|t| t.as_str_name().to_owned());
            assert_eq!(ours, schema, "number {number}");
        }
    }

    #[test]
    fn packed_sizes_round_up() {
        let cases = [
            (DataType::Int2, [0, 1, 1, 1, 1, 2]),
            (DataType::Int4, [0, 1, 1, 2, 2, 3]),
            (DataType::Float6E2m3, [0, 1, 2, 3, 3, 4]),
            (DataType::Bool, [0, 1, 2, 3, 4, 5]),
            (DataType::Complex128, [0, 16, 32, 48, 64, 80]),
        ];
        for (dtype, sizes) in cases {
            let got: Vec<_> = (0..6).map(|n| dtype.byte_len(n)).collect();
            assert_eq!(got, sizes.map(Some), "{dtype}");
        }
        assert_eq!(DataType::String.byte_len(1), None);
        assert_eq!(DataType::Int8.byte_len(usize::MAX), None);
        assert_eq!(DataType::Complex128.byte_len(usize::MAX / 8), None);
        assert!(DataType::Int2.byte_len(usize::MAX).is_some());
    }
}
