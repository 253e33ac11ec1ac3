//! The values that are watched.

use std::collections::{HashMap, HashSet};

use crate::graph::{Graph, Kind, Var};
use crate::op::Quant;
use crate::quantize::{PointOp, Prepared, Role, weight};

/// A value that a point quantizes.
#[derive(Clone, Debug)]
pub(super) struct Site {
    /// The point.
    pub point: usize,
    /// The how manieth of the point's values it is.
    pub at: usize,
    /// Its name.
    pub name: String,
    /// The axis of its channels, if it has any.
    pub axis: Option<usize>,
    /// Whether it is the output of a convolution.
    pub convolved: bool,
}

/// The values that are watched, by the output of the [`PointOp`] on them.
#[derive(Clone, Debug, Default)]
pub(super) struct Sites {
    by_value: HashMap<Var, usize>,
    all: Vec<Site>,
    counts: Vec<usize>,
}

impl Sites {
    /// The values of each run whose points watch them.
    pub fn new(prepared: &Prepared) -> Sites {
        let graph = prepared.graph();
        let columns = read_in_columns(graph);
        let mut sites = Sites { counts: vec![0; prepared.points().len()], ..Sites::default() };
        for (v, _, op, inputs) in graph.applied() {
            let Some(PointOp { point, moved: false }) = op.is() else { continue };
            let is_weight = prepared.points()[*point].role == Role::Weight;
            if is_weight || graph.constant(inputs[0]).is_some() {
                continue;
            }
            let convolved = is_convolved(graph, inputs[0]);
            let last = graph.fact(v).rank().checked_sub(1).filter(|_| columns.contains(&v));
            sites.by_value.insert(v, sites.all.len());
            sites.all.push(Site {
                point: *point,
                at: sites.counts[*point],
                name: graph.value(inputs[0]).name.clone(),
                axis: if convolved { Some(1) } else { last },
                convolved,
            });
            sites.counts[*point] += 1;
        }
        sites
    }

    /// The site of a value.
    pub fn of(&self, v: Var) -> Option<&Site> {
        self.by_value.get(&v).map(|i| &self.all[*i])
    }

    /// All of them, in evaluation order.
    pub fn all(&self) -> &[Site] {
        &self.all
    }

    /// For each of so many points, the name of its first value; none if none is watched.
    pub fn names(&self, points: usize) -> Vec<Option<&str>> {
        let first = |point| self.all.iter().find(|s| s.point == point).map(|s| s.name.as_str());
        (0..points).map(first).collect()
    }

    /// How many values of the point are watched.
    pub fn count(&self, point: usize) -> usize {
        self.counts[point]
    }
}

/// Whether a convolution makes `v`, or the activation function right after one.
fn is_convolved(graph: &Graph, v: Var) -> bool {
    match &graph.node(v).kind {
        Kind::Apply { op, inputs } if matches!(op.quant(), Quant::Clamp { .. }) => {
            graph.made_by::<PointOp>(inputs[0]).is_none() && is_convolved(graph, inputs[0])
        }
        Kind::Apply { op, .. } => op.name().contains("Conv"),
        _ => false,
    }
}

/// The values that matrix products with a weight read: their channels are columns.
fn read_in_columns(graph: &Graph) -> HashSet<Var> {
    let products = graph.applied().filter(|(_, _, op, inputs)| {
        let weight = weight(&***op).and_then(|(w, _)| inputs.get(w));
        matches!(op.name(), "MatMul" | "Gemm") && weight.is_some_and(|w| is_weight(graph, *w))
    });
    products.map(|(.., inputs)| inputs[0]).collect()
}

/// Whether a value is a constant, or the point of one.
fn is_weight(graph: &Graph, v: Var) -> bool {
    let under = graph.made_by::<PointOp>(v).map_or(v, |(_, inputs)| inputs[0]);
    graph.constant(under).is_some()
}
