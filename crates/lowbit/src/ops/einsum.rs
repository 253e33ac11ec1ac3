//! `Einsum`: sums of products, written as an equation of labelled axes.

mod equation;
mod gradient;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::equation::{Axis, Equation};
use super::linear::MatMul;
use super::strided::{self, permuted};
use super::{float, reduce, symbolic};
use crate::error::{Result, invalid};
use crate::op::{Attribute, Attributes, Dim, Fact, Op, ReadOp, Reverse};
use crate::tensor::{DType, Tensor, element_count};

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[("Einsum", |r| {
    let equation = r.text("equation")?.ok_or_else(|| invalid!("attribute equation is missing"))?;
    Ok(Arc::new(Einsum::new(&equation)?))
})];

/// ONNX `Einsum`: the product of all operands, summed over the axes that the
/// result does not name. `bij,jk->bik` is a matrix product, `ii->i` a diagonal;
/// `...` stands for axes that broadcast. Without `->` the result has the axes
/// of the ellipsis, then the labels that occur once, in alphabetical order.
///
/// Operands are multiplied from left to right, two at a time: axes of only one
/// operand that nothing else reads are summed first, the others of the sum are
/// the inner axes of a [`MatMul`], and those of both operands its batch.
/// Computes in f32; other float types are converted and rounded back.
#[derive(Clone, Debug, PartialEq)]
pub struct Einsum {
    text: String,
    equation: Equation,
}

/// An operand, or a product of some: f32, with an axis for each dimension.
struct Value {
    axes: Vec<Axis>,
    x: Tensor,
}

/// The elements of the part of a shape that has these axes.
fn sizes_of(axes: &[Axis], sizes: &BTreeMap<Axis, usize>) -> Vec<usize> {
    axes.iter().map(|a| sizes[a]).collect()
}

impl Einsum {
    /// The operator of this equation.
    ///
    /// # Errors
    /// If it is not one.
    pub fn new(equation: &str) -> Result<Einsum> {
        let parsed = Equation::parse(equation).map_err(|e| e.at(format!("equation {equation:?}")))?;
        Ok(Einsum { text: equation.into(), equation: parsed })
    }

    /// The axes of each operand and of the result, and the size of each axis.
    fn resolved(&self, inputs: &[&Fact]) -> Result<(Vec<Vec<Axis>>, Vec<Axis>, BTreeMap<Axis, Dim>)> {
        let ranks: Vec<usize> = inputs.iter().map(|f| f.rank()).collect();
        let (terms, result) = self.equation.resolve(&ranks)?;
        let mut sizes: BTreeMap<Axis, Dim> = BTreeMap::new();
        for (term, fact) in terms.iter().zip(inputs) {
            let mut own: BTreeMap<Axis, &Dim> = BTreeMap::new();
            for (axis, size) in term.iter().zip(&fact.shape) {
                let other = own.insert(*axis, size).filter(|o| o.known().is_some() && size.known().is_some());
                if let Some(other) = other.filter(|o| *o != size) {
                    return Err(invalid!("{axis} is {other} and {size} in operand {fact}"));
                }
                let all = match sizes.get(axis) {
                    Some(other) => one_size(*axis, other, size)?,
                    None => size.clone(),
                };
                sizes.insert(*axis, all);
            }
        }
        Ok((terms, result, sizes))
    }

    fn infer_dims(&self, inputs: &[&Fact]) -> Result<Vec<Dim>> {
        let (_, result, sizes) = self.resolved(inputs)?;
        Ok(result.iter().map(|axis| sizes[axis].clone()).collect())
    }

    fn compute(&self, inputs: &[&Tensor]) -> Result<Value> {
        let facts = symbolic::facts(inputs);
        let (terms, result, sizes) = self.resolved(&facts.iter().collect::<Vec<_>>())?;
        let sizes: BTreeMap<Axis, usize> =
            sizes.into_iter().filter_map(|(axis, size)| Some((axis, size.known()?))).collect();
        element_count(&sizes_of(&result, &sizes))?;
        let mut product: Option<Value> = None;
        for (i, (term, t)) in terms.iter().zip(inputs).enumerate() {
            let operand = Value::of(term, t, &sizes)?;
            let kept = |a: Axis| result.contains(&a) || terms[i + 1..].iter().any(|term| term.contains(&a));
            product = Some(match product {
                None => operand.summed(kept)?,
                Some(left) => left.times(operand, kept, &sizes)?,
            });
        }
        let product = product.ok_or_else(|| invalid!("has no operands"))?.summed(|a| result.contains(&a))?;
        product.in_order(&result)
    }
}

/// The size of an axis that two operands have: 1 stretches to any.
fn one_size(axis: Axis, a: &Dim, b: &Dim) -> Result<Dim> {
    super::broadcast::dims(std::slice::from_ref(a), std::slice::from_ref(b))
        .map(|mut made| made.remove(0))
        .map_err(|_| invalid!("{axis} is {a} in one operand and {b} in another"))
}

impl Value {
    /// Operand `t`: of axes that it has twice the diagonal, and without axes of
    /// size 1 that stretch.
    fn of(term: &[Axis], t: &Tensor, sizes: &BTreeMap<Axis, usize>) -> Result<Value> {
        let x = match t.dtype() {
            DType::F32 => t.clone(),
            _ => Tensor::new(t.shape(), float::read(t)?.into_owned())?,
        };
        let (mut axes, mut shape, mut strides) = (vec![], vec![], vec![]);
        for ((axis, &size), stride) in term.iter().zip(t.shape()).zip(strided::contiguous(t.shape())) {
            if let Some(at) = axes.iter().position(|a| a == axis) {
                strides[at] += stride;
            } else if size == sizes[axis] {
                axes.push(*axis);
                shape.push(size);
                strides.push(stride);
            }
        }
        let is_whole = element_count(&shape)? == x.len();
        let x = if is_whole { x.reshaped(&shape)? } else { strided::view(&x, &shape, &strides, 0)? };
        Ok(Value { axes, x })
    }

    /// The same values with the axes in this order, a permutation.
    fn in_order(self, axes: &[Axis]) -> Result<Value> {
        let perm: Option<Vec<usize>> =
            axes.iter().map(|axis| self.axes.iter().position(|a| a == axis)).collect();
        let perm = perm.ok_or_else(|| invalid!("an axis of the result has no operand"))?;
        Ok(Value { axes: axes.to_vec(), x: permuted(&self.x, &perm)? })
    }

    /// The sum over the axes that are not kept, in f64.
    fn summed(self, kept: impl Fn(Axis) -> bool) -> Result<Value> {
        let (axes, gone): (Vec<Axis>, Vec<Axis>) = self.axes.iter().partition(|a| kept(**a));
        if gone.is_empty() {
            return Ok(self);
        }
        let Value { x, .. } = self.in_order(&[axes.clone(), gone].concat())?;
        let (shape, rest) = x.shape().split_at(axes.len());
        let (count, row) = (element_count(shape)?, rest.iter().product::<usize>());
        let x = x.slice::<f32>()?;
        let sum = |i: usize| reduce::sum(&x[i * row..][..row], |x| x) as f32;
        Ok(Value { axes, x: Tensor::new(shape, (0..count).map(sum).collect())? })
    }

    /// The product with `right`, summed over the axes that are not kept.
    fn times(
        self,
        right: Value,
        kept: impl Fn(Axis) -> bool,
        sizes: &BTreeMap<Axis, usize>,
    ) -> Result<Value> {
        let of_right = right.axes.clone();
        let left = self.summed(|a| kept(a) || of_right.contains(&a))?;
        let right = right.summed(|a| kept(a) || left.axes.contains(&a))?;
        let (both, rows): (Vec<Axis>, Vec<Axis>) = left.axes.iter().partition(|a| right.axes.contains(a));
        let cols: Vec<Axis> = right.axes.iter().filter(|a| !both.contains(a)).copied().collect();
        let (batch, inner): (Vec<Axis>, Vec<Axis>) = both.into_iter().partition(|a| kept(*a));
        let axes = [&batch[..], &rows, &cols].concat();
        let shape = sizes_of(&axes, sizes);
        element_count(&shape)?;
        let [b, m, k, n] = [&batch, &rows, &inner, &cols].map(|axes| sizes_of(axes, sizes).iter().product());
        let left = left.in_order(&[&batch[..], &rows, &inner].concat())?.x;
        let right = right.in_order(&[&batch[..], &inner, &cols].concat())?.x;
        let x = if inner.is_empty() {
            let (left, right) =
                ((left.slice::<f32>()?, &[b, m, 1][..]), (right.slice::<f32>()?, &[b, 1, n][..]));
            Tensor::new(&shape, strided::zip(&[b, m, n], left, right, |x, y| x * y)?)?
        } else {
            let made = MatMul.eval(&[&left.reshaped(&[b, m, k])?, &right.reshaped(&[b, k, n])?])?;
            made[0].reshaped(&shape)?
        };
        Ok(Value { axes, x })
    }
}

impl Op for Einsum {
    fn name(&self) -> &'static str {
        "Einsum"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        float::common("Einsum", inputs)?;
        let shape = self.infer_dims(inputs).map_err(|e| e.at(format!("equation {:?}", self.text)))?;
        Ok(vec![inputs[0].with_shape(shape)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let dtype = float::common("Einsum", &symbolic::facts(inputs).iter().collect::<Vec<_>>())?;
        let Value { x, .. } = self.compute(inputs).map_err(|e| e.at(format!("equation {:?}", self.text)))?;
        if dtype == DType::F32 {
            return Ok(vec![x]);
        }
        Ok(vec![float::write(dtype, x.shape(), x.slice()?.to_vec())?])
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        gradient::vjp(self, at).map_err(|e| e.at(format!("equation {:?}", self.text)))
    }

    fn attributes(&self) -> Attributes {
        vec![("equation", Attribute::Text(self.text.clone()))]
    }

    /// One for each element of the product of all operands.
    fn macs(&self, inputs: &[&Fact], _: &[&Fact]) -> u64 {
        match self.resolved(inputs) {
            Ok((terms, _, sizes)) if terms.len() > 1 => {
                sizes.values().fold(1, |n: u64, d| n.saturating_mul(d.known().unwrap_or(1) as u64))
            }
            _ => 0,
        }
    }
}
