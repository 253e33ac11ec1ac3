//! Integer operators: u8 codes in, u8 codes (or f32 values) out. Images are
//! channels-last (NHWC).

pub mod boundary;
pub mod coded_rows;
pub mod conv;
pub mod dynamic;
pub mod elementwise;
pub mod linear;
pub mod matmul;
pub mod mean;
pub mod product;
