//! f32 products with a constant matrix, packed at compile time, spread over threads.

use std::fmt;
use std::ops::Range;

use lowbit_kernels::{Kernels, MatrixMut, Panels, Product, Right, Rows, Start};

/// Multiply-accumulates that are worth a task of their own: some microseconds.
const TASK: usize = 1 << 18;
/// The greatest depth of a step, if a tap is not deeper: longer sums are taken up again.
const DEPTH: usize = 1024;
/// Elements of a step's weights that pass by all rows together: less than half of
/// a typical second-level cache.
const KEPT: usize = 96 << 10;

/// The right matrix of a product, whose rows are `taps` runs of equal length: for
/// each [`Step`], panels of the kernels' width.
pub struct PackedMatrix {
    data: Vec<f32>,
    steps: Vec<Step>,
    columns: usize,
    width: usize,
}

/// Some of a matrix's rows: of some taps all, or of one tap some.
#[derive(Clone, Debug)]
struct Step {
    taps: Range<usize>,
    of_tap: Range<usize>,
    /// The first row of the matrix.
    first: usize,
}

impl Step {
    fn depth(&self) -> usize {
        self.taps.len() * self.of_tap.len()
    }

    /// Those of `taps` runs of `run` rows. There is one even of none.
    fn all(taps: usize, run: usize) -> Vec<Step> {
        let together = (DEPTH / run.max(1)).max(1);
        if taps == 1 {
            let starts = (0..run.max(1)).step_by(DEPTH);
            return starts
                .map(|at| Step { taps: 0..1, of_tap: at..run.min(at + DEPTH), first: at })
                .collect();
        }
        let starts = (0..taps).step_by(together);
        let step = |at: usize| Step { taps: at..taps.min(at + together), of_tap: 0..run, first: at * run };
        starts.map(step).collect()
    }
}

impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.depth(), self.columns)
    }
}

impl PackedMatrix {
    /// The matrix of `taps * run` rows and `columns` columns with the elements
    /// `at(row, column)`.
    pub fn new(taps: usize, run: usize, columns: usize, at: impl Fn(usize, usize) -> f32) -> PackedMatrix {
        let width = Kernels::best().panel_width();
        let steps = Step::all(taps, run);
        let mut data = vec![0.0; Panels::len(taps * run, columns, width)];
        let mut rest = data.as_mut_slice();
        for step in &steps {
            for column in (0..columns).step_by(width) {
                let (panel, others) = rest.split_at_mut(width * step.depth());
                for (row, to) in (step.first..).zip(panel.chunks_exact_mut(width)) {
                    let columns = column..columns.min(column + width);
                    to.iter_mut().zip(columns).for_each(|(to, column)| *to = at(row, column));
                }
                rest = others;
            }
        }
        PackedMatrix { data, steps, columns, width }
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The number of rows.
    pub fn depth(&self) -> usize {
        self.steps.iter().map(Step::depth).sum()
    }

    /// Some columns of a step, from the first one of a panel on.
    fn part(&self, step: &Step, columns: &Range<usize>) -> Panels<'_> {
        let of_rows = step.first * self.columns.next_multiple_of(self.width);
        let data = &self.data[of_rows + columns.start * step.depth()..];
        Panels::new(data, step.depth(), columns.len(), self.width)
    }
}

/// `out = clamp(bias + rows * weights, lo, hi)`, each a chain of fused
/// multiply-adds, or some of its rows and columns.
pub struct WeightedRows<'a> {
    /// The left matrix.
    pub rows: Rows<'a, f32>,
    /// The right one.
    pub weights: &'a PackedMatrix,
    /// Its columns, from the first one of a panel on.
    pub columns: Range<usize>,
    /// One for each column of the right matrix, or 0.
    pub bias: Option<&'a [f32]>,
    /// Bounds of the results; NaN stays.
    pub bounds: [f32; 2],
    /// Where they go.
    pub out: MatrixMut<'a>,
}

impl WeightedRows<'_> {
    /// Multiplies, in tasks for the threads of the current pool.
    pub fn run(self) {
        let threads = rayon::current_num_threads();
        let task = if threads == 1 { usize::MAX } else { TASK.max(self.work() / (4 * threads)) };
        self.spread(task);
    }

    fn work(&self) -> usize {
        self.rows.count() * self.columns.len() * self.weights.depth()
    }

    fn spread(self, task: usize) {
        let together = Kernels::best().product_rows();
        let (tiles, panels) = (self.rows.count() / together, self.columns.len().div_ceil(self.weights.width));
        if self.work() <= task || tiles.max(panels) < 2 {
            return self.multiply();
        }
        let (first, second) = if tiles >= 2 * panels || panels < 2 {
            self.split_rows(tiles / 2 * together)
        } else {
            let at = panels / 2 * self.weights.width;
            self.split_columns(at)
        };
        rayon::join(|| first.spread(task), || second.spread(task));
    }

    fn split_rows(self, at: usize) -> (Self, Self) {
        let WeightedRows { rows, out, ref columns, .. } = self;
        let (above, below) = out.split_rows(at);
        let part =
            |range, out| WeightedRows { rows: rows.range(range), columns: columns.clone(), out, ..self };
        (part(0..at, above), part(at..rows.count(), below))
    }

    fn split_columns(self, at: usize) -> (Self, Self) {
        let WeightedRows { columns: Range { start, end }, out, .. } = self;
        let (left, right) = out.split_cols(at);
        let part = |columns, out| WeightedRows { columns, out, ..self };
        (part(start..start + at, left), part(start + at..end, right))
    }

    fn multiply(self) {
        let deepest = self.weights.steps.iter().map(Step::depth).max().unwrap_or(1).max(1);
        let width = self.weights.width;
        let together = (KEPT / (width * deepest)).max(1) * width;
        if self.columns.len() > together {
            let (first, others) = self.split_columns(together);
            first.multiply();
            return others.multiply();
        }
        let WeightedRows { rows, weights, columns, bias, bounds, mut out } = self;
        for (i, step) in weights.steps.iter().enumerate() {
            let start = match bias {
                _ if i > 0 => Start::Out,
                Some(bias) => Start::Cols(&bias[columns.clone()]),
                None => Start::Zero,
            };
            let last = i + 1 == weights.steps.len();
            let [lo, hi] = if last { bounds } else { [f32::NEG_INFINITY, f32::INFINITY] };
            let left = rows.within(step.taps.clone(), step.of_tap.clone());
            let right = Right::Panels(weights.part(step, &columns));
            Kernels::best().product(&Product { left, right, start, lo, hi }, &mut out);
        }
    }
}
