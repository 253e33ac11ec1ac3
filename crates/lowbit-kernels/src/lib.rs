//! Integer and quantization kernels: slices in, slices out; no tensors, no threads.
//!
//! One [`Kernels`] table per instruction set holds every routine. The scalar
//! table is the definition: each other table equals it bit for bit, for every
//! input. [`Kernels::best`] is the table to use.
//!
//! Conventions:
//!
//! - 8-bit activations are `u8`. A signed tensor is carried as `x ^ 0x80` with
//!   its zero point raised by 128. Weights are `i8`.
//! - Images are NHWC. Matrices are row-major with a stride in elements.
//! - Rounding is half to even, division is true division. No multiply-add is
//!   fused but those of f32 products, where each is, and of [`exp`] and [`erf`].
//! - Callers split work over threads by rows.
//!
//! How a routine is written:
//!
//! - The matrix product is a register tile per instruction set ([`Kernels::gemm`]):
//!   intrinsics accumulate, and one epilogue in plain Rust, inlined into each
//!   tile, requantizes; on x86-64 it has a twin by vectors (`isa/finish256.rs`,
//!   `isa/finish512.rs`). The f32 product ([`Kernels::product`]) is a second one.
//! - Everything else is a plain loop compiled once per instruction set
//!   (`loops.rs`), which the compiler vectorizes.
#![deny(unsafe_op_in_unsafe_fn)]
// What packing and epilogues hold ready for the registers of one CPU, others leave alone.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

mod block;
mod depthwise;
mod elementwise;
mod filters;
mod functions;
mod gemm;
mod grid;
mod isa;
mod loops;
mod low_bit;
mod matrix;
mod normalize;
mod pack;
mod pool;
mod product;
mod quantize;
mod requant;
mod rows;
mod shifted;
mod statistics;
mod tile;
mod window;

pub use depthwise::{MOST_TAPS, PackedDepthwise};
pub use elementwise::{Add, Mul};
pub use filters::Filters;
pub use functions::{erf, exp, sigmoid, tanh};
pub use gemm::Output;
pub use grid::Grid;
pub use isa::{ISA_VARIABLE, Kernels};
pub use low_bit::{CodeValues, CodedBlock, LowBitRows, LowBitShape, LowBitWeights};
pub use matrix::{Matrix, MatrixMut};
pub use pack::{CodeMatrix, PackedWeights, Weights};
pub use pool::Average;
pub use product::{Gather, Panels, Product, Right, Run, Start};
pub use requant::{Requant, Residual};
pub use rows::{Rows, Windows};
pub use statistics::MinMax;
pub use window::{Bordered, Taps, Window};
