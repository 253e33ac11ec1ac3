use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::graph::Builder;
use crate::op::{Dim, Fact};
use crate::ops::linear::Gemm;
use crate::ops::unary::Unary;
use crate::qconfig::{QConfigMapping, preset};
use crate::quantize::prepare;

/// Numbers that look random, a few of them large.
fn outliers(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
        x.powi(9) * 10.0 + x
    };
    (0..n).map(next).collect()
}

/// Three layers; the output has a point too.
fn model(seed: u32) -> Graph {
    let mut b = Builder::default();
    let mut x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), 8.into()]));
    for (i, name) in ["one", "two", "three"].into_iter().enumerate() {
        let w = Tensor::new(&[8, 8], outliers(seed + i as u32, 64)).unwrap();
        let w = b.constant(&format!("{name}_w"), w);
        x = b.apply(name, Arc::new(Gemm::default()), &[x, w]).unwrap();
        if i < 2 {
            x = b.apply(&format!("{name}_relu"), Arc::new(Unary::Relu), &[x]).unwrap();
        }
    }
    b.finish([("y".to_string(), x)]).unwrap()
}

fn batches(seed: u32) -> impl Iterator<Item = Result<Vec<Tensor>>> + Send {
    (0..2).map(move |i| Ok(vec![Tensor::new(&[40, 8], outliers(seed + 50 + i, 320)).unwrap()]))
}

fn calibrated(seed: u32, observer: ObserverConfig) -> Prepared {
    let mut q = preset("default").unwrap();
    q.activation.as_mut().unwrap().observer = observer;
    let mut prepared = prepare(&model(seed), &QConfigMapping::global(q)).unwrap();
    prepared.calibrate(batches(seed), &|_| Ok(())).unwrap();
    prepared
}

/// The squared error of the output with one point quantized, its range from `observer`.
fn error_of(prepared: &Prepared, seed: u32, point: usize, observer: &AnyObserver) -> f64 {
    let one = prepared.with_one(point, observer.qparams().unwrap()).unwrap();
    assert_eq!(one.points().len(), 1);
    let one = one.convert().unwrap().graph;
    let error = |batch: Result<Vec<Tensor>>| {
        let batch = batch.unwrap();
        let [y, f] = [prepared.graph(), &one].map(|g| g.run(&batch).unwrap()[0].to_f32().unwrap());
        y.iter().zip(f).map(|(y, f)| f64::from(y - f).powi(2)).sum::<f64>()
    };
    batches(seed).map(error).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_other_range_harms_the_output_less(seed in 0u32..10_000) {
        let prepared = calibrated(seed, ObserverConfig::Measured);
        let measured = measured_ranges(&prepared, batches(seed), &|_| Ok(())).unwrap();
        let again = measured_ranges(&prepared, batches(seed), &|_| Ok(())).unwrap();
        let observed = ["x", "one_relu", "two_relu", "three"];
        for (i, point) in measured.points().iter().enumerate() {
            prop_assert_eq!(&point.observer, &again.points()[i].observer);
            if point.role == Role::Weight {
                continue;
            }
            prop_assert!(observed.contains(&point.name.as_str()), "{}", point.name);
            let least = error_of(&prepared, seed, i, &point.observer);
            for config in CANDIDATES {
                let other = error_of(&prepared, seed, i, &prepared.points()[i].observer.as_kind(config).unwrap());
                prop_assert!(least <= other * (1.0 + 1e-9), "{}: {config}: {other} and {least}", point.name);
            }
        }
    }
}

#[test]
fn the_percentile_100_is_min_max() {
    let [counted, ends] =
        [ObserverConfig::Measured, ObserverConfig::MinMax].map(|observer| calibrated(3, observer));
    for (counted, ends) in counted.points().iter().zip(ends.points()) {
        if counted.role == Role::Activation {
            let all = counted.observer.as_kind(ObserverConfig::Percentile { percentile: 100.0 }).unwrap();
            assert_eq!(all.qparams().unwrap(), ends.params().unwrap(), "{}", counted.name);
        }
    }
}

#[test]
fn until_they_are_measured_ranges_are_those_of_least_squared_error() {
    let [counted, mse] =
        [ObserverConfig::Measured, ObserverConfig::Mse].map(|o| calibrated(3, o).convert().unwrap());
    assert_eq!(counted.graph, mse.graph);
}

#[test]
fn points_that_do_not_ask_need_no_batch() {
    let prepared = calibrated(1, ObserverConfig::Entropy);
    let nobody = std::iter::from_fn(|| panic!("no batch is needed"));
    let same = measured_ranges(&prepared, nobody, &|_| Ok(())).unwrap();
    assert_eq!(same.convert().unwrap().graph, prepared.convert().unwrap().graph);
}

#[test]
fn errors_say_what_is_wrong() {
    let prepared = calibrated(1, ObserverConfig::Measured);
    let mut q = preset("default").unwrap();
    q.activation.as_mut().unwrap().observer = ObserverConfig::Measured;
    let unseen = prepare(&model(1), &QConfigMapping::global(q.clone())).unwrap();
    q.weight.observer = ObserverConfig::Measured;
    let run = |prepared: &Prepared, batches: Vec<Tensor>| {
        measured_ranges(prepared, batches.into_iter().map(|t| Ok(vec![t])), &|_| Ok(())).map(|_| ())
    };
    let sample = || Tensor::new(&[1, 8], vec![0f32; 8]).unwrap();
    let stopped = measured_ranges(&prepared, batches(1), &|_| Err(Error::Interrupted)).map(|_| ());
    let cases = [
        (run(&prepared, vec![]), "no data to measure ranges on"),
        (run(&prepared, vec![Tensor::scalar(1f32)]), "x"),
        (run(&unseen, vec![sample()]), "saw no data"),
        (prepare(&model(1), &QConfigMapping::global(q)).map(|_| ()), "is for activations"),
        (stopped, "interrupted"),
    ];
    for (result, says) in cases {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}

#[test]
fn what_was_measured_is_taken_over_where_it_follows_from_the_same() {
    let first = calibrated(1, ObserverConfig::Measured);
    let all = points_to_measure(&first);
    let mut known = MeasuredRanges::default();
    let wanted = measured_beside(&first, &mut known, batches(1), &|_| Ok(())).unwrap();
    assert_eq!(known.0.len(), all);
    let unread = std::iter::from_fn(|| panic!("all is known"));
    let again = measured_beside(&first, &mut known, unread, &|_| Ok(())).unwrap();
    let observers = |p: &Prepared| p.points().iter().map(|p| p.observer.clone()).collect::<Vec<_>>();
    assert_eq!(observers(&again), observers(&wanted));
    // Of another layer's weight follows another model, and of another format another choice.
    let mut other = preset("default").unwrap();
    other.activation.as_mut().unwrap().observer = ObserverConfig::Measured;
    other.activation.as_mut().unwrap().format = crate::scheme::Format::UINT4;
    let mut other = prepare(&model(1), &QConfigMapping::global(other)).unwrap();
    other.calibrate(batches(1), &|_| Ok(())).unwrap();
    for (prepared, seed) in [(other, 1), (calibrated(2, ObserverConfig::Measured), 2)] {
        let (known_before, alone) =
            (known.0.len(), measured_ranges(&prepared, batches(seed), &|_| Ok(())).unwrap());
        let beside = measured_beside(&prepared, &mut known, batches(seed), &|_| Ok(())).unwrap();
        assert_eq!(observers(&beside), observers(&alone));
        assert_eq!(known.0.len(), known_before + points_to_measure(&prepared));
    }
}
