//! One pass over samples, with everything that is kept of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;

use super::inputs::Inputs;
use super::seen::Seen;
use super::sites::Sites;
use crate::analysis::elements::elements;
use crate::data::{Batch, inputs_of};
use crate::error::{Result, invalid};
use crate::graph::{Graph, Kind, Var};
use crate::observer::{AnyObserver, Kind as Observer};
use crate::qparams::Range;
use crate::quantize::{InTurn, Progress, lock, spread};
use crate::tensor::{KeptMemory, Tensor};

/// What was seen of a point.
#[derive(Clone, Debug)]
pub(in crate::analysis) struct Watched {
    /// Of each of its values.
    pub seen: Vec<Seen>,
    /// The point's observer, which sees one batch after the other, if ranges are followed.
    observer: Option<AnyObserver>,
    /// The range that it finds after 1, 2, 4, ... batches.
    pub ranges: Vec<Option<Range>>,
}

impl Watched {
    /// Nothing yet of so many values.
    pub fn new(values: usize, observer: Option<AnyObserver>) -> Watched {
        let looks = |o: &AnyObserver| !matches!(o.kind(), Observer::Fixed(_) | Observer::None(_));
        Watched { seen: vec![Seen::default(); values], observer: observer.filter(looks), ranges: vec![] }
    }

    /// The range that the observer finds in all that it saw.
    pub fn range(&self) -> Option<Range> {
        let ranges = self.observer.as_ref()?.ranges().ok()?;
        ranges.into_iter().reduce(Range::union)
    }

    fn add(&mut self, batch: usize, at: usize, value: &Tensor, to: &Showing) -> Result<bool> {
        if at == 0 && batch.is_power_of_two() && self.observer.is_some() {
            self.ranges.push(self.range());
        }
        let finite = self.seen[at].add(value, to.axis, to.limits, to.sample)?;
        if let Some(observer) = self.observer.as_mut().filter(|_| finite) {
            observer.observe(value)?;
        }
        Ok(finite)
    }
}

/// How a value is looked at.
struct Showing<'a> {
    axis: Option<usize>,
    limits: Option<Range>,
    sample: &'a str,
}

/// Elements that are not finite, of the value where they arise.
#[derive(Clone, Debug)]
pub(in crate::analysis) struct Broken {
    pub nan: u64,
    pub infinite: u64,
    /// Index and name of the first sample that has one.
    first: (usize, String),
}

impl Broken {
    pub fn sample(&self) -> &str {
        &self.first.1
    }
}

/// What a pass has found.
#[derive(Debug)]
pub(in crate::analysis) struct Pass {
    pub points: Vec<Watched>,
    pub inputs: Inputs,
    pub samples: usize,
    /// The samples in the first 1, 2, 4, ... batches.
    pub counts: Vec<usize>,
    /// Values that are not finite although all they are made of is.
    pub broken: BTreeMap<Var, Broken>,
}

/// Runs `graph` on all batches, several at a time, and shows its values in their order, so
/// that the result does not depend on the number of `threads`. `points` is what is kept of
/// each point, and `limits` the elements that are not counted as outside.
///
/// # Errors
/// If there is no sample, a batch cannot be read or does not fit the model, or `progress`
/// stops it.
pub(super) fn pass(
    graph: &Graph,
    sites: &Sites,
    points: Vec<Watched>,
    limits: &[Option<Range>],
    batches: impl Iterator<Item = Result<Batch>> + Send,
    threads: usize,
    progress: &Progress,
) -> Result<Pass> {
    let in_turn: Vec<InTurn<Watched>> = points.into_iter().map(InTurn::new).collect();
    let inputs = InTurn::new((Inputs::default(), 0, vec![]));
    let broken: Mutex<BTreeMap<Var, Broken>> = Mutex::default();
    let work = |i: usize, batch: Result<Batch>| -> Result<()> {
        let (_kept, batch) = (KeptMemory::up_to(0), batch?);
        let sample = name_of(&batch);
        let tensors = inputs_of(graph, &batch)?;
        inputs.change(i, |(inputs, samples, counts)| {
            if i.is_power_of_two() {
                counts.push(*samples);
            }
            *samples += batch.names.len();
            inputs.add(&tensors, batch.names.len())
        })?;
        let mut finite = true;
        let outputs = graph.run_watched(
            &tensors,
            |v| sites.of(v).is_some(),
            |v, _, value| {
                let Some(site) = sites.of(v) else { return Ok(()) };
                let to = Showing { axis: site.axis, limits: limits[site.point], sample: &sample };
                in_turn[site.point].change(i * sites.count(site.point) + site.at, |p| {
                    finite &= p.add(i, site.at, value, &to)?;
                    Ok(())
                })
            },
        );
        let outputs = outputs.map_err(|e| e.at(format!("sample {sample}")))?;
        if !finite || outputs.iter().any(|y| not_finite(y) != [0, 0]) {
            for (v, [nan, infinite]) in origins(graph, &tensors)? {
                let mut broken = lock(&broken);
                let first = (i, sample.clone());
                let of_value =
                    broken.entry(v).or_insert(Broken { nan: 0, infinite: 0, first: first.clone() });
                of_value.nan += nan;
                of_value.infinite += infinite;
                of_value.first = of_value.first.clone().min(first);
            }
        }
        progress(i + 1)
    };
    spread(threads, batches, work, || {
        in_turn.iter().for_each(InTurn::abandon);
        inputs.abandon();
    })?;
    let (inputs, samples, counts) = inputs.into_inner();
    if samples == 0 {
        return Err(invalid!("the data holds no sample"));
    }
    let points = in_turn.into_iter().map(InTurn::into_inner).collect();
    let broken = std::mem::take(&mut *lock(&broken));
    Ok(Pass { points, inputs, samples, counts, broken })
}

/// The name of a batch's sample, or of its first and last.
fn name_of(batch: &Batch) -> String {
    match &batch.names[..] {
        [] => String::new(),
        [one] => one.clone(),
        [first, .., last] => format!("{first} to {last}"),
    }
}

/// How many elements are NaN and how many infinite.
fn not_finite(t: &Tensor) -> [u64; 2] {
    if !t.dtype().is_float() {
        return [0, 0];
    }
    let count = |x: &[f32]| {
        let nan = x.iter().filter(|x| x.is_nan()).count() as u64;
        [nan, x.iter().filter(|x| !x.is_finite()).count() as u64 - nan]
    };
    elements(t).map_or([0, 0], |x| count(&x))
}

/// The values that are not finite although all that they are made of is, with the number of
/// their elements that are NaN and infinite.
fn origins(graph: &Graph, inputs: &[Tensor]) -> Result<HashMap<Var, [u64; 2]>> {
    let (mut origins, mut bad) = (HashMap::new(), HashSet::new());
    graph.run_with(inputs, |v, node, value| {
        let counts = not_finite(value);
        if counts != [0, 0] {
            let operands: &[Var] = match &node.kind {
                Kind::Apply { inputs, .. } => inputs,
                _ => &[],
            };
            let stored = |x: &Var| graph.constant(*x).is_some_and(|t| not_finite(t) != [0, 0]);
            if !operands.iter().any(|x| bad.contains(x) || stored(x)) {
                origins.insert(v, counts);
            }
            bad.insert(v);
        }
        Ok(())
    })?;
    Ok(origins)
}
