//! A whole quantization: what a mapping asks for, pass after pass, from a float model.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use crate::data::{Dataset, batch_size, random_inputs};
use crate::error::{Result, invalid};
use crate::graph::Graph;
use crate::passes::{
    AdaroundOptions, MeasuredRanges, Reconstructed, adaround, awq, equalize, expected_means, measured_beside,
    points_to_measure, renormalize, smooth,
};
use crate::qconfig::QConfigMapping;
use crate::quantize::{Converted, Finding, Prepared, fuse, prepare, quantize_bodies, quantize_sparing};
use crate::tensor::Tensor;

/// Random samples that stand for those of a user who gives none.
const PROBES: usize = 8;

/// Samples that a step of learning looks at.
const LEARNED_AT_ONCE: usize = 32;

/// Batches that ranges are measured on, evenly spread over the samples.
const BATCHES_MEASURED: usize = 4;

/// Samples that passes look at, as often as they need to.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    /// Where they come from.
    pub data: &'a Dataset,
    /// How many run at once, where the model does not fix it.
    pub batch: usize,
}

impl<'a> Samples<'a> {
    /// The batches as the inputs of `graph`. Whoever reads them all knows [`Dataset::sha256`] too.
    pub fn tensors(&self, graph: &'a Graph) -> impl Iterator<Item = Result<Vec<Tensor>>> + Send + use<'a> {
        self.data.batches(batch_size(graph, self.batch)).hashed().tensors(graph)
    }

    /// The number of batches.
    pub fn count(&self, graph: &Graph) -> usize {
        self.data.len().div_ceil(batch_size(graph, self.batch))
    }
}

/// Work that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is being done: a present participle.
    pub stage: &'static str,
    /// Steps of it that are done.
    pub done: usize,
    /// Steps that there are.
    pub of: usize,
}

/// Told of each step; its error stops the work.
pub type Watch<'a> = dyn Fn(Step) -> Result<()> + Sync + 'a;

/// A calibrated model.
#[derive(Clone, Debug)]
pub struct Calibrated {
    /// The float model, fused and changed by the passes before preparation.
    pub float: Graph,
    /// Its points, which have seen the samples.
    pub prepared: Prepared,
    /// The ranges that were measured on these samples so far.
    pub(crate) ranges: MeasuredRanges,
}

impl Calibrated {
    /// [`calibrate`] by other rules for the same `float` and samples, which are not shown
    /// again to points that have seen them.
    ///
    /// # Errors
    /// What a pass reports, or `watch`.
    pub fn by(
        &self,
        float: &Graph,
        mapping: &QConfigMapping,
        samples: Samples<'_>,
        watch: &Watch<'_>,
    ) -> Result<Calibrated> {
        let original = float;
        let float = readied(original, mapping, Some(samples), watch)?;
        let mut ranges = self.ranges.clone();
        if float == self.float {
            let mut prepared = prepare(&float, mapping)?;
            if prepared.adopt(&self.prepared) {
                let prepared = expected_means(original, &prepared)?;
                let prepared = measured(prepared, &mut ranges, samples, watch)?;
                let prepared = learned(&float, prepared, samples, watch)?;
                let prepared = renormalized(&float, prepared, samples, watch)?;
                return Ok(Calibrated { float, prepared, ranges });
            }
        }
        let prepared = prepared(original, &float, mapping, &mut ranges, Some(samples), watch)?;
        Ok(Calibrated { float, prepared, ranges })
    }

    /// The Q/DQ model; bodies of control flow are quantized by the rules of `mapping`.
    ///
    /// # Errors
    /// If a point saw no value, or a body cannot be quantized.
    pub fn convert(&self, mapping: &QConfigMapping) -> Result<Converted> {
        let mut converted = self.prepared.convert()?;
        converted.graph = quantize_bodies(&converted.graph, mapping)?;
        Ok(converted)
    }
}

/// A quantized model.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// What it was converted from.
    pub calibrated: Calibrated,
    /// The Q/DQ graph.
    pub graph: Graph,
    /// What deserves attention.
    pub findings: Vec<Finding>,
}

/// Fuses `float`, runs the passes that `mapping` asks for, places its points, and shows
/// them the samples, if there are any.
///
/// # Errors
/// What a pass reports, or `watch`.
pub fn calibrate(
    float: &Graph,
    mapping: &QConfigMapping,
    samples: Option<Samples<'_>>,
    watch: &Watch<'_>,
) -> Result<Calibrated> {
    let original = float;
    let float = readied(original, mapping, samples, watch)?;
    let mut ranges = MeasuredRanges::default();
    let prepared = prepared(original, &float, mapping, &mut ranges, samples, watch)?;
    Ok(Calibrated { float, prepared, ranges })
}

/// [`calibrate`], then converts. Nodes whose activations have no ranges of their own, and
/// that break the model, stay in float: each is a [`Symptom::Spared`](crate::quantize::Symptom::Spared).
///
/// # Errors
/// What a pass reports, or `watch`.
pub fn quantize(
    float: &Graph,
    mapping: &QConfigMapping,
    samples: Option<Samples<'_>>,
    watch: &Watch<'_>,
) -> Result<Quantized> {
    let original = float;
    let float = readied(original, mapping, samples, watch)?;
    let (last, tried) = (RefCell::new(None), Cell::new(0));
    let convert = |mapping: &QConfigMapping| {
        let mut ranges = MeasuredRanges::default();
        let prepared = prepared(original, &float, mapping, &mut ranges, samples, watch)?;
        let calibrated = Calibrated { float: float.clone(), prepared, ranges };
        let converted = calibrated.convert(mapping)?;
        last.replace(Some(calibrated));
        tried.set(tried.get() + 1);
        watch(Step { stage: "converting", done: tried.get(), of: tried.get() })?;
        Ok(converted)
    };
    let converted = if mapping.is_static() {
        convert(mapping)
    } else {
        quantize_sparing(&float, mapping, &[probe(&float, samples)?], convert)
    };
    let Converted { graph, findings } = converted?;
    let calibrated = last.into_inner().ok_or_else(|| invalid!("nothing was quantized"))?;
    Ok(Quantized { calibrated, graph, findings })
}

/// The float model after the passes that come before preparation.
fn readied(
    float: &Graph,
    mapping: &QConfigMapping,
    samples: Option<Samples<'_>>,
    watch: &Watch<'_>,
) -> Result<Graph> {
    let mut graph = fuse(float)?;
    let of = samples.map_or(0, |samples| samples.count(&graph));
    let step = |stage| move |done| watch(Step { stage, done, of });
    graph = equalize(&graph, mapping, batches(samples, &graph), &step("equalizing"))?;
    graph = smooth(&graph, mapping, batches(samples, &graph), &step("smoothing"))?;
    if let Some(samples) = samples {
        graph = awq(&graph, mapping, samples.tensors(&graph), &step("rescaling"))?;
    }
    Ok(graph)
}

/// The batches of samples as the inputs of `graph`; none without samples.
fn batches<'a>(
    samples: Option<Samples<'a>>,
    graph: &'a Graph,
) -> impl Iterator<Item = Result<Vec<Tensor>>> + Send + use<'a> {
    samples.into_iter().flat_map(|samples| samples.tensors(graph))
}

/// The points of `graph`, which is `float` readied, calibrated.
fn prepared(
    float: &Graph,
    graph: &Graph,
    mapping: &QConfigMapping,
    ranges: &mut MeasuredRanges,
    samples: Option<Samples<'_>>,
    watch: &Watch<'_>,
) -> Result<Prepared> {
    let mut prepared = expected_means(float, &prepare(graph, mapping)?)?;
    if let Some(samples) = samples {
        let of = samples.count(graph);
        prepared.calibrate(samples.tensors(graph), &|done| watch(Step { stage: "calibrating", done, of }))?;
        prepared = measured(prepared, ranges, samples, watch)?;
        prepared = learned(graph, prepared, samples, watch)?;
        prepared = renormalized(graph, prepared, samples, watch)?;
    } else if let Some(point) = prepared.points().iter().find(|point| point.learns) {
        return Err(
            invalid!("a rounding is learned on samples: give some, or another rounding").at(&point.name)
        );
    }
    Ok(prepared)
}

/// The same points with the codes learned of those weights that ask for it.
fn learned(graph: &Graph, prepared: Prepared, samples: Samples<'_>, watch: &Watch<'_>) -> Result<Prepared> {
    if !prepared.points().iter().any(|point| point.learns) {
        return Ok(prepared);
    }
    let batches = Samples { batch: LEARNED_AT_ONCE, ..samples };
    let step = |block: &Reconstructed| {
        watch(Step { stage: "learning to round", done: block.number, of: block.blocks })
    };
    adaround(&prepared, batches.tensors(graph), &AdaroundOptions::default(), &mut { step })
}

/// The same with the means and deviations that are to be given back.
fn renormalized(
    graph: &Graph,
    prepared: Prepared,
    samples: Samples<'_>,
    watch: &Watch<'_>,
) -> Result<Prepared> {
    let of = samples.count(graph);
    renormalize(&prepared, samples.tensors(graph), &|done| watch(Step { stage: "renormalizing", done, of }))
}

/// The same with the ranges that are to be measured, where they are not known.
fn measured(
    prepared: Prepared,
    ranges: &mut MeasuredRanges,
    samples: Samples<'_>,
    watch: &Watch<'_>,
) -> Result<Prepared> {
    let of = points_to_measure(&prepared);
    if of == 0 {
        return Ok(prepared);
    }
    let apart = (samples.count(prepared.graph()) / BATCHES_MEASURED).max(1);
    let batches = samples.tensors(prepared.graph()).step_by(apart).take(BATCHES_MEASURED);
    let step = |done| watch(Step { stage: "measuring ranges", done, of });
    measured_beside(&prepared, ranges, batches, &step)
}

/// Inputs to try a model on: the first samples, or random ones.
fn probe(graph: &Graph, samples: Option<Samples<'_>>) -> Result<Vec<Tensor>> {
    match samples.and_then(|samples| samples.tensors(graph).next()) {
        Some(batch) => batch,
        None => random_inputs(graph, batch_size(graph, PROBES), &BTreeMap::new()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;

    use super::*;
    use crate::data::Preprocess;
    use crate::error::Error;
    use crate::onnx;
    use crate::qconfig::preset;

    fn demo() -> (Graph, Dataset) {
        let file =
            |name: &str| -> PathBuf { Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo").join(name) };
        let graph = onnx::load(file("digits.onnx")).unwrap();
        let pixels = Preprocess::from_toml("[array]\nkey = 'calibration'\nscale = 0.0625").unwrap();
        let inputs: Vec<_> = graph.inputs().map(|(_, v)| v.clone()).collect();
        let data = Dataset::open(&file("digits.npz"), &pixels, &inputs).unwrap();
        (graph, data)
    }

    #[test]
    fn it_is_the_stages_one_by_one() {
        let (float, data) = demo();
        let samples = Samples { data: &data, batch: 16 };
        let mut config = preset("default").unwrap();
        config.activation = config.activation.map(|spec| spec.equalizing(0.5));
        let mapping = QConfigMapping::global(config);
        let seen = Mutex::new(vec![]);
        let watch = |step: Step| {
            seen.lock().unwrap().push(step);
            Ok(())
        };
        let made = quantize(&float, &mapping, Some(samples), &watch).unwrap();
        let fused = fuse(&float).unwrap();
        let fused = equalize(&fused, &mapping, samples.tensors(&fused), &|_| Ok(())).unwrap();
        let mut prepared = prepare(&fused, &mapping).unwrap();
        prepared.calibrate(samples.tensors(&fused), &|_| Ok(())).unwrap();
        let prepared = renormalize(&prepared, samples.tensors(&fused), &|_| Ok(())).unwrap();
        assert_eq!(made.graph, prepared.convert().unwrap().graph);
        let mut stages: Vec<&str> = seen.into_inner().unwrap().into_iter().map(|s| s.stage).collect();
        stages.dedup();
        assert_eq!(stages, ["equalizing", "calibrating", "renormalizing", "converting"]);
    }

    #[test]
    fn a_watch_stops_it() {
        let (float, data) = demo();
        let samples = Some(Samples { data: &data, batch: 16 });
        for (stage, name) in
            [("calibrating", "default"), ("converting", "default"), ("converting", "dynamic")]
        {
            let mapping = QConfigMapping::global(preset(name).unwrap());
            let watch = |step: Step| if step.stage == stage { Err(Error::Interrupted) } else { Ok(()) };
            let stopped = quantize(&float, &mapping, samples, &watch);
            assert!(matches!(stopped, Err(Error::Interrupted)), "{stage}, {name}");
        }
    }
}
