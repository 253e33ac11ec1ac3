//! A model that is calibrated by being called.

use super::points::{ObservedWeight, Points};
use super::{Fused, Mode, Quantized};
use crate::error::{Error, Result, invalid};
use crate::graph::{Builder, Graph};
use crate::nn::Scope;
use crate::nn::module::{Module, join, named_modules};
use crate::nn::run::{run_in, traced};
use crate::op::Fact;
use crate::qconfig::{QConfigMapping, Target};
use crate::qtensor::{QTensor, Stored};
use crate::quantize::{Finding, Point, Settled, Symptom};
use crate::tensor::Tensor;

/// A model whose modules show their outputs to points.
#[derive(Clone, Debug)]
pub struct Prepared<M> {
    module: M,
    fused: Fused,
    points: Points,
}

/// Prepares a model for calibration: the module at a path is quantized as the last
/// rule says that matches the path (or the operator type) of the module.
///
/// # Errors
/// If a rule by name matches no module, quantizes activations to codes that do not fill
/// their type, by the ranges of each run, or not at all: [`trace`](crate::nn::trace) the model for these.
pub fn prepare<M: Module>(module: M, fused: Fused, mapping: &QConfigMapping) -> Result<Prepared<M>> {
    let modules = named_modules(&module);
    for rule in &mapping.rules {
        let place = || format!("rule {}", rule.target);
        let named = matches!(rule.target, Target::Name(_) | Target::Regex(_));
        if named && !modules.iter().any(|(path, _)| rule.target.matches_module(path, "")) {
            return Err(invalid!("matches no module of the model").at(place()));
        }
        let Some(config) = &rule.qconfig else { continue };
        let Some(activation) = config.observed() else {
            return Err(invalid!(
                "eager mode quantizes activations by ranges found while calibrating; for others, trace the \
                 model and quantize the graph (quantize_dynamic, or quantize::prepare)"
            )
            .at(place()));
        };
        if activation.inputs_only {
            return Err(Error::unsupported(
                "eager mode",
                "inputs-only: its points are those of outputs; trace the model and quantize the graph",
            )
            .at(place()));
        }
        // A zero point's type says what codes there are.
        let (least, greatest) = activation.scheme(None).saturating().bounds();
        let range = activation.format.dtype().integer_range();
        if range.is_some_and(|range| range != (least.into(), greatest.into())) {
            return Err(Error::unsupported(
                "eager mode",
                format!("{}, whose codes do not fill their type, for activations", activation.scheme(None)),
            )
            .at(place()));
        }
    }
    Ok(Prepared { module, fused, points: Points::new(mapping) })
}

impl<M: Module> Prepared<M> {
    /// Calls the model with a batch, and shows its values to the points. Returns the
    /// outputs, which are those of the float model.
    ///
    /// # Errors
    /// If the batch does not fit, a value is NaN, or a stub is missing; the error
    /// names the module.
    pub fn observe(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let Fused { weights, fusion } = &self.fused;
        let mode = Mode::Observed(&mut self.points);
        run_in(&mut Scope::new(Builder::eager(), weights, fusion, mode), &self.module, inputs)
    }

    /// The model.
    pub fn module(&self) -> &M {
        &self.module
    }

    /// The points of modules' outputs and weights that have been called so far.
    pub fn points(&self) -> &[Point] {
        &self.points.all
    }

    /// The model as a graph with its points: graph mode's form of it.
    ///
    /// # Errors
    /// As [`trace`](crate::nn::trace).
    pub fn trace(&self, inputs: &[(&str, Fact)]) -> Result<crate::quantize::Prepared> {
        let (Fused { weights, fusion }, mut points) = (&self.fused, self.points.clone());
        let mode = Mode::Observed(&mut points);
        let mut scope = Scope::new(Builder::default(), weights, fusion, mode);
        let graph: Graph = traced(&mut scope, &self.module, inputs)?;
        Ok(crate::quantize::Prepared::watching(graph, points.all))
    }

    /// The quantized model: weights as codes, and scale and zero point for each
    /// module's output. Weights are rounded, and biases corrected, as in graph mode.
    ///
    /// # Errors
    /// If a point saw no value; the error names it.
    pub fn convert(self) -> Result<(Quantized<M>, Vec<Finding>)> {
        let Prepared { module, fused: Fused { mut weights, fusion }, points } = self;
        let mut findings = vec![];
        for (path, weight) in &points.weights {
            let settled = settled(&points, weight, path, &weights)?;
            if !settled.enlarged.is_empty() {
                findings.push(Finding::new(path, Symptom::BiasOverflow { channels: settled.enlarged }));
            }
            let Some(t) = settled.values.as_ref().or(weights.get(&weight.name)) else { continue };
            let params = settled.grid.steps()?.clone();
            let codes = QTensor::quantize(t, params).map_err(|e| e.at(&weight.name))?;
            weights.store(weight.name.clone(), Stored::Quantized(codes));
            if let Some(bias) = settled.bias {
                weights.insert(join(path, "bias"), Tensor::vector(bias));
            }
        }
        for (path, point) in &points.outputs {
            let point = &points.all[*point];
            for r in point.observer.ranges()?.iter().filter(|r| r.lo == r.hi) {
                findings.push(Finding::constant(path, r.lo));
            }
            weights.set_output_params(path, &point.params().map_err(|e| e.at(path))?);
        }
        Ok((Quantized::new(module, Fused { weights, fusion }), findings))
    }
}

/// The codes' steps of a weight, and its bias.
fn settled(
    points: &Points,
    weight: &ObservedWeight,
    path: &str,
    weights: &crate::nn::Weights,
) -> Result<Settled> {
    let point = &points.all[weight.point];
    let t = weights.get(&weight.name).ok_or_else(|| invalid!("the weights lack it").at(&weight.name))?;
    let bias = weights.get(&join(path, "bias")).map(Tensor::to_f32).transpose()?;
    // The bias has to fit beside the least of the input scales.
    let mut x_scale: Option<f32> = None;
    for input in &weight.inputs {
        let scale = points.all[*input].params()?.scale[0];
        x_scale = Some(x_scale.map_or(scale, |least| least.min(scale)));
    }
    let beside = x_scale.filter(|_| weight.takes_bias).map(|scale| (scale, bias.as_deref()));
    Settled::new(point, point.grid().map_err(|e| e.at(&point.name))?, t, weight.axis, beside)
}
