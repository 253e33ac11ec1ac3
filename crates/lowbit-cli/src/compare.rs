//! `lowbit compare`: where quantization hurts.

use std::fmt::Write as _;
use std::path::PathBuf;

use lowbit::analysis::{Comparison, ValueError, Verdict, batch_size};
use lowbit::onnx;

use crate::data::{DataArgs, positive};
use crate::output::Output;
use crate::progress::Progress;
use crate::table::{Table, decibel};

/// Compare a float model with its quantized form, value by value.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit compare model.onnx model.int8.onnx --data samples.npz --samples 32
  lowbit compare model.onnx model.int8.onnx --data images/ --worst 10

SQNR is the power of the float value over that of its error, in dB: 20 dB and more are good,
below 8 dB the value is broken. The last lines say how the outputs are and, where they are broken,
at which node the damage starts.")]
pub struct Args {
    /// The float model.
    float: PathBuf,
    /// The model made from it.
    quantized: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Print only the K values of least SQNR, the least first.
    #[arg(long, value_name = "K", value_parser = positive)]
    worst: Option<usize>,
    /// Samples that run at once; all their float values are in memory.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = positive)]
    batch: usize,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let float = onnx::load(&args.float)?;
    let quantized = onnx::load(&args.quantized)?;
    let data = args.data.open(&args.float, &float)?;
    let progress = Progress::new("comparing", data.len());
    let batches = data.batches(batch_size(&float, args.batch));
    let comparison = lowbit::analysis::compare(&float, &quantized, batches, &mut |done| progress.at(done))?;
    drop(progress);
    Output::new(text(&comparison, args.worst)?, &comparison)
}

fn text(c: &Comparison, worst: Option<usize>) -> anyhow::Result<String> {
    let mut table = Table::new(&[
        "value",
        "node",
        "op",
        ">SQNR dB",
        ">MSE",
        ">cosine",
        ">max error",
        ">max |x|",
        "verdict",
    ]);
    let values: Vec<&ValueError> = match worst {
        Some(k) => c.worst().into_iter().take(k).collect(),
        None => c.values.iter().chain(&c.outputs).collect(),
    };
    for e in values {
        table.row([
            e.value.clone(),
            e.node.clone(),
            e.op.clone(),
            decibel(e.sqnr_db),
            format!("{:.2e}", e.mse),
            format!("{:.5}", e.cosine),
            format!("{:.3e}", e.max_abs),
            format!("{:.3e}", e.amplitude),
            e.verdict.to_string(),
        ]);
    }
    let mut text = format!("{table}\n{} samples", c.samples);
    let broken = c.values.iter().filter(|e| e.verdict == Verdict::Broken).count();
    if broken > 0 {
        write!(text, ", {broken} of {} values below 8 dB", c.values.len())?;
    }
    for e in &c.outputs {
        match c.damage.iter().find(|d| d.output == e.value) {
            Some(damage) => write!(text, "\nBROKEN: {damage}")?,
            None => write!(text, "\noutput {}: SQNR {} dB, {}", e.value, decibel(e.sqnr_db), e.verdict)?,
        }
    }
    Ok(text)
}
