//! Activation-aware weights: inputs that matter get finer steps.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Result, invalid};
use crate::graph::{Graph, Kind, Uses, Var};
use crate::ops::binary::Arithmetic;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::norm::LayerNormalization;
use crate::ops::unary::Unary;
use crate::qconfig::{QConfig, QConfigMapping, Rounding};
use crate::quantize::{Point, PointOp, Progress, prepare};
use crate::tensor::{DType, Tensor};

/// Powers between 0 and 1 that are tried.
const POWERS: u16 = 20;

/// Multiplies the rows of weights that meet great inputs, and divides these
/// inputs where they are made, so that rounding takes less from the outputs
/// (docs/quantization.md, equation 26; Lin et al., "AWQ", 2023).
///
/// Input `k` of the MatMuls and Gemms that read a value is divided by `s_k` and
/// their weights' row `k` multiplied:
///
/// `s_k = r_k^a / sqrt(max_j r_j^a min_j r_j^a)`, with `r_k` the root mean square
/// of the input over `batches`, and `a` the one of 0, 0.05, .. 1 for which the
/// outputs differ least once the weights are quantized. The float function stays the
/// same, but for rounding.
///
/// A value can be divided where nothing but MatMuls and Gemms with
/// [`crate::qconfig::Spec::awq`] read it, and it is made by a product with a
/// constant vector, a LayerNormalization, or a MatMul or Gemm; between these and
/// the readers may stand Relu, addition of a constant vector, and
/// multiplication by another value. Others stay as they are. Values that are
/// divided get names ending in `_awq`: they are not those of the float model.
///
/// `graph` is a fused one. If no node asks for it, `batches` is not read.
///
/// # Errors
/// If a rule of `mapping` cannot be honoured, there is no batch or one does not
/// fit the model, a value is not finite, or `progress` stops it.
pub fn awq(
    graph: &Graph,
    mapping: &QConfigMapping,
    batches: impl Iterator<Item = Result<Vec<Tensor>>> + Send,
    progress: &Progress,
) -> Result<Graph> {
    let shared = shared_inputs(graph, &mapping.resolve(graph)?);
    if shared.is_empty() {
        return Ok(graph.clone());
    }
    let mut watching = mapping.clone();
    for q in watching.rules.iter_mut().filter_map(|r| r.qconfig.as_mut()) {
        q.weight.rounding = if q.weight.awq { Rounding::Gptq } else { Rounding::Nearest };
    }
    let mut prepared = prepare(graph, &watching)?;
    let empty = AtomicBool::new(true);
    prepared.calibrate(batches, &|batch| {
        empty.store(false, Ordering::Relaxed);
        progress(batch)
    })?;
    if empty.into_inner() {
        return Err(invalid!("the calibration data is empty: give at least one sample"));
    }
    let points: HashMap<&str, &Point> = prepared
        .graph()
        .applied()
        .filter_map(|(_, node, _, inputs)| {
            let (op, _) = prepared.graph().made_by::<PointOp>(*inputs.get(1)?)?;
            Some((node.outputs[0].name.as_str(), &prepared.points()[op.point]))
        })
        .collect();
    let mut factors = Factors::default();
    let mut renamed = HashSet::new();
    for Shared { readers, source } in shared {
        let of = |v: &Var| points.get(graph.value(*v).name.as_str()).copied();
        let points: Vec<&Point> = readers.iter().filter_map(of).collect();
        let Some(scales) = best_scales(&points)? else { continue };
        for v in readers {
            let place = Place { node: v, operand: 1, last: !inputs_first(graph, v) };
            factors.insert(graph, place, &scales)?;
        }
        let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
        source.places.into_iter().try_for_each(|place| factors.insert(graph, place, &inverse))?;
        renamed.extend(source.values);
    }
    graph.rebuild(|b, v, node, inputs| {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        let mut inputs = inputs.to_vec();
        for (operand, input) in inputs.iter_mut().enumerate() {
            if let Some(t) = factors.0.get(&(v, operand)) {
                *input = b.constant(&graph.value(old[operand]).name, t.clone());
            }
        }
        let outputs: Vec<String> = node
            .outputs
            .iter()
            .map(|o| if renamed.contains(&v) { format!("{}_awq", o.name) } else { o.name.clone() })
            .collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        b.apply_all(&node.name, op.clone(), &inputs, &outputs)
    })
}

/// The scales with which the layers at `points`, which have one input, lose
/// least; `None` if that is none.
fn best_scales(points: &[&Point]) -> Result<Option<Vec<f32>>> {
    let Some(rms) = points.first().and_then(|p| p.moments.as_ref()).and_then(|m| m.root_mean_squares())
    else {
        return Ok(None);
    };
    // What is never seen is as rare as the rarest that is.
    let least = rms.iter().copied().filter(|r| *r > 0.0).fold(f32::MAX, f32::min);
    let scales = |power: u16| -> Vec<f32> {
        let power = f64::from(power) / f64::from(POWERS);
        let raw: Vec<f64> = rms.iter().map(|r| libm::pow(f64::from(r.max(least)), power)).collect();
        let (lo, hi) = raw.iter().fold((f64::MAX, 0f64), |(lo, hi), r| (lo.min(*r), hi.max(*r)));
        raw.iter().map(|r| (r / (lo * hi).sqrt()) as f32).collect()
    };
    let lost = |scales: &[f32]| -> Result<f64> {
        points.iter().map(|p| p.error_scaled_by(scales).map_err(|e| e.at(&p.name))).sum()
    };
    let mut best = (lost(&vec![1.0; rms.len()])?, None);
    for power in 1..=POWERS {
        let scales = scales(power);
        let lost = lost(&scales)?;
        if lost < best.0 {
            best = (lost, Some(scales));
        }
    }
    Ok(best.1)
}

/// A constant operand and the axis along which it is scaled: its last, or its first.
struct Place {
    node: Var,
    operand: usize,
    last: bool,
}

/// Rescaled constants by node and operand.
#[derive(Default)]
struct Factors(HashMap<(Var, usize), Tensor>);

impl Factors {
    fn insert(&mut self, graph: &Graph, place: Place, factors: &[f32]) -> Result<()> {
        let Kind::Apply { inputs, .. } = &graph.node(place.node).kind else { return Ok(()) };
        let key = (place.node, place.operand);
        let scaled = self.0.get(&key).or_else(|| graph.constant(inputs[place.operand]));
        let Some(t) = scaled else { return Ok(()) };
        let mut values = t.to_f32()?;
        let inner = if place.last { 1 } else { values.len() / factors.len().max(1) };
        for (i, x) in values.iter_mut().enumerate() {
            *x *= factors[i / inner.max(1) % factors.len()];
        }
        self.0.insert(key, Tensor::new(t.shape(), values)?);
        Ok(())
    }
}

/// A value that only layers to be scaled read.
struct Shared {
    readers: Vec<Var>,
    source: Source,
}

/// Where a value is divided, and the values that change with it.
struct Source {
    places: Vec<Place>,
    values: Vec<Var>,
}

/// The values whose elements along the last axis can be scaled.
fn shared_inputs(graph: &Graph, configs: &[Option<&QConfig>]) -> Vec<Shared> {
    let uses = graph.uses();
    let mut readers: Vec<(Var, Vec<Var>)> = vec![];
    for ((v, _, _, inputs), config) in graph.applied().zip(configs) {
        if !config.is_some_and(|q| q.weight.awq) || !is_linear(graph, v) {
            continue;
        }
        match readers.iter_mut().find(|(x, _)| *x == inputs[0]) {
            Some((_, readers)) => readers.push(v),
            None => readers.push((inputs[0], vec![v])),
        }
    }
    let shared = |(x, readers): (Var, Vec<Var>)| {
        let source = (uses.of(x) == readers.len()).then(|| source(graph, &uses, x)).flatten()?;
        Some(Shared { readers, source })
    };
    readers.into_iter().filter_map(shared).collect()
}

fn float_constant(graph: &Graph, v: Var) -> Option<&Tensor> {
    graph.constant(v).filter(|t| t.dtype() == DType::F32)
}

/// Whether a MatMul or Gemm by a constant matrix makes `v`.
fn is_linear(graph: &Graph, v: Var) -> bool {
    let gemm = graph.made_by::<Gemm>(v).filter(|(g, _)| g.alpha == 1.0 && g.beta == 1.0 && !g.trans_a);
    let inputs = gemm.map(|(_, inputs)| inputs).or_else(|| Some(graph.made_by::<MatMul>(v)?.1));
    inputs.is_some_and(|i| float_constant(graph, i[1]).is_some_and(|t| t.rank() == 2))
}

/// Whether the weight of a linear node is `[inputs, outputs]`.
fn inputs_first(graph: &Graph, v: Var) -> bool {
    graph.made_by::<Gemm>(v).is_none_or(|(g, _)| !g.trans_b)
}

/// Where `x` can be divided along its last axis without another value noticing.
fn source(graph: &Graph, uses: &Uses, x: Var) -> Option<Source> {
    let n = graph.fact(x).shape.last()?.known()?;
    let Kind::Apply { op, inputs } = &graph.node(x).kind else { return None };
    let vector = |i: usize| {
        let t = inputs.get(i).and_then(|v| float_constant(graph, *v));
        t.is_some_and(|t| t.len() == n && t.shape().last() == Some(&n))
    };
    let place = |operand: usize| Place { node: x, operand, last: true };
    let behind = |i: usize| {
        let v = inputs[i];
        let alike = graph.fact(v).shape.last() == graph.fact(x).shape.last();
        let mut source = source(graph, uses, v).filter(|_| alike && uses.of(v) == 1)?;
        source.values.push(x);
        Some(source)
    };
    let here = |places: Vec<Place>| Some(Source { places, values: vec![x] });
    match op.is::<Arithmetic>() {
        Some(Arithmetic::Mul) => {
            return match (0..2).find(|i| vector(*i)) {
                Some(i) => here(vec![place(i)]),
                None => (0..2).rev().find_map(behind),
            };
        }
        Some(Arithmetic::Add) => {
            let i = (0..2).find(|i| vector(*i))?;
            let mut source = behind(1 - i)?;
            source.places.push(place(i));
            return Some(source);
        }
        _ => {}
    }
    if op.is::<Unary>() == Some(&Unary::Relu) {
        return behind(0);
    }
    let bias = inputs.len() > 2 && !graph.fact(inputs[2]).is_absent();
    if bias && !vector(2) {
        return None;
    }
    let mut places = if bias { vec![place(2)] } else { vec![] };
    if op.is::<LayerNormalization>().is_some() && vector(1) {
        places.push(place(1));
    } else if is_linear(graph, x) {
        places.push(Place { node: x, operand: 1, last: inputs_first(graph, x) });
    } else {
        return None;
    }
    here(places)
}

#[cfg(test)]
mod tests;
