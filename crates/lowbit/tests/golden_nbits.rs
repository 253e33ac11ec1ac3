//! Products with weights of few bits give what onnxruntime gives (`tests/golden/nbits_models.py`).

use std::path::{Path, PathBuf};

use lowbit::data::npz;
use lowbit::graph::Graph;
use lowbit::onnx;
use lowbit::session::Session;

/// The greatest difference, relative to the greatest magnitude.
fn distance(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let most = want.iter().fold(0f32, |most, x| most.max(x.abs()));
    got.iter().zip(want).fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / most
}

fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/nbits");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    paths.sort();
    assert_eq!(paths.len(), 46);
    paths
}

fn names(graph: &Graph) -> Vec<&'static str> {
    graph.applied().map(|(_, _, op, _)| op.name()).collect()
}

#[test]
fn outputs_are_those_of_onnxruntime() {
    let mut failures = vec![];
    for path in models() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        let arrays = npz::read(&path.with_extension("npz")).unwrap();
        let array = |key: &str| arrays.iter().find(|(name, _)| name == key).unwrap().1.clone();
        let (x, want) = ([array("x")], array("y").to_f32().unwrap());
        let graph = onnx::load(&path).unwrap();
        let session = Session::compile(&graph).unwrap();
        let in_int8 = name.ends_with("level_4");
        let made = if name.ends_with("floats") { "PackedMatMul" } else { "LowBitMatMul" };
        if names(session.graph()) != [made] {
            failures.push(format!("{name}: {:?}", names(session.graph())));
        }
        for (what, y, limit) in [
            ("reference", graph.run(&x).unwrap(), if in_int8 { 2e-2 } else { 1e-5 }),
            ("session", session.run(&x).unwrap(), 1e-5),
        ] {
            let distance = distance(&y[0].to_f32().unwrap(), &want);
            if distance > limit || distance.is_nan() {
                failures.push(format!("{name}, {what}: {distance}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn models_are_written_as_they_were_read() {
    for path in models() {
        let graph = onnx::load(&path).unwrap();
        let copy = std::env::temp_dir().join(format!("lowbit-nbits-{}.onnx", std::process::id()));
        onnx::save(&graph, &copy).unwrap();
        let again = onnx::load(&copy).unwrap();
        std::fs::remove_file(&copy).unwrap();
        assert_eq!(again.to_string(), graph.to_string(), "{}", path.display());
        for ((v, node), (w, _)) in graph.nodes().zip(again.nodes()) {
            assert_eq!(graph.constant(v), again.constant(w), "{}: {}", path.display(), node.name);
        }
        let ops = |graph: &Graph| graph.applied().map(|(_, _, op, _)| op.clone()).collect::<Vec<_>>();
        assert!(ops(&graph).iter().zip(&ops(&again)).all(|(a, b)| **a == **b), "{}", path.display());
    }
}
