//! Forward and backward passes of the layers of ResNet-20 (32x32 images, 128 of
//! them) and ResNet-18 (64x64, 16 of them): an item is one floating-point
//! operation of a convolution, or one cell of a normalization.
//!
//!     RAYON_NUM_THREADS=2 cargo bench -p lowbit --bench backward

use divan::Bencher;
use divan::counter::ItemsCount;
use lowbit::Tensor;
use lowbit::op::{Fact, Op, Reverse};
use lowbit::ops::conv::Conv;
use lowbit::ops::norm::BatchNormalization;
use lowbit::ops::pool::{MaxPool, Pool};
use lowbit::ops::window::{Padding, Window};

fn main() {
    divan::main();
}

struct Case {
    name: &'static str,
    x: [usize; 4],
    w: [usize; 4],
    stride: usize,
    group: usize,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const fn case(name: &'static str, x: [usize; 4], w: [usize; 4], stride: usize) -> Case {
    Case { name, x, w, stride, group: x[1] / w[1] }
}

const CASES: [Case; 17] = [
    case("resnet20 stem 3-16@32", [128, 3, 32, 32], [16, 3, 3, 3], 1),
    case("resnet20 16@32", [128, 16, 32, 32], [16, 16, 3, 3], 1),
    case("resnet20 16-32@32s2", [128, 16, 32, 32], [32, 16, 3, 3], 2),
    case("resnet20 32@16", [128, 32, 16, 16], [32, 32, 3, 3], 1),
    case("resnet20 32-64@16s2", [128, 32, 16, 16], [64, 32, 3, 3], 2),
    case("resnet20 64@8", [128, 64, 8, 8], [64, 64, 3, 3], 1),
    case("resnet18 stem 7x7s2", [16, 3, 64, 64], [64, 3, 7, 7], 2),
    case("resnet18 64@16", [16, 64, 16, 16], [64, 64, 3, 3], 1),
    case("resnet18 64-128@16s2", [16, 64, 16, 16], [128, 64, 3, 3], 2),
    case("resnet18 1x1 64-128@16s2", [16, 64, 16, 16], [128, 64, 1, 1], 2),
    case("resnet18 128@8", [16, 128, 8, 8], [128, 128, 3, 3], 1),
    case("resnet18 128-256@8s2", [16, 128, 8, 8], [256, 128, 3, 3], 2),
    case("resnet18 256@4", [16, 256, 4, 4], [256, 256, 3, 3], 1),
    case("resnet18 256-512@4s2", [16, 256, 4, 4], [512, 256, 3, 3], 2),
    case("resnet18 512@2", [16, 512, 2, 2], [512, 512, 3, 3], 1),
    case("depthwise 96@28", [16, 96, 28, 28], [96, 1, 3, 3], 1),
    case("depthwise 96@56s2", [16, 96, 56, 56], [96, 1, 3, 3], 2),
];

fn tensor(shape: &[usize]) -> Tensor {
    let x = (0..shape.iter().product()).map(|i: usize| (i * 7 % 17) as f32 - 8.0);
    Tensor::new(shape, x.collect::<Vec<f32>>()).unwrap()
}

fn conv(case: &Case) -> Conv {
    let padding = Padding::Explicit(vec![(case.w[2] / 2, case.w[2] / 2); 2]);
    let window = Window { strides: vec![case.stride; 2], padding, ..Window::default() };
    Conv { window, group: case.group, kernel: None }
}

#[divan::bench(args = CASES, min_time = 0.3)]
fn forward(bencher: Bencher, case: &Case) {
    let (op, x, w) = (conv(case), tensor(&case.x), tensor(&case.w));
    let y = op.infer(&[&Fact::of(&x), &Fact::of(&w)]).unwrap();
    let macs = op.macs(&[&Fact::of(&x), &Fact::of(&w)], &[&y[0]]);
    bencher.counter(ItemsCount::new(2 * macs)).bench_local(|| op.eval(&[&x, &w]).unwrap());
}

fn backward(bencher: Bencher, case: &Case, wanted: [bool; 2]) {
    let (op, x, w) = (conv(case), tensor(&case.x), tensor(&case.w));
    let y = op.eval(&[&x, &w]).unwrap().remove(0);
    let macs = op.macs(&[&Fact::of(&x), &Fact::of(&w)], &[&Fact::of(&y)]);
    let gradients = [Some(tensor(y.shape()))];
    let at = Reverse { inputs: &[&x, &w], outputs: &[&y], gradients: &gradients, wanted: &wanted };
    bencher.counter(ItemsCount::new(2 * macs)).bench_local(|| op.vjp(&at).unwrap());
}

#[divan::bench(args = CASES, min_time = 0.3)]
fn by_input(bencher: Bencher, case: &Case) {
    backward(bencher, case, [true, false]);
}

#[divan::bench(args = CASES, min_time = 0.3)]
fn by_weight(bencher: Bencher, case: &Case) {
    backward(bencher, case, [false, true]);
}

const NORMALIZED: [[usize; 4]; 3] = [[128, 16, 32, 32], [16, 64, 32, 32], [16, 512, 2, 2]];

#[divan::bench(args = NORMALIZED, min_time = 0.3)]
fn batch_normalization(bencher: Bencher, shape: &[usize; 4]) {
    normalization(bencher, shape, false);
}

#[divan::bench(args = NORMALIZED, min_time = 0.3)]
fn batch_normalization_backward(bencher: Bencher, shape: &[usize; 4]) {
    normalization(bencher, shape, true);
}

fn normalization(bencher: Bencher, shape: &[usize; 4], backward: bool) {
    let op = BatchNormalization { epsilon: 1e-5, training: Some(0.9) };
    let (x, p) = (tensor(shape), Tensor::full(&shape[1..2], 1f32).unwrap());
    let inputs = [&x, &p, &p, &p, &p];
    let gradients = [Some(tensor(shape)), None, None];
    let bencher = bencher.counter(ItemsCount::new(x.len()));
    if !backward {
        return bencher.bench_local(|| op.eval(&inputs).unwrap());
    }
    let wanted = [true, true, true, false, false];
    let at = Reverse { inputs: &inputs, outputs: &[], gradients: &gradients, wanted: &wanted };
    bencher.bench_local(|| op.vjp(&at).unwrap());
}

#[divan::bench(min_time = 0.3)]
fn max_pool_backward(bencher: Bencher) {
    let window =
        Window { strides: vec![2, 2], padding: Padding::Explicit(vec![(1, 1); 2]), ..Window::default() };
    let op = MaxPool { pool: Pool { kernel: vec![3, 3], window, ceil: false } };
    let x = tensor(&[16, 64, 32, 32]);
    let y = op.eval(&[&x]).unwrap().remove(0);
    let gradients = [Some(tensor(y.shape()))];
    let at = Reverse { inputs: &[&x], outputs: &[&y], gradients: &gradients, wanted: &[true] };
    bencher.bench_local(|| op.vjp(&at).unwrap());
}
