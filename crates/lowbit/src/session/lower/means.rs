//! Means of whole images whose result stays in f32: taken of the codes.

use std::sync::Arc;

use super::layout::{channels_first, channels_last};
use crate::error::Result;
use crate::graph::{Graph, Kind};
use crate::ops::pool::GlobalAveragePool;
use crate::session::integer::boundary::Dequantize;
use crate::session::integer::mean::ChannelMeans;

/// The graph with every mean of dequantized images computed from their codes.
pub fn of_codes(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        let made = op.is::<GlobalAveragePool>().and_then(|_| b.so_far().made_by::<Dequantize>(inputs[0]));
        let Some((codes, x)) = made.map(|(dequantize, x)| (dequantize.codes, x[0])) else {
            return b.copy(node, inputs);
        };
        if b.fact(x).rank() != 4 {
            return b.copy(node, inputs);
        }
        let x = channels_last(b, x)?;
        let means = b.apply(&node.name, Arc::new(ChannelMeans { codes }), &[x])?;
        Ok(vec![channels_first(b, means)?])
    })
}
