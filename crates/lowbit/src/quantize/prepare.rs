//! A graph with points in it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::dynamic::{DynamicOp, dynamic_operands};
use super::gains::gains;
use super::patterns::{Function, Pattern, patterns};
use super::placement::{Placement, operands, weight};
use super::point::{Point, PointOp};
use super::recurrent::LayerOp;
use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Node, Var};
use crate::observer::{AnyObserver, ObserverConfig};
use crate::op::{Op, Quant};
use crate::ops::recurrent::Recurrent;
use crate::qconfig::{QConfig, QConfigMapping, Spec};
use crate::qparams::QParams;
use crate::tensor::{DType, Tensor};

/// A float graph with a [`PointOp`] wherever a value will be quantized, and
/// what has been observed there so far.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(super) graph: Graph,
    pub(super) points: Vec<Point>,
    watches: HashMap<Var, Vec<Watch>>,
}

/// A point that a value is shown to, as the how manieth of its values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    pub point: usize,
    pub site: usize,
}

/// Places points in a fused graph, by the rules of `mapping`.
///
/// Operators that compute in integers have their inputs and outputs quantized;
/// those that only move values ([`Quant::Share`], [`Quant::Merge`]) share one
/// point between input and output; an activation function right after an
/// operator belongs to it. Weights are observed here, once.
///
/// The parts of a normalization that is spelled out stay in float, and so does an activation
/// function after an operator that does.
///
/// Where activations are quantized by the ranges of each run, or not at all,
/// only weights get points, and nothing needs to be observed.
///
/// # Errors
/// If a rule matches nothing or cannot be honoured, or a weight cannot be
/// observed (NaN); the error names rule and node.
pub fn prepare(graph: &Graph, mapping: &QConfigMapping) -> Result<Prepared> {
    let configs = mapping.resolve(graph)?;
    let configs = in_float(graph, configs);
    let placement = Placement::new(graph, &configs);
    let by_node: HashMap<Var, _> = graph.applied().map(|(v, ..)| v).zip(configs.iter().copied()).collect();
    let mut preparing = Preparing {
        old: graph,
        placement,
        points: vec![],
        by_class: HashMap::new(),
        at_source: HashMap::new(),
    };
    let prepared = graph.rebuild(|b, v, node, inputs| {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        let config = by_node[&v];
        let mut inputs = inputs.to_vec();
        if let Some(config) = config {
            match config.observed() {
                Some(spec) => preparing.static_operands(b, (v, &**op, old), &mut inputs, config, spec)?,
                None => preparing.unobserved_operands(b, (&**op, old), &mut inputs, config)?,
            }
        }
        let made = b.copy(node, &inputs)?;
        let fixed = match op.quant() {
            Quant::Fixed { lo, hi } => Some(ObserverConfig::Fixed { lo, hi }),
            _ => None,
        };
        made.into_iter()
            .enumerate()
            .map(|(slot, raw)| preparing.produced(b, v.output(slot), raw, fixed))
            .collect()
    })?;
    Ok(Prepared::watching(prepared, preparing.points))
}

/// The configurations, none for the parts of a normalization that is spelled
/// out: squares and their means need more than 8 bits; and none for an activation
/// function after an operator with a weight that has none: it belongs to it, and what it
/// would read has not been clamped yet.
fn in_float<'a>(graph: &Graph, mut configs: Vec<Option<&'a QConfig>>) -> Vec<Option<&'a QConfig>> {
    let normalizes = |p: &Pattern| matches!(p.function, Function::RootMeanSquare { .. });
    let parts: HashSet<Var> = patterns(graph).into_iter().filter(normalizes).flat_map(|p| p.values).collect();
    let nodes = graph.applied().zip(&mut configs);
    nodes.filter(|((v, ..), _)| parts.contains(v)).for_each(|(_, config)| *config = None);
    let mut computed: HashSet<Var> = HashSet::new();
    for ((v, _, op, inputs), config) in graph.applied().zip(&mut configs) {
        match op.quant() {
            Quant::Compute { .. } if config.is_none() => _ = computed.insert(v),
            Quant::Clamp { .. } if computed.contains(&inputs[0]) => *config = None,
            _ => {}
        }
    }
    configs
}

struct Preparing<'a> {
    old: &'a Graph,
    placement: Placement<'a>,
    points: Vec<Point>,
    /// The point of each class of values and way of quantizing.
    by_class: HashMap<(Var, String), usize>,
    /// Points right after inputs and constants, which are not replayed as nodes.
    at_source: HashMap<(Var, usize), Var>,
}

impl Preparing<'_> {
    /// Points for the operands of a node whose activations have ranges of
    /// their own, `spec`.
    fn static_operands(
        &mut self,
        b: &mut Builder,
        (v, op, old): (Var, &dyn Op, &[Var]),
        inputs: &mut [Var],
        config: &QConfig,
        spec: &Spec,
    ) -> Result<()> {
        let operands = operands(self.old, op, old);
        for &i in &operands.activations {
            inputs[i] = self.pointed(b, old[i], inputs[i], spec, op.quant())?;
        }
        if op.is::<Recurrent>().is_some() && !operands.activations.is_empty() {
            let name = format!("{}_codes", self.old.value(old[0]).name);
            let op = LayerOp { weight_per: config.weight.per };
            inputs[0] = b.apply(&name, Arc::new(op), &[inputs[0]])?;
        }
        if let Some((i, axis)) = operands.weight.filter(|_| self.is_computed(v, old)) {
            inputs[i] = self.weight(b, old[i], inputs[i], &config.weight, axis, (op, old[0]))?;
        }
        Ok(())
    }

    /// A point for the weight of a node whose activations are quantized by the
    /// ranges of each run, or not at all.
    fn unobserved_operands(
        &mut self,
        b: &mut Builder,
        (op, old): (&dyn Op, &[Var]),
        inputs: &mut [Var],
        config: &QConfig,
    ) -> Result<()> {
        if let Some(spec) = config.dynamic() {
            for i in dynamic_operands(self.old, op, old, spec) {
                let name = format!("{}_dynamic", self.old.value(old[i]).name);
                let op = DynamicOp::new(op, spec, &config.weight);
                inputs[i] = b.apply(&name, Arc::new(op), &[inputs[i]])?;
            }
        }
        let float = |v: &Var| self.old.constant(*v).is_some_and(|t| t.dtype() == DType::F32 && t.rank() > 1);
        if let Some((i, axis)) = weight(op).filter(|(i, _)| old.get(*i).is_some_and(float)) {
            inputs[i] = self.weight(b, old[i], inputs[i], &config.weight, axis, (op, old[0]))?;
        }
        Ok(())
    }

    /// Whether the node that makes `v` computes in integers: its activation
    /// operand has a point.
    fn is_computed(&self, v: Var, inputs: &[Var]) -> bool {
        self.placement.of(v).is_some() || inputs.first().is_some_and(|x| self.placement.of(*x).is_some())
    }

    /// The value that a node configured with `wanted` reads in the place of
    /// `old`, whose rebuilt form is `new`.
    fn pointed(&mut self, b: &mut Builder, old: Var, new: Var, wanted: &Spec, quant: Quant) -> Result<Var> {
        let Some((class, spec)) = self.placement.of(old).map(|(c, s)| (c, s.clone())) else { return Ok(new) };
        let shares = matches!(quant, Quant::Share | Quant::Merge) && !wanted.inputs_only;
        let spec = if shares { spec } else { wanted.clone() };
        let raw = match b.so_far().made_by::<PointOp>(new) {
            Some((p, _)) if self.points[p.point].scheme == spec.scheme(None) => return Ok(new),
            Some((_, inputs)) => inputs[0],
            None => new,
        };
        self.point(b, old, raw, class, &spec)
    }

    /// The value that readers of a node's output `old` see.
    fn produced(
        &mut self,
        b: &mut Builder,
        old: Var,
        raw: Var,
        fixed: Option<ObserverConfig>,
    ) -> Result<Var> {
        let of = self.placement.of(old).map(|(c, s)| (c, s.clone()));
        // What is quantized for its readers alone has its point before each.
        let Some((class, spec)) = of.filter(|(_, spec)| !spec.inputs_only) else { return Ok(raw) };
        let spec = match fixed {
            Some(observer) => spec.observed_by(observer),
            None => spec,
        };
        self.point(b, old, raw, class, &spec)
    }

    fn point(&mut self, b: &mut Builder, old: Var, raw: Var, class: Var, spec: &Spec) -> Result<Var> {
        let scheme = spec.scheme(None);
        let key = (class, scheme.to_string());
        let point = match self.by_class.get(&key) {
            Some(point) => *point,
            None => {
                let name = self.old.value(class).name.clone();
                self.points.push(Point::of_activation(&name, spec)?);
                self.by_class.insert(key, self.points.len() - 1);
                self.points.len() - 1
            }
        };
        if let Some(v) = self.at_source.get(&(raw, point)) {
            return Ok(*v);
        }
        let moved = self.placement.is_moved(old);
        let name = format!("{}_point", self.old.value(old).name);
        let v = b.apply(&name, Arc::new(PointOp { point, moved }), &[raw])?;
        self.at_source.insert((raw, point), v);
        Ok(v)
    }

    fn weight(
        &mut self,
        b: &mut Builder,
        old: Var,
        new: Var,
        spec: &Spec,
        axis: usize,
        (op, x): (&dyn Op, Var),
    ) -> Result<Var> {
        let Some(t) = self.old.constant(old) else { return Ok(new) };
        let name = self.old.value(old).name.clone();
        let point = format!("{name}_point");
        self.points.push(Point::of_weight(&name, t, spec, axis, op, || gains(self.old, x))?);
        let op = PointOp { point: self.points.len() - 1, moved: true };
        b.apply(&point, Arc::new(op), &[new])
    }
}

impl Prepared {
    /// Finds the values that each point is shown: those at its places, unless
    /// they are other values of the point moved around, and for weights the
    /// data that they are multiplied with.
    pub(crate) fn watching(graph: Graph, mut points: Vec<Point>) -> Prepared {
        let reads: Vec<bool> = points
            .iter()
            .map(|p| p.means.as_ref().is_some_and(|m| !m.is_expected()) || p.moments.is_some())
            .collect();
        points.iter_mut().for_each(|p| p.sites = 0);
        let mut watches: HashMap<Var, Vec<Watch>> = HashMap::new();
        let mut watch = |v: Var, point: usize| {
            watches.entry(v).or_default().push(Watch { point, site: points[point].sites });
            points[point].sites += 1;
        };
        for (v, _, op, inputs) in graph.applied() {
            if let Some(PointOp { point, moved: false }) = op.is() {
                watch(v, *point);
            }
            for (op, _) in inputs.iter().skip(1).filter_map(|v| graph.made_by::<PointOp>(*v)) {
                if reads[op.point] {
                    watch(inputs[0], op.point);
                }
            }
        }
        Prepared { graph, points, watches }
    }

    /// The graph with its points.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The points, in the order in which they were placed.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// A point, to be changed in what does not decide which values it is shown.
    pub(crate) fn point_mut(&mut self, point: usize) -> &mut Point {
        &mut self.points[point]
    }

    /// Runs one batch and shows its values to the points. Returns the outputs.
    ///
    /// # Errors
    /// If the batch does not fit the model, or a value is NaN; the error names
    /// the value.
    pub fn observe(&mut self, batch: &[Tensor]) -> Result<Vec<Tensor>> {
        let Prepared { graph, points, watches } = self;
        graph.run_with(batch, |v, _, value| {
            watches.get(&v).into_iter().flatten().try_for_each(|w| points[w.point].observe(value))
        })
    }

    /// Takes over what the points of `other`, of the same float graph, have seen of
    /// samples, where they are alike and were shown the same values. Returns whether every
    /// point that watches values has been found: otherwise nothing is changed, and this
    /// graph needs calibration of its own.
    pub fn adopt(&mut self, other: &Prepared) -> bool {
        let (ours, theirs) = (self.shown(), other.shown());
        let adopted = self.points.iter().zip(&ours).map(|(point, shown)| {
            let mut point = point.clone();
            let same = |(p, s): &(&Point, &Vec<(usize, &str)>)| (&p.name, *s) == (&point.name, shown);
            let found = other.points.iter().zip(&theirs).find(same);
            match found {
                _ if shown.is_empty() => {}
                Some((p, _)) if p.role == point.role => point.adopt(p)?,
                _ => return None,
            }
            Some(point)
        });
        let Some(points) = adopted.collect() else { return false };
        self.points = points;
        true
    }

    /// For each point, the places of the values that it is shown, and their names.
    fn shown(&self) -> Vec<Vec<(usize, &str)>> {
        let mut shown = vec![vec![]; self.points.len()];
        for (v, watches) in &self.watches {
            for watch in watches {
                shown[watch.point].push((watch.site, self.graph.value(*v).name.as_str()));
            }
        }
        shown.iter_mut().for_each(|values| values.sort_unstable());
        shown
    }

    /// The graph in which operand `i` of `node` reads a value at the point
    /// `choose(node, i, point)` in the place of `point`, and where that is none the
    /// value itself. Points of one value that are alike are one.
    ///
    /// # Errors
    /// What `choose` returns.
    pub(crate) fn with_points(
        &self,
        mut choose: impl FnMut(&Node, usize, &Point) -> Result<Option<Point>>,
    ) -> Result<Prepared> {
        let mut points: Vec<Point> = vec![];
        let mut of_value: HashMap<Var, Vec<(usize, Var)>> = HashMap::new();
        let graph = self.graph.rebuild(|b, _, node, inputs| {
            let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
            let mut inputs = inputs.to_vec();
            if op.is::<PointOp>().is_some() {
                return Ok(inputs);
            }
            for (i, old) in old.iter().enumerate() {
                let Some((op, _)) = self.graph.made_by::<PointOp>(*old) else { continue };
                let Some(point) = choose(node, i, &self.points[op.point])? else { continue };
                let there = of_value.entry(inputs[i]).or_default();
                if let Some((_, v)) = there.iter().find(|(at, _)| points[*at].is_like(&point)) {
                    inputs[i] = *v;
                    continue;
                }
                let name = self.graph.value(*old).name.clone();
                let v = b.apply(&name, Arc::new(PointOp { point: points.len(), ..*op }), &[inputs[i]])?;
                there.push((points.len(), v));
                points.push(point);
                inputs[i] = v;
            }
            b.copy(node, &inputs)
        })?;
        Ok(Prepared::watching(graph, points))
    }

    /// The same points, with other constants under the same names, and the
    /// scales and zero points that training found. Codes are then the nearest
    /// ones: what data had to say, training has heard.
    pub(crate) fn trained<'a>(
        &self,
        constant: impl Fn(&str) -> Option<&'a Tensor>,
        params: impl IntoIterator<Item = Option<QParams>>,
    ) -> Result<Prepared> {
        let mut points = self.points.clone();
        for (point, params) in points.iter_mut().zip(params) {
            (point.means, point.moments, point.chosen, point.regained) = (None, None, None, None);
            point.given = params.or(point.given.take());
        }
        let graph = self.graph.with_constants(constant)?;
        for (_, _, op, inputs) in graph.applied() {
            let Some(PointOp { point, .. }) = op.is() else { continue };
            let point = &mut points[*point];
            if let (Some(source), Some(t)) = (&mut point.source, graph.constant(inputs[0])) {
                source.values = t.clone();
                point.observer = AnyObserver::new(source.observer, point.scheme)?;
                point.observer.observe(t).map_err(|e| e.at(&point.name))?;
            }
        }
        Ok(Prepared::watching(graph, points))
    }

    /// The same graph with these points in the place of its own, one for each.
    pub(crate) fn with(&self, points: Vec<Point>) -> Prepared {
        Prepared::watching(self.graph.clone(), points)
    }

    pub(super) fn parts(&mut self) -> (&Graph, &mut Vec<Point>, &HashMap<Var, Vec<Watch>>) {
        (&self.graph, &mut self.points, &self.watches)
    }
}
