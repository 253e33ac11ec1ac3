//! Dense tensors of dynamic rank: a shape, an element type and shared data.

pub(crate) mod buffers;
mod bytes;
mod dtype;

use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};

pub use buffers::KeptMemory;
pub use dtype::DType;

use crate::error::{Error, Result, invalid};

/// The most elements one tensor may have: a guard against hostile shapes, far
/// above any real activation or weight.
pub const MAX_ELEMENTS: usize = 1 << 33;

/// The number of elements of `shape`, refusing what overflows or exceeds
/// [`MAX_ELEMENTS`], even if a dimension is 0: any product of sizes is safe.
pub fn element_count(shape: &[usize]) -> Result<usize> {
    let most = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)));
    match most {
        Some(n) if n <= MAX_ELEMENTS => Ok(if shape.contains(&0) { 0 } else { n }),
        _ => Err(invalid!("a tensor of shape {shape:?} has too many elements (at most {MAX_ELEMENTS})")),
    }
}

/// A dense, contiguous, row-major tensor. Cloning shares the data.
///
/// Types narrower than a byte, and 8-bit floats, are held one code to a byte
/// and packed only in files.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

macro_rules! elements {
    ($($variant:ident($t:ty)),* $(,)?) => {
        /// Element storage, by Rust type.
        #[doc(hidden)]
        #[derive(Clone, PartialEq)]
        pub enum Data { $($variant(Arc<Vec<$t>>)),* }

        impl Data {
            fn len(&self) -> usize {
                match self { $(Data::$variant(v) => v.len()),* }
            }
        }

        $(impl Element for $t {
            const DTYPE: DType = DType::$variant;
            fn wrap(data: Vec<$t>) -> Data { Data::$variant(Arc::new(data)) }
            fn view(data: &Data) -> Option<&[$t]> {
                match data { Data::$variant(v) => Some(v), _ => None }
            }
            fn view_mut(data: &mut Data) -> Option<&mut [$t]> {
                match data { Data::$variant(v) => Arc::get_mut(v).map(Vec::as_mut_slice), _ => None }
            }
            fn unwrap(data: Data) -> Option<Vec<$t>> {
                match data { Data::$variant(v) => Some(Arc::unwrap_or_clone(v)), _ => None }
            }
        })*
    };
}

/// A Rust type that tensors hold.
pub trait Element: Copy + PartialEq + Send + Sync + fmt::Debug + 'static {
    /// The element type that this Rust type is the natural storage of.
    const DTYPE: DType;
    #[doc(hidden)]
    fn wrap(data: Vec<Self>) -> Data;
    #[doc(hidden)]
    fn view(data: &Data) -> Option<&[Self]>;
    #[doc(hidden)]
    fn view_mut(data: &mut Data) -> Option<&mut [Self]>;
    #[doc(hidden)]
    fn unwrap(data: Data) -> Option<Vec<Self>>;
}

elements! {
    F32(f32), F64(f64), F16(f16), BF16(bf16), I8(i8), U8(u8), I16(i16), U16(u16),
    I32(i32), U32(u32), I64(i64), U64(u64), Bool(bool),
}

impl Tensor {
    /// A tensor of `shape` over `data`, row by row.
    ///
    /// # Errors
    /// If `data` does not have exactly the shape's number of elements.
    pub fn new<T: Element>(shape: &[usize], data: Vec<T>) -> Result<Tensor> {
        Tensor::coded(T::DTYPE, shape, data)
    }

    /// A tensor of element type `dtype` whose values, or codes for sub-byte
    /// and 8-bit float types, are `data`.
    ///
    /// # Errors
    /// If `dtype` is not stored as `T` or the length differs from the shape's.
    pub fn coded<T: Element>(dtype: DType, shape: &[usize], data: Vec<T>) -> Result<Tensor> {
        if dtype.storage() != T::DTYPE {
            return Err(invalid!("{dtype} is stored as {}, not {}", dtype.storage(), T::DTYPE));
        }
        if element_count(shape)? != data.len() {
            return Err(invalid!("shape {shape:?} does not hold {} elements", data.len()));
        }
        Ok(Tensor { dtype, shape: shape.to_vec(), data: T::wrap(data) })
    }

    /// A tensor of rank 0.
    pub fn scalar<T: Element>(x: T) -> Tensor {
        Tensor { dtype: T::DTYPE, shape: vec![], data: T::wrap(vec![x]) }
    }

    /// A tensor of rank 1.
    pub fn vector<T: Element>(x: Vec<T>) -> Tensor {
        Tensor { dtype: T::DTYPE, shape: vec![x.len()], data: T::wrap(x) }
    }

    /// A tensor with every element `x`.
    pub fn full<T: Element>(shape: &[usize], x: T) -> Result<Tensor> {
        Tensor::new(shape, vec![x; element_count(shape)?])
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The size of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the elements take in a file, sub-byte types packed.
    pub fn byte_len(&self) -> usize {
        self.dtype.bytes_of(self.len())
    }

    /// The elements (codes, for types without a Rust type of their own).
    ///
    /// # Errors
    /// If they are not stored as `T`.
    pub fn slice<T: Element>(&self) -> Result<&[T]> {
        T::view(&self.data).ok_or_else(|| self.mistyped::<T>())
    }

    /// The elements, to be written, if they are stored as `T` and no other
    /// tensor shares them.
    pub fn slice_mut<T: Element>(&mut self) -> Option<&mut [T]> {
        T::view_mut(&mut self.data)
    }

    /// The elements, without a copy where this is their only owner.
    ///
    /// # Errors
    /// If they are not stored as `T`.
    pub fn into_vec<T: Element>(self) -> Result<Vec<T>> {
        let error = self.mistyped::<T>();
        T::unwrap(self.data).ok_or(error)
    }

    fn mistyped<T: Element>(&self) -> Error {
        invalid!("expected {}, found {} of shape {:?}", T::DTYPE, self.dtype, self.shape)
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// If the shape does not hold the same number of elements.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Tensor> {
        if element_count(shape)? != self.len() {
            return Err(invalid!("shape {:?} cannot become {shape:?}", self.shape));
        }
        Ok(Tensor { dtype: self.dtype, shape: shape.to_vec(), data: self.data.clone() })
    }

    /// The single element of a tensor of one element.
    pub fn item<T: Element>(&self) -> Result<T> {
        match self.slice::<T>()? {
            [x] => Ok(*x),
            _ => Err(invalid!("expected one element, found shape {:?}", self.shape)),
        }
    }

    /// The elements as f32: rounded where f32 is too narrow, codes decoded.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        macro_rules! map {
            ($t:ty, $f:expr) => {
                self.slice::<$t>()?.iter().map($f).collect()
            };
        }
        Ok(match self.dtype {
            DType::F32 => self.slice::<f32>()?.to_vec(),
            DType::F64 => map!(f64, |&x| x as f32),
            DType::F16 => map!(f16, |x| x.to_f32()),
            DType::BF16 => map!(bf16, |x| x.to_f32()),
            DType::Bool => map!(bool, |&x| f32::from(u8::from(x))),
            DType::U64 => map!(u64, |&x| x as f32),
            DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 => map!(u8, |&x| self.dtype.decode(x)),
            _ => self.integers()?.into_iter().map(|x| x as f32).collect(),
        })
    }

    /// The elements of an integer tensor as `i64`.
    pub fn integers(&self) -> Result<Vec<i64>> {
        fn widen<T: Element + Into<i64>>(t: &Tensor) -> Result<Vec<i64>> {
            Ok(t.slice::<T>()?.iter().map(|&x| x.into()).collect())
        }
        match self.dtype.storage() {
            DType::I64 => Ok(self.slice::<i64>()?.to_vec()),
            DType::I32 => widen::<i32>(self),
            DType::U32 => widen::<u32>(self),
            DType::I16 => widen::<i16>(self),
            DType::U16 => widen::<u16>(self),
            DType::I8 => widen::<i8>(self),
            DType::U8 if self.dtype.is_integer() => widen::<u8>(self),
            _ => Err(invalid!("expected integers, found {}", self.dtype)),
        }
    }
}

impl fmt::Debug for Tensor {
    /// Type and shape; the elements only where they are few.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        if self.len() <= 8
            && let Ok(x) = self.to_f32()
        {
            write!(f, " {x:?}")?;
        }
        Ok(())
    }
}
