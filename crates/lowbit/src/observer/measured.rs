//! Counts from which a range is chosen by what it does to the model's outputs.

use serde::{Deserialize, Serialize};

use super::{Batch, Mse, Observer};
use crate::error::Result;
use crate::qparams::Range;
use crate::scheme::Scheme;

/// Counts values as [`Mse`] does, for [`crate::passes::measured_ranges`] to put the observer
/// in its place whose range harms the model's outputs the least. Until then its ranges are
/// those of [`Mse`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured(pub(super) Mse);

impl Observer for Measured {
    fn observe(&mut self, batch: &Batch<'_>) -> Result<()> {
        self.0.observe(batch)
    }

    fn ranges(&self, scheme: &Scheme) -> Result<Vec<Range>> {
        self.0.ranges(scheme)
    }

    fn merge(&mut self, other: &Measured) -> Result<()> {
        self.0.merge(&other.0)
    }
}
