//! Which layers bear quantization: each quantized alone, or each alone left in float.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering as Access};

use serde::{Deserialize, Serialize};

use super::reference::Reference;
use super::scores::{Metric, Scores};
use crate::data::{Batch, Journal};
use crate::error::{Result, invalid};
use crate::graph::{Node, Var};
use crate::qconfig::Target;
use crate::quantize::{Prepared, Progress, lock, mark, spread, threads};

/// What is measured, and how.
#[derive(Clone, Debug, Default)]
pub struct SensitivityOptions {
    /// Leave one layer at a time in float and quantize all others, in place of the reverse.
    /// What others make or read stays quantized, so that it is mostly the error of the
    /// layer's weight that goes.
    pub all_but_one: bool,
    /// Globs of node names, or of their outputs' names: what one matches is measured as one
    /// layer. Without any, each node with a weight is one.
    pub by: Vec<String>,
    /// Where results are kept as they come, one JSON object a line, and what was measured
    /// before is read from.
    pub resume: Option<PathBuf>,
    /// Threads that measure, two layers at a time; one for each core if `None`.
    pub threads: Option<usize>,
}

/// How a model does with one layer quantized, or all but one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerScore {
    /// The layer: the name of its node, or the glob.
    pub layer: String,
    /// Its nodes.
    pub nodes: Vec<String>,
    /// The outputs against those of the float model.
    pub scores: Scores,
}

/// How a model does with each of its layers quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// The number of samples.
    pub samples: usize,
    /// Whether each layer is the one that is left in float.
    pub all_but_one: bool,
    /// The share of samples that the float model has right, if there are labels.
    pub float_top1: Option<f64>,
    /// With everything quantized.
    pub everything: Scores,
    /// One score a layer, in evaluation order.
    pub layers: Vec<LayerScore>,
}

impl Sensitivity {
    /// The layers that harm the model the most first: with the worst scores alone, or
    /// with the best ones where they are left out. Equal ones are in evaluation order.
    ///
    /// # Errors
    /// If the data or the outputs do not give the metric.
    pub fn ranked(&self, metric: Metric) -> Result<Vec<&LayerScore>> {
        let harm = |layer: &LayerScore| layer.scores.harm(metric);
        let mut ranked = self.layers.iter().map(|l| Ok((harm(l)?, l))).collect::<Result<Vec<_>>>()?;
        let order: fn(&f64, &f64) -> Ordering =
            if self.all_but_one { |a, b| a.total_cmp(b) } else { |a, b| b.total_cmp(a) };
        ranked.sort_by(|a, b| order(&a.0, &b.0));
        Ok(ranked.into_iter().map(|(_, layer)| layer).collect())
    }
}

/// Runs a calibrated model with one layer quantized at a time, or all but one, and compares
/// its outputs with those of the float model on the same samples.
///
/// A layer is quantized with its operands and with what it makes (an activation function
/// right after it included), as [`Prepared::only`] says; its ranges are those that
/// `prepared` has observed. So each is the model that [`Prepared::convert`] would make of
/// rules for this layer alone.
///
/// `batches` is called once for each layer and once for the float model. Two layers are measured
/// at a time, each on half of the threads and on one batch with its activations; the outputs of
/// the float model are kept on disk. The result does not depend on the number of
/// threads. `progress` is called with the number of layers done, those that a file from an
/// earlier run has included; its error stops the measurement.
///
/// # Errors
/// If there is no sample or no layer, a glob matches no node that is quantized, `prepared`
/// has not been calibrated, the file of an earlier run is not of this model, data and
/// options, or a model cannot be run.
pub fn sensitivity<B: Iterator<Item = Result<Batch>> + Send>(
    prepared: &Prepared,
    batches: impl Fn() -> B + Sync,
    options: &SensitivityOptions,
    progress: &Progress,
) -> Result<Sensitivity> {
    let blocks = blocks(prepared, &options.by)?;
    let prepared = prepared.frozen()?;
    let threads = options.threads.unwrap_or_else(threads).max(1);
    let reference = Reference::of(prepared.graph(), batches(), threads)?;
    let header = Header { sensitivity: key(&reference, &prepared), all_but_one: options.all_but_one };
    let mut journal: Journal<Line> = Journal::open(options.resume.as_deref(), &header)?;
    let mut found: Vec<Option<Scores>> = blocks.iter().map(|block| kept(&mut journal, block)).collect();
    let done = AtomicUsize::new(found.iter().skip(1).flatten().count());
    progress(done.load(Access::Relaxed))?;
    let open: Vec<usize> = (0..blocks.len()).filter(|i| found[*i].is_none()).collect();
    let results = Mutex::new((&mut found, journal));
    let measure = |i: usize| -> Result<()> {
        let block = &blocks[i];
        let active = |v: Var| block.name.is_none() || block.values.contains(&v) != options.all_but_one;
        let graph = prepared.only(active)?.convert()?.graph;
        let scores = reference.compared(&graph, batches())?;
        let (found, journal) = &mut *lock(&results);
        journal.add(&Line {
            layer: block.name.clone(),
            nodes: block.nodes.clone(),
            scores: scores.clone(),
        })?;
        found[i] = Some(scores);
        if block.name.is_some() {
            progress(done.fetch_add(1, Access::Relaxed) + 1)?;
        }
        Ok(())
    };
    let named = |i: usize| measure(i).map_err(|e| e.at(blocks[i].name.as_deref().unwrap_or("everything")));
    spread(threads, open.into_iter(), |_, i| named(i), || ())?;
    drop(results);
    let missing = || invalid!("a layer was not measured");
    let mut found = found.into_iter().map(|scores| scores.ok_or_else(missing));
    let everything = found.next().unwrap_or_else(|| Err(missing()))?;
    let layers = blocks.into_iter().skip(1).zip(found).map(|(block, scores)| {
        let (layer, nodes) = (block.name.unwrap_or_default(), block.nodes);
        Ok(LayerScore { layer, nodes, scores: scores? })
    });
    Ok(Sensitivity {
        samples: reference.samples,
        all_but_one: options.all_but_one,
        float_top1: reference.own.top1,
        everything,
        layers: layers.collect::<Result<_>>()?,
    })
}

/// The first line of a file of results: what they are of.
#[derive(PartialEq, Serialize, Deserialize)]
struct Header {
    /// A checksum of model, ranges and data.
    sensitivity: u32,
    all_but_one: bool,
}

/// Another line: a result.
#[derive(Serialize, Deserialize)]
struct Line {
    /// The layer; none for everything.
    layer: Option<String>,
    nodes: Vec<String>,
    scores: Scores,
}

/// The result of a block that an earlier run has kept.
fn kept(journal: &mut Journal<Line>, block: &Block) -> Option<Scores> {
    let is = |line: &Line| line.layer == block.name && line.nodes == block.nodes;
    Some(journal.take(is)?.scores)
}

/// A checksum of what results depend on: the float model's outputs and the scales.
fn key(reference: &Reference, prepared: &Prepared) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(&reference.checksum().to_le_bytes());
    for point in prepared.points() {
        crc.update(point.name.as_bytes());
        crc.update(point.scheme.to_string().as_bytes());
        if let Some(params) = &point.given {
            params.scale.iter().for_each(|s| crc.update(&s.to_le_bytes()));
            params.zero_point.iter().for_each(|z| crc.update(&z.to_le_bytes()));
        }
    }
    crc.sum()
}

/// Nodes that are measured together.
struct Block {
    /// Its name; none for everything.
    name: Option<String>,
    nodes: Vec<String>,
    /// The first outputs of the nodes.
    values: HashSet<Var>,
}

/// Everything, and then each layer.
fn blocks(prepared: &Prepared, by: &[String]) -> Result<Vec<Block>> {
    let graph = prepared.graph();
    let name =
        |node: &Node| if node.name.is_empty() { node.outputs[0].name.clone() } else { node.name.clone() };
    let mut blocks = vec![Block { name: None, nodes: vec![], values: HashSet::new() }];
    for (v, node) in prepared.layers().filter(|_| by.is_empty()) {
        let values = HashSet::from([v]);
        blocks.push(Block { name: Some(name(node)), nodes: vec![name(node)], values });
    }
    for glob in by {
        let target = Target::name(glob)?;
        let nodes = graph.applied().filter(|(v, node, op, _)| {
            let mut names = std::iter::once(&node.name).chain(node.outputs.iter().map(|o| &o.name));
            mark(graph, *v).is_none() && names.any(|n| target.matches_module(n, op.name()))
        });
        let nodes: Vec<_> = nodes.collect();
        let quantized = |inputs: &[Var]| inputs.iter().any(|x| mark(graph, *x).is_some());
        if !nodes.iter().any(|(.., inputs)| quantized(inputs)) {
            return Err(invalid!("{glob:?} matches no node that is quantized"));
        }
        blocks.push(Block {
            name: Some(glob.clone()),
            nodes: nodes.iter().map(|(_, node, ..)| name(node)).collect(),
            values: nodes.iter().map(|(v, ..)| *v).collect(),
        });
    }
    match blocks.len() {
        1 => Err(invalid!("the model has no layer with a weight that the rules quantize")),
        _ => Ok(blocks),
    }
}

#[cfg(test)]
mod tests;
