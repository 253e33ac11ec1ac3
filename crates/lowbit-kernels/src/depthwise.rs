//! Depthwise convolution, direct, vectorized over channels.

use std::ops::Range;

use crate::requant::{Requant, Rounder};
use crate::window::Window;

/// A depthwise convolution with channel multiplier 1.
#[derive(Clone, Copy, Debug)]
pub struct Depthwise<'a> {
    /// Where it reads its input.
    pub window: Window,
    /// `[kernel height][kernel width][channels]`.
    pub weights: &'a [i8],
    /// Zero point of the input, which taps outside the image read.
    pub x_zero: u8,
    /// One bias and multiplier per channel.
    pub requant: Requant<'a>,
}

#[inline(always)]
pub(crate) fn depthwise(x: &[u8], params: &Depthwise<'_>, rows: Range<usize>, out: &mut [u8]) {
    let Depthwise { window, weights, requant, .. } = params;
    let channels = window.channels;
    window.check_input(x.len());
    requant.check(channels);
    assert_eq!(weights.len(), window.taps() * channels, "length of the weights");
    assert_eq!(out.len(), rows.len() * window.output[1] * channels, "length of the output");
    if channels == 0 || out.is_empty() {
        return;
    }
    let one = Lanes { weights, bias: requant.bias, multiplier: requant.multiplier };
    // Neighbouring pixels of few channels fill a vector together.
    let together = if window.stride[1] == 1 { (WIDE / channels).max(1) } else { 1 };
    let several = Repeated::new(&one, together);
    let taps = 0..window.taps();
    let columns: Vec<usize> = taps.clone().map(|t| t % window.kernel[1]).collect();
    let outside = vec![params.x_zero; channels * together];
    let mut row = Row {
        params,
        rounder: requant.rounder(),
        lines: vec![],
        columns: &columns,
        outside: &outside,
        read: vec![&outside; window.taps()],
    };
    let pitch = window.input[1] * channels;
    let inside = window.inside_columns();
    for (oy, out) in rows.zip(out.chunks_exact_mut(window.output[1] * channels)) {
        row.lines.clear();
        row.lines.extend(taps.clone().map(|t| {
            let y = window.position(0, oy, t / window.kernel[1])?;
            Some(&x[y * pitch..][..pitch])
        }));
        let mut ox = 0;
        while ox < window.output[1] {
            if together > 1 && inside.len() >= together && inside.contains(&ox) {
                // The last step may overlap the one before.
                row.step(&several.get(), ox.min(inside.end - together), true, out);
                ox = inside.end.min(ox + together);
            } else {
                row.step(&one, ox, inside.contains(&ox), out);
                ox += 1;
            }
        }
    }
}

/// Lanes that one step should have.
const WIDE: usize = 32;

/// The parameters of the lanes of one step: the channels of its pixels.
struct Lanes<'a> {
    weights: &'a [i8],
    bias: &'a [i32],
    multiplier: &'a [f32],
}

/// [`Lanes`] of several pixels.
struct Repeated {
    weights: Vec<i8>,
    bias: Vec<i32>,
    multiplier: Vec<f32>,
}

impl Repeated {
    fn new(one: &Lanes<'_>, times: usize) -> Repeated {
        Repeated {
            weights: one.weights.chunks_exact(one.bias.len()).flat_map(|w| w.repeat(times)).collect(),
            bias: one.bias.repeat(times),
            multiplier: one.multiplier.repeat(times),
        }
    }

    fn get(&self) -> Lanes<'_> {
        Lanes { weights: &self.weights, bias: &self.bias, multiplier: &self.multiplier }
    }
}

/// One output row.
struct Row<'a> {
    params: &'a Depthwise<'a>,
    rounder: Rounder,
    /// The input row that each tap reads, unless it is padding.
    lines: Vec<Option<&'a [u8]>>,
    /// Kernel column of each tap.
    columns: &'a [usize],
    /// Padding for a whole step.
    outside: &'a [u8],
    /// What each tap of a step reads.
    read: Vec<&'a [u8]>,
}

impl Row<'_> {
    /// Computes the pixels from column `ox` that `lanes` has. Where there are
    /// several, or `inside`, no tap reads padding to the left or right.
    #[inline(always)]
    fn step(&mut self, lanes: &Lanes<'_>, ox: usize, inside: bool, out: &mut [u8]) {
        let window = &self.params.window;
        let count = lanes.bias.len();
        for ((read, line), kx) in self.read.iter_mut().zip(&self.lines).zip(self.columns) {
            let x = if inside {
                Some(ox * window.stride[1] + kx * window.dilation[1] - window.pad[1])
            } else {
                window.position(1, ox, *kx)
            };
            *read = match (line, x) {
                (Some(line), Some(x)) => &line[x * window.channels..][..count],
                _ => &self.outside[..count],
            };
        }
        let out = &mut out[ox * window.channels..][..count];
        match count {
            32.. => self.store::<32>(lanes, out),
            16.. => self.store::<16>(lanes, out),
            8.. => self.store::<8>(lanes, out),
            _ => self.store::<1>(lanes, out),
        }
    }

    /// Computes all lanes, `W` at a time; the last `W` may overlap those before.
    #[inline(always)]
    fn store<const W: usize>(&self, lanes: &Lanes<'_>, out: &mut [u8]) {
        let count = out.len();
        for first in (0..count).step_by(W) {
            let first = first.min(count - W);
            let mut acc = *chunk::<_, W>(lanes.bias, first);
            let (nines, rest) = self.read.as_chunks::<9>();
            let (threes, ones) = rest.as_chunks::<3>();
            let mut weights = &lanes.weights[first..];
            for x in nines {
                add(x, weights, count, first, &mut acc);
                weights = weights.get(9 * count..).unwrap_or_default();
            }
            for x in threes {
                add(x, weights, count, first, &mut acc);
                weights = weights.get(3 * count..).unwrap_or_default();
            }
            for x in ones {
                add(&[*x], weights, count, first, &mut acc);
                weights = weights.get(count..).unwrap_or_default();
            }
            let multiplier = chunk::<_, W>(lanes.multiplier, first);
            let mut y = [0; W];
            for j in 0..W {
                y[j] = self.rounder.round(acc[j] as f32 * multiplier[j]) as u8;
            }
            out[first..][..W].copy_from_slice(&y);
        }
    }
}

/// Adds to `acc` what `T` taps give to the `W` lanes from `first`; the taps'
/// weights lie `pitch` apart.
#[inline(always)]
fn add<const T: usize, const W: usize>(
    x: &[&[u8]; T],
    weights: &[i8],
    pitch: usize,
    first: usize,
    acc: &mut [i32; W],
) {
    for t in 0..T {
        let (x, w) = (*chunk::<_, W>(x[t], first), *chunk::<_, W>(weights, t * pitch));
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
