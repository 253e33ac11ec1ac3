//! The functions that recurrent operators apply to their gates.

use lowbit_kernels::{exp, sigmoid, tanh};

use crate::error::{Error, Result, invalid};
use crate::ops::vectorized::vectorized;

/// A function of the gates, by ONNX's name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `max(x, 0)`
    Relu,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `alpha * x + beta`
    Affine {
        /// Slope.
        alpha: f32,
        /// Value at 0.
        beta: f32,
    },
    /// `x` where not negative, else `alpha * x`
    LeakyRelu {
        /// Slope for negative values.
        alpha: f32,
    },
    /// `x` where at least `alpha`, else 0
    ThresholdedRelu {
        /// The threshold.
        alpha: f32,
    },
    /// `alpha * tanh(beta * x)`
    ScaledTanh {
        /// Scale of the result.
        alpha: f32,
        /// Scale of the operand.
        beta: f32,
    },
    /// `clamp(alpha * x + beta, 0, 1)`
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at 0.
        beta: f32,
    },
    /// `x` where not negative, else `alpha * (exp(x) - 1)`
    Elu {
        /// Negative limit.
        alpha: f32,
    },
    /// `x / (1 + |x|)`
    Softsign,
    /// `ln(1 + exp(x))`
    Softplus,
}

/// Hands out the values of an attribute in order, to the functions that have
/// such a parameter.
pub(super) struct Parameters {
    attribute: &'static str,
    values: std::vec::IntoIter<f32>,
}

impl Parameters {
    pub(super) fn new(attribute: &'static str, values: Option<Vec<f32>>) -> Parameters {
        Parameters { attribute, values: values.unwrap_or_default().into_iter() }
    }

    fn next(&mut self, function: &str, default: Option<f32>) -> Result<f32> {
        self.values
            .next()
            .or(default)
            .ok_or_else(|| invalid!("{function} has no default: attribute {} must give one", self.attribute))
    }

    /// Refuses values that no function took.
    pub(super) fn finish(mut self) -> Result<()> {
        match self.values.next() {
            Some(x) => Err(invalid!("attribute {} has a value {x} that no activation takes", self.attribute)),
            None => Ok(()),
        }
    }
}

impl Activation {
    /// The function of this name (in any case), with the parameters that it has
    /// and their defaults in the ONNX operator of the name.
    pub(super) fn read(name: &str, alphas: &mut Parameters, betas: &mut Parameters) -> Result<Activation> {
        let mut alpha = |default| alphas.next(name, default);
        let mut beta = |default| betas.next(name, default);
        Ok(match name.to_ascii_lowercase().as_str() {
            "relu" => Activation::Relu,
            "tanh" => Activation::Tanh,
            "sigmoid" => Activation::Sigmoid,
            "affine" => Activation::Affine { alpha: alpha(Some(1.0))?, beta: beta(Some(0.0))? },
            "leakyrelu" => Activation::LeakyRelu { alpha: alpha(Some(0.01))? },
            "thresholdedrelu" => Activation::ThresholdedRelu { alpha: alpha(Some(1.0))? },
            "scaledtanh" => Activation::ScaledTanh { alpha: alpha(None)?, beta: beta(None)? },
            "hardsigmoid" => Activation::HardSigmoid { alpha: alpha(Some(0.2))?, beta: beta(Some(0.5))? },
            "elu" => Activation::Elu { alpha: alpha(Some(1.0))? },
            "softsign" => Activation::Softsign,
            "softplus" => Activation::Softplus,
            _ => return Err(Error::unsupported("activations", format!("{name:?}"))),
        })
    }

    /// ONNX's name.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Relu => "Relu",
            Activation::Tanh => "Tanh",
            Activation::Sigmoid => "Sigmoid",
            Activation::Affine { .. } => "Affine",
            Activation::LeakyRelu { .. } => "LeakyRelu",
            Activation::ThresholdedRelu { .. } => "ThresholdedRelu",
            Activation::ScaledTanh { .. } => "ScaledTanh",
            Activation::HardSigmoid { .. } => "HardSigmoid",
            Activation::Elu { .. } => "Elu",
            Activation::Softsign => "Softsign",
            Activation::Softplus => "Softplus",
        }
    }

    /// The parameters that it has.
    pub(super) fn parameters(self) -> [Option<f32>; 2] {
        match self {
            Activation::Affine { alpha, beta }
            | Activation::ScaledTanh { alpha, beta }
            | Activation::HardSigmoid { alpha, beta } => [Some(alpha), Some(beta)],
            Activation::LeakyRelu { alpha }
            | Activation::ThresholdedRelu { alpha }
            | Activation::Elu { alpha } => [Some(alpha), None],
            _ => [None; 2],
        }
    }

    /// The function of each element, in place, with the same bits on every CPU.
    pub fn apply(self, x: &mut [f32]) {
        match self {
            Activation::Relu => each(x, |x| if x < 0.0 { 0.0 } else { x }),
            Activation::Tanh => each(x, tanh),
            Activation::Sigmoid => each(x, sigmoid),
            Activation::Affine { alpha, beta } => each(x, |x| alpha * x + beta),
            Activation::LeakyRelu { alpha } => each(x, |x| if x < 0.0 { alpha * x } else { x }),
            Activation::ThresholdedRelu { alpha } => each(x, |x| if x < alpha { 0.0 } else { x }),
            Activation::ScaledTanh { alpha, beta } => each(x, |x| alpha * tanh(beta * x)),
            Activation::HardSigmoid { alpha, beta } => each(x, |x| (alpha * x + beta).clamp(0.0, 1.0)),
            Activation::Elu { alpha } => each(x, |x| if x < 0.0 { alpha * libm::expm1f(x) } else { x }),
            Activation::Softsign => each(x, |x| x / (1.0 + x.abs())),
            Activation::Softplus => each(x, |x| x.max(0.0) + libm::log1pf(exp(-x.abs()))),
        }
    }

    /// Multiplies gradients `g` by the derivatives at `x`, where the values are `y`.
    pub(super) fn times_slope(self, g: &mut [f32], x: &[f32], y: &[f32]) {
        match self {
            Activation::Relu => scale(g, x, |x| if x > 0.0 { 1.0 } else { 0.0 }),
            Activation::Tanh => scale(g, y, |y| 1.0 - y * y),
            Activation::Sigmoid => scale(g, y, |y| y * (1.0 - y)),
            Activation::Affine { alpha, .. } => scale(g, x, |_| alpha),
            Activation::LeakyRelu { alpha } => scale(g, x, |x| if x > 0.0 { 1.0 } else { alpha }),
            Activation::ThresholdedRelu { alpha } => scale(g, x, |x| if x < alpha { 0.0 } else { 1.0 }),
            Activation::ScaledTanh { alpha, beta } => scale(g, x, |x| {
                let t = tanh(beta * x);
                alpha * beta * (1.0 - t * t)
            }),
            Activation::HardSigmoid { alpha, .. } => {
                scale(g, y, |y| if y > 0.0 && y < 1.0 { alpha } else { 0.0 });
            }
            Activation::Elu { alpha } => scale(g, x, |x| if x > 0.0 { 1.0 } else { alpha * exp(x) }),
            Activation::Softsign => scale(g, x, |x| 1.0 / ((1.0 + x.abs()) * (1.0 + x.abs()))),
            Activation::Softplus => scale(g, x, sigmoid),
        }
    }
}

#[inline(always)]
fn each(x: &mut [f32], f: impl Fn(f32) -> f32) {
    vectorized(
        #[inline(always)]
        || x.iter_mut().for_each(|x| *x = f(*x)),
    );
}

/// `g *= slope(x)`.
#[inline(always)]
fn scale(g: &mut [f32], x: &[f32], slope: impl Fn(f32) -> f32) {
    vectorized(
        #[inline(always)]
        || g.iter_mut().zip(x).for_each(|(g, x)| *g *= slope(*x)),
    );
}
