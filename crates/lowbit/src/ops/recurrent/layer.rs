//! One direction of a recurrent operator: its weights, ready to be multiplied,
//! and its recurrence.

use std::ops::Range;

use lowbit_kernels::{Grid, Kernels, Matrix, MinMax, Rows, sigmoid, tanh};

use super::Cell;
use super::activation::Activation;
use super::matrix::{Input, Left, Out, Packed, Step, ZERO, union};
use super::parts::{Part, Plan, each, each_with};
use crate::error::Result;
use crate::ops::product::with_scratch;
use crate::ops::vectorized::vectorized;
use crate::parallel;
use crate::tensor::element_count;

/// Elements of the gates of the steps whose inputs are multiplied together.
const TOGETHER: usize = 1 << 18;
/// Rows of inputs that are worth a thread.
const ROWS: usize = 48;

/// The weights of one direction.
pub(super) struct Weights<'a> {
    /// Input to gate, one for each gate.
    pub(super) w: Vec<Packed>,
    /// State to gate, one for each gate.
    pub(super) r: Vec<Packed>,
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
    w: Vec<Packed>,
    r: Vec<Packed>,
    /// The sum of both biases, one for each unit of each gate.
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
    /// How a layer in codes quantizes h, if not over its range.
    pub(super) step: Option<Step>,
}

/// Where the states after each step go.
pub(super) struct Emitted<'a, F> {
    /// Rows of `hidden` elements.
    pub(super) y: Grid<'a, f32>,
    /// The row of a step and a sequence.
    pub(super) row: F,
}

/// What a [`Part`] has of one row of the batch in one step.
struct Row<'a> {
    gates: &'a mut [f32],
    /// To be added to the gates; nothing of values.
    products: &'a [f32],
    h: &'a mut [f32],
    c: &'a mut [f32],
    candidate: &'a mut [f32],
}

impl Layer {
    /// The direction with these functions and weights.
    pub(super) fn new(
        cell: Cell,
        activations: &[Activation],
        clip: Option<f32>,
        [input, hidden]: [usize; 2],
        weights: Weights<'_>,
    ) -> Layer {
        let gates = cell.gates() * hidden;
        let after = cell == (Cell::Gru { linear_before_reset: true });
        let mut bias = vec![0.0; gates];
        let mut candidate_bias = vec![0.0; if after { hidden } else { 0 }];
        if let Some((of_w, of_r)) = weights.b.map(|b| b.split_at(gates)) {
            bias.iter_mut().zip(of_w.iter().zip(of_r)).for_each(|(b, (w, r))| *b = w + r);
            if after {
                bias[2 * hidden..].copy_from_slice(&of_w[2 * hidden..]);
                candidate_bias.copy_from_slice(&of_r[2 * hidden..]);
            }
        }
        Layer {
            cell,
            activations: activations.to_vec(),
            clip,
            input,
            hidden,
            w: weights.w,
            r: weights.r,
            bias,
            candidate_bias,
            peepholes: weights.p.map(<[f32]>::to_vec),
        }
    }

    /// Whether the layer multiplies codes.
    pub(super) fn is_coded(&self) -> bool {
        matches!(self.r.first(), Some(Packed::Codes(_)))
    }

    /// Runs over the inputs in the order in which the direction sees the steps.
    /// Row `n` of the state takes part in the steps before `lengths[n]`, after
    /// each of which it is emitted.
    ///
    /// # Errors
    /// If a step has too many gates.
    pub(super) fn run(
        &self,
        x: &Input<'_>,
        lengths: &[usize],
        state: &mut State<'_>,
        emitted: Emitted<'_, impl Fn(usize, usize) -> usize + Sync>,
    ) -> Result<()> {
        let (batch, hidden) = (lengths.len(), self.hidden);
        let of_step = element_count(&[batch, self.bias.len()])?;
        let steps = lengths.iter().copied().max().unwrap_or(0);
        let together = (TOGETHER / of_step.max(1)).clamp(1, steps.max(1));
        let plan = Plan {
            batch,
            hidden,
            gates: self.cell.gates(),
            together,
            is_coded: self.is_coded(),
            has_candidate: matches!(self.cell, Cell::Gru { .. }),
        };
        let Emitted { y, row } = emitted;
        with_scratch(plan.elements()?, |memory| {
            let mut parts = plan.parts(self.r[0].width(), state, y, memory);
            self.steps(x, lengths, together, &mut parts, state, &row);
            for part in &parts {
                store(part, part.h, state.h, hidden);
                store(part, part.c, state.c, hidden);
            }
        });
        Ok(())
    }

    /// The recurrence.
    fn steps(
        &self,
        x: &Input<'_>,
        lengths: &[usize],
        together: usize,
        parts: &mut [Part<'_>],
        state: &mut State<'_>,
        row: &(impl Fn(usize, usize) -> usize + Sync),
    ) {
        let batch = lengths.len();
        let steps = lengths.iter().copied().max().unwrap_or(0);
        let terms = self.w[0].terms(x);
        let mut whole = Whole { values: &mut *state.h, codes: vec![], terms: vec![], step: state.step };
        for step in 0..steps {
            if step.is_multiple_of(together) {
                let rows = step * batch..steps.min(step + together) * batch;
                each(parts, &|part| self.start(part, x, rows.clone(), &terms));
            }
            let now = Now { step, at: step % together, lengths };
            let left = whole.gather(&self.r[0], parts, batch, |part| part.h);
            let end = |part: &mut Part<'_>| self.end(part, &now, row);
            match self.cell {
                Cell::Lstm { input_forget } => each(parts, &|part| {
                    self.multiply(0..4, part, &now, left);
                    self.end_lstm(part, &now, input_forget);
                    end(part);
                }),
                Cell::Rnn => each(parts, &|part| {
                    self.multiply(0..1, part, &now, left);
                    self.end_rnn(part, &now);
                    end(part);
                }),
                Cell::Gru { linear_before_reset: true } => each(parts, &|part| {
                    self.multiply(0..2, part, &now, left);
                    self.multiply_candidate(part, left);
                    self.reset_product(part, &now);
                    self.end_gru(0..0, part, &now);
                    end(part);
                }),
                Cell::Gru { linear_before_reset: false } => {
                    each(parts, &|part| {
                        self.multiply(0..2, part, &now, left);
                        self.reset_state(part, &now);
                        part.range = self.range(part.candidate, part.units.len(), &now);
                    });
                    let left = whole.gather(&self.r[2], parts, batch, |part| part.candidate);
                    each(parts, &|part| {
                        self.multiply(2..3, part, &now, left);
                        self.end_gru(2..3, part, &now);
                        end(part);
                    });
                }
            }
        }
    }

    /// Emits the states of a step, and tells where they lie.
    fn end(&self, part: &mut Part<'_>, now: &Now<'_>, row: &impl Fn(usize, usize) -> usize) {
        let count = part.units.len();
        for n in now.rows() {
            part.y.run(row(now.step, n), 0, count).copy_from_slice(&part.h[n * count..][..count]);
        }
        part.range = self.range(part.h, count, now);
    }

    /// Where the rows of `count` elements lie that take part, and 0; of values, which
    /// need no range, it is not told.
    fn range(&self, x: &[f32], count: usize, now: &Now<'_>) -> MinMax {
        let mut range = ZERO;
        let (mut row, batch) = (0, if self.is_coded() { now.lengths.len() } else { 0 });
        while row < batch {
            // Rows that follow each other are looked at together.
            let end = (row..batch).find(|n| !now.active()(n)).unwrap_or(batch);
            range = union(range, Kernels::best().min_max(&x[row * count..end * count]));
            row = end + 1;
        }
        range
    }

    /// What the input rows `rows` add to the gates.
    fn start(&self, part: &mut Part<'_>, x: &Input<'_>, rows: Range<usize>, terms: &[i32]) {
        let (count, gates) = (part.units.len(), self.cell.gates());
        let pitch = gates * count;
        let threads = if part.units.len() == self.hidden { rayon::current_num_threads() } else { 1 };
        let of_task = rows.len().div_ceil(threads).max(ROWS);
        let out = &mut part.gates[..rows.len() * pitch];
        parallel::chunks(out, of_task * pitch, |i, out| {
            let first = rows.start + i * of_task;
            let x = x.rows(first..first + out.len() / pitch, self.input, terms);
            for (gate, w) in self.w.iter().enumerate() {
                let data = &mut out[gate * count..];
                w.start(x, self.gate_bias(gate), Out { units: part.units.clone(), data, pitch });
            }
        });
    }

    fn gate_bias(&self, gate: usize) -> &[f32] {
        &self.bias[gate * self.hidden..][..self.hidden]
    }

    /// What the state adds to some gates: to their values, or of codes apart.
    fn multiply(&self, gates: Range<usize>, part: &mut Part<'_>, now: &Now<'_>, left: Left<'_>) {
        let (count, pitch) = (part.units.len(), self.cell.gates() * part.units.len());
        // Back and forth: what was read last is still in the cache.
        let forth = now.step.is_multiple_of(2);
        for gate in gates.clone().map(|gate| if forth { gate } else { gates.start + gates.end - 1 - gate }) {
            let units = part.units.clone();
            if self.is_coded() {
                let data = &mut part.products[gate * count..];
                self.r[gate].product(left, Out { units, data, pitch });
            } else {
                let data = &mut now.gates(part.gates, pitch)[gate * count..];
                self.r[gate].add(left, Out { units, data, pitch });
            }
        }
    }

    /// Row `n` of a part in this step.
    #[inline(always)]
    fn row<'a>(&self, part: &'a mut Part<'_>, now: &Now<'_>, n: usize) -> Row<'a> {
        let (count, pitch) = (part.units.len(), self.cell.gates() * part.units.len());
        let gates = &mut now.gates(part.gates, pitch)[n * pitch..][..pitch];
        let products = part.products.get(n * pitch..(n + 1) * pitch).unwrap_or_default();
        let own = n * count..(n + 1) * count;
        let candidate = part.candidate.get_mut(own.clone()).unwrap_or_default();
        Row { gates, products, h: &mut part.h[own.clone()], c: &mut part.c[own], candidate }
    }

    /// [`Layer::row`], with the products and biases of some gates added where the
    /// layer is in codes.
    fn finished<'a>(&self, gates: Range<usize>, part: &'a mut Part<'_>, now: &Now<'_>, n: usize) -> Row<'a> {
        let units = part.units.clone();
        let row = self.row(part, now, n);
        for gate in gates.filter(|_| self.is_coded()) {
            let columns = gate * units.len()..(gate + 1) * units.len();
            let bias = &self.gate_bias(gate)[units.clone()];
            let products = row.products[columns.clone()].iter().zip(bias);
            row.gates[columns].iter_mut().zip(products).for_each(|(y, (p, b))| *y = (*y + p) + b);
        }
        row
    }

    /// `R h + Rb` of the gate h.
    fn multiply_candidate(&self, part: &mut Part<'_>, left: Left<'_>) {
        let (count, units) = (part.units.len(), part.units.clone());
        let bias = &self.candidate_bias[units.clone()];
        if self.is_coded() {
            self.r[2].product(left, Out { units, data: part.candidate, pitch: count });
            for y in part.candidate.chunks_exact_mut(count) {
                y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        } else {
            part.candidate.chunks_exact_mut(count).for_each(|y| y.copy_from_slice(bias));
            self.r[2].add(left, Out { units, data: part.candidate, pitch: count });
        }
    }

    /// The functions of the gates z and r, and what is reset after the product
    /// added to the gate h.
    fn reset_product(&self, part: &mut Part<'_>, now: &Now<'_>) {
        let units = part.units.clone();
        for n in now.rows() {
            let Row { gates, candidate, .. } = self.finished(0..2, part, now, n);
            let (of_state, new) = gates.split_at_mut(2 * units.len());
            self.activate(0, of_state);
            if self.is_coded() {
                let bias = &self.gate_bias(2)[units.clone()];
                new.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
            add_products(new, &of_state[units.len()..], candidate);
        }
    }

    /// The functions of the gates z and r, and the state that is reset.
    fn reset_state(&self, part: &mut Part<'_>, now: &Now<'_>) {
        let units = part.units.clone();
        for n in now.rows() {
            let Row { gates, candidate, h, .. } = self.finished(0..2, part, now, n);
            let of_state = &mut gates[..2 * units.len()];
            self.activate(0, of_state);
            let operands = of_state[units.len()..].iter().zip(h);
            candidate.iter_mut().zip(operands).for_each(|(y, (r, h))| *y = r * *h);
        }
    }

    /// The next state of a GRU, of whose gates those in `products` are to be ended.
    fn end_gru(&self, products: Range<usize>, part: &mut Part<'_>, now: &Now<'_>) {
        let count = part.units.len();
        for n in now.rows() {
            let Row { gates, h, .. } = self.finished(products.clone(), part, now, n);
            let (update, new) = gates.split_at_mut(2 * count);
            self.activate(1, new);
            for (h, (new, z)) in h.iter_mut().zip(new.iter().zip(update)) {
                *h = (1.0 - *z) * *new + *z * *h;
            }
        }
    }

    fn end_rnn(&self, part: &mut Part<'_>, now: &Now<'_>) {
        for n in now.rows() {
            let Row { gates, h, .. } = self.finished(0..1, part, now, n);
            self.activate(0, gates);
            h.copy_from_slice(gates);
        }
    }

    /// The next state of an LSTM, from its gates i, o, f and c.
    fn end_lstm(&self, part: &mut Part<'_>, now: &Now<'_>, input_forget: bool) {
        let plain = self.activations == self.cell.functions()
            && self.clip.is_none()
            && self.peepholes.is_none()
            && !input_forget;
        let units = part.units.clone();
        if !plain {
            for n in now.rows() {
                let row = self.finished(0..4, part, now, n);
                self.lstm(units.clone(), row, input_forget);
            }
        } else if self.is_coded() {
            let bias = [0, 1, 2, 3].map(|gate| &self.gate_bias(gate)[units.clone()]);
            vectorized(
                #[inline(always)]
                || {
                    for n in now.rows() {
                        coded_lstm(self.row(part, now, n), bias);
                    }
                },
            );
        } else {
            vectorized(
                #[inline(always)]
                || {
                    for n in now.rows() {
                        plain_lstm(self.row(part, now, n));
                    }
                },
            );
        }
    }

    /// A row of an LSTM with any functions and options.
    fn lstm(&self, units: Range<usize>, row: Row<'_>, input_forget: bool) {
        let Row { gates, h, c, .. } = row;
        let peephole = |gate: usize| self.peepholes.as_ref().map(|p| &p[gate * self.hidden..][units.clone()]);
        let (i, rest) = gates.split_at_mut(units.len());
        let (o, rest) = rest.split_at_mut(units.len());
        let (f, new) = rest.split_at_mut(units.len());
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

/// A row of an LSTM with ONNX's functions and none of its options. In two loops: the
/// chain of one unit's operations is long, and the shorter each, the more run at a time.
#[inline(always)]
fn plain_lstm(row: Row<'_>) {
    let Row { gates, h, c, .. } = row;
    let [i, o, f, new] = quarters(gates, c.len());
    let h = &mut h[..c.len()];
    for j in 0..c.len() {
        c[j] = sigmoid(f[j]) * c[j] + sigmoid(i[j]) * tanh(new[j]);
    }
    for j in 0..c.len() {
        h[j] = tanh(c[j]) * sigmoid(o[j]);
    }
}

/// The same in codes: of gates to which their products and biases are yet to be added.
#[inline(always)]
fn coded_lstm(row: Row<'_>, [of_i, of_o, of_f, of_new]: [&[f32]; 4]) {
    let Row { gates, products, h, c, .. } = row;
    let count = c.len();
    let h = &mut h[..count];
    let [i, o, f, new] = quarters(gates, count);
    let [add_i, add_o, add_f, add_new] = quarters(products, count);
    let (of_i, of_o, of_f, of_new) = (&of_i[..count], &of_o[..count], &of_f[..count], &of_new[..count]);
    for j in 0..count {
        let i = (i[j] + add_i[j]) + of_i[j];
        let f = (f[j] + add_f[j]) + of_f[j];
        let new = (new[j] + add_new[j]) + of_new[j];
        c[j] = sigmoid(f) * c[j] + sigmoid(i) * tanh(new);
    }
    for j in 0..count {
        h[j] = tanh(c[j]) * sigmoid((o[j] + add_o[j]) + of_o[j]);
    }
}

/// Four times `count` elements.
#[inline(always)]
fn quarters(x: &[f32], count: usize) -> [&[f32]; 4] {
    let (a, x) = x.split_at(count);
    let (b, x) = x.split_at(count);
    let (c, d) = x.split_at(count);
    [a, b, c, &d[..count]]
}

/// One step of those whose gates are at hand.
struct Now<'a> {
    step: usize,
    /// Steps before it at hand.
    at: usize,
    lengths: &'a [usize],
}

impl Now<'_> {
    fn active(&self) -> impl Fn(&usize) -> bool {
        |n| self.step < self.lengths[*n]
    }

    /// The rows that take part.
    fn rows(&self) -> impl Iterator<Item = usize> {
        (0..self.lengths.len()).filter(self.active())
    }

    /// The gates of this step, of a part with `pitch` gates for each row.
    fn gates<'a>(&self, gates: &'a mut [f32], pitch: usize) -> &'a mut [f32] {
        let of_step = self.lengths.len() * pitch;
        &mut gates[self.at * of_step..][..of_step]
    }
}

/// All units of what is multiplied next, and memory for it.
struct Whole<'m> {
    /// Of values.
    values: &'m mut [f32],
    codes: Vec<u8>,
    terms: Vec<i32>,
    /// How values become codes, if not over their range.
    step: Option<Step>,
}

impl Whole<'_> {
    /// What `of` tells of each part, `[batch][unit]`, for products with `right`.
    fn gather(
        &mut self,
        right: &Packed,
        parts: &mut [Part<'_>],
        batch: usize,
        of: impl for<'x> Fn(&'x Part<'_>) -> &'x [f32] + Sync,
    ) -> Left<'_> {
        let hidden = parts.last().map_or(0, |part| part.units.end);
        if let Packed::Values(_) = right {
            parts.iter().for_each(|part| store(part, of(part), self.values, hidden));
            return Left::Values(Matrix::new(self.values, batch, hidden));
        }
        let step = self.step.unwrap_or_else(|| {
            Step::covering(parts.iter().fold(ZERO, |range, part| union(range, part.range)))
        });
        self.codes.resize(batch * hidden, 0);
        each_with(parts, Grid::new(&mut self.codes, batch, hidden, hidden), &|part, mut codes| {
            let count = codes.columns();
            for (n, x) in of(part).chunks_exact(count).enumerate() {
                step.encode(x, codes.run(n, 0, count));
            }
        });
        right.terms_into(&self.codes, &mut self.terms);
        let rows = Rows::strided(&self.codes, hidden, batch, hidden);
        Left::Codes(if self.terms.is_empty() { rows } else { rows.with_terms(&self.terms) }, step)
    }
}

/// Copies rows of a part to those of all units, if there are any.
fn store(part: &Part<'_>, from: &[f32], to: &mut [f32], hidden: usize) {
    let rows = to.chunks_exact_mut(hidden).zip(from.chunks_exact(part.units.len()));
    rows.for_each(|(to, from)| to[part.units.clone()].copy_from_slice(from));
}

/// `y += a * b`, the product rounded.
fn add_products(y: &mut [f32], a: &[f32], b: &[f32]) {
    y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y += a * b);
}
