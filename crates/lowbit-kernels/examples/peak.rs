//! What the CPU could do at most: 10^9 multiply-accumulates per second of u8 by
//! i8 dot products between registers, with no memory and no rounding.
//!
//!     cargo run --release -p lowbit-kernels --example peak -- THREADS
//!
//! prints one number, or fails on a CPU without AVX512-VNNI.

use std::process::ExitCode;

fn main() -> ExitCode {
    let threads = std::env::args().nth(1).map_or(Some(1), |text| text.parse().ok()).filter(|n| *n > 0);
    let Some(threads) = threads else {
        eprintln!("usage: peak [THREADS], 1 or more");
        return ExitCode::FAILURE;
    };
    match vnni::gmacs_per_second(threads) {
        Some(peak) => {
            println!("{peak:.1}");
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("this CPU has no AVX512-VNNI");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod vnni {
    pub fn gmacs_per_second(_: usize) -> Option<f64> {
        None
    }
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::*;
    use std::hint::black_box;
    use std::sync::Barrier;
    use std::thread;
    use std::time::Instant;

    /// Independent sums, enough to hide the latency of the instruction on
    /// every port that has it.
    const SUMS: usize = 16;
    /// Products that one `vpdpbusd` of 512 bits adds.
    const PRODUCTS: usize = 64;
    const STEPS: usize = 1 << 21;
    const ROUNDS: usize = 20;

    /// The best of several rounds in which all threads run together.
    pub fn gmacs_per_second(threads: usize) -> Option<f64> {
        if !is_x86_feature_detected!("avx512f") || !is_x86_feature_detected!("avx512vnni") {
            return None;
        }
        let seconds = (0..ROUNDS).map(|_| slowest(threads)).fold(f64::INFINITY, f64::min);
        Some((threads * STEPS * SUMS * PRODUCTS) as f64 / seconds / 1e9)
    }

    /// Seconds that the slowest of `threads` took that started together.
    fn slowest(threads: usize) -> f64 {
        let barrier = Barrier::new(threads);
        let timed = || {
            barrier.wait();
            let start = Instant::now();
            // SAFETY: the caller detected avx512f and avx512vnni.
            black_box(unsafe { multiply() });
            start.elapsed().as_secs_f64()
        };
        thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(timed)).collect();
            running.into_iter().map(|t| t.join().expect("arithmetic does not panic")).fold(0.0, f64::max)
        })
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn multiply() -> i32 {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(5)));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        let total = sums.into_iter().reduce(|x, y| _mm512_add_epi32(x, y));
        total.map_or(0, |t| _mm512_reduce_add_epi32(t))
    }
}
