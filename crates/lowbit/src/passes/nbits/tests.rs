use proptest::prelude::*;

use super::*;
use crate::graph::Builder;
use crate::op::{Dim, Fact};
use crate::qconfig::{Per, QConfig, QConfigMapping};
use crate::quantize::prepare;
use crate::tensor::DType;

fn count(graph: &Graph, name: &str) -> usize {
    graph.applied().filter(|(_, _, op, _)| op.name() == name).count()
}

/// `x[N, 2, k] w`, quantized.
fn product(format: &str, per: Per, w: Tensor) -> Graph {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), 2.into(), w.shape()[0].into()]));
    let w = b.constant("w", w);
    let y = b.apply("y", Arc::new(MatMul), &[x, w]).unwrap();
    let graph = b.finish([("y".to_string(), y)]).unwrap();
    let config = QConfig::weight_only(format.parse().unwrap(), Some(per));
    prepare(&graph, &QConfigMapping::global(config)).unwrap().convert().unwrap().graph
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn products_stay(
        format in prop::sample::select(vec!["int4", "uint4", "int8", "uint8", "int2", "uint2", "int4-narrow"]),
        per in prop::sample::select(vec![Per::Block(16), Per::Block(32), Per::Channel, Per::Tensor]),
        (k, n, w) in (1usize..70, 1usize..7).prop_flat_map(|(k, n)| {
            (Just(k), Just(n), prop::collection::vec(-2f32..3.0, k * n))
        }),
    ) {
        let graph = product(format, per, Tensor::new(&[k, n], w).unwrap());
        let packed = products_of_few_bits(&graph, false).unwrap();
        prop_assert_eq!((count(&packed, "MatMulNBits"), count(&packed, "DequantizeLinear")), (1, 0));
        let x: Vec<f32> = (0..6 * k).map(|i| (i as f32 * 0.7).sin()).collect();
        let x = [Tensor::new(&[3, 2, k], x).unwrap()];
        let [want, found] = [&graph, &packed].map(|g| g.run(&x).unwrap()[0].to_f32().unwrap());
        for (a, b) in want.iter().zip(found) {
            prop_assert!((a - b).abs() < 1e-4, "{} and {}", a, b);
        }
    }
}

#[test]
fn what_the_operator_has_not_stays() {
    let w = || Tensor::new(&[40, 3], (0..120).map(|i| (i as f32).sin()).collect::<Vec<_>>()).unwrap();
    for (format, per) in [
        ("int4", Per::Block(8)),
        ("int4", Per::Block(24)),
        ("e4m3", Per::Block(32)),
        ("nf4", Per::Block(32)),
        ("int16", Per::Block(16)),
    ] {
        let graph = product(format, per, w());
        assert_eq!(products_of_few_bits(&graph, false).unwrap(), graph, "{format} {per:?}");
    }
    // Symmetric codes need no zero points.
    let symmetric = products_of_few_bits(&product("int4", Per::Block(16), w()), false).unwrap();
    let (_, _, _, inputs) = symmetric.applied().find(|(_, _, op, _)| op.name() == "MatMulNBits").unwrap();
    assert_eq!(inputs.len(), 3);
}
