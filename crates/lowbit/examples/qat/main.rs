//! Quantization-aware training of ResNet20 on CIFAR-10, to 8, 4 and 3 bits.
//!
//! ```text
//! cargo run --release -p lowbit --example qat -- ASSETS [BITS] [EPOCHS] [--short]
//! ```
//!
//! `ASSETS` holds `models/resnet20_cifar10.onnx` and `data/cifar10/`. The float
//! model is quantized to BITS (4) with calibration alone, then trained for EPOCHS
//! (30) to say what the float model says (self-distillation: no label is used),
//! with learned steps. The first and the last layer have 8 bits, as is usual.
//! `--short` trains on 500 images and tests on 200.

use std::path::Path;
use std::time::Instant;

use lowbit::analysis::evaluate;
use lowbit::data::{Augment, Dataset, Preprocess};
use lowbit::graph::Graph;
use lowbit::observer::ObserverConfig;
use lowbit::qconfig::{QConfig, QConfigMapping, Rule, Spec, Target as Nodes, preset};
use lowbit::quantize::{fuse, prepare};
use lowbit::scheme::{Format, Mapping};
use lowbit::session::Session;
use lowbit::train::{Loss, Optimizer, Options, Qat, QatOptions, Schedule, Target, Training};
use lowbit::{Result, Tensor, onnx};

const PREPROCESS: &str = "scale = 0.00392156862745098
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]";

fn main() -> Result<()> {
    let (short, args): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a == "--short");
    let mut args = args.into_iter();
    let assets = args.next().unwrap_or_else(|| "../shared/assets".into());
    let bits = args.next().and_then(|b| b.parse().ok()).unwrap_or(4);
    let epochs = args.next().and_then(|e| e.parse().ok()).unwrap_or(30);
    let assets = Path::new(&assets);
    let float = onnx::load(assets.join("models/resnet20_cifar10.onnx"))?;
    let data = |name: &str| {
        let inputs: Vec<_> = float.inputs().map(|(_, v)| v.clone()).collect();
        Dataset::open(&assets.join("data/cifar10").join(name), &Preprocess::from_toml(PREPROCESS)?, &inputs)
    };
    let (mut train, mut test) = (data("train5000.bin.gz")?, data("test2000.bin.gz")?);
    if !short.is_empty() {
        (train, test) = (train.take(500), test.take(200));
    }
    let mut prepared = prepare(&fuse(&float)?, &mapping(bits)?)?;
    let few =
        (0..8).map(|i| Ok(vec![train.at(&(i * 32..(i + 1) * 32).collect::<Vec<_>>())?.inputs.remove(0).1]));
    prepared.calibrate(few, &|_| Ok(()))?;
    report("float", &float, &float, &test)?;
    report("calibrated", &prepared.convert()?.graph, &float, &test)?;

    let teacher = Session::compile(&float)?;
    let qat = Qat::new(prepared, &float, QatOptions::default())?;
    let options = Options {
        epochs,
        batch: 100,
        optimizer: Optimizer::sgd(1e-4),
        rate: if bits < 8 { 0.02 } else { 0.0005 },
        schedule: Schedule::Cosine,
        loss: Loss::Distillation { temperature: 4.0 },
        clip: Some(5.0),
        augment: Augment { flip: true, shift: 4 },
        ..Options::default()
    };
    let mut training = Training::new(qat, options)?;
    let start = Instant::now();
    let teach = |x: &[Tensor]| teacher.run(x);
    training.run(&train, &Target::Teacher(&teach), &mut |_, p| {
        if p.step % 50 == 0 {
            let (loss, agreement) = (p.mean_loss, 100.0 * p.accuracy.unwrap_or(0.0));
            let seconds = start.elapsed().as_secs();
            println!("step {} of {}: loss {loss:.4}, {agreement:.1} % agree, {seconds} s", p.step, p.steps);
        }
        Ok(())
    })?;
    let trained = training.learner.convert()?.graph;
    report("trained", &trained, &float, &test)
}

/// Weights and activations of `bits`, 8 in the first and last layer.
fn mapping(bits: u8) -> Result<QConfigMapping> {
    let few = QConfig {
        activation: Some(
            Spec::new(Format::Int { bits, signed: false, narrow: false }, Mapping::Affine)
                .observed_by(ObserverConfig::Mse),
        ),
        weight: Spec::new(Format::Int { bits, signed: true, narrow: true }, Mapping::Symmetric)
            .per_channel()
            .observed_by(ObserverConfig::Mse),
    };
    let eight = QConfig { weight: preset("x86")?.weight, activation: preset("x86")?.activation };
    let rule = |name: &str| {
        Ok::<_, lowbit::Error>(Rule { target: Nodes::name(name)?, qconfig: Some(eight.clone()) })
    };
    let mut mapping = QConfigMapping::global(few);
    if bits < 8 {
        mapping.rules.extend([rule("conv1")?, rule("linear")?]);
    }
    Ok(mapping)
}

fn report(what: &str, graph: &Graph, float: &Graph, data: &Dataset) -> Result<()> {
    let (session, float) = (Session::compile(graph)?, Session::compile(float)?);
    let scores = evaluate(&[("float", &float), (what, &session)], data, 100, &mut |_| Ok(()))?.scores;
    let (top1, agreement) = (scores[1].top1.unwrap_or(0.0), scores[1].agreement);
    println!("{what}: {:.2} % right, {:.2} % as float", 100.0 * top1, 100.0 * agreement);
    Ok(())
}
