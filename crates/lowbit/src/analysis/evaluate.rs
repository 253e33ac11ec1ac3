//! Classification accuracy of several models over the same samples.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::runner::Runner;
use crate::data::{Batch, Dataset, batch_size, inputs_of};
use crate::error::{Result, invalid};
use crate::scores::{classes, first};
use crate::tensor::Tensor;

/// The scores of several models over one data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The number of samples.
    pub samples: usize,
    /// One score a model, in the order given.
    pub scores: Vec<Score>,
}

/// How one model did. Shares lie in 0..=1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The model's name.
    pub name: String,
    /// Share of samples whose label has the greatest score; ties go to the
    /// lower class.
    pub top1: Option<f64>,
    /// Share of samples whose label is among the five greatest scores.
    pub top5: Option<f64>,
    /// Share of samples for which this model's first class is that of the
    /// first model.
    pub agreement: f64,
    /// This model against the first, sample by sample.
    pub paired: Option<Paired>,
    /// Mean wall-clock time of a sample, in milliseconds.
    pub ms_per_sample: f64,
}

/// McNemar's exact test of two models on the same samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// Samples that only the first model has right.
    pub only_first: usize,
    /// Samples that only this model has right.
    pub only_this: usize,
    /// The probability, if both were equally good, of counts at least as
    /// unequal (two-sided binomial test).
    pub p: f64,
}

impl Paired {
    /// `p = min(1, 2 sum_{i <= min(a, b)} C(a + b, i) / 2^(a + b))`.
    pub fn new(only_first: usize, only_this: usize) -> Paired {
        let n = (only_first + only_this) as f64;
        let (mut log, mut sum) = (-n * std::f64::consts::LN_2, 0.0);
        for i in 0..=only_first.min(only_this) {
            sum += log.exp();
            log += ((n - i as f64) / (i as f64 + 1.0)).ln();
        }
        Paired { only_first, only_this, p: (2.0 * sum).min(1.0) }
    }
}

/// Runs each batch of `data` through every model and counts. The first output
/// holds the class scores: `[samples, classes]`, other dimensions of size 1.
///
/// `batch` samples run at once, or as many as the models fix. `progress` is
/// called with the samples done; its error stops the evaluation. Only one
/// batch is held at a time.
///
/// # Errors
/// If there is no model, no sample, or a single model and no labels; if a
/// label is no class of the model; if data does not fit a model (the error
/// names it).
pub fn evaluate(
    models: &[(&str, &dyn Runner)],
    data: &Dataset,
    batch: usize,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Evaluation> {
    let Some((_, first)) = models.first() else { return Err(invalid!("no model to evaluate")) };
    if data.is_empty() {
        return Err(invalid!("the data holds no sample"));
    }
    if models.len() == 1 && data.labels().is_none() {
        return Err(invalid!(
            "the data has no labels: give a second model to compare with, or labels (a member `y` of an .npz, \
             a folder for each class, or file names that begin with the class as four digits and `_`)"
        ));
    }
    let mut counts = vec![Count::default(); models.len()];
    let mut done = 0;
    for batch in data.batches(batch_size(first.graph(), batch)) {
        let batch = batch?;
        let mut reference = vec![];
        for (i, ((name, model), count)) in models.iter().zip(&mut counts).enumerate() {
            let answers = answers(*model, &batch, &mut count.time).map_err(|e| e.at(*name))?;
            if i == 0 {
                reference.clone_from(&answers);
            }
            count.add(&reference, &answers);
        }
        done += batch.names.len();
        progress(done)?;
    }
    let labelled = data.labels().is_some();
    let scores = models.iter().zip(&counts).enumerate();
    let scores = scores.map(|(i, ((name, _), count))| count.score(name, done, labelled, i > 0)).collect();
    Ok(Evaluation { samples: done, scores })
}

/// What a model says of one sample.
#[derive(Clone, Copy)]
struct Answer {
    /// The class of the greatest score; none if all are NaN.
    first: Option<usize>,
    /// How many classes come before the label.
    rank: Option<usize>,
}

fn answers(model: &dyn Runner, batch: &Batch, time: &mut Duration) -> Result<Vec<Answer>> {
    let inputs = inputs_of(model.graph(), batch)?;
    let start = Instant::now();
    let outputs = model.run(&inputs)?;
    *time += start.elapsed();
    let rows = scores(&outputs, batch.names.len())?;
    let labels = batch.labels.as_deref();
    let answer = |(i, row): (usize, &Vec<f32>)| {
        let rank = labels.map(|l| rank(row, l[i])).transpose().map_err(|e| e.at(&batch.names[i]))?;
        Ok(Answer { first: first(row), rank: rank.flatten() })
    };
    rows.iter().enumerate().map(answer).collect()
}

/// One row of class scores for each sample.
fn scores(outputs: &[Tensor], samples: usize) -> Result<Vec<Vec<f32>>> {
    let t = outputs.first().ok_or_else(|| invalid!("the model has no output"))?;
    let classes = classes(t, samples)?;
    Ok(t.to_f32()?.chunks(classes).map(<[f32]>::to_vec).collect())
}

/// The number of classes before `label` in the order of [`top`](crate::analysis::top); none if its
/// score is NaN.
fn rank(scores: &[f32], label: usize) -> Result<Option<usize>> {
    let Some(&own) = scores.get(label) else {
        return Err(invalid!("has label {label}, and the model has {} classes", scores.len()));
    };
    let before = |(i, &s): (usize, &f32)| s > own || (s == own && i < label);
    Ok((!own.is_nan()).then(|| scores.iter().enumerate().filter(|&x| before(x)).count()))
}

#[derive(Clone, Default)]
struct Count {
    top1: usize,
    top5: usize,
    agree: usize,
    only_first: usize,
    only_this: usize,
    time: Duration,
}

impl Count {
    fn add(&mut self, reference: &[Answer], answers: &[Answer]) {
        for (a, b) in reference.iter().zip(answers) {
            let right = |answer: &Answer| answer.rank == Some(0);
            self.top1 += usize::from(right(b));
            self.top5 += usize::from(b.rank.is_some_and(|r| r < 5));
            self.agree += usize::from(a.first == b.first && b.first.is_some());
            self.only_first += usize::from(right(a) && !right(b));
            self.only_this += usize::from(right(b) && !right(a));
        }
    }

    fn score(&self, name: &str, samples: usize, labelled: bool, paired: bool) -> Score {
        let share = |count: usize| count as f64 / samples as f64;
        Score {
            name: name.into(),
            top1: labelled.then(|| share(self.top1)),
            top5: labelled.then(|| share(self.top5)),
            agreement: share(self.agree),
            paired: (labelled && paired).then(|| Paired::new(self.only_first, self.only_this)),
            ms_per_sample: 1e3 * self.time.as_secs_f64() / samples as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::data::{Preprocess, npz};
    use crate::error::Error;
    use crate::graph::{Builder, Graph};
    use crate::op::{Dim, Fact};
    use crate::ops::linear::MatMul;
    use crate::tensor::DType;

    /// `scores = x W`, W a diagonal matrix.
    fn scaling(diagonal: [f32; 3]) -> Graph {
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(3)]));
        let w: Vec<f32> = (0..9).map(|i| if i % 4 == 0 { diagonal[i / 4] } else { 0.0 }).collect();
        let w = b.constant("w", Tensor::new(&[3, 3], w).unwrap());
        let y = b.apply("y", Arc::new(MatMul), &[x, w]).unwrap();
        b.finish([("y".to_string(), y)]).unwrap()
    }

    #[test]
    fn models_are_compared_sample_by_sample() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.npz");
        let x = vec![3.0f32, 2.0, 1.0, 1.0, 3.0, 2.0, 1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 1.0, 2.0, 3.0];
        let x = Tensor::new(&[5, 3], x).unwrap();
        let y = Tensor::vector(vec![0i64, 1, 2, 1, 0]);
        npz::write(&path, [("x", &x), ("y", &y)]).unwrap();
        let (first, other) = (scaling([1.0; 3]), scaling([1.0, 2.0, 1.0]));
        let inputs: Vec<_> = first.inputs().map(|(_, v)| v.clone()).collect();
        let data = Dataset::open(&path, &Preprocess::default(), &inputs).unwrap();
        let models: [(&str, &dyn Runner); 2] = [("first", &first), ("other", &other)];
        for batch in [1, 2, 100] {
            let mut done = vec![];
            let e = evaluate(&models, &data, batch, &mut |n| {
                done.push(n);
                Ok(())
            });
            let e = e.unwrap();
            // The first model says 0 1 2 0 2, the other 1 1 1 1 1, of labels 0 1 2 1 0.
            let [a, b] = e.scores.as_slice() else { panic!("{e:?}") };
            assert_eq!((a.top1, a.top5, a.agreement, a.paired), (Some(0.6), Some(1.0), 1.0, None), "{batch}");
            assert_eq!((b.top1, b.top5, b.agreement), (Some(0.4), Some(1.0), 0.2), "{batch}");
            assert_eq!(b.paired, Some(Paired::new(2, 1)), "{batch}");
            assert_eq!(
                (e.samples, done.last(), done.len()),
                (5, Some(&5), 5usize.div_ceil(batch)),
                "{batch}"
            );
        }
        let stopped = evaluate(&models, &data, 1, &mut |_| Err(Error::Interrupted));
        assert!(matches!(stopped, Err(Error::Interrupted)));
    }

    #[test]
    fn labels_and_classes_must_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.npz");
        let model = scaling([1.0; 3]);
        let inputs: Vec<_> = model.inputs().map(|(_, v)| v.clone()).collect();
        let x = Tensor::full(&[2, 3], 1.0f32).unwrap();
        for (labels, says) in [(Some(vec![0i64, 3]), "label 3"), (None, "no labels")] {
            let labels = labels.map(Tensor::vector);
            npz::write(&path, [("x", &x)].into_iter().chain(labels.as_ref().map(|y| ("y", y)))).unwrap();
            let data = Dataset::open(&path, &Preprocess::default(), &inputs).unwrap();
            let error = evaluate(&[("m", &model)], &data, 2, &mut |_| Ok(())).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_paired_test_is_the_binomial_one() {
        // scipy.stats.binomtest(b, b + c).pvalue
        for (b, c, p) in [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (0, 5, 0.0625),
            (5, 5, 1.0),
            (2, 9, 0.065_429_687_5),
            (10, 30, 0.002_221_433_8),
            (3000, 3200, 0.011_488_253_8),
        ] {
            let found = Paired::new(b, c).p;
            assert!((found - p).abs() <= 1e-3 * p, "{b} {c}: {found} is not {p}");
        }
    }

    #[test]
    fn ranks_count_the_classes_before() {
        for (scores, label, expected) in [
            (&[0.1, 0.7, 0.2][..], 0, Some(2)),
            (&[1.0, 1.0], 1, Some(1)),
            (&[1.0, f32::NAN], 1, None),
            (&[f32::NAN, 1.0], 1, Some(0)),
        ] {
            assert_eq!(rank(scores, label).unwrap(), expected, "{scores:?}");
        }
        assert!(rank(&[1.0], 1).unwrap_err().to_string().contains("label 1"));
    }

    #[test]
    fn outputs_must_be_class_scores() {
        for (shape, samples, fits) in [
            (&[2usize, 3][..], 2, true),
            (&[2, 3, 1, 1], 2, true),
            (&[2, 1, 3], 2, true),
            (&[2], 2, true),
            (&[3, 2], 2, false),
            (&[2, 3, 3], 2, false),
            (&[], 1, false),
            (&[2, 0], 2, false),
        ] {
            let t = Tensor::full(shape, 0.5f32).unwrap();
            assert_eq!(scores(&[t], samples).is_ok(), fits, "{shape:?}");
        }
    }
}
