//! Names of values and of nodes, each unique in a finished graph; those of values
//! in its bodies are different from those of the graphs around them.

use std::collections::{HashMap, HashSet};

use super::{Graph, Kind, Var};
use crate::error::Result;
use crate::tensor::Tensor;

/// Gives values that share a name a suffix each (`_1`, `_2` ...), and nodes that do
/// another. Inputs and outputs keep theirs; of the others the first does.
///
/// In the bodies of operators, inputs that capture a value have its name, and
/// other values get a suffix where a graph around them has their name; a
/// constant that is the same there keeps it.
pub fn unique(graph: Graph) -> Result<Graph> {
    let mut graph = in_one_graph(graph);
    name_bodies(&mut graph, &HashMap::new())?;
    Ok(graph)
}

fn in_one_graph(mut graph: Graph) -> Graph {
    let mut next: HashMap<String, usize> = HashMap::new();
    let fixed: HashSet<Var> =
        graph.inputs.iter().copied().chain(graph.outputs.iter().map(|(_, v)| *v)).collect();
    for v in &fixed {
        next.insert(graph.value(*v).name.clone(), 1);
    }
    let mut next_node: HashMap<String, usize> = HashMap::new();
    for node in 0..graph.nodes.len() {
        if matches!(graph.nodes[node].kind, Kind::Apply { .. }) && !graph.nodes[node].name.is_empty() {
            graph.nodes[node].name = free(&mut next_node, &graph.nodes[node].name);
        }
        for slot in 0..graph.nodes[node].outputs.len() {
            let value = &graph.nodes[node].outputs[slot];
            if value.name.is_empty() || fixed.contains(&Var { node, slot }) {
                continue;
            }
            let name = free(&mut next, &value.name);
            graph.nodes[node].outputs[slot].name = name;
        }
    }
    graph
}

/// `name`, or `name_1`, `name_2` and so on where it was given before.
pub fn free(next: &mut HashMap<String, usize>, name: &str) -> String {
    let Some(mut n) = next.get(name).copied() else {
        next.insert(name.to_string(), 1);
        return name.to_string();
    };
    let candidate = loop {
        let candidate = format!("{name}_{n}");
        n += 1;
        if !next.contains_key(&candidate) {
            break candidate;
        }
    };
    next.insert(name.to_string(), n);
    next.insert(candidate.clone(), 1);
    candidate
}

/// The names that a body sees, with the constants that have them.
type Visible = HashMap<String, Option<Tensor>>;

fn name_bodies(graph: &mut Graph, outside: &Visible) -> Result<()> {
    if !graph.has_bodies() {
        return Ok(());
    }
    let mut visible = outside.clone();
    for (v, node) in graph.nodes() {
        let constant = graph.constant(v).cloned();
        visible.extend(node.outputs.iter().map(|o| (o.name.clone(), constant.clone())));
    }
    for i in 0..graph.nodes.len() {
        let Kind::Apply { op, inputs } = &graph.nodes[i].kind else { continue };
        if op.bodies().is_empty() {
            continue;
        }
        let captured = &inputs[inputs.len() - op.captured().min(inputs.len())..];
        let captured: Vec<&str> = captured.iter().map(|v| graph.value(*v).name.as_str()).collect();
        let bodies = op.bodies().iter().map(|body| named_apart(body.clone(), &captured, &visible));
        let op = op.with_bodies(bodies.collect::<Result<_>>()?, captured.len())?;
        if let Kind::Apply { op: old, .. } = &mut graph.nodes[i].kind {
            *old = op;
        }
    }
    Ok(())
}

/// A body whose last inputs are named `captured`, and whose other values have
/// names that are not visible.
fn named_apart(mut body: Graph, captured: &[&str], visible: &Visible) -> Result<Graph> {
    let from = body.inputs.len() - captured.len();
    let names = body.nodes.iter().flat_map(|n| n.outputs.iter().map(|o| o.name.clone()));
    let mut next: HashMap<String, usize> =
        names.chain(visible.keys().cloned()).map(|name| (name, 1)).collect();
    for node in 0..body.nodes.len() {
        for slot in 0..body.nodes[node].outputs.len() {
            let v = Var { node, slot };
            let name = &body.value(v).name;
            let new = match body.inputs.iter().position(|i| *i == v).and_then(|i| i.checked_sub(from)) {
                Some(i) => captured[i].to_string(),
                None if name.is_empty() || !is_taken(&body, v, visible) => continue,
                None => free(&mut next, name),
            };
            let made = &mut body.nodes[node];
            if matches!(made.kind, Kind::Input) {
                made.name.clone_from(&new);
            }
            made.outputs[slot].name = new;
        }
    }
    let outputs = body.outputs.iter().map(|(_, v)| (body.value(*v).name.clone(), *v)).collect();
    body.outputs = outputs;
    name_bodies(&mut body, visible)?;
    Ok(body)
}

/// Whether the name of `v` is that of another value outside.
fn is_taken(body: &Graph, v: Var, visible: &Visible) -> bool {
    let is_output = body.outputs.iter().any(|(_, o)| *o == v);
    match (visible.get(&body.value(v).name), body.constant(v)) {
        (None, _) => false,
        (Some(Some(outside)), Some(t)) if !is_output => !is_same(outside, t),
        _ => true,
    }
}

/// Whether two constants are the same.
pub(crate) fn is_same(a: &Tensor, b: &Tensor) -> bool {
    let shared = match (a.slice::<f32>(), b.slice::<f32>()) {
        (Ok(x), Ok(y)) => std::ptr::eq(x, y),
        _ => false,
    };
    (a.dtype(), a.shape()) == (b.dtype(), b.shape()) && (shared || a == b)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::graph::{Builder, Graph};
    use crate::op::Fact;
    use crate::ops::unary::Unary;
    use crate::tensor::DType;

    #[test]
    fn nodes_and_values_that_share_a_name_are_told_apart() {
        let mut b = Builder::default();
        let mut v = b.input("relu", Fact::new(DType::F32, [2usize]));
        for name in ["relu", "relu", "tanh", "relu", "tanh"] {
            v = b.apply(name, Arc::new(Unary::Relu), &[v]).unwrap();
        }
        let graph = b.finish([("relu_1".to_string(), v)]).unwrap();
        let names = |graph: &Graph| -> Vec<(String, String)> {
            graph.applied().map(|(_, n, ..)| (n.name.clone(), n.outputs[0].name.clone())).collect()
        };
        let want = [
            ("relu", "relu_2"),
            ("relu_1", "relu_3"),
            ("tanh", "tanh"),
            ("relu_2", "relu_4"),
            ("tanh_1", "relu_1"),
        ];
        assert_eq!(names(&graph), want.map(|(node, value)| (node.to_string(), value.to_string())));
        let again = graph.rebuild(|b, _, node, inputs| b.copy(node, inputs)).unwrap();
        assert_eq!(names(&again), names(&graph));
    }
}
