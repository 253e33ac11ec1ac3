//! Output matrices that may be split among threads.

use std::marker::PhantomData;
#[cfg(target_arch = "x86_64")]
use std::ops::Range;
use std::slice;

use crate::rows::check_matrix;

/// A writable matrix whose rows are contiguous and `stride` elements apart.
/// Splitting gives parts that share no element, by rows or by columns.
#[derive(Debug)]
pub struct Grid<'a, T> {
    data: *mut T,
    rows: usize,
    columns: usize,
    stride: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: a Grid is the only access to its elements, as `&mut [T]` is: it is
// made from an exclusive borrow, is not Clone, and splits into parts that share
// no element.
unsafe impl<T: Send> Send for Grid<'_, T> {}

impl<'a, T> Grid<'a, T> {
    /// `rows` x `columns` elements of `data`, whose rows start `stride` apart.
    ///
    /// # Panics
    ///
    /// The rows overlap or do not lie in `data`.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize, stride: usize) -> Grid<'a, T> {
        assert!(stride >= columns, "output stride {stride} is below {columns} columns");
        check_matrix("output", data.len(), rows, columns, stride);
        Grid { data: data.as_mut_ptr(), rows, columns, stride, owner: PhantomData }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The first `at` rows, and the others.
    ///
    /// # Panics
    ///
    /// There are fewer.
    pub fn split_rows(self, at: usize) -> (Grid<'a, T>, Grid<'a, T>) {
        assert!(at <= self.rows, "row {at} of {}", self.rows);
        // An address only: it may be past the end where no row follows.
        let data = self.data.wrapping_add(at * self.stride);
        (Grid { rows: at, ..self }, Grid { data, rows: self.rows - at, ..self })
    }

    /// The first `at` columns, and the others.
    ///
    /// # Panics
    ///
    /// There are fewer.
    pub fn split_columns(self, at: usize) -> (Grid<'a, T>, Grid<'a, T>) {
        assert!(at <= self.columns, "column {at} of {}", self.columns);
        let data = self.data.wrapping_add(at);
        (Grid { columns: at, ..self }, Grid { data, columns: self.columns - at, ..self })
    }

    /// The same elements, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> Grid<'_, T> {
        Grid { owner: PhantomData, ..*self }
    }

    /// Where the `width` elements of each of some rows from `column` on lie: the first
    /// one, and the distance of rows.
    ///
    /// # Panics
    ///
    /// They are not in the matrix.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn block(&mut self, rows: Range<usize>, column: usize, width: usize) -> (*mut T, usize) {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(column <= self.columns && width <= self.columns - column);
        (self.data.wrapping_add(rows.start * self.stride + column), self.stride)
    }

    /// `width` elements of row `row` from `column`.
    ///
    /// # Panics
    ///
    /// They are not in the matrix.
    #[inline(always)]
    pub fn run(&mut self, row: usize, column: usize, width: usize) -> &mut [T] {
        assert!(row < self.rows && column <= self.columns && width <= self.columns - column);
        // SAFETY: row and columns exist, so by `check_matrix` in `new`, which
        // splits keep true, the elements lie in the slice borrowed for 'a, and
        // `&mut self` makes the access exclusive.
        unsafe { slice::from_raw_parts_mut(self.data.add(row * self.stride + column), width) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_and_complete() {
        let mut data = [0u8; 23];
        let (left, right) = Grid::new(&mut data, 4, 5, 6).split_columns(2);
        let (top, bottom) = right.split_rows(1);
        for (mark, mut part) in [(1, left), (2, top), (3, bottom)] {
            for row in 0..part.rows() {
                let columns = part.columns();
                part.run(row, 0, columns).iter_mut().for_each(|x| *x += mark);
            }
        }
        let row = |r: u8| [1, 1, r, r, r, 0];
        assert_eq!(data[..], [row(2), row(3), row(3), row(3)].concat()[..23]);
    }

    #[test]
    fn what_does_not_exist_panics() {
        let panics = |f: fn(Grid<'_, u8>)| {
            let mut data = [0; 11];
            std::panic::catch_unwind(move || f(Grid::new(&mut data, 2, 5, 6))).is_err()
        };
        assert!(!panics(|mut g| assert_eq!(g.run(1, 5, 0).len() + g.run(1, 0, 5).len(), 5)));
        let wrong: [fn(Grid<'_, u8>); 7] = [
            |mut g| g.run(2, 0, 1).fill(0),
            |mut g| g.run(0, 1, 5).fill(0),
            |mut g| g.run(0, 6, 0).fill(0),
            |g| _ = g.split_rows(3),
            |g| _ = g.split_columns(6),
            |_| _ = Grid::new(&mut [0; 10], 2, 5, 6),
            |_| _ = Grid::new(&mut [0; 10], 2, 5, 4),
        ];
        for (i, f) in wrong.into_iter().enumerate() {
            assert!(panics(f), "case {i}");
        }
    }
}
