//! The float model, to hold others against.

use std::sync::Mutex;

use super::runner::Runner;
use super::scores::{Scores, Scoring};
use crate::data::{Batch, inputs_of};
use crate::error::{Result, invalid};
use crate::graph::{Graph, Kind};
use crate::op::Quant;
use crate::quantize::{lock, mark, spread};
use crate::tensor::Tensor;

/// What the float model says of samples. Its outputs are held.
#[derive(Debug)]
pub struct Reference {
    /// The outputs for each batch.
    outputs: Vec<Vec<Tensor>>,
    /// The number of samples.
    pub samples: usize,
    /// The share of samples that it has right, if there are labels.
    pub top1: Option<f64>,
    /// Whether the first output holds probabilities.
    probabilities: bool,
}

impl Reference {
    /// Runs `graph` on the samples, on so many threads, each of which holds one batch.
    ///
    /// # Errors
    /// If there is no sample, or the model cannot be run.
    pub fn of(
        graph: &Graph,
        batches: impl Iterator<Item = Result<Batch>> + Send,
        threads: usize,
    ) -> Result<Reference> {
        let of_batch: Mutex<Vec<(usize, Vec<Tensor>, Option<Vec<usize>>, usize)>> = Mutex::new(vec![]);
        let run = |i: usize, batch: Result<Batch>| {
            let batch = batch?;
            let outputs = graph.run(&inputs_of(graph, &batch)?)?;
            lock(&of_batch).push((i, outputs, batch.labels, batch.names.len()));
            Ok(())
        };
        spread(threads, batches, run, || ()).map_err(|e| e.at("the float model"))?;
        let mut of_batch = std::mem::take(&mut *lock(&of_batch));
        of_batch.sort_by_key(|(i, ..)| *i);
        let probabilities = is_softmax(graph);
        let mut scoring = Scoring::new(probabilities);
        for (_, outputs, labels, samples) in &of_batch {
            scoring.add(outputs, outputs, labels.as_deref(), *samples)?;
        }
        let (samples, top1) = (scoring.samples(), scoring.scores().top1);
        if samples == 0 {
            return Err(invalid!("the data holds no sample"));
        }
        let outputs = of_batch.into_iter().map(|(_, outputs, ..)| outputs).collect();
        Ok(Reference { outputs, samples, top1, probabilities })
    }

    /// The outputs of `model` for the same samples against those of the float model.
    ///
    /// # Errors
    /// If there are other batches, or the model cannot be run.
    pub fn compared(
        &self,
        model: &dyn Runner,
        batches: impl Iterator<Item = Result<Batch>>,
    ) -> Result<Scores> {
        let mut scoring = Scoring::new(self.probabilities);
        for (i, batch) in batches.enumerate() {
            let batch = batch?;
            let changed = || invalid!("the data has changed while it was read");
            let wanted = self.outputs.get(i).ok_or_else(changed)?;
            let found = model.run(&inputs_of(model.graph(), &batch)?)?;
            scoring.add(wanted, &found, batch.labels.as_deref(), batch.names.len())?;
        }
        Ok(scoring.scores())
    }

    /// A checksum of the outputs.
    pub fn checksum(&self) -> u32 {
        let mut crc = flate2::Crc::new();
        for t in self.outputs.iter().flatten() {
            crc.update(&t.to_bytes());
        }
        crc.sum()
    }
}

/// Whether the first output is a softmax, moved around perhaps.
fn is_softmax(graph: &Graph) -> bool {
    let Some((_, mut v)) = graph.outputs().next() else { return false };
    loop {
        let Kind::Apply { op, inputs } = &graph.node(v).kind else { return false };
        if op.name() == "Softmax" {
            return true;
        }
        if op.quant() != Quant::Share && mark(graph, v).is_none() {
            return false;
        }
        v = inputs[0];
    }
}
