//! Which observer, with which settings.

use std::cell::Cell;
use std::fmt;

use serde::de::value::{MapAccessDeserializer, MapDeserializer};
use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Result, invalid};
use crate::qparams::Range;
use crate::scheme::{Granularity, Scheme};

/// How a range is found. In files either a name with the standard settings,
/// `"histogram"`, or a table, `{ kind = "histogram", bins = 512 }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ObserverConfig {
    /// Least and greatest value: [`super::MinMax`].
    MinMax,
    /// Their moving average over batches: [`super::MovingAverage`].
    MovingAverage {
        /// Weight of a new batch.
        #[serde(default = "constant")]
        constant: f32,
    },
    /// torch's histogram and search: [`super::Histogram`].
    Histogram {
        /// Number of bins.
        #[serde(default = "bins")]
        bins: usize,
    },
    /// All but the outermost values: [`super::Percentile`].
    Percentile {
        /// Per cent of the values inside.
        #[serde(default = "percentile")]
        percentile: f64,
    },
    /// Least relative entropy: [`super::Entropy`].
    Entropy,
    /// Least squared error: [`super::Mse`].
    Mse,
    /// For activations: the one of several that harms the model's outputs the least:
    /// [`super::Measured`].
    Measured,
    /// A range known beforehand: [`super::Fixed`]. It has no standard settings.
    Fixed {
        /// Least value.
        lo: f32,
        /// Greatest value.
        hi: f32,
    },
    /// No range: [`super::Nothing`].
    None,
}

fn constant() -> f32 {
    0.01
}

fn bins() -> usize {
    2048
}

fn percentile() -> f64 {
    99.99
}

/// The most bins of a histogram: it bounds what one observer holds.
pub(super) const MAX_BINS: usize = 1 << 20;

impl ObserverConfig {
    /// torch's default for activations.
    pub const HISTOGRAM: ObserverConfig = ObserverConfig::Histogram { bins: 2048 };

    /// Checks the settings, and that they suit the scheme.
    ///
    /// # Errors
    /// If a setting is out of its domain, or the observer sees only whole
    /// tensors (histogram, fixed) and the scheme has several groups.
    pub fn check(&self, scheme: &Scheme) -> Result<()> {
        match *self {
            ObserverConfig::MovingAverage { constant } if !(constant > 0.0 && constant <= 1.0) => {
                return Err(invalid!("moving-average: constant {constant} does not lie in 0..1"));
            }
            ObserverConfig::Histogram { bins } if !(2..=MAX_BINS).contains(&bins) => {
                return Err(invalid!("histogram: {bins} bins; it takes 2 to {MAX_BINS}"));
            }
            ObserverConfig::Percentile { percentile } if !(percentile > 0.0 && percentile <= 100.0) => {
                return Err(invalid!("percentile: {percentile} does not lie in 0..100"));
            }
            ObserverConfig::Fixed { lo, hi } => {
                Range::new(lo, hi).map_err(|e| e.at("fixed"))?;
            }
            _ => {}
        }
        let whole = matches!(self, ObserverConfig::Histogram { .. } | ObserverConfig::Fixed { .. });
        if whole && scheme.granularity != Granularity::Tensor {
            return Err(invalid!(
                "{self} observes whole tensors; for {scheme} use min-max, mse or percentile"
            ));
        }
        scheme.check()
    }
}

impl fmt::Display for ObserverConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObserverConfig::MinMax => f.write_str("min-max"),
            ObserverConfig::MovingAverage { constant } => write!(f, "moving-average ({constant})"),
            ObserverConfig::Histogram { bins } => write!(f, "histogram ({bins} bins)"),
            ObserverConfig::Percentile { percentile } => write!(f, "percentile ({percentile})"),
            ObserverConfig::Entropy => f.write_str("entropy"),
            ObserverConfig::Mse => f.write_str("mse"),
            ObserverConfig::Measured => f.write_str("measured"),
            ObserverConfig::Fixed { lo, hi } => write!(f, "fixed ({lo}..{hi})"),
            ObserverConfig::None => f.write_str("none"),
        }
    }
}

impl Serialize for ObserverConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ObserverConfig::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for ObserverConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ObserverConfig, D::Error> {
        deserializer.deserialize_any(NameOrTable)
    }
}

struct NameOrTable;

impl<'de> Visitor<'de> for NameOrTable {
    type Value = ObserverConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an observer's name, or a table with its kind and settings")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<ObserverConfig, E> {
        ObserverConfig::deserialize(MapDeserializer::new(std::iter::once(("kind", name))))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ObserverConfig, A::Error> {
        let keys = Cell::new(0);
        let config = ObserverConfig::deserialize(MapAccessDeserializer::new(Counted { map, keys: &keys }))?;
        // serde ignores what follows a kind without settings.
        let plain = matches!(
            config,
            ObserverConfig::MinMax
                | ObserverConfig::Entropy
                | ObserverConfig::Mse
                | ObserverConfig::Measured
                | ObserverConfig::None
        );
        if plain && keys.get() > 1 {
            return Err(A::Error::custom(format!("observer {config} takes no settings")));
        }
        Ok(config)
    }
}

/// A map that counts its keys.
struct Counted<'a, A> {
    map: A,
    keys: &'a Cell<usize>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Counted<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let key = self.map.next_key_seed(seed)?;
        self.keys.set(self.keys.get() + usize::from(key.is_some()));
        Ok(key)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_tables_are_read() {
        for (text, want) in [
            (r#""min-max""#, ObserverConfig::MinMax),
            (r#"{"kind": "min-max"}"#, ObserverConfig::MinMax),
            (r#""moving-average""#, ObserverConfig::MovingAverage { constant: 0.01 }),
            (r#""histogram""#, ObserverConfig::HISTOGRAM),
            (r#"{"kind": "histogram", "bins": 128}"#, ObserverConfig::Histogram { bins: 128 }),
            (
                r#"{"percentile": 99.9, "kind": "percentile"}"#,
                ObserverConfig::Percentile { percentile: 99.9 },
            ),
            (r#"{"kind": "fixed", "lo": 0, "hi": 1}"#, ObserverConfig::Fixed { lo: 0.0, hi: 1.0 }),
            (r#""measured""#, ObserverConfig::Measured),
            (r#""none""#, ObserverConfig::None),
        ] {
            let config: ObserverConfig = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(config, want, "{text}");
            let written = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<ObserverConfig>(&written).unwrap(), want, "{written}");
        }
        let config: toml::Value = toml::from_str("observer = { kind = \"percentile\" }").unwrap();
        let config: ObserverConfig = config["observer"].clone().try_into().unwrap();
        assert_eq!(config, ObserverConfig::Percentile { percentile: 99.99 });
    }

    #[test]
    fn what_is_unknown_is_refused() {
        for (text, want) in [
            (r#""kl""#, "unknown variant `kl`"),
            (r#"{"kind": "histogram", "bin": 128}"#, "unknown field `bin`"),
            (r#"{"kind": "min-max", "bins": 128}"#, "min-max takes no settings"),
            (r#""fixed""#, "missing field `lo`"),
            ("3", "an observer's name"),
        ] {
            let e = serde_json::from_str::<ObserverConfig>(text).unwrap_err().to_string();
            assert!(e.contains(want), "{text}: {e}");
        }
    }
}
