//! Depthwise convolution of 3 x 3 by `vpdpbusd`: the bytes of a column of three pixels are
//! interleaved, so that each 32-bit lane sums a column of one channel.

use std::arch::x86_64::*;
use std::ops::Range;

use super::depthwise::{interleaved, load, mask, words_of_every_other};
use super::saturate::Saturated;
use crate::depthwise::{BLOCK, Block, PackedDepthwise, Quad};
use crate::window::Window;

/// Bytes of 64 columns in four vectors, in the order of a [`Block`]'s lanes.
type Column = [__m512i; 4];

/// Whether [`depthwise`] computes these windows.
pub(super) fn applies(window: &Window) -> bool {
    let Window { channels, kernel, stride: [_, stride], dilation: [_, dilation], output, .. } = *window;
    let fills = match stride {
        1 => channels >= BLOCK || BLOCK.is_multiple_of(channels.max(1)),
        2 => channels >= BLOCK || [4, 8, 16, 32].contains(&channels),
        _ => false,
    };
    kernel == [3, 3] && dilation == 1 && fills && output[1] * channels >= BLOCK && window.input[1] > 0
}

/// [`Kernels::depthwise`](crate::Kernels::depthwise) of windows to which it [`applies`] and values that are small.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn depthwise(x: &[u8], packed: &PackedDepthwise, rows: Range<usize>, out: &mut [u8]) {
    let window = packed.window();
    let [width, columns] = [window.input[1], window.output[1]];
    window.check_input(x.len());
    assert_eq!(out.len(), rows.len() * columns * window.channels, "length of the output");
    let (channels, pitch) = (window.channels, width * window.channels);
    let padding = packed.padding();
    assert!(padding.len() >= pitch, "padding is a line");
    assert!(
        packed.blocks().iter().all(|b| b.first + BLOCK <= channels.max(BLOCK)),
        "blocks lie in the channels"
    );
    let saturated = Saturated::new(packed.rounder());
    for (oy, out) in rows.zip(out.chunks_exact_mut(columns * channels)) {
        let mut lines = [padding; 3];
        for (ky, line) in lines.iter_mut().enumerate() {
            if let Some(y) = window.position(0, oy, ky) {
                *line = &x[y * pitch..][..pitch];
            }
        }
        let zero = padding[0].cast_signed();
        let row = Row { lines, padding, zero, width, channels, pad: window.pad[1], saturated: &saturated };
        for block in packed.blocks() {
            match (channels >= BLOCK, window.stride[1]) {
                (true, 1) => row.wide(block, out),
                (true, _) => row.wide_every_other(block, out),
                (false, 1) => row.narrow::<1>(block, out),
                (false, _) => row.narrow::<2>(block, out),
            }
        }
    }
}

/// One output row.
///
/// Invariant: lines have the channels of `width` pixels, and so has the padding, which is not empty.
struct Row<'a> {
    /// What the kernel's rows read.
    lines: [&'a [u8]; 3],
    /// A line outside the image, and what it is filled with.
    padding: &'a [u8],
    zero: i8,
    width: usize,
    channels: usize,
    /// Pixels of padding to the left.
    pad: usize,
    saturated: &'a Saturated,
}

/// What follows is not inlined: in one function with the others, each has too few registers.
impl Row<'_> {
    /// The channels of a block of all pixels, from columns that are interleaved once.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn wide(&self, block: &Block, out: &mut [u8]) {
        let [left, middle, right] = weights(block);
        let (mut first, mut second) = (self.column(block, 0), self.column(block, 1));
        let mut x = 2;
        let mut pairs = out.chunks_exact_mut(2 * self.channels);
        for out in &mut pairs {
            let (mut a, mut b) = (load(&block.bias), load(&block.bias));
            let (third, fourth) = (self.column(block, x), self.column(block, x + 1));
            add(&mut a, first, &mut b, second, left);
            add(&mut a, second, &mut b, third, middle);
            add(&mut a, third, &mut b, fourth, right);
            let (out, next) = out.split_at_mut(self.channels);
            self.store(a, block, &mut out[block.first..]);
            self.store(b, block, &mut next[block.first..]);
            (first, second, x) = (third, fourth, x + 2);
        }
        if let rest @ [_, ..] = pairs.into_remainder() {
            let columns = [first, second, self.column(block, x)];
            self.store(sums(columns, block), block, &mut rest[block.first..]);
        }
    }

    /// [`Row::wide`] of every other pixel.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn wide_every_other(&self, block: &Block, out: &mut [u8]) {
        let [left, middle, right] = weights(block);
        let mut first = self.column(block, 0);
        let mut x = 0;
        let mut pairs = out.chunks_exact_mut(2 * self.channels);
        for out in &mut pairs {
            let (mut a, mut b) = (load(&block.bias), load(&block.bias));
            let third = self.column(block, x + 2);
            add(&mut a, first, &mut b, third, left);
            add(&mut a, self.column(block, x + 1), &mut b, self.column(block, x + 3), middle);
            first = self.column(block, x + 4);
            add(&mut a, third, &mut b, first, right);
            let (out, next) = out.split_at_mut(self.channels);
            self.store(a, block, &mut out[block.first..]);
            self.store(b, block, &mut next[block.first..]);
            x += 4;
        }
        if let rest @ [_, ..] = pairs.into_remainder() {
            let columns = [first, self.column(block, x + 1), self.column(block, x + 2)];
            self.store(sums(columns, block), block, &mut rest[block.first..]);
        }
    }

    /// The column of a block's channels of pixel `x`, counted from the first one of padding.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn column(&self, block: &Block, x: usize) -> Column {
        let x = x.wrapping_sub(self.pad);
        let inside = x < self.width;
        let at = if inside { x * self.channels } else { 0 } + block.first;
        let mut r = [_mm512_setzero_si512(); 4];
        for (r, line) in r.iter_mut().zip(self.lines) {
            let line = if inside { line } else { self.padding };
            // SAFETY: lines have the channels of `width` pixels, padding those of one,
            // and blocks lie in the channels.
            *r = unsafe { _mm512_loadu_si512(line.as_ptr().wrapping_add(at).cast()) };
        }
        interleaved(r)
    }

    /// All channels of all pixels, `S` apart in the image, as many together as fill a vector.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn narrow<const S: usize>(&self, block: &Block, out: &mut [u8]) {
        let [left, middle, right] = weights(block);
        let together = BLOCK / self.channels;
        let every_other = words_of_every_other(self.channels);
        let count = out.len() / self.channels;
        let steps = if count >= 2 * together { 2 * together } else { together };
        for x in (0..count).step_by(steps) {
            // The last step may overlap the one before.
            let x = x.min(count - steps);
            let next = x + steps - together;
            let (mut a, mut b) = (load(&block.bias), load(&block.bias));
            if x * S >= self.pad && (next + together) * S + 2 <= self.width + self.pad {
                for (k, weights) in [left, middle, right].into_iter().enumerate() {
                    let first = self.pixels::<S, true>(x * S + k, every_other);
                    add(&mut a, first, &mut b, self.pixels::<S, true>(next * S + k, every_other), weights);
                }
            } else {
                for (k, weights) in [left, middle, right].into_iter().enumerate() {
                    let first = self.pixels::<S, false>(x * S + k, every_other);
                    add(&mut a, first, &mut b, self.pixels::<S, false>(next * S + k, every_other), weights);
                }
            }
            self.store(a, block, &mut out[x * self.channels..]);
            self.store(b, block, &mut out[next * self.channels..]);
        }
    }

    /// The columns of pixels `S` apart, as many as fill a vector, from pixel `x` on, counted from the
    /// first one of padding. All pixels between are in the image if `INSIDE`, and one more.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn pixels<const S: usize, const INSIDE: bool>(&self, x: usize, every_other: __m512i) -> Column {
        let Row { channels, width, pad, .. } = *self;
        let together = BLOCK / channels;
        // The lanes of pixels in the image, of as many from pixel `x` on.
        let lanes = |x: usize| {
            let end = (width + pad).saturating_sub(x).min(together) * channels;
            let start = pad.saturating_sub(x).min(together) * channels;
            mask(end) & !mask(start)
        };
        let mut r = [_mm512_setzero_si512(); 4];
        for (r, line) in r.iter_mut().zip(self.lines) {
            let vector = |x: usize| {
                let at = line.as_ptr().wrapping_add(x * channels).wrapping_sub(pad * channels).cast();
                // SAFETY: a line has the channels of `width` pixels, and only these are read.
                unsafe {
                    match INSIDE {
                        true => _mm512_loadu_si512(at),
                        false => {
                            let padding = _mm512_set1_epi8(self.zero);
                            _mm512_mask_loadu_epi8(padding, lanes(x), at.cast())
                        }
                    }
                }
            };
            *r = match S {
                1 => vector(x),
                _ => _mm512_permutex2var_epi32(vector(x), every_other, vector(x + together)),
            };
        }
        interleaved(r)
    }

    /// Stores the codes of a block's sums at the beginning of `out`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn store(&self, sums: Column, block: &Block, out: &mut [u8]) {
        let out: &mut [u8; BLOCK] = out.first_chunk_mut().expect("the lanes of a block");
        let multiplier: [__m512i; 4] = load(&block.multiplier);
        let mut rounded = sums;
        for (rounded, multiplier) in rounded.iter_mut().zip(multiplier) {
            *rounded = Saturated::rounded(*rounded, multiplier);
        }
        // SAFETY: `out` is 64 writable bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), self.saturated.codes(rounded)) };
    }
}

/// The weights of the kernel's columns.
fn weights(block: &Block) -> [&Quad; 3] {
    let [left, middle, right] = &block.quads[..] else { unreachable!("a column is a quad") };
    [left, middle, right]
}

/// The sums of three columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sums(columns: [Column; 3], block: &Block) -> Column {
    let mut acc: Column = load(&block.bias);
    for (column, Quad(weights)) in columns.iter().zip(weights(block)) {
        let weights: Column = load(weights);
        for j in 0..4 {
            acc[j] = _mm512_dpbusd_epi32(acc[j], column[j], weights[j]);
        }
    }
    acc
}

/// Adds the products of two columns with the same weights to two sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add(a: &mut Column, first: Column, b: &mut Column, second: Column, Quad(weights): &Quad) {
    let weights: Column = load(weights);
    for j in 0..4 {
        a[j] = _mm512_dpbusd_epi32(a[j], first[j], weights[j]);
        b[j] = _mm512_dpbusd_epi32(b[j], second[j], weights[j]);
    }
}
