//! Addition, multiplication and functions of one variable on codes (docs/quantization.md, equation 7).

use lowbit_kernels::{Add, Kernels, Mul};

use crate::error::Result;
use crate::op::{Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::ops::{broadcast, strided};
use crate::parallel;
use crate::session::codes::Codes;
use crate::session::images::fact;
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
        eval_by_routine(self, x)
    }
    fn prepare(&self, _: &[Operand<'_>]) -> Result<Prepared> {
        Prepared::routine(self.clone())
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
    /// The result for each code of one operand, where the other one is `value`
    /// throughout: operand 1, or 0 if `swapped`.
    pub fn table(&self, value: u8, swapped: bool) -> [u8; 256] {
        let codes: [u8; 256] = std::array::from_fn(|q| q as u8);
        match swapped {
            false => self.of_functions(&codes, &[value; 256]),
            true => self.of_functions(&[value; 256], &codes),
        }
    }

    /// The result for each code of which both operands are functions.
    pub fn of_functions(&self, a: &[u8; 256], b: &[u8; 256]) -> [u8; 256] {
        let mut table = [0; 256];
        self.compute(a, b, &mut table);
        table
    }

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
        self.compute(a.slice()?, b.slice()?, &mut out);
        Ok(vec![Tensor::new(&shape, out)?])
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let shape = broadcast::shape(x[0].shape, x[1].shape)?;
        let repeats = Repeats::of(x[0].shape, &shape).zip(Repeats::of(x[1].shape, &shape));
        match repeats {
            Some((a, b)) => {
                let run = a.run.min(b.run);
                Prepared::routine(Binary { op: self.clone(), operands: [a, b], run })
            }
            None => Ok(Prepared::Eval),
        }
    }
}

/// `x` repeated to `shape`.
fn expanded(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    if x.shape() == shape {
        return Ok(x.clone());
    }
    strided::stretched(x, shape)
}

/// An operand that repeats along one range of axes at most: element `i` of the
/// result reads `i / (run * times) * run + i % run`.
#[derive(Clone, Copy, Debug)]
struct Repeats {
    /// Elements after the repeated axes.
    run: usize,
    /// How many times each run is read.
    times: usize,
}

impl Repeats {
    /// How an operand of shape `from` fills `to`, if it repeats along one range
    /// of axes and its runs are long.
    fn of(from: &[usize], to: &[usize]) -> Option<Repeats> {
        const LEAST_RUN: usize = 8;
        let lead = to.len() - from.len();
        let repeated = |axis: &usize| to[*axis] > 1 && (*axis < lead || from[axis - lead] == 1);
        let axes: Vec<usize> = (0..to.len()).filter(repeated).collect();
        let (Some(&first), Some(&last)) = (axes.first(), axes.last()) else {
            let all = to.iter().product();
            return Some(Repeats { run: all, times: 1 });
        };
        let together = (first..=last).all(|axis| repeated(&axis) || to[axis] == 1);
        let run: usize = to[last + 1..].iter().product();
        let times = to[first..=last].iter().product();
        (together && run >= LEAST_RUN).then_some(Repeats { run, times })
    }

    fn slice(self, x: &[u8], at: usize, len: usize) -> &[u8] {
        &x[at / (self.run * self.times) * self.run + at % self.run..][..len]
    }
}

/// A [`QBinary`] of known size.
#[derive(Debug)]
struct Binary {
    op: QBinary,
    operands: [Repeats; 2],
    /// Elements that neither operand repeats.
    run: usize,
}

impl Routine for Binary {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        let (a, b) = (x[0].u8()?, x[1].u8()?);
        let [ra, rb] = self.operands;
        // Tasks are whole runs, or parts of the only one.
        let single = ra.times * rb.times == 1;
        let (chunk, step) = match CHUNK / self.run.max(1) {
            0 if single => (CHUNK, CHUNK),
            runs => (runs.max(1) * self.run, self.run),
        };
        parallel::chunks(y.u8()?, chunk, |i, y| {
            for (j, y) in y.chunks_mut(step).enumerate() {
                let at = i * chunk + j * step;
                self.op.compute(ra.slice(a, at, y.len()), rb.slice(b, at, y.len()), y);
            }
        });
        Ok(())
    }
}

impl Routine for Table {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        let x = x[0].u8()?;
        parallel::chunks(y.u8()?, CHUNK, |i, y| {
            Kernels::best().map(&x[i * CHUNK..][..y.len()], &self.table, y);
        });
        Ok(())
    }
}
