//! Matrix products: `Gemm` and `MatMul`.

mod gradient;

use std::sync::Arc;

use lowbit_kernels::Matrix;
use rayon::prelude::*;

use super::product::{Operand, matmul};
use super::{broadcast, float};
use crate::error::{Result, invalid};
use crate::op::{
    Attribute, Attributes, Dim, Fact, Op, Quant, ReadOp, Reverse, arity, optional, optional_fact,
};
use crate::tensor::{Tensor, element_count};

pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("Gemm", |r| {
        Ok(Arc::new(Gemm {
            alpha: r.float("alpha", 1.0)?,
            beta: r.float("beta", 1.0)?,
            trans_a: r.flag("transA", false)?,
            trans_b: r.flag("transB", false)?,
        }))
    }),
    ("MatMul", |_| Ok(Arc::new(MatMul))),
];

/// ONNX `Gemm`: `y = alpha * A * B + beta * C`, A `[M, K]`, B `[K, N]`, each
/// transposed before if the flag says so, C broadcast to `[M, N]`.
///
/// Computes in f32; other float types are converted and rounded back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of C.
    pub beta: f32,
    /// A is given as `[K, M]`.
    pub trans_a: bool,
    /// B is given as `[N, K]`.
    pub trans_b: bool,
}

impl Default for Gemm {
    fn default() -> Gemm {
        Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false }
    }
}

impl Op for Gemm {
    fn name(&self) -> &'static str {
        "Gemm"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 3)?;
        float::common("Gemm", inputs)?;
        let [m, ka] = matrix(inputs[0], self.trans_a)?;
        let [kb, n] = matrix(inputs[1], self.trans_b)?;
        check_inner(&ka, &kb)?;
        let out = vec![m, n];
        if let Some(c) = optional_fact(inputs, 2)
            && let (Some(c), Some(y)) = (c.known_shape(), inputs[0].with_shape(out.clone()).known_shape())
        {
            check_addend(&c, &y)?;
        }
        Ok(vec![inputs[0].with_shape(out)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 2, 3)?;
        let facts: Vec<Fact> = inputs.iter().map(|t| Fact::of(t)).collect();
        let y = self.infer(&facts.iter().collect::<Vec<_>>())?.remove(0);
        let shape = y.known_shape().ok_or_else(|| invalid!("the output has no fixed shape"))?;
        let [m, n] = [shape[0], shape[1]];
        let k = inputs[0].shape()[usize::from(!self.trans_a)];
        let (a, b) = (float::read(inputs[0])?, float::read(inputs[1])?);
        let transposed;
        let rows = if self.trans_a {
            transposed = (0..m).flat_map(|i| a[i..].iter().step_by(m).copied()).collect::<Vec<f32>>();
            &transposed
        } else {
            &*a
        };
        let a = Matrix::new(rows, m, k);
        let b = if self.trans_b {
            Operand::Transposed(Matrix::new(&b, n, k))
        } else {
            Operand::Plain(Matrix::new(&b, k, n))
        };
        let mut out = vec![0.0; element_count(&shape)?];
        if let Some(c) = optional(inputs, 2).filter(|_| self.beta != 0.0) {
            fill_addend(&float::read(c)?, c.shape(), self.beta, n, &mut out);
        }
        if self.alpha == 1.0 {
            matmul(a, b, true, &mut out, true);
        } else {
            let mut product = vec![0.0; out.len()];
            matmul(a, b, false, &mut product, true);
            out.iter_mut().zip(&product).for_each(|(y, x)| *y += self.alpha * x);
        }
        Ok(vec![float::write(inputs[0].dtype(), &shape, out)?])
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        gradient::gemm(self, at)
    }

    fn attributes(&self) -> Attributes {
        let mut a = vec![];
        for (name, x) in [("alpha", self.alpha), ("beta", self.beta)] {
            if x != 1.0 {
                a.push((name, Attribute::Float(x)));
            }
        }
        for (name, x) in [("transA", self.trans_a), ("transB", self.trans_b)] {
            if x {
                a.push((name, Attribute::Int(1)));
            }
        }
        a
    }

    fn quant(&self) -> Quant {
        if self.alpha != 1.0 || self.beta != 1.0 || self.trans_a {
            return Quant::Float;
        }
        Quant::Compute { weight: Some((1, usize::from(!self.trans_b))), bias: Some(2) }
    }

    fn macs(&self, inputs: &[&Fact], outputs: &[&Fact]) -> u64 {
        let inner = inputs[0].shape[usize::from(!self.trans_a)].known().unwrap_or(1);
        outputs[0].elements().saturating_mul(inner as u64)
    }
}

/// Rows and columns of a matrix operand.
fn matrix(x: &Fact, transposed: bool) -> Result<[Dim; 2]> {
    match x.shape.as_slice() {
        [a, b] if transposed => Ok([b.clone(), a.clone()]),
        [a, b] => Ok([a.clone(), b.clone()]),
        _ => Err(invalid!("needs matrices, found {x}")),
    }
}

fn check_inner(a: &Dim, b: &Dim) -> Result<()> {
    match (a, b) {
        (Dim::Known(x), Dim::Known(y)) if x != y => {
            Err(invalid!("a product over {x} columns and {y} rows; they must be equal"))
        }
        _ => Ok(()),
    }
}

fn check_addend(c: &[usize], y: &[usize]) -> Result<()> {
    if broadcast::shape(c, y).is_ok_and(|s| s == y) {
        return Ok(());
    }
    Err(invalid!("C of shape {c:?} does not broadcast to {y:?}"))
}

/// `y = beta * c`, c broadcast to rows of `n`.
fn fill_addend(c: &[f32], shape: &[usize], beta: f32, n: usize, y: &mut [f32]) {
    let at = |back: usize| shape.len().checked_sub(back).map_or(1, |i| shape[i]);
    let (rows, cols) = (at(2), at(1));
    for (i, y) in y.chunks_exact_mut(n.max(1)).enumerate() {
        let c = &c[if rows == 1 { 0 } else { i * cols }..][..cols];
        if cols == 1 {
            y.fill(beta * c[0]);
        } else {
            y.iter_mut().zip(c).for_each(|(y, c)| *y = beta * c);
        }
    }
}

/// ONNX `MatMul`, which is NumPy's: products of the last two axes, the others
/// broadcast; an operand of rank 1 is a row on the left, a column on the right,
/// and its axis does not appear in the result.
///
/// Computes in f32; other float types are converted and rounded back. As a
/// quantized operator its weight is operand 1, where that is a constant matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatMul;

/// An operand's shape as a stack of matrices.
fn stack<T: Clone + From<usize>>(shape: &[T], left: bool) -> Result<(Vec<T>, [T; 2])> {
    match shape {
        [] => Err(invalid!("needs operands of rank 1 or more, found a scalar")),
        [k] if left => Ok((vec![], [1.into(), k.clone()])),
        [k] => Ok((vec![], [k.clone(), 1.into()])),
        [batch @ .., rows, cols] => Ok((batch.to_vec(), [rows.clone(), cols.clone()])),
    }
}

/// The result's shape, from broadcast batch axes and the matrices' sizes.
fn result<T: Clone>(batch: Vec<T>, [m, n]: [T; 2], ranks: [usize; 2]) -> Vec<T> {
    let mut out = batch;
    out.extend((ranks[0] > 1).then_some(m));
    out.extend((ranks[1] > 1).then_some(n));
    out
}

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "MatMul"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 2)?;
        float::common("MatMul", inputs)?;
        let (batch_a, [m, ka]) = stack(&inputs[0].shape, true)?;
        let (batch_b, [kb, n]) = stack(&inputs[1].shape, false)?;
        check_inner(&ka, &kb)?;
        let batch = broadcast::dims(&batch_a, &batch_b)?;
        let out = result(batch, [m, n], [inputs[0].rank(), inputs[1].rank()]);
        Ok(vec![inputs[0].with_shape(out)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 2, 2)?;
        let [a, b] = [inputs[0], inputs[1]];
        let (batch_a, [m, k]) = stack(a.shape(), true)?;
        let (batch_b, [kb, n]) = stack(b.shape(), false)?;
        check_inner(&k.into(), &kb.into())?;
        let batch = broadcast::shape(&batch_a, &batch_b)?;
        let shape = result(batch.clone(), [m, n], [a.rank(), b.rank()]);
        let mut out = vec![0.0; element_count(&shape)?];
        if !out.is_empty() {
            let (x, y) = (float::read(a)?, float::read(b)?);
            let left = |i: usize, rows| Matrix::new(x.get(i * m * k..).unwrap_or_default(), rows, k);
            let right = |i: usize| Operand::Plain(Matrix::new(y.get(i * k * n..).unwrap_or_default(), k, n));
            if batch_b.iter().all(|&d| d == 1) && element_count(&batch)? == element_count(&batch_a)? {
                // One matrix on the right: the stack on the left is one tall matrix.
                let rows = out.len() / n;
                matmul(left(0, rows), right(0), false, &mut out, true);
            } else {
                let (at_a, at_b) =
                    (broadcast::offsets(&batch_a, &batch), broadcast::offsets(&batch_b, &batch));
                let few = at_a.len() < 2 * rayon::current_num_threads();
                let multiply = |(i, out): (usize, &mut [f32])| {
                    matmul(left(at_a[i], m), right(at_b[i]), false, out, few);
                };
                if few {
                    out.chunks_exact_mut(m * n).enumerate().for_each(multiply);
                } else {
                    out.par_chunks_exact_mut(m * n).enumerate().for_each(multiply);
                }
            }
        }
        Ok(vec![float::write(a.dtype(), &shape, out)?])
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        gradient::matmul(at)
    }

    fn quant(&self) -> Quant {
        Quant::Compute { weight: Some((1, 1)), bias: None }
    }

    fn macs(&self, inputs: &[&Fact], outputs: &[&Fact]) -> u64 {
        let inner = inputs[0].shape.last().and_then(Dim::known).unwrap_or(1);
        outputs[0].elements().saturating_mul(inner as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::op::Reading;
    use crate::ops::conv::tests::{assert_close, random};
    use crate::tensor::DType;

    /// NumPy's matmul, one element at a time.
    fn naive(a: &Tensor, b: &Tensor, shape: &[usize]) -> Vec<f32> {
        let (x, y): (&[f32], &[f32]) = (a.slice().unwrap(), b.slice().unwrap());
        let (batch_a, [m, k]) = stack(a.shape(), true).unwrap();
        let (batch_b, [_, n]) = stack(b.shape(), false).unwrap();
        let batch = broadcast::shape(&batch_a, &batch_b).unwrap();
        let flat = |own: &[usize], mut i: usize| {
            let (mut at, mut stride) = (0, 1);
            for (j, size) in batch.iter().enumerate().rev() {
                if let Some(j) = (j + own.len()).checked_sub(batch.len()) {
                    at += if own[j] == 1 { 0 } else { i % size * stride };
                    stride *= own[j];
                }
                i /= size;
            }
            at
        };
        (0..shape.iter().product())
            .map(|i| {
                let (p, r, c) = (i / (m * n), i / n % m, i % n);
                let (pa, pb) = (flat(&batch_a, p), flat(&batch_b, p));
                (0..k).map(|j| x[(pa * m + r) * k + j] * y[(pb * k + j) * n + c]).sum()
            })
            .collect()
    }

    #[test]
    fn matmul_equals_the_definition() {
        type Shape = &'static [usize];
        let cases: [(Shape, Shape, Shape); 15] = [
            (&[3, 4], &[4, 5], &[3, 5]),
            (&[4], &[4], &[]),
            (&[4], &[4, 5], &[5]),
            (&[3, 4], &[4], &[3]),
            (&[4], &[2, 4, 5], &[2, 5]),
            (&[2, 3, 4], &[4], &[2, 3]),
            (&[2, 3, 4], &[4, 5], &[2, 3, 5]),
            (&[2, 3, 4], &[2, 4, 5], &[2, 3, 5]),
            (&[3, 4], &[2, 4, 5], &[2, 3, 5]),
            (&[2, 1, 3, 4], &[5, 4, 6], &[2, 5, 3, 6]),
            (&[1, 3, 4], &[1, 1, 4, 5], &[1, 1, 3, 5]),
            (&[2, 0, 4], &[4, 5], &[2, 0, 5]),
            (&[2, 3, 0], &[0, 5], &[2, 3, 5]),
            (&[0, 3, 4], &[1, 4, 5], &[0, 3, 5]),
            (&[130, 70], &[70, 129], &[130, 129]),
        ];
        for (a, b, want) in cases {
            let (a, b) = (random(a, 1), random(b, 2));
            let y = MatMul.eval(&[&a, &b]).unwrap().remove(0);
            assert_eq!(y.shape(), want);
            assert_close(y.slice().unwrap(), &naive(&a, &b, want), &(&a, &b));
            let fact = MatMul.infer(&[&Fact::of(&a), &Fact::of(&b)]).unwrap().remove(0);
            assert_eq!(fact.known_shape().unwrap(), want);
        }
    }

    #[test]
    fn gemm_equals_the_definition() {
        let (m, n, k) = (5, 7, 4);
        let addends: [Option<&[usize]>; 7] =
            [None, Some(&[]), Some(&[1]), Some(&[7]), Some(&[5, 1]), Some(&[1, 7]), Some(&[5, 7])];
        for (i, shape) in addends.iter().enumerate() {
            for (alpha, beta, trans_a, trans_b) in [
                (1.0, 1.0, false, false),
                (0.5, -2.0, true, false),
                (1.0, 0.0, false, true),
                (2.0, 1.0, true, true),
            ] {
                let op = Gemm { alpha, beta, trans_a, trans_b };
                let a = random(&if trans_a { [k, m] } else { [m, k] }, 1);
                let b = random(&if trans_b { [n, k] } else { [k, n] }, 2);
                let c = shape.map(|s| random(s, 3 + i as u32));
                let inputs: Vec<&Tensor> = [&a, &b].into_iter().chain(&c).collect();
                let y = op.eval(&inputs).unwrap().remove(0);
                let (a, b): (&[f32], &[f32]) = (a.slice().unwrap(), b.slice().unwrap());
                let want: Vec<f32> = (0..m * n)
                    .map(|o| {
                        let (r, s) = (o / n, o % n);
                        let term = |j| {
                            let x = a[if trans_a { j * m + r } else { r * k + j }];
                            x * b[if trans_b { s * k + j } else { j * n + s }]
                        };
                        let c = c.as_ref().map_or(0.0, |c| {
                            let at = match c.shape() {
                                [7] | [1, 7] => s,
                                [5, 1] => r,
                                [5, 7] => o,
                                _ => 0,
                            };
                            c.slice::<f32>().unwrap()[at]
                        });
                        alpha * (0..k).map(term).sum::<f32>() + beta * c
                    })
                    .collect();
                assert_eq!(y.shape(), [m, n]);
                assert_close(y.slice().unwrap(), &want, &(op, shape));
            }
        }
    }

    #[test]
    fn threads_do_not_change_results() {
        let (a, b) = (random(&[3, 200, 300], 1), random(&[300, 250], 2));
        let stack = random(&[3, 300, 250], 2);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| [MatMul.eval(&[&a, &b]).unwrap(), MatMul.eval(&[&a, &stack]).unwrap()])
        };
        let one = run(1);
        for threads in [2, 3, 7] {
            assert!(run(threads) == one, "{threads} threads");
        }
    }

    #[test]
    fn symbolic_sizes_are_carried() {
        let named = |s: &str| Dim::Named(s.into());
        let x = Fact::new(DType::F32, vec![named("N"), named("T"), 8.into()]);
        let w = Fact::new(DType::F32, [8, 6]);
        let y = MatMul.infer(&[&x, &w]).unwrap().remove(0);
        assert_eq!(y.shape, [named("N"), named("T"), 6.into()]);
        assert_eq!(MatMul.macs(&[&x, &w], &[&y]), 48);
        let x = Fact::new(DType::F32, vec![named("N"), 8.into()]);
        let w = Fact::new(DType::F32, [6, 8]);
        let gemm = Gemm { trans_b: true, ..Gemm::default() };
        let y = gemm.infer(&[&x, &w]).unwrap().remove(0);
        assert_eq!(y.shape, [named("N"), 6.into()]);
        assert_eq!(gemm.macs(&[&x, &w], &[&y]), 48);
    }

    #[test]
    fn the_reader_takes_every_attribute() {
        let attributes = [
            ("alpha", Attribute::Float(0.5)),
            ("beta", Attribute::Float(2.0)),
            ("transA", Attribute::Int(1)),
            ("transB", Attribute::Int(1)),
        ];
        for n in 0..=4 {
            let map = attributes[..n].iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
            let mut r = Reading::new("Gemm", 13, map, vec![None; 2], 1);
            let op = READERS[0].1(&mut r).unwrap();
            r.finish().unwrap();
            assert_eq!(op.attributes(), attributes[..n]);
        }
    }

    #[test]
    fn gemm_is_quantized_where_it_is_a_layer() {
        let compute = |axis| Quant::Compute { weight: Some((1, axis)), bias: Some(2) };
        let cases = [
            (Gemm::default(), compute(1)),
            (Gemm { trans_b: true, ..Gemm::default() }, compute(0)),
            (Gemm { alpha: 2.0, ..Gemm::default() }, Quant::Float),
            (Gemm { beta: 0.0, ..Gemm::default() }, Quant::Float),
            (Gemm { trans_a: true, ..Gemm::default() }, Quant::Float),
        ];
        for (op, want) in cases {
            assert_eq!(op.quant(), want, "{op:?}");
        }
    }

    #[test]
    fn operands_that_do_not_fit_are_errors() {
        let cases: [(&dyn Op, &[&[usize]], &str); 6] = [
            (&MatMul, &[&[3, 4], &[5, 6]], "4 columns and 5 rows"),
            (&MatMul, &[&[2, 3, 4], &[3, 4, 6]], "do not broadcast"),
            (&MatMul, &[&[], &[4]], "scalar"),
            (&Gemm::default(), &[&[3, 4], &[5, 6]], "4 columns and 5 rows"),
            (&Gemm::default(), &[&[2, 3, 4], &[4, 6]], "needs matrices"),
            (&Gemm::default(), &[&[3, 4], &[4, 6], &[2, 3, 6]], "does not broadcast to [3, 6]"),
        ];
        for (op, shapes, want) in cases {
            let tensors: Vec<Tensor> = shapes.iter().map(|s| random(s, 1)).collect();
            let facts: Vec<Fact> = tensors.iter().map(Fact::of).collect();
            for result in [
                op.infer(&facts.iter().collect::<Vec<_>>()).map(|_| ()),
                op.eval(&tensors.iter().collect::<Vec<_>>()).map(|_| ()),
            ] {
                let message = result.unwrap_err().to_string();
                assert!(message.contains(want), "{shapes:?}: {message}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_stack_is_multiplied_as_its_matrices(
            batch in 1usize..5, m in 0usize..20, k in 0usize..20, n in 0usize..20,
        ) {
            let (a, b) = (random(&[batch, m, k], 1), random(&[batch, k, n], 2));
            let y = MatMul.eval(&[&a, &b]).unwrap().remove(0);
            assert_close(y.slice().unwrap(), &naive(&a, &b, &[batch, m, n]), &(batch, m, k, n));
        }
    }
}
