//! What the runtimes that a quantized model is made for need to run it in int8, as data.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::graph::Graph;
use crate::passes::tensorrt_dialect;
use crate::tensor::DType;

/// A runtime that a quantized model is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// onnxruntime 1.23, on its CPU provider.
    OnnxRuntime,
    /// TensorRT 10 and later.
    TensorRt,
    /// OpenVINO 2023 and later, on its CPU plugin.
    OpenVino,
    /// The engine of lowbit itself ([`Session`](crate::session::Session)).
    Session,
}

/// What becomes of codes that a runtime does not compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// The model is not loaded.
    Refused,
    /// What reads them computes in float.
    Float,
}

/// How biases are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// In float alone.
    Float,
    /// In float, or as dequantized int32 codes.
    Either,
    /// As dequantized int32 codes; float constants too if the output is quantized.
    CodesUnlessQuantized,
}

/// An operator that computes multiply-accumulate operations in int8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// The ONNX operator. Scales of its weight may be along the axis of its output channels.
    pub op: &'static str,
    /// Whether its output must be quantized too.
    pub output: bool,
}

/// What a runtime needs of a Q/DQ model.
///
/// All of them want a DequantizeLinear before each operand of an operator, and all take one
/// scale for an activation and one for each output channel of a weight.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// The runtime's name.
    pub name: &'static str,
    /// The letter of its remarks' codes.
    pub letter: char,
    /// Element types of the codes of activations.
    pub activations: &'static [DType],
    /// Element types of the codes of weights.
    pub weights: &'static [DType],
    /// Element types of codes of weights alone that it stores so, and computes with in float.
    pub stored: &'static [DType],
    /// Whether every zero point must be 0.
    pub symmetric: bool,
    /// What becomes of other codes, of other zero points, and of scales that the model computes.
    pub beyond: Beyond,
    /// How biases are stored.
    pub bias: Bias,
    /// Whether every operand and the output of an operator have codes of one type, and activation
    /// functions run in int8 only where the clamp of the codes implies them.
    pub alike: bool,
    /// Element types of activations that convolutions compute with on every CPU, where those are
    /// not all of `activations`.
    pub everywhere: &'static [DType],
    /// The greatest opset that it reads, where it states one.
    pub opset: Option<i64>,
    /// Operators of weights that compute in int8.
    pub compute: &'static [Compute],
    /// Other operators that have an int8 form, or move codes.
    pub others: &'static [&'static str],
    /// Operators on codes, outside of Q/DQ patterns, that compute in int8.
    pub integer: &'static [&'static str],
    /// Operators of the standard domain that it does not load.
    pub refused: &'static [&'static str],
    /// Domains other than the standard one whose operators it has.
    pub domains: &'static [&'static str],
    /// Whether it runs other operators by the functions beside them in the file.
    pub functions: bool,
}

const fn quantized(op: &'static str) -> Compute {
    Compute { op, output: true }
}

const fn either(op: &'static str) -> Compute {
    Compute { op, output: false }
}

/// onnxruntime's CPU provider.
///
/// The pattern of each operator is a selector of `QDQSelectorActionTransformer`
/// (`onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc` and
/// `qdq_selector_action_transformer.cc`, where the lists of operators come from): Conv needs a
/// QuantizeLinear behind it, MatMul and Gemm do not, and codes of input and output are of one
/// type. ConvTranspose has no rule. A Relu or Clip before the QuantizeLinear is dropped if the
/// clamp of the codes implies it. Float biases beside a quantized output are quantized, as 1.23 does.
/// DequantizeLinear of 4 bits in blocks before a MatMul becomes MatMulNBits, which
/// computes in float unless its `accuracy_level` is 4. The greatest opset is that of 1.23.
const ONNXRUNTIME: Needs = Needs {
    name: "onnxruntime",
    letter: 'O',
    activations: &[DType::U8, DType::I8],
    weights: &[DType::I8, DType::U8],
    stored: &[DType::I4, DType::U4],
    symmetric: false,
    beyond: Beyond::Float,
    bias: Bias::CodesUnlessQuantized,
    alike: true,
    everywhere: &[DType::U8, DType::I8],
    opset: Some(23),
    compute: &[quantized("Conv"), either("MatMul"), either("Gemm")],
    others: &[
        "Add",
        "ArgMax",
        "AveragePool",
        "Clip",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GlobalAveragePool",
        "LeakyRelu",
        "MaxPool",
        "Mul",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "Resize",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ],
    integer: &["ConvInteger", "MatMulInteger", "DynamicQuantizeLSTM", "MatMulNBits"],
    refused: &[],
    domains: &["com.microsoft"],
    functions: true,
};

/// TensorRT.
///
/// "Explicit Quantization" and "Working with Quantized Types" of its documentation: symmetric
/// quantization to signed INT8 or FP8E4M3, INT4 for weights alone; weights in high precision with
/// a QuantizeLinear and a DequantizeLinear, or stored as codes. `docs/operators.md` of
/// onnx-tensorrt: zero points must be 0; no DynamicQuantizeLinear, ConvInteger, MatMulInteger;
/// the operators with INT8 among their types, to which the elementwise layers that are
/// fused with quantized convolutions are added. The greatest opset is that of the "ONNX Opset
/// Guide" of TensorRT 11.
const TENSORRT: Needs = Needs {
    name: "TensorRT",
    letter: 'T',
    activations: &[DType::I8, DType::F8E4M3],
    weights: &[DType::I8, DType::F8E4M3],
    stored: &[DType::I4],
    symmetric: true,
    beyond: Beyond::Refused,
    bias: Bias::Float,
    alike: false,
    everywhere: &[DType::I8, DType::F8E4M3],
    opset: Some(25),
    compute: &[either("Conv"), either("ConvTranspose"), either("MatMul"), either("Gemm")],
    others: &[
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "Div",
        "Elu",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "HardSigmoid",
        "Identity",
        "LeakyRelu",
        "LpPool",
        "Max",
        "MaxPool",
        "Min",
        "Mul",
        "PRelu",
        "Pad",
        "Relu",
        "Reshape",
        "ScatterElements",
        "ScatterND",
        "Selu",
        "Sigmoid",
        "Sign",
        "Slice",
        "Softplus",
        "Softsign",
        "Split",
        "Squeeze",
        "Sub",
        "Sum",
        "Tanh",
        "Transpose",
        "Unsqueeze",
    ],
    integer: &[],
    refused: &["ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"],
    domains: &[],
    functions: false,
};

/// OpenVINO's CPU plugin.
///
/// "OpenVINO Low Precision Transformations" of its documentation, which lists the operators that
/// dequantization moves through; "ConvolutionTransformation": activations have one scale for the
/// tensor. `Transformations::Lpt` of the CPU plugin (`transformation_pipeline.cpp`): codes
/// of weights are i8, those of activations u8, or i8; convolutions take i8 activations only on CPUs
/// with AMX or AVX2-VNNI-2. With i8 activations 2026.4 computed something else of SqueezeNet, and
/// refused ResNet20 (`ci/openvino_check.py`).
const OPENVINO: Needs = Needs {
    name: "OpenVINO",
    letter: 'V',
    activations: &[DType::U8, DType::I8],
    weights: &[DType::I8],
    stored: &[DType::I4, DType::U4, DType::U8],
    symmetric: false,
    beyond: Beyond::Float,
    bias: Bias::Either,
    alike: false,
    everywhere: &[DType::U8],
    opset: None,
    compute: &[either("Conv"), either("ConvTranspose"), either("MatMul"), either("Gemm")],
    others: &[
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "DepthToSpace",
        "Flatten",
        "Gather",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "LpNormalization",
        "MaxPool",
        "Mul",
        "PRelu",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ],
    integer: &[],
    refused: &[],
    domains: &["com.microsoft"],
    functions: true,
};

impl Target {
    /// Every target.
    pub const ALL: [Target; 4] = [Target::OnnxRuntime, Target::TensorRt, Target::OpenVino, Target::Session];

    /// What the runtime needs. The Session is no data: it says itself what it runs in int8
    /// ([`Report`](crate::session::Report)).
    pub fn needs(self) -> Option<&'static Needs> {
        match self {
            Target::OnnxRuntime => Some(&ONNXRUNTIME),
            Target::TensorRt => Some(&TENSORRT),
            Target::OpenVino => Some(&OPENVINO),
            Target::Session => None,
        }
    }

    /// The runtime's name.
    pub fn name(self) -> &'static str {
        self.needs().map_or("lowbit's Session", |n| n.name)
    }

    /// The preset ([`preset`](crate::qconfig::preset)) that gives codes that it computes with.
    pub fn preset(self) -> &'static str {
        match self {
            Target::TensorRt => "tensorrt",
            Target::OpenVino => "openvino",
            Target::OnnxRuntime | Target::Session => "default",
        }
    }

    /// A converted model as the runtime reads it.
    ///
    /// # Errors
    /// Those of [`tensorrt_dialect`].
    pub fn dialect(self, graph: Graph) -> Result<Graph> {
        match self {
            Target::TensorRt => tensorrt_dialect(&graph),
            _ => Ok(graph),
        }
    }
}
