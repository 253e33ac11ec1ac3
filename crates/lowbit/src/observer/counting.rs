//! Counting into bins, the inner loop of every histogram.

/// How many of `x` fall into each of `bins` bins by `index`, which must give
/// `0..bins`.
///
/// Indices are computed a chunk at a time, and counted into four histograms in
/// turn: equal neighbours, such as the zeros after a ReLU, then do not wait for
/// each other.
pub(super) fn count(x: &[f32], bins: usize, index: impl Fn(f32) -> i32) -> Vec<u64> {
    const WAYS: usize = 4;
    const CHUNK: usize = 256;
    let mut total = vec![0u64; bins];
    // A 32-bit count holds what one part has.
    for part in x.chunks(1 << 31) {
        let mut counts = vec![[0u32; WAYS]; bins];
        let (chunks, rest) = part.as_chunks::<CHUNK>();
        let mut at = [0i32; CHUNK];
        for chunk in chunks {
            for (at, &x) in at.iter_mut().zip(chunk) {
                *at = index(x);
            }
            for four in at.as_chunks::<WAYS>().0 {
                for (way, &at) in four.iter().enumerate() {
                    counts[at as usize][way] += 1;
                }
            }
        }
        for &x in rest {
            counts[index(x) as usize][0] += 1;
        }
        for (total, counts) in total.iter_mut().zip(&counts) {
            *total += counts.iter().map(|&c| u64::from(c)).sum::<u64>();
        }
    }
    total
}

/// `x` without its fraction, for 0 <= x < 2^22: a conversion that every
/// instruction set does in lanes.
#[inline(always)]
pub(super) fn truncated(x: f32) -> i32 {
    const WHOLE: f32 = (1 << 23) as f32;
    let nearest = x + WHOLE;
    let above = i32::from(nearest - WHOLE > x);
    nearest.to_bits().cast_signed() - WHOLE.to_bits().cast_signed() - above
}
