//! Matrix products on codes, spread over threads.

use std::ops::Range;

use lowbit_kernels::{Grid, Kernels, Output, Requant, Residual, Rows, Weights};

use crate::error::{Result, invalid};
use crate::op::{DataMut, View, ViewMut};
use crate::parallel;
use crate::session::codes::Codes;
use crate::tensor::DType;

/// Multiply-accumulates that are worth a task of their own: some microseconds.
const TASK: usize = 1 << 20;
/// The most tasks for each thread: several, so that one which others keep from running has few.
const TASKS_OF_A_THREAD: usize = 4;

/// What becomes of an accumulator: `acc + bias` at scale `s_x s_w[c]`.
#[derive(Clone, Debug)]
pub struct Epilogue {
    /// Bias less `z_x sum(w[c])`, one per output channel.
    pub bias: Vec<i32>,
    /// `s_x s_w[c]`.
    pub scale: Vec<f32>,
    /// The codes of the output, or none for f32.
    pub codes: Option<Target>,
}

/// Codes of an output, restricted by the activation function folded in.
#[derive(Clone, Debug)]
pub struct Target {
    /// Scale and zero point.
    pub codes: Codes,
    /// Least code.
    pub lo: u8,
    /// Greatest code.
    pub hi: u8,
    /// `s_x s_w[c] / s_y` (docs/quantization.md, equation 6).
    multiplier: Vec<f32>,
    /// What is added to the codes.
    pub sum: Option<Sum>,
}

/// A second operand that is added to the codes of a product, and the codes of
/// the sum (docs/quantization.md, equation 7).
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    /// Codes of the operand.
    pub operand: Codes,
    /// Codes of the sum.
    pub codes: Codes,
    /// Least code of the sum.
    pub lo: u8,
    /// Greatest code of the sum.
    pub hi: u8,
}

impl Target {
    /// The kernels' form for the channels `columns`.
    pub fn requant<'a>(&'a self, bias: &'a [i32], columns: Range<usize>) -> Requant<'a> {
        Requant {
            bias: &bias[columns.clone()],
            multiplier: &self.multiplier[columns],
            zero: self.codes.zero,
            lo: self.lo,
            hi: self.hi,
        }
    }
}

impl Epilogue {
    /// The same accumulators requantized.
    pub fn requantized(&self, codes: Codes, lo: u8, hi: u8) -> Epilogue {
        // A multiplier beyond f32 saturates any sum but 0, as f32's greatest does.
        let multiplier = self.scale.iter().map(|s| (s / codes.scale).min(f32::MAX)).collect();
        Epilogue { codes: Some(Target { codes, lo, hi, multiplier, sum: None }), ..self.clone() }
    }

    /// The same codes added to a second operand, unless something is added already.
    pub fn added(&self, sum: Sum) -> Option<Epilogue> {
        let target = self.codes.clone().filter(|t| t.sum.is_none())?;
        Some(Epilogue { codes: Some(Target { sum: Some(sum), ..target }), ..self.clone() })
    }

    /// Element type of the output.
    pub fn dtype(&self) -> DType {
        if self.codes.is_some() { DType::U8 } else { DType::F32 }
    }
}

/// What becomes of a product's accumulators.
pub trait End<'a>: Copy + Send {
    /// The same for the rows from `at` on.
    fn below(self, at: usize) -> Self;

    /// The same where the first `at` columns of the output are left out.
    fn beside(self, at: usize) -> Self;

    /// The kernels' form for these columns of the weights, which go to `out`.
    fn output(self, columns: Range<usize>, out: Out<'a>) -> Output<'a>;

    /// Multiplies, on this thread.
    fn multiply(product: Product<'a, Self>) {
        let Product { rows, weights, panels, end, out } = product;
        let output = end.output(weights.columns_of(panels.clone()), out);
        Kernels::best().gemm(&rows, weights, panels, output);
    }
}

/// An [`Epilogue`], and what it adds.
#[derive(Clone, Copy)]
pub struct Requantized<'a> {
    /// Parameters of the columns.
    pub epilogue: &'a Epilogue,
    /// Those of the weights' first column.
    pub first_column: usize,
    /// The second operand, from the output's first element, and the distance of
    /// its rows.
    pub added: Option<(&'a [u8], usize)>,
}

impl<'a> End<'a> for Requantized<'a> {
    fn below(self, at: usize) -> Self {
        Requantized { added: self.added.map(|(b, pitch)| (&b[at * pitch..], pitch)), ..self }
    }

    fn beside(self, at: usize) -> Self {
        Requantized { added: self.added.map(|(b, pitch)| (&b[at..], pitch)), ..self }
    }

    fn output(self, columns: Range<usize>, out: Out<'a>) -> Output<'a> {
        let columns = columns.start + self.first_column..columns.end + self.first_column;
        let Epilogue { bias, scale, codes } = self.epilogue;
        match (out, codes) {
            (Out::U8(out), Some(target)) => {
                let residual = target.sum.zip(self.added).map(|(sum, (codes, stride))| Residual {
                    codes,
                    stride,
                    a_ratio: target.codes.scale / sum.codes.scale,
                    zero: sum.operand.zero as u8,
                    ratio: sum.operand.scale / sum.codes.scale,
                    y_zero: sum.codes.zero,
                    lo: sum.lo,
                    hi: sum.hi,
                });
                Output::U8 { requant: target.requant(bias, columns), residual, out }
            }
            (Out::F32(out), _) => {
                Output::F32 { bias: &bias[columns.clone()], multiplier: &scale[columns], out }
            }
            (Out::U8(_), None) => unreachable!("codes are written only where there is a target"),
        }
    }
}

/// A product's left rows, weights and output, or a part of them.
pub struct Product<'a, E> {
    /// The left matrix.
    pub rows: Rows<'a>,
    /// The right one.
    pub weights: Weights<'a>,
    /// Its panels of columns.
    pub panels: Range<usize>,
    /// What becomes of accumulators.
    pub end: E,
    /// Where the result goes.
    pub out: Out<'a>,
}

/// The output of a product.
pub enum Out<'a> {
    /// Codes.
    U8(Grid<'a, u8>),
    /// Values.
    F32(Grid<'a, f32>),
}

impl<'a> Out<'a> {
    /// `rows` x `columns` elements of a result.
    ///
    /// # Errors
    /// If it is neither u8 nor f32.
    pub fn new(y: ViewMut<'a>, rows: usize, columns: usize) -> Result<Out<'a>> {
        match y.data {
            DataMut::U8(data) => Ok(Out::U8(Grid::new(data, rows, columns, y.pitch))),
            DataMut::F32(data) => Ok(Out::F32(Grid::new(data, rows, columns, y.pitch))),
            DataMut::I8(_) => Err(invalid!("the result of a product is not i8")),
        }
    }

    /// The first `at` rows, and the others.
    pub fn split_rows(self, at: usize) -> (Out<'a>, Out<'a>) {
        match self {
            Out::U8(g) => map(g.split_rows(at), Out::U8),
            Out::F32(g) => map(g.split_rows(at), Out::F32),
        }
    }

    /// The first `at` columns, and the others.
    pub fn split_columns(self, at: usize) -> (Out<'a>, Out<'a>) {
        match self {
            Out::U8(g) => map(g.split_columns(at), Out::U8),
            Out::F32(g) => map(g.split_columns(at), Out::F32),
        }
    }
}

fn map<T, U>((a, b): (T, T), f: impl Fn(T) -> U) -> (U, U) {
    (f(a), f(b))
}

/// The second operand of a product whose epilogue adds one.
///
/// # Errors
/// If it is not u8.
pub fn added<'a>(epilogue: &Epilogue, x: &[View<'a>], pitch: usize) -> Result<Option<(&'a [u8], usize)>> {
    match (&epilogue.codes, x) {
        (Some(Target { sum: Some(_), .. }), [_, b]) => Ok(Some((b.u8()?, pitch))),
        _ => Ok(None),
    }
}

impl<'a, E: End<'a>> Product<'a, E> {
    /// Multiplies, in tasks for the threads of the current pool.
    pub fn run(self) {
        let threads = rayon::current_num_threads();
        let columns = self.weights.columns_of(self.panels.clone()).len();
        let work = self.rows.count() * columns * self.weights.depth() * self.weights.taps();
        let tasks = match (threads, work) {
            (1, _) | (_, ..=TASK) => 1,
            _ => work.div_ceil(TASK).next_multiple_of(threads).min(TASKS_OF_A_THREAD * threads),
        };
        self.spread(tasks);
    }

    /// Multiplies, in so many tasks at most, of about equal work: where one ends later than the
    /// others, the threads wait for it.
    fn spread(self, tasks: usize) {
        let (tiles, panels) = (self.rows.count() / Kernels::best().rows_together(), self.panels.len());
        if tasks < 2 || tiles.max(panels) < 2 {
            return E::multiply(self);
        }
        let (first, second, of_first) = if tiles >= 2 * panels || panels < 2 {
            let half = tasks / 2;
            let at = self.rows.count() * half / tasks;
            let (first, second) = self.split_rows(at);
            (first, second, half)
        } else {
            let (first, second) = self.split_panels();
            let share = first.panels.len() * tasks / panels;
            (first, second, share.max(1))
        };
        parallel::join(|| first.spread(of_first), || second.spread(tasks - of_first));
    }

    /// The first `at` rows, and the others.
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        let Product { rows, weights, panels, end, out } = self;
        let (above, below) = out.split_rows(at);
        let part =
            |range, end, out| Product { rows: rows.range(range), weights, panels: panels.clone(), end, out };
        (part(0..at, end, above), part(at..rows.count(), end.below(at), below))
    }

    /// One half of the panels, and the other.
    pub fn split_panels(self) -> (Self, Self) {
        let Product { rows, weights, panels: Range { start, end: last }, end, out } = self;
        let middle = start.midpoint(last);
        let at = weights.columns_of(start..middle).len();
        let (left, right) = out.split_columns(at);
        let part = |panels, end, out| Product { rows, weights, panels, end, out };
        (part(start..middle, end, left), part(middle..last, end.beside(at), right))
    }
}
