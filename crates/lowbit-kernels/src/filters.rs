//! Depthwise convolution of f32 NHWC images.

use std::ops::Range;

use crate::window::Window;

/// Elements of a block: channels of one pixel, or all channels of neighbours.
const LANES: usize = 16;
/// Blocks that are computed together, with the same weights.
const TOGETHER: usize = 4;

/// The filters of a depthwise f32 convolution.
#[derive(Clone, Debug)]
pub struct Filters {
    channels: usize,
    taps: usize,
    /// Blocks of channels, the last of which may overlap the one before; or one of
    /// all channels several times, if they divide [`LANES`].
    blocks: Vec<Block>,
}

#[derive(Clone, Debug)]
struct Block {
    /// The first channel.
    first: usize,
    start: Lanes,
    /// For each tap.
    weights: Vec<Lanes>,
}

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Lanes([f32; LANES]);

impl Filters {
    /// The filters `weights`, `[tap][channel]`, and what each channel's sum begins with.
    ///
    /// # Panics
    ///
    /// There is not one weight for each tap and channel, or there is no channel.
    pub fn new(weights: &[f32], start: &[f32]) -> Filters {
        let channels = start.len();
        assert!(channels > 0 && weights.len().is_multiple_of(channels), "a weight for each tap and channel");
        let firsts = (0..channels).step_by(LANES).map(|first| first.min(channels.max(LANES) - LANES));
        let block = |first: usize| {
            let lanes = |row: &[f32]| Lanes(std::array::from_fn(|i| row[(first + i) % channels]));
            let weights = weights.chunks_exact(channels).map(lanes).collect();
            Block { first, start: lanes(start), weights }
        };
        Filters { channels, taps: weights.len() / channels, blocks: firsts.map(block).collect() }
    }
}

#[inline(always)]
pub(crate) fn depthwise_f32(
    x: &[f32],
    window: &Window,
    filters: &Filters,
    bounds: [f32; 2],
    rows: Range<usize>,
    out: &mut [f32],
) {
    let (channels, columns) = (window.channels, window.output[1]);
    window.check_input(x.len());
    assert_eq!(
        [filters.channels, filters.taps],
        [channels, window.taps()],
        "channels and taps of the filters"
    );
    assert_eq!(out.len(), rows.len() * columns * channels, "length of the output");
    if out.is_empty() {
        return;
    }
    let inside = window.inside_columns();
    for (oy, out) in rows.zip(out.chunks_exact_mut(columns * channels)) {
        let line = Line { x, window, bounds, taps: window.taps_inside(0, oy), oy };
        for ox in (0..inside.start).chain(inside.end..columns) {
            line.pixel(filters, ox, &mut out[ox * channels..][..channels]);
        }
        line.pixels(filters, inside.clone(), out);
    }
}

/// One output row.
struct Line<'a> {
    x: &'a [f32],
    window: &'a Window,
    bounds: [f32; 2],
    /// Rows of the kernel inside the image.
    taps: Range<usize>,
    oy: usize,
}

impl Line<'_> {
    /// Pixels whose windows lie inside the image, of those that `out` holds.
    #[inline(always)]
    fn pixels(&self, filters: &Filters, inside: Range<usize>, out: &mut [f32]) {
        let channels = self.window.channels;
        // Blocks of one pixel after the other, or of neighbours, which lie side by side.
        let (pixels, from, to) = if channels >= LANES {
            (1, self.window.stride[1] * channels, channels)
        } else if LANES.is_multiple_of(channels) && self.window.stride[1] == 1 {
            (LANES / channels, LANES, LANES)
        } else {
            (0, 0, 0)
        };
        if pixels == 0 || inside.len() < TOGETHER * pixels {
            for ox in inside {
                self.pixel(filters, ox, &mut out[ox * channels..][..channels]);
            }
            return;
        }
        for ox in inside.clone().step_by(TOGETHER * pixels) {
            let ox = ox.min(inside.end - TOGETHER * pixels);
            for block in &filters.blocks {
                let sums = self.sums::<TOGETHER>(block, ox, 0..self.window.kernel[1], from);
                for (i, sums) in sums.into_iter().enumerate() {
                    let out = &mut out[ox * channels + block.first + i * to..][..LANES];
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = self.clamp(sum));
                }
            }
        }
    }

    /// One pixel, wherever it lies.
    #[inline(always)]
    fn pixel(&self, filters: &Filters, ox: usize, out: &mut [f32]) {
        let taps = self.window.taps_inside(1, ox);
        if out.len() >= LANES {
            for block in &filters.blocks {
                let [sums] = self.sums::<1>(block, ox, taps.clone(), 0);
                let out = &mut out[block.first..][..LANES];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = self.clamp(sum));
            }
            return;
        }
        let block = &filters.blocks[0];
        for (c, out) in out.iter_mut().enumerate() {
            let mut sum = block.start.0[c];
            for ky in self.taps.clone() {
                for kx in taps.clone() {
                    sum = block.weights[self.tap(ky, kx)].0[c].mul_add(self.x[self.at(ox, ky, kx) + c], sum);
                }
            }
            *out = self.clamp(sum);
        }
    }

    /// The sums of `N` blocks, `step` elements of the image apart, the first of
    /// pixel `ox`, over these columns of the kernel.
    #[inline(always)]
    fn sums<const N: usize>(
        &self,
        block: &Block,
        ox: usize,
        taps: Range<usize>,
        step: usize,
    ) -> [[f32; LANES]; N] {
        let mut sums = [block.start.0; N];
        if taps.is_empty() {
            return sums;
        }
        for ky in self.taps.clone() {
            let weights = &block.weights[self.tap(ky, 0)..];
            let mut at = self.at(ox, ky, taps.start) + block.first;
            for Lanes(w) in &weights[taps.clone()] {
                let x = self.x[at..][..(N - 1) * step + LANES].as_ptr();
                for (i, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: `i` is below `N`, so the slice holds these elements.
                    let x = unsafe { &*x.add(i * step).cast::<[f32; LANES]>() };
                    for j in 0..LANES {
                        sums[j] = w[j].mul_add(x[j], sums[j]);
                    }
                }
                at += self.window.dilation[1] * self.window.channels;
            }
        }
        sums
    }

    #[inline(always)]
    fn tap(&self, ky: usize, kx: usize) -> usize {
        ky * self.window.kernel[1] + kx
    }

    /// Where the pixel lies that tap `(ky, kx)` of output `ox` reads.
    #[inline(always)]
    fn at(&self, ox: usize, ky: usize, kx: usize) -> usize {
        let Window { stride, dilation, pad, input, channels, .. } = *self.window;
        let (y, x) = (self.oy * stride[0] + ky * dilation[0], ox * stride[1] + kx * dilation[1]);
        ((y - pad[0]) * input[1] + x - pad[1]) * channels
    }

    /// NaN stays.
    #[inline(always)]
    fn clamp(&self, sum: f32) -> f32 {
        let [lo, hi] = self.bounds;
        let sum = if sum < lo { lo } else { sum };
        if sum > hi { hi } else { sum }
    }
}
