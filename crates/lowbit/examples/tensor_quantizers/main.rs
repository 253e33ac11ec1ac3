//! A walk through tensor quantizers, for those who know NVIDIA's `pytorch-quantization`.
//!
//! ```text
//! cargo run --release -p lowbit --example tensor_quantizers [-- FOLDER]
//! ```
//!
//! The demo's classifier of digits gets a quantizer for the input and the weight of each
//! layer. They collect histograms once, from which each method finds its ranges; one
//! layer after another is quantized alone, to see which of them costs accuracy; and the
//! model is written in TensorRT's dialect, to FOLDER or one that is gone afterwards, and
//! run.

use std::path::{Path, PathBuf};

use lowbit::analysis::evaluate;
use lowbit::data::{Dataset, Preprocess};
use lowbit::graph::{Graph, Value};
use lowbit::passes::tensorrt_dialect;
use lowbit::session::Session;
use lowbit::tensor_quantizer::{
    AmaxMethod, CalibMethod, LayerKind, QuantDescriptor, QuantModules, QuantizedModel, TensorQuantizer,
    tensor_quant,
};
use lowbit::{Result, Tensor, onnx};

fn main() -> Result<()> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo");
    let float = onnx::load(demo.join("digits.onnx"))?;
    let inputs: Vec<Value> = float.inputs().map(|(_, v)| v.clone()).collect();
    let data = |keys: &str| {
        Dataset::open(
            &demo.join("digits.npz"),
            &Preprocess::from_toml(&format!("[array]\n{keys}\nscale = 0.0625"))?,
            &inputs,
        )
    };
    let (calibration, test) = (data("key = 'calibration'")?, data("key = 'test'\nlabels = 'test_labels'")?);
    let batches = || calibration.batches(16).map(|b| Ok(b?.inputs.into_iter().map(|(_, t)| t).collect()));

    // A tensor: codes, and how many of them a unit has.
    let x = Tensor::vector(vec![0.98f32, -0.46, 0.08, 0.21]);
    let (codes, scale) = tensor_quant(&x, &Tensor::scalar(0.98f32), 8, false, true)?;
    println!("{:?} are {:?} / {}", x.to_f32()?, codes.integers()?, scale.item::<f32>()?);

    // A descriptor, and the quantizer that it describes.
    let histogram = QuantDescriptor { calib_method: CalibMethod::Histogram, ..QuantDescriptor::new(8) };
    let mut quantizer = TensorQuantizer::new(histogram.clone())?;
    quantizer.enable_calib();
    quantizer.forward(&x)?;
    quantizer.load_calib_amax(AmaxMethod::Max)?;
    quantizer.enable_quant();
    println!(
        "a quantizer in steps of {}: {:?}\n",
        quantizer.step_size()?[0],
        quantizer.forward(&x)?.to_f32()?
    );

    let top1 = |graph: &Graph| -> Result<f64> {
        let session = Session::compile(graph)?;
        let score = evaluate(&[("model", &session)], &test, 50, &mut |_| Ok(()))?.scores.remove(0);
        Ok(100.0 * score.top1.unwrap_or(f64::NAN))
    };
    println!("float: {:.2} % right", top1(&float)?);

    // All layers: inputs by histogram, weights by their largest magnitude per channel.
    // (Entropy is made for 8 bits; with few codes it clips too much.)
    let methods = [
        ("max", AmaxMethod::Max),
        ("entropy", AmaxMethod::Entropy),
        ("percentile 99.9", AmaxMethod::Percentile(99.9)),
        ("percentile 99", AmaxMethod::Percentile(99.0)),
        ("mse", AmaxMethod::Mse),
    ];
    for bits in [8, 4, 3] {
        let num_bits = QuantDescriptor::new(bits).num_bits;
        let mut modules = QuantModules::initialize();
        for layer in modules.layers.values_mut() {
            layer.input = QuantDescriptor { num_bits, ..histogram.clone() };
            layer.weight.num_bits = num_bits;
        }
        let mut model = QuantizedModel::new(&float, &modules)?;
        model.set("*", TensorQuantizer::enable_calib)?;
        model.collect(batches(), &|_| Ok(()))?;
        model.set("*", TensorQuantizer::enable_quant)?;
        print!("{bits} bits:");
        for (name, method) in methods {
            model.load_calib_amax(method)?;
            print!(" {name} {:.2} %,", top1(&model.fake_quantized()?)?);
        }
        println!();
    }

    // Which layer costs? One alone in 3 bits, the others in float.
    let mut modules = QuantModules::initialize();
    modules.set_default_input(&histogram);
    let mut model = QuantizedModel::new(&float, &modules)?;
    model.calibrate(batches(), AmaxMethod::Mse, &|_| Ok(()))?;
    println!();
    let three = QuantDescriptor { num_bits: QuantDescriptor::new(3).num_bits, ..histogram.clone() };
    let weights = model.quantizers().filter_map(|(name, _)| name.strip_suffix("._weight_quantizer"));
    for layer in weights {
        let alone = QuantModules::initialize()
            .with_rule("*", None)
            .with_rule(&format!("{layer}._input_quantizer"), Some(three.clone()))
            .with_rule(&format!("{layer}._weight_quantizer"), Some(three.clone().along(0)));
        let mut model = QuantizedModel::new(&float, &alone)?;
        model.calibrate(batches(), AmaxMethod::Mse, &|_| Ok(()))?;
        println!("{layer:<18} in 3 bits: {:.2} % right", top1(&model.fake_quantized()?)?);
    }

    println!();
    for (name, quantizer) in model.quantizers() {
        let amax = quantizer.amax().unwrap_or_default();
        println!("{name:<42} {:>2} of amax, the first {:.4}", amax.len(), amax[0]);
    }

    // Files: by channel in opset 13, and by tensor in opset 10.
    println!();
    let temporary = tempfile::tempdir().map_err(|e| lowbit::Error::io(Path::new("."), e))?;
    let folder = std::env::args_os().nth(1).map_or_else(|| temporary.path().into(), PathBuf::from);
    std::fs::create_dir_all(&folder).map_err(|e| lowbit::Error::io(&folder, e))?;
    let written = |name: &str, opset: i64, model: &QuantizedModel| -> Result<()> {
        let path = folder.join(name);
        onnx::save_at(&tensorrt_dialect(&model.convert()?.graph)?, &path, opset)?;
        let read = onnx::load(&path)?;
        let coverage = 100.0 * Session::compile(&read)?.report().coverage();
        println!("{name}: {:.2} % right, {coverage:.0} % of the products in int8", top1(&read)?);
        Ok(())
    };
    written("digits.opset13.onnx", 13, &model)?;
    for kind in [LayerKind::Linear, LayerKind::Conv2d] {
        modules.set(kind, histogram.clone(), QuantDescriptor::new(8));
    }
    let mut by_tensor = QuantizedModel::new(&float, &modules)?;
    by_tensor.calibrate(batches(), AmaxMethod::Mse, &|_| Ok(()))?;
    written("digits.opset10.onnx", 10, &by_tensor)
}
