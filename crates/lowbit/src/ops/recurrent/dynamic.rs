//! Recurrent operators with weights in 8 bits, whose inputs and states are
//! quantized as they come.

use std::sync::Arc;

use super::coded::{PARAMETERS, quantized};
use super::{Cell, PackedWeights, Recurrent};
use crate::error::Result;
use crate::graph::Graph;
use crate::op::{Attributes, Fact, Op, ReadOp, Reading, arity, optional};
use crate::ops::symbolic;
use crate::tensor::{DType, Tensor};

pub(in crate::ops) const MICROSOFT_READERS: &[(&str, ReadOp)] = &[("DynamicQuantizeLSTM", |r| {
    let input_forget = r.flag("input_forget", false)?;
    DynamicRecurrent::read(r, Cell::Lstm { input_forget })
})];

pub(in crate::ops) const LOWBIT_READERS: &[(&str, ReadOp)] = &[
    ("DynamicQuantizeGRU", |r| {
        let linear_before_reset = r.flag("linear_before_reset", false)?;
        DynamicRecurrent::read(r, Cell::Gru { linear_before_reset })
    }),
    ("DynamicQuantizeRNN", |r| DynamicRecurrent::read(r, Cell::Rnn)),
];

/// onnxruntime's `DynamicQuantizeLSTM` (domain `com.microsoft`), and the same of
/// GRU and RNN (domain `lowbit`): a [`Recurrent`] in f32 whose W and R are in 8
/// bits, and whose products are of integers (docs/quantization.md, equation 20).
/// Files hold GRU and RNN as functions: other runtimes dequantize the weights and
/// compute in float.
///
/// The operands are those of the [`Recurrent`], with W `[D, I, G H]` and R
/// `[D, H, G H]` in int8 or uint8, and then the scale and the zero point of W and
/// those of R, each `[D]` or `[D, G H]`. The zero points of one direction are all
/// the same. Biases, states and results are in f32, and `batch_first` is false.
///
/// The inputs of all steps that any sequence has are quantized together. So are,
/// at each step, the states of the sequences that had the step before (at the
/// first one, of all), and of a GRU that resets before the product the reset
/// states of those that have the step. With `q(.)` for the quantized matrix, a
/// gate is computed as
///
/// ```text
/// (q(x) W + q(h) R) + (Wb + Rb)
/// ```
///
/// and the last gate of a GRU that resets after the product as
/// `(q(x) W + Wb) + r * (q(h) R + Rb)`, in f32 and in this order. Peepholes are
/// added to that.
///
/// onnxruntime 1.23 computes the same, but for its approximations of tanh and
/// sigmoid, and three choices: the last state of a sequence without steps is 0; the
/// states of several sequences may be quantized in as many groups as there are
/// threads; and those of sequences that ended count on where y is not asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicRecurrent(
    /// The operator in float.
    pub Recurrent,
);

impl DynamicRecurrent {
    fn read(r: &mut Reading, cell: Cell) -> Result<Arc<dyn Op>> {
        let op = DynamicRecurrent(Recurrent::from(r, cell)?);
        op.0.check_coded(op.name())?;
        Ok(Arc::new(op))
    }

    /// The weights among the operands, ready to be multiplied. Their types and
    /// shapes must be those that [`Op::infer`] asks for; others are
    /// not read.
    ///
    /// # Errors
    /// If zero points of one direction differ.
    pub(crate) fn pack(&self, operands: &[&Tensor]) -> Result<PackedWeights> {
        self.0.pack_coded(operands)
    }
}

impl Op for DynamicRecurrent {
    fn name(&self) -> &'static str {
        match self.0.cell {
            Cell::Lstm { .. } => "DynamicQuantizeLSTM",
            Cell::Gru { .. } => "DynamicQuantizeGRU",
            Cell::Rnn => "DynamicQuantizeRNN",
        }
    }

    fn domain(&self) -> &'static str {
        if matches!(self.0.cell, Cell::Lstm { .. }) { "com.microsoft" } else { "lowbit" }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let count = self.0.most_operands() + PARAMETERS.len();
        arity(inputs, count, count)?;
        self.0.infer_coded(self.name(), inputs)
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
        (self.domain() == "lowbit").then(|| self.0.coded_in_float(inputs))
    }

    fn macs(&self, inputs: &[&Fact], outputs: &[&Fact]) -> u64 {
        self.0.coded_macs(inputs, outputs)
    }
}

/// The [`DynamicRecurrent`] of the [`Recurrent`] `op`, and the operands that take
/// the place of its W `[D, G H, I]` and R `[D, G H, H]` or come behind its others:
/// their numbers and values. Codes are int8 without -128, symmetric, with a scale
/// for each gate and unit if `per_channel`, else for each direction.
///
/// `None` if `op` is no [`Recurrent`], or one that has no such form: with the
/// batch first, or with weights that are not f32.
///
/// # Errors
/// If the weights have not these shapes, or are not finite.
pub fn quantize_recurrent(
    op: &dyn Op,
    w: &Tensor,
    r: &Tensor,
    per_channel: bool,
) -> Result<Option<(DynamicRecurrent, Vec<(usize, Tensor)>)>> {
    let Some(op) = op.is::<Recurrent>().filter(|op| !op.batch_first) else { return Ok(None) };
    if w.dtype() != DType::F32 || r.dtype() != DType::F32 {
        return Ok(None);
    }
    let op = DynamicRecurrent(Recurrent { hidden: r.shape().last().copied(), ..op.clone() });
    let mut operands = vec![];
    for (i, t) in [w, r].into_iter().enumerate() {
        let first = op.0.most_operands() + 2 * i;
        let [codes, scale, zero] = quantized(t, per_channel)?;
        operands.extend([(1 + i, codes), (first, scale), (first + 1, zero)]);
    }
    Ok(Some((op, operands)))
}
