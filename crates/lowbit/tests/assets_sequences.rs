//! The speech detector among the assets: in float against what onnxruntime gives,
//! and quantized against that.

mod assets;
#[path = "../examples/speech/detector.rs"]
mod detector;

use std::path::Path;

use detector::{FRAME, speech};
use lowbit::graph::Graph;
use lowbit::onnx;
use lowbit::qconfig::{QConfigMapping, Target, preset};
use lowbit::quantize::{fuse, prepare, quantize_dynamic};
use lowbit::scheme::Format;
use lowbit::session::Session;

/// onnxruntime's probability of speech in every 125th frame of `vad_test.wav`.
const SPEECH: [f32; 15] = [
    0.208342, 0.999837, 0.031750, 0.999955, 0.029089, 0.004977, 0.999901, 0.999830, 0.999906, 0.999989,
    0.999839, 0.998348, 0.019396, 0.999958, 0.999306,
];

/// The samples of a recording.
fn samples(path: &Path) -> Vec<f32> {
    detector::samples(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn speech_is_found_where_onnxruntime_finds_it() {
    let Some(assets) = assets::find("speech_is_found_where_onnxruntime_finds_it") else { return };
    let graph = onnx::load(assets.join("models/silero_vad_16k.onnx")).unwrap();
    let session = Session::compile(&graph).unwrap();
    let samples = samples(&assets.join("data/vad_test.wav"));
    let found = speech(&samples, |x| session.run(x)).unwrap();
    assert_eq!((found.len(), found.iter().filter(|p| **p >= 0.5).count()), (1875, 1452));
    let near = |(a, b): (&f32, f32)| (a - b).abs() < 2e-5;
    assert!(found.iter().step_by(125).zip(SPEECH).all(near), "{found:?}");
    // The first ten seconds node by node too.
    let few = &samples[..160_000];
    let plain = speech(few, |x| graph.run(x)).unwrap();
    assert!(plain.iter().zip(found).all(near), "{plain:?}");
}

#[test]
fn a_recurrent_layer_in_8_bits_finds_the_same_speech() {
    let Some(assets) = assets::find("a_recurrent_layer_in_8_bits_finds_the_same_speech") else { return };
    let graph = onnx::load(assets.join("models/silero_vad_16k.onnx")).unwrap();
    let coded = quantize_dynamic(&graph, &[Target::Op("LSTM".into())], Format::INT8).unwrap().graph;
    assert!(coded.applied().any(|(_, _, op, _)| op.name() == "DynamicQuantizeLSTM"), "{coded}");
    // Of the whole file, 1875 frames agree of 1875, and 1872 with onnxruntime's quantized layer.
    let samples = &samples(&assets.join("data/vad_test.wav"))[..160_000];
    let [float, coded] =
        [graph, coded].map(|g| Session::compile(&g).unwrap()).map(|s| speech(samples, |x| s.run(x)).unwrap());
    assert!(float.iter().zip(&coded).all(|(a, b)| (*a >= 0.5) == (*b >= 0.5)), "{float:?}\n{coded:?}");
}

#[test]
fn quantized_speech_is_found_in_the_same_frames() {
    let Some(assets) = assets::find("quantized_speech_is_found_in_the_same_frames") else { return };
    let graph = onnx::load(assets.join("models/silero_vad_16k.onnx")).unwrap();
    let small = quantize_dynamic(&graph, &[], Format::INT8).unwrap().graph;
    let folder = tempfile::tempdir().unwrap();
    let bytes = |graph: &Graph| {
        let path = folder.path().join("model.onnx");
        onnx::save(graph, &path).unwrap();
        std::fs::metadata(path).unwrap().len()
    };
    assert!(bytes(&small) * 10 <= bytes(&graph) * 4, "{} of {} bytes", bytes(&small), bytes(&graph));
    let samples = samples(&assets.join("data/vad_test.wav"));
    let [want, found] = [graph, small].map(|graph| {
        let session = Session::compile(&graph).unwrap();
        speech(&samples, |x| session.run(x)).unwrap()
    });
    let agree = want.iter().zip(&found).filter(|(a, b)| (**a >= 0.5) == (**b >= 0.5)).count();
    assert!(agree as f64 >= 0.998 * want.len() as f64, "{agree} of {}", want.len());
}

/// The speech detector in static int8, calibrated on its first 200 frames, each with
/// the state that the float model has then: all of it, or some operators.
#[test]
fn statically_quantized_speech_is_found_in_nearly_the_same_frames() {
    let Some(assets) = assets::find("statically_quantized_speech_is_found_in_nearly_the_same_frames") else {
        return;
    };
    let graph = onnx::load(assets.join("models/silero_vad_16k.onnx")).unwrap();
    let samples = samples(&assets.join("data/vad_test.wav"));
    let want = speech(&samples, |x| graph.run(x)).unwrap();
    let config = || Some(preset("default").unwrap());
    let all = || QConfigMapping::default().with(Target::All, config());
    let op = |name: &str| Target::Op(name.into());
    let spectrum = [Target::name("stft").unwrap(), op("Mul"), op("Add"), op("Sqrt")];
    let but_spectrum = spectrum.into_iter().fold(all(), |mapping, target| mapping.with(target, None));
    // The rules, and the shares of frames and of multiply-accumulates that are reached.
    let cases = [
        ("all", all(), 0.89, 0.99),
        ("all but the LSTM", all().with(op("LSTM"), None), 0.89, 0.75),
        ("the LSTM", QConfigMapping::default().with(op("LSTM"), config()), 0.995, 0.15),
        ("all but the spectrum", but_spectrum, 0.98, 0.55),
    ];
    let mut failures = vec![];
    for (name, mapping, agreeing, in_integers) in cases {
        let mut prepared = prepare(&fuse(&graph).unwrap(), &mapping).unwrap();
        speech(&samples[..200 * FRAME], |x| prepared.observe(x)).unwrap();
        let small = prepared.convert().unwrap();
        let session = Session::compile(&small.graph).unwrap();
        let found = speech(&samples, |x| session.run(x)).unwrap();
        let agree = want.iter().zip(&found).filter(|(a, b)| (**a >= 0.5) == (**b >= 0.5)).count();
        let (share, coverage) = (agree as f64 / want.len() as f64, session.report().coverage());
        println!("{name}: {share:.4} of the frames, {coverage:.3} of the MACs");
        if share < agreeing || coverage < in_integers {
            failures.push(format!("{name}: {share} {:?}\n{}", small.findings, session.report()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
