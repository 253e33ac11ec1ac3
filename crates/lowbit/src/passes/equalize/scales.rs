//! The record of what equalization did, in a model's metadata.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, invalid};
use crate::graph::Graph;

/// The metadata key under which the scales are kept.
const KEY: &str = "lowbit.equalized";

/// Scales are powers of 2^(1/64).
const STEPS: f64 = 64.0;

/// The exponent of 2^(1/8): characters stand for its multiples.
const COARSE: i16 = 8;

/// The greatest exponent, of 2^20; the least is its opposite.
const MOST: i16 = 20 * 64;

/// The least exponent that a character stands for, of 2^-6.
const LEAST_CHARACTER: i16 = -6 * 64;

/// What stands for a scale of 1 in a file.
const ONE: char = '#';

/// The scale that an exponent means.
pub fn factor(exponent: i16) -> f32 {
    libm::exp2(f64::from(exponent) / STEPS) as f32
}

/// How finely scales are told apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// Powers of 2^(1/8).
    Coarse,
    /// Powers of 2^(1/64).
    Fine,
}

/// The exponent of the scale nearest to `2^log` that is at least `least`, which is 1 at most;
/// an infinite one asks for a scale of 1.
pub fn exponent(log: f64, least: f32, grain: Grain) -> i16 {
    if least.is_infinite() {
        return 0;
    }
    let step = if grain == Grain::Coarse { f64::from(COARSE) } else { 1.0 };
    let steps = |log: f64| log * STEPS / step;
    let bounded = steps(log).round().max(steps(f64::from(least).log2()).ceil()) * step;
    bounded.clamp(f64::from(-MOST), f64::from(MOST)) as i16
}

/// By how much the values of an equalized model are less than those of the
/// float model it was made from: channel `k` (index of axis 1) of a value is
/// its float form divided by `s_k = 2^(e_k / 64)`.
///
/// In a model they are TOML under the metadata key `lowbit.equalized`: values
/// of the same scales together, with one character for each channel, `#` for a
/// scale of 1 and the next in ASCII for each step of 2^(-1/8); where a scale is another,
/// more than 1 or less than 2^-6, with the numbers `e_k` in place of characters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelScales {
    exponents: BTreeMap<String, Vec<i16>>,
}

/// Values of the same scales.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    values: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    scales: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    exponents: Vec<i16>,
}

impl Group {
    fn new(values: Vec<String>, exponents: &[i16]) -> Group {
        if exponents.iter().all(|e| (LEAST_CHARACTER..=0).contains(e) && e % COARSE == 0) {
            let character = |e: &i16| char::from(ONE as u8 + (e / COARSE).unsigned_abs() as u8);
            return Group { values, scales: exponents.iter().map(character).collect(), exponents: vec![] };
        }
        Group { values, scales: String::new(), exponents: exponents.to_vec() }
    }

    fn exponents(&self) -> Result<Vec<i16>> {
        let at = |e: Error| e.at(self.values.join(", "));
        if !self.exponents.is_empty() {
            if !self.scales.is_empty() {
                return Err(at(invalid!("has scales and exponents: one of them is enough")));
            }
            let known = |e: &i16| (-MOST..=MOST).contains(e).then_some(*e);
            return self
                .exponents
                .iter()
                .map(|e| known(e).ok_or_else(|| at(invalid!("{e} stands for no scale"))))
                .collect();
        }
        let exponent = |c: char| {
            let steps = u32::from(c).checked_sub(u32::from(ONE)).and_then(|n| i16::try_from(n).ok());
            steps.and_then(|n| n.checked_mul(-COARSE)).filter(|e| *e >= LEAST_CHARACTER)
        };
        let known = |c| exponent(c).ok_or_else(|| at(invalid!("{c:?} stands for no scale")));
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
        let channels = groups.into_iter().map(|(e, values)| Group::new(values, e)).collect();
        let text = toml::to_string(&File { channels }).map_err(|e| invalid!("{e}"))?;
        graph.metadata.insert(KEY.into(), text);
        Ok(())
    }
}
