//! The search for the fastest model that is good enough.
//!
//! A float model is quantized throughout; where that is not good enough, remedies are tried
//! in the order of what they cost, and then the layers that hurt most are left in float, as
//! few as it takes. No labels are needed. Every model that is tried follows from rules
//! ([`QConfigMapping`]), so that it can be made again by [`crate::recipe::quantize`].

mod bar;
mod layers;
mod remedies;
mod trial;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use bar::{Bar, Goal};
pub use trial::{Measured, Trial};

use self::layers::LATE;
use self::remedies::REMEDIES;
use crate::analysis::{Latency, Reference, Runner, Sensitivity, Subject, diagnose};
use crate::data::{Journal, batch_size, random_inputs};
use crate::error::{Result, invalid};
use crate::graph::Graph;
use crate::qconfig::QConfigMapping;
use crate::quantize::{Finding, Severity, fuse, threads};
use crate::recipe::{self, Calibrated, Samples, Step};
use crate::session::Session;

/// The model, and what it is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The float model.
    pub float: &'a Graph,
    /// The samples that ranges are found on.
    pub calibration: Samples<'a>,
    /// The samples that models are judged by.
    pub judged: Samples<'a>,
}

/// What is wanted, and how long it may take.
#[derive(Clone, Debug)]
pub struct Options {
    /// How good a model must be; if it is not said, [`Goal::usual`].
    pub goal: Option<Goal>,
    /// The longest that a sample may take, in milliseconds.
    pub most_ms: Option<f64>,
    /// The rules to begin with.
    pub mapping: QConfigMapping,
    /// When to stop looking for something better, earlier runs of the same search included.
    pub time: Option<Duration>,
    /// A folder in which results are kept as they come, and from which an interrupted
    /// search goes on.
    pub folder: Option<PathBuf>,
}

/// What happens on the way.
#[derive(Debug)]
pub enum Event<'a> {
    /// A step of a stage is done.
    Step(Step),
    /// Something was found out.
    Said(&'a str),
    /// A model was tried.
    Tried(&'a Trial),
    /// A model is the best so far.
    Best(&'a Graph, &'a Trial),
}

/// Told of what happens; its error stops the search.
pub type Listener<'a> = dyn Fn(Event<'_>) -> Result<()> + Sync + 'a;

/// How a search went.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What had to be reached.
    pub bar: Bar,
    /// The number of samples that models were judged by.
    pub samples: usize,
    /// The models, in the order in which they were tried.
    pub trials: Vec<Trial>,
    /// The index of the best one.
    pub best: usize,
    /// Whether it reaches the bar.
    pub met: bool,
    /// The median time of a sample in float, in milliseconds.
    pub float_ms: f64,
    /// What deserved attention in the model that was tried first, where it was not enough.
    pub findings: Vec<Finding>,
    /// How the layers bear quantization, where that had to be measured.
    pub sensitivity: Option<Sensitivity>,
    /// How the search ended, in words.
    pub verdict: String,
}

/// Looks for the fastest model that reaches the bar.
///
/// Each model that is better than all before is given to `listener` ([`Event::Best`]). Scores
/// do not depend on the machine or the number of threads, and decisions depend on times only
/// where the bar has one, or where time is up: with a folder, a search that was stopped and
/// goes on ends with the same model as one that was not.
///
/// At any time two batches with their activations are held at most, beside the models;
/// the float model's outputs are kept on disk.
///
/// # Errors
/// If the bar asks for what data or model do not have, the folder is of another search, a
/// model cannot be made or run, or `listener` stops it.
pub fn examine(case: &Case<'_>, options: &Options, listener: &Listener<'_>) -> Result<Outcome> {
    let mut search = Search::begin(case, options, listener)?;
    let reason = search.run()?;
    search.end(&reason)
}

/// The first line of the file of results: what they are of.
#[derive(PartialEq, Serialize, Deserialize)]
struct Header {
    /// A checksum of what the float model says of the samples that models are judged by.
    doctor: u32,
    /// The SHA-256 of the calibration samples.
    calibration: String,
    bar: Bar,
}

/// Another line: a model that was tried.
#[derive(Serialize, Deserialize)]
struct Line {
    rules: String,
    measured: Measured,
    seconds: f64,
}

/// A search under way.
struct Search<'a> {
    case: &'a Case<'a>,
    options: &'a Options,
    listener: &'a Listener<'a>,
    bar: Bar,
    reference: Reference,
    journal: Journal<Line>,
    started: Instant,
    /// Seconds of earlier runs whose results were taken over.
    before: f64,
    trials: Vec<Trial>,
    best: Option<usize>,
    /// The trial whose model was given away last.
    given: Option<usize>,
    /// What has seen the samples, of as many points as there were.
    calibrated: Option<Calibrated>,
    findings: Vec<Finding>,
    sensitivity: Option<Sensitivity>,
}

impl<'a> Search<'a> {
    fn begin(case: &'a Case<'a>, options: &'a Options, listener: &'a Listener<'a>) -> Result<Search<'a>> {
        let started = Instant::now();
        let Case { float, judged, calibration } = case;
        let batch = batch_size(float, judged.batch);
        let reference = Reference::of(float, judged.data.batches(batch), threads())?;
        let goal = options.goal.unwrap_or_else(|| Goal::usual(&reference.own));
        let bar = Bar { goal: goal.resolved(&reference.own)?, most_ms: options.most_ms };
        let header = Header { doctor: reference.checksum(), calibration: calibration.data.sha256()?, bar };
        let path = options.folder.as_ref().map(|folder| folder.join("trials.jsonl"));
        let journal = Journal::open(path.as_deref(), &header)?;
        Ok(Search {
            case,
            options,
            listener,
            bar,
            reference,
            journal,
            started,
            before: 0.0,
            trials: vec![],
            best: None,
            given: None,
            calibrated: None,
            findings: vec![],
            sensitivity: None,
        })
    }

    /// Tries one thing after the other. Returns why it ended.
    fn run(&mut self) -> Result<String> {
        let why = "what computes most in integers is fastest";
        let first = self.attempt("quantized throughout", why, self.options.mapping.clone())?;
        let Trial { measured, meets, .. } = &self.trials[first];
        if *meets {
            return Ok("nothing had to be mended".into());
        }
        if !self.bar.is_fast(measured) {
            let ms = measured.ms;
            return Ok(format!(
                "even quantized throughout, a sample takes {ms:.3} ms: no remedy makes that faster"
            ));
        }
        self.look_closer()?;
        for remedy in REMEDIES {
            let Some(mapping) = remedy.applied(&self.best().mapping, self.case.float) else { continue };
            if self.is_late() {
                return Ok(LATE.into());
            }
            let tried = self.attempt(remedy.title, remedy.why, mapping)?;
            if self.trials[tried].meets {
                return Ok(format!("it took {}", remedy.title));
            }
        }
        self.spare_layers()
    }

    /// Says what deserves attention in the model as it was to be quantized.
    fn look_closer(&mut self) -> Result<()> {
        let (mapping, Case { calibration, judged, float }) = (&self.options.mapping, self.case);
        if !mapping.is_static() {
            return Ok(());
        }
        let calibrated = self.calibrated(mapping)?;
        let converted = calibrated.convert(mapping)?;
        let subject = Subject {
            float: &calibrated.float,
            mapping,
            quantized: Some((&calibrated.prepared, &converted)),
            fastest: None,
        };
        let of = calibration.data.len() + judged.data.len();
        let progress = |done| (self.listener)(Event::Step(Step { stage: "looking closer", done, of }));
        let single = |samples: &Samples<'a>| samples.data.batches(batch_size(float, 1));
        let found = diagnose(&subject, single(calibration), Some(single(judged)), None, &progress)?;
        for finding in found.findings.iter().filter(|f| f.severity() < Severity::Note) {
            self.say(&format!("{finding}: {}", finding.suggestion()))?;
        }
        self.findings = found.findings;
        Ok(())
    }

    fn end(mut self, reason: &str) -> Result<Outcome> {
        let best = self.best.ok_or_else(|| invalid!("no model was tried"))?;
        if self.given != Some(best) {
            let graph = self.made(&self.trials[best].mapping.clone())?;
            (self.listener)(Event::Best(&graph, &self.trials[best]))?;
        }
        let trial = &self.trials[best];
        let (met, said) = (trial.meets, self.bar.goal.said(&trial.measured.scores));
        let outcome = if met { "reached" } else { "not reached" };
        let (ms, float_ms) = (trial.measured.ms, latency(&Session::compile(&fuse(self.case.float)?)?)?);
        let mut verdict = format!(
            "{}: {outcome}, {said} with {:?}; {reason}; a sample takes {ms:.3} ms, in float {float_ms:.3} ms",
            self.bar, trial.title
        );
        if ms > float_ms {
            verdict += ": so it only saves space, and a lower bar would save time";
        }
        Ok(Outcome {
            bar: self.bar,
            samples: self.reference.samples,
            trials: self.trials,
            best,
            met,
            float_ms,
            findings: self.findings,
            sensitivity: self.sensitivity,
            verdict,
        })
    }

    fn best(&self) -> &Trial {
        &self.trials[self.best.unwrap_or(0)]
    }

    /// Whether the time is up.
    fn is_late(&self) -> bool {
        let spent = self.before + self.started.elapsed().as_secs_f64();
        self.options.time.is_some_and(|most| spent > most.as_secs_f64())
    }

    fn watch(&self) -> impl Fn(Step) -> Result<()> + Sync + use<'a> {
        let listener = self.listener;
        move |step| listener(Event::Step(step))
    }

    fn say(&self, text: &str) -> Result<()> {
        (self.listener)(Event::Said(text))
    }

    /// Makes the model that follows from these rules, or takes over what an earlier run
    /// has measured of it, and keeps it if it is the best. Returns the trial's index.
    fn attempt(&mut self, title: &str, why: &str, mapping: QConfigMapping) -> Result<usize> {
        let start = Instant::now();
        let rules = mapping.to_toml()?;
        let (graph, measured, seconds) = match self.journal.take(|line| line.rules == rules) {
            Some(line) => {
                self.before += line.seconds;
                (None, line.measured, line.seconds)
            }
            None => {
                let graph = self.made(&mapping)?;
                let measured = self.measured(&graph)?;
                let seconds = start.elapsed().as_secs_f64();
                self.journal.add(&Line { rules, measured: measured.clone(), seconds })?;
                (Some(graph), measured, seconds)
            }
        };
        let before = self.best.map(|best| &self.trials[best].measured);
        let kept = before.is_none_or(|before| measured.is_better(before, &self.bar));
        let meets = self.bar.is_met(&measured);
        let text = self.story(&measured, before, meets, kept);
        let (title, why) = (title.into(), why.into());
        self.trials.push(Trial { title, why, mapping, measured, meets, kept, text, seconds });
        let index = self.trials.len() - 1;
        (self.listener)(Event::Tried(&self.trials[index]))?;
        if kept {
            self.best = Some(index);
            if let Some(graph) = graph {
                (self.listener)(Event::Best(&graph, &self.trials[index]))?;
                self.given = Some(index);
            }
        }
        Ok(index)
    }

    fn story(&self, measured: &Measured, before: Option<&Measured>, meets: bool, kept: bool) -> String {
        let said = self.bar.goal.said(&measured.scores);
        let end = match (meets, kept, before) {
            (true, true, _) => "enough: the best so far",
            (true, false, _) => "enough, but slower or larger than the best so far",
            (false, true, None) => "not enough",
            (false, true, Some(_)) => "better, and not enough: kept",
            (false, false, _) => "no better: dropped",
        };
        format!("{said}: {end}")
    }

    /// The model that follows from these rules.
    fn made(&mut self, mapping: &QConfigMapping) -> Result<Graph> {
        if !mapping.is_static() {
            let Case { float, calibration, .. } = self.case;
            return Ok(recipe::quantize(float, mapping, Some(*calibration), &self.watch())?.graph);
        }
        Ok(self.calibrated(mapping)?.convert(mapping)?.graph)
    }

    /// The model calibrated for these rules, by what was seen before where that serves.
    fn calibrated(&mut self, mapping: &QConfigMapping) -> Result<Calibrated> {
        let Case { float, calibration, .. } = self.case;
        let watch = self.watch();
        let calibrated = match &self.calibrated {
            Some(before) => before.by(float, mapping, *calibration, &watch)?,
            None => recipe::calibrate(float, mapping, Some(*calibration), &watch)?,
        };
        let points = |c: &Calibrated| c.prepared.points().len();
        match &mut self.calibrated {
            Some(before) if points(before) > points(&calibrated) => {
                before.ranges.clone_from(&calibrated.ranges);
            }
            kept => *kept = Some(calibrated.clone()),
        }
        Ok(calibrated)
    }

    fn measured(&self, graph: &Graph) -> Result<Measured> {
        let Case { judged, .. } = self.case;
        let session = Session::compile(graph)?;
        let batch = batch_size(graph, judged.batch);
        let of = judged.data.len().div_ceil(batch);
        let judging = |(done, batch)| {
            (self.listener)(Event::Step(Step { stage: "judging", done, of }))?;
            batch
        };
        let batches = judged.data.batches(batch).enumerate().map(judging);
        Ok(Measured {
            scores: self.reference.compared(&session, batches)?,
            integer_share: session.report().coverage(),
            bytes: graph.nodes().filter_map(|(v, _)| graph.constant(v)).map(|t| t.byte_len() as u64).sum(),
            ms: latency(&session)?,
        })
    }
}

/// The median time of one sample, in milliseconds.
fn latency(session: &Session) -> Result<f64> {
    const RUNS: usize = 15;
    let graph = Runner::graph(session);
    let inputs = random_inputs(graph, 1, &BTreeMap::new())?;
    let mut seconds = vec![];
    for _ in 0..RUNS {
        let start = Instant::now();
        session.run(&inputs)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let ms = Latency::of(&seconds[RUNS / 5..]).map_or(0.0, |latency| latency.median_ms);
    Ok(ms / batch_size(graph, 1) as f64)
}

#[cfg(test)]
mod tests;
