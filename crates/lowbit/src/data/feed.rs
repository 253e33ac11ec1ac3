//! Batches as a graph takes them.

use super::dataset::{Batch, Batches, Dataset};
use crate::error::{Result, invalid};
use crate::graph::Graph;
use crate::op::Dim;
use crate::tensor::Tensor;

impl Dataset {
    /// The samples as the inputs of `graph`, `batch` at a time or as many as it fixes.
    pub fn tensors<'a>(
        &'a self,
        graph: &'a Graph,
        batch: usize,
    ) -> impl Iterator<Item = Result<Vec<Tensor>>> + Send + use<'a> {
        self.batches(batch_size(graph, batch)).tensors(graph)
    }
}

impl<'a> Batches<'a> {
    /// The batches as the inputs of `graph`.
    pub fn tensors(self, graph: &'a Graph) -> impl Iterator<Item = Result<Vec<Tensor>>> + Send + use<'a> {
        self.map(|batch| inputs_of(graph, &batch?))
    }
}

/// The tensors of a batch in the order of a graph's inputs: by name, or the
/// only tensor for the only input.
///
/// # Errors
/// If an input has no tensor; the error names it.
pub fn inputs_of(graph: &Graph, batch: &Batch) -> Result<Vec<Tensor>> {
    if let ([(_, only)], 1) = (batch.inputs.as_slice(), graph.inputs().len()) {
        return Ok(vec![only.clone()]);
    }
    let given = |name: &str| batch.inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
    let inputs = graph.inputs().map(|(_, value)| {
        given(&value.name).ok_or_else(|| {
            let names: Vec<&str> = batch.inputs.iter().map(|(n, _)| n.as_str()).collect();
            invalid!("the data has no array for it; it has {}", names.join(", "))
                .at(format!("input {}", value.name))
        })
    });
    inputs.collect()
}

/// The number of samples that a batch has: `wanted`, or what the model fixes.
pub fn batch_size(graph: &Graph, wanted: usize) -> usize {
    let fixed = graph.inputs().find_map(|(_, v)| v.fact.shape.first().and_then(Dim::known));
    fixed.unwrap_or(wanted).max(1)
}
