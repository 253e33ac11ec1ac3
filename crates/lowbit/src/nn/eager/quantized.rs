//! A quantized model.

use std::path::Path;

use super::Mode;
use super::fuse::{Fused, Fusion};
use super::place::SCALAR;
use crate::error::{Result, invalid};
use crate::graph::{Builder, Graph};
use crate::nn::Scope;
use crate::nn::module::{Module, Parameter, join, named_modules, named_parameters};
use crate::nn::run::{run_in, traced};
use crate::nn::weights::{Weights, output_names};
use crate::op::Fact;
use crate::qparams::QParams;
use crate::qtensor::{self, QTensor, Stored};
use crate::tensor::Tensor;

/// A model with weights in codes, whose modules quantize their outputs.
#[derive(Clone, Debug)]
pub struct Quantized<M> {
    module: M,
    fused: Fused,
}

impl<M: Module> Quantized<M> {
    pub(super) fn new(module: M, fused: Fused) -> Quantized<M> {
        Quantized { module, fused }
    }

    /// Calls the model: each value is what the integers stand for, computed in f32
    /// (the reference; [`Quantized::trace`] and
    /// [`Session::compile`](crate::session::Session::compile) compute in integers).
    ///
    /// # Errors
    /// If an input does not fit, or a stub is missing; the error names the module.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let Fused { weights, fusion } = &self.fused;
        let mut scope = Scope::new(Builder::eager(), weights, fusion, Mode::Quantized);
        run_in(&mut scope, &self.module, inputs)
    }

    /// The model as a Q/DQ graph.
    ///
    /// # Errors
    /// As [`trace`](crate::nn::trace).
    pub fn trace(&self, inputs: &[(&str, Fact)]) -> Result<Graph> {
        let Fused { weights, fusion } = &self.fused;
        let mut scope = Scope::new(Builder::default(), weights, fusion, Mode::Quantized);
        traced(&mut scope, &self.module, inputs)
    }

    /// The weight of the module at `path`, if it is quantized.
    pub fn weight(&self, path: &str) -> Option<&QTensor> {
        self.fused.weights.quantized(&join(path, "weight"))
    }

    /// The bias of the module at `path`.
    pub fn bias(&self, path: &str) -> Option<&Tensor> {
        self.fused.weights.get(&join(path, "bias"))
    }

    /// Scale and zero point of the output of the module at `path`, if it is quantized.
    ///
    /// # Errors
    /// If they are malformed.
    pub fn output(&self, path: &str) -> Result<Option<QParams>> {
        self.fused.weights.output_params(path)
    }

    /// Everything that [`Quantized::save`] writes.
    pub fn weights(&self) -> &Weights {
        &self.fused.weights
    }

    /// Writes a safetensors file: weights as codes with their scales
    /// ([`qtensor::save`]), `path.scale` and `path.zero_point` for the outputs of
    /// modules, and what stays in float.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.fused.weights.save(path)
    }

    /// Reads what [`Quantized::save`] wrote, for the same module with the same groups
    /// of fused modules.
    ///
    /// # Errors
    /// If the file cannot be read, or is not that of such a model: the error lists
    /// what is missing, unexpected, or of another shape.
    pub fn load(path: &Path, module: M, groups: &[&[&str]]) -> Result<Quantized<M>> {
        let fusion = Fusion::new(&module, groups)?;
        let mut weights = Weights::default();
        for (name, stored) in qtensor::load(path)? {
            weights.store(name, stored);
        }
        check(&module, &fusion, &weights).map_err(|e| e.at(path.display().to_string()))?;
        Ok(Quantized { module, fused: Fused { weights, fusion } })
    }
}

fn check(module: &dyn Module, fusion: &Fusion, weights: &Weights) -> Result<()> {
    let paths: Vec<String> = named_modules(module).into_iter().map(|(path, _)| path).collect();
    let gone = |p: &Parameter| {
        paths.iter().any(|path| {
            fusion.head_of(path).is_some()
                && p.name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'))
        })
    };
    let wanted: Vec<Parameter> = named_parameters(module).into_iter().filter(|p| !gone(p)).collect();
    let added = |name: &str| {
        paths.iter().any(|path| {
            let bias = name == join(path, "bias") && weights.quantized(&join(path, "weight")).is_some();
            let outputs = [path.clone(), join(path, SCALAR)];
            bias || outputs.iter().any(|output| output_names(output).iter().any(|n| n == name))
        })
    };
    weights.check_against(&wanted, added)?;
    for path in &paths {
        let [scale, zero] = output_names(path).map(|name| weights.get(&name).is_some());
        if scale != zero {
            return Err(invalid!("a scale needs a zero point, and the reverse").at(path));
        }
        weights.output_params(path)?;
    }
    let strange = weights.iter().find(|(name, stored)| {
        matches!(stored, Stored::Quantized(_)) && !wanted.iter().any(|p| p.name == *name)
    });
    match strange {
        Some((name, _)) => Err(invalid!("is quantized, and no weight of the module").at(name)),
        None => Ok(()),
    }
}
