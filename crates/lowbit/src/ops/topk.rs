//! The greatest or least elements along an axis.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::op::{Attribute, Attributes, Dim, Fact, Op, ReadOp, Reading, Reverse, arity};
use crate::tensor::{DType, Element, Tensor};

use super::strided::{each_storage, permuted};
use super::symbolic::{self, output_shape};
use super::{axis, gather};

/// The `k` greatest (or least) elements along an axis, in order, and their
/// positions; of equal elements the first come first. `k` is input 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopK {
    /// The axis.
    pub axis: i64,
    /// Whether the greatest are taken, not the least.
    pub largest: bool,
}

impl TopK {
    fn read(a: &mut Reading) -> Result<Arc<dyn Op>> {
        // Without an order asked for, the sorted one is as good as any.
        a.ignore("sorted");
        if a.opset() < 10 {
            let k = a.int("k")?.ok_or_else(|| invalid!("attribute k is missing"))?;
            a.add_operand(1, Tensor::vector(vec![k]));
        }
        Ok(Arc::new(TopK { axis: a.int("axis")?.unwrap_or(-1), largest: a.flag("largest", true)? }))
    }

    /// Positions of the first `k` elements of a row in the wanted order.
    fn positions<T: Element + PartialOrd>(&self, row: &[T], k: usize) -> Vec<usize> {
        // NaN counts as the greatest.
        let order = |a: &T, b: &T| {
            a.partial_cmp(b).unwrap_or_else(|| {
                let nan = |x: &T| x.partial_cmp(x).is_none();
                nan(a).cmp(&nan(b))
            })
        };
        let mut positions: Vec<usize> = (0..row.len()).collect();
        positions.sort_by(|&i, &j| match order(&row[i], &row[j]) {
            Ordering::Equal => i.cmp(&j),
            other if self.largest => other.reverse(),
            other => other,
        });
        positions.truncate(k);
        positions
    }
}

impl Op for TopK {
    fn name(&self) -> &'static str {
        "TopK"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 2)?;
        let x = inputs[0];
        if x.dtype.storage() != x.dtype || x.dtype == DType::Bool {
            return Err(invalid!("takes numbers, found {}", x.dtype));
        }
        let at = axis::one(self.axis, x.rank())?;
        let [k] = symbolic::sizes(inputs[1], "k")? else {
            return Err(invalid!("k is not one number: {}", inputs[1]));
        };
        let size = x.shape[at].known().and_then(|n| i64::try_from(n).ok()).unwrap_or(i64::MAX);
        if k.as_integer().is_some_and(|k| k < 0 || k > size) {
            return Err(invalid!("k = {k} is not a number of elements along axis {at} of {x}"));
        }
        let mut shape: Vec<Dim> = x.shape.clone();
        shape[at] = k.clone();
        Ok(vec![x.with_shape(shape.clone()), Fact { dtype: DType::I64, shape, sizes: None }])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = output_shape(self, inputs, 0)?;
        let (x, at) = (inputs[0], axis::one(self.axis, shape.len())?);
        // The axis changes places with the last one, and back.
        let mut perm: Vec<usize> = (0..shape.len()).collect();
        perm.swap(at, shape.len() - 1);
        let rows = permuted(x, &perm)?;
        let (n, k) = (x.shape()[at], shape[at]);
        let moved: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
        each_storage!(x.dtype(), T => {
            let (mut values, mut indices) = (vec![], vec![]);
            for row in rows.slice::<T>()?.chunks_exact(n.max(1)) {
                for i in self.positions(row, k) {
                    values.push(row[i]);
                    indices.push(i as i64);
                }
            }
            Ok(vec![
                permuted(&Tensor::new(&moved, values)?, &perm)?,
                permuted(&Tensor::new(&moved, indices)?, &perm)?,
            ])
        })
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let x = at.inputs[0];
        let axis = axis::one(self.axis, x.rank())?;
        let indices = match at.outputs.get(1) {
            Some(&indices) => indices.clone(),
            None => self.eval(at.inputs)?.remove(1),
        };
        Ok(vec![Some(gather::added_up(at.gradient()?, &indices, axis, x.shape())?), None])
    }

    fn attributes(&self) -> Attributes {
        vec![("axis", Attribute::Int(self.axis)), ("largest", Attribute::Int(i64::from(self.largest)))]
    }
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[("TopK", TopK::read)];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{Case, check};

    #[test]
    fn the_first_elements_in_order_are_taken() {
        let x = Tensor::new(&[2, 3], vec![5i32, 1, 5, 0, 7, 2]).unwrap();
        let cases: [(i64, bool, i64, &[usize], &[i32], &[i64]); 5] = [
            (-1, true, 2, &[2, 2], &[5, 5, 7, 2], &[0, 2, 1, 2]),
            (1, false, 1, &[2, 1], &[1, 0], &[1, 0]),
            (0, true, 1, &[1, 3], &[5, 7, 5], &[0, 1, 0]),
            (0, false, 2, &[2, 3], &[0, 1, 2, 5, 7, 5], &[1, 0, 1, 0, 1, 0]),
            (1, true, 0, &[2, 0], &[], &[]),
        ];
        for (axis, largest, k, shape, values, indices) in cases {
            let found = TopK { axis, largest }.eval(&[&x, &Tensor::vector(vec![k])]).unwrap();
            let expected =
                [Tensor::new(shape, values.to_vec()).unwrap(), Tensor::new(shape, indices.to_vec()).unwrap()];
            assert_eq!(found, expected, "axis {axis}, k {k}");
        }
        let x = Tensor::vector(vec![1.0f32, f32::NAN, 2.0]);
        let found = TopK { axis: 0, largest: true }.eval(&[&x, &Tensor::vector(vec![3i64])]).unwrap();
        assert_eq!(found[1], Tensor::vector(vec![1i64, 2, 0]));
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let k = |k: i64| Tensor::vector(vec![k]);
        check(
            [(true, -1, 3), (false, 0, 1), (true, 1, 0)].map(|(largest, axis, n)| {
                Case::new(TopK { axis, largest }, &[&[4, 5]]).apart(0.06).and(k(n))
            }),
        );
    }

    #[test]
    fn a_k_that_does_not_fit_is_refused() {
        let x = Tensor::vector(vec![1.0f32, 2.0]);
        let op = TopK { axis: 0, largest: true };
        for k in [vec![3i64], vec![-1], vec![1, 1]] {
            assert!(op.eval(&[&x, &Tensor::vector(k)]).is_err());
        }
        assert!(op.eval(&[&Tensor::scalar(1.0f32), &Tensor::vector(vec![1i64])]).is_err());
    }

    #[test]
    fn an_older_k_becomes_an_operand() {
        let mut a = Reading::new("TopK", 9, [("k".to_string(), Attribute::Int(4))].into(), vec![None], 2);
        TopK::read(&mut a).unwrap();
        assert_eq!(a.finish().unwrap().1, [(1, Tensor::vector(vec![4i64]))]);
    }
}
