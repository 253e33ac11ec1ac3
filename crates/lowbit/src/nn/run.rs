//! A model as a graph, and run as it is written.

use super::Scope;
use super::eager::{Fusion, Mode};
use super::module::Module;
use super::weights::Weights;
use crate::error::{Result, invalid};
use crate::graph::{Builder, Graph, Var};
use crate::op::Fact;
use crate::tensor::Tensor;

/// The model as a graph with these inputs. Parameters are constants named by their
/// paths, so that [`Graph::lift`] finds them; outputs are called `output`, or
/// `output_0`, `output_1` and so on. Stubs leave no trace.
///
/// # Errors
/// If an input does not fit, a parameter is missing, or the model asks for a value;
/// the error names the module.
pub fn trace(module: &dyn Module, weights: &Weights, inputs: &[(&str, Fact)]) -> Result<Graph> {
    let fusion = Fusion::default();
    traced(&mut Scope::new(Builder::default(), weights, &fusion, Mode::Float), module, inputs)
}

/// [`trace`] with parameters as further inputs, named by their paths: what modules make of
/// them is a part of the graph.
///
/// # Errors
/// As [`trace`].
pub(crate) fn trace_open(module: &dyn Module, weights: &Weights, inputs: &[(&str, Fact)]) -> Result<Graph> {
    let fusion = Fusion::default();
    let mut scope = Scope::new(Builder::default(), weights, &fusion, Mode::Float);
    scope.open = true;
    traced(&mut scope, module, inputs)
}

/// The outputs of the model for these inputs: operators run as modules apply them,
/// so that a module may decide by values ([`Scope::value`]).
///
/// # Errors
/// If an input does not fit, or a parameter is missing; the error names the module.
pub fn run(module: &dyn Module, weights: &Weights, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let fusion = Fusion::default();
    let mut scope = Scope::new(Builder::eager(), weights, &fusion, Mode::Float);
    run_in(&mut scope, module, inputs)
}

/// [`trace`] in a scope that says what is quantized.
pub(super) fn traced(scope: &mut Scope<'_>, module: &dyn Module, inputs: &[(&str, Fact)]) -> Result<Graph> {
    let inputs: Vec<Var> = inputs.iter().map(|(name, fact)| scope.b.input(name, fact.clone())).collect();
    let outputs = module.forward_all(scope, &inputs)?;
    let names = (0..outputs.len()).map(|i| match outputs.len() {
        1 => "output".to_string(),
        _ => format!("output_{i}"),
    });
    let outputs: Vec<(String, Var)> = names.zip(outputs.iter().copied()).collect();
    std::mem::take(&mut scope.b).finish(outputs)
}

/// [`run`] in an eager scope that says what is quantized.
pub(super) fn run_in(scope: &mut Scope<'_>, module: &dyn Module, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let given = inputs.iter().enumerate().map(|(i, t)| scope.b.given(&format!("input_{i}"), t.clone()));
    let inputs: Vec<Var> = given.collect();
    let outputs = module.forward_all(scope, &inputs)?;
    let value = |v: &Var| scope.b.value(*v).cloned().ok_or_else(|| invalid!("an output has no value"));
    outputs.iter().map(value).collect()
}
