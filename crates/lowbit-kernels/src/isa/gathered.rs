//! The activations of a tile, copied next to each other, and how large they are.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::pack::limits::RUN;
use crate::pack::{KR, last_group};

/// Groups of each row that are kept at once.
pub(super) const GROUPS: usize = 128;
const _: () = assert!(GROUPS.is_multiple_of(RUN) && RUN * KR == size_of::<__m128i>());

/// Activations of `R` rows.
///
/// Invariant: `len <= GROUPS`, and the first `len` groups of each row are initialized.
pub(super) struct Gathered<const R: usize> {
    rows: [[MaybeUninit<[u8; KR]>; GROUPS]; R],
    len: usize,
}

impl<const R: usize> Gathered<R> {
    #[inline(always)]
    pub(super) fn new() -> Gathered<R> {
        Gathered { rows: [[MaybeUninit::uninit(); GROUPS]; R], len: 0 }
    }

    /// The number of groups of each row.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Group `g` of row `r`.
    ///
    /// # Safety
    ///
    /// `g < self.len()`.
    #[inline(always)]
    pub(super) unsafe fn word(&self, r: usize, g: usize) -> i32 {
        // SAFETY: by the invariant, the group's 4 bytes are initialized.
        unsafe { self.rows[r].as_ptr().add(g).cast::<i32>().read_unaligned() }
    }

    /// Appends one tap of each row, as much as there is room for, its last
    /// group filled up with zeros. Returns the rest.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn extend<'a>(&mut self, a: [&'a [u8]; R]) -> [&'a [u8]; R] {
        let len = a[0].len().min(KR * (GROUPS - self.len));
        let mut later = a;
        for (row, a) in self.rows.iter_mut().zip(&mut later) {
            let (now, rest) = a.split_at(len);
            *a = rest;
            let to = &mut row[self.len..];
            match len {
                0 => {}
                1..KR => _ = to[0].write(last_group(now)),
                _ => copy(now, to),
            }
        }
        self.len += len.div_ceil(KR);
        later
    }

    /// The largest activation of each run of groups, over all rows.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn maxima(&mut self) -> [u8; GROUPS / RUN] {
        while !self.len.is_multiple_of(RUN) {
            for row in &mut self.rows {
                row[self.len].write([0; KR]);
            }
            self.len += 1;
        }
        let mut maxima = [0; GROUPS / RUN];
        for (i, maximum) in maxima[..self.len / RUN].iter_mut().enumerate() {
            let mut max = _mm_setzero_si128();
            for row in &self.rows {
                // SAFETY: `(i + 1) * RUN <= self.len`, so that the run's 16 bytes are initialized.
                max = _mm_max_epu8(max, unsafe { _mm_loadu_si128(row.as_ptr().add(i * RUN).cast()) });
            }
            // `vphminposuw` finds the smallest of 8 u16: of the complements of pairs.
            let max = _mm_max_epu8(max, _mm_srli_epi16::<8>(max));
            let low = _mm_andnot_si128(max, _mm_set1_epi16(0xff));
            *maximum = !_mm_extract_epi8::<0>(_mm_minpos_epu16(low)) as u8;
        }
        maxima
    }
}

/// Copies the bytes of one row to the groups of `to`.
#[inline]
#[target_feature(enable = "avx2")]
fn copy(bytes: &[u8], to: &mut [MaybeUninit<[u8; KR]>]) {
    let (blocks, rest) = bytes.as_chunks::<16>();
    let (to_blocks, to_rest) = to.split_at_mut(blocks.len() * 16 / KR);
    for (bytes, to) in blocks.iter().zip(to_blocks.as_chunks_mut::<{ 16 / KR }>().0) {
        // SAFETY: `bytes` is 16 readable bytes and `to` 16 writable ones.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_loadu_si128(bytes.as_ptr().cast())) };
    }
    let (groups, last) = rest.as_chunks::<KR>();
    for (group, to) in groups.iter().zip(&mut *to_rest) {
        to.write(*group);
    }
    if !last.is_empty() {
        to_rest[groups.len()].write(last_group(last));
    }
}
