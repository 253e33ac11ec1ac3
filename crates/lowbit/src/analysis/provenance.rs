//! What a quantized model was made from, and how, in the model's metadata.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use super::summary::{Place, Quantized};
use crate::data::{Dataset, Digest, sha256_of_file};
use crate::error::{Result, invalid};
use crate::graph::Graph;

/// What a quantized model was made from, and how: metadata under keys that begin with `lowbit.`.
/// It has no date and no path, so that the same inputs give the same bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Provenance {
    /// The version of lowbit (`lowbit.version`).
    pub version: String,
    /// What made the model: `quantize` or `qat`, and options that are no settings (`lowbit.command`).
    pub command: String,
    /// Its settings, as TOML (`lowbit.settings`): of `quantize` the rules, as `--config` reads them.
    pub settings: String,
    /// The codes of the model's activations, weights and biases (`lowbit.codes`).
    pub codes: String,
    /// The float model's file (`lowbit.model.sha256`).
    pub model: Digest,
    /// The samples as the model got them (`lowbit.data.sha256`), where there were any.
    pub data: Option<Digest>,
    /// How many samples there were (`lowbit.data.samples`).
    pub samples: Option<usize>,
}

const VERSION: &str = "lowbit.version";
const COMMAND: &str = "lowbit.command";
const SETTINGS: &str = "lowbit.settings";
const CODES: &str = "lowbit.codes";
const MODEL: &str = "lowbit.model.sha256";
const DATA: &str = "lowbit.data.sha256";
const SAMPLES: &str = "lowbit.data.samples";

impl Provenance {
    /// What this version of lowbit makes of a model's file and of `data` with `settings`.
    ///
    /// # Errors
    /// If the file or a sample cannot be read, or the settings cannot be written as TOML; the error
    /// names it.
    pub fn new(
        command: &str,
        settings: &impl Serialize,
        model: &Path,
        data: Option<&Dataset>,
    ) -> Result<Provenance> {
        let settings = toml::to_string_pretty(settings).map_err(|e| invalid!("{e}").at("settings"))?;
        Ok(Provenance {
            version: env!("CARGO_PKG_VERSION").into(),
            command: command.into(),
            settings,
            codes: String::new(),
            model: sha256_of_file(model)?,
            data: data.map(Dataset::sha256).transpose()?,
            samples: data.map(Dataset::len),
        })
    }

    /// Puts it into the metadata of `graph`, with the codes of `graph`, in the place of what was there.
    ///
    /// # Errors
    /// If scales do not fit what they scale; the error names the node.
    pub fn record(&self, graph: &mut Graph) -> Result<()> {
        let codes = codes(graph)?;
        let samples = self.samples.map(|n| n.to_string());
        for (key, value) in [
            (VERSION, Some(&self.version)),
            (COMMAND, Some(&self.command)),
            (SETTINGS, Some(&self.settings)),
            (CODES, Some(&codes)),
            (MODEL, Some(&self.model)),
            (DATA, self.data.as_ref()),
            (SAMPLES, samples.as_ref()),
        ] {
            graph.metadata.remove(key);
            if let Some(value) = value {
                graph.metadata.insert(key.into(), value.clone());
            }
        }
        Ok(())
    }

    /// What the metadata of `graph` say; nothing if lowbit recorded nothing. What is missing is empty.
    pub fn of(graph: &Graph) -> Option<Provenance> {
        let value = |key: &str| graph.metadata.get(key).cloned();
        let text = |key: &str| value(key).unwrap_or_default();
        Some(Provenance {
            version: value(VERSION)?,
            command: text(COMMAND),
            settings: text(SETTINGS),
            codes: text(CODES),
            model: text(MODEL),
            data: value(DATA),
            samples: value(SAMPLES).and_then(|n| n.parse().ok()),
        })
    }
}

/// The kinds of codes in a graph: `activation uint8 affine, weight int8 symmetric ...`.
fn codes(graph: &Graph) -> Result<String> {
    let kinds: BTreeSet<String> = Quantized::all(graph)?
        .into_iter()
        .map(|q| {
            let place = match q.place {
                Place::Activation => "activation",
                Place::Weight => "weight",
                Place::Bias => "bias",
            };
            format!("{place} {}", q.scheme)
        })
        .collect();
    Ok(kinds.into_iter().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests;
