//! Passes that ready a float graph for quantization. Each reads a graph and
//! returns a new one.

mod awq;
mod equalize;

pub use awq::awq;
pub use equalize::{ChannelScales, equalize};
