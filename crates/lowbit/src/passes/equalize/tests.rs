use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::op::{Dim, Fact};
use crate::ops::binary::Arithmetic;
use crate::ops::clip::Clip;
use crate::ops::conv::Conv;
use crate::ops::layout::Concat;
use crate::ops::linear::Gemm;
use crate::ops::pool::GlobalAveragePool;
use crate::ops::shape::Flatten;
use crate::ops::unary::Unary;
use crate::ops::window::Window;
use crate::qconfig::{Per, QConfig, preset};
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

/// Filters whose output channel `c` is `0.3^(c mod 3)` in size.
fn filters(b: &mut Builder, name: &str, seed: u32, shape: [usize; 4]) -> [Var; 2] {
    let each = shape[1] * shape[2] * shape[3];
    let size = |i: usize| 0.3f32.powi((i / each % 3) as i32);
    let w = noise(seed, shape[0] * each).iter().enumerate().map(|(i, x)| x * size(i)).collect();
    let bias = (0..shape[0]).map(|c| 0.1 * size(c * each)).collect();
    [
        b.constant(&format!("{name}_w"), Tensor::new(&shape, w).unwrap()),
        b.constant(&format!("{name}_b"), Tensor::vector::<f32>(bias)),
    ]
}

fn conv(b: &mut Builder, name: &str, seed: u32, x: Var, shape: [usize; 4], group: usize) -> Var {
    let [w, bias] = filters(b, name, seed, shape);
    b.apply(name, Arc::new(Conv { window: Window::default(), group, kernel: None }), &[x, w, bias]).unwrap()
}

fn relu(b: &mut Builder, x: Var) -> Var {
    let name = format!("{}_relu", b.name(x));
    b.apply(&name, Arc::new(Unary::Relu), &[x]).unwrap()
}

/// A convolution, a depthwise and a pointwise one, the first two clipped to `lo..hi`, and an
/// average pool.
fn clipped_model(seed: u32, lo: f32, hi: f32) -> Graph {
    let mut b = Builder::default();
    let n = Dim::Named("N".into());
    let x = b.input("x", Fact::new(DType::F32, [n, 2.into(), 6.into(), 6.into()]));
    let clip = |b: &mut Builder, x: Var| {
        let name = format!("{}_clip", b.name(x));
        b.apply(&name, Arc::new(Clip::new(lo, hi)), &[x]).unwrap()
    };
    let first = conv(&mut b, "first", seed, x, [6, 2, 1, 1], 1);
    let h = clip(&mut b, first);
    let deep = conv(&mut b, "deep", seed + 1, h, [6, 1, 2, 2], 6);
    let h = clip(&mut b, deep);
    let last = conv(&mut b, "last", seed + 2, h, [4, 6, 1, 1], 1);
    let y = b.apply("y", Arc::new(GlobalAveragePool), &[last]).unwrap();
    b.finish([("y".to_string(), y)]).unwrap()
}

/// The greatest magnitudes of a weight's output channels, or of its input channels.
fn weight_ranges(graph: &Graph, node: &str, outputs: bool) -> Vec<f32> {
    let (_, _, op, inputs) = graph.applied().find(|(_, n, ..)| n.name == node).unwrap();
    let weight = graph.constant(inputs[1]).unwrap();
    let place = input_channels(&**op, weight.shape());
    let mut most: Vec<f32> = vec![];
    for (i, w) in weight.slice::<f32>().unwrap().iter().enumerate() {
        let (output, input) = place(i);
        let c = if outputs { output } else { input };
        most.resize(most.len().max(c + 1), 0.0);
        most[c] = most[c].max(w.abs());
    }
    most
}

/// A squeeze, two expansions side by side, a grouped and a depthwise
/// convolution, and two matrix products, with Relu between.
fn model(seed: u32, residual: bool) -> Graph {
    let mut b = Builder::default();
    let n = Dim::Named("N".into());
    let x = b.input("x", Fact::new(DType::F32, [n, 2.into(), 6.into(), 6.into()]));
    let squeeze = conv(&mut b, "squeeze", seed, x, [6, 2, 1, 1], 1);
    let h = relu(&mut b, squeeze);
    let left = conv(&mut b, "left", seed + 1, h, [6, 6, 1, 1], 1);
    let left = relu(&mut b, left);
    let right = conv(&mut b, "right", seed + 2, h, [6, 3, 1, 1], 2);
    let mut right = relu(&mut b, right);
    if residual {
        right = b.apply("sum", Arc::new(Arithmetic::Add), &[right, h]).unwrap();
    }
    let both = b.apply("both", Arc::new(Concat { axis: 1 }), &[left, right]).unwrap();
    let deep = conv(&mut b, "deep", seed + 3, both, [12, 1, 2, 2], 12);
    let deep = relu(&mut b, deep);
    let pooled = b.apply("pooled", Arc::new(GlobalAveragePool), &[deep]).unwrap();
    let flat = b.apply("flat", Arc::new(Flatten { axis: 1 }), &[pooled]).unwrap();
    let w = b.constant("hidden_w", Tensor::new(&[12, 6], noise(seed + 4, 72)).unwrap());
    let hidden = b.apply("hidden", Arc::new(Gemm::default()), &[flat, w]).unwrap();
    let hidden = relu(&mut b, hidden);
    let w = b.constant("last_w", Tensor::new(&[4, 6], noise(seed + 5, 24)).unwrap());
    let last = b.apply("y", Arc::new(Gemm { trans_b: true, ..Gemm::default() }), &[hidden, w]).unwrap();
    b.finish([("y".to_string(), last)]).unwrap()
}

fn batch(seed: u32) -> Vec<Tensor> {
    vec![Tensor::new(&[2, 2, 6, 6], noise(seed, 144)).unwrap()]
}

/// Weights with one scale that share their ranges.
fn across_layers() -> QConfigMapping {
    mapping(|q| {
        q.activation.as_mut().unwrap().equalize = 0.0;
        q.weight = q.weight.clone().per(Per::Tensor).cross_layer();
    })
}

fn nobody() -> impl Iterator<Item = Result<Vec<Tensor>>> + Send {
    std::iter::from_fn(|| panic!("no batch is needed"))
}

fn mapping(change: impl FnOnce(&mut QConfig)) -> QConfigMapping {
    let mut q = preset("default").unwrap();
    q.activation.as_mut().unwrap().equalize = 0.75;
    change(&mut q);
    QConfigMapping::global(q)
}

fn equalized(graph: &Graph, mapping: &QConfigMapping) -> Result<Graph> {
    equalize(graph, mapping, [Ok(batch(7))].into_iter(), &|_| Ok(()))
}

/// All computed values of a run by name.
fn values(graph: &Graph, batch: &[Tensor]) -> HashMap<String, Tensor> {
    let mut all = HashMap::new();
    graph
        .run_with(batch, |v, _, t| {
            all.insert(graph.value(v).name.clone(), t.clone());
            Ok(())
        })
        .unwrap();
    all
}

fn greatest_of(t: &Tensor, channel: usize) -> f32 {
    let (channels, inner) = (t.shape()[1], t.shape()[2..].iter().product::<usize>());
    let of_channel =
        t.slice::<f32>().unwrap().iter().enumerate().filter(|(i, _)| i / inner % channels == channel);
    of_channel.fold(0f32, |most, (_, x)| most.max(x.abs()))
}

proptest! {
    #[test]
    fn outputs_stay_and_values_are_divided_by_the_recorded_scales(
        seed in 0u32..10_000, strength in 0.1f32..=1.0, residual in any::<bool>(),
    ) {
        let float = model(seed, residual);
        let scaled = equalized(&float, &mapping(|q| q.activation.as_mut().unwrap().equalize = strength)).unwrap();
        only_scaled(&float, &scaled, &batch(seed + 9))?;
    }

    #[test]
    fn sharing_ranges_across_layers_keeps_the_float_function(seed in 0u32..10_000, residual in any::<bool>()) {
        let float = model(seed, residual);
        let scaled = equalize(&float, &across_layers(), nobody(), &|_| Ok(())).unwrap();
        prop_assert!(!ChannelScales::of(&scaled).unwrap().is_empty());
        only_scaled(&float, &scaled, &batch(seed + 9))?;
        prop_assert_eq!(equalize(&float, &across_layers(), nobody(), &|_| Ok(())).unwrap(), scaled);
    }

    /// A Clip that cuts something off keeps the channels for which it does.
    #[test]
    fn a_clip_cuts_off_what_it_did(
        seed in 0u32..10_000, lo in -1f32..=0.0, hi in 0f32..1.0, strength in prop::option::of(0.1f32..=1.0),
    ) {
        let float = clipped_model(seed, lo, hi);
        let mapping = match strength {
            Some(strength) => mapping(|q| q.activation.as_mut().unwrap().equalize = strength),
            None => across_layers(),
        };
        let scaled = equalized(&float, &mapping).unwrap();
        only_scaled(&float, &scaled, &batch(7))?;
    }
}

/// Checks that the values of `scaled` are those of `float` divided by the scales that it keeps.
fn only_scaled(float: &Graph, scaled: &Graph, batch: &[Tensor]) -> std::result::Result<(), TestCaseError> {
    let scales = ChannelScales::of(scaled).unwrap();
    let (want, found) = (values(float, batch), values(scaled, batch));
    for (name, x) in &want {
        let (x, y) = (x, &found[name]);
        let inner: usize = x.shape()[2..].iter().product();
        let s = scales.get(name).unwrap_or_else(|| vec![1.0; x.shape()[1]]);
        let (xs, ys) = (x.slice::<f32>().unwrap(), y.slice::<f32>().unwrap());
        let most = xs.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (i, (x, y)) in xs.iter().zip(ys).enumerate() {
            let back = y * s[i / inner % s.len()];
            prop_assert!((x - back).abs() <= 1e-5 * most + 1e-7, "{name}: {x} and {back}");
        }
    }
    Ok(())
}

#[test]
fn weights_around_a_value_get_equal_ranges() {
    // Without clips nothing bounds the scales.
    let float = clipped_model(4, 0.0, f32::INFINITY);
    let scaled = equalize(&float, &across_layers(), nobody(), &|_| Ok(())).unwrap();
    for (maker, reader) in [("first", "deep"), ("deep", "last")] {
        let ranges = |graph: &Graph| -> Vec<f32> {
            let (made, read) = (weight_ranges(graph, maker, true), weight_ranges(graph, reader, false));
            made.iter().zip(read).map(|(m, r)| m / r).collect()
        };
        let uneven = |ratios: Vec<f32>| ratios.iter().map(|r| r.log2().abs()).fold(0f32, f32::max);
        assert!(uneven(ranges(&float)) > 1.0, "{maker}");
        assert!(uneven(ranges(&scaled)) < 0.3, "{maker}: {:?}", ranges(&scaled));
    }
}

#[test]
fn clips_need_data() {
    let float = clipped_model(4, 0.0, 6.0);
    let run = |batches: Vec<Vec<Tensor>>| {
        let scaled = equalize(&float, &across_layers(), batches.into_iter().map(Ok), &|_| Ok(()));
        ChannelScales::of(&scaled.unwrap()).unwrap()
    };
    assert!(run(vec![]).is_empty());
    assert!(run(vec![batch(7)]).get("first_clip").is_some());
    // What the Clip cuts off keeps its channels.
    let loud = noise(7, 144).iter().map(|x| x * 1e4).collect::<Vec<f32>>();
    let loud = vec![Tensor::new(&[2, 2, 6, 6], loud).unwrap()];
    assert!(run(vec![loud]).get("first_clip").is_none_or(|s| s.contains(&1.0)));
}

#[test]
fn full_strength_makes_channels_alike_where_only_linear_operators_read_them() {
    struct Case {
        value: &'static str,
        residual: bool,
        alike: bool,
    }
    let case = |value, residual, alike| Case { value, residual, alike };
    let cases = [
        case("squeeze_relu", false, true),
        case("both", false, true),
        case("deep_relu", false, true),
        case("hidden_relu", false, true),
        // Add reads it.
        case("squeeze_relu", true, false),
        // Some of its channels come from Add.
        case("both", true, false),
        case("hidden_relu", true, true),
    ];
    let mut failures = vec![];
    for Case { value, residual, alike } in cases {
        let float = model(3, residual);
        let scaled = equalized(&float, &mapping(|q| q.activation.as_mut().unwrap().equalize = 1.0)).unwrap();
        let t = values(&scaled, &batch(7)).remove(value).unwrap();
        let scales = ChannelScales::of(&scaled).unwrap().get(value);
        let above_least = |c: usize| scales.as_ref().is_none_or(|s| s[c] > 0.016);
        let ranges: Vec<f32> =
            (0..t.shape()[1]).filter(|c| above_least(*c)).map(|c| greatest_of(&t, c)).collect();
        let (least, most) = ranges.iter().fold((f32::MAX, 0f32), |(a, b), r| (a.min(*r), b.max(*r)));
        // What the average pool reads is wider than what comes out of it.
        let bound = if value == "deep_relu" { 8.0 } else { 1.2 };
        if (most / least <= bound) != alike {
            failures.push(format!("{value}, residual {residual}: {ranges:?}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn what_is_not_asked_for_stays() {
    let float = model(1, false);
    for change in [(|q| q.activation.as_mut().unwrap().equalize = 0.0) as fn(&mut QConfig), |q| {
        q.weight = q.weight.clone().per(Per::Tensor);
    }] {
        assert_eq!(equalize(&float, &mapping(change), nobody(), &|_| Ok(())).unwrap(), float);
    }
}

#[test]
fn the_record_survives_a_file() {
    let wide = equalized(&model(5, false), &across_layers()).unwrap();
    let mut kept = ChannelScales::default();
    for name in ["squeeze", "both", "deep"] {
        let scales = ChannelScales::of(&wide).unwrap().get(name).unwrap();
        kept.insert(name, scales.iter().map(|s| (s.log2() * 64.0).round() as i16).collect());
        assert_eq!(kept.get(name).unwrap(), scales);
    }
    assert!(wide.metadata["lowbit.equalized"].contains("exponents = ["));

    let scaled = equalized(&model(5, false), &mapping(|_| ())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    crate::onnx::save(&scaled, &path).unwrap();
    let loaded = crate::onnx::load(&path).unwrap();
    let scales = ChannelScales::of(&loaded).unwrap();
    assert!(!scales.is_empty());
    assert_eq!(scales, ChannelScales::of(&scaled).unwrap());
    // One character for each of the 12 channels.
    let record = &loaded.metadata["lowbit.equalized"];
    let written: Vec<usize> = record
        .lines()
        .filter_map(|l| Some(l.strip_prefix("scales = ")?.trim_matches(['"', '\'']).len()))
        .collect();
    assert!(written.contains(&12), "{record}");
}

#[test]
fn errors_say_what_is_wrong() {
    let float = model(3, false);
    let on = mapping(|_| ());
    let all = |x: f32| {
        let values = noise(9, 72).iter().map(|n| n.signum() * x).collect::<Vec<f32>>();
        vec![Tensor::new(&[1, 2, 6, 6], values).unwrap()]
    };
    let run = |batches: Vec<Vec<Tensor>>| equalize(&float, &on, batches.into_iter().map(Ok), &|_| Ok(()));
    let damaged = |record: &str| {
        let mut damaged = float.clone();
        damaged.metadata.insert("lowbit.equalized".into(), record.into());
        equalized(&damaged, &on)
    };
    let cases = [
        (run(vec![]), "calibration data is empty"),
        (run(vec![all(f32::INFINITY)]), "calibration batch 0: x: holds inf"),
        (run(vec![all(0.0), all(f32::MAX)]), "calibration batch 1: squeeze_relu: holds inf"),
        (run(vec![vec![Tensor::scalar(1f32)]]), "calibration batch 0"),
        (equalized(&equalized(&float, &on).unwrap(), &on), "equalized already"),
        (damaged("channels = 3"), "lowbit.equalized"),
        (damaged("[[channels]]\nvalues = ['v']\nscales = '#A\"'"), "v: '\"' stands for no scale"),
        (damaged("[[channels]]\nvalues = ['v']\nscales = '#T'"), "'T' stands for no scale"),
        (damaged("[[channels]]\nvalues = ['v']\nexponents = [1, -1281]"), "v: -1281 stands for no scale"),
        (damaged("[[channels]]\nvalues = ['v']\nexponents = [1]\nscales = '#'"), "one of them is enough"),
        (damaged("[[channels]]\nvalues = ['v']\nscales = '\u{1F600}'"), "stands for no scale"),
        (equalized(&float, &mapping(|q| q.activation.as_mut().unwrap().equalize = 1.5)), "equalize = 1.5"),
        (equalized(&float, &mapping(|q| q.weight.equalize = 0.5)), "equalize is for activations"),
        (equalized(&float, &mapping(|q| q.weight.cross_layer = true)), "per = \"tensor\""),
        (
            equalized(&float, &mapping(|q| q.activation.as_mut().unwrap().cross_layer = true)),
            "cross-layer is for weights",
        ),
    ];
    for (result, says) in cases {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
}
