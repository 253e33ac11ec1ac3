//! What recurrent operators with weights in 8 bits share, however their inputs
//! and states are quantized.

use std::sync::Arc;

use super::matrix::{Packed, PackedCodes};
use super::{PackedWeights, Recurrent};
use crate::error::{Error, Result, invalid};
use crate::graph::{Builder, Graph, Var};
use crate::op::{Dim, Fact, Op, optional, optional_fact};
use crate::ops::binary::Arithmetic;
use crate::ops::cast::Cast;
use crate::ops::layout::Transpose;
use crate::ops::quantize::{DequantizeLinear, QuantizeLinear};
use crate::ops::shape::Reshape;
use crate::ops::{float, symbolic};
use crate::qparams::{QParams, Range};
use crate::scheme::{Format, Granularity, Mapping, Scheme};
use crate::tensor::{DType, Tensor};

/// Names of the operands of a [`Recurrent`].
const OPERANDS: [&str; 8] = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"];
/// Names of the operands behind these.
pub(super) const PARAMETERS: [&str; 4] = ["W_scale", "W_zero_point", "R_scale", "R_zero_point"];

/// Names of the operands behind these, where x and h have steps of their own.
pub(super) const STEPS: [&str; 4] = ["x_scale", "x_zero_point", "h_scale", "h_zero_point"];

impl Recurrent {
    /// Checks the types and shapes of the operands of `name`, this operator with
    /// coded weights, and gives those of its results.
    pub(super) fn infer_coded(&self, name: &str, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let first = self.most_operands();
        self.check_coded(name)?;
        for i in (0..first).filter(|i| *i != 4) {
            let Some(f) = optional_fact(inputs, i) else { continue };
            let weight = i == 1 || i == 2;
            if weight && !matches!(f.dtype, DType::I8 | DType::U8) || !weight && f.dtype != DType::F32 {
                return Err(Error::unsupported(name, format!("input {i} of type {}", f.dtype)));
            }
        }
        let sizes = self.sizes(&inputs[..first], true)?;
        let columns = symbolic::product([&Dim::Known(self.cell.gates()), &sizes.hidden]);
        let directions = Dim::Known(self.direction.count());
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
        Ok(self.results(inputs[0], sizes))
    }

    /// Refuses what `name`, this operator with coded weights, has not.
    pub(super) fn check_coded(&self, name: &str) -> Result<()> {
        match self.batch_first {
            true => Err(Error::unsupported(name, "attribute layout = 1")),
            false => Ok(()),
        }
    }

    /// The multiply-accumulates with coded weights.
    pub(super) fn coded_macs(&self, inputs: &[&Fact], outputs: &[&Fact]) -> u64 {
        let depth = |i: usize| inputs[i].shape.get(1).and_then(Dim::known).unwrap_or(1);
        let of_each = self.cell.gates().saturating_mul(depth(1).saturating_add(depth(2)));
        outputs[0].elements().saturating_mul(of_each as u64)
    }

    /// The operator with its weights dequantized, and X quantized and dequantized
    /// if its step is among the operands.
    pub(super) fn coded_in_float(&self, inputs: &[&Fact]) -> Result<Graph> {
        let first = self.most_operands();
        let mut b = Builder::default();
        let names = OPERANDS[..first].iter().chain(&PARAMETERS).chain(&STEPS);
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
        if let Some(&[scale, zero]) = given.get(first + PARAMETERS.len()..).and_then(|steps| steps.get(..2)) {
            let codes = b.apply("X_codes", Arc::new(QuantizeLinear::default()), &[given[0], scale, zero])?;
            operands[0] = b.apply("X_f32", Arc::new(DequantizeLinear::default()), &[codes, scale, zero])?;
        }
        let outputs = &["Y", "Y_h", "Y_c"][..1 + self.states()];
        let made = b.apply_all(self.name(), Arc::new(self.clone()), &operands, outputs)?;
        b.finish(outputs.iter().map(|name| name.to_string()).zip(made))
    }

    /// The coded weights among the operands, ready to be multiplied. Their types
    /// and shapes must be those that [`Recurrent::infer_coded`] asks for; others
    /// are not read.
    ///
    /// # Errors
    /// If zero points of one direction differ.
    pub(super) fn pack_coded(&self, operands: &[&Tensor]) -> Result<PackedWeights> {
        let first = self.most_operands();
        let (directions, gates) = (self.direction.count(), self.cell.gates());
        let [w, r] = [1, 2].map(|i| Coded::new(operands, i, first + 2 * (i - 1), directions));
        let (w, r) = (w?, r?);
        let floats = |i: usize| optional(operands, i).filter(|_| i < first).map(float::read).transpose();
        let sizes = [w.depth, r.depth];
        self.layers(sizes, [floats(3)?, floats(7)?], |d| Ok((w.packed(d, gates)?, r.packed(d, gates)?)))
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

/// Codes of `t`, `[direction][column][depth]`, with the last two axes exchanged,
/// their scales and zero points.
pub(super) fn quantized(t: &Tensor, per_channel: bool) -> Result<[Tensor; 3]> {
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
