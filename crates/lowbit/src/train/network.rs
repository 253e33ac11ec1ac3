//! A graph whose parameters are inputs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::optimizer::{Optimizer, Slots};
use crate::error::{Result, invalid};
use crate::graph::{Builder, Graph, Kind, Tape, Var};
use crate::nn::{Module, Weights, named_parameters, trace_open};
use crate::op::{Fact, Op};
use crate::ops::binary::Arithmetic;
use crate::ops::conv::Conv;
use crate::ops::conv_transpose::ConvTranspose;
use crate::ops::gather::Gather;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::norm::{BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization};
use crate::ops::recurrent::Recurrent;
use crate::ops::shape::{Dropout, Identity};
use crate::ops::softmax::Softmax;
use crate::tensor::{DType, Tensor};

/// How much the statistics of a BatchNormalization keep in each step
/// (PyTorch's momentum of 0.1).
const KEPT: f32 = 0.9;

/// A graph that is trained. Parameters are moved by an optimizer; states, such
/// as running statistics, by the graph itself, which computes their next values.
#[derive(Clone, Debug)]
pub struct Network {
    graph: Graph,
    outputs: usize,
    parameters: Vec<String>,
    states: Vec<String>,
    values: BTreeMap<String, Tensor>,
}

/// One run of a network, before its gradients are taken.
pub struct Step<'n> {
    values: &'n mut BTreeMap<String, Tensor>,
    tape: Tape<'n>,
    results: Vec<Var>,
    next: Vec<(String, Tensor)>,
    /// The network's outputs.
    pub outputs: Vec<Tensor>,
}

/// What a network is assembled of.
#[derive(Default)]
pub(super) struct Parts {
    pub parameters: Vec<(String, Tensor)>,
    pub states: Vec<(String, Tensor)>,
    /// The next values of states; one that has none stays.
    pub next: BTreeMap<String, Var>,
}

impl Parts {
    /// A new parameter.
    pub fn parameter(&mut self, b: &mut Builder, name: &str, t: Tensor) -> Var {
        self.parameters.push((name.into(), t.clone()));
        b.input(name, Fact::new(t.dtype(), t.shape().iter().copied()))
    }

    /// The number of the step, which is a state.
    fn counted_steps(&mut self, b: &mut Builder) -> Result<Var> {
        const NAME: &str = "training.steps";
        if let Some(v) = b.so_far().find(NAME) {
            return Ok(v);
        }
        let step = self.state(b, NAME, Tensor::scalar(0i64));
        let one = b.constant("training.one", Tensor::scalar(1i64));
        let next = b.apply("training.next_step", Arc::new(Arithmetic::Add), &[step, one])?;
        self.next.insert(NAME.into(), next);
        Ok(step)
    }

    /// A new state.
    pub fn state(&mut self, b: &mut Builder, name: &str, t: Tensor) -> Var {
        self.states.push((name.into(), t.clone()));
        b.input(name, Fact::new(t.dtype(), t.shape().iter().copied()))
    }
}

impl Network {
    /// A float graph as it is trained: weights, biases and the like are
    /// parameters; a BatchNormalization normalizes by the statistics of the
    /// batch and follows them with its own; Dropout drops. An output that is a Softmax
    /// is trained by the scores before it.
    ///
    /// # Errors
    /// If nothing in it can be trained.
    pub fn of(graph: &Graph) -> Result<Network> {
        let (parameters, statistics) = (parameters(graph), statistics(graph));
        let (lifted, values) =
            graph.lift(|v, _| parameters.contains(&v.name) || statistics.contains(&v.name))?;
        let mut parts = Parts::default();
        for (name, t) in values {
            let to = if parameters.contains(&name) { &mut parts.parameters } else { &mut parts.states };
            to.push((name, t));
        }
        Network::in_training(&lifted, parts)
    }

    /// A model as it is trained, with these values to begin with and these inputs:
    /// parameters and buffers are named by their paths, whatever its modules make of them.
    /// [`Weights::with_values`] takes them back.
    ///
    /// # Errors
    /// As [`trace`](crate::nn::trace), or if an input has a parameter's name, or nothing in the
    /// model can be trained.
    pub fn of_model(module: &dyn Module, weights: &Weights, inputs: &[(&str, Fact)]) -> Result<Network> {
        let graph = trace_open(module, weights, inputs)?;
        let read: HashSet<&str> = graph.inputs().map(|(_, v)| v.name.as_str()).collect();
        let mut parts = Parts::default();
        for p in named_parameters(module) {
            if inputs.iter().any(|(name, _)| *name == p.name) {
                return Err(invalid!("is an input and a parameter: name the input otherwise").at(p.name));
            }
            if let Some(t) = weights.get(&p.name).filter(|_| read.contains(p.name.as_str())) {
                let to = if p.trained { &mut parts.parameters } else { &mut parts.states };
                to.push((p.name, t.clone()));
            }
        }
        Network::in_training(&graph, parts)
    }

    /// `graph`, whose further inputs are those of `parts`, with its operators in their forms
    /// for training.
    fn in_training(graph: &Graph, mut parts: Parts) -> Result<Network> {
        let (mut b, mut seed) = (Builder::default(), 0);
        let made = graph.replay_onto(
            &mut b,
            |b, _, v| Ok(b.input(&v.name, v.fact.clone())),
            |b, v, t| Ok(b.constant(&v.name, t.clone())),
            |b, _, node, inputs| {
                let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
                if let Some(norm) = op.is::<BatchNormalization>() {
                    return batch_normalized(b, &mut parts, &node.name, &node.outputs[0].name, *norm, inputs)
                        .map(|y| vec![y]);
                }
                match op.is::<Dropout>() {
                    Some(dropout) if node.outputs.len() == 1 => {
                        seed += 1;
                        let op = Arc::new(dropout.in_training(seed));
                        let step = parts.counted_steps(b)?;
                        b.apply(&node.name, op, &[inputs[0], step]).map(|y| vec![y])
                    }
                    _ => b.copy(node, inputs),
                }
            },
        )?;
        Network::assembled(b, graph, &made, parts)
    }

    /// The network that `b` has built: `made` are the outputs of `graph`.
    pub(super) fn assembled(mut b: Builder, graph: &Graph, made: &[Var], parts: Parts) -> Result<Network> {
        if parts.parameters.is_empty() {
            return Err(invalid!("the model holds no weight that could be trained"));
        }
        let mut outputs: Vec<(String, Var)> = vec![];
        for ((name, _), v) in graph.outputs().zip(made) {
            let scores = b.so_far().made_by::<Softmax>(*v).map_or(*v, |(_, x)| x[0]);
            outputs.push((name.to_string(), scores));
        }
        let count = outputs.len();
        let mut states = vec![];
        for (name, v) in &parts.next {
            states.push(name.clone());
            outputs.push((format!("{name}.next"), *v));
        }
        // What an output's name stands for may be read elsewhere too.
        for (name, v) in &mut outputs {
            *v = b.apply(name, Arc::new(Identity), &[*v])?;
        }
        let graph = b.finish(outputs)?;
        let kept = parts.states.iter().filter(|(name, _)| !states.contains(name));
        let kept: Vec<String> = kept.map(|(name, _)| name.clone()).collect();
        states.extend(kept);
        let parameters = parts.parameters.iter().map(|(name, _)| name.clone()).collect();
        let values = parts.parameters.into_iter().chain(parts.states).collect();
        Ok(Network { graph, outputs: count, parameters, states, values })
    }

    /// The names of what the optimizer moves.
    pub fn parameters(&self) -> &[String] {
        &self.parameters
    }

    /// The current values of parameters and states.
    pub fn values(&self) -> &BTreeMap<String, Tensor> {
        &self.values
    }

    /// Parameters and states, to be changed.
    pub fn values_mut(&mut self) -> &mut BTreeMap<String, Tensor> {
        &mut self.values
    }

    /// Takes the values that `other` has of the same names and shapes.
    pub(super) fn take_values(&mut self, other: &BTreeMap<String, Tensor>) {
        for (name, t) in &mut self.values {
            if let Some(had) = other.get(name).filter(|had| had.shape() == t.shape()) {
                *t = had.clone();
            }
        }
    }

    /// `graph` with the current values in the place of its constants of the
    /// same names.
    ///
    /// # Errors
    /// If they do not fit it.
    pub fn written_to(&self, graph: &Graph) -> Result<Graph> {
        graph.with_constants(|name| self.values.get(name))
    }

    fn inputs(&self, data: &[Tensor]) -> Result<Vec<Tensor>> {
        let mut data = data.iter();
        let mut inputs = vec![];
        for (_, value) in self.graph.inputs() {
            let given = self.values.get(&value.name).or_else(|| data.next());
            inputs.push(given.cloned().ok_or_else(|| invalid!("the data lacks input {}", value.name))?);
        }
        if data.next().is_some() {
            return Err(invalid!("the data has more inputs than the model"));
        }
        Ok(inputs)
    }

    /// The outputs for a batch, as training computes them; states stay.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    pub fn run(&self, data: &[Tensor]) -> Result<Vec<Tensor>> {
        let mut outputs = self.graph.run(&self.inputs(data)?)?;
        outputs.truncate(self.outputs);
        Ok(outputs)
    }

    /// Moves the parameters in step `t`, from 1, along their gradients, as
    /// `Step::back` returns them; one without a gradient stays.
    ///
    /// # Errors
    /// If a gradient does not fit; the error names the parameter.
    pub fn descend(
        &mut self,
        gradients: Vec<Option<Tensor>>,
        optimizer: &Optimizer,
        slots: &mut Slots,
        rate: f32,
        t: u64,
    ) -> Result<()> {
        for (name, gradient) in self.parameters.iter().zip(gradients) {
            let (Some(gradient), Some(p)) = (gradient, self.values.get_mut(name)) else { continue };
            let kept = match slots.get_mut(name) {
                Some(kept) => kept,
                None => {
                    let empty = Tensor::full(p.shape(), 0f32)?;
                    slots.entry(name.clone()).or_insert(vec![empty; optimizer.slots()])
                }
            };
            optimizer.step(p, gradient, kept, rate, t).map_err(|e| e.at(name))?;
        }
        Ok(())
    }

    /// Runs a batch; `Step::back` then takes the gradients of a loss of the
    /// outputs.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    pub fn step(&mut self, data: &[Tensor]) -> Result<Step<'_>> {
        let named: HashMap<&str, Var> =
            self.graph.inputs().map(|(v, value)| (value.name.as_str(), v)).collect();
        let wanted: Vec<Var> =
            self.parameters.iter().filter_map(|name| named.get(name.as_str()).copied()).collect();
        if wanted.len() != self.parameters.len() {
            return Err(invalid!("a parameter of the network is not among its inputs"));
        }
        let results = self.graph.outputs().map(|(_, v)| v).take(self.outputs).collect();
        let inputs = self.inputs(data)?;
        let Network { graph, values, .. } = self;
        let tape = graph.record(&inputs, &wanted)?;
        let mut outputs = tape.outputs()?;
        let next = self.states.iter().cloned().zip(outputs.split_off(self.outputs)).collect();
        Ok(Step { values, tape, results, next, outputs })
    }
}

impl Step<'_> {
    /// The gradients by the parameters, in their order, given those by the
    /// outputs; none where a parameter has no influence. The states move on.
    ///
    /// # Errors
    /// If an operator between a parameter and the outputs has no gradient.
    pub fn back(self, gradients: Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> {
        let given = self.results.iter().zip(gradients).filter_map(|(v, g)| Some((*v, g?)));
        let by = self.tape.backward(given)?;
        self.values.extend(self.next);
        Ok(by)
    }
}

/// The batch-normalized `inputs[0]`, whose statistics are states.
pub(super) fn batch_normalized(
    b: &mut Builder,
    parts: &mut Parts,
    name: &str,
    output: &str,
    norm: BatchNormalization,
    inputs: &[Var],
) -> Result<Var> {
    let [mean, var] = [3, 4].map(|i| b.name(inputs[i]).to_string());
    let next = [&mean, &var].map(|name| format!("{name}.moved"));
    let op = Arc::new(BatchNormalization { training: Some(KEPT), ..norm });
    let made = b.apply_all(name, op, inputs, &[output, &next[0], &next[1]])?;
    parts.next.insert(mean, made[1]);
    parts.next.insert(var, made[2]);
    Ok(made[0])
}

/// The operands of `op` that are parameters where they are constants.
fn is_trained(op: &dyn Op, i: usize) -> bool {
    let linear = op.is::<Conv>().is_some() || op.is::<ConvTranspose>().is_some() || op.is::<Gemm>().is_some();
    let norm = op.is::<LayerNormalization>().is_some()
        || op.is::<GroupNormalization>().is_some()
        || op.is::<InstanceNormalization>().is_some();
    match op.is::<Arithmetic>() {
        Some(Arithmetic::Add | Arithmetic::Mul) => true,
        Some(Arithmetic::PRelu) => i == 1,
        Some(_) => false,
        None if linear || norm => i > 0,
        None if op.is::<MatMul>().is_some() => true,
        None if op.is::<BatchNormalization>().is_some() => i == 1 || i == 2,
        None if op.is::<Gather>().is_some() => i == 0,
        None if op.is::<Recurrent>().is_some() => (1..4).contains(&i),
        None => false,
    }
}

/// The names of the constants that training changes: weights, biases,
/// embeddings, and vectors that are added or multiplied.
pub fn parameters(graph: &Graph) -> HashSet<String> {
    let of = |op: &dyn Op, inputs: &[Var]| -> Vec<Var> {
        let trained = |(i, v): (usize, &Var)| is_trained(op, i).then_some(*v);
        inputs.iter().enumerate().filter_map(trained).collect()
    };
    let read = graph.applied().flat_map(|(_, _, op, inputs)| of(&**op, inputs));
    let floats =
        |v: &Var| graph.constant(*v).is_some_and(|t| t.dtype() == DType::F32 && t.rank() > 0 && t.len() > 1);
    read.filter(floats).map(|v| graph.value(v).name.clone()).collect()
}

/// The names of the running means and variances.
fn statistics(graph: &Graph) -> HashSet<String> {
    let norms = graph.applied().filter(|(_, _, op, _)| op.is::<BatchNormalization>().is_some());
    norms.flat_map(|(.., inputs)| &inputs[3..]).map(|v| graph.value(*v).name.clone()).collect()
}
