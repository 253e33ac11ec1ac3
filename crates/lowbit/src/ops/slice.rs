//! Ranges of dimensions.

use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::op::{Dim, Fact, Op, Operand, Prepared, Quant, ReadOp, Reading, Reverse, arity, optional_fact};
use crate::tensor::Tensor;

use super::axis;
use super::strided::{Moved, contiguous, placed, view};
use super::symbolic::{self, facts};

/// Every `step`-th element from `start` to before `end` along some axes.
/// Inputs: data, starts, ends, axes (all, if left out), steps (1). Negative
/// positions count from the end; positions outside are moved to the edge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slice;

/// A range of one dimension.
struct Range {
    axis: usize,
    start: Dim,
    end: Dim,
    step: i64,
}

fn ranges(inputs: &[&Fact]) -> Result<Vec<Range>> {
    arity(inputs, 3, 5)?;
    let x = inputs[0];
    let (starts, ends) = (symbolic::sizes(inputs[1], "starts")?, symbolic::sizes(inputs[2], "ends")?);
    let n = starts.len();
    let axes = match optional_fact(inputs, 3) {
        Some(f) => symbolic::integers(f, "axes")?,
        None => (0..n as i64).collect(),
    };
    let steps = match optional_fact(inputs, 4) {
        Some(f) => symbolic::integers(f, "steps")?,
        None => vec![1; n],
    };
    if [ends.len(), axes.len(), steps.len()] != [n; 3] {
        return Err(invalid!(
            "{n} starts, {} ends, {} axes and {} steps do not match",
            ends.len(),
            axes.len(),
            steps.len()
        ));
    }
    axis::mask(&axes, x.rank())?;
    (0..n)
        .map(|i| match steps[i] {
            0 => Err(invalid!("steps holds 0")),
            step => Ok(Range {
                axis: axis::one(axes[i], x.rank())?,
                start: starts[i].clone(),
                end: ends[i].clone(),
                step,
            }),
        })
        .collect()
}

impl Range {
    /// First position and number of positions in a dimension of size `n`.
    fn in_size(&self, n: usize) -> Option<(usize, usize)> {
        let (start, end) = (self.start.as_integer()?, self.end.as_integer()?);
        let n = i64::try_from(n).ok()?;
        let absolute = |x: i64| if x < 0 { x.saturating_add(n) } else { x };
        let (lo, hi) = if self.step > 0 { (0, n) } else { (-1, n - 1) };
        // From behind, a start before the first element leaves nothing.
        let (start, end) = (absolute(start).clamp(lo, hi), absolute(end).clamp(lo, hi));
        let distance = if self.step > 0 { end - start } else { start - end };
        let count = if distance <= 0 { 0 } else { (distance as u64).div_ceil(self.step.unsigned_abs()) };
        Some((usize::try_from(start).unwrap_or(0), count as usize))
    }

    /// The size of the range in a dimension of size `d`; where that is a
    /// name, plain ranges are taken to lie within.
    fn size(&self, d: &Dim) -> Dim {
        if let Some((_, count)) = d.known().and_then(|n| self.in_size(n)) {
            return Dim::Known(count);
        }
        let (start, end) = (self.start.as_integer(), self.end.as_integer());
        let open = end.is_some_and(|e| e >= i64::from(i32::MAX)) || self.end == *d;
        match (start, end) {
            (Some(0), _) if self.step == 1 && open => d.clone(),
            (Some(s), _) if self.step == 1 && open && s > 0 => symbolic::sub(d, &Dim::integer(s)),
            (Some(0), Some(e)) if self.step == 1 && e < 0 => symbolic::add(d, &Dim::integer(e)),
            _ => Dim::Named(format!("slice({d},{},{},{})", self.start, self.end, self.step)),
        }
    }
}

impl Op for Slice {
    fn name(&self) -> &'static str {
        "Slice"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let ranges = ranges(inputs)?;
        let x = inputs[0];
        let mut shape = x.shape.clone();
        for r in &ranges {
            shape[r.axis] = r.size(&shape[r.axis]);
        }
        let sizes = match (&x.sizes, ranges.as_slice(), x.rank()) {
            (Some(all), [r], 1) => r.in_size(all.len()).map(|(start, count)| {
                let at = |i: usize| (start as i64 + i as i64 * r.step) as usize;
                (0..count).map(|i| all[at(i)].clone()).collect()
            }),
            (Some(all), [], 1) => Some(all.clone()),
            _ => None,
        };
        Ok(vec![x.with_shape(shape).with_sizes(sizes)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let known = facts(inputs);
        let (shape, strides, start) = part(inputs[0].shape(), ranges(&known.iter().collect::<Vec<_>>())?)?;
        Ok(vec![view(inputs[0], &shape, &strides, start)?])
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let known = facts(at.inputs);
        let from = at.inputs[0].shape();
        let (_, strides, start) = part(from, ranges(&known.iter().collect::<Vec<_>>())?)?;
        at.each(|_| placed(at.gradient()?, from, &strides, start))
    }

    fn prepare(&self, operands: &[Operand<'_>]) -> Result<Prepared> {
        let Some(constants) = operands[1..].iter().map(|x| x.constant).collect::<Option<Vec<_>>>() else {
            return Ok(Prepared::Eval);
        };
        let x = operands[0];
        let known: Vec<Fact> = [Fact::new(x.dtype, x.shape.iter().copied())]
            .into_iter()
            .chain(constants.into_iter().map(Fact::of))
            .collect();
        let (shape, strides, start) = part(x.shape, ranges(&known.iter().collect::<Vec<_>>())?)?;
        Ok(Moved::new(&shape, &strides, start).prepared(x.shape.iter().product()))
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

/// Shape, strides and first element of what the ranges leave of a tensor.
fn part(from: &[usize], ranges: Vec<Range>) -> Result<(Vec<usize>, Vec<isize>, usize)> {
    let (mut shape, mut strides, mut at) = (from.to_vec(), contiguous(from), 0);
    for r in ranges {
        let (start, count) =
            r.in_size(shape[r.axis]).ok_or_else(|| invalid!("a position is not a number"))?;
        shape[r.axis] = count;
        at += start * strides[r.axis] as usize;
        // A step past the end is never taken; any stride will do.
        strides[r.axis] = if count > 1 { strides[r.axis] * r.step as isize } else { 0 };
    }
    Ok((shape, strides, at))
}

/// Attributes of opset < 10 become operands.
fn read(a: &mut Reading) -> Result<Arc<dyn Op>> {
    if a.opset() < 10 {
        for (i, name) in [(1, "starts"), (2, "ends"), (3, "axes")] {
            match a.ints(name)? {
                Some(x) => a.add_operand(i, Tensor::vector(x)),
                None if i < 3 => return Err(invalid!("attribute {name} is missing")),
                None => {}
            }
        }
    }
    Ok(Arc::new(Slice))
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[("Slice", read)];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::differences::{Case, check};
    use crate::tensor::DType;

    #[test]
    fn gradients_are_those_of_differences() {
        // Starts, ends, axes and steps.
        let cases: [(&[usize], [&[i64]; 4]); 6] = [
            (&[7], [&[2], &[5], &[0], &[1]]),
            (&[7], [&[-1], &[-100], &[0], &[-2]]),
            (&[3, 4, 5], [&[1, 0], &[3, 4], &[0, 2], &[1, 3]]),
            (&[3, 4], [&[0], &[1], &[1], &[5]]),
            (&[3, 4], [&[2], &[2], &[1], &[1]]),
            (&[2, 1, 6], [&[3], &[i64::MAX], &[-1], &[1]]),
        ];
        check(cases.map(|(shape, lists)| {
            lists.iter().fold(Case::new(Slice, &[shape]), |case, x| case.and(list(x)))
        }));
    }

    fn list(x: &[i64]) -> Tensor {
        Tensor::vector(x.to_vec())
    }

    #[test]
    fn ranges_are_cut_out() {
        let x = Tensor::new(&[2, 5], (0..10).collect::<Vec<i32>>()).unwrap();
        const END: i64 = i64::MAX;
        const BEGIN: i64 = i64::MIN;
        type Case = (
            &'static [i64],
            &'static [i64],
            &'static [i64],
            &'static [i64],
            &'static [usize],
            &'static [i32],
        );
        let cases: [Case; 10] = [
            (&[1], &[3], &[1], &[1], &[2, 2], &[1, 2, 6, 7]),
            (&[1, -2], &[END, END], &[0, 1], &[1, 1], &[1, 2], &[8, 9]),
            (&[0], &[END], &[-1], &[2], &[2, 3], &[0, 2, 4, 5, 7, 9]),
            (&[-1], &[BEGIN], &[1], &[-1], &[2, 5], &[4, 3, 2, 1, 0, 9, 8, 7, 6, 5]),
            (&[END], &[0], &[1], &[-3], &[2, 2], &[4, 1, 9, 6]),
            (&[3], &[1], &[1], &[1], &[2, 0], &[]),
            (&[9], &[END], &[1], &[1], &[2, 0], &[]),
            (&[BEGIN], &[END], &[1], &[-1], &[2, 0], &[]),
            (&[0], &[END], &[1], &[END], &[2, 1], &[0, 5]),
            (&[-1], &[BEGIN], &[1], &[BEGIN], &[2, 1], &[4, 9]),
        ];
        for (starts, ends, axes, steps, shape, expected) in cases {
            let operands = [list(starts), list(ends), list(axes), list(steps)];
            let inputs: Vec<&Tensor> = std::iter::once(&x).chain(&operands).collect();
            let known = facts(&inputs);
            let inferred = Slice.infer(&known.iter().collect::<Vec<_>>()).unwrap();
            assert_eq!(inferred[0].known_shape().unwrap(), shape);
            assert_eq!(Slice.eval(&inputs).unwrap(), [Tensor::new(shape, expected.to_vec()).unwrap()]);
        }
        let all = Slice.eval(&[&x, &list(&[1]), &list(&[2])]).unwrap();
        assert_eq!(all, [Tensor::new(&[1, 5], vec![5, 6, 7, 8, 9]).unwrap()]);
    }

    #[test]
    fn named_sizes_are_cut() {
        let x = Fact::new(DType::F32, [Dim::Named("N".into())]);
        let cases: [(i64, i64, i64, &str); 5] = [
            (0, i64::MAX, 1, "N"),
            (2, i64::MAX, 1, "(N-2)"),
            (0, -1, 1, "(N-1)"),
            (0, 3, 1, "slice(N,0,3,1)"),
            (0, i64::MAX, 2, "slice(N,0,9223372036854775807,2)"),
        ];
        for (start, end, step, expected) in cases {
            let operands = [list(&[start]), list(&[end]), list(&[0]), list(&[step])].map(|t| Fact::of(&t));
            let inputs: Vec<&Fact> = std::iter::once(&x).chain(&operands).collect();
            assert_eq!(Slice.infer(&inputs).unwrap()[0].shape, [Dim::Named(expected.into())]);
        }
        let sizes = Fact::new(DType::I64, [2usize]).with_sizes(Some(vec![Dim::Named("N".into()), 3.into()]));
        let (start, end) = (Fact::of(&list(&[-1])), Fact::of(&list(&[9])));
        assert_eq!(Slice.infer(&[&sizes, &start, &end]).unwrap()[0].sizes, Some(vec![Dim::Known(3)]));
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let x = Tensor::vector(vec![0i32; 4]);
        let cases: [[&[i64]; 4]; 5] = [
            [&[0], &[1], &[1], &[1]],
            [&[0], &[1], &[0], &[0]],
            [&[0, 1], &[1], &[0], &[1]],
            [&[0, 0], &[1, 1], &[0, 0], &[1, 1]],
            [&[0], &[1], &[0, 1], &[1]],
        ];
        for operands in cases {
            let operands = operands.map(list);
            let inputs: Vec<&Tensor> = std::iter::once(&x).chain(&operands).collect();
            assert!(Slice.eval(&inputs).is_err(), "{operands:?}");
        }
    }

    #[test]
    fn older_attributes_become_operands() {
        use crate::op::Attribute::Ints;
        let attributes = [("starts".to_string(), Ints(vec![1])), ("ends".to_string(), Ints(vec![2]))];
        let mut a = Reading::new("Slice", 9, attributes.into(), vec![None], 1);
        read(&mut a).unwrap();
        assert_eq!(a.finish().unwrap().1, [(1, list(&[1])), (2, list(&[2]))]);
        assert!(read(&mut Reading::new("Slice", 9, [].into(), vec![None], 1)).is_err());
    }

    proptest! {
        #[test]
        fn a_slice_equals_its_naive_definition(n in 0usize..7, start in -9i64..9, end in -9i64..9, step in -3i64..4) {
            prop_assume!(step != 0);
            let x = Tensor::vector((0..n as i64).collect());
            let y = Slice.eval(&[&x, &list(&[start]), &list(&[end]), &list(&[0]), &list(&[step])]).unwrap();
            let absolute = |p: i64| if p < 0 { p + n as i64 } else { p };
            let (mut at, end) = (absolute(start), absolute(end));
            at = if step > 0 { at.max(0) } else { at.min(n as i64 - 1) };
            let mut expected = vec![];
            while if step > 0 { at < end.min(n as i64) } else { at > end.max(-1) } {
                expected.push(at);
                at += step;
            }
            prop_assert_eq!(y, [Tensor::vector(expected)]);
        }
    }
}
