//! Named tensors in a safetensors file.
//!
//! A quantized tensor `w` is stored as its codes under `w`, with `w.scale` and
//! `w.zero_point`. Types narrower than a byte, which safetensors lacks, are
//! packed bytes of type U8. Element type, shape and scheme of both are JSON in
//! the file's metadata, under the key `lowbit`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};
use serde::{Deserialize, Serialize};

use super::QTensor;
use crate::error::{Error, Result, invalid};
use crate::qparams::QParams;
use crate::scheme::Scheme;
use crate::tensor::{DType, Tensor};

/// What a file holds under one name.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    /// A tensor as it is.
    Plain(Tensor),
    /// Codes with their parameters.
    Quantized(QTensor),
}

/// What safetensors' own header does not say of an entry.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    dtype: String,
    shape: Vec<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scheme: Option<Scheme>,
}

const METADATA_KEY: &str = "lowbit";

/// Element types with a safetensors type of their own.
const NATIVE: [(DType, Dtype); 15] = [
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::I8, Dtype::I8),
    (DType::U8, Dtype::U8),
    (DType::I16, Dtype::I16),
    (DType::U16, Dtype::U16),
    (DType::I32, Dtype::I32),
    (DType::U32, Dtype::U32),
    (DType::I64, Dtype::I64),
    (DType::U64, Dtype::U64),
    (DType::Bool, Dtype::BOOL),
    (DType::F8E4M3, Dtype::F8_E4M3),
    (DType::F8E5M2, Dtype::F8_E5M2),
];

/// Element types that are packed into U8.
const PACKED: [DType; 5] = [DType::I4, DType::U4, DType::I2, DType::U2, DType::F4E2M1];

/// Writes `tensors` to a temporary file beside `path`, then renames it: a
/// reader sees the old file or the new one, whole.
///
/// # Errors
/// If two entries would have one name (`w.scale` beside a quantized `w`), or
/// the file cannot be written.
pub fn save(path: &Path, tensors: &BTreeMap<String, Stored>) -> Result<()> {
    let mut entries: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut described = BTreeMap::new();
    for (name, stored) in tensors {
        let (tensor, scheme) = match stored {
            Stored::Plain(t) => (t, None),
            Stored::Quantized(q) => (q.int_repr(), Some(q.params().scheme)),
        };
        if scheme.is_some() || tensor.dtype().bits() < 8 {
            let (dtype, shape) = (tensor.dtype().to_string(), tensor.shape().to_vec());
            described.insert(name, Described { dtype, shape, scheme });
        }
        let mut parts = vec![(name.clone(), tensor.clone())];
        if let Stored::Quantized(q) = stored {
            let shape = q.params().scheme.granularity.groups(q.shape())?.scale_shape().to_vec();
            parts.push((format!("{name}.scale"), Tensor::new(&shape, q.scale().to_vec())?));
            parts.push((format!("{name}.zero_point"), Tensor::new(&shape, q.zero_point().to_vec())?));
        }
        for (name, tensor) in parts {
            if entries.insert(name.clone(), tensor).is_some() {
                return Err(
                    invalid!("two entries are named \"{name}\"; rename one").at(path.display().to_string())
                );
            }
        }
    }
    let json = serde_json::to_string(&described).map_err(|e| invalid!("metadata: {e}"))?;
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), json)]);
    let bytes = safetensors::serialize(entries.iter().map(|(name, t)| (name, Entry::new(t))), Some(metadata))
        .map_err(|e| invalid!("{e}").at(path.display().to_string()))?;
    replace(path, &bytes)
}

/// Reads the tensors that [`save`] wrote, or any safetensors file.
///
/// # Errors
/// If the file cannot be read, is damaged, or holds a type that lowbit lacks.
pub fn load(path: &Path) -> Result<BTreeMap<String, Stored>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    parse(&bytes).map_err(|e| e.at(path.display().to_string()))
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Stored>> {
    let damaged = |e| invalid!("not a safetensors file: {e}");
    let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let described: BTreeMap<String, Described> =
        match header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY)) {
            Some(json) => {
                serde_json::from_str(json).map_err(|e| invalid!("metadata \"{METADATA_KEY}\": {e}"))?
            }
            None => BTreeMap::new(),
        };
    let mut plain = BTreeMap::new();
    for (name, view) in file.iter() {
        let tensor = tensor_of(&view, described.get(name)).map_err(|e| e.at(format!("tensor \"{name}\"")))?;
        plain.insert(name.to_owned(), tensor);
    }
    let mut quantized = vec![];
    for (name, described) in described {
        let mut take = |part: &str| {
            let name = format!("{name}{part}");
            plain
                .remove(&name)
                .ok_or_else(|| invalid!("metadata \"{METADATA_KEY}\" names \"{name}\", which the file lacks"))
        };
        let tensor = take("")?;
        let stored = match described.scheme {
            None => Stored::Plain(tensor),
            Some(scheme) => {
                let (scale, zero_point) = (take(".scale")?, take(".zero_point")?);
                let whole = || {
                    let params = QParams::new(scheme, scale.into_vec()?, zero_point.into_vec()?)?;
                    Ok(Stored::Quantized(QTensor::new(tensor, params)?))
                };
                whole().map_err(|e: Error| e.at(format!("tensor \"{name}\"")))?
            }
        };
        quantized.push((name, stored));
    }
    let mut all: BTreeMap<String, Stored> = plain.into_iter().map(|(n, t)| (n, Stored::Plain(t))).collect();
    all.extend(quantized);
    Ok(all)
}

fn tensor_of(view: &TensorView<'_>, described: Option<&Described>) -> Result<Tensor> {
    let native = NATIVE.iter().find(|(_, d)| *d == view.dtype()).map(|(d, _)| *d);
    let Some(described) = described else {
        let dtype = native.ok_or_else(|| invalid!("element type {:?} is not supported", view.dtype()))?;
        return Tensor::from_bytes(dtype, view.shape(), view.data());
    };
    let packed = PACKED.into_iter().find(|d| d.to_string() == described.dtype);
    match (packed, native) {
        (Some(dtype), Some(DType::U8)) => Tensor::from_bytes(dtype, &described.shape, view.data()),
        (None, Some(dtype)) if dtype.to_string() == described.dtype && described.shape == view.shape() => {
            Tensor::from_bytes(dtype, view.shape(), view.data())
        }
        _ => Err(invalid!(
            "stored as {:?}{:?}, described as {}{:?}",
            view.dtype(),
            view.shape(),
            described.dtype,
            described.shape
        )),
    }
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let Some(name) = path.file_name() else {
        return Err(invalid!("{} is not the name of a file", path.display()));
    };
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|e| {
        // The first failure is the one to report.
        let _ = std::fs::remove_file(&temporary);
        Error::io(path, e)
    })
}

/// A tensor as safetensors sees it.
struct Entry<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl<'a> Entry<'a> {
    fn new(tensor: &'a Tensor) -> Entry<'a> {
        match NATIVE.iter().find(|(d, _)| *d == tensor.dtype()) {
            Some((_, dtype)) => Entry { tensor, dtype: *dtype, shape: tensor.shape().to_vec() },
            None => Entry { tensor, dtype: Dtype::U8, shape: vec![tensor.byte_len()] },
        }
    }
}

impl View for Entry<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.tensor.to_bytes())
    }

    fn data_len(&self) -> usize {
        self.tensor.byte_len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qparams::Range;
    use crate::scheme::{Format, Granularity, Mapping};

    fn example() -> BTreeMap<String, Stored> {
        let x = Tensor::new(&[3, 5], (0..15).map(|i| i as f32 - 6.0).collect()).unwrap();
        let range = Range { lo: -6.0, hi: 8.0 };
        let quantized = |format: Format, granularity: Granularity, mapping| {
            let scheme = Scheme::new(format, mapping).with(granularity);
            let n = granularity.groups(x.shape()).unwrap().count();
            let params = QParams::from_ranges(scheme, &vec![range; n]).unwrap();
            Stored::Quantized(QTensor::quantize(&x, params).unwrap())
        };
        let (tensor, block) = (Granularity::Tensor, Granularity::Block { axis: 1, size: 2 });
        let plain = |dtype, codes| Stored::Plain(Tensor::coded::<u8>(dtype, &[3], codes).unwrap());
        BTreeMap::from([
            ("float".into(), Stored::Plain(x.clone())),
            ("int64".into(), Stored::Plain(Tensor::scalar(7i64))),
            ("bool".into(), Stored::Plain(Tensor::vector(vec![true, false]))),
            ("empty".into(), Stored::Plain(Tensor::full(&[0, 2], 0f32).unwrap())),
            ("plain uint4".into(), plain(DType::U4, vec![1, 15, 7])),
            ("plain e2m1".into(), plain(DType::F4E2M1, vec![1, 15, 7])),
            ("plain e5m2".into(), plain(DType::F8E5M2, vec![1, 255, 7])),
            ("uint8".into(), quantized(Format::UINT8, tensor, Mapping::Affine)),
            ("int8".into(), quantized(Format::INT8_NARROW, Granularity::Axis(0), Mapping::Symmetric)),
            ("int4".into(), quantized(Format::INT4, block, Mapping::Symmetric)),
            ("uint2".into(), quantized("uint2".parse().unwrap(), Granularity::Axis(1), Mapping::Affine)),
            ("int32".into(), quantized(Format::INT32, tensor, Mapping::Symmetric)),
            ("e4m3".into(), quantized(Format::E4M3, tensor, Mapping::Symmetric)),
        ])
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        for _ in 0..2 {
            save(&path, &example()).unwrap();
            assert_eq!(load(&path).unwrap(), example());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
        let Stored::Quantized(int4) = &example()["int4"] else { unreachable!() };
        assert_eq!((int4.element_size(), int4.int_repr().byte_len()), (1, 8));
        assert_eq!(int4.dequantize().unwrap().shape(), [3, 5]);
    }

    #[test]
    fn names_that_collide_are_refused_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = example();
        tensors.insert("int8.scale".into(), Stored::Plain(Tensor::scalar(1f32)));
        let path = dir.path().join("w.safetensors");
        assert!(
            save(&path, &tensors).unwrap_err().to_string().contains("two entries are named \"int8.scale\"")
        );
        assert!(!path.exists());
        let nowhere = dir.path().join("no such folder").join("w.safetensors");
        assert!(save(&nowhere, &example()).is_err() && load(&nowhere).is_err());
    }

    #[test]
    fn damaged_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        save(&path, &example()).unwrap();
        let good = std::fs::read(&path).unwrap();
        for n in 0..good.len() {
            assert!(parse(&good[..n]).is_err(), "cut to {n} bytes");
        }
        for i in 0..good.len() {
            for flip in [1, 0x10, 0xff] {
                let mut bad = good.clone();
                bad[i] ^= flip;
                // Whatever the answer is, it is an answer.
                let _ = parse(&bad);
            }
        }
        let text = String::from_utf8_lossy(&good);
        for (from, to, want) in [
            (r#"\"dtype\":\"int4\""#, r#"\"dtype\":\"int2\""#, "bytes, found"),
            (r#"\"dtype\":\"int4\""#, r#"\"dtype\":\"int9\""#, "described as int9"),
            (r#"\"shape\":[3,5]"#, r#"\"shape\":[5,3]"#, "described as"),
            (r#"\"shape\":[3,5]"#, r#"\"shape\":[9,9]"#, "described as"),
            (r#"\"format\":\"int4\""#, r#"\"format\":\"int5\""#, "codes, not"),
            (r#"\"format\":\"int4\""#, r#"\"format\":\"int0\""#, "unknown format"),
            (r#"\"size\":2"#, r#"\"size\":0"#, "at least one element"),
            (r#"\"size\":2"#, r#"\"size\":1"#, "groups"),
            (r#"{\"block\":{\"axis\":1"#, r#"{\"block\":{\"axis\":9"#, "outside shape"),
            (r#"\"int4\":{"#, r#"\"int5\":{"#, "which the file lacks"),
        ] {
            assert!(text.contains(from), "{from} is not in {text}");
            let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut bad = good.clone();
            bad[at..at + from.len()].copy_from_slice(to.as_bytes());
            let e = parse(&bad).unwrap_err().to_string();
            assert!(e.contains(want), "{to}: {e}");
        }
    }
}
