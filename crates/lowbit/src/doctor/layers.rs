//! As few layers as it takes, left in float.

use super::{Event, Search, Step};
use crate::analysis::{LayerScore, SensitivityOptions, sensitivity};
use crate::data::batch_size;
use crate::error::Result;
use crate::qconfig::{QConfig, QConfigMapping, Target};
use crate::scheme::{Format, Mapping};

/// Layers that are tried in int8 again once enough are in float.
const MOST_RETURNS: usize = 8;

/// Why a search ends that has no more time.
pub(super) const LATE: &str = "the time was up";

/// A layer that may be left in float.
struct Layer {
    name: String,
    /// Multiply-accumulates that would no longer be computed in integers.
    macs: u64,
    /// What quantizing it alone does to the outputs.
    harm: f64,
}

impl Search<'_> {
    /// Leaves the layers in float that hurt most for what they compute, as few as reach the
    /// bar, and then spends what it need not. Returns why it ended.
    pub(super) fn spare_layers(&mut self) -> Result<String> {
        if self.is_late() {
            return Ok(LATE.into());
        }
        let base = self.best().mapping.clone();
        let layers = self.ranked_layers(&base)?;
        let Some(mut enough) = self.fewest(&base, &layers)? else {
            return self.weights_alone();
        };
        let mut returns: Vec<usize> = (0..enough.len()).collect();
        returns.sort_by_key(|i| std::cmp::Reverse(layers[enough[*i]].macs));
        let candidates: Vec<usize> = returns.into_iter().take(MOST_RETURNS).map(|i| enough[i]).collect();
        for candidate in candidates {
            if self.is_late() {
                return Ok(LATE.into());
            }
            if enough.len() == 1 {
                break;
            }
            let fewer: Vec<usize> = enough.iter().copied().filter(|i| *i != candidate).collect();
            let why = "the others may be enough";
            let title = format!("{}, and {} in int8 again", counted(fewer.len()), layers[candidate].name);
            if self.with_float(&base, &layers, &fewer, &title, why)? {
                enough = fewer;
            }
        }
        if !self.is_late() {
            let title = format!("{} with int8 weights and 16-bit activations", counted(enough.len()));
            let why = "it may be the activations that hurt: weights of 8 bits keep the file small";
            let mapping = with_wide_activations(&base, enough.iter().map(|i| layers[*i].name.as_str()))?;
            if let Some(mapping) = mapping {
                self.attempt(&title, why, mapping)?;
            }
        }
        Ok(format!("it took {} of {} out of int8", counted(enough.len()), layers.len()))
    }

    /// The last resort: nothing is computed in integers. Returns why it ended.
    fn weights_alone(&mut self) -> Result<String> {
        if self.is_late() {
            return Ok(LATE.into());
        }
        let mapping = QConfigMapping::global(QConfig::weight_only(Format::INT8, None));
        let why = "it is not the layers alone that hurt: the file is still a quarter of the size";
        let tried = self.attempt("weights alone in int8", why, mapping)?;
        let found = if self.trials[tried].meets { "is all that is left" } else { "is not enough either" };
        Ok(format!(
            "even with every layer that has a weight in float it is not: to quantize weights alone {found}"
        ))
    }

    /// The layers, those first that hurt most for what they compute.
    fn ranked_layers(&mut self, base: &QConfigMapping) -> Result<Vec<Layer>> {
        let calibrated = self.calibrated(base)?;
        let judged = self.case.judged;
        let batch = batch_size(self.case.float, judged.batch);
        let options = SensitivityOptions {
            resume: self.options.folder.as_ref().map(|folder| folder.join("layers.jsonl")),
            ..SensitivityOptions::default()
        };
        let of = calibrated.prepared.layers().count();
        let progress = |done| (self.listener)(Event::Step(Step { stage: "measuring layers", done, of }));
        let found = sensitivity(&calibrated.prepared, || judged.data.batches(batch), &options, &progress)?;
        let harm = |layer: &LayerScore| layer.scores.kl.unwrap_or(layer.scores.mse);
        let mut worst: Vec<&LayerScore> = found.layers.iter().collect();
        worst.sort_by(|a, b| harm(b).total_cmp(&harm(a)));
        let names: Vec<String> = worst.iter().take(3).map(|layer| format!("{:?}", layer.layer)).collect();
        self.say(&format!("of {of} layers, these hurt most when quantized alone: {}", names.join(", ")))?;
        let float = &calibrated.float;
        let macs = |name: &str| {
            let node =
                float.applied().find(|(_, node, ..)| node.name == name || node.outputs[0].name == name);
            node.map_or(0, |(v, ..)| float.node_macs(v))
        };
        let layer = |s: &LayerScore| Layer { name: s.layer.clone(), macs: macs(&s.layer), harm: harm(s) };
        let mut layers: Vec<Layer> = found.layers.iter().map(layer).collect();
        let price = |layer: &Layer| layer.harm / layer.macs.max(1) as f64;
        layers.sort_by(|a, b| price(b).total_cmp(&price(a)));
        self.sensitivity = Some(found);
        Ok(layers)
    }

    /// The first layers of the order, as few as reach the bar: twice as many at a time,
    /// then by halves. None if not even all do, or the time is up.
    fn fewest(&mut self, base: &QConfigMapping, layers: &[Layer]) -> Result<Option<Vec<usize>>> {
        let why =
            "float layers add no error, and take longer: those first that hurt most for what they compute";
        let reach = |search: &mut Self, count: usize| {
            let first: Vec<usize> = (0..count).collect();
            search.with_float(base, layers, &first, &counted(count), why)
        };
        let (mut few, mut many) = (0, 1.min(layers.len()));
        loop {
            if many == 0 || self.is_late() {
                return Ok(None);
            }
            if reach(self, many)? {
                break;
            }
            if many == layers.len() {
                return Ok(None);
            }
            (few, many) = (many, (2 * many).min(layers.len()));
        }
        while many - few > 1 && !self.is_late() {
            let middle = few + (many - few) / 2;
            if reach(self, middle)? {
                many = middle;
            } else {
                few = middle;
            }
        }
        Ok(Some((0..many).collect()))
    }

    /// Whether the bar is reached with these layers in float.
    fn with_float(
        &mut self,
        base: &QConfigMapping,
        layers: &[Layer],
        chosen: &[usize],
        title: &str,
        why: &str,
    ) -> Result<bool> {
        let mut mapping = base.clone();
        for i in chosen {
            mapping = mapping.with(Target::exactly(&layers[*i].name)?, None);
        }
        let title = if chosen.len() <= 3 && !title.contains("again") {
            let names: Vec<&str> = chosen.iter().map(|i| layers[*i].name.as_str()).collect();
            format!("{title}: {}", names.join(", "))
        } else {
            title.to_string()
        };
        let tried = self.attempt(&title, why, mapping)?;
        Ok(self.trials[tried].meets)
    }
}

fn counted(layers: usize) -> String {
    match layers {
        1 => "1 layer in float".into(),
        n => format!("{n} layers in float"),
    }
}

/// The rules with 16-bit activations for these nodes; none if there is no rule for all
/// nodes to take weights from.
fn with_wide_activations<'a>(
    base: &QConfigMapping,
    names: impl Iterator<Item = &'a str>,
) -> Result<Option<QConfigMapping>> {
    let general = base.rules.iter().find(|rule| rule.target == Target::All);
    let Some(mut wide) = general.and_then(|rule| rule.qconfig.clone()) else { return Ok(None) };
    let Some(activation) = &mut wide.activation else { return Ok(None) };
    (activation.format, activation.mapping) = (Format::INT16, Mapping::Symmetric);
    activation.codes = None;
    let mut mapping = base.clone();
    for name in names {
        mapping = mapping.with(Target::exactly(name)?, Some(wide.clone()));
    }
    Ok(Some(mapping))
}
