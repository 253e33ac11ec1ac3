//! One model that was tried.

use serde::{Deserialize, Serialize};

use super::bar::Bar;
use crate::analysis::Scores;
use crate::qconfig::QConfigMapping;

/// What a model reaches and costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Its outputs against those of the float model.
    pub scores: Scores,
    /// The share of multiply-accumulates in integers.
    pub integer_share: f64,
    /// The bytes of its constants.
    pub bytes: u64,
    /// The median time of a sample, in milliseconds.
    pub ms: f64,
}

impl Measured {
    /// Whether this one is to be preferred: it reaches the bar and `other` does not; both
    /// do, and more of it is computed in integers, or it is smaller; or neither does, and
    /// it comes nearer. Times do not count, as they differ from run to run.
    pub(super) fn is_better(&self, other: &Measured, bar: &Bar) -> bool {
        let goal = |m: &Measured| bar.goal.of(&m.scores);
        let near = |m: &Measured| m.scores.kl.map_or(m.scores.sqnr_db, |kl| -kl);
        let by_score = || goal(self).total_cmp(&goal(other)).then(near(self).total_cmp(&near(other)));
        let order = match (bar.is_met(self), bar.is_met(other)) {
            (true, true) => self
                .integer_share
                .total_cmp(&other.integer_share)
                .then(other.bytes.cmp(&self.bytes))
                .then_with(by_score),
            (false, false) => by_score(),
            (met, _) => met.cmp(&!met),
        };
        order.is_gt()
    }
}

/// One model that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// What was tried, in a few words.
    pub title: String,
    /// Why.
    pub why: String,
    /// The rules that make it ([`crate::recipe::quantize`]).
    pub mapping: QConfigMapping,
    /// What it reaches.
    pub measured: Measured,
    /// Whether that is enough.
    pub meets: bool,
    /// Whether it is better than all before.
    pub kept: bool,
    /// What came of it, in words.
    pub text: String,
    /// The time that it took, in seconds.
    pub seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Goal;

    #[test]
    fn what_reaches_the_bar_and_costs_less_is_better() {
        let bar = Bar { goal: Goal::Agreement(0.9), most_ms: Some(2.0) };
        let model = |agreement, kl, integer_share, bytes, ms| Measured {
            scores: Scores { sqnr_db: 10.0, mse: 0.0, kl, agreement: Some(agreement), top1: None },
            integer_share,
            bytes,
            ms,
        };
        let worst_first = [
            model(0.80, Some(0.1), 1.0, 10, 1.0),
            model(0.85, Some(0.2), 1.0, 10, 1.0),
            model(0.85, Some(0.1), 1.0, 10, 1.0),
            model(0.99, Some(0.1), 0.0, 40, 3.0),
            model(0.99, Some(0.1), 0.5, 30, 1.9),
            model(0.95, Some(0.1), 0.7, 20, 1.9),
            model(0.95, Some(0.1), 0.7, 15, 1.9),
            model(0.96, Some(0.1), 0.7, 15, 1.9),
        ];
        for (i, a) in worst_first.iter().enumerate() {
            for (j, b) in worst_first.iter().enumerate() {
                assert_eq!(a.is_better(b, &bar), i > j, "{i} {j}");
            }
        }
    }
}
