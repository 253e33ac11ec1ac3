//! Weighted sums of shifted runs: the f32 depthwise convolution of a padded plane.

use std::array;

#[inline(always)]
pub(crate) fn shifted_sums(
    x: &[f32],
    shifts: &[usize],
    weights: &[f32],
    start: f32,
    [lo, hi]: [f32; 2],
    out: &mut [f32],
) {
    assert_eq!(shifts.len(), weights.len(), "one weight for each shift");
    let (nines, rest) = shifts.as_chunks::<9>();
    let (threes, ones) = rest.as_chunks::<3>();
    let (mut weights, mut left) = (weights, shifts.len());
    let mut bounds = |count: usize| {
        left -= count;
        if left == 0 { [lo, hi] } else { [f32::NEG_INFINITY, f32::INFINITY] }
    };
    let mut first = true;
    macro_rules! each {
        ($chunks:expr, $count:literal) => {
            for shifts in $chunks {
                let (chunk, rest) = weights.split_first_chunk::<$count>().expect("a weight for each shift");
                let start = first.then_some(start);
                add(x, shifts, chunk, start, bounds($count), out);
                (weights, first) = (rest, false);
            }
        };
    }
    each!(nines, 9);
    each!(threes, 3);
    each!(ones.as_chunks::<1>().0, 1);
    if first {
        out.fill(clamp(start, [lo, hi]));
    }
}

/// Takes the chain of each output, from `start` or from `out` on, `T` steps further.
#[inline(always)]
fn add<const T: usize>(
    x: &[f32],
    shifts: &[usize; T],
    weights: &[f32; T],
    start: Option<f32>,
    bounds: [f32; 2],
    out: &mut [f32],
) {
    let n = out.len();
    let x: [&[f32]; T] = array::from_fn(|t| &x[shifts[t]..][..n]);
    // Loops, not closures: one that is not inlined would call a function for
    // each fused multiply-add.
    if let Some(start) = start {
        for i in 0..n {
            let mut sum = start;
            for t in 0..T {
                sum = weights[t].mul_add(x[t][i], sum);
            }
            out[i] = clamp(sum, bounds);
        }
    } else {
        for i in 0..n {
            let mut sum = out[i];
            for t in 0..T {
                sum = weights[t].mul_add(x[t][i], sum);
            }
            out[i] = clamp(sum, bounds);
        }
    }
}

/// NaN stays.
#[inline(always)]
fn clamp(x: f32, [lo, hi]: [f32; 2]) -> f32 {
    let x = if x < lo { lo } else { x };
    if x > hi { hi } else { x }
}
