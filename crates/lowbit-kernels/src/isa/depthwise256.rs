//! Depthwise convolution by `vpmaddwd`: the bytes of two taps are interleaved and
//! widened, so that each 32-bit lane sums two taps of one channel.

use std::arch::x86_64::*;
use std::array;
use std::ops::Range;

use super::finish256::Bounds;
use crate::depthwise::{self, BLOCK, Block, MOST_TAPS, PackedDepthwise, walk};
use crate::requant::Rounder;

/// Channels that are computed together.
const HALF: usize = BLOCK / 2;

#[target_feature(enable = "avx2")]
pub(super) fn depthwise(x: &[u8], packed: &PackedDepthwise, rows: Range<usize>, out: &mut [u8]) {
    match (packed.window().channels % 8, packed.window().taps()) {
        (1.., _) => depthwise::depthwise(x, packed, rows, out),
        (0, 9) => sized::<5>(x, packed, rows, out),
        (0, 25) => sized::<13>(x, packed, rows, out),
        (0, _) => sized::<{ MOST_TAPS / 2 }>(x, packed, rows, out),
    }
}

/// The convolution of at most `2 P` taps, of a multiple of 8 channels.
#[target_feature(enable = "avx2")]
fn sized<const P: usize>(x: &[u8], packed: &PackedDepthwise, rows: Range<usize>, out: &mut [u8]) {
    let channels = packed.window().channels;
    let stride = packed.window().stride[1];
    // Neighbouring pixels of few channels fill a block together.
    let together = if stride == 1 { (BLOCK / channels.max(1)).max(1) } else { 1 };
    walk(x, packed, rows, out, |taps, out| {
        let pixels = out.len() / channels;
        let together = together.min(pixels);
        let span = ((pixels - 1) * stride + 1) * channels;
        assert!(taps.len() <= 2 * P && taps.iter().all(|tap| tap.len() >= span), "a tap is too short");
        // Taps beyond the last have zero weights.
        let taps: [[*const u8; 2]; P] =
            array::from_fn(|p| array::from_fn(|i| taps[(2 * p + i).min(taps.len() - 1)].as_ptr()));
        let taps = &taps[..packed.window().taps().div_ceil(2)];
        for block in packed.blocks() {
            let lanes = (together * channels - block.first).min(BLOCK);
            for half in 0..lanes.div_ceil(HALF) {
                let (lane, lanes) = (block.first + half * HALF, (lanes - half * HALF).min(HALF));
                let mut next = 0;
                while next < pixels {
                    // The last step may overlap the one before.
                    let first = next.min(pixels - together);
                    let at = first * stride * channels + lane;
                    let out = &mut out[first * channels + lane..][..lanes];
                    // SAFETY: every tap has `span` bytes, and the last pixel's channels end there.
                    unsafe { step(taps, at, block, half, packed.rounder(), out) };
                    next = first + together;
                }
            }
        }
    });
}

/// The lanes of half a block, from what the taps hold at `at`.
///
/// # Safety
///
/// As many bytes as `out` has, a multiple of 8 up to 32, can be read there of each tap.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn step(
    taps: &[[*const u8; 2]],
    at: usize,
    block: &Block,
    half: usize,
    rounder: Rounder,
    out: &mut [u8],
) {
    let lanes = out.len();
    let mut acc = load(&block.bias, half);
    for (weights, [first, second]) in block.pairs.iter().zip(taps) {
        // SAFETY: as this function's.
        let (first, second) = unsafe { (read(first.add(at), lanes), read(second.add(at), lanes)) };
        let (low, high) = (_mm256_unpacklo_epi8(first, second), _mm256_unpackhi_epi8(first, second));
        let zero = _mm256_setzero_si256();
        let x = [
            _mm256_unpacklo_epi8(low, zero),
            _mm256_unpackhi_epi8(low, zero),
            _mm256_unpacklo_epi8(high, zero),
            _mm256_unpackhi_epi8(high, zero),
        ];
        let weights = load(&weights.0, half);
        for j in 0..4 {
            acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(x[j], weights[j]));
        }
    }
    let bounds = Bounds::new(rounder);
    let multiplier = load(&block.multiplier, half);
    for (acc, multiplier) in acc.iter_mut().zip(multiplier) {
        let product = _mm256_mul_ps(_mm256_cvtepi32_ps(*acc), _mm256_castsi256_ps(multiplier));
        // The low byte of each lane is the rounded value.
        let shifted = _mm256_castps_si256(bounds.shifted(product));
        *acc = _mm256_and_si256(shifted, _mm256_set1_epi32(0xff));
    }
    let y = _mm256_packus_epi16(_mm256_packs_epi32(acc[0], acc[1]), _mm256_packs_epi32(acc[2], acc[3]));
    let y = _mm256_add_epi8(y, _mm256_set1_epi8(rounder.zero().cast_signed()));
    match out.first_chunk_mut::<HALF>() {
        // SAFETY: `out` is 32 writable bytes.
        Some(out) => unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), y) },
        None => {
            let mut bytes = [0; HALF];
            // SAFETY: `bytes` is 32 writable bytes.
            unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), y) };
            let (to, from) = (out.as_chunks_mut::<8>().0, bytes.as_chunks::<8>().0);
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
    }
}

/// `len` bytes, a multiple of 8 up to 32, filled up with any.
///
/// # Safety
///
/// They can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn read(x: *const u8, len: usize) -> __m256i {
    // SAFETY: as this function's.
    unsafe {
        match len {
            HALF => _mm256_loadu_si256(x.cast()),
            24 => _mm256_set_m128i(_mm_loadl_epi64(x.add(16).cast()), _mm_loadu_si128(x.cast())),
            16 => _mm256_castsi128_si256(_mm_loadu_si128(x.cast())),
            _ => _mm256_castsi128_si256(_mm_loadl_epi64(x.cast())),
        }
    }
}

/// The four vectors of half a block's parameters.
#[inline]
#[target_feature(enable = "avx2")]
fn load<T>(from: &[T; BLOCK], half: usize) -> [__m256i; 4] {
    const { assert!(size_of::<T>() == 4) };
    assert!(half < 2);
    let mut vectors = [_mm256_setzero_si256(); 4];
    for (j, v) in vectors.iter_mut().enumerate() {
        // SAFETY: the 8 elements of 4 bytes are among the 64.
        *v = unsafe { _mm256_loadu_si256(from.as_ptr().add(16 * j + 8 * half).cast()) };
    }
    vectors
}
