use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::graph::Builder;
use crate::op::{Dim, Fact};
use crate::ops::binary::Arithmetic;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::norm::LayerNormalization;
use crate::ops::unary::Unary;
use crate::qconfig::{Per, QConfig, Spec, preset};
use crate::scheme::{Format, Mapping};
use crate::tensor::DType;

/// Numbers in -1..1 that look random.
fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(next).collect()
}

fn matrix(b: &mut Builder, name: &str, seed: u32, shape: [usize; 2]) -> Var {
    b.constant(name, Tensor::new(&shape, noise(seed, shape[0] * shape[1])).unwrap())
}

/// A layer normalization read by two products, a gate and a plain one; their
/// product read by a third; its sum with the input by a Gemm after Relu and bias.
pub fn model(seed: u32, gate_is_output: bool) -> Graph {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), 8.into()]));
    let spread: Vec<f32> = (0..8).map(|i| 0.1 * 1.9f32.powi(i)).collect();
    let gains = b.constant("gains", Tensor::vector(spread));
    let offsets = b.constant("offsets", Tensor::vector(noise(seed + 1, 8)));
    let norm = Arc::new(LayerNormalization { axis: -1, epsilon: 1e-5, centred: true });
    let h = b.apply("norm", norm, &[x, gains, offsets]).unwrap();
    let w = matrix(&mut b, "gate_w", seed + 2, [8, 12]);
    let gate = b.apply("gate", Arc::new(MatMul), &[h, w]).unwrap();
    let gate = b.apply("sigmoid", Arc::new(Unary::Sigmoid), &[gate]).unwrap();
    let w = matrix(&mut b, "up_w", seed + 3, [8, 12]);
    let up = b.apply("up", Arc::new(MatMul), &[h, w]).unwrap();
    let gated = b.apply("gated", Arc::new(Arithmetic::Mul), &[gate, up]).unwrap();
    let w = matrix(&mut b, "down_w", seed + 4, [12, 8]);
    let down = b.apply("down", Arc::new(MatMul), &[gated, w]).unwrap();
    let bias = b.constant("bias", Tensor::vector(noise(seed + 5, 8)));
    let biased = b.apply("biased", Arc::new(Arithmetic::Add), &[down, bias]).unwrap();
    let relu = b.apply("relu", Arc::new(Unary::Relu), &[biased]).unwrap();
    let w = matrix(&mut b, "last_w", seed + 6, [4, 8]);
    let last = b.apply("y", Arc::new(Gemm { trans_b: true, ..Gemm::default() }), &[relu, w]).unwrap();
    let mut outputs = vec![("y".to_string(), last)];
    if gate_is_output {
        outputs.push(("gated".into(), gated));
    }
    b.finish(outputs).unwrap()
}

fn mapping() -> QConfigMapping {
    let weight = Spec::new(Format::INT4, Mapping::Symmetric).per(Per::Block(4)).aware_of_activations();
    QConfigMapping::global(QConfig { activation: None, weight })
}

pub fn batch(seed: u32) -> Vec<Tensor> {
    vec![Tensor::new(&[30, 8], noise(seed, 240)).unwrap()]
}

fn scaled(graph: &Graph) -> Graph {
    awq(graph, &mapping(), [Ok(batch(1)), Ok(batch(2))].into_iter(), &|_| Ok(())).unwrap()
}

/// `10 log10` of signal over noise of `graph`'s first output, quantized without data.
fn decibels(float: &Graph, graph: &Graph) -> f64 {
    let quantized = prepare(graph, &mapping()).unwrap().convert().unwrap().graph;
    let [x, y] = [float, &quantized].map(|g| g.run(&batch(9)).unwrap()[0].to_f32().unwrap());
    let signal: f64 = x.iter().map(|x| f64::from(x * x)).sum();
    let noise: f64 = x.iter().zip(y).map(|(x, y)| f64::from((x - y) * (x - y))).sum();
    10.0 * (signal / noise).log10()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn outputs_stay(seed in 0u32..10_000, gate_is_output in any::<bool>()) {
        let float = model(seed, gate_is_output);
        let scaled = scaled(&float);
        for (x, y) in float.run(&batch(3)).unwrap().iter().zip(scaled.run(&batch(3)).unwrap()) {
            let most = x.slice::<f32>().unwrap().iter().fold(0f32, |m, x| m.max(x.abs()));
            for (x, y) in x.slice::<f32>().unwrap().iter().zip(y.slice::<f32>().unwrap()) {
                prop_assert!((x - y).abs() <= 1e-5 * most, "{x} and {y}");
            }
        }
    }
}

#[test]
fn outputs_of_the_quantized_model_lose_less() {
    let gained: f64 = (0..8)
        .map(|seed| model(100 * seed, false))
        .map(|g| decibels(&g, &scaled(&g)) - decibels(&g, &g))
        .sum();
    assert!(gained / 8.0 > 1.0, "{gained}");
}

#[test]
fn values_that_change_change_their_names() {
    let names = |g: &Graph| -> Vec<String> {
        g.applied().map(|(v, ..)| g.value(v).name.clone()).filter(|n| n.ends_with("_awq")).collect()
    };
    assert_eq!(
        names(&scaled(&model(1, false))),
        ["norm_awq", "up_awq", "gated_awq", "down_awq", "biased_awq", "relu_awq"]
    );
    // The caller sees it: it stays as it is.
    let kept = scaled(&model(1, true));
    assert_eq!(names(&kept), ["norm_awq", "down_awq", "biased_awq", "relu_awq"]);
}

#[test]
fn what_is_not_asked_for_stays() {
    let float = model(1, false);
    let mapping = QConfigMapping::global(preset("int4").unwrap());
    let nobody = std::iter::from_fn(|| -> Option<Result<Vec<Tensor>>> { panic!("no batch is needed") });
    assert_eq!(awq(&float, &mapping, nobody, &|_| Ok(())).unwrap(), float);
}

#[test]
fn errors_say_what_is_wrong() {
    let float = model(3, false);
    let run = |mapping: &QConfigMapping, batches: Vec<Vec<Tensor>>| {
        awq(&float, mapping, batches.into_iter().map(Ok), &|_| Ok(()))
    };
    let mut beside = mapping();
    beside.rules[0].qconfig.as_mut().unwrap().activation = preset("default").unwrap().activation;
    let misplaced = Spec::new(Format::UINT8, Mapping::Affine).aware_of_activations();
    let mut of_activations = beside.clone();
    of_activations.rules[0].qconfig.as_mut().unwrap().activation = Some(misplaced);
    let cases = [
        (run(&mapping(), vec![]), "calibration data is empty"),
        (run(&mapping(), vec![vec![Tensor::scalar(1f32)]]), "calibration batch 0"),
        (run(&beside, vec![]), "norm: weight: awq is for weights beside float activations"),
        (run(&of_activations, vec![]), "awq is for weights"),
    ];
    for (result, says) in cases {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}
