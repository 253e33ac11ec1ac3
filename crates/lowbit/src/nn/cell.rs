//! Single steps of recurrent layers.

use super::init::Init;
use super::module::{Module, Parameter};
use super::scope::Scope;
use crate::error::{Result, invalid};
use crate::graph::Var;

/// Sizes of a cell and whether it has biases.
#[derive(Clone, Debug)]
struct Sizes {
    inputs: usize,
    hidden: usize,
    bias: bool,
}

impl Sizes {
    fn parameters(&self, gates: usize) -> Vec<Parameter> {
        let (rows, init) = (gates * self.hidden, Init::fan_in(self.hidden));
        let mut all = vec![
            Parameter::new("weight_ih", &[rows, self.inputs], init),
            Parameter::new("weight_hh", &[rows, self.hidden], init),
        ];
        if self.bias {
            all.push(Parameter::new("bias_ih", &[rows], init));
            all.push(Parameter::new("bias_hh", &[rows], init));
        }
        all
    }

    /// `W x + b_ih` and `R h + b_hh`.
    fn products(g: &mut Scope<'_>, x: Var, h: Var) -> Result<[Var; 2]> {
        let (w, b) = (g.parameter("weight_ih")?, g.optional_parameter("bias_ih")?);
        let wx = g.linear(x, w, b)?;
        let (r, b) = (g.parameter("weight_hh")?, g.optional_parameter("bias_hh")?);
        Ok([wx, g.linear(h, r, b)?])
    }
}

macro_rules! cell {
    ($name:ident, $gates:literal, $states:literal, |$m:ident, $g:ident, $x:ident, $state:ident| $step:expr) => {
        impl $name {
            /// The next state, `[batch, hidden]` each, for an input `x [batch, features]`.
            ///
            /// # Errors
            /// If the operands do not fit.
            pub fn step(
                &self,
                $g: &mut Scope<'_>,
                $x: Var,
                $state: [Var; $states],
            ) -> Result<[Var; $states]> {
                let $m = self;
                $step
            }
        }

        impl Module for $name {
            fn forward(&self, g: &mut Scope<'_>, _: Var) -> Result<Var> {
                Err(invalid!("takes an input and its state: {}::step", stringify!($name)).at(g.place()))
            }

            fn forward_all(&self, g: &mut Scope<'_>, inputs: &[Var]) -> Result<Vec<Var>> {
                let wrong =
                    || invalid!("takes an input and {} states, found {} inputs", $states, inputs.len());
                let (x, state) = inputs.split_first().ok_or_else(wrong)?;
                let state = state.try_into().map_err(|_| wrong().at(g.place()))?;
                Ok(self.step(g, *x, state)?.to_vec())
            }

            fn parameters(&self) -> Vec<Parameter> {
                self.sizes.parameters($gates)
            }
        }
    };
}

macro_rules! sized {
    ($($name:ident { $($field:ident: $default:expr),* })*) => {$(
        impl $name {
            /// With biases.
            pub fn new(inputs: usize, hidden: usize) -> $name {
                $name { sizes: Sizes { inputs, hidden, bias: true }, $($field: $default),* }
            }

            /// With or without biases.
            pub fn bias(mut self, bias: bool) -> $name {
                self.sizes.bias = bias;
                self
            }
        }
    )*};
}

/// One step of an [`LSTM`](super::LSTM), with states h and c. Parameters: weight_ih `[4
/// hidden, features]`, weight_hh `[4 hidden, hidden]`, bias_ih and bias_hh `[4 hidden]`.
#[derive(Clone, Debug)]
pub struct LSTMCell {
    sizes: Sizes,
}

/// One step of a [`GRU`](super::GRU). Parameters as those of [`LSTMCell`], with three gates.
#[derive(Clone, Debug)]
pub struct GRUCell {
    sizes: Sizes,
}

/// One step of an [`RNN`](super::RNN). Parameters as those of [`LSTMCell`], with one gate.
#[derive(Clone, Debug)]
pub struct RNNCell {
    sizes: Sizes,
    relu: bool,
}

impl RNNCell {
    /// Whether the function is ReLU, not tanh.
    pub fn relu(mut self, relu: bool) -> RNNCell {
        self.relu = relu;
        self
    }
}

sized! { LSTMCell {} GRUCell {} RNNCell { relu: false } }

cell!(LSTMCell, 4, 2, |_m, g, x, state| {
    let [wx, rh] = Sizes::products(g, x, state[0])?;
    let sum = g.add(wx, rh)?;
    let gates = g.split(sum, -1, 4)?;
    let (i, f, n, o) = (g.sigmoid(gates[0])?, g.sigmoid(gates[1])?, g.tanh(gates[2])?, g.sigmoid(gates[3])?);
    let (kept, new) = (g.mul(f, state[1])?, g.mul(i, n)?);
    let c = g.add(kept, new)?;
    let bounded = g.tanh(c)?;
    Ok([g.mul(o, bounded)?, c])
});

cell!(GRUCell, 3, 1, |_m, g, x, state| {
    let [wx, rh] = Sizes::products(g, x, state[0])?;
    let (wx, rh) = (g.split(wx, -1, 3)?, g.split(rh, -1, 3)?);
    let (r, z) = (g.add(wx[0], rh[0])?, g.add(wx[1], rh[1])?);
    let (r, z) = (g.sigmoid(r)?, g.sigmoid(z)?);
    let reset = g.mul(r, rh[2])?;
    let n = g.add(wx[2], reset)?;
    let n = g.tanh(n)?;
    // (1 - z) n + z h = n + z (h - n)
    let change = g.sub(state[0], n)?;
    let change = g.mul(z, change)?;
    Ok([g.add(n, change)?])
});

cell!(RNNCell, 1, 1, |m, g, x, state| {
    let [wx, rh] = Sizes::products(g, x, state[0])?;
    let sum = g.add(wx, rh)?;
    Ok([if m.relu { g.relu(sum)? } else { g.tanh(sum)? }])
});
