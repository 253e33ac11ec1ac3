//! The search of torch's `HistogramObserver` (`_non_linear_param_search`),
//! after caffe2's `NormMinimization`.

use crate::qparams::Range;

/// The mass by which a tail is cut in one step.
const STEP: f64 = 1e-5;

/// Bounds of the bins that are kept.
#[derive(Clone, Copy, PartialEq)]
struct Kept {
    first: usize,
    last: usize,
}

/// The part of `range` that the search keeps for codes of `bits` bits: the
/// tail whose mass quantile lies farther inside is dropped, until the
/// estimated squared error rises.
///
/// torch counts over all bins from the start at each step; a quantile only
/// moves inwards, so that here the two pointers run over the bins once.
pub(super) fn least_error(counts: &[f32], range: Range, bits: usize) -> Range {
    let n = counts.len();
    let bin_width = (range.hi - range.lo) / n as f32;
    if range.lo == range.hi || !bin_width.is_finite() {
        return range;
    }
    let mut below = 0.0;
    let cumulated: Vec<f32> = counts
        .iter()
        .map(|&c| {
            below += f64::from(c);
            below as f32
        })
        .collect();
    let total = f64::from(below as f32);
    let error = Error::new(counts, range, bits);

    let (mut alpha, mut beta) = (0.0f64, 1.0f64);
    let mut kept = Kept { first: 0, last: n - 1 };
    let (mut left, mut right) = (0, n - 1);
    let mut least = f32::INFINITY;
    while alpha < beta {
        let (next_alpha, next_beta) = (alpha + STEP, beta - STEP);
        let (low, high) = ((next_alpha * total) as f32, (next_beta * total) as f32);
        while left < n - 1 && cumulated[left] < low {
            left += 1;
        }
        while right > 0 && cumulated[right] > high {
            right -= 1;
        }
        let (l, r) = (left.clamp(kept.first, kept.last), right.clamp(kept.first, kept.last));
        let mut next = kept;
        if l - kept.first > kept.last - r {
            (next.first, alpha) = (l, next_alpha);
        } else {
            (next.last, beta) = (r, next_beta);
        }
        if next == kept {
            continue;
        }
        let e = error.of(next);
        if e > least || !e.is_finite() {
            break;
        }
        (least, kept) = (e, next);
    }
    Range { lo: range.lo + bin_width * kept.first as f32, hi: range.lo + bin_width * (kept.last + 1) as f32 }
}

/// The estimated squared error of a choice of bins: values lie evenly within
/// their bin, and codes at the middles of equal parts of the bins kept.
struct Error<'a> {
    counts: &'a [f32],
    bin_width: f64,
    codes: f64,
}

impl<'a> Error<'a> {
    fn new(counts: &'a [f32], range: Range, bits: usize) -> Error<'a> {
        let bin_width = (f64::from(range.hi) - f64::from(range.lo)) / counts.len() as f64;
        Error { counts, bin_width, codes: (bits as f64).exp2() }
    }

    fn of(&self, kept: Kept) -> f32 {
        let step = self.bin_width * (kept.last - kept.first + 1) as f64 / self.codes;
        if step == 0.0 {
            return 0.0;
        }
        if self.codes <= 65536.0 {
            self.sum(kept, step, |a, b| a / b)
        } else {
            // So many codes leave only rounding in the estimate: round as torch does.
            self.sum(kept, step, |a, b| ((a - a % b) / b).round())
        }
    }

    fn sum(&self, kept: Kept, step: f64, quotient: impl Fn(f32, f32) -> f32) -> f32 {
        let (width, half) = (self.bin_width as f32, (step / 2.0) as f32);
        let (step, top) = (step as f32, (self.codes - 1.0) as f32);
        let cubes = |begin: f32, end: f32| (end * end * end - begin * begin * begin) / 3.0;
        let code = |x: f32| {
            let q = floor(quotient(x, step));
            let q = if q > 0.0 { q } else { 0.0 };
            if q < top { q } else { top }
        };
        let term = |i: usize, count: f32| {
            let begin = (i as i32 - kept.first as i32) as f32 * width;
            let end = begin + width;
            let (from, to) = (code(begin), code(end));
            let density = count / width;
            let head = density * cubes(begin - (from + 0.5) * step, half);
            let whole = (to - from - 1.0) * (density * cubes(-half, half));
            let tail = density * cubes(-half, end - (to * step + half));
            head + whole + tail
        };
        const LANES: usize = 16;
        let (chunks, rest) = self.counts.as_chunks::<LANES>();
        let mut sums = [0f32; LANES];
        for (c, chunk) in chunks.iter().enumerate() {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum += term(c * LANES + lane, chunk[lane]);
            }
        }
        let done = chunks.len() * LANES;
        rest.iter().enumerate().map(|(i, &c)| term(done + i, c)).sum::<f32>() + sums.iter().sum::<f32>()
    }
}

/// `x.floor()` in arithmetic that every instruction set has.
#[inline(always)]
fn floor(x: f32) -> f32 {
    const WHOLE: f32 = (1 << 23) as f32;
    let rounded = (x + WHOLE) - WHOLE;
    let down = if rounded > x { rounded - 1.0 } else { rounded };
    if (0.0..WHOLE).contains(&x) { down } else { x }
}
