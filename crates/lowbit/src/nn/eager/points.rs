//! Points by module path.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::observer::ObserverConfig;
use crate::op::Op;
use crate::qconfig::{QConfigMapping, Spec};
use crate::quantize::Point;
use crate::tensor::Tensor;

/// The points of a model, made as its modules are called for the first time.
#[derive(Clone, Debug)]
pub(in crate::nn) struct Points {
    pub mapping: QConfigMapping,
    pub all: Vec<Point>,
    /// The point of the output of each module.
    pub outputs: BTreeMap<String, usize>,
    /// The weights, by the paths of their modules.
    pub weights: BTreeMap<String, ObservedWeight>,
}

/// A weight that will be quantized.
#[derive(Clone, Debug)]
pub(in crate::nn) struct ObservedWeight {
    /// Its parameter's path.
    pub name: String,
    pub point: usize,
    /// Its channels.
    pub axis: usize,
    /// Whether its operator has a bias operand.
    pub takes_bias: bool,
    /// The points of what its module was given.
    pub inputs: BTreeSet<usize>,
}

impl Points {
    pub fn new(mapping: &QConfigMapping) -> Points {
        let (outputs, weights) = (BTreeMap::new(), BTreeMap::new());
        Points { mapping: mapping.clone(), all: vec![], outputs, weights }
    }

    /// The point of the output of the module at `path`, whose range is `fixed` or
    /// that of its values.
    pub fn output(&mut self, path: &str, spec: &Spec, fixed: Option<ObserverConfig>) -> Result<usize> {
        if let Some(point) = self.outputs.get(path) {
            return Ok(*point);
        }
        let spec = match fixed {
            Some(observer) => spec.clone().observed_by(observer),
            None => spec.clone(),
        };
        self.all.push(Point::of_activation(path, &spec).map_err(|e| e.at(path))?);
        self.outputs.insert(path.into(), self.all.len() - 1);
        Ok(self.all.len() - 1)
    }

    /// The point of the weight `name` of the module at `path`, which reads values of
    /// the point `input`.
    pub fn weight(
        &mut self,
        path: &str,
        (name, t): (&str, &Tensor),
        spec: &Spec,
        (op, axis, takes_bias): (&dyn Op, usize, bool),
        input: usize,
    ) -> Result<usize> {
        if let Some(weight) = self.weights.get_mut(path) {
            weight.inputs.insert(input);
            return Ok(weight.point);
        }
        self.all.push(Point::of_weight(name, t, spec, axis, op, || None)?);
        let (name, point, inputs) = (name.into(), self.all.len() - 1, BTreeSet::from([input]));
        self.weights.insert(path.into(), ObservedWeight { name, point, axis, takes_bias, inputs });
        Ok(point)
    }
}
