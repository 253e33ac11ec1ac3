//! The codes that run through the engine: u8, whatever the model's type is.

use crate::error::Result;
use crate::graph::{Graph, Var};
use crate::op::optional;
use crate::ops::quantize::{self, QuantizeLinear};
use crate::qparams::QParams;
use crate::scheme::{Format, Granularity};
use crate::tensor::Tensor;

/// `x = (q - zero) scale` for codes q in 0..=255. An int8 tensor with zero
/// point z is carried with its sign bit flipped and zero point z + 128.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Codes {
    /// One step.
    pub scale: f32,
    /// The code of 0.
    pub zero: i32,
}

impl Codes {
    /// The codes of per-tensor 8-bit parameters.
    pub fn of(params: &QParams) -> Option<Codes> {
        let offset = match params.scheme.format {
            Format::INT8 | Format::INT8_NARROW => 128,
            Format::UINT8 => 0,
            _ => return None,
        };
        if params.scheme.granularity != Granularity::Tensor {
            return None;
        }
        let (scale, zero) = (*params.scale.first()?, params.zero_point.first()? + offset);
        // A step must be usable as a divisor and its ratios as multipliers.
        (scale.is_normal() && scale > 0.0 && (0..=255).contains(&zero)).then_some(Codes { scale, zero })
    }

    /// `clamp(round_half_even(x / scale) + zero, 0, 255)`, NaN as zero.
    pub fn encode(self, x: f32) -> u8 {
        if x.is_nan() {
            return self.zero as u8;
        }
        ((x / self.scale).round_ties_even() + self.zero as f32).clamp(0.0, 255.0) as u8
    }

    /// `(q - zero) scale`.
    pub fn decode(self, q: u8) -> f32 {
        (i32::from(q) - self.zero) as f32 * self.scale
    }

    /// The table of `f` from these codes to `to`.
    pub fn table(self, to: Codes, f: impl Fn(f32) -> f32) -> [u8; 256] {
        std::array::from_fn(|q| to.encode(f(self.decode(q as u8))))
    }
}

/// The parameters of a Q or DQ node with constant scale and zero point.
/// `x` is the quantized side's type and the rank of the values.
pub fn constant_params(
    graph: &Graph,
    quantized: Var,
    place: (i64, usize),
    operands: &[Var],
) -> Result<Option<QParams>> {
    let constants: Option<Vec<&Tensor>> = operands[1..].iter().map(|v| graph.constant(*v)).collect();
    let Some(constants) = constants else { return Ok(None) };
    let fact = graph.fact(quantized);
    quantize::params(fact.rank(), fact.dtype, place, constants[0], optional(&constants, 1)).map(Some)
}

/// The codes that a QuantizeLinear node gives.
pub fn quantized_codes(
    graph: &Graph,
    q: &QuantizeLinear,
    made: Var,
    operands: &[Var],
) -> Result<Option<Codes>> {
    Ok(constant_params(graph, made, (q.axis, q.block), operands)?.as_ref().and_then(Codes::of))
}
