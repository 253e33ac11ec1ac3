//! Views of f32 matrices whose rows lie contiguous in a slice.

use std::marker::PhantomData;
use std::slice;

use crate::rows::Rows;

/// A read-only matrix: element `(i, j)` lies at `i * stride + j`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> Matrix<'a> {
    /// The row-major matrix at the start of `data`.
    ///
    /// # Panics
    /// If `data` is shorter than `rows * cols`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Matrix<'a> {
        Matrix::strided(data, rows, cols, cols)
    }

    /// The matrix at the start of `data` whose rows lie `stride` apart.
    ///
    /// # Panics
    /// If `data` is too short.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Matrix<'a> {
        assert!(fits(data.len(), rows, cols, stride), "a {rows}x{cols} matrix outside its data");
        Matrix { data, rows, cols, stride }
    }

    /// The number of rows and of columns.
    pub fn size(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// From the first element on; the last row may end with the slice.
    pub(crate) fn data(&self) -> &'a [f32] {
        self.data
    }

    /// The distance of rows, in elements.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If there is none.
    #[inline]
    pub fn row(&self, i: usize) -> &'a [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        if self.cols == 0 { &[] } else { &self.data[i * self.stride..][..self.cols] }
    }

    /// The `count` rows from `start`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn rows(self, start: usize, count: usize) -> Matrix<'a> {
        assert!(start <= self.rows && count <= self.rows - start, "rows outside the matrix");
        let data = self.data.get(start * self.stride..).unwrap_or_default();
        Matrix { data, rows: count, ..self }
    }

    /// The `count` columns from `start`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn cols(self, start: usize, count: usize) -> Matrix<'a> {
        assert!(start <= self.cols && count <= self.cols - start, "columns outside the matrix");
        Matrix { data: self.data.get(start..).unwrap_or_default(), cols: count, ..self }
    }
}

impl<'a> From<Matrix<'a>> for Rows<'a, f32> {
    fn from(m: Matrix<'a>) -> Rows<'a, f32> {
        match m.cols {
            0 => Rows::strided(&[], 0, m.rows, 0),
            _ => Rows::strided(m.data, m.stride, m.rows, m.cols),
        }
    }
}

/// Whether every element of a matrix lies in a slice of `len`.
fn fits(len: usize, rows: usize, cols: usize, stride: usize) -> bool {
    let Some(last) = rows.checked_sub(1).filter(|_| cols > 0) else { return true };
    last.checked_mul(stride).and_then(|n| n.checked_add(cols)).is_some_and(|end| end <= len)
}

/// A writable matrix with contiguous rows, which may be split into disjoint
/// parts for several threads.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: a MatrixMut is the only access to its elements, as `&mut [f32]` is:
// it is made from an exclusive borrow, is not Clone, and splits into parts
// that share no element.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// The row-major matrix at the start of `data`.
    ///
    /// # Panics
    /// If `data` is shorter than `rows * cols`.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> MatrixMut<'a> {
        assert!(fits(data.len(), rows, cols, cols), "a {rows}x{cols} matrix outside its data");
        MatrixMut { data: data.as_mut_ptr(), rows, cols, stride: cols, owner: PhantomData }
    }

    /// The matrix at the start of `data` whose rows lie `stride` apart.
    ///
    /// # Panics
    /// If the rows overlap, or `data` is too short.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> MatrixMut<'a> {
        assert!(stride >= cols, "a stride of {stride} for {cols} columns");
        assert!(fits(data.len(), rows, cols, stride), "a {rows}x{cols} matrix outside its data");
        MatrixMut { data: data.as_mut_ptr(), rows, cols, stride, owner: PhantomData }
    }

    /// The number of rows and of columns.
    pub fn size(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The same elements for a shorter time.
    pub fn reborrow(&mut self) -> MatrixMut<'_> {
        MatrixMut { owner: PhantomData, ..*self }
    }

    /// The first `at` columns, and the others.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_cols(self, at: usize) -> (MatrixMut<'a>, MatrixMut<'a>) {
        assert!(at <= self.cols, "columns outside the matrix");
        // An address only: it may be past the end where no element follows.
        let data = self.data.wrapping_add(at);
        (MatrixMut { cols: at, ..self }, MatrixMut { data, cols: self.cols - at, ..self })
    }

    /// The first `at` rows, and the others.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_rows(self, at: usize) -> (MatrixMut<'a>, MatrixMut<'a>) {
        assert!(at <= self.rows, "rows outside the matrix");
        let data = self.data.wrapping_add(at * self.stride);
        (MatrixMut { rows: at, ..self }, MatrixMut { data, rows: self.rows - at, ..self })
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If there is none.
    pub fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        if self.cols == 0 {
            return &mut [];
        }
        // SAFETY: `fits` was checked when the view was made, and splits keep
        // within it, so the `cols` elements from `i * stride` are in the
        // slice borrowed for 'a; `&mut self` makes the access exclusive.
        unsafe { slice::from_raw_parts_mut(self.data.wrapping_add(i * self.stride), self.cols) }
    }

    /// Element `(i, j)` and the distance of rows. Rows `i..` and columns `j..`
    /// of the view lie behind it.
    pub(crate) fn at(&mut self, i: usize, j: usize) -> (*mut f32, usize) {
        (self.data.wrapping_add(i * self.stride + j), self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_and_complete() {
        let mut c = vec![0.0; 9 * 70];
        let (left, right) = MatrixMut::new(&mut c, 9, 70).split_cols(33);
        let (top, bottom) = right.split_rows(4);
        std::thread::scope(|s| {
            for (i, mut part) in [left, top, bottom].into_iter().enumerate() {
                s.spawn(move || {
                    for r in 0..part.size()[0] {
                        part.reborrow().row(r).iter_mut().for_each(|x| *x += (i + 1) as f32);
                    }
                });
            }
        });
        for (i, row) in c.chunks(70).enumerate() {
            let want: Vec<f32> = (0..70)
                .map(|j| match (i, j) {
                    (_, ..33) => 1.0,
                    (..4, _) => 2.0,
                    _ => 3.0,
                })
                .collect();
            assert_eq!(row, want, "row {i}");
        }
        assert_eq!(MatrixMut::new(&mut c, 9, 0).row(5), &mut [] as &mut [f32]);
    }

    #[test]
    fn views_read_what_they_name() {
        let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let m = Matrix::new(&x, 3, 4);
        assert_eq!(m.row(2), [8.0, 9.0, 10.0, 11.0]);
        assert_eq!(m.rows(1, 2).cols(1, 2).row(1), [9.0, 10.0]);
        assert_eq!(m.cols(4, 0).row(2), []);
        assert_eq!(m.rows(3, 0).size(), [0, 4]);
    }

    #[test]
    fn views_outside_their_data_panic() {
        let x = [0.0; 6];
        let huge = usize::MAX / 2;
        assert_eq!(Matrix::strided(&x, 2, 2, 4).size(), [2, 2]);
        let bad: [fn(&[f32]) -> Matrix; 6] = [
            |x| Matrix::strided(x, 2, 3, 4),
            |x| Matrix::new(x, 2, 4),
            |x| Matrix::new(x, usize::MAX / 2, 3),
            |x| Matrix::new(x, 2, 3).rows(1, 2),
            |x| Matrix::new(x, 2, 3).cols(3, 1),
            |x| Matrix::new(x, 2, 3).cols(usize::MAX, 2),
        ];
        for (i, view) in bad.iter().enumerate() {
            assert!(std::panic::catch_unwind(|| view(&x).rows).is_err(), "case {i}");
        }
        assert!(std::panic::catch_unwind(|| MatrixMut::new(&mut [0.0; 3], 2, huge).rows).is_err());
        assert_eq!(Matrix::new(&x, 0, huge).cols, huge);
    }
}
