//! What a model consists of.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::error::Result;
use crate::graph::{Graph, Kind, Var};
use crate::op::optional;
use crate::ops::quantize::{DequantizeLinear, params};
use crate::qparams::QParams;
use crate::tensor::Tensor;

/// What a model consists of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Name and type of each input, symbolic dimensions by name.
    pub inputs: Vec<(String, String)>,
    /// Name and type of each output.
    pub outputs: Vec<(String, String)>,
    /// How many nodes each operator has.
    pub operators: BTreeMap<String, usize>,
    /// Elements of the stored tensors of two or more dimensions and of their
    /// biases: everything that is stored but the scales and zero points.
    pub parameters: u64,
    /// Bytes of the stored tensors by element type.
    pub bytes: BTreeMap<String, u64>,
    /// Multiply-accumulate operations for one sample (symbolic dimensions
    /// counted as 1).
    pub macs: u64,
}

impl Summary {
    /// The summary of `graph`.
    pub fn of(graph: &Graph) -> Summary {
        let typed = |name: &str, v: Var| (name.to_string(), graph.fact(v).to_string());
        let mut operators = BTreeMap::new();
        let mut scales: BTreeSet<Var> = BTreeSet::new();
        for (_, _, op, inputs) in graph.applied() {
            *operators.entry(op.name().to_string()).or_insert(0) += 1;
            if matches!(op.name(), "QuantizeLinear" | "DequantizeLinear") {
                scales.extend(&inputs[1..]);
            }
        }
        let (mut parameters, mut bytes) = (0, BTreeMap::new());
        for (v, t) in graph.nodes().filter_map(|(v, _)| Some((v, graph.constant(v)?))) {
            if t.is_empty() {
                continue;
            }
            *bytes.entry(t.dtype().to_string()).or_insert(0) += t.byte_len() as u64;
            if !scales.contains(&v) {
                parameters += t.len() as u64;
            }
        }
        Summary {
            inputs: graph.inputs().map(|(v, value)| typed(&value.name, v)).collect(),
            outputs: graph.outputs().map(|(name, v)| typed(name, v)).collect(),
            operators,
            parameters,
            bytes,
            macs: graph.macs(),
        }
    }

    /// Bytes of all stored tensors.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.values().sum()
    }
}

/// Whether quantized values are stored or computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Computed in each run.
    Activation,
    /// Stored, of two or more dimensions.
    Weight,
    /// Stored in 32 bits.
    Bias,
}

/// A value that a Q/DQ graph quantizes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quantized {
    /// The dequantized value's name.
    pub value: String,
    /// Stored or computed.
    pub place: Place,
    /// Format, mapping and what shares a scale.
    pub scheme: String,
    /// The scales: one, or one for each channel or block.
    pub scale: Vec<f32>,
    /// The zero points, as many.
    pub zero_point: Vec<i32>,
    /// The least value that a code stands for, over all scales.
    pub lo: f32,
    /// The greatest one.
    pub hi: f32,
}

impl Quantized {
    /// The quantized values of a graph, in evaluation order: one for each
    /// DequantizeLinear whose scale is a constant.
    ///
    /// # Errors
    /// If scale and zero point do not fit the value; the error names the node.
    pub fn all(graph: &Graph) -> Result<Vec<Quantized>> {
        let mut found = vec![];
        for (v, node) in graph.nodes() {
            let Kind::Apply { op, inputs } = &node.kind else { continue };
            let Some(dq) = op.is::<DequantizeLinear>() else { continue };
            let operands: Option<Vec<&Tensor>> = inputs[1..].iter().map(|v| graph.constant(*v)).collect();
            let Some(operands) = operands else { continue };
            let fact = graph.fact(inputs[0]);
            let zero = optional(&operands, 1);
            let params = params(fact.rank(), fact.dtype, (dq.axis, dq.block), operands[0], zero);
            let place = match graph.constant(inputs[0]) {
                None => Place::Activation,
                Some(t) if t.dtype().bits() == 32 => Place::Bias,
                Some(_) => Place::Weight,
            };
            let name = graph.value(v).name.clone();
            found.push(Quantized::new(name, place, params.map_err(|e| e.at(&node.name))?));
        }
        Ok(found)
    }

    fn new(value: String, place: Place, params: QParams) -> Quantized {
        let (least, greatest) = params.scheme.bounds();
        let end = |code: i32| {
            let zeros = params.zero_point.iter();
            params.scale.iter().zip(zeros).map(move |(s, z)| (f64::from(code) - f64::from(*z)) as f32 * s)
        };
        Quantized {
            value,
            place,
            scheme: params.scheme.to_string(),
            lo: end(least).fold(f32::INFINITY, f32::min),
            hi: end(greatest).fold(f32::NEG_INFINITY, f32::max),
            scale: params.scale,
            zero_point: params.zero_point,
        }
    }

    /// Whether several scales serve the value.
    pub fn is_per_channel(&self) -> bool {
        self.scale.len() > 1
    }
}

#[cfg(test)]
mod tests;
