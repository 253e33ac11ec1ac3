//! A histogram whose bins do not depend on how the data was split.

use serde::{Deserialize, Serialize};

use super::Batch;
use super::counting::{count, truncated};
use crate::qparams::Range;

/// The narrowest bins, 2^-120: what lies below is one bin.
const LEAST_EXPONENT: i32 = -120;
/// The widest bins that f32 values need.
const GREATEST_EXPONENT: i32 = 128;

/// Bins on each side of 0, a power of two: between 1/2048 and 1/4096 of the
/// largest magnitude wide.
const BINS: u32 = 4096;

/// Exact counts over bins of width `2^k`, on each side of 0, with the smallest
/// `k` for which all values fall into a fixed number of bins. When a larger
/// value comes, neighbouring bins are merged. So the state is a function of
/// the values seen alone: merging shards gives it whatever the split. Exact
/// zeros, which every scheme represents, are counted apart. A state takes at
/// most 16 bytes for each distinct value and 128 KiB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub(super) struct Lattice {
    exponent: i32,
    /// Bins that are not empty, in ascending order: bin `m` is
    /// `m 2^k .. (m + 1) 2^k`.
    cells: Vec<(i32, u64)>,
    zeros: u64,
    range: Range,
}

#[derive(Deserialize)]
struct Unchecked {
    exponent: i32,
    cells: Vec<(i32, u64)>,
    zeros: u64,
    range: Range,
}

impl TryFrom<Unchecked> for Lattice {
    type Error = String;
    fn try_from(Unchecked { exponent, cells, zeros, range }: Unchecked) -> Result<Lattice, String> {
        let inside = |m: i32| (-i64::from(BINS)..i64::from(BINS)).contains(&i64::from(m));
        let total = cells.iter().try_fold(zeros, |sum, (_, n)| sum.checked_add(*n));
        if !(LEAST_EXPONENT..=GREATEST_EXPONENT).contains(&exponent)
            || !cells.iter().all(|(m, n)| inside(*m) && *n > 0)
            || !cells.is_sorted_by(|a, b| a.0 < b.0)
            || total.is_none()
        {
            return Err("the bins of a lattice histogram are inconsistent".into());
        }
        Ok(Lattice { exponent, cells, zeros, range })
    }
}

impl Lattice {
    /// The histogram of `x`, which is not empty and whose values span `range`.
    fn of(x: &[f32], range: Range) -> Lattice {
        let exponent = exponent_of(range.amax());
        let scale = f32::from_bits(((127 - exponent) as u32) << 23);
        // Magnitudes are truncated and the sign flips all bits, so that halving
        // is an arithmetic shift on both sides. Adding 0 turns -0 into 0.
        let index = |x: f32| {
            let x = x + 0.0;
            truncated(x.abs() * scale) ^ (x.to_bits().cast_signed() >> 31)
        };
        let zeros = x.iter().filter(|x| **x == 0.0).count() as u64;
        let mut cells: Vec<(i32, u64)> = if x.len() >= BINS as usize {
            let side = BINS as i32;
            let counts = count(x, 2 * BINS as usize, |x| index(x) + side);
            (-side..side).zip(counts).filter(|(_, n)| *n > 0).collect()
        } else {
            let mut at: Vec<i32> = x.iter().map(|&x| index(x)).collect();
            at.sort_unstable();
            at.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u64)).collect()
        };
        if zeros > 0
            && let Some(zero) = cells.iter_mut().find(|(m, _)| *m == 0)
        {
            zero.1 -= zeros;
            cells.retain(|(_, n)| *n > 0);
        }
        Lattice { exponent, cells, zeros, range }
    }

    fn coarsen(&mut self, exponent: i32) {
        let halvings = exponent.saturating_sub(self.exponent).clamp(0, 31);
        if halvings == 0 {
            return;
        }
        self.exponent = exponent;
        self.cells = summed(self.cells.iter().map(|(m, n)| (m >> halvings, *n)));
    }

    /// Adds what `other` counted.
    pub(super) fn merge(&mut self, mut other: Lattice) {
        let exponent = self.exponent.max(other.exponent);
        self.coarsen(exponent);
        other.coarsen(exponent);
        let (mut a, mut b) = (self.cells.iter().copied().peekable(), other.cells.into_iter().peekable());
        let in_order = std::iter::from_fn(|| match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if y.0 < x.0 => b.next(),
            (Some(_), _) => a.next(),
            _ => b.next(),
        });
        self.cells = summed(in_order);
        self.zeros = self.zeros.saturating_add(other.zeros);
        self.range = self.range.union(other.range);
    }

    /// Least and greatest value.
    pub(super) fn range(&self) -> Range {
        self.range
    }

    /// Bin width.
    pub(super) fn width(&self) -> f64 {
        f64::from(self.exponent).exp2()
    }

    /// Bin `m` (see [`Lattice`]) and count of the bins that are not empty.
    pub(super) fn cells(&self) -> &[(i32, u64)] {
        &self.cells
    }

    /// How many values were exactly 0.
    pub(super) fn zeros(&self) -> u64 {
        self.zeros
    }

    /// The histogram of magnitudes without exact zeros, from bin 0 to the last
    /// that is not empty.
    pub(super) fn magnitudes(&self) -> Vec<u64> {
        let fold = |m: i32| if m < 0 { !m } else { m } as usize;
        let mut counts = vec![0; self.cells.iter().map(|(m, _)| fold(*m) + 1).max().unwrap_or(0)];
        for (m, n) in &self.cells {
            counts[fold(*m)] += n;
        }
        counts
    }
}

/// One lattice for each group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Lattices {
    groups: Vec<Lattice>,
}

impl Lattices {
    /// Adds a batch.
    pub(super) fn observe(&mut self, batch: &Batch<'_>) {
        let new = batch.by_group().iter().zip(batch.ranges()).map(|(x, &r)| Lattice::of(x, r)).collect();
        self.merge(Lattices { groups: new });
    }

    /// Adds what `other` counted.
    pub(super) fn merge(&mut self, other: Lattices) {
        if self.groups.is_empty() {
            self.groups = other.groups;
        } else {
            self.groups.iter_mut().zip(other.groups).for_each(|(a, b)| a.merge(b));
        }
    }

    /// The lattice of each group.
    pub(super) fn groups(&self) -> &[Lattice] {
        &self.groups
    }
}

/// The least `k` with `amax < BINS 2^k`.
fn exponent_of(amax: f32) -> i32 {
    let floor_log2 = (amax.to_bits() >> 23) as i32 - 127;
    (floor_log2 + 1 - BINS.trailing_zeros() as i32).max(LEAST_EXPONENT)
}

/// Counts in ascending order of bins, equal bins added.
fn summed(cells: impl Iterator<Item = (i32, u64)>) -> Vec<(i32, u64)> {
    let mut sums: Vec<(i32, u64)> = vec![];
    for (m, n) in cells {
        match sums.last_mut() {
            Some((last, sum)) if *last == m => *sum = sum.saturating_add(n),
            _ => sums.push((m, n)),
        }
    }
    sums
}
