//! Gradients of recurrent operators: backpropagation through time.
//!
//! The states of all steps are known, as they are the output. So the gates of
//! all steps are computed again in a few large products, and so are the gradients
//! by the weights and the inputs; only the gradient by the state needs a product
//! for each step.

use lowbit_kernels::Matrix;

use super::activation::Activation;
use super::{Cell, Direction, Recurrent};
use crate::error::{Result, invalid};
use crate::op::{Reverse, optional};
use crate::ops::broadcast::summed_to;
use crate::ops::product::{Operand, matmul};
use crate::ops::strided::{permuted, permuted_back};
use crate::tensor::Tensor;

/// One direction. Steps are in the order in which it takes them, and values of
/// all steps are `[step][batch][..]`.
struct Walk<'a> {
    cell: Cell,
    functions: &'a [Activation],
    clip: Option<f32>,
    hidden: usize,
    /// Row `n` of the batch takes part in the steps before `lengths[n]`.
    lengths: &'a [usize],
    /// `[gates hidden][hidden]`
    r: &'a [f32],
    peepholes: Option<&'a [f32]>,
    /// The state before each step.
    h: Vec<f32>,
}

/// What the gates of all steps are.
struct Gates {
    /// The operands of the functions, and their values: `[gate][unit]`.
    operands: Vec<f32>,
    values: Vec<f32>,
    /// Of an LSTM, the cells before each step and after the last.
    c: Vec<f32>,
    /// Of a GRU, `r * h`, or `R h + Rb` of the candidate if the reset is applied
    /// to that.
    candidate: Vec<f32>,
}

/// Gradients by what was added up in the gates.
struct Back {
    /// By `W x + Wb`.
    inputs: Vec<f32>,
    /// By `R h + Rb`, where that is another.
    states: Option<Vec<f32>>,
}

/// `out += a b` of row-major matrices, of which `b` has `columns` columns.
fn add_product(a: Matrix, b: &[f32], columns: usize, out: &mut [f32]) {
    matmul(a, Operand::Plain(Matrix::new(b, a.size()[1], columns)), true, out, true);
}

/// `out += a b` of row-major matrices, of which `b` is transposed.
fn add_transposed(a: Matrix, b: &[f32], columns: usize, out: &mut [f32]) {
    matmul(a, Operand::Transposed(Matrix::new(b, columns, a.size()[1])), true, out, true);
}

/// The transpose of `a`, of `columns` columns, times `b`, of `columns_of_b`.
fn transposed_product(a: &[f32], columns: usize, b: &[f32], columns_of_b: usize) -> Result<Vec<f32>> {
    let rows = a.len() / columns;
    let a = permuted(&Tensor::new(&[rows, columns], a.to_vec())?, &[1, 0])?;
    let mut out = vec![0.0; columns * columns_of_b];
    add_product(Matrix::new(a.slice()?, columns, rows), b, columns_of_b, &mut out);
    Ok(out)
}

/// The sums of the columns.
fn column_sums(a: &[f32], columns: usize) -> Result<Vec<f32>> {
    summed_to(Tensor::new(&[a.len() / columns, columns], a.to_vec())?, &[columns])?.into_vec()
}

impl Walk<'_> {
    fn batch(&self) -> usize {
        self.lengths.len()
    }

    /// The rows of all steps.
    fn rows(&self) -> usize {
        self.h.len() / self.hidden
    }

    /// The steps that any row takes part in.
    fn steps(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// The rows of a step that take part, as rows of all steps.
    fn active(&self, step: usize) -> impl Iterator<Item = usize> {
        (0..self.batch()).filter(move |n| step < self.lengths[*n]).map(move |n| step * self.batch() + n)
    }

    /// Function `which` of values bounded by the clip.
    fn activate(&self, which: usize, operands: &[f32], values: &mut [f32]) {
        values.copy_from_slice(operands);
        if let Some(clip) = self.clip {
            values.iter_mut().for_each(|x| *x = x.clamp(-clip, clip));
        }
        self.functions[which].apply(values);
    }

    /// The gradient by the operands of function `which`, from that by its values.
    fn deactivate(&self, which: usize, g: &mut [f32], operands: &[f32], values: &[f32]) {
        self.functions[which].times_slope(g, operands, values);
        if let Some(clip) = self.clip {
            g.iter_mut().zip(operands).filter(|(_, x)| x.abs() > clip).for_each(|(g, _)| *g = 0.0);
        }
    }

    /// The gates, of which `operands` hold what inputs and biases add; `bias` is
    /// what a GRU adds to a product that is reset, `c` the first cell.
    fn gates(&self, mut operands: Vec<f32>, bias: &[f32], c: Vec<f32>) -> Gates {
        let (rows, hidden, width) = (self.rows(), self.hidden, self.cell.gates() * self.hidden);
        let state = Matrix::new(&self.h, rows, hidden);
        let mut candidate = vec![];
        if let Cell::Gru { linear_before_reset } = self.cell {
            let (of_state, of_new) = self.r.split_at(2 * hidden * hidden);
            let mut product = vec![0.0; rows * 2 * hidden];
            add_transposed(state, of_state, 2 * hidden, &mut product);
            for (x, product) in operands.chunks_exact_mut(width).zip(product.chunks_exact(2 * hidden)) {
                x.iter_mut().zip(product).for_each(|(x, product)| *x += product);
            }
            if linear_before_reset {
                candidate = bias.repeat(rows);
                add_transposed(state, of_new, hidden, &mut candidate);
            }
        } else {
            add_transposed(state, self.r, width, &mut operands);
        }
        let values = vec![0.0; operands.len()];
        let mut gates = Gates { operands, values, c, candidate };
        match self.cell {
            Cell::Lstm { input_forget } => self.lstm(&mut gates, input_forget),
            Cell::Gru { linear_before_reset } => self.gru(&mut gates, linear_before_reset),
            Cell::Rnn => self.activate(0, &gates.operands, &mut gates.values),
        }
        gates
    }

    fn gru(&self, gates: &mut Gates, linear_before_reset: bool) {
        let (rows, hidden) = (self.rows(), self.hidden);
        let Gates { operands, values, candidate, .. } = gates;
        let each = || operands.chunks_exact(3 * hidden);
        for (x, y) in each().zip(values.chunks_exact_mut(3 * hidden)) {
            self.activate(0, &x[..2 * hidden], &mut y[..2 * hidden]);
        }
        let mut product = vec![0.0; rows * hidden];
        let reset = values.chunks_exact(3 * hidden).flat_map(|y| &y[hidden..2 * hidden]);
        if linear_before_reset {
            product.iter_mut().zip(reset.zip(&*candidate)).for_each(|(p, (r, c))| *p = r * c);
        } else {
            *candidate = reset.zip(&self.h).map(|(r, h)| r * h).collect();
            let of_new = &self.r[2 * hidden * hidden..];
            add_transposed(Matrix::new(candidate, rows, hidden), of_new, hidden, &mut product);
        }
        let each = operands.chunks_exact_mut(3 * hidden).zip(values.chunks_exact_mut(3 * hidden));
        for ((x, y), product) in each.zip(product.chunks_exact(hidden)) {
            let (x, y) = (&mut x[2 * hidden..], &mut y[2 * hidden..]);
            x.iter_mut().zip(product).for_each(|(x, product)| *x += product);
            self.activate(1, x, y);
        }
    }

    fn lstm(&self, gates: &mut Gates, input_forget: bool) {
        let (hidden, of_state) = (self.hidden, self.batch() * self.hidden);
        gates.c.resize(self.h.len() + of_state, 0.0);
        for step in 0..self.steps() {
            gates.c.copy_within(step * of_state..(step + 1) * of_state, (step + 1) * of_state);
            for row in self.active(step) {
                let x = &mut gates.operands[row * 4 * hidden..][..4 * hidden];
                let y = &mut gates.values[row * 4 * hidden..][..4 * hidden];
                let c = &mut gates.c[row * hidden + of_state..][..hidden];
                let peep = |gate: usize, of: usize, x: &mut [f32], c: &[f32]| {
                    let p = self.peepholes.map_or(&[][..], |p| &p[of * hidden..][..hidden]);
                    x[gate * hidden..].iter_mut().zip(p.iter().zip(c)).for_each(|(x, (p, c))| *x += p * c);
                };
                peep(0, 0, x, c);
                peep(2, 2, x, c);
                let [i, o, f, new] = four(y);
                self.activate(0, &x[..hidden], i);
                if input_forget {
                    f.iter_mut().zip(&*i).for_each(|(f, i)| *f = 1.0 - i);
                } else {
                    self.activate(0, &x[2 * hidden..3 * hidden], f);
                }
                self.activate(1, &x[3 * hidden..], new);
                for ((c, f), (i, new)) in c.iter_mut().zip(f).zip(i.iter().zip(new)) {
                    *c = *f * *c + *i * *new;
                }
                peep(1, 1, x, c);
                self.activate(0, &x[hidden..2 * hidden], o);
            }
        }
    }

    /// The steps back: from the gradients by the states `after(row)`, if there is
    /// one, and by the last state and cell, which become those by the first ones.
    fn back<'g>(
        &self,
        gates: &Gates,
        after: impl Fn(usize) -> Option<&'g [f32]>,
        h: &mut [f32],
        c: &mut [f32],
    ) -> Back {
        let (batch, hidden, width) = (self.batch(), self.hidden, self.cell.gates() * self.hidden);
        let reset_product = self.cell == (Cell::Gru { linear_before_reset: true });
        let mut inputs = vec![0.0; gates.operands.len()];
        let mut states = reset_product.then(|| inputs.clone());
        let mut reset = vec![0.0; if reset_product { 0 } else { batch * hidden }];
        for step in (0..self.steps()).rev() {
            let of_step = step * batch * width..(step + 1) * batch * width;
            for row in self.active(step) {
                let h = &mut h[row % batch * hidden..][..hidden];
                if let Some(g) = after(row) {
                    h.iter_mut().zip(g).for_each(|(h, g)| *h += g);
                }
                let g = &mut inputs[row * width..][..width];
                match self.cell {
                    Cell::Rnn => {
                        g.copy_from_slice(h);
                        let own = row * hidden..(row + 1) * hidden;
                        self.deactivate(0, g, &gates.operands[own.clone()], &gates.values[own]);
                        h.fill(0.0);
                    }
                    Cell::Lstm { input_forget } => {
                        let c = &mut c[row % batch * hidden..][..hidden];
                        self.back_lstm(gates, row, input_forget, h, c, g);
                    }
                    Cell::Gru { .. } => {
                        let of_product = states.as_mut().map(|s| &mut s[row * width..][..width]);
                        self.back_gru(gates, row, h, g, of_product);
                    }
                }
            }
            let mut left = Matrix::new(&inputs[of_step.clone()], batch, width);
            if let Some(states) = &states {
                left = Matrix::new(&states[of_step], batch, width);
            } else if let Cell::Gru { .. } = self.cell {
                // From the candidate to the state that was reset, and to the reset.
                reset.fill(0.0);
                add_product(
                    left.cols(2 * hidden, hidden),
                    &self.r[2 * hidden * hidden..],
                    hidden,
                    &mut reset,
                );
                for row in self.active(step) {
                    let n = row % batch;
                    let own = row * width + hidden..row * width + 2 * hidden;
                    let (g, r) = (&mut inputs[own.clone()], &gates.values[own.clone()]);
                    let old = &self.h[row * hidden..][..hidden];
                    let h = h[n * hidden..][..hidden].iter_mut().zip(&reset[n * hidden..]);
                    for ((g, r), ((h, reset), old)) in g.iter_mut().zip(r).zip(h.zip(old)) {
                        *g = reset * old;
                        *h += reset * r;
                    }
                    self.deactivate(0, g, &gates.operands[own], r);
                }
                left = Matrix::new(&inputs[of_step], batch, width).cols(0, 2 * hidden);
            }
            add_product(left, &self.r[..left.size()[1] * hidden], hidden, h);
        }
        Back { inputs, states }
    }

    /// From the gradients by the state and the cell after a step to those by the
    /// gates' operands and by the cell before; that by the state is used up.
    fn back_lstm(
        &self,
        gates: &Gates,
        row: usize,
        input_forget: bool,
        h: &mut [f32],
        c: &mut [f32],
        g: &mut [f32],
    ) {
        let (hidden, of_state) = (self.hidden, self.batch() * self.hidden);
        let x = &gates.operands[row * 4 * hidden..][..4 * hidden];
        let y = &gates.values[row * 4 * hidden..][..4 * hidden];
        let part = |gate: usize| gate * hidden..(gate + 1) * hidden;
        let peepholes = |of: usize| self.peepholes.map_or(&[][..], |p| &p[part(of)]);
        let (old, new) = (&gates.c[row * hidden..][..hidden], &gates.c[row * hidden + of_state..][..hidden]);
        let mut shown = vec![0.0; hidden];
        self.activate(2, new, &mut shown);
        let [i, o, f, candidate] = four(g);
        for ((o, h), (shown, of_o)) in o.iter_mut().zip(&mut *h).zip(shown.iter().zip(&y[part(1)])) {
            *o = *h * shown;
            *h *= of_o;
        }
        self.deactivate(0, o, &x[part(1)], &y[part(1)]);
        self.deactivate(2, h, new, &shown);
        c.iter_mut().zip(&*h).for_each(|(c, h)| *c += h);
        c.iter_mut().zip(o.iter().zip(peepholes(1))).for_each(|(c, (o, p))| *c += o * p);
        h.fill(0.0);
        for k in 0..hidden {
            i[k] = c[k] * y[3 * hidden + k];
            f[k] = c[k] * old[k];
            candidate[k] = c[k] * y[k];
            c[k] *= y[2 * hidden + k];
        }
        if input_forget {
            i.iter_mut().zip(&mut *f).for_each(|(i, f)| *i -= std::mem::take(f));
        } else {
            self.deactivate(0, f, &x[part(2)], &y[part(2)]);
        }
        self.deactivate(0, i, &x[part(0)], &y[part(0)]);
        self.deactivate(1, candidate, &x[part(3)], &y[part(3)]);
        c.iter_mut().zip(i.iter().zip(peepholes(0))).for_each(|(c, (i, p))| *c += i * p);
        c.iter_mut().zip(f.iter().zip(peepholes(2))).for_each(|(c, (f, p))| *c += f * p);
    }

    /// From the gradient by the state after a step to those by the gates'
    /// operands, as far as they do not take another product, and the part by the
    /// state before that goes past the gates. `product` gets the gradient by the
    /// products with the state, if the reset is applied to one.
    fn back_gru(&self, gates: &Gates, row: usize, h: &mut [f32], g: &mut [f32], product: Option<&mut [f32]>) {
        let hidden = self.hidden;
        let x = &gates.operands[row * 3 * hidden..][..3 * hidden];
        let y = &gates.values[row * 3 * hidden..][..3 * hidden];
        let old = &self.h[row * hidden..][..hidden];
        let (update, new) = (0..hidden, 2 * hidden..3 * hidden);
        for k in 0..hidden {
            let (z, n) = (y[k], y[2 * hidden + k]);
            g[k] = h[k] * (old[k] - n);
            g[2 * hidden + k] = h[k] * (1.0 - z);
            h[k] *= z;
        }
        self.deactivate(0, &mut g[update.clone()], &x[update.clone()], &y[update]);
        self.deactivate(1, &mut g[new.clone()], &x[new.clone()], &y[new]);
        let Some(product) = product else { return };
        let of_candidate = &gates.candidate[row * hidden..][..hidden];
        for k in 0..hidden {
            g[hidden + k] = g[2 * hidden + k] * of_candidate[k];
        }
        let reset = hidden..2 * hidden;
        self.deactivate(0, &mut g[reset.clone()], &x[reset.clone()], &y[reset]);
        product.copy_from_slice(g);
        for k in 0..hidden {
            product[2 * hidden + k] *= y[hidden + k];
        }
    }
}

/// The parts of the gates of an LSTM.
fn four(x: &mut [f32]) -> [&mut [f32]; 4] {
    let hidden = x.len() / 4;
    let (a, b) = x.split_at_mut(2 * hidden);
    let ((i, o), (f, new)) = (a.split_at_mut(hidden), b.split_at_mut(hidden));
    [i, o, f, new]
}

/// The gradients by x, W, R, B, the first states and the peepholes.
pub(super) fn vjp(op: &Recurrent, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let outer_first = |t: &Tensor| if op.batch_first { permuted(t, &[1, 0, 2]) } else { Ok(t.clone()) };
    let steps_first = |t: &Tensor| if op.batch_first { permuted(t, &[1, 2, 0, 3]) } else { Ok(t.clone()) };
    let x = outer_first(at.inputs[0])?;
    let y = steps_first(at.outputs[0])?;
    let &[steps, directions, batch, hidden] = y.shape() else {
        return Err(invalid!("Y must have 4 dimensions, found {:?}", y.shape()));
    };
    let (input, width) = (x.shape()[2], op.cell.gates() * hidden);
    let given = |slot: usize| at.gradients.get(slot).and_then(Option::as_ref);
    let g = given(0).map(steps_first).transpose()?;
    let (x, y) = (x.slice::<f32>()?, y.slice::<f32>()?);
    let g = g.as_ref().map(Tensor::slice::<f32>).transpose()?;
    let lengths = Recurrent::lengths(optional(at.inputs, 4), steps, batch)?;
    let seen = lengths.iter().copied().max().unwrap_or(0);
    let state = |t: Option<&Tensor>| match t {
        Some(t) => outer_first(t)?.into_vec::<f32>(),
        None => Ok(vec![0.0; directions * batch * hidden]),
    };
    let (first_h, first_c) = (state(optional(at.inputs, 5))?, state(optional(at.inputs, 6))?);
    // By operand: x, W, R, B, (lengths), the first h and c, and P.
    let mut by: Vec<Vec<f32>> = vec![vec![0.0; x.len()], vec![], vec![], vec![], vec![]];
    by.extend([state(given(1))?, state(given(2))?, vec![]]);
    let part = |i: usize, d: usize| -> Result<Option<&[f32]>> {
        let Some(t) = optional(at.inputs, i) else { return Ok(None) };
        Ok(Some(&t.slice::<f32>()?[d * (t.len() / directions)..][..t.len() / directions]))
    };
    for d in 0..directions {
        let reverse = d == 1 || op.direction == Direction::Reverse;
        // Row `n` of the step that the direction takes as its `step`-th.
        let place = |step: usize, n: usize| {
            (if reverse && step < lengths[n] { lengths[n] - 1 - step } else { step }) * batch + n
        };
        let rows = || (0..seen * batch).map(|row| place(row / batch, row % batch));
        let x: Vec<f32> = rows().flat_map(|at| &x[at * input..][..input]).copied().collect();
        let of_y = |at: usize| (at / batch * directions + d) * batch + at % batch;
        let after = |row: usize| {
            let at = of_y(place(row / batch, row % batch));
            g.map(|g| &g[at * hidden..][..hidden])
        };
        let own = d * batch * hidden..(d + 1) * batch * hidden;
        let states = rows().flat_map(|at| &y[of_y(at) * hidden..][..hidden]);
        let h = first_h[own.clone()].iter().chain(states).take(seen * batch * hidden).copied().collect();
        let (w, r) = (part(1, d)?.unwrap_or_default(), part(2, d)?.unwrap_or_default());
        let functions = &op.activations[d * op.cell.functions().len()..][..op.cell.functions().len()];
        let walk = Walk {
            cell: op.cell,
            functions,
            clip: op.clip,
            hidden,
            lengths: &lengths,
            r,
            peepholes: part(7, d)?,
            h,
        };
        // The bias of R for a product that is reset is not part of the gate.
        let zeros = vec![0.0; 2 * width];
        let (of_w, of_r) = part(3, d)?.unwrap_or(&zeros).split_at(width);
        let within = if op.cell == (Cell::Gru { linear_before_reset: true }) { 2 * hidden } else { width };
        let mut bias = of_w.to_vec();
        bias[..within].iter_mut().zip(of_r).for_each(|(b, r)| *b += r);
        let mut operands = bias.repeat(seen * batch);
        add_transposed(Matrix::new(&x, seen * batch, input), w, width, &mut operands);
        let gates = walk.gates(operands, &of_r[width - hidden..], first_c[own.clone()].to_vec());
        let [h, c] = [5, 6].map(|i| by[i][own.clone()].to_vec());
        let [h, c] = &mut [h, c];
        let back = walk.back(&gates, after, h, c);
        by[5][own.clone()].copy_from_slice(h);
        by[6][own].copy_from_slice(c);
        if at.wants(0) {
            let mut of_x = vec![0.0; x.len()];
            let left = Matrix::new(&back.inputs, seen * batch, width);
            add_product(left, w, input, &mut of_x);
            for (at, g) in rows().zip(of_x.chunks_exact(input.max(1))) {
                by[0][at * input..][..input].iter_mut().zip(g).for_each(|(x, g)| *x += g);
            }
        }
        let of_states = back.states.as_ref().unwrap_or(&back.inputs);
        if at.wants(1) {
            by[1].extend(transposed_product(&back.inputs, width, &x, input)?);
        }
        if at.wants(2) {
            let mut of_r = transposed_product(of_states, width, &walk.h, hidden)?;
            if op.cell == (Cell::Gru { linear_before_reset: false }) {
                let new = back.inputs.chunks_exact(width).flat_map(|g| &g[2 * hidden..]).copied();
                let new: Vec<f32> = new.collect();
                let of_new = transposed_product(&new, hidden, &gates.candidate, hidden)?;
                of_r[2 * hidden * hidden..].copy_from_slice(&of_new);
            }
            by[2].extend(of_r);
        }
        if at.wants(3) {
            by[3].extend(column_sums(&back.inputs, width)?);
            by[3].extend(column_sums(of_states, width)?);
        }
        if at.wants(7) {
            // Gates i, o and f, and the cells that they see.
            for (gate, after) in [(0, 0), (1, batch * hidden), (2, 0)] {
                let of_gate = back.inputs.chunks_exact(width).flat_map(|g| &g[gate * hidden..][..hidden]);
                let products: Vec<f32> = of_gate.zip(&gates.c[after..]).map(|(g, c)| g * c).collect();
                by[7].extend(column_sums(&products, hidden)?);
            }
        }
    }
    at.each(|i| {
        let (values, shape) = (std::mem::take(&mut by[i]), at.inputs[i].shape());
        if op.batch_first && matches!(i, 0 | 5 | 6) {
            let outer_first = [shape[1], shape[0], shape[2]];
            return permuted_back(&Tensor::new(&outer_first, values)?, &[1, 0, 2]);
        }
        Tensor::new(shape, values)
    })
}

#[cfg(test)]
mod tests;
