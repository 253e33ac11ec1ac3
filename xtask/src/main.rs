//! Chores of the workspace: `cargo run -p xtask -- <chore>`.

#![forbid(unsafe_code)]

mod proto;

use std::path::Path;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo run -p xtask -- proto <onnx-ml.proto>

  proto   regenerate crates/lowbit-onnx/src/proto.rs from the ONNX schema; the
          Python package `onnx` carries the file as onnx/onnx-ml.proto";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["proto", schema] => proto::generate(Path::new(schema)),
        _ => bail!("{USAGE}"),
    }
}
