//! What conversion decides, as a float model to train on from.

use std::collections::HashMap;

use super::point::Role;
use super::prepare::Prepared;
use crate::error::Result;
use crate::graph::Graph;
use crate::op::Op;
use crate::ops::quantize::DequantizeLinear;
use crate::qparams::QParams;
use crate::tensor::Tensor;

impl Prepared {
    /// The float model that conversion would store: weights as the codes that were
    /// chosen for them stand for, biases corrected and rounded; and the same points
    /// over it, those of weights with the scales found. Converted as it is, it gives
    /// the same model: training ([`crate::train::Qat`]) begins with what calibration
    /// reached. `float` is the graph that was prepared.
    ///
    /// # Errors
    /// As [`Prepared::convert`].
    pub fn settled(&self, float: &Graph) -> Result<(Prepared, Graph)> {
        let converted = self.convert()?.graph;
        let mut stored: HashMap<String, Stored> = HashMap::new();
        for (v, _, op, inputs) in converted.applied() {
            let constants: Option<Vec<&Tensor>> = inputs.iter().map(|v| converted.constant(*v)).collect();
            let (Some(op), Some(constants)) = (op.is::<DequantizeLinear>(), constants) else { continue };
            let Some(name) = converted.value(v).name.strip_suffix("_dq") else { continue };
            let zero = constants.get(2).map_or(Ok(vec![0]), |zero| zero.integers())?;
            let values = op.eval(&constants)?.remove(0);
            stored.insert(name.into(), Stored { values, scale: constants[1].to_f32()?, zero });
        }
        let fits = |name: &str, t: &Tensor| {
            let stored = stored.get(name).map(|s| &s.values)?;
            (stored.shape() == t.shape()).then_some(stored)
        };
        let params = self.points().iter().map(|point| match (point.role, stored.get(&point.name)) {
            (Role::Weight, Some(Stored { scale, zero, .. })) => {
                let zero = (0..scale.len()).map(|i| zero[i % zero.len()] as i32).collect();
                QParams::new(point.scheme, scale.clone(), zero).map(Some)
            }
            _ => Ok(None),
        });
        let params: Vec<Option<QParams>> = params.collect::<Result<_>>()?;
        let constant = |graph: &Graph, name: &str| {
            graph.find(name).and_then(|v| graph.constant(v)).and_then(|t| fits(name, t))
        };
        let prepared = self.trained(|name| constant(self.graph(), name), params)?;
        Ok((prepared, float.with_constants(|name| constant(float, name))?))
    }
}

/// A constant as it is stored.
struct Stored {
    values: Tensor,
    scale: Vec<f32>,
    zero: Vec<i64>,
}
