//! The parts of a graph whose outputs are reconstructed one after another.

use std::collections::{HashMap, HashSet};

use super::rounding::has_steps;
use crate::graph::{Graph, Kind, Var};
use crate::op::Quant;
use crate::ops::binary::Arithmetic;
use crate::quantize::{PointOp, Prepared, Role};

/// Layers of a block at most; what has more is reconstructed layer by layer.
const MOST_LAYERS: usize = 16;

/// What is reconstructed at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Blocks {
    /// Each layer with the activation function behind it (AdaRound).
    Layers,
    /// What lies between two values through which everything passes that weights have a part
    /// in, such as residual blocks (BRECQ). What has no such end, or more than 16
    /// layers, is reconstructed layer by layer.
    #[default]
    Residual,
}

/// Nodes that are reconstructed at once, each by its first output.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The nodes in evaluation order.
    pub nodes: Vec<Var>,
    /// The weights, as the outputs of their points.
    pub weights: Vec<Var>,
    /// What is to be as in the float model.
    pub output: Var,
}

/// Whether `v` is a weight at its point, and if so the point.
pub fn weight_point(prepared: &Prepared, v: Var) -> Option<usize> {
    let (op, _) = prepared.graph().made_by::<PointOp>(v)?;
    (prepared.points()[op.point].role == Role::Weight).then_some(op.point)
}

/// The blocks in evaluation order.
pub fn blocks(prepared: &Prepared, kind: Blocks) -> Vec<Block> {
    let cutting = Cutting::new(prepared);
    match kind {
        Blocks::Layers => cutting.layers(&cutting.nodes),
        Blocks::Residual => cutting.residual(),
    }
}

struct Cutting<'a> {
    prepared: &'a Prepared,
    graph: &'a Graph,
    /// The nodes that weights have a part in, in evaluation order.
    nodes: Vec<Var>,
    made: HashSet<Var>,
}

impl<'a> Cutting<'a> {
    fn new(prepared: &'a Prepared) -> Cutting<'a> {
        let graph = prepared.graph();
        let mut cutting = Cutting { prepared, graph, nodes: vec![], made: HashSet::new() };
        for (v, node, _, inputs) in graph.applied() {
            let takes_part = |x: &Var| cutting.made.contains(x) || cutting.is_rounded(*x);
            if weight_point(prepared, v).is_none() && inputs.iter().any(takes_part) {
                cutting.nodes.push(v);
                cutting.made.extend((0..node.outputs.len()).map(|slot| v.output(slot)));
            }
        }
        cutting
    }

    /// Whether `v` is a weight whose rounding is learned.
    fn is_rounded(&self, v: Var) -> bool {
        let points = self.prepared.points();
        weight_point(self.prepared, v)
            .is_some_and(|point| points[point].learns && has_steps(points[point].scheme.format))
    }

    fn inputs(&self, v: Var) -> &'a [Var] {
        match &self.graph.node(v).kind {
            Kind::Apply { inputs, .. } => inputs,
            _ => &[],
        }
    }

    fn weights(&self, nodes: &[Var]) -> Vec<Var> {
        let mut weights: Vec<Var> = vec![];
        for x in nodes.iter().flat_map(|v| self.inputs(*v)) {
            if self.is_rounded(*x) && !weights.contains(x) {
                weights.push(*x);
            }
        }
        weights
    }

    /// Each of the layers among `nodes`, with what follows it.
    fn layers(&self, nodes: &[Var]) -> Vec<Block> {
        let uses = self.graph.uses();
        let mut blocks = vec![];
        for layer in nodes {
            let weights = self.weights(&[*layer]);
            if weights.is_empty() || self.graph.node(*layer).outputs.len() > 1 {
                continue;
            }
            let mut nodes = vec![*layer];
            let mut output = *layer;
            while uses.of(output) == 1
                && let Some(reader) = self.nodes.iter().find(|v| self.inputs(**v).contains(&output))
                && self.follows(*reader)
            {
                nodes.push(*reader);
                output = *reader;
            }
            blocks.push(Block { nodes, weights, output });
        }
        blocks
    }

    /// Whether the node is an activation function that is a clamp, or arithmetic with
    /// constants that may stand before one.
    fn follows(&self, v: Var) -> bool {
        let Kind::Apply { op, inputs } = &self.graph.node(v).kind else { return false };
        let constants = inputs.iter().filter(|x| self.graph.constant(**x).is_some()).count();
        let alone = constants + 1 == inputs.len();
        alone
            && (matches!(op.quant(), Quant::Clamp { .. })
                || matches!(op.is::<Arithmetic>(), Some(Arithmetic::Add | Arithmetic::Mul)))
    }

    fn residual(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = vec![];
        let mut open = false;
        for (nodes, end) in self.ranges() {
            let weights = self.weights(&nodes);
            match (end, blocks.last_mut()) {
                (Some(output), _) if (1..=MOST_LAYERS).contains(&weights.len()) => {
                    blocks.push(Block { nodes, weights, output });
                    open = true;
                }
                (Some(output), Some(block)) if open && nodes.len() == 1 && self.follows(nodes[0]) => {
                    block.nodes.extend(nodes);
                    block.output = output;
                }
                _ => {
                    blocks.extend(self.layers(&nodes));
                    open = false;
                }
            }
        }
        blocks
    }

    /// The nodes up to each value through which everything passes, which it ends with, and
    /// those after the last.
    fn ranges(&self) -> Vec<(Vec<Var>, Option<Var>)> {
        let uses = self.graph.uses();
        let mut left: HashMap<Var, usize> = HashMap::new();
        let mut ranges = vec![];
        let mut range = vec![];
        for v in &self.nodes {
            range.push(*v);
            for x in self.inputs(*v) {
                if let Some(n) = left.get_mut(x) {
                    *n -= 1;
                    if *n == 0 {
                        left.remove(x);
                    }
                }
            }
            for slot in 0..self.graph.node(*v).outputs.len() {
                let made = v.output(slot);
                if uses.of(made) > 0 {
                    left.insert(made, uses.of(made));
                }
            }
            if left.len() == 1 && left.contains_key(v) {
                ranges.push((std::mem::take(&mut range), Some(*v)));
            }
        }
        if !range.is_empty() {
            ranges.push((range, None));
        }
        ranges
    }
}
