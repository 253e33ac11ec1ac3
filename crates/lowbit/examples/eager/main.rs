//! Quantizes a model written in Rust in eager mode, compares it with graph mode, and finds where
//! it loses most:
//! `eager [OUT.safetensors]`.
//!
//! The model is that of the demo, with the weights that the example `digits` trained. It is
//! calibrated by being called, converted, and run as it is written and in integers.
//! The quantized weights go to OUT.safetensors, if there is one.

#[path = "../digits/model.rs"]
mod model;

use std::path::{Path, PathBuf};

use lowbit::analysis::{compare, shadow, weights};
use lowbit::data::{Batch, npz};
use lowbit::graph::Graph;
use lowbit::nn::eager::{Quantized, fuse_modules, prepare};
use lowbit::nn::{Weights, run, trace};
use lowbit::op::{Dim, Fact};
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::session::Session;
use lowbit::{DType, Error, Result, Tensor, onnx, quantize};
use model::{Digits, GROUPS};

fn main() -> Result<()> {
    let out = std::env::args_os().nth(1).map(PathBuf::from);
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo");
    let arrays = npz::read(&demo.join("digits.npz"))?;
    let array = |name: &str| {
        let found = arrays.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
        found.ok_or_else(|| Error::Invalid(format!("digits.npz has no {name}")))
    };
    let (calibration, test) = (pixels(&array("calibration")?)?, pixels(&array("test")?)?);
    let labels = array("test_labels")?.integers()?;

    let weights = Weights::of_graph(&onnx::load(demo.join("digits.onnx"))?, &Digits::new())?;
    let mapping = QConfigMapping::global(preset("default")?);
    let quantized = eager(&weights, &mapping, &calibration)?;
    let image = Fact::new(DType::F32, [Dim::Named("N".into()), 1.into(), 8.into(), 8.into()]);
    let graph = quantized.trace(&[("image", image.clone())])?;
    let float = trace(&Digits::new(), &weights, &[("image", image)])?;
    let in_graph_mode = graph_mode(&float, &mapping, &calibration)?;

    where_it_hurts(&float, &graph, &test)?;

    let test = [test];
    println!("{:34} accuracy", "");
    for (name, logits) in [
        ("float, as it is written", run(&Digits::new(), &weights, &test)?),
        ("int8, as it is written", quantized.run(&test)?),
        ("int8, in integers", Session::compile(&graph)?.run(&test)?),
        ("int8 by graph mode, in integers", Session::compile(&in_graph_mode)?.run(&test)?),
    ] {
        println!("{name:34} {:7.2}%", 100.0 * accuracy(&logits[0], &labels)?);
    }
    if let Some(weight) = quantized.weight("residual.first.0") {
        let (bytes, scales) = (weight.element_size(), &weight.scale()[..3]);
        println!("\nresidual.first.0.weight: {:?}, {bytes} byte each, scales {scales:?} ..", weight.shape());
    }
    if let Some(steps) = quantized.output("residual.skip")? {
        println!("residual.skip: scale {}, zero point {}", steps.scale[0], steps.zero_point[0]);
    }
    if let Some(out) = out {
        quantized.save(&out)?;
        let again = Quantized::load(&out, Digits::new(), GROUPS)?;
        println!("{} holds the model: {}", out.display(), again.run(&test)? == quantized.run(&test)?);
    }
    Ok(())
}

/// Stubs are in the model; what is fused is in a list.
fn eager(weights: &Weights, mapping: &QConfigMapping, calibration: &Tensor) -> Result<Quantized<Digits>> {
    let model = Digits::new();
    let fused = fuse_modules(&model, weights, GROUPS)?;
    let mut prepared = prepare(model, fused, mapping)?;
    prepared.observe(std::slice::from_ref(calibration))?;
    let (quantized, findings) = prepared.convert()?;
    findings.iter().for_each(|finding| println!("{finding}"));
    Ok(quantized)
}

/// The same without either.
fn graph_mode(float: &Graph, mapping: &QConfigMapping, calibration: &Tensor) -> Result<Graph> {
    let mut prepared = quantize::prepare(&quantize::fuse(float)?, mapping)?;
    prepared.observe(std::slice::from_ref(calibration))?;
    Ok(prepared.convert()?.graph)
}

/// Prints the three values that differ the most from those of the float model, and the weight.
fn where_it_hurts(float: &Graph, quantized: &Graph, images: &Tensor) -> Result<()> {
    let batch = || {
        let names = (0..images.shape()[0]).map(|i| i.to_string()).collect();
        [Ok(Batch { inputs: vec![("image".into(), images.clone())], labels: None, names })].into_iter()
    };
    let compared = compare(float, quantized, batch(), &mut |_| Ok(()))?;
    let shadow = shadow(float, quantized, batch(), None, &mut |_| Ok(()))?;
    println!("{:24} {:>8} {:>8} {:>8}", "SQNR in dB", "all", "own", "cosine");
    for e in compared.worst().into_iter().take(3) {
        let own = shadow.values.iter().find(|s| s.own.value == e.value).map_or(f64::NAN, |s| s.own.sqnr_db);
        println!("{:24} {:8.1} {own:8.1} {:8.5}", e.value, e.sqnr_db, e.cosine);
    }
    let weights = weights(&quantize::fuse(float)?, quantized)?;
    if let Some(e) = weights.iter().min_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db)) {
        let (channel, db) = e.worst_channels(1)[0];
        println!("{:24} {:8.1} in channel {channel}: {db:.1}\n", format!("{}.weight", e.node), e.sqnr_db);
    }
    Ok(())
}

/// Pixels of 0..16 as numbers of 0..1.
fn pixels(x: &Tensor) -> Result<Tensor> {
    Tensor::new(x.shape(), x.to_f32()?.into_iter().map(|x| x / 16.0).collect::<Vec<f32>>())
}

/// The part of the images whose greatest logit is that of their label.
fn accuracy(logits: &Tensor, labels: &[i64]) -> Result<f64> {
    let rows = logits.slice::<f32>()?.chunks_exact(10).zip(labels);
    let right = rows.filter(|(row, label)| {
        let best = (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        best.is_some_and(|best| best as i64 == **label)
    });
    Ok(right.count() as f64 / labels.len() as f64)
}
