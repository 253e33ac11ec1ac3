//! Values that come from attributes or from counting.

use std::sync::Arc;

use crate::error::{Error, Result, invalid};
use crate::op::{Attribute, Attributes, Dim, Fact, MAX_SIZES, Op, ReadOp, Reading, arity};
use crate::tensor::{DType, Element, Tensor, element_count};

use super::strided::stretched;
use super::symbolic::{self, output_shape};

/// A value of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// The value.
    pub value: Tensor,
}

impl Constant {
    fn read(a: &mut Reading) -> Result<Arc<dyn Op>> {
        let value = if let Some(t) = a.tensor("value")? {
            t
        } else if let Some(x) = a.int("value_int")? {
            Tensor::scalar(x)
        } else if let Some(x) = a.ints("value_ints")? {
            Tensor::vector(x)
        } else if let Some(x) = a.floats("value_floats")? {
            Tensor::vector(x)
        } else {
            let x = a.float("value_float", f32::NAN)?;
            if x.is_nan() {
                return Err(Error::unsupported("Constant", "a value that is no tensor, number or list"));
            }
            Tensor::scalar(x)
        };
        Ok(Arc::new(Constant { value }))
    }
}

impl Op for Constant {
    fn name(&self) -> &'static str {
        "Constant"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 0, 0)?;
        Ok(vec![Fact::of(&self.value)])
    }

    fn eval(&self, _inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![self.value.clone()])
    }

    fn attributes(&self) -> Attributes {
        vec![("value", Attribute::Tensor(self.value.clone()))]
    }
}

/// A tensor of the shape that input 0 lists, all elements equal.
#[derive(Clone, Debug, PartialEq)]
pub struct ConstantOfShape {
    /// The element, in a tensor of one.
    pub value: Tensor,
}

impl Op for ConstantOfShape {
    fn name(&self) -> &'static str {
        "ConstantOfShape"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        let shape = if inputs[0].is_absent() { &[] } else { symbolic::sizes(inputs[0], "input")? };
        if shape.iter().any(|d| d.as_integer().is_some_and(|x| x < 0)) || self.value.len() != 1 {
            return Err(invalid!("{shape:?} is no shape, or the value {:?} is not one element", self.value));
        }
        let element = Fact::of(&self.value);
        let count = symbolic::product(shape).known().filter(|&n| n <= MAX_SIZES);
        let sizes = element.sizes.as_ref().zip(count).map(|(s, n)| vec![s[0].clone(); n]);
        Ok(vec![element.with_shape(shape.to_vec()).with_sizes(sizes)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = output_shape(self, inputs, 0)?;
        Ok(vec![stretched(&self.value.reshaped(&[])?, &shape)?])
    }

    fn attributes(&self) -> Attributes {
        vec![("value", Attribute::Tensor(self.value.clone()))]
    }
}

/// `start`, `start + delta` ... to before `limit`; three scalar inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range;

impl Range {
    /// Where all three inputs are constants, so is the range.
    fn read(a: &mut Reading) -> Result<Arc<dyn Op>> {
        if !(0..3).all(|i| a.is_constant(i)) {
            return Ok(Arc::new(Range));
        }
        match (a.take_constant(0)?, a.take_constant(1)?, a.take_constant(2)?) {
            (Some(start), Some(limit), Some(delta)) => {
                Ok(Arc::new(Constant { value: range(&start, &limit, &delta)? }))
            }
            _ => Err(invalid!("takes 3 inputs")),
        }
    }
}

impl Op for Range {
    fn name(&self) -> &'static str {
        "Range"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 3, 3)?;
        let dtype = inputs[0].dtype;
        if inputs.iter().any(|f| f.dtype != dtype) {
            return Err(invalid!(
                "takes three scalars of one type, found {}, {} and {}",
                inputs[0],
                inputs[1],
                inputs[2]
            ));
        }
        let [start, limit, delta] = [(0, "start"), (1, "limit"), (2, "delta")].map(|(i, what)| {
            match symbolic::sizes(inputs[i], what)? {
                [d] => Ok(d),
                _ => Err(invalid!("{what} is not a scalar")),
            }
        });
        let (start, limit, delta) = (start?, limit?, delta?);
        let n = match (start.as_integer(), limit.as_integer(), delta.as_integer()) {
            (Some(s), Some(l), Some(d)) => Dim::Known(count(s, l, d)?),
            (_, _, Some(1)) => symbolic::sub(limit, start),
            _ => Dim::Named(format!("range({start},{limit},{delta})")),
        };
        let sizes = match (start.as_integer(), delta.as_integer(), n.known()) {
            (Some(s), Some(d), Some(n)) if n <= MAX_SIZES => {
                Some((0..n as i64).map(|i| Dim::integer(s.wrapping_add(i.wrapping_mul(d)))).collect())
            }
            _ => None,
        };
        Ok(vec![Fact::new(dtype, [n]).with_sizes(sizes)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 3, 3)?;
        Ok(vec![range(inputs[0], inputs[1], inputs[2])?])
    }
}

/// The number of elements of an integer range.
fn count(start: i64, limit: i64, delta: i64) -> Result<usize> {
    if delta == 0 {
        return Err(invalid!("delta is 0"));
    }
    let distance =
        if delta > 0 { i128::from(limit) - i128::from(start) } else { i128::from(start) - i128::from(limit) };
    let n = (distance.max(0) as u128).div_ceil(u128::from(delta.unsigned_abs()));
    let n = usize::try_from(n).map_err(|_| invalid!("a range of {n} elements is too long"))?;
    element_count(&[n])
}

fn range(start: &Tensor, limit: &Tensor, delta: &Tensor) -> Result<Tensor> {
    macro_rules! integers {
        ($t:ty) => {{
            let (s, l, d) = (start.item::<$t>()?, limit.item::<$t>()?, delta.item::<$t>()?);
            let n = count(s.into(), l.into(), d.into())?;
            Ok(Tensor::vector((0..n).map(|i| s.wrapping_add((i as $t).wrapping_mul(d))).collect()))
        }};
    }
    match start.dtype() {
        DType::F32 => floats(start, limit, delta, f64::from, |x| x as f32),
        DType::F64 => floats(start, limit, delta, |x: f64| x, |x| x),
        DType::I16 => integers!(i16),
        DType::I32 => integers!(i32),
        DType::I64 => integers!(i64),
        other => Err(Error::unsupported("Range", format!("element type {other}"))),
    }
}

fn floats<T: Element>(
    start: &Tensor,
    limit: &Tensor,
    delta: &Tensor,
    wide: impl Fn(T) -> f64,
    narrow: impl Fn(f64) -> T,
) -> Result<Tensor> {
    let (s, l, d) = (wide(start.item()?), wide(limit.item()?), wide(delta.item()?));
    let n = ((l - s) / d).ceil();
    // A cast saturates, and takes NaN to 0.
    let n = if d != 0.0 && n.is_finite() {
        element_count(&[n as usize])?
    } else {
        return Err(invalid!("a range from {s} to {l} by {d} has no length"));
    };
    Ok(Tensor::vector((0..n).map(|i| narrow(s + i as f64 * d)).collect()))
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("Constant", Constant::read),
    ("ConstantOfShape", |a| {
        let value = a.tensor("value")?.unwrap_or_else(|| Tensor::vector(vec![0.0f32]));
        Ok(Arc::new(ConstantOfShape { value }))
    }),
    ("Range", Range::read),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_read_in_every_form() {
        let t = Tensor::vector(vec![1u8, 2]);
        let cases = [
            ("value", Attribute::Tensor(t.clone()), Some(t)),
            ("value_int", Attribute::Int(-3), Some(Tensor::scalar(-3i64))),
            ("value_ints", Attribute::Ints(vec![1, 2]), Some(Tensor::vector(vec![1i64, 2]))),
            ("value_float", Attribute::Float(0.5), Some(Tensor::scalar(0.5f32))),
            ("value_floats", Attribute::Floats(vec![0.5]), Some(Tensor::vector(vec![0.5f32]))),
            ("value_string", Attribute::Text("x".into()), None),
        ];
        for (name, value, expected) in cases {
            let mut a = Reading::new("Constant", 13, [(name.to_string(), value)].into(), vec![], 1);
            let found = Constant::read(&mut a).ok().map(|op| op.eval(&[]).unwrap().remove(0));
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn ranges_count_up_and_down() {
        let cases = [
            ([1i64, 7, 2], vec![1i64, 3, 5]),
            ([3, 0, -1], vec![3, 2, 1]),
            ([3, 3, 1], vec![]),
            ([3, 5, -1], vec![]),
            ([i64::MIN, i64::MAX, i64::MAX], vec![i64::MIN, -1, i64::MAX - 1]),
        ];
        for (x, expected) in cases {
            let [s, l, d] = x.map(Tensor::scalar);
            let f = Range.infer(&[&Fact::of(&s), &Fact::of(&l), &Fact::of(&d)]).unwrap();
            assert_eq!(f[0].known_shape().unwrap(), [expected.len()]);
            assert_eq!(Range.eval(&[&s, &l, &d]).unwrap(), [Tensor::vector(expected)]);
        }
        let [s, l, d] = [0.0f32, 1.0, 0.375].map(Tensor::scalar);
        let y = Range.eval(&[&s, &l, &d]).unwrap();
        assert_eq!(y[0].to_f32().unwrap(), [0.0f32, 0.375, 0.75]);
    }

    #[test]
    fn hostile_ranges_and_shapes_are_refused() {
        let ints = [[0, 1, 0], [i64::MIN, i64::MAX, 1]].map(|x| x.map(Tensor::scalar));
        let floats = [[0.0, 1.0, 0.0], [0.0, f32::INFINITY, 1.0], [0.0, 1e30, 1.0], [f32::NAN, 1.0, 1.0]];
        for [s, l, d] in ints.into_iter().chain(floats.map(|x| x.map(Tensor::scalar))) {
            assert!(Range.eval(&[&s, &l, &d]).is_err(), "{s:?} {l:?} {d:?}");
        }
        let op = ConstantOfShape { value: Tensor::vector(vec![1i64]) };
        for shape in [vec![-1i64], vec![i64::MAX, 2], vec![1; 33]] {
            assert!(op.eval(&[&Tensor::vector(shape)]).is_err());
        }
    }

    #[test]
    fn a_range_over_a_named_size_is_as_long() {
        let scalar = |d: Dim| Fact::new(DType::I64, [0usize; 0]).with_sizes(Some(vec![d]));
        let n = Dim::Named("N".into());
        let f = Range.infer(&[&scalar(0.into()), &scalar(n.clone()), &scalar(1.into())]).unwrap();
        assert_eq!(f[0].shape, [n]);
    }

    #[test]
    fn one_value_fills_a_shape() {
        let op = ConstantOfShape { value: Tensor::vector(vec![-1i64]) };
        let shape = Tensor::vector(vec![3i64]);
        let f = op.infer(&[&Fact::of(&shape)]).unwrap().remove(0);
        assert_eq!(f.sizes, Some(vec![Dim::integer(-1); 3]));
        assert_eq!(op.eval(&[&shape]).unwrap(), [Tensor::vector(vec![-1i64; 3])]);
        let scalar = op.eval(&[&Tensor::vector(Vec::<i64>::new())]).unwrap();
        assert_eq!(scalar, [Tensor::scalar(-1i64)]);
    }
}
