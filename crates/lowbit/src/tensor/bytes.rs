//! Tensors as little-endian bytes, the form that ONNX, npy and safetensors share.

use half::{bf16, f16};

use super::{DType, Element, Tensor, element_count};
use crate::error::{Result, invalid};

impl Tensor {
    /// The elements as little-endian bytes; types narrower than a byte are
    /// packed, first element in the low bits.
    pub fn to_bytes(&self) -> Vec<u8> {
        macro_rules! bytes {
            ($($t:ty),*) => {
                $(if let Ok(x) = self.slice::<$t>() {
                    return write(x, <$t>::to_le_bytes);
                })*
            };
        }
        if self.dtype.bits() < 8 {
            return self.packed();
        }
        if let Ok(x) = self.slice::<bool>() {
            return x.iter().map(|&x| u8::from(x)).collect();
        }
        bytes!(f32, f64, f16, bf16, i8, u8, i16, u16, i32, u32, i64, u64);
        unreachable!("every storage type is listed")
    }

    /// The tensor whose [`Tensor::to_bytes`] are `bytes`.
    ///
    /// # Errors
    /// If there are not exactly as many bytes as `shape` needs.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor> {
        let n = element_count(shape)?;
        if bytes.len() != dtype.bytes_of(n) {
            let need = dtype.bytes_of(n);
            return Err(invalid!("{dtype}{shape:?} takes {need} bytes, found {}", bytes.len()));
        }
        macro_rules! read {
            ($($dtype:ident: $t:ty),*) => {
                match dtype {
                    $(DType::$dtype => Tensor::new(shape, read(bytes, <$t>::from_le_bytes)),)*
                    DType::Bool => Tensor::new(shape, bytes.iter().map(|&x| x != 0).collect::<Vec<_>>()),
                    _ if dtype.bits() == 8 => Tensor::coded(dtype, shape, bytes.to_vec()),
                    _ => unpacked(dtype, shape, bytes, n),
                }
            };
        }
        read!(F32: f32, F64: f64, F16: f16, BF16: bf16, I8: i8, U8: u8, I16: i16, U16: u16,
              I32: i32, U32: u32, I64: i64, U64: u64)
    }

    fn packed(&self) -> Vec<u8> {
        let bits = self.dtype.bits();
        let per_byte = 8 / bits;
        let mask = (1u8 << bits) - 1;
        let codes: Vec<u8> = match self.slice::<i8>() {
            Ok(x) => x.iter().map(|&x| x.cast_unsigned()).collect(),
            Err(_) => self.slice::<u8>().map(<[u8]>::to_vec).unwrap_or_default(),
        };
        codes
            .chunks(per_byte)
            .map(|c| c.iter().enumerate().fold(0, |byte, (i, x)| byte | (x & mask) << (i * bits)))
            .collect()
    }
}

fn write<T: Element, const N: usize>(elements: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let mut bytes = vec![0; elements.len() * N];
    bytes.as_chunks_mut::<N>().0.iter_mut().zip(elements).for_each(|(b, &x)| *b = f(x));
    bytes
}

fn read<T: Element, const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&b| f(b)).collect()
}

fn unpacked(dtype: DType, shape: &[usize], bytes: &[u8], n: usize) -> Result<Tensor> {
    let bits = dtype.bits();
    let codes =
        bytes.iter().flat_map(|&byte| (0..8 / bits).map(move |i| byte >> (i * bits) << (8 - bits))).take(n);
    if dtype.storage() == DType::I8 {
        Tensor::coded(dtype, shape, codes.map(|x| x.cast_signed() >> (8 - bits)).collect::<Vec<i8>>())
    } else {
        Tensor::coded(dtype, shape, codes.map(|x| x >> (8 - bits)).collect::<Vec<u8>>())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packing_is_undone_by_unpacking(x in prop::collection::vec(-8i8..8, 0..40)) {
            for (dtype, low) in [(DType::I4, -8), (DType::I2, -2)] {
                let codes: Vec<i8> = x.iter().map(|&x| x.max(low).min(-low - 1)).collect();
                let t = Tensor::coded(dtype, &[x.len()], codes).unwrap();
                prop_assert_eq!(&Tensor::from_bytes(dtype, t.shape(), &t.to_bytes()).unwrap(), &t);
            }
            for (dtype, mask) in [(DType::U4, 15), (DType::U2, 3), (DType::F4E2M1, 15), (DType::F8E4M3, 255)] {
                let codes: Vec<u8> = x.iter().map(|x| x.cast_unsigned() & mask).collect();
                let t = Tensor::coded(dtype, &[x.len()], codes).unwrap();
                prop_assert_eq!(&Tensor::from_bytes(dtype, t.shape(), &t.to_bytes()).unwrap(), &t);
            }
        }
    }

    #[test]
    fn nibbles_are_packed_low_first() {
        let t = Tensor::coded(DType::I4, &[3], vec![1i8, -1, 7]).unwrap();
        assert_eq!(t.to_bytes(), [0xf1, 0x07]);
    }

    #[test]
    fn a_wrong_number_of_bytes_is_refused() {
        assert!(Tensor::from_bytes(DType::F32, &[2], &[0; 7]).is_err());
        assert!(Tensor::from_bytes(DType::U4, &[3], &[0; 1]).is_err());
        assert!(Tensor::from_bytes(DType::F32, &[usize::MAX, 2], &[]).is_err());
    }
}
