//! ResNet20 on CIFAR-10 with 4-bit weights: codes that are the nearest ones, those that
//! GPTQ chooses, and those that AdaRound learns, layer by layer and block by block.
//!
//! ```text
//! cargo run --release -p lowbit --example adaround -- ASSETS
//! ```
//!
//! `ASSETS` holds `models/resnet20_cifar10.onnx` and `data/cifar10/`.

use std::path::Path;
use std::time::Instant;

use lowbit::analysis::evaluate;
use lowbit::data::{Dataset, Preprocess};
use lowbit::graph::Graph;
use lowbit::observer::ObserverConfig;
use lowbit::passes::{AdaroundOptions, Blocks, adaround};
use lowbit::qconfig::{QConfig, QConfigMapping, Rounding, Spec};
use lowbit::quantize::{fuse, prepare};
use lowbit::scheme::{Format, Mapping};
use lowbit::session::Session;
use lowbit::{Result, onnx};

fn main() -> Result<()> {
    let assets = std::env::args().nth(1).unwrap_or_else(|| "../shared/assets".into());
    let assets = Path::new(&assets);
    let float = onnx::load(assets.join("models/resnet20_cifar10.onnx"))?;
    let preprocess = Preprocess::from_toml(
        "scale = 0.00392156862745098\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]",
    )?;
    let data = |name: &str| {
        let inputs: Vec<_> = float.inputs().map(|(_, v)| v.clone()).collect();
        Dataset::open(&assets.join("data/cifar10").join(name), &preprocess, &inputs)
    };
    let (train, test) = (data("train5000.bin.gz")?.take(1024), data("test2000.bin.gz")?);
    let batches = || train.batches(32).map(|b| Ok(b?.inputs.into_iter().map(|(_, t)| t).collect()));
    let calibrated = |rounding| {
        let mut prepared = prepare(&fuse(&float)?, &mapping(rounding))?;
        prepared.calibrate(batches(), &|_| Ok(()))?;
        Ok::<_, lowbit::Error>(prepared)
    };
    report("float", &float, &float, &test)?;
    report("GPTQ", &calibrated(Rounding::Gptq)?.convert()?.graph, &float, &test)?;
    report("nearest", &calibrated(Rounding::Nearest)?.convert()?.graph, &float, &test)?;
    let unlearned = calibrated(Rounding::Adaround)?;
    for (name, blocks) in [("layers", Blocks::Layers), ("blocks", Blocks::Residual)] {
        let options = AdaroundOptions { blocks, ..AdaroundOptions::default() };
        let start = Instant::now();
        let learned = adaround(&unlearned, batches(), &options, &mut |block| {
            let kept = block.error / block.nearest;
            println!("  {} of {}: {}: error x {kept:.3}", block.number, block.blocks, block.output);
            Ok(())
        })?;
        println!("  {:.0} s", start.elapsed().as_secs_f64());
        report(name, &learned.convert()?.graph, &float, &test)?;
    }
    Ok(())
}

/// Weights of 4 bits in every layer, with a scale for each channel; activations of 8 bits.
fn mapping(rounding: Rounding) -> QConfigMapping {
    let weight = Spec::new(Format::INT4, Mapping::Symmetric).per_channel().observed_by(ObserverConfig::Mse);
    let weight = weight.rounded_by(rounding).correcting_bias();
    let activation = Spec::new(Format::UINT8, Mapping::Affine).observed_by(ObserverConfig::Mse);
    QConfigMapping::global(QConfig { activation: Some(activation), weight })
}

fn report(what: &str, graph: &Graph, float: &Graph, data: &Dataset) -> Result<()> {
    let (session, float) = (Session::compile(graph)?, Session::compile(float)?);
    let scores = evaluate(&[("float", &float), (what, &session)], data, 100, &mut |_| Ok(()))?.scores;
    let (top1, agreement) = (scores[1].top1.unwrap_or(0.0), scores[1].agreement);
    println!("{what}: {:.2} % right, {:.2} % as float", 100.0 * top1, 100.0 * agreement);
    Ok(())
}
