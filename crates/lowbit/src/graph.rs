//! The graph: values in evaluation order, never edited, only rebuilt.

mod bodies;
mod builder;
mod dump;
mod names;
mod parameters;
mod run;
mod tape;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use builder::Builder;
pub(crate) use names::{free, is_same};
pub use run::Steps;
pub use tape::Tape;

use crate::error::{Result, invalid};
use crate::op::{Dim, Fact, Op};
use crate::tensor::Tensor;

/// A value: one output of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Var {
    node: usize,
    slot: usize,
}

impl Var {
    /// Output `slot` of the same node.
    pub fn output(self, slot: usize) -> Var {
        Var { slot, ..self }
    }
}

/// What makes one or more values.
#[derive(Clone, Debug)]
pub struct Node {
    /// The ONNX node name, or a module path.
    pub name: String,
    /// What makes the values.
    pub kind: Kind,
    /// The values made.
    pub outputs: Vec<Value>,
}

/// Name, type and shape of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// The ONNX tensor name, unique in the graph.
    pub name: String,
    /// Type and shape.
    pub fact: Fact,
}

/// Where values come from.
#[derive(Clone, Debug)]
pub enum Kind {
    /// The caller.
    Input,
    /// The model.
    Const(Tensor),
    /// An operator.
    Apply {
        /// The operator.
        op: Arc<dyn Op>,
        /// Its operands.
        inputs: Vec<Var>,
    },
}

/// An operator graph with constants, named inputs and outputs, and metadata.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    inputs: Vec<Var>,
    outputs: Vec<(String, Var)>,
    /// The graph's name.
    pub name: String,
    /// Key-value metadata (ONNX `metadata_props`).
    pub metadata: BTreeMap<String, String>,
}

impl Graph {
    /// The nodes in evaluation order, each with the variable of its first output.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (Var, &Node)> {
        self.nodes.iter().enumerate().map(|(node, n)| (Var { node, slot: 0 }, n))
    }

    /// The operator nodes in evaluation order.
    pub fn applied(&self) -> impl DoubleEndedIterator<Item = (Var, &Node, &Arc<dyn Op>, &[Var])> {
        self.nodes().filter_map(|(v, n)| match &n.kind {
            Kind::Apply { op, inputs } => Some((v, n, op, inputs.as_slice())),
            _ => None,
        })
    }

    /// The values that the caller gives.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = (Var, &Value)> {
        self.inputs.iter().map(|&v| (v, self.value(v)))
    }

    /// The values that the caller gets, with their names as outputs.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = (&str, Var)> {
        self.outputs.iter().map(|(name, v)| (name.as_str(), *v))
    }

    /// The node that makes `v`.
    pub fn node(&self, v: Var) -> &Node {
        &self.nodes[v.node]
    }

    /// Name, type and shape of `v`.
    pub fn value(&self, v: Var) -> &Value {
        &self.nodes[v.node].outputs[v.slot]
    }

    /// Type and shape of `v`.
    pub fn fact(&self, v: Var) -> &Fact {
        &self.value(v).fact
    }

    /// The constant that `v` is, if it is one.
    pub fn constant(&self, v: Var) -> Option<&Tensor> {
        match &self.node(v).kind {
            Kind::Const(t) => Some(t),
            _ => None,
        }
    }

    /// The operator that makes `v`, if it is a `T`, and its operands.
    pub fn made_by<T: Op>(&self, v: Var) -> Option<(&T, &[Var])> {
        match &self.node(v).kind {
            Kind::Apply { op, inputs } => Some((op.is::<T>()?, inputs)),
            _ => None,
        }
    }

    /// The value named `name`.
    pub fn find(&self, name: &str) -> Option<Var> {
        self.nodes.iter().enumerate().find_map(|(node, n)| {
            n.outputs.iter().position(|o| o.name == name).map(|slot| Var { node, slot })
        })
    }

    /// How many times each value is read, by operators or as an output.
    pub fn uses(&self) -> Uses {
        let mut counts: Vec<Vec<usize>> = self.nodes.iter().map(|n| vec![0; n.outputs.len()]).collect();
        let reads = self.applied().flat_map(|(_, _, _, inputs)| inputs.iter().copied());
        for v in reads.chain(self.outputs.iter().map(|(_, v)| *v)) {
            counts[v.node][v.slot] += 1;
        }
        Uses { counts }
    }

    /// Replays the graph into a new one. `f` is given each operator node with
    /// its rebuilt operands and returns the rebuilt outputs; what it leaves
    /// unused is gone.
    ///
    /// # Errors
    /// What `f` or shape inference reports, with the node's name.
    pub fn rebuild(
        &self,
        f: impl FnMut(&mut Builder, Var, &Node, &[Var]) -> Result<Vec<Var>>,
    ) -> Result<Graph> {
        self.replay(|fact, _| fact.clone(), f)
    }

    /// The graph for inputs of these shapes: what follows from shapes alone is
    /// constant.
    ///
    /// # Errors
    /// If an operator does not fit them; the error names the node.
    pub fn at_shapes<'a>(&self, shapes: impl IntoIterator<Item = &'a [usize]>) -> Result<Graph> {
        let shapes: Vec<Vec<Dim>> =
            shapes.into_iter().map(|s| s.iter().map(|&n| Dim::Known(n)).collect()).collect();
        let known =
            |fact: &Fact, i: usize| shapes.get(i).map_or(fact.clone(), |s| fact.with_shape(s.clone()));
        self.replay(known, |b, _, node, inputs| b.copy(node, inputs))
    }

    /// [`Graph::rebuild`] with `input(fact, i)` as the fact of input `i`.
    fn replay(
        &self,
        input: impl Fn(&Fact, usize) -> Fact,
        f: impl FnMut(&mut Builder, Var, &Node, &[Var]) -> Result<Vec<Var>>,
    ) -> Result<Graph> {
        let given = |b: &mut Builder, i: usize, v: &Value| Ok(b.input(&v.name, input(&v.fact, i)));
        self.replay_with(given, stored, f)
    }

    /// [`Graph::rebuild`] with `input(b, i, value)` in the place of input `i`,
    /// and `constant(b, value, t)` in that of a constant.
    fn replay_with(
        &self,
        input: impl FnMut(&mut Builder, usize, &Value) -> Result<Var>,
        constant: impl FnMut(&mut Builder, &Value, &Tensor) -> Result<Var>,
        f: impl FnMut(&mut Builder, Var, &Node, &[Var]) -> Result<Vec<Var>>,
    ) -> Result<Graph> {
        let mut b = Builder::default();
        let made = self.replay_onto(&mut b, input, constant, f)?;
        self.finished(b, made)
    }

    /// Replays the graph onto another one, in which `input(b, i, value)` is what
    /// input `i` reads, and `constant(b, value, t)` what stands for a constant.
    /// Returns the outputs.
    pub(crate) fn replay_onto(
        &self,
        b: &mut Builder,
        mut input: impl FnMut(&mut Builder, usize, &Value) -> Result<Var>,
        mut constant: impl FnMut(&mut Builder, &Value, &Tensor) -> Result<Var>,
        mut f: impl FnMut(&mut Builder, Var, &Node, &[Var]) -> Result<Vec<Var>>,
    ) -> Result<Vec<Var>> {
        let mut new: Vec<Vec<Var>> = Vec::with_capacity(self.nodes.len());
        for (var, node) in self.nodes() {
            let rebuilt = match &node.kind {
                Kind::Input => {
                    let i = self.inputs.iter().position(|v| *v == var).unwrap_or(usize::MAX);
                    vec![input(b, i, &node.outputs[0])?]
                }
                Kind::Const(t) => vec![constant(b, &node.outputs[0], t)?],
                Kind::Apply { inputs, .. } => {
                    let inputs: Vec<Var> = inputs.iter().map(|v| new[v.node][v.slot]).collect();
                    f(b, var, node, &inputs)?
                }
            };
            if rebuilt.len() != node.outputs.len() {
                return Err(invalid!(
                    "was rebuilt with {} outputs, not {}",
                    rebuilt.len(),
                    node.outputs.len()
                )
                .at(&node.name));
            }
            new.push(rebuilt);
        }
        Ok(self.outputs.iter().map(|(_, v)| new[v.node][v.slot]).collect())
    }

    /// The graph that `b` has built, with the names and metadata of this one.
    fn finished(&self, b: Builder, outputs: Vec<Var>) -> Result<Graph> {
        let mut graph = b.finish(self.outputs.iter().map(|(name, _)| name.clone()).zip(outputs))?;
        graph.name.clone_from(&self.name);
        graph.metadata.clone_from(&self.metadata);
        Ok(graph)
    }

    /// Multiply-accumulate operations for one sample.
    pub fn macs(&self) -> u64 {
        self.applied().map(|(v, ..)| self.node_macs(v)).sum()
    }

    /// Multiply-accumulate operations of the node that makes `v`, for one sample.
    pub fn node_macs(&self, v: Var) -> u64 {
        match &self.node(v).kind {
            Kind::Apply { op, inputs } => {
                let inputs: Vec<&Fact> = inputs.iter().map(|v| self.fact(*v)).collect();
                let outputs: Vec<&Fact> = self.node(v).outputs.iter().map(|o| &o.fact).collect();
                op.macs(&inputs, &outputs)
            }
            _ => 0,
        }
    }
}

/// A constant that stays one.
fn stored(b: &mut Builder, value: &Value, t: &Tensor) -> Result<Var> {
    Ok(b.constant(&value.name, t.clone()))
}

impl PartialEq for Graph {
    /// Same inputs, outputs and constants, and the same operators in the same
    /// order, with the same names, types and attributes.
    fn eq(&self, other: &Graph) -> bool {
        let constants = |g: &Graph| -> BTreeMap<String, Tensor> {
            g.nodes().filter_map(|(v, _)| Some((g.value(v).name.clone(), g.constant(v)?.clone()))).collect()
        };
        let names = |g: &Graph, vars: &[Var]| -> Vec<String> {
            vars.iter().map(|v| g.value(*v).name.clone()).collect()
        };
        let outputs = |g: &Graph| -> Vec<(String, String)> {
            g.outputs.iter().map(|(name, v)| (name.clone(), g.value(*v).name.clone())).collect()
        };
        (&self.name, &self.metadata) == (&other.name, &other.metadata)
            && self.inputs().map(|(_, v)| v).eq(other.inputs().map(|(_, v)| v))
            && outputs(self) == outputs(other)
            && constants(self) == constants(other)
            && self.applied().count() == other.applied().count()
            && self.applied().zip(other.applied()).all(|((_, a, f, x), (_, b, g, y))| {
                (&a.name, &a.outputs) == (&b.name, &b.outputs)
                    && **f == **g
                    && names(self, x) == names(other, y)
            })
    }
}

/// How many times each value of a graph is read.
pub struct Uses {
    counts: Vec<Vec<usize>>,
}

impl Uses {
    /// How many times `v` is read.
    pub fn of(&self, v: Var) -> usize {
        self.counts[v.node][v.slot]
    }
}
