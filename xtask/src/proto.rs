//! The Rust types of the ONNX schema, from its `.proto` file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use prost_build::{Config, Module};

const TARGET: &str = "crates/lowbit-onnx/src/proto.rs";

const HEADER: &str = "\
// The ONNX schema, onnx-ml.proto: Copyright (c) ONNX Project Contributors, Apache-2.0.
// Generated: `cargo run -p xtask -- proto <onnx-ml.proto>`. Do not edit.
";

/// Large fields of which an attribute has at most one: unboxed they would make every
/// attribute, most of which hold one integer, over a kilobyte in memory.
const BOXED: [&str; 4] = [
    ".onnx.AttributeProto.t",
    ".onnx.AttributeProto.g",
    ".onnx.AttributeProto.sparse_tensor",
    ".onnx.AttributeProto.tp",
];

/// Compiles `schema` and writes the generated types to [`TARGET`].
///
/// The schema's comments are left out: the specification is the place to read them.
pub fn generate(schema: &Path) -> Result<()> {
    let folder = schema.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let files = protox::compile([schema], [folder])
        .with_context(|| format!("cannot compile {}", schema.display()))?;
    let requests = files
        .file
        .into_iter()
        .map(|file| (Module::from_protobuf_package_name(file.package()), file))
        .collect();
    let mut config = Config::new();
    config.disable_comments(["."]);
    for field in BOXED {
        config.boxed(field);
    }
    let generated = config.generate(requests)?;
    ensure!(
        generated.len() == 1,
        "{} must be one file with one package and no imports; it gives {} modules",
        schema.display(),
        generated.len()
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = root.join(TARGET);
    for code in generated.values() {
        fs::write(&target, format!("{HEADER}{code}"))
            .with_context(|| format!("cannot write {}", target.display()))?;
    }
    Ok(())
}
