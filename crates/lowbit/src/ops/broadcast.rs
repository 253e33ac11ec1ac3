//! Multidirectional broadcasting, as ONNX and NumPy define it.

use super::strided::{self, Nest};
use super::vectorized::vectorized;
use crate::error::{Result, invalid};
use crate::op::Dim;
use crate::parallel;
use crate::tensor::buffers::{buffer, recycle};
use crate::tensor::{Tensor, element_count};

/// The shape that `a` and `b` broadcast to: aligned at the last dimension, 1
/// stretches to any size.
///
/// # Errors
/// If two fixed sizes differ and neither is 1.
pub fn shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, x) | (x, 1) => Ok(x),
            _ => Err(invalid!("shapes {a:?} and {b:?} do not broadcast")),
        })
        .collect()
}

/// [`shape`] for facts: a named dimension against a fixed one other than 1 is
/// taken to be equal to it.
///
/// # Errors
/// If two fixed sizes differ and neither is 1.
pub fn dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let one = Dim::Known(1);
    let at = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map_or(one.clone(), |i| s[i].clone());
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (x, y) if x == one => Ok(y),
            (x, y) if y == one => Ok(x),
            (x @ Dim::Known(_), Dim::Named(_)) | (Dim::Named(_), x @ Dim::Known(_)) => Ok(x),
            (Dim::Named(x), Dim::Named(y)) => Ok(Dim::Named(greater(&x, &y))),
            _ => Err(invalid!("shapes {a:?} and {b:?} do not broadcast")),
        })
        .collect()
}

/// Elements of a tensor that are worth a task: the same on any number of threads.
const TASK: usize = 1 << 15;

/// `f` of the elements of f32 tensors that broadcast to `shape`, on all threads.
/// `f` must be inlined: the loop is compiled for the CPU's vectors.
///
/// # Errors
/// If one is not f32.
pub(super) fn map<const N: usize>(
    shape: &[usize],
    tensors: [&Tensor; N],
    f: impl Fn([f32; N]) -> f32 + Sync,
) -> Result<Tensor> {
    let mut x = [&[][..]; N];
    for (x, t) in x.iter_mut().zip(tensors) {
        *x = t.slice::<f32>()?;
    }
    let mut y = buffer(element_count(shape)?);
    if y.is_empty() {
        return Tensor::new(shape, y);
    }
    let strides = tensors.map(|t| strided::broadcast(t.shape(), shape));
    let nest = Nest::new(shape, strides.each_ref().map(|s| &s[..]));
    let (n, steps) = nest.inner();
    let mut starts = vec![];
    nest.rows([0; N], |at| starts.push(at));
    // Whole rows, or parts of one.
    let size = if n > TASK { TASK } else { TASK / n * n };
    let of_row = n.div_ceil(size);
    let part = |row: usize, from: usize, y: &mut [f32]| {
        let at = starts[row];
        let x: [&[f32]; N] = std::array::from_fn(|k| match steps[k] {
            0 => &x[k][at[k]..=at[k]],
            _ => &x[k][at[k] + from..][..y.len()],
        });
        each(x, y, &f);
    };
    if of_row > 1 {
        for (row, y) in y.chunks_exact_mut(n).enumerate() {
            parallel::chunks(y, size, |i, y| part(row, i * size, y));
        }
    } else {
        parallel::chunks(&mut y, size, |i, y| {
            for (row, y) in y.chunks_exact_mut(n).enumerate() {
                part(i * (size / n) + row, 0, y);
            }
        });
    }
    Tensor::new(shape, y)
}

/// `f` of elements, of which a slice of one stands still.
fn each<const N: usize>(x: [&[f32]; N], y: &mut [f32], f: &impl Fn([f32; N]) -> f32) {
    vectorized(
        #[inline(always)]
        || {
            let mut done = blocks::<N, 256>(x, 0, y, f);
            done += blocks::<N, 16>(x, done, y, f);
            blocks::<N, 1>(x, done, y, f);
        },
    );
}

/// [`each`] from `start` on, as far as there are whole blocks, whose loops have a
/// known length: the number of elements that are done.
#[inline(always)]
fn blocks<const N: usize, const BLOCK: usize>(
    x: [&[f32]; N],
    start: usize,
    y: &mut [f32],
    f: &impl Fn([f32; N]) -> f32,
) -> usize {
    let (blocks, _) = y[start..].as_chunks_mut::<BLOCK>();
    if blocks.is_empty() {
        return 0;
    }
    let mut still = [[0.0; BLOCK]; N];
    for (still, x) in still.iter_mut().zip(x) {
        if let [x] = x {
            still.fill(*x);
        }
    }
    for (i, y) in blocks.iter_mut().enumerate() {
        let own: [&[f32; BLOCK]; N] = std::array::from_fn(|k| {
            x[k].get(start + i * BLOCK..).and_then(<[f32]>::first_chunk).unwrap_or(&still[k])
        });
        for (j, y) in y.iter_mut().enumerate() {
            *y = f(own.map(|x| x[j]));
        }
    }
    blocks.len() * BLOCK
}

/// `t` summed along the axes that an operand of shape `to` was stretched along:
/// what becomes of a gradient on the way back through broadcasting. Summed in f64.
///
/// # Errors
/// If `to` does not broadcast to the shape of `t`, or `t` is not f32.
pub fn summed_to(t: Tensor, to: &[usize]) -> Result<Tensor> {
    if t.shape() == to {
        return Ok(t);
    }
    if shape(t.shape(), to)? != t.shape() {
        return Err(invalid!("a gradient of shape {:?} is not that of shape {to:?}", t.shape()));
    }
    if t.len() == element_count(to)? {
        return t.reshaped(to);
    }
    if t.is_empty() {
        return Tensor::full(to, 0f32);
    }
    let lead = t.rank() - to.len();
    let is_summed = |axis: usize| axis < lead || to[axis - lead] != t.shape()[axis];
    // Dimensions, those side by side that are treated alike taken as one.
    let mut dims: Vec<(usize, bool)> = vec![];
    for (axis, &n) in t.shape().iter().enumerate().filter(|(_, n)| **n != 1) {
        match dims.last_mut() {
            Some((size, summed)) if *summed == is_summed(axis) => *size *= n,
            _ => dims.push((n, is_summed(axis))),
        }
    }
    let sizes: Vec<usize> = dims.iter().map(|d| d.0).collect();
    let strides = strided::contiguous(&sizes);
    let x = t.slice::<f32>()?;
    let mut y = buffer(element_count(to)?);
    let Some(((n, by_row), outer)) = dims.split_last() else { return Tensor::new(to, y) };
    let offsets = |wanted: bool| {
        let own = outer.iter().zip(&strides).filter(|((_, summed), _)| *summed == wanted);
        own.fold(vec![0], |all: Vec<usize>, ((n, _), stride)| {
            all.iter().flat_map(|at| (0..*n).map(move |j| at + j * *stride as usize)).collect()
        })
    };
    let (starts, firsts) = (offsets(true), offsets(false));
    if *by_row {
        let size = parallel::rows_of_a_task(TASK, n * starts.len(), y.len());
        parallel::chunks(&mut y, size, |i, y| {
            for (y, first) in y.iter_mut().zip(&firsts[i * size..]) {
                let rows = starts.iter().map(|at| super::reduce::sum(&x[first + at..][..*n], |x| x));
                *y = rows.sum::<f64>() as f32;
            }
        });
    } else {
        /// Columns that are summed together.
        const COLUMNS: usize = 128;
        for (y, first) in y.chunks_exact_mut(*n).zip(&firsts) {
            parallel::chunks(y, COLUMNS, |i, y| {
                let mut sums = [0f64; COLUMNS];
                let sums = &mut sums[..y.len()];
                for at in &starts {
                    let x = &x[first + at + i * COLUMNS..][..y.len()];
                    sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(x));
                }
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y = *sum as f32);
            });
        }
    }
    recycle(t);
    Tensor::new(to, y)
}

/// The formula of the greater of two sizes: `max(..)` of all that either is the
/// greatest of, each once, in order, so that it does not grow with repetition.
fn greater(a: &str, b: &str) -> String {
    let mut of: Vec<&str> = terms(a);
    of.extend(terms(b));
    of.sort_unstable();
    of.dedup();
    if let [one] = of[..] { one.into() } else { format!("max({})", of.join(",")) }
}

/// The sizes that a formula is the greatest of: itself, unless it is a `max(..)`.
fn terms(formula: &str) -> Vec<&str> {
    let Some(inside) = formula.strip_prefix("max(").and_then(|f| f.strip_suffix(')')) else {
        return vec![formula];
    };
    let (mut depth, mut start, mut found) = (0usize, 0, vec![]);
    for (at, c) in inside.char_indices() {
        match c {
            '(' => depth += 1,
            // The parentheses are of two formulas: `max(a)+max(b)`.
            ')' if depth == 0 => return vec![formula],
            ')' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&inside[start..]);
    found
}

/// For each index of `to`, in order, the index in `from` that broadcasts to it.
pub fn offsets(from: &[usize], to: &[usize]) -> Vec<usize> {
    let mut offsets = vec![0];
    for (i, &size) in to.iter().enumerate() {
        let own = (i + from.len()).checked_sub(to.len()).map_or(1, |i| from[i]);
        let step = |o: &usize| {
            let o = o * own;
            (0..size).map(move |j| if own == 1 { o } else { o + j })
        };
        offsets = offsets.iter().flat_map(step).collect();
    }
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_of_formulas_names_each_once() {
        for (a, b, want) in [
            ("N", "M", "max(M,N)"),
            ("max(M,N)", "N", "max(M,N)"),
            ("max(M,max(a,b))", "N", "max(M,N,max(a,b))"),
            ("max(f(x,y),N)", "max(N,f(x,y))", "max(N,f(x,y))"),
            ("max(a)+max(b)", "max(a)+max(b)", "max(a)+max(b)"),
        ] {
            assert_eq!(greater(a, b), want, "{a} {b}");
        }
    }

    fn ramp(shape: &[usize], seed: usize) -> Tensor {
        let n = shape.iter().product::<usize>();
        let x = (0..n).map(|i| ((i * 7919 + seed) % 1009) as f32 / 64.0 - 7.0);
        Tensor::new(shape, x.collect()).unwrap()
    }

    /// Rows of every length, tensors of many tasks, and any number of threads.
    #[test]
    fn maps_and_sums_are_those_of_single_elements() {
        let cases: [(&[usize], &[usize]); 17] = [
            (&[], &[]),
            (&[1], &[]),
            (&[300], &[]),
            (&[70_001], &[1]),
            (&[70_001], &[70_001]),
            (&[3, 40_000], &[3, 1]),
            (&[300, 129], &[129]),
            (&[129, 300], &[129, 1]),
            (&[2, 5, 7, 7], &[5, 1, 1]),
            (&[2, 5, 7, 7], &[2, 1, 7, 1]),
            (&[2, 5, 16, 17], &[1, 5, 1, 17]),
            (&[4, 1, 3], &[1, 1, 3]),
            (&[2, 3, 1], &[3, 1]),
            (&[600, 700], &[700]),
            (&[600, 700], &[600, 1]),
            (&[0, 3], &[3]),
            (&[3, 0], &[3, 1]),
        ];
        let pools = [1, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
        for (full, part) in cases {
            let (a, b) = (ramp(full, 0), ramp(part, 5));
            let at = offsets(part, full);
            let (x, y) = (a.slice::<f32>().unwrap(), b.slice::<f32>().unwrap());
            let mapped: Vec<f32> = x.iter().zip(&at).map(|(x, &at)| x * 2.0 - y[at]).collect();
            let mut sums = vec![0f64; b.len()];
            x.iter().zip(&at).for_each(|(x, &at)| sums[at] += f64::from(*x));
            let sums = sums.into_iter().map(|x| x as f32).collect();
            let expected = [Tensor::new(full, mapped).unwrap(), Tensor::new(part, sums).unwrap()];
            for pool in &pools {
                let found = pool.install(|| {
                    [map(full, [&a, &b], |[a, b]| a * 2.0 - b).unwrap(), summed_to(a.clone(), part).unwrap()]
                });
                assert!(found == expected, "{full:?} and {part:?}");
            }
        }
        assert!(summed_to(ramp(&[2, 3], 0), &[2]).is_err());
        assert!(summed_to(ramp(&[2, 3], 0), &[4, 2, 3]).is_err());
    }
}
