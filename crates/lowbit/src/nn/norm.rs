//! Normalization.

use std::sync::Arc;

use super::init::Init;
use super::module::{Fusing, Module, Parameter};
use super::scope::{Kind, Scope};
use crate::error::{Result, invalid};
use crate::graph::Var;
use crate::op::Dim;
use crate::ops::norm::{BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization};
use crate::tensor::Tensor;

/// [`BatchNorm`] of `[N, C]` or `[N, C, L]`.
pub type BatchNorm1d = BatchNorm<1>;
/// [`BatchNorm`] of `[N, C, H, W]`.
pub type BatchNorm2d = BatchNorm<2>;
/// [`BatchNorm`] of `[N, C, D, H, W]`.
pub type BatchNorm3d = BatchNorm<3>;
/// [`InstanceNorm`] of `[N, C, L]`.
pub type InstanceNorm1d = InstanceNorm<1>;
/// [`InstanceNorm`] of `[N, C, H, W]`.
pub type InstanceNorm2d = InstanceNorm<2>;
/// [`InstanceNorm`] of `[N, C, D, H, W]`.
pub type InstanceNorm3d = InstanceNorm<3>;

const EPSILON: f32 = 1e-5;

/// Checks that `x` is `[N, C, ..]` with `spatial` axes more, or none where they may
/// be left out.
fn check_rank(g: &Scope<'_>, x: Var, spatial: usize, or_none: bool) -> Result<()> {
    let fact = g.fact(x);
    if fact.rank() == 2 + spatial || (or_none && fact.rank() == 2) {
        return Ok(());
    }
    Err(invalid!("takes [N, C] and {spatial} more axes, found {fact}").at(g.place()))
}

/// The parameters `weight` and `bias`, or ones and zeros.
fn scale_and_shift(g: &mut Scope<'_>, neutral: &[usize]) -> Result<[Var; 2]> {
    let weight = match g.optional_parameter("weight")? {
        Some(weight) => weight,
        None => g.constant("weight", Tensor::full(neutral, 1f32)?),
    };
    let bias = match g.optional_parameter("bias")? {
        Some(bias) => bias,
        None => g.constant("bias", Tensor::full(neutral, 0f32)?),
    };
    Ok([weight, bias])
}

fn affine(shape: &[usize]) -> Vec<Parameter> {
    vec![Parameter::new("weight", shape, Init::Full(1.0)), Parameter::new("bias", shape, Init::Full(0.0))]
}

/// `y = (x - running_mean[c]) / sqrt(running_var[c] + eps) weight[c] + bias[c]`: batch
/// normalization as it is in inference
/// ([`Network`](crate::train::Network) makes it that of training). Parameters and buffers: weight, bias,
/// running_mean, running_var, each `[C]`, and num_batches_tracked.
#[derive(Clone, Debug)]
pub struct BatchNorm<const D: usize> {
    channels: usize,
    epsilon: f32,
}

impl<const D: usize> BatchNorm<D> {
    /// For this many channels, with `eps = 1e-5`.
    pub fn new(channels: usize) -> BatchNorm<D> {
        BatchNorm { channels, epsilon: EPSILON }
    }

    /// Added to the variance.
    pub fn eps(self, epsilon: f32) -> BatchNorm<D> {
        BatchNorm { epsilon, ..self }
    }
}

impl<const D: usize> Module for BatchNorm<D> {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        check_rank(g, x, D, D == 1)?;
        let op = BatchNormalization { epsilon: self.epsilon, training: None };
        let mut inputs = vec![x];
        for name in ["weight", "bias", "running_mean", "running_var"] {
            inputs.push(g.parameter(name)?);
        }
        g.ranged(Arc::new(op), &inputs, Kind::Module)
    }

    fn parameters(&self) -> Vec<Parameter> {
        let c = [self.channels];
        let mut all = affine(&c);
        all.push(Parameter::buffer("running_mean", &c, Init::Full(0.0)));
        all.push(Parameter::buffer("running_var", &c, Init::Full(1.0)));
        all.push(Parameter::buffer("num_batches_tracked", &[], Init::Count));
        all
    }

    fn fusing(&self) -> Fusing {
        Fusing::BatchNorm { epsilon: self.epsilon }
    }
}

/// `y = (x - mean) / sqrt(var + eps) weight + bias` over the last axes, which have the
/// given shape. Parameters: weight and bias of that shape.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    shape: Vec<usize>,
    epsilon: f32,
    affine: bool,
}

impl LayerNorm {
    /// Over last axes of this shape, with `eps = 1e-5`.
    pub fn new(shape: &[usize]) -> LayerNorm {
        LayerNorm { shape: shape.to_vec(), epsilon: EPSILON, affine: true }
    }

    /// Added to the variance.
    pub fn eps(self, epsilon: f32) -> LayerNorm {
        LayerNorm { epsilon, ..self }
    }

    /// With or without parameters.
    pub fn elementwise_affine(self, affine: bool) -> LayerNorm {
        LayerNorm { affine, ..self }
    }
}

impl Module for LayerNorm {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let [weight, bias] = scale_and_shift(g, &[1])?;
        let axis = -(self.shape.len() as i64);
        g.layer(LayerNormalization { axis, epsilon: self.epsilon, centred: true }, &[x, weight, bias])
    }

    fn parameters(&self) -> Vec<Parameter> {
        if self.affine { affine(&self.shape) } else { vec![] }
    }
}

/// `y = (x - mean) / sqrt(var + eps) weight[c] + bias[c]`, mean and variance taken over
/// each group of channels of each sample. Parameters: weight and bias, `[C]`.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    groups: usize,
    channels: usize,
    epsilon: f32,
    affine: bool,
}

impl GroupNorm {
    /// `channels` in `groups`, with `eps = 1e-5`.
    pub fn new(groups: usize, channels: usize) -> GroupNorm {
        GroupNorm { groups, channels, epsilon: EPSILON, affine: true }
    }

    /// Added to the variance.
    pub fn eps(self, epsilon: f32) -> GroupNorm {
        GroupNorm { epsilon, ..self }
    }

    /// With or without parameters.
    pub fn affine(self, affine: bool) -> GroupNorm {
        GroupNorm { affine, ..self }
    }
}

impl Module for GroupNorm {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let [weight, bias] = scale_and_shift(g, &[self.channels])?;
        let op = GroupNormalization { groups: self.groups, per_group: false, epsilon: self.epsilon };
        g.layer(op, &[x, weight, bias])
    }

    fn parameters(&self) -> Vec<Parameter> {
        if self.affine { affine(&[self.channels]) } else { vec![] }
    }
}

/// `y = (x - mean) / sqrt(var + eps) weight[c] + bias[c]`, mean and variance taken over
/// each channel of each sample. Parameters, if it is affine: weight and bias, `[C]`.
#[derive(Clone, Debug)]
pub struct InstanceNorm<const D: usize> {
    channels: usize,
    epsilon: f32,
    affine: bool,
}

impl<const D: usize> InstanceNorm<D> {
    /// For this many channels, with `eps = 1e-5` and without parameters.
    pub fn new(channels: usize) -> InstanceNorm<D> {
        InstanceNorm { channels, epsilon: EPSILON, affine: false }
    }

    /// Added to the variance.
    pub fn eps(self, epsilon: f32) -> InstanceNorm<D> {
        InstanceNorm { epsilon, ..self }
    }

    /// With or without parameters.
    pub fn affine(self, affine: bool) -> InstanceNorm<D> {
        InstanceNorm { affine, ..self }
    }
}

impl<const D: usize> Module for InstanceNorm<D> {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        check_rank(g, x, D, false)?;
        let channels = match g.fact(x).shape[1] {
            Dim::Known(n) => n,
            Dim::Named(_) => self.channels,
        };
        let [weight, bias] = scale_and_shift(g, &[channels])?;
        g.layer(InstanceNormalization { epsilon: self.epsilon }, &[x, weight, bias])
    }

    fn parameters(&self) -> Vec<Parameter> {
        if self.affine { affine(&[self.channels]) } else { vec![] }
    }
}
