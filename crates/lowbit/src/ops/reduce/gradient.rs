//! Gradients of reductions.

use super::{Reduction, reduced_last};
use crate::error::Result;
use crate::op::Reverse;
use crate::ops::broadcast::{map, summed_to};
use crate::ops::strided::{permuted_back, stretched};
use crate::tensor::Tensor;

/// The gradient by the operand, of results that have the shape `kept` once the
/// reduced dimensions stay. Elements that are all the greatest, or the least,
/// share the gradient evenly; at 0, the corner of a magnitude, it is 0.
pub(super) fn vjp(to: Reduction, kept: &[usize], at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let x = at.inputs[0];
    let shape = x.shape();
    let (g, y) = (&at.gradient()?.reshaped(kept)?, &at.outputs[0].reshaped(kept)?);
    /// This expression of tensors.
    macro_rules! of {
        ($($x:ident),* => $f:expr) => {
            map(shape, [$($x),*], #[inline(always)] |[$($x),*]| $f)
        };
    }
    let by = match to {
        Reduction::Sum => stretched(g, shape),
        Reduction::Mean => {
            let n = (x.len() / g.len().max(1)) as f32;
            let each = &map(
                kept,
                [g],
                #[inline(always)]
                |[g]| g / n,
            )?;
            stretched(each, shape)
        }
        Reduction::Max | Reduction::Min => {
            let count = &summed_to(of!(x, y => if x == y { 1.0 } else { 0.0 })?, kept)?;
            of!(g, x, y, count => if x == y { g / count } else { 0.0 })
        }
        Reduction::Prod => product(kept, g, x),
        Reduction::L1 => of!(g, x => if x == 0.0 { 0.0 } else { g * x.signum() }),
        Reduction::L2 => of!(g, x, y => if y == 0.0 { 0.0 } else { g * x / y }),
        Reduction::SumSquare => of!(g, x => 2.0 * g * x),
        Reduction::LogSumExp => of!(g, x, y => g * lowbit_kernels::exp(x - y)),
    };
    Ok(vec![Some(by?)])
}

/// Of a product: that of the other elements, for each one.
fn product(kept: &[usize], g: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mask: Vec<bool> = kept.iter().zip(x.shape()).map(|(k, n)| k != n).collect();
    let (rows, n) = reduced_last(x, &mask)?;
    let mut by = rows.slice::<f32>()?.to_vec();
    for (row, g) in by.chunks_exact_mut(n.max(1)).zip(g.slice::<f32>()?) {
        // The products of what lies behind each element, then of what lies before.
        let mut behind = vec![1f64; row.len()];
        for i in (1..row.len()).rev() {
            behind[i - 1] = behind[i] * f64::from(row[i]);
        }
        let mut before = f64::from(*g);
        for (x, behind) in row.iter_mut().zip(behind) {
            let had = f64::from(*x);
            *x = (before * behind) as f32;
            before *= had;
        }
    }
    let (last, first): (Vec<usize>, Vec<usize>) = (0..x.rank()).partition(|&i| mask[i]);
    permuted_back(&Tensor::new(rows.shape(), by)?, &[first, last].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;
    use crate::ops::differences::{Case, check};
    use crate::ops::reduce::Reduce;

    const ALL: [Reduction; 9] = [
        Reduction::Mean,
        Reduction::Sum,
        Reduction::Max,
        Reduction::Min,
        Reduction::Prod,
        Reduction::L1,
        Reduction::L2,
        Reduction::SumSquare,
        Reduction::LogSumExp,
    ];

    #[test]
    fn gradients_are_those_of_differences() {
        let shapes: [(&[usize], &[i64]); 7] = [
            (&[6], &[0]),
            (&[2, 3], &[]),
            (&[3, 5], &[-1]),
            (&[3, 5], &[0]),
            (&[2, 3, 3, 2], &[0, 2]),
            (&[2, 3, 2, 2], &[2, 3]),
            (&[2, 1, 3], &[1]),
        ];
        let cases = ALL.iter().flat_map(|to| {
            shapes.iter().flat_map(move |(shape, axes)| {
                [false, true].map(|keepdims| {
                    let op = Reduce { keepdims, ..Reduce::new(*to, axes) };
                    Case::new(op, &[shape]).apart(0.07).map(|x| x + 0.035)
                })
            })
        });
        let none = Reduce { to: Reduction::Sum, axes: None, keepdims: true, noop: true };
        check(cases.chain([Case::new(none, &[&[2, 3]])]));
    }

    #[test]
    fn ties_and_zeros() {
        let cases: [(Reduction, [f32; 3], [f32; 3]); 6] = [
            (Reduction::Max, [2., 1., 2.], [0.5, 0., 0.5]),
            (Reduction::Min, [2., 1., 2.], [0., 1., 0.]),
            (Reduction::Prod, [0., 3., 2.], [6., 0., 0.]),
            (Reduction::Prod, [0., 3., 0.], [0., 0., 0.]),
            (Reduction::L1, [0., 3., -2.], [0., 1., -1.]),
            (Reduction::L2, [0., 0., 0.], [0., 0., 0.]),
        ];
        for (to, x, expected) in cases {
            let (op, x) = (Reduce::new(to, &[0]), Tensor::vector(x.to_vec()));
            let y = op.eval(&[&x]).unwrap();
            let one = [Some(Tensor::vector(vec![1f32]))];
            let at = Reverse { inputs: &[&x], outputs: &[&y[0]], gradients: &one, wanted: &[true] };
            assert_eq!(op.vjp(&at).unwrap(), [Some(Tensor::vector(expected.to_vec()))], "{to:?} of {x:?}");
        }
    }
}
