//! Modules give what torch.nn's give, with parameters that PyTorch saved (`tests/golden/nn_modules.py`).

mod compare;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use compare::{Tolerance, close};
use lowbit::data::npz;
use lowbit::graph::Var;
use lowbit::nn::*;
use lowbit::op::{Dim, Fact};
use lowbit::{DType, Result, Tensor, onnx};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/nn").join(name)
}

/// The modules of the script, in its order.
fn modules() -> ModuleDict<Box<dyn Module>> {
    let max = |mode| EmbeddingBag::new(7, 3, mode);
    let mut all: Vec<(&str, Box<dyn Module>)> = vec![];
    macro_rules! cases {
        ($($name:ident: $module:expr;)*) => { $(all.push((stringify!($name), Box::new($module)));)* };
    }
    cases! {
        linear: Linear::new(5, 3);
        linear_3d: Linear::new(5, 3).bias(false);
        linear_1d: Linear::new(5, 3);
        bilinear: Bilinear::new([3, 4], 5);
        conv1d: Conv1d::new(4, 6, 3).stride(2).padding(1);
        conv2d: Conv2d::new(4, 6, [3, 2]).stride([2, 1]).padding([1, 0]).dilation([1, 2]).groups(2);
        conv2d_no_bias: Conv2d::new(4, 3, 1).bias(false);
        conv3d: Conv3d::new(2, 3, [2, 3, 3]).stride([1, 2, 1]).padding(1);
        conv_transpose1d: ConvTranspose1d::new(4, 3, 3).stride(2).padding(1).output_padding(1);
        conv_transpose2d: ConvTranspose2d::new(4, 6, [3, 2])
            .stride([2, 3]).padding([1, 0]).output_padding([1, 2]).groups(2).dilation(2);
        conv_transpose3d: ConvTranspose3d::new(2, 3, 2).stride(2).bias(false);
        batch_norm1d: BatchNorm1d::new(4);
        batch_norm1d_rows: BatchNorm1d::new(4).eps(1e-3);
        batch_norm2d: BatchNorm2d::new(4);
        batch_norm3d: BatchNorm3d::new(2);
        layer_norm: LayerNorm::new(&[9]);
        layer_norm_2: LayerNorm::new(&[7, 8]).eps(1e-3);
        layer_norm_plain: LayerNorm::new(&[9]).elementwise_affine(false);
        group_norm: GroupNorm::new(2, 4);
        group_norm_plain: GroupNorm::new(4, 4).affine(false);
        instance_norm1d: InstanceNorm1d::new(4);
        instance_norm2d: InstanceNorm2d::new(4).affine(true);
        instance_norm3d: InstanceNorm3d::new(2).eps(1e-2);
        embedding: Embedding::new(7, 3).padding_idx(2);
        bag_sum: max(BagMode::Sum);
        bags_sum: max(BagMode::Sum);
        bag_mean: max(BagMode::Mean);
        bags_mean: max(BagMode::Mean);
        bag_max: max(BagMode::Max);
        bags_max: max(BagMode::Max);
        lstm: LSTM::new(4, 3);
        lstm_deep: LSTM::new(4, 3).num_layers(2).bidirectional(true).batch_first(true);
        lstm_no_bias: LSTM::new(4, 3).num_layers(2).bias(false);
        gru: GRU::new(4, 3).bidirectional(true);
        gru_deep: GRU::new(4, 3).num_layers(2).batch_first(true);
        rnn: RNN::new(4, 3);
        rnn_relu: RNN::new(4, 3).relu(true).num_layers(2).bidirectional(true);
        lstm_cell: LSTMCell::new(4, 3);
        gru_cell: GRUCell::new(4, 3);
        rnn_cell: RNNCell::new(4, 3).bias(false);
        rnn_cell_relu: RNNCell::new(4, 3).relu(true);
        attention: MultiheadAttention::new(8, 2);
        attention_batch_first: MultiheadAttention::new(8, 4).bias(false).batch_first(true);
        attention_features: MultiheadAttention::new(8, 2).key_and_value_features(6, 4);
        relu: ReLU;
        relu6: ReLU6::default();
        leaky_relu: LeakyReLU { negative_slope: 0.2 };
        elu: ELU { alpha: 0.5 };
        prelu: PReLU::new(4);
        prelu_one: PReLU::default();
        gelu: GELU::default();
        gelu_tanh: GELU { tanh: true };
        silu: SiLU;
        hardswish: Hardswish::default();
        hardsigmoid: Hardsigmoid::default();
        sigmoid: Sigmoid::default();
        tanh: Tanh::default();
        softmax: Softmax { dim: 1 };
        log_softmax: LogSoftmax::default();
        max_pool1d: MaxPool1d::new(3).stride(2);
        max_pool2d: MaxPool2d::new(3).stride(2).padding(1).ceil_mode(true);
        max_pool2d_dilated: MaxPool2d::new([2, 3]).stride(1).dilation([2, 1]);
        max_pool3d: MaxPool3d::new(2);
        avg_pool1d: AvgPool1d::new(3).stride(2).padding(1);
        avg_pool2d: AvgPool2d::new(3).stride(2).padding(1).ceil_mode(true);
        avg_pool2d_alone: AvgPool2d::new(3).stride(2).padding(1).count_include_pad(false);
        avg_pool3d: AvgPool3d::new([2, 1, 3]);
        adaptive_avg_pool1d: AdaptiveAvgPool1d::new(3);
        adaptive_avg_pool2d: AdaptiveAvgPool2d::new(1);
        adaptive_avg_pool2d_parts: AdaptiveAvgPool2d::new([7, 4]);
        adaptive_avg_pool3d: AdaptiveAvgPool3d::new(1);
        adaptive_max_pool2d: AdaptiveMaxPool2d::new(1);
        adaptive_max_pool2d_parts: AdaptiveMaxPool2d::new([1, 2]);
        upsample: Upsample::scale(&[2.0]);
        upsample_size: Upsample::size(&[10, 19]);
        upsample_linear: Upsample::scale(&[2.0]).linear(false);
        upsample_bilinear: Upsample::scale(&[1.5, 2.0]).linear(false);
        upsample_corners: Upsample::size(&[10, 12]).linear(true);
        flatten: Flatten::default();
        flatten_middle: Flatten { start_dim: 1, end_dim: 2 };
        flatten_from_0: Flatten { start_dim: 0, end_dim: 1 };
        dropout: Dropout { p: 0.3 };
        identity: Identity;
        sequential: Sequential::new().then(Linear::new(9, 5)).then(ReLU).then(Linear::new(5, 2));
    }
    ModuleDict::new(all)
}

/// One module of the dictionary.
struct One<'a> {
    of: &'a ModuleDict<Box<dyn Module>>,
    name: String,
}

impl Module for One<'_> {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        Ok(self.forward_all(g, &[x])?[0])
    }

    fn forward_all(&self, g: &mut Scope<'_>, inputs: &[Var]) -> Result<Vec<Var>> {
        g.call_all(&self.name, &self.of.get(&self.name).unwrap(), inputs)
    }

    fn children(&self) -> Children<'_> {
        vec![(self.name.clone(), self.of.get(&self.name).unwrap())]
    }
}

/// Inputs and outputs of each case.
fn cases() -> BTreeMap<String, [Vec<Tensor>; 2]> {
    let mut cases: BTreeMap<String, [Vec<Tensor>; 2]> = BTreeMap::new();
    for (name, t) in npz::read(&golden("modules.npz")).unwrap() {
        let (case, operand) = name.split_once('/').unwrap();
        let operands = &mut cases.entry(case.into()).or_default()[usize::from(operand.starts_with('y'))];
        assert_eq!(operand[1..].parse(), Ok(operands.len()), "{name}");
        operands.push(t);
    }
    cases
}

const TOLERANCE: Tolerance = Tolerance { relative: 1e-4, absolute: 1e-5, steps: 0 };

#[test]
fn outputs_are_those_of_torch() {
    let modules = modules();
    let weights = Weights::load(&golden("modules.safetensors"), &modules).unwrap();
    let cases = cases();
    assert_eq!(cases.keys().collect::<Vec<_>>().len(), modules.iter().count());
    let mut failures = vec![];
    for (name, [inputs, want]) in &cases {
        let one = One { of: &modules, name: name.clone() };
        let compare = |how: &str, found: Result<Vec<Tensor>>, failures: &mut Vec<String>| match found {
            Err(e) => failures.push(format!("{how}: {e}")),
            Ok(found) => {
                for (i, (found, want)) in found.iter().zip(want).enumerate() {
                    if let Err(e) = close(found, want, TOLERANCE) {
                        failures.push(format!("{name} output {i}, {how}: {e}"));
                    }
                }
                if found.len() < want.len() {
                    failures.push(format!("{name} has {} outputs, {how}", found.len()));
                }
            }
        };
        let wanted: Vec<Tensor> = run(&one, &weights, inputs).unwrap_or_default();
        compare("eager", run(&one, &weights, inputs), &mut failures);
        let fixed: Vec<(String, Fact)> =
            inputs.iter().enumerate().map(|(i, t)| (format!("x{i}"), Fact::of(t))).collect();
        let traced = |facts: &[(String, Fact)]| {
            let facts: Vec<(&str, Fact)> = facts.iter().map(|(n, f)| (n.as_str(), f.clone())).collect();
            trace(&one, &weights, &facts)
        };
        let unknown = |f: &Fact| Fact { sizes: None, ..f.clone() };
        let fixed: Vec<(String, Fact)> = fixed.iter().map(|(n, f)| (n.clone(), unknown(f))).collect();
        compare("traced", traced(&fixed).and_then(|g| g.run(inputs)), &mut failures);
        // Any number of samples, where the batch comes first.
        let batch_first =
            !["lstm", "lstm_no_bias", "gru", "rnn", "rnn_relu", "attention", "attention_features"]
                .contains(&name.as_str());
        let named = |(n, f): &(String, Fact)| {
            let mut f = f.clone();
            f.shape[0] = Dim::Named("N".into());
            (n.clone(), f)
        };
        if batch_first && inputs.len() == 1 && name != "linear_1d" {
            let named: Vec<_> = fixed.iter().map(named).collect();
            compare("of any batch", traced(&named).and_then(|g| g.run(inputs)), &mut failures);
            if let Ok(graph) = traced(&named) {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("model.onnx");
                let again =
                    onnx::save(&graph, &path).and_then(|()| onnx::load(&path)).and_then(|g| g.run(inputs));
                match again {
                    Ok(again) if again[..] == wanted[..1] => {}
                    Ok(_) => failures.push(format!("{name} gives other values once it is saved")),
                    Err(e) => failures.push(format!("{name}, saved: {e}")),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn first_values_have_the_shapes_and_names_of_torch() {
    let modules = modules();
    let loaded = Weights::load(&golden("modules.safetensors"), &modules).unwrap();
    let drawn = Weights::initialized(&modules, 0).unwrap();
    let entries = |w: &Weights| -> Vec<(String, DType, Vec<usize>)> {
        w.iter()
            .map(|(n, _)| (n.to_string(), w.get(n).unwrap().dtype(), w.get(n).unwrap().shape().to_vec()))
            .collect()
    };
    assert_eq!(entries(&loaded), entries(&drawn));
    assert_eq!(drawn.get("batch_norm2d.num_batches_tracked"), Some(&Tensor::scalar(0i64)));
}

#[test]
fn weights_of_another_module_are_refused_and_all_differences_listed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let saved = Sequential::new().then(Linear::new(3, 2)).then(BatchNorm1d::new(2));
    let weights = Weights::initialized(&saved, 1).unwrap();
    weights.save(&path).unwrap();
    assert_eq!(Weights::load(&path, &saved).unwrap(), weights);
    let other = Sequential::new().then(Linear::new(4, 2)).then(ReLU).then(Linear::new(2, 1).bias(false));
    let e = Weights::load(&path, &other).unwrap_err().to_string();
    for want in
        ["0.weight is f32[2, 3], not f32[2, 4]", "2.weight [1, 2] is missing", "1.running_mean is unexpected"]
    {
        assert!(e.contains(want), "{want}: {e}");
    }
    // PyTorch before 0.4.1 had no such buffer.
    let mut old = Weights::default();
    for (name, _) in weights.iter().filter(|(name, _)| !name.ends_with("num_batches_tracked")) {
        old.insert(name, weights.get(name).unwrap().clone());
    }
    old.save(&path).unwrap();
    assert_eq!(Weights::load(&path, &saved).unwrap(), weights);
}
