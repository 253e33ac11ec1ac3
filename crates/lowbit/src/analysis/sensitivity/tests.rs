use std::fs;
use std::sync::Arc;

use super::*;
use crate::data::inputs_of;
use crate::error::Error;
use crate::graph::{Builder, Graph};
use crate::observer::ObserverConfig;
use crate::op::{Dim, Fact};
use crate::ops::linear::Gemm;
use crate::ops::unary::Unary;
use crate::qconfig::{Per, QConfigMapping, preset};
use crate::quantize::prepare;
use crate::tensor::{DType, Tensor};

const LAYERS: usize = 4;

/// Four layers of 3 x 3, whose first channel is 0 throughout. Layer `bad` multiplies it with
/// a weight that is so great that little is left of the others by a scale for them all.
fn model(bad: usize) -> Graph {
    let mut b = Builder::default();
    let mut x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(3)]));
    for layer in 0..LAYERS {
        let mut w: Vec<f32> = (0..9).map(|i| ((i * 7 + layer * 5) % 11 + 1) as f32 / 11.0).collect();
        (0..3).for_each(|row| w[3 * row] *= -1.0);
        if layer == bad {
            w[1] = 40.0;
        }
        let w = b.constant(&format!("w{layer}"), Tensor::new(&[3, 3], w).unwrap());
        x = b.apply(&format!("l{layer}"), Arc::new(Gemm::default()), &[x, w]).unwrap();
        if layer + 1 < LAYERS {
            x = b.apply(&format!("t{layer}"), Arc::new(Unary::Relu), &[x]).unwrap();
        }
    }
    b.finish([(format!("l{}", LAYERS - 1), x)]).unwrap()
}

fn data() -> Vec<Batch> {
    let value = |j: usize| if j.is_multiple_of(3) { 0.0 } else { (j * 37 % 101) as f32 / 50.0 };
    let rows = |i: usize| (12 * i..12 * i + 12).map(value).collect();
    (0..3)
        .map(|i| Batch {
            inputs: vec![("x".into(), Tensor::new(&[4, 3], rows(i)).unwrap())],
            labels: Some(vec![0, 1, 2, i % 3]),
            names: (0..4).map(|j| format!("{i}.{j}")).collect(),
        })
        .collect()
}

fn prepared(float: &Graph) -> Prepared {
    let mut q = preset("default").unwrap();
    q.weight = q.weight.per(Per::Tensor).observed_by(ObserverConfig::MinMax);
    let mut prepared = prepare(float, &QConfigMapping::global(q)).unwrap();
    prepared.calibrate(data().into_iter().map(|b| inputs_of(float, &b)), &|_| Ok(())).unwrap();
    prepared
}

fn measured(float: &Graph, options: &SensitivityOptions) -> Result<Sensitivity> {
    sensitivity(&prepared(float), || data().into_iter().map(Ok), options, &|_| Ok(()))
}

#[test]
fn the_layer_that_hurts_is_named_first() {
    for bad in 0..LAYERS - 1 {
        for all_but_one in [false, true] {
            let s = measured(&model(bad), &SensitivityOptions { all_but_one, ..Default::default() }).unwrap();
            let names: Vec<&str> = s.layers.iter().map(|l| l.layer.as_str()).collect();
            assert_eq!((s.samples, names), (12, vec!["l0", "l1", "l2", "l3"]));
            for metric in [Metric::Sqnr, Metric::Mse, Metric::Kl] {
                let first = &s.ranked(metric).unwrap()[0].layer;
                assert_eq!(*first, format!("l{bad}"), "{metric:?} {all_but_one} {s:#?}");
            }
            let worst = s.ranked(Metric::Sqnr).unwrap()[0].scores.sqnr_db;
            assert_eq!(worst > s.everything.sqnr_db + 5.0, all_but_one, "{s:#?}");
            assert!(s.float_top1.is_some() && s.ranked(Metric::Top1).is_ok());
        }
    }
}

#[test]
fn scores_are_those_of_models_converted_one_by_one() {
    let float = model(1);
    let everything = measured(&float, &SensitivityOptions::default()).unwrap().everything;
    let whole = prepared(&float).convert().unwrap().graph;
    let reference = Reference::of(&float, data().into_iter().map(Ok), 1).unwrap();
    assert_eq!(everything, reference.compared(&whole, data().into_iter().map(Ok)).unwrap());
}

#[test]
fn threads_change_nothing() {
    let float = model(1);
    let run = |threads| {
        measured(&float, &SensitivityOptions { threads: Some(threads), ..Default::default() }).unwrap()
    };
    let one = run(1);
    for threads in [2, 3, 8] {
        assert_eq!(run(threads), one);
    }
}

#[test]
fn blocks_are_named_by_globs() {
    let by = vec!["l[01]".to_string(), "*3".into()];
    let s = measured(&model(1), &SensitivityOptions { by, ..Default::default() }).unwrap();
    let found: Vec<(&str, Vec<&str>)> =
        s.layers.iter().map(|l| (l.layer.as_str(), l.nodes.iter().map(String::as_str).collect())).collect();
    assert_eq!(found, [("l[01]", vec!["l0", "l1"]), ("*3", vec!["l3"])]);
    assert_eq!(s.ranked(Metric::Sqnr).unwrap()[0].layer, "l[01]");
    for (glob, says) in [("nothing*", "matches no node"), ("[", "name = ")] {
        let by = vec![glob.to_string()];
        let error = measured(&model(1), &SensitivityOptions { by, ..Default::default() }).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn an_interrupted_measurement_goes_on() {
    let float = model(2);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.jsonl");
    let options = SensitivityOptions { resume: Some(path.clone()), threads: Some(1), ..Default::default() };
    let stop = |done| if done == 2 { Err(Error::Interrupted) } else { Ok(()) };
    let p = prepared(&float);
    let stopped = sensitivity(&p, || data().into_iter().map(Ok), &options, &stop);
    assert!(matches!(stopped, Err(Error::Interrupted)));
    // The header, everything, and two layers.
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4);
    let seen = Mutex::new(vec![]);
    let note = |done| {
        lock(&seen).push(done);
        Ok(())
    };
    let resumed = sensitivity(&p, || data().into_iter().map(Ok), &options, &note).unwrap();
    assert_eq!(*lock(&seen), [2, 3, 4]);
    let whole = measured(&float, &SensitivityOptions::default()).unwrap();
    let close = |a: &Scores, b: &Scores| (a.sqnr_db - b.sqnr_db).abs() < 1e-9 && a.agreement == b.agreement;
    assert!(close(&resumed.everything, &whole.everything));
    for (a, b) in resumed.layers.iter().zip(&whole.layers) {
        assert!(a.layer == b.layer && close(&a.scores, &b.scores), "{a:?} {b:?}");
    }
    // It is of this model alone.
    let error = measured(&model(1), &options).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
}

#[test]
fn without_samples_or_layers_it_says_so() {
    let float = model(1);
    let none = sensitivity(&prepared(&float), std::iter::empty, &SensitivityOptions::default(), &|_| Ok(()));
    assert!(none.unwrap_err().to_string().contains("no sample"));
    let nothing = prepare(&float, &QConfigMapping::default()).unwrap();
    let none =
        sensitivity(&nothing, || data().into_iter().map(Ok), &SensitivityOptions::default(), &|_| Ok(()));
    assert!(none.unwrap_err().to_string().contains("no layer"));
}
