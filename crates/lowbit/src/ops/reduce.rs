//! Many elements to one, along some axes.

mod gradient;

use std::sync::Arc;

use crate::error::{Error, Result, invalid};
use crate::op::{Attribute, Attributes, Dim, Fact, Op, Quant, ReadOp, Reading, Reverse, arity};
use crate::tensor::{DType, Element, Tensor, element_count};

use super::axis;
use super::cast::cast;
use super::strided::{each_storage, permuted};
use super::symbolic::output_shape;

/// What elements are reduced to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reduction {
    /// The arithmetic mean.
    Mean,
    /// The sum.
    Sum,
    /// The greatest; NaN if one is NaN.
    Max,
    /// The least; NaN if one is NaN.
    Min,
    /// The product.
    Prod,
    /// The sum of magnitudes.
    L1,
    /// The root of the sum of squares.
    L2,
    /// The sum of squares.
    SumSquare,
    /// The logarithm of the sum of exponentials.
    LogSumExp,
}

/// A reduction along some axes. Floats are accumulated in f64, integers wrap.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduce {
    /// What elements are reduced to.
    pub to: Reduction,
    /// The axes; if left out or empty, all of them, or none if `noop`.
    pub axes: Option<Vec<i64>>,
    /// Whether reduced dimensions stay, with size 1.
    pub keepdims: bool,
    /// Whether no axes means that nothing is reduced (`noop_with_empty_axes`).
    pub noop: bool,
}

impl Reduce {
    /// The reduction along `axes`, which stay with size 1.
    pub fn new(to: Reduction, axes: &[i64]) -> Reduce {
        Reduce { to, axes: Some(axes.to_vec()), keepdims: true, noop: false }
    }

    fn axes(&self) -> &[i64] {
        self.axes.as_deref().unwrap_or_default()
    }

    fn mask(&self, rank: usize) -> Result<Vec<bool>> {
        if self.axes().is_empty() {
            return Ok(vec![!self.noop; rank]);
        }
        axis::mask(self.axes(), rank)
    }

    /// The first opset in which axes are an operand.
    fn operand_since(&self) -> i64 {
        if self.to == Reduction::Sum { 13 } else { 18 }
    }

    fn read(to: Reduction, a: &mut Reading) -> Result<Arc<dyn Op>> {
        let keepdims = a.flag("keepdims", true)?;
        let mut op = Reduce { to, axes: None, keepdims, noop: false };
        if a.opset() >= op.operand_since() {
            op.noop = a.flag("noop_with_empty_axes", false)?;
            op.axes = a.take_constant(1)?.map(|t| t.integers()).transpose()?;
        } else {
            op.axes = a.ints("axes")?;
        }
        Ok(Arc::new(op))
    }
}

impl Op for Reduce {
    fn name(&self) -> &'static str {
        match self.to {
            Reduction::Mean => "ReduceMean",
            Reduction::Sum => "ReduceSum",
            Reduction::Max => "ReduceMax",
            Reduction::Min => "ReduceMin",
            Reduction::Prod => "ReduceProd",
            Reduction::L1 => "ReduceL1",
            Reduction::L2 => "ReduceL2",
            Reduction::SumSquare => "ReduceSumSquare",
            Reduction::LogSumExp => "ReduceLogSumExp",
        }
    }

    fn opset(&self) -> i64 {
        if self.noop { self.operand_since() } else { 13 }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        let x = inputs[0];
        if !x.dtype.is_float() && (!x.dtype.is_integer() || x.dtype.storage() != x.dtype) {
            return Err(invalid!("takes numbers, found {}", x.dtype));
        }
        Ok(vec![x.with_shape(remaining(&x.shape, &self.mask(x.rank())?, self.keepdims))])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = output_shape(self, inputs, 0)?;
        let x = inputs[0];
        let (rows, n) = reduced_last(x, &self.mask(x.rank())?)?;
        let y = match x.dtype() {
            DType::F32 => {
                let y = each_row(rows.slice::<f32>()?, n, &shape, |row| self.to.floats(row) as f32)?;
                Tensor::new(&shape, y)?
            }
            DType::F64 => {
                Tensor::new(&shape, each_row(rows.slice::<f64>()?, n, &shape, |row| self.to.floats(row))?)?
            }
            DType::F16 | DType::BF16 => {
                let y = each_row(&rows.to_f32()?, n, &shape, |row| self.to.floats(row))?;
                cast(&Tensor::new(&shape, y)?, x.dtype())?
            }
            DType::U64 => return Err(Error::unsupported(self.name(), "uint64")),
            dtype => {
                let (lo, hi) = dtype.integer_range().unwrap_or_default();
                let y = each_row(&rows.integers()?, n, &shape, |row| self.to.integers(row, lo, hi))?;
                let y = y
                    .into_iter()
                    .collect::<Option<Vec<i64>>>()
                    .ok_or_else(|| Error::unsupported(self.name(), format!("{dtype}, or no elements")))?;
                cast(&Tensor::new(&shape, y)?, dtype)?
            }
        };
        Ok(vec![y])
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let shape = at.inputs[0].shape();
        let kept = self.mask(shape.len())?.into_iter().zip(shape);
        let kept: Vec<usize> = kept.map(|(gone, n)| if gone { 1 } else { *n }).collect();
        gradient::vjp(self.to, &kept, at)
    }

    fn attributes(&self) -> Attributes {
        let mut all = vec![("keepdims", Attribute::Int(i64::from(self.keepdims)))];
        if let Some(axes) = &self.axes {
            all.push(("axes", Attribute::Ints(axes.clone())));
        }
        if self.noop {
            all.push(("noop_with_empty_axes", Attribute::Int(1)));
        }
        all
    }

    fn written(&self, opset: i64) -> (Attributes, Vec<Tensor>) {
        let mut all = self.attributes();
        if opset < self.operand_since() {
            return (all, vec![]);
        }
        all.retain(|(name, _)| *name != "axes");
        (all, self.axes.clone().map(Tensor::vector).into_iter().collect())
    }

    fn quant(&self) -> Quant {
        let axes = self.axes();
        let spatial = axes.iter().all(|&a| a >= 2) || [[-1, -2], [-2, -1]].iter().any(|s| axes == s);
        match self.to {
            Reduction::Mean if spatial && !axes.is_empty() => Quant::Compute { weight: None, bias: None },
            _ => Quant::Float,
        }
    }
}

impl Reduction {
    fn floats<T: Copy + Into<f64>>(self, x: &[T]) -> f64 {
        let greatest = |sign: f64| {
            x.iter()
                .map(|&x| sign * x.into())
                .fold(f64::NEG_INFINITY, |m, x| if x > m || x.is_nan() { x } else { m })
                * sign
        };
        match self {
            Reduction::Mean => sum(x, |x| x) / x.len() as f64,
            Reduction::Sum => sum(x, |x| x),
            Reduction::Max => greatest(1.0),
            Reduction::Min => greatest(-1.0),
            Reduction::Prod => x.iter().map(|&x| x.into()).product(),
            Reduction::L1 => sum(x, f64::abs),
            Reduction::L2 => sum(x, |x| x * x).sqrt(),
            Reduction::SumSquare => sum(x, |x| x * x),
            Reduction::LogSumExp => {
                let top = greatest(1.0);
                if top.is_finite() { top + libm::log(sum(x, |x| libm::exp(x - top))) } else { top }
            }
        }
    }

    /// The reduction of integers of a type that holds `lo..=hi`, if it is one.
    fn integers(self, x: &[i64], lo: i64, hi: i64) -> Option<i64> {
        let sum = |f: fn(i64) -> i64| x.iter().fold(0i64, |s, &x| s.wrapping_add(f(x)));
        Some(match self {
            Reduction::Mean => return sum(|x| x).checked_div(x.len() as i64),
            Reduction::Sum => sum(|x| x),
            Reduction::Max => x.iter().copied().max().unwrap_or(lo),
            Reduction::Min => x.iter().copied().min().unwrap_or(hi),
            Reduction::Prod => x.iter().fold(1, |p, &x| p.wrapping_mul(x)),
            Reduction::L1 => sum(i64::wrapping_abs),
            Reduction::L2 => libm::sqrt(sum(|x| x.wrapping_mul(x)) as f64) as i64,
            Reduction::SumSquare => sum(|x| x.wrapping_mul(x)),
            Reduction::LogSumExp => return None,
        })
    }
}

/// The sum of `f` of the elements, in eight partial sums.
#[inline(always)]
pub(super) fn sum<T: Copy + Into<f64>>(x: &[T], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x.into());
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&x| f(x.into())).sum::<f64>()
}

fn remaining(shape: &[Dim], mask: &[bool], keepdims: bool) -> Vec<Dim> {
    let dims = shape.iter().zip(mask);
    if keepdims {
        return dims.map(|(d, gone)| if *gone { Dim::Known(1) } else { d.clone() }).collect();
    }
    dims.filter(|(_, gone)| !**gone).map(|(d, _)| d.clone()).collect()
}

/// The tensor with the masked dimensions last, and the number of elements in
/// them.
fn reduced_last(t: &Tensor, mask: &[bool]) -> Result<(Tensor, usize)> {
    let (last, first): (Vec<usize>, Vec<usize>) = (0..t.rank()).partition(|&i| mask[i]);
    let n = last.iter().map(|&i| t.shape()[i]).product();
    Ok((permuted(t, &[first, last].concat())?, n))
}

/// `f` of each row of `n` elements.
fn each_row<T, U>(x: &[T], n: usize, shape: &[usize], f: impl Fn(&[T]) -> U) -> Result<Vec<U>> {
    let rows = element_count(shape)?;
    Ok((0..rows).map(|i| f(&x[i * n..(i + 1) * n])).collect())
}

/// The position of the greatest or least element along an axis, as int64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ArgReduce {
    /// Whether it is the greatest (`ArgMax`).
    pub max: bool,
    /// The axis.
    pub axis: i64,
    /// Whether the axis stays, with size 1.
    pub keepdims: bool,
    /// Whether the last of equal elements counts, not the first.
    pub last: bool,
}

impl ArgReduce {
    fn read(max: bool, a: &mut Reading) -> Result<Arc<dyn Op>> {
        Ok(Arc::new(ArgReduce {
            max,
            axis: a.int("axis")?.unwrap_or(0),
            keepdims: a.flag("keepdims", true)?,
            last: a.flag("select_last_index", false)?,
        }))
    }

    fn mask(&self, rank: usize) -> Result<Vec<bool>> {
        axis::mask(&[self.axis], rank)
    }

    fn position<T: Element + PartialOrd>(&self, row: &[T]) -> i64 {
        let mut best = 0;
        for (i, x) in row.iter().enumerate() {
            let better = if self.max { *x > row[best] } else { *x < row[best] };
            if better || (self.last && *x == row[best]) {
                best = i;
            }
        }
        best as i64
    }
}

impl Op for ArgReduce {
    fn name(&self) -> &'static str {
        if self.max { "ArgMax" } else { "ArgMin" }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        let x = inputs[0];
        let shape = remaining(&x.shape, &self.mask(x.rank())?, self.keepdims);
        if x.dtype.storage() != x.dtype {
            return Err(Error::unsupported(self.name(), x.dtype.to_string()));
        }
        if x.shape[axis::one(self.axis, x.rank())?] == Dim::Known(0) {
            return Err(invalid!("axis {} of {x} is empty", self.axis));
        }
        Ok(vec![Fact { dtype: DType::I64, shape, sizes: None }])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = output_shape(self, inputs, 0)?;
        let (rows, n) = reduced_last(inputs[0], &self.mask(inputs[0].rank())?)?;
        each_storage!(rows.dtype(), T => {
            let y = each_row(rows.slice::<T>()?, n, &shape, |row| self.position(row))?;
            Ok(vec![Tensor::new(&shape, y)?])
        })
    }

    fn attributes(&self) -> Attributes {
        vec![
            ("axis", Attribute::Int(self.axis)),
            ("keepdims", Attribute::Int(i64::from(self.keepdims))),
            ("select_last_index", Attribute::Int(i64::from(self.last))),
        ]
    }
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("ReduceMean", |a| Reduce::read(Reduction::Mean, a)),
    ("ReduceSum", |a| Reduce::read(Reduction::Sum, a)),
    ("ReduceMax", |a| Reduce::read(Reduction::Max, a)),
    ("ReduceMin", |a| Reduce::read(Reduction::Min, a)),
    ("ReduceProd", |a| Reduce::read(Reduction::Prod, a)),
    ("ReduceL1", |a| Reduce::read(Reduction::L1, a)),
    ("ReduceL2", |a| Reduce::read(Reduction::L2, a)),
    ("ReduceSumSquare", |a| Reduce::read(Reduction::SumSquare, a)),
    ("ReduceLogSumExp", |a| Reduce::read(Reduction::LogSumExp, a)),
    ("ArgMax", |a| ArgReduce::read(true, a)),
    ("ArgMin", |a| ArgReduce::read(false, a)),
];

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn elements_are_reduced() {
        let x = [3.0f64, -4.0, 12.0];
        let cases = [
            (Reduction::Mean, 11.0 / 3.0, Some(3)),
            (Reduction::Sum, 11.0, Some(11)),
            (Reduction::Max, 12.0, Some(12)),
            (Reduction::Min, -4.0, Some(-4)),
            (Reduction::Prod, -144.0, Some(-144)),
            (Reduction::L1, 19.0, Some(19)),
            (Reduction::L2, 13.0, Some(13)),
            (Reduction::SumSquare, 169.0, Some(169)),
            (Reduction::LogSumExp, 12.000123514711005, None),
        ];
        for (to, float, integer) in cases {
            let op = Reduce { to, axes: None, keepdims: false, noop: false };
            let float32 = Tensor::vector(x.map(|x| x as f32).to_vec());
            assert_eq!(op.eval(&[&float32]).unwrap(), [Tensor::scalar(float as f32)], "{to:?}");
            let float16 = Tensor::vector(x.map(f16::from_f64).to_vec());
            assert_eq!(op.eval(&[&float16]).unwrap(), [Tensor::scalar(f16::from_f64(float))], "{to:?}");
            let found = op.eval(&[&Tensor::vector(x.to_vec())]).unwrap()[0].item::<f64>().unwrap();
            assert!((found - float).abs() < 1e-12, "{to:?}");
            let found = op.eval(&[&Tensor::vector(vec![3i32, -4, 12])]).ok();
            assert_eq!(found, integer.map(|x: i32| vec![Tensor::scalar(x)]), "{to:?}");
        }
    }

    #[test]
    fn axes_may_be_any() {
        let x = Tensor::new(&[2, 3, 2], (0..12).map(|x| x as f32).collect()).unwrap();
        let all =
            |axes: Option<Vec<i64>>, keepdims, noop| Reduce { to: Reduction::Sum, axes, keepdims, noop };
        let cases: [(Reduce, &[usize], &[f32]); 6] = [
            (all(Some(vec![1]), true, false), &[2, 1, 2], &[6.0, 9.0, 24.0, 27.0]),
            (all(Some(vec![0, -1]), false, false), &[3], &[14.0, 22.0, 30.0]),
            (all(Some(vec![]), false, false), &[], &[66.0]),
            (all(None, true, false), &[1, 1, 1], &[66.0]),
            (all(None, true, true), &[2, 3, 2], &[0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11.]),
            (all(Some(vec![2]), false, false), &[2, 3], &[1.0, 5.0, 9.0, 13.0, 17.0, 21.0]),
        ];
        for (op, shape, expected) in cases {
            assert_eq!(op.eval(&[&x]).unwrap(), [Tensor::new(shape, expected.to_vec()).unwrap()], "{op:?}");
        }
        for axes in [vec![3], vec![0, -3], vec![i64::MIN]] {
            assert!(Reduce::new(Reduction::Sum, &axes).eval(&[&x]).is_err());
        }
    }

    #[test]
    fn nothing_and_nan_are_reduced() {
        let empty = Tensor::vector(Vec::<f32>::new());
        let value = |to, t: &Tensor| Reduce::new(to, &[0]).eval(&[t]).unwrap()[0].to_f32().unwrap()[0];
        assert_eq!(value(Reduction::Sum, &empty), 0.0);
        assert_eq!(value(Reduction::Prod, &empty), 1.0);
        assert_eq!(value(Reduction::Max, &empty), f32::NEG_INFINITY);
        assert_eq!(value(Reduction::Min, &empty), f32::INFINITY);
        assert_eq!(value(Reduction::LogSumExp, &Tensor::vector(vec![f32::NEG_INFINITY])), f32::NEG_INFINITY);
        for to in [Reduction::Max, Reduction::Min, Reduction::LogSumExp] {
            assert!(value(to, &Tensor::vector(vec![1.0, f32::NAN, 2.0])).is_nan(), "{to:?}");
        }
        let no_integers = Tensor::vector(Vec::<i32>::new());
        assert!(Reduce::new(Reduction::Mean, &[0]).eval(&[&no_integers]).is_err());
        assert!(Reduce::new(Reduction::Sum, &[0]).eval(&[&Tensor::vector(vec![true])]).is_err());
    }

    #[test]
    fn axes_are_read_and_written_as_the_opset_has_them() {
        let cases = [
            ("ReduceSum", 11, false),
            ("ReduceSum", 13, true),
            ("ReduceMean", 13, false),
            ("ReduceMean", 18, true),
        ];
        for (name, opset, operand) in cases {
            let axes = vec![2i64, 3];
            let (attributes, constants) = if operand {
                ([].into(), vec![None, Some(Tensor::vector(axes.clone()))])
            } else {
                ([("axes".to_string(), Attribute::Ints(axes.clone()))].into(), vec![None])
            };
            let mut a = Reading::new(name, opset, attributes, constants, 1);
            let read = READERS.iter().find(|r| r.0 == name).unwrap().1;
            let op = read(&mut a).unwrap();
            a.finish().unwrap();
            assert_eq!(op.is::<Reduce>().unwrap().axes, Some(axes));
            assert_eq!(op.written(opset).1.len(), usize::from(operand), "{name} {opset}");
        }
    }

    #[test]
    fn only_spatial_means_are_quantized() {
        let compute = |to, axes: &[i64]| Reduce::new(to, axes).quant() != Quant::Float;
        assert!(compute(Reduction::Mean, &[2, 3]) && compute(Reduction::Mean, &[-1, -2]));
        assert!(!compute(Reduction::Mean, &[-1]) && !compute(Reduction::Mean, &[]));
        assert!(!compute(Reduction::Sum, &[2, 3]));
    }

    #[test]
    fn positions_of_extremes_are_found() {
        let x = Tensor::new(&[2, 3], vec![5i8, 1, 5, 0, 7, 0]).unwrap();
        let cases: [(bool, i64, bool, &[usize], &[i64]); 5] = [
            (true, 1, false, &[2, 1], &[0, 1]),
            (true, -1, true, &[2, 1], &[2, 1]),
            (false, 1, false, &[2, 1], &[1, 0]),
            (false, 1, true, &[2, 1], &[1, 2]),
            (true, 0, false, &[1, 3], &[0, 1, 0]),
        ];
        for (max, axis, last, shape, expected) in cases {
            let op = ArgReduce { max, axis, keepdims: true, last };
            assert_eq!(op.eval(&[&x]).unwrap(), [Tensor::new(shape, expected.to_vec()).unwrap()], "{op:?}");
        }
        let op = ArgReduce { max: true, axis: 0, keepdims: false, last: false };
        assert!(op.eval(&[&Tensor::vector(Vec::<f32>::new())]).is_err());
        assert!(op.eval(&[&Tensor::scalar(1.0f32)]).is_err());
    }

    proptest! {
        #[test]
        fn a_sum_along_axes_is_the_sum_along_each(shape in prop::collection::vec(1usize..4, 3)) {
            let n: usize = shape.iter().product();
            let x = Tensor::new(&shape, (0..n as i64).collect()).unwrap();
            let both = Reduce::new(Reduction::Sum, &[0, 2]).eval(&[&x]).unwrap();
            let first = Reduce::new(Reduction::Sum, &[2]).eval(&[&x]).unwrap();
            prop_assert_eq!(both, Reduce::new(Reduction::Sum, &[0]).eval(&[&first[0]]).unwrap());
        }
    }
}
