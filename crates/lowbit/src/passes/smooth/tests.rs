use proptest::prelude::*;

use super::*;
use crate::passes::awq::tests::{batch, model};
use crate::qconfig::{Per, preset};
use crate::quantize::prepare;

fn mapping(name: &str, strength: f32) -> QConfigMapping {
    let mut q = preset(name).unwrap();
    q.activation = q.activation.map(|a| a.smoothed(strength));
    QConfigMapping::global(q)
}

fn smoothed(graph: &Graph, mapping: &QConfigMapping) -> Graph {
    smooth(graph, mapping, [Ok(batch(1)), Ok(batch(2))].into_iter(), &|_| Ok(())).unwrap()
}

/// `10 log10` of signal over noise of the first output of `graph`, calibrated and quantized.
fn decibels(float: &Graph, graph: &Graph, mapping: &QConfigMapping) -> f64 {
    let mut prepared = prepare(graph, mapping).unwrap();
    prepared.calibrate([Ok(batch(1)), Ok(batch(2))].into_iter(), &|_| Ok(())).unwrap();
    let quantized = prepared.convert().unwrap().graph;
    let [x, y] = [float, &quantized].map(|g| g.run(&batch(9)).unwrap()[0].to_f32().unwrap());
    let signal: f64 = x.iter().map(|x| f64::from(x * x)).sum();
    let noise: f64 = x.iter().zip(y).map(|(x, y)| f64::from((x - y) * (x - y))).sum();
    10.0 * (signal / noise).log10()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn outputs_stay(
        seed in 0u32..10_000, gate_is_output in any::<bool>(), dynamic in any::<bool>(), strength in 0.1f32..=1.0,
    ) {
        let float = model(seed, gate_is_output);
        let mapping = mapping(if dynamic { "dynamic" } else { "default" }, strength);
        let changed = smoothed(&float, &mapping);
        prop_assert_eq!(&smoothed(&float, &mapping), &changed);
        for (x, y) in float.run(&batch(3)).unwrap().iter().zip(changed.run(&batch(3)).unwrap()) {
            let most = x.slice::<f32>().unwrap().iter().fold(0f32, |m, x| m.max(x.abs()));
            for (x, y) in x.slice::<f32>().unwrap().iter().zip(y.slice::<f32>().unwrap()) {
                prop_assert!((x - y).abs() <= 1e-5 * most, "{x} and {y}");
            }
        }
    }
}

/// At full strength every element of what is read reaches as far as the others: the greatest
/// magnitudes go into the weights.
#[test]
fn full_strength_makes_elements_alike() {
    let changed = smoothed(&model(5, false), &mapping("default", 1.0));
    for name in ["norm_smooth", "gated_smooth", "relu_smooth"] {
        let v = changed.find(name).unwrap();
        let mut most: Vec<f32> = vec![];
        for seed in [1, 2] {
            let see = |at, _: &_, t: &Tensor| {
                if at == v {
                    let width = *t.shape().last().unwrap();
                    most.resize(width, 0.0);
                    for (i, x) in t.slice::<f32>().unwrap().iter().enumerate() {
                        most[i % width] = most[i % width].max(x.abs());
                    }
                }
                Ok(())
            };
            changed.run_with(&batch(seed), see).unwrap();
        }
        assert!(most.iter().all(|x| (x - 1.0).abs() < 1e-4 || *x == 0.0), "{name}: {most:?}");
    }
}

#[test]
fn quantized_models_with_outliers_lose_less() {
    for name in ["default", "dynamic"] {
        let mapping = mapping(name, 0.5);
        let gain = |seed: u32| {
            let float = model(100 * seed, false);
            decibels(&float, &smoothed(&float, &mapping), &mapping) - decibels(&float, &float, &mapping)
        };
        let gained: f64 = (0..8).map(gain).sum();
        assert!(gained / 8.0 > 1.0, "{name}: {gained}");
    }
}

#[test]
fn what_is_not_asked_for_stays() {
    let float = model(1, false);
    let nobody = std::iter::from_fn(|| panic!("no batch is needed"));
    let mapping = QConfigMapping::global(preset("default").unwrap());
    assert_eq!(smooth(&float, &mapping, nobody, &|_| Ok(())).unwrap(), float);
}

#[test]
fn errors_say_what_is_wrong() {
    let float = model(3, false);
    let run = |mapping: &QConfigMapping, batches: Vec<Vec<Tensor>>| {
        smooth(&float, mapping, batches.into_iter().map(Ok), &|_| Ok(()))
    };
    let on = mapping("default", 0.5);
    let mut of_weights = on.clone();
    let q = of_weights.rules[0].qconfig.as_mut().unwrap();
    q.weight = q.weight.clone().per(Per::Channel).smoothed(0.5);
    let infinite = vec![Tensor::new(&[1, 8], vec![f32::INFINITY; 8]).unwrap()];
    let cases = [
        (run(&on, vec![]), "calibration data is empty"),
        (run(&on, vec![vec![Tensor::scalar(1f32)]]), "calibration batch 0"),
        (run(&on, vec![infinite]), "holds NaN"),
        (run(&mapping("default", 1.5), vec![]), "smooth = 1.5"),
        (run(&of_weights, vec![]), "smooth is for activations"),
    ];
    for (result, says) in cases {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}
