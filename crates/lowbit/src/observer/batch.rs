//! One batch as observers see it: finite values, their groups, and each
//! group's least and greatest value.

use std::borrow::Cow;

use crate::error::{Error, Result, invalid};
use crate::qparams::Range;
use crate::scheme::{Granularity, Groups};

/// A batch that is not empty and has no NaN and no infinity.
pub struct Batch<'a> {
    values: Cow<'a, [f32]>,
    groups: Groups,
    ranges: Vec<Range>,
}

impl<'a> Batch<'a> {
    /// `x`, of `shape`; `None` if there is nothing to observe. Infinities are
    /// an error, or left out if `skip_infinities` (whole tensors only).
    pub(super) fn new(
        x: &'a [f32],
        shape: &[usize],
        granularity: Granularity,
        skip_infinities: bool,
    ) -> Result<Option<Batch<'a>>> {
        let groups = granularity.groups(shape)?;
        if x.is_empty() {
            return Ok(None);
        }
        if let Some(ranges) = extremes(x, &groups) {
            return Ok(Some(Batch { values: Cow::Borrowed(x), groups, ranges }));
        }
        if !skip_infinities || granularity != Granularity::Tensor || x.iter().any(|x| x.is_nan()) {
            return Err(not_finite(x));
        }
        let values: Vec<f32> = x.iter().copied().filter(|x| x.is_finite()).collect();
        if values.is_empty() {
            return Ok(None);
        }
        let groups = granularity.groups(&[values.len()])?;
        let ranges = extremes(&values, &groups).ok_or_else(|| not_finite(x))?;
        Ok(Some(Batch { values: Cow::Owned(values), groups, ranges }))
    }

    /// The values, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The least and greatest value of each group.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The shape of the scales.
    pub fn scale_shape(&self) -> &[usize] {
        self.groups.scale_shape()
    }

    /// The values of each group, borrowed where they lie together.
    pub fn by_group(&self) -> Vec<Cow<'_, [f32]>> {
        let mut split = vec![Cow::Borrowed(&[][..]); self.groups.count()];
        for (run, g) in self.groups.runs() {
            if split[g].is_empty() {
                split[g] = Cow::Borrowed(&self.values[run]);
            } else {
                split[g].to_mut().extend_from_slice(&self.values[run]);
            }
        }
        split
    }
}

fn not_finite(x: &[f32]) -> Error {
    match x.iter().position(|x| !x.is_finite()) {
        Some(i) => invalid!(
            "element {i} is {}: calibration needs finite values; look for the operator that made it",
            x[i]
        ),
        None => invalid!("a group has no values"),
    }
}

/// Each group's least and greatest value; `None` if any value is not finite.
fn extremes(x: &[f32], groups: &Groups) -> Option<Vec<Range>> {
    let mut ranges = vec![Range { lo: f32::INFINITY, hi: f32::NEG_INFINITY }; groups.count()];
    let mut odd = 0.0f32;
    for (run, g) in groups.runs() {
        let (range, bad) = scan(&x[run]);
        odd += bad;
        ranges[g] = ranges[g].union(range);
    }
    (odd == 0.0).then_some(ranges)
}

/// Least and greatest value, and 0, or NaN if some value is not finite.
fn scan(x: &[f32]) -> (Range, f32) {
    const LANES: usize = 16;
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (mut lo, mut hi, mut odd) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0.0f32; LANES]);
    for c in chunks {
        for i in 0..LANES {
            lo[i] = if c[i] < lo[i] { c[i] } else { lo[i] };
            hi[i] = if c[i] > hi[i] { c[i] } else { hi[i] };
            odd[i] += c[i] * 0.0;
        }
    }
    let (mut range, mut bad) = (Range { lo: f32::INFINITY, hi: f32::NEG_INFINITY }, 0.0);
    if !chunks.is_empty() {
        for i in 0..LANES {
            range = range.union(Range { lo: lo[i], hi: hi[i] });
            bad += odd[i];
        }
    }
    for &x in rest {
        range = range.union(Range { lo: x, hi: x });
        bad += x * 0.0;
    }
    (range, bad)
}
