//! The moving average of each batch's least and greatest value.

use serde::{Deserialize, Serialize};

use super::{Batch, Observer};
use crate::error::Result;
use crate::qparams::Range;
use crate::scheme::Scheme;

/// `v <- v + c (x - v)` over the least and over the greatest value of each
/// batch, the first batch taken whole: torch's `MovingAverageMinMaxObserver`
/// and its per-channel kin.
///
/// To merge `b` into `a` is to observe `a`'s batches, then `b`'s: with `b`'s
/// first value `f` and its number of batches `n`, `v = b + (1 - c)^n (a - f)`,
/// exact but for rounding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovingAverage {
    constant: f32,
    batches: u64,
    first: Vec<Range>,
    average: Vec<Range>,
}

impl MovingAverage {
    /// Nothing seen yet; `constant` is the weight of a new batch.
    pub fn new(constant: f32) -> MovingAverage {
        MovingAverage { constant, batches: 0, first: vec![], average: vec![] }
    }
}

impl Observer for MovingAverage {
    fn observe(&mut self, batch: &Batch<'_>) -> Result<()> {
        let c = self.constant;
        if self.batches == 0 {
            self.first = batch.ranges().to_vec();
            self.average = self.first.clone();
        } else {
            for (v, x) in self.average.iter_mut().zip(batch.ranges()) {
                *v = Range { lo: v.lo + c * (x.lo - v.lo), hi: v.hi + c * (x.hi - v.hi) };
            }
        }
        self.batches += 1;
        Ok(())
    }

    fn ranges(&self, _: &Scheme) -> Result<Vec<Range>> {
        Ok(self.average.clone())
    }

    fn merge(&mut self, other: &MovingAverage) -> Result<()> {
        if self.batches == 0 {
            *self = other.clone();
            return Ok(());
        }
        let kept = (1.0 - f64::from(self.constant)).powf(other.batches as f64);
        let after =
            |a: f32, b: f32, first: f32| (f64::from(b) + kept * (f64::from(a) - f64::from(first))) as f32;
        for ((a, b), first) in self.average.iter_mut().zip(&other.average).zip(&other.first) {
            let (lo, hi) = (after(a.lo, b.lo, first.lo), after(a.hi, b.hi, first.hi));
            *a = Range { lo: lo.min(hi), hi: hi.max(lo) };
        }
        self.batches = self.batches.saturating_add(other.batches);
        Ok(())
    }
}
