//! A tensor's data in one form, wherever and however the file stores them.

use std::path::Path;

use crate::error::{Error, Result, TensorFault};
use crate::external::ExternalRef;
use crate::proto::TensorProto;
use crate::proto::tensor_proto::DataLocation;
use crate::{DataType, typed_fields};

/// The elements of a tensor, row-major, packed as the standard packs `raw_data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorData {
    /// The name; empty where the file gives none.
    pub name: String,
    /// The element type; never [`DataType::String`].
    pub dtype: DataType,
    /// The shape; empty for a scalar.
    pub dims: Vec<usize>,
    /// Little-endian elements, the first one of a shared byte in its lowest bits;
    /// `ceil(elements * bits / 8)` bytes.
    pub bytes: Vec<u8>,
}

impl TensorData {
    /// A tensor of `bytes`, checked against the shape.
    ///
    /// # Errors
    /// [`Error::Tensor`] where the bytes do not fill the shape exactly, the shape does not fit
    /// in memory, `dtype` is a string or a boolean is neither 0 nor 1.
    pub fn new(
        name: impl Into<String>,
        dtype: DataType,
        dims: Vec<usize>,
        bytes: Vec<u8>,
    ) -> Result<TensorData> {
        let name = name.into();
        match Layout::new(dtype, dims).and_then(|layout| {
            layout.check(&bytes, "the data")?;
            Ok(layout.dims)
        }) {
            Ok(dims) => Ok(TensorData { name, dtype, dims, bytes }),
            Err(fault) => Err(Error::Tensor { tensor: name, fault }),
        }
    }

    /// The data of `proto`: of `raw_data`, of the typed field of its type, or of a file in
    /// `folder`.
    ///
    /// # Errors
    /// [`Error::Tensor`], with the name of the tensor, for every [`TensorFault`].
    pub fn from_proto(proto: &TensorProto, folder: Option<&Path>) -> Result<TensorData> {
        load(proto, folder).map_err(|fault| Error::Tensor { tensor: proto.name().to_owned(), fault })
    }

    /// The message that stores this tensor in `raw_data`.
    ///
    /// # Errors
    /// As [`TensorData::new`]: the fields are public, so they are checked again.
    pub fn into_proto(self) -> Result<TensorProto> {
        let TensorData { name, dtype, dims, bytes } =
            TensorData::new(self.name, self.dtype, self.dims, self.bytes)?;
        Ok(TensorProto {
            name: (!name.is_empty()).then_some(name),
            data_type: Some(dtype.to_onnx()),
            dims: dims.into_iter().map(|dim| dim as i64).collect(),
            raw_data: Some(bytes),
            ..TensorProto::default()
        })
    }
}

/// A checked shape and type, and the space that they need.
pub(crate) struct Layout {
    pub dtype: DataType,
    pub dims: Vec<usize>,
    pub elements: usize,
    pub bytes: usize,
}

impl Layout {
    /// Strides stay in range too: the product of the dimensions that are not 0 must fit.
    pub fn new(dtype: DataType, dims: Vec<usize>) -> Result<Layout, TensorFault> {
        if dtype == DataType::String {
            return Err(TensorFault::Unsupported { what: "tensors of strings" });
        }
        let extent = dims
            .iter()
            .filter(|&&dim| dim != 0)
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .and_then(|extent| Some((extent, dtype.byte_len(extent)?)));
        match extent {
            None => Err(TensorFault::ShapeTooLarge { dims, dtype }),
            Some((elements, bytes)) => {
                let empty = dims.contains(&0);
                Ok(Layout {
                    dtype,
                    dims,
                    elements: if empty { 0 } else { elements },
                    bytes: if empty { 0 } else { bytes },
                })
            }
        }
    }

    pub fn of(proto: &TensorProto) -> Result<Layout, TensorFault> {
        let number = proto.data_type.unwrap_or(0);
        let dtype = DataType::from_onnx(number).ok_or(TensorFault::UnknownType { number })?;
        let mut dims = Vec::with_capacity(proto.dims.len());
        for (axis, &dim) in proto.dims.iter().enumerate() {
            if dim < 0 {
                return Err(TensorFault::NegativeDim { axis, dim });
            }
            dims.push(usize::try_from(dim).unwrap_or(usize::MAX));
        }
        Layout::new(dtype, dims)
    }

    pub fn check_len(&self, found: u64, place: &'static str) -> Result<(), TensorFault> {
        if found == self.bytes as u64 {
            return Ok(());
        }
        Err(TensorFault::WrongLength {
            dims: self.dims.clone(),
            dtype: self.dtype,
            expected: self.bytes,
            unit: "bytes",
            place,
            found,
        })
    }

    fn check(&self, bytes: &[u8], place: &'static str) -> Result<(), TensorFault> {
        self.check_len(bytes.len() as u64, place)?;
        match bytes.iter().position(|&byte| byte > 1) {
            Some(index) if self.dtype == DataType::Bool => Err(TensorFault::OutOfRange {
                index,
                value: bytes[index].into(),
                min: 0,
                max: 1,
                dtype: self.dtype,
                place,
            }),
            _ => Ok(()),
        }
    }
}

pub(crate) fn is_external(proto: &TensorProto) -> bool {
    proto.data_location == Some(DataLocation::External as i32)
}

fn load(proto: &TensorProto, folder: Option<&Path>) -> Result<TensorData, TensorFault> {
    if proto.segment.is_some() {
        return Err(TensorFault::Unsupported { what: "tensors split in segments" });
    }
    let layout = Layout::of(proto)?;
    let location = proto.data_location.unwrap_or(0);
    if DataLocation::try_from(location).is_err() {
        return Err(TensorFault::BadEntry {
            what: format!("data_location is {location}, neither DEFAULT nor EXTERNAL"),
        });
    }

    let field = typed_fields::field_of(layout.dtype);
    let has_typed = typed_fields::filled(proto).any(|filled| filled == field);
    let raw = proto.raw_data.as_deref();
    let place = match raw {
        _ if is_external(proto) => "external data",
        Some(raw) if !(raw.is_empty() && has_typed) => "raw_data",
        _ => field,
    };
    if let Some(found) = typed_fields::filled(proto).find(|filled| *filled != place) {
        return Err(TensorFault::WrongField { dtype: layout.dtype, expected: place, found });
    }

    let bytes = match place {
        "external data" => {
            let reference = ExternalRef::parse(&proto.external_data)?;
            if let Some(length) = reference.length {
                layout.check_len(length, place)?;
            }
            let bytes = reference.read(folder, layout.bytes)?;
            layout.check(&bytes, place)?;
            bytes
        }
        "raw_data" => {
            let raw = raw.unwrap_or_default();
            layout.check(raw, place)?;
            raw.to_vec()
        }
        _ => typed_fields::packed(proto, &layout)?,
    };
    Ok(TensorData { name: proto.name().to_owned(), dtype: layout.dtype, dims: layout.dims, bytes })
}

#[cfg(test)]
mod tests;
