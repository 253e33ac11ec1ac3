//! Ctrl-C.

use std::fs;
use std::process::{Command, Stdio};
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
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert_eq!(stderr.trim(), "error: interrupted");
    assert!(output.stdout.is_empty());
    assert_eq!(folder.names(), before);
}
