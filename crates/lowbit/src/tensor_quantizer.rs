//! Tensor quantizers: the interface of NVIDIA's `pytorch-quantization`, on the points,
//! observers and schemes that everything here is made of.
//!
//! A [`QuantDescriptor`] says how a tensor is quantized, a [`TensorQuantizer`] does it,
//! and a [`QuantizedModel`] has one for the input and one for the weight of each layer,
//! by the name of the layer (`layer1.0.conv1._input_quantizer`). What lies between
//! layers, such as residual additions, stays in float. All ranges are symmetric, their
//! largest magnitude is called `amax`:
//!
//! `q = clamp(round(x bound / amax), -bound - 1, bound)`, `bound = 2^(bits - 1) - 1`
//!
//! ```
//! use lowbit::data::{Dataset, Preprocess};
//! use lowbit::graph::Value;
//! use lowbit::passes::tensorrt_dialect;
//! use lowbit::tensor_quantizer::{
//!     AmaxMethod, CalibMethod, QuantDescriptor, QuantModules, QuantizedModel, TensorQuantizer,
//! };
//! use lowbit::{Result, Tensor, onnx, session::Session};
//!
//! # let demo = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo"));
//! let float = onnx::load(demo.join("digits.onnx"))?;
//! let inputs: Vec<Value> = float.inputs().map(|(_, v)| v.clone()).collect();
//! let pixels = Preprocess::from_toml("[array]\nkey = 'calibration'\nscale = 0.0625")?;
//! let data = Dataset::open(&demo.join("digits.npz"), &pixels, &inputs)?;
//! let batches = || {
//!     data.batches(16).map(|b| -> Result<Vec<Tensor>> { Ok(b?.inputs.into_iter().map(|(_, t)| t).collect()) })
//! };
//!
//! // Inputs by their histogram, weights by their largest magnitude per channel.
//! let mut modules = QuantModules::initialize();
//! modules.set_default_input(&QuantDescriptor { calib_method: CalibMethod::Histogram, ..QuantDescriptor::new(8) });
//! let mut model = QuantizedModel::new(&float, &modules)?;
//!
//! model.set("*", TensorQuantizer::enable_calib)?;
//! model.collect(batches(), &|_batches| Ok(()))?;
//! model.load_calib_amax(AmaxMethod::Entropy)?;
//! model.set("*", TensorQuantizer::enable_quant)?;
//!
//! let q_dq = tensorrt_dialect(&model.convert()?.graph)?;
//! let session = Session::compile(&q_dq)?;
//! assert_eq!(session.report().coverage(), 1.0);
//! # Ok::<(), lowbit::Error>(())
//! ```

mod calibrator;
mod descriptor;
mod function;
mod layers;
mod model;
mod quantizer;
#[cfg(test)]
mod tests;

pub use calibrator::{AmaxMethod, Calibrator};
pub use descriptor::{
    Amax, CalibMethod, NumBits, QUANT_DESC_8BIT_CONV1D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONV2D_WEIGHT_PER_CHANNEL, QUANT_DESC_8BIT_CONV3D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONVTRANSPOSE1D_WEIGHT_PER_CHANNEL, QUANT_DESC_8BIT_CONVTRANSPOSE2D_WEIGHT_PER_CHANNEL,
    QUANT_DESC_8BIT_CONVTRANSPOSE3D_WEIGHT_PER_CHANNEL, QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW,
    QUANT_DESC_8BIT_PER_TENSOR, QUANT_DESC_UNSIGNED_8BIT_PER_TENSOR, QuantDescriptor, qconfig,
};
pub use function::{fake_tensor_quant, tensor_quant};
pub use layers::{Descriptors, LayerKind, QuantModules, QuantizerRule};
pub use model::QuantizedModel;
pub use quantizer::{State, TensorQuantizer};
