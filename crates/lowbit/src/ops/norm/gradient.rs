//! Gradients of what is normalized by its own moments, row by row, and of [`Lrn`].

use rayon::prelude::*;

use super::sums::sums;
use super::{Lrn, TASK};
use crate::error::Result;
use crate::op::Reverse;
use crate::ops::vectorized::vectorized;
use crate::tensor::Tensor;
use crate::tensor::buffers::buffer;

/// Rows of `size` cells that are normalized; each `segment` cells of one have a
/// parameter.
pub(super) struct Rows {
    pub(super) size: usize,
    pub(super) segment: usize,
    /// The parameter of the first segment of row `j`, `j` modulo their number;
    /// those of the next segments follow it.
    pub(super) firsts: Vec<usize>,
}

/// Blocks of rows whose parameters' gradients are summed apart.
const BLOCKS: usize = 16;

/// With `g = dL / dy`, `u = (x - mean) / sqrt(var + epsilon)` and `h = g * scale`,
/// means taken over the row:
///
/// `dx = (h - mean(h) - u * mean(h u)) / sqrt(var + epsilon)`,
/// `dscale = sum g u`, `dshift = sum g`;
///
/// if not centred, `mean` and `mean(h)` are 0.
pub(super) fn rows(at: &Reverse, rows: &Rows, epsilon: f32, centred: bool) -> Result<Vec<Option<Tensor>>> {
    let t = at.inputs[0];
    let (x, g): (&[f32], &[f32]) = (t.slice()?, at.gradient()?.slice()?);
    let (size, scale) = (rows.size, at.inputs[1].slice::<f32>()?);
    let parameters = rows.firsts.last().map_or(0, |last| last + size.checked_div(rows.segment).unwrap_or(0));
    let mut dx = buffer(t.len());
    let count = t.len().checked_div(size).unwrap_or(0);
    let block = size * count.div_ceil(BLOCKS).max(TASK / size.max(1));
    let one = |(block_at, dx): (usize, &mut [f32])| {
        let mut made = vec![0f32; 2 * parameters];
        let (mut scales, mut u) = (vec![0f32; size], vec![0f32; size]);
        for (i, dx) in dx.chunks_exact_mut(size).enumerate() {
            let j = block_at * (block / size) + i;
            let first = rows.firsts[j % rows.firsts.len()];
            for (s, scales) in scales.chunks_mut(rows.segment).enumerate() {
                scales.fill(scale[if scale.len() == 1 { 0 } else { first + s }]);
            }
            let (x, g) = (&x[j * size..][..size], &g[j * size..][..size]);
            row(x, g, &scales, (epsilon, centred), &mut u, dx);
            let (dscale, dshift) = made.split_at_mut(parameters);
            let made = dscale[first..].iter_mut().zip(&mut dshift[first..]);
            if rows.segment == 1 {
                for ((g, u), (dscale, dshift)) in g.iter().zip(&u).zip(made) {
                    *dscale += g * u;
                    *dshift += g;
                }
                continue;
            }
            for ((g, u), (dscale, dshift)) in g.chunks(rows.segment).zip(u.chunks(rows.segment)).zip(made) {
                let [along, sum] = sums([(g, u)], |g, u| [g * u, g]);
                *dscale += along as f32;
                *dshift += sum as f32;
            }
        }
        made
    };
    let blocks: Vec<Vec<f32>> = match block {
        0 => vec![],
        _ => dx.par_chunks_mut(block).enumerate().map(one).collect(),
    };
    let mut dx = Some(dx);
    at.each(|i| {
        if i == 0 {
            return Tensor::new(t.shape(), dx.take().unwrap_or_default());
        }
        let mut sum = vec![0f64; parameters];
        for block in &blocks {
            sum.iter_mut().zip(&block[(i - 1) * parameters..]).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let shape = at.inputs[i].shape();
        if at.inputs[i].len() == 1 {
            return Tensor::new(shape, vec![sum.iter().sum::<f64>() as f32]);
        }
        Tensor::new(shape, sum.into_iter().map(|x| x as f32).collect())
    })
}

/// One row of `dx` and of `u`.
fn row(x: &[f32], g: &[f32], scale: &[f32], (epsilon, centred): (f32, bool), u: &mut [f32], dx: &mut [f32]) {
    let n = x.len() as f64;
    let center = if centred { sums([(x, x)], |x, _| [x])[0] / n } else { 0.0 } as f32;
    let [rest, squares] = sums([(x, x)], |x, _| [x - center, (x - center) * (x - center)]);
    let rest = if centred { rest / n } else { 0.0 };
    let r = 1.0 / (squares / n - rest * rest + f64::from(epsilon)).sqrt();
    let (factor, shift) = (r as f32, (rest * r) as f32);
    vectorized(
        #[inline(always)]
        || {
            u.iter_mut().zip(x).for_each(|(u, x)| *u = (x - center) * factor - shift);
            dx.iter_mut().zip(g).zip(scale).for_each(|((h, g), scale)| *h = g * scale);
        },
    );
    let [sum, along] = sums([(&*dx, &*u)], |h, u| [h, h * u]);
    let (mean, along) = (if centred { (sum / n) as f32 } else { 0.0 }, (along / n) as f32);
    vectorized(
        #[inline(always)]
        || dx.iter_mut().zip(&*u).for_each(|(h, u)| *h = (*h - mean - u * along) * factor),
    );
}

/// With `s = bias + alpha / size * sum of squares` of a cell's neighbours and
/// `t = g y / s`: `dx = g / s^beta - 2 alpha beta / size * x * sum of t` over the
/// cells whose neighbour it is.
pub(super) fn lrn(op: &Lrn, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let t = at.inputs[0];
    let (channels, cells) = (t.shape()[1], t.shape()[2..].iter().product::<usize>());
    let (x, y, g) = (t.slice::<f32>()?, at.outputs[0].slice::<f32>()?, at.gradient()?.slice::<f32>()?);
    let mut dx = vec![0.0; t.len()];
    let (before, after) = ((op.size - 1) / 2, op.size / 2);
    let factor = op.alpha / op.size as f32;
    let near = |c: usize, before: usize, after: usize| {
        c.saturating_sub(before)..=c.saturating_add(after).min(channels - 1)
    };
    let image = channels * cells;
    dx.par_chunks_exact_mut(image.max(1)).enumerate().for_each(|(n, dx)| {
        let [x, y, g] = [x, y, g].map(|t| &t[n * image..][..image]);
        let (mut s, mut terms) = (vec![op.bias; image], vec![0f32; image]);
        for c in 0..channels {
            for i in near(c, before, after) {
                let squares = s[c * cells..][..cells].iter_mut().zip(&x[i * cells..]);
                squares.for_each(|(s, x)| *s += factor * x * x);
            }
        }
        terms.iter_mut().zip(g).zip(y).zip(&s).for_each(|(((t, g), y), s)| *t = g * y / s);
        for c in 0..channels {
            let dx = &mut dx[c * cells..][..cells];
            for i in near(c, after, before) {
                dx.iter_mut().zip(&terms[i * cells..]).for_each(|(dx, t)| *dx += t);
            }
            for (i, dx) in (c * cells..).zip(dx) {
                *dx = g[i] * s[i].powf(-op.beta) - 2.0 * factor * op.beta * x[i] * *dx;
            }
        }
    });
    Ok(vec![Some(Tensor::new(t.shape(), dx)?)])
}
