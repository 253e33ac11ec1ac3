//! The clipping of least relative entropy.

use serde::{Deserialize, Serialize};

use super::lattice::{Lattice, Lattices};
use super::{Batch, Observer};
use crate::error::Result;
use crate::qparams::Range;
use crate::scheme::{Mapping, Scheme};

/// The largest magnitude `a` for which the distribution of `|x|`, clipped at
/// `a` and quantized, has the least Kullback-Leibler divergence from the
/// distribution before: TensorRT's calibration (S. Migacz, "8-bit inference
/// with TensorRT", GTC 2017), as in `pytorch-quantization`'s
/// `_compute_amax_entropy`, over 1024 to 2048 bins. The range is what was seen,
/// within `-a..a`; `a` is at least a bin for each code. Exact zeros, which cost
/// nothing, are left out (there, the first bin is overwritten with the second
/// instead). Merges exactly.
///
/// Each code stands for a run of bins: 128 codes for 8 bits, 256 where an
/// affine scheme covers values of one sign. Float formats, whose codes are not
/// evenly spaced, get all that was seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Entropy {
    pub(super) lattices: Lattices,
}

/// The most bins that are searched.
const BINS: usize = 2048;

impl Observer for Entropy {
    fn observe(&mut self, batch: &Batch<'_>) -> Result<()> {
        self.lattices.observe(batch);
        Ok(())
    }

    fn ranges(&self, scheme: &Scheme) -> Result<Vec<Range>> {
        let (qmin, qmax) = scheme.bounds();
        let codes = (i64::from(qmax) - i64::from(qmin) + 1) as usize;
        let range = |lattice: &Lattice| {
            let Range { lo, hi } = lattice.range();
            if scheme.format.is_float() {
                return lattice.range();
            }
            let one_sided = scheme.mapping == Mapping::Affine && (lo >= 0.0 || hi <= 0.0);
            let levels = if one_sided { codes } else { codes.div_ceil(2) };
            // A histogram as fine as TensorRT's.
            let fine = lattice.magnitudes();
            let merged = if fine.len() > BINS { 2 } else { 1 };
            let counts: Vec<u64> = fine.chunks(merged).map(|c| c.iter().sum()).collect();
            let kept = merged * least_divergence(&counts, levels);
            lattice.range().within((kept as f64 * lattice.width()) as f32)
        };
        Ok(self.lattices.groups().iter().map(range).collect())
    }

    fn merge(&mut self, other: &Entropy) -> Result<()> {
        self.lattices.merge(other.lattices.clone());
        Ok(())
    }
}

/// How many of the bins to keep, so that the divergence
/// `sum_b p_b ln(p_b / q_b)` is least: `p` are the bins kept, the last of them
/// with all beyond added; `q` are their counts, each run's shared among its
/// bins that are not empty. Of equals the largest.
///
/// Sums over a run come from prefix sums of `p` and of `p ln p`, so that one
/// candidate costs one logarithm a level.
fn least_divergence(counts: &[u64], levels: usize) -> usize {
    let bins = counts.len();
    let p_ln_p = |p: f64| if p > 0.0 { p * p.ln() } else { 0.0 };
    let (mut mass, mut entropy, mut filled) = (vec![0.0], vec![0.0], vec![0u32]);
    let mut sums = (0.0, 0.0, 0);
    for &c in counts {
        sums = (sums.0 + c as f64, sums.1 + p_ln_p(c as f64), sums.2 + u32::from(c > 0));
        mass.push(sums.0);
        entropy.push(sums.1);
        filled.push(sums.2);
    }
    let total = mass[bins];
    let divergence = |kept: usize| {
        let beyond = total - mass[kept];
        let last = counts[kept - 1] as f64;
        if last == 0.0 && beyond > 0.0 {
            return f64::INFINITY;
        }
        let self_information = entropy[kept] - p_ln_p(last) + p_ln_p(last + beyond);
        let mut cross = 0.0;
        for level in 0..levels {
            let (a, b) = ((level * kept).div_ceil(levels), ((level + 1) * kept).div_ceil(levels));
            let here = mass[b] - mass[a];
            if here > 0.0 {
                let q = here / f64::from(filled[b] - filled[a]);
                let p = if b == kept { here + beyond } else { here };
                cross += p * q.ln();
            }
        }
        (self_information - cross) / total - total.ln() + mass[kept].ln()
    };
    let mut best = (f64::INFINITY, bins);
    for kept in levels.max(1)..=bins {
        let d = divergence(kept);
        if d <= best.0 {
            best = (d, kept);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `_compute_amax_entropy` as it is written there.
    fn definition(counts: &[u64], levels: usize) -> usize {
        let mut best = (f64::INFINITY, counts.len());
        for kept in levels..=counts.len() {
            let level = |b: usize| b * levels / kept;
            let mut p: Vec<f64> = counts[..kept].iter().map(|&c| c as f64).collect();
            let q: Vec<f64> = (0..kept)
                .map(|b| {
                    let run: Vec<f64> = (0..kept).filter(|i| level(*i) == level(b)).map(|i| p[i]).collect();
                    let filled = run.iter().filter(|c| **c > 0.0).count();
                    if p[b] > 0.0 { run.iter().sum::<f64>() / filled as f64 } else { 0.0 }
                })
                .collect();
            p[kept - 1] += counts[kept..].iter().sum::<u64>() as f64;
            let (p_sum, q_sum) = (p.iter().sum::<f64>(), q.iter().sum::<f64>());
            let term =
                |p: f64, q: f64| if p > 0.0 { p / p_sum * ((p / p_sum) / (q / q_sum)).ln() } else { 0.0 };
            let d: f64 = p.iter().zip(&q).map(|(p, q)| term(*p, *q)).sum();
            if d <= best.0 {
                best = (d, kept);
            }
        }
        best.1
    }

    #[test]
    fn prefix_sums_give_the_definition() {
        let bell = |i: u64| (1e6 * (-((i * i) as f64) / 900.0).exp()) as u64;
        let cases: [Vec<u64>; 4] = [
            (0..150).map(bell).collect(),
            (0..150).map(|i| bell(i) + u64::from(i == 149)).collect(),
            (0..97).map(|i| (i * 7919) % 31).collect(),
            (0..20).map(|i| 100 - i).collect(),
        ];
        for (i, counts) in cases.iter().enumerate() {
            for levels in [4, 16, 128] {
                assert_eq!(
                    least_divergence(counts, levels),
                    definition(counts, levels),
                    "case {i}, {levels} levels"
                );
            }
        }
    }
}
