//! How well a model does: its accuracy, where quantization hurts it, where its
//! time goes, what it consists of and was made from, and what of it other runtimes
//! would run in int8.

mod advice;
mod compare;
mod diagnose;
mod distribution;
mod elements;
mod evaluate;
mod lint;
mod profile;
mod provenance;
mod reference;
mod runner;
mod scores;
mod sensitivity;
mod summary;
mod target;
mod weights;

pub use crate::scores::top;
pub use advice::{Advice, Convergence, Followed, Stretching};
pub use compare::{
    BROKEN_DB, Comparison, Damage, POOR_DB, Shadow, ShadowError, ValueError, ValueMetric, Verdict, compare,
    kl_divergence, shadow,
};
pub use diagnose::{Diagnosis, Subject, diagnose};
pub use distribution::{
    BINS, ChannelRange, Distribution, Mapped, activation_distributions, weight_distributions,
};
pub use evaluate::{Evaluation, Paired, Score, evaluate};
pub use lint::{Level, Lint, Remark, lint};
pub use profile::{Latency, NodeProfile, Profile, profile};
pub use provenance::Provenance;
pub use reference::Reference;
pub use runner::Runner;
pub use scores::{Metric, Scores};
pub use sensitivity::{LayerScore, Sensitivity, SensitivityOptions, sensitivity};
pub use summary::{Place, Quantized, Summary};
pub use target::{Beyond, Bias, Compute, Needs, Target};
pub use weights::{WeightError, weights};
