//! Observers that do not look.

use serde::{Deserialize, Serialize};

use super::{Batch, Observer};
use crate::error::{Result, invalid};
use crate::qparams::Range;
use crate::scheme::Scheme;

/// A range known beforehand, such as 0..1 after a sigmoid: torch's
/// `FixedQParamsObserver`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fixed {
    range: Range,
}

impl Fixed {
    /// Always `range`.
    pub fn new(range: Range) -> Fixed {
        Fixed { range }
    }
}

impl Observer for Fixed {
    fn looks(&self) -> bool {
        false
    }

    fn observe(&mut self, _: &Batch<'_>) -> Result<()> {
        Ok(())
    }

    fn ranges(&self, _: &Scheme) -> Result<Vec<Range>> {
        Ok(vec![self.range])
    }

    fn merge(&mut self, other: &Fixed) -> Result<()> {
        if self != other {
            return Err(invalid!("fixed ranges differ: {:?} and {:?}", self.range, other.range));
        }
        Ok(())
    }
}

/// Holds the place of an observer where none is needed (dynamic
/// quantization): torch's `PlaceholderObserver` and `NoopObserver`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Nothing {}

impl Observer for Nothing {
    fn looks(&self) -> bool {
        false
    }

    fn observe(&mut self, _: &Batch<'_>) -> Result<()> {
        Ok(())
    }

    fn ranges(&self, _: &Scheme) -> Result<Vec<Range>> {
        Err(invalid!("observer \"none\" has no range; choose one that looks at values, such as min-max"))
    }

    fn merge(&mut self, _: &Nothing) -> Result<()> {
        Ok(())
    }
}
