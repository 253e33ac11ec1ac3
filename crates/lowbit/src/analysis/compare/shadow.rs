//! What each layer adds to the error, told apart from what it has inherited.

use std::sync::Arc;

use serde::Serialize;

use super::super::scores::divergence;
use super::following::{Places, follow, places};
use super::{FLOAT, Pairs, QUANTIZED, Sums, ValueError, scaled_back};
use crate::data::{Batch, inputs_of};
use crate::error::{Result, invalid};
use crate::graph::{Builder, Graph, Kind, Var};
use crate::op::{Op, Quant};
use crate::ops::quantize::{DequantizeLinear, QuantizeLinear};
use crate::ops::shape::Identity;
use crate::tensor::{KeptMemory, Tensor};

/// A caller's own measure of a quantized value, the second, against the float one.
pub type ValueMetric<'a> = dyn Fn(&Tensor, &Tensor) -> f64 + 'a;

/// A [`ValueMetric`]: the mean of `sum_c p_c (log p_c - log q_c)` over the rows along the last
/// axis, with `p = softmax(x)` and `q = softmax(y)`. Each probability counts as what the least of
/// f32 is, at least. It is meant for values that a softmax reads: logits, scores of attention.
/// NaN if the values are no numbers.
pub fn kl_divergence(x: &Tensor, y: &Tensor) -> f64 {
    let row = x.shape().last().copied().unwrap_or(1).max(1);
    let (Ok(x), Ok(y)) = (x.to_f32(), y.to_f32()) else { return f64::NAN };
    let rows = x.chunks(row).zip(y.chunks(row));
    let sum: f64 = rows.map(|(x, y)| divergence(x, y, false)).sum();
    sum / (x.len() / row).max(1) as f64
}

/// A value `x` of the float model, its counterpart `y` in the quantized one, and what the
/// counterpart would be, `z`, if the layer that makes it were fed with the float model's
/// values, quantized as the layer's inputs are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShadowError {
    /// `z` against `x`: the layer's own error.
    pub own: ValueError,
    /// `10 log10(sum x^2 / sum (y - z)^2)` in dB: what the error of its inputs makes of the
    /// value; infinite (JSON: null) without any.
    pub inherited_db: f64,
    /// `y` against `x`: both together.
    pub whole: ValueError,
    /// The caller's measure of `z`, the mean over samples.
    pub own_metric: Option<f64>,
    /// The caller's measure of `y`, the mean over samples.
    pub whole_metric: Option<f64>,
}

/// The own and the inherited errors of a quantized model's values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shadow {
    /// The number of samples.
    pub samples: usize,
    /// The values that both models have, in evaluation order, and the outputs after them.
    pub values: Vec<ShadowError>,
}

impl Shadow {
    /// The values of least own SQNR, the least first.
    pub fn worst(&self) -> Vec<&ShadowError> {
        let mut all: Vec<&ShadowError> = self.values.iter().collect();
        let key = |e: &ShadowError| if e.own.sqnr_db.is_nan() { f64::NEG_INFINITY } else { e.own.sqnr_db };
        all.sort_by(|a, b| key(a).total_cmp(&key(b)));
        all
    }
}

/// [`compare`](super::compare) with a third model beside the two: the quantized one in which
/// each layer is fed with the float model's values, quantized by its own scales. A layer
/// reaches to the next value that both models have; an activation function that alone
/// reads a value belongs to the layer before it.
///
/// The three models run side by side, and a value is compared as soon as all have made it: of one
/// batch, what each needs to go on is held. `progress` is called
/// with the samples done, and its error stops the comparison.
///
/// # Errors
/// Those of [`compare`](super::compare).
pub fn shadow(
    float: &Graph,
    quantized: &Graph,
    batches: impl Iterator<Item = Result<Batch>>,
    metric: Option<&ValueMetric<'_>>,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Shadow> {
    let _kept = KeptMemory::up_to(0);
    let pairs = Pairs::new(float, quantized)?;
    let sites = pairs.sites(float, quantized);
    let fed = Fed::new(float, quantized, &pairs, &sites)?;
    let (ours, theirs) = (places(sites.iter().map(|s| s.0)), places(sites.iter().map(|s| s.1)));
    let mut errors = vec![Parts::default(); sites.len()];
    let mut samples = 0;
    for batch in batches {
        let batch = batch?;
        let n = batch.names.len();
        let mut x = follow(FLOAT, float, inputs_of(float, &batch).map_err(|e| e.at(FLOAT))?, &ours)?;
        let inputs = inputs_of(quantized, &batch).map_err(|e| e.at(QUANTIZED))?;
        let mut z = follow(QUANTIZED, &fed.graph, inputs.clone(), &fed.places)?;
        let mut y = follow(QUANTIZED, quantized, inputs, &theirs)?;
        for &place in &fed.order {
            let (y_here, x_here) = (y.value(place)?, x.value(place)?);
            let z_here = z.value(place)?;
            let added = (|| {
                let (y, z) = (pairs.scaled_back(place, y_here)?, pairs.scaled_back(place, z_here)?);
                errors[place].add(&x_here, &y, &z, metric.map(|metric| (metric, n)))
            })();
            added.map_err(|e| e.at(pairs.name(float, place)))?;
            let Some(input) = fed.inputs[place] else { continue };
            let divided = pairs.scales[place].as_ref().map(|scales| {
                let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
                scaled_back(&x_here, &inverse)
            });
            z.give(input, divided.transpose()?.unwrap_or(x_here))?;
        }
        samples += n;
        progress(samples)?;
    }
    if samples == 0 {
        return Err(invalid!("the data holds no sample"));
    }
    let values =
        sites.iter().zip(&errors).map(|((v, _), parts)| parts.error(float, *v, samples, metric.is_some()));
    Ok(Shadow { samples, values: values.collect() })
}

/// The quantized model in which layers read values of the float model.
struct Fed {
    graph: Graph,
    /// By site: the input for the float value there, if layers read it.
    inputs: Vec<Option<usize>>,
    /// The sites of its values.
    places: Places,
    /// The sites, in the order in which their values are computed, each before its input.
    order: Vec<usize>,
}

impl Fed {
    fn new(float: &Graph, quantized: &Graph, pairs: &Pairs, sites: &[(Var, Var)]) -> Result<Fed> {
        let uses = float.uses();
        let clamped: Vec<Var> = float
            .applied()
            .filter(|(_, _, op, _)| matches!(op.quant(), Quant::Clamp { .. }))
            .map(|(.., inputs)| inputs[0])
            .filter(|v| uses.of(*v) == 1)
            .collect();
        let of_value = places(sites.iter().map(|(_, counterpart)| *counterpart));
        let mut inputs = vec![None; sites.len()];
        let (mut order, mut shown, mut given) = (vec![], vec![], quantized.inputs().len());
        let mut b = Builder::default();
        let mut feed = |b: &mut Builder, v: Var, made_here: Var, steps: Option<&[Var]>| -> Result<Var> {
            let mut read = made_here;
            for &place in of_value.get(&v).into_iter().flatten() {
                // A copy: outputs are renamed.
                let name = format!("shadow_{place}");
                shown.push((name.clone(), b.apply(&name, Arc::new(Identity), &[made_here])?));
                order.push(place);
                if place >= pairs.values.len() || clamped.contains(&sites[place].0) {
                    continue;
                }
                let name = format!("{}_float", quantized.value(v).name);
                read = b.input(&name, b.fact(made_here).clone());
                inputs[place] = Some(given);
                given += 1;
                let Some(steps) = steps else { continue };
                let dequantize = made_by(quantized, v)?;
                let quantize = made_by(quantized, quantized_by(quantized, v).map_or(v, |(q, _)| q))?;
                let q = b.apply(&format!("{name}_q"), quantize, &[&[read], steps].concat())?;
                read = b.apply(&format!("{name}_dq"), dequantize, &[&[q], steps].concat())?;
            }
            Ok(read)
        };
        // The model's own inputs come first.
        let own: Vec<Var> = quantized.inputs().map(|(_, v)| b.input(&v.name, v.fact.clone())).collect();
        let mut fed = vec![];
        for ((v, _), new) in quantized.inputs().zip(&own) {
            fed.push(feed(&mut b, v, *new, None)?);
        }
        quantized.replay_onto(
            &mut b,
            |_, i, _| fed.get(i).copied().ok_or_else(|| invalid!("an input is missing")),
            |b, value, t| Ok(b.constant(&value.name, t.clone())),
            |b, v, node, inputs| {
                let new = b.copy(node, inputs)?;
                let steps = quantized_by(quantized, v).map(|_| &inputs[1..]);
                new.into_iter().enumerate().map(|(slot, new)| feed(b, v.output(slot), new, steps)).collect()
            },
        )?;
        if order.len() != sites.len() {
            return Err(invalid!("a value was not rebuilt"));
        }
        let graph = b.finish(shown)?;
        let shown = order.iter().zip(graph.outputs()).map(|(place, (_, v))| (v, vec![*place])).collect();
        Ok(Fed { graph, inputs, places: shown, order })
    }
}

/// The QuantizeLinear under the DequantizeLinear that makes `v`, by the same scale, and its operands.
fn quantized_by(graph: &Graph, v: Var) -> Option<(Var, &[Var])> {
    let (_, dequantized) = graph.made_by::<DequantizeLinear>(v)?;
    let (_, quantized) = graph.made_by::<QuantizeLinear>(dequantized[0])?;
    (dequantized[1..] == quantized[1..]).then_some((dequantized[0], quantized))
}

fn made_by(graph: &Graph, v: Var) -> Result<Arc<dyn Op>> {
    match &graph.node(v).kind {
        Kind::Apply { op, .. } => Ok(op.clone()),
        _ => Err(invalid!("no operator makes {}", graph.value(v).name)),
    }
}

/// Sums of one value.
#[derive(Clone, Default)]
struct Parts {
    own: Sums,
    whole: Sums,
    inherited: Sums,
    metrics: [f64; 2],
}

impl Parts {
    fn add(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        metric: Option<(&ValueMetric<'_>, usize)>,
    ) -> Result<()> {
        self.own.add(x, z)?;
        self.whole.add(x, y)?;
        self.inherited.add(z, y)?;
        if let Some((metric, samples)) = metric {
            self.metrics[0] += metric(x, z) * samples as f64;
            self.metrics[1] += metric(x, y) * samples as f64;
        }
        Ok(())
    }

    fn error(&self, float: &Graph, v: Var, samples: usize, measured: bool) -> ShadowError {
        // The power is that of the float value.
        let inherited = Sums { xx: self.own.xx, ..self.inherited.clone() };
        let mean = |sum: f64| measured.then(|| sum / samples as f64);
        ShadowError {
            own: super::value_error(float, &float.value(v).name, v, &self.own),
            inherited_db: inherited.sqnr_db(),
            whole: super::value_error(float, &float.value(v).name, v, &self.whole),
            own_metric: mean(self.metrics[0]),
            whole_metric: mean(self.metrics[1]),
        }
    }
}
