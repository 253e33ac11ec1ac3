//! Ranges chosen point by point, by what they do to the model's outputs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Result, invalid};
use crate::graph::Graph;
use crate::kept::Kept;
use crate::observer::{AnyObserver, Kind, ObserverConfig};
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
    let asking: Vec<usize> = asking(prepared).collect();
    if asking.is_empty() {
        return Ok(prepared.clone());
    }
    let reference = Reference::of(prepared.graph(), batches)?;
    let chosen: Mutex<Vec<(usize, AnyObserver)>> = Mutex::new(vec![]);
    let done = AtomicUsize::new(0);
    let choose = |_, point: usize| {
        let _kept = KeptMemory::up_to(0);
        let best = best(prepared, point, &reference).map_err(|e| e.at(&prepared.points()[point].name))?;
        lock(&chosen).push((point, best));
        progress(done.fetch_add(1, Ordering::Relaxed) + 1)
    };
    spread(threads(), asking.into_iter(), choose, || ())?;
    let mut measured = prepared.clone();
    for (point, observer) in std::mem::take(&mut *lock(&chosen)) {
        measured.point_mut(point).observer = observer;
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

/// The observer of least cost for a point.
fn best(prepared: &Prepared, point: usize, reference: &Reference) -> Result<AnyObserver> {
    let observer = &prepared.points()[point].observer;
    let mut tried = vec![];
    for config in CANDIDATES {
        let candidate = observer.as_kind(config)?;
        let params = candidate.qparams()?;
        if tried.iter().all(|(_, seen)| *seen != params) {
            tried.push((candidate, params));
        }
    }
    let mut least = f64::INFINITY;
    let mut tried = tried.into_iter();
    let (mut best, params) = tried.next().ok_or_else(|| invalid!("has no range"))?;
    let mut others = tried.peekable();
    if others.peek().is_none() {
        return Ok(best);
    }
    for (candidate, params) in std::iter::once((best.clone(), params)).chain(others) {
        let graph = prepared.with_one(point, params)?.convert()?.graph;
        let cost = cost(&graph, reference)?;
        if cost < least {
            (least, best) = (cost, candidate);
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
