//! Depthwise convolution by `vpdpbusd`: the bytes of four taps are interleaved,
//! so that each 32-bit lane sums four taps of one channel.

use std::arch::x86_64::*;
use std::array;
use std::ops::Range;

use super::columns;
use super::saturate::Saturated;
use crate::depthwise::{self, BLOCK, Block, MOST_TAPS, PackedDepthwise, Quad, walk};
use crate::requant::Rounder;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn depthwise(x: &[u8], packed: &PackedDepthwise, rows: Range<usize>, out: &mut [u8]) {
    match packed.window().taps() {
        _ if !packed.is_small() => depthwise::depthwise(x, packed, rows, out),
        _ if columns::applies(packed.window()) => columns::depthwise(x, packed, rows, out),
        9 => sized::<3>(x, packed, rows, out),
        25 => sized::<7>(x, packed, rows, out),
        _ => sized::<{ MOST_TAPS / 4 }>(x, packed, rows, out),
    }
}

/// The convolution of at most `4 Q` taps.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn sized<const Q: usize>(x: &[u8], packed: &PackedDepthwise, rows: Range<usize>, out: &mut [u8]) {
    let channels = packed.window().channels;
    let stride = packed.window().stride[1];
    // Neighbouring pixels of few channels fill a vector together.
    let together = match stride {
        1 => (BLOCK / channels.max(1)).max(1),
        2 if channels.is_multiple_of(4) => (BLOCK / channels.max(1)).max(1),
        _ => 1,
    };
    let every_other = words_of_every_other(channels);
    walk(x, packed, rows, out, |taps, out| {
        let pixels = out.len() / channels;
        let together = together.min(pixels);
        let words = (stride == 2 && together > 1).then_some(every_other);
        let span = ((pixels - 1) * stride + 1) * channels;
        assert!(taps.len() <= 4 * Q && taps.iter().all(|tap| tap.len() >= span), "a tap is too short");
        // Taps that a quad lacks have zero weights.
        let mut quads = [[std::ptr::null(); 4]; Q];
        for (quad, of_quad) in quads.iter_mut().zip(packed.quads()) {
            *quad = array::from_fn(|i| taps[of_quad[i.min(of_quad.len() - 1)]].as_ptr());
        }
        let taps = &quads[..packed.quads().len()];
        for block in packed.blocks() {
            let lanes = (together * channels - block.first).min(BLOCK);
            let mut next = 0;
            while next < pixels {
                // The last step may overlap the one before.
                let first = next.min(pixels - together);
                let at = first * stride * channels + block.first;
                let out = &mut out[first * channels + block.first..][..lanes];
                // SAFETY: every tap has `span` bytes, and the last pixel's channels end there.
                unsafe {
                    match words {
                        None if lanes == BLOCK => step::<true>(taps, at, block, None, packed.rounder(), out),
                        words => {
                            let words = words.map(|w| (w, 2 * lanes - channels));
                            step::<false>(taps, at, block, words, packed.rounder(), out);
                        }
                    }
                };
                next = first + together;
            }
        }
    });
}

/// The bytes of four vectors, those of a lane in its four bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn interleaved(r: [__m512i; 4]) -> [__m512i; 4] {
    let (low, high) = (_mm512_unpacklo_epi8(r[0], r[1]), _mm512_unpackhi_epi8(r[0], r[1]));
    let (low2, high2) = (_mm512_unpacklo_epi8(r[2], r[3]), _mm512_unpackhi_epi8(r[2], r[3]));
    [
        _mm512_unpacklo_epi16(low, low2),
        _mm512_unpackhi_epi16(low, low2),
        _mm512_unpacklo_epi16(high, high2),
        _mm512_unpackhi_epi16(high, high2),
    ]
}

/// The 32-bit words of two vectors that hold every other group of `channels` bytes.
#[target_feature(enable = "avx512f")]
pub(super) fn words_of_every_other(channels: usize) -> __m512i {
    let pixel = channels.max(1);
    let words: [i32; 16] = array::from_fn(|i| (4 * i / pixel * 2 * pixel + 4 * i % pixel) as i32 / 4);
    // SAFETY: `words` is 64 readable bytes.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// The lanes of one block, from what the taps hold at `at`: adjacent bytes, or
/// the given words of so many bytes. `out` has all lanes if `WHOLE`, and no words
/// are given then.
///
/// # Safety
///
/// So many bytes, or as many as `out` has, can be read there of each tap.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn step<const WHOLE: bool>(
    taps: &[[*const u8; 4]],
    at: usize,
    block: &Block,
    words: Option<(__m512i, usize)>,
    rounder: Rounder,
    out: &mut [u8],
) {
    let mask = mask(out.len());
    let mut acc: [__m512i; 4] = load(&block.bias);
    for (Quad(weights), taps) in block.quads.iter().zip(taps) {
        let mut r = [_mm512_setzero_si512(); 4];
        for (r, tap) in r.iter_mut().zip(taps) {
            // SAFETY: as this function's; the mask has as many lanes as `out`.
            *r = unsafe {
                match words {
                    // A mask, even of all lanes, would cost as much as an addition.
                    _ if WHOLE => _mm512_loadu_si512(tap.add(at).cast()),
                    None => _mm512_maskz_loadu_epi8(mask, tap.add(at).cast()),
                    Some((words, len)) => every_other(tap.add(at), len, words),
                }
            };
        }
        let x = interleaved(r);
        let weights: [__m512i; 4] = load(weights);
        for j in 0..4 {
            acc[j] = _mm512_dpbusd_epi32(acc[j], x[j], weights[j]);
        }
    }
    let multiplier = load(&block.multiplier);
    for (acc, multiplier) in acc.iter_mut().zip(multiplier) {
        *acc = Saturated::rounded(*acc, multiplier);
    }
    let y = Saturated::new(rounder).codes(acc);
    match out.first_chunk_mut::<BLOCK>() {
        // SAFETY: `out` is 64 writable bytes.
        Some(out) => unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), y) },
        // SAFETY: the mask has as many lanes as `out` has bytes.
        None => unsafe { _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), mask, y) },
    }
}

/// Every other pixel of `len` bytes from `x`, at most 128.
///
/// # Safety
///
/// They can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn every_other(x: *const u8, len: usize, words: __m512i) -> __m512i {
    let first = len.min(BLOCK);
    // SAFETY: the masks have as many lanes as there are bytes.
    unsafe {
        let low = _mm512_maskz_loadu_epi8(mask(first), x.cast());
        let high = _mm512_maskz_loadu_epi8(mask(len - first), x.add(first).cast());
        _mm512_permutex2var_epi32(low, words, high)
    }
}

#[inline]
pub(super) fn mask(lanes: usize) -> u64 {
    match lanes {
        0 => 0,
        _ => u64::MAX >> (BLOCK - lanes.min(BLOCK)),
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load<T>(from: &[T; BLOCK]) -> [__m512i; 4] {
    const { assert!(size_of::<T>() == 4) };
    let mut vectors = [_mm512_setzero_si512(); 4];
    for (j, v) in vectors.iter_mut().enumerate() {
        // SAFETY: the 64 elements of 4 bytes are four vectors.
        *v = unsafe { _mm512_loadu_si512(from.as_ptr().add(16 * j).cast()) };
    }
    vectors
}

/// The block's layout is the one that interleaving leaves.
const _: () = assert!(size_of::<Quad>() == 4 * BLOCK && align_of::<Block>() == 64);
