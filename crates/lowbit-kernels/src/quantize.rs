//! Between real numbers and 8-bit integers (docs/quantization.md, equations 1, 2 and 8).

use crate::requant::Rounder;

#[inline(always)]
pub(crate) fn quantize_u8(x: &[f32], scale: f32, zero: i32, lo: u8, hi: u8, out: &mut [u8]) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    let rounder = Rounder::new(zero, lo.into(), hi.into());
    for (&x, out) in x.iter().zip(out) {
        *out = rounder.round(x / scale) as u8;
    }
}

#[inline(always)]
pub(crate) fn quantize_i8(x: &[f32], scale: f32, zero: i32, lo: i8, hi: i8, out: &mut [i8]) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    let rounder = Rounder::new(zero, lo.into(), hi.into());
    for (&x, out) in x.iter().zip(out) {
        *out = rounder.round(x / scale) as i8;
    }
}

#[inline(always)]
pub(crate) fn dequantize_u8(q: &[u8], scale: f32, zero: i32, out: &mut [f32]) {
    assert_eq!(q.len(), out.len(), "lengths of input and output");
    for (&q, out) in q.iter().zip(out) {
        *out = i32::from(q).wrapping_sub(zero) as f32 * scale;
    }
}

#[inline(always)]
pub(crate) fn dequantize_i8(q: &[i8], scale: f32, zero: i32, out: &mut [f32]) {
    assert_eq!(q.len(), out.len(), "lengths of input and output");
    for (&q, out) in q.iter().zip(out) {
        *out = i32::from(q).wrapping_sub(zero) as f32 * scale;
    }
}

/// The distance from the zero point up to which every integer is an f32.
const EXACT: i64 = 1 << 24;

#[inline(always)]
pub(crate) fn fake_quantize(x: &[f32], scale: f32, zero: i32, qmin: i32, qmax: i32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    assert!(qmin <= qmax, "empty range {qmin}..={qmax}");
    let distance = |q: i32| i64::from(q) - i64::from(zero);
    let (lo, hi) = (distance(qmin), distance(qmax));
    assert!(lo >= -EXACT && hi <= EXACT, "range {qmin}..={qmax} too far from zero point {zero}");
    assert!(lo <= EXACT && hi >= -EXACT, "range {qmin}..={qmax} too far from zero point {zero}");
    let (lo, hi) = (lo as f32, hi as f32);
    for (&x, out) in x.iter().zip(out) {
        let v = x / scale;
        let v = if v.is_nan() { 0.0 } else { v };
        let v = if v < lo { lo } else { v };
        let v = if v > hi { hi } else { v };
        // Adding 0 turns -0 into the 0 that the integer 0 dequantizes to.
        *out = (v.round_ties_even() + 0.0) * scale;
    }
}
