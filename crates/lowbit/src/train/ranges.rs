//! Ranges that are found while training, and the steps that follow from them.

use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::observer::{AnyObserver, ObserverConfig};
use crate::op::{Attribute, Attributes, Fact, Op, arity};
use crate::qparams::{QParams, Range};
use crate::quantize::Point;
use crate::scheme::{Format, Granularity, Mapping, Scheme};
use crate::tensor::{DType, Tensor};

/// An operator without a gradient, of the domain of this library.
macro_rules! observing {
    ($op_type:ident, $name:literal) => {
        fn name(&self) -> &'static str {
            $name
        }
        fn domain(&self) -> &'static str {
            "lowbit"
        }
        fn attributes(&self) -> Attributes {
            vec![("scheme", Attribute::Text(format!("{self:?}")))]
        }
        fn folds(&self) -> bool {
            false
        }
    };
}

/// The moving average of the range of a value, of one group: from x, lo, hi and
/// `seen` (1 once something was seen), the next lo, hi and seen.
/// `lo' = lo + constant (min x - lo)`, likewise hi; the first range is taken as
/// it is (PyTorch's MovingAverageMinMaxObserver).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MovingRange {
    /// How much a new range counts, from 0 to 1.
    pub constant: f32,
}

impl Op for MovingRange {
    observing!(MovingRange, "MovingRange");

    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        arity(x, 4, 4)?;
        Ok(x[1..].iter().map(|f| (*f).clone()).collect())
    }

    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(x, 4, 4)?;
        let mut observer =
            AnyObserver::new(ObserverConfig::MinMax, Scheme::new(Format::INT8, Mapping::Symmetric))?;
        observer.observe(x[0])?;
        let ranges = observer.ranges()?;
        let [now] = ranges.as_slice() else { return Err(invalid!("holds no value to observe")) };
        let first = x[3].slice::<f32>()?.first() == Some(&0.0);
        let next = |had: &Tensor, now: f32| -> Result<Tensor> {
            let moved = |&had: &f32| if first { now } else { had + self.constant * (now - had) };
            Tensor::new(had.shape(), had.slice::<f32>()?.iter().map(moved).collect())
        };
        Ok(vec![next(x[1], now.lo)?, next(x[2], now.hi)?, Tensor::full(x[3].shape(), 1f32)?])
    }
}

/// Scale and zero point, as f32, of the ranges lo, hi.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RangeSteps {
    /// What the steps are of.
    pub scheme: Scheme,
}

impl Op for RangeSteps {
    observing!(RangeSteps, "RangeSteps");

    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        arity(x, 2, 2)?;
        Ok(x.iter().map(|f| (*f).clone()).collect())
    }

    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(x, 2, 2)?;
        let ends = x[0].slice::<f32>()?.iter().zip(x[1].slice::<f32>()?);
        let ranges = ends.map(|(lo, hi)| Range::new(*lo, *hi)).collect::<Result<Vec<_>>>()?;
        steps(&QParams::from_ranges(self.scheme, &ranges)?)
    }
}

/// Scale and zero point, as f32, of a weight as its point finds them now.
#[derive(Clone, Debug)]
pub struct ObservedSteps {
    /// Who chooses them.
    pub point: Arc<Point>,
}

impl Op for ObservedSteps {
    observing!(ObservedSteps, "ObservedSteps");

    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        arity(x, 1, 1)?;
        let groups = match self.point.scheme.granularity {
            Granularity::Tensor => 1,
            granularity => {
                let shape =
                    x[0].known_shape().ok_or_else(|| invalid!("needs a fixed shape, found {}", x[0]))?;
                granularity.groups(&shape)?.count()
            }
        };
        Ok(vec![Fact::new(DType::F32, [groups]); 2])
    }

    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(x, 1, 1)?;
        steps(&self.point.params_of(x[0])?)
    }
}

/// Scale and zero point as operands of [`super::FakeQuantize`].
pub fn steps(params: &QParams) -> Result<Vec<Tensor>> {
    let zero = params.zero_point.iter().map(|&z| z as f32).collect();
    Ok(vec![Tensor::vector(params.scale.clone()), Tensor::vector(zero)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_move_and_become_steps() {
        let one = |x: f32| Tensor::vector(vec![x]);
        let op = MovingRange { constant: 0.25 };
        let x = Tensor::vector(vec![-1f32, 3.]);
        let first = op.eval(&[&x, &one(0.), &one(0.), &one(0.)]).unwrap();
        assert_eq!(first, [one(-1.), one(3.), one(1.)]);
        let wider = Tensor::vector(vec![-5f32, 3.]);
        let next = op.eval(&[&wider, &first[0], &first[1], &first[2]]).unwrap();
        assert_eq!(next, [one(-2.), one(3.), one(1.)]);
        let scheme = Scheme::new(Format::UINT8, Mapping::Affine);
        let made = RangeSteps { scheme }.eval(&[&next[0], &next[1]]).unwrap();
        assert_eq!(made, [one(5.0 / 255.0), one(102.0)]);
    }
}
