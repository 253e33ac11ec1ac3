//! Additions that end a product: the epilogue adds the second operand.

use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Uses, Var};
use crate::op::{Dim, Fact, Op};
use crate::session::integer::conv::QConv;
use crate::session::integer::elementwise::{Operation, QBinary};
use crate::session::integer::linear::QLinear;
use crate::session::integer::product::{Epilogue, Sum};

/// The graph with every addition folded into the product that makes one of its
/// operands, where nothing else reads that and the shapes are equal, or the other
/// operand of a matrix product is one row. The node keeps the product's name, the value that of the sum.
pub fn fold_additions(graph: &Graph) -> Result<Graph> {
    let uses = graph.uses();
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        if let Some(add) = op.is::<QBinary>().filter(|op| op.operation == Operation::Add) {
            // The later operand first: the earlier one then exists when it runs.
            let order = if old[0] > old[1] { [0, 1] } else { [1, 0] };
            for product in order {
                if let Some((op, operands)) = with_addition(b, &uses, add, product, inputs, old) {
                    let name = b.so_far().node(inputs[product]).name.clone();
                    return b.apply_all(&name, op, &operands, &[&node.outputs[0].name]);
                }
            }
        }
        b.copy(node, inputs)
    })
}

/// The product that makes operand `product` of `add`, with `add` in its epilogue.
fn with_addition(
    b: &Builder,
    uses: &Uses,
    add: &QBinary,
    product: usize,
    inputs: &[Var],
    old: &[Var],
) -> Option<(Arc<dyn Op>, [Var; 2])> {
    let (made, other) = (inputs[product], inputs[1 - product]);
    if uses.of(old[product]) != 1 || old[0] == old[1] {
        return None;
    }
    let same = b.fact(made).shape == b.fact(other).shape;
    let Kind::Apply { op, inputs: operands } = &b.so_far().node(made).kind else { return None };
    let sum = Sum { operand: add.inputs[1 - product], codes: add.output, lo: add.lo, hi: add.hi };
    let summed = |epilogue: &Epilogue| epilogue.added(sum);
    let op: Arc<dyn Op> = if let Some(conv) = op.is::<QConv>().filter(|conv| same && !conv.is_depthwise()) {
        Arc::new(conv.with(summed(&conv.epilogue)?))
    } else if let Some(linear) = op.is::<QLinear>().filter(|_| same || is_row(b.fact(made), b.fact(other))) {
        Arc::new(linear.with(summed(&linear.epilogue)?))
    } else {
        return None;
    };
    Some((op, [operands[0], other]))
}

/// Whether `other` is one row, which is added to every row of `product`.
fn is_row(product: &Fact, other: &Fact) -> bool {
    let ones = other.shape.iter().rev().skip(1).all(|d| *d == Dim::Known(1));
    ones && other.rank() <= product.rank() && other.shape.last() == product.shape.last()
}
