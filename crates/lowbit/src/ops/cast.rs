//! Conversion between element types.

use std::sync::Arc;

use half::{bf16, f16};

use crate::error::{Result, invalid};
use crate::op::{Attribute, Attributes, Fact, Op, ReadOp, Reading, Reverse, arity};
use crate::tensor::{DType, Tensor};

/// `x` as elements of another type. Floats become integers by dropping the
/// fraction, saturating; wide integers become narrow ones by dropping high
/// bits; anything but 0 is true.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cast {
    /// The type of the result.
    pub to: DType,
}

impl Cast {
    fn read(a: &mut Reading) -> Result<Arc<dyn Op>> {
        a.only("saturate", &Attribute::Int(1))?;
        let code = a.int("to")?.ok_or_else(|| invalid!("attribute to is missing"))?;
        let to = DType::from_onnx(code)?;
        Ok(Arc::new(Cast { to }))
    }
}

/// A [`Cast`] to f32 of what is kept in half precision: it is left to each run,
/// so that the constant stays half as large.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Widen;

impl Op for Widen {
    fn name(&self) -> &'static str {
        "Cast"
    }
    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        Cast { to: DType::F32 }.infer(inputs)
    }
    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        Cast { to: DType::F32 }.eval(inputs)
    }
    fn attributes(&self) -> Attributes {
        Cast { to: DType::F32 }.attributes()
    }
    fn folds(&self) -> bool {
        false
    }
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "Cast"
    }

    fn opset(&self) -> i64 {
        match self.to {
            DType::I2 | DType::U2 => 25,
            DType::F4E2M1 => 23,
            DType::I4 | DType::U4 => 21,
            DType::F8E4M3 | DType::F8E5M2 => 19,
            _ => 13,
        }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        let x = inputs[0];
        let sizes = x.sizes.clone().filter(|_| matches!(self.to, DType::I64 | DType::I32));
        Ok(vec![Fact { dtype: self.to, shape: x.shape.clone(), sizes }])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, 1)?;
        Ok(vec![cast(inputs[0], self.to)?])
    }

    /// Rounding to a float type counts as none.
    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![at.gradients[0].clone().filter(|_| self.to.is_float())])
    }

    fn attributes(&self) -> Attributes {
        vec![("to", Attribute::Int(self.to.onnx_number().into()))]
    }
}

/// `t` as elements of type `to`, by the rules of [`Cast`].
///
/// # Errors
/// None for a well-formed tensor.
pub(crate) fn cast(t: &Tensor, to: DType) -> Result<Tensor> {
    let from = t.dtype();
    if from == to {
        return Ok(t.clone());
    }
    if from == DType::F64 {
        return from_floats(t.shape(), t.slice::<f64>()?.iter().copied(), to);
    }
    if from == DType::Bool {
        return from_integers(t.shape(), t.slice::<bool>()?.iter().map(|&x| i128::from(x)), to);
    }
    if from == DType::U64 {
        return from_integers(t.shape(), t.slice::<u64>()?.iter().map(|&x| i128::from(x)), to);
    }
    if from.is_integer() {
        return from_integers(t.shape(), t.integers()?.into_iter().map(i128::from), to);
    }
    from_floats(t.shape(), t.to_f32()?.into_iter().map(f64::from), to)
}

fn from_floats(shape: &[usize], x: impl Iterator<Item = f64>, to: DType) -> Result<Tensor> {
    macro_rules! as_type {
        ($t:ty) => {
            Tensor::new(shape, x.map(|x| x as $t).collect())
        };
    }
    match to {
        DType::F64 => Tensor::new(shape, x.collect()),
        DType::F32 => as_type!(f32),
        DType::F16 => Tensor::new(shape, x.map(f16::from_f64).collect()),
        DType::BF16 => Tensor::new(shape, x.map(bf16::from_f64).collect()),
        DType::Bool => Tensor::new(shape, x.map(|x| x != 0.0).collect()),
        DType::I8 => as_type!(i8),
        DType::U8 => as_type!(u8),
        DType::I16 => as_type!(i16),
        DType::U16 => as_type!(u16),
        DType::I32 => as_type!(i32),
        DType::U32 => as_type!(u32),
        DType::I64 => as_type!(i64),
        DType::U64 => as_type!(u64),
        DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 => {
            Tensor::coded(to, shape, x.map(|x| to.encode(x as f32)).collect())
        }
        DType::I4 | DType::U4 | DType::I2 | DType::U2 => {
            let (lo, hi) = to.integer_range().unwrap_or_default();
            from_integers(shape, x.map(|x| i128::from((x as i64).clamp(lo, hi))), to)
        }
    }
}

fn from_integers(shape: &[usize], x: impl Iterator<Item = i128>, to: DType) -> Result<Tensor> {
    macro_rules! as_type {
        ($t:ty) => {
            Tensor::new(shape, x.map(|x| x as $t).collect())
        };
    }
    match to {
        DType::F64 => as_type!(f64),
        DType::F32 => as_type!(f32),
        DType::F16 => Tensor::new(shape, x.map(|x| f16::from_f64(x as f64)).collect()),
        DType::BF16 => Tensor::new(shape, x.map(|x| bf16::from_f64(x as f64)).collect()),
        DType::Bool => Tensor::new(shape, x.map(|x| x != 0).collect()),
        DType::I8 => as_type!(i8),
        DType::U8 => as_type!(u8),
        DType::I16 => as_type!(i16),
        DType::U16 => as_type!(u16),
        DType::I32 => as_type!(i32),
        DType::U32 => as_type!(u32),
        DType::I64 => as_type!(i64),
        DType::U64 => as_type!(u64),
        DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 => {
            Tensor::coded(to, shape, x.map(|x| to.encode(x as f32)).collect())
        }
        DType::U4 | DType::U2 => {
            let mask = (1i128 << to.bits()) - 1;
            Tensor::coded(to, shape, x.map(|x| (x & mask) as u8).collect())
        }
        DType::I4 | DType::I2 => {
            let unused = 8 - to.bits();
            Tensor::coded(to, shape, x.map(|x| ((x as i8) << unused) >> unused).collect())
        }
    }
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[("Cast", Cast::read)];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Dim;

    #[test]
    fn values_are_converted() {
        let cases = [
            (Tensor::vector(vec![1.9f32, -1.9, 300.0]), Tensor::vector(vec![1i8, -1, 127])),
            (Tensor::vector(vec![-1i64, 300]), Tensor::vector(vec![255u8, 44])),
            (Tensor::vector(vec![0i32, -3]), Tensor::vector(vec![false, true])),
            (Tensor::vector(vec![0.25f64, f64::NAN]), Tensor::vector(vec![true, true])),
            (Tensor::vector(vec![true, false]), Tensor::vector(vec![1i64, 0])),
            (Tensor::vector(vec![u64::MAX]), Tensor::vector(vec![-1i64])),
            (Tensor::vector(vec![1.5f32, 1e9]), Tensor::vector(vec![f16::from_f32(1.5), f16::INFINITY])),
            (Tensor::vector(vec![bf16::from_f32(2.5)]), Tensor::vector(vec![2.5f64])),
            (Tensor::vector(vec![9i32, -9]), Tensor::coded(DType::I4, &[2], vec![-7i8, 7]).unwrap()),
            (Tensor::vector(vec![99.0f32, -3.0]), Tensor::coded(DType::U4, &[2], vec![15u8, 0]).unwrap()),
            (Tensor::vector(vec![2i32]), Tensor::coded(DType::F4E2M1, &[1], vec![4u8]).unwrap()),
            (Tensor::coded(DType::F4E2M1, &[1], vec![7u8]).unwrap(), Tensor::vector(vec![6i32])),
        ];
        for (x, expected) in cases {
            let op = Cast { to: expected.dtype() };
            assert_eq!(op.eval(&[&x]).unwrap(), [expected], "{x:?}");
        }
    }

    #[test]
    fn sizes_pass_through_integer_types() {
        let x = Fact::new(DType::I64, [1]).with_sizes(Some(vec![Dim::Named("N".into())]));
        assert_eq!(Cast { to: DType::I32 }.infer(&[&x]).unwrap()[0].sizes, x.sizes);
        assert_eq!(Cast { to: DType::F32 }.infer(&[&x]).unwrap()[0].sizes, None);
    }

    #[test]
    fn the_target_is_read() {
        for (code, to) in
            [(1, DType::F32), (7, DType::I64), (9, DType::Bool), (17, DType::F8E4M3), (26, DType::I2)]
        {
            let attributes = [("to".to_string(), Attribute::Int(code))].into();
            let op = Cast::read(&mut Reading::new("Cast", 19, attributes, vec![None], 1)).unwrap();
            assert_eq!(op.is::<Cast>(), Some(&Cast { to }));
            assert_eq!(op.attributes(), [("to", Attribute::Int(code))]);
        }
        let text = [("to".to_string(), Attribute::Int(8))].into();
        assert!(Cast::read(&mut Reading::new("Cast", 19, text, vec![None], 1)).is_err());
        assert!(Cast::read(&mut Reading::new("Cast", 19, [].into(), vec![None], 1)).is_err());
    }
}
