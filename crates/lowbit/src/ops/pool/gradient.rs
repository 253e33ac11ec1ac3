//! Gradients of pooling: each output's goes to the cells of its window, in equal
//! parts for a mean, to the first greatest cell for a maximum.

use std::ops::Range;

use rayon::prelude::*;

use super::{AveragePool, MaxPool, global_shape};
use crate::error::{Result, invalid};
use crate::op::Reverse;
use crate::ops::vectorized::vectorized;
use crate::ops::window::{Axis, copy_steps};
use crate::tensor::Tensor;
use crate::tensor::buffers::buffer;

/// A window without a cell greater than negative infinity gives nothing.
pub(super) fn max(op: &MaxPool, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let (axes, _) = op.pool.resolve("MaxPool", at.inputs[0].shape())?;
    let stride = axes[2].stride;
    windows(
        at,
        &axes,
        #[inline(always)]
        |x, row, dy, dx, [greatest, line, ..], from| {
            greatest.fill(f32::NEG_INFINITY);
            row.each_tap(|first, outputs| {
                let line = &mut line[..outputs.len()];
                copy_steps(line, &x[first..], stride);
                let tops = greatest[outputs.clone()].iter_mut().zip(&mut from[outputs]);
                let cells = (0..).map(|i| first as u32 + i * stride as u32);
                for ((top, from), (&x, cell)) in tops.zip(line.iter().zip(cells)) {
                    *from = if x > *top { cell } else { *from };
                    *top = if x > *top { x } else { *top };
                }
            });
            for ((&top, &from), &dy) in greatest.iter().zip(&*from).zip(dy) {
                if top > f32::NEG_INFINITY {
                    dx[from as usize] += dy;
                }
            }
        },
    )
}

pub(super) fn average(op: &AveragePool, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let (axes, _) = op.pool.resolve("AveragePool", at.inputs[0].shape())?;
    let [depth, height, width] = axes;
    let along: Vec<usize> = (0..width.output).map(|o| op.count(&width, o)).collect();
    windows(
        at,
        &axes,
        #[inline(always)]
        |_, row, dy, dx, [share, ..], _| {
            let above = op.count(&depth, row.at[0]) * op.count(&height, row.at[1]);
            for ((share, dy), along) in share.iter_mut().zip(dy).zip(&along) {
                *share = dy / (above * along).max(1) as f32;
            }
            row.each_tap(|first, outputs| {
                let dx = dx[first..].iter_mut().step_by(width.stride);
                dx.zip(&share[outputs]).for_each(|(dx, share)| *dx += share);
            });
        },
    )
}

/// A row of outputs.
struct Row<'a> {
    width: &'a Axis,
    /// Depth and height.
    at: [usize; 2],
    /// Where the rows of the input that its windows read begin.
    lines: &'a [usize],
}

impl Row<'_> {
    /// Calls `f` for each tap, in the order of the input, with the outputs that have it
    /// and the cell that the first of them reads.
    #[inline(always)]
    fn each_tap(&self, mut f: impl FnMut(usize, Range<usize>)) {
        let width = self.width;
        let taps = width.taps(width.output - 1).start..width.taps(0).end;
        for line in self.lines {
            for t in taps.clone() {
                let outputs = width.inside(t);
                if !outputs.is_empty() {
                    let first = line + outputs.start * width.stride + t * width.dilation - width.before;
                    f(first, outputs);
                }
            }
        }
    }
}

/// Calls `f(x, row, dy, dx, ..)` for each row of outputs, in order; `x` and `dx` are
/// channels, and the rest is space for a row.
fn windows(
    at: &Reverse,
    axes: &[Axis; 3],
    f: impl Fn(&[f32], &Row, &[f32], &mut [f32], &mut [Vec<f32>; 2], &mut Vec<u32>) + Sync,
) -> Result<Vec<Option<Tensor>>> {
    let (t, dy) = (at.inputs[0], at.gradient()?.slice::<f32>()?);
    let x = t.slice::<f32>()?;
    let [depth, height, width] = axes;
    let [inputs, outputs] =
        [|a: &Axis| a.input, |a: &Axis| a.output].map(|size| axes.iter().map(size).product::<usize>());
    if u32::try_from(inputs).is_err() {
        return Err(invalid!("a channel of {inputs} cells is too large for a gradient"));
    }
    let mut dx = buffer(t.len());
    if inputs == 0 || outputs == 0 {
        dx.fill(0.0);
        return Ok(vec![Some(Tensor::new(t.shape(), dx)?)]);
    }
    let planes = dx.par_chunks_exact_mut(inputs).zip(x.par_chunks_exact(inputs));
    let planes = planes.zip(dy.par_chunks_exact(outputs)).with_min_len(((1 << 14) / inputs).max(1));
    let space = || ([vec![0f32; width.output], vec![0f32; width.output]], vec![0u32; width.output], vec![]);
    planes.for_each_init(space, |(floats, from, lines), ((dx, x), dy)| {
        dx.fill(0.0);
        for (row, dy) in dy.chunks_exact(width.output).enumerate() {
            let at = [row / height.output, row % height.output];
            lines.clear();
            for d in depth.taps(at[0]).filter_map(|t| depth.at(at[0], t)) {
                let rows = height.taps(at[1]).filter_map(|t| height.at(at[1], t));
                lines.extend(rows.map(|h| (d * height.input + h) * width.input));
            }
            let row = Row { width, at, lines };
            vectorized(
                #[inline(always)]
                || f(x, &row, dy, dx, floats, from),
            );
        }
    });
    Ok(vec![Some(Tensor::new(t.shape(), dx)?)])
}

/// `f(x, dy, dx)` of each channel.
pub(super) fn global(at: &Reverse, f: fn(&[f32], f32, &mut [f32])) -> Result<Vec<Option<Tensor>>> {
    let (t, dy) = (at.inputs[0], at.gradient()?.slice::<f32>()?);
    let (_, cells) = global_shape(t)?;
    let x = t.slice::<f32>()?;
    let mut dx = vec![0.0; t.len()];
    let planes = dx.par_chunks_exact_mut(cells).zip(x.par_chunks_exact(cells)).zip(dy);
    planes.with_min_len(((1 << 14) / cells).max(1)).for_each(|((dx, x), &dy)| f(x, dy, dx));
    Ok(vec![Some(Tensor::new(t.shape(), dx)?)])
}

pub(super) fn shared(_: &[f32], dy: f32, dx: &mut [f32]) {
    dx.fill(dy / dx.len() as f32);
}

pub(super) fn to_greatest(x: &[f32], dy: f32, dx: &mut [f32]) {
    let first = (1..x.len()).fold(0, |top, i| if x[i] > x[top] { i } else { top });
    dx[first] = dy;
}

#[cfg(test)]
mod tests {
    use super::super::{GlobalAveragePool, GlobalMaxPool, Pool};
    use super::*;
    use crate::op::Op;
    use crate::ops::differences::{Case, check};
    use crate::ops::window::{Padding, Window as Windows};

    type Row = (&'static [usize], &'static [usize], &'static [usize], &'static [usize], Padding, bool);

    fn pools() -> Vec<(&'static [usize], Pool)> {
        let pads = |p: &[(usize, usize)]| Padding::Explicit(p.to_vec());
        // x, kernel, strides, dilations, padding, ceil
        let rows: [Row; 11] = [
            (&[2, 3, 6, 8], &[2, 2], &[2, 2], &[], pads(&[]), false),
            (&[2, 3, 7, 9], &[3, 3], &[2, 2], &[], pads(&[(1, 1), (1, 1)]), false),
            (&[1, 2, 6, 7], &[3, 3], &[1, 1], &[], pads(&[(1, 1), (0, 2)]), false),
            (&[1, 2, 7, 7], &[2, 3], &[2, 3], &[], pads(&[(0, 1), (2, 0)]), true),
            (&[1, 1, 9, 8], &[3, 2], &[1, 2], &[2, 3], pads(&[(1, 4), (0, 2)]), false),
            (&[1, 2, 8, 9], &[3, 3], &[2, 2], &[], Padding::SameLower, false),
            (&[1, 2, 20], &[5], &[3], &[], pads(&[(2, 1)]), true),
            (&[1, 2, 3, 5, 6], &[2, 2, 3], &[1, 2, 2], &[], pads(&[(1, 0), (0, 1), (1, 1)]), false),
            // Both taps lie in the padding.
            (&[1, 1, 1], &[2], &[1], &[2], pads(&[(1, 1)]), false),
            (&[1, 2, 3, 3], &[1, 1], &[], &[], pads(&[]), false),
            (&[1, 2, 5, 20], &[3, 3], &[3, 3], &[], pads(&[]), false),
        ];
        let pool = |(x, kernel, strides, dilations, padding, ceil): Row| {
            let window = Windows { strides: strides.to_vec(), dilations: dilations.to_vec(), padding };
            (x, Pool { kernel: kernel.to_vec(), window, ceil })
        };
        rows.map(pool).to_vec()
    }

    #[test]
    fn gradients_are_those_of_differences() {
        for include_padding in [false, true] {
            let average = |pool| AveragePool { pool, include_padding };
            check(pools().into_iter().map(|(x, pool)| Case::new(average(pool), &[x])));
        }
        check([Case::new(GlobalAveragePool, &[&[2, 3, 4, 5]]), Case::new(GlobalAveragePool, &[&[1, 2, 1]])]);
        // Of two cells, none is so near the other that a step changes their order.
        let spread = |op: &dyn Fn(&[usize]) -> Case, shape: &[usize]| {
            let at = std::cell::Cell::new(0);
            let len: usize = shape.iter().product();
            op(shape).map(move |_| (at.replace(at.get() + 1) * 7919 % len) as f32 / 20.0 - len as f32 / 40.0)
        };
        check(
            pools()
                .into_iter()
                .map(|(x, pool)| spread(&|s| Case::new(MaxPool { pool: pool.clone() }, &[s]), x)),
        );
        check([spread(&|s| Case::new(GlobalMaxPool, &[s]), &[2, 3, 4, 5])]);
    }

    #[test]
    fn of_equal_cells_the_first_takes_the_gradient() {
        let window = Windows { padding: Padding::Explicit(vec![(1, 1), (1, 1)]), ..Windows::default() };
        let op = MaxPool { pool: Pool { kernel: vec![3, 3], window, ceil: false } };
        let x = Tensor::full(&[1, 1, 2, 3], 1f32).unwrap();
        for (op, want) in
            [(&op as &dyn Op, [4., 2., 0., 0., 0., 0.]), (&GlobalMaxPool, [1., 0., 0., 0., 0., 0.])]
        {
            let y = op.eval(&[&x]).unwrap().remove(0);
            let gradients = [Some(Tensor::full(y.shape(), 1f32).unwrap())];
            let at = Reverse { inputs: &[&x], outputs: &[&y], gradients: &gradients, wanted: &[true] };
            let dx = op.vjp(&at).unwrap().remove(0).unwrap();
            assert_eq!(dx.slice::<f32>().unwrap(), want, "{op:?}");
        }
    }
}
