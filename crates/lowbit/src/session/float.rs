//! f32 operators with constant weights, packed at compile time. Images are
//! channels-last (NHWC).

pub mod conv;
pub mod low_bit;
pub mod matmul;
mod product;
pub mod recurrent;
