//! Recurrent operators with weights in 8 bits, whose inputs and states have steps
//! that are known beforehand.

use std::sync::Arc;

use super::coded::{PARAMETERS, STEPS};
use super::matrix::Step;
use super::{Activation, Cell, PackedWeights, Recurrent};
use crate::error::{Result, invalid};
use crate::graph::Graph;
use crate::op::{Attributes, Fact, Op, ReadOp, Reading, arity, optional};
use crate::ops::symbolic;
use crate::tensor::{DType, Tensor};

pub(in crate::ops) const READERS: &[(&str, ReadOp)] = &[
    ("QuantizedLSTM", |r| {
        let input_forget = r.flag("input_forget", false)?;
        QuantizedRecurrent::read(r, Cell::Lstm { input_forget })
    }),
    ("QuantizedGRU", |r| {
        let linear_before_reset = r.flag("linear_before_reset", false)?;
        QuantizedRecurrent::read(r, Cell::Gru { linear_before_reset })
    }),
    ("QuantizedRNN", |r| QuantizedRecurrent::read(r, Cell::Rnn)),
];

/// `QuantizedLSTM`, `QuantizedGRU` and `QuantizedRNN` (domain `lowbit`): a
/// [`DynamicRecurrent`](super::DynamicRecurrent) that quantizes x and h by steps
/// that it is given (docs/quantization.md, equation 28).
///
/// The operands are those of the [`DynamicRecurrent`](super::DynamicRecurrent),
/// and then x_scale, x_zero_point, h_scale and h_zero_point: scalars, the zero
/// points int8 or uint8. x is in f32; what a DequantizeLinear of the same step
/// gives gets its codes back. h and the reset state of a GRU share a step. First
/// states, biases, peepholes and results are in f32. What lies outside the codes is
/// the nearest of them in the products only.
///
/// Files hold it as a function, which other runtimes run: x and the weights are
/// dequantized, and the layer computes in float, without rounding h.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedRecurrent(
    /// The operator in float.
    pub Recurrent,
);

impl QuantizedRecurrent {
    fn read(r: &mut Reading, cell: Cell) -> Result<Arc<dyn Op>> {
        let op = QuantizedRecurrent(Recurrent::from(r, cell)?);
        op.0.check_coded(op.name())?;
        Ok(Arc::new(op))
    }

    /// Where x_scale is among the operands.
    fn first_step(&self) -> usize {
        self.0.most_operands() + PARAMETERS.len()
    }

    /// The weights and the steps among the operands, ready to be multiplied. Their
    /// types and shapes must be those that [`Op::infer`] asks for; others are
    /// not read.
    ///
    /// # Errors
    /// If zero points of one direction differ, or a scale is not a positive number.
    pub(crate) fn pack(&self, operands: &[&Tensor]) -> Result<PackedWeights> {
        let mut packed = self.0.pack_coded(operands)?;
        for (k, step) in packed.steps.iter_mut().enumerate() {
            let [scale, zero] = [0, 1].map(|i| self.first_step() + 2 * k + i);
            *step = Some(step_of(STEPS[2 * k], operands[scale], operands[zero])?);
        }
        Ok(packed)
    }
}

/// The step of these operands, in uint8.
fn step_of(name: &str, scale: &Tensor, zero: &Tensor) -> Result<Step> {
    let scale = scale.item::<f32>()?;
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(invalid!("{name} = {scale} must be positive and finite"));
    }
    let zero = match zero.dtype() {
        DType::U8 => i32::from(zero.item::<u8>()?),
        _ => i32::from(zero.item::<i8>()?) + 128,
    };
    Ok(Step { scale, zero })
}

impl Op for QuantizedRecurrent {
    fn name(&self) -> &'static str {
        match self.0.cell {
            Cell::Lstm { .. } => "QuantizedLSTM",
            Cell::Gru { .. } => "QuantizedGRU",
            Cell::Rnn => "QuantizedRNN",
        }
    }

    fn domain(&self) -> &'static str {
        "lowbit"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let first = self.first_step();
        arity(inputs, first + STEPS.len(), first + STEPS.len())?;
        for (name, found) in STEPS.iter().zip(&inputs[first..]) {
            let (fits, types) = match name.ends_with("scale") {
                true => (found.dtype == DType::F32, "f32"),
                false => (matches!(found.dtype, DType::U8 | DType::I8), "uint8 or int8"),
            };
            if !fits || found.rank() != 0 {
                return Err(invalid!("{name} must be a scalar of type {types}, found {found}"));
            }
        }
        self.0.infer_coded(self.name(), &inputs[..first])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.infer(&symbolic::facts(inputs).iter().collect::<Vec<_>>())?;
        let others = [4, 5, 6].map(|i| optional(&inputs[..self.0.most_operands()], i));
        self.0.run(&self.pack(inputs)?, inputs[0], others)
    }

    fn attributes(&self) -> Attributes {
        self.0.attributes()
    }

    fn function(&self, inputs: &[&Fact]) -> Option<Result<Graph>> {
        Some(self.0.coded_in_float(inputs))
    }

    fn macs(&self, inputs: &[&Fact], outputs: &[&Fact]) -> u64 {
        self.0.coded_macs(inputs, outputs)
    }
}

/// What is known of the values that a [`Recurrent`] quantizes as h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateRange {
    /// They lie in -1 to 1, if the first state does.
    Unit,
    /// They lie in the range of the results and 0, if the first state does.
    OfResults,
    /// Reset states may be greater than the results.
    Unknown,
}

impl Recurrent {
    /// What the ranges of its functions say of h.
    pub(crate) fn state_range(&self) -> StateRange {
        let share = |f: &Activation| matches!(f, Activation::Sigmoid | Activation::HardSigmoid { .. });
        let unit = |f: &Activation| share(f) || matches!(f, Activation::Tanh | Activation::Softsign);
        let of_each = self.activations.chunks(self.cell.functions().len());
        let of_each = of_each.map(|f| match self.cell {
            Cell::Lstm { .. } if unit(&f[0]) && unit(&f[2]) => StateRange::Unit,
            Cell::Rnn if unit(&f[0]) => StateRange::Unit,
            Cell::Gru { .. } if share(&f[0]) && unit(&f[1]) => StateRange::Unit,
            Cell::Gru { linear_before_reset: false } if !share(&f[0]) => StateRange::Unknown,
            _ => StateRange::OfResults,
        });
        of_each.max_by_key(|range| *range as u8).unwrap_or(StateRange::Unknown)
    }
}
