//! Floating-point operands around f32 arithmetic: f16, bf16 and f64 are
//! converted to f32, computed in f32, and rounded back.

use std::borrow::Cow;

use half::{bf16, f16};

use crate::error::{Error, Result, invalid};
use crate::op::Fact;
use crate::tensor::{DType, Tensor};

/// The elements of a float tensor as f32, borrowed where they are f32.
///
/// # Errors
/// If the element type is not f32, f64, f16 or bf16.
pub fn read(t: &Tensor) -> Result<Cow<'_, [f32]>> {
    match t.dtype() {
        DType::F32 => Ok(Cow::Borrowed(t.slice()?)),
        DType::F64 | DType::F16 | DType::BF16 => Ok(Cow::Owned(t.to_f32()?)),
        other => Err(invalid!("expected floating-point numbers, found {other}")),
    }
}

/// A tensor of the float type `dtype`, its elements rounded from f32.
///
/// # Errors
/// If the type is not f32, f64, f16 or bf16, or the length does not fit the shape.
pub fn write(dtype: DType, shape: &[usize], x: Vec<f32>) -> Result<Tensor> {
    match dtype {
        DType::F32 => Tensor::new(shape, x),
        DType::F64 => Tensor::new(shape, x.into_iter().map(f64::from).collect()),
        DType::F16 => Tensor::new(shape, x.into_iter().map(f16::from_f32).collect()),
        DType::BF16 => Tensor::new(shape, x.into_iter().map(bf16::from_f32).collect()),
        other => Err(invalid!("expected floating-point numbers, found {other}")),
    }
}

/// The one float type of all operands, left-out ones apart.
///
/// # Errors
/// If operands differ in type, or `op` is not defined here for the type.
pub fn common(op: &str, inputs: &[&Fact]) -> Result<DType> {
    let dtype = inputs.first().ok_or_else(|| invalid!("has no inputs"))?.dtype;
    if let Some(other) = inputs.iter().find(|f| !f.is_absent() && f.dtype != dtype) {
        return Err(invalid!("operands are {dtype} and {}; they must have one type", other.dtype));
    }
    match dtype {
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 => Ok(dtype),
        other => Err(Error::unsupported(op, format!("element type {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_round_trip_and_others_are_refused() {
        let x = vec![1.5, -0.25, 1024.0];
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let t = write(dtype, &[3], x.clone()).unwrap();
            assert_eq!(t.dtype(), dtype);
            assert_eq!(*read(&t).unwrap(), x, "{dtype}");
            assert_eq!(common("X", &[&Fact::of(&t), &Fact::of(&t)]).unwrap(), dtype);
        }
        assert!(write(DType::I8, &[3], x.clone()).is_err());
        assert!(read(&Tensor::vector(vec![1i8])).is_err());
        let (a, b) = (Fact::new(DType::F32, [2]), Fact::new(DType::F16, [2]));
        let message = common("X", &[&a, &b]).unwrap_err().to_string();
        assert!(message.contains("one type"), "{message}");
        let message = common("X", &[&Fact::new(DType::I32, [2])]).unwrap_err().to_string();
        assert_eq!(message, "X: element type int32 is not supported");
    }
}
