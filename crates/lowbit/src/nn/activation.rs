//! Functions of one element, and softmax.

use super::init::Init;
use super::module::{Fusing, Module, Parameter};
use super::scope::Scope;
use crate::error::{Result, invalid};
use crate::graph::Var;
use crate::ops::binary::Arithmetic;
use crate::ops::clip::Clip;
use crate::ops::softmax::Softmax as SoftmaxOp;
use crate::ops::unary::Unary;

/// Modules without parameters that are one operator.
macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr),* }
        => |$m:ident| $op:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> $name {
                $name { $($field: $default),* }
            }
        }

        impl Module for $name {
            fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
                let $m = self;
                g.layer($op, &[x])
            }
        }
    )*};
}

functions! {
    /// `min(max(x, 0), 6)`
    ReLU6 {} => |_m| Clip::new(0.0, 6.0);
    /// `x` where positive, else `negative_slope x`
    LeakyReLU {
        /// Slope for negative values.
        negative_slope: f32 = 0.01
    } => |m| Unary::LeakyRelu { alpha: m.negative_slope };
    /// `x` where positive, else `alpha (exp(x) - 1)`
    ELU {
        /// Negative limit.
        alpha: f32 = 1.0
    } => |m| Unary::Elu { alpha: m.alpha };
    /// `x / 2 (1 + erf(x / sqrt(2)))`
    GELU {
        /// Whether it is approximated by tanh.
        tanh: bool = false
    } => |m| Unary::Gelu { tanh: m.tanh };
    /// `x min(max(x + 3, 0), 6) / 6`
    Hardswish {} => |_m| Unary::HardSwish;
    /// `min(max(x + 3, 0), 6) / 6`
    Hardsigmoid {} => |_m| Unary::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 };
    /// `1 / (1 + exp(-x))`
    Sigmoid {} => |_m| Unary::Sigmoid;
    /// Hyperbolic tangent.
    Tanh {} => |_m| Unary::Tanh;
    /// `exp(x) / sum(exp(x))` along an axis.
    Softmax {
        /// The axis.
        dim: i64 = -1
    } => |m| SoftmaxOp::new(m.dim);
    /// The logarithm of [`Softmax`].
    LogSoftmax {
        /// The axis.
        dim: i64 = -1
    } => |m| SoftmaxOp { log: true, ..SoftmaxOp::new(m.dim) };
}

/// `max(x, 0)`
#[derive(Clone, Debug, Default)]
pub struct ReLU;

impl Module for ReLU {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        g.layer(Unary::Relu, &[x])
    }

    fn fusing(&self) -> Fusing {
        Fusing::Relu
    }
}

/// `x / (1 + exp(-x))`
#[derive(Clone, Debug, Default)]
pub struct SiLU;

impl Module for SiLU {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let gate = g.sigmoid(x)?;
        g.mul(x, gate)
    }
}

/// `x` where positive, else `weight[c] x` for channels c of axis 1. Parameter: weight,
/// `[1]` or `[C]`.
#[derive(Clone, Debug)]
pub struct PReLU {
    slopes: usize,
}

impl Default for PReLU {
    fn default() -> PReLU {
        PReLU::new(1)
    }
}

impl PReLU {
    /// With one slope, or one for each channel.
    pub fn new(slopes: usize) -> PReLU {
        PReLU { slopes }
    }
}

impl Module for PReLU {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let mut slope = g.parameter("weight")?;
        let rank = g.fact(x).rank();
        if self.slopes > 1 && rank < 2 {
            return Err(invalid!("has {} slopes, and its input no channels", self.slopes).at(g.place()));
        }
        if self.slopes > 1 && rank > 2 {
            let shape: Vec<i64> = std::iter::once(-1).chain(std::iter::repeat_n(1, rank - 2)).collect();
            slope = g.reshape(slope, &shape)?;
        }
        g.layer(Arithmetic::PRelu, &[x, slope])
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("weight", &[self.slopes], Init::Full(0.25))]
    }
}
