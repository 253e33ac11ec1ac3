//! f32 products with a constant matrix, packed at compile time, spread over threads.

use std::fmt;
use std::ops::Range;

use lowbit_kernels::{Kernels, MatrixMut, Panels, Product, Right, Rows, Start};

/// Multiply-accumulates that are worth a task of their own: some microseconds.
const TASK: usize = 1 << 18;
/// The greatest depth of a step: longer sums are taken up again.
const DEPTH: usize = 1024;
/// Rows of a task at least.
const LEAST_ROWS: usize = 12;
/// Rows of a block of rows at least: panels are read again for each block.
const BLOCK_ROWS: usize = 48;
/// Elements of a block, on the left and of the output, at most, if it has not fewer
/// rows: they stay in a typical second-level cache while panels pass by.
const KEPT: usize = 160 << 10;

/// The right matrix of a product, whose rows are `taps` runs of equal length, in
/// panels. The sums of a panel are taken in [`Step`]s.
pub struct PackedMatrix {
    data: Vec<f32>,
    steps: Vec<Step>,
    /// Where panels begin and end.
    edges: Vec<usize>,
    depth: usize,
    columns: usize,
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
        let run_of_a_step = run.div_ceil(run.div_ceil(DEPTH).max(1)).max(1);
        let together = (DEPTH / run.max(1)).max(1);
        let mut steps = Vec::new();
        for tap in (0..taps).step_by(together) {
            for at in (0..run.max(1)).step_by(run_of_a_step) {
                let (taps, of_tap) = (tap..taps.min(tap + together), at..run.min(at + run_of_a_step));
                steps.push(Step { taps, of_tap, first: tap * run + at });
            }
        }
        steps
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
        let (kernels, depth) = (Kernels::best(), taps * run);
        let edges = edges(columns, kernels.panel_width(), kernels.panel_step());
        let mut data = vec![0.0; depth * edges.last().copied().unwrap_or_default()];
        let mut rest = data.as_mut_slice();
        for panel in edges.windows(2) {
            let (first, width) = (panel[0], panel[1] - panel[0]);
            let (here, others) = rest.split_at_mut(width * depth);
            for (row, to) in here.chunks_exact_mut(width).enumerate() {
                to.iter_mut().zip(first..columns).for_each(|(to, column)| *to = at(row, column));
            }
            rest = others;
        }
        PackedMatrix { data, edges, steps: Step::all(taps, run), depth, columns }
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The number of rows.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Where panels begin and end that together have these columns.
    fn edges(&self, columns: &Range<usize>) -> &[usize] {
        let at = |column| self.edges.partition_point(|&edge| edge < column);
        &self.edges[at(columns.start)..=at(columns.end)]
    }

    /// A step of the panel with these columns.
    fn part(&self, step: &Step, panel: Range<usize>) -> Panels<'_> {
        let (width, columns) = (panel.len(), panel.end.min(self.columns) - panel.start);
        let data = &self.data[panel.start * self.depth + step.first * width..];
        let (here, behind) = data.split_at(width * step.depth());
        // It is read next, by another thread perhaps.
        let next = &behind[..here.len().min(behind.len())];
        Panels::new(here, step.depth(), columns, width).followed_by(next)
    }
}

/// Where panels of at most `width` columns begin and end, in multiples of `step`, the
/// last one perhaps beyond the `columns`. They are about equally wide, and an even
/// number where that makes halves of columns halves of panels.
fn edges(columns: usize, width: usize, step: usize) -> Vec<usize> {
    let units = columns.div_ceil(step);
    let least = units.div_ceil(width / step);
    let count = if least > 1 && units.is_multiple_of(2) { least.next_multiple_of(2) } else { least };
    (0..=count).map(|i| i * units / count.max(1) * step).collect()
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
        let (count, edges) = (self.rows.count(), self.weights.edges(&self.columns));
        let panels = edges.len() - 1;
        let splits_rows = count >= 2 * LEAST_ROWS;
        if self.work() <= task || !(splits_rows || panels >= 2) {
            return self.multiply();
        }
        // The operand of which both tasks read all is the smaller one.
        let narrow = self.columns.len() * self.weights.depth() < self.rows.span();
        let (first, second) = if panels < 2 || (narrow && splits_rows) {
            self.split_rows(count / 2)
        } else {
            let at = edges[panels / 2] - edges[0];
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
        let count = self.rows.count();
        if self.rows.span() + count * self.columns.len() > KEPT && count >= 2 * BLOCK_ROWS {
            let (first, others) = self.split_rows(count / 2);
            first.multiply();
            return others.multiply();
        }
        let WeightedRows { rows, weights, columns, bias, bounds, mut out } = self;
        for edges in weights.edges(&columns).windows(2) {
            let (panel, columns) = (edges[0]..edges[1], edges[0]..edges[1].min(columns.end));
            let (mut now, others) = out.split_cols(columns.len());
            out = others;
            for (i, step) in weights.steps.iter().enumerate() {
                let start = match bias {
                    _ if i > 0 => Start::Out,
                    Some(bias) => Start::Cols(&bias[columns.clone()]),
                    None => Start::Zero,
                };
                let last = i + 1 == weights.steps.len();
                let [lo, hi] = if last { bounds } else { [f32::NEG_INFINITY, f32::INFINITY] };
                let left = rows.within(step.taps.clone(), step.of_tap.clone());
                let right = Right::Panels(weights.part(step, panel.clone()));
                Kernels::best().product(&Product { left, right, start, lo, hi }, &mut now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_are_about_equally_wide_and_halved_by_half_of_the_columns() {
        let cases: [(usize, &[usize]); 10] = [
            (0, &[0]),
            (1, &[0, 16]),
            (48, &[0, 48]),
            (49, &[0, 32, 64]),
            (64, &[0, 32, 64]),
            (80, &[0, 32, 80]),
            (96, &[0, 48, 96]),
            (128, &[0, 32, 64, 96, 128]),
            (144, &[0, 48, 96, 144]),
            (256, &[0, 32, 80, 128, 160, 208, 256]),
        ];
        for (columns, want) in cases {
            assert_eq!(edges(columns, 48, 16), want, "{columns} columns");
        }
        assert_eq!(edges(40, 16, 16), [0, 16, 32, 48]);
    }

    #[test]
    fn steps_are_all_rows_in_turn() {
        for (taps, run, steps) in
            [(1, 0, 1), (1, 7, 1), (9, 100, 1), (9, 200, 2), (3, 1024, 3), (3, 1536, 6), (1, 2049, 3)]
        {
            let all = Step::all(taps, run);
            assert_eq!(all.len(), steps, "{taps} runs of {run}");
            let rows = all.iter().flat_map(|step| step.first..step.first + step.depth());
            assert!(rows.eq(0..taps * run), "{taps} runs of {run}: {all:?}");
            assert!(all.iter().all(|step| step.depth() <= DEPTH), "{all:?}");
        }
    }
}
