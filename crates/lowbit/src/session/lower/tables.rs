//! Functions of one value's codes: however many operators compute one, it is one
//! table.

use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Var};
use crate::session::integer::elementwise::{QBinary, Table};

/// The graph with every table of a table, and every addition or multiplication of
/// two functions of the same codes (x sigmoid(x), or GELU spelled out), as one
/// table.
pub fn compose(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        let made = if let Some(outer) = op.is::<Table>() {
            let (x, inner) = function(b, inputs[0]);
            (x, inner.map(|q| outer.table[usize::from(q)]))
        } else if let Some(binary) = op.is::<QBinary>() {
            let ((x, f), (y, g)) = (function(b, inputs[0]), function(b, inputs[1]));
            if x != y {
                return b.copy(node, inputs);
            }
            (x, binary.of_functions(&f, &g))
        } else {
            return b.copy(node, inputs);
        };
        let table = Table { table: Box::new(made.1) };
        b.apply_all(&node.name, Arc::new(table), &[made.0], &[&node.outputs[0].name])
    })
}

/// The codes that `v` is a function of, and the function: `v` itself, if no table
/// makes it.
fn function(b: &Builder, v: Var) -> (Var, [u8; 256]) {
    match b.so_far().made_by::<Table>(v) {
        Some((table, x)) => (x[0], *table.table),
        None => (v, std::array::from_fn(|q| q as u8)),
    }
}
