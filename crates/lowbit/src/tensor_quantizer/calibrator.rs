//! From values seen to a largest magnitude.

use serde::{Deserialize, Serialize};

use super::descriptor::{CalibMethod, QuantDescriptor};
use crate::error::{Result, invalid};
use crate::observer::{AnyObserver, ObserverConfig};
use crate::tensor::Tensor;

/// Which magnitudes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AmaxMethod {
    /// All: the largest magnitude ([`crate::observer::MinMax`]).
    Max,
    /// This many per cent of them ([`crate::observer::Percentile`]).
    Percentile(f64),
    /// Those of least relative entropy ([`crate::observer::Entropy`]).
    Entropy,
    /// Those of least squared error ([`crate::observer::Mse`]).
    Mse,
}

/// `pytorch-quantization`'s `MaxCalibrator` and `HistogramCalibrator`: an observer of
/// symmetric ranges. A histogram is counted once and searched by every method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibrator {
    pub(super) observer: AnyObserver,
}

impl Calibrator {
    /// A calibrator that saw nothing, of the descriptor's method.
    ///
    /// # Errors
    /// Those of [`QuantDescriptor::check`].
    pub fn new(descriptor: &QuantDescriptor) -> Result<Calibrator> {
        descriptor.check()?;
        let config = match descriptor.calib_method {
            CalibMethod::Max => ObserverConfig::MinMax,
            CalibMethod::Histogram => ObserverConfig::Percentile { percentile: 100.0 },
        };
        Ok(Calibrator { observer: AnyObserver::new(config, descriptor.observed())? })
    }

    /// Takes values into account.
    ///
    /// # Errors
    /// If `x` is not floating point, or not finite.
    pub fn collect(&mut self, x: &Tensor) -> Result<()> {
        self.observer.observe(x)
    }

    /// Whether it saw no value yet.
    pub fn is_empty(&self) -> bool {
        self.observer.is_empty()
    }

    /// The largest magnitude to keep, one for each index of the axis.
    ///
    /// # Errors
    /// If nothing was seen, the percentile does not lie in 0 to 100, or the method needs
    /// a histogram and the calibrator keeps none.
    pub fn compute_amax(&self, method: AmaxMethod) -> Result<Vec<f32>> {
        let config = match method {
            AmaxMethod::Max => None,
            AmaxMethod::Percentile(percentile) => Some(ObserverConfig::Percentile { percentile }),
            AmaxMethod::Entropy => Some(ObserverConfig::Entropy),
            AmaxMethod::Mse => Some(ObserverConfig::Mse),
        };
        let ranges = match config {
            None => self.observer.ranges(),
            Some(config) => {
                let searched = self.observer.as_kind(config);
                searched.map_err(|e| invalid!("{e}; calib-method = \"histogram\" keeps them"))?.ranges()
            }
        };
        Ok(ranges?.into_iter().map(|range| range.amax()).collect())
    }
}
