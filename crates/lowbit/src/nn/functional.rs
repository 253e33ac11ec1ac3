//! Operators without parameters, for the forward passes of modules.

use super::Scope;
use crate::error::Result;
use crate::graph::Var;
use crate::op::Dim;
use crate::ops::binary::Arithmetic;
use crate::ops::cast::Cast;
use crate::ops::layout::{Concat, Split, Transpose};
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::reduce::{Reduce, Reduction};
use crate::ops::shape::{Expand, Flatten, Reshape, Shape, Squeeze, Unsqueeze};
use crate::ops::slice::Slice;
use crate::ops::softmax::Softmax;
use crate::ops::unary::Unary;
use crate::tensor::{DType, Tensor};

/// Each fails if the operands do not fit, or are quantized and not merely moved
/// ([`Scope::apply`]).
#[allow(clippy::missing_errors_doc)]
impl Scope<'_> {
    /// `a + b`
    pub fn add(&mut self, a: Var, b: Var) -> Result<Var> {
        self.apply(Arithmetic::Add, &[a, b])
    }

    /// `a - b`
    pub fn sub(&mut self, a: Var, b: Var) -> Result<Var> {
        self.apply(Arithmetic::Sub, &[a, b])
    }

    /// `a * b`
    pub fn mul(&mut self, a: Var, b: Var) -> Result<Var> {
        self.apply(Arithmetic::Mul, &[a, b])
    }

    /// `a / b`
    pub fn div(&mut self, a: Var, b: Var) -> Result<Var> {
        self.apply(Arithmetic::Div, &[a, b])
    }

    /// The matrix product of the last two axes.
    pub fn matmul(&mut self, a: Var, b: Var) -> Result<Var> {
        self.apply(MatMul, &[a, b])
    }

    /// `x W^T + b` over the last axis, for `W [N, K]` and `b [N]`.
    pub fn linear(&mut self, x: Var, weight: Var, bias: Option<Var>) -> Result<Var> {
        self.as_rows(x, |g, x| {
            let inputs: Vec<Var> = [x, weight].into_iter().chain(bias).collect();
            g.apply(Gemm { trans_b: true, ..Gemm::default() }, &inputs)
        })
    }

    /// `f` of `x` as a matrix of rows, its last axis, with the other axes back.
    pub(super) fn as_rows(&mut self, x: Var, f: impl FnOnce(&mut Self, Var) -> Result<Var>) -> Result<Var> {
        let shape = self.fact(x).shape.clone();
        if shape.len() == 2 {
            return f(self, x);
        }
        let axis = shape.len().saturating_sub(1);
        let rows = self.apply(Flatten { axis: axis as i64 }, &[x])?;
        let rows = f(self, rows)?;
        let columns = self.fact(rows).shape.last().and_then(Dim::known);
        let mut sizes: Vec<Option<usize>> = shape[..axis].iter().map(Dim::known).collect();
        sizes.push(columns);
        if sizes.iter().filter(|d| d.is_none()).count() <= 1 {
            let sizes: Vec<i64> = sizes.into_iter().map(|d| d.map_or(-1, |n| n as i64)).collect();
            let shape = self.ints("shape", &sizes);
            return self.last(Reshape::default(), &[rows, shape]);
        }
        let leading = self.apply(Shape { start: 0, end: Some(axis as i64) }, &[x])?;
        let last = self.apply(Shape { start: 1, end: None }, &[rows])?;
        let shape = self.cat(&[leading, last], 0)?;
        self.last(Reshape::default(), &[rows, shape])
    }

    /// The values one after another along `axis`.
    pub fn cat(&mut self, values: &[Var], axis: i64) -> Result<Var> {
        match values {
            [one] => Ok(*one),
            all => self.apply(Concat { axis }, all),
        }
    }

    /// Equal parts along `axis`.
    pub fn split(&mut self, x: Var, axis: i64, parts: usize) -> Result<Vec<Var>> {
        match parts {
            1 => Ok(vec![x]),
            _ => self.apply_all(Split { axis, parts, listed: false }, &[x], parts),
        }
    }

    /// The positions `start..end` of `axis`; negative ones count from the end.
    pub fn slice(&mut self, x: Var, axis: i64, start: i64, end: i64) -> Result<Var> {
        let [start, end, axis] =
            [("start", start), ("end", end), ("axis", axis)].map(|(n, i)| self.ints(n, &[i]));
        self.apply(Slice, &[x, start, end, axis])
    }

    /// The same values in another shape: 0 keeps a dimension, -1 takes what is left.
    pub fn reshape(&mut self, x: Var, shape: &[i64]) -> Result<Var> {
        let shape = self.ints("shape", shape);
        self.apply(Reshape::default(), &[x, shape])
    }

    /// The axes in another order.
    pub fn permute(&mut self, x: Var, axes: &[usize]) -> Result<Var> {
        self.apply(Transpose { perm: Some(axes.to_vec()) }, &[x])
    }

    /// Without an axis of size 1.
    pub fn squeeze(&mut self, x: Var, axis: i64) -> Result<Var> {
        let axes = self.ints("axes", &[axis]);
        self.apply(Squeeze, &[x, axes])
    }

    /// With one more axis of size 1.
    pub fn unsqueeze(&mut self, x: Var, axis: i64) -> Result<Var> {
        let axes = self.ints("axes", &[axis]);
        self.apply(Unsqueeze, &[x, axes])
    }

    /// Broadcast to `shape`.
    pub fn expand(&mut self, x: Var, shape: &[usize]) -> Result<Var> {
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let shape = self.ints("shape", &shape);
        self.apply(Expand, &[x, shape])
    }

    /// The mean over `axes`, which stay with size 1.
    pub fn mean(&mut self, x: Var, axes: &[i64]) -> Result<Var> {
        self.apply(Reduce::new(Reduction::Mean, axes), &[x])
    }

    /// `max(x, 0)`
    pub fn relu(&mut self, x: Var) -> Result<Var> {
        self.apply(Unary::Relu, &[x])
    }

    /// `1 / (1 + exp(-x))`
    pub fn sigmoid(&mut self, x: Var) -> Result<Var> {
        self.apply(Unary::Sigmoid, &[x])
    }

    /// Hyperbolic tangent.
    pub fn tanh(&mut self, x: Var) -> Result<Var> {
        self.apply(Unary::Tanh, &[x])
    }

    /// `exp(x) / sum(exp(x))` along `axis`.
    pub fn softmax(&mut self, x: Var, axis: i64) -> Result<Var> {
        self.apply(Softmax::new(axis), &[x])
    }

    /// The values as another type.
    pub fn cast(&mut self, x: Var, to: DType) -> Result<Var> {
        self.apply(Cast { to }, &[x])
    }

    /// A constant number.
    pub fn scalar(&mut self, x: f32) -> Var {
        self.constant("scalar", Tensor::scalar(x))
    }

    /// A constant list of integers.
    pub fn ints(&mut self, name: &str, x: &[i64]) -> Var {
        self.constant(name, Tensor::vector(x.to_vec()))
    }
}
