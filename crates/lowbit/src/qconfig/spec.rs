//! How values are quantized: what a rule gives the nodes that it matches.

use serde::{Deserialize, Serialize};

use super::correction::BiasCorrection;
use crate::error::{Result, invalid};
use crate::observer::ObserverConfig;
use crate::scheme::{Format, Granularity, Mapping, Scheme};

/// What shares one scale, before the operator says which axis its channels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// The whole tensor.
    #[default]
    Tensor,
    /// Each output channel.
    Channel,
    /// Each row, the elements along the last axis: for dynamic activations.
    Row,
    /// This many elements of an output channel of a weight, along its input axis
    /// (fewer in the last block): `per = { block = 32 }`.
    Block(usize),
}

/// How the codes of a weight are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// The code nearest to each value.
    #[default]
    Nearest,
    /// Those that change the layer's outputs least on the calibration data
    /// ([`crate::quantize::InputMoments`]).
    Gptq,
    /// Those that are learned, layer by layer or block by block, on the calibration data
    /// ([`crate::passes::adaround()`]): the best for few bits, and it takes minutes.
    Adaround,
}

impl Rounding {
    fn is_nearest(&self) -> bool {
        *self == Rounding::Nearest
    }
}

/// How one kind of value is quantized: its scheme, and who chooses its range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The codes.
    pub format: Format,
    /// How reals map to them.
    pub mapping: Mapping,
    /// What shares one scale.
    #[serde(default)]
    pub per: Per,
    /// Codes really used, where they are fewer than the format's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes: Option<(i32, i32)>,
    /// Who chooses the range.
    #[serde(default = "min_max")]
    pub observer: ObserverConfig,
    /// For weights: whether the bias makes up for what quantizing the weight takes from
    /// the mean output.
    #[serde(default, rename = "correct-bias", skip_serializing_if = "BiasCorrection::is_off")]
    pub correct_bias: BiasCorrection,
    /// For activations: how much the channels of the values read are made alike
    /// in range before quantization ([`crate::passes::equalize`]), from 0, not
    /// at all, to 1, completely.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub equalize: f32,
    /// For activations: how much the differences between the elements that matrix products
    /// read are moved into their weights ([`crate::passes::smooth`]), from 0, not at all,
    /// to 1, completely.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub smooth: f32,
    /// For weights with one scale: whether the channels of the weights around a value are
    /// made alike in range ([`crate::passes::equalize`]).
    #[serde(default, rename = "cross-layer", skip_serializing_if = "std::ops::Not::not")]
    pub cross_layer: bool,
    /// For weights: how their codes are chosen.
    #[serde(default, skip_serializing_if = "Rounding::is_nearest")]
    pub rounding: Rounding,
    /// For weights: whether channels of what the layer makes get the mean and the deviation
    /// back that they have in float ([`crate::passes::renormalize`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub renormalize: bool,
    /// For weights beside float activations: whether rows that meet great inputs
    /// get finer steps, by moving factors into what makes the inputs ([`crate::passes::awq`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub awq: bool,
    /// For activations: whether the range is that of the values of each run, so
    /// that no calibration is needed and the observer has nothing to do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dynamic: bool,
    /// For dynamic activations: whether products of two of them, such as those
    /// of attention, are quantized too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub products: bool,
    /// For activations: whether only the inputs of an operator are quantized, right
    /// where it reads them. Its output, and what other operators read of its inputs,
    /// stays in float: how `pytorch-quantization` places its quantizers.
    #[serde(default, rename = "inputs-only", skip_serializing_if = "std::ops::Not::not")]
    pub inputs_only: bool,
}

fn is_zero(x: &f32) -> bool {
    *x == 0.0
}

fn min_max() -> ObserverConfig {
    ObserverConfig::MinMax
}

impl Spec {
    /// A per-tensor spec with min-max ranges.
    pub fn new(format: Format, mapping: Mapping) -> Spec {
        Spec {
            format,
            mapping,
            per: Per::Tensor,
            codes: None,
            observer: ObserverConfig::MinMax,
            correct_bias: BiasCorrection::Off,
            equalize: 0.0,
            smooth: 0.0,
            cross_layer: false,
            rounding: Rounding::Nearest,
            renormalize: false,
            awq: false,
            dynamic: false,
            products: false,
            inputs_only: false,
        }
    }

    /// The same spec for activations that are quantized where they are read alone.
    pub fn of_inputs_only(self) -> Spec {
        Spec { inputs_only: true, ..self }
    }

    /// The same spec with ranges found in each run.
    pub fn dynamic(self) -> Spec {
        Spec { dynamic: true, ..self }
    }

    /// The same spec with another extent of a scale, without what is for other extents only.
    pub fn per(self, per: Per) -> Spec {
        let cross_layer = self.cross_layer && per == Per::Tensor;
        let renormalize = self.renormalize && per == Per::Channel;
        Spec { per, cross_layer, renormalize, ..self }
    }

    /// The same spec with a scale for each channel.
    pub fn per_channel(self) -> Spec {
        Spec { per: Per::Channel, ..self }
    }

    /// The same spec with another observer.
    pub fn observed_by(self, observer: ObserverConfig) -> Spec {
        Spec { observer, ..self }
    }

    /// The same spec for weights whose bias makes up for their mean error.
    pub fn correcting_bias(self) -> Spec {
        Spec { correct_bias: BiasCorrection::Observed, ..self }
    }

    /// The same spec for activations whose channels are equalized this much.
    pub fn equalizing(self, strength: f32) -> Spec {
        Spec { equalize: strength, ..self }
    }

    /// The same spec for activations whose outliers are moved this much into weights.
    pub fn smoothed(self, strength: f32) -> Spec {
        Spec { smooth: strength, ..self }
    }

    /// The same spec for weights with one scale, whose channels share their ranges with
    /// those of the layers around them.
    pub fn cross_layer(self) -> Spec {
        Spec { cross_layer: true, ..self }
    }

    /// The same spec for weights whose rows that meet great inputs get finer steps.
    pub fn aware_of_activations(self) -> Spec {
        Spec { awq: true, ..self }
    }

    /// The same spec for weights whose codes are chosen like this.
    pub fn rounded_by(self, rounding: Rounding) -> Spec {
        Spec { rounding, ..self }
    }

    /// The same spec for weights, with the means and deviations of channels given back.
    pub fn renormalizing(self) -> Spec {
        Spec { renormalize: true, ..self }
    }

    /// The scheme for a tensor whose output channels lie along `axis`, and its
    /// inputs along the first other one; per tensor where it has none.
    pub fn scheme(&self, axis: Option<usize>) -> Scheme {
        let granularity = match (self.per, axis) {
            (Per::Channel, Some(axis)) => Granularity::Axis(axis),
            (Per::Block(size), Some(axis)) => Granularity::Block { axis: usize::from(axis == 0), size },
            _ => Granularity::Tensor,
        };
        Scheme { format: self.format, mapping: self.mapping, granularity, codes: self.codes }
    }
}

/// How a node's activations and weights are quantized: statically, dynamically
/// ([`Spec::dynamic`]), or its weights only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QConfig {
    /// Inputs and output; `None` leaves them in float, so that only weights are quantized.
    pub activation: Option<Spec>,
    /// The weight, for operators that have one.
    pub weight: Spec,
}

impl QConfig {
    /// Weights only, in `format`: affine if its codes are unsigned integers, with
    /// scales of least squared error, and codes chosen by data where there is any.
    /// Scales are for `per`, or blocks of 32 for formats of less than 8 bits and
    /// channels for others.
    pub fn weight_only(format: Format, per: Option<Per>) -> QConfig {
        let unsigned = matches!(format, Format::Int { signed: false, .. });
        let mapping = if unsigned { Mapping::Affine } else { Mapping::Symmetric };
        let standard = if format.bits() < 8 { Per::Block(32) } else { Per::Channel };
        let weight = Spec::new(format, mapping).per(per.unwrap_or(standard));
        let weight = weight.observed_by(ObserverConfig::Mse).rounded_by(Rounding::Gptq);
        QConfig { activation: None, weight }
    }

    /// How activations are quantized, if by ranges found on calibration data.
    pub fn observed(&self) -> Option<&Spec> {
        self.activation.as_ref().filter(|a| !a.dynamic)
    }

    /// How activations are quantized, if by the ranges of each run.
    pub fn dynamic(&self) -> Option<&Spec> {
        self.activation.as_ref().filter(|a| a.dynamic)
    }

    /// Checks that what it asks for is consistent.
    ///
    /// # Errors
    /// If it is not; the error says which of the two specs asks for what.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(activation) = &self.activation {
            check_activation(activation).map_err(|e| e.at("activation"))?;
        }
        self.check_weight().map_err(|e| e.at("weight"))
    }

    fn check_weight(&self) -> Result<()> {
        let Spec { format, awq, .. } = self.weight;
        check_weight(&self.weight)?;
        if self.activation.is_some() && awq {
            return Err(invalid!("awq is for weights beside float activations: weight-only = true"));
        }
        if self.activation.is_some() && format.is_for_storage() {
            return Err(invalid!("{format} is for weights beside float activations: weight-only = true"));
        }
        Ok(())
    }
}

fn check_activation(spec: &Spec) -> Result<()> {
    spec.scheme(None).check()?;
    if spec.format.is_for_storage() {
        return Err(invalid!("{} is for weights", spec.format));
    }
    match spec.per {
        Per::Tensor => {}
        Per::Row if spec.dynamic => {}
        Per::Row => return Err(invalid!("per = \"row\" needs dynamic = true: rows differ from run to run")),
        Per::Channel | Per::Block(_) => {
            return Err(invalid!(
                "activations have one scale for the whole tensor; per = \"channel\" and blocks are for weights"
            ));
        }
    }
    let uint8 = Spec::new(Format::UINT8, Mapping::Affine);
    if spec.dynamic && spec.scheme(None) != uint8.scheme(None) {
        return Err(invalid!("dynamic activations are uint8, affine, as ONNX defines them"));
    }
    if spec.products && (!spec.dynamic || spec.per == Per::Row) {
        return Err(invalid!("products = true needs dynamic = true and one scale for the whole tensor"));
    }
    if !(0.0..=1.0).contains(&spec.equalize) {
        return Err(invalid!("equalize = {}: choose 0, not at all, to 1, completely", spec.equalize));
    }
    if !(0.0..=1.0).contains(&spec.smooth) {
        return Err(invalid!("smooth = {}: choose 0, not at all, to 1, completely", spec.smooth));
    }
    if spec.awq {
        return Err(invalid!("awq is for weights"));
    }
    if spec.cross_layer {
        return Err(invalid!("cross-layer is for weights"));
    }
    if spec.renormalize {
        return Err(invalid!("renormalize is for weights"));
    }
    if spec.inputs_only && spec.dynamic {
        return Err(invalid!(
            "inputs-only is for ranges found beforehand: dynamic quantizes inputs alone anyway"
        ));
    }
    if spec.rounding != Rounding::Nearest {
        return Err(invalid!("rounding is for weights: activations have the nearest codes"));
    }
    Ok(())
}

fn check_weight(spec: &Spec) -> Result<()> {
    spec.scheme(None).check()?;
    match spec.per {
        Per::Row => return Err(invalid!("per = \"row\" is for activations")),
        Per::Block(0) => return Err(invalid!("a block needs at least one element")),
        _ => {}
    }
    if spec.observer == ObserverConfig::Measured {
        return Err(invalid!("observer = \"measured\" is for activations: for weights use mse"));
    }
    if spec.cross_layer && spec.per != Per::Tensor {
        return Err(invalid!("cross-layer is for weights with one scale: per = \"tensor\""));
    }
    if spec.renormalize && spec.per != Per::Channel {
        return Err(invalid!("renormalize is for weights with a scale for each channel: per = \"channel\""));
    }
    if spec.equalize != 0.0 {
        return Err(invalid!("equalize is for activations: weights follow them"));
    }
    if spec.smooth != 0.0 {
        return Err(invalid!("smooth is for activations: weights follow them"));
    }
    if spec.dynamic {
        return Err(invalid!("dynamic is for activations: weights do not change"));
    }
    if spec.inputs_only {
        return Err(invalid!("inputs-only is for activations"));
    }
    Ok(())
}
