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
        }
    }
}
