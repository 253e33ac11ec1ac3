//! Mean inputs of layers that batch normalization implies, with no data.

use std::collections::HashMap;

use super::ChannelScales;
use crate::error::{Result, invalid};
use crate::graph::{Graph, Var};
use crate::op::{Op, Quant};
use crate::ops::binary::Arithmetic;
use crate::ops::layout::Concat;
use crate::ops::norm::BatchNormalization;
use crate::ops::pool::GlobalAveragePool;
use crate::ops::shape::{Dropout, Flatten, Identity, Reshape};
use crate::quantize::{PointOp, Prepared, mark};

/// Gives the weights of `prepared` with [`crate::qconfig::BiasCorrection::Analytic`] the mean
/// inputs by which their biases are corrected (docs/quantization.md, equation 38; Nagel et al.,
/// "Data-Free Quantization", 2019, section 4.2.1).
///
/// What comes out of a BatchNormalization has the mean `beta` and the deviation `|gamma|` in
/// each channel, and is taken as normally distributed. Relu and Clip cut its tails off; Add,
/// Concat along the channels, GlobalAveragePool, Flatten and Reshape to a matrix pass means
/// on. Layers behind anything else have no correction.
///
/// `float` is the model before it is fused: it has the BatchNormalization. Channels that
/// equalization has scaled since ([`ChannelScales`]) have their means scaled.
///
/// # Errors
/// If weights ask for it and no means are known for any of them.
pub fn expected_means(float: &Graph, prepared: &Prepared) -> Result<Prepared> {
    let expects = |point: usize| prepared.points()[point].means.as_ref().is_some_and(|m| m.is_expected());
    if !(0..prepared.points().len()).any(expects) {
        return Ok(prepared.clone());
    }
    let graph = prepared.graph();
    let by_name: HashMap<&str, Vec<f64>> =
        moments(float)?.into_iter().map(|(v, m)| (float.value(v).name.as_str(), m.mean)).collect();
    let scales = ChannelScales::of(graph)?;
    let mut corrected = prepared.clone();
    let mut known = false;
    for (_, _, op, inputs) in graph.applied() {
        let convolves = op.name().contains("Conv");
        let Some((op, _)) = inputs.get(1).and_then(|v| graph.made_by::<PointOp>(*v)) else { continue };
        if !expects(op.point) {
            continue;
        }
        let mut x = inputs[0];
        while let Some(under) = mark(graph, x) {
            x = under;
        }
        let name = graph.value(x).name.as_str();
        // Others have their channels along the last axis.
        let channels = |_: &&Vec<f64>| convolves || graph.fact(x).rank() == 2;
        let Some(means) = by_name.get(name).filter(channels) else { continue };
        let scaled = match scales.get(name) {
            Some(scales) => means.iter().zip(scales).map(|(m, s)| m / f64::from(s)).collect(),
            None => means.clone(),
        };
        if let Some(means) = &mut corrected.point_mut(op.point).means {
            means.expect(scaled);
            known = true;
        }
    }
    if !known {
        return Err(invalid!(
            "correct-bias = \"analytic\" needs layers behind a BatchNormalization, and the model has none: \
             use \"observed\""
        ));
    }
    Ok(corrected)
}

/// What is known of the channels (axis 1) of a value.
#[derive(Clone, Debug, PartialEq)]
struct Moments {
    mean: Vec<f64>,
    /// The standard deviations of what is normally distributed.
    deviation: Option<Vec<f64>>,
}

/// The moments of the values of a float graph, of which they are known.
fn moments(graph: &Graph) -> Result<HashMap<Var, Moments>> {
    let mut known: HashMap<Var, Moments> = HashMap::new();
    for (v, _, op, inputs) in graph.applied() {
        let normalizes = op.is::<BatchNormalization>().is_some_and(|bn| bn.training.is_none());
        let found = match normalizes {
            true => normalized(graph, inputs)?,
            false => passed_on(graph, v, &**op, inputs, &known),
        };
        known.extend(found.map(|m| (v, m)));
    }
    Ok(known)
}

/// The moments of what a BatchNormalization makes.
fn normalized(graph: &Graph, inputs: &[Var]) -> Result<Option<Moments>> {
    let (Some(gamma), Some(beta)) = (graph.constant(inputs[1]), graph.constant(inputs[2])) else {
        return Ok(None);
    };
    let reals = |t: &crate::tensor::Tensor| -> Result<Vec<f64>> {
        Ok(t.to_f32()?.into_iter().map(f64::from).collect())
    };
    let deviation = reals(gamma)?.into_iter().map(f64::abs).collect();
    Ok(Some(Moments { mean: reals(beta)?, deviation: Some(deviation) }))
}

/// The moments of what is made of values whose moments are known.
fn passed_on(
    graph: &Graph,
    v: Var,
    op: &dyn Op,
    inputs: &[Var],
    known: &HashMap<Var, Moments>,
) -> Option<Moments> {
    let x = known.get(inputs.first()?)?;
    let means = |mean: Vec<f64>| Some(Moments { mean, deviation: None });
    if op.is::<Identity>().is_some() || op.is::<Dropout>().is_some_and(|d| d.training.is_none()) {
        return Some(x.clone());
    }
    if let Quant::Clamp { lo, hi } = op.quant() {
        let each = x.mean.iter().zip(x.deviation.as_ref()?);
        return means(each.map(|(m, s)| clipped_mean(*m, *s, f64::from(lo), f64::from(hi))).collect());
    }
    if op.is::<GlobalAveragePool>().is_some() {
        return means(x.mean.clone());
    }
    if op.is::<Arithmetic>() == Some(&Arithmetic::Add) {
        let other = known.get(inputs.get(1)?).filter(|y| y.mean.len() == x.mean.len())?;
        return means(x.mean.iter().zip(&other.mean).map(|(a, b)| a + b).collect());
    }
    let (from, to) = (graph.fact(inputs[0]), graph.fact(v));
    if let Some(Concat { axis }) = op.is() {
        let all: Option<Vec<&Moments>> = inputs.iter().map(|x| known.get(x)).collect();
        let along = *axis == 1 || axis + to.rank() as i64 == 1;
        return means(all.filter(|_| along)?.into_iter().flat_map(|m| m.mean.clone()).collect());
    }
    if op.is::<Flatten>().is_some() || op.is::<Reshape>().is_some() {
        let inner: usize = from.shape.get(2..)?.iter().map(|d| d.known()).product::<Option<usize>>()?;
        let rows = to.rank() == 2 && to.shape[0] == from.shape[0];
        let whole = rows && to.shape[1].known() == Some(x.mean.len() * inner);
        let repeated = x.mean.iter().flat_map(|m| std::iter::repeat_n(*m, inner));
        return means(whole.then(|| repeated.collect())?);
    }
    None
}

/// The mean of a normal variable of mean `m` and deviation `s`, clipped to `lo..hi`:
/// `lo F(a) + hi (1 - F(b)) + m (F(b) - F(a)) + s (f(a) - f(b))`, with `a = (lo - m) / s`,
/// `b = (hi - m) / s`, and `f`, `F` the density and distribution of the standard normal.
fn clipped_mean(m: f64, s: f64, lo: f64, hi: f64) -> f64 {
    if s <= 0.0 {
        return m.max(lo).min(hi);
    }
    let (a, b) = ((lo - m) / s, (hi - m) / s);
    let below = |x: f64| (1.0 + libm::erf(x / std::f64::consts::SQRT_2)) / 2.0;
    let density = |x: f64| libm::exp(-x * x / 2.0) / (2.0 * std::f64::consts::PI).sqrt();
    // An end that is infinite is never reached.
    let tail = |end: f64, share: f64| if end.is_finite() { end * share } else { 0.0 };
    let inside = m * (below(b) - below(a)) + s * (density(a) - density(b));
    tail(lo, below(a)) + tail(hi, 1.0 - below(b)) + inside
}

#[cfg(test)]
mod tests;
