//! Which layers have quantizers, and of which kind.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::descriptor::{
    QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL, QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL, QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL, QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW, QUANT_DESC_8BIT_PER_TENSOR, QuantDescriptor,
};
use crate::graph::{Graph, Var};
use crate::op::{Op, Quant};
use crate::tensor::DType;

/// A type of layers.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerKind {
    /// Gemm and MatMul by a constant.
    Linear,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    /// AveragePool and GlobalAveragePool.
    AvgPool,
    /// MaxPool and GlobalMaxPool.
    MaxPool,
}

impl LayerKind {
    /// The type of the layer that `op` is on these operands, and the operand and channel
    /// axis of its weight, if it has one. A weight that is computed makes no layer.
    pub(super) fn of(
        graph: &Graph,
        op: &dyn Op,
        inputs: &[Var],
    ) -> Option<(LayerKind, Option<(usize, usize)>)> {
        match op.name() {
            "AveragePool" | "GlobalAveragePool" => return Some((LayerKind::AvgPool, None)),
            "MaxPool" | "GlobalMaxPool" => return Some((LayerKind::MaxPool, None)),
            _ => {}
        }
        let Quant::Compute { weight: Some((w, axis)), .. } = op.quant() else { return None };
        let rank = graph.constant(*inputs.get(w)?).filter(|t| t.dtype() == DType::F32)?.rank();
        let kind = match (op.name(), rank) {
            ("Gemm", 2) | ("MatMul", 2) => LayerKind::Linear,
            ("Conv", 3) => LayerKind::Conv1d,
            ("Conv", 4) => LayerKind::Conv2d,
            ("Conv", 5) => LayerKind::Conv3d,
            ("ConvTranspose", 3) => LayerKind::ConvTranspose1d,
            ("ConvTranspose", 4) => LayerKind::ConvTranspose2d,
            ("ConvTranspose", 5) => LayerKind::ConvTranspose3d,
            _ => return None,
        };
        Some((kind, Some((w, axis))))
    }
}

/// The quantizers of a type of layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptors {
    /// That of the input.
    pub input: QuantDescriptor,
    /// That of the weight, for layers that have one.
    #[serde(default)]
    pub weight: QuantDescriptor,
}

/// Quantizers whose names match have another descriptor, or are disabled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizerRule {
    /// A glob: `layer4.*._input_quantizer`.
    pub quantizer: String,
    /// The descriptor; none: disabled from the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<QuantDescriptor>,
}

/// Which types of layers have quantizers, with their descriptors, and rules by name, of
/// which the last that matches wins: `pytorch-quantization`'s `quant_modules`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantModules {
    /// The types of layers.
    pub layers: BTreeMap<LayerKind, Descriptors>,
    /// The rules.
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<QuantizerRule>,
}

impl Default for QuantModules {
    fn default() -> QuantModules {
        QuantModules::initialize()
    }
}

impl QuantModules {
    /// The standard: linear layers, convolutions and transposed ones, with 8-bit inputs
    /// and 8-bit weights by output channel, and the inputs of average pools.
    pub fn initialize() -> QuantModules {
        let weights = [
            (LayerKind::Linear, QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW),
            (LayerKind::Conv1d, QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL),
            (LayerKind::Conv2d, QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL),
            (LayerKind::Conv3d, QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL),
            (LayerKind::ConvTranspose1d, QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL),
            (LayerKind::ConvTranspose2d, QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL),
            (LayerKind::ConvTranspose3d, QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL),
            (LayerKind::AvgPool, QUANT_DESC_8BIT_PER_TENSOR),
        ];
        let input = || QUANT_DESC_8BIT_PER_TENSOR;
        let layers = weights.into_iter().map(|(kind, weight)| (kind, Descriptors { input: input(), weight }));
        QuantModules { layers: layers.collect(), rules: vec![] }
    }

    /// Gives all types of layers this descriptor for inputs.
    pub fn set_default_input(&mut self, descriptor: &QuantDescriptor) {
        self.layers.values_mut().for_each(|layer| layer.input = descriptor.clone());
    }

    /// Gives a type of layers these descriptors; one that had no quantizers has them then.
    pub fn set(&mut self, kind: LayerKind, input: QuantDescriptor, weight: QuantDescriptor) {
        self.layers.insert(kind, Descriptors { input, weight });
    }

    /// With one more rule, which overrides those before it.
    #[must_use]
    pub fn with_rule(mut self, quantizer: &str, descriptor: Option<QuantDescriptor>) -> QuantModules {
        self.rules.push(QuantizerRule { quantizer: quantizer.into(), descriptor });
        self
    }
}
