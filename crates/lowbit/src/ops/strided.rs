//! Loops over strided views: the one way in which values are moved and
//! broadcast, whatever their type.

use crate::error::{Result, invalid};
use crate::op::{Prepared, Routine, View, ViewMut};
use crate::parallel;
use crate::tensor::{Element, Tensor, element_count};

/// Evaluates an expression with `$T` the Rust type that stores `$dtype`.
macro_rules! each_storage {
    ($dtype:expr, $T:ident => $body:expr) => {{
        match $dtype.storage() {
            $crate::tensor::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::tensor::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::tensor::DType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::tensor::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            $crate::tensor::DType::I8 => {
                type $T = i8;
                $body
            }
            $crate::tensor::DType::U8 => {
                type $T = u8;
                $body
            }
            $crate::tensor::DType::I16 => {
                type $T = i16;
                $body
            }
            $crate::tensor::DType::U16 => {
                type $T = u16;
                $body
            }
            $crate::tensor::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::tensor::DType::U32 => {
                type $T = u32;
                $body
            }
            $crate::tensor::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::tensor::DType::U64 => {
                type $T = u64;
                $body
            }
            _ => {
                type $T = bool;
                $body
            }
        }
    }};
}
pub(super) use each_storage;

/// Distance in elements between neighbours along each dimension of a
/// contiguous tensor of `shape`.
pub(crate) fn contiguous(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1) as isize;
    }
    strides
}

/// Strides under which a contiguous tensor of shape `from` reads as one of
/// shape `to`, which it broadcasts to.
pub(super) fn broadcast(from: &[usize], to: &[usize]) -> Vec<isize> {
    let missing = to.len() - from.len();
    let strides = contiguous(from);
    (0..to.len())
        .map(|i| match i.checked_sub(missing) {
            Some(j) if from[j] != 1 => strides[j],
            _ => 0,
        })
        .collect()
}

/// A loop nest over `N` views of one shape, with neighbouring dimensions
/// merged where every view allows it.
pub(super) struct Nest<const N: usize> {
    dims: Vec<usize>,
    strides: Vec<[isize; N]>,
}

impl<const N: usize> Nest<N> {
    /// The loops over `shape` for views of these strides.
    pub(super) fn new(shape: &[usize], views: [&[isize]; N]) -> Nest<N> {
        let mut nest = Nest { dims: vec![], strides: vec![] };
        for (i, &n) in shape.iter().enumerate() {
            if n == 1 {
                continue;
            }
            let strides = views.map(|v| v[i]);
            if let (Some(outer), Some(last)) = (nest.dims.last_mut(), nest.strides.last_mut())
                && (0..N).all(|k| last[k] == strides[k] * n as isize)
            {
                *outer *= n;
                *last = strides;
            } else {
                nest.dims.push(n);
                nest.strides.push(strides);
            }
        }
        if nest.dims.is_empty() {
            nest.dims.push(1);
            nest.strides.push([1; N]);
        }
        nest
    }

    /// Length and strides of the innermost loop.
    pub(super) fn inner(&self) -> (usize, [isize; N]) {
        (self.dims[self.dims.len() - 1], self.strides[self.dims.len() - 1])
    }

    /// Calls `f` with the offsets at which each innermost loop starts, row by
    /// row; `start` holds the offsets of the first.
    pub(super) fn rows(&self, start: [isize; N], mut f: impl FnMut([usize; N])) {
        if self.dims.contains(&0) {
            return;
        }
        let outer = self.dims.len() - 1;
        let mut index = vec![0; outer];
        let mut at = start;
        loop {
            f(at.map(|x| x as usize));
            let mut d = outer;
            loop {
                if d == 0 {
                    return;
                }
                d -= 1;
                index[d] += 1;
                let back = if index[d] == self.dims[d] { self.dims[d] as isize - 1 } else { -1 };
                for (at, stride) in at.iter_mut().zip(self.strides[d]) {
                    *at -= back * stride;
                }
                if index[d] < self.dims[d] {
                    break;
                }
                index[d] = 0;
            }
        }
    }
}

/// A view prepared to be copied many times: for each axis of the result, those
/// that merge taken as one, its size and the distance of its elements.
#[derive(Debug)]
pub(super) struct Moved {
    start: usize,
    axes: Vec<(usize, isize)>,
}

impl Moved {
    /// The view of `shape` whose element at `i` is that at `start + i . strides`.
    pub(super) fn new(shape: &[usize], strides: &[isize], start: usize) -> Moved {
        let nest = Nest::new(shape, [strides]);
        Moved { start, axes: nest.dims.into_iter().zip(nest.strides.into_iter().map(|[s]| s)).collect() }
    }

    /// How a plan copies it from a tensor of `len` elements.
    pub(super) fn prepared(self, len: usize) -> Prepared {
        match self.axes.as_slice() {
            [(n, 1)] if (self.start, *n) == (0, len) => Prepared::Alias,
            _ => Prepared::Routine(Box::new(self)),
        }
    }

    fn copy<T: Copy + Send + Sync>(&self, x: &[T], y: &mut [T]) {
        /// Elements that are worth a task of their own.
        const TASK: usize = 1 << 15;
        let Some((&(size, stride), outer)) = self.axes.split_last().filter(|_| !y.is_empty()) else { return };
        let rows = parallel::rows_of_a_task(TASK, size, y.len() / size);
        parallel::chunks(y, rows * size, |task, y| {
            for (i, y) in y.chunks_exact_mut(size).enumerate() {
                let (mut row, mut at) = (task * rows + i, self.start as isize);
                for (size, stride) in outer.iter().rev() {
                    at += (row % size) as isize * stride;
                    row /= size;
                }
                match stride {
                    0 => y.fill(x[at as usize]),
                    1 => y.copy_from_slice(&x[at as usize..][..size]),
                    2.. => {
                        let x = x[at as usize..].iter().step_by(stride as usize);
                        y.iter_mut().zip(x).for_each(|(y, x)| *y = *x);
                    }
                    _ => y
                        .iter_mut()
                        .enumerate()
                        .for_each(|(i, y)| *y = x[(at + i as isize * stride) as usize]),
                }
            }
        });
    }
}

impl Routine for Moved {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        match x[0] {
            View::F32(x) => self.copy(x, y.f32()?),
            View::U8(x) => self.copy(x, y.u8()?),
            View::I8(x) => self.copy(x, y.i8()?),
            View::Other => return Err(invalid!("no routine moves this type")),
        }
        Ok(())
    }
}

/// The tensor of `shape` whose element at `i` is the element of `t` at
/// `start + i . strides`. Every such position must lie within `t`.
///
/// # Errors
/// If `shape` has too many elements.
pub(super) fn view(t: &Tensor, shape: &[usize], strides: &[isize], start: usize) -> Result<Tensor> {
    each_storage!(t.dtype(), T => {
        Tensor::coded(t.dtype(), shape, copy::<T>(t.slice()?, shape, strides, start)?)
    })
}

fn copy<T: Element>(x: &[T], shape: &[usize], strides: &[isize], start: usize) -> Result<Vec<T>> {
    let count = element_count(shape)?;
    let nest = Nest::new(shape, [strides]);
    if let Some(y) = transposed(x, &nest, start) {
        return Ok(y);
    }
    let mut y = Vec::with_capacity(count);
    let (n, [stride]) = nest.inner();
    nest.rows([start as isize], |[at]| match stride {
        1 => y.extend_from_slice(&x[at..at + n]),
        0 => y.resize(y.len() + n, x[at]),
        _ => y.extend((0..n as isize).map(|i| x[(at as isize + i * stride) as usize])),
    });
    Ok(y)
}

/// The copy of a view whose last two loops exchange rows and columns, or none
/// if they do not.
fn transposed<T: Element>(x: &[T], nest: &Nest<1>, start: usize) -> Option<Vec<T>> {
    let outer = nest.dims.len().checked_sub(2)?;
    let &[rows, cols] = nest.dims[outer..].first_chunk()?;
    let &[[1], [pitch]] = nest.strides[outer..].first_chunk()? else { return None };
    let pitch = usize::try_from(pitch).ok().filter(|&p| p >= rows && rows * cols > 0)?;
    let matrices = Nest {
        dims: [&nest.dims[..outer], &[1]].concat(),
        strides: [&nest.strides[..outer], &[[1]]].concat(),
    };
    let mut y = Vec::with_capacity(nest.dims.iter().product());
    matrices.rows([start as isize], |[at]| {
        let x = &x[at..at + (cols - 1) * pitch + rows];
        match cols {
            1 => y.extend_from_slice(x),
            2 => interleave::<T, 2>(x, pitch, rows, &mut y),
            3 => interleave::<T, 3>(x, pitch, rows, &mut y),
            4 => interleave::<T, 4>(x, pitch, rows, &mut y),
            _ => exchange(x, pitch, rows, cols, &mut y),
        }
    });
    Some(y)
}

/// Appends `rows` rows of `C` elements; column `c` begins at `c * pitch` of `x`.
fn interleave<T: Element, const C: usize>(x: &[T], pitch: usize, rows: usize, y: &mut Vec<T>) {
    let columns: [&[T]; C] = std::array::from_fn(|c| &x[c * pitch..][..rows]);
    y.extend((0..rows).flat_map(|r| std::array::from_fn::<T, C, _>(|c| columns[c][r])));
}

/// [`interleave`] of any number of columns, in blocks that stay in the cache.
fn exchange<T: Element>(x: &[T], pitch: usize, rows: usize, cols: usize, y: &mut Vec<T>) {
    const BLOCK: usize = 16;
    let start = y.len();
    y.resize(start + rows * cols, x[0]);
    let y = &mut y[start..];
    for (b, y) in y.chunks_mut(BLOCK * cols).enumerate() {
        let count = y.len() / cols;
        for c in 0..cols {
            let column = &x[c * pitch + b * BLOCK..][..count];
            for (y, &x) in y[c..].iter_mut().step_by(cols).zip(column) {
                *y = x;
            }
        }
    }
}

/// `t` with its dimensions in the order `perm`, a permutation.
///
/// # Errors
/// None for a valid permutation.
pub(super) fn permuted(t: &Tensor, perm: &[usize]) -> Result<Tensor> {
    if perm.iter().enumerate().all(|(i, &p)| i == p) {
        return Ok(t.clone());
    }
    let strides = contiguous(t.shape());
    let shape: Vec<usize> = perm.iter().map(|&p| t.shape()[p]).collect();
    let strides: Vec<isize> = perm.iter().map(|&p| strides[p]).collect();
    view(t, &shape, &strides, 0)
}

/// What [`permuted`] by `perm` was given, where `t` is the result.
///
/// # Errors
/// None for a valid permutation.
pub(super) fn permuted_back(t: &Tensor, perm: &[usize]) -> Result<Tensor> {
    let mut back = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(i, &p)| back[p] = i);
    permuted(t, &back)
}

/// The tensor of `shape` with the elements of the f32 tensor `t` at
/// `start + i . strides`, positions that differ, and zeros elsewhere: a
/// gradient's way back through [`view`].
///
/// # Errors
/// If `t` is not f32.
pub(super) fn placed(t: &Tensor, shape: &[usize], strides: &[isize], start: usize) -> Result<Tensor> {
    let (x, mut y) = (t.slice::<f32>()?, vec![0f32; element_count(shape)?]);
    let nest = Nest::new(t.shape(), [&contiguous(t.shape()), strides]);
    let (n, [_, step]) = nest.inner();
    nest.rows([0, start as isize], |[from, to]| {
        let x = &x[from..][..n];
        if step == 1 {
            y[to..][..n].copy_from_slice(x);
        } else {
            x.iter().enumerate().for_each(|(i, x)| y[(to as isize + i as isize * step) as usize] = *x);
        }
    });
    Tensor::new(shape, y)
}

/// `t` stretched to `shape`, which it must broadcast to.
///
/// # Errors
/// If `shape` has too many elements.
pub(crate) fn stretched(t: &Tensor, shape: &[usize]) -> Result<Tensor> {
    if t.shape() == shape {
        return Ok(t.clone());
    }
    view(t, shape, &broadcast(t.shape(), shape), 0)
}

/// `f` of the elements of `a` and `b`, which broadcast to `shape`.
pub(super) fn zip<T: Copy, S: Copy, U>(
    shape: &[usize],
    (a, a_shape): (&[T], &[usize]),
    (b, b_shape): (&[S], &[usize]),
    f: impl Fn(T, S) -> U,
) -> Result<Vec<U>> {
    let mut y = Vec::with_capacity(element_count(shape)?);
    let (sa, sb) = (broadcast(a_shape, shape), broadcast(b_shape, shape));
    let nest = Nest::new(shape, [&sa, &sb]);
    let (n, strides) = nest.inner();
    nest.rows([0; 2], |[i, j]| match strides {
        [1, 1] => y.extend(a[i..i + n].iter().zip(&b[j..j + n]).map(|(&a, &b)| f(a, b))),
        [1, 0] => {
            let b = b[j];
            y.extend(a[i..i + n].iter().map(|&a| f(a, b)));
        }
        [0, 1] => {
            let a = a[i];
            y.extend(b[j..j + n].iter().map(|&b| f(a, b)));
        }
        [s, t] => y.extend((0..n).map(|k| f(a[i + k * s as usize], b[j + k * t as usize]))),
    });
    Ok(y)
}
