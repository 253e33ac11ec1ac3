//! Elements added to, or cut from, the ends of dimensions.

use std::sync::Arc;

use crate::error::{Error, Result, invalid};
use crate::op::{
    Attribute, Attributes, Dim, Fact, Op, Operand, Prepared, Quant, ReadOp, Reading, Reverse, Routine, View,
    ViewMut, arity,
};
use crate::parallel;
use crate::tensor::{Element, Tensor, element_count};

use super::axis;
use super::strided::{contiguous, each_storage};
use super::symbolic::{self, output_shape};

/// What added elements are.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq)]
pub enum Fill {
    /// One value of the input's type; 0 if none is given.
    Constant(Option<Tensor>),
    /// The elements mirrored at the outermost one, which is not repeated.
    Reflect,
    /// The outermost element.
    Edge,
}

/// The input with `begin` elements added before and `end` after along each
/// axis; negative counts cut elements away.
#[derive(Clone, Debug, PartialEq)]
pub struct Pad {
    /// The begins of all axes, then the ends.
    pub pads: Vec<i64>,
    /// The axes; all of them in order if left out.
    pub axes: Option<Vec<i64>>,
    /// What is added.
    pub fill: Fill,
}

impl Pad {
    /// Begin and end of each of `rank` dimensions.
    fn of_rank(&self, rank: usize) -> Result<Vec<(i64, i64)>> {
        let axes = self.axes.clone().unwrap_or_else(|| (0..rank as i64).collect());
        axis::mask(&axes, rank)?;
        if self.pads.len() != 2 * axes.len() {
            return Err(invalid!(
                "{} pads are not a begin and an end for {} axes",
                self.pads.len(),
                axes.len()
            ));
        }
        let mut all = vec![(0, 0); rank];
        for (i, &a) in axes.iter().enumerate() {
            all[axis::one(a, rank)?] = (self.pads[i], self.pads[axes.len() + i]);
        }
        if self.pads.iter().any(|p| p.unsigned_abs() > 1 << 32) {
            return Err(invalid!("pads {:?} hold a huge count", self.pads));
        }
        Ok(all)
    }

    /// Where each output position of a dimension of size `n` comes from;
    /// nothing for the constant.
    fn sources(&self, n: usize, begin: i64, size: usize) -> Result<Vec<Option<usize>>> {
        let n = n as i64;
        if n == 0 && size > 0 && !matches!(self.fill, Fill::Constant(_)) {
            return Err(invalid!("an empty dimension has no element to pad with"));
        }
        Ok((0..size as i64)
            .map(|i| {
                let at = i - begin;
                let at = match self.fill {
                    Fill::Constant(_) => return usize::try_from(at).ok().filter(|_| at < n),
                    Fill::Edge => at.clamp(0, n - 1),
                    Fill::Reflect if n == 1 => 0,
                    Fill::Reflect => {
                        let period = 2 * (n - 1);
                        let at = at.rem_euclid(period);
                        at.min(period - at)
                    }
                };
                usize::try_from(at).ok()
            })
            .collect())
    }

    fn read(a: &mut Reading) -> Result<Arc<dyn Op>> {
        let (pads, axes, value) = if a.opset() < 11 {
            let value = a.float("value", 0.0)?;
            let value = (value != 0.0).then(|| Tensor::scalar(value));
            (a.ints("pads")?, None, value)
        } else {
            let integers = |t: Option<Tensor>| t.map(|t| t.integers()).transpose();
            let pads = integers(a.take_constant(1)?)?;
            let value = a.take_constant(2)?;
            (pads, integers(a.take_constant(3)?)?, value)
        };
        let fill = match a.text("mode")?.as_deref() {
            None | Some("constant") => Fill::Constant(value),
            Some("reflect") => Fill::Reflect,
            Some("edge") => Fill::Edge,
            Some(other) => return Err(Error::unsupported("Pad", format!("attribute mode = {other:?}"))),
        };
        let pads = pads.ok_or_else(|| invalid!("pads are missing"))?;
        Ok(Arc::new(Pad { pads, axes, fill }))
    }
}

impl Op for Pad {
    fn name(&self) -> &'static str {
        "Pad"
    }

    fn opset(&self) -> i64 {
        if self.axes.is_some() { 18 } else { 13 }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        let x = inputs[0];
        if let Fill::Constant(Some(value)) = &self.fill
            && (value.dtype() != x.dtype || value.len() != 1)
        {
            return Err(invalid!("the constant {value:?} is not one element of type {}", x.dtype));
        }
        let mut shape = vec![];
        for (d, (begin, end)) in x.shape.iter().zip(self.of_rank(x.rank())?) {
            let size = symbolic::add(d, &Dim::integer(begin + end));
            if size.as_integer().is_some_and(|n| n < 0) {
                return Err(invalid!("pads {begin} and {end} cut more than the size {d}"));
            }
            shape.push(size);
        }
        Ok(vec![x.with_shape(shape)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = output_shape(self, inputs, 0)?;
        let x = inputs[0];
        if element_count(&shape)? == 0 {
            // Another dimension may be of any size.
            return each_storage!(x.dtype(), T => Ok(vec![Tensor::coded::<T>(x.dtype(), &shape, vec![])?]));
        }
        let pads = self.of_rank(x.rank())?;
        let sources: Vec<Vec<Option<usize>>> =
            (0..x.rank()).map(|i| self.sources(x.shape()[i], pads[i].0, shape[i])).collect::<Result<_>>()?;
        let zero;
        let value = match &self.fill {
            Fill::Constant(Some(value)) => value,
            _ => {
                zero = super::cast::cast(&Tensor::scalar(0u8), x.dtype())?;
                &zero
            }
        };
        each_storage!(x.dtype(), T => {
            let mut y = vec![value.item::<T>()?; element_count(&shape)?];
            pick(x.slice::<T>()?, &contiguous(x.shape()), &sources, &runs(&sources), &mut y);
            Ok(vec![Tensor::coded(x.dtype(), &shape, y)?])
        })
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let (g, shape) = (at.gradient()?, at.inputs[0].shape());
        let pads = self.of_rank(shape.len())?;
        let mut by = vec![0f32; element_count(shape)?];
        if g.is_empty() || by.is_empty() {
            return Ok(vec![Some(Tensor::new(shape, by)?)]);
        }
        // Dimensions before the first that changes are tasks of their own.
        let outer = pads.iter().take_while(|p| **p == (0, 0)).count();
        let sources: Vec<Vec<Option<usize>>> = (outer..shape.len())
            .map(|i| self.sources(shape[i], pads[i].0, g.shape()[i]))
            .collect::<Result<_>>()?;
        let strides = contiguous(shape);
        let [of_g, of_x] = [g.shape(), shape].map(|s| s[outer..].iter().product::<usize>());
        let g = g.slice::<f32>()?;
        parallel::chunks(&mut by, of_x, |i, by| {
            add_back(&g[i * of_g..][..of_g], &strides[outer..], &sources, by);
        });
        Ok(vec![Some(Tensor::new(shape, by)?)])
    }

    fn prepare(&self, operands: &[Operand<'_>]) -> Result<Prepared> {
        let x = operands[0];
        let pads = self.of_rank(x.shape.len())?;
        let size = |n: usize, (begin, end): (i64, i64)| (n as i64 + begin + end).max(0) as usize;
        let sources = x.shape.iter().zip(&pads).map(|(&n, &p)| self.sources(n, p.0, size(n, p)));
        let value = match &self.fill {
            Fill::Constant(Some(value)) => value.clone(),
            _ => super::cast::cast(&Tensor::scalar(0u8), x.dtype)?,
        };
        let sources = sources.collect::<Result<Vec<_>>>()?;
        Prepared::routine(Padding { runs: runs(&sources), sources, strides: contiguous(x.shape), value })
    }

    fn attributes(&self) -> Attributes {
        let mode = match &self.fill {
            Fill::Constant(_) => "constant",
            Fill::Reflect => "reflect",
            Fill::Edge => "edge",
        };
        let mut all =
            vec![("mode", Attribute::Text(mode.into())), ("pads", Attribute::Ints(self.pads.clone()))];
        if let Some(axes) = &self.axes {
            all.push(("axes", Attribute::Ints(axes.clone())));
        }
        if let Fill::Constant(Some(value)) = &self.fill {
            all.push(("value", Attribute::Tensor(value.clone())));
        }
        all
    }

    /// The pads, the constant and the axes as operands; an empty tensor
    /// stands for one that is left out.
    fn written(&self, _opset: i64) -> (Attributes, Vec<Tensor>) {
        let mut operands = vec![Tensor::vector(self.pads.clone())];
        let value = match &self.fill {
            Fill::Constant(value) => value.clone(),
            _ => None,
        };
        if value.is_some() || self.axes.is_some() {
            operands.push(value.unwrap_or_else(|| Tensor::vector(Vec::<f32>::new())));
        }
        operands.extend(self.axes.clone().map(Tensor::vector));
        (self.attributes().into_iter().take(1).collect(), operands)
    }

    fn quant(&self) -> Quant {
        match &self.fill {
            Fill::Constant(Some(value)) if value.to_f32().is_ok_and(|x| x.iter().any(|&x| x != 0.0)) => {
                Quant::Float
            }
            _ => Quant::Share,
        }
    }
}

/// A [`Pad`] of known size.
#[derive(Debug)]
struct Padding {
    sources: Vec<Vec<Option<usize>>>,
    /// Those of the last dimension.
    runs: Vec<Run>,
    strides: Vec<isize>,
    value: Tensor,
}

impl Padding {
    fn pad<T: Element>(&self, x: &[T], y: &mut [T]) -> Result<()> {
        y.fill(self.value.item::<T>()?);
        pick(x, &self.strides, &self.sources, &self.runs, y);
        Ok(())
    }
}

impl Routine for Padding {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        match x[0] {
            View::F32(x) => self.pad(x, y.f32()?),
            View::U8(x) => self.pad(x, y.u8()?),
            View::I8(x) => self.pad(x, y.i8()?),
            View::Other => Err(invalid!("no routine pads this type")),
        }
    }
}

/// Elements that lie together, in both tensors.
#[derive(Clone, Copy, Debug)]
struct Run {
    from: usize,
    to: usize,
    len: usize,
}

/// The runs of the last dimension of `sources`.
fn runs(sources: &[Vec<Option<usize>>]) -> Vec<Run> {
    let mut runs: Vec<Run> = vec![];
    for (to, source) in sources.last().into_iter().flatten().enumerate() {
        match (source, runs.last_mut()) {
            (Some(from), Some(run)) if (run.from + run.len, run.to + run.len) == (*from, to) => run.len += 1,
            (Some(from), _) => runs.push(Run { from: *from, to, len: 1 }),
            (None, _) => {}
        }
    }
    runs
}

/// Copies the elements that come from `x` into `y`, dimension by dimension.
fn pick<T: Element>(x: &[T], strides: &[isize], sources: &[Vec<Option<usize>>], runs: &[Run], y: &mut [T]) {
    if x.is_empty() || y.is_empty() {
        return;
    }
    let ([source, inner @ ..], [stride, inner_strides @ ..]) = (sources, strides) else {
        y.copy_from_slice(&x[..y.len()]);
        return;
    };
    if inner.is_empty() {
        for run in runs {
            y[run.to..][..run.len].copy_from_slice(&x[run.from..][..run.len]);
        }
        return;
    }
    let step = y.len() / source.len();
    for (y, at) in y.chunks_exact_mut(step).zip(source) {
        if let Some(at) = at {
            pick(&x[at * *stride as usize..], inner_strides, inner, runs, y);
        }
    }
}

/// Adds the elements of `g` to those of `x` that [`pick`] takes for them.
fn add_back(g: &[f32], strides: &[isize], sources: &[Vec<Option<usize>>], x: &mut [f32]) {
    let ([source, inner @ ..], [stride, inner_strides @ ..]) = (sources, strides) else {
        x.iter_mut().zip(g).for_each(|(x, g)| *x += g);
        return;
    };
    if inner.is_empty() {
        for (g, at) in g.iter().zip(source) {
            if let Some(at) = at {
                x[*at] += g;
            }
        }
        return;
    }
    for (g, at) in g.chunks_exact(g.len() / source.len()).zip(source) {
        if let Some(at) = at {
            add_back(g, inner_strides, inner, &mut x[at * *stride as usize..]);
        }
    }
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[("Pad", Pad::read)];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{Case, check};
    use crate::tensor::DType;

    #[test]
    fn gradients_are_those_of_differences() {
        let nine = || Fill::Constant(Some(Tensor::scalar(9f32)));
        let cases = [nine(), Fill::Reflect, Fill::Edge].into_iter().flat_map(|fill| {
            [
                Case::new(pad(&[2, 1], fill.clone()), &[&[5]]),
                Case::new(pad(&[7, 9], fill.clone()), &[&[3]]),
                Case::new(pad(&[-1, 2, 1, -2], fill.clone()), &[&[3, 4]]),
                Case::new(pad(&[0, 0, 1, 2, 0, 0, 3, 0], fill.clone()), &[&[2, 3, 4, 5]]),
                Case::new(pad(&[0, 1, 0, 0, 1, 0], fill.clone()), &[&[2, 3, 4]]),
                Case::new(pad(&[0, 0], fill), &[&[4]]),
            ]
        });
        check(cases);
    }

    fn pad(pads: &[i64], fill: Fill) -> Pad {
        Pad { pads: pads.to_vec(), axes: None, fill }
    }

    #[test]
    fn elements_are_added_and_cut() {
        let x = Tensor::new(&[2, 3], vec![1i32, 2, 3, 4, 5, 6]).unwrap();
        let last = |pads: &[i64], fill| Pad { pads: pads.to_vec(), axes: Some(vec![-1]), fill };
        let nine = || Fill::Constant(Some(Tensor::scalar(9i32)));
        let cases: [(Pad, &[usize], &[i32]); 7] = [
            (pad(&[1, 0, 0, 1], nine()), &[3, 4], &[9, 9, 9, 9, 1, 2, 3, 9, 4, 5, 6, 9]),
            (pad(&[0, 0, 0, -2], Fill::Constant(None)), &[2, 1], &[1, 4]),
            (last(&[-1, 1], Fill::Constant(None)), &[2, 3], &[2, 3, 0, 5, 6, 0]),
            (last(&[2, 1], Fill::Reflect), &[2, 6], &[3, 2, 1, 2, 3, 2, 6, 5, 4, 5, 6, 5]),
            (last(&[1, 2], Fill::Edge), &[2, 6], &[1, 1, 2, 3, 3, 3, 4, 4, 5, 6, 6, 6]),
            (pad(&[-1, 0, -1, 0], Fill::Constant(None)), &[0, 3], &[]),
            (last(&[-3, 1], nine()), &[2, 1], &[9, 9]),
        ];
        for (op, shape, expected) in cases {
            assert_eq!(op.eval(&[&x]).unwrap(), [Tensor::new(shape, expected.to_vec()).unwrap()], "{op:?}");
        }
        let empty = Tensor::new(&[2, 0], Vec::<i32>::new()).unwrap();
        let none =
            pad(&[0, 0, 0, (1 << 31) - 1], Fill::Edge).eval(&[&empty.reshaped(&[0, 2]).unwrap()]).unwrap();
        assert_eq!(none[0].shape(), [0, (1 << 31) + 1]);
        let filled = pad(&[0, 1, 0, 1], nine()).eval(&[&empty]).unwrap();
        assert_eq!(filled, [Tensor::full(&[2, 2], 9i32).unwrap()]);
        let scalar = pad(&[], Fill::Edge).eval(&[&Tensor::scalar(3u8)]).unwrap();
        assert_eq!(scalar, [Tensor::scalar(3u8)]);
    }

    #[test]
    fn only_a_foreign_value_keeps_the_padding_in_float() {
        let value = |x: f32| Fill::Constant(Some(Tensor::scalar(x)));
        let cases = [
            (Fill::Constant(None), Quant::Share),
            (value(0.0), Quant::Share),
            (value(1.0), Quant::Float),
            (Fill::Edge, Quant::Share),
        ];
        for (fill, quant) in cases {
            assert_eq!(pad(&[0, 0], fill).quant(), quant);
        }
    }

    #[test]
    fn pads_are_read_and_written_in_every_form() {
        let old = [
            ("pads".to_string(), Attribute::Ints(vec![0, 1])),
            ("value".to_string(), Attribute::Float(2.0)),
            ("mode".to_string(), Attribute::Text("constant".into())),
        ];
        let mut a = Reading::new("Pad", 10, old.into(), vec![None], 1);
        let op = Pad::read(&mut a).unwrap();
        a.finish().unwrap();
        let (attributes, operands) = op.written(13);
        assert_eq!(operands, [Tensor::vector(vec![0i64, 1]), Tensor::scalar(2.0f32)]);
        let constants = std::iter::once(None).chain(operands.into_iter().map(Some)).collect();
        let attributes = attributes.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        let mut a = Reading::new("Pad", 13, attributes, constants, 1);
        assert_eq!(*Pad::read(&mut a).unwrap(), *op);
        assert_eq!(a.finish().unwrap().0, [1, 2]);
        let computed = &mut Reading::new("Pad", 13, [].into(), vec![None, None], 1);
        assert!(Pad::read(computed).is_err());
    }

    #[test]
    fn pads_that_do_not_fit_are_refused() {
        let x = Fact::new(DType::F32, [2usize]);
        let cases = [
            pad(&[0], Fill::Edge),
            pad(&[-2, -1], Fill::Edge),
            pad(&[i64::MAX, i64::MAX], Fill::Edge),
            pad(&[0, 0], Fill::Constant(Some(Tensor::scalar(1i32)))),
            Pad { pads: vec![0, 0], axes: Some(vec![1]), fill: Fill::Edge },
        ];
        for op in cases {
            assert!(op.infer(&[&x]).is_err(), "{op:?}");
        }
        assert!(pad(&[1 << 32, 1 << 32], Fill::Edge).eval(&[&Tensor::vector(vec![0u8])]).is_err());
        let empty = Tensor::vector(Vec::<u8>::new());
        assert!(pad(&[1, 0], Fill::Reflect).eval(&[&empty]).is_err());
    }
}
