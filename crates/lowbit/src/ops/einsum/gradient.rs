//! Gradients of `Einsum`.

use std::collections::BTreeMap;

use super::equation::Axis;
use super::{Einsum, Value, sizes_of};
use crate::error::Result;
use crate::op::Reverse;
use crate::ops::strided::{contiguous, placed, stretched};
use crate::ops::symbolic;
use crate::tensor::Tensor;

/// The gradient by an operand is itself an Einsum, of the gradient and the other
/// operands: summed over the axes that the operand lacks, or has stretched; the
/// same along axes of its own; and only on the diagonal of axes that it has twice.
pub(super) fn vjp(op: &Einsum, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let facts = symbolic::facts(at.inputs);
    let (terms, result, sizes) = op.resolved(&facts.iter().collect::<Vec<_>>())?;
    let sizes: BTreeMap<Axis, usize> =
        sizes.into_iter().filter_map(|(axis, size)| Some((axis, size.known()?))).collect();
    at.each(|i| {
        let (term, shape) = (&terms[i], at.inputs[i].shape());
        let mut product = Value::of(&result, at.gradient()?, &sizes)?;
        let own = |axis: Axis| term.iter().zip(shape).any(|(a, n)| *a == axis && *n == sizes[&axis]);
        let others: Vec<usize> = (0..terms.len()).filter(|k| *k != i).collect();
        for (at_other, &k) in others.iter().enumerate() {
            let later = |axis| others[at_other + 1..].iter().any(|k| terms[*k].contains(&axis));
            let other = Value::of(&terms[k], at.inputs[k], &sizes)?;
            product = product.times(other, |axis| own(axis) || later(axis), &sizes)?;
        }
        let product = product.summed(own)?;
        // The operand's axes, each once, and how far apart elements along them are.
        let (mut axes, mut strides): (Vec<Axis>, Vec<isize>) = (vec![], vec![]);
        for (axis, stride) in term.iter().zip(contiguous(shape)).filter(|(axis, _)| own(**axis)) {
            match axes.iter().position(|a| a == axis) {
                Some(at) => strides[at] += stride,
                None => {
                    axes.push(*axis);
                    strides.push(stride);
                }
            }
        }
        let found: Vec<Axis> = axes.iter().copied().filter(|a| product.axes.contains(a)).collect();
        let product = product.in_order(&found)?.x;
        let of_one: Vec<usize> = axes.iter().map(|a| if found.contains(a) { sizes[a] } else { 1 }).collect();
        let whole = stretched(&product.reshaped(&of_one)?, &sizes_of(&axes, &sizes))?;
        if whole.len() == at.inputs[i].len() {
            return whole.reshaped(shape);
        }
        placed(&whole, shape, &strides, 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{Case, check};

    #[test]
    fn gradients_are_those_of_differences() {
        let cases: [(&str, &[&[usize]]); 20] = [
            ("bij,jk->bik", &[&[2, 3, 4], &[4, 5]]),
            ("bhid,bhjd->bhij", &[&[2, 2, 3, 4], &[2, 2, 5, 4]]),
            ("bhij,bhjd->bhid", &[&[2, 2, 3, 5], &[2, 2, 5, 4]]),
            ("ij->ji", &[&[2, 3]]),
            ("ij->i", &[&[2, 3]]),
            ("ij->", &[&[2, 3]]),
            ("ii->i", &[&[3, 3]]),
            ("ii", &[&[3, 3]]),
            ("iji->j", &[&[3, 2, 3]]),
            ("i,j->ij", &[&[2], &[3]]),
            ("i,i->", &[&[5], &[5]]),
            ("ij,jk,kl->il", &[&[2, 3], &[3, 4], &[4, 2]]),
            ("ij,k->k", &[&[2, 3], &[4]]),
            ("ij,ij,j->i", &[&[2, 3], &[2, 3], &[3]]),
            ("...ij,...jk->...ik", &[&[2, 3, 4], &[1, 4, 5]]),
            ("...ij,...jk->...ik", &[&[2, 3, 4], &[4, 5]]),
            ("ij,jk->ik", &[&[2, 1], &[3, 4]]),
            ("ii,ij->j", &[&[3, 3], &[3, 2]]),
            ("ij,j->ij", &[&[2, 1], &[1]]),
            ("ij,jk->ik", &[&[2, 0], &[0, 4]]),
        ];
        check(cases.map(|(equation, shapes)| Case::new(Einsum::new(equation).unwrap(), shapes)));
    }
}
