//! Value names, unique in a finished graph.

use std::collections::{HashMap, HashSet};

use super::{Graph, Var};

/// Gives values that share a name a suffix each (`_1`, `_2` ...). Inputs and
/// outputs keep theirs; of the others the first does.
pub fn unique(mut graph: Graph) -> Graph {
    let mut next: HashMap<String, usize> = HashMap::new();
    let fixed: HashSet<Var> =
        graph.inputs.iter().copied().chain(graph.outputs.iter().map(|(_, v)| *v)).collect();
    for v in &fixed {
        next.insert(graph.value(*v).name.clone(), 1);
    }
    for node in 0..graph.nodes.len() {
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

fn free(next: &mut HashMap<String, usize>, name: &str) -> String {
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
