use super::*;
use crate::proto::StringStringEntryProto;
use crate::proto::tensor_proto::Segment;
use crate::sample::entry;

fn typed(dtype: DataType, dims: &[i64]) -> TensorProto {
    TensorProto {
        name: Some("w".to_owned()),
        data_type: Some(dtype.to_onnx()),
        dims: dims.to_vec(),
        ..TensorProto::default()
    }
}

/// One tensor in a typed field, and the same in `raw_data`.
struct Case {
    proto: TensorProto,
    packed: Vec<u8>,
}

fn int32(dtype: DataType, elements: i64, values: &[i32], packed: &[u8]) -> Case {
    Case {
        proto: TensorProto { int32_data: values.to_vec(), ..typed(dtype, &[elements]) },
        packed: packed.to_vec(),
    }
}

fn typed_cases() -> Vec<Case> {
    use DataType::*;
    let floats = [1.5f32, -0.0, f32::NEG_INFINITY, f32::MIN_POSITIVE];
    let doubles = [f64::EPSILON, -2.0, f64::INFINITY, 0.0];
    let float_bytes: Vec<u8> = floats.iter().flat_map(|v| v.to_le_bytes()).collect();
    let double_bytes: Vec<u8> = doubles.iter().flat_map(|v| v.to_le_bytes()).collect();
    let float_case = |dtype, dims: &[i64]| Case {
        proto: TensorProto { float_data: floats.to_vec(), ..typed(dtype, dims) },
        packed: float_bytes.clone(),
    };
    let double_case = |dtype, dims: &[i64]| Case {
        proto: TensorProto { double_data: doubles.to_vec(), ..typed(dtype, dims) },
        packed: double_bytes.clone(),
    };
    let uint64_case = |dtype, values: &[u64], packed: &[u8]| Case {
        proto: TensorProto { uint64_data: values.to_vec(), ..typed(dtype, &[values.len() as i64]) },
        packed: packed.to_vec(),
    };
    let mut cases = vec![
        float_case(Float, &[2, 2]),
        float_case(Complex64, &[2]),
        double_case(Double, &[4]),
        double_case(Complex128, &[2, 1]),
        Case {
            proto: TensorProto { int64_data: vec![i64::MIN, 1], ..typed(Int64, &[2]) },
            packed: vec![0, 0, 0, 0, 0, 0, 0, 128, 1, 0, 0, 0, 0, 0, 0, 0],
        },
        uint64_case(Uint64, &[u64::MAX], &[255; 8]),
        uint64_case(Uint32, &[u32::MAX.into(), 258], &[255, 255, 255, 255, 2, 1, 0, 0]),
        int32(Int32, 2, &[i32::MIN, 258], &[0, 0, 0, 128, 2, 1, 0, 0]),
        int32(Int16, 2, &[-32768, 32767], &[0, 128, 255, 127]),
        int32(Int8, 3, &[-128, -1, 127], &[128, 255, 127]),
        int32(Bool, 3, &[1, 0, 1], &[1, 0, 1]),
        int32(Float6E2m3, 1, &[63], &[0b0011_1111]),
        int32(Float6E3m2, 4, &[1, 2, 3, 4], &[0b1000_0001, 0b0011_0000, 0b0001_0000]),
        int32(Float6E3m2, 6, &[0, 0, 0, 63, 63, 33], &[0, 0, 252, 0b0111_1111, 0b0000_1000]),
    ];
    for dtype in [Uint16, Float16, Bfloat16] {
        cases.push(int32(dtype, 2, &[0, 65535], &[0, 0, 255, 255]));
    }
    for dtype in [Uint8, Float8E4m3fn, Float8E4m3fnuz, Float8E5m2, Float8E5m2fnuz, Float8E8m0] {
        cases.push(int32(dtype, 3, &[0, 128, 255], &[0, 128, 255]));
    }
    for dtype in [Uint4, Int4, Float4E2m1] {
        cases.push(int32(dtype, 3, &[0x21, 0x03], &[0x21, 0x03]));
    }
    for dtype in [Uint2, Int2] {
        cases.push(int32(dtype, 5, &[0xe4, 0x03], &[0xe4, 0x03]));
    }
    cases
}

#[test]
fn typed_fields_and_raw_data_agree_for_every_type() {
    let mut failures = Vec::new();
    let mut seen = vec![DataType::String];
    for Case { proto, packed } in typed_cases() {
        let data = match TensorData::from_proto(&proto, None) {
            Ok(data) => data,
            Err(error) => {
                failures.push(error.to_string());
                continue;
            }
        };
        seen.push(data.dtype);
        if data.bytes != packed {
            failures.push(format!("{}: {:?}, not {packed:?}", data.dtype, data.bytes));
        }
        let raw = data.clone().into_proto().unwrap();
        if raw.raw_data.as_deref() != Some(&packed) || raw.dims != proto.dims {
            failures.push(format!("{}: written as {raw:?}", data.dtype));
        }
        if TensorData::from_proto(&raw, None).ok().as_ref() != Some(&data) {
            failures.push(format!("{}: raw_data differs", data.dtype));
        }
        let mut short = proto.clone();
        short.dims.push(3);
        if TensorData::from_proto(&short, None).is_ok() {
            failures.push(format!("{}: accepted too few values", data.dtype));
        }
    }
    let missing: Vec<_> = DataType::ALL.iter().filter(|t| !seen.contains(t)).collect();
    assert!(failures.is_empty() && missing.is_empty(), "{failures:#?} {missing:?}");
}

#[test]
fn accepts_scalars_empty_tensors_and_an_empty_raw_data_field() {
    let cases = [
        (vec![], vec![7], None, 1),
        (vec![0], vec![], None, 0),
        (vec![3, 0, 5], vec![], Some(vec![]), 0),
        (vec![2], vec![7, 8], Some(vec![]), 2),
    ];
    for (dims, int32_data, raw_data, bytes) in cases {
        let proto = TensorProto { int32_data, raw_data, ..typed(DataType::Uint8, &dims) };
        let data = TensorData::from_proto(&proto, None).unwrap();
        assert_eq!(data.bytes.len(), bytes, "{dims:?}");
    }
}

#[test]
fn names_every_fault() {
    use DataType::*;
    let raw = |dtype, dims: &[i64], bytes: usize| TensorProto {
        raw_data: Some(vec![2; bytes]),
        ..typed(dtype, dims)
    };
    let ints = |dtype, values: &[i32]| TensorProto {
        int32_data: values.to_vec(),
        ..typed(dtype, &[values.len() as i64])
    };
    let external = |entries: Vec<StringStringEntryProto>| TensorProto {
        data_location: Some(1),
        external_data: entries,
        ..typed(Uint8, &[2])
    };
    let with_type = |number| TensorProto { data_type: number, ..typed(Uint8, &[]) };
    let cases: Vec<(TensorProto, &str)> = vec![
        (with_type(None), "unknown element type number 0"),
        (with_type(Some(0)), "unknown element type number 0"),
        (with_type(Some(-3)), "unknown element type number -3"),
        (with_type(Some(29)), "unknown element type number 29"),
        (typed(String, &[1]), "tensors of strings are not supported"),
        (
            TensorProto { segment: Some(Segment::default()), ..raw(Int8, &[1], 1) },
            "split in segments are not supported",
        ),
        (raw(Int8, &[2, -1], 2), "dimension 1 is -1"),
        (raw(Int8, &[i64::MAX, i64::MAX], 2), "does not fit in memory"),
        (raw(Int8, &[0, i64::MAX, 3], 0), "does not fit in memory"),
        (raw(Double, &[i64::MAX / 4], 2), "does not fit in memory"),
        (raw(Int8, &[1 << 40], 2), "needs 1099511627776 bytes but raw_data holds 2"),
        (raw(Float, &[2], 7), "shape [2] of FLOAT needs 8 bytes but raw_data holds 7"),
        (raw(Float, &[2], 9), "needs 8 bytes but raw_data holds 9"),
        (raw(Int4, &[5], 2), "needs 3 bytes but raw_data holds 2"),
        (raw(Uint2, &[9], 4), "needs 3 bytes but raw_data holds 4"),
        (raw(Float6E3m2, &[5], 3), "needs 4 bytes but raw_data holds 3"),
        (raw(Int8, &[0], 1), "needs 0 bytes but raw_data holds 1"),
        (raw(Bool, &[2], 2), "value 0 is 2, outside 0..=1, the range of BOOL in raw_data"),
        (typed(Float, &[2]), "needs 2 values but float_data holds 0"),
        (typed(Int64, &[]), "needs 1 values but int64_data holds 0"),
        (typed(Uint32, &[1 << 40]), "values but uint64_data holds 0"),
        (ints(Int8, &[0, 128]), "value 1 is 128, outside -128..=127, the range of INT8"),
        (ints(Int16, &[-32769]), "value 0 is -32769"),
        (ints(Uint8, &[-1]), "value 0 is -1, outside 0..=255"),
        (ints(Float16, &[65536]), "outside 0..=65535"),
        (ints(Bool, &[2]), "outside 0..=1"),
        (ints(Float6E2m3, &[64]), "outside 0..=63"),
        (ints(Float8E8m0, &[256]), "outside 0..=255"),
        (TensorProto { uint64_data: vec![1 << 32], ..typed(Uint32, &[1]) }, "value 0 is 4294967296"),
        (
            TensorProto { float_data: vec![1.0], ..raw(Float, &[1], 4) },
            "FLOAT data belong in raw_data alone, but float_data holds data",
        ),
        (
            TensorProto { int32_data: vec![1], ..typed(Int64, &[1]) },
            "INT64 data belong in int64_data alone, but int32_data holds data",
        ),
        (
            TensorProto { raw_data: Some(vec![1, 2]), ..external(vec![entry("location", "w.bin")]) },
            "belong in external data alone, but raw_data holds data",
        ),
        (TensorProto { data_location: Some(2), ..raw(Int8, &[1], 1) }, "data_location is 2"),
        (external(vec![]), "there is no location"),
        (external(vec![entry("location", "")]), "there is no location"),
        (external(vec![entry("location", "a"), entry("location", "b")]), "location is given twice"),
        (
            external(vec![entry("location", "a"), entry("length", 3)]),
            "needs 2 bytes but external data holds 3",
        ),
        (
            external(vec![entry("location", "a"), entry("length", 2)]),
            "came without a folder; read it from its file",
        ),
    ];
    let mut failures = Vec::new();
    for (proto, expected) in cases {
        match TensorData::from_proto(&proto, None) {
            Ok(data) => failures.push(format!("accepted {data:?}, not {expected:?}")),
            Err(error) => {
                let message = error.to_string();
                if !message.starts_with("tensor \"w\": ") || !message.contains(expected) {
                    failures.push(format!("{message:?}, not {expected:?}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn checks_what_is_built_by_hand() {
    let built = TensorData::new("w", DataType::Int4, vec![3], vec![0; 3]).unwrap_err();
    assert_eq!(built.to_string(), "tensor \"w\": shape [3] of INT4 needs 2 bytes but the data holds 3");
    let mut data = TensorData::new("w", DataType::Int4, vec![3], vec![0; 2]).unwrap();
    data.dims = vec![7];
    assert!(data.into_proto().is_err());
}
