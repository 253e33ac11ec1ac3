use std::sync::Arc;

use super::*;
use crate::graph::Builder;
use crate::op::{Dim, Fact};
use crate::ops::linear::Gemm;
use crate::qconfig::{QConfigMapping, preset};
use crate::quantize::prepare;
use crate::tensor::DType;

fn model() -> Graph {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2)]));
    let w = b.constant("w", Tensor::new(&[2, 3], vec![1.0f32, -2.0, 0.5, 0.25, 1.0, -0.5]).unwrap());
    let c = b.constant("c", Tensor::vector(vec![0.5f32, 0.0, -0.5]));
    let y = b.apply("y", Arc::new(Gemm::default()), &[x, w, c]).unwrap();
    b.finish([("y".to_string(), y)]).unwrap()
}

#[test]
fn a_float_model_is_counted() {
    let s = Summary::of(&model());
    assert_eq!(s.inputs, [("x".to_string(), "f32[N,2]".to_string())]);
    assert_eq!(s.outputs, [("y".to_string(), "f32[N,3]".to_string())]);
    assert_eq!(s.operators, BTreeMap::from([("Gemm".to_string(), 1)]));
    assert_eq!((s.parameters, s.total_bytes(), s.macs), (9, 36, 6));
    assert_eq!(Quantized::all(&model()).unwrap(), []);
}

#[test]
fn the_parameters_of_a_quantized_model_are_those_of_the_float_one() {
    let mut prepared = prepare(&model(), &QConfigMapping::global(preset("default").unwrap())).unwrap();
    prepared.observe(&[Tensor::new(&[2, 2], vec![0.0f32, 1.0, 0.5, 0.25]).unwrap()]).unwrap();
    let g = prepared.convert().unwrap().graph;
    let s = Summary::of(&g);
    assert_eq!(s.parameters, 9);
    // Six weights and a zero point for each of three channels.
    assert_eq!((s.bytes["int8"], s.bytes["int32"]), (9, 12));
    let q = Quantized::all(&g).unwrap();
    let places: Vec<_> = q.iter().map(|q| (q.value.as_str(), q.place, q.scale.len())).collect();
    assert!(places.contains(&("x_dq", Place::Activation, 1)), "{places:?}");
    assert!(places.contains(&("w_dq", Place::Weight, 3)), "{places:?}");
    assert!(places.contains(&("c_dq", Place::Bias, 3)), "{places:?}");
    let x = &q[places.iter().position(|p| p.0 == "x_dq").unwrap()];
    assert!(x.lo == 0.0 && (x.hi - 1.0).abs() < 0.1, "{x:?}");
}
