//! Models whose modules reorder or split their parameters are trained under PyTorch's names.

use std::collections::BTreeMap;

use lowbit::analysis::evaluate;
use lowbit::data::{Dataset, Preprocess, npz};
use lowbit::graph::{Value, Var};
use lowbit::nn::*;
use lowbit::op::{Dim, Fact};
use lowbit::session::Session;
use lowbit::train::{Network, Optimizer, Options, Target, Training};
use lowbit::{DType, Result, Tensor};

const SAMPLES: usize = 96;
const STEPS: usize = 5;
const FEATURES: usize = 4;

/// The class of a sequence, by the mean of what a layer makes of its steps.
struct Classifier {
    layer: Box<dyn Module>,
    dropout: Dropout,
    fc: Linear,
}

impl Classifier {
    fn new(layer: impl Module + 'static, features: usize) -> Classifier {
        Classifier {
            layer: Box::new(layer),
            dropout: Dropout { p: 0.1 },
            fc: Linear::new(features, FEATURES),
        }
    }
}

impl Module for Classifier {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let y = g.call("layer", &self.layer, x)?;
        let y = g.mean(y, &[1])?;
        let y = g.squeeze(y, 1)?;
        let y = g.call("dropout", &self.dropout, y)?;
        g.call("fc", &self.fc, y)
    }

    fn children(&self) -> Children<'_> {
        children!(self; layer, dropout, fc)
    }
}

fn input() -> (&'static str, Fact) {
    ("x", Fact::new(DType::F32, [Dim::Named("N".into()), STEPS.into(), FEATURES.into()]))
}

/// Sequences whose class is the feature with the greatest sum.
fn sequences() -> Dataset {
    let x = Init::Normal { zero_row: None }.values("x", &[SAMPLES, STEPS, FEATURES], 0).unwrap();
    let labels = x.slice::<f32>().unwrap().chunks_exact(STEPS * FEATURES).map(|sequence| {
        let sum = |f: usize| sequence.iter().skip(f).step_by(FEATURES).sum::<f32>();
        (0..FEATURES).max_by(|&a, &b| sum(a).total_cmp(&sum(b))).unwrap() as i64
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sequences.npz");
    npz::write(&path, [("x", &x), ("y", &Tensor::vector(labels.collect::<Vec<_>>()))]).unwrap();
    let (name, fact) = input();
    Dataset::open(&path, &Preprocess::default(), &[Value { name: name.into(), fact }]).unwrap()
}

#[test]
fn recurrent_and_attending_models_learn_and_keep_their_names() {
    let lstm = LSTM::new(FEATURES, 8).num_layers(2).bidirectional(true).batch_first(true);
    let models = [
        ("LSTM", Classifier::new(lstm, 16)),
        ("GRU", Classifier::new(GRU::new(FEATURES, 8).batch_first(true), 8)),
        ("attention", Classifier::new(MultiheadAttention::new(FEATURES, 2).batch_first(true), FEATURES)),
    ];
    let (data, folder) = (sequences(), tempfile::tempdir().unwrap());
    let mut failures = vec![];
    for (name, model) in models {
        let first = Weights::initialized(&model, 1).unwrap();
        let network = Network::of_model(&model, &first, &[input()]).unwrap();
        let mut trained: Vec<String> = network.parameters().to_vec();
        let mut wanted: Vec<String> = named_parameters(&model).into_iter().map(|p| p.name).collect();
        trained.sort();
        wanted.sort();
        assert_eq!(trained, wanted, "{name}");

        let options =
            Options { epochs: 30, batch: 16, optimizer: Optimizer::adam(), rate: 0.02, ..Options::default() };
        let mut training = Training::new(network, options).unwrap();
        let mut losses = vec![];
        training
            .run(&data, &Target::Labels, &mut |_, p| {
                losses.push(p.mean_loss);
                Ok(())
            })
            .unwrap();
        let weights = first.clone().with_values(training.learner.values());
        let kept: Vec<&String> = wanted.iter().filter(|p| first.get(p) == weights.get(p)).collect();
        assert!(kept.is_empty(), "{name}: {kept:?} did not move");

        let path = folder.path().join(format!("{name}.safetensors"));
        weights.save(&path).unwrap();
        let loaded = Weights::load(&path, &model).unwrap();
        assert_eq!(loaded, weights, "{name}");
        let session = Session::compile(&trace(&model, &loaded, &[input()]).unwrap()).unwrap();
        let right = evaluate(&[(name, &session)], &data, 16, &mut |_| Ok(())).unwrap().scores[0].top1;
        let (begin, end) = (losses[0], losses[losses.len() - 1]);
        if end > 0.5 * begin || right.unwrap() < 0.85 {
            failures.push(format!("{name}: the loss goes from {begin} to {end}, {right:?} are right"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_model_is_trained_as_its_graph_is() {
    let bn = BatchNorm1d::new(STEPS);
    let model = Sequential::new().then(bn).then(Flatten::default()).then(Linear::new(STEPS * FEATURES, 3));
    let weights = Weights::initialized(&model, 2).unwrap();
    let graph = trace(&model, &weights, &[input()]).unwrap();
    let x = [Init::Normal { zero_row: None }.values("x", &[7, STEPS, FEATURES], 3).unwrap()];
    let stepped = |mut network: Network| {
        let names = network.parameters().to_vec();
        let step = network.step(&x).unwrap();
        let outputs = step.outputs.clone();
        let gradients = step.back(vec![Some(outputs[0].clone())]).unwrap();
        let gradients: BTreeMap<String, Option<Tensor>> = names.into_iter().zip(gradients).collect();
        let states = ["0.running_mean", "0.running_var"].map(|name| network.values()[name].clone());
        (outputs, gradients, states)
    };
    assert_eq!(
        stepped(Network::of_model(&model, &weights, &[input()]).unwrap()),
        stepped(Network::of(&graph).unwrap())
    );
}

#[test]
fn inputs_and_parameters_have_names_of_their_own() {
    let model = Linear::new(FEATURES, 2);
    let weights = Weights::initialized(&model, 0).unwrap();
    let error = Network::of_model(&model, &weights, &[("weight", input().1)]).unwrap_err().to_string();
    assert!(error.contains("weight") && error.contains("input"), "{error}");
    let error = Network::of_model(&ReLU, &Weights::default(), &[input()]).unwrap_err().to_string();
    assert!(error.contains("no weight"), "{error}");
}
