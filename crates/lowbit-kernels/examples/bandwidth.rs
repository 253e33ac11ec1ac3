//! How fast memory is read: 10^9 bytes per second of 256 MiB summed as vectors,
//! which no cache holds.
//!
//!     cargo run --release -p lowbit-kernels --example bandwidth -- THREADS
//!
//! prints one number, the best of several rounds.

use std::hint::black_box;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use lowbit_kernels::Kernels;

const BYTES: usize = 256 << 20;
const ROUNDS: usize = 20;

fn main() -> ExitCode {
    let threads = std::env::args().nth(1).map_or(Some(1), |text| text.parse().ok()).filter(|n| *n > 0);
    let Some(threads) = threads else {
        eprintln!("usage: bandwidth [THREADS], 1 or more");
        return ExitCode::FAILURE;
    };
    let x = vec![1.0f32; BYTES / size_of::<f32>()];
    let seconds = (0..ROUNDS).map(|_| pass(&x, threads)).fold(f64::INFINITY, f64::min);
    println!("{:.1}", BYTES as f64 / seconds / 1e9);
    ExitCode::SUCCESS
}

/// Seconds in which `threads` read all of `x`.
fn pass(x: &[f32], threads: usize) -> f64 {
    let kernels = Kernels::best();
    let start = Instant::now();
    thread::scope(|scope| {
        for part in x.chunks(x.len().div_ceil(threads)) {
            scope.spawn(move || black_box(kernels.min_max(part)));
        }
    });
    start.elapsed().as_secs_f64()
}
