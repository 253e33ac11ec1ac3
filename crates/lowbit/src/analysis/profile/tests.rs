use std::sync::Arc;

use std::collections::BTreeMap;

use super::*;
use crate::data::random_inputs;
use crate::error::Error;
use crate::graph::{Builder, Graph};
use crate::op::{Dim, Fact};
use crate::ops::linear::MatMul;
use crate::ops::unary::Unary;
use crate::tensor::DType;

fn model() -> Graph {
    let mut b = Builder::default();
    let dims = [Dim::Named("N".into()), Dim::Named("T".into()), Dim::Known(4)];
    let x = b.input("x", Fact::new(DType::F32, dims));
    let w = b.constant("w", Tensor::full(&[4, 3], 0.5f32).unwrap());
    let h = b.apply("h", Arc::new(MatMul), &[x, w]).unwrap();
    let y = b.apply("y", Arc::new(Unary::Relu), &[h]).unwrap();
    b.finish([("y".to_string(), y)]).unwrap()
}

#[test]
fn inputs_have_the_sizes_asked_for() {
    let sizes = |pairs: &[(&str, usize)]| pairs.iter().map(|(k, v)| ((*k).to_string(), *v)).collect();
    for (batch, given, shape) in [
        (1, &[][..], [1, 1, 4]),
        (8, &[], [8, 1, 4]),
        (8, &[("T", 5)], [8, 5, 4]),
        (8, &[("N", 2), ("T", 5)], [2, 5, 4]),
    ] {
        let x = random_inputs(&model(), batch, &sizes(given)).unwrap().remove(0);
        assert_eq!(x.shape(), shape, "{batch} {given:?}");
        assert!(x.slice::<f32>().unwrap().iter().all(|x| (0.0..1.0).contains(x)));
    }
    for (given, says) in [(&[("S", 5)][..], "N, T"), (&[("T", usize::MAX)], "too many elements")] {
        let error = random_inputs(&model(), 1, &sizes(given)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn costs_are_those_of_the_actual_shapes() {
    let g = model();
    let x = random_inputs(&g, 2, &BTreeMap::from([("T".to_string(), 5)])).unwrap();
    let mut calls = 0;
    let p = profile(&g, &x, 1, 3, &mut |done| {
        calls += 1;
        assert_eq!(done, calls);
        Ok(())
    })
    .unwrap();
    assert_eq!((p.runs, p.macs, calls), (3, 2 * 5 * 4 * 3, 7));
    let mut nodes: Vec<_> =
        p.nodes.iter().map(|n| (n.node.as_str(), n.op.as_str(), n.macs, n.bytes)).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, [("h", "MatMul", 120, 328), ("y", "Relu", 0, 240)]);
    assert!((p.nodes.iter().map(|n| n.share).sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(p.nodes.windows(2).all(|w| w[0].median_ms >= w[1].median_ms));
    assert!(profile(&g, &x, 0, 0, &mut |_| Ok(())).unwrap_err().to_string().contains("0 runs"));
    assert!(matches!(profile(&g, &x, 0, 1, &mut |_| Err(Error::Interrupted)), Err(Error::Interrupted)));
}

#[test]
fn latencies_are_order_statistics() {
    for (seconds, expected) in [
        (&[][..], None),
        (&[0.002], Some((2.0, 2.0, 2.0))),
        (&[0.003, 0.001], Some((1.0, 1.0, 3.0))),
        (&[0.010, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.009], Some((5.0, 1.0, 9.0))),
    ] {
        assert_eq!(Latency::of(seconds).map(|l| (l.median_ms, l.min_ms, l.p90_ms)), expected, "{seconds:?}");
    }
}
