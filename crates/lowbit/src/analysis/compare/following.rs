//! Several models that run side by side, no further than their values are asked for.

use std::collections::HashMap;

use crate::error::{Error, Result, invalid};
use crate::graph::{Graph, Steps, Var};
use crate::tensor::Tensor;

/// The places of values: what a model's value is compared as.
pub(super) type Places = HashMap<Var, Vec<usize>>;

/// The places of these values, in their order.
pub(super) fn places(values: impl Iterator<Item = Var>) -> Places {
    let mut places = Places::new();
    for (place, v) in values.enumerate() {
        places.entry(v).or_default().push(place);
    }
    places
}

/// A run of a model, up to the last value that was asked for. If all models of a comparison are asked
/// for their values in one order, that of their evaluation, each holds what it needs to go on,
/// and nothing waits for its counterpart.
pub(super) struct Following<'a, W> {
    /// What errors call the model.
    model: &'static str,
    steps: Steps<'a, W>,
    places: &'a Places,
    /// Values that were computed before they were asked for.
    waiting: HashMap<usize, Tensor>,
}

/// A run of `graph`, whose inputs, or the first of them, are `inputs`.
///
/// # Errors
/// If an input does not fit.
pub(super) fn follow<'a>(
    model: &'static str,
    graph: &'a Graph,
    inputs: Vec<Tensor>,
    places: &'a Places,
) -> Result<Following<'a, impl Fn(Var) -> bool + 'a>> {
    let steps = graph.steps(|v| places.contains_key(&v));
    let mut following = Following { model, steps, places, waiting: HashMap::new() };
    inputs.into_iter().enumerate().try_for_each(|(i, x)| following.give(i, x))?;
    Ok(following)
}

impl<W: Fn(Var) -> bool> Following<'_, W> {
    /// Gives the input of index `i` its value.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn give(&mut self, i: usize, x: Tensor) -> Result<()> {
        self.steps.give(i, x).map_err(|e| e.at(self.model))
    }

    /// The value of a place, once.
    ///
    /// # Errors
    /// If an operator fails, or the model has no such value.
    pub fn value(&mut self, place: usize) -> Result<Tensor> {
        let failed = |e: Error| e.at(self.model);
        loop {
            if let Some(value) = self.waiting.remove(&place) {
                return Ok(value);
            }
            let next = self.steps.advance().map_err(failed)?;
            let (v, value) = next.ok_or_else(|| failed(invalid!("a value was not computed")))?;
            self.waiting.extend(self.places[&v].iter().map(|place| (*place, value.clone())));
        }
    }
}
