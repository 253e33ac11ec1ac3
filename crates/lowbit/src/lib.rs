//! lowbit: quantize, debug, export and run low-bit neural networks.
//!
//! A float model and some of its data become an int8 model, which is saved for
//! any runtime that reads ONNX, and runs here:
//!
//! ```
//! use lowbit::data::{Dataset, Preprocess};
//! use lowbit::graph::Value;
//! use lowbit::qconfig::{QConfigMapping, preset};
//! use lowbit::recipe::{self, Samples};
//! use lowbit::{onnx, session::Session};
//!
//! # let demo = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo"));
//! # let folder = tempfile::tempdir().unwrap();
//! # let out = folder.path().join("digits.int8.onnx");
//! let float = onnx::load(demo.join("digits.onnx"))?;
//! let inputs: Vec<Value> = float.inputs().map(|(_, v)| v.clone()).collect();
//! let pixels = Preprocess::from_toml("[array]\nkey = 'calibration'\nscale = 0.0625")?;
//! let data = Dataset::open(&demo.join("digits.npz"), &pixels, &inputs)?;
//!
//! let mapping = QConfigMapping::global(preset("default")?);
//! let samples = Samples { data: &data, batch: 16 };
//! let quantized = recipe::quantize(&float, &mapping, Some(samples), &|_step| Ok(()))?;
//! onnx::save(&quantized.graph, &out)?;
//!
//! let session = Session::compile(&onnx::load(&out)?)?;
//! let batch = samples.tensors(&float).next().unwrap()?;
//! assert_eq!(session.run(&batch)?[0].shape(), [16, 10]);
//! assert_eq!(session.report().coverage(), 1.0);
//! # Ok::<(), lowbit::Error>(())
//! ```
//!
//! The modules, each using only those before it but for readers and tests:
//!
//! - [`tensor`], [`scheme`], [`qparams`], [`codebook`], [`qtensor`]: values, numeric formats,
//!   and the formulas between them.
//! - [`observer`]: watches values and says which range to keep.
//! - [`op`], [`ops`], [`graph`], [`onnx`]: operators, graphs of them, and files.
//! - [`qconfig`], [`quantize`]: which node is quantized how, and the stages
//!   fuse, prepare, calibrate, convert.
//! - [`nn`]: models written in Rust, and their quantization in eager mode.
//! - [`passes`]: what readies a float graph for quantization.
//! - [`session`]: the int8 engine.
//! - [`data`], [`recipe`]: samples from files, and a whole quantization in one call.
//! - [`train`], [`tensor_quantizer`], [`analysis`]: training, also of quantized models;
//!   quantizers layer by layer; accuracy, errors and times.
//! - [`doctor`]: the search for the fastest model that is good enough.
//! - [`report`]: what was measured of a model, as one HTML file.
#![forbid(unsafe_code)]

pub mod error;
pub mod tensor;

mod parallel;
mod random;
mod scores;

pub mod scheme;

pub mod codebook;
pub mod qparams;
pub mod qtensor;

pub mod observer;

pub mod op;
pub mod ops;

pub mod graph;
pub mod onnx;

pub mod qconfig;
pub mod quantize;

mod kept;

pub mod nn;

pub mod passes;

pub mod session;

pub mod data;

pub mod recipe;

pub mod train;

pub mod tensor_quantizer;

pub mod analysis;

pub mod doctor;

pub mod report;

pub use error::{Error, Result};
pub use tensor::{DType, Tensor};
