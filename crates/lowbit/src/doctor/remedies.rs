//! What may make a quantized model better without making it slower.

use crate::observer::ObserverConfig;
use crate::qconfig::{BiasCorrection, Per, QConfig, QConfigMapping, Rounding};

/// A change of how everything is quantized.
pub(super) struct Remedy {
    /// What it does, in a few words.
    pub title: &'static str,
    /// What it is good for.
    pub why: &'static str,
    /// Changes a configuration that it is for.
    change: fn(&mut QConfig),
}

/// The remedies, in the order of what they cost. A new one is a row.
pub(super) const REMEDIES: &[Remedy] = &[
    Remedy {
        title: "a scale for each output channel",
        why: "one scale for a whole weight leaves few codes to its channels of small values",
        change: |q| {
            if q.weight.per == Per::Tensor {
                q.weight.per = Per::Channel;
                q.weight.cross_layer = false;
            }
        },
    },
    Remedy {
        title: "weights that share their ranges across layers",
        why: "one scale for a whole weight leaves few codes to its channels of small values",
        change: |q| q.weight.cross_layer |= q.weight.per == Per::Tensor,
    },
    Remedy {
        title: "biases that make up for the mean error of weights",
        why: "rounding moves the mean of what a channel makes, and later layers add that up",
        change: |q| q.weight.correct_bias = BiasCorrection::Observed,
    },
    Remedy {
        title: "weights rounded together (GPTQ)",
        why: "the error of one weight can make up for those of others",
        change: |q| q.weight.rounding = Rounding::Gptq,
    },
    Remedy {
        title: "ranges of least squared error",
        why: "a range that holds every outlier has coarse steps",
        change: |q| observe(q, ObserverConfig::Mse),
    },
    Remedy {
        title: "ranges that hold 99.99 % of the values",
        why: "a range that holds every outlier has coarse steps",
        change: |q| observe(q, ObserverConfig::Percentile { percentile: 99.99 }),
    },
    Remedy {
        title: "ranges that hold every value",
        why: "clipped values may be the ones that decide",
        change: |q| observe(q, ObserverConfig::MinMax),
    },
    Remedy {
        title: "ranges measured one by one",
        why: "values differ in which range harms the outputs the least",
        change: |q| observe(q, ObserverConfig::Measured),
    },
    Remedy {
        title: "means and deviations of channels given back",
        why: "rounding changes how far a channel spreads, and later layers multiply that",
        change: |q| q.weight.renormalize = q.observed().is_some() && q.weight.per == Per::Channel,
    },
    Remedy {
        title: "channels of alike range",
        why: "one scale for an activation leaves few codes to its channels of small values",
        change: |q| {
            if let Some(activation) = &mut q.activation {
                activation.equalize = activation.equalize.max(0.5);
            }
        },
    },
    Remedy {
        title: "rounding learned, block by block (AdaRound)",
        why: "whether each weight is rounded up or down can make up for the errors of all others",
        // It takes minutes, and codes of 8 bits are near enough without.
        change: |q| {
            if q.weight.format.bits() < 8 {
                q.weight.rounding = Rounding::Adaround;
            }
        },
    },
];

fn observe(q: &mut QConfig, observer: ObserverConfig) {
    if let Some(activation) = q.activation.as_mut().filter(|a| !a.dynamic) {
        activation.observer = observer;
    }
}

impl Remedy {
    /// The rules with this change; none if it changes nothing.
    pub fn applied(&self, mapping: &QConfigMapping) -> Option<QConfigMapping> {
        let mut changed = mapping.clone();
        changed.rules.iter_mut().filter_map(|rule| rule.qconfig.as_mut()).for_each(self.change);
        (changed != *mapping).then_some(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qconfig::preset;

    #[test]
    fn what_is_there_already_is_no_remedy() {
        let mapping = |name: &str| QConfigMapping::global(preset(name).unwrap());
        let titles = |name: &str| -> Vec<&str> {
            REMEDIES.iter().filter(|r| r.applied(&mapping(name)).is_some()).map(|r| r.title).collect()
        };
        let standard = titles("default");
        assert!(!standard.contains(&"a scale for each output channel"), "{standard:?}");
        assert!(!standard.contains(&"ranges of least squared error"), "{standard:?}");
        assert!(standard.contains(&"ranges that hold every value"), "{standard:?}");
        // 8 bits are not learned, and one scale cannot serve each channel.
        assert_eq!(titles("qnnpack").len(), REMEDIES.len() - 2);
        for remedy in REMEDIES {
            let Some(once) = remedy.applied(&mapping("qnnpack")) else { continue };
            assert_eq!(remedy.applied(&once), None, "{}", remedy.title);
        }
    }
}
