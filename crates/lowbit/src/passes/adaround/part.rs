//! Some nodes of a prepared graph as a graph of their own.

use std::collections::HashMap;
use std::sync::Arc;

use super::block::weight_point;
use crate::error::{Result, invalid};
use crate::graph::{Builder, Graph, Kind, Var};
use crate::quantize::{PointOp, Prepared};
use crate::tensor::Tensor;
use crate::train::{FakeQuantize, StepGradient};

/// What stands at the points of a part.
#[derive(Clone, Copy, Debug)]
pub enum Form<'a> {
    /// Nothing: it is that of the float model.
    Float,
    /// Fake-quantization with the points' scales; for weights these values, by point.
    Quantized(&'a HashMap<usize, Tensor>),
}

/// A subgraph.
pub struct Part {
    /// Its inputs are the values that it reads, followed by the weights left open.
    pub graph: Graph,
    /// The values of the prepared graph that it reads.
    pub reads: Vec<Var>,
}

impl Part {
    /// The `nodes` of `prepared`, in evaluation order, with the values `makes` as outputs;
    /// the weights `open`, given by the outputs of their points, are inputs.
    ///
    /// # Errors
    /// If a point saw no value, or a node does not fit; the error names it.
    pub fn new(prepared: &Prepared, nodes: &[Var], makes: &[Var], form: Form, open: &[Var]) -> Result<Part> {
        let graph = prepared.graph();
        let mut b = Builder::default();
        let mut new: HashMap<Var, Var> = HashMap::new();
        let reads = reads(prepared, nodes);
        for v in reads.iter().chain(open) {
            let value = graph.value(*v);
            new.insert(*v, b.input(&value.name, value.fact.clone()));
        }
        for v in nodes {
            let Kind::Apply { op, inputs } = &graph.node(*v).kind else { continue };
            let operands = inputs.iter().map(|x| match new.get(x) {
                Some(x) => Ok(*x),
                None => {
                    let constant = fixed(&mut b, prepared, *x, form)?;
                    new.insert(*x, constant);
                    Ok(constant)
                }
            });
            let operands = operands.collect::<Result<Vec<_>>>()?;
            let made = match (op.is::<PointOp>(), form) {
                (Some(_), Form::Float) => operands,
                (Some(op), Form::Quantized(_)) => vec![fake_quantized(&mut b, prepared, op, operands[0])?],
                (None, _) => b.copy(graph.node(*v), &operands)?,
            };
            new.extend(made.into_iter().enumerate().map(|(slot, made)| (v.output(slot), made)));
        }
        let outputs = makes.iter().map(|v| {
            let name = &graph.value(*v).name;
            let made = new.get(v).ok_or_else(|| invalid!("is not made by its block").at(name))?;
            Ok((name.clone(), *made))
        });
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        Ok(Part { graph: b.finish(outputs)?, reads })
    }
}

/// The values that `nodes` read and do not make, but for constants and weights at points.
pub fn reads(prepared: &Prepared, nodes: &[Var]) -> Vec<Var> {
    let graph = prepared.graph();
    let mut reads: Vec<Var> = vec![];
    for v in nodes {
        let Kind::Apply { inputs, .. } = &graph.node(*v).kind else { continue };
        for x in inputs {
            let own = nodes.binary_search(&x.output(0)).is_ok();
            let stored = graph.constant(*x).is_some() || weight_point(prepared, *x).is_some();
            if !own && !stored && !reads.contains(x) {
                reads.push(*x);
            }
        }
    }
    reads
}

/// A constant, or a weight at its point.
fn fixed(b: &mut Builder, prepared: &Prepared, v: Var, form: Form) -> Result<Var> {
    let graph = prepared.graph();
    let source = graph.made_by::<PointOp>(v).map_or(v, |(_, inputs)| inputs[0]);
    let value = graph.value(v);
    let t = match (weight_point(prepared, v), form) {
        (Some(point), Form::Quantized(weights)) => weights.get(&point),
        _ => graph.constant(source),
    };
    let t = t.ok_or_else(|| invalid!("is read before it is made").at(&value.name))?;
    Ok(b.constant(&value.name, t.clone()))
}

fn fake_quantized(b: &mut Builder, prepared: &Prepared, op: &PointOp, x: Var) -> Result<Var> {
    let point = &prepared.points()[op.point];
    let params = point.params().map_err(|e| e.at(&point.name))?;
    let name = format!("{}_fq", b.name(x));
    let scale = b.constant(&format!("{name}_s"), Tensor::vector(params.scale));
    let zero = params.zero_point.iter().map(|z| *z as f32).collect();
    let zero = b.constant(&format!("{name}_z"), Tensor::vector(zero));
    let scheme = params.scheme.saturating();
    b.apply(&name, Arc::new(FakeQuantize { scheme, by_scale: StepGradient::None }), &[x, scale, zero])
}
