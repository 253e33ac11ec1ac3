//! Tables of 256 bytes in four vectors of AVX-512.

use std::arch::x86_64::*;

/// [`Kernels::map`](crate::Kernels::map): `vpermi2w` finds the word that holds a
/// byte of either half of the table; a shift brings the byte down.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn map(x: &[u8], table: &[u8; 256], out: &mut [u8]) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    let quarters = table.as_chunks::<64>().0;
    let load = |i: usize| {
        // SAFETY: a quarter is 64 readable bytes.
        unsafe { _mm512_loadu_si512(quarters[i].as_ptr().cast()) }
    };
    let (first, second, third, fourth) = (load(0), load(1), load(2), load(3));
    let (chunks, rest) = x.as_chunks::<32>();
    let (out_chunks, out_rest) = out.as_chunks_mut::<32>();
    for (x, out) in chunks.iter().zip(out_chunks) {
        // SAFETY: `x` is 32 readable bytes.
        let code = _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) });
        // Of the index, six bits count.
        let word = _mm512_srli_epi16::<1>(code);
        let low = _mm512_permutex2var_epi16(first, word, second);
        let high = _mm512_permutex2var_epi16(third, word, fourth);
        let upper = _mm512_test_epi16_mask(code, _mm512_set1_epi16(0x80));
        let shift = _mm512_slli_epi16::<3>(_mm512_and_si512(code, _mm512_set1_epi16(1)));
        let byte = _mm512_srlv_epi16(_mm512_mask_blend_epi16(upper, low, high), shift);
        // SAFETY: `out` is 32 writable bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(byte)) };
    }
    for (&x, out) in rest.iter().zip(out_rest) {
        *out = table[usize::from(x)];
    }
}
