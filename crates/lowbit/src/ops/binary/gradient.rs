//! Gradients of arithmetic, summed over what was broadcast.

use super::Arithmetic;
use crate::error::{Error, Result};
use crate::op::{Op, Reverse};
use crate::ops::{broadcast, strided};
use crate::tensor::Tensor;

/// With `g = dL / dy` and `y = f(a, b)`: `g df/da` and `g df/db`, each summed to
/// the shape of its operand. Of a power with a base that is not positive, only
/// the gradient by the base is defined.
pub(super) fn vjp(op: &Arithmetic, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let g = at.gradient()?;
    let (a, b, y) = (at.inputs[0], at.inputs[1], at.outputs[0]);
    let of = |i: usize, f: fn(f32, [f32; 3]) -> f32| -> Result<Tensor> {
        let a = strided::stretched(a, g.shape())?;
        let b = strided::stretched(b, g.shape())?;
        let (a, b, y) = (a.slice::<f32>()?, b.slice::<f32>()?, y.slice::<f32>()?);
        let each = g.slice::<f32>()?.iter().zip(a).zip(b).zip(y);
        let by = each.map(|(((&g, &a), &b), &y)| f(g, [a, b, y])).collect();
        broadcast::summed_to(Tensor::new(g.shape(), by)?, at.inputs[i].shape())
    };
    let same = |i: usize| broadcast::summed_to(g.clone(), at.inputs[i].shape());
    at.each(|i| match (op, i) {
        (Arithmetic::Add, _) | (Arithmetic::Sub, 0) => same(i),
        (Arithmetic::Sub, _) => of(i, |g, _| -g),
        (Arithmetic::Mul, 0) => of(i, |g, [_, b, _]| g * b),
        (Arithmetic::Mul, _) => of(i, |g, [a, ..]| g * a),
        (Arithmetic::Div, 0) => of(i, |g, [_, b, _]| g / b),
        (Arithmetic::Div, _) => of(i, |g, [_, b, y]| -g * y / b),
        (Arithmetic::Pow, 0) => of(i, |g, [a, b, _]| if b == 0.0 { 0.0 } else { g * b * a.powf(b - 1.0) }),
        (Arithmetic::Pow, _) => of(i, |g, [a, _, y]| if a > 0.0 { g * y * a.ln() } else { 0.0 }),
        (Arithmetic::PRelu, 0) => of(i, |g, [a, b, _]| if a < 0.0 { g * b } else { g }),
        (Arithmetic::PRelu, _) => of(i, |g, [a, ..]| if a < 0.0 { g * a } else { 0.0 }),
        (Arithmetic::Mod { .. }, 0) => same(i),
        (Arithmetic::Mod { .. }, _) => Err(Error::unsupported(op.name(), "the gradient by the divisor")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{Case, check};

    #[test]
    fn gradients_are_those_of_differences() {
        let ops = [Arithmetic::Add, Arithmetic::Sub, Arithmetic::Mul, Arithmetic::Div, Arithmetic::PRelu];
        let shapes: [[&[usize]; 2]; 4] =
            [[&[2, 3], &[2, 3]], [&[2, 3], &[3]], [&[2, 3], &[2, 1]], [&[3], &[]]];
        let cases = ops.iter().flat_map(|op| shapes.iter().map(move |s| Case::new(*op, s)));
        // Positive operands for powers, far from zero for quotients.
        let powers = shapes.iter().map(|s| Case::new(Arithmetic::Pow, s).between(0.5, 2.0));
        let cube = Case::new(Arithmetic::Pow, &[&[4]]).and(Tensor::scalar(3f32));
        check(cases.map(|c| c.away_from_zero(0.5)).chain(powers).chain([cube]));
    }
}
