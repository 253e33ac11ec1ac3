//! What a user should know about a quantized model.

use std::fmt;

use serde::Serialize;

/// Something about the quantized model that deserves attention.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Finding {
    /// A bias does not fit into 32 bits at the scale of its accumulator; the
    /// weight scales of these channels were enlarged until it did.
    BiasOverflow {
        /// The node.
        node: String,
        /// The channels.
        channels: Vec<usize>,
    },
    /// A point's values are all equal: probably dead, or a constant.
    Constant {
        /// The value.
        value: String,
        /// What it always is.
        constant: f32,
    },
    /// Other runtimes lack this operator and run, in float, the function of
    /// standard operators that the file holds beside it.
    OwnOperator {
        /// The operator.
        op: String,
        /// How many nodes of it there are.
        nodes: usize,
    },
    /// The model broke with this node quantized: it stays in float
    /// ([`super::quantize_sparing`]).
    Spared {
        /// The node.
        node: String,
        /// The least SQNR of an output with this node alone quantized, in dB.
        sqnr_db: f64,
    },
    /// A layer that was to compute in integers stays in float.
    InFloat {
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::BiasOverflow { node, channels } => write!(
                f,
                "{node}: the bias of channels {channels:?} does not fit into 32 bits; their weight scales were enlarged"
            ),
            Finding::Constant { value, constant } => {
                write!(f, "{value}: is {constant} for every calibration sample")
            }
            Finding::OwnOperator { op, nodes } => write!(
                f,
                "{op} ({nodes} nodes) is lowbit's own: other runtimes run it in float, by the function that the file holds"
            ),
            Finding::Spared { node, sqnr_db } => write!(
                f,
                "{node}: stays in float, as it breaks the model: quantized alone it leaves the outputs {sqnr_db:.1} dB above \
                 their errors"
            ),
            Finding::InFloat { node, reason } => write!(f, "{node}: stays in float: {reason}"),
        }
    }
}
