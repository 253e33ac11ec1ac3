//! The least and greatest value seen.

use serde::{Deserialize, Serialize};

use super::{Batch, Observer};
use crate::error::Result;
use crate::qparams::Range;
use crate::scheme::Scheme;

/// The least and greatest value of each group over all batches: torch's
/// `MinMaxObserver` and `PerChannelMinMaxObserver`. Merges exactly.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MinMax {
    ranges: Vec<Range>,
}

impl Observer for MinMax {
    fn observe(&mut self, batch: &Batch<'_>) -> Result<()> {
        self.widen(batch.ranges());
        Ok(())
    }

    fn ranges(&self, _: &Scheme) -> Result<Vec<Range>> {
        Ok(self.ranges.clone())
    }

    fn merge(&mut self, other: &MinMax) -> Result<()> {
        self.widen(&other.ranges);
        Ok(())
    }
}

impl MinMax {
    fn widen(&mut self, ranges: &[Range]) {
        if self.ranges.is_empty() {
            self.ranges = ranges.to_vec();
        } else {
            self.ranges.iter_mut().zip(ranges).for_each(|(a, b)| *a = a.union(*b));
        }
    }
}
