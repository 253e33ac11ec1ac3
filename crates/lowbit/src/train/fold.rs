//! A BatchNormalization folded into the weight before it, while both are trained.

use rayon::prelude::*;

use crate::error::{Result, invalid};
use crate::op::{Attribute, Attributes, Fact, Op, Reverse, arity};
use crate::ops::norm::BatchNormalization;
use crate::quantize::{folded, scaled};
use crate::tensor::Tensor;

/// `W'[c] = W[c] gamma[c] / sigma[c]`, `b'[c] = (b[c] - mean[c]) gamma[c] / sigma[c] + beta[c]`
/// with `sigma = sqrt(var + epsilon)`: the numbers that [`crate::quantize::fuse`]
/// folds. Operands: W, b, gamma, beta, mean and var; outputs W', b' and
/// `gamma / sigma`, 1e-8 at least in magnitude, to divide by. There are gradients
/// by the first four.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FoldBatchNorm {
    /// Added to the variance.
    pub epsilon: f32,
    /// The axis of W along which its output channels lie.
    pub axis: usize,
}

/// The least magnitude of a factor that is divided by.
pub const LEAST_FACTOR: f32 = 1e-8;

/// Elements that are worth a task.
const TASK: usize = 1 << 15;

/// `sum g w`, in eight interleaved partial sums.
fn dot(g: &[f32], w: &[f32]) -> f64 {
    let mut partial = [0f64; 8];
    for (g, w) in g.chunks(8).zip(w.chunks(8)) {
        let pairs = g.iter().zip(w);
        partial.iter_mut().zip(pairs).for_each(|(sum, (g, w))| *sum += f64::from(*g) * f64::from(*w));
    }
    partial.iter().sum()
}

impl FoldBatchNorm {
    /// `gamma / sigma` and what is added to `b gamma / sigma`.
    fn affine(&self, x: &[&Tensor]) -> Result<(Vec<f32>, Vec<f32>)> {
        arity(x, 6, 6)?;
        let [gamma, beta, mean, var] = [2, 3, 4, 5].map(|i| x[i].slice::<f32>());
        let norm = BatchNormalization { epsilon: self.epsilon, training: None };
        let (scale, shift) = norm.affine(gamma?, beta?, mean?, var?)?;
        if x[0].shape().get(self.axis) != Some(&scale.len()) || x[1].shape() != [scale.len()] {
            return Err(invalid!("{} channels do not fit a weight of shape {:?}", scale.len(), x[0].shape()));
        }
        Ok((scale, shift))
    }
}

impl Op for FoldBatchNorm {
    fn name(&self) -> &'static str {
        "FoldBatchNorm"
    }

    fn domain(&self) -> &'static str {
        "lowbit"
    }

    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        arity(x, 6, 6)?;
        Ok(vec![x[0].clone(), x[1].clone(), x[2].clone()])
    }

    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let (scale, shift) = self.affine(x)?;
        let (weight, bias) = folded(x[0], self.axis, x[1].slice()?, (&scale, &shift))?;
        let factor = |s: &f32| s.abs().max(LEAST_FACTOR).copysign(*s);
        let factor = scale.iter().map(factor).collect::<Vec<f32>>();
        Ok(vec![weight, Tensor::vector(bias), Tensor::vector(factor)])
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let x = at.inputs;
        let (scale, _) = self.affine(x)?;
        let n = scale.len();
        let (w, b, gamma) = (x[0], x[1].slice::<f32>()?, x[2].slice::<f32>()?);
        let mean = x[4].slice::<f32>()?;
        let sigma = x[5].slice::<f32>()?.iter().map(|v| (f64::from(*v) + f64::from(self.epsilon)).sqrt());
        let sigma: Vec<f64> = sigma.collect();
        let (mut by_w, mut by_gamma) = (None, vec![0f64; n]);
        if let Some(g) = &at.gradients[0] {
            by_w = Some(scaled(g, self.axis, &scale)?);
            let inner = w.shape()[self.axis + 1..].iter().product::<usize>().max(1);
            let runs = g.slice::<f32>()?.par_chunks(inner).zip(w.slice::<f32>()?.par_chunks(inner));
            let sums: Vec<f64> = runs.with_min_len((TASK / inner).max(1)).map(|(g, w)| dot(g, w)).collect();
            sums.iter().enumerate().for_each(|(i, sum)| by_gamma[i % n] += sum / sigma[i % n]);
        }
        let (mut by_b, mut by_beta) = (None, None);
        if let Some(g) = at.gradients.get(1).and_then(Option::as_ref) {
            let g = g.slice::<f32>()?;
            for c in 0..n {
                by_gamma[c] += f64::from(g[c]) * (f64::from(b[c]) - f64::from(mean[c])) / sigma[c];
            }
            by_b = Some(Tensor::vector(g.iter().zip(&scale).map(|(g, s)| g * s).collect::<Vec<f32>>()));
            by_beta = Some(Tensor::vector(g.to_vec()));
        }
        if let Some(g) = at.gradients.get(2).and_then(Option::as_ref) {
            let sums = by_gamma.iter_mut().zip(g.slice::<f32>()?).zip(&sigma);
            sums.for_each(|((by, g), sigma)| *by += f64::from(*g) / sigma);
        }
        let by_gamma = Tensor::new(&[gamma.len()], by_gamma.into_iter().map(|x| x as f32).collect())?;
        Ok(vec![by_w, by_b, Some(by_gamma), by_beta, None, None])
    }

    fn attributes(&self) -> Attributes {
        vec![("epsilon", Attribute::Float(self.epsilon)), ("axis", Attribute::Int(self.axis as i64))]
    }

    fn folds(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{Case, check};

    #[test]
    fn gradients_are_those_of_differences() {
        let shapes: [&[usize]; 4] = [&[3, 2, 2], &[3], &[3], &[3]];
        let case = |axis| {
            let shapes: Vec<&[usize]> =
                if axis == 1 { vec![&[2, 3, 2], &[3], &[3], &[3]] } else { shapes.to_vec() };
            let op = FoldBatchNorm { epsilon: 0.01, axis };
            Case::new(op, &shapes).and_fixed(&[&[0.3, -0.2, 0.5], &[0.5, 1.0, 2.0]])
        };
        check([case(0), case(1)]);
    }

    #[test]
    fn a_folded_normalization_is_the_normalization() {
        let op = FoldBatchNorm { epsilon: 0.0, axis: 0 };
        let v = |x: [f32; 1]| Tensor::vector(x.to_vec());
        let w = Tensor::new(&[1, 1], vec![3f32]).unwrap();
        // x = 2: (6 + 1 - 3) / sqrt(4) * 5 + 7 = 17.
        let made = op.eval(&[&w, &v([1.]), &v([5.]), &v([7.]), &v([3.]), &v([4.])]).unwrap();
        let [w, b] = [0, 1].map(|i| made[i].item::<f32>().unwrap());
        assert_eq!((2.0 * w + b, made[2].item::<f32>().unwrap()), (17.0, 2.5));
    }
}
