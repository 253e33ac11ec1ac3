//! The float model: its data, and how it is trained.

use std::path::Path;

use lowbit::data::{ArrayRule, Augment, Dataset, Factor, Preprocess};
use lowbit::graph::{Graph, Value};
use lowbit::nn::{Weights, trace};
use lowbit::op::{Dim, Fact};
use lowbit::train::{Loss, Network, Optimizer, Options, Progress, Schedule, Target, Training, WarmUp};
use lowbit::{DType, Result};

use crate::model::Digits;

/// Of the first weights, the order of the images, and how they are moved.
const SEED: u64 = 0;

/// The images of this array of `demo/digits.npz`, as numbers of 0..1, and their labels if they
/// have any.
pub fn images(array: &str, labelled: bool) -> Result<Dataset> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/digits.npz");
    let labels = labelled.then(|| format!("{array}_labels"));
    let scale = Some(Factor::Value(1.0 / 16.0));
    let rule = ArrayRule { key: Some(array.into()), labels, scale, zero_point: None };
    let (name, fact) = input();
    let preprocess = Preprocess { array: Some(rule), ..Preprocess::default() };
    Dataset::open(&path, &preprocess, &[Value { name: name.into(), fact }])
}

/// What the model reads: any number of images.
pub fn input() -> (&'static str, Fact) {
    ("image", Fact::new(DType::F32, [Dim::Named("N".into()), 1.into(), 8.into(), 8.into()]))
}

/// Trains the model from its first values on. Returns its parameters, and the model as a
/// graph with BatchNormalization as nodes of their own.
pub fn train(epochs: u64, mut progress: impl FnMut(&Progress)) -> Result<(Weights, Graph)> {
    let model = Digits::new();
    let first = Weights::initialized(&model, SEED)?;
    let options = Options {
        epochs,
        batch: 64,
        optimizer: Optimizer::AdamW { betas: (0.9, 0.999), epsilon: 1e-8, decay: 1e-3 },
        rate: 1e-2,
        schedule: Schedule::Cosine,
        warm_up: WarmUp { share: 0.3 },
        loss: Loss::CrossEntropy { smoothing: 0.1 },
        augment: Augment { flip: false, shift: 1 },
        seed: SEED,
        ..Options::default()
    };
    let mut training = Training::new(Network::of_model(&model, &first, &[input()])?, options)?;
    training.run(&images("train", true)?, &Target::Labels, &mut |_, p| {
        progress(p);
        Ok(())
    })?;
    let weights = first.with_values(training.learner.values());
    let graph = trace(&model, &weights, &[input()])?;
    Ok((weights, graph))
}
