//! Products of stacks of matrices, each read where it lies: in a tensor whose
//! axes may have another order than the product's.

use rayon::prelude::*;

use crate::error::{Result, invalid};
use crate::op::{Dim, Fact};
use crate::ops::broadcast;
use crate::ops::strided::contiguous;
use crate::parallel;

/// Multiply-accumulates that are worth a task, each of which packs its right matrix.
const TASK: usize = 1 << 19;
/// The most tasks of a product, each of which has memory of its own.
const TASKS: usize = 16;

/// For each operand of a product, which of its axes is which axis of the
/// product's; all as they are where there is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axes(pub [Option<Vec<usize>>; 2]);

impl Axes {
    /// Whether operand `i` can be read with its axes in this order: rows that are
    /// runs of elements on the left, columns or rows on the right.
    pub fn reads(i: usize, axes: &[usize]) -> bool {
        let last = axes.len().wrapping_sub(1);
        axes.last() == Some(&last) || (i == 1 && axes.len() > 1 && axes[last - 1] == last)
    }

    /// These axes where operand `i` is what `perm` makes of another one, which is
    /// read in its place; `None` if it cannot be.
    pub fn transposed(&self, i: usize, perm: &[usize]) -> Option<Axes> {
        let axes = self.ordered(i, perm);
        let mut all = self.clone();
        Axes::reads(i, &axes).then(|| {
            all.0[i] = Some(axes);
            all
        })
    }

    /// Operand `i`'s shape, or another thing of its axes, in the product's order.
    pub fn ordered<T: Clone>(&self, i: usize, of_axes: &[T]) -> Vec<T> {
        match &self.0[i] {
            Some(axes) => axes.iter().map(|&a| of_axes[a].clone()).collect(),
            None => of_axes.to_vec(),
        }
    }

    /// The shape of the product of two operands.
    ///
    /// # Errors
    /// If they are not matrices, or do not fit.
    pub fn product(&self, x: &[&Fact]) -> Result<Vec<Dim>> {
        let (a, b) = (self.ordered(0, &x[0].shape), self.ordered(1, &x[1].shape));
        let ([batch_a @ .., m, k], [batch_b @ .., depth, n]) = (a.as_slice(), b.as_slice()) else {
            return Err(invalid!("needs matrices, found {} and {}", x[0], x[1]));
        };
        if let (Dim::Known(k), Dim::Known(depth)) = (k, depth)
            && k != depth
        {
            return Err(invalid!("a product over {k} columns and {depth} rows; they must be equal"));
        }
        let mut shape = broadcast::dims(batch_a, batch_b)?;
        shape.extend([m.clone(), n.clone()]);
        Ok(shape)
    }

    /// Multiply-accumulates of the product `y`.
    pub fn macs(&self, x: &[&Fact], y: &Fact) -> u64 {
        let inner = self.ordered(0, &x[0].shape).last().and_then(Dim::known).unwrap_or(1);
        y.elements().saturating_mul(inner as u64)
    }
}

/// Matrices within a tensor.
#[derive(Debug)]
pub struct Matrices {
    /// Where each matrix of the result finds its own.
    offsets: Vec<usize>,
    /// From one row to the next, and from one column to the next.
    pub strides: [usize; 2],
}

impl Matrices {
    /// Operand `i`, broadcast to the axes `batch`.
    fn new(axes: &Axes, i: usize, shape: &[usize], batch: &[usize]) -> Matrices {
        if shape.contains(&0) {
            return Matrices { offsets: vec![0; batch.iter().product()], strides: [0, 1] };
        }
        let strides = contiguous(shape).into_iter().map(|s| s as usize).collect::<Vec<_>>();
        let (shape, strides) = (axes.ordered(i, shape), axes.ordered(i, &strides));
        let rank = shape.len();
        let mut offsets = vec![0];
        for (axis, &size) in batch.iter().enumerate() {
            let own = (axis + rank - 2).checked_sub(batch.len()).filter(|&own| shape[own] != 1);
            let step = own.map_or(0, |own| strides[own]);
            offsets = offsets.iter().flat_map(|o| (0..size).map(move |j| o + j * step)).collect();
        }
        Matrices { offsets, strides: [strides[rank - 2], strides[rank - 1]] }
    }
}

/// A product of known size, in units, that is ranges of rows of one matrix of the
/// result, and tasks of several units.
#[derive(Debug)]
pub struct Stacks {
    /// Rows, columns and depth of each product.
    pub size: [usize; 3],
    /// The left matrices.
    pub left: Matrices,
    /// The right matrices.
    pub right: Matrices,
    /// Rows of a unit.
    pub unit_rows: usize,
    /// How many matrices of the result lie side by side, those along the last axis of
    /// the batch: 1 if one lies behind the other.
    pub beside: usize,
    units_of_a_task: usize,
    tasks: usize,
}

/// What a unit multiplies.
pub struct Unit {
    /// The first element of its rows in the left operand.
    pub left: usize,
    /// The first element of its matrix in the right operand.
    pub right: usize,
    /// The first column of its rows of the result.
    pub column: usize,
    /// Whether the unit before it in its task had another right matrix, if any.
    pub is_first: bool,
}

impl Stacks {
    /// The product of operands of these shapes, with matrices of the result side by
    /// side if `beside`.
    ///
    /// # Errors
    /// If they are not matrices, or do not fit.
    pub fn new(axes: &Axes, a: &[usize], b: &[usize], beside: bool) -> Result<Stacks> {
        let (x, y) = (axes.ordered(0, a), axes.ordered(1, b));
        let ([batch_x @ .., m, k], [batch_y @ .., depth, n]) = (x.as_slice(), y.as_slice()) else {
            return Err(invalid!("needs matrices, found {a:?} and {b:?}"));
        };
        if k != depth {
            return Err(invalid!("a product over {k} columns and {depth} rows; they must be equal"));
        }
        let batch = broadcast::shape(batch_x, batch_y)?;
        let beside = batch.last().copied().filter(|_| beside).unwrap_or(1).max(1);
        let matrices = batch.iter().product::<usize>() / beside;
        let work = if matrices < TASKS { TASK } else { usize::MAX };
        let unit_rows = parallel::rows_of_a_task(work, k * n * beside, *m);
        let units = matrices * (m / unit_rows);
        let units_of_a_task = units.div_ceil(TASKS).max(1);
        Ok(Stacks {
            size: [*m, *n, *k],
            left: Matrices::new(axes, 0, a, &batch),
            right: Matrices::new(axes, 1, b, &batch),
            unit_rows,
            beside,
            units_of_a_task,
            tasks: units.div_ceil(units_of_a_task),
        })
    }

    /// How many matrices the result has.
    pub fn matrices(&self) -> usize {
        self.left.offsets.len()
    }

    /// Bytes that [`Stacks::for_each_unit`] needs for tasks of `memory` bytes.
    pub fn scratch(&self, memory: usize) -> usize {
        self.tasks * memory
    }

    /// Calls `f` for each unit with its rows of the result `y` and its task's
    /// `memory` bytes of `scratch`, the tasks spread over the threads of the pool.
    pub fn for_each_unit<T: Send>(
        &self,
        y: &mut [T],
        scratch: &mut [u8],
        memory: usize,
        f: impl Fn(Unit, &mut [T], &mut [u8]) + Sync,
    ) {
        if y.is_empty() {
            return;
        }
        let elements = self.unit_rows * self.size[1] * self.beside;
        let task = |i: usize, y: &mut [T], memory: &mut [u8]| {
            let mut held = None;
            for (u, y) in y.chunks_exact_mut(elements).enumerate() {
                let first = (i * self.units_of_a_task + u) * self.unit_rows;
                let (matrix, row) = (first / self.size[0] * self.beside, first % self.size[0]);
                for i in 0..self.beside {
                    let left = self.left.offsets[matrix + i] + row * self.left.strides[0];
                    let right = self.right.offsets[matrix + i];
                    let (column, is_first) = (i * self.size[1], held != Some(right));
                    f(Unit { left, right, column, is_first }, y, memory);
                    held = Some(right);
                }
            }
        };
        let elements = self.units_of_a_task * elements;
        if rayon::current_num_threads() == 1 {
            y.chunks_mut(elements).enumerate().for_each(|(i, y)| task(i, y, &mut scratch[..memory]));
        } else {
            let tasks = y.par_chunks_mut(elements).zip(scratch.par_chunks_mut(memory)).enumerate();
            tasks.for_each(|(i, (y, memory))| task(i, y, memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_read_where_their_rows_or_columns_are_runs() {
        let cases: [(usize, &[usize], bool); 7] = [
            (0, &[0, 2, 1, 3], true),
            (0, &[0, 2, 3, 1], false),
            (1, &[0, 2, 1, 3], true),
            (1, &[0, 2, 3, 1], true),
            (1, &[3, 2, 1, 0], false),
            (1, &[0, 3, 1, 2], false),
            (0, &[], false),
        ];
        for (i, axes, want) in cases {
            assert_eq!(Axes::reads(i, axes), want, "{i}, {axes:?}");
            let once = Axes::default().transposed(i, axes);
            assert_eq!(once.is_some(), want);
        }
        // [N, T, H, D] as heads, and these transposed.
        let heads =
            Axes::default().transposed(1, &[0, 1, 3, 2]).unwrap().transposed(1, &[0, 2, 1, 3]).unwrap();
        assert_eq!(heads.0[1], Some(vec![0, 2, 3, 1]));
    }
}
