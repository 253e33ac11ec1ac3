//! Ranges chosen point by point, by what they do to the model's outputs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result, invalid};
use crate::graph::Graph;
use crate::kept::Kept;
use crate::observer::{AnyObserver, Kind, ObserverConfig};
use crate::qparams::QParams;
use crate::quantize::{Prepared, Progress, Role, lock, spread, threads};
use crate::tensor::{DType, KeptMemory, Tensor};

/// What is tried, in the order of preference among equals.
const CANDIDATES: [ObserverConfig; 6] = [
    ObserverConfig::Mse,
    ObserverConfig::Percentile { percentile: 100.0 },
    ObserverConfig::Percentile { percentile: 99.999 },
    ObserverConfig::Percentile { percentile: 99.99 },
    ObserverConfig::Percentile { percentile: 99.9 },
    ObserverConfig::Entropy,
];

/// Gives each activation point with the observer [`ObserverConfig::Measured`] the one of least
/// squared error, min-max (the percentile 100), three percentiles and entropy whose range
/// harms the outputs the least (docs/quantization.md, equation 36).
///
/// All of them come from the same counts. Each is tried with this point alone quantized,
/// everything else in float, and costs, over `batches`,
///
/// `sum over outputs of |y - y'|^2 / |y|^2`
///
/// with `y` what the float model gives. Candidates of equal scale and zero point count once;
/// of equal costs the first stays. The batches and the float model's outputs are kept on disk; two
/// points are measured at a time, each on half of the threads, whose number does not matter for the result.
/// `progress` is called with the number of points done.
///
/// `prepared` is calibrated. If no point asks for it, `batches` is not read.
///
/// # Errors
/// If there is no batch or one does not fit the model, a point saw no value, or `progress`
/// stops it.
pub fn measured_ranges(
    prepared: &Prepared,
    batches: impl Iterator<Item = Result<Vec<Tensor>>>,
    progress: &Progress,
) -> Result<Prepared> {
    measured_beside(prepared, &mut MeasuredRanges::default(), batches, progress)
}

/// Ranges that were measured on some batches, each with all that it follows from but these.
#[derive(Clone, Debug, Default)]
pub(crate) struct MeasuredRanges(Vec<Arc<MeasuredRange>>);

#[derive(Debug)]
struct MeasuredRange {
    /// The float model with this point alone.
    graph: Graph,
    /// What each candidate makes of the values that the point has observed.
    params: Vec<QParams>,
    chosen: ObserverConfig,
}

impl MeasuredRanges {
    fn find(&self, graph: &Graph, params: &[QParams]) -> Option<ObserverConfig> {
        let found = self.0.iter().find(|known| known.params == params && known.graph == *graph);
        found.map(|known| known.chosen)
    }
}

/// [`measured_ranges`] where those `known` were measured on the same batches: what they follow from
/// is compared, so that the result is that of measuring all of them. Those that are measured now are
/// known afterwards.
///
/// # Errors
/// Those of [`measured_ranges`].
pub(crate) fn measured_beside(
    prepared: &Prepared,
    known: &mut MeasuredRanges,
    batches: impl Iterator<Item = Result<Vec<Tensor>>>,
    progress: &Progress,
) -> Result<Prepared> {
    let named = |point: usize| move |e: Error| e.at(&prepared.points()[point].name);
    let mut measured = prepared.clone();
    let mut choose = |point: usize, config: ObserverConfig| -> Result<()> {
        measured.point_mut(point).observer = prepared.points()[point].observer.as_kind(config)?;
        Ok(())
    };
    let (mut open, mut taken) = (vec![], 0);
    for point in asking(prepared) {
        let params = candidates(&prepared.points()[point].observer).map_err(named(point))?;
        let graph = prepared.with_one(point, params[0].clone())?.graph().clone();
        match known.find(&graph, &params) {
            Some(chosen) => {
                choose(point, chosen)?;
                taken += 1;
            }
            None => open.push((point, graph, params)),
        }
    }
    if taken > 0 {
        progress(taken)?;
    }
    if open.is_empty() {
        return Ok(measured);
    }
    let reference = Reference::of(prepared.graph(), batches)?;
    let found: Mutex<Vec<(usize, MeasuredRange)>> = Mutex::new(vec![]);
    let done = AtomicUsize::new(taken);
    let measure = |_, (point, graph, params): (usize, Graph, Vec<QParams>)| {
        let _kept = KeptMemory::up_to(0);
        let chosen = best(prepared, point, &params, &reference).map_err(named(point))?;
        lock(&found).push((point, MeasuredRange { graph, params, chosen }));
        progress(done.fetch_add(1, Ordering::Relaxed) + 1)
    };
    spread(threads(), open.into_iter(), measure, || ())?;
    for (point, range) in std::mem::take(&mut *lock(&found)) {
        choose(point, range.chosen)?;
        known.0.push(Arc::new(range));
    }
    Ok(measured)
}

/// The number of points whose ranges are to be measured.
pub fn points_to_measure(prepared: &Prepared) -> usize {
    asking(prepared).count()
}

fn asking(prepared: &Prepared) -> impl Iterator<Item = usize> {
    let asks = |i: &usize| {
        let point = &prepared.points()[*i];
        let measured = matches!(point.observer.kind(), Kind::Measured(_));
        measured && point.role == Role::Activation && point.given.is_none()
    };
    (0..prepared.points().len()).filter(asks)
}

/// What each candidate makes of the values that an observer has counted.
fn candidates(observer: &AnyObserver) -> Result<Vec<QParams>> {
    CANDIDATES.iter().map(|config| observer.as_kind(*config)?.qparams()).collect()
}

/// The candidate of least cost for a point.
fn best(
    prepared: &Prepared,
    point: usize,
    params: &[QParams],
    reference: &Reference,
) -> Result<ObserverConfig> {
    let first = |i: &usize| !params[..*i].contains(&params[*i]);
    let tried: Vec<usize> = (0..params.len()).filter(first).collect();
    let (mut least, mut best) = (f64::INFINITY, CANDIDATES[0]);
    for &i in tried.iter().filter(|_| tried.len() > 1) {
        let graph = prepared.with_one(point, params[i].clone())?.convert()?.graph;
        let cost = cost(&graph, reference)?;
        if cost < least {
            (least, best) = (cost, CANDIDATES[i]);
        }
    }
    Ok(best)
}

/// Batches, and what the float model gives for them, on disk.
struct Reference {
    inputs: Kept,
    outputs: Kept,
    batches: usize,
}

impl Reference {
    fn of(graph: &Graph, batches: impl Iterator<Item = Result<Vec<Tensor>>>) -> Result<Reference> {
        let _kept = KeptMemory::up_to(0);
        let mut reference = Reference { inputs: Kept::new()?, outputs: Kept::new()?, batches: 0 };
        for (i, batch) in batches.enumerate() {
            let batch = batch?;
            reference.outputs.add(i, &graph.run(&batch)?)?;
            reference.inputs.add(i, &batch)?;
            reference.batches += 1;
        }
        match reference.batches {
            0 => Err(invalid!("there is no data to measure ranges on: give at least one sample")),
            _ => Ok(reference),
        }
    }
}

/// The squared error of what `graph` gives, relative to the square of each output.
fn cost(graph: &Graph, reference: &Reference) -> Result<f64> {
    let mut sums: Vec<(f64, f64)> = vec![];
    for i in 0..reference.batches {
        let gone = || invalid!("a batch is gone");
        let found = graph.run(&reference.inputs.get(i)?.ok_or_else(gone)?)?;
        let wanted = reference.outputs.get(i)?.ok_or_else(gone)?;
        sums.resize(wanted.len(), (0.0, 0.0));
        for ((sum, wanted), found) in sums.iter_mut().zip(&wanted).zip(&found) {
            if wanted.dtype() != DType::F32 || wanted.shape() != found.shape() {
                continue;
            }
            for (y, f) in wanted.slice::<f32>()?.iter().zip(found.slice::<f32>()?) {
                let (y, f) = (f64::from(*y), f64::from(*f));
                sum.0 += (y - f) * (y - f);
                sum.1 += y * y;
            }
        }
    }
    Ok(sums.iter().filter(|(error, _)| *error > 0.0).map(|(error, signal)| error / signal).sum())
}

#[cfg(test)]
mod tests;
