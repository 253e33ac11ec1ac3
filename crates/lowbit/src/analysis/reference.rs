//! The float model, to hold others against.

use std::sync::{Mutex, PoisonError};

use super::runner::Runner;
use super::scores::{Scores, Scoring};
use crate::data::{Batch, inputs_of};
use crate::error::{Result, invalid};
use crate::graph::{Graph, Kind};
use crate::kept::Kept;
use crate::op::Quant;
use crate::quantize::{lock, mark, spread};
use crate::tensor::KeptMemory;

/// What the float model says of samples. Its outputs are kept on disk.
#[derive(Debug)]
pub struct Reference {
    /// The outputs for each batch.
    outputs: Kept,
    /// The number of samples.
    pub samples: usize,
    /// Its outputs against themselves: what a model without any error has.
    pub own: Scores,
    /// Whether the first output holds probabilities.
    probabilities: bool,
}

impl Reference {
    /// Runs `graph` on the samples, two batches at a time on so many threads.
    ///
    /// # Errors
    /// If there is no sample, or the model cannot be run.
    pub fn of(
        graph: &Graph,
        batches: impl Iterator<Item = Result<Batch>> + Send,
        threads: usize,
    ) -> Result<Reference> {
        let probabilities = is_softmax(graph);
        let seen = Mutex::new((Kept::new()?, Scoring::new(probabilities)));
        let run = |i: usize, batch: Result<Batch>| {
            let (_kept, batch) = (KeptMemory::up_to(0), batch?);
            let outputs = graph.run(&inputs_of(graph, &batch)?)?;
            let (kept, scoring) = &mut *lock(&seen);
            scoring.add(&outputs, &outputs, batch.labels.as_deref(), batch.names.len())?;
            kept.add(i, &outputs)
        };
        spread(threads, batches, run, || ()).map_err(|e| e.at("the float model"))?;
        let (outputs, scoring) = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        match scoring.samples() {
            0 => Err(invalid!("the data holds no sample")),
            samples => Ok(Reference { outputs, samples, own: scoring.scores(), probabilities }),
        }
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
        let _kept = KeptMemory::up_to(0);
        let mut scoring = Scoring::new(self.probabilities);
        for (i, batch) in batches.enumerate() {
            let batch = batch?;
            let changed = || invalid!("the data has changed while it was read");
            let wanted = self.outputs.get(i)?.ok_or_else(changed)?;
            let found = model.run(&inputs_of(model.graph(), &batch)?)?;
            scoring.add(&wanted, &found, batch.labels.as_deref(), batch.names.len())?;
        }
        Ok(scoring.scores())
    }

    /// A checksum of the outputs.
    pub fn checksum(&self) -> u32 {
        self.outputs.checksum()
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
