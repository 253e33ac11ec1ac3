//! Operators that run graphs: branches and loops.
//!
//! The values that a body captures from the graphs around it are the last
//! operands of its node and the last inputs of the body. Files name them only
//! inside the body.

mod branch;
mod repeat;
mod scan;

pub use branch::If;
pub(crate) use branch::taken;
pub use repeat::{Loop, settled};
pub(crate) use scan::element;
pub use scan::{Scan, Track};

use super::layout::Concat;
use crate::error::{Result, invalid};
use crate::graph::Graph;
use crate::op::{Dim, Fact, Op};
use crate::tensor::{DType, Tensor, element_count};

/// The outputs of a body.
fn run(body: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    body.run_watched(inputs, |_| false, |_, _, _| Ok(()))
}

/// The facts of a graph's inputs.
fn input_facts(body: &Graph) -> Vec<Fact> {
    body.inputs().map(|(_, v)| v.fact.clone()).collect()
}

/// The facts of a graph's outputs.
fn output_facts(body: &Graph) -> Vec<Fact> {
    body.outputs().map(|(_, v)| body.fact(v).clone()).collect()
}

/// The body for inputs of these facts; nothing if it is that already.
fn at_facts(body: &Graph, facts: &[Fact]) -> Result<Option<Graph>> {
    match body.inputs().map(|(_, v)| &v.fact).eq(facts) {
        true => Ok(None),
        false => body.at_facts(facts).map(Some),
    }
}

/// What is known of the input `what` of a body, made for `old`, when it is
/// given `new`.
///
/// # Errors
/// If they are of different types or ranks.
fn given(old: &Fact, new: &Fact, what: &str) -> Result<Fact> {
    if (old.dtype, old.rank()) != (new.dtype, new.rank()) {
        return Err(invalid!("{what} is {old} in the body and {new} outside"));
    }
    let dim = |(old, new): (&Dim, &Dim)| match (old, new) {
        (Dim::Known(_), Dim::Named(_)) => old.clone(),
        _ => new.clone(),
    };
    let shape = old.shape.iter().zip(&new.shape).map(dim).collect();
    let sizes = new.sizes.clone().or_else(|| old.sizes.clone());
    Ok(new.with_shape(shape).with_sizes(sizes))
}

/// The facts of the captured inputs of `body` for these operands.
fn given_captured(body: &Graph, operands: &[&Fact]) -> Result<Vec<Fact>> {
    let from = body.inputs().len() - operands.len();
    let inputs = body.inputs().skip(from);
    inputs.zip(operands).map(|((_, old), new)| given(&old.fact, new, &old.name)).collect()
}

/// A size inside a body as it is known outside: one that only the body can
/// know is unknown.
fn outside(d: &Dim, operands: &[&Fact]) -> Dim {
    let inner = matches!(d, Dim::Named(name) if name.contains("any("));
    let known = || operands.iter().any(|f| f.shape.contains(d) || f.sizes.iter().flatten().any(|s| s == d));
    if inner && !known() { Dim::unknown() } else { d.clone() }
}

/// The shape of `fact`, inside a body, as it is known outside.
fn outside_shape(fact: &Fact, operands: &[&Fact]) -> Vec<Dim> {
    fact.shape.iter().map(|d| outside(d, operands)).collect()
}

/// Checks that a condition may be one boolean.
fn check_condition(fact: &Fact) -> Result<()> {
    let one = fact.shape.iter().all(|d| d.known().is_none_or(|n| n == 1));
    if fact.dtype == DType::Bool && one {
        return Ok(());
    }
    Err(invalid!("the condition is {fact}, not one boolean"))
}

/// Values of one shape joined along a new axis `axis`; no values where `empty`
/// gives the shape of one.
///
/// # Errors
/// If the shapes differ, or that of no values is not known.
fn stacked(parts: &[Tensor], axis: i64, empty: impl FnOnce() -> Result<Fact>) -> Result<Tensor> {
    let Some(first) = parts.first() else {
        let one = empty()?;
        let shape = one.known_shape().ok_or_else(|| {
            invalid!("no iteration was run, and the shape {one} of what one would give is not known")
        })?;
        let shape = with_axis(&shape, axis, 0)?;
        element_count(&shape)?;
        return Tensor::from_bytes(one.dtype, &shape, &[]);
    };
    if let Some(other) = parts.iter().find(|t| (t.dtype(), t.shape()) != (first.dtype(), first.shape())) {
        return Err(invalid!("iterations give values of shape {:?} and {:?}", first.shape(), other.shape()));
    }
    let shape = with_axis(first.shape(), axis, 1)?;
    let parts = parts.iter().map(|t| t.reshaped(&shape)).collect::<Result<Vec<_>>>()?;
    Ok(Concat { axis }.eval(&parts.iter().collect::<Vec<_>>())?.remove(0))
}

/// A shape with one more dimension of size `n`, which is then at `axis`.
fn with_axis<T: Clone>(shape: &[T], axis: i64, n: T) -> Result<Vec<T>> {
    let mut shape = shape.to_vec();
    shape.insert(super::axis::one(axis, shape.len() + 1)?, n);
    Ok(shape)
}

#[cfg(test)]
mod tests;
