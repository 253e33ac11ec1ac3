//! Matrix products on codes.

use std::sync::Arc;

use lowbit_kernels::{Kernels, PackedWeights};

use super::{Epilogue, fact, rows_of_a_task};
use crate::error::{Result, invalid};
use crate::op::{Dim, Fact, Op};
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
        let (depth, columns) = (self.weights.depth(), self.weights.columns());
        let mut shape = x[0].shape().to_vec();
        match shape.last_mut() {
            Some(last) if *last == depth => *last = columns,
            _ => return Err(invalid!("expected rows of {depth} codes, found {shape:?}")),
        }
        let codes = x[0].slice::<u8>()?;
        let rows_per_task = rows_of_a_task(depth * columns, codes.len() / depth.max(1));
        let y = self.epilogue.matrix(&shape, columns, rows_per_task, |row, rows| {
            let count = rows.len() / columns.max(1);
            let output = self.epilogue.output(rows, 0, columns, columns);
            Kernels::best().gemm(&codes[row * depth..], depth, count, &self.weights, output);
        })?;
        Ok(vec![y])
    }
    fn macs(&self, _: &[&Fact], y: &[&Fact]) -> u64 {
        y[0].elements() * self.weights.depth() as u64
    }
}
