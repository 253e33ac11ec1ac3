//! The one way to build a graph: modules, readers and passes all append here.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Graph, Kind, Node, Tape, Value, Var, names};
use crate::error::{Result, invalid};
use crate::op::{Dim, Fact, Op};
use crate::ops::control::If;
use crate::ops::shape::Identity;
use crate::tensor::{DType, Tensor, element_count};

/// What a graph may spend on results of constant operands, counted in elements
/// read and written and in multiply-accumulates, beside [`FOLDED_PER_STORED`].
/// The rest is left to be computed at run time, so that a small file can
/// neither grow nor take time without bound.
const FOLDED: u64 = 1 << 24;

/// What it may spend for each element of its constants.
const FOLDED_PER_STORED: u64 = 8;

/// Appends nodes to a graph. Every operator is checked (`infer`) as it is
/// applied, and evaluated where its operands are constant, or known in an
/// [eager](Builder::eager) builder.
pub struct Builder {
    graph: Graph,
    /// What is known of the values of an eager builder's nodes.
    known: Option<Vec<Vec<Option<Tensor>>>>,
    pub(super) absent: Option<Var>,
    /// What may still be spent on results of constant operands.
    budget: u64,
}

impl Default for Builder {
    fn default() -> Builder {
        let graph = Graph { name: "graph".into(), ..Graph::default() };
        Builder { graph, known: None, absent: None, budget: FOLDED }
    }
}

impl Builder {
    /// A builder that evaluates each operator as it is applied, where the values
    /// of its operands are known ([`Builder::given`]): a trace with values.
    pub fn eager() -> Builder {
        Builder { known: Some(vec![]), ..Builder::default() }
    }

    /// Whether operators are evaluated as they are applied.
    pub fn is_eager(&self) -> bool {
        self.known.is_some()
    }

    /// An input whose value is known to an eager builder. Unlike a constant it
    /// stays apart from what is computed of it, so that there is a gradient by it.
    pub fn given(&mut self, name: &str, t: Tensor) -> Var {
        let v = self.input(name, Fact::of(&t));
        if let Some(known) = &mut self.known {
            known[v.node][v.slot] = Some(t);
        }
        v
    }

    /// The value of `v`, if it is constant or known.
    pub fn value(&self, v: Var) -> Option<&Tensor> {
        self.graph.constant(v).or_else(|| self.known.as_ref()?[v.node][v.slot].as_ref())
    }

    /// Ends an eager trace: what gradients by the values `wanted` need.
    pub fn into_tape(self, wanted: Vec<Var>) -> Tape<'static> {
        let mut values = self.known.unwrap_or_default();
        for (node, values) in self.graph.nodes.iter().zip(&mut values) {
            if let Kind::Const(t) = &node.kind {
                values[0] = Some(t.clone());
            }
        }
        Tape::new(self.graph, values, wanted)
    }

    /// A value that the caller will give.
    pub fn input(&mut self, name: &str, fact: Fact) -> Var {
        let v = self.push(name.into(), Kind::Input, vec![(name.into(), fact)]);
        self.graph.inputs.push(v);
        v
    }

    /// A value of the model.
    pub fn constant(&mut self, name: &str, t: Tensor) -> Var {
        if name.is_empty() {
            return self.absent();
        }
        self.budget = self.budget.saturating_add(FOLDED_PER_STORED.saturating_mul(t.len() as u64));
        self.stored(name, t)
    }

    fn stored(&mut self, name: &str, t: Tensor) -> Var {
        let fact = Fact::of(&t);
        self.push(String::new(), Kind::Const(t), vec![(name.into(), fact)])
    }

    /// The operand that stands for one that is left out (the empty name in
    /// ONNX): an empty tensor.
    pub fn absent(&mut self) -> Var {
        if let Some(v) = self.absent {
            return v;
        }
        let t = Tensor::vector(Vec::<f32>::new());
        let fact = Fact::of(&t);
        let v = self.push(String::new(), Kind::Const(t), vec![(String::new(), fact)]);
        self.absent = Some(v);
        v
    }

    /// The single output of `op`, named like the node.
    ///
    /// # Errors
    /// If the operands do not fit the operator; the error names the node.
    pub fn apply(&mut self, name: &str, op: Arc<dyn Op>, inputs: &[Var]) -> Result<Var> {
        match self.apply_all(name, op, inputs, &[name])?.as_slice() {
            [v] => Ok(*v),
            many => Err(invalid!("has {} outputs where one is expected", many.len()).at(name)),
        }
    }

    /// The outputs of `op` under the given names.
    ///
    /// # Errors
    /// If the operands do not fit the operator; the error names the node.
    pub fn apply_all(
        &mut self,
        name: &str,
        op: Arc<dyn Op>,
        inputs: &[Var],
        outputs: &[&str],
    ) -> Result<Vec<Var>> {
        self.try_apply(name, op, inputs, outputs).map_err(|e| e.at(name))
    }

    fn try_apply(
        &mut self,
        name: &str,
        op: Arc<dyn Op>,
        inputs: &[Var],
        outputs: &[&str],
    ) -> Result<Vec<Var>> {
        if let Some(branch) = op.is::<If>() {
            let operands: Vec<&Fact> = inputs.iter().map(|v| self.fact(*v)).collect();
            if let Some(taken) = branch.taken(&operands) {
                return self.splice(taken, &inputs[1..], outputs);
            }
        }
        let (op, inputs) = self.fitted(op, inputs)?;
        // Left-out operands at the end are no operands.
        let given = inputs.iter().rposition(|v| Some(*v) != self.absent).map_or(0, |last| last + 1);
        let inputs = &inputs[..given];
        let operands: Vec<&Fact> = inputs.iter().map(|v| self.fact(*v)).collect();
        let mut facts = op.infer(&operands).map_err(|e| e.at(op.name()))?;
        if outputs.len() > facts.len() {
            return Err(invalid!("{} has {} outputs, not {}", op.name(), facts.len(), outputs.len()));
        }
        facts.truncate(outputs.len());
        for (fact, output) in facts.iter_mut().zip(outputs) {
            let value = if output.is_empty() { name } else { output };
            for (axis, d) in fact.shape.iter_mut().enumerate().filter(|(_, d)| **d == Dim::unknown()) {
                *d = Dim::any(value, axis);
            }
            // Named dimensions are 1 at least.
            let least: Vec<usize> = fact.shape.iter().map(|d| d.known().unwrap_or(1)).collect();
            element_count(&least).map_err(|e| e.at(op.name()))?;
        }
        if let Some(values) = self.folded(&*op, inputs, &facts)? {
            let values = outputs.iter().zip(values);
            return Ok(values
                .map(|(name, t)| if name.is_empty() { self.absent() } else { self.stored(name, t) })
                .collect());
        }
        let values = self.evaluated(&*op, inputs)?;
        let named = outputs.iter().map(|o| (*o).to_string()).zip(facts).collect();
        let first = self.push(name.into(), Kind::Apply { op, inputs: inputs.to_vec() }, named);
        if let (Some(known), Some(values)) = (&mut self.known, values) {
            known[first.node] = values.into_iter().take(outputs.len()).map(Some).collect();
        }
        Ok((0..outputs.len()).map(|slot| Var { slot, ..first }).collect())
    }

    /// The values of an operator applied to known ones by an eager builder.
    fn evaluated(&self, op: &dyn Op, inputs: &[Var]) -> Result<Option<Vec<Tensor>>> {
        if !self.is_eager() {
            return Ok(None);
        }
        let operands: Option<Vec<&Tensor>> = inputs.iter().map(|v| self.value(*v)).collect();
        operands.map(|operands| op.eval(&operands).map_err(|e| e.at(op.name()))).transpose()
    }

    /// The values of an operator whose operands are all constant, if the
    /// budget allows them.
    fn folded(&mut self, op: &dyn Op, inputs: &[Var], facts: &[Fact]) -> Result<Option<Vec<Tensor>>> {
        if !op.folds() || facts.iter().any(|f| f.known_shape().is_none()) {
            return Ok(None);
        }
        let sizes: Option<Vec<Tensor>> = facts.iter().map(known_sizes).collect();
        if sizes.is_some() {
            return Ok(sizes);
        }
        let operands: Option<Vec<&Tensor>> = inputs.iter().map(|v| self.graph.constant(*v)).collect();
        let Some(operands) = operands else { return Ok(None) };
        let read: Vec<&Fact> = inputs.iter().map(|v| self.graph.fact(*v)).collect();
        let made: Vec<&Fact> = facts.iter().collect();
        let moved = read.iter().chain(&made).map(|f| f.elements());
        let cost = moved.fold(op.macs(&read, &made), u64::saturating_add);
        let Some(left) = self.budget.checked_sub(cost) else { return Ok(None) };
        let values = op.eval(&operands).map_err(|e| e.at(op.name()))?;
        self.budget = left;
        Ok(Some(values))
    }

    /// The same node over rebuilt operands.
    ///
    /// # Errors
    /// If the operands do not fit the operator.
    pub fn copy(&mut self, node: &Node, inputs: &[Var]) -> Result<Vec<Var>> {
        let Kind::Apply { op, .. } = &node.kind else {
            return Err(invalid!("only operator nodes are copied").at(&node.name));
        };
        self.replace(node, op.clone(), inputs)
    }

    /// `op` in the place of `node`: its name and the names of its outputs.
    ///
    /// # Errors
    /// If the operands do not fit the operator.
    pub fn replace(&mut self, node: &Node, op: Arc<dyn Op>, inputs: &[Var]) -> Result<Vec<Var>> {
        let outputs: Vec<&str> = node.outputs.iter().map(|o| o.name.as_str()).collect();
        self.apply_all(&node.name, op, inputs, &outputs)
    }

    /// Type and shape of `v`.
    pub fn fact(&self, v: Var) -> &Fact {
        self.graph.fact(v)
    }

    /// Name of `v`.
    pub fn name(&self, v: Var) -> &str {
        &self.graph.value(v).name
    }

    /// The graph built so far.
    pub fn so_far(&self) -> &Graph {
        &self.graph
    }

    /// The graph with these named outputs, without the nodes that none of them
    /// needs. Inputs stay. Each output's value carries the output's name, and
    /// names that occur twice are told apart by a suffix.
    ///
    /// # Errors
    /// If two outputs have one name.
    pub fn finish(mut self, outputs: impl IntoIterator<Item = (String, Var)>) -> Result<Graph> {
        let (mut taken, mut renamed) = (HashSet::new(), HashSet::new());
        for (name, v) in outputs {
            if !taken.insert(name.clone()) {
                return Err(invalid!("two outputs are named {name:?}"));
            }
            let plain = matches!(self.graph.node(v).kind, Kind::Apply { .. });
            let v = if self.name(v) == name || (plain && !renamed.contains(&v)) {
                v
            } else {
                self.apply(&name, Arc::new(Identity), &[v])?
            };
            self.rename(v, &name);
            renamed.insert(v);
            self.graph.outputs.push((name, v));
        }
        names::unique(sweep(self.graph))
    }

    /// Gives the value `v` of an operator another name.
    pub(super) fn rename(&mut self, v: Var, name: &str) {
        self.graph.nodes[v.node].outputs[v.slot].name = name.into();
    }

    fn push(&mut self, name: String, kind: Kind, outputs: Vec<(String, Fact)>) -> Var {
        let outputs: Vec<Value> = outputs.into_iter().map(|(name, fact)| Value { name, fact }).collect();
        if let Some(known) = &mut self.known {
            known.push(vec![None; outputs.len()]);
        }
        self.graph.nodes.push(Node { name, kind, outputs });
        Var { node: self.graph.nodes.len() - 1, slot: 0 }
    }
}

/// The constant that a value is if all its sizes are known.
fn known_sizes(fact: &Fact) -> Option<Tensor> {
    let sizes: Vec<i64> = fact.sizes.as_ref()?.iter().map(Dim::as_integer).collect::<Option<_>>()?;
    let shape = fact.known_shape()?;
    (fact.dtype == DType::I64).then(|| Tensor::new(&shape, sizes).ok())?
}

/// Drops what no output needs.
fn sweep(g: Graph) -> Graph {
    let mut live = vec![false; g.nodes.len()];
    for v in g.inputs.iter().chain(g.outputs.iter().map(|(_, v)| v)) {
        live[v.node] = true;
    }
    for (i, n) in g.nodes.iter().enumerate().rev() {
        if let (true, Kind::Apply { inputs, .. }) = (live[i], &n.kind) {
            for v in inputs {
                live[v.node] = true;
            }
        }
    }
    let mut next = 0;
    let new: Vec<usize> = live
        .iter()
        .map(|l| {
            let at = next;
            next += usize::from(*l);
            at
        })
        .collect();
    let moved = |v: &Var| Var { node: new[v.node], ..*v };
    let nodes = g.nodes.into_iter().zip(&live).filter(|(_, l)| **l).map(|(mut n, _)| {
        if let Kind::Apply { inputs, .. } = &mut n.kind {
            *inputs = inputs.iter().map(moved).collect();
        }
        n
    });
    Graph {
        nodes: nodes.collect(),
        inputs: g.inputs.iter().map(moved).collect(),
        outputs: g.outputs.iter().map(|(name, v)| (name.clone(), moved(v))).collect(),
        name: g.name,
        metadata: g.metadata,
    }
}
