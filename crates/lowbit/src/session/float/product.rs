//! f32 products with packed weights, spread over threads.

use lowbit_kernels::{Kernels, MatrixMut, Panels, Product, Right, Rows, Start};

/// Multiply-accumulates that are worth a task of their own: some microseconds.
const TASK: usize = 1 << 18;
/// Elements of the weights that pass by all rows together: less than half of a
/// typical second-level cache.
const KEPT: usize = 96 << 10;

/// The right matrix of a product, in panels.
#[derive(Debug)]
pub struct PackedMatrix {
    data: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl PackedMatrix {
    /// The matrix of `rows` times `columns` elements `at(row, column)`.
    pub fn new(rows: usize, columns: usize, at: impl Fn(usize, usize) -> f32) -> PackedMatrix {
        let width = Kernels::best().panel_width();
        let mut data = vec![0.0; Panels::len(rows, columns, width)];
        for (i, panel) in data.chunks_exact_mut((width * rows).max(1)).enumerate() {
            for (row, to) in panel.chunks_exact_mut(width).enumerate() {
                let columns = i * width..columns.min((i + 1) * width);
                to.iter_mut().zip(columns).for_each(|(to, column)| *to = at(row, column));
            }
        }
        PackedMatrix { data, rows, columns }
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All of it.
    pub fn panels(&self) -> Panels<'_> {
        Panels::new(&self.data, self.rows, self.columns, Kernels::best().panel_width())
    }
}

/// `out = clamp(bias + rows * weights, lo, hi)`, or a part of it.
pub struct WeightedRows<'a> {
    /// The left matrix.
    pub rows: Rows<'a, f32>,
    /// The right one.
    pub weights: Panels<'a>,
    /// One for each column.
    pub bias: &'a [f32],
    /// Bounds of the results.
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
        let [depth, columns] = self.weights.size();
        self.rows.count() * depth * columns
    }

    fn spread(self, task: usize) {
        let kernels = Kernels::best();
        let [_, columns] = self.weights.size();
        let (tiles, panels) =
            (self.rows.count() / kernels.product_rows(), columns.div_ceil(kernels.panel_width()));
        if self.work() <= task || tiles.max(panels) < 2 {
            return self.multiply();
        }
        let (first, second) = if tiles >= 2 * panels || panels < 2 {
            self.split_rows(tiles / 2 * kernels.product_rows())
        } else {
            self.split_columns(panels / 2 * kernels.panel_width())
        };
        rayon::join(|| first.spread(task), || second.spread(task));
    }

    fn split_rows(self, at: usize) -> (Self, Self) {
        let (above, below) = self.out.split_rows(at);
        let part = |range, out| WeightedRows { rows: self.rows.range(range), out, ..self };
        (part(0..at, above), part(at..self.rows.count(), below))
    }

    fn split_columns(self, at: usize) -> (Self, Self) {
        let [_, columns] = self.weights.size();
        let (left, right) = self.out.split_cols(at);
        let part = |from: usize, to: usize, out| WeightedRows {
            weights: self.weights.cols(from, to - from),
            bias: &self.bias[from..to],
            out,
            ..self
        };
        (part(0, at, left), part(at, columns, right))
    }

    fn multiply(self) {
        let kernels = Kernels::best();
        let [depth, columns] = self.weights.size();
        let width = kernels.panel_width();
        let together = (KEPT / (width * depth.max(1))).max(1) * width;
        if columns > together {
            let (first, others) = self.split_columns(together);
            first.multiply();
            return others.multiply();
        }
        let WeightedRows { rows, weights, bias, bounds: [lo, hi], mut out } = self;
        let product = Product { left: rows, right: Right::Panels(weights), start: Start::Cols(bias), lo, hi };
        kernels.product(&product, &mut out);
    }
}
