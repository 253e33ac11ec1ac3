//! What training makes small.

use serde::{Deserialize, Serialize};

use crate::error::{Result, invalid};
use crate::scores::classes;
use crate::tensor::Tensor;

/// A loss, with the mean taken over samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Loss {
    /// Of class scores z and labels y: `-sum_c t_c log softmax(z)_c` with
    /// `t = (1 - smoothing) [c = y] + smoothing / classes`.
    CrossEntropy {
        /// From 0, none, to 1.
        smoothing: f32,
    },
    /// The mean squared difference of an output and its target.
    Mse,
    /// The divergence of class scores z from a teacher's scores s:
    /// `T^2 sum_c p_c (log p_c - log softmax(z / T)_c)` with
    /// `p = softmax(s / T)` (Hinton et al., "Distilling the Knowledge in a
    /// Neural Network", 2015).
    Distillation {
        /// T; higher looks more at the unlikely classes.
        temperature: f32,
    },
}

/// The loss of a batch and its gradient by the output.
#[derive(Clone, Debug)]
pub struct Lost {
    /// The mean over the samples.
    pub loss: f64,
    /// Of the output's shape.
    pub gradient: Tensor,
}

impl Loss {
    /// The loss of an output against class labels.
    ///
    /// # Errors
    /// If the output does not hold class scores for each label, or the loss
    /// takes no labels.
    pub fn of_labels(&self, output: &Tensor, labels: &[usize]) -> Result<Lost> {
        let Loss::CrossEntropy { smoothing } = *self else {
            return Err(invalid!("{self:?} takes the outputs of a teacher, not labels"));
        };
        let classes = classes(output, labels.len())?;
        if let Some(label) = labels.iter().find(|&&y| y >= classes) {
            return Err(invalid!("label {label} is no class of a model with {classes} classes"));
        }
        let (smoothing, spread) = (f64::from(smoothing), f64::from(smoothing) / classes as f64);
        let target = |row: usize, c: usize| spread + if labels[row] == c { 1.0 - smoothing } else { 0.0 };
        soft(output, classes, 1.0, target, |_| 0.0)
    }

    /// The loss of an output against what it should be: a teacher's output.
    ///
    /// # Errors
    /// If the shapes differ, or the loss takes labels.
    pub fn of_target(&self, output: &Tensor, target: &Tensor) -> Result<Lost> {
        if output.shape() != target.shape() {
            return Err(invalid!(
                "the output has shape {:?}, its target {:?}",
                output.shape(),
                target.shape()
            ));
        }
        let (y, t) = (output.slice::<f32>()?, target.slice::<f32>()?);
        match *self {
            Loss::CrossEntropy { .. } => Err(invalid!("cross-entropy takes labels")),
            Loss::Mse => {
                let n = y.len().max(1) as f64;
                let loss = y.iter().zip(t).map(|(y, t)| f64::from(y - t).powi(2)).sum::<f64>() / n;
                let gradient = y.iter().zip(t).map(|(y, t)| (2.0 / n) as f32 * (y - t)).collect();
                Ok(Lost { loss, gradient: Tensor::new(output.shape(), gradient)? })
            }
            Loss::Distillation { temperature } => {
                let classes = classes(output, output.shape().first().copied().unwrap_or(0))?;
                let heat = f64::from(temperature);
                let p: Vec<f64> = t.chunks(classes).flat_map(|row| softmax(row, heat)).collect();
                let entropy = |row: usize| {
                    let p = &p[row * classes..][..classes];
                    p.iter().filter(|&&p| p > 0.0).map(|p| p * p.ln()).sum()
                };
                soft(output, classes, heat, |row, c| p[row * classes + c], entropy)
            }
        }
    }
}

fn softmax(row: &[f32], heat: f64) -> Vec<f64> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = row.iter().map(|z| (f64::from(z - most) / heat).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

/// `heat^2 mean over rows of (entropy(row) - sum_c target log softmax(z / heat))`.
fn soft(
    output: &Tensor,
    classes: usize,
    heat: f64,
    target: impl Fn(usize, usize) -> f64,
    entropy: impl Fn(usize) -> f64,
) -> Result<Lost> {
    let rows = output.slice::<f32>()?.chunks(classes);
    let n = rows.len() as f64;
    let (mut loss, mut gradient) = (0.0, Vec::with_capacity(output.len()));
    for (row, z) in rows.enumerate() {
        let p = softmax(z, heat);
        loss += entropy(row);
        for (c, p) in p.iter().enumerate() {
            let t = target(row, c);
            if t > 0.0 {
                loss -= t * p.max(f64::MIN_POSITIVE).ln();
            }
            gradient.push((heat * (p - t) / n) as f32);
        }
    }
    Ok(Lost { loss: heat * heat * loss / n, gradient: Tensor::new(output.shape(), gradient)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CROSS_ENTROPY: f64 = 1.486443;
    const CROSS_ENTROPY_GRADIENT: [f32; 6] = [0.129748, -0.147308, 0.017560, -0.463739, 0.021993, 0.441746];
    const SMOOTHED: f64 = 1.519776;
    const SMOOTHED_GRADIENT: [f32; 6] = [0.113082, -0.113974, 0.000893, -0.430406, 0.005327, 0.425079];
    const MSE: f64 = 1.708333;
    const MSE_GRADIENT: [f32; 6] = [0.333333, 0.333333, -0.666667, -0.500000, 0.333333, 0.333333];
    const DISTILLED: f64 = 0.793620;
    const DISTILLED_GRADIENT: [f32; 6] = [0.098802, 0.162898, -0.261700, -0.260032, 0.047436, 0.212596];

    #[test]
    fn losses_and_gradients_are_those_of_pytorch() {
        let z = Tensor::new(&[2, 3], vec![1f32, 2., -1., 0.5, 0., 3.]).unwrap();
        let s = Tensor::new(&[2, 3], vec![0f32, 1., 1., 2., -1., 2.]).unwrap();
        let entropy = |smoothing| Loss::CrossEntropy { smoothing }.of_labels(&z, &[1, 0]).unwrap();
        let distilled = |temperature| Loss::Distillation { temperature }.of_target(&z, &s).unwrap();
        // torch 2.8.0: F.cross_entropy, F.mse_loss, T^2 F.kl_div(.., reduction='batchmean').
        let cases = [
            ("cross-entropy", entropy(0.0), CROSS_ENTROPY, CROSS_ENTROPY_GRADIENT),
            ("smoothed", entropy(0.1), SMOOTHED, SMOOTHED_GRADIENT),
            ("mse", Loss::Mse.of_target(&z, &s).unwrap(), MSE, MSE_GRADIENT),
            ("distillation", distilled(2.0), DISTILLED, DISTILLED_GRADIENT),
        ];
        for (name, Lost { loss, gradient }, want, by) in cases {
            let gradient = gradient.to_f32().unwrap();
            let near = gradient.iter().zip(by).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!((loss - want).abs() < 1e-5 && near, "{name}: {loss} {gradient:?}, torch {want} {by:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let z = Tensor::new(&[2, 3], vec![0f32; 6]).unwrap();
        let entropy = Loss::CrossEntropy { smoothing: 0.0 };
        for (result, want) in [
            (entropy.of_labels(&z, &[0]), "class scores of shape [1"),
            (entropy.of_labels(&z, &[0, 3]), "label 3"),
            (entropy.of_target(&z, &z), "takes labels"),
            (Loss::Mse.of_labels(&z, &[0, 1]), "not labels"),
            (Loss::Mse.of_target(&z, &Tensor::scalar(0f32)), "its target"),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
