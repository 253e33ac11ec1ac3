//! Real models: what other tools wrote is read and written without loss.

use std::fs;
use std::path::{Path, PathBuf};

use lowbit_onnx::{Model, WriteOptions};

/// The assets folder, or `None` where it is absent, which is a failure in CI.
fn assets() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/assets");
    let folder = std::env::var_os("LOWBIT_ASSETS").map_or(default, PathBuf::from);
    if folder.join("models").is_dir() {
        return Some(folder);
    }
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!ci, "no test assets at {}", folder.display());
    println!("skipped: no test assets at {}", folder.display());
    None
}

/// Every file below `folder` whose name ends in `.extension`.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found
}

#[test]
fn real_models_survive_a_round_trip() {
    let Some(assets) = assets() else { return };
    let models = files(&assets, "onnx");
    assert!(!models.is_empty(), "no .onnx below {}", assets.display());
    let folder = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    for path in models {
        let name = path.display();
        let model = match lowbit_onnx::read(&path) {
            Ok(model) => model,
            Err(error) => {
                failures.push(error.to_string());
                continue;
            }
        };
        let whole = folder.path().join("whole.onnx");
        model.write(&whole, &WriteOptions::default()).unwrap();
        let bytes = fs::read(&whole).unwrap();
        if Model::decode(&bytes).unwrap().proto() != model.proto() {
            failures.push(format!("{name}: differs"));
        }

        let split = folder.path().join("split.onnx");
        let options = WriteOptions { external_threshold: Some(0) };
        model.write(&split, &options).unwrap();
        let again = lowbit_onnx::read(&split).unwrap();
        let pairs = model.graph().initializer.iter().zip(&again.graph().initializer);
        for (before, after) in pairs {
            if model.tensor(before).unwrap() != again.tensor(after).unwrap() {
                failures.push(format!("{name}: tensor {:?} differs", before.name()));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn real_tensor_files_are_read() {
    let Some(assets) = assets() else { return };
    let tensors = files(&assets.join("onnx_node_quant"), "pb");
    let failures: Vec<_> = tensors
        .iter()
        .filter_map(|path| lowbit_onnx::read_tensor(path).err())
        .map(|error| error.to_string())
        .collect();
    assert!(!tensors.is_empty() && failures.is_empty(), "{failures:#?}");
}
