//! Products with weights in codes, in vectors of AVX-512: a line of codes is a
//! vector, whose fields are shifted down and looked up in a vector of 16 values.

use std::arch::x86_64::*;
use std::array;
use std::ops::Range;

use crate::low_bit::{CodeValues, LANES, Line, LowBitWeights, STRIPS, Strips};

/// Lines from those at work to those that are fetched meanwhile: 8 KiB. What a
/// line holds takes too long for more than a few to be in flight by themselves.
const AHEAD: usize = 128;

/// Likewise of scales, in blocks.
const BLOCKS_AHEAD: usize = 2;

/// How the vectors of weights come from a line of codes.
const TWO: usize = 2;
const FOUR: usize = 4;
const EIGHT: usize = 8;
/// Codes of 8 bits that index a table.
const INDEX: usize = 9;

const fn bits(kind: usize) -> usize {
    if kind == INDEX { 8 } else { kind }
}

/// Codes of a word.
const fn per_word(kind: usize) -> usize {
    32 / bits(kind)
}

/// The place of code `i` in a word.
const fn shift(kind: usize, i: usize) -> u32 {
    (8 * (i % 4) + bits(kind) * (i / 4)) as u32
}

fn kind(weights: &LowBitWeights) -> usize {
    match (weights.shape().bits, weights.values()) {
        (8, CodeValues::Table(_)) => INDEX,
        (bits, _) => bits,
    }
}

/// What the codes stand for: 16 values for codes of up to 4 bits, or the table of
/// 256 for those of 8 bits that index one.
#[derive(Clone, Copy)]
struct Values<'a> {
    sixteen: __m512,
    table: &'a [f32],
}

impl<'a> Values<'a> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn of(weights: &'a LowBitWeights) -> Values<'a> {
        // SAFETY: 16 readable values.
        let sixteen = unsafe { _mm512_loadu_ps(weights.sixteen().as_ptr()) };
        let table = match weights.values() {
            CodeValues::Table(table) => table.as_slice(),
            CodeValues::Integers => &[],
        };
        assert!(table.len() >= 256 || kind(weights) != INDEX, "a table of {} values", table.len());
        Values { sixteen, table }
    }

    /// The values of the codes that lie at `shift` in each word.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn at<const KIND: usize>(&self, words: __m512i, shift: u32) -> __m512 {
        let by = |count: u32| _mm512_set1_epi32(count.cast_signed());
        match KIND {
            // Four bits of the index count.
            TWO | FOUR => _mm512_permutexvar_ps(_mm512_srlv_epi32(words, by(shift)), self.sixteen),
            EIGHT => _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_sllv_epi32(words, by(24 - shift)))),
            _ => {
                let index = _mm512_and_si512(_mm512_srlv_epi32(words, by(shift)), by(255));
                // SAFETY: the table has 256 values.
                unsafe { _mm512_i32gather_ps::<4>(index, self.table.as_ptr()) }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 readable bytes.
    unsafe { _mm512_loadu_si512(line.0.as_ptr().cast()) }
}

/// Begins to read what lies at an address, if anything does.
#[inline(always)]
fn fetch<T>(at: *const T) {
    // SAFETY: a prefetch accesses nothing, and faults nowhere.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

/// Scales and zero points of a block of `S` strips.
#[inline]
#[target_feature(enable = "avx512f")]
fn of_block<const S: usize>(strips: &Strips<'_>, b: usize) -> [[__m512; S]; 2] {
    let at = b * strips.pitch;
    let scales = &strips.scales[at..][..S];
    // SAFETY: the scales of a strip are 64 readable bytes.
    let scales = array::from_fn(|s| unsafe { _mm512_loadu_ps(scales[s].0.as_ptr()) });
    if strips.zeros.is_empty() {
        return [scales, [_mm512_setzero_ps(); S]];
    }
    let zeros = &strips.zeros[at..][..S];
    let zero = |s: usize| {
        // SAFETY: the zero points of a strip are 16 readable bytes.
        let codes = unsafe { _mm_loadu_si128(zeros[s].0.as_ptr().cast()) };
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
    };
    [scales, array::from_fn(zero)]
}

/// [`Kernels::low_bit_row`](crate::Kernels::low_bit_row).
#[target_feature(enable = "avx512f,fma")]
pub(super) fn row(weights: &LowBitWeights, groups: Range<usize>, x: &[f32], y: &mut [f32]) {
    let columns = weights.columns_of(groups);
    assert_eq!((x.len(), y.len()), (weights.shape().depth, columns.len()), "lengths of input and output");
    let mut first = 0;
    while first < y.len() {
        let left = (y.len() - first).div_ceil(LANES);
        // Of few strips there are too few sums to hide the latency of an addition.
        let count = if left >= STRIPS {
            STRIPS
        } else if left >= 4 {
            4
        } else {
            1
        };
        let end = y.len().min(first + count * LANES);
        let to = &mut y[first..end];
        let strips = weights.strips((columns.start + first) / LANES);
        macro_rules! by_kind {
            ($($kind:ident)*) => {
                match (kind(weights), count) {
                    $(($kind, STRIPS) => by_zeros::<STRIPS, $kind>(weights, &strips, x, to),
                    ($kind, 4) => by_zeros::<4, $kind>(weights, &strips, x, to),
                    ($kind, _) => by_zeros::<1, $kind>(weights, &strips, x, to),)*
                    (kind, _) => unreachable!("codes of kind {kind}"),
                }
            };
        }
        by_kind!(TWO FOUR EIGHT INDEX);
        first += count * LANES;
    }
}

#[target_feature(enable = "avx512f,fma")]
fn by_zeros<const S: usize, const KIND: usize>(
    weights: &LowBitWeights,
    strips: &Strips<'_>,
    x: &[f32],
    y: &mut [f32],
) {
    match strips.zeros.is_empty() {
        true => chains::<S, KIND, false>(weights, strips, x, y),
        false => chains::<S, KIND, true>(weights, strips, x, y),
    }
}

/// The chains of `S` strips.
#[target_feature(enable = "avx512f,fma")]
fn chains<const S: usize, const KIND: usize, const ZEROS: bool>(
    weights: &LowBitWeights,
    strips: &Strips<'_>,
    x: &[f32],
    y: &mut [f32],
) {
    let values = Values::of(weights);
    let count = y.len();
    let mask = |s: usize| u16::MAX >> LANES.saturating_sub(count - s * LANES);
    // SAFETY: what the mask admits lies in `y`.
    let mut sums: [__m512; S] =
        array::from_fn(|s| unsafe { _mm512_maskz_loadu_ps(mask(s), y[s * LANES..].as_ptr()) });
    let mut lines = strips.lines.chunks(strips.pitch);
    for (b, x) in x.chunks(weights.shape().block).enumerate() {
        let [scales, zeros] = of_block::<S>(strips, b);
        for s in 0..S {
            fetch(strips.scales.as_ptr().wrapping_add((b + BLOCKS_AHEAD) * strips.pitch + s));
        }
        if ZEROS {
            for s in (0..S).step_by(4) {
                fetch(strips.zeros.as_ptr().wrapping_add((b + BLOCKS_AHEAD) * strips.pitch + s));
            }
        }
        let (whole, rest) = x.split_at(x.len() - x.len() % per_word(KIND));
        macro_rules! step {
            ($words:ident, $x:expr, $shift:expr) => {
                let x = _mm512_set1_ps($x);
                for s in 0..S {
                    let mut weight = values.at::<KIND>($words[s], $shift);
                    if ZEROS {
                        weight = _mm512_sub_ps(weight, zeros[s]);
                    }
                    sums[s] = _mm512_fmadd_ps(x, _mm512_mul_ps(weight, scales[s]), sums[s]);
                }
            };
        }
        macro_rules! steps {
            ($words:ident, $x:ident, $($i:literal)*) => {
                $(if $i < const { per_word(KIND) } {
                    step!($words, $x[$i], const { shift(KIND, $i) });
                })*
            };
        }
        for (x, lines) in whole.chunks_exact(per_word(KIND)).zip(&mut lines) {
            let words: [__m512i; S] = array::from_fn(|s| load(&lines[s]));
            for s in 0..S {
                fetch(lines.as_ptr().wrapping_add(s + AHEAD));
            }
            steps!(words, x, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        }
        if !rest.is_empty()
            && let Some(lines) = lines.next()
        {
            let words: [__m512i; S] = array::from_fn(|s| load(&lines[s]));
            for (i, &x) in rest.iter().enumerate() {
                step!(words, x, shift(KIND, i));
            }
        }
    }
    for (s, sum) in sums.into_iter().enumerate() {
        // SAFETY: what the mask admits lies in `y`.
        unsafe { _mm512_mask_storeu_ps(y[s * LANES..].as_mut_ptr(), mask(s), sum) };
    }
}

/// [`Kernels::low_bit_unpack`](crate::Kernels::low_bit_unpack).
#[target_feature(enable = "avx512f,fma")]
pub(super) fn unpack(
    weights: &LowBitWeights,
    strip: usize,
    rows: Range<usize>,
    width: usize,
    out: &mut [f32],
) {
    let count = weights.check_unpacked(strip, &rows, width, out);
    for s in 0..count {
        let strips = weights.strips(strip + s);
        macro_rules! by_kind {
            ($($kind:ident)*) => {
                match kind(weights) {
                    $($kind => unpack_strip::<$kind>(weights, &strips, rows.clone(), width, &mut out[s * LANES..]),)*
                    kind => unreachable!("codes of kind {kind}"),
                }
            };
        }
        by_kind!(TWO FOUR EIGHT INDEX);
    }
}

#[target_feature(enable = "avx512f,fma")]
fn unpack_strip<const KIND: usize>(
    weights: &LowBitWeights,
    strips: &Strips<'_>,
    rows: Range<usize>,
    width: usize,
    out: &mut [f32],
) {
    let (values, block) = (Values::of(weights), weights.shape().block);
    let mut k = rows.start;
    while k < rows.end {
        let end = rows.end.min((k / block + 1) * block);
        let [[scale], [zero]] = of_block::<1>(strips, k / block);
        for word in k / per_word(KIND)..end.div_ceil(per_word(KIND)) {
            let words = load(&strips.lines[word * strips.pitch]);
            let at = word * per_word(KIND);
            let out = &mut out[(at - rows.start) * width..];
            let codes = (end - at).min(per_word(KIND));
            assert!(out.len() >= (codes - 1) * width + LANES);
            let mut store = |i: usize| {
                let weight = _mm512_sub_ps(values.at::<KIND>(words, shift(KIND, i)), zero);
                // SAFETY: `i` is below `codes`, so there are 16 elements from `i * width` on.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(i * width), _mm512_mul_ps(weight, scale)) };
            };
            // A constant number of codes has constant shifts.
            match codes == per_word(KIND) {
                true => (0..const { per_word(KIND) }).for_each(&mut store),
                false => (0..codes).for_each(&mut store),
            }
        }
        k = end;
    }
}
