//! Recurrent layers over sequences.

use super::init::Init;
use super::module::{Module, Parameter};
use super::scope::Scope;
use crate::error::{Result, invalid};
use crate::graph::Var;
use crate::ops::gather::Gather;
use crate::ops::recurrent::{Activation, Cell, Direction, Recurrent};
use crate::tensor::Tensor;

/// Layers of a recurrent cell, one after another, each in one direction or both.
#[derive(Clone, Debug)]
struct Stack {
    step: &'static Step,
    inputs: usize,
    hidden: usize,
    layers: usize,
    bias: bool,
    batch_first: bool,
    bidirectional: bool,
}

/// What one step of a stack's cells is, and how PyTorch orders its gates.
#[derive(Debug)]
struct Step {
    cell: Cell,
    activations: &'static [Activation],
    /// The place in PyTorch's parameters of each of ONNX's gates.
    gates: &'static [i64],
}

static LSTM_STEP: Step = Step {
    cell: Cell::Lstm { input_forget: false },
    activations: &[Activation::Sigmoid, Activation::Tanh, Activation::Tanh],
    gates: &[0, 3, 1, 2],
};
static GRU_STEP: Step = Step {
    cell: Cell::Gru { linear_before_reset: true },
    activations: &[Activation::Sigmoid, Activation::Tanh],
    gates: &[1, 0, 2],
};
static RNN_STEP: Step = Step { cell: Cell::Rnn, activations: &[Activation::Tanh], gates: &[0] };
static RELU_STEP: Step = Step { cell: Cell::Rnn, activations: &[Activation::Relu], gates: &[0] };

impl Stack {
    fn new(step: &'static Step, inputs: usize, hidden: usize) -> Stack {
        Stack { step, inputs, hidden, layers: 1, bias: true, batch_first: false, bidirectional: false }
    }

    fn directions(&self) -> usize {
        1 + usize::from(self.bidirectional)
    }

    /// `_l0`, `_l0_reverse`, `_l1` and so on, of layer `i`.
    fn suffixes(&self, i: usize) -> impl Iterator<Item = String> + use<> {
        ["", "_reverse"].into_iter().take(self.directions()).map(move |reverse| format!("_l{i}{reverse}"))
    }

    fn parameters(&self) -> Vec<Parameter> {
        let (rows, init) = (self.step.gates.len() * self.hidden, Init::fan_in(self.hidden));
        let of = |i: usize, suffix: String| {
            let inputs = if i == 0 { self.inputs } else { self.hidden * self.directions() };
            let mut all = vec![
                Parameter::new(format!("weight_ih{suffix}"), &[rows, inputs], init),
                Parameter::new(format!("weight_hh{suffix}"), &[rows, self.hidden], init),
            ];
            if self.bias {
                all.push(Parameter::new(format!("bias_ih{suffix}"), &[rows], init));
                all.push(Parameter::new(format!("bias_hh{suffix}"), &[rows], init));
            }
            all
        };
        (0..self.layers).flat_map(|i| self.suffixes(i).flat_map(move |suffix| of(i, suffix))).collect()
    }

    /// PyTorch's parameter with its gates in ONNX's order.
    fn ordered(&self, g: &mut Scope<'_>, name: &str) -> Result<Var> {
        let (p, gates) = (g.parameter(name)?, self.step.gates);
        if gates.len() == 1 {
            return Ok(p);
        }
        let rest: Vec<i64> = g.fact(p).shape.iter().skip(1).map(|d| d.known().unwrap_or(0) as i64).collect();
        let (n, hidden) = (gates.len() as i64, self.hidden as i64);
        let parts = g.reshape(p, &[&[n, hidden], &rest[..]].concat())?;
        let order = g.constant("order", Tensor::vector(gates.to_vec()));
        let parts = g.apply(Gather { axis: 0 }, &[parts, order])?;
        g.reshape(parts, &[&[n * hidden], &rest[..]].concat())
    }

    /// The parameters called `names`, those of each direction one after the other.
    fn stacked(&self, g: &mut Scope<'_>, i: usize, names: &[&str]) -> Result<Var> {
        let mut directions = vec![];
        for suffix in self.suffixes(i) {
            let mut parts = vec![];
            for name in names {
                parts.push(self.ordered(g, &format!("{name}{suffix}"))?);
            }
            let whole = g.cat(&parts, 0)?;
            directions.push(g.unsqueeze(whole, 0)?);
        }
        g.cat(&directions, 0)
    }

    /// The outputs of the last layer, and the last states of all.
    fn run(&self, g: &mut Scope<'_>, x: Var, first: Option<&[Var]>) -> Result<(Var, Vec<Var>)> {
        let rank = g.fact(x).rank();
        if rank != 3 {
            return Err(
                invalid!("takes sequences [steps, batch, features], found {}", g.fact(x)).at(g.place())
            );
        }
        let (step, directions) = (self.step, self.directions());
        let states = if matches!(step.cell, Cell::Lstm { .. }) { 2 } else { 1 };
        let mut last: Vec<Vec<Var>> = vec![vec![]; states];
        let mut x = if self.batch_first { g.permute(x, &[1, 0, 2])? } else { x };
        for i in 0..self.layers {
            let w = self.stacked(g, i, &["weight_ih"])?;
            let r = self.stacked(g, i, &["weight_hh"])?;
            let b = if self.bias { self.stacked(g, i, &["bias_ih", "bias_hh"])? } else { g.absent() };
            let mut inputs = vec![x, w, r, b, g.absent()];
            for first in first.unwrap_or_default() {
                let from = (i * directions) as i64;
                inputs.push(g.slice(*first, 0, from, from + directions as i64)?);
            }
            let direction = if self.bidirectional { Direction::Bidirectional } else { Direction::Forward };
            let op = Recurrent {
                cell: step.cell,
                direction,
                hidden: Some(self.hidden),
                activations: step.activations.repeat(directions),
                clip: None,
                batch_first: false,
            };
            let made = g.apply_all(op, &inputs, 1 + states)?;
            for (all, state) in last.iter_mut().zip(&made[1..]) {
                all.push(*state);
            }
            x = match self.bidirectional {
                false => g.squeeze(made[0], 1)?,
                true => {
                    let y = g.permute(made[0], &[0, 2, 1, 3])?;
                    g.reshape(y, &[0, 0, (2 * self.hidden) as i64])?
                }
            };
        }
        let y = if self.batch_first { g.permute(x, &[1, 0, 2])? } else { x };
        let last = last.iter().map(|states| g.cat(states, 0)).collect::<Result<_>>()?;
        Ok((y, last))
    }
}

macro_rules! recurrent {
    ($($name:ident, $states:literal, $step:ident;)*) => {$(
        impl $name {
            /// One layer in one direction, with biases, over `[steps, batch, features]`.
            pub fn new(inputs: usize, hidden: usize) -> $name {
                $name { stack: Stack::new(&$step, inputs, hidden) }
            }

            /// The number of layers.
            pub fn num_layers(mut self, layers: usize) -> $name {
                self.stack.layers = layers;
                self
            }

            /// With or without biases.
            pub fn bias(mut self, bias: bool) -> $name {
                self.stack.bias = bias;
                self
            }

            /// Whether inputs and outputs are `[batch, steps, features]`.
            pub fn batch_first(mut self, batch_first: bool) -> $name {
                self.stack.batch_first = batch_first;
                self
            }

            /// Whether each layer has a second direction, from the last step on.
            pub fn bidirectional(mut self, bidirectional: bool) -> $name {
                self.stack.bidirectional = bidirectional;
                self
            }

            /// The outputs of the last layer, `[steps, batch, directions * hidden]`, and the
            /// last states of all layers, `[layers * directions, batch, hidden]` each, from
            /// the first states, of the same shape, or zeros.
            ///
            /// # Errors
            /// If the operands do not fit.
            pub fn run(
                &self,
                g: &mut Scope<'_>,
                x: Var,
                first: Option<[Var; $states]>,
            ) -> Result<(Var, [Var; $states])> {
                let (y, last) = self.stack.run(g, x, first.as_ref().map(|f| &f[..]))?;
                let last = last.try_into().map_err(|_| invalid!("has other states").at(g.place()))?;
                Ok((y, last))
            }
        }

        impl Module for $name {
            fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
                Ok(self.run(g, x, None)?.0)
            }

            fn forward_all(&self, g: &mut Scope<'_>, inputs: &[Var]) -> Result<Vec<Var>> {
                let wrong = || invalid!("takes a sequence and {} first states, or none", $states);
                let (x, first) = inputs.split_first().ok_or_else(wrong)?;
                let first: Option<[Var; $states]> = match first {
                    [] => None,
                    all => Some(all.try_into().map_err(|_| wrong().at(g.place()))?),
                };
                let (y, last) = self.run(g, *x, first)?;
                Ok(std::iter::once(y).chain(last).collect())
            }

            fn parameters(&self) -> Vec<Parameter> {
                self.stack.parameters()
            }
        }
    )*};
}

/// Long short-term memory. With `x` the input, `h` and `c` the states:
///
/// ```text
/// i, f, o = sigmoid(W x + b_ih + R h + b_hh), each with its rows
/// g  = tanh(W x + b_ih + R h + b_hh)
/// c' = f * c + i * g
/// h' = o * tanh(c')
/// ```
///
/// Parameters of layer k: weight_ih_lk `[4 hidden, features]`, weight_hh_lk `[4 hidden,
/// hidden]`, bias_ih_lk and bias_hh_lk `[4 hidden]`, with gates i, f, g, o; those of the
/// other direction end in `_reverse`.
#[derive(Clone, Debug)]
pub struct LSTM {
    stack: Stack,
}

/// Gated recurrent unit. With `x` the input and `h` the state:
///
/// ```text
/// r, z = sigmoid(W x + b_ih + R h + b_hh), each with its rows
/// n  = tanh(W x + b_ih + r * (R h + b_hh))
/// h' = (1 - z) * n + z * h
/// ```
///
/// Parameters as those of [`LSTM`], with gates r, z, n.
#[derive(Clone, Debug)]
pub struct GRU {
    stack: Stack,
}

/// `h' = tanh(W x + b_ih + R h + b_hh)`, or ReLU of it. Parameters as those of [`LSTM`],
/// with one gate.
#[derive(Clone, Debug)]
pub struct RNN {
    stack: Stack,
}

impl RNN {
    /// Whether the function is ReLU, not tanh.
    pub fn relu(mut self, relu: bool) -> RNN {
        self.stack.step = if relu { &RELU_STEP } else { &RNN_STEP };
        self
    }
}

recurrent! {
    LSTM, 2, LSTM_STEP;
    GRU, 1, GRU_STEP;
    RNN, 1, RNN_STEP;
}
