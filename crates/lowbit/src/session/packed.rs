//! Float matrix products with a constant matrix, which is packed once.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use lowbit_kernels::{Kernels, Matrix, MatrixMut, Panels, Product, Right, Start};

use crate::error::{Result, invalid};
use crate::graph::{Graph, Kind};
use crate::op::{Dim, Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::ops::linear::MatMul;
use crate::tensor::{DType, Tensor};

/// The greatest depth of one product: longer sums are taken up again.
const DEPTH: usize = 1024;
/// Elements of the panels that are multiplied together: less than half of a
/// typical second-level cache.
const PANELS: usize = 96 << 10;
/// Multiply-accumulates that are worth a task.
const TASK: usize = 1 << 19;

/// The graph with the constant right operand of every f32 `MatMul` packed.
pub fn pack_products(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        let (Some(_), [x, w]) = (op.is::<MatMul>(), inputs) else { return b.copy(node, inputs) };
        let constant = b.so_far().constant(*w).filter(|w| w.dtype() == DType::F32 && w.rank() == 2);
        let Some(w) = constant.filter(|_| b.so_far().constant(*x).is_none()) else {
            return b.copy(node, inputs);
        };
        let op = PackedMatMul { right: Arc::new(Right32::new(w)?) };
        b.apply_all(&node.name, Arc::new(op), &[*x], &[&node.outputs[0].name])
    })
}

/// A matrix `[depth][columns]` as panels of the kernels' width, for each range of
/// [`DEPTH`] rows.
struct Right32 {
    data: Vec<f32>,
    depth: usize,
    columns: usize,
    width: usize,
}

impl fmt::Debug for Right32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.depth, self.columns)
    }
}

impl Right32 {
    fn new(w: &Tensor) -> Result<Right32> {
        let (depth, columns) = (w.shape()[0], w.shape()[1]);
        let (w, width) = (Matrix::new(w.slice()?, depth, columns), Kernels::best().panel_width());
        let mut data = vec![0.0; Panels::len(depth, columns, width)];
        let mut rest = data.as_mut_slice();
        for rows in steps(depth) {
            for column in (0..columns).step_by(width) {
                let (panel, others) = rest.split_at_mut(width * rows.len());
                for (k, panel) in rows.clone().zip(panel.chunks_exact_mut(width)) {
                    let row = &w.row(k)[column..columns.min(column + width)];
                    panel[..row.len()].copy_from_slice(row);
                }
                rest = others;
            }
        }
        Ok(Right32 { data, depth, columns, width })
    }

    fn panels(&self) -> usize {
        self.columns.div_ceil(self.width)
    }

    /// The columns of some panels.
    fn columns_of(&self, panels: &Range<usize>) -> Range<usize> {
        panels.start * self.width..self.columns.min(panels.end * self.width)
    }

    /// Some panels of the rows of one step.
    fn part(&self, rows: &Range<usize>, panels: &Range<usize>) -> Panels<'_> {
        let step = rows.start * self.panels() * self.width;
        let data = &self.data[step + panels.start * self.width * rows.len()..];
        Panels::new(data, rows.len(), self.columns_of(panels).len(), self.width)
    }
}

/// Ranges of [`DEPTH`] rows. There is one even of none.
fn steps(depth: usize) -> impl Iterator<Item = Range<usize>> {
    (0..depth.max(1)).step_by(DEPTH).map(move |start| start..depth.min(start + DEPTH))
}

/// `y[.., n] = sum_k x[.., k] w[k][n]`, each a chain of fused multiply-adds from 0
/// on: [`MatMul`], bit for bit.
#[derive(Debug)]
struct PackedMatMul {
    right: Arc<Right32>,
}

impl Op for PackedMatMul {
    fn name(&self) -> &'static str {
        "PackedMatMul"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        let mut shape = x[0].shape.clone();
        match shape.last_mut() {
            Some(last) => *last = Dim::Known(self.right.columns),
            None => return Err(invalid!("a product of a scalar")),
        }
        Ok(vec![x[0].with_shape(shape)])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        match x[0].shape.split_last() {
            Some((&last, rows)) if last == self.right.depth && x[0].dtype == DType::F32 => {
                Prepared::routine(Rows { right: self.right.clone(), rows: rows.iter().product() })
            }
            _ => Err(invalid!("expected f32 rows of {}, found {:?}", self.right.depth, x[0].shape)),
        }
    }
    fn macs(&self, _: &[&Fact], y: &[&Fact]) -> u64 {
        y[0].elements().saturating_mul(self.right.depth as u64)
    }
}

/// A [`PackedMatMul`] of known size.
#[derive(Debug)]
struct Rows {
    right: Arc<Right32>,
    rows: usize,
}

impl Routine for Rows {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        let Right32 { depth, columns, .. } = *self.right;
        let left = Matrix::new(x[0].f32()?, self.rows, depth);
        let out = MatrixMut::new(y.f32()?, self.rows, columns);
        let threads = rayon::current_num_threads();
        let work = self.rows * columns * depth;
        let task = if threads == 1 { usize::MAX } else { TASK.max(work / (4 * threads)) };
        multiply(left, &self.right, 0..self.right.panels(), out, task);
        Ok(())
    }
    fn algorithm(&self) -> &'static str {
        "gemm"
    }
}

/// `out` = the product of `left` and some panels, in tasks of at most `task`
/// multiply-accumulates.
fn multiply(left: Matrix<'_>, right: &Right32, panels: Range<usize>, mut out: MatrixMut<'_>, task: usize) {
    let kernels = Kernels::best();
    let [rows, columns] = out.size();
    let tiles = rows / kernels.product_rows();
    if rows * columns * right.depth > task && tiles.max(panels.len()) > 1 {
        if tiles > panels.len() {
            let at = tiles / 2 * kernels.product_rows();
            let (above, below) = out.split_rows(at);
            let (first, second) = (left.rows(0, at), left.rows(at, rows - at));
            rayon::join(
                || multiply(first, right, panels.clone(), above, task),
                || multiply(second, right, panels.clone(), below, task),
            );
        } else {
            let middle = panels.start.midpoint(panels.end);
            let (before, behind) = out.split_cols(right.columns_of(&(panels.start..middle)).len());
            rayon::join(
                || multiply(left, right, panels.start..middle, before, task),
                || multiply(left, right, middle..panels.end, behind, task),
            );
        }
        return;
    }
    let together = (PANELS / (right.width * right.depth.clamp(1, DEPTH))).max(1);
    for start in panels.clone().step_by(together) {
        let some = start..panels.end.min(start + together);
        let (mut part, rest) = out.split_cols(right.columns_of(&some).len());
        out = rest;
        for step in steps(right.depth) {
            let start = if step.start == 0 { Start::Zero } else { Start::Out };
            let left = left.cols(step.start, step.len());
            let product = Product::new(left, Right::Panels(right.part(&step, &some)));
            kernels.product(&Product { start, ..product }, &mut part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(shape: &[usize], seed: u64) -> Tensor {
        let n = shape.iter().product::<usize>() as u64;
        let value = |i: u64| {
            ((i * 2 + 1 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8_388_608.0 - 1.0
        };
        Tensor::new(shape, (0..n).map(value).collect()).unwrap()
    }

    #[test]
    fn packed_products_equal_matmul() {
        let cases: [(&[usize], [usize; 2]); 9] = [
            (&[3, 4], [4, 5]),
            (&[5], [5, 7]),
            (&[2, 3, 100], [100, 131]),
            (&[130, 70], [70, 300]),
            (&[7, 1025], [1025, 50]),
            (&[16, 2100], [2100, 97]),
            (&[2, 0, 4], [4, 5]),
            (&[2, 3, 0], [0, 5]),
            (&[2, 4], [4, 0]),
        ];
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (x, w) in cases {
                let (x, w) = (noise(x, 1), noise(&w, 2));
                let op = PackedMatMul { right: Arc::new(Right32::new(&w).unwrap()) };
                let y = pool.install(|| op.eval(&[&x])).unwrap();
                assert_eq!(y, MatMul.eval(&[&x, &w]).unwrap(), "{x:?} {w:?}");
            }
        }
    }
}
