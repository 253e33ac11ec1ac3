//! Training of real models.

mod assets;

use std::path::Path;

use lowbit::analysis::evaluate;
use lowbit::data::{Augment, Dataset, Preprocess, inputs_of};
use lowbit::graph::Graph;
use lowbit::observer::ObserverConfig;
use lowbit::qconfig::{QConfig, QConfigMapping, Spec, Target as Nodes, preset};
use lowbit::quantize::{fuse, prepare};
use lowbit::scheme::{Format, Mapping};
use lowbit::session::Session;
use lowbit::train::{Loss, Optimizer, Options, Qat, QatOptions, Schedule, Target, Training};
use lowbit::{Result, Tensor, onnx};

const PREPROCESS: &str = "scale = 0.00392156862745098
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]";

/// What training has to gain, in points.
const GAIN: f64 = 10.0;

/// Weights and activations of 3 bits, of 8 in the first and the last layer.
fn three_bits() -> Result<QConfigMapping> {
    let of = |signed, mapping| {
        Spec::new(Format::Int { bits: 3, signed, narrow: signed }, mapping).observed_by(ObserverConfig::Mse)
    };
    let few = QConfig {
        activation: Some(of(false, Mapping::Affine)),
        weight: of(true, Mapping::Symmetric).per_channel(),
    };
    let eight = || preset("x86").map(Some);
    let mapping = QConfigMapping::global(few);
    Ok(mapping.with(Nodes::name("conv1")?, eight()?).with(Nodes::name("linear")?, eight()?))
}

/// Per cent of the samples that are right, and that are as the float model has them.
fn scores(graph: &Graph, float: &Session, data: &Dataset) -> Result<[f64; 2]> {
    let session = Session::compile(graph)?;
    let scores = evaluate(&[("float", float), ("quantized", &session)], data, 50, &mut |_| Ok(()))?.scores;
    Ok([scores[1].top1.unwrap(), scores[1].agreement].map(|share| 100.0 * share))
}

/// Two epochs of 400 images, without their labels.
#[test]
fn training_brings_back_what_three_bits_lose() {
    let Some(assets) = assets::find("training_brings_back_what_three_bits_lose") else { return };
    let [calibrated, trained] = trained(&assets).unwrap();
    println!("right and as float, in %: calibrated {calibrated:.1?}, trained {trained:.1?}");
    for (before, after) in calibrated.into_iter().zip(trained) {
        assert!(after >= before + GAIN, "{calibrated:?} {trained:?}");
    }
}

/// The scores of ResNet20 in 3 bits, calibrated and then trained.
fn trained(assets: &Path) -> Result<[[f64; 2]; 2]> {
    let float = onnx::load(assets.join("models/resnet20_cifar10.onnx"))?;
    let open = |name: &str| {
        let inputs: Vec<_> = float.inputs().map(|(_, v)| v.clone()).collect();
        let path = assets.join("data/cifar10").join(name);
        Dataset::open(&path, &Preprocess::from_toml(PREPROCESS)?, &inputs)
    };
    let (train, test) = (open("train5000.bin.gz")?.take(400), open("test2000.bin.gz")?.take(300));
    let mut prepared = prepare(&fuse(&float)?, &three_bits()?)?;
    let few = open("train5000.bin.gz")?.take(100);
    prepared.calibrate(few.batches(25).map(|batch| inputs_of(&float, &batch?)), &|_| Ok(()))?;
    let teacher = Session::compile(&float)?;
    let before = scores(&prepared.convert()?.graph, &teacher, &test)?;

    let options = Options {
        epochs: 2,
        batch: 25,
        optimizer: Optimizer::sgd(1e-4),
        rate: 0.01,
        schedule: Schedule::Cosine,
        loss: Loss::Distillation { temperature: 4.0 },
        clip: Some(5.0),
        augment: Augment { flip: true, shift: 0 },
        ..Options::default()
    };
    let mut training = Training::new(Qat::new(prepared, &float, QatOptions::default())?, options)?;
    let teach = |x: &[Tensor]| teacher.run(x);
    training.run(&train, &Target::Teacher(&teach), &mut |_, _| Ok(()))?;
    Ok([before, scores(&training.learner.convert()?.graph, &teacher, &test)?])
}
