//! Constant matrices in codes of few bits: products with them, and rows of them.

use std::ops::Range;
use std::sync::Arc;

use lowbit_kernels::{Kernels, LowBitRows, LowBitWeights, MatrixMut, Rows};

use crate::error::{Result, invalid};
use crate::op::{Dim, Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::ops::gather::position;
use crate::tensor::{DType, Tensor, element_count};

/// Multiply-accumulates that are worth a task of their own: some microseconds.
const TASK: usize = 1 << 18;

/// In what the products of a [`LowBitMatMul`] are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// f32: what the matrix in f32 gives, bit for bit (docs/quantization.md, equation 21).
    Float,
    /// Integers: activations become codes of 8 bits, for each row and block of the
    /// weights (docs/quantization.md, equation 22).
    Int8,
}

/// `y[.., n] = bias[n] + sum_k x[.., k] w[k][n]`.
#[derive(Clone, Debug)]
pub struct LowBitMatMul {
    /// The matrix.
    pub weights: Arc<LowBitWeights>,
    /// One for each column, or 0.
    pub bias: Option<Arc<[f32]>>,
    /// How products are computed. Weights that are no integers are multiplied in f32.
    pub compute: Compute,
}

/// `y[.., k] = w[k][i[..]]`: the rows of a table that lie as columns of the matrix.
#[derive(Clone, Debug)]
pub struct LowBitGather {
    /// The matrix.
    pub weights: Arc<LowBitWeights>,
}

impl LowBitMatMul {
    /// Whether the products are of integers.
    pub fn is_integer(&self) -> bool {
        self.compute == Compute::Int8 && self.weights.has_integers()
    }
}

impl Op for LowBitMatMul {
    fn name(&self) -> &'static str {
        "LowBitMatMul"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        let mut shape = x[0].shape.clone();
        match shape.last_mut() {
            Some(last) => *last = Dim::Known(self.weights.shape().columns),
            None => return Err(invalid!("a product of a scalar")),
        }
        Ok(vec![x[0].with_shape(shape)])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let depth = self.weights.shape().depth;
        match x[0].shape.split_last() {
            Some((&last, rows)) if last == depth && x[0].dtype == DType::F32 => {
                Prepared::routine(OfRows { op: self.clone(), rows: rows.iter().product() })
            }
            _ => Err(invalid!("expected f32 rows of {depth}, found {:?}", x[0].shape)),
        }
    }
    fn macs(&self, _: &[&Fact], y: &[&Fact]) -> u64 {
        y[0].elements().saturating_mul(self.weights.shape().depth as u64)
    }
}

/// A [`LowBitMatMul`] of known size.
#[derive(Debug)]
struct OfRows {
    op: LowBitMatMul,
    rows: usize,
}

impl Routine for OfRows {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, scratch: &mut [u8]) -> Result<()> {
        let LowBitMatMul { weights, bias, .. } = &self.op;
        let (shape, pitch) = (weights.shape(), y.pitch);
        let rows = Rows::strided(x[0].f32()?, shape.depth, self.rows, shape.depth);
        let mut out = MatrixMut::strided(y.f32()?, self.rows, shape.columns, pitch);
        for m in 0..self.rows {
            match bias {
                Some(bias) => out.row(m).copy_from_slice(bias),
                None => out.row(m).fill(0.0),
            }
        }
        let kernels = Kernels::best();
        let left = match self.op.is_integer() {
            true => Left::Int8(LowBitRows::quantized(kernels, weights, rows, scratch)),
            false => Left::Float(rows),
        };
        let groups = 0..weights.groups();
        let product = Product { weights, left, rows: 0..self.rows, groups, out };
        let threads = rayon::current_num_threads();
        let task = if threads == 1 { usize::MAX } else { TASK.max(product.work() / (4 * threads)) };
        product.spread(task);
        Ok(())
    }
    fn scratch(&self) -> usize {
        if self.op.is_integer() { LowBitRows::bytes(&self.op.weights, self.rows) } else { 0 }
    }
    fn strided(&self) -> bool {
        true
    }
    fn algorithm(&self) -> &'static str {
        if self.op.is_integer() { "codes by codes" } else { "codes in f32" }
    }
}

/// The left matrix.
#[derive(Clone, Copy)]
enum Left<'a> {
    Float(Rows<'a, f32>),
    Int8(LowBitRows<'a>),
}

/// Some rows of a product, for some groups of columns.
struct Product<'a> {
    weights: &'a LowBitWeights,
    left: Left<'a>,
    rows: Range<usize>,
    groups: Range<usize>,
    out: MatrixMut<'a>,
}

/// Rows that are worth unpacking the weights for once more.
const WORTH: usize = 64;

impl Product<'_> {
    fn work(&self) -> usize {
        let columns = self.weights.columns_of(self.groups.clone()).len();
        self.rows.len() * columns * self.weights.shape().depth
    }

    /// Multiplies, in tasks for the threads of the current pool.
    fn spread(self, task: usize) {
        let (rows, groups) = (self.rows.len(), self.groups.len());
        if self.work() <= task || (groups < 2 && rows < 2 * WORTH) {
            return self.multiply();
        }
        let (first, second) = if groups > 1 { self.split_groups() } else { self.split_rows() };
        rayon::join(|| first.spread(task), || second.spread(task));
    }

    fn split_groups(self) -> (Self, Self) {
        let Product { weights, left, rows, groups: Range { start, end }, out } = self;
        let at = start + (end - start) / 2;
        let (first, second) = out.split_cols(weights.columns_of(start..at).len());
        let part = |groups, out| Product { weights, left, rows: rows.clone(), groups, out };
        (part(start..at, first), part(at..end, second))
    }

    fn split_rows(self) -> (Self, Self) {
        let Product { weights, left, rows: Range { start, end }, groups, out } = self;
        let at = start + (end - start) / 2;
        let (first, second) = out.split_rows(at - start);
        let part = |rows, out| Product { weights, left, rows, groups: groups.clone(), out };
        (part(start..at, first), part(at..end, second))
    }

    fn multiply(mut self) {
        let kernels = Kernels::best();
        match self.left {
            Left::Float(x) => {
                kernels.low_bit_product(self.weights, self.groups, x.range(self.rows), &mut self.out);
            }
            Left::Int8(x) => {
                kernels.low_bit_integers(self.weights, self.groups, &x.range(self.rows), &mut self.out);
            }
        }
    }
}

impl Op for LowBitGather {
    fn name(&self) -> &'static str {
        "LowBitGather"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        let mut shape = x[0].shape.clone();
        shape.push(Dim::Known(self.weights.shape().depth));
        Ok(vec![Fact::new(DType::F32, shape)])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let (depth, count) = (self.weights.shape().depth, self.weights.shape().columns);
        let shape = [x[0].shape(), &[depth]].concat();
        let mut y = vec![0.0; element_count(&shape)?];
        if depth > 0 {
            for (i, y) in x[0].integers()?.into_iter().zip(y.chunks_exact_mut(depth)) {
                self.weights.column(position(i, count)?, y);
            }
        }
        Ok(vec![Tensor::new(&shape, y)?])
    }
}
