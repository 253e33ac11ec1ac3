//! Values that can be divided along their last axis where they are made, and their readers'
//! weights multiplied, without changing the float function.

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::graph::{Graph, Kind, Uses, Var};
use crate::ops::binary::Arithmetic;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::norm::LayerNormalization;
use crate::ops::unary::Unary;
use crate::qconfig::QConfig;
use crate::tensor::{DType, Tensor};

/// A value that only MatMuls and Gemms by constant matrices read.
pub struct Shared {
    /// It.
    pub value: Var,
    /// The nodes that read it.
    pub readers: Vec<Var>,
    source: Source,
}

/// Where a value is divided, and the values that change with it.
struct Source {
    places: Vec<Place>,
    values: Vec<Var>,
}

/// The values that nothing reads but MatMuls and Gemms whose configuration is `wanted`, and
/// that are made by a product with a constant vector, a LayerNormalization, or a MatMul or
/// Gemm; between these and the readers may stand Relu, addition of a constant vector, and
/// multiplication by another value.
pub fn divisible(
    graph: &Graph,
    configs: &[Option<&QConfig>],
    wanted: impl Fn(&QConfig) -> bool,
) -> Vec<Shared> {
    let uses = graph.uses();
    let mut readers: Vec<(Var, Vec<Var>)> = vec![];
    for ((v, _, _, inputs), config) in graph.applied().zip(configs) {
        if !config.is_some_and(&wanted) || !is_linear(graph, v) {
            continue;
        }
        match readers.iter_mut().find(|(x, _)| *x == inputs[0]) {
            Some((_, readers)) => readers.push(v),
            None => readers.push((inputs[0], vec![v])),
        }
    }
    let shared = |(value, readers): (Var, Vec<Var>)| {
        let source = (uses.of(value) == readers.len()).then(|| source(graph, &uses, value)).flatten()?;
        Some(Shared { value, readers, source })
    };
    readers.into_iter().filter_map(shared).collect()
}

/// Divides each value by its factors, and multiplies the rows of the weights that read it.
/// Values that change get names that end in `_suffix`: they are not those of `graph`.
pub fn divided(graph: &Graph, values: Vec<(Shared, Vec<f32>)>, suffix: &str) -> Result<Graph> {
    let mut factors = Factors::default();
    let mut renamed = HashSet::new();
    for (Shared { readers, source, .. }, scales) in values {
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
            .map(|o| if renamed.contains(&v) { format!("{}_{suffix}", o.name) } else { o.name.clone() })
            .collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        b.apply_all(&node.name, op.clone(), &inputs, &outputs)
    })
}

/// The greatest magnitude of each row of the weight of a reader.
pub fn row_ranges(graph: &Graph, reader: Var) -> Result<Vec<f32>> {
    let Kind::Apply { inputs, .. } = &graph.node(reader).kind else { return Ok(vec![]) };
    let Some(weight) = float_constant(graph, inputs[1]) else { return Ok(vec![]) };
    let (rows_first, columns) = (inputs_first(graph, reader), weight.shape()[1]);
    let mut most = vec![0f32; weight.shape()[usize::from(!rows_first)]];
    for (i, w) in weight.slice::<f32>()?.iter().enumerate() {
        let row = if rows_first { i / columns } else { i % columns };
        most[row] = most[row].max(w.abs());
    }
    Ok(most)
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
