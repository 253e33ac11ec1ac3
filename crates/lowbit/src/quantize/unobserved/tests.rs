use std::sync::Arc;

use super::*;
use crate::graph::Builder;
use crate::op::{Dim, Fact};
use crate::ops::binary::Arithmetic;
use crate::ops::conv::Conv;
use crate::ops::linear::{Gemm, MatMul};
use crate::qconfig::Per;
use crate::session::Session;
use crate::tensor::{DType, Tensor};

fn noise(seed: u32, shape: &[usize]) -> Tensor {
    let mut x = seed.wrapping_mul(0x9e37_79b9) | 1;
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as f32 / u32::MAX as f32 - 0.4
    };
    Tensor::new(shape, (0..shape.iter().product()).map(next).collect()).unwrap()
}

/// Products with a matrix in every form, and a convolution, behind one another.
fn model() -> Graph {
    let mut b = Builder::default();
    let dims = [Dim::Named("N".into()), 3.into(), 6.into(), 5.into()];
    let x = b.input("x", Fact::new(DType::F32, dims));
    let w = b.constant("conv_w", noise(1, &[4, 3, 3, 3]));
    let bias = b.constant("conv_b", noise(2, &[4]));
    let conv = Conv { window: crate::ops::window::Window::default(), group: 1, kernel: None };
    let images = b.apply("conv", Arc::new(conv), &[x, w, bias]).unwrap();
    let w = b.constant("matmul_w", noise(3, &[3, 8]));
    let rows = b.apply("matmul", Arc::new(MatMul), &[images, w]).unwrap();
    let bias = b.constant("bias", noise(4, &[8]));
    let rows = b.apply("sum", Arc::new(Arithmetic::Add), &[rows, bias]).unwrap();
    let flat = b.apply("flat", Arc::new(crate::ops::shape::Flatten { axis: 1 }), &[rows]).unwrap();
    let (w, bias) = (b.constant("gemm_w", noise(5, &[7, 128])), b.constant("gemm_b", noise(6, &[7])));
    let gemm = Gemm { trans_b: true, ..Gemm::default() };
    let y = b.apply("gemm", Arc::new(gemm), &[flat, w, bias]).unwrap();
    b.finish([("y".to_string(), y)]).unwrap()
}

fn converted(preset_name: &str) -> Graph {
    let mapping = QConfigMapping::global(preset(preset_name).unwrap());
    prepare(&fuse(&model()).unwrap(), &mapping).unwrap().convert().unwrap().graph
}

/// How many nodes of each name.
fn count(graph: &Graph, name: &str) -> usize {
    graph.applied().filter(|(_, _, op, _)| op.name() == name).count()
}

#[test]
fn every_form_is_near_float_and_the_session_equals_it() {
    let x = noise(9, &[2, 3, 6, 5]);
    let want = model().run(std::slice::from_ref(&x)).unwrap().remove(0).to_f32().unwrap();
    for (name, integer, floats) in [("dynamic", 2, 0), ("dynamic-rows", 0, 2)] {
        let graph = converted(name);
        assert_eq!(
            (count(&graph, "MatMulInteger"), count(&graph, "DequantizeLinear")),
            (integer, floats),
            "{graph}"
        );
        let plain = graph.run(std::slice::from_ref(&x)).unwrap().remove(0).to_f32().unwrap();
        let error = plain.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(error > 0.0 && error < 0.05, "{name}: {error}");
        let session = Session::compile(&graph).unwrap();
        assert_eq!(count(session.graph(), "DynamicLinear"), 2, "{}", session.graph());
        let fast = session.run(std::slice::from_ref(&x)).unwrap().remove(0).to_f32().unwrap();
        let apart = fast.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(apart < 1e-5, "{name}: {apart}");
    }
}

#[test]
fn only_the_nodes_asked_for_are_quantized() {
    let only = quantize_dynamic(&model(), &[Target::Op("Gemm".into())], Format::INT8).unwrap().graph;
    assert_eq!((count(&only, "MatMulInteger"), count(&only, "ConvInteger")), (1, 0));
    let all = quantize_dynamic(&model(), &[], Format::INT8).unwrap().graph;
    assert_eq!((count(&all, "MatMulInteger"), count(&all, "ConvInteger")), (2, 1));
    // Each value is quantized once, for all that read it.
    assert_eq!(count(&all, "DynamicQuantizeLinear"), 3);
}

#[test]
fn what_cannot_be_honoured_is_an_error() {
    let with = |change: &dyn Fn(&mut crate::qconfig::QConfig)| {
        let mut config = preset("dynamic").unwrap();
        change(&mut config);
        let prepared = prepare(&model(), &QConfigMapping::global(config))?;
        prepared.convert().map(|_| ())
    };
    with(&|_| ()).unwrap();
    let cases: [(Result<()>, &[&str]); 5] = [
        (with(&|q| q.weight.format = Format::INT4), &["conv_w", "int4", "weights of 8 bits"]),
        (with(&|q| q.weight.per = Per::Block(16)), &["conv_w", "per block"]),
        (with(&|q| q.activation.as_mut().unwrap().format = Format::INT8), &["dynamic activations are uint8"]),
        (with(&|q| q.activation.as_mut().unwrap().dynamic = false), &["x", "saw no data"]),
        (
            quantize_dynamic(&model(), &[Target::Op("Softmax".into())], Format::INT8).map(|_| ()),
            &["Softmax", "matches no node"],
        ),
    ];
    for (result, says) in cases {
        let error = result.unwrap_err().to_string();
        assert!(says.iter().all(|s| error.contains(s)), "{error}: {says:?}");
    }
}

#[test]
fn a_weight_of_two_readers_is_named_twice() {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), 8.into()]));
    let w = b.constant("w", noise(1, &[8, 8]));
    let y = b.apply("first", Arc::new(MatMul), &[x, w]).unwrap();
    let y = b.apply("second", Arc::new(MatMul), &[y, w]).unwrap();
    let graph = b.finish([("y".to_string(), y)]).unwrap();
    for name in ["weight-only", "int4", "dynamic", "dynamic-rows"] {
        let mut prepared = prepare(&graph, &QConfigMapping::global(preset(name).unwrap())).unwrap();
        prepared.calibrate([Ok(vec![noise(2, &[4, 8])])].into_iter(), &|_| Ok(())).unwrap();
        let quantized = prepared.convert().unwrap().graph;
        let mut names: Vec<&str> = quantized.applied().map(|(_, node, ..)| node.name.as_str()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|w| w[0] != w[1]), "{name}: {names:?}");
    }
}

#[test]
fn operators_that_others_lack_are_findings() {
    use crate::quantize::{Finding, Symptom};
    let findings = |name| {
        let mapping = QConfigMapping::global(preset(name).unwrap());
        prepare(&fuse(&model()).unwrap(), &mapping).unwrap().convert().unwrap().findings
    };
    assert_eq!(findings("dynamic"), []);
    assert_eq!(
        findings("dynamic-rows"),
        [Finding::new("DynamicFakeQuantize", Symptom::OwnOperator { nodes: 2 })]
    );
}

#[test]
fn bodies_of_control_flow_are_quantized_too() {
    use crate::ops::control::If;
    let mut b = Builder::default();
    let condition = b.input("condition", Fact::new(DType::Bool, Vec::<usize>::new()));
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), 8.into()]));
    let branch = |seed| {
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), 8.into()]));
        let w = b.constant("w", noise(seed, &[8, 4]));
        let y = b.apply(&format!("inner{seed}"), Arc::new(MatMul), &[x, w]).unwrap();
        b.finish([("y".to_string(), y)]).unwrap()
    };
    let op = Arc::new(If::new([branch(1), branch(2)], 1).unwrap());
    let y = b.apply("choice", op, &[condition, x]).unwrap();
    let graph = b.finish([("y".to_string(), y)]).unwrap();
    let one = Target::name("inner2").unwrap();
    for (which, want) in [(&[][..], [1, 1]), (&[one], [0, 1])] {
        let quantized = quantize_dynamic(&graph, which, Format::INT8).unwrap().graph;
        let (.., op, _) = quantized.applied().next().unwrap();
        assert_eq!([0, 1].map(|i| count(&op.bodies()[i], "MatMulInteger")), want);
        let x = noise(5, &[3, 8]);
        for condition in [true, false] {
            let inputs = [Tensor::scalar(condition), x.clone()];
            let y = Session::compile(&quantized).unwrap().run(&inputs).unwrap().remove(0);
            let float = graph.run(&inputs).unwrap().remove(0);
            let (y, float) = (y.to_f32().unwrap(), float.to_f32().unwrap());
            assert!(y.iter().zip(&float).all(|(a, b)| (a - b).abs() < 0.03), "{y:?} {float:?}");
        }
    }
}

#[test]
fn a_node_that_breaks_the_model_is_spared() {
    use crate::quantize::{Finding, Symptom, quantize_sparing};
    let mut b = Builder::default();
    let mut v = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), 8.into()]));
    // One value between the second and the third matrix is a million times the others.
    for (i, name) in ["first", "second", "third/product", "fourth"].into_iter().enumerate() {
        let mut w = noise(i as u32 + 1, &[8, 8]).to_f32().unwrap();
        match name {
            "second" => (0..8).for_each(|k| w[k * 8] *= 1e6),
            "third/product" => w[..8].iter_mut().for_each(|w| *w *= 1e-6),
            _ => {}
        }
        let w = b.constant(&format!("w{i}"), Tensor::new(&[8, 8], w).unwrap());
        v = b.apply(name, Arc::new(MatMul), &[v, w]).unwrap();
    }
    let graph = b.finish([("y".to_string(), v)]).unwrap();
    let probes = [vec![noise(7, &[16, 8])]];
    let mapping = QConfigMapping::global(preset("dynamic").unwrap());
    let quantize = |mapping: &QConfigMapping| prepare(&graph, mapping)?.convert();
    let converted = quantize_sparing(&graph, &mapping, &probes, quantize).unwrap();
    assert!(
        matches!(&converted.findings[..], [Finding { subject, symptom: Symptom::Spared { .. } }] if subject == "third/product"),
        "{:?}",
        converted.findings
    );
    assert_eq!(count(&converted.graph, "MatMulInteger"), 3);
}
