//! What may be wrong with a quantized model or its calibration data: every symptom that the
//! model and two sets of samples show, as findings.

mod inputs;
mod model;
mod pass;
mod seen;
mod sites;

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::advice::Advice;
use crate::data::Batch;
use crate::error::Result;
use crate::graph::Graph;
use crate::observer::AnyObserver;
use crate::qconfig::QConfigMapping;
use crate::qparams::Range;
use crate::quantize::{Converted, Finding, Point, Prepared, Progress, Role, Symptom, prepare, threads};
use crate::scheme::{Granularity, Scheme};
use crate::session::{Report, Session};
pub(super) use pass::{Pass, Watched};
pub(super) use seen::Seen;
use sites::{Site, Sites};

/// The share of a value's elements far outside the reals of its codes from which it saturates.
const SATURATED: f64 = 0.01;
/// How far outside a range is far, by its width: 4 steps of 256 codes.
const FAR: f32 = 1.0 / 64.0;
/// The share of a value's elements in other samples far outside the range of those of calibration
/// from which the sets are unlike.
const OUTSIDE: f64 = 0.001;
/// The share of an activation's channels from which it is worth a finding that they use few
/// of its codes.
const MANY_CHANNELS: f64 = 0.25;

/// What is diagnosed.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The float model as it was prepared: fused, and changed by the passes before.
    pub float: &'a Graph,
    /// The rules by which it was.
    pub mapping: &'a QConfigMapping,
    /// The calibrated and the converted model; none where one of these steps has failed, to
    /// find out why.
    pub quantized: Option<(&'a Prepared, &'a Converted)>,
    /// What [`Session::compile_fastest`] reports of the converted model, if it was measured.
    pub fastest: Option<&'a Report>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnosis {
    /// The number of calibration samples.
    pub samples: usize,
    /// The number of evaluation samples, if there were any.
    pub evaluated: Option<usize>,
    /// The gravest first, those of one code in evaluation order.
    pub findings: Vec<Finding>,
    /// What the ranges say of the calibration samples.
    pub advice: Advice,
}

/// Runs the float model on the samples that it was calibrated on, and on others if there
/// are, and says everything that deserves attention: what the conversion has found, values
/// that are uncalibrated, not finite, constant, dead or saturating, channels that one scale
/// cannot hold, layers in float, operators that float makes faster, and samples unlike those of
/// calibration. `docs/findings.md` says how each is measured, and its threshold.
///
/// Beside two batches and their activations, memory does not depend on the number of
/// samples. What is told of a sample is told of its whole batch: give batches of one sample.
/// The result does not depend on `threads`, by default one for each core. `progress` is called
/// with the batches done of either set, and its error stops the diagnosis.
///
/// # Errors
/// If there is no sample, a batch cannot be read or does not fit the model, or the converted
/// model cannot be compiled.
pub fn diagnose<B: Iterator<Item = Result<Batch>> + Send>(
    subject: &Subject,
    calibration: B,
    evaluation: Option<B>,
    threads: Option<usize>,
    progress: &Progress,
) -> Result<Diagnosis> {
    let threads = threads.unwrap_or_else(self::threads).max(1);
    let fresh = prepare(subject.float, subject.mapping)?;
    let prepared = subject.quantized.map_or(&fresh, |(prepared, _)| prepared);
    let (graph, sites) = (prepared.graph(), Sites::new(prepared));
    let codes: Vec<Option<Codes>> = match subject.quantized {
        Some((prepared, _)) => prepared.points().iter().map(Codes::of).collect::<Result<_>>()?,
        None => vec![None; prepared.points().len()],
    };
    let limits: Vec<Option<Range>> = codes.iter().map(|c| c.as_ref().map(|c| near(c.range))).collect();
    let unused: HashMap<(&str, Scheme), &AnyObserver> =
        fresh.points().iter().map(|p| ((p.name.as_str(), p.scheme), &p.observer)).collect();
    let points = prepared.points().iter().enumerate();
    let watched = points.map(|(i, p)| {
        let observer = unused.get(&(p.name.as_str(), p.scheme)).filter(|_| p.role == Role::Activation);
        Watched::new(sites.count(i), observer.map(|o| (*o).clone()))
    });
    let seen = pass::pass(graph, &sites, watched.collect(), &limits, calibration, threads, progress)?;

    let mut findings = subject.quantized.map_or(vec![], |(_, converted)| converted.findings.clone());
    findings.extend(broken(graph, &seen));
    for site in sites.all() {
        let of_site = value(site, &seen.points[site.point].seen[site.at], codes[site.point].as_ref());
        findings.extend(of_site);
    }
    if let Some((prepared, converted)) = subject.quantized {
        findings.extend(model::weights(prepared)?);
        let session = Session::compile(&converted.graph)?;
        findings.extend(model::in_float(session.report(), &converted.findings));
        let slower = |fastest| model::slower(&converted.graph, session.report(), fastest);
        findings.extend(subject.fastest.and_then(slower));
    }
    let held: Vec<Option<Range>> = codes.iter().map(|c| Some(c.as_ref()?.range)).collect();
    let advice = Advice::of(&seen, &sites.names(prepared.points().len()), &held);
    let mut evaluated = None;
    if let Some(evaluation) = evaluation {
        let (other, of_values) = evaluate(graph, &sites, &seen, evaluation, threads, progress)?;
        findings.extend(broken(graph, &other));
        findings.extend(of_values);
        evaluated = Some(other.samples);
    }
    let mut said = HashSet::new();
    findings.retain(|f| said.insert((f.code(), f.subject.clone())));
    findings.sort_by_key(|f| (f.severity(), f.code()));
    Ok(Diagnosis { samples: seen.samples, evaluated, findings, advice })
}

/// A pass over samples beside those of calibration, and how they differ.
fn evaluate(
    graph: &Graph,
    sites: &Sites,
    seen: &Pass,
    batches: impl Iterator<Item = Result<Batch>> + Send,
    threads: usize,
    progress: &Progress,
) -> Result<(Pass, Vec<Finding>)> {
    let of_point = |p: &Watched| p.seen.iter().filter_map(Seen::range).reduce(Range::union);
    let ranges: Vec<Option<Range>> = seen.points.iter().map(of_point).collect();
    let limits: Vec<Option<Range>> = ranges.iter().map(|range| range.map(near)).collect();
    let watched = (0..ranges.len()).map(|point| Watched::new(sites.count(point), None)).collect();
    let other = pass::pass(graph, sites, watched, &limits, batches, threads, progress)?;
    let mut findings = seen.inputs.unlike(&other.inputs, graph);
    for site in sites.all() {
        let found = &other.points[site.point].seen[site.at];
        let share = (found.below + found.above) as f64 / found.count.max(1) as f64;
        if let (true, Some(calibrated), Some(found)) = (share > OUTSIDE, ranges[site.point], found.range()) {
            findings.push(Finding::new(&site.name, Symptom::BeyondRange { share, calibrated, found }));
        }
    }
    Ok((other, findings))
}

/// What an activation's codes stand for.
#[derive(Clone, Debug)]
struct Codes {
    scheme: Scheme,
    range: Range,
    scale: f32,
}

impl Codes {
    /// Those of a point of activations with one scale.
    fn of(point: &Point) -> Result<Option<Codes>> {
        let scheme = point.scheme;
        if point.role == Role::Weight || scheme.granularity != Granularity::Tensor {
            return Ok(None);
        }
        let params = point.params().map_err(|e| e.at(&point.name))?;
        let (least, greatest) = scheme.bounds();
        let (scale, zero) = (params.scale[0], f64::from(params.zero_point[0]));
        let real = |q: i32| ((f64::from(q) - zero) * f64::from(scale)) as f32;
        Ok(Some(Codes { scheme, range: Range { lo: real(least), hi: real(greatest) }, scale }))
    }
}

/// What is not far outside a range.
fn near(Range { lo, hi }: Range) -> Range {
    let far = FAR * (hi - lo);
    Range { lo: lo - far, hi: hi + far }
}

/// The values where elements that are not finite arise.
fn broken(graph: &Graph, pass: &Pass) -> Vec<Finding> {
    let finding = |(v, b): (_, &pass::Broken)| {
        let (nan, infinite, sample) = (b.nan, b.infinite, b.sample().to_string());
        Finding::new(&graph.value(v).name, Symptom::NotFinite { nan, infinite, sample })
    };
    pass.broken.iter().map(|(v, b)| finding((*v, b))).collect()
}

/// What deserves attention of one value.
fn value(site: &Site, seen: &Seen, codes: Option<&Codes>) -> Vec<Finding> {
    let Some(all) = seen.range() else {
        return vec![Finding::new(&site.name, Symptom::Uncalibrated)];
    };
    if all.lo == all.hi {
        return vec![Finding::constant(&site.name, all.lo)];
    }
    let mut found = vec![];
    let mut say = |symptom| found.push(Finding::new(&site.name, symptom));
    let of = seen.channels.len();
    let dead: Vec<usize> = (0..of).filter(|c| seen.channels[*c].lo == seen.channels[*c].hi).collect();
    if site.convolved && !dead.is_empty() {
        say(Symptom::DeadChannels { channels: dead, of });
    }
    let Some(Codes { scheme, range, scale }) = codes else { return found };
    let share = |n: u64| n as f64 / seen.count as f64;
    let (below, above) = (share(seen.below), share(seen.above));
    if below + above > SATURATED {
        say(Symptom::Saturating { below, above, range: *range });
    }
    if !scheme.format.is_float() {
        let held = seen
            .channels
            .iter()
            .map(|r| Range { lo: r.lo.clamp(range.lo, range.hi), hi: r.hi.clamp(range.lo, range.hi) });
        let (channels, of, codes) = narrow(&held.collect::<Vec<_>>(), *scale, few_codes(scheme));
        if !channels.is_empty() && channels.len() as f64 >= MANY_CHANNELS * of as f64 {
            say(Symptom::UnlikeChannels { channels, of, codes });
        }
    }
    found
}

/// Fewer codes than these are few: 8 of 256, 2 of 16.
fn few_codes(scheme: &Scheme) -> f64 {
    let (least, greatest) = scheme.bounds();
    let levels = f64::from(greatest) - f64::from(least) + 1.0;
    (levels / 32.0).clamp(2.0, 8.0)
}

/// The channels, dead ones left out, whose ranges are less than `few` steps wide, how many there
/// are that are not dead, and the most steps that one of these has.
fn narrow(channels: &[Range], scale: f32, few: f64) -> (Vec<usize>, usize, f64) {
    let steps = channels.iter().map(|r| (f64::from(r.hi) - f64::from(r.lo)) / f64::from(scale)).enumerate();
    let live: Vec<(usize, f64)> = steps.filter(|(_, steps)| *steps > 0.0).collect();
    let narrow = || live.iter().filter(|(_, steps)| *steps < few);
    (narrow().map(|(c, _)| *c).collect(), live.len(), narrow().map(|(_, steps)| *steps).fold(0.0, f64::max))
}

#[cfg(test)]
mod tests;
