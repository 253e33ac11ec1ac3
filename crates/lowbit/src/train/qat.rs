//! Quantization-aware training: a prepared graph whose points fake-quantize.

mod assemble;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::fake::FakeQuantize;
use super::network::{Network, parameters};
use super::ranges::RangeSteps;
use super::training::Learner;
use crate::error::{Result, invalid};
use crate::graph::{Graph, Kind, Var};
use crate::nn::{Module, Weights, eager, trace};
use crate::op::{Fact, Op, Quant};
use crate::ops::norm::BatchNormalization;
use crate::qparams::QParams;
use crate::quantize::{Converted, Point, Prepared, fuse};
use crate::tensor::Tensor;
use assemble::Assembling;

/// Where the ranges of a network come from while it is trained, but for those of
/// points that are [held](Point::held).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ranges {
    /// Scales are parameters, from the calibrated ones on (LSQ).
    Learned,
    /// Scales and the zero points of affine activations are parameters (LSQ+).
    LearnedWithOffset,
    /// Scales of activations are parameters moved by what they clip (PACT);
    /// those of weights follow the weights, unless they are [given](Point::given):
    /// then they are such parameters too.
    Clipped,
    /// Activations: the moving average of the range, a new one counting this
    /// much; weights: their range now.
    MovingAverage(f32),
}

/// What becomes of a BatchNormalization behind a layer that is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchNorm {
    /// It is folded with its running statistics, which stay: what is trained is
    /// what runs.
    Frozen,
    /// The weight is folded with the running statistics, quantized, and the
    /// output normalized by the statistics of the batch, which the running ones
    /// follow (Krishnamoorthi, "Quantizing deep convolutional networks for
    /// efficient inference", 2018, section 3.2.2); frozen after this many steps.
    Batch {
        /// Steps.
        frozen_after: u64,
    },
}

/// How a prepared graph is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct QatOptions {
    /// Where ranges come from.
    pub ranges: Ranges,
    /// Normalizations behind quantized layers.
    pub batch_norm: BatchNorm,
    /// Steps before values are quantized.
    pub delay: u64,
    /// Steps after which moving averages stay, if they do.
    pub observe_until: Option<u64>,
}

impl Default for QatOptions {
    fn default() -> QatOptions {
        QatOptions { ranges: Ranges::Learned, batch_norm: BatchNorm::Frozen, delay: 0, observe_until: None }
    }
}

/// Which parts of quantization-aware training are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Whether values are replaced by those that codes stand for.
    pub fake_quantize: bool,
    /// Whether moving averages follow the values.
    pub observe: bool,
    /// Whether normalization is by the statistics of the batch.
    pub batch_statistics: bool,
}

impl QatOptions {
    /// What is on in step `step`, from 0.
    pub fn phase(&self, step: u64) -> Phase {
        Phase {
            fake_quantize: step >= self.delay,
            observe: self.observe_until.is_none_or(|until| step < until),
            batch_statistics: match self.batch_norm {
                BatchNorm::Frozen => false,
                BatchNorm::Batch { frozen_after } => step < frozen_after,
            },
        }
    }
}

/// A prepared graph as a network.
#[derive(Clone, Debug)]
pub struct Qat {
    prepared: Prepared,
    float: Graph,
    folds: HashMap<String, Fold>,
    options: QatOptions,
    phase: Phase,
    network: Network,
}

/// A BatchNormalization behind a layer: the names of the constants of both.
#[derive(Clone, Debug)]
struct Fold {
    norm: BatchNormalization,
    axis: usize,
    weight: String,
    bias: Option<String>,
    /// Gamma, beta, mean and variance.
    operands: [String; 4],
}

impl Qat {
    /// The training of `prepared`, which [`crate::quantize::prepare`] made of
    /// [`fuse`]d `float`. A BatchNormalization that `float` still has behind a
    /// layer is trained apart from it, if it is all that was folded.
    ///
    /// # Errors
    /// If `prepared` was made of another graph, a point whose scale is to be
    /// learned has not been calibrated, or its values are quantized by codebooks
    /// or by the ranges of each run.
    pub fn new(prepared: Prepared, float: &Graph, options: QatOptions) -> Result<Qat> {
        let fused = fuse(float)?;
        let constants = |graph: &Graph| -> HashMap<String, Tensor> {
            let of = |v: Var| Some((graph.value(v).name.clone(), graph.constant(v)?.clone()));
            graph.nodes().filter_map(|(v, _)| of(v)).filter(|(name, _)| !name.is_empty()).collect()
        };
        let (of_float, of_fused) = (constants(float), constants(&fused));
        for (name, t) in constants(prepared.graph()) {
            if of_fused.get(&name) != Some(&t) {
                let error =
                    invalid!("differs from the float model's: prepare the model that is to be trained");
                return Err(error.at(name));
            }
        }
        let folds = folds(float);
        let is_folded =
            |name: &String| folds.values().any(|f| f.weight == *name || f.bias.as_ref() == Some(name));
        let only_norms = parameters(&fused)
            .iter()
            .all(|name| is_folded(name) || of_float.get(name).is_none_or(|t| of_fused.get(name) == Some(t)));
        let (float, folds) = if only_norms { (float.clone(), folds) } else { (fused, HashMap::new()) };
        let phase = options.phase(0);
        let network = Assembling::network(&prepared, &float, &folds, options, phase)?;
        Ok(Qat { prepared, float, folds, options, phase, network })
    }

    /// The training of a model written in Rust that was prepared, and perhaps
    /// calibrated, in eager mode (PyTorch's `prepare_qat`). `weights` are those
    /// that it had before [`fuse_modules`](crate::nn::eager::fuse_modules).
    ///
    /// # Errors
    /// As [`trace`] and [`Qat::new`].
    pub fn of_model<M: Module>(
        prepared: &eager::Prepared<M>,
        weights: &Weights,
        inputs: &[(&str, Fact)],
        options: QatOptions,
    ) -> Result<Qat> {
        let float = trace(prepared.module(), weights, inputs)?;
        Qat::new(prepared.trace(inputs)?, &float, options)
    }

    /// The network as it is in phase `phase`, with the current values.
    fn assembled(&self, phase: Phase) -> Result<Network> {
        let mut network = Assembling::network(&self.prepared, &self.float, &self.folds, self.options, phase)?;
        network.take_values(self.network.values());
        Ok(network)
    }

    /// The network whose outputs are those of the converted model, computed in
    /// float: everything is quantized, nothing observed.
    ///
    /// # Errors
    /// None that a network of this model has.
    pub fn simulation(&self) -> Result<Network> {
        self.assembled(Phase { fake_quantize: true, observe: false, batch_statistics: false })
    }

    /// The float model with the weights trained so far.
    ///
    /// # Errors
    /// None that a network of this model has.
    pub fn float(&self) -> Result<Graph> {
        self.network.written_to(&self.float)
    }

    /// The quantized model, as [`Prepared::convert`] makes it.
    ///
    /// # Errors
    /// If a point saw no value; the error names it.
    pub fn convert(&self) -> Result<Converted> {
        self.trained()?.convert()
    }

    /// The prepared graph with the weights trained so far, and the scales and zero
    /// points.
    ///
    /// # Errors
    /// If a weight cannot be observed (NaN); the error names it.
    pub fn trained(&self) -> Result<Prepared> {
        let fused = fuse(&self.float()?)?;
        let constant = |name: &str| fused.find(name).and_then(|v| fused.constant(v));
        let values = self.network.values();
        let params = self.prepared.points().iter().enumerate().map(|(i, point)| {
            let names = Names::new(i, point);
            let value = |name: &str| values.get(name);
            if let (Some(scale), Some(zero)) = (value(&names.scale), value(&names.zero)) {
                return FakeQuantize::params(point.scheme, scale, zero).map(Some);
            }
            let (Some(lo), Some(hi)) = (value(&names.lo), value(&names.hi)) else { return Ok(None) };
            let made = RangeSteps { scheme: point.scheme }.eval(&[lo, hi])?;
            FakeQuantize::params(point.scheme, &made[0], &made[1]).map(Some)
        });
        let params: Vec<Option<QParams>> = params.collect::<Result<_>>()?;
        self.prepared.trained(constant, params)
    }
}

impl Learner for Qat {
    fn network(&mut self, step: u64) -> Result<&mut Network> {
        let phase = self.options.phase(step);
        if phase != self.phase {
            self.network = self.assembled(phase)?;
            self.phase = phase;
        }
        Ok(&mut self.network)
    }
}

/// The names under which a network keeps what a point learns.
struct Names {
    scale: String,
    zero: String,
    lo: String,
    hi: String,
    seen: String,
}

impl Names {
    fn new(index: usize, point: &Point) -> Names {
        let name = |part: &str| format!("{}.point{index}.{part}", point.name);
        Names { scale: name("scale"), zero: name("zero"), lo: name("lo"), hi: name("hi"), seen: name("seen") }
    }
}

/// The layers of `float` with a BatchNormalization behind them that [`fuse`]
/// folds, by the name of the folded weight.
fn folds(float: &Graph) -> HashMap<String, Fold> {
    let uses = float.uses();
    let name = |v: Var| float.value(v).name.clone();
    let constant = |v: &Var| float.constant(*v).is_some();
    let of = |norm: &BatchNormalization, inputs: &[Var]| {
        let Kind::Apply { op, inputs: operands } = &float.node(inputs[0]).kind else { return None };
        let Quant::Compute { weight: Some((w, axis)), bias: Some(b) } = op.quant() else { return None };
        let bias = operands.get(b).copied().filter(|v| !float.fact(*v).is_absent());
        let own = |v: Var| constant(&v) && uses.of(v) == 1;
        let foldable = uses.of(inputs[0]) == 1
            && inputs[1..].iter().all(constant)
            && operands.get(w).is_some_and(|v| own(*v))
            && bias.is_none_or(own);
        foldable.then(|| Fold {
            norm: *norm,
            axis,
            weight: name(operands[w]),
            bias: bias.map(name),
            operands: [1, 2, 3, 4].map(|i| name(inputs[i])),
        })
    };
    let norms = float.applied().filter_map(|(_, _, op, inputs)| of(op.is::<BatchNormalization>()?, inputs));
    norms.map(|fold| (fold.weight.clone(), fold)).collect()
}
