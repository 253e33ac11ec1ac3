//! The order in which nodes are read, and what they read.

use std::collections::{BTreeSet, HashMap, HashSet};

use lowbit_onnx::proto::{GraphProto, NodeProto};

use crate::error::{Error, Result, invalid};
use crate::graph::Var;

/// A node's name, or where it has none, that of its first output.
pub fn place(node: &NodeProto) -> String {
    match (node.name(), node.output.iter().find(|o| !o.is_empty())) {
        ("", Some(output)) => output.clone(),
        (name, _) => name.to_string(),
    }
}

/// The nodes so that each comes after those whose values it reads, otherwise
/// in the file's order.
pub fn in_order<'a>(nodes: &'a [NodeProto], given: &HashMap<String, Var>) -> Result<Vec<&'a NodeProto>> {
    let mut made: HashSet<&str> = given.keys().map(String::as_str).collect();
    let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
    let mut missing = vec![0usize; nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        let unmade: HashSet<&str> = reads(node).into_iter().filter(|n| !made.contains(n)).collect();
        missing[i] = unmade.len();
        for name in unmade {
            readers.entry(name).or_default().push(i);
        }
    }
    let mut ready: BTreeSet<usize> = (0..nodes.len()).filter(|&i| missing[i] == 0).collect();
    let mut sorted = Vec::with_capacity(nodes.len());
    while let Some(i) = ready.pop_first() {
        sorted.push(&nodes[i]);
        for output in nodes[i].output.iter().map(String::as_str) {
            if made.insert(output) {
                for &reader in readers.get(output).into_iter().flatten() {
                    missing[reader] -= 1;
                    if missing[reader] == 0 {
                        ready.insert(reader);
                    }
                }
            }
        }
    }
    if sorted.len() < nodes.len() {
        let waiting: Vec<&NodeProto> =
            nodes.iter().zip(&missing).filter(|(_, m)| **m > 0).map(|(n, _)| n).collect();
        return Err(stuck(&waiting, &made));
    }
    Ok(sorted)
}

/// Why none of `waiting` can be computed: a value that nothing makes, or a cycle.
fn stuck(waiting: &[&NodeProto], made: &HashSet<&str>) -> Error {
    let will_make: HashSet<&str> = waiting.iter().flat_map(|n| n.output.iter().map(String::as_str)).collect();
    for node in waiting {
        for input in reads(node).into_iter().filter(|i| !made.contains(i)) {
            if !will_make.contains(input) {
                return invalid!("reads {input:?}, which is no input, initializer or output of a node")
                    .at(place(node));
            }
        }
    }
    let names: Vec<String> = waiting.iter().take(5).map(|n| place(n)).collect();
    invalid!("the nodes {} depend on one another in a cycle", names.join(", "))
}

/// The graphs among a node's attributes, in the file's order.
pub fn bodies(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs))
}

/// The values that a node reads: its operands, and what its bodies capture.
fn reads(node: &NodeProto) -> BTreeSet<&str> {
    let mut names: BTreeSet<&str> = node.input.iter().map(String::as_str).filter(|n| !n.is_empty()).collect();
    names.extend(bodies(node).flat_map(captured));
    names
}

/// The names that a graph reads and does not define.
pub fn captured(graph: &GraphProto) -> BTreeSet<&str> {
    let mut names: BTreeSet<&str> = graph.node.iter().flat_map(reads).collect();
    names.extend(graph.output.iter().map(|o| o.name()).filter(|n| !n.is_empty()));
    for input in &graph.input {
        names.remove(input.name());
    }
    for t in &graph.initializer {
        names.remove(t.name());
    }
    for output in graph.node.iter().flat_map(|n| &n.output) {
        names.remove(output.as_str());
    }
    names
}
