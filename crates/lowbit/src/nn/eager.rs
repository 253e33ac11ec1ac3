//! Eager-mode quantization: stubs say where values are quantized, a list says which
//! modules are fused, and a rule for each module path says how.
//!
//! The stages are those of graph mode, with the same points and observers:
//! [`fuse_modules`], [`prepare`], [`Prepared::observe`], [`Prepared::convert`]. They
//! leave the module as it is: ranges and codes are kept by module path, and a
//! [`Scope`](super::Scope) applies them where the module at a path is called. So models
//! that choose by values what they do are quantized too.
//!
//! Which modules are quantized:
//!
//! - those with a weight that is multiplied with (convolutions, [`Linear`](super::Linear)), and
//!   [`FloatFunctional`](super::FloatFunctional), where a rule matches their path: they read
//!   quantized values only, and each output has a range;
//! - activation functions, pools and batch normalization, where they read quantized values;
//! - what only moves values (max pooling, reshaping) goes along.
//!
//! All others compute in float, behind a [`DeQuantStub`](super::DeQuantStub).
//!
//! [`Prepared::trace`] gives graph mode's form of a prepared model, which is trained
//! ([`Qat`](crate::train::Qat)) beside the [`trace`](super::trace) of the float model.

mod fuse;
mod place;
mod points;
mod prepared;
mod quantized;

pub use fuse::{Fused, fuse_modules};
pub use prepared::{Prepared, prepare};
pub use quantized::Quantized;

pub(super) use fuse::Fusion;
use points::Points;

use crate::graph::Var;

/// What becomes of the values that modules give.
pub(super) enum Mode<'a> {
    /// They stay as they are; stubs do nothing.
    Float,
    /// They are shown to points.
    Observed(&'a mut Points),
    /// They are quantized by the scales among the weights.
    Quantized,
}

/// How a value is quantized.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mark {
    /// By this point.
    Point(usize),
    /// With this scale and zero point.
    Steps([Var; 2]),
}
