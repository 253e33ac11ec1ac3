//! Quantization: fuse, prepare, calibrate, convert. Each reads a graph and
//! returns a new one. Dynamic and weight-only quantization need no calibration.

mod batches;
mod calibrate;
mod convert;
mod dynamic;
mod finding;
mod fuse;
mod gains;
mod gptq;
mod grid;
mod means;
mod only;
pub(crate) mod patterns;
mod placement;
mod point;
mod prepare;
mod recurrent;
mod settle;
mod spare;
mod unobserved;

pub use batches::Progress;
pub(crate) use batches::{InTurn, lock, run_all, spread, threads};
pub use convert::Converted;
pub(crate) use convert::{IntegerBias, Settled, ZeroPoints, dequantized, implied, quantized, stored_bias};
pub use finding::{Finding, Severity, Symptom};
pub use fuse::fuse;
pub(crate) use fuse::{folded, fuse_outside, scaled};
pub use gptq::InputMoments;
pub use grid::Grid;
pub use means::InputMeans;
pub(crate) use only::mark;
pub(crate) use placement::weight;
pub use point::{Line, Point, PointOp, Role};
pub use prepare::{Prepared, prepare};
pub use spare::quantize_sparing;
pub use unobserved::{quantize_bodies, quantize_dynamic};
