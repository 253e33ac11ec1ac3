//! Which channels of a graph may be scaled, and where they are made and read.

use std::collections::{BTreeMap, HashSet};

use super::Seen;
use super::scales::{Grain, exponent};
use crate::error::Result;
use crate::graph::{Graph, Var};
use crate::op::{Op, Quant};
use crate::ops::clip::Clip;
use crate::ops::conv::Conv;
use crate::ops::layout::Concat;
use crate::ops::linear::Gemm;
use crate::ops::pool::{AveragePool, GlobalAveragePool, GlobalMaxPool, MaxPool};
use crate::ops::shape::{Flatten, Reshape};
use crate::ops::unary::Unary;
use crate::qconfig::{Per, QConfigMapping};
use crate::qparams::Range;
use crate::tensor::DType;

/// The least `log2 s_k` of channels whose values are made alike.
const LEAST_ALIKE: f64 = -6.0;

/// The channels that convolutions and Gemms make, numbered, and the values that
/// carry them along axis 1.
#[derive(Default)]
pub struct Channels {
    /// The channel at each index of axis 1.
    pub of: BTreeMap<Var, Vec<usize>>,
    /// The values that a linear operator whose weights can be rescaled makes.
    pub made: HashSet<Var>,
    /// The values whose channels some reader wants alike in range.
    pub read: HashSet<Var>,
    /// The linear operators, by first output, and their first inputs.
    pub linear: Vec<(Var, Var)>,
    /// What is clipped on the way of a channel that is to be scaled: the value, and the
    /// bounds within which it can be.
    pub clipped: Vec<(Var, Range)>,
    /// The number of channels.
    pub count: usize,
    /// By channel: whether the weights around it share its range ([`super::cross_layer`]).
    pub balanced: Vec<bool>,
    /// By channel: how much its readers want its values equalized; 0 keeps them.
    strength: Vec<f32>,
}

impl Channels {
    /// Follows the channels of `graph`, whose nodes are configured by `mapping`.
    pub fn new(graph: &Graph, mapping: &QConfigMapping) -> Result<Channels> {
        let configs = mapping.resolve(graph)?;
        let mut channels = Channels::default();
        let mut kept: HashSet<usize> = HashSet::new();
        let mut wanted: Vec<(Var, f32, bool)> = vec![];
        for ((v, node, op, inputs), config) in graph.applied().zip(configs) {
            let linear = channels.is_linear(graph, &**op, inputs);
            let moved = if linear { None } else { channels.moved(graph, v, &**op, inputs) };
            for (i, x) in inputs.iter().enumerate() {
                let Some(ids) = channels.of.get(x) else { continue };
                match (linear && i == 0, &moved) {
                    (true, _) => {
                        let strength = config.and_then(|q| q.activation.as_ref()).map_or(0.0, |a| a.equalize);
                        wanted.push((*x, strength, config.is_some_and(|q| q.weight.cross_layer)));
                    }
                    (false, Some(_)) => {}
                    (false, None) => kept.extend(ids),
                }
            }
            if linear {
                channels.linear.push((v, inputs[0]));
            }
            let by_weights = config.is_some_and(|q| q.weight.cross_layer);
            let scalable = by_weights || config.is_none_or(|q| q.weight.per == Per::Channel);
            if let Some(ids) = moved {
                if let Quant::Clamp { lo, hi } = op.quant()
                    && ((lo < 0.0 && lo.is_finite()) || hi.is_finite())
                {
                    channels.clipped.push((inputs[0], Range { lo, hi }));
                }
                channels.of.insert(v, ids);
            } else if linear && node.outputs.len() == 1 && scalable {
                let made = graph.fact(v).shape[1].known().unwrap_or(0);
                channels.of.insert(v, (channels.count..channels.count + made).collect());
                channels.made.insert(v);
                channels.count += made;
                channels.balanced.resize(channels.count, by_weights);
            }
        }
        for (_, v) in graph.outputs() {
            kept.extend(channels.of.get(&v).into_iter().flatten());
        }
        let by_weights = channels.balanced.clone();
        let mut strength = vec![f32::INFINITY; channels.count];
        for (v, wanted, balanced) in &wanted {
            for c in &channels.of[v] {
                strength[*c] = strength[*c].min(*wanted);
                channels.balanced[*c] &= balanced;
            }
        }
        for (c, s) in strength.iter_mut().enumerate() {
            let keeps = kept.contains(&c) || s.is_infinite();
            channels.balanced[c] &= !keeps;
            if keeps || by_weights[c] {
                *s = 0.0;
            }
        }
        let alike = |v: &Var| channels.of[v].iter().any(|c| strength[*c] > 0.0);
        channels.read = wanted.iter().map(|(v, ..)| *v).filter(alike).collect();
        let scaled = |v: &Var| channels.of[v].iter().any(|c| strength[*c] > 0.0 || channels.balanced[*c]);
        channels.clipped.retain(|(v, _)| scaled(v));
        channels.strength = strength;
        Ok(channels)
    }

    /// Whether `op` is a convolution or Gemm whose weight and bias can be
    /// rescaled.
    pub fn is_linear(&self, graph: &Graph, op: &dyn Op, inputs: &[Var]) -> bool {
        let gemm = |g: &Gemm| g.alpha == 1.0 && g.beta == 1.0 && !g.trans_a;
        if !(op.is::<Conv>().is_some() || op.is::<Gemm>().is_some_and(gemm)) {
            return false;
        }
        let f32s = |v: &Var| graph.constant(*v).filter(|t| t.dtype() == DType::F32);
        let Some(weight) = inputs.get(1).and_then(f32s) else { return false };
        let outputs = match op.is::<Gemm>() {
            Some(g) if !g.trans_b => weight.shape()[1],
            _ => weight.shape()[0],
        };
        let bias = inputs.get(2).filter(|v| !graph.fact(**v).is_absent());
        bias.is_none_or(|v| f32s(v).is_some_and(|t| t.shape() == [outputs]))
    }

    /// The channels of the output of an operator that commutes with scaling
    /// them, if `op` is one and all its operands carry channels.
    fn moved(&self, graph: &Graph, v: Var, op: &dyn Op, inputs: &[Var]) -> Option<Vec<usize>> {
        let ids = self.of.get(inputs.first()?)?;
        let unary = |u: &Unary| matches!(u, Unary::Relu | Unary::LeakyRelu { .. });
        let around_zero =
            |c: &Clip| !c.dynamic && matches!(c.quant(), Quant::Clamp { lo, hi } if lo <= 0.0 && hi >= 0.0);
        let per_channel = op.is::<Unary>().is_some_and(unary)
            || op.is::<Clip>().is_some_and(around_zero)
            || op.is::<MaxPool>().is_some()
            || op.is::<AveragePool>().is_some()
            || op.is::<GlobalAveragePool>().is_some()
            || op.is::<GlobalMaxPool>().is_some();
        let (from, to) = (graph.fact(inputs[0]), graph.fact(v));
        if per_channel {
            return Some(ids.clone());
        }
        if let Some(Concat { axis }) = op.is() {
            let all: Option<Vec<&Vec<usize>>> = inputs.iter().map(|x| self.of.get(x)).collect();
            let along = *axis == 1 || axis + to.rank() as i64 == 1;
            return all.filter(|_| along).map(|all| all.into_iter().flatten().copied().collect());
        }
        if op.is::<Flatten>().is_some() || op.is::<Reshape>().is_some() {
            let inner: Option<Vec<usize>> = from.shape[2..].iter().map(|d| d.known()).collect();
            let inner: usize = inner?.iter().product();
            let rows = to.rank() == 2 && to.shape[0] == from.shape[0];
            let whole = rows && to.shape[1].known() == Some(ids.len() * inner);
            return whole.then(|| ids.iter().flat_map(|c| std::iter::repeat_n(*c, inner)).collect());
        }
        None
    }

    /// Whether no channel is to be scaled.
    pub fn is_idle(&self) -> bool {
        self.read.is_empty() && !self.balanced.contains(&true)
    }

    /// The exponent of `s_k` of each channel whose values are made alike, for what was `seen` of them.
    pub fn exponents(&self, seen: &Seen) -> Vec<i16> {
        // The greatest range of each set of channels that some value holds together.
        let mut greatest = seen.ranges.clone();
        for ids in self.of.values() {
            let most = ids.iter().fold(0f32, |most, c| most.max(greatest[*c]));
            ids.iter().for_each(|c| greatest[*c] = most);
        }
        // Values come in evaluation order: backwards, a set's greatest range
        // reaches the values that it was put together from.
        for ids in self.of.values().rev() {
            let most = ids.iter().fold(0f32, |most, c| most.max(greatest[*c]));
            ids.iter().for_each(|c| greatest[*c] = most);
        }
        let exponent = |c: usize| {
            if self.strength[c] <= 0.0 || greatest[c] <= 0.0 {
                return 0;
            }
            let log = f64::from(seen.ranges[c] / greatest[c]).log2() * f64::from(self.strength[c]);
            exponent(log.max(LEAST_ALIKE), seen.least[c], Grain::Coarse)
        };
        (0..self.count).map(exponent).collect()
    }
}

/// The output and the input channel of each element of a weight.
pub fn input_channels(op: &dyn Op, shape: &[usize]) -> impl Fn(usize) -> (usize, usize) {
    let matrix = op.is::<Gemm>().is_some_and(|g| !g.trans_b);
    let (outputs, depth) = if matrix { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
    let taps: usize = shape[2..].iter().product();
    let group = outputs / op.is::<Conv>().map_or(1, |c| c.group).max(1);
    move |i| {
        if matrix {
            return (i % outputs, i / outputs);
        }
        let output = i / (depth * taps);
        (output, output / group.max(1) * depth + i / taps % depth)
    }
}
