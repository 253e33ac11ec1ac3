//! Models written in Rust, with PyTorch's modules, parameter names and defaults.
//!
//! A [`Module`] is a description: sizes, options, and the modules that it calls. Its
//! parameters lie in [`Weights`], by path (`layer1.0.conv1.weight`), as PyTorch's state
//! dicts have them. `forward` applies operators in a [`Scope`]: with values that is
//! [`run`], eager mode, and without them [`trace`], which gives a
//! [`Graph`](crate::graph::Graph) for everything that graphs are for.
//!
//! ```
//! use lowbit::graph::{Graph, Var};
//! use lowbit::nn::eager::{fuse_modules, prepare};
//! use lowbit::nn::{
//!     BatchNorm2d, Children, Conv2d, DeQuantStub, FloatFunctional, Module, QuantStub, ReLU, Scope, Weights, children,
//!     run, trace,
//! };
//! use lowbit::op::{Dim, Fact};
//! use lowbit::qconfig::{QConfigMapping, preset};
//! use lowbit::session::Session;
//! use lowbit::{DType, Result, Tensor};
//!
//! struct Residual {
//!     quant: QuantStub,
//!     conv: Conv2d,
//!     bn: BatchNorm2d,
//!     relu: ReLU,
//!     skip: FloatFunctional,
//!     dequant: DeQuantStub,
//! }
//!
//! impl Module for Residual {
//!     fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
//!         let x = g.call("quant", &self.quant, x)?;
//!         let y = g.call("conv", &self.conv, x)?;
//!         let y = g.call("bn", &self.bn, y)?;
//!         let y = g.call("relu", &self.relu, y)?;
//!         let y = g.enter("skip", |g| self.skip.add(g, x, y))?;
//!         g.call("dequant", &self.dequant, y)
//!     }
//!
//!     fn children(&self) -> Children<'_> {
//!         children!(self; quant, conv, bn, relu, skip, dequant)
//!     }
//! }
//!
//! let model = Residual {
//!     quant: QuantStub,
//!     conv: Conv2d::new(3, 3, 3).padding(1).bias(false),
//!     bn: BatchNorm2d::new(3),
//!     relu: ReLU,
//!     skip: FloatFunctional,
//!     dequant: DeQuantStub,
//! };
//!
//! // PyTorch's first values, or those that PyTorch saved: a safetensors file.
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("residual.safetensors");
//! Weights::initialized(&model, 0)?.save(&path)?;
//! let weights = Weights::load(&path, &model)?;
//! assert_eq!(weights.get("conv.weight").unwrap().shape(), [3, 3, 3, 3]);
//!
//! // As it is written, and as a graph for any number of images.
//! let x = Tensor::new(&[2, 3, 8, 8], (0..384).map(|i| (i % 11) as f32).collect())?;
//! let y = run(&model, &weights, &[x.clone()])?;
//! let images = Fact::new(DType::F32, [Dim::Named("N".into()), 3.into(), 8.into(), 8.into()]);
//! let graph: Graph = trace(&model, &weights, &[("x", images.clone())])?;
//! assert_eq!(graph.run(&[x.clone()])?, y);
//!
//! // Quantized in eager mode: calibrated by being called, and then run as it is written,
//! // or in integers.
//! let fused = fuse_modules(&model, &weights, &[&["conv", "bn", "relu"]])?;
//! let mut prepared = prepare(&model, fused, &QConfigMapping::global(preset("default")?))?;
//! prepared.observe(&[x.clone()])?;
//! let (quantized, findings) = prepared.convert()?;
//! assert!(findings.is_empty());
//! assert_eq!(quantized.weight("conv").unwrap().element_size(), 1);
//! let y = quantized.run(&[x.clone()])?;
//! let session = Session::compile(&quantized.trace(&[("x", images)])?)?;
//! assert_eq!(session.run(&[x])?[0].shape(), y[0].shape());
//! # Ok::<(), lowbit::Error>(())
//! ```
//!
//! [`Network::of_model`](crate::train::Network::of_model) trains a model, and
//! [`Weights::with_values`] takes the trained values back, under the parameters' names.
//!
//! A new module: docs/adding-a-module.md.

mod activation;
mod attention;
mod cell;
mod container;
mod conv;
pub mod eager;
mod embedding;
mod functional;
mod init;
mod linear;
mod module;
mod norm;
mod pool;
mod recurrent;
mod run;
mod scope;
mod shape;
mod sizes;
mod stub;
mod weights;

pub use crate::__children as children;
pub use activation::{
    ELU, GELU, Hardsigmoid, Hardswish, LeakyReLU, LogSoftmax, PReLU, ReLU, ReLU6, SiLU, Sigmoid, Softmax,
    Tanh,
};
pub use attention::MultiheadAttention;
pub use cell::{GRUCell, LSTMCell, RNNCell};
pub use container::{ModuleDict, ModuleList, Sequential};
pub use conv::{
    Conv, Conv1d, Conv2d, Conv3d, ConvTranspose, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d,
};
pub use embedding::{BagMode, Embedding, EmbeddingBag};
pub use init::Init;
pub use linear::{Bilinear, Linear};
pub use module::{Children, Fusing, Module, Parameter, named_modules, named_parameters};
pub use norm::{
    BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, InstanceNorm, InstanceNorm1d,
    InstanceNorm2d, InstanceNorm3d, LayerNorm,
};
pub use pool::{
    AdaptiveAvgPool, AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d, AdaptiveMaxPool,
    AdaptiveMaxPool1d, AdaptiveMaxPool2d, AdaptiveMaxPool3d, AvgPool, AvgPool1d, AvgPool2d, AvgPool3d,
    MaxPool, MaxPool1d, MaxPool2d, MaxPool3d,
};
pub use recurrent::{GRU, LSTM, RNN};
pub(crate) use run::trace_open;
pub use run::{run, trace};
pub use scope::Scope;
pub use shape::{Dropout, Flatten, Identity, Upsample};
pub use sizes::Each;
pub use stub::{DeQuantStub, FloatFunctional, QuantStub};
pub use weights::Weights;
