//! Matrix products on codes.

use std::sync::Arc;

use lowbit_kernels::{PackedWeights, Rows};

use super::product::{Epilogue, Out, Product, Requantized, added};
use crate::error::{Result, invalid};
use crate::op::{Dim, Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::session::images::fact;
use crate::tensor::Tensor;

/// `acc[.., n] = sum_k (x[.., k] - z_x) w[n][k]` in i32, then the [`Epilogue`].
#[derive(Clone, Debug)]
pub struct QLinear {
    weights: Arc<PackedWeights>,
    /// What becomes of the accumulators.
    pub epilogue: Epilogue,
}

impl QLinear {
    /// The product with int8 weights given as `[n][k]`; `bias` is at scale
    /// `scale[n] = s_x s_w[n]`, `zero` the zero point of x.
    pub fn new(weights: &[i8], columns: usize, zero: i32, bias: &[i32], scale: Vec<f32>) -> QLinear {
        let depth = weights.len().checked_div(columns).unwrap_or(0);
        let packed = PackedWeights::new(weights, columns, depth);
        let sums = packed.column_sums();
        let bias = bias.iter().zip(sums).map(|(b, s)| b.wrapping_sub(zero.wrapping_mul(*s))).collect();
        QLinear { weights: Arc::new(packed), epilogue: Epilogue { bias, scale, codes: None } }
    }

    /// The same product with another epilogue.
    pub fn with(&self, epilogue: Epilogue) -> QLinear {
        QLinear { epilogue, ..self.clone() }
    }
}

impl Op for QLinear {
    fn name(&self) -> &'static str {
        "QLinear"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        let mut shape = x[0].shape.clone();
        match shape.last_mut() {
            Some(last) => *last = Dim::Known(self.weights.columns()),
            None => return Err(invalid!("a product of a scalar")),
        }
        fact(self.epilogue.dtype(), shape)
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let depth = self.weights.depth();
        // One row is added to all.
        let row = x.get(1).is_some_and(|b| b.shape.iter().product::<usize>() == self.weights.columns());
        let added_pitch = if row { 0 } else { self.weights.columns() };
        match x[0].shape.split_last() {
            Some((&last, rows)) if last == depth => {
                Prepared::routine(Linear { op: self.clone(), rows: rows.iter().product(), added_pitch })
            }
            _ => Err(invalid!("expected rows of {depth} codes, found {:?}", x[0].shape)),
        }
    }
    fn macs(&self, _: &[&Fact], y: &[&Fact]) -> u64 {
        y[0].elements() * self.weights.depth() as u64
    }
}

/// A [`QLinear`] of known size.
#[derive(Debug)]
struct Linear {
    op: QLinear,
    rows: usize,
    /// From one row of the second operand to the next.
    added_pitch: usize,
}

impl Routine for Linear {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        let QLinear { weights, epilogue } = &self.op;
        let (depth, columns) = (weights.depth(), weights.columns());
        Product {
            rows: Rows::strided(x[0].u8()?, depth, self.rows, depth),
            weights: weights.view(),
            panels: 0..weights.panels(),
            end: Requantized { epilogue, first_column: 0, added: added(epilogue, x, self.added_pitch)? },
            out: Out::new(y, self.rows, columns)?,
        }
        .run();
        Ok(())
    }
    fn strided(&self) -> bool {
        true
    }
    fn algorithm(&self) -> &'static str {
        "gemm"
    }
}
