//! The demo's model: the file is that of the example `digits`, which gives the same bytes on
//! every run.

#[path = "../examples/digits/float.rs"]
mod float;
#[allow(dead_code)]
#[path = "../examples/digits/model.rs"]
mod model;

use std::path::Path;

use lowbit::analysis::evaluate;
use lowbit::nn::{Weights, trace};
use lowbit::onnx;
use lowbit::session::Session;
use model::Digits;

#[test]
fn training_gives_the_same_bytes_with_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let trained = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut losses = vec![];
        let (weights, graph) = pool.install(|| float::train(2, |p| losses.push(p.mean_loss))).unwrap();
        assert!(losses[losses.len() - 1] < 0.7 * losses[0], "{losses:?}");
        let files = ["digits.onnx", "digits.safetensors"].map(|name| folder.path().join(name));
        onnx::save(&graph, &files[0]).unwrap();
        weights.save(&files[1]).unwrap();
        files.map(|file| std::fs::read(file).unwrap())
    };
    assert!(trained(1) == trained(3));
}

#[test]
fn the_demo_holds_the_trained_model() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/digits.onnx");
    let graph = onnx::load(&file).unwrap();
    let weights = Weights::of_graph(&graph, &Digits::new()).unwrap();
    let traced = trace(&Digits::new(), &weights, &[float::input()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let again = folder.path().join("digits.onnx");
    onnx::save(&traced, &again).unwrap();
    assert!(std::fs::read(again).unwrap() == std::fs::read(file).unwrap());

    let session = Session::compile(&graph).unwrap();
    let test = float::images("test", true).unwrap();
    let scores = evaluate(&[("float", &session)], &test, 50, &mut |_| Ok(())).unwrap().scores;
    assert!(scores[0].top1.unwrap() > 0.991, "{scores:?}");
    let calibration = float::images("calibration", false).unwrap();
    let train = float::images("train", true).unwrap();
    let first: Vec<usize> = (0..calibration.len()).collect();
    assert_eq!(calibration.at(&first).unwrap().inputs, train.at(&first).unwrap().inputs);
}
