//! f32 operators: those with constant weights, packed at compile time, and
//! products of two matrices of the run. Images are channels-last (NHWC).

pub mod conv;
pub mod low_bit;
pub mod matmul;
mod product;
pub mod recurrent;
pub mod stack;
