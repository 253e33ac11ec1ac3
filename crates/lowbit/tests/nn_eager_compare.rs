//! A model quantized in eager mode against the float one: every value is held against the one that it
//! stands for, and the figures are those of graph mode.

use std::collections::BTreeMap;

use lowbit::analysis::{ValueError, compare, kl_divergence, shadow, weights};
use lowbit::data::Batch;
use lowbit::graph::{Graph, Var};
use lowbit::nn::eager::{fuse_modules, prepare};
use lowbit::nn::*;
use lowbit::op::{Dim, Fact};
use lowbit::ops::shape::Flatten as FlattenOp;
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::{DType, Result, Tensor, quantize};

/// Everything whose values change their names or places: fused normalizations and activation
/// functions, a sum, modules that are called twice, a head in float.
struct Net {
    quant: QuantStub,
    conv1: Conv2d,
    bn1: BatchNorm2d,
    relu1: ReLU,
    conv2: Conv2d,
    bn2: BatchNorm2d,
    skip: FloatFunctional,
    fc: Linear,
    relu: ReLU,
    dequant: DeQuantStub,
    head: LogSoftmax,
    /// How often `fc` is called.
    calls: usize,
}

const GROUPS: &[&[&str]] = &[&["conv1", "bn1", "relu1"], &["conv2", "bn2"], &["fc", "relu"]];

fn net(calls: usize) -> (Net, Weights) {
    let model = Net {
        quant: QuantStub,
        conv1: Conv2d::new(3, 4, 3).padding(1).bias(false),
        bn1: BatchNorm2d::new(4),
        relu1: ReLU,
        conv2: Conv2d::new(4, 4, 3).padding(1),
        bn2: BatchNorm2d::new(4),
        skip: FloatFunctional,
        fc: Linear::new(16, 16),
        relu: ReLU,
        dequant: DeQuantStub,
        head: LogSoftmax::default(),
        calls,
    };
    let mut weights = Weights::initialized(&model, 5).unwrap();
    for (name, values) in [
        ("bn1.running_var", [0.5, 2.0, 1.0, 0.25]),
        ("bn1.weight", [1.5, -1.0, 0.5, 2.0]),
        ("bn2.bias", [0.5, -0.5, 0.0, 1.0]),
    ] {
        weights.insert(name, Tensor::vector(values.to_vec()));
    }
    (model, weights)
}

impl Module for Net {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let x = g.call("quant", &self.quant, x)?;
        let x = g.call("conv1", &self.conv1, x)?;
        let x = g.call("bn1", &self.bn1, x)?;
        let x = g.call("relu1", &self.relu1, x)?;
        let y = g.call("conv2", &self.conv2, x)?;
        let y = g.call("bn2", &self.bn2, y)?;
        let y = g.enter("skip", |g| self.skip.add_relu(g, y, x))?;
        let mut y = g.apply(FlattenOp { axis: 1 }, &[y])?;
        for _ in 0..self.calls {
            y = g.call("fc", &self.fc, y)?;
            y = g.call("relu", &self.relu, y)?;
        }
        let y = g.call("dequant", &self.dequant, y)?;
        g.call("head", &self.head, y)
    }

    fn children(&self) -> Children<'_> {
        children!(self; quant, conv1, bn1, relu1, conv2, bn2, skip, fc, relu, dequant, head)
    }
}

fn noise(shape: &[usize], seed: u64) -> Tensor {
    Init::Normal { zero_row: None }.values("noise", shape, seed).unwrap()
}

fn batches(x: &[Tensor]) -> impl Iterator<Item = Result<Batch>> {
    let named = |x: &Tensor| (0..x.shape()[0]).map(|i| i.to_string()).collect();
    x.iter().map(move |x| Ok(Batch { inputs: vec![("x".into(), x.clone())], labels: None, names: named(x) }))
}

/// The float model, and the one that eager mode makes of it.
fn quantized<M: Module>(
    model: &M,
    weights: &Weights,
    groups: &[&[&str]],
    mapping: &QConfigMapping,
    x: &[Tensor],
) -> [Graph; 2] {
    let rest = x[0].shape()[1..].iter().map(|n| Dim::Known(*n));
    let inputs = [("x", Fact::new(DType::F32, std::iter::once(Dim::Named("N".into())).chain(rest)))];
    let mut prepared = prepare(model, fuse_modules(model, weights, groups).unwrap(), mapping).unwrap();
    for x in x {
        prepared.observe(std::slice::from_ref(x)).unwrap();
    }
    let (quantized, findings) = prepared.convert().unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    [trace(model, weights, &inputs).unwrap(), quantized.trace(&inputs).unwrap()]
}

fn images() -> Vec<Tensor> {
    (0..3).map(|seed| noise(&[4, 3, 2, 2], seed)).collect()
}

/// Every value of a graph, by name.
fn values(graph: &Graph, x: &Tensor) -> BTreeMap<String, Vec<f32>> {
    let mut found = BTreeMap::new();
    let keep = |v: Var, _: &_, t: &Tensor| {
        found.extend(t.to_f32().map(|t| (graph.value(v).name.clone(), t)));
        Ok(())
    };
    graph.run_with(std::slice::from_ref(x), keep).unwrap();
    found
}

/// Checks an error against what its formulas give for `x` and `y`.
fn check(e: &ValueError, x: &[f32], y: &[f32]) {
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        x.iter().zip(y).map(|(x, y)| f(f64::from(*x), f64::from(*y))).sum()
    };
    let (noise, power) = (sum(&|x, y| (x - y).powi(2)), sum(&|x, _| x * x));
    let cosine = sum(&|x, y| x * y) / (power * sum(&|_, y| y * y)).sqrt();
    let most = x.iter().zip(y).map(|(x, y)| f64::from(*x) - f64::from(*y)).fold(0f64, |m, d| m.max(d.abs()));
    for (found, wanted) in [
        (e.sqnr_db, 10.0 * (power / noise).log10()),
        (e.mse, noise / x.len() as f64),
        (e.cosine, cosine),
        (e.max_abs, most),
    ] {
        assert!((found - wanted).abs() <= 1e-9 * wanted.abs().max(1.0), "{e:?}: {wanted}");
    }
}

#[test]
fn values_are_paired_with_what_they_stand_for() {
    let (model, w) = net(2);
    let mapping = QConfigMapping::global(preset("default").unwrap());
    let [float, quantized] = quantized(&model, &w, GROUPS, &mapping, &images());
    let x = noise(&[5, 3, 2, 2], 9);
    let found = compare(&float, &quantized, batches(std::slice::from_ref(&x)), &mut |_| Ok(())).unwrap();
    let (ours, theirs) = (values(&float, &x), values(&quantized, &x));
    // A value before a normalization that is folded, or an activation function that codes imply,
    // has no counterpart.
    let pairs = [
        ("x", "x_dq"),
        ("bn1", "bn1"),
        ("relu1", "relu1_dq"),
        ("bn2", "bn2_dq"),
        ("skip", "skip"),
        ("skip/Relu", "skip/Relu_dq"),
        ("Flatten", "Flatten_dq"),
        ("fc", "fc"),
        ("relu", "relu_dq"),
        ("fc_1", "fc_1"),
        ("relu_1", "relu_1_dq"),
    ];
    let names: Vec<&str> = found.values.iter().map(|e| e.value.as_str()).collect();
    assert_eq!(names, pairs.map(|(name, _)| name), "{:?}", theirs.keys());
    for (e, (x, y)) in found.values.iter().zip(pairs) {
        check(e, &ours[x], &theirs[y]);
        assert!(e.sqnr_db > 25.0, "{e:?}");
    }
    check(&found.outputs[0], &ours["output"], &theirs["output"]);

    // The mean over rows of sum p (log p - log q), where the model ends with log p.
    let measured = shadow(&float, &quantized, batches(&[x]), Some(&kl_divergence), &mut |_| Ok(())).unwrap();
    let (p, q) = (&ours["output"], &theirs["output"]);
    let rows: f64 = p.iter().zip(q).map(|(p, q)| f64::from(*p).exp() * f64::from(p - q)).sum();
    let kl = measured.values.last().unwrap().whole_metric.unwrap();
    assert!(kl > 0.0 && (kl - rows / 5.0).abs() < 1e-6, "{kl} {}", rows / 5.0);
}

/// With one call of each module: called again, a module keeps its range.
#[test]
fn figures_are_those_of_graph_mode() {
    let (model, w) = net(1);
    let x = [noise(&[5, 3, 2, 2], 9), noise(&[3, 3, 2, 2], 10)];
    for name in ["default", "x86", "onednn", "qnnpack", "tensorrt", "onnxruntime"] {
        let mapping = QConfigMapping::global(preset(name).unwrap());
        let [float, eager] = quantized(&model, &w, GROUPS, &mapping, &images());
        let fused = quantize::fuse(&float).unwrap();
        let mut prepared = quantize::prepare(&fused, &mapping).unwrap();
        for x in images() {
            prepared.observe(&[x]).unwrap();
        }
        let in_graph_mode = prepared.convert().unwrap().graph;
        let compared = |q| compare(&float, q, batches(&x), &mut |_| Ok(())).unwrap();
        assert_eq!(compared(&eager), compared(&in_graph_mode), "{name}");
        let told_apart = |q| shadow(&float, q, batches(&x), Some(&kl_divergence), &mut |_| Ok(())).unwrap();
        assert_eq!(told_apart(&eager), told_apart(&in_graph_mode), "{name}");

        let found = weights(&fused, &eager).unwrap();
        assert_eq!(found, weights(&fused, &in_graph_mode).unwrap(), "{name}");
        let nodes: Vec<&str> = found.iter().map(|e| e.node.as_str()).collect();
        assert_eq!(nodes, ["conv1", "conv2", "fc"], "{name}");
        assert!(found.iter().all(|e| e.sqnr_db > 25.0), "{name}: {found:?}");
    }
}

#[test]
fn weights_are_compared_channel_by_channel() {
    let (model, w) = net(1);
    let mapping = QConfigMapping::global(preset("onednn").unwrap());
    let fused = fuse_modules(&model, &w, GROUPS).unwrap();
    let float = fused.weights().get("conv1.weight").unwrap().to_f32().unwrap();
    let mut prepared = prepare(&model, fused, &mapping).unwrap();
    prepared.observe(&images()[..1]).unwrap();
    let stored =
        prepared.convert().unwrap().0.weight("conv1").unwrap().dequantize().unwrap().to_f32().unwrap();
    let [graph, eager] = quantized(&model, &w, GROUPS, &mapping, &images());
    let found = weights(&quantize::fuse(&graph).unwrap(), &eager).unwrap();
    let e = found.iter().find(|e| e.node == "conv1").unwrap();
    let channels = float.chunks(27).zip(stored.chunks(27)).map(|(w, v)| {
        let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            w.iter().zip(v).map(|(w, v)| f(f64::from(*w), f64::from(*v))).sum()
        };
        10.0 * (sum(&|w, _| w * w) / sum(&|w, v| (w - v).powi(2))).log10()
    });
    let channels: Vec<f64> = channels.collect();
    assert_eq!(e.channels_db.len(), channels.len());
    assert!(e.channels_db.iter().zip(&channels).all(|(a, b)| (a - b).abs() < 1e-9), "{e:?} {channels:?}");
}

/// A matrix product over the last of three axes has its rows in a matrix; the values that both
/// models have, have all axes.
#[test]
fn rows_of_sequences_are_paired_in_their_shape() {
    let model = Sequential::new()
        .then_named("quant", QuantStub)
        .then_named("fc", Linear::new(6, 8))
        .then_named("relu", ReLU)
        .then_named("dequant", DeQuantStub);
    let w = Weights::initialized(&model, 3).unwrap();
    let x = [noise(&[4, 5, 6], 1)];
    let mapping = QConfigMapping::global(preset("default").unwrap());
    let [float, quantized] = quantized(&model, &w, &[&["fc", "relu"]], &mapping, &x);
    let found = compare(&float, &quantized, batches(&x), &mut |_| Ok(())).unwrap();
    let names: Vec<&str> = found.values.iter().map(|e| e.value.as_str()).collect();
    assert_eq!(names, ["x", "fc/Flatten", "fc"]);
    assert!(found.worst().iter().all(|e| e.sqnr_db > 25.0), "{found:?}");
    check(&found.outputs[0], &values(&float, &x[0])["output"], &values(&quantized, &x[0])["output"]);
}
