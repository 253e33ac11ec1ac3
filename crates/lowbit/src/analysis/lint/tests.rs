use std::sync::Arc;

use super::*;
use crate::graph::{Builder, Var};
use crate::op::{Fact, Op};
use crate::ops::binary::Arithmetic;
use crate::ops::cast::Cast;
use crate::ops::control::If;
use crate::ops::conv::Conv;
use crate::ops::conv_transpose::ConvTranspose;
use crate::ops::integer::MatMulInteger;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::nbits::MatMulNBits;
use crate::ops::quantize::{DequantizeLinear, DynamicQuantizeLinear, QuantizeLinear};
use crate::ops::softmax::Softmax;
use crate::ops::unary::Unary;
use crate::ops::window::Window;
use crate::tensor::{DType, Tensor};

/// A tiny model: input, weight and bias of one layer, an activation function, and codes around them.
#[derive(Clone)]
struct Layer {
    op: Arc<dyn Op>,
    /// Type and zero point of the input's codes; none leaves it in float.
    input: Option<(DType, i32)>,
    /// The same of the output's.
    output: Option<(DType, i32)>,
    /// Type of the weight's codes, which have scales along `axis`.
    weight: Option<DType>,
    axis: i64,
    zero_points: [i32; 4],
    block: usize,
    bias: Option<DType>,
    /// Several scales for the input.
    rows: bool,
    activation: Option<Unary>,
    /// Weight quantized in the graph.
    float_weight: bool,
}

fn layer(op: impl Op, axis: i64) -> Layer {
    Layer {
        op: Arc::new(op),
        input: Some((DType::U8, 3)),
        output: Some((DType::U8, 7)),
        weight: Some(DType::I8),
        axis,
        zero_points: [0; 4],
        block: 0,
        bias: Some(DType::I32),
        rows: false,
        activation: None,
        float_weight: false,
    }
}

fn conv() -> Layer {
    layer(Conv { window: Window::default(), group: 1, kernel: None }, 0)
}

fn gemm() -> Layer {
    layer(Gemm::default(), 1)
}

/// As TensorRT has it.
fn symmetric() -> Layer {
    Layer {
        input: Some((DType::I8, 0)),
        output: Some((DType::I8, 0)),
        bias: Some(DType::F32),
        float_weight: true,
        ..conv()
    }
}

fn zeros(dtype: DType, shape: &[usize], values: &[i32]) -> Tensor {
    let bytes: Vec<u8> =
        values.iter().flat_map(|z| z.to_le_bytes().into_iter().take(dtype.bits().div_ceil(8))).collect();
    match dtype {
        DType::I4 => Tensor::coded(dtype, shape, values.iter().map(|z| *z as i8).collect()).unwrap(),
        DType::U4 | DType::U8 => {
            Tensor::coded(dtype, shape, values.iter().map(|z| *z as u8).collect()).unwrap()
        }
        _ => Tensor::from_bytes(dtype, shape, &bytes).unwrap(),
    }
}

/// `x` through codes of this type.
fn through(b: &mut Builder, name: &str, x: Var, (dtype, zero): (DType, i32), scales: usize) -> Var {
    let shape: &[usize] = if scales == 1 { &[] } else { &[scales] };
    let scale = b.constant(&format!("{name}_s"), Tensor::new(shape, vec![0.1f32; scales]).unwrap());
    let zero = b.constant(&format!("{name}_z"), zeros(dtype, shape, &vec![zero; scales]));
    let q = b.apply(&format!("{name}_q"), Arc::new(QuantizeLinear::default()), &[x, scale, zero]).unwrap();
    b.apply(&format!("{name}_dq"), Arc::new(DequantizeLinear::default()), &[q, scale, zero]).unwrap()
}

impl Layer {
    fn graph(&self) -> Graph {
        let mut b = Builder::default();
        let matrix = !self.op.name().starts_with("Conv");
        let (input, weight): (&[usize], &[usize]) =
            if matrix { (&[2, 4], &[4, 4]) } else { (&[1, 4, 5, 5], &[4, 4, 2, 2]) };
        let mut x = b.input("x", Fact::new(DType::F32, input.iter().copied()));
        if let Some(codes) = self.input {
            x = through(&mut b, "x", x, codes, if self.rows { 4 } else { 1 });
        }
        let len = weight.iter().product();
        let mut operands = vec![x];
        operands.push(match self.weight {
            None => b.constant("w", Tensor::new(weight, vec![0.5f32; len]).unwrap()),
            Some(dtype) => {
                let shape: &[usize] = if self.block > 0 { &[1, 4] } else { &[4] };
                let scale = b.constant("w_s", Tensor::new(shape, vec![0.1f32; 4]).unwrap());
                let zero = b.constant("w_z", zeros(dtype, shape, &self.zero_points));
                let codes = match self.float_weight {
                    true => {
                        let w = b.constant("w", Tensor::new(weight, vec![0.5f32; len]).unwrap());
                        let q = QuantizeLinear { axis: self.axis, ..QuantizeLinear::default() };
                        b.apply("w_q", Arc::new(q), &[w, scale, zero]).unwrap()
                    }
                    false => b.constant("w", zeros(dtype, weight, &vec![1; len])),
                };
                let dq = DequantizeLinear { axis: self.axis, block: self.block, dtype: None };
                b.apply("w_dq", Arc::new(dq), &[codes, scale, zero]).unwrap()
            }
        });
        match self.bias {
            Some(DType::I32) => {
                let scale = b.constant("b_s", Tensor::new(&[4], vec![0.01f32; 4]).unwrap());
                let codes = b.constant("b", Tensor::new(&[4], vec![9i32; 4]).unwrap());
                operands
                    .push(b.apply("b_dq", Arc::new(DequantizeLinear::along(0)), &[codes, scale]).unwrap());
            }
            Some(_) => operands.push(b.constant("b", Tensor::new(&[4], vec![0.1f32; 4]).unwrap())),
            None => {}
        }
        let mut y = b.apply("layer", self.op.clone(), &operands).unwrap();
        if let Some(activation) = self.activation {
            y = b.apply("activation", Arc::new(activation), &[y]).unwrap();
        }
        if let Some(codes) = self.output {
            y = through(&mut b, "y", y, codes, 1);
        }
        b.finish([("out".to_string(), y)]).unwrap()
    }
}

/// What the lint says, as `code@node`, and the share in int8.
fn said(graph: &Graph, target: Target) -> (Vec<String>, f64) {
    let lint = lint(graph, target).unwrap();
    let told = lint.remarks.iter().map(|r| {
        assert!(!r.text.is_empty() && !r.suggestion.is_empty(), "{r:?}");
        format!("{}@{}", r.code, r.node)
    });
    (told.collect(), lint.coverage())
}

/// Checks rows of: what, model, target, remarks, share in int8.
fn check(rows: &[(&str, Graph, Target, &[&str], f64)]) {
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|(what, graph, target, remarks, share)| {
            let found = said(graph, *target);
            let wanted = (remarks.iter().map(|r| r.to_string()).collect::<Vec<_>>(), *share);
            (found != wanted).then(|| format!("{what} for {target:?}: {found:?}, not {wanted:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// onnxruntime 1.23 fuses, or does not, as the rows say of biases, weights, float outputs, Relu,
/// ConvTranspose, zero points, Gemm and MatMul.
#[test]
fn onnxruntime_needs_codes_on_all_sides() {
    use Target::OnnxRuntime as T;
    let relu = Some(Unary::Relu);
    let no_output = |l: Layer| Layer { output: None, ..l };
    let matmul = || Layer { bias: None, ..layer(MatMul, 1) };
    let transposed = ConvTranspose {
        window: Window::default(),
        group: 1,
        kernel: None,
        output_padding: vec![],
        output_shape: None,
    };
    let signed = Layer { input: Some((DType::I8, 0)), output: Some((DType::I8, -128)), ..conv() };
    check(&[
        ("conv", conv().graph(), T, &[], 1.0),
        ("float bias", Layer { bias: Some(DType::F32), ..conv() }.graph(), T, &[], 1.0),
        ("no bias", Layer { bias: None, ..conv() }.graph(), T, &[], 1.0),
        ("float weight", Layer { float_weight: true, ..conv() }.graph(), T, &[], 1.0),
        ("int8", Layer { output: Some((DType::I8, 0)), ..signed.clone() }.graph(), T, &[], 1.0),
        ("uint8 weight", Layer { weight: Some(DType::U8), ..conv() }.graph(), T, &[], 1.0),
        ("float output", no_output(conv()).graph(), T, &["LB-O202@layer"], 0.0),
        ("float input", Layer { input: None, ..conv() }.graph(), T, &["LB-O201@layer"], 0.0),
        ("weight alone in float", Layer { weight: None, ..conv() }.graph(), T, &["LB-O201@layer"], 0.0),
        ("relu", Layer { activation: relu, output: Some((DType::U8, 0)), ..conv() }.graph(), T, &[], 1.0),
        ("relu of int8", Layer { activation: relu, ..signed.clone() }.graph(), T, &[], 1.0),
        ("relu not implied", Layer { activation: relu, ..conv() }.graph(), T, &["LB-O205@layer"], 0.0),
        ("mixed", Layer { output: Some((DType::I8, 0)), ..conv() }.graph(), T, &["LB-O204@layer"], 0.0),
        ("transposed", layer(transposed, 1).graph(), T, &["LB-O203@layer"], 0.0),
        ("weight's axis", Layer { axis: 1, ..conv() }.graph(), T, &["LB-O105@layer"], 0.0),
        ("zero points", Layer { zero_points: [0, 1, 0, 0], ..conv() }.graph(), T, &["LB-O109@layer"], 0.0),
        (
            "int16",
            Layer { input: Some((DType::I16, 0)), output: None, ..gemm() }.graph(),
            T,
            &["LB-O101@x_dq"],
            0.0,
        ),
        ("int16 weight", Layer { weight: Some(DType::I16), ..conv() }.graph(), T, &["LB-O102@w_dq"], 0.0),
        ("rows", Layer { rows: true, ..conv() }.graph(), T, &["LB-O104@x_dq"], 0.0),
        ("gemm", gemm().graph(), T, &[], 1.0),
        ("gemm to float", no_output(gemm()).graph(), T, &[], 1.0),
        (
            "gemm to float, float bias",
            no_output(Layer { bias: Some(DType::F32), ..gemm() }).graph(),
            T,
            &["LB-O108@layer"],
            0.0,
        ),
        (
            "beta",
            Layer { op: Arc::new(Gemm { beta: 2.0, ..Gemm::default() }), ..gemm() }.graph(),
            T,
            &["LB-O206@layer"],
            0.0,
        ),
        ("matmul", matmul().graph(), T, &[], 1.0),
        ("matmul to float", no_output(matmul()).graph(), T, &[], 1.0),
        (
            "4 bits in blocks",
            Layer { weight: Some(DType::I4), block: 4, axis: 0, input: None, output: None, ..matmul() }
                .graph(),
            T,
            &["LB-O106@w_dq", "LB-O201@layer"],
            0.0,
        ),
        ("int8 in blocks", Layer { block: 4, axis: 0, ..matmul() }.graph(), T, &["LB-O106@w_dq"], 0.0),
    ]);
}

#[test]
fn tensorrt_refuses_all_but_symmetric_int8() {
    use Target::TensorRt as T;
    let float_relu = Layer { activation: Some(Unary::Relu), ..symmetric() };
    check(&[
        ("symmetric", symmetric().graph(), T, &[], 1.0),
        ("to float", Layer { output: None, ..symmetric() }.graph(), T, &[], 1.0),
        ("stored codes", Layer { float_weight: false, ..symmetric() }.graph(), T, &[], 1.0),
        ("relu", float_relu.graph(), T, &[], 1.0),
        (
            "zero point",
            Layer { input: Some((DType::I8, 3)), ..symmetric() }.graph(),
            T,
            &["LB-T103@x_dq"],
            0.0,
        ),
        ("uint8", Layer { output: Some((DType::U8, 0)), ..symmetric() }.graph(), T, &["LB-T101@y_dq"], 0.0),
        ("bias", Layer { bias: Some(DType::I32), ..symmetric() }.graph(), T, &["LB-T108@b_dq"], 0.0),
        ("rows", Layer { rows: true, ..symmetric() }.graph(), T, &["LB-T104@x_dq"], 0.0),
        ("uint8 weight", Layer { weight: Some(DType::U8), ..symmetric() }.graph(), T, &["LB-T102@w_dq"], 0.0),
        ("float", Layer { input: None, weight: None, ..symmetric() }.graph(), T, &["LB-T201@layer"], 0.0),
    ]);
}

#[test]
fn openvino_needs_int8_weights() {
    use Target::OpenVino as T;
    check(&[
        ("conv", conv().graph(), T, &[], 1.0),
        ("to float", Layer { output: None, ..conv() }.graph(), T, &[], 1.0),
        ("uint8 weight", Layer { weight: Some(DType::U8), ..conv() }.graph(), T, &["LB-V106@w_dq"], 0.0),
        ("signed", symmetric().graph(), T, &["LB-V110@layer"], 1.0),
        ("signed gemm", Layer { input: Some((DType::I8, 0)), ..gemm() }.graph(), T, &[], 1.0),
    ]);
}

#[test]
fn sessions_say_it_themselves() {
    let float = Layer { input: None, weight: None, bias: None, output: None, ..gemm() };
    check(&[
        ("gemm", gemm().graph(), Target::Session, &[], 1.0),
        ("float", float.graph(), Target::Session, &["LB-S401@layer"], 0.0),
    ]);
}

#[test]
fn operators_without_products_are_judged_where_they_are_quantized() {
    let one = |op: Arc<dyn Op>, operands: &[Option<(DType, i32)>], output: Option<(DType, i32)>| {
        let mut b = Builder::default();
        let read: Vec<Var> = operands
            .iter()
            .enumerate()
            .map(|(i, codes)| {
                let name = format!("x{i}");
                let x = b.input(&name, Fact::new(DType::F32, [2, 4]));
                codes.map_or(x, |codes| through(&mut b, &name, x, codes, 1))
            })
            .collect();
        let mut y = b.apply("node", op, &read).unwrap();
        if let Some(codes) = output {
            y = through(&mut b, "y", y, codes, 1);
        }
        b.finish([("out".to_string(), y)]).unwrap()
    };
    let (u8, i8) = (Some((DType::U8, 0)), Some((DType::I8, 0)));
    let add = || Arc::new(Arithmetic::Add);
    let exp = || Arc::new(Unary::Exp);
    let softmax = || Arc::new(Softmax { axis: -1, log: false });
    use Target::{OnnxRuntime, OpenVino, TensorRt};
    check(&[
        ("add", one(add(), &[u8, u8], u8), OnnxRuntime, &[], 0.0),
        ("mixed", one(add(), &[u8, i8], u8), OnnxRuntime, &["LB-O204@node"], 0.0),
        ("half", one(add(), &[u8, None], u8), OnnxRuntime, &["LB-O201@node"], 0.0),
        ("relu", one(Arc::new(Unary::Relu), &[u8], u8), OnnxRuntime, &[], 0.0),
        ("symmetric relu", one(Arc::new(Unary::Relu), &[i8], i8), OnnxRuntime, &["LB-O205@node"], 0.0),
        ("exp", one(exp(), &[u8], u8), OnnxRuntime, &["LB-O203@node"], 0.0),
        ("float exp", one(exp(), &[None], None), OnnxRuntime, &[], 0.0),
        ("exp to float", one(exp(), &[u8], None), OnnxRuntime, &[], 0.0),
        ("softmax", one(softmax(), &[u8], u8), OnnxRuntime, &[], 0.0),
        ("softmax", one(softmax(), &[i8], i8), TensorRt, &["LB-T203@node"], 0.0),
        ("softmax", one(softmax(), &[u8], u8), OpenVino, &["LB-V203@node"], 0.0),
    ]);
}

/// A product of codes by the range of each run.
#[test]
fn integer_operators_are_products_or_refused() {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [2, 4]));
    let made =
        b.apply_all("dynamic", Arc::new(DynamicQuantizeLinear), &[x], &["codes", "scale", "zero"]).unwrap();
    let w = b.constant("w", zeros(DType::I8, &[4, 4], &[1; 16]));
    let zero = b.constant("z", zeros(DType::I8, &[], &[0]));
    let y = b.apply("product", Arc::new(MatMulInteger), &[made[0], w, made[2], zero]).unwrap();
    let graph = b.finish([("out".to_string(), y)]).unwrap();
    check(&[
        ("dynamic", graph.clone(), Target::OnnxRuntime, &[], 1.0),
        ("dynamic", graph.clone(), Target::TensorRt, &["LB-T301@dynamic", "LB-T301@product"], 0.0),
        ("dynamic", graph, Target::OpenVino, &["LB-V203@product"], 0.0),
    ]);
}

#[test]
fn targets_take_what_is_quantized_for_them() {
    for target in Target::ALL {
        assert!(crate::qconfig::preset(target.preset()).is_ok(), "{target:?}");
        let graph = if target == Target::TensorRt { symmetric().graph() } else { conv().graph() };
        let lint = lint(&target.dialect(graph).unwrap(), target).unwrap();
        assert!(!lint.is_partial() && !lint.is_refused(), "{lint:?}");
    }
}

#[test]
fn products_with_few_bits_say_what_they_compute_in() {
    let product = |accuracy_level| {
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, [2, 16]));
        let codes = b.constant("w", Tensor::new(&[4, 1, 8], vec![0x12u8; 32]).unwrap());
        let scales = b.constant("s", Tensor::new(&[4], vec![0.1f32; 4]).unwrap());
        let op = MatMulNBits { k: 16, n: 4, bits: 4, block: 16, accuracy_level };
        let y = b.apply("product", Arc::new(op), &[x, codes, scales]).unwrap();
        b.finish([("out".to_string(), y)]).unwrap()
    };
    check(&[
        ("int8", product(Some(4)), Target::OnnxRuntime, &[], 1.0),
        ("float", product(None), Target::OnnxRuntime, &["LB-O106@product"], 0.0),
        ("int8", product(Some(4)), Target::OpenVino, &["LB-V106@product"], 0.0),
        ("int8", product(Some(4)), Target::TensorRt, &["LB-T301@product"], 0.0),
    ]);
}

#[test]
fn scales_are_constants_and_opsets_known() {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::I8, [2, 4]));
    let scale = b.input("scale", Fact::new(DType::F32, [0usize; 0]));
    let y = b.apply("dq", Arc::new(DequantizeLinear::default()), &[x, scale]).unwrap();
    let computed = b.finish([("out".to_string(), y)]).unwrap();
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [2, 4]));
    let y = b.apply("cast", Arc::new(Cast { to: DType::I2 }), &[x]).unwrap();
    let late = b.finish([("out".to_string(), y)]).unwrap();
    check(&[
        ("computed scale", computed.clone(), Target::OnnxRuntime, &["LB-O107@dq"], 0.0),
        ("computed scale", computed, Target::TensorRt, &["LB-T107@dq"], 0.0),
        ("opset 25", late.clone(), Target::OnnxRuntime, &["LB-O302@cast"], 0.0),
        ("opset 25", late, Target::TensorRt, &[], 0.0),
    ]);
}

#[test]
fn of_branches_the_one_with_most_products_counts() {
    let branches = |one: Layer, other: Layer| {
        let mut b = Builder::default();
        let condition = b.input("c", Fact::new(DType::Bool, [0usize; 0]));
        let x = b.input("in", Fact::new(DType::F32, [1, 4, 5, 5]));
        let op = If::new([one.graph(), other.graph()], 1).unwrap();
        let y = b.apply("if", Arc::new(op), &[condition, x]).unwrap();
        b.finish([("out".to_string(), y)]).unwrap()
    };
    let float = || Layer { output: None, ..conv() };
    check(&[
        ("both", branches(conv(), conv()), Target::OnnxRuntime, &[], 1.0),
        ("else in float", branches(conv(), float()), Target::OnnxRuntime, &["LB-O202@layer"], 1.0),
        ("then in float", branches(float(), conv()), Target::OnnxRuntime, &["LB-O202@layer"], 0.0),
    ]);
}
