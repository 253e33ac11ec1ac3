//! Tensor data in the typed fields of `TensorProto` (`float_data`, `int32_data` ...).

use crate::DataType;
use crate::error::TensorFault;
use crate::proto::TensorProto;
use crate::tensor::Layout;

/// The typed field that the standard gives to `dtype`.
pub(crate) fn field_of(dtype: DataType) -> &'static str {
    use DataType::*;
    match dtype {
        Float | Complex64 => "float_data",
        Double | Complex128 => "double_data",
        Int64 => "int64_data",
        Uint32 | Uint64 => "uint64_data",
        String => "string_data",
        _ => "int32_data",
    }
}

/// The names of the data fields that hold anything.
pub(crate) fn filled(proto: &TensorProto) -> impl Iterator<Item = &'static str> {
    [
        ("raw_data", proto.raw_data.as_deref().map_or(0, <[u8]>::len)),
        ("float_data", proto.float_data.len()),
        ("double_data", proto.double_data.len()),
        ("int32_data", proto.int32_data.len()),
        ("int64_data", proto.int64_data.len()),
        ("uint64_data", proto.uint64_data.len()),
        ("string_data", proto.string_data.len()),
    ]
    .into_iter()
    .filter_map(|(field, len)| (len > 0).then_some(field))
}

/// The elements in the typed field of `layout.dtype`, packed as `raw_data` would hold them.
///
/// `int32_data` carries one element a value, but for the 2-bit and 4-bit types, whose values
/// are the packed bytes; complex elements are two values, the real part first.
pub(crate) fn packed(proto: &TensorProto, layout: &Layout) -> Result<Vec<u8>, TensorFault> {
    let dtype = layout.dtype;
    match field_of(dtype) {
        "float_data" => {
            let values = counted(&proto.float_data, layout)?;
            Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        "double_data" => {
            let values = counted(&proto.double_data, layout)?;
            Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        "int64_data" => {
            let values = counted(&proto.int64_data, layout)?;
            Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        "uint64_data" => {
            let values = counted(&proto.uint64_data, layout)?;
            let (max, width) = match dtype {
                DataType::Uint32 => (u64::from(u32::MAX), 4),
                _ => (u64::MAX, 8),
            };
            in_range(values, 0, max, dtype)?;
            let bytes = values.iter().map(|v| v.to_le_bytes());
            Ok(bytes.flat_map(|b| b.into_iter().take(width)).collect())
        }
        _ => {
            let values = counted(&proto.int32_data, layout)?;
            let (min, max, width) = int32_range(dtype);
            in_range(values, min, max, dtype)?;
            let bytes = values.iter().map(|v| v.to_le_bytes());
            let bytes = bytes.flat_map(|b| b.into_iter().take(width)).collect();
            Ok(match dtype.bits() {
                Some(6) => pack_6_bits(bytes),
                _ => bytes,
            })
        }
    }
}

/// Smallest and largest legal value of `int32_data`, and the bytes of it that are kept.
fn int32_range(dtype: DataType) -> (i32, i32, usize) {
    use DataType::*;
    match dtype {
        Bool => (0, 1, 1),
        Int8 => (i8::MIN.into(), i8::MAX.into(), 1),
        Int16 => (i16::MIN.into(), i16::MAX.into(), 2),
        Uint16 | Float16 | Bfloat16 => (0, u16::MAX.into(), 2),
        Float6E2m3 | Float6E3m2 => (0, 63, 1),
        Int32 => (i32::MIN, i32::MAX, 4),
        _ => (0, u8::MAX.into(), 1),
    }
}

/// Packs four 6-bit elements into three bytes, the first in the lowest bits.
fn pack_6_bits(elements: Vec<u8>) -> Vec<u8> {
    let groups = elements.chunks(4).flat_map(|group| {
        let word = (0..).step_by(6).zip(group).fold(0u32, |word, (shift, &e)| word | u32::from(e) << shift);
        let bytes = (6 * group.len()).div_ceil(8);
        word.to_le_bytes().into_iter().take(bytes)
    });
    groups.collect()
}

/// `values`, if there are as many as the shape needs.
fn counted<'a, T>(values: &'a [T], layout: &Layout) -> Result<&'a [T], TensorFault> {
    let expected = match layout.dtype {
        DataType::Complex64 | DataType::Complex128 => 2 * layout.elements,
        dtype if dtype.bits().is_some_and(|bits| bits <= 4) => layout.bytes,
        _ => layout.elements,
    };
    if values.len() == expected {
        return Ok(values);
    }
    Err(TensorFault::WrongLength {
        dims: layout.dims.clone(),
        dtype: layout.dtype,
        expected,
        unit: "values",
        place: field_of(layout.dtype),
        found: values.len() as u64,
    })
}

fn in_range<T>(values: &[T], min: T, max: T, dtype: DataType) -> Result<(), TensorFault>
where
    T: Copy + PartialOrd + Into<i128>,
{
    match values.iter().position(|v| !(min..=max).contains(v)) {
        None => Ok(()),
        Some(index) => Err(TensorFault::OutOfRange {
            index,
            value: values[index].into(),
            min: min.into(),
            max: max.into(),
            dtype,
            place: field_of(dtype),
        }),
    }
}
