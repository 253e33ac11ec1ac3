//! How the inputs of a model are distributed, channel by channel, and whether two sets of
//! samples are alike.

use crate::error::Result;
use crate::graph::Graph;
use crate::quantize::{Finding, Symptom};
use crate::tensor::{DType, Tensor};

/// A difference of means, in standard deviations of the values, from which inputs are unlike.
const SHIFT: f64 = 0.5;
/// A ratio of standard deviations from which inputs are unlike.
const SPREAD: f64 = 1.5;
/// What a difference between sets of samples is at least, in standard errors of it, if it is
/// no accident.
const SIGMAS: f64 = 4.0;
/// More channels than this are no channels but positions.
const MOST_CHANNELS: usize = 64;

/// Sums over the samples of each sample's mean `m` and standard deviation `d` of one channel:
/// of `m`, `m^2`, `d`, `d^2`.
type Sums = [f64; 4];

/// The inputs of many samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::analysis) struct Inputs {
    samples: usize,
    /// For each input, its channels; none for inputs that are no f32.
    inputs: Vec<Vec<Sums>>,
}

impl Inputs {
    /// Takes a batch of `samples` into account.
    ///
    /// # Errors
    /// If an input is not what its type says.
    pub fn add(&mut self, batch: &[Tensor], samples: usize) -> Result<()> {
        self.samples += samples;
        self.inputs.resize(batch.len(), vec![]);
        for (sums, x) in self.inputs.iter_mut().zip(batch) {
            let (DType::F32, Some((&n, shape))) = (x.dtype(), x.shape().split_first()) else { continue };
            if x.is_empty() || n != samples {
                continue;
            }
            let (outer, channels, inner) = channels_of(shape);
            if sums.is_empty() {
                sums.resize(channels, Sums::default());
            }
            if sums.len() != channels {
                continue;
            }
            for sample in x.slice::<f32>()?.chunks_exact(outer * channels * inner) {
                for (c, sums) in sums.iter_mut().enumerate() {
                    let run = |o: usize| &sample[(o * channels + c) * inner..][..inner];
                    let elements = (outer * inner) as f64;
                    let of = |f: fn(f64) -> f64| -> f64 {
                        (0..outer).flat_map(run).map(|x| f(f64::from(*x))).sum::<f64>() / elements
                    };
                    let (mean, square) = (of(|x| x), of(|x| x * x));
                    let variance = (square - mean * mean).max(0.0);
                    for (sum, x) in sums.iter_mut().zip([mean, mean * mean, variance.sqrt(), variance]) {
                        *sum += x;
                    }
                }
            }
        }
        Ok(())
    }

    /// The inputs of `graph` whose distribution differs in `other`, by its worst channel.
    pub fn unlike(&self, other: &Inputs, graph: &Graph) -> Vec<Finding> {
        let mut findings = vec![];
        for ((_, value), (a, b)) in graph.inputs().zip(self.inputs.iter().zip(&other.inputs)) {
            let a = a.iter().map(|sums| Channel::of(sums, self.samples));
            let b = b.iter().map(|sums| Channel::of(sums, other.samples));
            let distances = a.zip(b).enumerate().map(|(c, (a, b))| (a.distance(&b), c, a, b));
            let worst = distances.filter(|(d, ..)| *d > 0.0).max_by(|x, y| x.0.total_cmp(&y.0));
            findings.extend(worst.map(|(_, channel, a, b)| {
                let symptom = Symptom::UnlikeInput {
                    channel,
                    calibrated: [a.mean.of, a.deviation],
                    found: [b.mean.of, b.deviation],
                };
                Finding::new(&value.name, symptom)
            }));
        }
        findings
    }
}

/// The dimensions of a sample before, of and after its channels: the last of an image with few
/// there, else the first; all in one if there are many.
fn channels_of(shape: &[usize]) -> (usize, usize, usize) {
    let all = shape.iter().product();
    match *shape {
        [h, w, c] if c <= 4 && h > 4 => (h * w, c, 1),
        [c, ..] if c <= MOST_CHANNELS => (1, c, all / c.max(1)),
        _ => (1, 1, all),
    }
}

/// A statistic of each sample, over the samples.
#[derive(Clone, Copy)]
struct Mean {
    of: f64,
    /// Square of its standard error.
    error: f64,
}

impl Mean {
    fn new(sum: f64, squares: f64, n: usize) -> Mean {
        let of = sum / n as f64;
        let variance = (squares / n as f64 - of * of).max(0.0);
        // One sample says nothing of the others.
        Mean { of, error: if n > 1 { variance / (n - 1) as f64 } else { f64::INFINITY } }
    }

    fn differs(&self, other: &Mean) -> bool {
        (self.of - other.of).powi(2) > SIGMAS * SIGMAS * (self.error + other.error)
    }
}

/// One channel, over the samples.
#[derive(Clone, Copy)]
struct Channel {
    /// The samples' means.
    mean: Mean,
    /// The samples' standard deviations.
    spread: Mean,
    /// The standard deviation of all values.
    deviation: f64,
}

impl Channel {
    fn of([m, mm, d, dd]: &Sums, n: usize) -> Channel {
        let (mean, spread) = (Mean::new(*m, *mm, n), Mean::new(*d, *dd, n));
        let deviation = ((mm + dd) / n as f64 - mean.of * mean.of).max(0.0).sqrt();
        Channel { mean, spread, deviation }
    }

    /// How unlike the channel is in `other`; 0 if it is alike, or may be.
    fn distance(&self, other: &Channel) -> f64 {
        let shift = (self.mean.of - other.mean.of).abs() / self.deviation.max(f64::MIN_POSITIVE);
        let ratio = (other.deviation / self.deviation).ln().abs();
        let shift = if shift > SHIFT && self.mean.differs(&other.mean) { shift } else { 0.0 };
        let ratio = if ratio > SPREAD.ln() && self.spread.differs(&other.spread) { ratio } else { 0.0 };
        shift.max(ratio)
    }
}
