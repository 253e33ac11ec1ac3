//! Depthwise convolution, direct, vectorized over channels.

use std::array;
use std::ops::Range;

use crate::requant::{Requant, Rounder};
use crate::window::Window;

/// The most kernel positions of a depthwise convolution.
pub const MOST_TAPS: usize = 64;

/// Lanes of a plain step: the channels of one pixel, or of several neighbours.
const WIDE: usize = 32;
/// Lanes of a block.
pub(crate) const BLOCK: usize = 64;

/// A depthwise convolution with channel multiplier 1 of images of one size:
/// weights and all that the epilogue needs, packed once and read by every table.
#[derive(Clone, Debug)]
pub struct PackedDepthwise {
    window: Window,
    rounder: Rounder,
    /// Whether no value that is rounded leaves the range of i32.
    is_small: bool,
    /// What taps outside the image read: a whole row.
    padding: Vec<u8>,
    one: Lanes,
    several: Lanes,
    quads: Vec<Vec<usize>>,
    blocks: Vec<Block>,
}

/// Weights `[tap][lane]`, and a bias and a multiplier for each lane.
#[derive(Clone, Debug)]
struct Lanes {
    weights: Vec<i8>,
    bias: Vec<i32>,
    multiplier: Vec<f32>,
}

/// 64 lanes for byte dot products: those of 64 channels of one pixel, or of all
/// channels of `BLOCK / channels` neighbours.
///
/// Lane `16 l + 4 j + e` (l, j, e in 0..4) lies at position `16 j + 4 l + e`: the
/// order in which interleaving bytes within 128 bits leaves them.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Block {
    pub(crate) bias: [i32; BLOCK],
    pub(crate) multiplier: [f32; BLOCK],
    /// The weights of the taps of each quad, lane by lane; missing taps are zero.
    pub(crate) quads: Vec<Quad>,
    /// The same of two taps.
    #[cfg(target_arch = "x86_64")]
    pub(crate) pairs: Vec<Pair>,
    /// The first channel.
    pub(crate) first: usize,
}

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Quad(pub(crate) [[i8; 4]; BLOCK]);

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Pair(pub(crate) [[i16; 2]; BLOCK]);

impl PackedDepthwise {
    /// Packs `weights`, `[kernel height][kernel width][channels]`; `x_zero` is the
    /// input's zero point.
    ///
    /// # Panics
    ///
    /// The slices have other lengths, `requant` is not valid, or there are more
    /// than [`MOST_TAPS`] taps.
    pub fn new(weights: &[i8], window: &Window, x_zero: u8, requant: &Requant<'_>) -> PackedDepthwise {
        let (taps, channels) = (window.taps(), window.channels);
        assert!(taps <= MOST_TAPS, "{taps} taps");
        assert_eq!(Some(weights.len()), taps.checked_mul(channels), "length of the weights");
        requant.check(channels);
        let lanes = |times: usize| Lanes {
            weights: weights.chunks_exact(channels.max(1)).flat_map(|w| w.repeat(times)).collect(),
            bias: requant.bias.repeat(times),
            multiplier: requant.multiplier.repeat(times),
        };
        let one = lanes(1);
        let starts = (0..channels).step_by(BLOCK).map(|first| first.min(channels.max(BLOCK) - BLOCK));
        let quads = quads(window);
        let blocks = starts.map(|first| Block::new(&one, &quads, first)).collect();
        PackedDepthwise {
            window: *window,
            rounder: requant.rounder(),
            is_small: requant.is_small(),
            padding: vec![x_zero; window.input[1] * channels],
            several: lanes((WIDE / channels.max(1)).max(1)),
            one,
            quads,
            blocks,
        }
    }

    /// Where it reads its input.
    pub fn window(&self) -> &Window {
        &self.window
    }

    pub(crate) fn rounder(&self) -> Rounder {
        self.rounder
    }

    /// Whether no value that is rounded leaves the range of i32.
    pub(crate) fn is_small(&self) -> bool {
        self.is_small
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// What taps outside the image read: a whole row.
    pub(crate) fn padding(&self) -> &[u8] {
        &self.padding
    }

    /// The taps that are multiplied together, at most four: of a kernel of 3 x 3,
    /// those of a column.
    pub(crate) fn quads(&self) -> &[Vec<usize>] {
        &self.quads
    }
}

fn quads(window: &Window) -> Vec<Vec<usize>> {
    if window.kernel == [3, 3] {
        return (0..3).map(|kx| vec![kx, 3 + kx, 6 + kx]).collect();
    }
    let taps: Vec<usize> = (0..window.taps()).collect();
    taps.chunks(4).map(<[usize]>::to_vec).collect()
}

impl Block {
    /// The lanes from channel `first`: as many channels as there are, over and over.
    fn new(lanes: &Lanes, quads: &[Vec<usize>], first: usize) -> Block {
        let channels = lanes.bias.len();
        #[cfg(target_arch = "x86_64")]
        let taps = lanes.weights.len() / channels;
        let channel = |position: usize| {
            let (j, l, e) = (position / 16, position / 4 % 4, position % 4);
            (first + 16 * l + 4 * j + e) % channels
        };
        let quad = |taps: &Vec<usize>| {
            let weight =
                |at: usize, i: usize| taps.get(i).map_or(0, |t| lanes.weights[t * channels + channel(at)]);
            Quad(array::from_fn(|at| array::from_fn(|i| weight(at, i))))
        };
        #[cfg(target_arch = "x86_64")]
        let pair = |p: usize| {
            let weight = |at: usize, tap: usize| match tap < taps {
                true => lanes.weights[tap * channels + channel(at)].into(),
                false => 0,
            };
            Pair(array::from_fn(|at| array::from_fn(|i| weight(at, 2 * p + i))))
        };
        Block {
            bias: array::from_fn(|at| lanes.bias[channel(at)]),
            multiplier: array::from_fn(|at| lanes.multiplier[channel(at)]),
            quads: quads.iter().map(quad).collect(),
            #[cfg(target_arch = "x86_64")]
            pairs: (0..taps.div_ceil(2)).map(pair).collect(),
            first,
        }
    }
}

#[inline(always)]
pub(crate) fn depthwise(x: &[u8], packed: &PackedDepthwise, rows: Range<usize>, out: &mut [u8]) {
    let Window { channels, stride: [_, stride], .. } = packed.window;
    let together = if stride == 1 { (WIDE / channels.max(1)).max(1) } else { 1 };
    walk(
        x,
        packed,
        rows,
        out,
        #[inline(always)]
        |taps, out| {
            let pixels = out.len() / channels;
            let mut next = 0;
            while next < pixels {
                // The last step may overlap the one before.
                let (first, count, lanes) = match together > 1 && pixels >= together {
                    true => (next.min(pixels - together), together, &packed.several),
                    false => (next, 1, &packed.one),
                };
                let out = &mut out[first * channels..][..count * channels];
                let at = first * stride * channels;
                match out.len() {
                    32.. => lanes.store::<32>(taps, at, packed.rounder, out),
                    16.. => lanes.store::<16>(taps, at, packed.rounder, out),
                    8.. => lanes.store::<8>(taps, at, packed.rounder, out),
                    _ => lanes.store::<1>(taps, at, packed.rounder, out),
                }
                next = first + count;
            }
        },
    );
}

/// Calls `run(taps, out)` for runs of output pixels of one row: all those none of
/// whose taps reads padding to the left or right, and each other one by itself.
/// `taps` holds, for each kernel position, the input from the first pixel's to
/// the end of the image row, or padding: what a run of pixels needs.
///
/// # Panics
///
/// A slice does not have the length that the window and `rows` imply.
#[inline(always)]
pub(crate) fn walk(
    x: &[u8],
    packed: &PackedDepthwise,
    rows: Range<usize>,
    out: &mut [u8],
    mut run: impl FnMut(&[&[u8]], &mut [u8]),
) {
    let window = &packed.window;
    let Window { channels, output: [_, width], stride: [_, stride], .. } = *window;
    window.check_input(x.len());
    assert_eq!(out.len(), rows.len() * width * channels, "length of the output");
    if out.is_empty() {
        return;
    }
    let pitch = window.input[1] * channels;
    let inside = window.inside_columns();
    let mut taps: [&[u8]; MOST_TAPS] = [&[]; MOST_TAPS];
    let taps = &mut taps[..window.taps()];
    for (oy, out) in rows.zip(out.chunks_exact_mut(width * channels)) {
        let mut ox = 0;
        while ox < width {
            let whole = inside.contains(&ox);
            let end = if whole { inside.end } else { ox + 1 };
            for (ky, taps) in taps.chunks_exact_mut(window.kernel[1]).enumerate() {
                let line = window.position(0, oy, ky).map(|y| &x[y * pitch..][..pitch]);
                for (kx, tap) in taps.iter_mut().enumerate() {
                    let column = (ox * stride + kx * window.dilation[1]).wrapping_sub(window.pad[1]);
                    *tap = match line {
                        Some(line) if column < window.input[1] => &line[column * channels..],
                        // Padding above or below holds for all pixels alike.
                        _ => &packed.padding,
                    };
                }
            }
            run(taps, &mut out[ox * channels..end * channels]);
            ox = end;
        }
    }
}

impl Lanes {
    /// Computes all lanes, `W` at a time, from what the taps hold at `at`; the
    /// last `W` may overlap those before.
    #[inline(always)]
    fn store<const W: usize>(&self, taps: &[&[u8]], at: usize, rounder: Rounder, out: &mut [u8]) {
        let count = out.len();
        for first in (0..count).step_by(W) {
            let first = first.min(count - W);
            let at = at + first;
            let mut acc = *chunk::<_, W>(&self.bias, first);
            let (nines, rest) = taps.as_chunks::<9>();
            let (threes, ones) = rest.as_chunks::<3>();
            let mut weights = &self.weights[first..];
            for x in nines {
                add(x, weights, count, at, &mut acc);
                weights = weights.get(9 * count..).unwrap_or_default();
            }
            for x in threes {
                add(x, weights, count, at, &mut acc);
                weights = weights.get(3 * count..).unwrap_or_default();
            }
            for x in ones {
                add(&[*x], weights, count, at, &mut acc);
                weights = weights.get(count..).unwrap_or_default();
            }
            let multiplier = chunk::<_, W>(&self.multiplier, first);
            let mut y = [0; W];
            for j in 0..W {
                y[j] = rounder.round(acc[j] as f32 * multiplier[j]) as u8;
            }
            out[first..][..W].copy_from_slice(&y);
        }
    }
}

/// Adds to `acc` what `T` taps give at `at` to `W` lanes; the taps' weights lie
/// `pitch` apart.
#[inline(always)]
fn add<const T: usize, const W: usize>(
    x: &[&[u8]; T],
    weights: &[i8],
    pitch: usize,
    at: usize,
    acc: &mut [i32; W],
) {
    for t in 0..T {
        let (x, w) = (*chunk::<_, W>(x[t], at), *chunk::<_, W>(weights, t * pitch));
        for j in 0..W {
            // A product of u8 and i8 fits i16, whose multiplication is the cheaper.
            let product = i16::from(x[j]) * i16::from(w[j]);
            acc[j] = acc[j].wrapping_add(product.into());
        }
    }
}

#[inline(always)]
fn chunk<T, const W: usize>(values: &[T], first: usize) -> &[T; W] {
    values[first..].first_chunk().expect("W values from the first")
}
