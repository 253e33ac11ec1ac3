//! One direction of a recurrent operator: its weights, ready to be multiplied,
//! and its recurrence.

use std::ops::Range;

use lowbit_kernels::{sigmoid, tanh};

use super::Cell;
use super::activation::Activation;
use super::matrix::{Encoder, Input, Left, Out, Packed, Step};
use crate::error::Result;
use crate::ops::product::with_scratch;
use crate::ops::vectorized::vectorized;
use crate::parallel;
use crate::tensor::element_count;

/// Elements of the gates of the steps whose inputs are multiplied together.
const TOGETHER: usize = 1 << 18;
/// Multiply-accumulates of a step that are worth a thread.
const OF_STEP: usize = 1 << 17;
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

/// Some units of a layer, which one thread computes, and their memory.
struct Part<'m> {
    units: Range<usize>,
    /// `[step][batch][gate][unit]`
    gates: &'m mut [f32],
    /// The next state, `[batch][unit]`.
    h: &'m mut [f32],
    /// Of an LSTM.
    c: &'m mut [f32],
    /// GRU: `r * h`, or `R h + Rb` if the reset applies to the product.
    candidate: &'m mut [f32],
    /// Products of codes, `[gate][batch][unit]`.
    sums: Vec<i32>,
}

/// What a [`Part`] has of one row of the batch in one step.
struct Row<'a> {
    gates: &'a mut [f32],
    h: &'a mut [f32],
    c: &'a mut [f32],
    candidate: &'a mut [f32],
}

/// Calls `f` for all parts, each on a thread.
fn each(parts: &mut [Part<'_>], f: &(impl Fn(&mut Part<'_>) + Sync)) {
    match parts {
        [] => {}
        [part] => f(part),
        _ => {
            let (some, others) = parts.split_at_mut(parts.len() / 2);
            rayon::join(|| each(some, f), || each(others, f));
        }
    }
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
    /// each of which `emit(step, n, h)` is called.
    ///
    /// # Errors
    /// If a step has too many gates.
    pub(super) fn run(
        &self,
        x: &Input<'_>,
        lengths: &[usize],
        state: &mut State<'_>,
        emit: impl FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        let (batch, hidden) = (lengths.len(), self.hidden);
        let of_step = element_count(&[batch, self.bias.len()])?;
        let steps = lengths.iter().copied().max().unwrap_or(0);
        let together = (TOGETHER / of_step.max(1)).clamp(1, steps.max(1));
        let of_row = self.bias.len() * together + hidden * (2 + usize::from(self.is_gru()));
        with_scratch(element_count(&[batch, of_row])?, |memory| {
            let mut parts = self.parts(together, batch, state, memory);
            self.steps(x, lengths, together, &mut parts, state, emit);
            for part in &parts {
                let of_state = state.c.chunks_exact_mut(hidden);
                let of_part = part.c.chunks_exact(part.units.len());
                of_state.zip(of_part).for_each(|(c, own)| c[part.units.clone()].copy_from_slice(own));
            }
        });
        Ok(())
    }

    fn is_gru(&self) -> bool {
        matches!(self.cell, Cell::Gru { .. })
    }

    /// The units, one part for each thread that a step is worth, with `memory` for
    /// `together` steps.
    fn parts<'m>(
        &self,
        together: usize,
        batch: usize,
        state: &State<'_>,
        mut memory: &'m mut [f32],
    ) -> Vec<Part<'m>> {
        let (width, gates) = (self.r[0].width(), self.cell.gates());
        let panels = self.hidden.div_ceil(width);
        let work = (batch * self.bias.len()).saturating_mul(self.hidden);
        let count = (work / OF_STEP).clamp(1, rayon::current_num_threads().min(panels));
        let edge = |i: usize| self.hidden.min(panels * i / count * width);
        let mut take = |len: usize| {
            let (taken, rest) = std::mem::take(&mut memory).split_at_mut(len);
            memory = rest;
            taken
        };
        let mut part = |i: usize| {
            let units = edge(i)..edge(i + 1);
            let of_state = batch * units.len();
            let c = take(of_state);
            if !state.c.is_empty() {
                let rows = c.chunks_exact_mut(units.len()).zip(state.c.chunks_exact(self.hidden));
                rows.for_each(|(own, c)| own.copy_from_slice(&c[units.clone()]));
            }
            Part {
                gates: take(of_state * gates * together),
                h: take(of_state),
                c,
                candidate: take(if self.is_gru() { of_state } else { 0 }),
                sums: vec![0; if self.is_coded() { of_state * gates } else { 0 }],
                units,
            }
        };
        (0..count).map(&mut part).collect()
    }

    /// The recurrence.
    fn steps(
        &self,
        x: &Input<'_>,
        lengths: &[usize],
        together: usize,
        parts: &mut [Part<'_>],
        state: &mut State<'_>,
        mut emit: impl FnMut(usize, usize, &[f32]),
    ) {
        let State { h, step, .. } = state;
        let (batch, hidden) = (lengths.len(), self.hidden);
        let steps = lengths.iter().copied().max().unwrap_or(0);
        let terms = self.w[0].terms(x);
        let (mut encoder, mut reset) = (Encoder::new(*step), vec![]);
        for step in 0..steps {
            if step.is_multiple_of(together) {
                let rows = step * batch..steps.min(step + together) * batch;
                each(parts, &|part| self.start(part, x, rows.clone(), &terms));
            }
            let now = Now { step, at: step % together, lengths };
            let left = encoder.encode(&self.r[0], h, |n| step <= lengths[*n]);
            match self.cell {
                Cell::Lstm { input_forget } => each(parts, &|part| {
                    self.multiply(0..4, part, &now, left);
                    self.end_lstm(part, &now, left, input_forget);
                }),
                Cell::Rnn => each(parts, &|part| {
                    self.multiply(0..1, part, &now, left);
                    self.end_rnn(part, &now, left);
                }),
                Cell::Gru { linear_before_reset: true } => each(parts, &|part| {
                    self.multiply(0..2, part, &now, left);
                    self.multiply_candidate(part, left);
                    self.reset_product(part, &now, left);
                    self.end_gru(0..0, part, &now, left, h);
                }),
                Cell::Gru { linear_before_reset: false } => {
                    each(parts, &|part| {
                        self.multiply(0..2, part, &now, left);
                        self.reset_state(part, &now, left, h);
                    });
                    reset.resize(batch * hidden, 0.0);
                    collect(parts, &now, |part| part.candidate, &mut reset);
                    let left = encoder.encode(&self.r[2], &reset, now.active());
                    each(parts, &|part| {
                        self.multiply(2..3, part, &now, left);
                        self.end_gru(2..3, part, &now, left, h);
                    });
                }
            }
            collect(parts, &now, |part| part.h, h);
            now.rows().for_each(|n| emit(step, n, &h[n * hidden..][..hidden]));
        }
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

    /// What the state adds to some gates; of codes, the sums of that.
    fn multiply(&self, gates: Range<usize>, part: &mut Part<'_>, now: &Now<'_>, left: Left<'_>) {
        let (count, pitch) = (part.units.len(), self.cell.gates() * part.units.len());
        let out = now.gates(part.gates, pitch);
        let of_gate = part.sums.len() / self.cell.gates();
        // Back and forth: what was read last is still in the cache.
        let forth = now.step.is_multiple_of(2);
        for gate in gates.clone().map(|gate| if forth { gate } else { gates.start + gates.end - 1 - gate }) {
            let out = Out { units: part.units.clone(), data: &mut out[gate * count..], pitch };
            self.r[gate].add(left, out, &mut part.sums[gate * of_gate..][..of_gate]);
        }
    }

    /// Row `n` of a part in this step.
    #[inline(always)]
    fn row<'a>(&self, part: &'a mut Part<'_>, now: &Now<'_>, n: usize) -> Row<'a> {
        let (count, pitch) = (part.units.len(), self.cell.gates() * part.units.len());
        let gates = &mut now.gates(part.gates, pitch)[n * pitch..][..pitch];
        let own = n * count..(n + 1) * count;
        let candidate = part.candidate.get_mut(own.clone()).unwrap_or_default();
        Row { gates, h: &mut part.h[own.clone()], c: &mut part.c[own], candidate }
    }

    /// [`Layer::row`], with the products of some gates ended that
    /// [`Layer::multiply`] left as sums.
    #[inline(always)]
    fn finished<'a>(
        &self,
        gates: Range<usize>,
        part: &'a mut Part<'_>,
        now: &Now<'_>,
        left: Left<'_>,
        n: usize,
    ) -> Row<'a> {
        let (count, pitch) = (part.units.len(), self.cell.gates() * part.units.len());
        let row = &mut now.gates(part.gates, pitch)[n * pitch..][..pitch];
        for gate in gates.filter(|_| !part.sums.is_empty()) {
            let sums = &part.sums[(gate * now.lengths.len() + n) * count..][..count];
            let out = &mut row[gate * count..][..count];
            self.r[gate].finish(left, self.gate_bias(gate), part.units.clone(), out, sums);
        }
        self.row(part, now, n)
    }

    /// `R h + Rb` of the gate h.
    fn multiply_candidate(&self, part: &mut Part<'_>, left: Left<'_>) {
        let (count, units) = (part.units.len(), part.units.clone());
        let bias = &self.candidate_bias;
        for y in part.candidate.chunks_exact_mut(count) {
            match left {
                Left::Values(_) => y.copy_from_slice(&bias[units.clone()]),
                Left::Codes(..) => y.fill(0.0),
            }
        }
        let others = part.sums.len() / 3 * 2;
        let out = Out { units: units.clone(), data: part.candidate, pitch: count };
        let sums = &mut part.sums[others..];
        self.r[2].add(left, out, sums);
        let sums = sums.chunks_exact(count);
        for (y, sums) in part.candidate.chunks_exact_mut(count).zip(sums) {
            self.r[2].finish(left, bias, units.clone(), y, sums);
        }
    }

    /// The functions of the gates z and r, and what is reset after the product
    /// added to the gate h.
    fn reset_product(&self, part: &mut Part<'_>, now: &Now<'_>, left: Left<'_>) {
        let units = part.units.clone();
        for n in now.rows() {
            let Row { gates, candidate, .. } = self.finished(0..2, part, now, left, n);
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
    fn reset_state(&self, part: &mut Part<'_>, now: &Now<'_>, left: Left<'_>, h: &[f32]) {
        let units = part.units.clone();
        for n in now.rows() {
            let Row { gates, candidate, .. } = self.finished(0..2, part, now, left, n);
            let of_state = &mut gates[..2 * units.len()];
            self.activate(0, of_state);
            let operands = of_state[units.len()..].iter().zip(&h[n * self.hidden..][units.clone()]);
            candidate.iter_mut().zip(operands).for_each(|(y, (r, h))| *y = r * h);
        }
    }

    /// The next state of a GRU, of whose gates those in `products` are to be ended.
    fn end_gru(&self, products: Range<usize>, part: &mut Part<'_>, now: &Now<'_>, left: Left<'_>, h: &[f32]) {
        let units = part.units.clone();
        for n in now.rows() {
            let Row { gates, h: next, .. } = self.finished(products.clone(), part, now, left, n);
            let (update, new) = gates.split_at_mut(2 * units.len());
            self.activate(1, new);
            let old = &h[n * self.hidden..][units.clone()];
            for ((next, old), (new, z)) in next.iter_mut().zip(old).zip(new.iter().zip(update)) {
                *next = (1.0 - *z) * *new + *z * *old;
            }
        }
    }

    fn end_rnn(&self, part: &mut Part<'_>, now: &Now<'_>, left: Left<'_>) {
        for n in now.rows() {
            let Row { gates, h, .. } = self.finished(0..1, part, now, left, n);
            self.activate(0, gates);
            h.copy_from_slice(gates);
        }
    }

    /// The next state of an LSTM, from its gates i, o, f and c.
    fn end_lstm(&self, part: &mut Part<'_>, now: &Now<'_>, left: Left<'_>, input_forget: bool) {
        let plain = self.activations == self.cell.functions()
            && self.clip.is_none()
            && self.peepholes.is_none()
            && !input_forget;
        vectorized(
            #[inline(always)]
            || {
                for n in now.rows() {
                    let row = self.finished(0..4, part, now, left, n);
                    if plain {
                        plain_lstm(row);
                    }
                }
            },
        );
        if !plain {
            let units = part.units.clone();
            now.rows().for_each(|n| self.lstm(units.clone(), self.row(part, now, n), input_forget));
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

/// A row of an LSTM with ONNX's functions and none of its options.
#[inline(always)]
fn plain_lstm(row: Row<'_>) {
    let Row { gates, h, c, .. } = row;
    let (i, rest) = gates.split_at(c.len());
    let (o, rest) = rest.split_at(c.len());
    let (f, new) = rest.split_at(c.len());
    for ((c, h), ((i, o), (f, new))) in c.iter_mut().zip(h).zip(i.iter().zip(o).zip(f.iter().zip(new))) {
        *c = sigmoid(*f) * *c + sigmoid(*i) * tanh(*new);
        *h = tanh(*c) * sigmoid(*o);
    }
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

/// Copies the rows that take part from the parts to `to`, `[batch][hidden]`.
fn collect<'a>(
    parts: &'a [Part<'_>],
    now: &Now<'_>,
    from: impl Fn(&'a Part<'_>) -> &'a [f32],
    to: &mut [f32],
) {
    let hidden = to.len() / now.lengths.len().max(1);
    for part in parts {
        for n in now.rows() {
            let count = part.units.len();
            to[n * hidden..][part.units.clone()].copy_from_slice(&from(part)[n * count..][..count]);
        }
    }
}

/// `y += a * b`, the product rounded.
fn add_products(y: &mut [f32], a: &[f32], b: &[f32]) {
    y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y += a * b);
}
