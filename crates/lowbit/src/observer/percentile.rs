//! Ranges that leave out a given share of the values.

use serde::{Deserialize, Serialize};

use super::lattice::{Lattice, Lattices};
use super::{Batch, Observer};
use crate::error::Result;
use crate::qparams::Range;
use crate::scheme::{Mapping, Scheme};

/// The range that holds `percentile` per cent of the values, exact zeros
/// counted in. Symmetric schemes: the magnitudes below the percentile, as
/// NVIDIA's `pytorch-quantization` has it. Affine ones: half of what is left
/// out lies on each side, as in onnxruntime. Quantiles are exact but for the
/// place within one bin, between 1/2048 and 1/4096 of the largest magnitude
/// wide, where values are taken to lie evenly. Merges exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentile {
    percentile: f64,
    pub(super) lattices: Lattices,
}

impl Percentile {
    /// Nothing seen yet.
    pub fn new(percentile: f64) -> Percentile {
        Percentile { percentile, lattices: Lattices::default() }
    }
}

impl Observer for Percentile {
    fn observe(&mut self, batch: &Batch<'_>) -> Result<()> {
        self.lattices.observe(batch);
        Ok(())
    }

    fn ranges(&self, scheme: &Scheme) -> Result<Vec<Range>> {
        let outside = 1.0 - self.percentile / 100.0;
        let range = |lattice: &Lattice| match scheme.mapping {
            Mapping::Symmetric => {
                let cells = (0..).zip(lattice.magnitudes());
                lattice.range().within(outer_quantile(lattice, cells, outside))
            }
            Mapping::Affine => {
                let Range { lo, hi } = lattice.range();
                let cells = lattice.cells().iter().copied();
                let downwards = lattice.cells().iter().rev().map(|(m, n)| (!m, *n));
                let top = outer_quantile(lattice, cells, outside / 2.0).clamp(lo, hi);
                let bottom = (0.0 - outer_quantile(lattice, downwards, outside / 2.0)).clamp(lo, hi);
                Range { lo: bottom.min(top), hi: top.max(bottom) }
            }
        };
        Ok(self.lattices.groups().iter().map(range).collect())
    }

    fn merge(&mut self, other: &Percentile) -> Result<()> {
        self.lattices.merge(other.lattices.clone());
        Ok(())
    }
}

/// The value above which the share `outside` of all values lies, given the
/// bins in ascending order.
fn outer_quantile(lattice: &Lattice, cells: impl Iterator<Item = (i32, u64)>, outside: f64) -> f32 {
    let mut pieces: Vec<(f64, f64, u64)> =
        cells.map(|(m, n)| (f64::from(m) * lattice.width(), f64::from(m + 1) * lattice.width(), n)).collect();
    if lattice.zeros() > 0 {
        let at = pieces.partition_point(|piece| piece.0 < 0.0);
        pieces.insert(at, (0.0, 0.0, lattice.zeros()));
    }
    let total: u64 = pieces.iter().map(|piece| piece.2).sum();
    let mut above = outside * total as f64;
    for &(lo, hi, n) in pieces.iter().rev() {
        if above <= n as f64 {
            return (hi - above / n as f64 * (hi - lo)) as f32;
        }
        above -= n as f64;
    }
    pieces.first().map_or(0.0, |piece| piece.0 as f32)
}
