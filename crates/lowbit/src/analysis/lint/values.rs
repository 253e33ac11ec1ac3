//! How the values around a node are quantized.

use std::collections::{HashMap, HashSet};

use crate::graph::{Graph, Kind, Var};
use crate::op::Op;
use crate::ops::clip::Clip;
use crate::ops::quantize::{DequantizeLinear, QuantizeLinear, params};
use crate::ops::unary::Unary;
use crate::qparams::QParams;
use crate::tensor::{DType, Tensor};

/// Operators that quantization moves through, down from a DequantizeLinear and up from a
/// QuantizeLinear, in every runtime.
const MOVES: &[&str] =
    &["Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"];

/// Whether an operator only moves values.
pub fn moves(op: &dyn Op) -> bool {
    MOVES.contains(&op.name())
}

/// A graph with the readers of each of its values.
pub struct Values<'a> {
    pub graph: &'a Graph,
    readers: HashMap<Var, Vec<Var>>,
    outputs: HashSet<Var>,
}

/// What a node reads.
pub enum Operand {
    /// Nothing: the model leaves the operand out.
    Absent,
    /// A float value, or one that is no number to quantize, such as a shape.
    Plain(DType),
    /// A dequantized value.
    Codes(Codes),
}

/// The codes that a DequantizeLinear reads.
pub struct Codes {
    /// The dequantized value.
    pub dequantized: Var,
    /// Element type of the codes.
    pub dtype: DType,
    /// Whether they are stored, or those of a stored value.
    pub constant: bool,
    /// Scale and zero point; none if the model computes them.
    pub params: Option<QParams>,
    /// Whether something moves the values between.
    pub moved: bool,
}

/// What becomes of a node's output.
pub enum Output {
    /// It is quantized to codes of this type, behind activation functions that the codes imply.
    Codes(DType),
    /// It is quantized behind this activation function, which the codes do not imply.
    Behind(String),
    /// It is read in float.
    Float,
}

impl<'a> Values<'a> {
    pub fn of(graph: &'a Graph) -> Values<'a> {
        let mut readers: HashMap<Var, Vec<Var>> = HashMap::new();
        for (v, _, _, inputs) in graph.applied() {
            inputs.iter().for_each(|x| readers.entry(*x).or_default().push(v));
        }
        Values { graph, readers, outputs: graph.outputs().map(|(_, v)| v).collect() }
    }

    /// Who reads `v`.
    pub fn readers(&self, v: Var) -> &[Var] {
        self.readers.get(&v).map_or(&[], Vec::as_slice)
    }

    fn op(&self, v: Var) -> Option<(&'a dyn Op, &'a [Var])> {
        match &self.graph.node(v).kind {
            Kind::Apply { op, inputs } => Some((&**op, inputs)),
            _ => None,
        }
    }

    /// What `v` is to the node that reads it.
    pub fn operand(&self, v: Var) -> Operand {
        let fact = self.graph.fact(v);
        if fact.is_absent() {
            return Operand::Absent;
        }
        let (mut from, mut moved) = (v, false);
        while let Some((op, inputs)) = self.op(from)
            && moves(op)
        {
            (from, moved) = (inputs[0], true);
        }
        match self.codes(from) {
            Some(codes) => Operand::Codes(Codes { moved, ..codes }),
            None => Operand::Plain(fact.dtype),
        }
    }

    /// The codes that `v` is dequantized from.
    pub fn codes(&self, v: Var) -> Option<Codes> {
        let (op, inputs) = self.graph.made_by::<DequantizeLinear>(v)?;
        let fact = self.graph.fact(inputs[0]);
        let constant = self.graph.constant(inputs[0]).is_some()
            || self
                .graph
                .made_by::<QuantizeLinear>(inputs[0])
                .is_some_and(|(_, x)| self.graph.constant(x[0]).is_some());
        let params = self.params(&inputs[1..], fact.rank(), fact.dtype, (op.axis, op.block));
        Some(Codes { dequantized: v, dtype: fact.dtype, constant, params, moved: false })
    }

    fn params(&self, operands: &[Var], rank: usize, dtype: DType, placed: (i64, usize)) -> Option<QParams> {
        let stored = |v: &Var| self.graph.constant(*v);
        let scale: &Tensor = operands.first().and_then(stored)?;
        let zero = operands.get(1).filter(|v| !self.graph.fact(**v).is_absent());
        let zero = match zero {
            Some(v) => Some(stored(v)?),
            None => None,
        };
        params(rank, dtype, placed, scale, zero).ok()
    }

    /// What becomes of `v`.
    pub fn output(&self, v: Var) -> Output {
        let readers = self.readers(v);
        if self.outputs.contains(&v) || readers.is_empty() {
            return Output::Float;
        }
        let quantized = |r: &Var| self.graph.made_by::<QuantizeLinear>(*r).is_some_and(|(_, x)| x[0] == v);
        if readers.iter().all(quantized) {
            return Output::Codes(self.graph.fact(readers[0]).dtype);
        }
        let [reader] = readers else { return Output::Float };
        match self.op(*reader) {
            Some((op, _)) if moves(op) => self.output(*reader),
            Some((op, _)) if bounds(op).is_some() => match self.output(*reader) {
                Output::Codes(dtype) if self.implies(*reader, op) => Output::Codes(dtype),
                Output::Codes(_) => Output::Behind(op.name().into()),
                other => other,
            },
            _ => Output::Float,
        }
    }

    /// Whether the codes that `v` is quantized to stand for nothing outside of the bounds of the
    /// activation function `op`, which makes it.
    pub fn implies(&self, v: Var, op: &dyn Op) -> bool {
        let Some((lo, hi)) = bounds(op) else { return false };
        let mut v = v;
        loop {
            let [reader] = self.readers(v) else { return false };
            if let Some((q, x)) = self.graph.made_by::<QuantizeLinear>(*reader) {
                let codes = self.graph.fact(*reader);
                let params = self.params(&x[1..], codes.rank(), codes.dtype, (q.axis, q.block));
                let Some(params) = params else { return false };
                let (least, greatest) = params.scheme.bounds();
                let real = |code: i32, i: usize| {
                    (f64::from(code) - f64::from(params.zero_point[i])) as f32 * params.scale[i]
                };
                return (0..params.scale.len()).all(|i| real(least, i) >= lo && real(greatest, i) <= hi);
            }
            v = *reader;
        }
    }
}

/// The least and the greatest value that an activation function gives, if it clamps.
fn bounds(op: &dyn Op) -> Option<(f32, f32)> {
    if op.is::<Unary>() == Some(&Unary::Relu) {
        return Some((0.0, f32::INFINITY));
    }
    let clip = op.is::<Clip>().filter(|c| !c.dynamic)?;
    let bound = |t: &Option<Tensor>, none: f32| match t {
        Some(t) => t.to_f32().ok()?.first().copied(),
        None => Some(none),
    };
    Some((bound(&clip.min, f32::NEG_INFINITY)?, bound(&clip.max, f32::INFINITY)?))
}
