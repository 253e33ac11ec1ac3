//! torch's histogram and its search for the range of least squared error.

mod search;

use serde::{Deserialize, Serialize};

use super::config::MAX_BINS;
use super::counting::{count, truncated};
use super::{Batch, Observer};
use crate::error::{Result, invalid};
use crate::qparams::Range;
use crate::scheme::Scheme;

/// Each old bin is cut into this many parts when the range grows.
const UPSAMPLE: usize = 16;

/// `torch.ao.quantization.HistogramObserver` of torch 2.8: a histogram of
/// fixed size over the range seen so far, redistributed when the range grows,
/// and a search that drops tails while the estimated squared error falls.
/// Infinities are left out.
///
/// Arithmetic is torch's, in f32 where torch uses f32. Two things differ:
/// counts above 2^24 in one bin and batch keep counting, where torch's stop;
/// and a search whose error estimate overflows keeps the range, where torch's
/// shrinks to nothing.
///
/// Float formats, whose codes are not evenly spaced, get the range seen.
///
/// Merging takes the other histogram, redistributed over the common range, for
/// one batch: the total is exact (but where one side saw a single value, as in
/// torch), and each count moves by at most one bin of the common range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Histogram {
    bins: usize,
    range: Option<Range>,
    counts: Vec<f32>,
}

#[derive(Deserialize)]
struct Unchecked {
    bins: usize,
    range: Option<Range>,
    counts: Vec<f32>,
}

impl TryFrom<Unchecked> for Histogram {
    type Error = String;
    fn try_from(Unchecked { bins, range, counts }: Unchecked) -> Result<Histogram, String> {
        let n = if range.is_some() { bins } else { 0 };
        if !(2..=MAX_BINS).contains(&bins)
            || counts.len() != n
            || counts.iter().any(|c| !(c.is_finite() && *c >= 0.0))
        {
            return Err(format!("a histogram of {bins} bins does not have these {} counts", counts.len()));
        }
        Ok(Histogram { bins, range, counts })
    }
}

impl Histogram {
    /// Nothing seen yet.
    pub fn new(bins: usize) -> Histogram {
        Histogram { bins, range: None, counts: vec![] }
    }

    /// The range seen.
    pub fn range(&self) -> Option<Range> {
        self.range
    }

    /// The count of each bin.
    pub fn counts(&self) -> &[f32] {
        &self.counts
    }

    /// Adds `update`, counted over `range`, which holds all seen so far.
    fn absorb(&mut self, range: Range, update: Vec<f32>) {
        let old = std::mem::take(&mut self.counts);
        let moved = match self.range {
            None => None,
            Some(seen) if seen == range => Some(old),
            // torch gives all that it saw the weight of the new batch.
            Some(seen) if seen.lo == seen.hi => {
                let weight = update.iter().map(|&c| f64::from(c)).sum::<f64>() as f32;
                let one = histc(&[seen.lo], self.bins, range);
                Some(one.into_iter().map(|c| c * weight).collect())
            }
            Some(seen) => Some(redistributed(&old, seen, range)),
        };
        self.range = Some(range);
        self.counts = match moved {
            None => update,
            Some(moved) => update.into_iter().zip(moved).map(|(a, b)| a + b).collect(),
        };
    }
}

impl Observer for Histogram {
    fn skips_infinities(&self) -> bool {
        true
    }

    fn observe(&mut self, batch: &Batch<'_>) -> Result<()> {
        let range = self.range.into_iter().fold(batch.ranges()[0], Range::union);
        self.absorb(range, histc(batch.values(), self.bins, range));
        Ok(())
    }

    fn ranges(&self, scheme: &Scheme) -> Result<Vec<Range>> {
        let range = self.range.ok_or_else(|| invalid!("saw no data"))?;
        if scheme.format.is_float() {
            return Ok(vec![range]);
        }
        Ok(vec![search::least_error(&self.counts, range, scheme.format.dtype().bits())])
    }

    fn merge(&mut self, other: &Histogram) -> Result<()> {
        if self.bins != other.bins {
            return Err(invalid!("histograms of {} and {} bins cannot be merged", self.bins, other.bins));
        }
        let Some(theirs) = other.range else { return Ok(()) };
        let Some(ours) = self.range else {
            *self = other.clone();
            return Ok(());
        };
        let range = ours.union(theirs);
        let update = match theirs {
            _ if theirs == range => other.counts.clone(),
            Range { lo, hi } if lo == hi => {
                let weight = other.counts.iter().map(|&c| f64::from(c)).sum::<f64>() as f32;
                histc(&[lo], self.bins, range).into_iter().map(|c| c * weight).collect()
            }
            _ => redistributed(&other.counts, theirs, range),
        };
        self.absorb(range, update);
        Ok(())
    }
}

/// `torch.histc(x, bins, lo, hi)`: bin `(x - lo) * bins / (hi - lo)`, the last
/// one closed. A range of one value counts over one more on each side.
fn histc(x: &[f32], bins: usize, Range { lo, hi }: Range) -> Vec<f32> {
    let (lo, hi) = if lo == hi { (lo - 1.0, hi + 1.0) } else { (lo, hi) };
    let (n, width, last) = (bins as f32, hi - lo, bins as i32 - 1);
    let index = |x: f32| {
        let at = (x - lo) * n / width;
        // Saturating: only a width beyond f32 leaves the bins.
        let at = if at > 0.0 { at } else { 0.0 };
        let at = if at < last as f32 { at } else { last as f32 };
        truncated(at)
    };
    count(x, bins, index).into_iter().map(|c| c as f32).collect()
}

/// `torch.linspace(lo, hi, n)`.
fn linspace(lo: f32, hi: f32, n: usize) -> impl Iterator<Item = f32> {
    let step = (hi - lo) / (n - 1) as f32;
    (0..n).map(move |i| if i < n / 2 { lo + step * i as f32 } else { hi - step * (n - 1 - i) as f32 })
}

/// The counts over the wider range `to`: each bin is cut into [`UPSAMPLE`]
/// equal parts, which go where their middles lie.
fn redistributed(counts: &[f32], from: Range, to: Range) -> Vec<f32> {
    let bins = counts.len();
    let parts = bins * UPSAMPLE;
    let half = 0.5 * ((from.hi - from.lo) / parts as f32);
    let edges: Vec<f32> = linspace(to.lo, to.hi, bins + 1).collect();
    let mut moved = vec![0f32; bins];
    let mut above = 0;
    for (i, start) in linspace(from.lo, from.hi, parts + 1).take(parts).enumerate() {
        let middle = start + half;
        while above < edges.len() && edges[above] <= middle {
            above += 1;
        }
        // Middles ascend but for rounding.
        while above > 0 && edges[above - 1] > middle {
            above -= 1;
        }
        moved[above.saturating_sub(1).min(bins - 1)] += counts[i / UPSAMPLE] / UPSAMPLE as f32;
    }
    moved
}
