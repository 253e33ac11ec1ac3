//! The range of least squared error.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::lattice::{Lattice, Lattices};
use super::{Batch, Observer};
use crate::error::Result;
use crate::qparams::{QParams, Range};
use crate::scheme::{Granularity, Mapping, Scheme};

/// The range whose parameters give the least squared quantization error, over
/// a histogram of the values in which each lies at the middle of its bin.
/// Errors are those of [`QParams`] itself, so that the search knows the scheme:
/// codes, mapping, float formats. Exact zeros have none. Where bins are wider
/// than an eighth of a step (more than 10 bits), a bin's middle does not tell how its values round: inside the range the error is then taken as
/// its mean, `s^2 / 12`.
///
/// Symmetric schemes search the largest magnitude. Affine ones first shrink
/// both ends together, then each alone. The search never widens what was seen.
/// Merges exactly.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mse {
    pub(super) lattices: Lattices,
}

impl Observer for Mse {
    fn observe(&mut self, batch: &Batch<'_>) -> Result<()> {
        self.lattices.observe(batch);
        Ok(())
    }

    fn ranges(&self, scheme: &Scheme) -> Result<Vec<Range>> {
        let scheme = scheme.with(Granularity::Tensor);
        QParams::from_ranges(scheme, &[Range { lo: 0.0, hi: 0.0 }])?;
        Ok(self.lattices.groups().par_iter().map(|lattice| best_range(lattice, scheme)).collect())
    }

    fn merge(&mut self, other: &Mse) -> Result<()> {
        self.lattices.merge(other.lattices.clone());
        Ok(())
    }
}

fn best_range(lattice: &Lattice, scheme: Scheme) -> Range {
    let seen = lattice.range();
    let values = Values::new(lattice, scheme);
    let error = |range: Range| values.error(range);
    if scheme.mapping == Mapping::Symmetric {
        let amax = seen.amax();
        return seen.within(amax * least(|t| error(seen.within(amax * t)), 1.0));
    }
    // What counts as an end is the distance from 0 that must be covered.
    let (below, above) = (seen.lo.min(0.0), seen.hi.max(0.0));
    let t = least(|t| error(Range { lo: below * t, hi: above * t }), 1.0);
    let (mut lo, mut hi) = (below * t, above * t);
    for _ in 0..2 {
        hi = above * least(|t| error(Range { lo, hi: above * t }), hi / above);
        lo = below * least(|t| error(Range { lo: below * t, hi }), lo / below);
    }
    Range { lo: lo.max(seen.lo.min(hi)), hi: hi.min(seen.hi.max(lo)) }
}

/// The `t` in (0, 1] of least `f`: a geometric grid down to 1/200, then twice
/// a finer one between the neighbours of the best. `start` is tried first and
/// kept against equals; NaN (a side that is not there) stays 1.
fn least(f: impl Fn(f32) -> f64, start: f32) -> f32 {
    if !start.is_finite() {
        return 1.0;
    }
    let mut best = (f(start), start);
    let mut attempt = |t: f32| {
        let e = f(t);
        if e < best.0 {
            best = (e, t);
        }
        best.1
    };
    let mut ratio = 0.9f32;
    for i in 0..50 {
        attempt(ratio.powi(i));
    }
    for _ in 0..2 {
        let (fine, middle) = (ratio.powf(0.2), attempt(1.0));
        for i in 1..5 {
            attempt((middle * fine.powi(-i)).min(1.0));
            attempt(middle * fine.powi(i));
        }
        ratio = fine;
    }
    best.1
}

/// The values of a lattice, each at the middle of its bin.
struct Values {
    scheme: Scheme,
    x: Vec<f32>,
    counts: Vec<f64>,
    bin_width: f64,
}

impl Values {
    fn new(lattice: &Lattice, scheme: Scheme) -> Values {
        let (Range { lo, hi }, w) = (lattice.range(), lattice.width());
        let (x, counts) = lattice
            .cells()
            .iter()
            .map(|(m, n)| ((((f64::from(*m) + 0.5) * w) as f32).clamp(lo, hi), *n as f64))
            .unzip();
        Values { scheme, x, counts, bin_width: w }
    }

    /// The sum of squared errors if `range` is quantized.
    fn error(&self, range: Range) -> f64 {
        let Ok(params) = QParams::from_ranges(self.scheme, &[range]) else { return f64::INFINITY };
        let step = f64::from(params.scale[0]);
        let coarse = self.bin_width > step / 8.0 && !self.scheme.format.is_float();
        let mut sum = 0.0;
        let mut y = [0f32; 256];
        for (x, counts) in self.x.chunks(y.len()).zip(self.counts.chunks(y.len())) {
            let y = &mut y[..x.len()];
            params.fake_quantize_run(0, x, y);
            for ((x, y), n) in x.iter().zip(y).zip(counts) {
                let e = f64::from(x - *y).abs();
                let e2 = if coarse && e <= step / 2.0 { step * step / 12.0 } else { e * e };
                sum += e2 * n;
            }
        }
        sum
    }
}
