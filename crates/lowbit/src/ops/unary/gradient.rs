//! Derivatives of functions of one element.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use lowbit_kernels::{erf, exp, sigmoid, tanh};

use super::Unary;
use crate::error::Result;
use crate::op::Reverse;
use crate::ops::broadcast;
use crate::tensor::Tensor;

/// With `g = dL / dy` and `y = f(x)`: `g f'(x)`. At a corner, the derivative to
/// the left of it; nothing for functions of steps, whose derivative is 0.
pub(super) fn vjp(f: Unary, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
    let (g, x, y) = (at.gradient()?, at.inputs[0], at.outputs[0]);
    /// `g` times this expression of the operand.
    macro_rules! of_x {
        ($x:ident => $slope:expr) => {
            broadcast::map(
                g.shape(),
                [g, x],
                #[inline(always)]
                |[g, $x]| g * $slope,
            )
        };
    }
    /// `g` times this expression of the operand and the value.
    macro_rules! of_both {
        ($x:ident, $y:ident => $slope:expr) => {
            broadcast::map(
                g.shape(),
                [g, x, y],
                #[inline(always)]
                |[g, $x, $y]| g * $slope,
            )
        };
    }
    /// `g` times this expression of the value.
    macro_rules! of_y {
        ($y:ident => $slope:expr) => {
            broadcast::map(
                g.shape(),
                [g, y],
                #[inline(always)]
                |[g, $y]| g * $slope,
            )
        };
    }
    let by = match f {
        Unary::Relu => broadcast::map(
            g.shape(),
            [g, x],
            #[inline(always)]
            |[g, x]| if x > 0.0 { g } else { 0.0 },
        ),
        Unary::LeakyRelu { alpha } => of_x!(x => if x > 0.0 { 1.0 } else { alpha }),
        Unary::Elu { alpha } => of_both!(x, y => if x > 0.0 { 1.0 } else { y + alpha }),
        Unary::Selu { alpha, gamma } => of_both!(x, y => if x > 0.0 { gamma } else { y + gamma * alpha }),
        Unary::Celu { alpha } => of_both!(x, y => if x > 0.0 { 1.0 } else { y / alpha + 1.0 }),
        Unary::Sigmoid => of_y!(y => y * (1.0 - y)),
        Unary::HardSigmoid { alpha, .. } => of_y!(y => if y > 0.0 && y < 1.0 { alpha } else { 0.0 }),
        Unary::Tanh => of_y!(y => 1.0 - y * y),
        Unary::HardSwish => of_x!(x => if x <= -3.0 {
            0.0
        } else if x < 3.0 {
            x / 3.0 + 0.5
        } else {
            1.0
        }),
        Unary::Gelu { tanh: false } => {
            // The normal density is exp(-x^2 / 2) / sqrt(2 pi).
            let density = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
            of_x!(x => 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)) + x * density * exp(-0.5 * x * x))
        }
        Unary::Gelu { tanh: true } => {
            let scale = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
            of_x!(x => {
                let t = tanh(scale * (x + 0.044715 * x * x * x));
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * scale * (1.0 + 3.0 * 0.044715 * x * x)
            })
        }
        // tanh(ln(1 + e)) = e (e + 2) / (e (e + 2) + 2) of e = exp(x), which is
        // 1 to the last digit before e overflows.
        Unary::Mish => of_x!(x => {
            let e = exp(x.min(20.0));
            let t = e * (e + 2.0) / (e * (e + 2.0) + 2.0);
            t + x * sigmoid(x) * (1.0 - t * t)
        }),
        Unary::Softplus => of_x!(x => sigmoid(x)),
        Unary::Softsign => of_x!(x => 1.0 / ((1.0 + x.abs()) * (1.0 + x.abs()))),
        Unary::Erf => of_x!(x => FRAC_2_SQRT_PI * exp(-x * x)),
        Unary::Exp => of_y!(y => y),
        Unary::Log => of_x!(x => 1.0 / x),
        Unary::Sqrt => of_y!(y => 0.5 / y),
        Unary::Reciprocal => of_y!(y => -y * y),
        Unary::Neg => broadcast::map(
            g.shape(),
            [g],
            #[inline(always)]
            |[g]| -g,
        ),
        Unary::Abs => of_x!(x => if x == 0.0 { 0.0 } else { x.signum() }),
        Unary::Sin => of_x!(x => libm::cosf(x)),
        Unary::Cos => of_x!(x => -libm::sinf(x)),
        Unary::Sign | Unary::Floor | Unary::Ceil | Unary::Round => return Ok(vec![None]),
    };
    Ok(vec![Some(by?)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{Case, check};

    #[test]
    fn gradients_are_those_of_differences() {
        let all = [
            Unary::Relu,
            Unary::LeakyRelu { alpha: 0.1 },
            Unary::Elu { alpha: 1.5 },
            Unary::Selu { alpha: 1.6, gamma: 1.1 },
            Unary::Celu { alpha: 0.7 },
            Unary::Sigmoid,
            Unary::HardSigmoid { alpha: 0.2, beta: 0.5 },
            Unary::Tanh,
            Unary::HardSwish,
            Unary::Gelu { tanh: false },
            Unary::Gelu { tanh: true },
            Unary::Mish,
            Unary::Softplus,
            Unary::Softsign,
            Unary::Erf,
            Unary::Exp,
            Unary::Neg,
            Unary::Abs,
            Unary::Sin,
            Unary::Cos,
        ];
        let shapes: [&[usize]; 3] = [&[], &[7], &[3, 5, 29]];
        let near = all.iter().flat_map(|f| shapes.map(|s| Case::new(*f, &[s]).away_from_zero(0.1)));
        // Where functions level off.
        let far = all.iter().map(|f| Case::new(*f, &[&[50]]).map(|x| 7.0 * x).away_from_zero(3.1));
        let positive =
            [Unary::Log, Unary::Sqrt, Unary::Reciprocal].map(|f| Case::new(f, &[&[2, 9]]).between(0.5, 2.0));
        check(near.chain(far).chain(positive));
    }

    #[test]
    fn steps_and_corners() {
        let x = Tensor::vector(vec![-1.5f32, 0.0, 2.5]);
        let one = [Some(Tensor::vector(vec![1f32; 3]))];
        let cases: [(Unary, Option<[f32; 3]>); 7] = [
            (Unary::Relu, Some([0., 0., 1.])),
            (Unary::Abs, Some([-1., 0., 1.])),
            (Unary::LeakyRelu { alpha: 0.5 }, Some([0.5, 0.5, 1.])),
            (Unary::Round, None),
            (Unary::Floor, None),
            (Unary::Ceil, None),
            (Unary::Sign, None),
        ];
        for (f, expected) in cases {
            let at = Reverse { inputs: &[&x], outputs: &[&x], gradients: &one, wanted: &[true] };
            assert_eq!(vjp(f, &at).unwrap(), [expected.map(|x| Tensor::vector(x.to_vec()))], "{f:?}");
        }
    }
}
