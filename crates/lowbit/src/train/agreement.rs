//! Whether what was simulated is what runs.

use std::fmt;

use serde::Serialize;

use super::qat::Qat;
use super::training::best;
use crate::error::Result;
use crate::session::Session;
use crate::tensor::Tensor;

/// The outputs of a fake-quantized model beside those of its converted form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Agreement {
    /// Samples compared.
    pub samples: usize,
    /// Samples whose first class differs, of scores that are no tie: both models
    /// put their first class before the other's by more than `tie`.
    pub differ: usize,
    /// Samples whose first class differs, of scores that are a tie.
    pub ties: usize,
    /// The greatest difference of an output.
    pub greatest: f32,
}

/// Scores that differ by less than this share of the greatest are a tie.
const TIE: f32 = 0.02;

impl Agreement {
    /// Runs both on the same batches. The first output holds class scores.
    ///
    /// # Errors
    /// If a batch does not fit the model.
    pub fn of(
        qat: &Qat,
        session: &Session,
        batches: &mut dyn Iterator<Item = Result<Vec<Tensor>>>,
    ) -> Result<Agreement> {
        let simulation = qat.simulation()?;
        let mut agreement = Agreement::default();
        for batch in batches {
            let batch = batch?;
            let (simulated, run) = (simulation.run(&batch)?, session.run(&batch)?);
            agreement.add(&simulated[0], &run[0])?;
        }
        Ok(agreement)
    }

    fn add(&mut self, simulated: &Tensor, run: &Tensor) -> Result<()> {
        let samples = simulated.shape().first().copied().unwrap_or(0);
        let (a, b) = (simulated.slice::<f32>()?, run.slice::<f32>()?);
        self.samples += samples;
        let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        self.greatest = differences.fold(self.greatest, f32::max);
        let (Some(of_a), Some(of_b)) = (best(simulated, samples), best(run, samples)) else { return Ok(()) };
        let classes = a.len() / samples;
        for (row, (i, j)) in of_a.into_iter().zip(of_b).enumerate().filter(|(_, (i, j))| i != j) {
            let (a, b) = (&a[row * classes..][..classes], &b[row * classes..][..classes]);
            let most = a.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
            let tie = i.zip(j).is_some_and(|(i, j)| (a[i] - a[j]).min(b[j] - b[i]) <= TIE * most);
            *(if tie { &mut self.ties } else { &mut self.differ }) += 1;
        }
        Ok(())
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Agreement { samples, differ, ties, greatest } = self;
        write!(
            f,
            "the int8 engine says the same for {} of {samples} samples, and another class for {ties} ties and {differ} \
             others; outputs differ by {greatest:.3} at most",
            samples - ties - differ
        )
    }
}
