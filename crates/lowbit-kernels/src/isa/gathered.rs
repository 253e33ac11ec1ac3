//! The activations of a tile, copied next to each other, and how large they are.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ptr;

use crate::pack::KR;
use crate::pack::limits::RUN;

/// Groups of each row that are kept at once.
pub(super) const GROUPS: usize = 128;
/// Bytes of a run of groups: a vector.
const STEP: usize = RUN * KR;
const _: () = assert!(GROUPS.is_multiple_of(RUN) && STEP == size_of::<__m128i>());

/// Activations of `R` rows.
///
/// Invariant: `len <= GROUPS`; the first `len` groups of each row are initialized,
/// and so are the first `len.div_ceil(RUN)` of `maxima`.
pub(super) struct Gathered<const R: usize> {
    /// With room for a vector from any group on.
    rows: [[MaybeUninit<[u8; KR]>; GROUPS + RUN]; R],
    /// For each run, a vector whose largest byte is no smaller than any of the run.
    maxima: [MaybeUninit<__m128i>; GROUPS / RUN + 1],
    len: usize,
}

impl<const R: usize> Gathered<R> {
    #[inline(always)]
    pub(super) fn new() -> Gathered<R> {
        Gathered {
            rows: [[MaybeUninit::uninit(); GROUPS + RUN]; R],
            maxima: [MaybeUninit::uninit(); GROUPS / RUN + 1],
            len: 0,
        }
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

    /// The bytes of each row for which there is room.
    #[inline(always)]
    pub(super) fn room(&self) -> usize {
        KR * (GROUPS - self.len)
    }

    /// Appends `len` bytes from `offset` of each row, the last group filled up with zeros.
    ///
    /// # Safety
    ///
    /// They can be read, and `len <= self.room()`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn extend(&mut self, rows: &[*const u8; R], offset: usize, len: usize) {
        for at in (0..len).step_by(STEP) {
            let mut max = _mm_setzero_si128();
            for (to, row) in self.rows.iter_mut().zip(rows) {
                // SAFETY: the bytes from `at` to `len` can be read. A vector can be written
                // from `self.len <= GROUPS` on.
                unsafe {
                    let v = match at + STEP <= len {
                        true => _mm_loadu_si128(row.add(offset + at).cast()),
                        false => last(row.add(offset + at), len - at),
                    };
                    _mm_storeu_si128(to.as_mut_ptr().add(self.len).cast(), v);
                    max = _mm_max_epu8(max, v);
                }
            }
            self.note(max);
            self.len += (len - at).div_ceil(KR).min(RUN);
        }
    }

    /// Counts `max` among the runs that a vector from group `len` on is part of.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn note(&mut self, max: __m128i) {
        let run = self.len / RUN;
        if self.len.is_multiple_of(RUN) {
            self.maxima[run].write(max);
        } else {
            // SAFETY: by the invariant, since the run has a group before `len`.
            let before = unsafe { self.maxima[run].assume_init() };
            self.maxima[run].write(_mm_max_epu8(before, max));
            self.maxima[run + 1].write(max);
        }
    }

    /// For each run of groups, what no activation of any row exceeds.
    ///
    /// Written in place: to copy bytes that were written one by one stalls the CPU.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn maxima(&self, maxima: &mut [u8; GROUPS / RUN]) {
        for (maximum, max) in maxima.iter_mut().zip(&self.maxima[..self.len.div_ceil(RUN)]) {
            // SAFETY: by the invariant, these are initialized.
            let max = unsafe { max.assume_init() };
            // `vphminposuw` finds the smallest of 8 u16: of the complements of pairs.
            let max = _mm_max_epu8(max, _mm_srli_epi16::<8>(max));
            let low = _mm_andnot_si128(max, _mm_set1_epi16(0xff));
            *maximum = !_mm_extract_epi8::<0>(_mm_minpos_epu16(low)) as u8;
        }
    }
}

/// Fewer than 16 bytes, filled up with zeros.
///
/// # Safety
///
/// They can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn last(bytes: *const u8, len: usize) -> __m128i {
    if len.is_multiple_of(KR) {
        let groups = _mm_set1_epi32((len / KR) as i32);
        let mask = _mm_cmpgt_epi32(groups, _mm_setr_epi32(0, 1, 2, 3));
        // SAFETY: only the groups in the mask are read.
        return unsafe { _mm_maskload_epi32(bytes.cast(), mask) };
    }
    let mut filled = [0; STEP];
    assert!(len <= STEP);
    // SAFETY: as this function's; `filled` is longer.
    unsafe {
        ptr::copy_nonoverlapping(bytes, filled.as_mut_ptr(), len);
        _mm_loadu_si128(filled.as_ptr().cast())
    }
}
