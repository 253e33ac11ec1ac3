//! Addition, multiplication and functions of one variable on codes (docs/quantization.md, equation 7).

use lowbit_kernels::{Add, Kernels, Mul};
use rayon::prelude::*;

use super::fact;
use crate::error::Result;
use crate::op::{Fact, Op};
use crate::ops::{broadcast, strided};
use crate::session::codes::Codes;
use crate::tensor::{DType, Tensor};

/// Elements that one task computes.
const CHUNK: usize = 1 << 15;

/// Any function of one variable, as a table of 256 codes.
#[derive(Clone, Debug)]
pub struct Table {
    /// The code for each code.
    pub table: Box<[u8; 256]>,
}

impl Op for Table {
    fn name(&self) -> &'static str {
        "Table"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        fact(DType::U8, x[0].shape.clone())
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let mut out = vec![0; x[0].len()];
        x[0].slice::<u8>()?.par_chunks(CHUNK).zip(out.par_chunks_mut(CHUNK)).for_each(|(x, out)| {
            Kernels::best().map(x, &self.table, out);
        });
        Ok(vec![Tensor::new(x[0].shape(), out)?])
    }
}

/// The arithmetic of a [`QBinary`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// a + b
    Add,
    /// a b
    Mul,
}

/// `a + b` or `a b` on codes, with broadcasting.
#[derive(Clone, Debug)]
pub struct QBinary {
    /// What is computed.
    pub operation: Operation,
    /// Codes of the operands.
    pub inputs: [Codes; 2],
    /// Codes of the result.
    pub output: Codes,
    /// Least code of the result.
    pub lo: u8,
    /// Greatest code of the result.
    pub hi: u8,
}

impl QBinary {
    fn compute(&self, a: &[u8], b: &[u8], out: &mut [u8]) {
        let ([ca, cb], y) = (self.inputs, self.output);
        let (a_zero, b_zero) = (ca.zero as u8, cb.zero as u8);
        let QBinary { lo, hi, .. } = *self;
        match self.operation {
            Operation::Add => {
                let (a_ratio, b_ratio) = (ca.scale / y.scale, cb.scale / y.scale);
                let params = Add { a_zero, a_ratio, b_zero, b_ratio, zero: y.zero, lo, hi };
                Kernels::best().add(a, b, &params, out);
            }
            Operation::Mul => {
                let params =
                    Mul { a_zero, b_zero, ratio: ca.scale * cb.scale / y.scale, zero: y.zero, lo, hi };
                Kernels::best().mul(a, b, &params, out);
            }
        }
    }
}

impl Op for QBinary {
    fn name(&self) -> &'static str {
        match self.operation {
            Operation::Add => "QAdd",
            Operation::Mul => "QMul",
        }
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        fact(DType::U8, broadcast::dims(&x[0].shape, &x[1].shape)?)
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = broadcast::shape(x[0].shape(), x[1].shape())?;
        let (a, b) = (expanded(x[0], &shape)?, expanded(x[1], &shape)?);
        let mut out = vec![0; a.len()];
        let operands = a.slice::<u8>()?.par_chunks(CHUNK).zip(b.slice::<u8>()?.par_chunks(CHUNK));
        operands.zip(out.par_chunks_mut(CHUNK)).for_each(|((a, b), out)| self.compute(a, b, out));
        Ok(vec![Tensor::new(&shape, out)?])
    }
}

/// `x` repeated to `shape`.
fn expanded(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    if x.shape() == shape {
        return Ok(x.clone());
    }
    strided::stretched(x, shape)
}
