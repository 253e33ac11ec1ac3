//! Models as the commands use them.

use std::fs;
use std::path::{Path, PathBuf};

use lowbit::analysis::{Quantized, Runner};
use lowbit::graph::{Graph, Value};
use lowbit::onnx;
use lowbit::session::{Report, Session};
use lowbit::tensor::Tensor;

/// What runs a model.
#[derive(clap::Args)]
pub struct Engine {
    /// Run on the float reference executor in place of the int8 engine.
    #[arg(long)]
    reference: bool,
    /// Leave those quantized nodes in float that are measured to be faster so, borders included.
    #[arg(long, conflicts_with = "reference")]
    fastest: bool,
}

impl Engine {
    /// Something that runs `graph`; what is to be fastest, for `inputs`. With it the
    /// report of what runs in integers, if nodes were chosen by their speed.
    pub fn runner(
        &self,
        graph: Graph,
        inputs: impl FnOnce(&Graph) -> lowbit::Result<Vec<Tensor>>,
    ) -> lowbit::Result<(Box<dyn Runner>, Option<Report>)> {
        if self.reference {
            return Ok((Box::new(graph), None));
        }
        if !self.fastest {
            return Ok((Box::new(Session::compile(&graph)?), None));
        }
        let session = Session::compile_fastest(&graph, &inputs(&graph)?)?;
        let report = session.report().clone();
        Ok((Box::new(session), Some(report)))
    }
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

/// The float model at `path`.
pub fn load_float(path: &Path) -> lowbit::Result<Graph> {
    let graph = onnx::load(path)?;
    if Quantized::all(&graph)?.is_empty() {
        return Ok(graph);
    }
    let text = "is already quantized; give the float model that it was made from";
    Err(lowbit::Error::Invalid(text.into()).at(path.display().to_string()))
}
