//! The training loop.

mod checkpoint;

use serde::{Deserialize, Serialize};

use super::loss::{Loss, Lost};
use super::network::Network;
use super::optimizer::{Optimizer, Slots};
use super::schedule::{Schedule, WarmUp};
use crate::data::{Augment, Batch, Dataset};
use crate::error::{Result, invalid};
use crate::graph::Graph;
use crate::random::SplitMix;
use crate::scores::{classes, first};
use crate::tensor::{KeptMemory, Tensor};

/// What a [`Training`] trains.
pub trait Learner {
    /// The network as it is in step `step`, from 0.
    ///
    /// # Errors
    /// If it cannot be put together.
    fn network(&mut self, step: u64) -> Result<&mut Network>;
}

impl Learner for Network {
    fn network(&mut self, _step: u64) -> Result<&mut Network> {
        Ok(self)
    }
}

/// What outputs should be.
pub enum Target<'a> {
    /// The labels of the data, of the first output.
    Labels,
    /// What a teacher makes of the same inputs, output by output.
    Teacher(&'a (dyn Fn(&[Tensor]) -> Result<Vec<Tensor>> + Sync)),
}

/// How a model is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Options {
    /// Passes over the data.
    pub epochs: u64,
    /// Samples of a step. Those that do not fill a last batch wait for another
    /// epoch's order.
    pub batch: usize,
    /// What moves the parameters.
    pub optimizer: Optimizer,
    /// The learning rate.
    pub rate: f32,
    /// How it changes.
    pub schedule: Schedule,
    /// How it begins.
    pub warm_up: WarmUp,
    /// What is made small.
    pub loss: Loss,
    /// The greatest norm of all gradients together; greater ones are scaled to it.
    pub clip: Option<f32>,
    /// What pictures go through.
    pub augment: Augment,
    /// The order of samples and all else that is drawn.
    pub seed: u64,
}

impl Default for Options {
    /// Ten epochs of SGD with momentum at 0.01 down a cosine, on labels.
    fn default() -> Options {
        Options {
            epochs: 10,
            batch: 64,
            optimizer: Optimizer::sgd(1e-4),
            rate: 0.01,
            schedule: Schedule::Cosine,
            warm_up: WarmUp::default(),
            loss: Loss::CrossEntropy { smoothing: 0.0 },
            clip: None,
            augment: Augment::default(),
            seed: 0,
        }
    }
}

impl Options {
    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// If a number lies outside its range; it is named.
    pub fn check(&self) -> Result<()> {
        if self.batch == 0 || self.epochs == 0 {
            return Err(invalid!("epochs and batch are 1 at least"));
        }
        if !(self.rate.is_finite() && self.rate > 0.0) {
            return Err(invalid!("rate = {} is not a positive number", self.rate));
        }
        if self.clip.is_some_and(|clip| !(clip.is_finite() && clip > 0.0)) {
            return Err(invalid!("clip = {:?} is not a positive number", self.clip));
        }
        self.optimizer.check()?;
        self.schedule.check()
    }
}

/// How training goes, after each step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// The epoch of the step, from 0.
    pub epoch: u64,
    /// The loss of the step.
    pub loss: f64,
    /// The mean loss of the epoch so far.
    pub mean_loss: f64,
    /// The share of the epoch's samples so far whose greatest score is that of
    /// the target.
    pub accuracy: Option<f64>,
    /// The learning rate.
    pub rate: f32,
}

/// A model being trained: where it stands, and what the optimizer keeps.
pub struct Training<L> {
    /// What is trained.
    pub learner: L,
    options: Options,
    slots: Slots,
    step: u64,
    tally: Tally,
}

/// Bytes of a step that the next one uses again.
const KEPT: usize = 2 << 30;

/// Sums over the epoch so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Tally {
    loss: f64,
    steps: u64,
    samples: u64,
    right: u64,
}

impl<L: Learner> Training<L> {
    /// The start of a training.
    ///
    /// # Errors
    /// If the options make no sense.
    pub fn new(learner: L, options: Options) -> Result<Training<L>> {
        options.check()?;
        Ok(Training { learner, options, slots: Slots::new(), step: 0, tally: Tally::default() })
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Trains on, from where it stands to the end. `progress` is called after
    /// each step; its error stops the training, which can be resumed.
    ///
    /// The result depends on the options and the data alone, not on the number
    /// of threads, nor on whether it was stopped and resumed.
    ///
    /// # Errors
    /// If the data does not fit, the loss is no number any more, or `progress`
    /// fails.
    pub fn run(
        &mut self,
        data: &Dataset,
        target: &Target,
        progress: &mut dyn FnMut(&mut Training<L>, &Progress) -> Result<()>,
    ) -> Result<()> {
        let batch = self.options.batch.min(data.len());
        if batch == 0 {
            return Err(invalid!("the training data is empty: give at least one sample"));
        }
        let _memory = KeptMemory::up_to(KEPT);
        let each = (data.len() / batch) as u64;
        let steps = each * self.options.epochs;
        while self.step < steps {
            let (epoch, at) = (self.step / each, (self.step % each) as usize);
            if at == 0 {
                self.tally = Tally::default();
            }
            let order = SplitMix::of(&[self.options.seed, epoch]).permutation(data.len());
            for samples in order.chunks_exact(batch).skip(at) {
                let made = self.batch(data, samples, epoch, target, steps)?;
                progress(self, &made)?;
            }
        }
        Ok(())
    }

    /// One step on these samples.
    fn batch(
        &mut self,
        data: &Dataset,
        samples: &[usize],
        epoch: u64,
        target: &Target,
        steps: u64,
    ) -> Result<Progress> {
        let mut batch = data.at(samples)?;
        if !self.options.augment.is_none() {
            let seeds: Vec<u64> = samples
                .iter()
                .map(|&i| SplitMix::of(&[self.options.seed, epoch, i as u64, 1]).next_u64())
                .collect();
            for (name, x) in &mut batch.inputs {
                *x = self.options.augment.apply(x, &seeds).map_err(|e| e.at(format!("input {name}")))?;
            }
        }
        let (loss, right) = self.learn(&batch, target, steps)?;
        self.tally.loss += loss;
        self.tally.steps += 1;
        self.tally.samples += samples.len() as u64;
        self.tally.right += right.unwrap_or(0);
        Ok(Progress {
            step: self.step,
            steps,
            epoch,
            loss,
            mean_loss: self.tally.loss / self.tally.steps as f64,
            accuracy: right.map(|_| self.tally.right as f64 / self.tally.samples as f64),
            rate: self.rate(self.step - 1, steps),
        })
    }

    fn rate(&self, step: u64, steps: u64) -> f32 {
        let Options { rate, schedule, warm_up, .. } = &self.options;
        (f64::from(*rate) * schedule.factor(step, steps, *warm_up)) as f32
    }

    /// Moves the parameters for a batch. Returns the loss, and how many samples
    /// have their greatest score where the target has it.
    fn learn(&mut self, batch: &Batch, target: &Target, steps: u64) -> Result<(f64, Option<u64>)> {
        let rate = self.rate(self.step, steps);
        let network = self.learner.network(self.step)?;
        let inputs: Vec<Tensor> = batch.inputs.iter().map(|(_, x)| x.clone()).collect();
        let step = network.step(&inputs)?;
        let (lost, right) = losses(&self.options.loss, &step.outputs, batch, target, &inputs)?;
        let loss = lost.iter().flatten().map(|l| l.loss).sum::<f64>();
        if !loss.is_finite() {
            return Err(invalid!(
                "the loss is {loss} in step {}: try a lower rate, or clip the gradients",
                self.step
            ));
        }
        let mut gradients = step.back(lost.into_iter().map(|l| l.map(|l| l.gradient)).collect())?;
        clip(&mut gradients, self.options.clip)?;
        network.descend(gradients, &self.options.optimizer, &mut self.slots, rate, self.step + 1)?;
        self.step += 1;
        Ok((loss, right))
    }
}

impl Training<Network> {
    /// `graph`, the model that the network was made of, with what was learned.
    ///
    /// # Errors
    /// If it is another model.
    pub fn trained(&self, graph: &Graph) -> Result<Graph> {
        self.learner.written_to(graph)
    }
}

/// The losses of the outputs, none where an output does not count, and how many
/// samples are right.
fn losses(
    loss: &Loss,
    outputs: &[Tensor],
    batch: &Batch,
    target: &Target,
    inputs: &[Tensor],
) -> Result<(Vec<Option<Lost>>, Option<u64>)> {
    let output = outputs.first().ok_or_else(|| invalid!("the model has no output"))?;
    match target {
        Target::Labels => {
            let labels = batch
                .labels
                .as_deref()
                .ok_or_else(|| invalid!("the data has no labels: train against a teacher, or give labels"))?;
            let lost = loss.of_labels(output, labels)?;
            let right = best(output, labels.len())
                .map(|best| best.iter().zip(labels).filter(|(a, b)| **a == Some(**b)).count() as u64);
            let mut all: Vec<Option<Lost>> = outputs.iter().map(|_| None).collect();
            all[0] = Some(lost);
            Ok((all, right))
        }
        Target::Teacher(teacher) => {
            let wanted = teacher(inputs)?;
            if wanted.len() != outputs.len() {
                return Err(invalid!(
                    "the teacher has {} outputs, the model {}",
                    wanted.len(),
                    outputs.len()
                ));
            }
            let lost = outputs
                .iter()
                .zip(&wanted)
                .map(|(y, t)| loss.of_target(y, t).map(Some))
                .collect::<Result<_>>()?;
            let samples = output.shape().first().copied().unwrap_or(0);
            let right = match (best(output, samples), best(&wanted[0], samples)) {
                (Some(a), Some(b)) => Some(a.iter().zip(&b).filter(|(a, b)| a == b).count() as u64),
                _ => None,
            };
            Ok((lost, right))
        }
    }
}

/// The first class of each sample; nothing where an output does not hold scores of
/// several classes.
pub(super) fn best(output: &Tensor, samples: usize) -> Option<Vec<Option<usize>>> {
    let classes = classes(output, samples).ok().filter(|&n| n > 1)?;
    Some(output.slice::<f32>().ok()?.chunks(classes).map(first).collect())
}

/// Scales gradients so that their norm, taken over all of them, is at most `most`.
fn clip(gradients: &mut [Option<Tensor>], most: Option<f32>) -> Result<()> {
    let Some(most) = most else { return Ok(()) };
    let mut squares = 0f64;
    for g in gradients.iter().flatten() {
        squares += g.slice::<f32>()?.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    }
    let norm = squares.sqrt();
    if norm <= f64::from(most) {
        return Ok(());
    }
    let factor = (f64::from(most) / norm) as f32;
    for g in gradients.iter_mut().flatten() {
        *g = Tensor::new(g.shape(), g.slice::<f32>()?.iter().map(|x| x * factor).collect())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
