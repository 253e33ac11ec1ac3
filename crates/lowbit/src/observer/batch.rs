//! One batch as observers see it: finite values, their groups, and each
//! group's least and greatest value.

use std::borrow::Cow;

use lowbit_kernels::Kernels;

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
    /// Elements that are worth a call of the vectorized routine.
    const LONG: usize = 64;
    let kernels = Kernels::best();
    let mut ranges = vec![Range { lo: f32::INFINITY, hi: f32::NEG_INFINITY }; groups.count()];
    let mut finite = true;
    for (run, g) in groups.runs() {
        if run.len() < LONG {
            for &x in &x[run] {
                finite &= x.is_finite();
                ranges[g] = ranges[g].union(Range { lo: x, hi: x });
            }
        } else {
            let found = kernels.min_max(&x[run]);
            finite &= found.min.is_finite() && found.max.is_finite() && !found.has_nan;
            ranges[g] = ranges[g].union(Range { lo: found.min, hi: found.max });
        }
    }
    finite.then_some(ranges)
}
