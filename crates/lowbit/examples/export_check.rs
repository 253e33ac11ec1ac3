//! Writes quantized models, with their inputs and lowbit's own outputs, for
//! another runtime to repeat: `ci/onnxruntime_check.py` compares.
//!
//! `export_check FOLDER [ASSETS]` writes for each model
//!
//! | file | holds |
//! |---|---|
//! | `MODEL/float.onnx` | the model as it came |
//! | `MODEL/float.npz` | `inputs`, `labels`, `logits` of the float model, `batch`, how many inputs run at once |
//! | `MODEL/CONFIGURATION.onnx` | the quantized model |
//! | `MODEL/CONFIGURATION.npz` | `logits` of the Session, for all inputs or the first of them |
//!
//! Without assets there is the demo model alone.

#[allow(dead_code)]
#[path = "../tests/assets/models.rs"]
mod models;

use std::path::{Path, PathBuf};

use lowbit::data::npz;
use lowbit::graph::Graph;
use lowbit::passes::{products_of_few_bits, renormalize, tensorrt_dialect};
use lowbit::qconfig::{Per, QConfig, QConfigMapping, Spec, preset};
use lowbit::quantize::{fuse, prepare};
use lowbit::scheme::{Format, Mapping};
use lowbit::session::Session;
use lowbit::tensor_quantizer::{AmaxMethod, QuantModules, QuantizedModel};
use lowbit::{DType, Result, Tensor, onnx};
use models::{CLASSIFIERS, inputs};

/// Inputs that configurations other than the default are compared on, and
/// calibrated on.
const FEW: usize = 64;

/// A model with its data, in batches.
struct Subject {
    name: String,
    path: PathBuf,
    calibration: Vec<Tensor>,
    evaluation: Vec<Tensor>,
    labels: Vec<usize>,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = arguments.next().unwrap_or_else(|| {
        eprintln!("usage: export_check FOLDER [ASSETS]");
        std::process::exit(2)
    });
    write(&demo()?, &folder)?;
    if let Some(assets) = arguments.next() {
        for classifier in CLASSIFIERS {
            let tensors = |dataset: lowbit::data::Dataset| -> Result<Vec<Tensor>> {
                Ok(dataset.batches(classifier.batch).map(inputs).collect::<Result<Vec<_>>>()?.concat())
            };
            let evaluation = classifier.evaluation(&assets)?;
            let subject = Subject {
                name: classifier.name.into(),
                path: classifier.path(&assets),
                calibration: tensors(classifier.calibration(&assets)?)?,
                labels: evaluation.labels().unwrap_or_default(),
                evaluation: tensors(evaluation)?,
            };
            write(&subject, &folder)?;
        }
        write(&stories(&assets)?, &folder)?;
    }
    Ok(())
}

/// A language model and the beginnings of some stories; the labels are the
/// tokens that it finds most likely itself.
fn stories(assets: &Path) -> Result<Subject> {
    const TOKENS: usize = 200;
    let path = assets.join("models/stories260K.onnx");
    let all = npz::read(&assets.join("data/stories_tokens.npz"))?;
    let ids = all.iter().map(|(_, story)| Ok(story.slice::<i64>()?[..TOKENS].to_vec()));
    let ids = Tensor::new(&[all.len(), TOKENS], ids.collect::<Result<Vec<_>>>()?.concat())?;
    let logits = onnx::load(&path)?.run(std::slice::from_ref(&ids))?.swap_remove(0);
    let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0);
    let labels = logits.slice::<f32>()?.chunks_exact(logits.shape()[2]).map(best).collect();
    let name = "stories260K".into();
    Ok(Subject { name, path, calibration: vec![ids.clone()], evaluation: vec![ids], labels })
}

fn demo() -> Result<Subject> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo"));
    let mut data = npz::Npz::open(&folder.join("digits.npz"))?;
    let mut images = |name: &str| -> Result<Vec<Tensor>> {
        let pixels = data.read(name)?;
        let pixels: Vec<f32> = pixels.to_f32()?.iter().map(|x| x / 16.0).collect();
        pixels
            .chunks(32 * 64)
            .map(|batch| Tensor::new(&[batch.len() / 64, 1, 8, 8], batch.to_vec()))
            .collect()
    };
    let (calibration, evaluation) = (images("calibration")?, images("test")?);
    let labels = data.read("test_labels")?.integers()?.into_iter().map(|x| x as usize).collect();
    Ok(Subject { name: "demo".into(), path: folder.join("digits.onnx"), calibration, evaluation, labels })
}

/// The configurations that a model is exported in, the default first.
fn configurations(model: &str) -> Result<Vec<(&'static str, QConfig)>> {
    let named = |names: &[&'static str]| -> Result<Vec<_>> {
        names.iter().map(|name| Ok((*name, preset(name)?))).collect()
    };
    let unobserved = named(&["dynamic", "dynamic-rows", "weight-only", "int4"])?;
    if model == "stories260K" {
        return Ok(unobserved);
    }
    let default = preset("default")?;
    let weight = |format, mapping| QConfig {
        weight: Spec { format, mapping, ..default.weight.clone() },
        ..default.clone()
    };
    let activation = |format, mapping| QConfig {
        activation: default.activation.clone().map(|a| Spec { format, mapping, ..a }),
        ..default.clone()
    };
    let mut all = vec![("default", default.clone())];
    all.extend(named(&["fbgemm", "x86", "qnnpack", "onednn", "tensorrt", "onnxruntime"])?);
    all.extend(unobserved);
    all.push(("per-tensor", QConfig { weight: default.weight.clone().per(Per::Tensor), ..default.clone() }));
    all.push(("int16-activations", activation(Format::INT16, Mapping::Symmetric)));
    all.push(("int4-weights", weight(Format::INT4, Mapping::Symmetric)));
    all.push(("uint4-weights", weight(Format::UINT4, Mapping::Affine)));
    if model == "demo" {
        let e4m3 = activation(Format::E4M3, Mapping::Symmetric);
        all.push(("e4m3", QConfig { weight: weight(Format::E4M3, Mapping::Symmetric).weight, ..e4m3 }));
    }
    Ok(all)
}

fn write(subject: &Subject, folder: &Path) -> Result<()> {
    let folder = folder.join(&subject.name);
    let io = |e| lowbit::Error::io(&folder, e);
    std::fs::create_dir_all(&folder).map_err(io)?;
    std::fs::copy(&subject.path, folder.join("float.onnx")).map_err(io)?;
    let float = onnx::load(&subject.path)?;
    let logits = run(&subject.evaluation, usize::MAX, |x| float.run(x))?;
    let labels = Tensor::vector(subject.labels.iter().map(|&l| l as i64).collect::<Vec<_>>());
    let inputs = joined(&subject.evaluation)?;
    // Ranges that are found in each run are those of a batch.
    let batch = Tensor::scalar(subject.evaluation[0].shape()[0] as i64);
    let arrays = [("inputs", &inputs), ("labels", &labels), ("logits", &logits), ("batch", &batch)];
    npz::write(&folder.join("float.npz"), arrays)?;
    for (name, config) in configurations(&subject.name)? {
        let most = if name == "default" { usize::MAX } else { FEW };
        let quantized = quantize(&float, config, first(&subject.calibration, most))
            .map_err(|e| e.at(format!("{} quantized as {name}", subject.name)))?;
        write_quantized(subject, &folder, name, &quantized, most)?;
        if name == "tensorrt" {
            write_quantized(subject, &folder, "tensorrt-dialect", &tensorrt_dialect(&quantized)?, most)?;
            let mut model = QuantizedModel::new(&float, &QuantModules::initialize())?;
            let batches = first(&subject.calibration, most).iter().map(|x| Ok(vec![x.clone()]));
            model.calibrate(batches, AmaxMethod::Max, &|_| Ok(()))?;
            let by_layer = tensorrt_dialect(&model.convert()?.graph)?;
            write_quantized(subject, &folder, "tensorrt-layers", &by_layer, most)?;
        }
        if (subject.name.as_str(), name) == ("stories260K", "int4") {
            for (name, in_int8) in [("matmul-nbits", false), ("matmul-nbits-int8", true)] {
                let products = products_of_few_bits(&quantized, in_int8)?;
                write_quantized(subject, &folder, name, &products, most)?;
            }
        }
    }
    Ok(())
}

/// The model and what the Session makes of the inputs, or of the first of them.
fn write_quantized(
    subject: &Subject,
    folder: &Path,
    name: &str,
    quantized: &Graph,
    most: usize,
) -> Result<()> {
    onnx::save(quantized, folder.join(format!("{name}.onnx")))?;
    let session = Session::compile(quantized)?;
    let logits = run(&subject.evaluation, most, |x| session.run(x))?;
    npz::write(&folder.join(format!("{name}.npz")), [("logits", &logits)])?;
    let covered = 100.0 * session.report().coverage();
    println!("{} {name}: {covered:.1} % of the products in integers", subject.name);
    Ok(())
}

fn quantize(float: &Graph, config: QConfig, calibration: &[Tensor]) -> Result<Graph> {
    let mut prepared = prepare(&fuse(float)?, &QConfigMapping::global(config))?;
    let batches = || calibration.iter().map(|x| Ok(vec![x.clone()]));
    prepared.calibrate(batches(), &|_| Ok(()))?;
    Ok(renormalize(&prepared, batches(), &|_| Ok(()))?.convert()?.graph)
}

/// The batches that hold the first `most` samples.
fn first(batches: &[Tensor], most: usize) -> &[Tensor] {
    let size = batches.first().map_or(1, |b| b.shape()[0]);
    &batches[..batches.len().min(most.div_ceil(size))]
}

fn run(batches: &[Tensor], most: usize, model: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>) -> Result<Tensor> {
    let logits: Result<Vec<Tensor>> =
        first(batches, most).iter().map(|x| Ok(model(std::slice::from_ref(x))?.swap_remove(0))).collect();
    joined(&logits?)
}

/// The batches along their first dimension.
fn joined(batches: &[Tensor]) -> Result<Tensor> {
    let mut shape = batches[0].shape().to_vec();
    shape[0] = batches.iter().map(|b| b.shape()[0]).sum();
    if batches[0].dtype() == DType::I64 {
        let data = batches.iter().map(|b| b.slice::<i64>()).collect::<Result<Vec<_>>>()?;
        return Tensor::new(&shape, data.concat());
    }
    let data = batches.iter().map(|b| b.slice::<f32>()).collect::<Result<Vec<_>>>()?;
    Tensor::new(&shape, data.concat())
}
