//! What a compiled model runs in integers, and why not more.

use std::fmt;

use serde::Serialize;

/// A node that computes in float although the model quantizes it, or that the
/// model does not quantize.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fallback {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Multiply-accumulate operations for one sample.
    pub macs: u64,
    /// Why it is not computed in integers.
    pub reason: String,
}

/// How much of a model runs in integers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The instruction set of the kernels.
    pub isa: String,
    /// Multiply-accumulate operations of the model for one sample.
    pub macs: u64,
    /// Those that run in integers.
    pub integer_macs: u64,
    /// Nodes of the lowered graph that compute in integers.
    pub integer_nodes: usize,
    /// Nodes that compute in float.
    pub fallbacks: Vec<Fallback>,
}

impl Report {
    /// The share of multiply-accumulate operations that run in integers, 0 to 1.
    pub fn coverage(&self) -> f64 {
        if self.macs == 0 { 0.0 } else { self.integer_macs as f64 / self.macs as f64 }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.coverage();
        writeln!(
            f,
            "{percent:.1} % of {} MACs in int8 ({} nodes, {})",
            self.macs, self.integer_nodes, self.isa
        )?;
        for fallback in &self.fallbacks {
            writeln!(f, "  float: {} ({}): {}", fallback.node, fallback.op, fallback.reason)?;
        }
        Ok(())
    }
}
