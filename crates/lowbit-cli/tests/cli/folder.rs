//! A folder with the demo's model and data, and the binary run in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lowbit::data::npz;
use lowbit::tensor::Tensor;
use serde_json::Value;
use tempfile::TempDir;

const MODEL: &[u8] = include_bytes!("../../../../demo/digits.onnx");
const DATA: &[u8] = include_bytes!("../../../../demo/digits.npz");

/// Holds `digits.onnx` with its preprocessing, `calibration.npz` and `test.npz`.
pub struct Folder {
    dir: TempDir,
}

impl Folder {
    pub fn new() -> Folder {
        let folder = Folder { dir: tempfile::tempdir().unwrap() };
        fs::write(folder.path("digits.onnx"), MODEL).unwrap();
        fs::write(folder.path("digits.preprocess.toml"), "scale = 0.0625\n").unwrap();
        let arrays: BTreeMap<String, Tensor> = npz::decode(DATA).unwrap().into_iter().collect();
        npz::write(&folder.path("calibration.npz"), [("x", &arrays["calibration"])]).unwrap();
        npz::write(&folder.path("test.npz"), [("x", &arrays["test"]), ("y", &arrays["test_labels"])])
            .unwrap();
        folder
    }

    /// With `digits.int8.onnx`, made by `lowbit quantize`.
    pub fn quantized() -> Folder {
        let folder = Folder::new();
        folder.json(&["quantize", "digits.onnx", "--data", "calibration.npz"]);
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Names of the files, hidden ones too, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lowbit"));
        command.current_dir(self.root()).args(args).env_remove("LOWBIT_ISA");
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What the command prints, which must succeed.
    pub fn text(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the command prints with `--json`.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.text(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
    }
}
