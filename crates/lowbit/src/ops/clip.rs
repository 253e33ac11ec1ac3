//! Restriction to a range.

use std::sync::Arc;

use rayon::prelude::*;

use crate::error::{Result, invalid};
use crate::op::{
    Attribute, Attributes, Fact, Op, Quant, ReadOp, Reading, Reverse, arity, optional, optional_fact,
};
use crate::tensor::{DType, Element, Tensor};

use super::broadcast::{self, summed_to};
use super::strided::each_storage;
use super::vectorized::vectorized;

/// `min(max(x, lo), hi)`, either bound optional. Bounds that are constants
/// are held here; others are operands 1 and 2.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Clip {
    /// The lower bound, one element of the input's type.
    pub min: Option<Tensor>,
    /// The upper bound, one element of the input's type.
    pub max: Option<Tensor>,
    /// Whether the bounds are operands instead.
    pub dynamic: bool,
}

impl Clip {
    /// The operator for f32 and these bounds (infinite ones are left out).
    pub fn new(lo: f32, hi: f32) -> Clip {
        let bound = |x: f32| x.is_finite().then(|| Tensor::scalar(x));
        Clip { min: bound(lo), max: bound(hi), dynamic: false }
    }

    fn bound<'a>(&'a self, held: &'a Option<Tensor>, inputs: &[&'a Tensor], i: usize) -> Option<&'a Tensor> {
        if self.dynamic { optional(inputs, i) } else { held.as_ref() }
    }

    fn read(a: &mut Reading) -> Result<Arc<dyn Op>> {
        if a.opset() < 11 {
            let (lo, hi) = (a.float("min", f32::NEG_INFINITY)?, a.float("max", f32::INFINITY)?);
            // The defaults of opset 6 are the ends of f32, which restrict nothing.
            let open = |x: f32| if x.abs() == f32::MAX { f32::INFINITY.copysign(x) } else { x };
            return Ok(Arc::new(Clip::new(open(lo), open(hi))));
        }
        if !(1..a.inputs()).all(|i| a.is_constant(i)) {
            return Ok(Arc::new(Clip { min: None, max: None, dynamic: true }));
        }
        Ok(Arc::new(Clip { min: a.take_constant(1)?, max: a.take_constant(2)?, dynamic: false }))
    }
}

fn check(dtype: DType, bound: DType, len: Option<usize>) -> Result<()> {
    if dtype != bound {
        return Err(invalid!("the bounds are {bound} and the input is {dtype}"));
    }
    match len {
        Some(n) if n != 1 => Err(invalid!("a bound has {n} elements, not one")),
        _ => Ok(()),
    }
}

impl Op for Clip {
    fn name(&self) -> &'static str {
        "Clip"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, if self.dynamic { 3 } else { 1 })?;
        let x = inputs[0];
        if x.dtype.storage() != x.dtype || x.dtype == DType::Bool {
            return Err(invalid!("takes numbers, found {}", x.dtype));
        }
        for t in [&self.min, &self.max].into_iter().flatten() {
            check(x.dtype, t.dtype(), Some(t.len()))?;
        }
        for f in [1, 2].into_iter().filter_map(|i| optional_fact(inputs, i)) {
            check(x.dtype, f.dtype, f.known_shape().map(|s| s.iter().product()))?;
        }
        Ok(vec![x.with_shape(x.shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.eval_owned(inputs.iter().map(|&x| x.clone()).collect())
    }

    fn eval_owned(&self, mut inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        arity(&inputs, 1, 3)?;
        let x = inputs.remove(0);
        let bounds: Vec<&Tensor> = inputs.iter().collect();
        let (lo, hi) = (self.bound(&self.min, &bounds, 0), self.bound(&self.max, &bounds, 1));
        let shape = x.shape().to_vec();
        each_storage!(x.dtype(), T => {
            let lo = lo.map(Tensor::item::<T>).transpose()?;
            let hi = hi.map(Tensor::item::<T>).transpose()?;
            let mut x = x.into_vec::<T>()?;
            clip(&mut x, lo, hi);
            Ok(vec![Tensor::new(&shape, x)?])
        })
    }

    /// Of an element outside of the bounds, the gradient is that by the bound.
    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let (g, x) = (at.gradient()?, at.inputs[0]);
        let bound = |held, i, open: f32| self.bound(held, at.inputs, i).map_or(Ok(open), Tensor::item);
        let (lo, hi) = (bound(&self.min, 1, f32::NEG_INFINITY)?, bound(&self.max, 2, f32::INFINITY)?);
        let own = |is_own: fn(f32, f32, f32) -> bool| {
            broadcast::map(
                g.shape(),
                [g, x],
                #[inline(always)]
                |[g, x]| if is_own(x, lo, hi) { g } else { 0.0 },
            )
        };
        at.each(|i| match i {
            0 => broadcast::map(
                g.shape(),
                [g, x],
                #[inline(always)]
                |[g, x]| if x >= lo && x <= hi { g } else { 0.0 },
            ),
            1 => summed_to(own(|x, lo, hi| x < lo && lo <= hi)?, &[])?.reshaped(at.inputs[1].shape()),
            _ => summed_to(own(|x, lo, hi| x.max(lo) > hi)?, &[])?.reshaped(at.inputs[2].shape()),
        })
    }

    fn attributes(&self) -> Attributes {
        let mut all = vec![];
        if let Some(t) = &self.min {
            all.push(("min", Attribute::Tensor(t.clone())));
        }
        if let Some(t) = &self.max {
            all.push(("max", Attribute::Tensor(t.clone())));
        }
        if self.dynamic {
            all.push(("dynamic", Attribute::Int(1)));
        }
        all
    }

    /// The bounds as operands; an empty tensor stands for one that is left out.
    /// Opsets before 11 have f32 attributes.
    fn written(&self, opset: i64) -> (Attributes, Vec<Tensor>) {
        if opset < 11 {
            let bounds = [("min", &self.min), ("max", &self.max)];
            let value = |t: &Tensor| t.to_f32().ok()?.first().copied().map(Attribute::Float);
            let given = bounds.into_iter().filter_map(|(name, t)| Some((name, value(t.as_ref()?)?)));
            return (given.collect(), vec![]);
        }
        let absent = || Tensor::vector(Vec::<f32>::new());
        let operands = match (&self.min, &self.max) {
            (None, None) => vec![],
            (Some(lo), None) => vec![lo.clone()],
            (lo, Some(hi)) => vec![lo.clone().unwrap_or_else(absent), hi.clone()],
        };
        (vec![], operands)
    }

    fn quant(&self) -> Quant {
        let value = |t: &Option<Tensor>, open: f32| match t {
            Some(t) => t.to_f32().ok().and_then(|x| x.first().copied()),
            None => Some(open),
        };
        match (value(&self.min, f32::NEG_INFINITY), value(&self.max, f32::INFINITY)) {
            (Some(lo), Some(hi)) if !self.dynamic => Quant::Clamp { lo, hi },
            _ => Quant::Float,
        }
    }
}

/// Elements that one task restricts.
const CHUNK: usize = 1 << 16;

fn clip<T: Element + PartialOrd>(x: &mut [T], lo: Option<T>, hi: Option<T>) {
    let above = |x: T| match lo {
        Some(lo) if x < lo => lo,
        _ => x,
    };
    let below = |x: T| match hi {
        Some(hi) if x > hi => hi,
        _ => x,
    };
    x.par_chunks_mut(CHUNK).for_each(|x| {
        vectorized(
            #[inline(always)]
            || x.iter_mut().for_each(|x| *x = below(above(*x))),
        );
    });
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[("Clip", Clip::read)];

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::ops::differences::{Case, check};

    fn read(opset: i64, attributes: &[(&str, f32)], bounds: Vec<Option<Tensor>>) -> Arc<dyn Op> {
        let attributes = attributes.iter().map(|&(k, v)| (k.to_string(), Attribute::Float(v))).collect();
        let constants = std::iter::once(None).chain(bounds).collect();
        let mut a = Reading::new("Clip", opset, attributes, constants, 1);
        let op = Clip::read(&mut a).unwrap();
        a.finish().unwrap();
        op
    }

    #[test]
    fn bounds_are_read_in_every_form() {
        let absent = || Tensor::vector(Vec::<f32>::new());
        let six = || Tensor::scalar(6.0f32);
        let clamp = |lo, hi| Quant::Clamp { lo, hi };
        let (lo, hi) = (f32::NEG_INFINITY, f32::INFINITY);
        let cases = [
            (read(6, &[("min", 0.0), ("max", 6.0)], vec![]), clamp(0.0, 6.0), 2),
            (read(6, &[("max", f32::MAX)], vec![]), clamp(lo, hi), 0),
            (read(13, &[], vec![]), clamp(lo, hi), 0),
            (read(13, &[], vec![Some(absent()), Some(six())]), clamp(lo, 6.0), 2),
            (read(13, &[], vec![Some(six())]), clamp(6.0, hi), 1),
            (read(13, &[], vec![None, Some(six())]), Quant::Float, 0),
        ];
        for (op, quant, operands) in cases {
            assert_eq!((op.quant(), op.written(13).1.len()), (quant, operands), "{op:?}");
        }
        let read6 = read(6, &[("min", 0.0), ("max", 6.0)], vec![]);
        assert_eq!(read6.is::<Clip>(), Some(&Clip::new(0.0, 6.0)));
    }

    #[test]
    fn values_of_every_type_are_restricted() {
        let bounds = |lo: Tensor, hi: Tensor| Clip { min: Some(lo), max: Some(hi), dynamic: false };
        let cases = [
            (
                Clip::new(0.0, 6.0),
                Tensor::vector(vec![-1.0f32, 3.0, 7.0]),
                Tensor::vector(vec![0.0f32, 3.0, 6.0]),
            ),
            (
                bounds(Tensor::scalar(-1i64), Tensor::scalar(i64::MAX)),
                Tensor::vector(vec![i64::MIN, 5]),
                Tensor::vector(vec![-1i64, 5]),
            ),
            (
                bounds(Tensor::scalar(5.0f64), Tensor::scalar(1.0f64)),
                Tensor::vector(vec![0.0f64, 3.0]),
                Tensor::vector(vec![1.0f64, 1.0]),
            ),
            (
                bounds(Tensor::scalar(f16::ONE), Tensor::vector(vec![f16::ONE])),
                Tensor::vector(vec![f16::ZERO]),
                Tensor::vector(vec![f16::ONE]),
            ),
        ];
        for (op, x, expected) in cases {
            op.infer(&[&Fact::of(&x)]).unwrap();
            assert_eq!(op.eval(&[&x]).unwrap(), [expected], "{op:?}");
        }
        let dynamic = Clip { min: None, max: None, dynamic: true };
        let x = Tensor::vector(vec![f32::NAN, -1.0, 9.0]);
        let y = dynamic.eval(&[&x, &Tensor::scalar(0.0f32)]).unwrap()[0].to_f32().unwrap();
        assert!(y[0].is_nan() && y[1..] == [0.0, 9.0]);
    }

    #[test]
    fn bounds_that_do_not_fit_are_refused() {
        let x = Fact::new(DType::F16, [2]);
        assert!(Clip::new(0.0, 6.0).infer(&[&x]).is_err());
        let two = Clip { min: Some(Tensor::vector(vec![0.0f32, 1.0])), max: None, dynamic: false };
        assert!(two.infer(&[&Fact::new(DType::F32, [2])]).is_err());
        assert!(Clip::default().infer(&[&Fact::new(DType::Bool, [2])]).is_err());
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let dynamic = || Clip { dynamic: true, ..Clip::default() };
        let bound = |x: f32| Tensor::scalar(x);
        let absent = Tensor::vector(Vec::<f32>::new());
        let case = |op: Clip| Case::new(op, &[&[3, 41]]).map(|x| (20.0 * x).floor() / 5.0 + 0.1);
        check([
            case(Clip::new(0.0, 2.0)),
            case(Clip::new(f32::NEG_INFINITY, 2.0)),
            case(Clip::default()),
            case(dynamic()).and(bound(-1.0)).and(bound(1.0)),
            case(dynamic()).and(Tensor::vector(vec![-1f32])),
            case(dynamic()).and(absent).and(bound(1.0)),
            case(dynamic()).and(bound(1.0)).and(bound(-1.0)),
        ]);
    }
}
