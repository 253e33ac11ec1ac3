//! Models as the commands use them.

use std::fs;
use std::path::{Path, PathBuf};

use lowbit::analysis::Runner;
use lowbit::graph::{Graph, Value};
use lowbit::session::Session;

/// Something that runs `graph`: the float reference, or the engine.
pub fn runner(graph: Graph, reference: bool) -> lowbit::Result<Box<dyn Runner>> {
    Ok(if reference { Box::new(graph) } else { Box::new(Session::compile(&graph)?) })
}

/// Names and types of a model's inputs, for its data.
pub fn inputs(graph: &Graph) -> Vec<Value> {
    graph.inputs().map(|(_, value)| value.clone()).collect()
}

/// Bytes of a model file and of the external data beside it.
pub fn file_bytes(path: &Path) -> lowbit::Result<u64> {
    let mut data = path.as_os_str().to_owned();
    data.push(".data");
    let size = |path: &Path| fs::metadata(path).map(|m| m.len()).map_err(|e| lowbit::Error::io(path, e));
    Ok(size(path)? + size(&PathBuf::from(data)).unwrap_or(0))
}
