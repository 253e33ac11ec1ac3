//! Passes that ready a float graph for quantization. Each reads a graph and
//! returns a new one.

mod adaround;
mod awq;
mod divisible;
mod equalize;
mod expected;
mod nbits;
mod ranges;
mod renormalize;
mod smooth;
mod tensorrt;

pub use adaround::{AdaroundOptions, Blocks, Reconstructed, adaround};
pub use awq::awq;
pub use equalize::{ChannelScales, equalize};
pub use expected::expected_means;
pub use nbits::products_of_few_bits;
pub use ranges::measured_ranges;
pub(crate) use ranges::{MeasuredRanges, measured_beside, points_to_measure};
pub use renormalize::renormalize;
pub use smooth::smooth;
pub use tensorrt::tensorrt_dialect;
