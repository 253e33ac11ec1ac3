//! Which products may be summed in 16 bits.

use std::array;
use std::slice;

use super::{Group, NR};

/// Groups of a run.
pub(crate) const RUN: usize = 4;
/// Columns of a block.
pub(crate) const BLOCK: usize = 8;
/// Blocks of a panel.
pub(crate) const BLOCKS: usize = NR / BLOCK;

/// The largest activations, up to 255, with which products of the weights of a
/// run of groups by a block of columns are summed exactly in i16.
///
/// With activations in `0..=m`, a sum of some of the products `a[k] * w[k]`
/// lies in `-m * N ..= m * P`, where `P` is the sum of the positive `w[k]` and
/// `-N` that of the negative ones: the partial sums too, for they have no more
/// of either. So sums in any order stay within i16 if `m * max(P, N) <= 32767`:
/// for all of 0..=255 if `P` and `N` are 128 at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    /// For two sums per column over the run: of depths 0 and 1 of each group, and
    /// of depths 2 and 3.
    pub(crate) run: u8,
    /// For the same sums over each group alone.
    pub(crate) pair: u8,
}

impl Limits {
    /// For each run of each panel of `len` groups, the limits of its blocks. The
    /// last run of a panel may have fewer groups.
    pub(super) fn of_panels(groups: &[Group], len: usize) -> Vec<[Limits; BLOCKS]> {
        let runs = groups.chunks(len.max(1)).flat_map(|panel| panel.chunks(RUN));
        runs.map(|run| array::from_fn(|block| Limits::new(run, block))).collect()
    }

    fn new(run: &[Group], block: usize) -> Limits {
        let each = run.iter().map(|group| limit(slice::from_ref(group), block));
        Limits { run: limit(run, block), pair: each.min().unwrap_or(u8::MAX) }
    }
}

/// The limit for sums over all of `groups`.
fn limit(groups: &[Group], block: usize) -> u8 {
    let mut largest = 1;
    for column in block * BLOCK..(block + 1) * BLOCK {
        for half in [0, 2] {
            let (mut positive, mut negative) = (0, 0);
            for &w in groups.iter().flat_map(|group| &group.0[column][half..half + 2]) {
                positive += i32::from(w).max(0);
                negative -= i32::from(w).min(0);
            }
            largest = largest.max(positive).max(negative);
        }
    }
    (i32::from(i16::MAX) / largest).min(u8::MAX.into()) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::{KR, PackedWeights};

    #[test]
    fn limits_are_the_largest_activations_that_fit() {
        struct Case {
            weights: [[i8; KR]; 2],
            pair: u8,
            run: u8,
        }
        let case = |weights, pair, run| Case { weights, pair, run };
        let cases = [
            case([[0; 4]; 2], 255, 255),
            case([[64, 64, 0, 0], [0; 4]], 255, 255),
            case([[65, 64, 0, 0], [0; 4]], 254, 254),
            case([[0, 0, -64, -64], [0; 4]], 255, 255),
            case([[0, 0, -65, -64], [0; 4]], 254, 254),
            case([[127, -128, 127, -128], [0; 4]], 255, 255),
            case([[127, 127, 0, 0], [127, 127, 0, 0]], 129, 64),
            case([[127, 127, 0, 0], [0, 0, 127, 127]], 129, 129),
            case([[-128; 4]; 2], 127, 63),
        ];
        let mut failures = Vec::new();
        for Case { weights, pair, run } in cases {
            let wanted = Limits { run, pair };
            for column in [0, BLOCK, NR + 1] {
                let columns = column + 1;
                let mut w = vec![0; columns * 2 * KR];
                w[column * 2 * KR..].copy_from_slice(weights.as_flattened());
                let packed = PackedWeights::new(&w, columns, 2 * KR);
                for (n, limits) in packed.limits.iter().flatten().enumerate() {
                    let here = n == column / BLOCK;
                    let wanted = if here { wanted } else { Limits { run: 255, pair: 255 } };
                    if *limits != wanted {
                        failures
                            .push(format!("{weights:?} in {column}: block {n} {limits:?}, not {wanted:?}"));
                    }
                }
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}
