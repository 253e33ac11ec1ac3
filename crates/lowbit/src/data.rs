//! Data sets: image folders, arrays and records, read lazily in batches; and
//! the file formats under them. Every file is taken as untrusted.

mod augment;
mod compressed;
mod dataset;
mod digest;
mod feed;
mod files;
pub mod image;
mod journal;
pub mod npy;
pub mod npz;
mod preprocess;
mod random;
mod records;

pub use augment::Augment;
pub use dataset::{Batch, Batches, Dataset};
pub use digest::{Digest, sha256_of_file};
pub use feed::{batch_size, inputs_of};
pub use files::write_atomically;
pub(crate) use journal::Journal;
pub use preprocess::{ArrayRule, Channels, Factor, Interpolation, Layout, Preprocess, Resize, Size};
pub use random::random_inputs;
