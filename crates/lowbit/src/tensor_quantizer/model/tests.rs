use super::*;
use crate::graph::Builder;
use crate::nn;
use crate::op::{Dim, Fact};
use crate::ops::binary::Arithmetic;
use crate::ops::conv::Conv;
use crate::ops::linear::Gemm;
use crate::ops::norm::BatchNormalization;
use crate::ops::pool::GlobalAveragePool;
use crate::ops::quantize::QuantizeLinear;
use crate::ops::shape::Flatten;
use crate::ops::unary::Unary;
use crate::ops::window::{Padding, Window};
use crate::passes::tensorrt_dialect;
use crate::random::values;
use crate::session::Session;
use crate::tensor::DType;
use crate::tensor_quantizer::{Amax, NumBits};
use crate::train::{Learner, Network};

/// A residual block between convolutions with normalizations, average pooling and a
/// linear layer, with PyTorch's names.
fn network() -> Graph {
    let mut b = Builder::default();
    let shape = [Dim::Named("N".into()), Dim::Known(2), Dim::Known(6), Dim::Known(6)];
    let mut x = b.input("x", Fact::new(DType::F32, shape));
    let mut skip = None;
    for (name, channels) in [("conv1", 2usize), ("layer1.0.conv1", 4)] {
        let seed = 10 * channels as u64;
        let constant = |b: &mut Builder, part: &str, t: Tensor| b.constant(&format!("{name}.{part}"), t);
        let weight = constant(&mut b, "weight", values(seed, &[4, channels, 3, 3]));
        let positive: Vec<f32> =
            values(seed + 1, &[4]).to_f32().unwrap().iter().map(|x| x.abs() + 0.5).collect();
        let parts = [
            ("gamma", Tensor::vector(positive.clone())),
            ("beta", values(seed + 2, &[4])),
            ("mean", values(seed + 3, &[4])),
            ("var", Tensor::vector(positive)),
        ];
        let norm: Vec<_> = parts.into_iter().map(|(part, t)| constant(&mut b, part, t)).collect();
        let window = Window { padding: Padding::Explicit(vec![(1, 1); 2]), ..Window::default() };
        let conv = Conv { window, group: 1, kernel: None };
        let y = b.apply(&format!("/{name}/Conv"), Arc::new(conv), &[x, weight]).unwrap();
        let op = BatchNormalization { epsilon: 1e-5, training: None };
        let y = b.apply(&format!("{name}.bn"), Arc::new(op), &[&[y][..], &norm].concat()).unwrap();
        let y = match skip {
            Some(skip) => b.apply("add", Arc::new(Arithmetic::Add), &[y, skip]).unwrap(),
            None => y,
        };
        x = b.apply(&format!("{name}.relu"), Arc::new(Unary::Relu), &[y]).unwrap();
        skip = Some(x);
    }
    x = b.apply("pool", Arc::new(GlobalAveragePool), &[x]).unwrap();
    x = b.apply("flat", Arc::new(Flatten { axis: 1 }), &[x]).unwrap();
    let (weight, bias) = (values(50, &[3, 4]), values(51, &[3]));
    let operands = [x, b.constant("fc.weight", weight), b.constant("fc.bias", bias)];
    let op = Gemm { trans_b: true, ..Gemm::default() };
    x = b.apply("/fc/Gemm", Arc::new(op), &operands).unwrap();
    b.finish([("y".to_string(), x)]).unwrap()
}

fn batch(seed: u64) -> Vec<Tensor> {
    vec![values(1000 + seed, &[8, 2, 6, 6])]
}

fn batches() -> impl Iterator<Item = Result<Vec<Tensor>>> + Send {
    (0..3).map(|seed| Ok(batch(seed)))
}

fn close(a: &[Tensor], b: &[Tensor], tolerance: f32) {
    for (a, b) in a[0].to_f32().unwrap().iter().zip(b[0].to_f32().unwrap()) {
        assert!((a - b).abs() <= tolerance, "{a} and {b}");
    }
}

#[test]
fn every_layer_has_quantizers_and_what_lies_between_is_float() {
    let mut model = QuantizedModel::new(&network(), &QuantModules::initialize()).unwrap();
    let names: Vec<&str> = model.quantizers().map(|(name, _)| name).collect();
    let want = [
        "conv1._input_quantizer",
        "conv1._weight_quantizer",
        "layer1.0.conv1._input_quantizer",
        "layer1.0.conv1._weight_quantizer",
        "pool._input_quantizer",
        "fc._input_quantizer",
        "fc._weight_quantizer",
    ];
    assert_eq!(names, want);
    let error = model.prepared().unwrap_err().to_string();
    assert!(error.contains("conv1._input_quantizer: amax is not known"), "{error}");
    model.calibrate(batches(), AmaxMethod::Entropy, &|_| Ok(())).unwrap();
    assert_eq!(model.quantizer("conv1._weight_quantizer").unwrap().amax().unwrap().len(), 4);
    assert_eq!(model.quantizer("fc._weight_quantizer").unwrap().descriptor().axis, Some(0));

    // The residual addition reads float values: no point lies on the ReLU before it.
    let converted = model.convert().unwrap().graph;
    let (.., operands) = converted.applied().find(|(_, node, ..)| node.name == "add").unwrap();
    for v in operands {
        let Kind::Apply { op, .. } = &converted.node(*v).kind else { panic!("an operand is no result") };
        assert!(matches!(op.name(), "Conv" | "Relu"), "{}", op.name());
    }
    let quantized = converted.applied().filter(|(_, _, op, _)| op.is::<QuantizeLinear>().is_some()).count();
    assert_eq!(quantized, 4);

    let fake = model.fake_quantized().unwrap();
    let dialect = tensorrt_dialect(&converted).unwrap();
    let want = fake.run(&batch(9)).unwrap();
    close(&dialect.run(&batch(9)).unwrap(), &want, 1e-3);
    let session = Session::compile(&dialect).unwrap();
    assert_eq!(session.report().coverage(), 1.0);
    close(&session.run(&batch(9)).unwrap(), &want, 0.05);
    close(&network().run(&batch(9)).unwrap(), &want, 0.3);

    // The mapping alone, which a file can hold, places the same points.
    let text = model.mapping().to_toml().unwrap();
    assert!(text.contains("inputs-only = true"), "{text}");
    let mapping = QConfigMapping::from_toml(&text).unwrap();
    let mut prepared = prepare(&fuse(&network()).unwrap(), &mapping).unwrap();
    prepared.calibrate(batches(), &|_| Ok(())).unwrap();
    close(&prepared.convert().unwrap().graph.run(&batch(9)).unwrap(), &want, 1e-3);
}

#[test]
fn quantizers_are_disabled_and_set_by_name() {
    let modules = QuantModules::initialize().with_rule("fc.*", None).with_rule(
        "layer1.*._input_quantizer",
        Some(QuantDescriptor { amax: Some(Amax::Tensor(1.5)), ..QuantDescriptor::new(4) }),
    );
    let mut model = QuantizedModel::new(&network(), &modules).unwrap();
    let float = network().run(&batch(9)).unwrap();
    model.set("*", TensorQuantizer::disable).unwrap();
    close(&model.fake_quantized().unwrap().run(&batch(9)).unwrap(), &float, 1e-4);
    assert!(
        model
            .collect(batches(), &|_| Ok(()))
            .unwrap_err()
            .to_string()
            .contains("no quantizer is calibrating")
    );
    assert!(model.load_calib_amax(AmaxMethod::Max).unwrap_err().to_string().contains("collected"));

    // Weights alone: no batch is needed.
    model.set("*._weight_quantizer", TensorQuantizer::enable_calib).unwrap();
    model.collect(std::iter::empty(), &|_| Ok(())).unwrap();
    model.load_calib_amax(AmaxMethod::Max).unwrap();
    model.set("*conv1._weight_quantizer", TensorQuantizer::enable_quant).unwrap();
    let converted = model.convert().unwrap().graph;
    assert!(converted.applied().all(|(_, _, op, _)| op.is::<QuantizeLinear>().is_none()));
    let want = model.fake_quantized().unwrap().run(&batch(9)).unwrap();
    close(&converted.run(&batch(9)).unwrap(), &want, 1e-5);

    // One input more, whose weight is float as well.
    model.set("fc._weight_quantizer", TensorQuantizer::disable).unwrap();
    model.quantizer("fc._input_quantizer").unwrap().set_amax(vec![3.0]).unwrap();
    model.quantizer("fc._input_quantizer").unwrap().enable_quant();
    assert_eq!(model.prepared().unwrap().points().len(), 3);
    model.convert().unwrap();

    let layer1 = model.quantizer("layer1.0.conv1._input_quantizer").unwrap();
    assert_eq!((layer1.amax().unwrap(), layer1.descriptor().num_bits), (&[1.5][..], NumBits::Int(4)));
    let error = model.set("layer2.*", TensorQuantizer::disable).unwrap_err().to_string();
    assert!(error.contains("matches no quantizer"), "{error}");
    assert!(model.quantizer("fc").is_err());
    let unknown = QuantModules::initialize().with_rule("layer2.*", None);
    assert!(
        QuantizedModel::new(&network(), &unknown)
            .unwrap_err()
            .to_string()
            .contains("\"layer2.*\" matches no")
    );
    let text = toml::to_string(&modules).unwrap();
    assert_eq!(toml::from_str::<QuantModules>(&text).unwrap(), modules, "{text}");
}

#[test]
fn readers_of_one_value_share_a_point_until_they_differ() {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(4)]));
    let made = ["a", "b"].map(|name| {
        let weight = b.constant(&format!("{name}.weight"), values(name.len() as u64, &[4, 3]));
        b.apply(name, Arc::new(Gemm::default()), &[x, weight]).unwrap()
    });
    let y = b.apply("sum", Arc::new(Arithmetic::Add), &made).unwrap();
    let graph = b.finish([("y".to_string(), y)]).unwrap();
    let mut model = QuantizedModel::new(&graph, &QuantModules::initialize()).unwrap();
    let batches = || (0..2).map(|seed| Ok(vec![values(seed, &[5, 4])]));
    model.calibrate(batches(), AmaxMethod::Max, &|_| Ok(())).unwrap();
    assert_eq!(model.prepared().unwrap().points().len(), 3);
    let [of_a, of_b] = ["a", "b"]
        .map(|name| model.quantizer(&format!("{name}._input_quantizer")).unwrap().amax().unwrap().to_vec());
    assert_eq!(of_a, of_b);
    model.quantizer("b._input_quantizer").unwrap().set_amax(vec![0.5]).unwrap();
    assert_eq!(model.prepared().unwrap().points().len(), 4);
    model.quantizer("a._input_quantizer").unwrap().disable();
    assert_eq!(model.prepared().unwrap().points().len(), 3);
    model.convert().unwrap();
}

/// Gradient descent towards zero outputs.
fn descend(qat: &mut Qat, steps: u64, rate: f32) {
    for step in 0..steps {
        let network: &mut Network = qat.network(step).unwrap();
        let data = batch(step);
        let taken = network.step(&data).unwrap();
        let gradient = taken.outputs[0].clone();
        let by = taken.back(vec![Some(gradient)]).unwrap();
        let names = network.parameters().to_vec();
        for (name, by) in names.iter().zip(by) {
            let (Some(by), Some(t)) = (by, network.values_mut().get_mut(name)) else { continue };
            let moved =
                t.to_f32().unwrap().iter().zip(by.to_f32().unwrap()).map(|(w, g)| w - rate * g).collect();
            *t = Tensor::new(t.shape(), moved).unwrap();
        }
    }
}

#[test]
fn training_keeps_amax_or_learns_it() {
    let float = network();
    for learn_amax in [false, true] {
        let descriptor = QuantDescriptor { learn_amax, ..QuantDescriptor::default() };
        let mut modules = QuantModules::initialize();
        modules.set_default_input(&descriptor);
        let mut model = QuantizedModel::new(&float, &modules).unwrap();
        model.calibrate(batches(), AmaxMethod::Max, &|_| Ok(())).unwrap();
        model
            .set("*._input_quantizer", |q| {
                let half = q.amax().unwrap().iter().map(|a| a / 2.0).collect();
                q.set_amax(half).unwrap();
            })
            .unwrap();
        let mut qat = model.qat(&float, BatchNorm::Frozen).unwrap();
        close(
            &qat.simulation().unwrap().run(&batch(0)).unwrap(),
            &model.fake_quantized().unwrap().run(&batch(0)).unwrap(),
            1e-4,
        );
        descend(&mut qat, 4, 1e-3);
        // Held steps of folded weights serve those that batches normalize.
        let batch_norm = BatchNorm::Batch { frozen_after: 9 };
        descend(&mut model.qat(&float, batch_norm).unwrap(), 2, 1e-3);
        let trained = model.trained(&qat).unwrap();
        let weights = |model: &QuantizedModel| {
            let graph = model.prepared().unwrap();
            let v = graph.graph().find("fc.weight").unwrap();
            graph.graph().constant(v).cloned().unwrap()
        };
        assert_ne!(weights(&trained), weights(&model));
        for ((name, before), (_, after)) in model.quantizers().zip(trained.quantizers()) {
            let moves = learn_amax && name.ends_with("_input_quantizer");
            assert_eq!(before.amax() != after.amax(), moves, "{name}, learn-amax = {learn_amax}");
        }
        let want = qat.convert().unwrap().graph.run(&batch(5)).unwrap();
        close(&trained.convert().unwrap().graph.run(&batch(5)).unwrap(), &want, 1e-5);
        close(&qat.simulation().unwrap().run(&batch(5)).unwrap(), &want, 1e-3);
    }
}

#[test]
fn quantizers_of_a_model_are_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quantizers.json");
    let mut model = QuantizedModel::new(&network(), &QuantModules::initialize()).unwrap();
    model.calibrate(batches(), AmaxMethod::Max, &|_| Ok(())).unwrap();
    model.save(&path).unwrap();
    let mut other = QuantizedModel::new(&network(), &QuantModules::initialize()).unwrap();
    other.load(&path).unwrap();
    assert!(other.quantizers().eq(model.quantizers()));
    let text = fs::read_to_string(&path).unwrap();
    for (from, to, says) in [
        ("pool._input_quantizer", "pool2._input_quantizer", "pool._input_quantizer is missing"),
        (
            "{\"conv1._input",
            "{\"a._input_quantizer\":{\"descriptor\":{},\"state\":\"disabled\"},\"conv1._input",
            "no quantizer \"a._input",
        ),
        ("{", "[", "invalid type"),
    ] {
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let error = other.load(&path).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// A convolution, a transposed one, max pooling and a linear layer on samples of `D` axes.
fn traced<const D: usize>() -> Graph
where
    nn::Conv<D>: nn::Module,
    nn::ConvTranspose<D>: nn::Module,
    nn::MaxPool<D>: nn::Module,
{
    let sizes = |n: usize| [n; D];
    let model = nn::Sequential::new()
        .then_named("conv", nn::Conv::<D>::new(2, 3, sizes(2)))
        .then_named("up", nn::ConvTranspose::<D>::new(3, 2, sizes(2)))
        .then_named("relu", nn::ReLU)
        .then_named("pool", nn::MaxPool::<D>::new(sizes(2)))
        .then_named("flat", nn::Flatten::default())
        .then_named("fc", nn::Linear::new(2 * 2usize.pow(D as u32), 3));
    let weights = nn::Weights::initialized(&model, 1).unwrap();
    let shape = [Dim::Named("N".into()), Dim::Known(2)].into_iter().chain(sizes(4).map(Dim::Known));
    nn::trace(&model, &weights, &[("x", Fact::new(DType::F32, shape))]).unwrap()
}

#[test]
fn layers_of_every_type_are_found_in_models_written_in_rust() {
    let graphs = [traced::<1>(), traced::<2>(), traced::<3>()];
    for (d, graph) in (1..).zip(graphs) {
        let mut modules = QuantModules::initialize();
        modules.set(LayerKind::MaxPool, QuantDescriptor::default(), QuantDescriptor::default());
        let mut model = QuantizedModel::new(&graph, &modules).unwrap();
        let names: Vec<&str> = model.quantizers().map(|(name, _)| name).collect();
        let want = [
            "conv._input_quantizer",
            "conv._weight_quantizer",
            "up._input_quantizer",
            "up._weight_quantizer",
            "pool._input_quantizer",
            "fc._input_quantizer",
            "fc._weight_quantizer",
        ];
        assert_eq!(names, want, "{d} axes");
        let shape: Vec<usize> = [3, 2].into_iter().chain(std::iter::repeat_n(4, d)).collect();
        let batches = || (0..2).map(|seed| Ok(vec![values(seed, &shape)]));
        model.calibrate(batches(), AmaxMethod::Max, &|_| Ok(())).unwrap();
        for (name, axis, channels) in [("conv", 0, 3), ("up", 1, 2), ("fc", 0, 3)] {
            let weight = model.quantizer(&format!("{name}._weight_quantizer")).unwrap();
            assert_eq!(
                (weight.descriptor().axis, weight.amax().unwrap().len()),
                (Some(axis), channels),
                "{name}"
            );
        }
        let x = [values(7, &shape)];
        let want = model.fake_quantized().unwrap().run(&x).unwrap();
        let dialect = tensorrt_dialect(&model.convert().unwrap().graph).unwrap();
        close(&dialect.run(&x).unwrap(), &want, 1e-3);
        let session = Session::compile(&dialect).unwrap();
        close(&session.run(&x).unwrap(), &want, 0.05);
        close(&graph.run(&x).unwrap(), &want, 0.1);
    }
}
