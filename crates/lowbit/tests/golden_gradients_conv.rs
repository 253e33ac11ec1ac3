//! Gradients of convolutions, products, normalizations and pools are those of
//! PyTorch in double precision (`tests/golden/gradients_conv.py`), and do not
//! depend on the number of threads.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use lowbit::Tensor;
use lowbit::data::npz;
use lowbit::graph::Builder;
use lowbit::op::{Fact, Op};
use lowbit::ops::conv::Conv;
use lowbit::ops::conv_transpose::ConvTranspose;
use lowbit::ops::linear::{Gemm, MatMul};
use lowbit::ops::norm::{
    BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization, Lrn,
};
use lowbit::ops::pool::{AveragePool, GlobalAveragePool, MaxPool, Pool};
use lowbit::ops::resize::{Coordinates, Mode, Nearest, Resize, Target};
use lowbit::ops::window::{Padding, Window};

fn window(strides: &[usize], dilations: &[usize], pads: &[usize]) -> Window {
    let padding = Padding::Explicit(pads.iter().map(|&p| (p, p)).collect());
    Window { strides: strides.to_vec(), dilations: dilations.to_vec(), padding }
}

fn conv(strides: &[usize], dilations: &[usize], pads: &[usize], group: usize) -> Arc<dyn Op> {
    Arc::new(Conv { window: window(strides, dilations, pads), group, kernel: None })
}

fn transposed(pads: &[usize], group: usize, extra: &[usize]) -> Arc<dyn Op> {
    let window = window(&[2, 2], &[], pads);
    let output_padding = extra.to_vec();
    Arc::new(ConvTranspose { window, group, kernel: None, output_padding, output_shape: None })
}

fn pool(kernel: &[usize], strides: &[usize], dilations: &[usize], pads: &[usize]) -> Pool {
    Pool { kernel: kernel.to_vec(), window: window(strides, dilations, pads), ceil: false }
}

fn resize(mode: Mode, coordinates: Coordinates, scale: f32) -> Arc<dyn Op> {
    let target = Target::Scales(vec![1.0, 1.0, scale, scale]);
    Arc::new(Resize { mode, coordinates, axes: None, target })
}

/// The operators of the cases. Operands that torch has no gradient by, the moments
/// that training starts from, are given.
fn operators() -> Vec<(&'static str, Arc<dyn Op>)> {
    let epsilon = 1e-5;
    let layer = |centred| Arc::new(LayerNormalization { axis: -1, epsilon, centred });
    let average = |pool, include_padding| Arc::new(AveragePool { pool, include_padding });
    let cubic = Mode::Cubic { a: -0.75, exclude_outside: false };
    vec![
        ("conv_3x3", conv(&[], &[], &[1, 1], 1)),
        ("conv_3x3_small", conv(&[], &[], &[1, 1], 1)),
        ("conv_1x1", conv(&[], &[], &[], 1)),
        ("conv_1x1_stride_2", conv(&[2, 2], &[], &[], 1)),
        ("conv_7x7_stride_2", conv(&[2, 2], &[], &[3, 3], 1)),
        ("conv_3x3_stride_2", conv(&[2, 2], &[], &[1, 1], 1)),
        ("conv_dilated", conv(&[2, 3], &[2, 1], &[2, 1], 1)),
        ("conv_grouped", conv(&[], &[], &[1, 1], 2)),
        ("conv_depthwise", conv(&[], &[], &[1, 1], 7)),
        ("conv_depthwise_stride_2", conv(&[2, 2], &[], &[2, 2], 5)),
        ("conv_line", conv(&[2], &[], &[4], 1)),
        ("conv_volume", conv(&[], &[], &[1, 1, 1], 1)),
        ("transposed", transposed(&[1, 1], 1, &[1, 1])),
        ("transposed_grouped", transposed(&[], 2, &[])),
        ("gemm", Arc::new(Gemm { alpha: 0.5, beta: 2.0, trans_a: false, trans_b: true })),
        ("gemm_transposed", Arc::new(Gemm { trans_a: true, ..Gemm::default() })),
        ("matmul_stack", Arc::new(MatMul)),
        ("matmul_broadcast", Arc::new(MatMul)),
        ("batch_norm", Arc::new(BatchNormalization { epsilon, training: None })),
        ("batch_norm_training", Arc::new(BatchNormalization { epsilon, training: Some(0.9) })),
        ("instance_norm", Arc::new(InstanceNormalization { epsilon })),
        ("layer_norm", layer(true)),
        ("rms_norm", layer(false)),
        ("group_norm", Arc::new(GroupNormalization { groups: 2, per_group: false, epsilon })),
        ("lrn", Arc::new(Lrn { alpha: 0.5, beta: 0.75, bias: 2.0, size: 5 })),
        ("max_pool", Arc::new(MaxPool { pool: pool(&[3, 3], &[2, 2], &[], &[1, 1]) })),
        ("max_pool_dilated", Arc::new(MaxPool { pool: pool(&[2, 3], &[], &[2, 1], &[1, 1]) })),
        ("average_pool", average(pool(&[3, 3], &[2, 2], &[], &[1, 1]), false)),
        ("average_pool_padded", average(pool(&[2, 2], &[2, 2], &[], &[1, 1]), true)),
        ("global_average_pool", Arc::new(GlobalAveragePool)),
        ("resize_linear", resize(Mode::Linear, Coordinates::HalfPixel, 2.0)),
        ("resize_cubic", resize(cubic, Coordinates::HalfPixel, 2.0)),
        ("resize_nearest", resize(Mode::Nearest(Nearest::Floor), Coordinates::Asymmetric, 3.0)),
    ]
}

type Arrays = HashMap<String, Tensor>;

fn arrays() -> Arrays {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gradients_conv.npz");
    npz::read(&path).unwrap().into_iter().collect()
}

/// The gradients by the operands of a graph of one node.
fn gradients(name: &str, op: &Arc<dyn Op>, arrays: &Arrays) -> Vec<Tensor> {
    let operands: Vec<Tensor> = (0..).map_while(|i| arrays.get(&format!("{name}.x{i}")).cloned()).collect();
    let mut b = Builder::default();
    let mut inputs: Vec<_> =
        operands.iter().enumerate().map(|(i, x)| b.input(&format!("x{i}"), Fact::of(x))).collect();
    if name == "batch_norm_training" {
        let moments =
            ["mean", "var"].map(|m| b.constant(m, Tensor::full(operands[1].shape(), 1f32).unwrap()));
        inputs.extend(moments);
    }
    let y = b.apply_all("y", op.clone(), &inputs, &["y"]).unwrap()[0];
    let graph = b.finish([("y".to_string(), y)]).unwrap();
    let wanted: Vec<_> = (0..operands.len()).map(|i| graph.find(&format!("x{i}")).unwrap()).collect();
    let tape = graph.record(&operands, &wanted).unwrap();
    let dy = arrays[&format!("{name}.dy")].clone();
    let made = tape.backward([(graph.find("y").unwrap(), dy)]).unwrap();
    made.into_iter().map(|g| g.expect(name)).collect()
}

#[test]
fn gradients_are_those_of_torch() {
    let arrays = arrays();
    let (mut failures, mut compared) = (vec![], 0);
    for (name, op) in operators() {
        for (i, got) in gradients(name, &op, &arrays).iter().enumerate() {
            compared += 1;
            let want = &arrays[&format!("{name}.d{i}")];
            assert_eq!(got.shape(), want.shape(), "{name} by operand {i}");
            let (got, want): (&[f32], &[f32]) = (got.slice().unwrap(), want.slice().unwrap());
            let most = want.iter().fold(0f32, |most, x| most.max(x.abs()));
            let mut pairs = got.iter().zip(want);
            if let Some((got, want)) =
                pairs.find(|(a, b)| (**a - **b).abs().total_cmp(&(1e-5 * most)).is_gt())
            {
                failures.push(format!("{name} by operand {i}: {got}, not {want}, of {most} at most"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(compared, arrays.keys().filter(|k| k.contains(".d") && !k.ends_with(".dy")).count());
}

#[test]
fn threads_do_not_change_gradients() {
    let arrays = arrays();
    let all = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| operators().iter().map(|(name, op)| gradients(name, op, &arrays)).collect::<Vec<_>>())
    };
    let (one, four) = (all(1), all(4));
    for (((name, _), one), four) in operators().iter().zip(one).zip(four) {
        assert!(one == four, "{name}");
    }
}
