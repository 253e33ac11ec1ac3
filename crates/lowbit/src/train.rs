//! Training: float models from scratch, and quantized ones so that they keep
//! the accuracy of the float model (quantization-aware training, QAT).
//!
//! A [`Network`] is a graph whose parameters are inputs; each step runs it on a
//! batch, goes back through it ([`crate::graph::Tape`]) and moves the parameters
//! ([`Optimizer`], [`Schedule`]) against the gradient of a [`Loss`]. [`Qat`] is a
//! prepared graph as a network: its points fake-quantize, and what is trained is
//! what [`Qat::convert`] writes. [`Training`] is the loop around both; it goes on
//! from a checkpoint with the same bytes.

mod agreement;
mod fake;
mod fold;
mod loss;
mod network;
mod optimizer;
mod qat;
mod ranges;
mod schedule;
mod training;

pub use agreement::Agreement;
pub use fake::{FakeQuantize, StepGradient};
pub use fold::FoldBatchNorm;
pub use loss::Loss;
pub use network::{Network, Step};
pub use optimizer::{Optimizer, Slots};
pub use qat::{BatchNorm, Phase, Qat, QatOptions, Ranges};
pub use schedule::{Schedule, WarmUp};
pub use training::{Learner, Options, Progress, Target, Training};
