//! Rows of f32 divided by their sum of exponentials, or by their deviation.
//!
//! A sum over a row is taken in [`LANES`] partial sums, element `i` in sum
//! `i % LANES`, which are then added in halves: one order for every CPU.

use std::ops::Add;

use crate::functions;

const LANES: usize = 32;

/// The elements of `x`, each mapped by `f`, taken together by `join` in the order
/// of this module, from `start` on.
#[inline(always)]
fn fold<T: Copy>(x: &[f32], start: T, f: impl Fn(f32) -> T, join: impl Fn(T, T) -> T) -> T {
    let mut lanes = [start; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = join(*lane, f(x));
        }
    }
    if !rest.is_empty() {
        // Joined to every lane, so that these stay in registers: `start` changes none.
        let mut last = [start; LANES];
        last.iter_mut().zip(rest).for_each(|(last, &x)| *last = f(x));
        for (lane, last) in lanes.iter_mut().zip(last) {
            *lane = join(*lane, last);
        }
    }
    // Arrays of fixed sizes, which stay in registers.
    macro_rules! halves {
        ($($half:literal)*) => {{
            $(let lanes = {
                let mut joined = [start; $half];
                for (i, joined) in joined.iter_mut().enumerate() {
                    *joined = join(lanes[i], lanes[i + $half]);
                }
                joined
            };)*
            lanes[0]
        }};
    }
    const { assert!(LANES == 32) };
    halves!(16 8 4 2 1)
}

#[inline(always)]
fn sum<T: Copy + Default + Add<Output = T>>(x: &[f32], f: impl Fn(f32) -> T) -> T {
    fold(x, T::default(), f, |a, b| a + b)
}

/// The greatest element that is not NaN; negative infinity where there is none.
#[inline(always)]
fn greatest(x: &[f32]) -> f32 {
    fold(x, f32::NEG_INFINITY, |x| x, |a, b| if b > a { b } else { a })
}

#[inline(always)]
pub(crate) fn softmax(x: &[f32], row: usize, out: &mut [f32]) {
    check_rows(x, row, out);
    if row == 0 {
        return;
    }
    let mut top = greatest(x.get(..row).unwrap_or_default());
    for (i, out) in out.chunks_exact_mut(row).enumerate() {
        let (x, later) = x[i * row..].split_at(row);
        // Found ahead: nothing then waits for the end of a maximum.
        let next = greatest(later.get(..row).unwrap_or_default());
        for (x, out) in x.iter().zip(&mut *out) {
            *out = functions::exp_below_0(x - top);
        }
        let inverse = 1.0 / sum(out, |x| x);
        for out in out {
            *out *= inverse;
        }
        top = next;
    }
}

/// The mean of a row, and the inverse of its deviation.
#[inline(always)]
fn moments(x: &[f32], epsilon: f32) -> [f64; 2] {
    let count = x.len() as f64;
    let mean = sum(x, f64::from) / count;
    let variance = sum(x, |x| {
        let distance = f64::from(x) - mean;
        distance * distance
    }) / count;
    [mean, 1.0 / (variance + f64::from(epsilon)).sqrt()]
}

#[inline(always)]
pub(crate) fn standardize(x: &[f32], row: usize, epsilon: f32, out: &mut [f32]) {
    check_rows(x, row, out);
    if row == 0 {
        return;
    }
    for (x, out) in x.chunks_exact(row).zip(out.chunks_exact_mut(row)) {
        let [mean, inverse] = moments(x, epsilon);
        for (x, out) in x.iter().zip(out) {
            *out = ((f64::from(*x) - mean) * inverse) as f32;
        }
    }
}

#[inline(always)]
pub(crate) fn rms_norm(x: &[f32], epsilon: f32, scale: &[f32], out: &mut [f32]) {
    let row = scale.len();
    check_rows(x, row, out);
    if row == 0 {
        return;
    }
    for (x, out) in x.chunks_exact(row).zip(out.chunks_exact_mut(row)) {
        let mean = sum(x, |x| f64::from(x) * f64::from(x)) / row as f64;
        let inverse = 1.0 / (mean + f64::from(epsilon)).sqrt();
        for ((x, out), scale) in x.iter().zip(out).zip(scale) {
            *out = (f64::from(*x) * inverse) as f32 * scale;
        }
    }
}

#[inline(always)]
pub(crate) fn layer_norm(x: &[f32], epsilon: f32, scale: &[f32], shift: &[f32], out: &mut [f32]) {
    assert_eq!(scale.len(), shift.len(), "lengths of scale and shift");
    let row = scale.len();
    check_rows(x, row, out);
    if row == 0 {
        return;
    }
    for (x, out) in x.chunks_exact(row).zip(out.chunks_exact_mut(row)) {
        let [mean, inverse] = moments(x, epsilon);
        for ((x, out), (scale, shift)) in x.iter().zip(out).zip(scale.iter().zip(shift)) {
            *out = ((f64::from(*x) - mean) * inverse) as f32 * scale + shift;
        }
    }
}

fn check_rows(x: &[f32], row: usize, out: &[f32]) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    assert!(x.len().is_multiple_of(row.max(1)) && (row > 0 || x.is_empty()), "rows of {row} in {}", x.len());
}
