//! From accumulators and real numbers to u8: the one rounding of every kernel.

/// Per-channel requantization of i32 accumulators to u8 (docs/quantization.md, equation 6):
///
/// `y = clamp(round_half_even((acc + bias[n]) as f32 * multiplier[n]) + zero, lo, hi)`
///
/// - `acc + bias` is an i32 sum; it wraps where it does not fit.
/// - The conversion to f32 rounds half to even, as does the product.
/// - A product of any size saturates at `lo` or `hi`, as if rounded and clamped
///   without bounds.
#[derive(Clone, Copy, Debug)]
pub struct Requant<'a> {
    /// Bias per channel, at the scale of the accumulator; holds `-zx * sum(w)` as well.
    pub bias: &'a [i32],
    /// `s_x * s_w[n] / s_y` per channel, finite.
    pub multiplier: &'a [f32],
    /// Zero point of the output, 0..=255.
    pub zero: i32,
    /// Smallest output; an activation such as ReLU raises it.
    pub lo: u8,
    /// Largest output, not below `lo`.
    pub hi: u8,
}

/// A second tensor, added to what [`Requant`] gives (docs/quantization.md, equation 7):
///
/// `y = clamp(round_half_even((a - z_a) as f32 * a_ratio + (b - zero) as f32 * ratio) + y_zero, lo, hi)`
///
/// where `a` is the requantized product and `z_a` its zero point: two products,
/// each rounded, then their sum, as [`Kernels::add`](crate::Kernels::add).
#[derive(Clone, Copy, Debug)]
pub struct Residual<'a> {
    /// `b`: row `i` of the output adds the row from `i * stride`.
    pub codes: &'a [u8],
    /// Elements from one row of `codes` to the next.
    pub stride: usize,
    /// `s_a / s_y`.
    pub a_ratio: f32,
    /// Zero point of `b`.
    pub zero: u8,
    /// `s_b / s_y`.
    pub ratio: f32,
    /// Zero point of the output, 0..=255.
    pub y_zero: i32,
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounder {
    pub(crate) lo: f32,
    pub(crate) hi: f32,
    offset: i32,
}

pub(crate) const SHIFT: f32 = 12_582_912.0;

impl Residual<'_> {
    /// Whether no sum leaves the range of i32.
    pub(crate) fn is_small(&self) -> bool {
        [self.a_ratio, self.ratio].iter().all(|r| r.abs() < (1 << 20) as f32)
    }
}

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
        ((self.clamp(v) + SHIFT).to_bits() as i32).wrapping_add(self.offset)
    }

    /// `round(v) - zero` as f32.
    #[inline(always)]
    pub(crate) fn round_centred(self, v: f32) -> f32 {
        self.clamp(v) + SHIFT - SHIFT
    }

    #[inline(always)]
    fn clamp(self, v: f32) -> f32 {
        let v = if v.is_nan() { 0.0 } else { v };
        let v = if v < self.lo { self.lo } else { v };
        if v > self.hi { self.hi } else { v }
    }

    /// The least result.
    pub(crate) fn least(self) -> u8 {
        (self.lo as i32 as u8).wrapping_add(self.zero())
    }

    /// The greatest result.
    pub(crate) fn greatest(self) -> u8 {
        (self.hi as i32 as u8).wrapping_add(self.zero())
    }

    /// What is added to the low byte of `v + SHIFT`.
    pub(crate) fn zero(self) -> u8 {
        self.offset as u8
    }
}

impl Requant<'_> {
    #[inline(always)]
    pub(crate) fn rounder(&self) -> Rounder {
        Rounder::new(self.zero, self.lo.into(), self.hi.into())
    }

    /// # Panics
    ///
    /// The slices do not have `channels` elements, or a multiplier is not finite.
    #[inline(always)]
    pub(crate) fn check(&self, channels: usize) {
        assert_eq!(self.bias.len(), channels, "bias of {channels} channels");
        assert_eq!(self.multiplier.len(), channels, "multiplier of {channels} channels");
        assert!(self.multiplier.iter().all(|m| m.is_finite()), "a multiplier is not finite");
    }

    /// Whether no product of a sum and a multiplier leaves the range of i32.
    #[inline(always)]
    pub(crate) fn is_small(&self) -> bool {
        self.multiplier.iter().all(|m| m.abs() < 1.0)
    }
}
