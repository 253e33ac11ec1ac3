//! What of a Q/DQ model a runtime would not run in int8, and why.

mod nodes;
mod values;

use serde::Serialize;

use super::target::Target;
use crate::error::Result;
use crate::graph::Graph;
use crate::session::Session;

/// How grave a remark is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The runtime does not load the model.
    Refused,
    /// The node computes in float.
    Float,
    /// It runs in int8 on some machines or in some versions.
    Advice,
}

/// What is wrong. A remark's code is `LB-`, the target's letter and the rule's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Element type of the codes of an activation.
    ActivationType = 101,
    /// Element type of the codes of a weight.
    WeightType = 102,
    /// A zero point that is not 0.
    ZeroPoint = 103,
    /// Several scales for an activation.
    ActivationScales = 104,
    /// Scales of a weight along another axis than that of the output channels.
    WeightAxis = 105,
    /// Weights of few bits, or in blocks, which are computed with in float.
    FewBits = 106,
    /// A scale or zero point that the model computes.
    ComputedScale = 107,
    /// How a bias is stored.
    Bias = 108,
    /// Channels of a weight whose zero points differ.
    WeightZeroPoints = 109,
    /// Codes that run in int8 on some CPUs alone.
    SomeCpus = 110,
    /// An operand that is not quantized.
    Operand = 201,
    /// An output that is not quantized.
    Output = 202,
    /// An operator without int8 form.
    Operator = 203,
    /// Codes of different types around one operator.
    Mixed = 204,
    /// An activation function that the codes do not imply.
    Activation = 205,
    /// A factor of the bias.
    BiasFactor = 206,
    /// An operator that the runtime does not have.
    Unknown = 301,
    /// An operator of a later opset.
    Opset = 302,
    /// What the Session says.
    Session = 401,
}

/// What would not run in int8, where, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// Stable: `LB-`, a letter for the target (O, T, V, S), and a number for the rule.
    pub code: String,
    /// How grave it is.
    pub level: Level,
    /// The node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub suggestion: String,
}

/// What [`lint`] found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lint {
    /// The runtime.
    pub target: Target,
    /// In evaluation order.
    pub remarks: Vec<Remark>,
    /// Multiply-accumulate operations for one sample.
    pub macs: u64,
    /// Those that would run in int8; 0 if the model would not be loaded.
    pub integer_macs: u64,
}

impl Lint {
    /// The share of multiply-accumulate operations that would run in int8, 0 to 1.
    pub fn coverage(&self) -> f64 {
        if self.macs == 0 { 0.0 } else { self.integer_macs as f64 / self.macs as f64 }
    }

    /// Whether the runtime would not load the model.
    pub fn is_refused(&self) -> bool {
        self.remarks.iter().any(|r| r.level == Level::Refused)
    }

    /// Whether something would not run in int8.
    pub fn is_partial(&self) -> bool {
        self.remarks.iter().any(|r| r.level != Level::Advice)
    }
}

/// Says of each node of a Q/DQ model whether `target` would run it in int8, and if not, why.
/// The remarks are about nodes that compute multiply-accumulate operations, that the model
/// quantizes, or that the runtime does not have; what moves values between them is free.
///
/// QLinear operators are read as Q/DQ patterns ([`onnx::load`](crate::onnx::load)), and the lint is
/// about the model that lowbit would write.
///
/// # Errors
/// For [`Target::Session`], those of [`Session::compile`].
pub fn lint(graph: &Graph, target: Target) -> Result<Lint> {
    let Some(needs) = target.needs() else { return session(graph) };
    let mut found = nodes::Found::default();
    nodes::check(graph, needs, &mut found);
    let mut lint =
        Lint { target, remarks: found.remarks, macs: found.macs, integer_macs: found.integer_macs };
    if lint.is_refused() {
        lint.integer_macs = 0;
    }
    Ok(lint)
}

/// What the engine itself reports.
fn session(graph: &Graph) -> Result<Lint> {
    let session = Session::compile(graph)?;
    let report = session.report();
    let remarks = report.fallbacks.iter().map(|f| Remark {
        code: format!("LB-S{}", Rule::Session as u16),
        level: Level::Float,
        node: f.node.clone(),
        op: f.op.clone(),
        text: f.reason.clone(),
        suggestion: "quantize the values that it reads and the one that it makes; \
                     if they are, leave it in float"
            .into(),
    });
    Ok(Lint {
        target: Target::Session,
        remarks: remarks.collect(),
        macs: report.macs,
        integer_macs: report.integer_macs,
    })
}

#[cfg(test)]
mod tests;
