//! Rounding the rows of a matrix for the sake of its product with inputs of
//! known second moments.

use crate::ops::vectorized::vectorized;

/// Added to the moments' diagonal, in units of its mean.
const DAMPING: f32 = 0.01;

/// Rows that are rounded side by side.
pub const ROWS: usize = 32;

/// A column of a matrix of [`ROWS`] rows.
pub type Column = [f32; ROWS];

/// The factors `H = L D L'` of damped moments, columns in the order of growing
/// variance.
pub struct Feedback {
    order: Vec<usize>,
    /// `L'`, above its diagonal of 1.
    factor: Vec<f32>,
    /// `D`.
    pivots: Vec<f32>,
}

impl Feedback {
    /// Of `n` by `n` moments with a mean diagonal element of 1.
    pub fn new(moments: Vec<f32>, n: usize) -> Feedback {
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| moments[a * n + a].total_cmp(&moments[b * n + b]));
        let mut factor: Vec<f32> = (0..n * n).map(|i| moments[order[i / n] * n + order[i % n]]).collect();
        let mut pivots = Vec::with_capacity(n);
        vectorized(
            #[inline(always)]
            || {
                for k in 0..n {
                    let (above, below) = factor.split_at_mut((k + 1) * n);
                    let row = &mut above[k * n..];
                    // The damped moments' pivots are at least the damping, but for rounding.
                    let pivot = row[k].max(0.0) + DAMPING;
                    for (j, other) in (k + 1..n).zip(below.chunks_exact_mut(n)) {
                        let share = row[j] / pivot;
                        other[j..].iter_mut().zip(&row[j..]).for_each(|(y, x)| *y -= share * x);
                    }
                    row[k + 1..].iter_mut().for_each(|x| *x /= pivot);
                    pivots.push(pivot);
                }
            },
        );
        Feedback { order, factor, pivots }
    }

    /// Codes for `rows` rows, as the values that they stand for, by column:
    /// those with feedback, or the nearest ones where these give a row a lower
    /// `(w - q) H (w - q)'`. `w(row, column)` are the weights, and
    /// `nearest(row, x)` is the value of the code nearest to `x`.
    pub fn round(
        &self,
        rows: usize,
        w: impl Fn(usize, usize) -> f32,
        nearest: impl Fn(usize, f32) -> f32,
    ) -> Vec<Column> {
        let column = |c: &usize| std::array::from_fn(|r| if r < rows { w(r, *c) } else { 0.0 });
        let w: Vec<Column> = self.order.iter().map(column).collect();
        let code = |x: &Column| std::array::from_fn(|r| if r < rows { nearest(r, x[r]) } else { 0.0 });
        let (fed, costs) = self.codes(&w, |_, wanted| code(wanted));
        let (plain, plain_costs) = self.codes(&w, |w, _| code(w));
        let mut codes = vec![[0.0; ROWS]; w.len()];
        for (k, c) in self.order.iter().enumerate() {
            let better = |r: usize| if costs[r] < plain_costs[r] { fed[k][r] } else { plain[k][r] };
            codes[*c] = std::array::from_fn(better);
        }
        codes
    }

    /// The codes that `choose` gives columns, from the last to the first, by
    /// the weights and by these with the errors of the columns behind made up
    /// for; and the cost of each row.
    fn codes(&self, w: &[Column], choose: impl Fn(&Column, &Column) -> Column) -> (Vec<Column>, Column) {
        let n = w.len();
        let mut codes = vec![[0.0; ROWS]; n];
        let mut errors = codes.clone();
        let mut costs = [0.0; ROWS];
        for k in (0..n).rev() {
            let owed = sum(&self.factor[k * n..][k + 1..n], &errors[k + 1..]);
            codes[k] = choose(&w[k], &std::array::from_fn(|r| w[k][r] + owed[r]));
            errors[k] = std::array::from_fn(|r| w[k][r] - codes[k][r]);
            for r in 0..ROWS {
                let left = errors[k][r] + owed[r];
                costs[r] += self.pivots[k] * left * left;
            }
        }
        (codes, costs)
    }
}

/// `sum_j factors[j] columns[j]`.
fn sum(factors: &[f32], columns: &[Column]) -> Column {
    vectorized(
        #[inline(always)]
        || {
            let mut sum = [0.0; ROWS];
            for (f, column) in factors.iter().zip(columns) {
                sum.iter_mut().zip(column).for_each(|(sum, x)| *sum += f * x);
            }
            sum
        },
    )
}
