//! The record of what equalization did, in a model's metadata.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Result, invalid};
use crate::graph::Graph;

/// The metadata key under which the scales are kept.
const KEY: &str = "lowbit.equalized";

/// Scales are powers of 2^(1/8).
pub const STEPS: f64 = 8.0;

/// The exponent of the least scale, 2^-6.
pub const LEAST: i16 = -48;

/// The scale that an exponent means.
pub fn factor(exponent: i16) -> f32 {
    libm::exp2(f64::from(exponent) / STEPS) as f32
}

/// By how much the values of an equalized model are less than those of the
/// float model it was made from: channel `k` (index of axis 1) of a value is
/// its float form divided by `s_k = 2^(e_k / 8)`.
///
/// In a model they are TOML under the metadata key `lowbit.equalized`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelScales {
    exponents: BTreeMap<String, Vec<i16>>,
}

/// Values of the same scales.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    values: Vec<String>,
    exponents: Vec<i16>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    channels: Vec<Group>,
}

impl ChannelScales {
    /// The scales of `graph`; empty if it is not equalized.
    ///
    /// # Errors
    /// If the metadata is malformed.
    pub fn of(graph: &Graph) -> Result<ChannelScales> {
        let Some(text) = graph.metadata.get(KEY) else { return Ok(ChannelScales::default()) };
        let file: File = toml::from_str(text).map_err(|e| invalid!("{e}").at(format!("metadata {KEY}")))?;
        let groups = file.channels.into_iter();
        let exponents = groups.flat_map(|g| g.values.into_iter().map(move |v| (v, g.exponents.clone())));
        Ok(ChannelScales { exponents: exponents.collect() })
    }

    /// Whether no value is scaled.
    pub fn is_empty(&self) -> bool {
        self.exponents.is_empty()
    }

    /// The scales `s_k` of the value named `value`, if it is scaled.
    pub fn get(&self, value: &str) -> Option<Vec<f32>> {
        Some(self.exponents.get(value)?.iter().map(|e| factor(*e)).collect())
    }

    /// Keeps what is not 1 everywhere.
    pub(super) fn insert(&mut self, value: &str, exponents: Vec<i16>) {
        if exponents.iter().any(|e| *e != 0) {
            self.exponents.insert(value.into(), exponents);
        }
    }

    /// Puts the scales into the metadata.
    pub(super) fn store(&self, graph: &mut Graph) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let mut groups: BTreeMap<&Vec<i16>, Vec<String>> = BTreeMap::new();
        for (value, exponents) in &self.exponents {
            groups.entry(exponents).or_default().push(value.clone());
        }
        let channels = groups.into_iter().map(|(e, values)| Group { values, exponents: e.clone() }).collect();
        let text = toml::to_string(&File { channels }).map_err(|e| invalid!("{e}"))?;
        graph.metadata.insert(KEY.into(), text);
        Ok(())
    }
}
