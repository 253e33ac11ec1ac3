//! From accumulators and real numbers to u8: the one rounding of every kernel.

/// Per-channel requantization of i32 accumulators to u8 (docs/quantization.md, equation 6):
///
/// `y = clamp(round_half_even((acc + bias[n]) as f32 * multiplier[n]) + zero, lo, hi)`
///
/// - `acc + bias` is an i32 sum; it wraps where it does not fit.
/// - The conversion to f32 rounds half to even, as does the product.
/// - A product of any size saturates at `lo` or `hi`, as if rounded and clamped
///   without bounds; NaN (from a multiplier that is not finite) counts as 0.
#[derive(Clone, Copy, Debug)]
pub struct Requant<'a> {
    /// Bias per channel, at the scale of the accumulator; holds `-zx * sum(w)` as well.
    pub bias: &'a [i32],
    /// `s_x * s_w[n] / s_y` per channel.
    pub multiplier: &'a [f32],
    /// Zero point of the output, 0..=255.
    pub zero: i32,
    /// Smallest output; an activation such as ReLU raises it.
    pub lo: u8,
    /// Largest output, not below `lo`.
    pub hi: u8,
}

/// [`Requant`] with one bias and one multiplier for all elements.
#[derive(Clone, Copy, Debug)]
pub struct UniformRequant {
    /// Added to each accumulator.
    pub bias: i32,
    /// Multiplies each sum.
    pub multiplier: f32,
    /// Zero point of the output, 0..=255.
    pub zero: i32,
    /// Smallest output.
    pub lo: u8,
    /// Largest output, not below `lo`.
    pub hi: u8,
}

/// `clamp(round_half_even(v) + zero, lo, hi)` for any f32, with NaN as 0.
///
/// Bounds are whole numbers, so that clamping may come before rounding; what
/// is left is small enough to round by adding `1.5 * 2^23`, after which the
/// low bits of the f32 are the rounded integer. That costs two operations on
/// any CPU, and no conversion whose result depends on one.
#[derive(Clone, Copy)]
pub(crate) struct Rounder {
    lo: f32,
    hi: f32,
    offset: i32,
}

const SHIFT: f32 = 12_582_912.0;

impl Rounder {
    /// # Panics
    ///
    /// `zero` is outside `-128..=255`, or `lo > hi`, or a bound is outside `-128..=255`.
    #[inline(always)]
    pub(crate) fn new(zero: i32, lo: i32, hi: i32) -> Rounder {
        let byte = -128..=255;
        assert!(byte.contains(&zero), "zero point {zero} does not fit 8 bits");
        assert!(lo <= hi, "empty range {lo}..={hi}");
        assert!(byte.contains(&lo) && byte.contains(&hi), "range {lo}..={hi} does not fit 8 bits");
        Rounder {
            lo: (lo - zero) as f32,
            hi: (hi - zero) as f32,
            offset: zero.wrapping_sub(SHIFT.to_bits() as i32),
        }
    }

    #[inline(always)]
    pub(crate) fn round(self, v: f32) -> i32 {
        let v = if v.is_nan() { 0.0 } else { v };
        let v = if v < self.lo { self.lo } else { v };
        let v = if v > self.hi { self.hi } else { v };
        ((v + SHIFT).to_bits() as i32).wrapping_add(self.offset)
    }
}

impl Requant<'_> {
    #[inline(always)]
    pub(crate) fn rounder(&self) -> Rounder {
        Rounder::new(self.zero, self.lo.into(), self.hi.into())
    }

    /// # Panics
    ///
    /// The slices do not have `channels` elements.
    #[inline(always)]
    pub(crate) fn check(&self, channels: usize) {
        assert_eq!(self.bias.len(), channels, "bias of {channels} channels");
        assert_eq!(self.multiplier.len(), channels, "multiplier of {channels} channels");
    }
}

#[inline(always)]
pub(crate) fn requantize(acc: &[i32], requant: &UniformRequant, out: &mut [u8]) {
    assert_eq!(acc.len(), out.len(), "lengths of input and output");
    let UniformRequant { bias, multiplier, zero, lo, hi } = *requant;
    let rounder = Rounder::new(zero, lo.into(), hi.into());
    for (&acc, out) in acc.iter().zip(out) {
        *out = rounder.round(acc.wrapping_add(bias) as f32 * multiplier) as u8;
    }
}
