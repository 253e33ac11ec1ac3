use std::sync::Arc;

use super::*;
use crate::graph::{Builder, Graph};
use crate::op::{Dim, Fact};
use crate::ops::unary::Unary;
use crate::ops::window::Window;
use crate::qconfig::{QConfig, QConfigMapping, Spec};
use crate::quantize::prepare;
use crate::random::values;
use crate::scheme::Mapping;
use crate::tensor::DType;

/// Three convolutions with Relus between them.
fn model() -> Graph {
    let mut b = Builder::default();
    let shape = [Dim::Named("N".into()), Dim::Known(3), Dim::Known(6), Dim::Known(6)];
    let mut x = b.input("x", Fact::new(DType::F32, shape));
    for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
        let seed = 10 * i as u64;
        let weight = b.constant(&format!("{name}.weight"), values(seed, &[3, 3, 2, 2]));
        let bias = b.constant(&format!("{name}.bias"), values(seed + 1, &[3]));
        let op = Conv { window: Window::default(), group: 1, kernel: None };
        x = b.apply(name, Arc::new(op), &[x, weight, bias]).unwrap();
        if name != "c" {
            x = b.apply(&format!("{name}_relu"), Arc::new(Unary::Relu), &[x]).unwrap();
        }
    }
    b.finish([("y".to_string(), x)]).unwrap()
}

fn batches() -> impl Iterator<Item = Result<Vec<Tensor>>> + Send {
    (0..4).map(|i| Ok(vec![values(100 + i, &[8, 3, 6, 6])]))
}

fn prepared(bits: u8, renormalize: bool) -> Prepared {
    let weight =
        Spec::new(Format::Int { bits, signed: true, narrow: true }, Mapping::Symmetric).per_channel();
    let config = QConfig {
        activation: Some(Spec::new(Format::UINT8, Mapping::Affine)),
        weight: Spec { renormalize, ..weight },
    };
    let mut prepared = prepare(&model(), &QConfigMapping::global(config)).unwrap();
    prepared.calibrate(batches(), &|_| Ok(())).unwrap();
    prepared
}

/// Mean and deviation of each channel of the output over the data.
fn moments(graph: &Graph) -> Vec<(f64, f64)> {
    let mut channels = Channels::default();
    batches().for_each(|x| channels.add(&graph.run(&x.unwrap()).unwrap()[0]).unwrap());
    (0..3).map(|c| channels.moments(c)).collect()
}

#[test]
fn channels_get_their_means_and_deviations_back() {
    let wanted = moments(&model());
    for bits in [2, 3, 4, 5, 8] {
        let before = prepared(bits, true);
        let after = renormalize(&before, batches(), &|_| Ok(())).unwrap();
        let off = |p: &Prepared| {
            let found = moments(&p.convert().unwrap().graph);
            let differences = found.iter().zip(&wanted).map(|(a, b)| (a.0 - b.0).abs() + (a.1 - b.1).abs());
            differences.fold(0.0, f64::max)
        };
        let [was, is] = [&before, &after].map(off);
        // What is left is the rounding of the biases and of the last values.
        assert!(is < 0.25 * was, "{bits} bits: {was} to {is}");
    }
}

#[test]
fn codes_stay_what_they_are() {
    let before = prepared(4, true);
    let after = renormalize(&before, batches(), &|_| Ok(())).unwrap();
    let codes = |p: &Prepared| -> Vec<Tensor> {
        let graph = p.convert().unwrap().graph;
        ["a", "b", "c"]
            .map(|name| graph.constant(graph.find(&format!("{name}.weight_q")).unwrap()).unwrap().clone())
            .to_vec()
    };
    assert_eq!(codes(&before), codes(&after));
    let again = renormalize(&before, batches(), &|_| Ok(())).unwrap();
    assert_eq!(after.convert().unwrap().graph, again.convert().unwrap().graph);
}

#[test]
fn only_what_asks_is_changed() {
    let unasked = prepared(4, false);
    let none = || -> std::iter::Empty<Result<Vec<Tensor>>> { std::iter::empty() };
    let same = renormalize(&unasked, none(), &|_| Ok(())).unwrap();
    assert_eq!(same.convert().unwrap().graph, unasked.convert().unwrap().graph);
    let error = renormalize(&prepared(4, true), none(), &|_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("at least one sample"), "{error}");
    let stopped = renormalize(&prepared(4, true), batches(), &|_| Err(invalid!("stop")));
    assert!(stopped.unwrap_err().to_string().contains("stop"));
}
