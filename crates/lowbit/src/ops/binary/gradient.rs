//! Gradients of arithmetic, summed over what was broadcast.

use super::{Arithmetic, Variadic};
use crate::error::{Error, Result};
use crate::op::{Op, Reverse};
use crate::ops::broadcast::{map, summed_to};
use crate::ops::cast::cast;
use crate::tensor::{DType, Tensor};

/// With `g = dL / dy` and `y = f(a, b)`: `g df/da` and `g df/db`, each summed to
/// the shape of its operand. Of a power with a base that is not positive, only
/// the gradient by the base is defined.
pub(super) fn vjp(op: &Arithmetic, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let g = at.gradient()?;
    // The exponent of a power may be of another type.
    let b = &cast(at.inputs[1], DType::F32)?;
    let (a, y) = (at.inputs[0], at.outputs[0]);
    let constant = b.slice::<f32>()?.first().filter(|_| b.len() == 1);
    /// This expression of the gradient and of tensors.
    macro_rules! of {
        ($g:ident $(, $x:ident)* => $f:expr) => {
            map(g.shape(), [g $(, $x)*], #[inline(always)] |[$g $(, $x)*]| $f)
        };
    }
    at.each(|i| {
        let by = match (op, i) {
            (Arithmetic::Add | Arithmetic::Mod { .. }, 0) | (Arithmetic::Add, _) | (Arithmetic::Sub, 0) => {
                Ok(g.clone())
            }
            (Arithmetic::Sub, _) => of!(g => -g),
            (Arithmetic::Mul, 0) => of!(g, b => g * b),
            (Arithmetic::Mul, _) => of!(g, a => g * a),
            (Arithmetic::Div, 0) => of!(g, b => g / b),
            (Arithmetic::Div, _) => of!(g, b, y => -g * y / b),
            (Arithmetic::Pow, 0) => match constant {
                Some(2.0) => of!(g, a => 2.0 * g * a),
                Some(0.5) => of!(g, y => 0.5 * g / y),
                _ => of!(g, a, b => if b == 0.0 { 0.0 } else { g * b * libm::powf(a, b - 1.0) }),
            },
            (Arithmetic::Pow, _) => of!(g, a, y => if a > 0.0 { g * y * libm::logf(a) } else { 0.0 }),
            (Arithmetic::PRelu, 0) => of!(g, a, b => if a > 0.0 { g } else { g * b }),
            (Arithmetic::PRelu, _) => of!(g, a => if a > 0.0 { 0.0 } else { g * a }),
            (Arithmetic::Mod { .. }, _) => Err(Error::unsupported(op.name(), "the gradient by the divisor")),
        };
        summed_to(by?, at.inputs[i].shape())
    })
}

/// The gradient of a sum by each operand, of a mean a part of it; of the greatest
/// and the least that of the operands which are it, in equal parts.
pub(super) fn vjp_of_fold(op: Variadic, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let (g, y) = (at.gradient()?, at.outputs[0]);
    let part = match op {
        Variadic::Sum => g.clone(),
        Variadic::Mean => {
            let n = at.inputs.len() as f32;
            map(
                g.shape(),
                [g],
                #[inline(always)]
                |[g]| g / n,
            )?
        }
        Variadic::Max | Variadic::Min => {
            let mut count = Tensor::full(g.shape(), 0f32)?;
            for x in at.inputs {
                let with = map(
                    g.shape(),
                    [&count, x, y],
                    #[inline(always)]
                    |[n, x, y]| if x == y { n + 1.0 } else { n },
                )?;
                count = with;
            }
            map(
                g.shape(),
                [g, &count],
                #[inline(always)]
                |[g, n]| g / n,
            )?
        }
    };
    at.each(|i| {
        let own = match op {
            Variadic::Sum | Variadic::Mean => part.clone(),
            Variadic::Max | Variadic::Min => map(
                g.shape(),
                [&part, at.inputs[i], y],
                #[inline(always)]
                |[g, x, y]| if x == y { g } else { 0.0 },
            )?,
        };
        summed_to(own, at.inputs[i].shape())
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

    #[test]
    fn gradients_of_folds_are_those_of_differences() {
        let shapes: [&[&[usize]]; 3] = [&[&[4]], &[&[2, 5], &[5]], &[&[3, 1], &[3, 9], &[]]];
        let all = [Variadic::Sum, Variadic::Mean, Variadic::Max, Variadic::Min];
        // Operands do not come so close that differences change which is greater.
        check(all.iter().flat_map(|op| shapes.map(|s| Case::new(*op, s).apart(0.06))));
    }

    #[test]
    fn equal_operands_share_the_gradient() {
        let x = Tensor::vector(vec![1f32, 4.]);
        let other = Tensor::vector(vec![1f32, 2.]);
        let g = [Some(Tensor::vector(vec![1f32, 1.]))];
        let inputs = [&x, &other];
        let at = Reverse { inputs: &inputs, outputs: &[&x], gradients: &g, wanted: &[true, true] };
        let expected = [[0.5f32, 1.], [0.5, 0.]].map(|x| Some(Tensor::vector(x.to_vec())));
        assert_eq!(Variadic::Max.vjp(&at).unwrap(), expected);
    }
}
