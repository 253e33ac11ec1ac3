//! Gradients of matrix products: with `g = dL / d(A B)`, `g B^T` and `A^T g`.

use lowbit_kernels::Matrix;
use rayon::prelude::*;

use super::{Gemm, stack};
use crate::error::Result;
use crate::op::Reverse;
use crate::ops::broadcast;
use crate::ops::product::{Operand, matmul as multiply, transposed};
use crate::tensor::{Tensor, element_count};

/// `alpha g op(B)^T`, `alpha op(A)^T g` and `beta g`, transposed where the operand
/// is, and the last one summed over what was broadcast.
pub(super) fn gemm(op: &Gemm, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let g = at.gradient()?;
    let [a, b] = [at.inputs[0], at.inputs[1]].map(matrix);
    let (a, b, dy) = (a?, b?, matrix(g)?);
    let product = |left: Matrix, right: Operand, shape: &[usize]| {
        let mut out = vec![0.0; shape.iter().product()];
        multiply(left, right, true, &mut out, true);
        scaled(Tensor::new(shape, out)?, op.alpha)
    };
    let flip = |x: Matrix, f: &dyn Fn(Matrix) -> Result<Tensor>| {
        let [rows, cols] = x.size();
        f(Matrix::new(&transposed(x), cols, rows))
    };
    let shape = |i: usize| at.inputs[i].shape();
    // The second factor of a gradient, and whether it was given transposed.
    let second = |x, given: bool, wanted: bool| match given == wanted {
        true => Operand::Plain(x),
        false => Operand::Transposed(x),
    };
    at.each(|i| match i {
        0 if !op.trans_a => product(dy, second(b, op.trans_b, true), shape(0)),
        0 if op.trans_b => flip(b, &|b| product(b, Operand::Transposed(dy), shape(0))),
        0 => product(b, Operand::Transposed(dy), shape(0)),
        1 if op.trans_b => flip(dy, &|dy| product(dy, second(a, op.trans_a, false), shape(1))),
        1 if op.trans_a => product(a, Operand::Plain(dy), shape(1)),
        1 => flip(a, &|a| product(a, Operand::Plain(dy), shape(1))),
        // Left out, or without weight, it has no gradient.
        _ if op.beta == 0.0 || shape(i) == [0] => Tensor::full(shape(i), 0f32),
        _ => scaled(broadcast::summed_to(g.clone(), shape(i))?, op.beta),
    })
}

fn matrix(t: &Tensor) -> Result<Matrix<'_>> {
    Ok(Matrix::new(t.slice()?, t.shape()[0], t.shape()[1]))
}

fn scaled(t: Tensor, factor: f32) -> Result<Tensor> {
    if factor == 1.0 {
        return Ok(t);
    }
    let shape = t.shape().to_vec();
    let mut x = t.into_vec::<f32>()?;
    x.iter_mut().for_each(|x| *x *= factor);
    Tensor::new(&shape, x)
}

/// Each operand's gradient, summed over the matrices that it was stretched to.
pub(super) fn matmul(at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let (a, b, dy) = (at.inputs[0], at.inputs[1], at.gradient()?.slice::<f32>()?);
    let (batch_a, [m, k]) = stack(a.shape(), true)?;
    let (batch_b, [_, n]) = stack(b.shape(), false)?;
    let batch = broadcast::shape(&batch_a, &batch_b)?;
    let (x, y) = (a.slice::<f32>()?, b.slice::<f32>()?);
    if batch_b.iter().all(|&d| d == 1) && element_count(&batch)? == element_count(&batch_a)? {
        // One matrix on the right: the stack on the left is one tall matrix.
        let rows = element_count(&batch)? * m;
        return at.each(|i| {
            let mut out = vec![0.0; at.inputs[i].len()];
            let g = Matrix::new(dy, rows, n);
            if i == 0 {
                multiply(g, Operand::Transposed(Matrix::new(y, k, n)), true, &mut out, true);
            } else {
                let left = transposed(Matrix::new(x, rows, k));
                multiply(Matrix::new(&left, k, rows), Operand::Plain(g), true, &mut out, true);
            }
            Tensor::new(at.inputs[i].shape(), out)
        });
    }
    let (at_a, at_b) = (broadcast::offsets(&batch_a, &batch), broadcast::offsets(&batch_b, &batch));
    at.each(|i| {
        let own = if i == 0 { [m, k] } else { [k, n] };
        let size = own[0] * own[1];
        let mut out = vec![0.0; at_a.len() * size];
        let one = |(j, out): (usize, &mut [f32])| {
            let g = Matrix::new(&dy[j * m * n..], m, n);
            if i == 0 {
                let b = Matrix::new(&y[at_b[j] * k * n..], k, n);
                multiply(g, Operand::Transposed(b), true, out, false);
            } else {
                let left = transposed(Matrix::new(&x[at_a[j] * m * k..], m, k));
                multiply(Matrix::new(&left, k, m), Operand::Plain(g), true, out, false);
            }
        };
        if size > 0 {
            out.par_chunks_exact_mut(size).enumerate().for_each(one);
        }
        let shape = [&batch[..], &own[..]].concat();
        let own = [if i == 0 { &batch_a[..] } else { &batch_b[..] }, &own[..]].concat();
        broadcast::summed_to(Tensor::new(&shape, out)?, &own)?.reshaped(at.inputs[i].shape())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{Case, check};
    use crate::ops::linear::MatMul;

    #[test]
    fn gradients_are_those_of_differences() {
        let products: [[&[usize]; 2]; 11] = [
            [&[3, 4], &[4, 5]],
            [&[4], &[4]],
            [&[4], &[4, 5]],
            [&[3, 4], &[4]],
            [&[4], &[2, 4, 5]],
            [&[2, 3, 4], &[4]],
            [&[2, 3, 4], &[4, 5]],
            [&[2, 3, 4], &[2, 4, 5]],
            [&[3, 4], &[2, 4, 5]],
            [&[2, 1, 3, 4], &[5, 4, 6]],
            [&[60, 70], &[70, 55]],
        ];
        check(products.map(|shapes| Case::new(MatMul, &shapes)));
        let addends: [&[usize]; 5] = [&[], &[7], &[5, 1], &[1, 7], &[5, 7]];
        for (trans_a, trans_b) in [(false, false), (true, false), (false, true), (true, true)] {
            let a: [usize; 2] = if trans_a { [4, 5] } else { [5, 4] };
            let b: [usize; 2] = if trans_b { [7, 4] } else { [4, 7] };
            check([Case::new(Gemm { trans_a, trans_b, ..Gemm::default() }, &[&a, &b])]);
            let op = Gemm { alpha: 0.5, beta: -2.0, trans_a, trans_b };
            check(addends.map(|c| Case::new(op, &[&a, &b, c])));
            check([Case::new(Gemm { beta: 0.0, ..op }, &[&a, &b, &[7]])]);
        }
    }

    #[test]
    fn an_operand_without_elements_has_an_empty_gradient() {
        let (a, b, y) = ([2, 0, 3], [3, 4], [2, 0, 4]);
        let t = |shape: &[usize]| Tensor::full(shape, 1f32).unwrap();
        let (a, b, y) = (t(&a), t(&b), t(&y));
        let gradients = [Some(y.clone())];
        let at = Reverse { inputs: &[&a, &b], outputs: &[&y], gradients: &gradients, wanted: &[true, true] };
        assert_eq!(matmul(&at).unwrap(), [Some(a.clone()), Some(Tensor::full(&[3, 4], 0f32).unwrap())]);
    }
}
