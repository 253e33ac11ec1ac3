//! Recurrent operators: LSTM, GRU and RNN.
//!
//! The inputs of many steps are multiplied together, ahead of the recurrence;
//! each step then is a product with the state and the functions of the gates.
//! Sums are chains of fused multiply-adds, from the biases on, over the inputs
//! and then the state, with the same bits on every CPU and any number of threads.

mod activation;
mod coded;
mod dynamic;
mod gradient;
mod layer;
mod matrix;
mod parts;
mod quantized;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;

use lowbit_kernels::Grid;

use self::activation::Parameters;
use self::layer::{Emitted, Layer, State, Weights};
use self::matrix::{Input, Packed, PackedValues, Step};
use super::{float, symbolic};
use crate::error::{Error, Result, invalid};
use crate::op::{
    Attribute, Attributes, Dim, Fact, Op, Quant, ReadOp, Reading, Reverse, arity, optional, optional_fact,
};
use crate::ops::product::with_scratch;
use crate::ops::strided::permuted;
use crate::tensor::buffers::buffer;
use crate::tensor::{DType, Tensor, element_count};

pub use activation::Activation;
pub use dynamic::{DynamicRecurrent, quantize_recurrent};
pub(super) use dynamic::{LOWBIT_READERS, MICROSOFT_READERS};
pub use quantized::QuantizedRecurrent;
pub(super) use quantized::READERS as QUANTIZED_READERS;
pub(crate) use quantized::StateRange;

pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("LSTM", |r| {
        let input_forget = r.flag("input_forget", false)?;
        Recurrent::read(r, Cell::Lstm { input_forget })
    }),
    ("GRU", |r| {
        let linear_before_reset = r.flag("linear_before_reset", false)?;
        Recurrent::read(r, Cell::Gru { linear_before_reset })
    }),
    ("RNN", |r| Recurrent::read(r, Cell::Rnn)),
];

/// What a step computes from the input `x`, the state `h` and, of an LSTM, the
/// cell `c`. `W`, `R`, `Wb`, `Rb` and `P` are those of the gate, `*` is by
/// element, and `f`, `g` and `k` are the three (GRU: two, RNN: one) functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Gates i, o, f and c:
    ///
    /// ```text
    /// i  = f(W x + R h + P * c + Wb + Rb)
    /// f  = f(W x + R h + P * c + Wb + Rb), or 1 - i
    /// c' = f * c + i * g(W x + R h + Wb + Rb)
    /// o  = f(W x + R h + P * c' + Wb + Rb)
    /// h' = o * k(c')
    /// ```
    Lstm {
        /// Whether the forget gate is `1 - i`.
        input_forget: bool,
    },
    /// Gates z, r and h:
    ///
    /// ```text
    /// z  = f(W x + R h + Wb + Rb)
    /// r  = f(W x + R h + Wb + Rb)
    /// n  = g(W x + R (r * h) + Wb + Rb), or g(W x + r * (R h + Rb) + Wb)
    /// h' = (1 - z) * n + z * h
    /// ```
    Gru {
        /// Whether the reset applies to the product, not to the state.
        linear_before_reset: bool,
    },
    /// `h' = f(W x + R h + Wb + Rb)`
    Rnn,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Cell::Lstm { .. } => 4,
            Cell::Gru { .. } => 3,
            Cell::Rnn => 1,
        }
    }

    /// The functions of one direction, where the model names none.
    fn functions(self) -> &'static [Activation] {
        match self {
            Cell::Lstm { .. } => &[Activation::Sigmoid, Activation::Tanh, Activation::Tanh],
            Cell::Gru { .. } => &[Activation::Sigmoid, Activation::Tanh],
            Cell::Rnn => &[Activation::Tanh],
        }
    }
}

/// The order in which steps are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first step.
    Forward,
    /// From the last step of each sequence.
    Reverse,
    /// Both, with weights of their own: two directions in every tensor.
    Bidirectional,
}

impl Direction {
    fn count(self) -> usize {
        if self == Direction::Bidirectional { 2 } else { 1 }
    }
}

/// ONNX `LSTM`, `GRU` and `RNN`. With `D` directions, `G` gates and a state of
/// `H` elements, the operands are x `[T, N, I]`, W `[D, G H, I]`, R `[D, G H, H]`
/// and, each optional, B `[D, 2 G H]` (Wb, then Rb), the sequences' lengths `[N]`
/// (int32), the first state `[D, N, H]` and, of an LSTM, the first cell
/// `[D, N, H]` and P `[D, 3 H]` (gates i, o, f). The results are y
/// `[T, D, N, H]`, the last state `[D, N, H]` and, of an LSTM, the last cell.
///
/// y is 0 beyond the end of a sequence, and the last state is that at its end: of
/// a sequence of no steps, the first state.
/// A reverse direction begins at each sequence's own end.
///
/// Computes in f32; other float types are converted and rounded back.
#[derive(Clone, Debug, PartialEq)]
pub struct Recurrent {
    /// What a step computes.
    pub cell: Cell,
    /// The order of steps.
    pub direction: Direction,
    /// H, if it is stated beside the weights.
    pub hidden: Option<usize>,
    /// The functions of each direction, one direction after the other.
    pub activations: Vec<Activation>,
    /// The operands of all functions are bounded to `-clip..=clip`.
    pub clip: Option<f32>,
    /// x is `[N, T, I]`, states are `[N, D, H]`, and y is `[N, T, D, H]`.
    pub batch_first: bool,
}

/// The weights of a [`Recurrent`], ready to be multiplied.
#[derive(Debug)]
pub(crate) struct PackedWeights {
    layers: Vec<Layer>,
    hidden: usize,
    /// How layers in codes quantize x and h, if not over their ranges.
    steps: [Option<Step>; 2],
}

/// Sizes of the operands of a [`Recurrent`].
struct Sizes {
    steps: Dim,
    batch: Dim,
    hidden: Dim,
}

impl Recurrent {
    fn read(r: &mut Reading, cell: Cell) -> Result<Arc<dyn Op>> {
        Ok(Arc::new(Recurrent::from(r, cell)?))
    }

    fn from(r: &mut Reading, cell: Cell) -> Result<Recurrent> {
        let direction = match r.text("direction")?.as_deref() {
            None | Some("forward") => Direction::Forward,
            Some("reverse") => Direction::Reverse,
            Some("bidirectional") => Direction::Bidirectional,
            Some(other) => {
                return Err(invalid!(
                    "attribute direction = {other:?} must be forward, reverse or bidirectional"
                ));
            }
        };
        let hidden = r.int("hidden_size")?.map(|size| {
            usize::try_from(size).map_err(|_| invalid!("attribute hidden_size = {size} must be at least 1"))
        });
        let mut alphas = Parameters::new("activation_alpha", r.floats("activation_alpha")?);
        let mut betas = Parameters::new("activation_beta", r.floats("activation_beta")?);
        let names = r.texts("activations")?.filter(|names| !names.is_empty());
        let activations = match names {
            Some(names) => names
                .iter()
                .map(|name| Activation::read(name, &mut alphas, &mut betas))
                .collect::<Result<_>>()?,
            None => cell.functions().repeat(direction.count()),
        };
        alphas.finish()?;
        betas.finish()?;
        let clip = Some(r.float("clip", f32::INFINITY)?).filter(|clip| *clip != f32::INFINITY);
        let batch_first = match r.int("layout")? {
            None | Some(0) => false,
            Some(1) => true,
            Some(other) => return Err(invalid!("attribute layout = {other} must be 0 or 1")),
        };
        let op = Recurrent { cell, direction, hidden: hidden.transpose()?, activations, clip, batch_first };
        op.check_attributes()?;
        Ok(op)
    }

    fn check_attributes(&self) -> Result<()> {
        let (each, directions) = (self.cell.functions().len(), self.direction.count());
        if self.activations.len() != each * directions {
            return Err(invalid!(
                "attribute activations has {} functions; {} takes {each} for each of {directions} directions",
                self.activations.len(),
                self.name()
            ));
        }
        match self.clip {
            Some(clip) if clip.is_nan() || clip < 0.0 => {
                Err(invalid!("attribute clip = {clip} must be at least 0"))
            }
            _ if self.hidden == Some(0) => Err(invalid!("attribute hidden_size = 0 must be at least 1")),
            _ => Ok(()),
        }
    }

    /// The number of states: h and, of an LSTM, c.
    fn states(&self) -> usize {
        if matches!(self.cell, Cell::Lstm { .. }) { 2 } else { 1 }
    }

    /// A shape given with the axis of the batch behind that of steps or of
    /// directions, as the operands have it.
    fn laid_out<T>(&self, [outer, batch, inner]: [T; 3]) -> [T; 3] {
        if self.batch_first { [batch, outer, inner] } else { [outer, batch, inner] }
    }

    /// The number of operands that it can have.
    pub(crate) fn most_operands(&self) -> usize {
        if self.states() == 2 { 8 } else { 6 }
    }

    /// Checks the shapes of all operands, and gives their sizes. Those of W and R
    /// end with the gates if they are `transposed`.
    fn sizes(&self, inputs: &[&Fact], transposed: bool) -> Result<Sizes> {
        self.check_attributes()?;
        let three = |i: usize, name: &str| match inputs[i].shape.as_slice() {
            [a, b, c] => Ok([a.clone(), b.clone(), c.clone()]),
            _ => Err(invalid!("{name} must have 3 dimensions, found {}", inputs[i])),
        };
        let [steps, batch, input] = self.laid_out(three(0, "X")?);
        let [_, last, next] = three(2, "R")?;
        let of_r = if transposed { last } else { next };
        let hidden = match (self.hidden, of_r) {
            (Some(hidden), _) => Dim::Known(hidden),
            (None, Dim::Known(0)) => {
                return Err(invalid!("R is for a state without elements: {}", inputs[2]));
            }
            (None, of_r) => of_r,
        };
        let times = |n: usize| symbolic::product([&Dim::Known(n), &hidden]);
        let (d, gates) = (Dim::Known(self.direction.count()), self.cell.gates());
        let state = || self.laid_out([d.clone(), batch.clone(), hidden.clone()]).to_vec();
        let weights = |from: &Dim| match transposed {
            false => vec![d.clone(), times(gates), from.clone()],
            true => vec![d.clone(), from.clone(), times(gates)],
        };
        let expected = [
            ("W", weights(&input)),
            ("R", weights(&hidden)),
            ("B", vec![d.clone(), times(2 * gates)]),
            ("sequence_lens", vec![batch.clone()]),
            ("initial_h", state()),
            ("initial_c", state()),
            ("P", vec![d.clone(), times(3)]),
        ];
        for (i, (name, shape)) in (1..).zip(expected) {
            let Some(found) = inputs.get(i).filter(|f| i < 3 || !f.is_absent()) else { continue };
            let agrees = |(a, b): (&Dim, &Dim)| a == b || a.known().is_none() || b.known().is_none();
            if found.rank() != shape.len() || !found.shape.iter().zip(&shape).all(agrees) {
                let shape: Vec<String> = shape.iter().map(Dim::to_string).collect();
                return Err(invalid!("{name} must have shape [{}], found {found}", shape.join(",")));
            }
        }
        match optional_fact(inputs, 4) {
            Some(f) if f.dtype != DType::I32 => Err(invalid!("sequence_lens must be int32, found {f}")),
            _ => Ok(Sizes { steps, batch, hidden }),
        }
    }

    /// The results' types and shapes.
    fn results(&self, x: &Fact, Sizes { steps, batch, hidden }: Sizes) -> Vec<Fact> {
        let d = Dim::Known(self.direction.count());
        let y = match self.batch_first {
            true => vec![batch.clone(), steps, d.clone(), hidden.clone()],
            false => vec![steps, d.clone(), batch.clone(), hidden.clone()],
        };
        let state = x.with_shape(self.laid_out([d, batch, hidden]).to_vec());
        let mut made = vec![x.with_shape(y)];
        made.resize(1 + self.states(), state);
        made
    }

    /// The weights W, R, B and P, ready to be multiplied. Their shapes must be
    /// those that [`Op::infer`] asks for.
    ///
    /// # Errors
    /// If they are not of a float type.
    pub(crate) fn pack(&self, weights: [Option<&Tensor>; 4]) -> Result<PackedWeights> {
        let [input, hidden] =
            [0, 1].map(|i| weights[i].and_then(|t| t.shape().last().copied()).unwrap_or_default());
        let [w, r, b, p] = weights.map(|t| t.map(float::read).transpose());
        let (w, r) = (w?.unwrap_or_default(), r?.unwrap_or_default());
        let matrices = |weights: &[f32], d: usize, depth: usize| -> Result<Vec<Packed>> {
            let gate = |g: usize| {
                let of_gate = &weights[(d * self.cell.gates() + g) * hidden * depth..][..hidden * depth];
                Ok(Packed::Values(PackedValues::new(of_gate, hidden, depth)?))
            };
            (0..self.cell.gates()).map(gate).collect()
        };
        self.layers([input, hidden], [b?, p?], |d| Ok((matrices(&w, d, input)?, matrices(&r, d, hidden)?)))
    }

    /// The weights of all directions: B and P, and the matrices of W and R for
    /// each direction.
    fn layers(
        &self,
        [input, hidden]: [usize; 2],
        [b, p]: [Option<Cow<'_, [f32]>>; 2],
        matrices: impl Fn(usize) -> Result<(Vec<Packed>, Vec<Packed>)>,
    ) -> Result<PackedWeights> {
        fn part<'a>(x: &'a Option<Cow<'_, [f32]>>, d: usize, directions: usize) -> Option<&'a [f32]> {
            x.as_ref().map(|x| &x[d * (x.len() / directions)..][..x.len() / directions])
        }
        let directions = self.direction.count();
        let functions = self.cell.functions().len();
        let layer = |d| {
            let (w, r) = matrices(d)?;
            let weights = Weights { w, r, b: part(&b, d, directions), p: part(&p, d, directions) };
            let activations = &self.activations[d * functions..][..functions];
            Ok(Layer::new(self.cell, activations, self.clip, [input, hidden], weights))
        };
        let layers = (0..directions).map(layer).collect::<Result<_>>()?;
        Ok(PackedWeights { layers, hidden, steps: [None; 2] })
    }

    /// The outputs for x and, each optional, the sequences' lengths and the
    /// first states. Types and shapes must be those that [`Op::infer`] asks for.
    ///
    /// # Errors
    /// If a length is outside x, or the output has too many elements.
    pub(crate) fn run(
        &self,
        weights: &PackedWeights,
        x: &Tensor,
        [lengths, h, c]: [Option<&Tensor>; 3],
    ) -> Result<Vec<Tensor>> {
        let outer_first = |t: &Tensor| if self.batch_first { permuted(t, &[1, 0, 2]) } else { Ok(t.clone()) };
        let dtype = x.dtype();
        let x = outer_first(x)?;
        let &[steps, batch, input] = x.shape() else {
            return Err(invalid!("X must have 3 dimensions, found {:?}", x.shape()));
        };
        let (directions, hidden) = (weights.layers.len(), weights.hidden);
        let [x_step, h_step] = weights.steps;
        let y_shape = [steps, directions, batch, hidden];
        let lengths = Recurrent::lengths(lengths, steps, batch)?;
        let count = element_count(&y_shape)?;
        let all = lengths.iter().all(|l| *l == steps);
        let mut y = if all { buffer(count) } else { vec![0.0; count] };
        let seen = lengths.iter().copied().max().unwrap_or(0);
        let x = float::read(&x)?;
        let coded = weights.layers.iter().any(Layer::is_coded);
        let codes = if coded { seen * batch * input } else { 0 };
        let of_state = batch * hidden;
        let first = |t: Option<&Tensor>| match t {
            Some(t) => Ok::<_, Error>(float::read(&outer_first(t)?)?.into_owned()),
            None => Ok(vec![0.0; element_count(&[directions, of_state])?]),
        };
        let (mut h, mut c) = (first(h)?, if self.states() == 2 { first(c)? } else { vec![] });
        with_scratch(codes.div_ceil(size_of::<f32>()), |memory| {
            let x = match coded {
                true => {
                    let memory = &mut bytemuck::cast_slice_mut(memory)[..codes];
                    Input::quantized(&x[..codes], x_step, memory)
                }
                false => Input::Values(x),
            };
            for (d, layer) in weights.layers.iter().enumerate() {
                let reverse = d == 1 || self.direction == Direction::Reverse;
                let x = if reverse { &x.reversed(&lengths, input) } else { &x };
                let own = d * of_state..(d + 1) * of_state;
                let c = c.get_mut(own.clone()).unwrap_or_default();
                let mut state = State { h: &mut h[own], c, step: h_step };
                let y = Grid::new(&mut y, steps * directions * batch, hidden, hidden);
                let row = |step: usize, n: usize| {
                    let at = if reverse { lengths[n] - 1 - step } else { step };
                    (at * directions + d) * batch + n
                };
                layer.run(x, &lengths, &mut state, Emitted { y, row })?;
            }
            Ok::<_, Error>(())
        })?;
        let mut made = vec![float::write(dtype, &y_shape, y)?];
        for state in [h, c].into_iter().take(self.states()) {
            made.push(float::write(dtype, &[directions, batch, hidden], state)?);
        }
        if self.batch_first {
            let perms: [&[usize]; 3] = [&[2, 0, 1, 3], &[1, 0, 2], &[1, 0, 2]];
            made = made.iter().zip(perms).map(|(t, perm)| permuted(t, perm)).collect::<Result<_>>()?;
        }
        Ok(made)
    }

    /// The sequences' lengths: of those given, or all `steps`.
    fn lengths(given: Option<&Tensor>, steps: usize, batch: usize) -> Result<Vec<usize>> {
        let Some(given) = given else { return Ok(vec![steps; batch]) };
        let length = |(n, &length): (usize, &i64)| {
            usize::try_from(length).ok().filter(|&l| l <= steps).ok_or_else(|| {
                invalid!("sequence_lens[{n}] = {length} is no length of a sequence in {steps} steps")
            })
        };
        given.integers()?.iter().enumerate().map(length).collect()
    }
}

impl Op for Recurrent {
    fn name(&self) -> &'static str {
        match self.cell {
            Cell::Lstm { .. } => "LSTM",
            Cell::Gru { .. } => "GRU",
            Cell::Rnn => "RNN",
        }
    }

    fn opset(&self) -> i64 {
        if self.batch_first { 14 } else { 13 }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 3, self.most_operands())?;
        let floats: Vec<&Fact> =
            inputs.iter().enumerate().filter(|(i, _)| *i != 4).map(|(_, f)| *f).collect();
        float::common(self.name(), &floats)?;
        Ok(self.results(inputs[0], self.sizes(inputs, false)?))
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.infer(&symbolic::facts(inputs).iter().collect::<Vec<_>>())?;
        let weights = [Some(inputs[1]), Some(inputs[2]), optional(inputs, 3), optional(inputs, 7)];
        self.run(&self.pack(weights)?, inputs[0], [4, 5, 6].map(|i| optional(inputs, i)))
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        gradient::vjp(self, at)
    }

    fn quant(&self) -> Quant {
        if self.batch_first { Quant::Float } else { Quant::Compute { weight: None, bias: None } }
    }

    fn attributes(&self) -> Attributes {
        let mut a = vec![];
        if self.activations != self.cell.functions().repeat(self.direction.count()) {
            let names = self.activations.iter().map(|f| f.name().to_string()).collect();
            a.push(("activations", Attribute::Texts(names)));
            for (i, name) in ["activation_alpha", "activation_beta"].into_iter().enumerate() {
                let values: Vec<f32> = self.activations.iter().filter_map(|f| f.parameters()[i]).collect();
                if !values.is_empty() {
                    a.push((name, Attribute::Floats(values)));
                }
            }
        }
        a.extend(self.clip.map(|clip| ("clip", Attribute::Float(clip))));
        match self.direction {
            Direction::Forward => {}
            Direction::Reverse => a.push(("direction", Attribute::Text("reverse".into()))),
            Direction::Bidirectional => a.push(("direction", Attribute::Text("bidirectional".into()))),
        }
        a.extend(self.hidden.map(|hidden| ("hidden_size", Attribute::Int(hidden as i64))));
        let flags = [
            ("input_forget", self.cell == Cell::Lstm { input_forget: true }),
            ("linear_before_reset", self.cell == Cell::Gru { linear_before_reset: true }),
            ("layout", self.batch_first),
        ];
        a.extend(flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| (name, Attribute::Int(1))));
        a
    }

    fn macs(&self, inputs: &[&Fact], outputs: &[&Fact]) -> u64 {
        let columns = |i: usize| inputs[i].shape.last().and_then(Dim::known).unwrap_or(1);
        let of_each = self.cell.gates().saturating_mul(columns(1).saturating_add(columns(2)));
        outputs[0].elements().saturating_mul(of_each as u64)
    }
}
