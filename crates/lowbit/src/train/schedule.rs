//! The learning rate over the course of training.

use serde::{Deserialize, Serialize};

use crate::error::{Result, invalid};

/// The factor of the learning rate as training goes from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Schedule {
    /// 1 throughout.
    Constant,
    /// `(1 + cos(pi t)) / 2`: from 1 to 0.
    Cosine,
    /// For fine-tuning: from 1 % of the rate that the model was first trained with
    /// down half of a cosine to 1 % of that,
    /// `0.01 (0.01 + 0.99 (1 + cos(pi t)) / 2)` (Wu et al., "Integer quantization for
    /// deep learning inference", 2020, appendix A.2).
    HalfCosine,
    /// Multiplied by `factor` at each of these shares of the training.
    Step {
        /// Where, from 0 to 1.
        at: Vec<f64>,
        /// By how much.
        factor: f64,
    },
}

/// A linear rise from 0 to the schedule over the first share of the training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WarmUp {
    /// From 0, none, to 1.
    pub share: f64,
}

impl Schedule {
    /// The factor in step `step` of `steps`.
    pub fn factor(&self, step: u64, steps: u64, warm_up: WarmUp) -> f64 {
        let t = step as f64 / steps.max(1) as f64;
        let rising = warm_up.share * steps as f64;
        let rise = if (step as f64) < rising { (step as f64 + 1.0) / (rising + 1.0) } else { 1.0 };
        let pi = std::f64::consts::PI;
        rise * match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine => (1.0 + (pi * t).cos()) / 2.0,
            Schedule::HalfCosine => 0.01 * (0.01 + 0.99 * (1.0 + (pi * t).cos()) / 2.0),
            Schedule::Step { at, factor } => factor.powi(at.iter().filter(|&&at| t >= at).count() as i32),
        }
    }

    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// If a number is not finite or lies outside its range; it is named.
    pub fn check(&self) -> Result<()> {
        match self {
            Schedule::Step { factor, .. } if !(factor.is_finite() && *factor > 0.0) => {
                Err(invalid!("factor = {factor} of the step schedule is not a positive number"))
            }
            Schedule::Step { at, .. } if at.iter().any(|at| !(0.0..=1.0).contains(at)) => {
                Err(invalid!("at = {at:?} of the step schedule: shares of the training lie from 0 to 1"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_at_some_steps() {
        let none = WarmUp::default();
        let steps = Schedule::Step { at: vec![0.5, 0.75], factor: 0.1 };
        for (schedule, warm_up, want) in [
            (Schedule::Constant, none, [1.0, 1.0, 1.0, 1.0]),
            (Schedule::Constant, WarmUp { share: 0.3 }, [0.25, 1.0, 1.0, 1.0]),
            (Schedule::Cosine, none, [1.0, 0.5, 0.095_491_5, 0.024_471_74]),
            (Schedule::HalfCosine, none, [0.01, 0.005_05, 0.001_045_37, 0.000_342_27]),
            (steps, none, [1.0, 0.1, 0.01, 0.01]),
        ] {
            let got = [0, 5, 8, 9].map(|step| schedule.factor(step, 10, warm_up));
            let near = got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(near, "{schedule:?}: {got:?}");
        }
        assert!(Schedule::Step { at: vec![2.0], factor: 0.1 }.check().is_err());
    }
}
