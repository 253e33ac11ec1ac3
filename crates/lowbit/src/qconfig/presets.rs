//! The defaults of lowbit and of the backends that people come from.

use super::{Per, QConfig, Rounding, Spec};
use crate::error::{Result, invalid};
use crate::observer::ObserverConfig;
use crate::scheme::{Format, Mapping};

/// The presets by name. A new one is a function and a row.
pub const PRESETS: &[(&str, fn() -> QConfig)] = &[
    ("default", default),
    ("fbgemm", fbgemm),
    ("x86", fbgemm),
    ("onednn", onednn),
    ("qnnpack", qnnpack),
    ("tensorrt", tensorrt),
    ("onnxruntime", onnxruntime),
    ("openvino", default),
    ("dynamic", dynamic),
    ("dynamic-rows", dynamic_rows),
    ("weight-only", weight_only),
    ("int4", int4),
];

/// The preset called `name`.
///
/// # Errors
/// If there is none; the error lists them.
pub fn preset(name: &str) -> Result<QConfig> {
    PRESETS.iter().find(|(n, _)| *n == name).map(|(_, q)| q()).ok_or_else(|| {
        let names: Vec<&str> = PRESETS.iter().map(|(n, _)| *n).collect();
        invalid!("unknown preset {name:?}; known are {}", names.join(", "))
    })
}

/// uint8 activations, int8 weights per channel within -127..127: the fastest
/// and most exact form on every CPU, and what onnxruntime and OpenVINO run
/// fastest.
fn default() -> QConfig {
    QConfig {
        activation: Some(Spec::new(Format::UINT8, Mapping::Affine).observed_by(ObserverConfig::Mse)),
        weight: Spec::new(Format::INT8_NARROW, Mapping::Symmetric)
            .per_channel()
            .observed_by(ObserverConfig::MinMax)
            .correcting_bias()
            .rounded_by(Rounding::Gptq)
            .renormalizing(),
    }
}

/// PyTorch's `get_default_qconfig("fbgemm")` and `("x86")`: 7-bit activations.
fn fbgemm() -> QConfig {
    let activation = Spec { codes: Some((0, 127)), ..histogram() };
    QConfig { activation: Some(activation), ..onednn() }
}

/// PyTorch's `get_default_qconfig("onednn")`.
fn onednn() -> QConfig {
    let weight = Spec::new(Format::INT8, Mapping::Symmetric).observed_by(ObserverConfig::MinMax);
    QConfig { activation: Some(histogram()), weight: weight.per_channel() }
}

/// PyTorch's `get_default_qconfig("qnnpack")`: weights per tensor.
fn qnnpack() -> QConfig {
    let weight = Spec::new(Format::INT8, Mapping::Symmetric).observed_by(ObserverConfig::MinMax);
    QConfig { activation: Some(histogram()), weight }
}

fn histogram() -> Spec {
    Spec::new(Format::UINT8, Mapping::Affine).observed_by(ObserverConfig::Histogram { bins: 2048 })
}

/// TensorRT: everything int8, symmetric, within -127..127.
fn tensorrt() -> QConfig {
    let spec = Spec::new(Format::INT8_NARROW, Mapping::Symmetric);
    QConfig {
        activation: Some(spec.clone().observed_by(ObserverConfig::Entropy)),
        weight: spec.per_channel().observed_by(ObserverConfig::MinMax),
    }
}

/// The defaults of onnxruntime's `quantize_static`: int8 activations and
/// weights, per tensor, min-max.
fn onnxruntime() -> QConfig {
    QConfig {
        activation: Some(Spec::new(Format::INT8, Mapping::Affine).observed_by(ObserverConfig::MinMax)),
        weight: Spec::new(Format::INT8_NARROW, Mapping::Symmetric).observed_by(ObserverConfig::MinMax),
    }
}

/// Activations by the range of each run's values, weights int8 per channel: no
/// calibration is needed, and the codes of weights are chosen by data where
/// there is any.
fn dynamic() -> QConfig {
    let weight = Spec::new(Format::INT8, Mapping::Symmetric).per_channel().observed_by(ObserverConfig::Mse);
    QConfig {
        activation: Some(Spec::new(Format::UINT8, Mapping::Affine).dynamic()),
        weight: weight.rounded_by(Rounding::Gptq),
    }
}

/// The same with a range for each row (token, sample): no row's result depends
/// on the others.
fn dynamic_rows() -> QConfig {
    let QConfig { activation, weight } = dynamic();
    QConfig { activation: activation.map(|a| a.per(Per::Row)), weight }
}

/// Weights int8 per channel, activations in float.
fn weight_only() -> QConfig {
    QConfig::weight_only(Format::INT8_NARROW, None)
}

/// Weights of 4 bits, affine, in blocks of 32, activations in float.
fn int4() -> QConfig {
    QConfig::weight_only(Format::UINT4, None)
}
