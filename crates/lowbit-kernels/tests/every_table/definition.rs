//! The formulas of the documentation, element by element, in the widest types
//! that make them obvious.

use lowbit_kernels::{Add, Average, Mul, Requant, Window};

/// `clamp(round_half_even(v) + zero, lo, hi)`, saturating, NaN as 0.
pub fn round(v: f32, zero: i32, lo: i32, hi: i32) -> i32 {
    let rounded = v.round_ties_even() as i64;
    rounded.saturating_add(zero.into()).clamp(lo.into(), hi.into()) as i32
}

pub fn requantize_channel(acc: i32, n: usize, r: &Requant) -> u8 {
    let v = acc.wrapping_add(r.bias[n]) as f32 * r.multiplier[n];
    round(v, r.zero, r.lo.into(), r.hi.into()) as u8
}

/// `sum_k a[k] * w[k]`, modulo 2^32.
pub fn dot(a: &[u8], w: &[i8]) -> i32 {
    assert_eq!(a.len(), w.len());
    a.iter().zip(w).map(|(&a, &w)| i64::from(a) * i64::from(w)).sum::<i64>() as i32
}

/// The pixel that one tap of one output pixel reads, as (y, x), if it exists.
pub fn pixel(w: &Window, o: [usize; 2], k: [usize; 2]) -> Option<[usize; 2]> {
    let at = |axis: usize| {
        let at = (o[axis] * w.stride[axis] + k[axis] * w.dilation[axis]) as i64 - w.pad[axis] as i64;
        (0..w.input[axis] as i64).contains(&at).then_some(at as usize)
    };
    Some([at(0)?, at(1)?])
}

/// All windows of the image, `[oy][ox]` by `[ky][kx][channel]`.
pub fn im2col<T: Copy>(w: &Window, x: &[T], zero: T) -> Vec<T> {
    let mut out = Vec::new();
    for o in pairs(w.output) {
        for k in pairs(w.kernel) {
            for c in 0..w.channels {
                out.push(match pixel(w, o, k) {
                    Some([y, column]) => x[(y * w.input[1] + column) * w.channels + c],
                    None => zero,
                });
            }
        }
    }
    out
}

pub fn depthwise(x: &[u8], window: &Window, weights: &[i8], x_zero: u8, requant: &Requant) -> Vec<u8> {
    let windows = im2col(window, x, x_zero);
    let (taps, channels) = (window.taps(), window.channels);
    let mut out = Vec::new();
    for window in windows.chunks_exact(taps * channels) {
        for c in 0..channels {
            let a: Vec<u8> = (0..taps).map(|t| window[t * channels + c]).collect();
            let w: Vec<i8> = (0..taps).map(|t| weights[t * channels + c]).collect();
            out.push(requantize_channel(dot(&a, &w), c, requant));
        }
    }
    out
}

/// What each output pixel sees of each channel: the taps inside the image, and
/// their values.
pub fn seen<T: Copy>(w: &Window, x: &[T]) -> Vec<Vec<(usize, T)>> {
    let mut all = Vec::new();
    for o in pairs(w.output) {
        for c in 0..w.channels {
            let inside = pairs(w.kernel).enumerate().filter_map(|(t, k)| Some((t, pixel(w, o, k)?)));
            let value = |[y, column]: [usize; 2]| x[(y * w.input[1] + column) * w.channels + c];
            all.push(inside.map(|(t, at)| (t, value(at))).collect());
        }
    }
    all
}

pub fn max_pool(w: &Window, x: &[u8]) -> Vec<u8> {
    seen(w, x).into_iter().map(|taps| taps.into_iter().map(|(_, x)| x).max().unwrap_or(0)).collect()
}

pub fn average_pool(w: &Window, x: &[u8], p: &Average) -> Vec<u8> {
    let mean = |taps: Vec<(usize, u8)>| {
        let sum: i32 = taps.iter().map(|&(_, x)| i32::from(x) - i32::from(p.x_zero)).sum();
        let count = if p.padding_counts { w.taps() } else { taps.len() };
        round(sum as f32 * (p.x_scale / (count as f32 * p.scale)), p.zero, p.lo.into(), p.hi.into()) as u8
    };
    seen(w, x).into_iter().map(mean).collect()
}

fn pairs([height, width]: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
    (0..height).flat_map(move |y| (0..width).map(move |x| [y, x]))
}

pub fn quantize(x: f32, scale: f32, zero: i32, lo: i32, hi: i32) -> i32 {
    round(x / scale, zero, lo, hi)
}

pub fn dequantize(q: i32, scale: f32, zero: i32) -> f32 {
    (q - zero) as f32 * scale
}

/// (min, max, has NaN)
pub fn min_max(x: &[f32]) -> (f32, f32, bool) {
    let numbers = || x.iter().copied().filter(|v| !v.is_nan());
    (
        numbers().fold(f32::INFINITY, f32::min),
        numbers().fold(f32::NEG_INFINITY, f32::max),
        x.iter().any(|v| v.is_nan()),
    )
}

pub fn histogram(x: &[f32], lo: f32, hi: f32, bins: usize) -> Vec<u64> {
    let mut counts = vec![0; bins];
    for &v in x.iter().filter(|v| (lo..=hi).contains(v)) {
        let bin = ((v - lo) * bins as f32 / (hi - lo)) as usize;
        counts[bin.min(bins - 1)] += 1;
    }
    counts
}

pub fn add(a: u8, b: u8, p: &Add) -> u8 {
    let a = (i32::from(a) - i32::from(p.a_zero)) as f32 * p.a_ratio;
    let b = (i32::from(b) - i32::from(p.b_zero)) as f32 * p.b_ratio;
    round(a + b, p.zero, p.lo.into(), p.hi.into()) as u8
}

pub fn mul(a: u8, b: u8, p: &Mul) -> u8 {
    let product = (i32::from(a) - i32::from(p.a_zero)) * (i32::from(b) - i32::from(p.b_zero));
    round(product as f32 * p.ratio, p.zero, p.lo.into(), p.hi.into()) as u8
}
