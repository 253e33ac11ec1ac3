//! `lowbit lint`: what a runtime would not run in int8, and why.

use std::path::PathBuf;

use clap::ValueEnum;
use lowbit::analysis::{Level, Lint, Target, lint};
use lowbit::onnx;
use serde::Serialize;

use crate::output::Output;
use crate::table::{Table, count, percent};

/// Say what of a quantized model a runtime would not run in int8, and why.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit lint model.int8.onnx                         what onnxruntime would not run in int8
  lowbit lint model.int8.onnx --target tensorrt       what TensorRT would refuse, too
  lowbit lint model.int8.onnx --strict                exit code 1 if there is anything

The model may be another tool's. Remarks have stable codes: LB-T103 is rule 103 for TensorRT.
refused: the runtime does not load the model; float: the node computes in float; advice: it runs in
int8 on some machines.")]
pub struct Args {
    /// The quantized model.
    model: PathBuf,
    /// The runtime that it is for.
    #[arg(long, value_enum, default_value_t = Runtime::Onnxruntime)]
    target: Runtime,
    /// Exit with code 1 if something would be refused or run in float.
    #[arg(long)]
    strict: bool,
}

/// A runtime.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Runtime {
    /// onnxruntime, on CPUs.
    Onnxruntime,
    /// TensorRT, in its dialect: symmetric, weights and biases stored in float.
    Tensorrt,
    /// OpenVINO, on CPUs.
    Openvino,
    /// The engine of lowbit itself.
    Session,
}

impl Runtime {
    /// The library's name for it.
    pub fn target(self) -> Target {
        match self {
            Runtime::Onnxruntime => Target::OnnxRuntime,
            Runtime::Tensorrt => Target::TensorRt,
            Runtime::Openvino => Target::OpenVino,
            Runtime::Session => Target::Session,
        }
    }
}

#[derive(Serialize)]
struct Result<'a> {
    #[serde(flatten)]
    lint: &'a Lint,
    coverage: f64,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let graph = onnx::load(&args.model)?;
    let lint = lint(&graph, args.target.target())?;
    let output = Output::new(text(&lint), &Result { lint: &lint, coverage: lint.coverage() })?;
    Ok(if args.strict && lint.is_partial() { output.failing() } else { output })
}

fn text(lint: &Lint) -> String {
    let mut table = Table::new(&["code", "level", "node", "op", "what", "what to do"]);
    for r in &lint.remarks {
        let level = match r.level {
            Level::Refused => "refused",
            Level::Float => "float",
            Level::Advice => "advice",
        };
        table.row([
            r.code.clone(),
            level.into(),
            r.node.clone(),
            r.op.clone(),
            r.text.clone(),
            r.suggestion.clone(),
        ]);
    }
    let name = lint.target.name();
    let macs = match lint.is_refused() {
        true => format!("{name} would not load the model"),
        false => {
            format!("{name} would run {} of {} MACs in int8", percent(lint.coverage()), count(lint.macs))
        }
    };
    if lint.remarks.is_empty() { format!("{macs}\n") } else { format!("{table}\n{macs}\n") }
}
