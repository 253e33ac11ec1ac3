//! Inputs made up.

use std::collections::BTreeMap;

use crate::error::{Error, Result, invalid};
use crate::graph::Graph;
use crate::op::{Dim, Fact};
use crate::tensor::{DType, Tensor, element_count};

/// Inputs for a measurement: f32 values drawn evenly from 0..1, always the
/// same; zeros of other types. A named dimension has the size that `sizes`
/// gives its name; else one that is the first of an input is `batch`, wherever it
/// appears, and others are 1.
///
/// # Errors
/// If `sizes` names a dimension that the model does not have, or a tensor
/// would be too large.
pub fn random_inputs(graph: &Graph, batch: usize, sizes: &BTreeMap<String, usize>) -> Result<Vec<Tensor>> {
    let named = |name: &String| {
        let mut dims = graph.inputs().flat_map(|(_, v)| &v.fact.shape);
        dims.any(|d| matches!(d, Dim::Named(n) if n == name))
    };
    if let Some(name) = sizes.keys().find(|name| !named(name)) {
        let dims = graph.inputs().flat_map(|(_, v)| &v.fact.shape);
        let names: Vec<String> = dims.filter(|d| d.known().is_none()).map(ToString::to_string).collect();
        let names = if names.is_empty() { "none".into() } else { names.join(", ") };
        return Err(invalid!("the model's inputs have no dimension named {name:?}; they have {names}"));
    }
    let mut sizes = sizes.clone();
    for (_, v) in graph.inputs() {
        if let Some(Dim::Named(first)) = v.fact.shape.first() {
            sizes.entry(first.clone()).or_insert(batch);
        }
    }
    graph.inputs().map(|(_, v)| random_input(&v.fact, &sizes).map_err(|e: Error| e.at(&v.name))).collect()
}

fn random_input(fact: &Fact, sizes: &BTreeMap<String, usize>) -> Result<Tensor> {
    let size = |d: &Dim| match d {
        Dim::Known(n) => *n,
        Dim::Named(name) => sizes.get(name).copied().unwrap_or(1),
    };
    let shape: Vec<usize> = fact.shape.iter().map(size).collect();
    let n = element_count(&shape)?;
    if fact.dtype != DType::F32 {
        return Tensor::from_bytes(fact.dtype, &shape, &vec![0; fact.dtype.bytes_of(n)]);
    }
    // xorshift32; the upper 24 bits are exact in f32.
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 24) as f32
    };
    Tensor::new(&shape, (0..n).map(|_| next()).collect())
}
