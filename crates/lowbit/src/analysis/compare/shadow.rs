//! What each layer adds to the error, told apart from what it has inherited.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use super::super::scores::divergence;
use super::{Pairs, Sums, ValueError, float_output, scaled_back};
use crate::data::{Batch, inputs_of};
use crate::error::{Error, Result, invalid};
use crate::graph::{Builder, Graph, Kind, Var};
use crate::op::{Op, Quant};
use crate::ops::quantize::{DequantizeLinear, QuantizeLinear};
use crate::ops::shape::Identity;
use crate::tensor::Tensor;

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
/// The values of all three models for one batch are held at a time. `progress` is called
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
    let pairs = Pairs::new(float, quantized)?;
    let fed = Fed::new(float, quantized, &pairs)?;
    let float_values: Vec<Var> = pairs
        .values
        .iter()
        .copied()
        .chain(pairs.outputs.iter().map(|(i, _)| float_output(float, *i).1))
        .collect();
    let place: HashMap<Var, usize> = float_values.iter().enumerate().map(|(i, v)| (*v, i)).collect();
    let counterparts = fed.counterparts.iter().enumerate().map(|(i, v)| (*v, i));
    let counterparts: HashMap<Var, usize> = counterparts.collect();
    let mut errors = vec![Parts::default(); float_values.len()];
    let mut samples = 0;
    for batch in batches {
        let batch = batch?;
        let n = batch.names.len();
        let kept = |graph: &Graph, inputs: &[Tensor], places: &HashMap<Var, usize>| {
            let mut values: Vec<Option<Tensor>> = vec![None; float_values.len()];
            graph.run_watched(
                inputs,
                |v| places.contains_key(&v),
                |v, _, t| {
                    values[places[&v]] = Some(t.clone());
                    Ok(())
                },
            )?;
            Ok::<_, Error>(values)
        };
        let inputs = inputs_of(float, &batch).map_err(|e| e.at("the float model"))?;
        let x = kept(float, &inputs, &place).map_err(|e| e.at("the float model"))?;
        let mut inputs = inputs_of(quantized, &batch).map_err(|e| e.at("the quantized model"))?;
        let y = kept(quantized, &inputs, &counterparts).map_err(|e| e.at("the quantized model"))?;
        for &i in &fed.values {
            let value = x[i].as_ref().ok_or_else(|| invalid!("a value was not computed"))?;
            let divided = pairs.scales[i].as_ref().map(|scales| {
                let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
                scaled_back(value, &inverse)
            });
            inputs.push(divided.transpose()?.unwrap_or_else(|| value.clone()));
        }
        let z = fed.graph.run(&inputs).map_err(|e| e.at("the quantized model"))?;
        for (i, ((x, y), z)) in x.iter().zip(&y).zip(&z).enumerate() {
            let (Some(x), Some(y)) = (x, y) else { continue };
            let scales = pairs.scales.get(i).and_then(Option::as_ref);
            let back = |t: &Tensor| scales.map_or_else(|| Ok(t.clone()), |s| scaled_back(t, s));
            errors[i]
                .add(x, &back(y)?, &back(z)?, metric.map(|metric| (metric, n)))
                .map_err(|e| e.at(&float.value(float_values[i]).name))?;
        }
        samples += n;
        progress(samples)?;
    }
    if samples == 0 {
        return Err(invalid!("the data holds no sample"));
    }
    let values =
        float_values.iter().zip(&errors).map(|(v, parts)| parts.error(float, *v, samples, metric.is_some()));
    Ok(Shadow { samples, values: values.collect() })
}

/// The quantized model in which layers read values of the float model.
struct Fed {
    graph: Graph,
    /// Positions in [`Pairs::values`] of the inputs after those of the model.
    values: Vec<usize>,
    /// In the quantized model, the counterparts of the values and then the outputs; those
    /// of `graph` are its outputs, in the same order.
    counterparts: Vec<Var>,
}

impl Fed {
    fn new(float: &Graph, quantized: &Graph, pairs: &Pairs) -> Result<Fed> {
        let uses = float.uses();
        let clamped: Vec<Var> = float
            .applied()
            .filter(|(_, _, op, _)| matches!(op.quant(), Quant::Clamp { .. }))
            .map(|(.., inputs)| inputs[0])
            .filter(|v| uses.of(*v) == 1)
            .collect();
        let position: HashMap<Var, usize> = pairs.by_float.values().map(|(i, v)| (*v, *i)).collect();
        let mut made: Vec<Option<Var>> = vec![None; pairs.values.len()];
        let mut values = vec![];
        let mut b = Builder::default();
        let mut feed = |b: &mut Builder, v: Var, made_here: Var, steps: Option<&[Var]>| -> Result<Var> {
            let Some(&i) = position.get(&v) else { return Ok(made_here) };
            made[i] = Some(made_here);
            if clamped.contains(&pairs.values[i]) {
                return Ok(made_here);
            }
            let name = format!("{}_float", quantized.value(v).name);
            let x = b.input(&name, b.fact(made_here).clone());
            values.push(i);
            let Some(steps) = steps else { return Ok(x) };
            let dequantize = made_by(quantized, v)?;
            let quantize = made_by(quantized, quantized_by(quantized, v).map_or(v, |(q, _)| q))?;
            let q = b.apply(&format!("{name}_q"), quantize, &[&[x], steps].concat())?;
            b.apply(&format!("{name}_dq"), dequantize, &[&[q], steps].concat())
        };
        // The model's own inputs come first.
        let inputs: Vec<Var> = quantized.inputs().map(|(_, v)| b.input(&v.name, v.fact.clone())).collect();
        let mut inputs_fed = vec![];
        for ((v, _), new) in quantized.inputs().zip(&inputs) {
            inputs_fed.push(feed(&mut b, v, *new, None)?);
        }
        let outputs = quantized.replay_onto(
            &mut b,
            |_, i, _| inputs_fed.get(i).copied().ok_or_else(|| invalid!("an input is missing")),
            |b, value, t| Ok(b.constant(&value.name, t.clone())),
            |b, v, node, inputs| {
                let new = b.copy(node, inputs)?;
                let steps = quantized_by(quantized, v).map(|_| &inputs[1..]);
                new.into_iter().enumerate().map(|(slot, new)| feed(b, v.output(slot), new, steps)).collect()
            },
        )?;
        let wanted = made.iter().map(|v| v.ok_or_else(|| invalid!("a value was not rebuilt")));
        let wanted = wanted.chain(pairs.outputs.iter().map(|(_, j)| Ok(outputs[*j])));
        let mut named = vec![];
        for (i, v) in wanted.enumerate() {
            // Outputs are renamed: a value that is one twice, or an input, is copied.
            let name = format!("shadow_{i}");
            named.push((name.clone(), b.apply(&name, Arc::new(Identity), &[v?])?));
        }
        let graph = b.finish(named)?;
        let outputs: Vec<Var> = quantized.outputs().map(|(_, v)| v).collect();
        let of_values = (0..pairs.values.len()).map(|i| pairs.by_float[&pairs.values[i]].1);
        let counterparts = of_values.chain(pairs.outputs.iter().map(|(_, j)| outputs[*j])).collect();
        Ok(Fed { graph, values, counterparts })
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
