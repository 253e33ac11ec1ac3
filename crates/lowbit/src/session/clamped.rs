//! A float convolution and the activation on it, computed in one pass.

use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::graph::{Graph, Kind};
use crate::op::{Attribute, Attributes, Fact, Op, Quant};
use crate::ops::conv::Conv;
use crate::tensor::{DType, Tensor};

/// A convolution with its results restricted to `lo..=hi`; NaN stays.
#[derive(Debug)]
struct ClampedConv {
    conv: Conv,
    lo: f32,
    hi: f32,
}

/// The graph with every clamp folded into the float convolution before it, where
/// nothing else reads that. The node keeps the convolution's name, the value that
/// of the clamp.
pub fn fold_clamps(graph: &Graph) -> Result<Graph> {
    let uses = graph.uses();
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        let (Quant::Clamp { lo, hi }, [v]) = (op.quant(), inputs) else { return b.copy(node, inputs) };
        let before = b.so_far().node(*v).clone();
        let Kind::Apply { op, inputs: operands } = before.kind else { return b.copy(node, inputs) };
        let Some(conv) = op.is::<Conv>().filter(|_| uses.of(old[0]) == 1 && b.fact(*v).dtype == DType::F32)
        else {
            return b.copy(node, inputs);
        };
        let op = ClampedConv { conv: conv.clone(), lo, hi };
        b.apply_all(&before.name, Arc::new(op), &operands, &[&node.outputs[0].name])
    })
}

impl Op for ClampedConv {
    fn name(&self) -> &'static str {
        self.conv.name()
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        self.conv.infer(x)
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let made = self.conv.eval_clamped(x, self.lo, self.hi);
        made.unwrap_or_else(|| Err(invalid!("convolutions clamp their results")))
    }
    fn attributes(&self) -> Attributes {
        let bounds = [("lo", Attribute::Float(self.lo)), ("hi", Attribute::Float(self.hi))];
        self.conv.attributes().into_iter().chain(bounds).collect()
    }
    fn quant(&self) -> Quant {
        self.conv.quant()
    }
    fn macs(&self, x: &[&Fact], y: &[&Fact]) -> u64 {
        self.conv.macs(x, y)
    }
}
