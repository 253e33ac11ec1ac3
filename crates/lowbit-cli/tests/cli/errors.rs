//! What goes wrong is said on one line of stderr, with exit code 1; wrong
//! usage has exit code 2. Nothing is left behind.

use std::fs;

use lowbit::data::npz;
use lowbit::tensor::Tensor;

use crate::folder::Folder;

#[test]
fn errors_name_place_and_cause() {
    let folder = Folder::quantized();
    let write = |name: &str, text: &str| fs::write(folder.path(name), text).unwrap();
    write("unknown.toml", "presets = 3\n");
    write("unmatched.toml", "[[rule]]\nname = \"layer9\"\nfloat = true\n");
    write("sizes.toml", "resize = 0\n");
    write("text.jpg", "not a picture");
    write("text.onnx", "not a model");
    write("text.npz", "not an archive");
    fs::create_dir(folder.path("empty")).unwrap();
    let array = |name: &str, shape: &[usize], x: Vec<f32>| {
        npz::write(&folder.path(name), [("x", &Tensor::new(shape, x).unwrap())]).unwrap();
    };
    array("wide.npz", &[2, 1, 8, 9], vec![0.5; 144]);
    array("nan.npz", &[16, 1, 8, 8], (0..1024).map(|i| if i == 700 { f32::NAN } else { 0.5 }).collect());
    let before = folder.names();

    let quantize = |rest: &[&'static str]| {
        [&["quantize", "digits.onnx", "--data", "calibration.npz"][..], rest].concat()
    };
    let with = |data: &'static str| vec!["quantize", "digits.onnx", "--data", data];
    struct Case(Vec<&'static str>, i32, &'static [&'static str]);
    let cases = [
        Case(vec!["inspect", "missing.onnx"], 1, &["missing.onnx", "No such file"]),
        Case(vec!["inspect", "text.onnx"], 1, &["text.onnx", "not an ONNX model"]),
        Case(
            vec!["inspect", "digits.onnx", "--stage", "quantized"],
            1,
            &["digits.onnx", "quantize it first"],
        ),
        Case(with("missing.npz"), 1, &["missing.npz", "No such file"]),
        Case(with("empty"), 1, &["empty", "no JPEG or PNG image"]),
        Case(with("text.npz"), 1, &["text.npz", "not an npz archive"]),
        Case(with("text.jpg"), 1, &["text.jpg", "neither a JPEG nor a PNG"]),
        Case(with("wide.npz"), 1, &["wide.npz", "image", "f32[N,1,8,8]", "[N,1,8,9]"]),
        Case(with("nan.npz"), 1, &["image", "NaN"]),
        Case(
            quantize(&["--config", "unknown.toml", "-o", "q.onnx"]),
            1,
            &["unknown.toml", "line 1", "presets"],
        ),
        Case(quantize(&["--config", "missing.toml"]), 1, &["missing.toml"]),
        Case(quantize(&["--config", "unmatched.toml"]), 1, &["layer9", "matches no node"]),
        Case(quantize(&["--preprocess", "sizes.toml"]), 1, &["sizes.toml", "resize"]),
        Case(quantize(&["--skip", "layer9*"]), 1, &["layer9*", "matches no node"]),
        Case(quantize(&["--preset", "none"]), 1, &["none", "default"]),
        Case(quantize(&["--calibrator", "percentile=101"]), 1, &["101"]),
        Case(
            ["report", "digits.onnx", "digits.int8.onnx", "--data", "test.npz", "-o", "digits.int8.onnx"]
                .into(),
            1,
            &["digits.int8.onnx", "would overwrite the quantized model"],
        ),
        Case(
            ["report", "digits.onnx", "digits.int8.onnx", "--data", "test.npz", "-o", "digits.onnx"].into(),
            1,
            &["digits.onnx", "would overwrite the float model"],
        ),
        Case(quantize(&["-o", "missing/q.onnx"]), 1, &["missing/q.onnx", "does not exist"]),
        Case(quantize(&["-o", "text.onnx/q.onnx"]), 1, &["text.onnx/q.onnx"]),
        Case(quantize(&["-o", "empty"]), 1, &["empty", "is a folder"]),
        Case(quantize(&["-o", "./digits.onnx"]), 1, &["digits.onnx", "overwrite"]),
        Case(vec!["quantize", "digits.int8.onnx", "--data", "calibration.npz"], 1, &["already quantized"]),
        Case(vec!["eval", "digits.onnx", "--data", "calibration.npz"], 1, &["no labels"]),
        Case(vec!["run", "digits.onnx", "--data", "test.npz", "-o", "missing/o.npz"], 1, &["missing/o.npz"]),
        Case(vec!["run", "digits.onnx", "--data", "test.npz", "--key", "z", "--scale", "1"], 1, &["\"z\""]),
        Case(vec!["bench", "digits.onnx", "--dim", "T=2"], 1, &["\"T\"", "N"]),
        Case(vec!["demo", "--output", "text.onnx"], 1, &["text.onnx"]),
        Case(vec![], 2, &["Usage"]),
        Case(vec!["frob"], 2, &["frob"]),
        Case(vec!["quantize", "digits.onnx"], 1, &["--data", "--method dynamic"]),
        Case(vec!["quantize", "digits.onnx", "--method", "dynamic", "--preset", "x86"], 1, &["x86"]),
        Case(vec!["quantize", "digits.onnx", "--method", "dynamic", "--equalize", "1"], 1, &["--equalize"]),
        Case(
            vec!["quantize", "digits.onnx", "--method", "weight-only", "--preset", "x86"],
            1,
            &["x86", "weight-only"],
        ),
        Case(vec!["quantize", "digits.onnx", "--method", "weight-only", "--awq"], 1, &["--awq", "--data"]),
        Case(vec!["quantize", "digits.onnx", "--method", "dynamic", "--weights", "nf4"], 1, &["weight-only"]),
        Case(quantize(&["--awq"]), 1, &["--method weight-only"]),
        Case(quantize(&["--weights", "nf5"]), 2, &["nf4"]),
        Case(quantize(&["--block", "0"]), 2, &["--block"]),
        Case(quantize(&["--calibrator", "none"]), 2, &["min-max"]),
        Case(quantize(&["--cross-layer"]), 1, &["--per-tensor"]),
        Case(quantize(&["--smooth", "2"]), 1, &["smooth = 2"]),
        Case(quantize(&["--method", "weight-only", "--smooth", "0.5"]), 1, &["--method static or dynamic"]),
        Case(quantize(&["--correct-bias", "maybe"]), 2, &["analytic"]),
        Case(quantize(&["--equalize", "1.5"]), 1, &["equalize = 1.5"]),
        Case(quantize(&["--equalize", "much"]), 2, &["--equalize"]),
        Case(quantize(&["--config", "a", "--equalize", "1"]), 2, &["--config"]),
        Case(quantize(&["--rounding", "up"]), 2, &["--rounding", "gptq"]),
        Case(quantize(&["--config", "a", "--rounding", "gptq"]), 2, &["--config"]),
        Case(quantize(&["--batch", "0"]), 2, &["--batch"]),
        Case(quantize(&["--resize", "2y2"]), 2, &["2y2"]),
        Case(quantize(&["--config", "a", "--preset", "b"]), 2, &["--config"]),
        Case(quantize(&["--matmul-nbits", "int8"]), 1, &["no MatMul", "--matmul-nbits"]),
        Case(vec!["bench", "digits.onnx", "--runs", "0"], 2, &["--runs"]),
    ];
    let mut failures = vec![];
    for Case(args, code, says) in &cases {
        let output = folder.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let error: Vec<&str> = stderr.lines().filter(|l| !l.starts_with("warning: ")).collect();
        let one_line = *code == 2 || (error.len() == 1 && error[0].starts_with("error: "));
        let said = says.iter().all(|s| stderr.contains(s));
        if output.status.code() != Some(*code) || !one_line || !said || !output.stdout.is_empty() {
            failures.push(format!(
                "{args:?}: {:?}, expected {code} and {says:?}:\n{stderr}",
                output.status.code()
            ));
        }
        if folder.names() != before {
            failures.push(format!("{args:?} left {:?}", folder.names()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn an_unknown_instruction_set_is_an_error() {
    let folder = Folder::new();
    let output = folder.command(&["inspect", "digits.onnx"]).env("LOWBIT_ISA", "mmx").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("error: LOWBIT_ISA=mmx") && stderr.contains("scalar"), "{stderr}");
}

#[test]
fn few_samples_are_a_warning() {
    let folder = Folder::new();
    for (samples, warned) in [("7", true), ("8", false)] {
        let output =
            folder.run(&["quantize", "digits.onnx", "--data", "calibration.npz", "--samples", samples]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr.contains("warning: calibration.npz: only 7"), warned, "{stderr}");
    }
}
