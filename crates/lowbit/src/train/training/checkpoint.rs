//! A training on disk.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Learner, Slots, Tally, Training};
use crate::error::{Result, invalid};
use crate::qtensor::{Stored, load, save};
use crate::tensor::Tensor;

/// The entry that holds steps, and the sums over the epoch.
const PLACE: &str = "training.place";
/// The entry that holds the options, as JSON.
const OPTIONS: &str = "training.options";
/// What the names of the optimizer's tensors begin with, before their number.
const SLOT: &str = "training.slot";

impl<L: Learner> Training<L> {
    /// Writes where the training stands: a reader sees the file that was there
    /// or this one, whole.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        let step = self.step;
        let mut entries: BTreeMap<String, Stored> = self
            .learner
            .network(step)?
            .values()
            .iter()
            .map(|(name, t)| (name.clone(), Stored::Plain(t.clone())))
            .collect();
        for (name, slots) in &self.slots {
            for (i, slot) in slots.iter().enumerate() {
                entries.insert(format!("{SLOT}{i}.{name}"), Stored::Plain(slot.clone()));
            }
        }
        let Tally { loss, steps, samples, right } = self.tally;
        let place = [step, loss.to_bits(), steps, samples, right].map(u64::cast_signed);
        entries.insert(PLACE.into(), Stored::Plain(Tensor::vector(place.to_vec())));
        entries.insert(OPTIONS.into(), Stored::Plain(Tensor::vector(self.written_options()?)));
        save(path, &entries)
    }

    fn written_options(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(&self.options).map_err(|e| invalid!("options: {e}"))
    }

    /// Goes on from a file that [`Training::save`] wrote, to the same bytes as
    /// without the pause.
    ///
    /// # Errors
    /// If the file is damaged, or of another model or other options.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        self.read(load(path)?).map_err(|e| e.at(path.display().to_string()))
    }

    fn read(&mut self, entries: BTreeMap<String, Stored>) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for (name, stored) in entries {
            let Stored::Plain(t) = stored else { return Err(invalid!("is quantized").at(name)) };
            tensors.insert(name, t);
        }
        let mut take =
            |name: &str| tensors.remove(name).ok_or_else(|| invalid!("is no checkpoint: it lacks {name}"));
        let options = take(OPTIONS)?;
        if options.slice::<u8>()? != self.written_options()? {
            return Err(invalid!(
                "is a checkpoint of a training with other options: {}",
                String::from_utf8_lossy(options.slice::<u8>()?)
            ));
        }
        let place = take(PLACE)?;
        let &[step, loss, steps, samples, right] = place.slice::<i64>()? else {
            return Err(invalid!("{PLACE} is damaged"));
        };
        let [step, loss, steps, samples, right] = [step, loss, steps, samples, right].map(i64::cast_unsigned);
        let network = self.learner.network(step)?;
        let mut slots = Slots::new();
        let count = self.options.optimizer.slots();
        for (name, had) in network.values_mut().iter_mut() {
            let fitting = |name: &str, t: Tensor| match (t.shape(), t.dtype()) == (had.shape(), had.dtype()) {
                true => Ok(t),
                false => {
                    Err(invalid!("has shape {:?}, the model's has {:?}", t.shape(), had.shape()).at(name))
                }
            };
            let value =
                tensors.remove(name).ok_or_else(|| invalid!("is not of this model: it lacks {name}"))?;
            let value = fitting(name, value)?;
            let kept: Vec<Tensor> = (0..count)
                .filter_map(|i| {
                    let name = format!("{SLOT}{i}.{name}");
                    tensors.remove(&name).map(|t| fitting(&name, t))
                })
                .collect::<Result<_>>()?;
            if kept.len() == count && count > 0 {
                slots.insert(name.clone(), kept);
            }
            *had = value;
        }
        if let Some(name) = tensors.keys().next() {
            return Err(invalid!("is not of this model, which has no {name}"));
        }
        self.slots = slots;
        self.step = step;
        self.tally = Tally { loss: f64::from_bits(loss), steps, samples, right };
        Ok(())
    }
}
