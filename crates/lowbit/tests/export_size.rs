//! How large quantized files of real models are, and what their values are called.

mod assets;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use lowbit::data::random_inputs;
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::quantize::{fuse, prepare};
use lowbit::{Result, onnx};
use prost::Message;

/// What a file may take is that of the weights and what each channel has
/// beside them (a scale, a bias and its scale, 4 bytes each) and the graph.
const CASES: [(&str, f64); 5] = [
    ("squeezenet1.0_dc", 26.3),
    ("mobilenet_v1_0.25_224", 27.6),
    ("resnet20_cifar10", 26.9),
    ("kws_dscnn", 33.5),
    ("mnist-cntk", 36.0),
];

#[test]
fn quantized_files_are_small_and_keep_the_names_of_values() {
    let Some(assets) = assets::find("quantized_files_are_small_and_keep_the_names_of_values") else { return };
    let failures: Vec<String> =
        CASES.iter().flat_map(|(name, most)| check(&assets, name, *most).unwrap()).collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

fn check(assets: &Path, name: &str, most: f64) -> Result<Vec<String>> {
    let path = assets.join(format!("models/{name}.onnx"));
    let fused = fuse(&onnx::load(&path)?)?;
    let mut prepared = prepare(&fused, &QConfigMapping::global(preset("default").unwrap()))?;
    prepared.observe(&random_inputs(&fused, 1, &BTreeMap::new())?)?;
    let file = onnx::encode(&prepared.convert()?.graph)?;
    let mut failures = vec![];

    let float = std::fs::metadata(&path).expect("it was just read").len();
    let percent = 100.0 * file.encoded_len() as f64 / float as f64;
    if percent > most {
        failures.push(format!("{name}: {percent:.2} % of the float file, over {most} %"));
    }

    // An activation may be implied by its quantization: then `y_dq` is left of `y`.
    let graph = file.graph.expect("it was just made");
    let kept: HashSet<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    for (v, node, ..) in fused.applied() {
        let value = &fused.value(v).name;
        if !kept.contains(value.as_str()) && !kept.contains(format!("{value}_dq").as_str()) {
            failures.push(format!("{name}: the value {value:?} of {:?} is lost", node.name));
        }
    }
    Ok(failures)
}
