//! The record of what equalization did, in a model's metadata.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, invalid};
use crate::graph::Graph;

/// The metadata key under which the scales are kept.
const KEY: &str = "lowbit.equalized";

/// Scales are powers of 2^(1/8).
pub const STEPS: f64 = 8.0;

/// The exponent of the least scale, 2^-6.
pub const LEAST: i16 = -48;

/// What stands for a scale of 1 in a file.
const ONE: char = '#';

/// The scale that an exponent means.
pub fn factor(exponent: i16) -> f32 {
    libm::exp2(f64::from(exponent) / STEPS) as f32
}

/// By how much the values of an equalized model are less than those of the
/// float model it was made from: channel `k` (index of axis 1) of a value is
/// its float form divided by `s_k = 2^(e_k / 8)`.
///
/// In a model they are TOML under the metadata key `lowbit.equalized`: values
/// of the same scales together, with one character for each channel, `#` for a
/// scale of 1 and the next in ASCII for each step of 2^(-1/8).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelScales {
    exponents: BTreeMap<String, Vec<i16>>,
}

/// Values of the same scales.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    values: Vec<String>,
    scales: String,
}

impl Group {
    fn exponents(&self) -> Result<Vec<i16>> {
        let exponent = |c: char| {
            let steps = u32::from(c).checked_sub(u32::from(ONE)).and_then(|n| i16::try_from(n).ok());
            steps.map(|n| -n).filter(|e| *e >= LEAST)
        };
        let known =
            |c| exponent(c).ok_or_else(|| invalid!("{c:?} stands for no scale").at(self.values.join(", ")));
        self.scales.chars().map(known).collect()
    }
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
        let at = |e: Error| e.at(format!("metadata {KEY}"));
        let file: File = toml::from_str(text).map_err(|e| at(invalid!("{e}")))?;
        let mut exponents = BTreeMap::new();
        for group in file.channels {
            let scales = group.exponents().map_err(at)?;
            exponents.extend(group.values.into_iter().map(|v| (v, scales.clone())));
        }
        Ok(ChannelScales { exponents })
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
        let character = |e: &i16| char::from(ONE as u8 + e.unsigned_abs() as u8);
        let scales = |e: &[i16]| e.iter().map(character).collect();
        let channels = groups.into_iter().map(|(e, values)| Group { values, scales: scales(e) }).collect();
        let text = toml::to_string(&File { channels }).map_err(|e| invalid!("{e}"))?;
        graph.metadata.insert(KEY.into(), text);
        Ok(())
    }
}
