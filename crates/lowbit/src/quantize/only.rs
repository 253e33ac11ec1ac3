//! A part of the points of a prepared graph: what measuring one layer needs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::dynamic::DynamicOp;
use super::point::{Point, PointOp, Role};
use super::prepare::Prepared;
use super::recurrent::LayerOp;
use crate::error::Result;
use crate::graph::{Graph, Kind, Node, Var};
use crate::op::Quant;
use crate::ops::recurrent::Recurrent;
use crate::qparams::QParams;
use crate::scheme::Format;

impl Prepared {
    /// The nodes whose weights will be quantized, in evaluation order.
    pub fn layers(&self) -> impl Iterator<Item = (Var, &Node)> {
        let graph = &self.graph;
        let is_weight = |v: &Var| match graph.made_by::<PointOp>(*v) {
            Some((op, _)) => self.points[op.point].role == Role::Weight,
            None => graph.made_by::<LayerOp>(*v).is_some(),
        };
        let nodes = graph.applied().filter(|(v, ..)| mark(graph, *v).is_none());
        let quantized = nodes.filter(move |(_, _, op, inputs)| {
            let dynamic = op.is::<Recurrent>().is_some() && graph.made_by::<DynamicOp>(inputs[0]).is_some();
            dynamic || inputs.iter().any(is_weight)
        });
        quantized.map(|(v, node, ..)| (v, node))
    }

    /// The points of the nodes that are `active`, each named by its first output: those of
    /// their operands and, activation functions included that belong to them, of what they
    /// make. Others who read these values read them quantized; everything else stays in
    /// float. The points keep what they have observed; means and deviations are not given
    /// back, since that makes up for the errors of other layers.
    ///
    /// # Errors
    /// What rebuilding the graph reports.
    pub fn only(&self, active: impl Fn(Var) -> bool) -> Result<Prepared> {
        let graph = &self.graph;
        let mut kept = HashSet::new();
        for (v, _, op, inputs) in graph.applied() {
            match mark(graph, v) {
                Some(under) if op.is::<PointOp>().is_some() && maker(graph, under).is_some_and(&active) => {
                    kept.insert(v);
                }
                None if active(v) => {
                    for x in inputs {
                        let mut x = *x;
                        while let Some(under) = mark(graph, x) {
                            kept.insert(x);
                            x = under;
                        }
                    }
                }
                _ => {}
            }
        }
        self.keeping(&kept)
    }

    /// The same values with one of the points alone, which has the scale and zero point `params`.
    ///
    /// # Errors
    /// What rebuilding the graph reports.
    pub(crate) fn with_one(&self, point: usize, params: QParams) -> Result<Prepared> {
        let is_it = |op: &PointOp| op.point == point;
        let graph = &self.graph;
        let places = graph.applied().filter(|(_, _, op, _)| op.is().is_some_and(is_it));
        let mut one = self.keeping(&places.map(|(v, ..)| v).collect())?;
        one.points.iter_mut().for_each(|point| point.given = Some(params.clone()));
        Ok(one)
    }

    /// The graph without the points and marks that are not `kept`.
    fn keeping(&self, kept: &HashSet<Var>) -> Result<Prepared> {
        let graph = &self.graph;
        let mut points: Vec<Point> = vec![];
        let mut places: HashMap<usize, usize> = HashMap::new();
        let rebuilt = graph.rebuild(|b, v, node, inputs| {
            if mark(graph, v).is_some() && !kept.contains(&v) {
                return Ok(inputs.to_vec());
            }
            let Some((PointOp { point, .. }, _)) = graph.made_by(v) else { return b.copy(node, inputs) };
            let place = *places.entry(*point).or_insert_with(|| {
                points.push(Point { regained: None, ..self.points[*point].clone() });
                points.len() - 1
            });
            // Of values moved around, the first place may be gone.
            let moved = points[place].role == Role::Weight;
            b.replace(node, Arc::new(PointOp { point: place, moved }), inputs)
        })?;
        Ok(Prepared::watching(rebuilt, points))
    }

    /// The same points with the scales and zero points of what they have observed, which
    /// are not looked for again.
    pub(crate) fn frozen(&self) -> Result<Prepared> {
        let mut frozen = self.clone();
        let steps = |p: &&mut Point| !matches!(p.scheme.format, Format::Codebook { .. });
        for point in frozen.points.iter_mut().filter(steps) {
            point.given = Some(point.params().map_err(|e| e.at(&point.name))?);
        }
        Ok(frozen)
    }
}

/// The value under `v`, if that is an operator that says what will become of it.
pub(crate) fn mark(graph: &Graph, v: Var) -> Option<Var> {
    let Kind::Apply { op, inputs } = &graph.node(v).kind else { return None };
    let marks =
        op.is::<PointOp>().is_some() || op.is::<DynamicOp>().is_some() || op.is::<LayerOp>().is_some();
    marks.then(|| inputs[0])
}

/// The first output of the operator that makes `v`, or of the one whose activation function does.
fn maker(graph: &Graph, v: Var) -> Option<Var> {
    match &graph.node(v).kind {
        Kind::Apply { op, inputs }
            if matches!(op.quant(), Quant::Clamp { .. }) && mark(graph, inputs[0]).is_none() =>
        {
            Some(inputs[0].output(0))
        }
        Kind::Apply { .. } => Some(v.output(0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Builder;
    use crate::op::{Dim, Fact};
    use crate::ops::binary::Arithmetic;
    use crate::ops::linear::Gemm;
    use crate::ops::unary::Unary;
    use crate::qconfig::{QConfigMapping, Target, preset};
    use crate::quantize::prepare;
    use crate::tensor::{DType, Tensor};

    /// Two layers, an addition around the second, and a third layer.
    fn model() -> Graph {
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2)]));
        let w = |b: &mut Builder, name: &str, values: [f32; 4]| {
            b.constant(name, Tensor::new(&[2, 2], values.to_vec()).unwrap())
        };
        let weights = [[1.0, 0.3, -0.5, 0.2], [0.5, -1.0, 0.7, 0.9], [0.1, 0.8, -0.6, 0.4]];
        let [u, v, t] = ["u", "v", "t"].map(String::from);
        let (u, v, t) = (w(&mut b, &u, weights[0]), w(&mut b, &v, weights[1]), w(&mut b, &t, weights[2]));
        let a = b.apply("a", Arc::new(Gemm::default()), &[x, u]).unwrap();
        let r = b.apply("r", Arc::new(Unary::Relu), &[a]).unwrap();
        let c = b.apply("c", Arc::new(Gemm::default()), &[r, v]).unwrap();
        let s = b.apply("s", Arc::new(Arithmetic::Add), &[c, r]).unwrap();
        let y = b.apply("y", Arc::new(Gemm::default()), &[s, t]).unwrap();
        b.finish([("y".to_string(), y)]).unwrap()
    }

    fn batch() -> Vec<Tensor> {
        vec![Tensor::new(&[3, 2], vec![1.0f32, 0.5, -0.25, 0.75, 0.125, -1.0]).unwrap()]
    }

    fn prepared(mapping: &QConfigMapping) -> Prepared {
        let mut prepared = prepare(&model(), mapping).unwrap();
        prepared.observe(&batch()).unwrap();
        prepared
    }

    #[test]
    fn it_is_what_rules_for_the_same_nodes_make() {
        let config = || preset("default").unwrap();
        let all = prepared(&QConfigMapping::global(config()));
        let layers: Vec<&str> = all.layers().map(|(_, node)| node.name.as_str()).collect();
        assert_eq!(layers, ["a", "c", "y"]);
        for nodes in
            [&["a", "r"][..], &["c"], &["s"], &["y"], &["a", "r", "s"], &["a", "r", "c", "s", "y"], &[]]
        {
            let others: Vec<&str> =
                ["a", "r", "c", "s", "y"].into_iter().filter(|n| !nodes.contains(n)).collect();
            let of = |v: Var| !others.contains(&all.graph().value(v).name.as_str());
            let mapping = nodes
                .iter()
                .fold(QConfigMapping::default(), |m, n| m.with(Target::name(n).unwrap(), Some(config())));
            for frozen in [false, true] {
                let only = if frozen { all.frozen().unwrap().only(of) } else { all.only(of) }.unwrap();
                let found = only.convert().unwrap().graph;
                let wanted = prepared(&mapping).convert().unwrap().graph;
                let outputs = [&found, &wanted].map(|g| g.run(&batch()).unwrap());
                assert_eq!(outputs[0], outputs[1], "{nodes:?}\n{found}\n{wanted}");
                let operators = [&found, &wanted].map(|g| g.applied().count());
                assert_eq!(operators[0], operators[1], "{nodes:?}");
            }
        }
    }
}
