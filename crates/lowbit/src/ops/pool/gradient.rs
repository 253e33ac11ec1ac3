//! Gradients of pooling: each output's goes to the cells of its window, in equal
//! parts for a mean, to the first greatest cell for a maximum.

use std::ops::Range;

use rayon::prelude::*;

use super::{AveragePool, MaxPool, global_shape};
use crate::error::Result;
use crate::op::Reverse;
use crate::ops::window::Axis;
use crate::tensor::Tensor;

pub(super) fn max(op: &MaxPool, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let (axes, _) = op.pool.resolve("MaxPool", at.inputs[0].shape())?;
    windows(at, &axes, |x, cells, dy, dx| {
        let mut greatest = None;
        for row in cells.rows() {
            for i in row {
                if greatest.is_none_or(|(_, top)| x[i] > top) {
                    greatest = Some((i, x[i]));
                }
            }
        }
        if let Some((i, _)) = greatest {
            dx[i] += dy;
        }
    })
}

pub(super) fn average(op: &AveragePool, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let (axes, _) = op.pool.resolve("AveragePool", at.inputs[0].shape())?;
    windows(at, &axes, |_, cells, dy, dx| {
        let count: usize = axes.iter().zip(cells.at).map(|(a, o)| op.count(a, o)).product();
        let share = dy / count.max(1) as f32;
        for row in cells.rows() {
            row.for_each(|i| dx[i] += share);
        }
    })
}

/// The cells that a window reads.
struct Window<'a> {
    axes: &'a [Axis; 3],
    /// The output.
    at: [usize; 3],
    /// Taps within the input.
    taps: [Range<usize>; 3],
}

impl Window<'_> {
    /// The cells, in the order of the input, row by row.
    fn rows(&self) -> impl Iterator<Item = impl Iterator<Item = usize>> {
        let [depth, height, width] = self.axes;
        let along = |a: &Axis, o: usize, t: usize| o * a.stride + t * a.dilation - a.before;
        let [od, oh, ow] = self.at;
        let [d, h, w] = self.taps.clone();
        let first = if w.is_empty() { 0 } else { along(width, ow, w.start) };
        let rows = d.flat_map(move |d| h.clone().map(move |h| (d, h)));
        rows.map(move |(d, h)| {
            let row = along(depth, od, d) * height.input + along(height, oh, h);
            (0..w.len()).map(move |t| row * width.input + first + t * width.dilation)
        })
    }
}

/// Calls `f(x, window, dy, dx)` for each output, in order; `x` and `dx` are channels.
fn windows(
    at: &Reverse,
    axes: &[Axis; 3],
    f: impl Fn(&[f32], &Window, f32, &mut [f32]) + Sync,
) -> Result<Vec<Option<Tensor>>> {
    let (t, dy) = (at.inputs[0], at.gradient()?.slice::<f32>()?);
    let x = t.slice::<f32>()?;
    let [inputs, outputs] =
        [|a: &Axis| a.input, |a: &Axis| a.output].map(|size| axes.iter().map(size).product::<usize>());
    let mut dx = vec![0.0; t.len()];
    if inputs > 0 && outputs > 0 {
        let planes = dx.par_chunks_exact_mut(inputs).zip(x.par_chunks_exact(inputs));
        planes.zip(dy.par_chunks_exact(outputs)).for_each(|((dx, x), dy)| {
            let [_, height, width] = axes;
            for (o, &dy) in dy.iter().enumerate() {
                let at =
                    [o / (height.output * width.output), o / width.output % height.output, o % width.output];
                let taps = [0, 1, 2].map(|i| axes[i].taps(at[i]));
                f(x, &Window { axes, at, taps }, dy, dx);
            }
        });
    }
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
