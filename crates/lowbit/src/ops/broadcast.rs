//! Multidirectional broadcasting, as ONNX and NumPy define it.

use crate::error::{Result, invalid};
use crate::op::Dim;

/// The shape that `a` and `b` broadcast to: aligned at the last dimension, 1
/// stretches to any size.
///
/// # Errors
/// If two fixed sizes differ and neither is 1.
pub fn shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, x) | (x, 1) => Ok(x),
            _ => Err(invalid!("shapes {a:?} and {b:?} do not broadcast")),
        })
        .collect()
}

/// [`shape`] for facts: a named dimension against a fixed one other than 1 is
/// taken to be equal to it.
///
/// # Errors
/// If two fixed sizes differ and neither is 1.
pub fn dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let one = Dim::Known(1);
    let at = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map_or(one.clone(), |i| s[i].clone());
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (x, y) if x == one => Ok(y),
            (x, y) if y == one => Ok(x),
            (x @ Dim::Known(_), Dim::Named(_)) | (Dim::Named(_), x @ Dim::Known(_)) => Ok(x),
            (Dim::Named(x), Dim::Named(y)) => Ok(Dim::Named(format!("max({x},{y})"))),
            _ => Err(invalid!("shapes {a:?} and {b:?} do not broadcast")),
        })
        .collect()
}

/// For each index of `to`, in order, the index in `from` that broadcasts to it.
pub fn offsets(from: &[usize], to: &[usize]) -> Vec<usize> {
    let mut offsets = vec![0];
    for (i, &size) in to.iter().enumerate() {
        let own = (i + from.len()).checked_sub(to.len()).map_or(1, |i| from[i]);
        let step = |o: &usize| {
            let o = o * own;
            (0..size).map(move |j| if own == 1 { o } else { o + j })
        };
        offsets = offsets.iter().flat_map(step).collect();
    }
    offsets
}
