//! Passes that ready a float graph for quantization. Each reads a graph and
//! returns a new one.

mod equalize;

pub use equalize::{ChannelScales, equalize};
