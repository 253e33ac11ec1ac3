//! `lowbit compare`: where quantization hurts.

use std::fmt::Write as _;
use std::path::PathBuf;

use lowbit::analysis::{Comparison, Shadow, ShadowError, ValueError, Verdict, WeightError, shadow, weights};
use lowbit::data::batch_size;
use lowbit::onnx;
use lowbit::quantize::fuse;

use crate::data::{SampleArgs, positive};
use crate::output::Output;
use crate::progress::Progress;
use crate::table::{Table, decibel};

/// Compare a float model with its quantized form, value by value.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lowbit compare model.onnx model.int8.onnx --data samples.npz --samples 32
  lowbit compare model.onnx model.int8.onnx --data images/ --worst 10
  lowbit compare model.onnx model.int8.onnx --data images/ --shadow --worst 10
  lowbit compare model.onnx model.int8.onnx --weights --worst 10

SQNR is the power of the float value over that of its error, in dB: 20 dB and more are good,
below 8 dB the value is broken. The last lines say how the outputs are and, where they are broken,
at which node the damage starts. With --shadow each layer is also fed with the float model's values:
its own error is told apart from what it inherits.")]
pub struct Args {
    /// The float model.
    float: PathBuf,
    /// The model made from it.
    quantized: PathBuf,
    /// Samples, which all but --weights need: folder of images, .jpg, .png, .npy, .npz (arrays named
    /// as the inputs, or x), CIFAR-10 .bin(.gz), IDX -ubyte(.gz).
    #[arg(long, value_name = "PATH", required_unless_present = "weights")]
    data: Option<PathBuf>,
    #[command(flatten)]
    samples: SampleArgs,
    /// Tell each layer's own error from the one that it inherits.
    #[arg(long)]
    shadow: bool,
    /// Compare the weights, as a whole and channel by channel, in place of values.
    #[arg(long, conflicts_with_all = ["shadow", "data"])]
    weights: bool,
    /// Print only the K values of least SQNR, the least first.
    #[arg(long, value_name = "K", value_parser = positive)]
    worst: Option<usize>,
    /// Samples that run at once.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = positive)]
    batch: usize,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Output> {
    let float = onnx::load(&args.float)?;
    let quantized = onnx::load(&args.quantized)?;
    let Some(data) = args.data.as_ref().filter(|_| !args.weights) else {
        let errors = weights(&fuse(&float)?, &quantized)?;
        return Output::new(weights_text(&errors, args.worst), &errors);
    };
    let data = args.samples.open(data, &args.float, &float)?;
    let progress = Progress::new("comparing", data.len());
    let batches = data.batches(batch_size(&float, args.batch));
    let at = &mut |done| progress.at(done);
    if args.shadow {
        let shadow = shadow(&float, &quantized, batches, None, at)?;
        drop(progress);
        return Output::new(shadow_text(&shadow, args.worst), &shadow);
    }
    let comparison = lowbit::analysis::compare(&float, &quantized, batches, at)?;
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

/// Each value's own error beside the one that it inherits.
fn shadow_text(s: &Shadow, worst: Option<usize>) -> String {
    let mut table = Table::new(&[
        "value",
        "node",
        "op",
        ">own SQNR dB",
        ">inherited dB",
        ">both dB",
        ">own MSE",
        ">own cosine",
        ">own max error",
    ]);
    let values: Vec<&ShadowError> = match worst {
        Some(k) => s.worst().into_iter().take(k).collect(),
        None => s.values.iter().collect(),
    };
    for e in values {
        table.row([
            e.own.value.clone(),
            e.own.node.clone(),
            e.own.op.clone(),
            decibel(e.own.sqnr_db),
            decibel(e.inherited_db),
            decibel(e.whole.sqnr_db),
            format!("{:.2e}", e.own.mse),
            format!("{:.5}", e.own.cosine),
            format!("{:.3e}", e.own.max_abs),
        ]);
    }
    format!("{table}\n{} samples", s.samples)
}

/// Each weight's error, and the channels that have the most of it.
fn weights_text(weights: &[WeightError], worst: Option<usize>) -> String {
    let mut table = Table::new(&[
        "node",
        "op",
        "shape",
        ">SQNR dB",
        ">MSE",
        ">max error",
        "verdict",
        "worst channels (dB)",
    ]);
    let mut weights: Vec<&WeightError> = weights.iter().collect();
    if let Some(k) = worst {
        weights.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
        weights.truncate(k);
    }
    for e in &weights {
        let channels = e.worst_channels(3);
        let channels: Vec<String> =
            channels.iter().map(|(c, db)| format!("{c} ({})", decibel(*db))).collect();
        table.row([
            e.node.clone(),
            e.op.clone(),
            format!("{:?}", e.shape),
            decibel(e.sqnr_db),
            format!("{:.2e}", e.mse),
            format!("{:.3e}", e.max_abs),
            e.verdict.to_string(),
            channels.join(", "),
        ]);
    }
    format!("{table}\n{} weights", weights.len())
}
