//! Operators on u8 tensors of equal shape (docs/quantization.md, equation 7).

use crate::requant::Rounder;

/// Parameters of [`Kernels::add`](crate::Kernels::add).
#[derive(Clone, Copy, Debug)]
pub struct Add {
    /// Zero point of `a`.
    pub a_zero: u8,
    /// `s_a / s_y`.
    pub a_ratio: f32,
    /// Zero point of `b`.
    pub b_zero: u8,
    /// `s_b / s_y`.
    pub b_ratio: f32,
    /// Zero point of the output, 0..=255.
    pub zero: i32,
    /// Smallest output.
    pub lo: u8,
    /// Largest output, not below `lo`.
    pub hi: u8,
}

/// Parameters of [`Kernels::mul`](crate::Kernels::mul).
#[derive(Clone, Copy, Debug)]
pub struct Mul {
    /// Zero point of `a`.
    pub a_zero: u8,
    /// Zero point of `b`.
    pub b_zero: u8,
    /// `s_a * s_b / s_y`.
    pub ratio: f32,
    /// Zero point of the output, 0..=255.
    pub zero: i32,
    /// Smallest output.
    pub lo: u8,
    /// Largest output, not below `lo`.
    pub hi: u8,
}

#[inline(always)]
pub(crate) fn add(a: &[u8], b: &[u8], params: &Add, out: &mut [u8]) {
    assert_eq!(a.len(), b.len(), "lengths of the inputs");
    assert_eq!(a.len(), out.len(), "lengths of input and output");
    let Add { a_zero, a_ratio, b_zero, b_ratio, zero, lo, hi } = *params;
    let rounder = Rounder::new(zero, lo.into(), hi.into());
    for ((&a, &b), out) in a.iter().zip(b).zip(out) {
        let a = (i32::from(a) - i32::from(a_zero)) as f32 * a_ratio;
        let b = (i32::from(b) - i32::from(b_zero)) as f32 * b_ratio;
        *out = rounder.round(a + b) as u8;
    }
}

#[inline(always)]
pub(crate) fn mul(a: &[u8], b: &[u8], params: &Mul, out: &mut [u8]) {
    assert_eq!(a.len(), b.len(), "lengths of the inputs");
    assert_eq!(a.len(), out.len(), "lengths of input and output");
    let Mul { a_zero, b_zero, ratio, zero, lo, hi } = *params;
    let rounder = Rounder::new(zero, lo.into(), hi.into());
    for ((&a, &b), out) in a.iter().zip(b).zip(out) {
        let product = (i32::from(a) - i32::from(a_zero)) * (i32::from(b) - i32::from(b_zero));
        *out = rounder.round(product as f32 * ratio) as u8;
    }
}

#[inline(always)]
pub(crate) fn map(x: &[u8], table: &[u8; 256], out: &mut [u8]) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    for (&x, out) in x.iter().zip(out) {
        *out = table[usize::from(x)];
    }
}
