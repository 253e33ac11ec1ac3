//! Shapes: reading them, and giving the same elements another one.

mod dropout;

use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::op::{
    Attribute, Attributes, Dim, Fact, Op, Operand, Prepared, Quant, ReadOp, Reading, Reverse, arity,
    optional_fact,
};
use crate::tensor::{DType, Tensor};

pub use dropout::Dropout;

use super::symbolic::{self, output_shape};
use super::{axis, broadcast, strided};

/// The gradient by operand 0 of an operator that gives it another shape.
fn reshaped_back(at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
    at.each(|_| at.gradient()?.reshaped(at.inputs[0].shape()))
}

/// Input 0 with the shape that input 1 lists: 0 keeps the input's size, and
/// one -1 becomes whatever keeps the number of elements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reshape {
    /// Whether a 0 means an empty dimension instead.
    pub allowzero: bool,
}

impl Reshape {
    fn target(self, from: &[Dim], wanted: &[Dim]) -> Result<Vec<Dim>> {
        let mut free = None;
        let mut shape = vec![];
        for (i, d) in wanted.iter().enumerate() {
            shape.push(match d.as_integer() {
                Some(0) if !self.allowzero => from.get(i).cloned().ok_or_else(|| {
                    invalid!("size 0 at {i} keeps a dimension that the input of rank {} lacks", from.len())
                })?,
                Some(-1) if free.is_some() => return Err(invalid!("more than one size is -1")),
                Some(-1) => {
                    free = Some(i);
                    Dim::Known(1)
                }
                Some(x) if x < 0 => return Err(invalid!("size {x} is negative")),
                _ => d.clone(),
            });
        }
        if let Some(i) = free {
            let rest: Vec<&Dim> = shape.iter().enumerate().filter(|(k, _)| *k != i).map(|(_, d)| d).collect();
            shape[i] = symbolic::missing_size(from, &rest)?;
        }
        let (had, has) = (symbolic::product(from), symbolic::product(&shape));
        if had.known().is_some() && has.known().is_some() && had != has {
            return Err(invalid!("{had} elements do not fit a shape of {has}"));
        }
        Ok(shape)
    }
}

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "Reshape"
    }

    fn opset(&self) -> i64 {
        if self.allowzero { 14 } else { 13 }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 2)?;
        let x = inputs[0];
        // An empty list of sizes is a scalar's shape.
        let wanted = if inputs[1].is_absent() { &[] } else { symbolic::sizes(inputs[1], "shape")? };
        Ok(vec![x.with_shape(self.target(&x.shape, wanted)?).with_sizes(x.sizes.clone())])
    }

    fn prepare(&self, _operands: &[Operand<'_>]) -> Result<Prepared> {
        Ok(Prepared::Alias)
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        reshaped_back(at)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].reshaped(&output_shape(self, inputs, 0)?)?])
    }

    fn attributes(&self) -> Attributes {
        if self.allowzero { vec![("allowzero", Attribute::Int(1))] } else { vec![] }
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

/// The dimensions before `axis` as one, and those from it on as another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flatten {
    /// The first dimension of the second group.
    pub axis: i64,
}

impl Op for Flatten {
    fn name(&self) -> &'static str {
        "Flatten"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        let x = inputs[0];
        // The axis may also be the rank itself.
        let at = if self.axis == x.rank() as i64 { x.rank() } else { axis::one(self.axis, x.rank())? };
        let (rows, columns) = x.shape.split_at(at);
        Ok(vec![x.with_shape(vec![symbolic::product(rows), symbolic::product(columns)])])
    }

    fn prepare(&self, _operands: &[Operand<'_>]) -> Result<Prepared> {
        Ok(Prepared::Alias)
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        reshaped_back(at)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].reshaped(&output_shape(self, inputs, 0)?)?])
    }

    fn attributes(&self) -> Attributes {
        vec![("axis", Attribute::Int(self.axis))]
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

/// Input 0 without the dimensions of size 1 that input 1 lists, or without
/// any if there is no input 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Squeeze;

impl Op for Squeeze {
    fn name(&self) -> &'static str {
        "Squeeze"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 2)?;
        let x = inputs[0];
        let gone = match optional_fact(inputs, 1) {
            Some(axes) => axis::mask(&symbolic::integers(axes, "axes")?, x.rank())?,
            None => x.shape.iter().map(|d| *d == Dim::Known(1)).collect(),
        };
        if let Some((i, d)) =
            x.shape.iter().enumerate().find(|(i, d)| gone[*i] && d.known().is_some_and(|n| n != 1))
        {
            return Err(invalid!("dimension {i} has size {d}, not 1"));
        }
        let kept = x.shape.iter().zip(gone).filter(|(_, gone)| !gone).map(|(d, _)| d.clone());
        Ok(vec![x.with_shape(kept.collect()).with_sizes(x.sizes.clone())])
    }

    fn prepare(&self, _operands: &[Operand<'_>]) -> Result<Prepared> {
        Ok(Prepared::Alias)
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        reshaped_back(at)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].reshaped(&output_shape(self, inputs, 0)?)?])
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

/// Input 0 with dimensions of size 1 at the positions, in the output, that
/// input 1 lists.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unsqueeze;

impl Op for Unsqueeze {
    fn name(&self) -> &'static str {
        "Unsqueeze"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 2)?;
        let (x, axes) = (inputs[0], symbolic::integers(inputs[1], "axes")?);
        let new = axis::mask(&axes, x.rank() + axes.len())?;
        let mut old = x.shape.iter().cloned();
        let shape = new.into_iter().map(|new| if new { Some(Dim::Known(1)) } else { old.next() });
        let shape = shape.collect::<Option<_>>().ok_or_else(|| invalid!("axes {axes:?} do not fit {x}"))?;
        Ok(vec![x.with_shape(shape).with_sizes(x.sizes.clone())])
    }

    fn prepare(&self, _operands: &[Operand<'_>]) -> Result<Prepared> {
        Ok(Prepared::Alias)
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        reshaped_back(at)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].reshaped(&output_shape(self, inputs, 0)?)?])
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

/// Reads the attribute `axes` of opset < 13 into operand 1.
fn axes_operand(a: &mut Reading) -> Result<()> {
    if a.opset() < 13
        && let Some(axes) = a.ints("axes")?
    {
        a.add_operand(1, Tensor::vector(axes));
    }
    Ok(())
}

/// Input 0 broadcast to the shape that input 1 lists; a size of 1 there keeps
/// the input's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expand;

impl Op for Expand {
    fn name(&self) -> &'static str {
        "Expand"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 2)?;
        let x = inputs[0];
        let wanted = if inputs[1].is_absent() { &[] } else { symbolic::sizes(inputs[1], "shape")? };
        if let Some(d) = wanted.iter().find(|d| d.as_integer().is_some_and(|x| x < 0)) {
            return Err(invalid!("size {d} in shape is negative"));
        }
        Ok(vec![x.with_shape(broadcast::dims(&x.shape, wanted)?)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![strided::stretched(inputs[0], &output_shape(self, inputs, 0)?)?])
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        at.each(|_| broadcast::summed_to(at.gradient()?.clone(), at.inputs[0].shape()))
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

/// The sizes of the dimensions `start..end` of the input, clamped to its rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// The first dimension, from the end if negative.
    pub start: i64,
    /// The dimension after the last one, from the end if negative.
    pub end: Option<i64>,
}

impl Op for Shape {
    fn name(&self) -> &'static str {
        "Shape"
    }

    fn opset(&self) -> i64 {
        if (self.start, self.end) == (0, None) { 13 } else { 15 }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        let rank = inputs[0].rank() as i64;
        let clamp = |x: i64| if x < 0 { x.saturating_add(rank) } else { x }.clamp(0, rank) as usize;
        let (start, end) = (clamp(self.start), clamp(self.end.unwrap_or(rank)));
        let sizes = inputs[0].shape.get(start..end).unwrap_or_default().to_vec();
        // A dimension that is named like a number is not that number.
        let plain = sizes.iter().all(|d| d.known().is_some() || d.as_integer().is_none());
        Ok(vec![Fact::new(DType::I64, [sizes.len()]).with_sizes(plain.then_some(sizes))])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let fact = self.infer(&[&Fact::of(inputs[0])])?.remove(0);
        Ok(vec![Tensor::vector(symbolic::integers(&fact, "shape")?)])
    }

    fn attributes(&self) -> Attributes {
        let mut all = vec![];
        if self.start != 0 {
            all.push(("start", Attribute::Int(self.start)));
        }
        if let Some(end) = self.end {
            all.push(("end", Attribute::Int(end)));
        }
        all
    }
}

/// The number of elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size;

impl Op for Size {
    fn name(&self) -> &'static str {
        "Size"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        let n = symbolic::product(&inputs[0].shape);
        Ok(vec![Fact::new(DType::I64, [0usize; 0]).with_sizes(Some(vec![n]))])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, 1)?;
        Ok(vec![Tensor::scalar(inputs[0].len() as i64)])
    }
}

/// The input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Identity;

impl Op for Identity {
    fn name(&self) -> &'static str {
        "Identity"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        Ok(vec![inputs[0].clone()])
    }

    fn prepare(&self, _operands: &[Operand<'_>]) -> Result<Prepared> {
        Ok(Prepared::Alias)
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        reshaped_back(at)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, 1)?;
        Ok(vec![inputs[0].clone()])
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("Reshape", |a| Ok(Arc::new(Reshape { allowzero: a.flag("allowzero", false)? }))),
    ("Flatten", |a| Ok(Arc::new(Flatten { axis: a.int("axis")?.unwrap_or(1) }))),
    ("Squeeze", |a| axes_operand(a).map(|()| Arc::new(Squeeze) as Arc<dyn Op>)),
    ("Unsqueeze", |a| axes_operand(a).map(|()| Arc::new(Unsqueeze) as Arc<dyn Op>)),
    ("Expand", |_| Ok(Arc::new(Expand))),
    ("Shape", |a| Ok(Arc::new(Shape { start: a.int("start")?.unwrap_or(0), end: a.int("end")? }))),
    ("Size", |_| Ok(Arc::new(Size))),
    ("Identity", |_| Ok(Arc::new(Identity))),
    ("Dropout", Dropout::read),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Builder;
    use crate::ops::differences::{Case, check};

    fn dims(s: &str) -> Vec<Dim> {
        s.split_whitespace().map(|d| d.parse().map_or_else(|_| Dim::Named(d.into()), Dim::integer)).collect()
    }

    fn list(s: &str) -> Fact {
        Fact::new(DType::I64, [dims(s).len()]).with_sizes(Some(dims(s)))
    }

    #[test]
    fn shapes_are_inferred() {
        let reshape = Reshape { allowzero: false };
        let zero = Reshape { allowzero: true };
        let cases: [(&dyn Op, &str, Option<&str>, Option<&str>); 28] = [
            (&reshape, "N 2 8", Some("0 -1"), Some("N 16")),
            (&reshape, "N 2 8", Some("N -1"), Some("N 16")),
            (&reshape, "N 2 8", Some("-1 8"), Some("(N*2) 8")),
            (&reshape, "N 2 8", Some("-1 16"), Some("N 16")),
            (&reshape, "2 3", Some("3 2"), Some("3 2")),
            (&reshape, "2 3", Some("4 2"), None),
            (&reshape, "2 3", Some("-1 -1"), None),
            (&reshape, "2 3", Some("-2 3"), None),
            (&reshape, "2 3", Some("2 3 0"), None),
            (&reshape, "0 3", Some("0 -1"), None),
            (&reshape, "2 3", Some("-1 4"), None),
            (&zero, "0 3", Some("3 0"), Some("3 0")),
            (&zero, "2 3", Some("0 6"), None),
            (&Flatten { axis: 1 }, "N 2 8", None, Some("N 16")),
            (&Flatten { axis: -1 }, "N 2 8", None, Some("(N*2) 8")),
            (&Flatten { axis: 3 }, "N 2 8", None, Some("(N*16) 1")),
            (&Flatten { axis: 4 }, "N 2 8", None, None),
            (&Squeeze, "N 1 8 1", None, Some("N 8")),
            (&Squeeze, "N 1 8 1", Some("-1"), Some("N 1 8")),
            (&Squeeze, "N 1 8 1", Some("2"), None),
            (&Squeeze, "N 1", Some("1 -1"), None),
            (&Unsqueeze, "N 8", Some("0 -1"), Some("1 N 8 1")),
            (&Unsqueeze, "N 8", Some("3"), None),
            (&Unsqueeze, "N 8", Some("0 0"), None),
            (&Expand, "N 1", Some("3 1 5"), Some("3 N 5")),
            (&Expand, "2 1", Some("3 5"), None),
            (&Expand, "2 1", Some("-1 5"), None),
            (&Identity, "N 1", None, Some("N 1")),
        ];
        let mut failures = vec![];
        for (op, x, operand, expected) in cases {
            let x = Fact::new(DType::F32, dims(x));
            let operand = operand.map(list);
            let inputs: Vec<&Fact> = std::iter::once(&x).chain(&operand).collect();
            let found = op.infer(&inputs).ok().map(|f| f[0].shape.clone());
            if found != expected.map(dims) {
                failures.push(format!("{op:?} of {x} by {operand:?}: {found:?}, not {expected:?}"));
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    #[test]
    fn hostile_sizes_are_refused() {
        let x = Fact::new(DType::F32, [2usize, 3]);
        let long = Fact::new(DType::I64, [100usize]);
        for op in [&Reshape::default() as &dyn Op, &Squeeze, &Unsqueeze, &Expand] {
            assert!(op.infer(&[&x, &long]).is_err(), "{op:?}");
            assert!(op.infer(&[&x, &list(&format!("{}", i64::MIN))]).is_err(), "{op:?}");
        }
        let x = Tensor::scalar(1.0f32);
        assert!(Expand.eval(&[&x, &Tensor::vector(vec![i64::MAX, 2])]).is_err());
    }

    #[test]
    fn values_keep_their_order() {
        let x = Tensor::new(&[2, 1, 2], vec![1u8, 2, 3, 4]).unwrap();
        let i = |x: &[i64]| Tensor::vector(x.to_vec());
        let cases: [(&dyn Op, Option<Tensor>, &[usize], &[u8]); 5] = [
            (&Reshape::default(), Some(i(&[-1])), &[4], &[1, 2, 3, 4]),
            (&Flatten { axis: 0 }, None, &[1, 4], &[1, 2, 3, 4]),
            (&Squeeze, None, &[2, 2], &[1, 2, 3, 4]),
            (&Unsqueeze, Some(i(&[0])), &[1, 2, 1, 2], &[1, 2, 3, 4]),
            (&Expand, Some(i(&[2, 1])), &[2, 2, 2], &[1, 2, 1, 2, 3, 4, 3, 4]),
        ];
        for (op, operand, shape, expected) in cases {
            let inputs: Vec<&Tensor> = std::iter::once(&x).chain(&operand).collect();
            assert_eq!(op.eval(&inputs).unwrap(), [Tensor::new(shape, expected.to_vec()).unwrap()], "{op:?}");
        }
        let scalar = Reshape::default().eval(&[&Tensor::vector(vec![7i32]), &i(&[])]).unwrap();
        assert_eq!(scalar, [Tensor::scalar(7i32)]);
        assert_eq!(Size.eval(&[&x]).unwrap(), [Tensor::scalar(4i64)]);
    }

    #[test]
    fn shape_takes_a_range_of_dimensions() {
        let x = Tensor::full(&[2, 3, 4], 0u8).unwrap();
        let cases: [(i64, Option<i64>, &[i64]); 5] = [
            (0, None, &[2, 3, 4]),
            (1, None, &[3, 4]),
            (-1, None, &[4]),
            (-9, Some(-1), &[2, 3]),
            (2, Some(1), &[]),
        ];
        for (start, end, expected) in cases {
            let y = Shape { start, end }.eval(&[&x]).unwrap();
            assert_eq!(y, [Tensor::vector(expected.to_vec())]);
        }
        let odd = Fact::new(DType::F32, [Dim::Named("-1".into())]);
        assert_eq!(Shape { start: 0, end: None }.infer(&[&odd]).unwrap()[0].sizes, None);
    }

    #[test]
    fn older_axes_become_an_operand() {
        let attributes = [("axes".to_string(), Attribute::Ints(vec![0]))];
        let mut a = Reading::new("Squeeze", 11, attributes.clone().into(), vec![None], 1);
        axes_operand(&mut a).unwrap();
        assert_eq!(a.finish().unwrap().1, [(1, Tensor::vector(vec![0i64]))]);
        let mut a = Reading::new("Squeeze", 13, attributes.into(), vec![None], 1);
        axes_operand(&mut a).unwrap();
        assert!(a.finish().is_err());
    }

    /// What exporters write for `x.view(x.size(0), -1)`, with a dynamic batch.
    #[test]
    fn a_chain_of_shape_arithmetic_is_followed() {
        use super::super::gather::Gather;
        use super::super::layout::Concat;
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, dims("N 2 256")));
        let zero = b.constant("zero", Tensor::scalar(0i64));
        let axes = b.constant("axes", Tensor::vector(vec![0i64]));
        let minus = b.constant("minus", Tensor::vector(vec![-1i64]));
        let shape = b.apply("shape", Arc::new(Shape { start: 0, end: None }), &[x]).unwrap();
        let n = b.apply("n", Arc::new(Gather { axis: 0 }), &[shape, zero]).unwrap();
        let n = b.apply("list", Arc::new(Unsqueeze), &[n, axes]).unwrap();
        let wanted = b.apply("wanted", Arc::new(Concat { axis: 0 }), &[n, minus]).unwrap();
        let y = b.apply("y", Arc::new(Reshape::default()), &[x, wanted]).unwrap();
        assert_eq!(b.fact(y).shape, dims("N 512"));
        let g = b.finish([("y".to_string(), y)]).unwrap();
        let out = g.run(&[Tensor::full(&[3, 2, 256], 1.0f32).unwrap()]).unwrap();
        assert_eq!(out[0].shape(), [3, 512]);
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let list = |x: &[i64]| Tensor::vector(x.to_vec());
        check([
            Case::new(Reshape::default(), &[&[2, 3, 4]]).and(list(&[4, -1])),
            Case::new(Flatten { axis: 1 }, &[&[2, 3, 4]]),
            Case::new(Squeeze, &[&[2, 1, 3, 1]]),
            Case::new(Squeeze, &[&[2, 1, 3, 1]]).and(list(&[1])),
            Case::new(Unsqueeze, &[&[2, 3]]).and(list(&[0, -1])),
            Case::new(Identity, &[&[5]]),
            Case::new(Expand, &[&[3, 1]]).and(list(&[2, 1, 4])),
            Case::new(Expand, &[&[1, 3]]).and(list(&[5, 3])),
            Case::new(Expand, &[&[2, 1, 3, 1]]).and(list(&[4, 1, 1])),
            Case::new(Expand, &[&[]]).and(list(&[2, 200])),
        ]);
    }
}
