//! Which nodes of a Q/DQ model stay in float because that is faster.
//!
//! Every node runs in integers or in float. With the time that each takes in
//! either, and the time to quantize or dequantize what passes between a node in
//! float and one in integers, the cheapest choice is a minimum cut.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use lowbit_kernels::Kernels;
use petgraph::algo::ford_fulkerson;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::{Dfs, EdgeRef};

use super::Session;
use super::codes::quantized_codes;
use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Var};
use crate::op::Op;
use crate::ops::clip::Clip;
use crate::ops::quantize::{DequantizeLinear, QuantizeLinear};
use crate::tensor::Tensor;

/// Runs of which the fastest counts.
const RUNS: usize = 10;
/// Nanoseconds that nothing takes.
const NEVER: u64 = 1 << 50;

impl Session {
    /// [`Session::compile`], with those nodes left in float that are measured to
    /// be faster so, borders included, for `inputs`. Values between two such nodes
    /// are not rounded. The [`report`](Session::report) names the nodes.
    ///
    /// # Errors
    /// As [`Session::compile`] and [`Session::run`].
    pub fn compile_fastest(graph: &Graph, inputs: &[Tensor]) -> Result<Session> {
        let int8 = Session::compile(graph)?;
        if int8.report.integer_nodes == 0 {
            return Ok(int8);
        }
        let all: HashSet<Var> = Units::of(graph).vars.into_iter().collect();
        let float = Session::compile(&in_float(graph, &all)?)?;
        let costs = [times(&int8, inputs)?, times(&float, inputs)?];
        let at_shapes = graph.at_shapes(inputs.iter().map(Tensor::shape))?;
        let (units, borders) = Units::of(&at_shapes).costs(&at_shapes, &int8, &costs);
        let names: HashSet<&str> = cheapest(&units, &borders).into_iter().map(|i| &*units[i].name).collect();
        let some = graph.applied().filter(|(_, node, ..)| names.contains(&*node.name)).map(|(v, ..)| v);
        let reason = |unit: &Unit| {
            let ms = |ns: u64| ns as f64 / 1e6;
            format!(
                "float is faster: {:.3} ms, {:.3} ms in int8 without its borders",
                ms(unit.float),
                ms(unit.int)
            )
        };
        let moved = |chosen: &dyn Fn(&Unit) -> bool| -> HashMap<String, String> {
            let moved = units.iter().filter(|u| chosen(u) && (1..NEVER).contains(&u.int));
            moved.map(|u| (u.name.clone(), reason(u))).collect()
        };
        let reasons = moved(&|unit| names.contains(&*unit.name));
        if reasons.is_empty() {
            return Ok(int8);
        }
        let mixed = Session::compiled(&in_float(graph, &some.collect())?, reasons)?;
        let float = Session::compiled(&in_float(graph, &all)?, moved(&|_| true))?;
        // The times of single nodes are not all of a run's.
        let mut timed = vec![];
        for session in [int8, mixed, float] {
            timed.push((fastest_run(&session, inputs)?, session));
        }
        timed.sort_by_key(|(ns, _)| *ns);
        Ok(timed.swap_remove(0).1)
    }
}

/// A node, and what it costs in either form, in nanoseconds.
#[derive(Clone, Debug)]
struct Unit {
    name: String,
    int: u64,
    float: u64,
}

/// What it costs that one of two units runs in integers and the other in float.
#[derive(Clone, Copy, Debug)]
struct Border {
    units: [usize; 2],
    cost: u64,
}

/// The units that run in float where the sum of all costs is least.
fn cheapest(units: &[Unit], borders: &[Border]) -> Vec<usize> {
    let mut network: DiGraph<(), u64> = DiGraph::new();
    let nodes: Vec<NodeIndex> = units.iter().map(|_| network.add_node(())).collect();
    // A unit on the side of the source runs in integers.
    let (int, float) = (network.add_node(()), network.add_node(()));
    for (unit, &node) in units.iter().zip(&nodes) {
        network.add_edge(int, node, unit.float);
        network.add_edge(node, float, unit.int);
    }
    for Border { units: [a, b], cost } in borders {
        network.add_edge(nodes[*a], nodes[*b], *cost);
        network.add_edge(nodes[*b], nodes[*a], *cost);
    }
    let (_, flows) = ford_fulkerson(&network, int, float);
    let mut residual: DiGraph<(), ()> = DiGraph::new();
    (0..network.node_count()).for_each(|_| _ = residual.add_node(()));
    for edge in network.edge_references() {
        let flow = flows[edge.id().index()];
        if flow < *edge.weight() {
            residual.add_edge(edge.source(), edge.target(), ());
        }
        if flow > 0 {
            residual.add_edge(edge.target(), edge.source(), ());
        }
    }
    let mut reached = HashSet::new();
    let mut search = Dfs::new(&residual, int);
    while let Some(node) = search.next(&residual) {
        reached.insert(node);
    }
    (0..units.len()).filter(|&i| !reached.contains(&nodes[i])).collect()
}

/// The nodes of a Q/DQ graph that compute or move values.
struct Units {
    vars: Vec<Var>,
}

impl Units {
    fn of(graph: &Graph) -> Units {
        let linear =
            |op: &dyn Op| op.is::<QuantizeLinear>().is_some() || op.is::<DequantizeLinear>().is_some();
        Units { vars: graph.applied().filter(|(_, _, op, _)| !linear(&***op)).map(|(v, ..)| v).collect() }
    }

    /// What each unit of `graph` and each border costs, with the times of the nodes
    /// in integers and in float.
    fn costs(
        &self,
        graph: &Graph,
        int8: &Session,
        [in_int, in_float]: &[HashMap<String, u64>; 2],
    ) -> (Vec<Unit>, Vec<Border>) {
        let fallbacks: HashSet<&str> = int8.report.fallbacks.iter().map(|f| &*f.node).collect();
        let index: HashMap<Var, usize> = self.vars.iter().enumerate().map(|(i, v)| (*v, i)).collect();
        let time = |times: &HashMap<String, u64>, name: &str| times.get(name).copied().unwrap_or(0);
        let mut units: Vec<Unit> = self
            .vars
            .iter()
            .map(|v| {
                let name = &graph.node(*v).name;
                let int = if fallbacks.contains(&**name) { NEVER } else { time(in_int, name) };
                Unit { name: name.clone(), int, float: time(in_float, name) }
            })
            .collect();
        let mut borders = vec![];
        let [quantize, dequantize] = nanoseconds_per_element();
        let cost = |v: Var, rate: f64| (graph.fact(v).elements() as f64 * rate) as u64;
        for (i, v) in self.vars.iter().enumerate() {
            let Kind::Apply { inputs, .. } = &graph.node(*v).kind else { continue };
            for &operand in inputs {
                let from = quantized_from(graph, operand).unwrap_or(operand);
                match index.get(&from.output(0)) {
                    Some(&maker) => {
                        let cost = cost(from, quantize.max(dequantize));
                        borders.push(Border { units: [maker, i], cost });
                    }
                    // An input of the model, which is float.
                    None if from != operand => units[i].int += cost(from, quantize),
                    None => {}
                }
            }
        }
        for (_, v) in graph.outputs() {
            let from = quantized_from(graph, v).filter(|from| index.contains_key(&from.output(0)));
            if let Some(from) = from {
                units[index[&from.output(0)]].int += cost(from, dequantize);
            }
        }
        (units, borders)
    }
}

/// The value that `v` is after quantizing and dequantizing, if it is one.
fn quantized_from(graph: &Graph, v: Var) -> Option<Var> {
    let (_, codes) = graph.made_by::<DequantizeLinear>(v)?;
    graph.made_by::<QuantizeLinear>(codes[0]).map(|(_, x)| x[0])
}

/// The graph with the nodes of `float` on weights that are dequantized already, and
/// on values that are only clipped, not rounded, where these nodes or the caller
/// make them.
fn in_float(graph: &Graph, float: &HashSet<Var>) -> Result<Graph> {
    let mut values = Unrounded::default();
    graph.rebuild(|b, v, node, inputs| {
        if !float.contains(&v) {
            return b.copy(node, inputs);
        }
        let operands = inputs.iter().map(|x| values.of(b, *x)).collect::<Result<Vec<_>>>()?;
        let outputs = b.copy(node, &operands)?;
        values.made.extend(&outputs);
        Ok(outputs)
    })
}

/// Values of a graph with nodes in float.
#[derive(Default)]
struct Unrounded {
    /// Those that nodes in float made.
    made: HashSet<Var>,
    /// Dequantized values, and what nodes in float read in their place.
    read: HashMap<Var, Var>,
}

impl Unrounded {
    /// What a node in float reads in the place of `x`.
    fn of(&mut self, b: &mut Builder, x: Var) -> Result<Var> {
        if let Some(read) = self.read.get(&x) {
            return Ok(*read);
        }
        let read = self.find(b, x)?.unwrap_or(x);
        self.read.insert(x, read);
        Ok(read)
    }

    fn find(&self, b: &mut Builder, x: Var) -> Result<Option<Var>> {
        let Some((dq, operands)) = b.so_far().made_by::<DequantizeLinear>(x) else { return Ok(None) };
        let constants: Option<Vec<&Tensor>> = operands.iter().map(|v| b.so_far().constant(*v)).collect();
        if let Some(constants) = constants {
            let values = dq.eval(&constants)?.remove(0);
            let name = format!("{}_f32", b.name(x));
            return Ok(Some(b.constant(&name, values)));
        }
        let made = operands[0];
        let Some((q, operands)) = b.so_far().made_by::<QuantizeLinear>(made) else { return Ok(None) };
        let from = operands[0];
        if !self.made.contains(&from) && !matches!(b.so_far().node(from).kind, Kind::Input) {
            return Ok(None);
        }
        // Rounding to codes restricts the values too, which may stand for an activation function.
        let Some(codes) = quantized_codes(b.so_far(), q, made, operands)? else { return Ok(None) };
        let clip = Clip::new(codes.decode(0), codes.decode(255));
        let name = format!("{}_clipped", b.name(from));
        b.apply(&name, Arc::new(clip), &[from]).map(Some)
    }
}

/// Nanoseconds of each node: the least of several runs.
fn times(session: &Session, inputs: &[Tensor]) -> Result<HashMap<String, u64>> {
    let mut least: HashMap<String, f64> = HashMap::new();
    for run in 0..=RUNS {
        let mut seconds: HashMap<String, f64> = HashMap::new();
        session.time(inputs, &mut |t| *seconds.entry(t.node.into()).or_default() += t.seconds)?;
        // The first run plans.
        if run > 0 {
            for (node, seconds) in seconds {
                let least = least.entry(node).or_insert(f64::INFINITY);
                *least = least.min(seconds);
            }
        }
    }
    Ok(least.into_iter().map(|(node, seconds)| (node, (1e9 * seconds) as u64)).collect())
}

/// Nanoseconds of the fastest of several runs.
fn fastest_run(session: &Session, inputs: &[Tensor]) -> Result<u128> {
    let mut outputs = session.run(inputs)?;
    let mut least = u128::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        session.run_into(inputs, &mut outputs)?;
        least = least.min(start.elapsed().as_nanos());
    }
    Ok(least)
}

/// Nanoseconds to quantize and to dequantize an element.
fn nanoseconds_per_element() -> [f64; 2] {
    const ELEMENTS: usize = 1 << 16;
    let (mut values, mut codes) = (vec![0.5f32; ELEMENTS], vec![0u8; ELEMENTS]);
    let mut least = [f64::INFINITY; 2];
    for _ in 0..RUNS {
        let start = Instant::now();
        Kernels::best().quantize_u8(&values, 0.01, 0, 0, 255, &mut codes);
        let middle = Instant::now();
        Kernels::best().dequantize_u8(&codes, 0.01, 0, &mut values);
        for (least, time) in least.iter_mut().zip([middle - start, middle.elapsed()]) {
            *least = least.min(time.as_nanos() as f64 / ELEMENTS as f64);
        }
    }
    least
}

#[cfg(test)]
mod tests;
