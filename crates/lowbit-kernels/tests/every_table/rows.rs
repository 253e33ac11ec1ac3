//! Softmax and normalization.

use lowbit_kernels::{Kernels, exp};

use crate::{Failures, Random};

/// Lengths of rows around the number of partial sums.
const ROWS: [usize; 9] = [1, 2, 15, 31, 32, 33, 64, 100, 259];

/// Equal numbers have equal bits; one NaN is as good as another.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// Numbers of all sizes, with the special ones among them.
fn numbers(random: &mut Random, len: usize) -> Vec<f32> {
    const SPECIAL: [f32; 8] =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1.0, -1.0, f32::MAX, f32::MIN_POSITIVE];
    let number = |i: usize| match i % 5 {
        0 => f32::from_bits(random.next() as u32),
        4 if i.is_multiple_of(3) => SPECIAL[i % SPECIAL.len()],
        _ => (random.next() as i32) as f32 * 2f32.powi(-26),
    };
    (0..len).map(number).collect()
}

/// In `-range..range`.
fn moderate(random: &mut Random, len: usize, range: f32) -> Vec<f32> {
    random.f32s(len, 2.0 * range).iter().map(|x| x - range).collect()
}

/// The sum in 32 partial sums, added in halves.
fn sum<T: Copy + Default + std::ops::Add<Output = T>>(terms: &[T]) -> T {
    let mut lanes: Vec<T> = (0..32).map(|lane| strided(terms, lane)).collect();
    while lanes.len() > 1 {
        let (first, second) = lanes.split_at(lanes.len() / 2);
        lanes = first.iter().zip(second).map(|(&a, &b)| a + b).collect();
    }
    lanes[0]
}

fn strided<T: Copy + Default + std::ops::Add<Output = T>>(terms: &[T], lane: usize) -> T {
    terms.iter().skip(lane).step_by(32).fold(T::default(), |sum, &x| sum + x)
}

fn softmax_row(x: &[f32]) -> Vec<f32> {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f32> = x.iter().map(|x| exp(x - top)).collect();
    let inverse = 1.0 / sum(&e);
    e.iter().map(|e| e * inverse).collect()
}

fn standardized_row(x: &[f32], epsilon: f32) -> Vec<f32> {
    let (x, n): (Vec<f64>, _) = (x.iter().map(|&x| x.into()).collect(), x.len() as f64);
    let mean = sum(&x) / n;
    let variance = sum(&x.iter().map(|x| (x - mean) * (x - mean)).collect::<Vec<_>>()) / n;
    let inverse = 1.0 / (variance + f64::from(epsilon)).sqrt();
    x.iter().map(|x| ((x - mean) * inverse) as f32).collect()
}

fn rms_row(x: &[f32], epsilon: f32, scale: &[f32]) -> Vec<f32> {
    let squares: Vec<f64> = x.iter().map(|&x| f64::from(x) * f64::from(x)).collect();
    let inverse = 1.0 / (sum(&squares) / x.len() as f64 + f64::from(epsilon)).sqrt();
    x.iter().zip(scale).map(|(&x, scale)| (f64::from(x) * inverse) as f32 * scale).collect()
}

pub fn softmax_and_norms(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(22);
    for row in ROWS {
        for x in [moderate(&mut random, 3 * row, 20.0), numbers(&mut random, 3 * row)] {
            let mut out = vec![0.0; x.len()];
            kernels.softmax(&x, row, &mut out);
            let want: Vec<f32> = x.chunks(row).flat_map(softmax_row).collect();
            failures.check(kernels, ("softmax", row), &bits(&out), &bits(&want));

            kernels.standardize(&x, row, 1e-5, &mut out);
            let want: Vec<f32> = x.chunks(row).flat_map(|x| standardized_row(x, 1e-5)).collect();
            failures.check(kernels, ("standardize", row), &bits(&out), &bits(&want));

            let (scale, shift) = (moderate(&mut random, row, 2.0), moderate(&mut random, row, 2.0));
            kernels.layer_norm(&x, 1e-5, &scale, &shift, &mut out);
            let affine = |(i, x): (usize, &f32)| x * scale[i % row] + shift[i % row];
            let want: Vec<f32> = want.iter().enumerate().map(affine).collect();
            failures.check(kernels, ("layer_norm", row), &bits(&out), &bits(&want));

            kernels.rms_norm(&x, 1e-5, &scale, &mut out);
            let want: Vec<f32> = x.chunks(row).flat_map(|x| rms_row(x, 1e-5, &scale)).collect();
            failures.check(kernels, ("rms_norm", row), &bits(&out), &bits(&want));
        }
    }
    kernels.softmax(&[], 0, &mut []);
    kernels.layer_norm(&[], 0.0, &[], &[], &mut []);
}
