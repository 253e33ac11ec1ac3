//! The routines written as plain loops, compiled once per instruction set.
//!
//! IEEE arithmetic without contraction gives the same bits however a loop is
//! vectorized, so one source is correct for all. A multiply-add is fused where
//! the source says `mul_add`, and nowhere else.

use std::ops::Range;

use crate::depthwise::PackedDepthwise;
use crate::elementwise::{Add, Mul};
use crate::filters::Filters;
use crate::isa::Kernels;
use crate::low_bit::{CodedBlock, LowBitRows, LowBitWeights};
use crate::matrix::{Matrix, MatrixMut};
use crate::pack::CodeMatrix;
use crate::pool::Average;
use crate::product::Gather;
use crate::statistics::MinMax;
use crate::window::{Bordered, Taps, Window};

/// Makes of a list of signatures, each the path of an `#[inline(always)]`
/// function: the struct of function pointers, a method of [`Kernels`] for each,
/// and per instruction set a constant that holds the functions compiled for it.
macro_rules! loops {
    (@types $($(#[$doc:meta])* $module:ident::$name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        /// Functions that need the instruction set of their table.
        pub(crate) struct Loops {
            $(pub(crate) $name: unsafe fn($($type),*) $(-> $result)?,)*
        }

        impl Kernels {
            $($(#[$doc])*
            #[inline]
            pub fn $name(&self, $($arg: $type),*) $(-> $result)? {
                // SAFETY: tables come only from `Kernels::available`, which yields those
                // whose instruction set this CPU was found to have.
                unsafe { (self.loops.$name)($($arg),*) }
            })*
        }
    };
    (@table $table:ident $features:tt
        $($(#[$doc:meta])* $module:ident::$name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        pub(crate) const $table: Loops = {
            $(loops! { @function $features $module::$name($($arg: $type),*) $(-> $result)? })*
            Loops { $($name),* }
        };
    };
    (@function [$($feature:tt)*]
        $module:ident::$name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?) => {
        $($feature)*
        fn $name($($arg: $type),*) $(-> $result)? {
            crate::$module::$name($($arg),*)
        }
    };
    ($($list:tt)*) => {
        loops! { @types $($list)* }
        loops! { @table SCALAR [] $($list)* }
        #[cfg(target_arch = "x86_64")]
        loops! { @table AVX2 [#[target_feature(enable = "avx2,fma")]] $($list)* }
        #[cfg(target_arch = "x86_64")]
        loops! {
            @table AVX512
            [#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]]
            $($list)*
        }
        #[cfg(target_arch = "x86_64")]
        loops! {
            @table AVX512VNNI
            [#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]]
            $($list)*
        }
    };
}

loops! {
    /// `out = clamp(round_half_even(x / scale) + zero, lo, hi)` (docs/quantization.md, equation 1).
    ///
    /// NaN becomes `zero`, clamped; infinities saturate. `scale` is positive.
    ///
    /// # Panics
    ///
    /// Lengths differ, `zero` does not fit 8 bits, or `lo > hi`.
    quantize::quantize_u8(x: &[f32], scale: f32, zero: i32, lo: u8, hi: u8, out: &mut [u8]);

    /// [`Kernels::quantize_u8`] for signed integers.
    ///
    /// # Panics
    ///
    /// Lengths differ, `zero` does not fit 8 bits, or `lo > hi`.
    quantize::quantize_i8(x: &[f32], scale: f32, zero: i32, lo: i8, hi: i8, out: &mut [i8]);

    /// `out = (q - zero) as f32 * scale` (docs/quantization.md, equation 2).
    ///
    /// # Panics
    ///
    /// Lengths differ.
    quantize::dequantize_u8(q: &[u8], scale: f32, zero: i32, out: &mut [f32]);

    /// [`Kernels::dequantize_u8`] for signed integers.
    ///
    /// # Panics
    ///
    /// Lengths differ.
    quantize::dequantize_i8(q: &[i8], scale: f32, zero: i32, out: &mut [f32]);

    /// `out = (clamp(round_half_even(x / scale) + zero, qmin, qmax) - zero) as f32 * scale`
    /// (docs/quantization.md, equation 8): what quantizing and dequantizing gives, bit for bit, NaN included.
    ///
    /// # Panics
    ///
    /// Lengths differ, `qmin > qmax`, or one of them is more than 2^24 from
    /// `zero`, where f32 no longer holds every integer.
    quantize::fake_quantize(x: &[f32], scale: f32, zero: i32, qmin: i32, qmax: i32, out: &mut [f32]);

    /// The extremes of `x`; infinities count, NaN does not, and -0 counts as 0.
    statistics::min_max(x: &[f32]) -> MinMax;

    /// Adds to `counts` how many elements of `x` fall in each of `bins =
    /// counts.len()` equal parts of `lo..=hi`:
    ///
    /// `bin = min(trunc((x - lo) * bins / (hi - lo)), bins - 1)`
    ///
    /// in f32 and in this order, as `torch.histc` computes it on the CPU. The
    /// last bin holds `hi`; elements outside, and NaN, are not counted.
    ///
    /// # Panics
    ///
    /// `lo >= hi`, `hi - lo` is not finite, or there are no bins or more than 2^24.
    statistics::histogram(x: &[f32], lo: f32, hi: f32, counts: &mut [u64]);

    /// `out = clamp(round_half_even((a - za) as f32 * (sa / sy) + (b - zb) as f32 * (sb / sy)) + zy, lo, hi)`,
    /// in f32: two products, each rounded, then their sum (docs/quantization.md, equation 7).
    ///
    /// # Panics
    ///
    /// Lengths differ, the zero point does not fit 8 bits, or `lo > hi`.
    elementwise::add(a: &[u8], b: &[u8], params: &Add, out: &mut [u8]);

    /// `out = clamp(round_half_even(((a - za) * (b - zb)) as f32 * (sa * sb / sy)) + zy, lo, hi)`,
    /// the first product in i32 (docs/quantization.md, equation 7).
    ///
    /// # Panics
    ///
    /// Lengths differ, the zero point does not fit 8 bits, or `lo > hi`.
    elementwise::mul(a: &[u8], b: &[u8], params: &Mul, out: &mut [u8]);

    /// `out = table[x]`: any function of one u8 tensor.
    ///
    /// # Panics
    ///
    /// Lengths differ.
    elementwise::map(x: &[u8], table: &[u8; 256], out: &mut [u8]);

    /// For each row of `row` elements, with `e = exp(x - max(x))`
    /// ([`exp`](crate::exp)): `out = e * (1 / sum(e))`.
    ///
    /// The sum is taken in 32 partial sums, element `i` in sum `i % 32`, of which
    /// sum `i` is added to sum `i - half` for the halves 16, 8, 4, 2 and 1. The
    /// maximum passes over NaN, which makes all of its row NaN.
    ///
    /// # Panics
    ///
    /// Lengths differ, or are no multiple of `row`.
    normalize::softmax(x: &[f32], row: usize, out: &mut [f32]);

    /// For each row of `row` elements: `out = ((x - mean) * inverse) as f32`, in
    /// f64, with `inverse = 1 / sqrt(mean((x - mean)^2) + epsilon)`. The sums of the
    /// means are taken as in [`Kernels::softmax`].
    ///
    /// # Panics
    ///
    /// Lengths differ, or are no multiple of `row`.
    normalize::standardize(x: &[f32], row: usize, epsilon: f32, out: &mut [f32]);

    /// [`Kernels::standardize`] of rows of `scale.len()` elements, then
    /// `out = out * scale + shift`, each operation rounded.
    ///
    /// # Panics
    ///
    /// Lengths differ, or are no multiple of those of `scale` and `shift`.
    normalize::layer_norm(x: &[f32], epsilon: f32, scale: &[f32], shift: &[f32], out: &mut [f32]);

    /// For each row of `scale.len()` elements: `out = (x * inverse) as f32 * scale`, with
    /// `inverse = 1 / sqrt(mean(x^2) + epsilon)` in f64, its sum taken as in
    /// [`Kernels::softmax`].
    ///
    /// # Panics
    ///
    /// Lengths differ, or are no multiple of that of `scale`.
    normalize::rms_norm(x: &[f32], epsilon: f32, scale: &[f32], out: &mut [f32]);

    /// The greatest code that each of the output pixels `pixels` sees, channel by
    /// channel; 0 where all taps lie outside the image. `out` holds these pixels only.
    ///
    /// # Panics
    ///
    /// There are no such pixels, `x` ends before a tap, or `out` has another length.
    pool::max_pool(x: &[u8], taps: &Taps, channels: usize, pixels: Range<usize>, out: &mut [u8]);

    /// The mean that each of the output pixels `pixels` sees, channel by channel:
    ///
    /// `y = clamp(round_half_even((sum - inside * x_zero) as f32 * (x_scale / (count as f32 * scale))) + zero, lo, hi)`
    ///
    /// over the `inside` taps within the image, where `count` is `inside`, or the
    /// number of all taps if padding counts (docs/quantization.md, equation 7).
    ///
    /// # Panics
    ///
    /// As [`Kernels::max_pool`]; or the zero point or the range is not valid.
    pool::average_pool(
        x: &[u8], taps: &Taps, channels: usize, params: &Average, pixels: Range<usize>, out: &mut [u8]
    );

    /// Copies an image into the middle of a larger one, filled with `zero`; from
    /// NCHW to NHWC where the source is planar. `out` holds the rows `rows` only.
    ///
    /// # Panics
    ///
    /// There are no such rows, a slice has another length than `params` says, or the image does not fit.
    window::border(x: &[u8], params: &Bordered, zero: u8, rows: Range<usize>, out: &mut [u8]);

    /// [`Kernels::border`] of f32 values, with 0 around them.
    ///
    /// # Panics
    ///
    /// As [`Kernels::border`].
    window::border_f32(x: &[f32], params: &Bordered, rows: Range<usize>, out: &mut [f32]);

    /// [`Kernels::max_pool`] of f32 values, NaN left out; -inf where all taps lie
    /// outside the image.
    ///
    /// # Panics
    ///
    /// As [`Kernels::max_pool`].
    pool::max_pool_f32(x: &[f32], taps: &Taps, channels: usize, pixels: Range<usize>, out: &mut [f32]);

    /// The mean of f32 values: the sum of the taps within the image, in their
    /// order, by the number of these, or of all if padding counts.
    ///
    /// # Panics
    ///
    /// As [`Kernels::max_pool`].
    pool::average_pool_f32(
        x: &[f32], taps: &Taps, channels: usize, padding_counts: bool, pixels: Range<usize>, out: &mut [f32]
    );

    /// Depthwise f32 convolution of one NHWC image, for the output rows `rows`:
    ///
    /// `y[p][c] = clamp(start[c] + sum_t weights[t][c] * x[p, t][c], lo, hi)`
    ///
    /// with `[lo, hi] = bounds`, each a chain of fused multiply-adds over the taps
    /// within the image, `t` ascending, from `start` on; NaN stays. `out` holds the
    /// output rows `rows` only.
    ///
    /// # Panics
    ///
    /// A slice does not have the length that the window and `rows` imply, or the
    /// filters are not of its size.
    filters::depthwise_f32(
        x: &[f32], window: &Window, filters: &Filters, bounds: [f32; 2], rows: Range<usize>, out: &mut [f32]
    );

    /// Depthwise convolution (channel multiplier 1) of one NHWC image, for the
    /// output rows `rows`:
    ///
    /// `acc[oy][ox][c] = sum_t x[pixel(oy, ox, t)][c] * weights[t][c]`,
    ///
    /// requantized as [`Requant`](crate::Requant) defines it. `out` holds the
    /// output rows `rows` only.
    ///
    /// # Panics
    ///
    /// A slice does not have the length that the window and `rows` imply.
    depthwise::depthwise(x: &[u8], packed: &PackedDepthwise, rows: Range<usize>, out: &mut [u8]);

    /// `out[i] = clamp(start + sum_t weights[t] * x[shifts[t] + i], lo, hi)` with
    /// `[lo, hi] = bounds`, each a chain of fused multiply-adds, `t` ascending,
    /// from `start` on; NaN stays. With the shifts of the taps of a kernel in a
    /// padded plane, this is a row of a depthwise convolution.
    ///
    /// # Panics
    ///
    /// There is not one weight for each shift, or a shift reaches outside `x`.
    shifted::shifted_sums(
        x: &[f32], shifts: &[usize], weights: &[f32], start: f32, bounds: [f32; 2], out: &mut [f32]
    );

    /// Packs a right matrix of codes less 128 into the first
    /// [`Weights::bytes`](crate::Weights::bytes) of `memory`, where
    /// [`Weights::of_codes`](crate::Weights::of_codes) finds it.
    ///
    /// # Panics
    ///
    /// `memory` is too short.
    pack::pack_codes(from: &CodeMatrix<'_>, memory: &mut [u8]);

    /// `out[i] = factor * sum_k a[i * stride + k]`, `k` below `depth`, wrapping.
    ///
    /// # Panics
    ///
    /// A row does not lie in `a`.
    pack::row_sums(a: &[u8], stride: usize, depth: usize, factor: i32, out: &mut [i32]);

    /// Packs one panel of the right matrix of a product
    /// ([`Panels`](crate::Panels)): the rows of `channels`. Columns that no run
    /// fills, and elements of `out` behind the panel, may become any value.
    ///
    /// # Panics
    ///
    /// A run reads or writes outside its slice, or is longer than
    /// [`Run::MOST`](crate::Run::MOST).
    product::gather(from: &Gather<'_>, channels: Range<usize>, width: usize, out: &mut [f32]);

    /// `out[j * width + i] = source[i][j]`: one panel of the right matrix of a
    /// product that is given transposed.
    ///
    /// # Panics
    ///
    /// `source` has more than `width` rows, or `out` is too short.
    product::transpose(source: Matrix<'_>, width: usize, out: &mut [f32]);

    /// [`Kernels::low_bit_product`] of one row: `y` for the columns of `groups`.
    ///
    /// # Panics
    ///
    /// There are no such groups, or lengths do not fit.
    low_bit::low_bit_row(weights: &LowBitWeights, groups: Range<usize>, x: &[f32], y: &mut [f32]);

    /// The weights in f32 of some rows and of the `width` columns from those of
    /// strip `strip` of 16: one panel of the right matrix of a product
    /// ([`Panels`](crate::Panels)). What lies beyond the columns is any value.
    ///
    /// # Panics
    ///
    /// There are no such rows, the first is not that of a word of codes, or `out` is
    /// not of the panel's size.
    low_bit::low_bit_unpack(
        weights: &LowBitWeights, strip: usize, rows: Range<usize>, width: usize, out: &mut [f32]
    );

    /// `out[m][n] = out[m][n] + sum_b (x_scale[m][b] * scale[b][n]) * acc`, a chain of
    /// fused multiply-adds, `b` ascending, from `out` on, with the exact
    ///
    /// `acc = sum_k x[m][k] * (q[k][n] - zero[b][n])` over the `k` of block `b`,
    ///
    /// converted to f32, for the columns of `groups`.
    ///
    /// # Panics
    ///
    /// The weights are no integers ([`LowBitWeights::has_integers`]), there are no
    /// such groups, or sizes do not fit.
    low_bit::low_bit_integers(
        weights: &LowBitWeights, groups: Range<usize>, x: &LowBitRows<'_>, out: &mut MatrixMut<'_>
    );

    /// The codes and the [`CodedBlock`] of each `block` elements of `x`, of which the
    /// last may have fewer, as [`LowBitRows`] defines them.
    ///
    /// # Panics
    ///
    /// `block` is 0, or there are fewer codes than elements or other than one
    /// element of `of_blocks` a block.
    low_bit::quantize_blocks(x: &[f32], block: usize, codes: &mut [i8], of_blocks: &mut [CodedBlock]);
}
