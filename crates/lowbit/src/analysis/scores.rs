//! How far outputs are from those of the float model.

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result, invalid};
use crate::scores::first;
use crate::tensor::Tensor;

/// The SQNR of outputs that are not finite.
const LEAST_DB: f64 = -300.0;

/// What layers are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// [`Scores::sqnr_db`].
    #[default]
    Sqnr,
    /// [`Scores::mse`].
    Mse,
    /// [`Scores::kl`].
    Kl,
    /// [`Scores::agreement`].
    Agreement,
    /// [`Scores::top1`].
    Top1,
}

/// Outputs `y` against those of the float model, `x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// `10 log10(sum x^2 / sum (x - y)^2)` in dB, of the f32 output that has the least:
    /// infinite if all are equal (JSON: null), -300 at least.
    #[serde(deserialize_with = "infinite_if_null")]
    pub sqnr_db: f64,
    /// `sum (x - y)^2 / n` over all f32 outputs; infinite (JSON: null) if one is not finite.
    #[serde(deserialize_with = "infinite_if_null")]
    pub mse: f64,
    /// The mean of `sum_c p_c (log p_c - log q_c)` over the rows of the first output, with
    /// `p = softmax(x)` and `q = softmax(y)`, or x and y where the model ends in a softmax.
    /// None without classes. Samples are rows if an output has the shape `[samples,
    /// classes]`, else the last axis holds classes.
    pub kl: Option<f64>,
    /// The share of these rows whose greatest value is of the same class.
    pub agreement: Option<f64>,
    /// The share of samples whose label has the greatest score, if there are labels.
    pub top1: Option<f64>,
}

impl Scores {
    /// A score by its metric.
    pub fn of(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Sqnr => Some(self.sqnr_db),
            Metric::Mse => Some(self.mse),
            Metric::Kl => self.kl,
            Metric::Agreement => self.agreement,
            Metric::Top1 => self.top1,
        }
    }

    /// A score by its metric, greater where it is worse.
    pub(super) fn harm(&self, metric: Metric) -> Result<f64> {
        let score = self.of(metric).ok_or_else(|| match metric {
            Metric::Top1 => invalid!("top1 needs labels, which the data does not have"),
            _ => invalid!("the first output holds no classes to compare: choose sqnr or mse"),
        })?;
        Ok(match metric {
            Metric::Mse | Metric::Kl => score,
            Metric::Sqnr | Metric::Agreement | Metric::Top1 => -score,
        })
    }
}

fn infinite_if_null<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or(f64::INFINITY))
}

/// Sums over batches.
pub(super) struct Scoring {
    probabilities: bool,
    /// Power and noise of each output.
    outputs: Vec<(f64, f64)>,
    elements: usize,
    kl: f64,
    rows: usize,
    agree: usize,
    right: Option<usize>,
    samples: usize,
}

impl Scoring {
    /// Nothing so far; the first output holds `probabilities`, or their logarithms.
    pub fn new(probabilities: bool) -> Scoring {
        let outputs = vec![];
        Scoring { probabilities, outputs, elements: 0, kl: 0.0, rows: 0, agree: 0, right: None, samples: 0 }
    }

    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Adds the outputs of a batch.
    ///
    /// # Errors
    /// If the outputs' shapes differ, or a label is no class.
    pub fn add(
        &mut self,
        wanted: &[Tensor],
        found: &[Tensor],
        labels: Option<&[usize]>,
        samples: usize,
    ) -> Result<()> {
        self.outputs.resize(wanted.len(), (0.0, 0.0));
        for ((x, y), (power, noise)) in wanted.iter().zip(found).zip(&mut self.outputs) {
            if x.shape() != y.shape() {
                return Err(invalid!("an output has shape {:?}, in float {:?}", y.shape(), x.shape()));
            }
            let (Ok(x), Ok(y)) = (x.slice::<f32>(), y.slice::<f32>()) else { continue };
            for (x, y) in x.iter().zip(y) {
                *power += f64::from(*x).powi(2);
                *noise += (f64::from(*x) - f64::from(*y)).powi(2);
            }
            self.elements += x.len();
        }
        self.samples += samples;
        let (Some(x), Some(y)) = (wanted.first(), found.first()) else { return Ok(()) };
        let Some((classes, of_samples)) = classes(x, samples) else { return Ok(()) };
        let (Ok(x), Ok(y)) = (x.slice::<f32>(), y.slice::<f32>()) else { return Ok(()) };
        for (i, (x, y)) in x.chunks(classes).zip(y.chunks(classes)).enumerate() {
            let first_class = first(y);
            self.agree += usize::from(first_class.is_some() && first_class == first(x));
            self.kl += divergence(x, y, self.probabilities);
            self.rows += 1;
            if let Some(label) = labels.filter(|_| of_samples).and_then(|labels| labels.get(i)) {
                if *label >= classes {
                    return Err(invalid!("a sample has label {label}, and the model has {classes} classes"));
                }
                *self.right.get_or_insert(0) += usize::from(first_class == Some(*label));
            }
        }
        Ok(())
    }

    pub fn scores(&self) -> Scores {
        let sqnr = |&(power, noise): &(f64, f64)| match noise {
            0.0 => f64::INFINITY,
            // NaN is not kept by max.
            noise => (10.0 * (power / noise).log10()).max(LEAST_DB),
        };
        let noise: f64 = self.outputs.iter().map(|(_, noise)| noise).sum();
        let mse = noise / self.elements.max(1) as f64;
        let share = |count: usize| (self.rows > 0).then(|| count as f64 / self.rows as f64);
        Scores {
            sqnr_db: self.outputs.iter().map(sqnr).fold(f64::INFINITY, f64::min),
            mse: if mse.is_nan() { f64::INFINITY } else { mse },
            kl: (self.rows > 0).then(|| self.kl / self.rows as f64),
            agreement: share(self.agree),
            top1: self.right.and_then(share),
        }
    }
}

/// The number of classes of an output, and whether each row of them is a sample.
fn classes(t: &Tensor, samples: usize) -> Option<(usize, bool)> {
    let rest = t.shape().get(1..)?;
    let of_samples = t.shape()[0] == samples && rest.iter().filter(|&&n| n != 1).count() <= 1;
    let classes = if of_samples { rest.iter().product() } else { *rest.last()? };
    (classes > 1).then_some((classes, of_samples))
}

/// `sum_c p_c (log p_c - log q_c)`; a probability that is less than f32 has, or NaN,
/// counts as its least.
pub(super) fn divergence(x: &[f32], y: &[f32], probabilities: bool) -> f64 {
    let log = |row: &[f32]| -> Vec<f64> {
        let least = f64::from(f32::MIN_POSITIVE).ln();
        if probabilities {
            return row.iter().map(|p| f64::from(*p).ln().max(least)).collect();
        }
        let most = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum = row.iter().map(|z| (f64::from(*z) - most).exp()).sum::<f64>().ln();
        row.iter().map(|z| (f64::from(*z) - most - sum).max(least)).collect()
    };
    log(x).iter().zip(log(y)).map(|(p, q)| p.exp() * (p - q)).sum()
}

impl std::str::FromStr for Metric {
    type Err = Error;

    fn from_str(name: &str) -> Result<Metric> {
        let value = serde_json::Value::String(name.into());
        serde_json::from_value(value).map_err(|e| invalid!("{e}"))
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    #[test]
    fn scores_are_those_of_their_formulas() {
        let t = |shape: &[usize], v: &[f32]| Tensor::new(shape, v.to_vec()).unwrap();
        let x = t(&[2, 2], &[0.0, 3f32.ln(), 2.0, 0.0]);
        let y = t(&[2, 2], &[0.0, 0.0, 2.0, 0.0]);
        let mut scoring = Scoring::new(false);
        scoring.add(from_ref(&x), &[y], Some(&[1, 0]), 2).unwrap();
        let s = scoring.scores();
        let noise = f64::from(3f32.ln()).powi(2);
        // p = (1/4, 3/4), q = (1/2, 1/2), and then equal rows.
        let kl = (0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln()) / 2.0;
        for (found, wanted) in [
            (s.sqnr_db, 10.0 * ((noise + 4.0) / noise).log10()),
            (s.mse, noise / 4.0),
            (s.kl.unwrap(), kl),
            (s.agreement.unwrap(), 0.5),
            (s.top1.unwrap(), 0.5),
        ] {
            assert!((found - wanted).abs() < 1e-6, "{found} {wanted}");
        }
        let mut scoring = Scoring::new(true);
        let (p, q) = (t(&[1, 2], &[0.25, 0.75]), t(&[1, 2], &[0.5, 0.5]));
        scoring.add(&[p], &[q], None, 1).unwrap();
        assert!((scoring.scores().kl.unwrap() - 2.0 * kl).abs() < 1e-6);
        assert!(scoring.scores().harm(Metric::Top1).unwrap_err().to_string().contains("labels"));
        let mut scoring = Scoring::new(false);
        let error = scoring.add(from_ref(&x), from_ref(&x), Some(&[1, 2]), 2).unwrap_err().to_string();
        assert!(error.contains("label 2"), "{error}");
    }

    #[test]
    fn what_is_not_finite_is_worst_and_survives_json() {
        let t = |v: &[f32]| Tensor::new(&[1, v.len()], v.to_vec()).unwrap();
        for (x, y, sqnr_db, mse, agreement) in [
            (vec![1.0, 2.0], vec![1.0, 2.0], f64::INFINITY, 0.0, Some(1.0)),
            (vec![1.0, 2.0], vec![f32::NAN, f32::NAN], LEAST_DB, f64::INFINITY, Some(0.0)),
            (vec![1.0, 2.0], vec![f32::INFINITY, 0.0], LEAST_DB, f64::INFINITY, Some(0.0)),
            (vec![0.0], vec![1.0], LEAST_DB, 1.0, None),
        ] {
            let mut scoring = Scoring::new(false);
            scoring.add(&[t(&x)], &[t(&y)], None, 1).unwrap();
            let s = scoring.scores();
            assert_eq!((s.sqnr_db, s.mse, s.agreement), (sqnr_db, mse, agreement), "{y:?}");
            assert!(s.kl.is_none_or(f64::is_finite), "{s:?}");
            let again: Scores = serde_json::from_str(&serde_json::to_string(&s).unwrap()).unwrap();
            assert_eq!((again.sqnr_db, again.mse), (s.sqnr_db, s.mse));
        }
    }
}
