//! Pooling of NHWC images: codes (docs/quantization.md, equation 7) and f32.

use std::ops::Range;

use crate::requant::Rounder;
use crate::window::{OUTSIDE, Taps};

/// Parameters of [`Kernels::average_pool`](crate::Kernels::average_pool).
#[derive(Clone, Copy, Debug)]
pub struct Average {
    /// Zero point of the input.
    pub x_zero: u8,
    /// Scale of the input.
    pub x_scale: f32,
    /// Scale of the output.
    pub scale: f32,
    /// Zero point of the output, 0..=255.
    pub zero: i32,
    /// Smallest output.
    pub lo: u8,
    /// Largest output, not below `lo`.
    pub hi: u8,
    /// Whether taps outside the image count, as 0.
    pub padding_counts: bool,
}

#[inline(always)]
pub(crate) fn max_pool(x: &[u8], taps: &Taps, channels: usize, pixels: Range<usize>, out: &mut [u8]) {
    each_pixel(&Greatest(0, u8::max), x, taps, channels, pixels, out);
}

#[inline(always)]
pub(crate) fn max_pool_f32(x: &[f32], taps: &Taps, channels: usize, pixels: Range<usize>, out: &mut [f32]) {
    #[inline(always)]
    fn greater(a: f32, b: f32) -> f32 {
        if b > a { b } else { a }
    }
    each_pixel(&Greatest(f32::NEG_INFINITY, greater), x, taps, channels, pixels, out);
}

/// The greatest value: what to begin with, and the greater of two.
struct Greatest<T, F>(T, F);

impl<T: Copy, F: Fn(T, T) -> T> Pool<T> for Greatest<T, F> {
    #[inline(always)]
    fn pool<const W: usize>(&self, taps: &[u32], x: &[T], first: usize, out: &mut [T; W]) {
        let mut greatest = [self.0; W];
        for x in inside::<T, W>(taps, x, first) {
            for j in 0..W {
                greatest[j] = (self.1)(greatest[j], x[j]);
            }
        }
        *out = greatest;
    }
}

#[inline(always)]
pub(crate) fn average_pool(
    x: &[u8],
    taps: &Taps,
    channels: usize,
    params: &Average,
    pixels: Range<usize>,
    out: &mut [u8],
) {
    struct Mean<'a>(&'a Average, Rounder);
    impl Pool<u8> for Mean<'_> {
        #[inline(always)]
        fn pool<const W: usize>(&self, taps: &[u32], x: &[u8], first: usize, out: &mut [u8; W]) {
            let Mean(params, rounder) = self;
            let (mut sums, mut count) = ([0i32; W], 0i32);
            for x in inside::<u8, W>(taps, x, first) {
                count = count.wrapping_add(1);
                for j in 0..W {
                    sums[j] = sums[j].wrapping_add(x[j].into());
                }
            }
            let bias = count.wrapping_mul(-i32::from(params.x_zero));
            let count = if params.padding_counts { taps.len() } else { count as usize };
            let multiplier = params.x_scale / (count as f32 * params.scale);
            for j in 0..W {
                out[j] = rounder.round(sums[j].wrapping_add(bias) as f32 * multiplier) as u8;
            }
        }
    }
    let rounder = Rounder::new(params.zero, params.lo.into(), params.hi.into());
    each_pixel(&Mean(params, rounder), x, taps, channels, pixels, out);
}

#[inline(always)]
pub(crate) fn average_pool_f32(
    x: &[f32],
    taps: &Taps,
    channels: usize,
    padding_counts: bool,
    pixels: Range<usize>,
    out: &mut [f32],
) {
    struct Mean(bool);
    impl Pool<f32> for Mean {
        #[inline(always)]
        fn pool<const W: usize>(&self, taps: &[u32], x: &[f32], first: usize, out: &mut [f32; W]) {
            let (mut sums, mut count) = ([0f32; W], 0);
            for x in inside::<f32, W>(taps, x, first) {
                count += 1;
                for j in 0..W {
                    sums[j] += x[j];
                }
            }
            // A dilated window may meet no cell at all: its sum is 0.
            let count = if self.0 { taps.len() } else { count.max(1) };
            for j in 0..W {
                out[j] = sums[j] / count as f32;
            }
        }
    }
    each_pixel(&Mean(padding_counts), x, taps, channels, pixels, out);
}

/// What becomes of the `W` channels from `first` that the taps of one output
/// pixel read.
trait Pool<T> {
    fn pool<const W: usize>(&self, taps: &[u32], x: &[T], first: usize, out: &mut [T; W]);
}

/// The `W` channels from `first` of each tap inside the image.
#[inline(always)]
fn inside<'a, T, const W: usize>(
    taps: &'a [u32],
    x: &'a [T],
    first: usize,
) -> impl Iterator<Item = &'a [T; W]> {
    let inside = taps.iter().filter(|&&offset| offset != OUTSIDE);
    inside.map(move |&offset| x[offset as usize + first..].first_chunk().expect("W channels of a pixel"))
}

/// Pools every output pixel, as many channels at a time as fit.
#[inline(always)]
fn each_pixel<T>(
    pool: &impl Pool<T>,
    x: &[T],
    taps: &Taps,
    channels: usize,
    pixels: Range<usize>,
    out: &mut [T],
) {
    assert_eq!(out.len(), pixels.len() * channels, "length of the output");
    let count = taps.count();
    let offsets = &taps.offsets()[pixels.start * count..pixels.end * count];
    if channels == 0 || count == 0 {
        return;
    }
    for (out, taps) in out.chunks_exact_mut(channels).zip(offsets.chunks_exact(count)) {
        match channels {
            64.. => each_channels::<T, 64>(pool, taps, x, out),
            32.. => each_channels::<T, 32>(pool, taps, x, out),
            16.. => each_channels::<T, 16>(pool, taps, x, out),
            8.. => each_channels::<T, 8>(pool, taps, x, out),
            _ => each_channels::<T, 1>(pool, taps, x, out),
        }
    }
}

/// Pools one pixel, `W` channels at a time; the last `W` may overlap those before.
#[inline(always)]
fn each_channels<T, const W: usize>(pool: &impl Pool<T>, taps: &[u32], x: &[T], out: &mut [T]) {
    for first in (0..out.len()).step_by(W) {
        let first = first.min(out.len() - W);
        pool.pool::<W>(taps, x, first, out[first..].first_chunk_mut().expect("W channels"));
    }
}
