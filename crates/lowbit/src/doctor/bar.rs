//! What a model must reach.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::trial::Measured;
use crate::analysis::Scores;
use crate::error::{Result, invalid};

/// What counts, and how much of it is enough.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// The share of samples with the same first class as the float model has, at least.
    Agreement(f64),
    /// The share of samples whose label has the greatest score, at least.
    Accuracy(f64),
    /// How much less that share is than the float model's, at most.
    Drop(f64),
    /// The ratio of the outputs to their errors in dB, at least: for models without classes.
    Sqnr(f64),
}

/// What a model must reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// How good it must be.
    pub goal: Goal,
    /// The longest that a sample may take, in milliseconds.
    pub most_ms: Option<f64>,
}

impl Goal {
    /// What is usual: to lose at most one sample of a hundred, to agree on 99 of a hundred
    /// where there are no labels, and 20 dB where there are no classes.
    pub fn usual(float: &Scores) -> Goal {
        match (float.top1, float.agreement) {
            (Some(_), _) => Goal::Drop(0.01),
            (None, Some(_)) => Goal::Agreement(0.99),
            (None, None) => Goal::Sqnr(20.0),
        }
    }

    /// The same with a share that does not depend on the float model's, `float`.
    ///
    /// # Errors
    /// If the data has no labels or the model no classes, as the goal needs, or a share
    /// does not lie from 0 to 1.
    pub fn resolved(self, float: &Scores) -> Result<Goal> {
        let share = match self {
            Goal::Agreement(share) | Goal::Accuracy(share) | Goal::Drop(share) => share,
            Goal::Sqnr(db) if db.is_finite() => return Ok(self),
            Goal::Sqnr(db) => return Err(invalid!("an SQNR of {db} dB cannot be reached")),
        };
        if !(0.0..=1.0).contains(&share) {
            return Err(invalid!("{} % is no share of the samples", 100.0 * share));
        }
        match (self, float.top1, float.agreement) {
            (Goal::Agreement(_), _, None) => {
                Err(invalid!("the outputs hold no classes that could agree: set an SQNR"))
            }
            (Goal::Accuracy(_) | Goal::Drop(_), None, _) => {
                Err(invalid!("accuracy needs labels, which the data does not have: set an agreement"))
            }
            (Goal::Drop(most), Some(top1), _) => Ok(Goal::Accuracy((top1 - most).max(0.0))),
            (Goal::Accuracy(least), Some(top1), _) if least > top1 => Err(invalid!(
                "an accuracy of {:.2} % is above the float model's, {:.2} %",
                100.0 * least,
                100.0 * top1
            )),
            _ => Ok(self),
        }
    }

    /// What counts of these scores, greater where it is better.
    pub fn of(self, scores: &Scores) -> f64 {
        match self {
            Goal::Agreement(_) => scores.agreement.unwrap_or(0.0),
            Goal::Accuracy(_) | Goal::Drop(_) => scores.top1.unwrap_or(0.0),
            Goal::Sqnr(_) => scores.sqnr_db,
        }
    }

    fn least(self) -> f64 {
        match self {
            Goal::Agreement(x) | Goal::Accuracy(x) | Goal::Sqnr(x) => x,
            Goal::Drop(_) => f64::INFINITY,
        }
    }

    /// What counts of these scores, in words.
    pub fn said(self, scores: &Scores) -> String {
        let value = self.of(scores);
        match self {
            Goal::Agreement(_) => format!("{:.2} % as the float model", 100.0 * value),
            Goal::Accuracy(_) | Goal::Drop(_) => format!("{:.2} % right", 100.0 * value),
            Goal::Sqnr(_) => format!("SQNR {value:.1} dB"),
        }
    }
}

impl Bar {
    /// Whether a model reaches it.
    pub fn is_met(&self, measured: &Measured) -> bool {
        // Shares are ratios of counts, which f64 does not hold exactly.
        self.goal.of(&measured.scores) >= self.goal.least() - 1e-9 && self.is_fast(measured)
    }

    /// Whether a model is as fast as it must be.
    pub fn is_fast(&self, measured: &Measured) -> bool {
        self.most_ms.is_none_or(|most| measured.ms <= most)
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.goal {
            Goal::Agreement(x) => write!(f, "at least {:.2} % as the float model", 100.0 * x)?,
            Goal::Accuracy(x) => write!(f, "at least {:.2} % right", 100.0 * x)?,
            Goal::Drop(x) => write!(f, "at most {:.2} points less right than the float model", 100.0 * x)?,
            Goal::Sqnr(x) => write!(f, "an SQNR of at least {x:.1} dB")?,
        }
        match self.most_ms {
            Some(most) => write!(f, ", in at most {most:.3} ms a sample"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(agreement: Option<f64>, top1: Option<f64>) -> Scores {
        Scores { sqnr_db: 20.0, mse: 0.0, kl: None, agreement, top1 }
    }

    #[test]
    fn goals_are_held_against_what_the_data_has() {
        let labelled = scores(Some(1.0), Some(0.8));
        for (goal, float, wanted) in [
            (Goal::Agreement(0.99), &labelled, Ok(Goal::Agreement(0.99))),
            (Goal::Drop(0.25), &labelled, Ok(Goal::Accuracy(0.55))),
            (Goal::Drop(0.9), &labelled, Ok(Goal::Accuracy(0.0))),
            (Goal::Accuracy(0.8), &labelled, Ok(Goal::Accuracy(0.8))),
            (Goal::Sqnr(30.0), &scores(None, None), Ok(Goal::Sqnr(30.0))),
            (Goal::Accuracy(0.81), &labelled, Err("above")),
            (Goal::Drop(0.1), &scores(Some(1.0), None), Err("labels")),
            (Goal::Agreement(0.9), &scores(None, None), Err("no classes")),
            (Goal::Agreement(99.0), &labelled, Err("9900 %")),
            (Goal::Sqnr(f64::NAN), &labelled, Err("NaN")),
        ] {
            match (goal.resolved(float), wanted) {
                (Ok(found), Ok(wanted)) => assert!((found.least() - wanted.least()).abs() < 1e-12),
                (Err(e), Err(says)) => assert!(e.to_string().contains(says), "{goal:?}: {e}"),
                (found, wanted) => panic!("{goal:?}: {found:?} is not {wanted:?}"),
            }
        }
    }

    #[test]
    fn the_usual_goal_is_one_that_can_be_measured() {
        for float in [scores(Some(1.0), Some(0.8)), scores(Some(1.0), None), scores(None, None)] {
            assert!(Goal::usual(&float).resolved(&float).is_ok(), "{float:?}");
        }
    }

    #[test]
    fn a_bar_is_met_by_what_is_good_and_fast() {
        let measured = |agreement, ms| Measured {
            scores: scores(Some(agreement), None),
            integer_share: 1.0,
            bytes: 1,
            ms,
        };
        let bar = |most_ms| Bar { goal: Goal::Agreement(0.9), most_ms };
        for (bar, measured, met) in [
            (bar(None), measured(0.9, 5.0), true),
            (bar(None), measured(0.89, 5.0), false),
            (bar(Some(5.0)), measured(0.9, 5.0), true),
            (bar(Some(4.0)), measured(0.9, 5.0), false),
        ] {
            assert_eq!(bar.is_met(&measured), met, "{bar}");
        }
    }
}
