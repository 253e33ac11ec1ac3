//! Trains the model of the demo, a classifier of handwritten digits, and quantizes it in every
//! way that there is: `digits [FOLDER] [--short]`.
//!
//! FOLDER (`out/digits`) gets the float model as `digits.onnx`, which is `demo/digits.onnx`, and
//! as `digits.safetensors`, with PyTorch's names; and each quantized model. `--short` trains for
//! two epochs only.

mod float;
mod model;

use std::path::{Path, PathBuf};
use std::time::Instant;

use float::{images, input};
use lowbit::analysis::evaluate;
use lowbit::data::{Augment, Dataset};
use lowbit::graph::Graph;
use lowbit::nn::{Weights, eager};
use lowbit::observer::ObserverConfig;
use lowbit::qconfig::{QConfig, QConfigMapping, Spec, Target as Nodes, preset};
use lowbit::quantize::{Prepared, fuse, prepare, quantize_dynamic};
use lowbit::scheme::{Format, Mapping};
use lowbit::session::Session;
use lowbit::train::{Loss, Optimizer, Options, Qat, QatOptions, Target, Training};
use lowbit::{Error, Result, Tensor, onnx};
use model::{Digits, GROUPS};

fn main() -> Result<()> {
    let (short, folders): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a == "--short");
    let folder = PathBuf::from(folders.first().map_or("out/digits", String::as_str));
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let epochs = |long: u64| if short.is_empty() { long } else { 2.min(long) };

    let start = Instant::now();
    let mut epoch = 0;
    let (weights, float) = float::train(epochs(60), |p| {
        if p.step * epochs(10) / p.steps > epoch {
            epoch += 1;
            let (accuracy, seconds) = (100.0 * p.accuracy.unwrap_or(0.0), start.elapsed().as_secs_f64());
            let (step, loss) = (p.step, p.mean_loss);
            println!("step {step:4} of {}: loss {loss:.4}, {accuracy:5.2} % right, {seconds:.1} s", p.steps);
        }
    })?;
    weights.save(&folder.join("digits.safetensors"))?;

    let calibration: Vec<Tensor> = images("calibration", false)?
        .batches(32)
        .map(|b| Ok(b?.inputs.remove(0).1))
        .collect::<Result<_>>()?;
    let default = QConfigMapping::global(preset("default")?);
    let uint4 = QConfigMapping::global(QConfig::weight_only(Format::UINT4, None));
    let four = four_bits()?;
    let train = images("train", true)?;
    let models = [
        ("float", "digits.onnx", float.clone()),
        ("static int8", "int8.onnx", calibrated(&float, &default, &calibration)?.convert()?.graph),
        ("static int8, eager mode", "eager.onnx", in_eager_mode(&weights, &default, &calibration)?),
        ("dynamic int8", "dynamic.onnx", quantize_dynamic(&float, &[], Format::INT8)?.graph),
        ("weights in 4 bits", "uint4.onnx", calibrated(&float, &uint4, &calibration)?.convert()?.graph),
        ("static int8, trained", "int8-trained.onnx", {
            retrained(calibrated(&float, &default, &calibration)?, &float, &train, epochs(5), 0.002)?
        }),
        ("static 4 bits", "int4.onnx", calibrated(&float, &four, &calibration)?.convert()?.graph),
        ("static 4 bits, trained", "int4-trained.onnx", {
            retrained(calibrated(&float, &four, &calibration)?, &float, &train, epochs(20), 0.02)?
        }),
    ];

    let test = images("test", true)?;
    println!("\n{:24} {:>8}  {:>8}", "", "right", "bytes");
    for (name, file, graph) in &models {
        let path = folder.join(file);
        onnx::save(graph, &path)?;
        let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
        println!("{name:24} {:7.2}%  {bytes:8}  {}", 100.0 * accuracy(&path, &test)?, path.display());
    }
    println!("\nin {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Uint4 activations and int4 weights, but for 8 bits in the first and the last layer.
fn four_bits() -> Result<QConfigMapping> {
    let spec = |signed, mapping| {
        Spec::new(Format::Int { bits: 4, signed, narrow: signed }, mapping).observed_by(ObserverConfig::Mse)
    };
    let weight = spec(true, Mapping::Symmetric).per_channel();
    let few = QConfig { activation: Some(spec(false, Mapping::Affine)), weight };
    ["stem.0", "classifier"].into_iter().try_fold(QConfigMapping::global(few), |mapping, name| {
        Ok(mapping.with(Nodes::name(name)?, Some(preset("default")?)))
    })
}

/// The fused model with the ranges that its values have on `calibration`.
fn calibrated(float: &Graph, mapping: &QConfigMapping, calibration: &[Tensor]) -> Result<Prepared> {
    let mut prepared = prepare(&fuse(float)?, mapping)?;
    prepared.calibrate(calibration.iter().map(|x| Ok(vec![x.clone()])), &|_| Ok(()))?;
    Ok(prepared)
}

/// The same of the model as it is written: its stubs say what is quantized.
fn in_eager_mode(weights: &Weights, mapping: &QConfigMapping, calibration: &[Tensor]) -> Result<Graph> {
    let fused = eager::fuse_modules(&Digits::new(), weights, GROUPS)?;
    let mut prepared = eager::prepare(Digits::new(), fused, mapping)?;
    for x in calibration {
        prepared.observe(std::slice::from_ref(x))?;
    }
    prepared.convert()?.0.trace(&[input()])
}

/// Trained to say what the float model says (self-distillation: labels are not used).
fn retrained(prepared: Prepared, float: &Graph, data: &Dataset, epochs: u64, rate: f32) -> Result<Graph> {
    let teacher = Session::compile(&fuse(float)?)?;
    let options = Options {
        epochs,
        optimizer: Optimizer::sgd(1e-4),
        rate,
        loss: Loss::Distillation { temperature: 4.0 },
        clip: Some(5.0),
        augment: Augment { flip: false, shift: 1 },
        ..Options::default()
    };
    let mut training = Training::new(Qat::new(prepared, float, QatOptions::default())?, options)?;
    let teach = |x: &[Tensor]| teacher.run(x);
    training.run(data, &Target::Teacher(&teach), &mut |_, _| Ok(()))?;
    Ok(training.learner.convert()?.graph)
}

/// The part of the images that the model in a file gets right.
fn accuracy(model: &Path, data: &Dataset) -> Result<f64> {
    let session = Session::compile(&onnx::load(model)?)?;
    let scores = evaluate(&[("model", &session)], data, 50, &mut |_| Ok(()))?.scores;
    Ok(scores[0].top1.unwrap_or(0.0))
}
