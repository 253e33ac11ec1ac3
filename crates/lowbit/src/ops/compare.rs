//! Comparison, logic and selection, with broadcasting.

use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::op::{Dim, Fact, Op, ReadOp, Reverse, arity};
use crate::tensor::{DType, Tensor};

use super::binary::zip_sizes;
use super::broadcast;
use super::cast::cast;
use super::strided::{each_storage, stretched, zip};

/// A comparison of two operands of one type; false where one is NaN.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Comparison {
    Equal,
    Less,
    Greater,
    LessOrEqual,
    GreaterOrEqual,
}

impl Comparison {
    /// The comparison of sizes, where it does not depend on the input.
    fn of_sizes(self, a: &Dim, b: &Dim) -> Option<Dim> {
        let holds = match (a.as_integer(), b.as_integer()) {
            (Some(x), Some(y)) => match self {
                Comparison::Equal => x == y,
                Comparison::Less => x < y,
                Comparison::Greater => x > y,
                Comparison::LessOrEqual => x <= y,
                Comparison::GreaterOrEqual => x >= y,
            },
            _ if a == b => !matches!(self, Comparison::Less | Comparison::Greater),
            // A name without a subtraction is not negative.
            (Some(x), None) if x < 0 && !b.to_string().contains('-') => {
                matches!(self, Comparison::Less | Comparison::LessOrEqual)
            }
            (None, Some(x)) if x < 0 && !a.to_string().contains('-') => {
                matches!(self, Comparison::Greater | Comparison::GreaterOrEqual)
            }
            _ => return None,
        };
        Some(Dim::Known(usize::from(holds)))
    }
}

impl Op for Comparison {
    fn name(&self) -> &'static str {
        match self {
            Comparison::Equal => "Equal",
            Comparison::Less => "Less",
            Comparison::Greater => "Greater",
            Comparison::LessOrEqual => "LessOrEqual",
            Comparison::GreaterOrEqual => "GreaterOrEqual",
        }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 2)?;
        let (a, b) = (inputs[0], inputs[1]);
        let ordered = *self == Comparison::Equal || a.dtype != DType::Bool;
        if a.dtype != b.dtype || a.dtype.storage() != a.dtype || !ordered {
            return Err(invalid!("{} and {} are not compared", a.dtype, b.dtype));
        }
        let shape = broadcast::dims(&a.shape, &b.shape)?;
        let sizes = zip_sizes(a, b, |a, b| self.of_sizes(a, b));
        Ok(vec![Fact { dtype: DType::Bool, shape, sizes: None }.with_sizes(sizes)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 2, 2)?;
        let (a, b) = (inputs[0], inputs[1]);
        let shape = broadcast::shape(a.shape(), b.shape())?;
        let y = each_storage!(a.dtype(), T => {
            let (x, y) = ((a.slice::<T>()?, a.shape()), (b.slice::<T>()?, b.shape()));
            match self {
                Comparison::Equal => zip(&shape, x, y, |a, b| a == b),
                Comparison::Less => zip(&shape, x, y, |a, b| a.lt(&b)),
                Comparison::Greater => zip(&shape, x, y, |a, b| a.gt(&b)),
                Comparison::LessOrEqual => zip(&shape, x, y, |a, b| a.le(&b)),
                Comparison::GreaterOrEqual => zip(&shape, x, y, |a, b| a.ge(&b)),
            }?
        });
        Ok(vec![Tensor::new(&shape, y)?])
    }
}

/// Logic of two booleans.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Logic {
    And,
    Or,
    Xor,
}

impl Op for Logic {
    fn name(&self) -> &'static str {
        match self {
            Logic::And => "And",
            Logic::Or => "Or",
            Logic::Xor => "Xor",
        }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 2)?;
        if let Some(f) = inputs.iter().find(|f| f.dtype != DType::Bool) {
            return Err(invalid!("takes bool, found {}", f.dtype));
        }
        Ok(vec![inputs[0].with_shape(broadcast::dims(&inputs[0].shape, &inputs[1].shape)?)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 2, 2)?;
        let (a, b) = (inputs[0], inputs[1]);
        let shape = broadcast::shape(a.shape(), b.shape())?;
        let (x, y) = ((a.slice::<bool>()?, a.shape()), (b.slice::<bool>()?, b.shape()));
        let z = match self {
            Logic::And => zip(&shape, x, y, |a, b| a & b),
            Logic::Or => zip(&shape, x, y, |a, b| a | b),
            Logic::Xor => zip(&shape, x, y, |a, b| a ^ b),
        };
        Ok(vec![Tensor::new(&shape, z?)?])
    }
}

/// `x` where the condition holds, else `y`; inputs are condition, `x`, `y`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Where;

impl Op for Where {
    fn name(&self) -> &'static str {
        "Where"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 3, 3)?;
        let (c, x, y) = (inputs[0], inputs[1], inputs[2]);
        if c.dtype != DType::Bool {
            return Err(invalid!("the condition is {}, not bool", c.dtype));
        }
        if x.dtype != y.dtype {
            return Err(invalid!("selects between {} and {}", x.dtype, y.dtype));
        }
        let both = broadcast::dims(&x.shape, &y.shape)?;
        Ok(vec![x.with_shape(broadcast::dims(&c.shape, &both)?).with_sizes(selected_sizes(c, x, y))])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 3, 3)?;
        let (c, x, y) = (inputs[0], inputs[1], inputs[2]);
        if x.dtype() != y.dtype() {
            return Err(invalid!("selects between {} and {}", x.dtype(), y.dtype()));
        }
        let shape = broadcast::shape(c.shape(), &broadcast::shape(x.shape(), y.shape())?)?;
        let (c, x, y) = (stretched(c, &shape)?, stretched(x, &shape)?, stretched(y, &shape)?);
        let c = c.slice::<bool>()?;
        each_storage!(x.dtype(), T => {
            let pairs = x.slice::<T>()?.iter().zip(y.slice::<T>()?);
            let z = c.iter().zip(pairs).map(|(&c, (&x, &y))| if c { x } else { y }).collect();
            Ok(vec![Tensor::coded(x.dtype(), &shape, z)?])
        })
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let (g, c) = (at.gradient()?, &cast(at.inputs[0], DType::F32)?);
        at.each(|i| {
            let chosen = if i == 1 { 1.0 } else { 0.0 };
            let own = broadcast::map(
                g.shape(),
                [g, c],
                #[inline(always)]
                |[g, c]| if c == chosen { g } else { 0.0 },
            );
            broadcast::summed_to(own?, at.inputs[i].shape())
        })
    }
}

/// The sizes that a known condition selects.
fn selected_sizes(c: &Fact, x: &Fact, y: &Fact) -> Option<Vec<Dim>> {
    if [c, x, y].iter().any(|f| f.rank() > 1) {
        return None;
    }
    let lists = [c.sizes.as_ref()?, x.sizes.as_ref()?, y.sizes.as_ref()?];
    let n = lists.iter().map(|s| s.len()).find(|&n| n != 1).unwrap_or(1);
    let at = |s: &Vec<Dim>, i: usize| s.get(if s.len() == 1 { 0 } else { i }).cloned();
    (0..n)
        .map(|i| match at(lists[0], i)?.as_integer()? {
            0 => at(lists[2], i),
            _ => at(lists[1], i),
        })
        .collect()
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("Equal", |_| Ok(Arc::new(Comparison::Equal))),
    ("Less", |_| Ok(Arc::new(Comparison::Less))),
    ("Greater", |_| Ok(Arc::new(Comparison::Greater))),
    ("LessOrEqual", |_| Ok(Arc::new(Comparison::LessOrEqual))),
    ("GreaterOrEqual", |_| Ok(Arc::new(Comparison::GreaterOrEqual))),
    ("And", |_| Ok(Arc::new(Logic::And))),
    ("Or", |_| Ok(Arc::new(Logic::Or))),
    ("Xor", |_| Ok(Arc::new(Logic::Xor))),
    ("Where", |_| Ok(Arc::new(Where))),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{Case, check};

    #[test]
    fn comparisons_and_logic_match_their_definition() {
        let (a, b) = (Tensor::vector(vec![1.0f32, 2.0, f32::NAN]), Tensor::scalar(2.0f32));
        let (t, f) = (Tensor::vector(vec![true, false]), Tensor::new(&[2, 1], vec![true, false]).unwrap());
        let cases: [(&dyn Op, _, _, &[bool]); 8] = [
            (&Comparison::Equal, &a, &b, &[false, true, false]),
            (&Comparison::Less, &a, &b, &[true, false, false]),
            (&Comparison::Greater, &a, &b, &[false, false, false]),
            (&Comparison::LessOrEqual, &a, &b, &[true, true, false]),
            (&Comparison::GreaterOrEqual, &a, &b, &[false, true, false]),
            (&Logic::And, &t, &f, &[true, false, false, false]),
            (&Logic::Or, &t, &f, &[true, true, true, false]),
            (&Logic::Xor, &t, &f, &[false, true, true, false]),
        ];
        for (op, a, b, expected) in cases {
            let y = op.eval(&[a, b]).unwrap().remove(0);
            assert_eq!(y.slice::<bool>().unwrap(), expected, "{op:?}");
            let inferred = op.infer(&[&Fact::of(a), &Fact::of(b)]).unwrap();
            assert_eq!(inferred[0].known_shape().unwrap(), y.shape());
        }
    }

    #[test]
    fn where_broadcasts_all_three() {
        let c = Tensor::new(&[2, 1], vec![true, false]).unwrap();
        let (x, y) = (Tensor::vector(vec![1i64, 2]), Tensor::scalar(9i64));
        let z = Where.eval(&[&c, &x, &y]).unwrap();
        assert_eq!(z, [Tensor::new(&[2, 2], vec![1i64, 2, 9, 9]).unwrap()]);
        assert!(Where.eval(&[&c, &x, &Tensor::scalar(1.0f32)]).is_err());
        assert!(Where.infer(&[&Fact::of(&x), &Fact::of(&x), &Fact::of(&y)]).is_err());
    }

    /// What exporters write for `expand(-1, 4)`: the -1 takes the input's size.
    #[test]
    fn sizes_are_selected_where_they_are_minus_one() {
        let sizes = |s: &[Dim]| Fact::new(DType::I64, [s.len()]).with_sizes(Some(s.to_vec()));
        let n = Dim::Named("N".into());
        let wanted = sizes(&[Dim::integer(-1), Dim::Known(4)]);
        let actual = sizes(&[n.clone(), Dim::Known(1)]);
        let minus = sizes(&[Dim::integer(-1), Dim::integer(-1)]);
        let mask = Comparison::Equal.infer(&[&wanted, &minus]).unwrap().remove(0);
        let found = Where.infer(&[&mask, &actual, &wanted]).unwrap().remove(0);
        assert_eq!(found.sizes, Some(vec![n.clone(), Dim::Known(4)]));
        let never = Comparison::Equal.infer(&[&sizes(&[n]), &sizes(&[Dim::integer(-1)])]).unwrap().remove(0);
        assert_eq!(never.sizes, Some(vec![Dim::Known(0)]));
    }

    #[test]
    fn gradients_of_where_are_those_of_differences() {
        let shapes: [[&[usize]; 3]; 3] =
            [[&[6], &[6], &[6]], [&[2, 1, 4], &[5, 1], &[]], [&[], &[3], &[2, 3]]];
        check(shapes.map(|[c, x, y]| {
            let n = c.iter().product::<usize>();
            let c = Tensor::new(c, (0..n).map(|i| i % 3 != 1).collect()).unwrap();
            Case::new(Where, &[x, y]).insert(0, c)
        }));
    }

    #[test]
    fn types_that_do_not_compare_are_refused() {
        let f = |dtype| Fact::new(dtype, [2]);
        assert!(Comparison::Less.infer(&[&f(DType::Bool), &f(DType::Bool)]).is_err());
        assert!(Comparison::Equal.infer(&[&f(DType::F32), &f(DType::I64)]).is_err());
        assert!(Logic::And.infer(&[&f(DType::F32), &f(DType::Bool)]).is_err());
    }
}
