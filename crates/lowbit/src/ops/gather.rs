//! Selection of elements by index.

use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::op::{Attribute, Attributes, Dim, Fact, Op, Quant, ReadOp, Reverse, arity};
use crate::parallel;
use crate::tensor::{DType, Tensor, element_count};

use super::axis;
use super::strided::{contiguous, each_storage};

/// Slices of input 0 along an axis, one for each element of input 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gather {
    /// The axis.
    pub axis: i64,
}

/// Elements of input 0, each at its own place but for the position along an
/// axis, which input 1 gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatherElements {
    /// The axis.
    pub axis: i64,
}

/// `i` as a position in a dimension of size `n`.
pub(crate) fn position(i: i64, n: usize) -> Result<usize> {
    axis::one(i, n).map_err(|_| invalid!("index {i} is out of range for size {n}"))
}

fn check_indices(dtype: DType) -> Result<()> {
    match dtype {
        DType::I64 | DType::I32 => Ok(()),
        other => Err(invalid!("indices are {other}, not int64 or int32")),
    }
}

impl Op for Gather {
    fn name(&self) -> &'static str {
        "Gather"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 2)?;
        let (x, indices) = (inputs[0], inputs[1]);
        check_indices(indices.dtype)?;
        let at = axis::one(self.axis, x.rank())?;
        let shape = [&x.shape[..at], &indices.shape, &x.shape[at + 1..]].concat();
        let sizes = match (&x.sizes, &indices.sizes, x.rank()) {
            (Some(all), Some(indices), 1) => indices
                .iter()
                .map(|i| all.get(position(i.as_integer()?, all.len()).ok()?).cloned())
                .collect::<Option<Vec<Dim>>>(),
            _ => None,
        };
        Ok(vec![x.with_shape(shape).with_sizes(sizes)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 2, 2)?;
        let (x, indices) = (inputs[0], inputs[1]);
        check_indices(indices.dtype())?;
        let at = axis::one(self.axis, x.rank())?;
        let n = x.shape()[at];
        let positions: Vec<usize> =
            indices.integers()?.into_iter().map(|i| position(i, n)).collect::<Result<_>>()?;
        let shape = [&x.shape()[..at], indices.shape(), &x.shape()[at + 1..]].concat();
        let outer: usize = x.shape()[..at].iter().product();
        let inner: usize = x.shape()[at + 1..].iter().product();
        each_storage!(x.dtype(), T => {
            let data = x.slice::<T>()?;
            let mut y = Vec::with_capacity(element_count(&shape)?);
            for o in 0..outer {
                for p in &positions {
                    let start = (o * n + p) * inner;
                    y.extend_from_slice(&data[start..start + inner]);
                }
            }
            Ok(vec![Tensor::coded(x.dtype(), &shape, y)?])
        })
    }

    /// The slices are added up where they come from, in order.
    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let (g, shape) = (at.gradient()?.slice::<f32>()?, at.inputs[0].shape());
        let axis = axis::one(self.axis, shape.len())?;
        let n = shape[axis];
        let positions: Vec<usize> =
            at.inputs[1].integers()?.into_iter().map(|i| position(i, n)).collect::<Result<_>>()?;
        let inner: usize = shape[axis + 1..].iter().product();
        let mut by = vec![0f32; element_count(shape)?];
        parallel::chunks(&mut by, n * inner, |o, by| {
            let slices = g[o * positions.len() * inner..].chunks_exact(inner.max(1));
            for (p, g) in positions.iter().zip(slices) {
                by[p * inner..][..inner].iter_mut().zip(g).for_each(|(by, g)| *by += g);
            }
        });
        Ok(vec![Some(Tensor::new(shape, by)?), None])
    }

    fn attributes(&self) -> Attributes {
        vec![("axis", Attribute::Int(self.axis))]
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

/// For each index, in order, the element of a tensor of this shape that
/// [`GatherElements`] takes.
fn sources(from: &[usize], indices: &Tensor, axis: usize) -> Result<Vec<usize>> {
    let (shape, strides) = (indices.shape(), contiguous(from));
    let mut index = vec![0; shape.len()];
    let mut sources = Vec::with_capacity(indices.len());
    for i in indices.integers()? {
        let others = index.iter().zip(&strides).enumerate().filter(|(k, _)| *k != axis);
        let base: usize = others.map(|(_, (i, s))| i * *s as usize).sum();
        sources.push(base + position(i, from[axis])? * strides[axis] as usize);
        for k in (0..shape.len()).rev() {
            index[k] += 1;
            if index[k] < shape[k] {
                break;
            }
            index[k] = 0;
        }
    }
    Ok(sources)
}

/// The f32 elements of `t` added up where [`GatherElements`] takes them from, in a
/// tensor of shape `to`.
///
/// # Errors
/// If an index is out of range, or `t` is not f32.
pub(super) fn added_up(t: &Tensor, indices: &Tensor, axis: usize, to: &[usize]) -> Result<Tensor> {
    let mut sums = vec![0f32; element_count(to)?];
    for (x, at) in t.slice::<f32>()?.iter().zip(sources(to, indices, axis)?) {
        sums[at] += x;
    }
    Tensor::new(to, sums)
}

impl Op for GatherElements {
    fn name(&self) -> &'static str {
        "GatherElements"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 2)?;
        let (x, indices) = (inputs[0], inputs[1]);
        check_indices(indices.dtype)?;
        let at = axis::one(self.axis, x.rank())?;
        if indices.rank() != x.rank() {
            return Err(invalid!("indices {indices} have not the rank of {x}"));
        }
        for (i, (d, n)) in indices.shape.iter().zip(&x.shape).enumerate() {
            if i != at && d.known().zip(n.known()).is_some_and(|(d, n)| d > n) {
                return Err(invalid!("indices {indices} are larger than {x} beside axis {at}"));
            }
        }
        Ok(vec![x.with_shape(indices.shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = super::symbolic::output_shape(self, inputs, 0)?;
        let (x, at) = (inputs[0], axis::one(self.axis, inputs[0].rank())?);
        let sources = sources(x.shape(), inputs[1], at)?;
        each_storage!(x.dtype(), T => {
            let data = x.slice::<T>()?;
            Ok(vec![Tensor::coded(x.dtype(), &shape, sources.iter().map(|&i| data[i]).collect())?])
        })
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let axis = axis::one(self.axis, at.inputs[0].rank())?;
        Ok(vec![Some(added_up(at.gradient()?, at.inputs[1], axis, at.inputs[0].shape())?), None])
    }

    fn attributes(&self) -> Attributes {
        vec![("axis", Attribute::Int(self.axis))]
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("Gather", |a| Ok(Arc::new(Gather { axis: a.int("axis")?.unwrap_or(0) }))),
    ("GatherElements", |a| Ok(Arc::new(GatherElements { axis: a.int("axis")?.unwrap_or(0) }))),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{Case, check};

    #[test]
    fn elements_are_selected() {
        let x = Tensor::new(&[2, 3], vec![1u8, 2, 3, 4, 5, 6]).unwrap();
        let i = |shape: &[usize], x: &[i64]| Tensor::new(shape, x.to_vec()).unwrap();
        let cases: [(&dyn Op, Tensor, &[usize], &[u8]); 6] = [
            (&Gather { axis: 0 }, i(&[], &[-1]), &[3], &[4, 5, 6]),
            (&Gather { axis: 1 }, i(&[2], &[2, 0]), &[2, 2], &[3, 1, 6, 4]),
            (&Gather { axis: -1 }, i(&[1, 2], &[0, 1]), &[2, 1, 2], &[1, 2, 4, 5]),
            (&Gather { axis: 0 }, i(&[0], &[]), &[0, 3], &[]),
            (&GatherElements { axis: 1 }, i(&[2, 2], &[0, -1, 2, 1]), &[2, 2], &[1, 3, 6, 5]),
            (&GatherElements { axis: 0 }, i(&[1, 3], &[1, 0, 1]), &[1, 3], &[4, 2, 6]),
        ];
        for (op, indices, shape, expected) in cases {
            let inferred = op.infer(&[&Fact::of(&x), &Fact::of(&indices)]).unwrap();
            assert_eq!(inferred[0].known_shape().unwrap(), shape, "{op:?}");
            let expected = Tensor::new(shape, expected.to_vec()).unwrap();
            assert_eq!(op.eval(&[&x, &indices]).unwrap(), [expected], "{op:?}");
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let i = |shape: &[usize], x: &[i64]| Tensor::new(shape, x.to_vec()).unwrap();
        check([
            Case::new(Gather { axis: 0 }, &[&[5, 3]]).and(i(&[2, 3], &[4, 0, 4, -1, 2, 4])),
            Case::new(Gather { axis: 1 }, &[&[2, 3]]).and(i(&[], &[-2])),
            Case::new(Gather { axis: 1 }, &[&[2, 3, 4]]).and(i(&[4], &[2, 2, 1, 2])),
            Case::new(Gather { axis: 0 }, &[&[2, 3]]).and(i(&[0], &[])),
            Case::new(GatherElements { axis: 1 }, &[&[2, 3]]).and(i(&[2, 4], &[0, -1, 2, 2, 1, 1, 1, 0])),
            Case::new(GatherElements { axis: 0 }, &[&[3, 2, 2]]).and(i(&[2, 1, 2], &[2, 0, 2, 1])),
        ]);
    }

    #[test]
    fn indices_that_do_not_fit_are_refused() {
        let x = Tensor::new(&[2, 3], vec![1u8, 2, 3, 4, 5, 6]).unwrap();
        let i = |shape: &[usize], x: &[i64]| Tensor::new(shape, x.to_vec()).unwrap();
        let cases: [(&dyn Op, Tensor); 8] = [
            (&Gather { axis: 0 }, i(&[1], &[2])),
            (&Gather { axis: 0 }, i(&[1], &[i64::MIN])),
            (&Gather { axis: 2 }, i(&[1], &[0])),
            (&Gather { axis: 0 }, Tensor::vector(vec![0.0f32])),
            (&GatherElements { axis: 1 }, i(&[2, 1], &[3, 0])),
            (&GatherElements { axis: 1 }, i(&[3, 1], &[0, 0, 0])),
            (&GatherElements { axis: 1 }, i(&[1], &[0])),
            (&GatherElements { axis: 0 }, Tensor::vector(vec![0u8])),
        ];
        for (op, indices) in cases {
            assert!(op.eval(&[&x, &indices]).is_err(), "{op:?} by {indices:?}");
        }
    }
}
