//! f32 matrix products: safe strided views over slices, multiplied by `gemm`.

use std::marker::PhantomData;
use std::slice;

use gemm::Parallelism;

/// A read-only matrix: element `(i, j)` lies at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// The row-major matrix at the start of `data`.
    ///
    /// # Panics
    /// If `data` is shorter than `rows * cols`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Matrix<'a> {
        Matrix::strided(data, [rows, cols], [cols, 1])
    }

    /// The matrix of these `[rows, cols]` and of the strides, in elements, of
    /// a row and of a column.
    ///
    /// # Panics
    /// If an element lies outside `data`.
    pub fn strided(data: &'a [f32], [rows, cols]: [usize; 2], strides: [usize; 2]) -> Matrix<'a> {
        assert!(fits(data.len(), [rows, cols], strides), "a {rows}x{cols} matrix outside its data");
        Matrix { data, rows, cols, row_stride: strides[0], col_stride: strides[1] }
    }

    /// Rows and columns exchanged.
    pub fn transposed(self) -> Matrix<'a> {
        Matrix {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// The `count` rows from `start`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn rows(self, start: usize, count: usize) -> Matrix<'a> {
        assert!(start <= self.rows && count <= self.rows - start, "rows outside the matrix");
        let data = self.data.get(start * self.row_stride..).unwrap_or_default();
        Matrix::strided(data, [count, self.cols], [self.row_stride, self.col_stride])
    }

    /// The `count` columns from `start`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn cols(self, start: usize, count: usize) -> Matrix<'a> {
        self.transposed().rows(start, count).transposed()
    }
}

/// Whether every element of a strided matrix lies in a slice of `len`.
fn fits(len: usize, size: [usize; 2], stride: [usize; 2]) -> bool {
    if size.contains(&0) {
        return true;
    }
    let reach = |i: usize| (size[i] - 1).checked_mul(stride[i]);
    reach(0).zip(reach(1)).and_then(|(a, b)| a.checked_add(b)).is_some_and(|last| last < len)
}

/// A writable matrix with contiguous rows, which may be split into disjoint
/// parts for several threads.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
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
        assert!(fits(data.len(), [rows, cols], [cols, 1]), "a {rows}x{cols} matrix outside its data");
        MatrixMut { data: data.as_mut_ptr(), rows, cols, row_stride: cols, owner: PhantomData }
    }

    /// The number of rows and of columns.
    pub fn size(&self) -> [usize; 2] {
        [self.rows, self.cols]
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
        let data = self.data.wrapping_add(at * self.row_stride);
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
        // within it, so the `cols` elements from `i * row_stride` are in the
        // slice borrowed for 'a; `&mut self` makes the access exclusive.
        unsafe { slice::from_raw_parts_mut(self.data.wrapping_add(i * self.row_stride), self.cols) }
    }

    /// `self = alpha * a * b`, or `self += alpha * a * b` if `accumulate`.
    /// With `parallel`, on all threads of the current rayon pool; the result
    /// does not depend on their number.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn multiply(&mut self, alpha: f32, a: Matrix, b: Matrix, accumulate: bool, parallel: bool) {
        assert!(
            [a.rows, a.cols, b.cols] == [self.rows, b.rows, self.cols],
            "{}x{} times {}x{} into {}x{}",
            a.rows,
            a.cols,
            b.rows,
            b.cols,
            self.rows,
            self.cols
        );
        if self.rows == 0 || self.cols == 0 {
            return;
        }
        if a.cols == 0 {
            if !accumulate {
                (0..self.rows).for_each(|i| self.row(i).fill(0.0));
            }
            return;
        }
        // SAFETY: the sizes agree (asserted above). Every element of `a` and
        // `b` lies in its slice, and of `self` in the exclusively borrowed one
        // (`fits`), so no pair of them overlaps. Strides fit isize, as they
        // are below a slice's length or their dimension is 1.
        unsafe {
            gemm::gemm(
                self.rows,
                self.cols,
                a.cols,
                self.data,
                1,
                self.row_stride as isize,
                accumulate,
                a.data.as_ptr(),
                a.col_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr(),
                b.col_stride as isize,
                b.row_stride as isize,
                1.0,
                alpha,
                false,
                false,
                false,
                if parallel { Parallelism::Rayon(0) } else { Parallelism::None },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37) % 23) as f32 - 11.0).collect()
    }

    /// Small integers: sums are exact in any order.
    fn naive(a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) -> Vec<f32> {
        (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum()).collect()
    }

    fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
    }

    #[test]
    fn multiply_equals_the_definition() {
        const SIZES: [usize; 7] = [0, 1, 2, 7, 16, 33, 65];
        for i in 0..SIZES.len().pow(3) {
            let [m, n, k] = [i / 49, i / 7 % 7, i % 7].map(|i| SIZES[i]);
            let (a, b) = (ramp(m * k), ramp(k * n));
            let want = naive(&a, &b, [m, n, k]);
            let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
            for (parallel, flip_a, flip_b) in
                [(false, false, false), (true, false, true), (false, true, false), (true, true, true)]
            {
                let left = if flip_a { Matrix::new(&at, k, m).transposed() } else { Matrix::new(&a, m, k) };
                let right = if flip_b { Matrix::new(&bt, n, k).transposed() } else { Matrix::new(&b, k, n) };
                let mut c = vec![1.0; m * n];
                MatrixMut::new(&mut c, m, n).multiply(2.0, left, right, true, parallel);
                let twice: Vec<f32> = want.iter().map(|x| 1.0 + 2.0 * x).collect();
                assert_eq!(c, twice, "{m}x{k}x{n} accumulated");
                c.fill(f32::NAN);
                MatrixMut::new(&mut c, m, n).multiply(1.0, left, right, false, parallel);
                assert_eq!(c, want, "{m}x{k}x{n}");
            }
        }
    }

    #[test]
    fn parts_are_disjoint_and_complete() {
        let (m, n, k) = (9, 70, 12);
        let (a, b) = (ramp(m * k), ramp(k * n));
        let mut c = vec![f32::NAN; m * n];
        let (left, right) = MatrixMut::new(&mut c, m, n).split_cols(33);
        let (top, bottom) = right.split_rows(4);
        let (a_view, b_view) = (Matrix::new(&a, m, k), Matrix::new(&b, k, n));
        let parts = [
            (left, a_view, b_view.cols(0, 33)),
            (top, a_view.rows(0, 4), b_view.cols(33, 37)),
            (bottom, a_view.rows(4, 5), b_view.cols(33, 37)),
        ];
        std::thread::scope(|s| {
            for (mut c, a, b) in parts {
                s.spawn(move || c.multiply(1.0, a, b, false, false));
            }
        });
        assert_eq!(c, naive(&a, &b, [m, n, k]));
    }

    #[test]
    fn rows_are_written_in_place() {
        let mut c = vec![0.0; 6];
        let (_, mut right) = MatrixMut::new(&mut c, 2, 3).split_cols(1);
        right.row(1).copy_from_slice(&[5.0, 6.0]);
        assert_eq!(c, [0.0, 0.0, 0.0, 0.0, 5.0, 6.0]);
        assert_eq!(MatrixMut::new(&mut c, 6, 0).row(5), &mut [] as &mut [f32]);
    }

    #[test]
    fn views_outside_their_data_panic() {
        let x = [0.0; 6];
        let huge = usize::MAX / 2;
        let bad: [fn(&[f32]) -> Matrix; 5] = [
            |x| Matrix::new(x, 2, 4),
            |x| Matrix::strided(x, [usize::MAX / 2, 3], [3, 1]),
            |x| Matrix::strided(x, [2, 3], [4, 1]),
            |x| Matrix::new(x, 2, 3).rows(1, 2),
            |x| Matrix::new(x, 2, 3).cols(3, 1),
        ];
        for (i, view) in bad.iter().enumerate() {
            assert!(std::panic::catch_unwind(|| view(&x).rows).is_err(), "case {i}");
        }
        assert!(std::panic::catch_unwind(|| MatrixMut::new(&mut [0.0; 3], 2, huge).rows).is_err());
        assert_eq!(Matrix::new(&x, 0, huge).cols, huge);
    }
}
