//! Where quantization changes a model: a float graph against its Q/DQ graph,
//! value by value.

mod following;
mod shadow;

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Serialize;

pub use shadow::{Shadow, ShadowError, ValueMetric, kl_divergence, shadow};

use super::elements::elements;
use crate::data::{Batch, inputs_of};
use crate::error::{Result, invalid};
use crate::graph::{Graph, Kind, Var};
use crate::ops::quantize::DequantizeLinear;
use crate::passes::ChannelScales;
use crate::tensor::{DType, KeptMemory, Tensor};
use following::{follow, places};

/// A value of less SQNR than this is [`Verdict::Broken`]: its error has a
/// sixth of its power.
pub const BROKEN_DB: f64 = 8.0;

/// A value of less SQNR than this is [`Verdict::Poor`]: its error has a
/// hundredth of its power.
pub const POOR_DB: f64 = 20.0;

/// What an SQNR means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// [`POOR_DB`] or more.
    Good,
    /// Between [`BROKEN_DB`] and [`POOR_DB`].
    Poor,
    /// Less than [`BROKEN_DB`], or NaN.
    Broken,
}

impl Verdict {
    /// That of an SQNR in dB.
    pub fn of(sqnr_db: f64) -> Verdict {
        match sqnr_db {
            db if db >= POOR_DB => Verdict::Good,
            db if db >= BROKEN_DB => Verdict::Poor,
            _ => Verdict::Broken,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Good => "good",
            Verdict::Poor => "poor",
            Verdict::Broken => "BROKEN",
        })
    }
}

/// How much a value `x` of the float model differs from its counterpart `y`,
/// over all elements of all samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValueError {
    /// The value's name in the float model.
    pub value: String,
    /// The node that makes it; empty for an input.
    pub node: String,
    /// The node's operator; `Input` for an input.
    pub op: String,
    /// `10 log10(sum x^2 / sum (x - y)^2)` in dB: infinite if they are equal
    /// (JSON: null).
    pub sqnr_db: f64,
    /// `sum (x - y)^2 / n`.
    pub mse: f64,
    /// `sum x y / sqrt(sum x^2 sum y^2)`; 1 if both are 0.
    pub cosine: f64,
    /// `max |x - y|`.
    pub max_abs: f64,
    /// `max |x|`.
    pub amplitude: f64,
    /// What the SQNR means.
    pub verdict: Verdict,
}

/// Where a broken output's damage starts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Damage {
    /// The output.
    pub output: String,
    /// Its SQNR in dB.
    pub sqnr_db: f64,
    /// Of the values on the way to the output, up to the first broken one, that
    /// whose ratio of error to value power grows the most over its sources'.
    pub value: String,
    /// The node that makes it.
    pub node: String,
    /// The least SQNR among its sources, in dB (infinite for constants and
    /// unquantized inputs; JSON: null).
    pub before_db: f64,
    /// Its own SQNR in dB.
    pub after_db: f64,
    /// Whether the quantized model has weights with one scale for all channels.
    pub per_tensor_weights: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { output, sqnr_db, value, node, before_db, after_db, per_tensor_weights } = self;
        let before = if before_db.is_finite() { format!("{before_db:.1} dB") } else { "exact".into() };
        let advice = if *per_tensor_weights {
            "try per-channel weights".to_string()
        } else {
            format!("try another calibrator, or keep {node} in float")
        };
        write!(
            f,
            "output {output} has SQNR {sqnr_db:.1} dB: this model is broken; the damage starts at node {node} \
             (value {value} falls from {before} to {after_db:.1} dB); {advice}"
        )
    }
}

/// A float model against its quantized form.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The number of samples.
    pub samples: usize,
    /// The values that both models have, in evaluation order, outputs left out.
    pub values: Vec<ValueError>,
    /// The outputs.
    pub outputs: Vec<ValueError>,
    /// Why outputs are broken; empty if none is.
    pub damage: Vec<Damage>,
}

impl Comparison {
    /// The values and outputs of least SQNR, the least first.
    pub fn worst(&self) -> Vec<&ValueError> {
        let mut all: Vec<&ValueError> = self.values.iter().chain(&self.outputs).collect();
        let key = |e: &ValueError| if e.sqnr_db.is_nan() { f64::NEG_INFINITY } else { e.sqnr_db };
        all.sort_by(|a, b| key(a).total_cmp(&key(b)));
        all
    }
}

/// Runs both models on every batch and compares their values, paired by name:
/// the counterpart of the float value `t` is the DequantizeLinear output
/// `t_dq` of the quantized model, else its value `t`. Values of one
/// model alone are left out; outputs are paired by name, else by position.
/// Where the quantized model was equalized ([`ChannelScales`]), the channels of
/// its values are scaled back first.
///
/// Sums are of f64. Both models run side by side, and a value is compared as soon as both have
/// made it: memory is that of two runs of one batch. `progress` is called with the samples
/// done, and its error stops the comparison.
///
/// # Errors
/// If there is no batch, the models' outputs or the shapes of a pair differ, or
/// one of them cannot be run.
pub fn compare(
    float: &Graph,
    quantized: &Graph,
    batches: impl Iterator<Item = Result<Batch>>,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Comparison> {
    let _kept = KeptMemory::up_to(0);
    let pairs = Pairs::new(float, quantized)?;
    let sites = pairs.sites(float, quantized);
    let (ours, theirs) = (places(sites.iter().map(|s| s.0)), places(sites.iter().map(|s| s.1)));
    let mut order: Vec<usize> = (0..sites.len()).collect();
    order.sort_by_key(|place| sites[*place].1);
    let mut sums = vec![Sums::default(); sites.len()];
    let mut samples = 0;
    for batch in batches {
        let batch = batch?;
        let mut x = follow(FLOAT, float, inputs_of(float, &batch).map_err(|e| e.at(FLOAT))?, &ours)?;
        let inputs = inputs_of(quantized, &batch).map_err(|e| e.at(QUANTIZED))?;
        let mut y = follow(QUANTIZED, quantized, inputs, &theirs)?;
        for &place in &order {
            let (x, y) = (x.value(place)?, y.value(place)?);
            let added = pairs.scaled_back(place, y).and_then(|y| sums[place].add(&x, &y));
            added.map_err(|e| e.at(pairs.name(float, place)))?;
        }
        samples += batch.names.len();
        progress(samples)?;
    }
    if samples == 0 {
        return Err(invalid!("the data holds no sample"));
    }
    let errors = sites.iter().zip(&sums).enumerate();
    let mut values: Vec<ValueError> = errors
        .map(|(place, ((v, _), sums))| value_error(float, pairs.name(float, place), *v, sums))
        .collect();
    let outputs = values.split_off(pairs.values.len());
    let damage = pairs.damage(float, &values, &outputs, per_tensor_weights(quantized));
    Ok(Comparison { samples, values, outputs, damage })
}

/// What errors call the models.
const FLOAT: &str = "the float model";
const QUANTIZED: &str = "the quantized model";

/// The error of a value `v` of the float model, called `name`.
fn value_error(float: &Graph, name: &str, v: Var, sums: &Sums) -> ValueError {
    let node = float.node(v);
    match &node.kind {
        Kind::Apply { op, .. } => sums.error(name, node.name.clone(), op.name()),
        _ => sums.error(name, String::new(), "Input"),
    }
}

fn output(graph: &Graph, i: usize) -> (&str, Var) {
    graph.outputs().nth(i).expect("pairs are made of outputs")
}

/// Which values are compared.
struct Pairs {
    /// Values of the float model that have a counterpart, with it, in evaluation order.
    values: Vec<(Var, Var)>,
    /// By position in `values`: what the counterpart's channels are multiplied by.
    scales: Vec<Option<Vec<f32>>>,
    /// Positions of outputs.
    outputs: Vec<(usize, usize)>,
}

impl Pairs {
    fn new(float: &Graph, quantized: &Graph) -> Result<Pairs> {
        let (ours, theirs): (Vec<_>, Vec<_>) = (float.outputs().collect(), quantized.outputs().collect());
        if ours.len() != theirs.len() {
            return Err(invalid!(
                "the float model has {} outputs, the quantized one {}: they are not the same model",
                ours.len(),
                theirs.len()
            ));
        }
        let position = |i: usize, name: &str| theirs.iter().position(|(n, _)| *n == name).unwrap_or(i);
        let outputs: Vec<(usize, usize)> =
            ours.iter().enumerate().map(|(i, (name, _))| (i, position(i, name))).collect();
        let by_name = computed(quantized);
        let dequantized = |name: &str| {
            let v = *by_name.get(format!("{name}_dq").as_str())?;
            quantized.made_by::<DequantizeLinear>(v).map(|_| v)
        };
        let (mut values, mut taken) = (vec![], HashSet::new());
        let last: HashSet<Var> = ours.iter().map(|(_, v)| *v).collect();
        for (v, node) in float.nodes().filter(|(_, n)| !matches!(n.kind, Kind::Const(_))) {
            for (slot, value) in node.outputs.iter().enumerate() {
                let v = v.output(slot);
                let counterpart =
                    dequantized(&value.name).or_else(|| by_name.get(value.name.as_str()).copied());
                if let Some(counterpart) = counterpart
                    && value.fact.dtype == DType::F32
                    && quantized.fact(counterpart).dtype == DType::F32
                    && !last.contains(&v)
                    && taken.insert(counterpart)
                {
                    values.push((v, counterpart));
                }
            }
        }
        let equalized = ChannelScales::of(quantized)?;
        let scales = values.iter().map(|(v, _)| equalized.get(&float.value(*v).name)).collect();
        Ok(Pairs { values, scales, outputs })
    }

    /// What is compared: the values, and the outputs after them, each with its counterpart.
    fn sites(&self, float: &Graph, quantized: &Graph) -> Vec<(Var, Var)> {
        let outputs = self.outputs.iter().map(|(i, j)| (output(float, *i).1, output(quantized, *j).1));
        self.values.iter().copied().chain(outputs).collect()
    }

    /// What a site is called in the float model.
    fn name<'a>(&self, float: &'a Graph, place: usize) -> &'a str {
        match self.values.get(place) {
            Some((v, _)) => &float.value(*v).name,
            None => output(float, self.outputs[place - self.values.len()].0).0,
        }
    }

    /// The counterpart `y` at a site, in the scales of the float model.
    fn scaled_back(&self, place: usize, y: Tensor) -> Result<Tensor> {
        match self.scales.get(place).and_then(Option::as_ref) {
            Some(scales) => scaled_back(&y, scales),
            None => Ok(y),
        }
    }

    /// Where the damage of each broken output starts.
    fn damage(
        &self,
        float: &Graph,
        values: &[ValueError],
        outputs: &[ValueError],
        per_tensor_weights: bool,
    ) -> Vec<Damage> {
        let mut errors: HashMap<Var, &ValueError> = self.values.iter().map(|(v, _)| *v).zip(values).collect();
        errors.extend(self.outputs.iter().map(|(i, _)| output(float, *i).1).zip(outputs));
        let before = sources(float, &errors);
        let broken = self.outputs.iter().zip(outputs).filter(|(_, e)| e.verdict == Verdict::Broken);
        broken
            .map(|((i, _), error)| {
                let (mut at, mut before_db, mut most) = (error, f64::INFINITY, f64::NEG_INFINITY);
                let way = needed(float, output(float, *i).1);
                let in_order =
                    float.nodes().flat_map(|(v, n)| (0..n.outputs.len()).map(move |i| v.output(i)));
                for v in in_order.filter(|v| way.contains(v)) {
                    let Some(e) = errors.get(&v) else { continue };
                    let source_db = before.get(&v).copied().unwrap_or(f64::INFINITY);
                    let growth = noise_to_signal(e.sqnr_db) - noise_to_signal(source_db);
                    if growth > most {
                        (at, before_db, most) = (e, source_db, growth);
                    }
                    // What comes after builds on a broken value.
                    if e.verdict == Verdict::Broken {
                        break;
                    }
                }
                Damage {
                    output: error.value.clone(),
                    sqnr_db: error.sqnr_db,
                    value: at.value.clone(),
                    node: if at.node.is_empty() { at.value.clone() } else { at.node.clone() },
                    before_db,
                    after_db: at.sqnr_db,
                    per_tensor_weights,
                }
            })
            .collect()
    }
}

/// `y` with channel `k` of axis 1 multiplied by `scales[k]`.
pub(super) fn scaled_back(y: &Tensor, scales: &[f32]) -> Result<Tensor> {
    if y.shape().get(1) != Some(&scales.len()) {
        return Err(invalid!("has shape {:?} and {} scales of equalized channels", y.shape(), scales.len()));
    }
    let inner: usize = y.shape()[2..].iter().product();
    let values = elements(y)?;
    let values = values.iter().enumerate();
    Tensor::new(y.shape(), values.map(|(i, y)| y * scales[i / inner % scales.len()]).collect())
}

/// The power of the error over that of the value; a large number in place of
/// infinity, so that differences exist.
fn noise_to_signal(sqnr_db: f64) -> f64 {
    let ratio = 10f64.powf(-sqnr_db / 10.0);
    if ratio.is_nan() { 1e30 } else { ratio.min(1e30) }
}

/// Inputs and computed values by name.
fn computed(graph: &Graph) -> HashMap<&str, Var> {
    let nodes = graph.nodes().filter(|(_, n)| !matches!(n.kind, Kind::Const(_)));
    nodes
        .flat_map(|(v, n)| n.outputs.iter().enumerate().map(move |(i, o)| (o.name.as_str(), v.output(i))))
        .collect()
}

/// The least SQNR among the nearest compared values that each value is made of.
fn sources(graph: &Graph, errors: &HashMap<Var, &ValueError>) -> HashMap<Var, f64> {
    let mut before: HashMap<Var, f64> = HashMap::new();
    for (v, node, _, inputs) in graph.applied() {
        let of = |x: &Var| match errors.get(x) {
            Some(e) if e.sqnr_db.is_nan() => f64::NEG_INFINITY,
            Some(e) => e.sqnr_db,
            None => before.get(x).copied().unwrap_or(f64::INFINITY),
        };
        let least = inputs.iter().map(of).fold(f64::INFINITY, f64::min);
        before.extend((0..node.outputs.len()).map(|slot| (v.output(slot), least)));
    }
    before
}

/// The values that `v` is computed from, and `v`.
fn needed(graph: &Graph, v: Var) -> HashSet<Var> {
    let (mut found, mut open) = (HashSet::new(), vec![v]);
    while let Some(v) = open.pop() {
        if found.insert(v)
            && let Kind::Apply { inputs, .. } = &graph.node(v).kind
        {
            open.extend(inputs);
        }
    }
    found
}

/// Whether a stored matrix or filter has a single scale.
fn per_tensor_weights(graph: &Graph) -> bool {
    graph.applied().any(|(_, _, op, inputs)| {
        op.is::<DequantizeLinear>().is_some()
            && graph
                .constant(inputs[0])
                .is_some_and(|t| t.rank() >= 2 && t.shape().iter().filter(|&&n| n > 1).count() > 1)
            && graph.constant(inputs[1]).is_some_and(|s| s.len() == 1)
    })
}

#[derive(Clone, Default)]
struct Sums {
    n: u64,
    xx: f64,
    yy: f64,
    xy: f64,
    noise: f64,
    max_abs: f64,
    amplitude: f64,
}

impl Sums {
    fn add(&mut self, x: &Tensor, y: &Tensor) -> Result<()> {
        if x.shape() != y.shape() {
            return Err(invalid!(
                "has shape {:?} in the float model and {:?} in the quantized one: they are not the same model",
                x.shape(),
                y.shape()
            ));
        }
        for (x, y) in elements(x)?.iter().zip(elements(y)?.iter()) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            let d = x - y;
            self.xx += x * x;
            self.yy += y * y;
            self.xy += x * y;
            self.noise += d * d;
            // f64::max would drop NaN.
            if d.is_nan() || d.abs() > self.max_abs {
                self.max_abs = d.abs();
            }
            self.amplitude = self.amplitude.max(x.abs());
        }
        self.n += x.len() as u64;
        Ok(())
    }

    fn sqnr_db(&self) -> f64 {
        if self.noise == 0.0 { f64::INFINITY } else { 10.0 * (self.xx / self.noise).log10() }
    }

    fn error(&self, value: &str, node: String, op: &str) -> ValueError {
        let sqnr_db = self.sqnr_db();
        let norms = (self.xx * self.yy).sqrt();
        ValueError {
            value: value.into(),
            node,
            op: op.into(),
            sqnr_db,
            mse: if self.n == 0 { 0.0 } else { self.noise / self.n as f64 },
            cosine: match (self.xx == 0.0, self.yy == 0.0) {
                (true, true) => 1.0,
                (false, false) => self.xy / norms,
                _ => 0.0,
            },
            max_abs: self.max_abs,
            amplitude: self.amplitude,
            verdict: Verdict::of(sqnr_db),
        }
    }
}

#[cfg(test)]
mod tests;
