//! Whether there are enough calibration samples, and which of them are peculiar.

use std::fmt;

use serde::Serialize;

use super::diagnose::{Pass, Seen, Watched};
use crate::qparams::Range;

/// How far a range moves while it counts as still: by a tenth of it, which costs less than 1 dB.
const STILL: f64 = 0.1;
/// The share of ranges that may move more where there are enough samples.
const RESTLESS: f64 = 0.1;
/// How far a sample stretches a range at least to be named.
const STRETCHED: f64 = 0.1;
/// Samples that are named.
const MOST_SAMPLES: usize = 10;
/// Fewer samples do not show whether ranges converge.
const FEW: usize = 8;

/// What the ranges of activations say of the samples that they were found on.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Advice {
    /// The number of samples.
    pub samples: usize,
    /// Whether more samples would hardly move the ranges; none if no range is followed, or the
    /// samples are too few to tell.
    pub enough: Option<bool>,
    /// How far the ranges moved with each doubling of the number of samples.
    pub convergence: Vec<Convergence>,
    /// The range of each point after 1, 2, 4, ... batches, and after all.
    pub points: Vec<Followed>,
    /// The samples that stretch ranges the most, the worst first.
    pub stretching: Vec<Stretching>,
}

/// How far ranges moved with more samples: the greater of the ways of both ends, by the width
/// of the later range, each range widened to hold 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Convergence {
    /// The number of samples before.
    pub from: usize,
    /// The number of samples after.
    pub to: usize,
    /// Half of the ranges moved less.
    pub median: f64,
    /// Nine of ten moved less.
    pub most: f64,
    /// The share of ranges that moved by more than 10 %.
    pub moving: f64,
    /// The value whose range moved the furthest.
    pub value: String,
    /// How far that was.
    pub greatest: f64,
}

/// How a range developed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Followed {
    /// The value.
    pub value: String,
    /// The number of samples, and the range that the calibrator found in them.
    pub ranges: Vec<(usize, Range)>,
}

/// A sample without which ranges would be narrower.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stretching {
    /// The sample.
    pub sample: String,
    /// How many ranges it stretches by 10 % or more.
    pub values: usize,
    /// The value that it stretches the most.
    pub value: String,
    /// The range of that value in all other samples.
    pub others: Range,
    /// What the sample reaches, as far as the codes do.
    pub reaches: f32,
    /// By how much it stretches that range, by its width.
    pub by: f64,
}

impl Advice {
    /// What a pass over the calibration samples says. `names` are those of the points, none of
    /// points without values, and `limits` what their codes stand for.
    pub(super) fn of(pass: &Pass, names: &[Option<&str>], limits: &[Option<Range>]) -> Advice {
        let counts: Vec<usize> = pass.counts.iter().copied().chain([pass.samples]).collect();
        let followed = |(watched, name): (&Watched, &Option<&str>)| {
            let last = watched.range()?;
            let ranges = watched.ranges.iter().copied().chain([Some(last)]);
            let ranges = counts.iter().copied().zip(ranges).filter_map(|(n, r)| Some((n, widened(r?))));
            Some(Followed { value: (*name)?.into(), ranges: ranges.collect() })
        };
        let points: Vec<Followed> = pass.points.iter().zip(names).filter_map(followed).collect();
        // The last step counts where there are half as many samples again.
        let steps = counts.windows(2).filter(|w| w[1] * 2 >= w[0] * 3);
        let convergence: Vec<_> = steps.filter_map(|w| Convergence::of(&points, w[0], w[1])).collect();
        let enough = convergence.last().filter(|_| pass.samples >= FEW).map(|c| c.moving <= RESTLESS);
        let stretching = stretching(pass, names, limits);
        Advice { samples: pass.samples, enough, convergence, points, stretching }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(c) = self.convergence.last() else {
            return match self.samples {
                1 if !self.points.is_empty() => {
                    f.write_str("one sample does not show how ranges vary: give a hundred or so")
                }
                _ => f.write_str("no range was found on the samples: their number does not matter"),
            };
        };
        let percent = |share: f64| 100.0 * share;
        let Convergence { from, to, median, moving, value, greatest, .. } = c;
        write!(
            f,
            "from {from} to {to} samples the ranges moved by {:.1} % (median); {:.0} % of them by more than \
             {:.0} %, {value} by {:.1} %: ",
            percent(*median),
            percent(*moving),
            percent(STILL),
            percent(*greatest)
        )?;
        f.write_str(match self.enough {
            Some(true) => "more samples would hardly help",
            Some(false) => "more samples would help",
            None => "too few to tell: give a hundred or so",
        })
    }
}

impl Convergence {
    /// From one number of samples to another; none if no range was followed there.
    fn of(points: &[Followed], from: usize, to: usize) -> Option<Convergence> {
        let at = |p: &Followed, n: usize| p.ranges.iter().find(|(at, _)| *at == n).map(|(_, r)| *r);
        let moved = points.iter().filter_map(|p| Some((moved(at(p, from)?, at(p, to)?), p.value.as_str())));
        let mut moved: Vec<(f64, &str)> = moved.collect();
        moved.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (greatest, value) = *moved.last()?;
        let rank = |q: f64| moved[((q * moved.len() as f64).ceil() as usize).max(1) - 1].0;
        let moving = moved.iter().filter(|(by, _)| *by > STILL).count() as f64 / moved.len() as f64;
        Some(Convergence {
            from,
            to,
            median: rank(0.5),
            most: rank(0.9),
            moving,
            value: value.into(),
            greatest,
        })
    }
}

/// A range that holds 0.
fn widened(r: Range) -> Range {
    r.union(Range { lo: 0.0, hi: 0.0 })
}

fn width(r: Range) -> f64 {
    f64::from(r.hi) - f64::from(r.lo)
}

/// How far the ends have moved, by the width of the later range.
fn moved(before: Range, after: Range) -> f64 {
    let by = |a: f32, b: f32| (f64::from(a) - f64::from(b)).abs();
    let furthest = by(before.lo, after.lo).max(by(before.hi, after.hi));
    if furthest == 0.0 { 0.0 } else { furthest / width(after).max(f64::MIN_POSITIVE) }
}

/// The samples that stretch ranges the most.
fn stretching(pass: &Pass, names: &[Option<&str>], limits: &[Option<Range>]) -> Vec<Stretching> {
    let mut found: Vec<Stretching> = vec![];
    for ((watched, name), limit) in pass.points.iter().zip(names).zip(limits) {
        for one in watched.seen.iter().flat_map(|seen| stretches(seen, name.unwrap_or_default(), *limit)) {
            match found.iter_mut().find(|s| s.sample == one.sample) {
                Some(same) => {
                    let values = same.values + 1;
                    if one.by > same.by {
                        *same = one;
                    }
                    same.values = values;
                }
                None => found.push(one),
            }
        }
    }
    found.sort_by(|a, b| b.by.total_cmp(&a.by));
    found.truncate(MOST_SAMPLES);
    found
}

/// The samples that stretch the range of one value: those with its least and its greatest element.
fn stretches(seen: &Seen, value: &str, limit: Option<Range>) -> Vec<Stretching> {
    let (low, high) = (&seen.lowest, &seen.highest);
    let (Some((lo, of_lo)), Some((hi, of_hi))) = (&low.first, &high.first) else { return vec![] };
    let samples = if of_lo == of_hi { vec![of_lo] } else { vec![of_lo, of_hi] };
    let stretch = |sample: &String| {
        let lo_of_others = if of_lo == sample { low.second? } else { *lo };
        let hi_of_others = if of_hi == sample { high.second? } else { *hi };
        let others = widened(Range { lo: lo_of_others, hi: hi_of_others });
        let reach = |x: &f32| limit.map_or(*x, |l| x.clamp(l.lo, l.hi));
        let below = f64::from(others.lo) - f64::from(reach(lo));
        let above = f64::from(reach(hi)) - f64::from(others.hi);
        let by = below.max(above) / width(others).max(f64::MIN_POSITIVE);
        let (sample, value) = (sample.clone(), value.to_string());
        let reaches = reach(if above > below { hi } else { lo });
        (by >= STRETCHED).then_some(Stretching { sample, values: 1, value, others, reaches, by })
    };
    samples.into_iter().filter_map(stretch).collect()
}
