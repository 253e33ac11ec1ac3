//! Whether and how biases make up for the mean error of weights.

use std::fmt;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, invalid};

/// Whether a bias makes up for what quantizing the weight takes from the mean output, and
/// where the mean inputs come from. In files `true` is short for `"observed"`, and `false`
/// for `"off"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum BiasCorrection {
    /// It does not.
    #[default]
    Off,
    /// By the means of the calibration data.
    Observed,
    /// By those that the batch normalization before the layer implies
    /// ([`crate::passes::expected_means`]).
    Analytic,
}

impl BiasCorrection {
    pub(super) fn is_off(&self) -> bool {
        *self == BiasCorrection::Off
    }
}

impl std::str::FromStr for BiasCorrection {
    type Err = Error;

    fn from_str(text: &str) -> Result<BiasCorrection, Error> {
        match text {
            "off" => Ok(BiasCorrection::Off),
            "observed" => Ok(BiasCorrection::Observed),
            "analytic" => Ok(BiasCorrection::Analytic),
            _ => Err(invalid!("unknown bias correction {text:?}: choose off, observed or analytic")),
        }
    }
}

impl Serialize for BiasCorrection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            BiasCorrection::Off => serializer.serialize_bool(false),
            BiasCorrection::Observed => serializer.serialize_bool(true),
            BiasCorrection::Analytic => serializer.serialize_str("analytic"),
        }
    }
}

impl<'de> Deserialize<'de> for BiasCorrection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BiasCorrection, D::Error> {
        deserializer.deserialize_any(BoolOrName)
    }
}

struct BoolOrName;

impl Visitor<'_> for BoolOrName {
    type Value = BiasCorrection;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true, false, or the name of a bias correction")
    }

    fn visit_bool<E: serde::de::Error>(self, on: bool) -> Result<BiasCorrection, E> {
        Ok(if on { BiasCorrection::Observed } else { BiasCorrection::Off })
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<BiasCorrection, E> {
        name.parse().map_err(|e: Error| E::custom(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qconfig::QConfigMapping;

    #[test]
    fn the_setting_is_read_and_written() {
        let of = |value: &str| {
            let rule = format!(
                "[[rule]]\n[rule.weight]\nformat = \"int8\"\nmapping = \"symmetric\"\ncorrect-bias = {value}"
            );
            let mapping = QConfigMapping::from_toml(&rule)?;
            assert_eq!(QConfigMapping::from_toml(&mapping.to_toml().unwrap()).unwrap(), mapping, "{value}");
            Ok::<_, Error>(mapping.rules[0].qconfig.as_ref().unwrap().weight.correct_bias)
        };
        for (value, wanted) in [
            ("true", BiasCorrection::Observed),
            ("false", BiasCorrection::Off),
            ("\"off\"", BiasCorrection::Off),
            ("\"observed\"", BiasCorrection::Observed),
            ("\"analytic\"", BiasCorrection::Analytic),
        ] {
            assert_eq!(of(value).unwrap(), wanted, "{value}");
        }
        let error = of("\"maybe\"").unwrap_err().to_string();
        assert!(error.contains("choose off, observed or analytic"), "{error}");
    }
}
