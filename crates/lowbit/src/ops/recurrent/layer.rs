//! One direction of a recurrent operator: its weights, ready to be multiplied,
//! and its recurrence.

use std::fmt;

use lowbit_kernels::{Kernels, Matrix, MatrixMut, Panels, Product, Right, Start};

use super::Cell;
use super::activation::Activation;
use crate::error::Result;
use crate::ops::product::{Part, for_each_part};
use crate::tensor::element_count;

/// Elements of the gates of the steps whose inputs are multiplied together.
const TOGETHER: usize = 1 << 20;

/// A matrix `[cols][depth]`, transposed into panels.
pub(super) struct Packed {
    data: Vec<f32>,
    depth: usize,
    cols: usize,
    width: usize,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.depth, self.cols)
    }
}

impl Packed {
    fn new(weights: &[f32], cols: usize, depth: usize) -> Result<Packed> {
        let kernels = Kernels::best();
        let width = kernels.panel_width();
        let mut data = vec![0.0; element_count(&[cols.next_multiple_of(width), depth])?];
        let source = Matrix::new(weights, cols, depth);
        for (at, panel) in (0..cols).step_by(width).zip(data.chunks_exact_mut((width * depth).max(1))) {
            kernels.transpose(source.rows(at, width.min(cols - at)), width, panel);
        }
        Ok(Packed { data, depth, cols, width })
    }

    /// `out = start + left * self`: chains of fused multiply-adds from `start`,
    /// one for each column, or from `out` on.
    fn multiply(&self, left: Matrix<'_>, start: Option<&[f32]>, out: MatrixMut<'_>) {
        let panels = Panels::new(&self.data, self.depth, self.cols, self.width);
        for_each_part(out, self.depth, true, |Part { row, col, mut out }| {
            let [rows, cols] = out.size();
            let right = Right::Panels(panels.cols(col, cols));
            let start = start.map_or(Start::Out, |s| Start::Cols(&s[col..][..cols]));
            let product = Product { start, ..Product::new(left.rows(row, rows), right) };
            Kernels::best().product(&product, &mut out);
        });
    }
}

/// The weights of one direction, as the ONNX operands have them.
pub(super) struct Weights<'a> {
    /// `[gates * hidden][input]`
    pub(super) w: &'a [f32],
    /// `[gates * hidden][hidden]`
    pub(super) r: &'a [f32],
    /// The bias of W, then that of R.
    pub(super) b: Option<&'a [f32]>,
    /// Peepholes of the gates i, o and f.
    pub(super) p: Option<&'a [f32]>,
}

/// One direction of a recurrent operator.
#[derive(Debug)]
pub(super) struct Layer {
    cell: Cell,
    activations: Vec<Activation>,
    clip: Option<f32>,
    input: usize,
    hidden: usize,
    /// Input to gates.
    w: Packed,
    /// State to gates; GRU: to the gates z and r.
    r: Packed,
    /// GRU: state to the gate h.
    candidate: Option<Packed>,
    /// The sum of both biases, one for each gate.
    bias: Vec<f32>,
    /// GRU that resets after the product: the bias of R for the gate h.
    candidate_bias: Vec<f32>,
    peepholes: Option<Vec<f32>>,
}

/// What a direction carries from step to step: `[batch][hidden]` each.
pub(super) struct State<'a> {
    pub(super) h: &'a mut [f32],
    /// Of an LSTM.
    pub(super) c: &'a mut [f32],
}

impl Layer {
    /// The direction with these functions and weights.
    pub(super) fn new(
        cell: Cell,
        activations: &[Activation],
        clip: Option<f32>,
        [input, hidden]: [usize; 2],
        weights: &Weights<'_>,
    ) -> Result<Layer> {
        let gates = cell.gates() * hidden;
        let mut bias = vec![0.0; gates];
        let mut candidate_bias = vec![];
        if let Some((of_w, of_r)) = weights.b.map(|b| b.split_at(gates)) {
            bias.iter_mut().zip(of_w.iter().zip(of_r)).for_each(|(b, (w, r))| *b = w + r);
            if cell == (Cell::Gru { linear_before_reset: true }) {
                bias[2 * hidden..].copy_from_slice(&of_w[2 * hidden..]);
                candidate_bias = of_r[2 * hidden..].to_vec();
            }
        } else if cell == (Cell::Gru { linear_before_reset: true }) {
            candidate_bias = vec![0.0; hidden];
        }
        // The first gates read the state; the last of a GRU, the state that is reset.
        let direct = if matches!(cell, Cell::Gru { .. }) { 2 } else { cell.gates() };
        let (r, candidate) = weights.r.split_at(direct * hidden * hidden);
        Ok(Layer {
            cell,
            activations: activations.to_vec(),
            clip,
            input,
            hidden,
            w: Packed::new(weights.w, gates, input)?,
            r: Packed::new(r, direct * hidden, hidden)?,
            candidate: (!candidate.is_empty()).then(|| Packed::new(candidate, hidden, hidden)).transpose()?,
            bias,
            candidate_bias,
            peepholes: weights.p.map(<[f32]>::to_vec),
        })
    }

    /// Runs over `x`, `[step][batch][input]` in the order in which the direction
    /// sees the steps. Row `n` of the state takes part in the steps before
    /// `lengths[n]`, after each of which `emit(step, n, h)` is called.
    ///
    /// # Errors
    /// If a step has too many gates.
    pub(super) fn run(
        &self,
        x: &[f32],
        lengths: &[usize],
        state: &mut State<'_>,
        mut emit: impl FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        let (batch, hidden) = (lengths.len(), self.hidden);
        let of_step = element_count(&[batch, self.bias.len()])?;
        let steps = lengths.iter().copied().max().unwrap_or(0);
        let together = (TOGETHER / of_step.max(1)).clamp(1, steps.max(1));
        let mut gates = vec![0.0; element_count(&[together, of_step])?];
        let mut scratch = vec![0.0; if self.candidate.is_some() { batch * hidden } else { 0 }];
        for first in (0..steps).step_by(together) {
            let rows = together.min(steps - first) * batch;
            let x = &x[first * batch * self.input..][..rows * self.input];
            let gates = &mut gates[..rows * self.bias.len()];
            let out = MatrixMut::new(gates, rows, self.bias.len());
            self.w.multiply(Matrix::new(x, rows, self.input), Some(&self.bias), out);
            for (step, gates) in (first..).zip(gates.chunks_exact_mut(of_step.max(1))) {
                let active = |n: &usize| step < lengths[*n];
                match &self.candidate {
                    Some(candidate) => self.step_of_gru(candidate, gates, active, state.h, &mut scratch),
                    None => self.step(gates, active, state),
                }
                (0..batch).filter(active).for_each(|n| emit(step, n, &state.h[n * hidden..][..hidden]));
            }
        }
        Ok(())
    }

    /// One step of an LSTM or RNN, from what the inputs add to the gates; rows
    /// that are not active keep their state.
    fn step(&self, gates: &mut [f32], active: impl Fn(&usize) -> bool, state: &mut State<'_>) {
        let (hidden, all) = (self.hidden, self.bias.len());
        let batch = state.h.len() / hidden;
        self.r.multiply(Matrix::new(state.h, batch, hidden), None, MatrixMut::new(gates, batch, all));
        for n in (0..batch).filter(active) {
            let (gates, own) = (&mut gates[n * all..][..all], n * hidden..(n + 1) * hidden);
            let h = &mut state.h[own.clone()];
            if let Cell::Lstm { input_forget } = self.cell {
                self.lstm(gates, h, &mut state.c[own], input_forget);
            } else {
                self.activate(0, gates);
                h.copy_from_slice(gates);
            }
        }
    }

    /// One step of a GRU; `scratch` has the size of the state `h`.
    fn step_of_gru(
        &self,
        candidate: &Packed,
        gates: &mut [f32],
        active: impl Fn(&usize) -> bool,
        h: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (hidden, all) = (self.hidden, self.bias.len());
        let batch = h.len() / hidden;
        let state = Matrix::new(h, batch, hidden);
        self.r.multiply(state, None, MatrixMut::strided(gates, batch, 2 * hidden, all));
        let after = self.cell == (Cell::Gru { linear_before_reset: true });
        if after {
            candidate.multiply(state, Some(&self.candidate_bias), MatrixMut::new(scratch, batch, hidden));
        }
        for n in (0..batch).filter(&active) {
            let (of_state, new) = gates[n * all..][..all].split_at_mut(2 * hidden);
            self.activate(0, of_state);
            let (reset, own) = (&of_state[hidden..], n * hidden..(n + 1) * hidden);
            if after {
                add_products(new, reset, &scratch[own]);
            } else {
                let y = scratch[own.clone()].iter_mut();
                y.zip(reset.iter().zip(&h[own])).for_each(|(y, (r, h))| *y = r * h);
            }
        }
        if !after {
            let out = MatrixMut::strided(&mut gates[2 * hidden..], batch, hidden, all);
            candidate.multiply(Matrix::new(scratch, batch, hidden), None, out);
        }
        for n in (0..batch).filter(&active) {
            let (update, new) = gates[n * all..][..all].split_at_mut(2 * hidden);
            self.activate(1, new);
            for ((h, new), z) in h[n * hidden..][..hidden].iter_mut().zip(new).zip(update) {
                *h = (1.0 - *z) * *new + *z * *h;
            }
        }
    }

    /// An LSTM's step for one row: gates i, o, f and c.
    fn lstm(&self, gates: &mut [f32], h: &mut [f32], c: &mut [f32], input_forget: bool) {
        let hidden = self.hidden;
        let (i, rest) = gates.split_at_mut(hidden);
        let (o, rest) = rest.split_at_mut(hidden);
        let (f, new) = rest.split_at_mut(hidden);
        let peephole = |gate: usize| self.peepholes.as_ref().map(|p| &p[gate * hidden..][..hidden]);
        if let (Some(of_i), Some(of_f)) = (peephole(0), peephole(2)) {
            add_products(i, of_i, c);
            add_products(f, of_f, c);
        }
        self.activate(0, i);
        if input_forget {
            f.iter_mut().zip(&*i).for_each(|(f, i)| *f = 1.0 - i);
        } else {
            self.activate(0, f);
        }
        self.activate(1, new);
        for ((c, f), (i, new)) in c.iter_mut().zip(f).zip(i.iter().zip(new)) {
            *c = *f * *c + *i * *new;
        }
        if let Some(of_o) = peephole(1) {
            add_products(o, of_o, c);
        }
        self.activate(0, o);
        h.copy_from_slice(c);
        self.activate(2, h);
        h.iter_mut().zip(o).for_each(|(h, o)| *h *= *o);
    }

    /// Function `which` of values bounded by the clip.
    fn activate(&self, which: usize, x: &mut [f32]) {
        if let Some(clip) = self.clip {
            x.iter_mut().for_each(|x| *x = x.clamp(-clip, clip));
        }
        self.activations[which].apply(x);
    }
}

/// `y += a * b`, the product rounded.
fn add_products(y: &mut [f32], a: &[f32], b: &[f32]) {
    y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y += a * b);
}
