//! Recurrent operators with weights in 8 bits, whose inputs and states are
//! quantized as they come.

use std::sync::Arc;

use super::matrix::{Packed, PackedCodes};
use super::{Cell, PackedWeights, Recurrent};
use crate::error::{Error, Result, invalid};
use crate::graph::{Builder, Graph, Var};
use crate::op::{Attributes, Dim, Fact, Op, ReadOp, Reading, arity, optional, optional_fact};
use crate::ops::binary::Arithmetic;
use crate::ops::cast::Cast;
use crate::ops::layout::Transpose;
use crate::ops::shape::Reshape;
use crate::ops::{float, symbolic};
use crate::qparams::{QParams, Range};
use crate::scheme::{Format, Granularity, Mapping, Scheme};
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

/// Names of the operands of a [`Recurrent`].
const OPERANDS: [&str; 8] = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"];
/// Names of the operands behind these.
const PARAMETERS: [&str; 4] = ["W_scale", "W_zero_point", "R_scale", "R_zero_point"];

impl DynamicRecurrent {
    fn read(r: &mut Reading, cell: Cell) -> Result<Arc<dyn Op>> {
        let op = DynamicRecurrent(Recurrent::from(r, cell)?);
        op.check_layout()?;
        Ok(Arc::new(op))
    }

    fn check_layout(&self) -> Result<()> {
        match self.0.batch_first {
            true => Err(Error::unsupported(self.name(), "attribute layout = 1")),
            false => Ok(()),
        }
    }

    /// Where the scale of W is among the operands.
    fn first_parameter(&self) -> usize {
        self.0.most_operands()
    }

    /// The operator with its weights dequantized, and nothing else quantized.
    fn in_float(&self, inputs: &[&Fact]) -> Result<Graph> {
        let first = self.first_parameter();
        let mut b = Builder::default();
        let names = OPERANDS[..first].iter().chain(&PARAMETERS);
        let given: Vec<Var> = names.zip(inputs).map(|(name, f)| b.input(name, (*f).clone())).collect();
        // `[D]` or `[D, G H]` along the axes of `[D, depth, G H]`.
        let along = b.constant("along", Tensor::vector(vec![0i64, 1, -1]));
        let mut operands = given[..first].to_vec();
        for i in [1, 2] {
            let name = |part: &str| format!("{}_{part}", OPERANDS[i]);
            let (scale, zero) = (given[first + 2 * (i - 1)], given[first + 2 * (i - 1) + 1]);
            let real = Arc::new(Cast { to: DType::F32 });
            let codes = b.apply(&name("codes"), real.clone(), &[given[i]])?;
            let zero = b.apply(&name("zero"), real, &[zero])?;
            let zero = b.apply(&name("zeros"), Arc::new(Reshape::default()), &[zero, along])?;
            let scale = b.apply(&name("scales"), Arc::new(Reshape::default()), &[scale, along])?;
            let steps = b.apply(&name("steps"), Arc::new(Arithmetic::Sub), &[codes, zero])?;
            let values = b.apply(&name("values"), Arc::new(Arithmetic::Mul), &[steps, scale])?;
            let turned = Transpose { perm: Some(vec![0, 2, 1]) };
            operands[i] = b.apply(&name("f32"), Arc::new(turned), &[values])?;
        }
        let outputs = &["Y", "Y_h", "Y_c"][..1 + self.0.states()];
        let made = b.apply_all(self.0.name(), Arc::new(self.0.clone()), &operands, outputs)?;
        b.finish(outputs.iter().map(|name| name.to_string()).zip(made))
    }

    /// The weights among the operands, ready to be multiplied. Their types and
    /// shapes must be those that [`Op::infer`] asks for; others are
    /// not read.
    ///
    /// # Errors
    /// If zero points of one direction differ.
    pub(crate) fn pack(&self, operands: &[&Tensor]) -> Result<PackedWeights> {
        let (op, first) = (&self.0, self.first_parameter());
        let (directions, gates) = (op.direction.count(), op.cell.gates());
        let [w, r] = [1, 2].map(|i| Coded::new(operands, i, first + 2 * (i - 1), directions));
        let (w, r) = (w?, r?);
        let floats = |i: usize| optional(operands, i).filter(|_| i < first).map(float::read).transpose();
        let sizes = [w.depth, r.depth];
        op.layers(sizes, [floats(3)?, floats(7)?], |d| Ok((w.packed(d, gates)?, r.packed(d, gates)?)))
    }
}

/// Codes of the weights of all directions, `[direction][depth][gate, unit]`.
struct Coded<'a> {
    name: &'static str,
    codes: Vec<i8>,
    depth: usize,
    columns: usize,
    scale: &'a [f32],
    zero: Vec<i32>,
    directions: usize,
}

impl<'a> Coded<'a> {
    /// Operand `i`, whose scale is operand `scale`.
    fn new(operands: &[&'a Tensor], i: usize, scale: usize, directions: usize) -> Result<Coded<'a>> {
        let [weights, scales, zeros] = [i, scale, scale + 1].map(|i| operands[i]);
        let &[_, depth, columns] = weights.shape() else {
            return Err(invalid!("weights must have 3 dimensions, found {:?}", weights.shape()));
        };
        // uint8 is carried as int8, with its sign bit flipped.
        let (codes, offset) = match weights.dtype() {
            DType::U8 => (weights.slice::<u8>()?.iter().map(|q| (q ^ 0x80).cast_signed()).collect(), 128),
            _ => (weights.slice::<i8>()?.to_vec(), 0),
        };
        let zero = zeros.integers()?.iter().map(|z| *z as i32 - offset).collect();
        let name = ["W", "R"][i - 1];
        Ok(Coded { name, codes, depth, columns, scale: scales.slice()?, zero, directions })
    }

    /// The matrices of direction `d`, one for each gate.
    fn packed(&self, d: usize, gates: usize) -> Result<Vec<Packed>> {
        let zeros =
            &self.zero[d * (self.zero.len() / self.directions)..][..self.zero.len() / self.directions];
        let zero = zeros.first().copied().unwrap_or(0);
        if zeros.iter().any(|z| *z != zero) {
            return Err(invalid!("{}_zero_point has several values in direction {d}", self.name));
        }
        let scale =
            &self.scale[d * (self.scale.len() / self.directions)..][..self.scale.len() / self.directions];
        let of_direction = &self.codes[d * self.depth * self.columns..][..self.depth * self.columns];
        let hidden = self.columns / gates;
        let gate = |gate: usize| {
            let columns = gate * hidden..(gate + 1) * hidden;
            let codes: Vec<i8> = columns
                .clone()
                .flat_map(|n| of_direction[n..].iter().step_by(self.columns).take(self.depth).copied())
                .collect();
            let scale = if scale.len() == 1 { &vec![scale[0]; hidden] } else { &scale[columns] };
            Packed::Codes(PackedCodes::new(&codes, zero, scale))
        };
        Ok((0..gates).map(gate).collect())
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
        let first = self.first_parameter();
        arity(inputs, first + 4, first + 4)?;
        self.check_layout()?;
        for i in (0..first).filter(|i| *i != 4) {
            let Some(f) = optional_fact(inputs, i) else { continue };
            let weight = i == 1 || i == 2;
            if weight && !matches!(f.dtype, DType::I8 | DType::U8) || !weight && f.dtype != DType::F32 {
                return Err(Error::unsupported(self.name(), format!("input {i} of type {}", f.dtype)));
            }
        }
        let sizes = self.0.sizes(&inputs[..first], true)?;
        let columns = symbolic::product([&Dim::Known(self.0.cell.gates()), &sizes.hidden]);
        let directions = Dim::Known(self.0.direction.count());
        for (i, name) in (first..).zip(PARAMETERS) {
            let dtype = if name.ends_with("scale") { DType::F32 } else { inputs[1 + (i - first) / 2].dtype };
            let shapes = [vec![directions.clone()], vec![directions.clone(), columns.clone()]];
            if inputs[i].dtype != dtype || !shapes.contains(&inputs[i].shape) {
                let found = inputs[i];
                return Err(invalid!(
                    "{name} must be {dtype}[{directions}] or {dtype}[{directions},{columns}], found {found}"
                ));
            }
        }
        for (i, name) in [(1, "W"), (2, "R")] {
            if let Some(depth) = inputs[i].shape[1].known()
                && depth > lowbit_kernels::Weights::MOST_CODES
            {
                let most = lowbit_kernels::Weights::MOST_CODES;
                return Err(invalid!("{name} sums {depth} products, more than the {most} that fit 32 bits"));
            }
        }
        Ok(self.0.results(inputs[0], sizes))
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.infer(&symbolic::facts(inputs).iter().collect::<Vec<_>>())?;
        let others = [4, 5, 6].map(|i| optional(&inputs[..self.first_parameter()], i));
        self.0.run(&self.pack(inputs)?, inputs[0], others)
    }

    fn attributes(&self) -> Attributes {
        self.0.attributes()
    }

    fn function(&self, inputs: &[&Fact]) -> Option<Result<Graph>> {
        (self.domain() == "lowbit").then(|| self.in_float(inputs))
    }

    fn macs(&self, inputs: &[&Fact], outputs: &[&Fact]) -> u64 {
        let depth = |i: usize| inputs[i].shape.get(1).and_then(Dim::known).unwrap_or(1);
        let of_each = self.0.cell.gates().saturating_mul(depth(1).saturating_add(depth(2)));
        outputs[0].elements().saturating_mul(of_each as u64)
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
        let first = op.first_parameter() + 2 * i;
        let [codes, scale, zero] = quantized(t, per_channel)?;
        operands.extend([(1 + i, codes), (first, scale), (first + 1, zero)]);
    }
    Ok(Some((op, operands)))
}

/// Codes of `t`, `[direction][column][depth]`, with the last two axes exchanged,
/// their scales and zero points.
fn quantized(t: &Tensor, per_channel: bool) -> Result<[Tensor; 3]> {
    let &[directions, columns, depth] = t.shape() else {
        return Err(invalid!("weights of a recurrent layer have 3 dimensions, found {:?}", t.shape()));
    };
    let groups = if per_channel { directions * columns } else { directions };
    let x = t.slice::<f32>()?;
    let range = |x: &[f32]| {
        let found = lowbit_kernels::Kernels::best().min_max(x);
        if found.has_nan {
            Err(invalid!("a weight is NaN"))
        } else {
            Range::new(found.min.min(0.0), found.max.max(0.0))
        }
    };
    let ranges: Vec<Range> = (0..groups)
        .map(|g| range(&x[g * (x.len() / groups)..][..x.len() / groups]))
        .collect::<Result<_>>()?;
    let scheme = Scheme::new(Format::INT8_NARROW, Mapping::Symmetric).with(Granularity::Axis(0));
    let params = QParams::from_ranges(scheme, &ranges)?;
    let rows = params.quantize(&t.reshaped(&[groups, x.len() / groups.max(1)])?)?;
    let codes = super::permuted(&rows.reshaped(&[directions, columns, depth])?, &[0, 2, 1])?;
    let shape: &[usize] = if per_channel { &[directions, columns] } else { &[directions] };
    let (scale, zero) = params.operands();
    Ok([codes, scale.reshaped(shape)?, zero.reshaped(shape)?])
}

#[cfg(test)]
mod tests;
