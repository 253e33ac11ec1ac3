//! Rounding the rows of a matrix for the sake of its product with inputs of
//! known second moments.

use crate::ops::vectorized::vectorized;

/// Added to the moments' diagonal, in units of its mean.
const DAMPING: f32 = 0.01;

/// Rows that are rounded side by side.
pub const ROWS: usize = 32;

/// The part of a step to another code that must be wanted: more than half, so
/// that rounding of f32 decides nothing.
const CLEARLY: f32 = 0.51;

/// A column of a matrix of [`ROWS`] rows.
pub type Column = [f32; ROWS];

/// Damped moments and their factors `H = L D L'`, columns in the order of
/// growing variance.
pub struct Feedback {
    order: Vec<usize>,
    moments: Vec<f32>,
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
        let mut moments = factor.clone();
        (0..n).for_each(|k| moments[k * n + k] += DAMPING);
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
        Feedback { order, moments, factor, pivots }
    }

    /// Codes for `rows` rows, as the values that they stand for, by column:
    /// those with feedback, or the nearest ones where these give a row a lower
    /// `(w - q) H (w - q)'`, each then changed to the best beside all others, so many
    /// times. `w(row, column)` are the weights, and `nearest(row, column, x)` is the
    /// value of the code nearest to `x` there.
    pub fn round(
        &self,
        rows: usize,
        w: impl Fn(usize, usize) -> f32,
        nearest: impl Fn(usize, usize, f32) -> f32,
        sweeps: usize,
    ) -> Vec<Column> {
        let column = |c: &usize| std::array::from_fn(|r| if r < rows { w(r, *c) } else { 0.0 });
        let w: Vec<Column> = self.order.iter().map(column).collect();
        let code = |k: usize, x: &Column| {
            std::array::from_fn(|r| if r < rows { nearest(r, self.order[k], x[r]) } else { 0.0 })
        };
        let (fed, costs) = self.codes(&w, |k, _, wanted| code(k, wanted));
        let (plain, plain_costs) = self.codes(&w, |k, w, _| code(k, w));
        let better = |r: usize, k: usize| if costs[r] < plain_costs[r] { fed[k][r] } else { plain[k][r] };
        let mut chosen: Vec<Column> = (0..w.len()).map(|k| std::array::from_fn(|r| better(r, k))).collect();
        self.descend(&w, &mut chosen, code, sweeps);
        let mut codes = vec![[0.0; ROWS]; w.len()];
        self.order.iter().zip(chosen).for_each(|(c, column)| codes[*c] = column);
        codes
    }

    /// Changes one code after another to the one of least cost, the others
    /// being what they are: the nearest to `q_k + (H e)_k / H_kk`.
    fn descend(
        &self,
        w: &[Column],
        codes: &mut [Column],
        nearest: impl Fn(usize, &Column) -> Column,
        sweeps: usize,
    ) {
        if sweeps == 0 {
            return;
        }
        let n = w.len();
        let errors: Vec<Column> =
            w.iter().zip(&*codes).map(|(w, q)| std::array::from_fn(|r| w[r] - q[r])).collect();
        let mut slopes: Vec<Column> = self.moments.chunks_exact(n).map(|h| sum(h, &errors)).collect();
        for _ in 0..sweeps {
            let mut moved = false;
            for k in (0..n).rev() {
                let h = &self.moments[k * n..][..n];
                let wanted: Column = std::array::from_fn(|r| slopes[k][r] / h[k]);
                let nearest = nearest(k, &std::array::from_fn(|r| codes[k][r] + wanted[r]));
                let better = |r: usize| wanted[r].abs() > CLEARLY * (nearest[r] - codes[k][r]).abs();
                let next: Column = std::array::from_fn(|r| if better(r) { nearest[r] } else { codes[k][r] });
                let step: Column = std::array::from_fn(|r| codes[k][r] - next[r]);
                if step == [0.0; ROWS] {
                    continue;
                }
                (codes[k], moved) = (next, true);
                add(&mut slopes, h, &step);
            }
            if !moved {
                break;
            }
        }
    }

    /// The codes that `choose` gives columns, from the last to the first, by
    /// the weights and by these with the errors of the columns behind made up
    /// for; and the cost of each row.
    fn codes(
        &self,
        w: &[Column],
        choose: impl Fn(usize, &Column, &Column) -> Column,
    ) -> (Vec<Column>, Column) {
        let n = w.len();
        let mut codes = vec![[0.0; ROWS]; n];
        let mut errors = codes.clone();
        let mut costs = [0.0; ROWS];
        for k in (0..n).rev() {
            let owed = sum(&self.factor[k * n..][k + 1..n], &errors[k + 1..]);
            codes[k] = choose(k, &w[k], &std::array::from_fn(|r| w[k][r] + owed[r]));
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

/// Adds `factors[j] column` to each column `j`.
fn add(columns: &mut [Column], factors: &[f32], column: &Column) {
    vectorized(
        #[inline(always)]
        || {
            for (y, f) in columns.iter_mut().zip(factors) {
                y.iter_mut().zip(column).for_each(|(y, x)| *y += f * x);
            }
        },
    );
}
