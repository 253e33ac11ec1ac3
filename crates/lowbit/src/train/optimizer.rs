//! How a gradient moves a parameter.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Result, invalid};
use crate::ops::vectorized::vectorized;
use crate::tensor::Tensor;
use crate::tensor::buffers::recycle;

/// What an optimizer keeps for each parameter, by its name: [`Optimizer::slots`]
/// tensors of its shape.
pub type Slots = BTreeMap<String, Vec<Tensor>>;

/// An optimizer, with PyTorch's formulas and defaults. Weight decay is for
/// weights: parameters of more than one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Optimizer {
    /// Stochastic gradient descent: with `g = gradient + decay p`,
    /// `v = momentum v + g` (the first v is g), `p -= rate v`, or with Nesterov
    /// momentum `p -= rate (g + momentum v)`.
    Sgd {
        /// From 0 to 1.
        momentum: f32,
        /// Whether to look ahead.
        nesterov: bool,
        /// Weight decay, as part of the gradient.
        decay: f32,
    },
    /// With `g = gradient + decay p`, `m = b1 m + (1 - b1) g`,
    /// `v = b2 v + (1 - b2) g^2`,
    /// `p -= rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon)`
    /// (Kingma and Ba, 2015).
    Adam {
        /// b1 and b2.
        betas: (f32, f32),
        /// Added to the root.
        epsilon: f32,
        /// Weight decay, as part of the gradient.
        decay: f32,
    },
    /// Adam with weight decay apart from the gradient: `p -= rate decay p`
    /// first (Loshchilov and Hutter, 2019).
    AdamW {
        /// b1 and b2.
        betas: (f32, f32),
        /// Added to the root.
        epsilon: f32,
        /// Weight decay.
        decay: f32,
    },
}

impl Optimizer {
    /// SGD with momentum 0.9.
    pub fn sgd(decay: f32) -> Optimizer {
        Optimizer::Sgd { momentum: 0.9, nesterov: false, decay }
    }

    /// Adam with PyTorch's defaults.
    pub fn adam() -> Optimizer {
        Optimizer::Adam { betas: (0.9, 0.999), epsilon: 1e-8, decay: 0.0 }
    }

    /// AdamW with PyTorch's defaults.
    pub fn adamw() -> Optimizer {
        Optimizer::AdamW { betas: (0.9, 0.999), epsilon: 1e-8, decay: 1e-2 }
    }

    /// How many tensors of a parameter's shape it keeps for each parameter.
    pub fn slots(&self) -> usize {
        match self {
            Optimizer::Sgd { momentum: 0.0, .. } => 0,
            Optimizer::Sgd { .. } => 1,
            Optimizer::Adam { .. } | Optimizer::AdamW { .. } => 2,
        }
    }

    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// If a number is not finite or lies outside its range; it is named.
    pub fn check(&self) -> Result<()> {
        let share = |name: &str, x: f32| match (0.0..1.0).contains(&x) {
            true => Ok(()),
            false => Err(invalid!("{name} = {x} does not lie from 0 to below 1")),
        };
        match *self {
            Optimizer::Sgd { momentum, decay, .. } => {
                share("momentum", momentum)?;
                share("decay", decay)
            }
            Optimizer::Adam { betas, epsilon, decay } | Optimizer::AdamW { betas, epsilon, decay } => {
                share("the first of betas", betas.0)?;
                share("the second of betas", betas.1)?;
                share("epsilon", epsilon)?;
                share("decay", decay)
            }
        }
    }

    /// Moves `p` in step `t`, from 1, given its gradient and what the optimizer
    /// keeps for it.
    ///
    /// # Errors
    /// If sizes differ.
    pub fn step(
        &self,
        p: &mut Tensor,
        gradient: Tensor,
        slots: &mut [Tensor],
        rate: f32,
        t: u64,
    ) -> Result<()> {
        let decays = p.rank() > 1;
        let wrong = || invalid!("a parameter, its gradient and its slots differ in shape or are shared");
        let n = p.len();
        let (shape, mut values) =
            (p.shape().to_vec(), std::mem::replace(p, Tensor::scalar(0f32)).into_vec::<f32>()?);
        let g = gradient.slice::<f32>()?;
        let mut kept: Vec<Vec<f32>> = slots
            .iter_mut()
            .map(|s| std::mem::replace(s, Tensor::scalar(0f32)).into_vec::<f32>())
            .collect::<Result<_>>()?;
        if g.len() != n || kept.iter().any(|k| k.len() != n) || kept.len() != self.slots() {
            return Err(wrong());
        }
        match (*self, kept.as_mut_slice()) {
            (Optimizer::Sgd { decay, .. }, []) => {
                let decay = if decays { decay } else { 0.0 };
                each(&mut values, g, [], |p, g, []| *p -= rate * (g + decay * *p));
            }
            (Optimizer::Sgd { momentum, nesterov, decay }, [v]) => {
                let decay = if decays { decay } else { 0.0 };
                each(&mut values, g, [v], |p, g, [v]| {
                    let g = g + decay * *p;
                    *v = if t == 1 { g } else { momentum * *v + g };
                    *p -= rate * if nesterov { g + momentum * *v } else { *v };
                });
            }
            (
                Optimizer::Adam { betas, epsilon, decay } | Optimizer::AdamW { betas, epsilon, decay },
                [m, v],
            ) => {
                let (b1, b2) = betas;
                let decay = if decays { decay } else { 0.0 };
                let apart = matches!(self, Optimizer::AdamW { .. });
                let power = i32::try_from(t).unwrap_or(i32::MAX);
                let first = (1.0 / (1.0 - f64::from(b1).powi(power))) as f32;
                let second = (1.0 / (1.0 - f64::from(b2).powi(power))) as f32;
                each(&mut values, g, [m, v], |p, g, [m, v]| {
                    let g = if apart { g } else { g + decay * *p };
                    if apart {
                        *p -= rate * decay * *p;
                    }
                    *m = b1 * *m + (1.0 - b1) * g;
                    *v = b2 * *v + (1.0 - b2) * g * g;
                    *p -= rate * (*m * first) / ((*v * second).sqrt() + epsilon);
                });
            }
            _ => return Err(wrong()),
        }
        for (slot, kept) in slots.iter_mut().zip(kept) {
            *slot = Tensor::new(&shape, kept)?;
        }
        *p = Tensor::new(&shape, values)?;
        recycle(gradient);
        Ok(())
    }
}

/// Elements of a task.
const TASK: usize = 1 << 14;

/// Calls `f` with each parameter, its gradient and what is kept for it.
fn each<const N: usize>(
    p: &mut [f32],
    g: &[f32],
    kept: [&mut Vec<f32>; N],
    f: impl Fn(&mut f32, f32, [&mut f32; N]) + Sync,
) {
    let n = p.len();
    let mut kept = kept.map(|k| k.chunks_mut(TASK));
    let tasks: Vec<_> = p
        .chunks_mut(TASK)
        .zip(g.chunks(TASK))
        .map(|(p, g)| (p, g, kept.each_mut().map(|k| k.next().unwrap_or_default())))
        .collect();
    let run = |(p, g, kept): (&mut [f32], &[f32], [&mut [f32]; N])| {
        let n = p.len();
        let (g, mut kept) = (&g[..n], kept.map(|k| &mut k[..n]));
        vectorized(
            #[inline(always)]
            || {
                for i in 0..n {
                    f(&mut p[i], g[i], kept.each_mut().map(|k| &mut k[i]));
                }
            },
        );
    };
    if n <= TASK { tasks.into_iter().for_each(run) } else { tasks.into_par_iter().for_each(run) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// p = (1, -2) in one dimension, or two; gradients (0.5, 1) and (1, -1), rate 0.1.
    fn run(op: Optimizer, shape: &[usize]) -> Vec<f32> {
        let mut p = Tensor::new(shape, vec![1f32, -2.]).unwrap();
        let mut slots = vec![Tensor::full(shape, 0f32).unwrap(); op.slots()];
        for (t, g) in [[0.5f32, 1.], [1., -1.]].into_iter().enumerate() {
            let g = Tensor::new(shape, g.to_vec()).unwrap();
            op.step(&mut p, g, &mut slots, 0.1, t as u64 + 1).unwrap();
        }
        p.to_f32().unwrap()
    }

    #[test]
    fn two_steps_are_those_of_pytorch() {
        let sgd = |momentum, nesterov, decay| Optimizer::Sgd { momentum, nesterov, decay };
        let adam = Optimizer::Adam { betas: (0.9, 0.999), epsilon: 1e-8, decay: 0.1 };
        let adamw = Optimizer::AdamW { betas: (0.9, 0.999), epsilon: 1e-8, decay: 0.1 };
        // torch.optim on the same parameters: torch 2.8.0.
        for (op, shape, want) in [
            (sgd(0.0, false, 0.0), &[2][..], [0.85, -2.0]),
            (sgd(0.9, false, 0.0), &[2], [0.805, -2.09]),
            (sgd(0.9, true, 0.0), &[2], [0.6745, -2.081]),
            (sgd(0.9, false, 0.1), &[1, 2], [0.7766, -2.0312]),
            (sgd(0.9, false, 0.1), &[2], [0.805, -2.09]),
            (Optimizer::adam(), &[2], [0.803_482, -2.094_737]),
            (adam, &[1, 2], [0.802_503, -2.074_859]),
            (adamw, &[1, 2], [0.784_582, -2.053_937]),
        ] {
            let got = run(op, shape);
            let near = got.iter().zip(want).all(|(a, b): (&f32, f32)| (a - b).abs() < 2e-5);
            assert!(near, "{op:?} {shape:?}: {got:?}, torch {want:?}");
        }
    }

    #[test]
    fn settings_are_checked() {
        for (op, what) in [
            (Optimizer::Sgd { momentum: 1.0, nesterov: false, decay: 0.0 }, "momentum"),
            (Optimizer::Adam { betas: (0.9, f32::NAN), epsilon: 1e-8, decay: 0.0 }, "betas"),
        ] {
            assert!(op.check().unwrap_err().to_string().contains(what));
        }
        assert!(Optimizer::adamw().check().is_ok());
    }
}
