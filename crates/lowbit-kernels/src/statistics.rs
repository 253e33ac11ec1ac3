//! What calibration asks of a tensor: range and histogram.

/// The range of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MinMax {
    /// The least value that is not NaN; `+inf` where there is none.
    pub min: f32,
    /// The greatest value that is not NaN; `-inf` where there is none.
    pub max: f32,
    /// Whether any value is NaN.
    pub has_nan: bool,
}

/// Independent running extremes, for the compiler to keep in vectors.
const LANES: usize = 64;
const _: () = assert!(LANES.is_power_of_two());

#[inline(always)]
pub(crate) fn min_max(x: &[f32]) -> MinMax {
    let mut min = [f32::INFINITY; LANES];
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut nan = [0u32; LANES];
    let mut take = |j: usize, v: f32| {
        min[j] = if v < min[j] { v } else { min[j] };
        max[j] = if v > max[j] { v } else { max[j] };
        nan[j] |= u32::from(v.is_nan());
    };
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for (j, &v) in block.iter().enumerate() {
            take(j, v);
        }
    }
    for (j, &v) in rest.iter().enumerate() {
        take(j, v);
    }
    let mut half = LANES;
    while half > 1 {
        half /= 2;
        for j in 0..half {
            min[j] = if min[j + half] < min[j] { min[j + half] } else { min[j] };
            max[j] = if max[j + half] > max[j] { max[j + half] } else { max[j] };
            nan[j] |= nan[j + half];
        }
    }
    // Adding 0 turns -0 into 0, so that the sign does not tell which came first.
    MinMax { min: min[0] + 0.0, max: max[0] + 0.0, has_nan: nan[0] != 0 }
}

/// Elements whose bins are computed before they are counted.
const BLOCK: usize = 64;

#[inline(always)]
pub(crate) fn histogram(x: &[f32], lo: f32, hi: f32, counts: &mut [u64]) {
    let width = hi - lo;
    assert!(lo < hi && width.is_finite(), "histogram over {lo}..={hi}");
    assert!(!counts.is_empty() && counts.len() <= 1 << 24, "histogram of {} bins", counts.len());
    let bins = counts.len() as f32;
    let last = counts.len() as i32 - 1;
    let bin = |v: f32| {
        let position = (v - lo) * bins / width;
        let bin = (position as i32).min(last);
        if v >= lo && v <= hi { bin } else { -1 }
    };
    let mut positions = [0; BLOCK];
    let mut count = |positions: &[i32]| {
        for &position in positions {
            if let Some(count) = counts.get_mut(position as usize) {
                *count += 1;
            }
        }
    };
    let (blocks, rest) = x.as_chunks::<BLOCK>();
    for block in blocks {
        for (position, &v) in positions.iter_mut().zip(block) {
            *position = bin(v);
        }
        count(&positions);
    }
    for &v in rest {
        count(&[bin(v)]);
    }
}
