//! How well a model does: its accuracy, where quantization hurts it, where its
//! time goes, and what it consists of.

mod compare;
mod evaluate;
mod profile;
mod runner;
mod summary;

pub use crate::scores::top;
pub use compare::{BROKEN_DB, Comparison, Damage, POOR_DB, ValueError, Verdict, compare};
pub use evaluate::{Evaluation, Paired, Score, evaluate};
pub use profile::{Latency, NodeProfile, Profile, profile, random_inputs};
pub use runner::{Runner, batch_size, inputs_of};
pub use summary::{Place, Quantized, Summary};
