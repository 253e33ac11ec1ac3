//! Softmax and its logarithm.

use std::sync::Arc;

use lowbit_kernels::{Kernels, exp};

use crate::error::{Result, invalid};
use crate::op::{
    Attribute, Attributes, Fact, Op, Operand, Prepared, Quant, ReadOp, Reading, Reverse, Routine, View,
    ViewMut, arity,
};
use crate::parallel;
use crate::tensor::buffers::buffer;
use crate::tensor::{DType, Tensor};

use super::cast::cast;
use super::strided::permuted;
use super::vectorized::vectorized;
use super::{axis, reduce};

/// `exp(x) / sum(exp(x))` along an axis, or the logarithm of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// The axis.
    pub axis: i64,
    /// Whether the logarithm is meant (`LogSoftmax`).
    pub log: bool,
}

impl Softmax {
    /// Softmax along `axis`.
    pub fn new(axis: i64) -> Softmax {
        Softmax { axis, log: false }
    }

    /// As opset 13 and later define it; the reader makes the older form of these.
    fn read(log: bool, a: &mut Reading) -> Result<Arc<dyn Op>> {
        Ok(Arc::new(Softmax { axis: a.int("axis")?.unwrap_or(-1), log }))
    }
}

/// Elements that are worth a task.
const TASK: usize = 1 << 14;

/// `y` = softmax of each row of `n` elements of `x`.
fn softmax(x: &[f32], n: usize, y: &mut [f32]) {
    let size = parallel::rows_of_a_task(TASK, n, x.len().checked_div(n).unwrap_or(0)) * n;
    parallel::chunks(y, size, |i, y| {
        Kernels::best().softmax(&x[i * size..][..y.len()], n, y);
    });
}

/// `y` = the logarithm of the softmax of each row of `n` elements of `x`.
fn log_softmax(x: &[f32], n: usize, y: &mut [f32]) {
    let n = n.max(1);
    let size = parallel::rows_of_a_task(TASK, n, x.len() / n) * n;
    parallel::chunks(y, size, |i, y| {
        for (y, x) in y.chunks_exact_mut(n).zip(x[i * size..].chunks_exact(n)) {
            let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            vectorized(
                #[inline(always)]
                || y.iter_mut().zip(x).for_each(|(y, x)| *y = exp(x - top)),
            );
            let shift = libm::logf(y.iter().map(|&y| f64::from(y)).sum::<f64>() as f32);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = x - top - shift);
        }
    });
}

fn rows_f64(x: &mut [f64], n: usize, log: bool) {
    for row in x.chunks_exact_mut(n.max(1)) {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if log {
            let total: f64 = row.iter().map(|&x| libm::exp(x - top)).sum();
            let shift = libm::log(total);
            row.iter_mut().for_each(|x| *x = *x - top - shift);
        } else {
            row.iter_mut().for_each(|x| *x = libm::exp(*x - top));
            let total = reduce::sum(row, |x| x);
            row.iter_mut().for_each(|x| *x /= total);
        }
    }
}

/// The gradient by the operand of rows of `n` elements, of that by the values `y`.
fn gradient(g: &[f32], y: &[f32], n: usize, log: bool) -> Vec<f32> {
    let mut by = buffer(y.len());
    let n = n.max(1);
    let size = parallel::rows_of_a_task(TASK, n, y.len() / n) * n;
    parallel::chunks(&mut by, size, |i, by| {
        let rows = g[i * size..].chunks_exact(n).zip(y[i * size..].chunks_exact(n));
        for (by, (g, y)) in by.chunks_exact_mut(n).zip(rows) {
            vectorized(
                #[inline(always)]
                || {
                    if log {
                        let total = reduce::sum(g, |g| g) as f32;
                        by.iter_mut().zip(g).zip(y).for_each(|((by, g), y)| *by = g - exp(*y) * total);
                    } else {
                        // The products are held where the result goes.
                        by.iter_mut().zip(g).zip(y).for_each(|((by, g), y)| *by = g * y);
                        let total = reduce::sum(by, |x| x) as f32;
                        by.iter_mut().zip(g).zip(y).for_each(|((by, g), y)| *by = y * (g - total));
                    }
                },
            );
        }
    });
    by
}

/// [`Softmax`] along the last axis, of `n` elements.
#[derive(Debug)]
struct Rows {
    n: usize,
}

impl Routine for Rows {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        softmax(x[0].f32()?, self.n, y.f32()?);
        Ok(())
    }
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "LogSoftmax" } else { "Softmax" }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        let x = inputs[0];
        if !x.dtype.is_float() {
            return Err(invalid!("takes floats, found {}", x.dtype));
        }
        axis::one(self.axis, x.rank())?;
        Ok(vec![x.with_shape(x.shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.infer(&[&Fact::of(inputs.first().ok_or_else(|| invalid!("takes 1 input, found 0"))?)])?;
        let x = inputs[0];
        let at = axis::one(self.axis, x.rank())?;
        if matches!(x.dtype(), DType::F16 | DType::BF16) {
            let y = self.eval(&[&cast(x, DType::F32)?])?.remove(0);
            return Ok(vec![cast(&y, x.dtype())?]);
        }
        let n = x.shape()[at];
        // The axis changes places with the last one, and back.
        let mut perm: Vec<usize> = (0..x.rank()).collect();
        perm.swap(at, x.rank() - 1);
        let moved = permuted(x, &perm)?;
        let shape = moved.shape().to_vec();
        let y = if x.dtype() == DType::F32 {
            let x = moved.slice::<f32>()?;
            let mut y = buffer(x.len());
            if self.log {
                log_softmax(x, n, &mut y);
            } else {
                softmax(x, n, &mut y);
            }
            Tensor::new(&shape, y)?
        } else {
            let mut y = moved.into_vec::<f64>()?;
            rows_f64(&mut y, n, self.log);
            Tensor::new(&shape, y)?
        };
        Ok(vec![permuted(&y, &perm)?])
    }

    /// `y * (g - sum(g * y))`, or `g - exp(y) * sum(g)` of the logarithm.
    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let (g, y) = (at.gradient()?, at.outputs[0]);
        let axis = axis::one(self.axis, y.rank())?;
        let mut perm: Vec<usize> = (0..y.rank()).collect();
        perm.swap(axis, y.rank() - 1);
        let (g, y) = (permuted(g, &perm)?, permuted(y, &perm)?);
        let by = gradient(g.slice()?, y.slice()?, at.inputs[0].shape()[axis], self.log);
        Ok(vec![Some(permuted(&Tensor::new(y.shape(), by)?, &perm)?)])
    }

    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let at = axis::one(self.axis, x[0].shape.len())?;
        if self.log || x[0].dtype != DType::F32 || at + 1 != x[0].shape.len() {
            return Ok(Prepared::Eval);
        }
        Prepared::routine(Rows { n: x[0].shape[at] })
    }

    fn attributes(&self) -> Attributes {
        vec![("axis", Attribute::Int(self.axis))]
    }

    fn quant(&self) -> Quant {
        if self.log { Quant::Float } else { Quant::Fixed { lo: 0.0, hi: 1.0 } }
    }
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] =
    &[("Softmax", |a| Softmax::read(false, a)), ("LogSoftmax", |a| Softmax::read(true, a))];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::eval_by_routine;
    use crate::ops::differences::{Case, check};

    fn near(found: &Tensor, expected: &[f64], tolerance: f64) {
        let found = found.to_f32().unwrap();
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((f64::from(*a) - b).abs() < tolerance, "{found:?}, not {expected:?}");
        }
    }

    #[test]
    fn probabilities_add_up() {
        let x = [0.0f64, 1.0, 2.0, 1000.0];
        let three = [0.09003057317038046, 0.24472847105479764, 0.6652409557748219];
        for (dtype, tolerance) in [(DType::F64, 1e-7), (DType::F32, 1e-6), (DType::F16, 1e-3)] {
            let t = cast(&Tensor::vector(x[..3].to_vec()), dtype).unwrap();
            near(&Softmax::new(0).eval(&[&t]).unwrap()[0], &three, tolerance);
            let log = Softmax { log: true, ..Softmax::new(-1) };
            near(&log.eval(&[&t]).unwrap()[0], &three.map(f64::ln), 3.0 * tolerance);
        }
        let t = Tensor::vector(x.map(|x| x as f32).to_vec());
        near(&Softmax::new(0).eval(&[&t]).unwrap()[0], &[0.0, 0.0, 0.0, 1.0], 1e-9);
    }

    #[test]
    fn any_axis_is_normalized() {
        let x = Tensor::new(&[1, 2, 2], vec![0.0f32, 5.0, 0.0, 5.0]).unwrap();
        near(&Softmax::new(1).eval(&[&x]).unwrap()[0], &[0.5; 4], 1e-7);
        near(&Softmax::new(0).eval(&[&x]).unwrap()[0], &[1.0; 4], 1e-7);
        let y = Softmax::new(-1).eval(&[&x]).unwrap()[0].to_f32().unwrap();
        assert!((y[0] + y[1] - 1.0).abs() < 1e-6 && y[0] == y[2]);
        let empty = Tensor::new(&[2, 0], Vec::<f32>::new()).unwrap();
        assert_eq!(Softmax::new(1).eval(&[&empty]).unwrap(), [empty]);
    }

    #[test]
    fn routines_compute_what_tensors_do() {
        let x =
            Tensor::new(&[3, 700, 33], (0..3 * 700 * 33).map(|i| (i % 97) as f32 / 9.0).collect()).unwrap();
        let y = Softmax::new(-1).eval(&[&x]).unwrap();
        assert_eq!(eval_by_routine(&Softmax::new(2), &[&x]).unwrap(), y);
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let cases: [(&[usize], i64); 5] =
            [(&[5], 0), (&[3, 7], -1), (&[3, 7], 0), (&[2, 3, 5], 1), (&[2, 0], 1)];
        check([false, true].into_iter().flat_map(|log| {
            cases.map(|(shape, axis)| Case::new(Softmax { axis, log }, &[shape]).map(|x| 2.0 * x))
        }));
    }

    #[test]
    fn an_axis_outside_is_an_error() {
        let message = Softmax::new(2).infer(&[&Fact::new(DType::F32, [2, 5])]).unwrap_err().to_string();
        assert!(message.contains("axis 2"), "{message}");
    }
}
