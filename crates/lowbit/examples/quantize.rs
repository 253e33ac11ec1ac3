//! Quantizes a model: `quantize MODEL.onnx CALIBRATION OUT.onnx`.
//!
//! CALIBRATION is what [`Dataset::open`] reads; how its samples are prepared
//! stands beside the model. Without arguments it is the demo model.

use std::path::{Path, PathBuf};

use lowbit::data::{Dataset, Preprocess};
use lowbit::graph::Value;
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::quantize::{fuse, prepare};
use lowbit::session::Session;
use lowbit::{Result, Tensor, onnx};

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, calibration, out] = arguments.as_slice() else {
        eprintln!("usage: quantize MODEL.onnx CALIBRATION OUT.onnx");
        std::process::exit(2)
    };
    quantize(model, calibration, out)
}

fn quantize(model: &Path, calibration: &Path, out: &Path) -> Result<()> {
    let float = onnx::load(model)?;
    let inputs: Vec<Value> = float.inputs().map(|(_, v)| v.clone()).collect();
    let preprocess = Preprocess::beside(model)?.unwrap_or_default();
    let data = Dataset::open(calibration, &preprocess, &inputs)?;
    let batches =
        || data.batches(8).map(|b| b.map(|b| b.inputs.into_iter().map(|(_, t)| t).collect::<Vec<Tensor>>()));

    let mapping = QConfigMapping::global(preset("default")?);
    let mut prepared = prepare(&fuse(&float)?, &mapping)?;
    prepared.calibrate(batches(), &|_| Ok(()))?;
    let converted = prepared.convert()?;
    for finding in &converted.findings {
        println!("{finding}");
    }
    onnx::save(&converted.graph, out)?;

    let session = Session::compile(&converted.graph)?;
    print!("{}", session.report());
    if let Some(batch) = batches().next() {
        println!("{:?}", session.run(&batch?)?);
    }
    Ok(())
}
