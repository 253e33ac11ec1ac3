//! What was seen of one value.

use lowbit_kernels::Kernels;

use crate::analysis::elements::elements;
use crate::error::Result;
use crate::qparams::Range;
use crate::tensor::Tensor;

/// The most extreme element on one side, the sample that has it, and the most extreme one
/// of all other samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::analysis) struct End {
    pub first: Option<(f32, String)>,
    pub second: Option<f32>,
}

impl End {
    /// Takes the extreme of a sample into account; `beyond(a, b)` if `a` is more extreme.
    fn add(&mut self, x: f32, sample: &str, beyond: impl Fn(f32, f32) -> bool) {
        match &self.first {
            Some((most, _)) if !beyond(x, *most) => {
                if self.second.is_none_or(|second| beyond(x, second)) {
                    self.second = Some(x);
                }
            }
            first => {
                self.second = first.as_ref().map(|(most, _)| *most);
                self.first = Some((x, sample.into()));
            }
        }
    }
}

/// Everything that is kept of a value: the same, however many samples there are.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::analysis) struct Seen {
    /// Elements, those that are not finite left out.
    pub count: u64,
    /// Elements below the limits.
    pub below: u64,
    /// Elements above the limits.
    pub above: u64,
    /// Least and greatest element of each channel, if there are channels.
    pub channels: Vec<Range>,
    pub lowest: End,
    pub highest: End,
}

/// No element yet.
const NONE: Range = Range { lo: f32::INFINITY, hi: f32::NEG_INFINITY };

impl Seen {
    /// Least and greatest element.
    pub fn range(&self) -> Option<Range> {
        let (lo, hi) = (self.lowest.first.as_ref()?.0, self.highest.first.as_ref()?.0);
        Some(Range { lo, hi })
    }

    /// Takes a value into account, whose channels lie along `axis`. Returns whether all of its
    /// elements are finite; if not, nothing of it is kept.
    ///
    /// # Errors
    /// If it is not of floating point.
    pub fn add(
        &mut self,
        value: &Tensor,
        axis: Option<usize>,
        limits: Option<Range>,
        sample: &str,
    ) -> Result<bool> {
        let x = elements(value)?;
        let x = x.as_ref();
        if x.is_empty() {
            return Ok(true);
        }
        let all = extremes(x);
        if !(all.lo.is_finite() && all.hi.is_finite()) {
            return Ok(false);
        }
        self.count += x.len() as u64;
        if let Some(Range { lo, hi }) = limits.filter(|l| all.lo < l.lo || all.hi > l.hi) {
            self.below += x.iter().filter(|x| **x < lo).count() as u64;
            self.above += x.iter().filter(|x| **x > hi).count() as u64;
        }
        if let Some((axis, channels)) = axis.and_then(|a| Some((a, *value.shape().get(a)?))) {
            self.channels.resize(channels, NONE);
            let inner: usize = value.shape()[axis + 1..].iter().product();
            if inner == 1 {
                for row in x.chunks_exact(channels) {
                    for (r, &x) in self.channels.iter_mut().zip(row) {
                        *r = r.union(Range { lo: x, hi: x });
                    }
                }
            } else {
                for (run, i) in x.chunks_exact(inner).zip((0..channels).cycle()) {
                    self.channels[i] = self.channels[i].union(extremes(run));
                }
            }
        }
        self.lowest.add(all.lo, sample, |a, b| a < b);
        self.highest.add(all.hi, sample, |a, b| a > b);
        Ok(true)
    }
}

/// Least and greatest element; NaN if there is one.
fn extremes(x: &[f32]) -> Range {
    let found = Kernels::best().min_max(x);
    if found.has_nan { Range { lo: f32::NAN, hi: f32::NAN } } else { Range { lo: found.min, hi: found.max } }
}
