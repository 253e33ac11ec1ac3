//! Which values get a point, and which share one.

use std::collections::{HashMap, HashSet};

use crate::graph::{Graph, Kind, Node, Uses, Var};
use crate::op::{Op, Quant};
use crate::ops::gather::Gather;
use crate::ops::recurrent::Recurrent;
use crate::qconfig::{QConfig, Spec};
use crate::tensor::DType;

/// Sets of values that are the same numbers moved around, so that one point
/// serves them all (union-find).
#[derive(Default)]
struct Classes {
    parent: HashMap<Var, Var>,
}

impl Classes {
    fn find(&mut self, v: Var) -> Var {
        let parent = *self.parent.entry(v).or_insert(v);
        if parent == v {
            return v;
        }
        let root = self.find(parent);
        self.parent.insert(v, root);
        root
    }

    fn union(&mut self, a: Var, b: Var) {
        let (a, b) = (self.find(a), self.find(b));
        // The earlier value represents the class, whatever the order of unions.
        self.parent.insert(a.max(b), a.min(b));
    }
}

/// The operands of a node that its point rules are about.
pub struct Operands {
    /// Activations: inputs that are quantized as values of each run.
    pub activations: Vec<usize>,
    /// The constant weight and its channel axis.
    pub weight: Option<(usize, usize)>,
}

/// The operands that node `op` wants quantized.
pub fn operands(graph: &Graph, op: &dyn Op, inputs: &[Var]) -> Operands {
    let float = |i: &usize| graph.fact(inputs[*i]).dtype == DType::F32 && !graph.fact(inputs[*i]).is_absent();
    let constant = |i: usize| inputs.get(i).is_some_and(|v| graph.constant(*v).is_some());
    let all = |skip: &[Option<usize>]| {
        (0..inputs.len()).filter(float).filter(|i| !skip.contains(&Some(*i))).collect()
    };
    match op.quant() {
        Quant::Compute { .. } if op.is::<Recurrent>().is_some() => {
            let weights = (1..3).all(|i| constant(i) && float(&i));
            Operands { activations: if weights { vec![0] } else { vec![] }, weight: None }
        }
        Quant::Compute { weight, bias } => {
            let weight = weight.filter(|(i, _)| constant(*i));
            let bias = bias.filter(|i| *i < inputs.len() && float(i));
            Operands { activations: all(&[weight.map(|w| w.0), bias]), weight }
        }
        Quant::Merge => Operands { activations: all(&[]), weight: None },
        Quant::Share | Quant::Clamp { .. } | Quant::Fixed { .. } => Operands {
            activations: (0..1).filter(|i| !inputs.is_empty() && float(i)).collect(),
            weight: None,
        },
        Quant::Float => Operands { activations: vec![], weight: None },
    }
}

/// The operand that an operator has as its weight, and the weight's channel
/// axis: that of [`Quant::Compute`], or the table of a Gather of rows.
pub fn weight(op: &dyn Op) -> Option<(usize, usize)> {
    match op.quant() {
        Quant::Compute { weight, .. } => weight,
        _ => op.is::<Gather>().filter(|op| op.axis == 0).map(|_| (0, 0)),
    }
}

/// The points' places: for each value its class and, where the class is
/// quantized, how.
///
/// A class is quantized if an operator that computes in integers reads one of
/// its values, or makes one that a float operator reads. Values that only the
/// caller reads stay as precise as they are computed. Operators of
/// [`Spec::inputs_only`] read, and neither make nor share.
pub struct Placement<'a> {
    graph: &'a Graph,
    classes: HashMap<Var, Var>,
    specs: HashMap<Var, Spec>,
    folded: Vec<Var>,
}

impl<'a> Placement<'a> {
    /// Decides the places for a graph whose operator nodes are configured like
    /// this, in evaluation order (`None` stays in float).
    pub fn new(graph: &'a Graph, configs: &[Option<&QConfig>]) -> Placement<'a> {
        let uses = graph.uses();
        let nodes: Vec<_> = graph.applied().zip(configs.iter().copied()).collect();
        let mut classes = Classes::default();
        let mut consumers: Vec<(Var, &Spec)> = vec![];
        let mut producers: Vec<(Var, &Spec)> = vec![];
        let mut folded = vec![];
        for ((v, node, op, inputs), config) in &nodes {
            let Some(spec) = config.and_then(QConfig::observed).filter(|_| is_quantizable(node)) else {
                continue;
            };
            let operands = operands(graph, &***op, inputs);
            if operands.activations.is_empty() {
                continue;
            }
            if matches!(op.quant(), Quant::Share | Quant::Merge) && !spec.inputs_only {
                for slot in 0..node.outputs.len() {
                    for i in &operands.activations {
                        classes.union(inputs[*i], v.output(slot));
                    }
                }
                continue;
            }
            if op.quant() == Quant::Float {
                continue;
            }
            if !spec.inputs_only {
                producers.push((*v, spec));
            }
            for i in operands.activations {
                if matches!(op.quant(), Quant::Clamp { .. })
                    && folds_into(graph, &uses, &producers, inputs[i])
                {
                    folded.push(inputs[i]);
                } else {
                    consumers.push((inputs[i], spec));
                }
            }
        }
        let mut read = HashSet::new();
        for ((_, _, op, inputs), _) in &nodes {
            if !matches!(op.quant(), Quant::Share | Quant::Merge) {
                read.extend(inputs.iter().map(|v| classes.find(*v)));
            }
        }
        producers.retain(|(v, _)| read.contains(&classes.find(*v)));
        let mut specs = HashMap::new();
        for inputs_only in [false, true] {
            let all = consumers.iter().chain(&producers).filter(|(_, spec)| spec.inputs_only == inputs_only);
            for (v, spec) in all.filter(|(v, _)| !folded.contains(v)) {
                specs.entry(classes.find(*v)).or_insert_with(|| (*spec).clone());
            }
        }
        let all: Vec<Var> = classes.parent.keys().copied().collect();
        let classes = all.into_iter().map(|v| (v, classes.find(v))).collect();
        Placement { graph, classes, specs, folded }
    }

    /// The class of `v` and the way it is quantized, if it is.
    pub fn of(&self, v: Var) -> Option<(Var, &Spec)> {
        if self.folded.contains(&v) {
            return None;
        }
        let class = self.classes.get(&v).copied().unwrap_or(v);
        Some((class, self.specs.get(&class)?))
    }

    /// Whether the values of `v` are those of other members of its class,
    /// moved: they need not be watched.
    pub fn is_moved(&self, v: Var) -> bool {
        match &self.graph.node(v).kind {
            Kind::Apply { op, inputs } => {
                matches!(op.quant(), Quant::Share | Quant::Merge)
                    && inputs.first().is_some_and(|x| self.same_class(*x, v))
            }
            _ => false,
        }
    }

    fn same_class(&self, a: Var, b: Var) -> bool {
        let class = |v: Var| self.classes.get(&v).copied().unwrap_or(v);
        class(a) == class(b)
    }
}

/// Whether a node computes in f32.
fn is_quantizable(node: &Node) -> bool {
    node.outputs.iter().all(|o| o.fact.dtype == DType::F32)
}

/// Whether an activation function on `v` is part of the operator that makes
/// `v`: it computes in integers, is quantized, and nothing else reads `v`.
fn folds_into(graph: &Graph, uses: &Uses, quantized: &[(Var, &Spec)], v: Var) -> bool {
    let computes = match &graph.node(v).kind {
        Kind::Apply { op, .. } => matches!(op.quant(), Quant::Compute { .. }),
        _ => false,
    };
    computes && uses.of(v) == 1 && quantized.iter().any(|(p, _)| *p == v)
}
