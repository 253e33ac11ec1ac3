//! Ctrl-C.

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use lowbit::data::npz;
use lowbit::tensor::Tensor;

use crate::folder::Folder;

/// Whether a process handles SIGINT by now.
fn handles_interrupt(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << 1) != 0
}

/// What a process has written that gets SIGINT now.
fn interrupted(child: Child) -> Output {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    child.wait_with_output().unwrap()
}

#[test]
fn an_interrupted_calibration_leaves_no_file() {
    let folder = Folder::new();
    // Minutes of calibration, of which a fraction of a second is seen.
    let many = Tensor::full(&[200_000, 1, 8, 8], 3u8).unwrap();
    npz::write(&folder.path("many.npz"), [("x", &many)]).unwrap();
    let before = folder.names();
    let args = ["quantize", "digits.onnx", "--data", "many.npz", "--batch", "1"];
    let child = folder.command(&args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    while !handles_interrupt(child.id()) {
        sleep(Duration::from_millis(5));
    }
    sleep(Duration::from_millis(500));
    let output = interrupted(child);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert_eq!(stderr.trim(), "error: interrupted");
    assert!(output.stdout.is_empty());
    assert_eq!(folder.names(), before);
}

#[test]
fn an_interrupted_training_goes_on_to_the_same_model() {
    let folder = Folder::new();
    // Two seconds and more after the first epoch, in which to interrupt.
    let epochs = if cfg!(debug_assertions) { 6 } else { 400 };
    let count = epochs.to_string();
    let data = ["qat", "digits.onnx", "--data", "calibration.npz", "--samples", "32", "--batch", "8"];
    let how = ["--weights", "int4", "--activations", "uint4", "--rate", "0.01", "--epochs", count.as_str()];
    let all = |more: &[&'static str]| [&data[..], &how, more].concat();
    folder.text(&all(&["-o", "whole.onnx"]));
    let args = all(&["-o", "parts.onnx", "--checkpoint", "run.safetensors"]);
    let mut child = folder.command(&args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // The first epoch ends with a checkpoint.
    while !folder.path("run.safetensors").exists() {
        assert_eq!(child.try_wait().unwrap(), None, "ended without a checkpoint");
        sleep(Duration::from_millis(1));
    }
    let output = interrupted(child);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    let step = stderr.split_once("stopped at step ").and_then(|(_, rest)| rest.split_once(';'));
    let step: u64 = step.unwrap_or_else(|| panic!("{stderr}")).0.parse().unwrap();
    assert!((4..4 * epochs).contains(&step), "{stderr}");
    assert!(!folder.path("parts.onnx").exists());

    let output = folder.run(&args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains(&format!("going on from step {step}")), "{stderr}");
    let [whole, parts] = ["whole.onnx", "parts.onnx"].map(|name| fs::read(folder.path(name)).unwrap());
    assert!(whole == parts, "interrupted at step {step}, another model");
}
