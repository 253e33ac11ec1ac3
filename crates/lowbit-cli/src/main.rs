//! The `lowbit` command line: quantize, check, measure and run models.
//!
//! Exit codes: 0 done, 1 error, `check` with errors or `lint --strict` with remarks, 2 wrong usage, 130 interrupted by Ctrl-C.
#![forbid(unsafe_code)]

mod bench;
mod check;
mod compare;
mod data;
mod demo;
mod doctor;
mod eval;
mod inspect;
mod interrupt;
mod lint;
mod model;
mod output;
mod progress;
mod qat;
mod quantize;
mod report;
mod run;
mod sensitivity;
mod table;

use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Parser, Subcommand};

use output::Output;

/// Quantize, debug, export and run low-bit neural networks.
#[derive(Parser)]
#[command(
    name = "lowbit",
    version,
    arg_required_else_help = true,
    after_help = "\
Start here:
  lowbit demo                                      quantize a small model that is built in
  lowbit quantize model.onnx --data images/        make model.int8.onnx
  lowbit check model.onnx --data images/           what is wrong with model, samples or ranges
  lowbit qat model.onnx --data images/             train it to lose less, without labels
  lowbit eval model.onnx model.int8.onnx --data d  compare their accuracy
  lowbit compare model.onnx model.int8.onnx --data d   find where it hurts
  lowbit sensitivity model.onnx --data images/     rank the layers by their harm
  lowbit doctor model.onnx --data images/          mend it until it is good enough
  lowbit report model.onnx model.int8.onnx --data d    all of it as one HTML page
  lowbit lint model.int8.onnx --target tensorrt    what a runtime would not run in int8

Every command has --help with examples. LOWBIT_ISA=scalar|avx2|avxvnni|avx512|avx512vnni|amx|neon|neondot
chooses the kernels."
)]
struct Cli {
    /// Print JSON in place of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Quantize(quantize::Args),
    Check(check::Args),
    Qat(qat::Args),
    Run(run::Args),
    Eval(eval::Args),
    Compare(compare::Args),
    Sensitivity(sensitivity::Args),
    Doctor(doctor::Args),
    Report(report::Args),
    Inspect(inspect::Args),
    Lint(lint::Args),
    Bench(bench::Args),
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = execute(&cli.command).and_then(|output| {
        output.print(cli.json)?;
        Ok(if output.fails() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    });
    let error = match result {
        Ok(code) => return code,
        Err(error) => error,
    };
    eprintln!("error: {}", output::one_line(&error.to_string()));
    match error.downcast_ref() {
        Some(lowbit::Error::Interrupted) => ExitCode::from(130),
        _ => ExitCode::FAILURE,
    }
}

fn execute(command: &Command) -> anyhow::Result<Output> {
    interrupt::install()?;
    lowbit_kernels::Kernels::select().map_err(|message| anyhow!(message))?;
    match command {
        Command::Quantize(args) => quantize::run(args),
        Command::Check(args) => check::run(args),
        Command::Qat(args) => qat::run(args),
        Command::Run(args) => run::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Sensitivity(args) => sensitivity::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Report(args) => report::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Lint(args) => lint::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Demo(args) => demo::run(args),
    }
}
