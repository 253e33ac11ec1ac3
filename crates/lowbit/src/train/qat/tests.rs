use std::sync::Arc;

use super::*;
use crate::graph::Builder;
use crate::op::{Dim, Fact};
use crate::ops::binary::Arithmetic;
use crate::ops::conv::Conv;
use crate::ops::linear::Gemm;
use crate::ops::pool::GlobalAveragePool;
use crate::ops::shape::Flatten;
use crate::ops::unary::Unary;
use crate::ops::window::{Padding, Window};
use crate::qconfig::{Per, QConfig, QConfigMapping, Spec, preset};
use crate::quantize::prepare;
use crate::random::values;
use crate::scheme::{Format, Mapping};
use crate::session::Session;
use crate::tensor::DType;
use crate::train::{Loss, Optimizer, Slots};

/// Two convolutions with batch normalization, the second around a residual
/// connection, and a linear layer.
fn network() -> Graph {
    let mut b = Builder::default();
    let shape = [Dim::Named("N".into()), Dim::Known(2), Dim::Known(6), Dim::Known(6)];
    let mut x = b.input("x", Fact::new(DType::F32, shape));
    let mut seed = 0;
    let mut skip = None;
    for (name, channels) in [("a", 2usize), ("b", 4)] {
        let mut constant = |b: &mut Builder, part: &str, shape: &[usize], positive: bool| {
            seed += 1;
            let t = values(seed, shape);
            let t = if positive {
                Tensor::vector(t.to_f32().unwrap().iter().map(|x| x.abs() + 0.5).collect())
            } else {
                t
            };
            b.constant(&format!("{name}.{part}"), t)
        };
        let weight = constant(&mut b, "weight", &[4, channels, 3, 3], false);
        let operands: Vec<Var> = [("gamma", true), ("beta", false), ("mean", false), ("var", true)]
            .map(|(part, positive)| constant(&mut b, part, &[4], positive))
            .to_vec();
        let window = Window { padding: Padding::Explicit(vec![(1, 1); 2]), ..Window::default() };
        let y = b.apply(name, Arc::new(Conv { window, group: 1, kernel: None }), &[x, weight]).unwrap();
        let norm = BatchNormalization { epsilon: 1e-5, training: None };
        let operands = [&[y][..], &operands].concat();
        let y = b.apply(&format!("{name}_bn"), Arc::new(norm), &operands).unwrap();
        let y = match skip {
            Some(skip) => b.apply("sum", Arc::new(Arithmetic::Add), &[y, skip]).unwrap(),
            None => y,
        };
        x = b.apply(&format!("{name}_relu"), Arc::new(Unary::Relu), &[y]).unwrap();
        skip = Some(x);
    }
    x = b.apply("pool", Arc::new(GlobalAveragePool), &[x]).unwrap();
    x = b.apply("flat", Arc::new(Flatten { axis: 1 }), &[x]).unwrap();
    let (weight, bias) = (values(50, &[3, 4]), values(51, &[3]));
    let operands = [x, b.constant("linear.weight", weight), b.constant("linear.bias", bias)];
    let op = Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: true };
    x = b.apply("linear", Arc::new(op), &operands).unwrap();
    b.finish([("y".to_string(), x)]).unwrap()
}

fn batch(seed: u64) -> Vec<Tensor> {
    vec![values(1000 + seed, &[8, 2, 6, 6])]
}

fn calibrated(float: &Graph, config: QConfig) -> Prepared {
    let mut prepared = prepare(&fuse(float).unwrap(), &QConfigMapping::global(config)).unwrap();
    for seed in 0..4 {
        prepared.observe(&batch(seed)).unwrap();
    }
    prepared
}

fn bits(bits: u8) -> QConfig {
    QConfig {
        activation: Some(Spec::new(Format::Int { bits, signed: false, narrow: false }, Mapping::Affine)),
        weight: Spec::new(Format::Int { bits, signed: true, narrow: true }, Mapping::Symmetric).per_channel(),
    }
}

/// `steps` steps towards what the float model says. Returns the losses.
fn train(qat: &mut Qat, float: &Graph, steps: u64) -> Vec<f64> {
    let optimizer = Optimizer::sgd(0.0);
    let mut slots = Slots::new();
    (0..steps)
        .map(|step| {
            let network = qat.network(step).unwrap();
            let data = batch(step % 8);
            let taken = network.step(&data).unwrap();
            let wanted = float.run(&data).unwrap().remove(0);
            let lost = Loss::Mse.of_target(&taken.outputs[0], &wanted).unwrap();
            let gradients = taken.back(vec![Some(lost.gradient)]).unwrap();
            network.descend(gradients, &optimizer, &mut slots, 0.01, step + 1).unwrap();
            lost.loss
        })
        .collect()
}

#[test]
fn what_is_trained_is_what_runs() {
    let float = network();
    let batch_statistics = BatchNorm::Batch { frozen_after: 6 };
    for (what, config, options) in [
        ("lsq, 8 bits", preset("x86").unwrap(), QatOptions::default()),
        ("lsq, 3 bits", bits(3), QatOptions::default()),
        ("lsq+", bits(4), QatOptions { ranges: Ranges::LearnedWithOffset, ..QatOptions::default() }),
        ("pact", bits(4), QatOptions { ranges: Ranges::Clipped, ..QatOptions::default() }),
        (
            "moving averages",
            bits(8),
            QatOptions { ranges: Ranges::MovingAverage(0.1), ..QatOptions::default() },
        ),
        (
            "batch statistics, delay and frozen averages",
            bits(8),
            QatOptions {
                ranges: Ranges::MovingAverage(0.1),
                batch_norm: batch_statistics,
                delay: 2,
                observe_until: Some(8),
            },
        ),
        (
            "a step for each weight, batch statistics",
            QConfig { weight: bits(6).weight.per(Per::Tensor), ..bits(6) },
            QatOptions { batch_norm: batch_statistics, ..QatOptions::default() },
        ),
        (
            "lsq with batch statistics",
            bits(4),
            QatOptions { batch_norm: batch_statistics, ..QatOptions::default() },
        ),
    ] {
        let mut qat = Qat::new(calibrated(&float, config), &float, options).unwrap();
        let before = qat.convert().unwrap().graph.run(&batch(20)).unwrap();
        let losses = train(&mut qat, &float, 12);
        assert!(losses.iter().all(|l| l.is_finite()), "{what}: {losses:?}");
        let converted = qat.convert().unwrap().graph;
        let (simulated, converts) =
            (qat.simulation().unwrap().run(&batch(20)).unwrap(), converted.run(&batch(20)).unwrap());
        assert_eq!(simulated, converts, "{what}");
        assert_ne!(before, converts, "{what}: nothing was learned");
        let session = Session::compile(&converted).unwrap();
        assert_eq!(
            session.report().coverage(),
            if what.contains("8 bits") { 1.0 } else { session.report().coverage() }
        );
        let run = session.run(&batch(20)).unwrap();
        let apart = run[0]
            .to_f32()
            .unwrap()
            .iter()
            .zip(converts[0].to_f32().unwrap())
            .map(|(a, b)| (a - b).abs())
            .fold(0f32, f32::max);
        assert!(apart < 0.05, "{what}: session and simulation differ by {apart}");
    }
}

#[test]
fn training_makes_the_error_smaller() {
    let float = network();
    let mut qat = Qat::new(calibrated(&float, bits(3)), &float, QatOptions::default()).unwrap();
    let losses = train(&mut qat, &float, 80);
    let mean = |l: &[f64]| l.iter().sum::<f64>() / l.len() as f64;
    assert!(mean(&losses[72..]) < 0.6 * mean(&losses[..8]), "{losses:?}");
}

#[test]
fn training_begins_with_what_calibration_reached() {
    let fused = fuse(&network()).unwrap();
    for config in [preset("default").unwrap(), bits(4)] {
        let prepared = calibrated(&fused, config);
        let converted = prepared.convert().unwrap().graph;
        let (settled, float) = prepared.settled(&fused).unwrap();
        let qat = Qat::new(settled, &float, QatOptions::default()).unwrap();
        let again = qat.convert().unwrap().graph;
        assert_eq!(again.run(&batch(20)).unwrap(), converted.run(&batch(20)).unwrap());
        assert_eq!(qat.simulation().unwrap().run(&batch(20)).unwrap(), converted.run(&batch(20)).unwrap());
    }
}

#[test]
fn phases_follow_the_options() {
    let options = QatOptions {
        batch_norm: BatchNorm::Batch { frozen_after: 5 },
        delay: 2,
        observe_until: Some(3),
        ..QatOptions::default()
    };
    let phase = |step| {
        let p = options.phase(step);
        [p.fake_quantize, p.observe, p.batch_statistics]
    };
    let want = [
        [false, true, true],
        [false, true, true],
        [true, true, true],
        [true, false, true],
        [true, false, false],
    ];
    assert_eq!([0, 1, 2, 3, 5].map(phase), want);
}

#[test]
fn statistics_move_only_while_they_are_those_of_batches() {
    let float = network();
    let options = QatOptions { batch_norm: BatchNorm::Batch { frozen_after: 2 }, ..QatOptions::default() };
    let mut qat = Qat::new(calibrated(&float, bits(8)), &float, options).unwrap();
    let mean = |qat: &Qat| qat.network.values()["a.mean"].clone();
    let mut seen = vec![mean(&qat)];
    for steps in [1, 2, 4] {
        let mut again = Qat::new(calibrated(&float, bits(8)), &float, options).unwrap();
        train(&mut again, &float, steps);
        seen.push(mean(&again));
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[2] == seen[3]);
    train(&mut qat, &float, 2);
    assert_eq!(qat.network(2).unwrap().values()["a.mean"], seen[2], "values survive a change of phase");
}

#[test]
fn another_model_and_uncalibrated_points_are_refused() {
    let float = network();
    let (other, _) = float.lift(|_, _| false).unwrap();
    let doubled = Tensor::new(&[3, 4], vec![1f32; 12]).unwrap();
    let other = other.with_constants(|name| (name == "linear.weight").then_some(&doubled)).unwrap();
    let error = Qat::new(calibrated(&other, bits(8)), &float, QatOptions::default()).unwrap_err().to_string();
    assert!(error.contains("linear.weight") && error.contains("prepare"), "{error}");
    let prepared = prepare(&fuse(&float).unwrap(), &QConfigMapping::global(bits(8))).unwrap();
    let error = Qat::new(prepared.clone(), &float, QatOptions::default()).unwrap_err().to_string();
    assert!(error.contains('x'), "{error}");
    let averaged = QatOptions { ranges: Ranges::MovingAverage(0.1), ..QatOptions::default() };
    assert!(Qat::new(prepared, &float, averaged).is_ok());
}
