//! Quantization in eager mode: as in torch.ao.quantization (`tests/golden/eager.py`), and as in graph mode.

mod compare;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use compare::{Tolerance, close};
use lowbit::data::npz;
use lowbit::graph::Var;
use lowbit::nn::eager::{Prepared, Quantized, fuse_modules, prepare};
use lowbit::nn::*;
use lowbit::op::{Dim, Fact, Op};
use lowbit::ops::shape::Flatten as FlattenOp;
use lowbit::ops::softmax::Softmax as SoftmaxOp;
use lowbit::qconfig::{QConfig, QConfigMapping, Spec, Target, preset};
use lowbit::quantize::{self, quantize_dynamic};
use lowbit::scheme::Format;
use lowbit::session::Session;
use lowbit::train::{Network, Qat, QatOptions};
use lowbit::{DType, Result, Tensor, onnx};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/eager").join(name)
}

/// Numbers without a pattern, the same on every run.
fn noise(shape: &[usize], seed: u64) -> Tensor {
    let init = Init::Normal { zero_row: None };
    init.values("noise", shape, seed).unwrap()
}

struct Residual {
    quant: QuantStub,
    conv1: Conv2d,
    bn1: BatchNorm2d,
    relu1: ReLU,
    conv2: Conv2d,
    bn2: BatchNorm2d,
    skip: FloatFunctional,
    pool: MaxPool2d,
    fc: Linear,
    dequant: DeQuantStub,
}

const RESIDUAL_GROUPS: &[&[&str]] = &[&["conv1", "bn1", "relu1"], &["conv2", "bn2"]];

fn residual() -> Residual {
    Residual {
        quant: QuantStub,
        conv1: Conv2d::new(3, 8, 3).padding(1).bias(false),
        bn1: BatchNorm2d::new(8),
        relu1: ReLU,
        conv2: Conv2d::new(8, 8, 3).padding(1),
        bn2: BatchNorm2d::new(8),
        skip: FloatFunctional,
        pool: MaxPool2d::new(4),
        fc: Linear::new(32, 10),
        dequant: DeQuantStub,
    }
}

impl Module for Residual {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let x = g.call("quant", &self.quant, x)?;
        let x = g.call("conv1", &self.conv1, x)?;
        let x = g.call("bn1", &self.bn1, x)?;
        let x = g.call("relu1", &self.relu1, x)?;
        let y = g.call("conv2", &self.conv2, x)?;
        let y = g.call("bn2", &self.bn2, y)?;
        let y = g.enter("skip", |g| self.skip.add_relu(g, y, x))?;
        let y = g.call("pool", &self.pool, y)?;
        let y = g.apply(FlattenOp { axis: 1 }, &[y])?;
        let y = g.call("fc", &self.fc, y)?;
        g.call("dequant", &self.dequant, y)
    }

    fn children(&self) -> Children<'_> {
        children!(self; quant, conv1, bn1, relu1, conv2, bn2, skip, pool, fc, dequant)
    }
}

/// Modules between stubs.
fn between_stubs(modules: Vec<(&str, Box<dyn Module>)>) -> Sequential {
    let begun = Sequential::new().then_named("quant", QuantStub);
    let all = modules.into_iter().fold(begun, |all, (name, module)| all.then_named(name, module));
    all.then_named("dequant", DeQuantStub)
}

#[test]
fn quantized_models_give_what_those_of_torch_give() {
    let models: Vec<(&str, Box<dyn Module>, &[&[&str]])> = vec![
        (
            "conv_net",
            Box::new(between_stubs(vec![
                ("conv", Box::new(Conv2d::new(3, 8, 3).padding(1).bias(false))),
                ("bn", Box::new(BatchNorm2d::new(8))),
                ("relu", Box::new(ReLU)),
            ])),
            &[&["conv", "bn", "relu"]],
        ),
        ("residual", Box::new(residual()), RESIDUAL_GROUPS),
        (
            "perceptron",
            Box::new(between_stubs(vec![
                ("fc1", Box::new(Linear::new(12, 16))),
                ("relu", Box::new(ReLU)),
                ("fc2", Box::new(Linear::new(16, 5))),
            ])),
            &[&["fc1", "relu"]],
        ),
    ];
    for (name, model, groups) in models {
        let weights = Weights::load(&golden(&format!("{name}.safetensors")), &model).unwrap();
        let arrays: BTreeMap<String, Tensor> =
            npz::read(&golden(&format!("{name}.npz"))).unwrap().into_iter().collect();
        let x = &arrays["x"];
        let fused = fuse_modules(&model, &weights, groups).unwrap();
        let mut prepared = prepare(&model, fused, &QConfigMapping::global(preset("x86").unwrap())).unwrap();
        let (rows, size) = (x.shape()[0] / 4, x.len() / 4);
        for i in 0..4 {
            let batch = x.slice::<f32>().unwrap()[i * size..][..size].to_vec();
            prepared.observe(&[Tensor::new(&[&[rows], &x.shape()[1..]].concat(), batch).unwrap()]).unwrap();
        }
        let (quantized, findings) = prepared.convert().unwrap();
        assert!(findings.is_empty(), "{findings:?}");
        let tolerance = Tolerance { relative: 1e-4, absolute: 1e-5, steps: 0 };
        close(&run(&model, &weights, std::slice::from_ref(x)).unwrap()[0], &arrays["float"], tolerance)
            .unwrap();

        let mut last = 0f32;
        let paths: Vec<&str> = arrays.keys().filter_map(|k| k.strip_suffix(".zero_point")).collect();
        for path in &paths {
            let ours = quantized.output(path).unwrap().unwrap();
            let (scale, zero) = (
                arrays[&format!("{path}.scale")].item::<f32>().unwrap(),
                &arrays[&format!("{path}.zero_point")],
            );
            assert!(
                (ours.scale[0] / scale - 1.0).abs() < 1e-4,
                "{name} {path}: {} and {scale}",
                ours.scale[0]
            );
            assert_eq!(i64::from(ours.zero_point[0]), zero.item::<i64>().unwrap(), "{name} {path}");
            if ["conv", "fc", "fc2"].contains(path) {
                last = scale;
            }
        }
        for (key, codes) in arrays.iter().filter(|(k, _)| k.ends_with(".weight")) {
            let ours = quantized.weight(key.strip_suffix(".weight").unwrap()).unwrap();
            assert_eq!((ours.element_size(), ours.shape()), (1, codes.shape()), "{name} {key}");
            // torch multiplies by the reciprocal of the scale, so that the greatest weight of a
            // channel, 127.5 steps, may round to the other side.
            close(ours.int_repr(), codes, Tolerance { relative: 0.0, absolute: 0.0, steps: 1 }).unwrap();
            let pairs = ours.int_repr().slice::<i8>().unwrap().iter().zip(codes.slice::<i8>().unwrap());
            let other = pairs.filter(|(a, b)| a != b).count();
            assert!(other <= codes.shape()[0], "{name} {key}: {other} of {}", codes.len());
        }
        let y = quantized.run(std::slice::from_ref(x)).unwrap()[0].to_f32().unwrap();
        let want = arrays["quantized"].to_f32().unwrap();
        let steps: Vec<f32> = y.iter().zip(&want).map(|(a, b)| (a - b).abs() / last).collect();
        let most = steps.iter().fold(0f32, |most, s| most.max(*s));
        let equal = steps.iter().filter(|s| **s < 0.01).count();
        assert!(
            most < 1.01 && equal * 100 >= steps.len() * 95,
            "{name}: {most} steps, {equal} of {}",
            steps.len()
        );
    }
}

/// A residual block and a head in float.
struct Classifier {
    block: Residual,
    log_softmax: LogSoftmax,
}

impl Module for Classifier {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let y = g.call("block", &self.block, x)?;
        g.call("log_softmax", &self.log_softmax, y)
    }

    fn children(&self) -> Children<'_> {
        children!(self; block, log_softmax)
    }
}

const CLASSIFIER_GROUPS: &[&[&str]] =
    &[&["block.conv1", "block.bn1", "block.relu1"], &["block.conv2", "block.bn2"]];

fn classifier() -> (Classifier, Weights) {
    let model = Classifier { block: residual(), log_softmax: LogSoftmax::default() };
    let mut weights = Weights::initialized(&model, 5).unwrap();
    for (i, name) in ["block.bn1.running_var", "block.bn1.weight", "block.bn2.bias"].into_iter().enumerate() {
        weights.insert(name, Init::Uniform { bound: 0.5 }.values(name, &[8], i as u64).unwrap());
    }
    let variance = weights.get("block.bn1.running_var").unwrap().to_f32().unwrap();
    weights.insert(
        "block.bn1.running_var",
        Tensor::vector(variance.iter().map(|v| v + 1.0).collect::<Vec<f32>>()),
    );
    (model, weights)
}

fn images() -> Fact {
    Fact::new(DType::F32, [Dim::Named("N".into()), 3.into(), 8.into(), 8.into()])
}

fn observed(mapping: &QConfigMapping) -> Prepared<Classifier> {
    let (model, weights) = classifier();
    let fused = fuse_modules(&model, &weights, CLASSIFIER_GROUPS).unwrap();
    let float = run(&model, &weights, &[noise(&[4, 3, 8, 8], 0)]).unwrap();
    let mut prepared = prepare(model, fused, mapping).unwrap();
    for seed in 0..3 {
        let y = prepared.observe(&[noise(&[4, 3, 8, 8], seed)]).unwrap();
        if seed == 0 {
            close(&y[0], &float[0], Tolerance { relative: 1e-4, absolute: 1e-5, steps: 0 }).unwrap();
        }
    }
    prepared
}

/// The same model, quantized as a graph: no stub, no list.
fn in_graph_mode(mapping: &QConfigMapping) -> quantize::Converted {
    let (model, weights) = classifier();
    let graph = quantize::fuse(&trace(&model, &weights, &[("x", images())]).unwrap()).unwrap();
    let mut prepared = quantize::prepare(&graph, mapping).unwrap();
    for seed in 0..3 {
        prepared.observe(&[noise(&[4, 3, 8, 8], seed)]).unwrap();
    }
    prepared.convert().unwrap()
}

#[test]
fn eager_mode_and_graph_mode_give_the_same_numbers() {
    let x = [noise(&[5, 3, 8, 8], 9)];
    for name in ["default", "x86", "onednn", "qnnpack", "tensorrt", "onnxruntime"] {
        let mapping = QConfigMapping::global(preset(name).unwrap());
        let prepared = observed(&mapping);
        let as_graph = prepared.trace(&[("x", images())]).unwrap();
        let (quantized, _) = prepared.convert().unwrap();
        let y = quantized.run(&x).unwrap();
        assert_eq!(y, in_graph_mode(&mapping).graph.run(&x).unwrap(), "{name}");
        assert_eq!(y, as_graph.convert().unwrap().graph.run(&x).unwrap(), "{name}, by the prepared graph");
        let traced = quantized.trace(&[("x", images())]).unwrap();
        assert_eq!(y, traced.run(&x).unwrap(), "{name}, traced");
    }
}

#[test]
fn quantized_models_are_saved_loaded_exported_and_compiled() {
    let folder = tempfile::tempdir().unwrap();
    let mapping = QConfigMapping::global(preset("default").unwrap());
    let (quantized, findings) = observed(&mapping).convert().unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    let x = [noise(&[5, 3, 8, 8], 9)];
    let y = quantized.run(&x).unwrap();

    let weight = quantized.weight("block.conv1").unwrap();
    assert_eq!((weight.element_size(), weight.scale().len(), weight.zero_point()), (1, 8, &[0; 8][..]));
    assert_eq!(quantized.output("block.conv1").unwrap().unwrap().zero_point, [0]);
    assert_eq!(quantized.output("block.bn1").unwrap(), None);
    assert!(quantized.bias("block.conv1").is_some() && quantized.weight("block.bn1").is_none());

    let path = folder.path().join("q.safetensors");
    quantized.save(&path).unwrap();
    let loaded = Quantized::load(&path, classifier().0, CLASSIFIER_GROUPS).unwrap();
    assert_eq!(loaded.weights(), quantized.weights());
    assert_eq!(loaded.run(&x).unwrap(), y);
    let e = Quantized::load(&path, classifier().0, &[]).err().unwrap().to_string();
    assert!(e.contains("block.bn1.running_mean [8] is missing"), "{e}");

    let graph = quantized.trace(&[("x", images())]).unwrap();
    let path = folder.path().join("q.onnx");
    onnx::save(&graph, &path).unwrap();
    let session = Session::compile(&onnx::load(&path).unwrap()).unwrap();
    assert_eq!(session.report().coverage(), 1.0, "{:?}", session.report());
    // A step of the last layer at ties.
    let step = quantized.output("block.fc").unwrap().unwrap().scale[0];
    let tolerance = Tolerance { relative: 0.0, absolute: 1.01 * step, steps: 0 };
    close(&session.run(&x).unwrap()[0], &y[0], tolerance).unwrap();
}

/// Chooses by the sign of the mean of its input.
struct Chooser {
    quant: QuantStub,
    above: Linear,
    below: Linear,
    dequant: DeQuantStub,
}

impl Module for Chooser {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let mean = g.mean(x, &[0, 1])?;
        let x = g.call("quant", &self.quant, x)?;
        let y = match g.value(mean)?.item::<f32>()? > 0.0 {
            true => g.call("above", &self.above, x)?,
            false => g.call("below", &self.below, x)?,
        };
        g.call("dequant", &self.dequant, y)
    }

    fn children(&self) -> Children<'_> {
        children!(self; quant, above, below, dequant)
    }
}

#[test]
fn a_model_may_choose_by_values_where_they_are_known() {
    let chooser = Chooser {
        quant: QuantStub,
        above: Linear::new(4, 2),
        below: Linear::new(4, 3),
        dequant: DeQuantStub,
    };
    let model = Sequential::new().then_named("chooser", chooser);
    let weights = Weights::initialized(&model, 3).unwrap();
    let [above, below] = [0.25f32, -0.25].map(|x| [Tensor::full(&[2, 4], x).unwrap()]);
    let columns = |y: Vec<Tensor>| y[0].shape()[1];
    assert_eq!(columns(run(&model, &weights, &above).unwrap()), 2);
    assert_eq!(columns(run(&model, &weights, &below).unwrap()), 3);
    let e = trace(&model, &weights, &[("x", Fact::new(DType::F32, [2usize, 4]))]).unwrap_err().to_string();
    assert!(e.starts_with("chooser: ") && e.contains("not known while the model is traced"), "{e}");

    let mapping = QConfigMapping::global(preset("onednn").unwrap());
    let mut prepared = prepare(&model, weights.clone().into(), &mapping).unwrap();
    prepared.observe(&above).unwrap();
    let (half, _) = prepared.clone().convert().unwrap();
    prepared.observe(&below).unwrap();
    let (quantized, _) = prepared.convert().unwrap();
    for x in [&above, &below] {
        let (y, want) = (quantized.run(x).unwrap(), run(&model, &weights, x).unwrap());
        close(&y[0], &want[0], Tolerance { relative: 0.0, absolute: 0.02, steps: 0 }).unwrap();
    }
    assert!(half.run(&above).is_ok());
    let e = half.run(&below).unwrap_err().to_string();
    assert!(e.contains("chooser.below") && e.contains("not called while calibrating"), "{e}");
}

/// Calls modules in an order that is given.
struct Steps(Vec<(&'static str, Box<dyn Module>)>, &'static [&'static str]);

impl Module for Steps {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        self.1.iter().try_fold(x, |x, name| match *name {
            "functional" => g.enter("functional", |g| FloatFunctional.add(g, x, x)),
            "plain sum" => g.add(x, x),
            name => g.call(name, &self.0.iter().find(|(n, _)| *n == name).unwrap().1, x),
        })
    }

    fn children(&self) -> Children<'_> {
        self.0.iter().map(|(name, module)| (name.to_string(), module as &dyn Module)).collect()
    }
}

fn steps(order: &'static [&'static str]) -> Steps {
    let modules: Vec<(&'static str, Box<dyn Module>)> = vec![
        ("quant", Box::new(QuantStub)),
        ("dequant", Box::new(DeQuantStub)),
        ("fc", Box::new(Linear::new(4, 4))),
        ("fc2", Box::new(Linear::new(4, 4))),
        ("relu", Box::new(ReLU)),
        ("norm", Box::new(LayerNorm::new(&[4]))),
        ("bn", Box::new(BatchNorm1d::new(4))),
    ];
    Steps(modules, order)
}

#[test]
fn what_is_missing_is_named() {
    let mapping = || QConfigMapping::global(preset("onednn").unwrap());
    let QConfig { activation, weight } = preset("onednn").unwrap();
    let inputs_only = QConfig { activation: activation.map(Spec::of_inputs_only), weight };
    let inputs_only = QConfigMapping::global(inputs_only);
    let without = |name: &str| mapping().with(Target::name(name).unwrap(), None);
    struct Case {
        order: &'static [&'static str],
        mapping: QConfigMapping,
        groups: &'static [&'static [&'static str]],
        error: Option<[&'static str; 2]>,
    }
    let cases = [
        Case {
            order: &["quant", "fc", "relu", "dequant", "norm"],
            mapping: mapping(),
            groups: &[],
            error: None,
        },
        Case {
            order: &["quant", "fc", "bn", "functional", "dequant"],
            mapping: mapping(),
            groups: &[],
            error: None,
        },
        Case {
            order: &["quant", "fc", "dequant", "relu", "fc2"],
            mapping: without("fc2"),
            groups: &[],
            error: None,
        },
        Case {
            order: &["fc", "relu"],
            mapping: mapping(),
            groups: &[],
            error: Some(["fc: ", "put a QuantStub before it"]),
        },
        Case {
            order: &["functional"],
            mapping: mapping(),
            groups: &[],
            error: Some(["functional: ", "put a QuantStub"]),
        },
        Case {
            order: &["quant", "fc"],
            mapping: without("fc"),
            groups: &[],
            error: Some(["fc: ", "put a DeQuantStub before it"]),
        },
        Case {
            order: &["quant", "fc", "norm"],
            mapping: mapping(),
            groups: &[],
            error: Some(["norm: ", "put a DeQuantStub"]),
        },
        Case {
            order: &["quant", "plain sum"],
            mapping: mapping(),
            groups: &[],
            error: Some(["Add: ", "use FloatFunctional"]),
        },
        Case {
            order: &["quant", "quant"],
            mapping: mapping(),
            groups: &[],
            error: Some(["quant: ", "quantized already"]),
        },
        Case {
            order: &["quant", "fc", "relu", "dequant"],
            mapping: mapping(),
            groups: &[&["fc", "relu"]],
            error: None,
        },
        Case {
            order: &["quant", "relu", "fc"],
            mapping: mapping(),
            groups: &[&["fc", "relu"]],
            error: Some(["relu: ", "fused into fc"]),
        },
        Case {
            order: &["quant"],
            mapping: mapping(),
            groups: &[&["relu", "fc"]],
            error: Some(["relu, fc: ", "cannot be fused"]),
        },
        Case {
            order: &["quant"],
            mapping: mapping(),
            groups: &[&["fc", "conv"]],
            error: Some(["fc, conv: ", "no module \"conv\""]),
        },
        Case {
            order: &["quant"],
            mapping: mapping(),
            groups: &[&["fc", "relu"], &["fc2", "relu"]],
            error: Some(["fc2, relu: ", "relu is in another group"]),
        },
        Case {
            order: &["quant"],
            mapping: without("conv*"),
            groups: &[],
            error: Some(["conv*", "matches no module"]),
        },
        Case {
            order: &["quant"],
            mapping: QConfigMapping::global(preset("dynamic").unwrap()),
            groups: &[],
            error: Some(["for every node", "quantize_dynamic"]),
        },
        Case {
            order: &["quant"],
            mapping: inputs_only,
            groups: &[],
            error: Some(["for every node", "inputs-only"]),
        },
        Case {
            order: &["quant"],
            mapping: {
                let mut config = preset("onednn").unwrap();
                config.activation.as_mut().unwrap().codes = Some((0, 99));
                QConfigMapping::global(config)
            },
            groups: &[],
            error: Some(["for every node", "do not fill their type"]),
        },
        Case {
            order: &["quant", "dequant", "norm"],
            mapping: mapping().with(Target::name("norm").unwrap(), Some(preset("onednn").unwrap())),
            groups: &[],
            error: Some(["rule name = \"norm\"", "quantization of it"]),
        },
        Case {
            order: &["quant", "bn", "dequant"],
            mapping: mapping().with(Target::name("bn").unwrap(), Some(preset("onednn").unwrap())),
            groups: &[],
            error: None,
        },
    ];
    let mut failures = vec![];
    for c in cases {
        let model = steps(c.order);
        let weights = Weights::initialized(&model, 0).unwrap();
        let called = || -> Result<()> {
            let mut prepared = prepare(&model, fuse_modules(&model, &weights, c.groups)?, &c.mapping)?;
            prepared.observe(&[noise(&[3, 4], 1)])?;
            let (quantized, _) = prepared.convert()?;
            quantized.run(&[noise(&[3, 4], 1)])?;
            Ok(())
        };
        match (called(), c.error) {
            (Ok(()), None) => {}
            (Err(e), Some(parts)) if parts.iter().all(|p| e.to_string().contains(p)) => {}
            (found, want) => failures.push(format!("{:?}: {found:?}, not {want:?}", c.order)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn dynamic_quantization_goes_through_the_trace() {
    let model = Sequential::new().then(LSTM::new(6, 8)).then(Linear::new(8, 3));
    let weights = Weights::initialized(&model, 2).unwrap();
    let x = [noise(&[7, 2, 6], 4)];
    let graph = trace(&model, &weights, &[("x", Fact::of(&x[0]))]).unwrap();
    let want = run(&model, &weights, &x).unwrap();
    let dynamic = quantize_dynamic(&graph, &[], Format::INT8).unwrap().graph;
    assert!(dynamic.applied().any(|(_, _, op, _)| op.name() == "MatMulInteger"), "{dynamic:?}");
    let session = Session::compile(&dynamic).unwrap();
    close(&session.run(&x).unwrap()[0], &want[0], Tolerance { relative: 0.0, absolute: 0.05, steps: 0 })
        .unwrap();
}

#[test]
fn fusing_keeps_outputs() {
    let block = |modules: Vec<(&'static str, Box<dyn Module>)>| {
        modules.into_iter().fold(Sequential::new(), |all, (name, module)| all.then_named(name, module))
    };
    let lines = || noise(&[2, 4, 9], 1);
    let cases: Vec<(Sequential, &[&str], Tensor)> = vec![
        (block(vec![("a", Box::new(Conv1d::new(4, 6, 3))), ("b", Box::new(ReLU))]), &["a", "b"], lines()),
        (
            block(vec![
                ("a", Box::new(Conv1d::new(4, 6, 3).groups(2))),
                ("b", Box::new(BatchNorm1d::new(6))),
            ]),
            &["a", "b"],
            lines(),
        ),
        (
            block(vec![
                ("a", Box::new(Conv2d::new(1, 3, 2).bias(false))),
                ("b", Box::new(BatchNorm2d::new(3).eps(0.1))),
                ("c", Box::new(ReLU)),
            ]),
            &["a", "b", "c"],
            noise(&[2, 1, 5, 5], 1),
        ),
        (block(vec![("a", Box::new(Linear::new(9, 5))), ("b", Box::new(ReLU))]), &["a", "b"], lines()),
        (
            block(vec![("a", Box::new(Linear::new(9, 5))), ("b", Box::new(BatchNorm1d::new(5)))]),
            &["a", "b"],
            noise(&[3, 9], 1),
        ),
        (
            block(vec![
                ("a", Box::new(ConvTranspose1d::new(4, 5, 3).stride(2))),
                ("b", Box::new(BatchNorm1d::new(5))),
            ]),
            &["a", "b"],
            lines(),
        ),
        (block(vec![("a", Box::new(BatchNorm1d::new(4))), ("b", Box::new(ReLU))]), &["a", "b"], lines()),
    ];
    let mapping = QConfigMapping::default();
    for (i, (model, group, x)) in cases.into_iter().enumerate() {
        let mut weights = Weights::initialized(&model, i as u64).unwrap();
        for p in named_parameters(&model).into_iter().filter(|p| p.shape.len() == 1) {
            let spread = Init::Uniform { bound: 0.5 }.values(&p.name, &p.shape, 7).unwrap().to_f32().unwrap();
            weights.insert(&p.name, Tensor::vector(spread.iter().map(|x| x + 1.0).collect::<Vec<f32>>()));
        }
        let want = run(&model, &weights, std::slice::from_ref(&x)).unwrap();
        let fused = fuse_modules(&model, &weights, &[group]).unwrap();
        assert_eq!(fused.weights().get("b.running_mean"), None, "case {i}");
        let y = prepare(&model, fused, &mapping).unwrap().observe(&[x]).unwrap();
        close(&y[0], &want[0], Tolerance { relative: 1e-5, absolute: 1e-5, steps: 0 }).unwrap();
    }
}

/// Operators of quantized values one after another.
struct Functionals {
    quant: QuantStub,
    f: ModuleList<FloatFunctional>,
    sigmoid: Sigmoid,
    tanh: Tanh,
    hardswish: Hardswish,
    pool: AvgPool1d,
    relu: ReLU,
    dequant: DeQuantStub,
}

impl Module for Functionals {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let x = g.call("quant", &self.quant, x)?;
        let y = g.enter("f.0", |g| self.f[0].add(g, x, x))?;
        let y = g.enter("f.1", |g| self.f[1].mul(g, x, y))?;
        let z = g.call("sigmoid", &self.sigmoid, x)?;
        let y = g.enter("f.2", |g| self.f[2].cat(g, &[y, z], 1))?;
        let y = g.enter("f.3", |g| self.f[3].add_scalar(g, y, 0.5))?;
        let y = g.enter("f.4", |g| self.f[4].mul_scalar(g, y, -2.0))?;
        let y = g.call("tanh", &self.tanh, y)?;
        let t = g.permute(y, &[0, 2, 1])?;
        let y = g.enter("f.5", |g| self.f[5].matmul(g, y, t))?;
        let y = g.call("hardswish", &self.hardswish, y)?;
        let y = g.call("pool", &self.pool, y)?;
        let y = g.call("relu", &self.relu, y)?;
        g.call("dequant", &self.dequant, y)
    }

    fn children(&self) -> Children<'_> {
        children!(self; quant, f, sigmoid, tanh, hardswish, pool, relu, dequant)
    }
}

#[test]
fn operators_without_weights_have_ranges_of_their_own_and_run_in_integers() {
    let model = Functionals {
        quant: QuantStub,
        f: ModuleList::new((0..6).map(|_| FloatFunctional)),
        sigmoid: Sigmoid::default(),
        tanh: Tanh::default(),
        hardswish: Hardswish::default(),
        pool: AvgPool1d::new(2),
        relu: ReLU,
        dequant: DeQuantStub,
    };
    let (weights, x) = (Weights::default(), [noise(&[2, 3, 4], 8)]);
    let mapping = QConfigMapping::global(preset("onednn").unwrap());
    let mut prepared = prepare(&model, weights.clone().into(), &mapping).unwrap();
    let want = prepared.observe(&x).unwrap();
    let (quantized, _) = prepared.convert().unwrap();
    assert_eq!(want, run(&model, &weights, &x).unwrap());
    let sigmoid = quantized.output("sigmoid").unwrap().unwrap();
    assert_eq!((sigmoid.scale[0], sigmoid.zero_point[0]), (1.0 / 255.0, 0));
    let y = quantized.run(&x).unwrap();
    close(&y[0], &want[0], Tolerance { relative: 0.02, absolute: 0.05, steps: 0 }).unwrap();
    let session = Session::compile(&quantized.trace(&[("x", Fact::of(&x[0]))]).unwrap()).unwrap();
    let step = quantized.output("relu").unwrap().unwrap().scale[0];
    close(&session.run(&x).unwrap()[0], &y[0], Tolerance { relative: 0.0, absolute: 2.01 * step, steps: 0 })
        .unwrap();
    // Pooling of lines is left in float.
    let in_float: Vec<&str> = session.report().fallbacks.iter().map(|f| f.node.as_str()).collect();
    assert_eq!(in_float, ["pool"]);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.safetensors");
    quantized.save(&path).unwrap();
    assert_eq!(Quantized::load(&path, &model, &[]).unwrap().run(&x).unwrap(), y);
}

#[test]
fn prepared_models_are_trained_as_graphs_are() {
    let mapping = QConfigMapping::global(preset("onednn").unwrap());
    let (_, weights) = classifier();
    let prepared = observed(&mapping);
    let qat = Qat::of_model(&prepared, &weights, &[("x", images())], QatOptions::default()).unwrap();
    let x = [noise(&[5, 3, 8, 8], 9)];
    let want = prepared.convert().unwrap().0.run(&x).unwrap();
    let tolerance = Tolerance { relative: 1e-3, absolute: 0.02, steps: 0 };
    // A network ends before its softmax.
    let scores = qat.simulation().unwrap().run(&x).unwrap();
    let head = SoftmaxOp { log: true, ..SoftmaxOp::new(-1) };
    close(&head.eval(&[&scores[0]]).unwrap()[0], &want[0], tolerance).unwrap();
    close(&qat.convert().unwrap().graph.run(&x).unwrap()[0], &want[0], tolerance).unwrap();
}

#[test]
fn what_is_trained_has_the_names_of_the_module() {
    let (model, weights) = classifier();
    let graph = trace(&model, &weights, &[("x", images())]).unwrap();
    let mut network = Network::of(&graph).unwrap();
    let mut found = network.parameters().to_vec();
    let mut all: Vec<String> =
        named_parameters(&model).into_iter().filter(|p| p.trained).map(|p| p.name).collect();
    found.sort();
    all.sort();
    assert_eq!(found, all);
    let step = network.step(&[noise(&[4, 3, 8, 8], 0)]).unwrap();
    let gradient = noise(step.outputs[0].shape(), 1);
    let gradients = step.back(vec![Some(gradient)]).unwrap();
    assert!(gradients.iter().all(Option::is_some));
    let trained = Weights::of_graph(&network.written_to(&graph).unwrap(), &model).unwrap();
    assert_eq!(trained.get("block.fc.weight"), weights.get("block.fc.weight"));
    // The step moved the statistics.
    assert_ne!(trained.get("block.bn1.running_mean"), weights.get("block.bn1.running_mean"));
}
