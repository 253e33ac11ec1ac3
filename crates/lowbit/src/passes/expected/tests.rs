use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::graph::Builder;
use crate::op::{Dim, Fact};
use crate::ops::clip::Clip;
use crate::ops::conv::Conv;
use crate::ops::window::Window;
use crate::qconfig::{BiasCorrection, Per, QConfigMapping, preset};
use crate::quantize::{fuse, prepare};
use crate::scheme::Format;
use crate::tensor::{DType, Tensor};

/// `n` quantiles of the standard normal, evenly spaced in probability, in an order that
/// looks random.
fn normal(seed: usize, n: usize) -> Vec<f32> {
    let quantile = |p: f64| {
        // Bisection of the distribution.
        let (mut lo, mut hi) = (-9.0, 9.0);
        for _ in 0..60 {
            let middle = (lo + hi) / 2.0;
            let below = (1.0 + libm::erf(middle / std::f64::consts::SQRT_2)) / 2.0;
            if below < p { lo = middle } else { hi = middle }
        }
        lo as f32
    };
    // A step that shares no factor with n = 2^k.
    (0..n).map(|i| quantile(((i * (2 * seed + 37) + seed) % n) as f64 / n as f64 + 0.5 / n as f64)).collect()
}

/// A normalization, a Clip to 0..6, a convolution, all of three channels.
fn model(gamma: [f32; 3], beta: [f32; 3], normalizes: bool) -> Graph {
    let mut b = Builder::default();
    let mut x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), 3.into(), 8.into(), 8.into()]));
    if normalizes {
        let parameters = [gamma, beta, [0.0; 3], [1.0; 3]].map(|p| Tensor::vector(p.to_vec()));
        let names = ["gamma", "beta", "mean", "var"];
        let mut inputs = vec![x];
        inputs.extend(names.iter().zip(parameters).map(|(name, p)| b.constant(name, p)));
        let bn = BatchNormalization { epsilon: 0.0, training: None };
        x = b.apply("bn", Arc::new(bn), &inputs).unwrap();
    }
    let h = b.apply("clip", Arc::new(Clip::new(0.0, 6.0)), &[x]).unwrap();
    let w = vec![0.9f32, 0.31, -0.17, -0.43, 0.27, 0.55];
    let w = b.constant("w", Tensor::new(&[2, 3, 1, 1], w).unwrap());
    let bias = b.constant("b", Tensor::vector(vec![0.1f32, -0.2]));
    let conv = Conv { window: Window::default(), group: 1, kernel: None };
    let y = b.apply("y", Arc::new(conv), &[h, w, bias]).unwrap();
    b.finish([("y".to_string(), y)]).unwrap()
}

fn batch() -> Vec<Tensor> {
    let each: Vec<Vec<f32>> = (0..3).map(|c| normal(5 + c, 256)).collect();
    let value = |i: usize| each[i / 64 % 3][i / 192 * 64 + i % 64];
    vec![Tensor::new(&[4, 3, 8, 8], (0..768).map(value).collect::<Vec<f32>>()).unwrap()]
}

fn mapping(correction: BiasCorrection) -> QConfigMapping {
    let mut q = preset("default").unwrap();
    q.weight.format = Format::INT4;
    q.weight = q.weight.per(Per::Tensor);
    q.weight.rounding = crate::qconfig::Rounding::Nearest;
    q.weight.correct_bias = correction;
    QConfigMapping::global(q)
}

/// The mean of each channel of the output of the quantized model.
fn mean_output(float: &Graph, correction: BiasCorrection) -> Vec<f64> {
    let fused = fuse(float).unwrap();
    let mut prepared = prepare(&fused, &mapping(correction)).unwrap();
    prepared.calibrate([Ok(batch())].into_iter(), &|_| Ok(())).unwrap();
    let prepared = expected_means(float, &prepared).unwrap();
    means(&prepared.convert().unwrap().graph)
}

fn means(graph: &Graph) -> Vec<f64> {
    let y = graph.run(&batch()).unwrap().remove(0);
    let y = y.slice::<f32>().unwrap();
    let of =
        |c: usize| y.iter().enumerate().filter(move |(i, _)| i / 64 % 2 == c).map(|(_, y)| f64::from(*y));
    (0..2).map(|c| of(c).sum::<f64>() / 256.0).collect()
}

proptest! {
    #[test]
    fn the_mean_of_a_clipped_normal_variable(
        m in -3f64..3.0, s in 0f64..3.0, lo in prop::option::of(-3f64..=0.0), hi in prop::option::of(0f64..6.0),
    ) {
        let (lo, hi) = (lo.unwrap_or(f64::NEG_INFINITY), hi.unwrap_or(f64::INFINITY));
        let x = normal(3, 4096);
        let found = x.iter().map(|x| (m + s * f64::from(*x)).max(lo).min(hi)).sum::<f64>() / x.len() as f64;
        prop_assert!((clipped_mean(m, s, lo, hi) - found).abs() < 2e-3 * (1.0 + s), "{found}");
    }
}

#[test]
fn means_are_corrected_as_by_data() {
    let float = model([1.0, 2.0, 0.5], [0.5, 4.0, -0.25], true);
    let wanted = means(&float);
    let lost = |correction| -> f64 {
        let found = mean_output(&float, correction);
        found.iter().zip(&wanted).map(|(f, w)| (f - w).abs()).fold(0.0, f64::max)
    };
    let [off, observed, analytic] =
        [BiasCorrection::Off, BiasCorrection::Observed, BiasCorrection::Analytic].map(lost);
    assert!(off > 0.05 && observed < off / 3.0 && analytic < off / 3.0, "{off} {observed} {analytic}");
}

#[test]
fn what_equalization_divided_has_divided_means() {
    let float = model([1.0, 2.0, 0.5], [0.5, 4.0, -0.25], true);
    let fused = fuse(&float).unwrap();
    let mut equalizing = mapping(BiasCorrection::Analytic);
    let q = equalizing.rules[0].qconfig.as_mut().unwrap();
    (q.weight.per, q.activation.as_mut().unwrap().equalize) = (Per::Channel, 1.0);
    let equalized =
        crate::passes::equalize(&fused, &equalizing, [Ok(batch())].into_iter(), &|_| Ok(())).unwrap();
    let scales = ChannelScales::of(&equalized).unwrap().get("clip").unwrap();
    let of = |graph: &Graph| {
        let prepared = expected_means(&float, &prepare(graph, &equalizing).unwrap()).unwrap();
        let found = prepared.points().iter().find_map(|p| (p.name == "w").then(|| p.means.clone().unwrap()));
        found.unwrap()
    };
    let [plain, scaled] = [&fused, &equalized].map(of);
    let mut wanted = plain.clone();
    let moments = moments(&float).unwrap();
    let clip = moments.iter().find(|(v, _)| float.value(**v).name == "clip").unwrap().1;
    wanted.expect(clip.mean.iter().zip(scales).map(|(m, s)| m / f64::from(s)).collect());
    assert!(scaled == wanted && scaled != plain, "{scaled:?}");
}

#[test]
fn a_model_without_normalization_has_no_means() {
    let float = model([1.0; 3], [0.0; 3], false);
    let prepared = |correction| prepare(&fuse(&float).unwrap(), &mapping(correction)).unwrap();
    let error = expected_means(&float, &prepared(BiasCorrection::Analytic)).unwrap_err().to_string();
    assert!(error.contains("needs layers behind a BatchNormalization"), "{error}");
    assert!(expected_means(&float, &prepared(BiasCorrection::Observed)).is_ok());
}
