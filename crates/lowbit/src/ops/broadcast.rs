//! Multidirectional broadcasting, as ONNX and NumPy define it.

use super::reduce::{Reduce, Reduction};
use crate::error::{Result, invalid};
use crate::op::{Dim, Op};
use crate::tensor::Tensor;

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
            (Dim::Named(x), Dim::Named(y)) => Ok(Dim::Named(greater(&x, &y))),
            _ => Err(invalid!("shapes {a:?} and {b:?} do not broadcast")),
        })
        .collect()
}

/// `t` summed along the axes that an operand of shape `to` was stretched along:
/// what becomes of a gradient on the way back through broadcasting.
///
/// # Errors
/// If `to` does not broadcast to the shape of `t`.
pub fn summed_to(t: Tensor, to: &[usize]) -> Result<Tensor> {
    if t.shape() == to {
        return Ok(t);
    }
    let lead = t.rank().saturating_sub(to.len());
    let stretched = |&axis: &usize| axis < lead || to[axis - lead] != t.shape()[axis];
    let axes: Vec<i64> = (0..t.rank()).filter(stretched).map(|axis| axis as i64).collect();
    let sums = if axes.is_empty() { vec![t] } else { Reduce::new(Reduction::Sum, &axes).eval(&[&t])? };
    sums[0].reshaped(to)
}

/// The formula of the greater of two sizes: `max(..)` of all that either is the
/// greatest of, each once, in order, so that it does not grow with repetition.
fn greater(a: &str, b: &str) -> String {
    let mut of: Vec<&str> = terms(a);
    of.extend(terms(b));
    of.sort_unstable();
    of.dedup();
    if let [one] = of[..] { one.into() } else { format!("max({})", of.join(",")) }
}

/// The sizes that a formula is the greatest of: itself, unless it is a `max(..)`.
fn terms(formula: &str) -> Vec<&str> {
    let Some(inside) = formula.strip_prefix("max(").and_then(|f| f.strip_suffix(')')) else {
        return vec![formula];
    };
    let (mut depth, mut start, mut found) = (0usize, 0, vec![]);
    for (at, c) in inside.char_indices() {
        match c {
            '(' => depth += 1,
            // The parentheses are of two formulas: `max(a)+max(b)`.
            ')' if depth == 0 => return vec![formula],
            ')' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&inside[start..]);
    found
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_of_formulas_names_each_once() {
        for (a, b, want) in [
            ("N", "M", "max(M,N)"),
            ("max(M,N)", "N", "max(M,N)"),
            ("max(M,max(a,b))", "N", "max(M,N,max(a,b))"),
            ("max(f(x,y),N)", "max(N,f(x,y))", "max(N,f(x,y))"),
            ("max(a)+max(b)", "max(a)+max(b)", "max(a)+max(b)"),
        ] {
            assert_eq!(greater(a, b), want, "{a} {b}");
        }
    }
}
