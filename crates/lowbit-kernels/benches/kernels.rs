//! Throughput per instruction set: items are multiply-adds for products, bytes
//! are those read and written for the rest.

use std::{fmt, iter};

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use lowbit_kernels::{
    CodeValues, Grid, Kernels, LowBitRows, LowBitShape, LowBitWeights, Matrix, MatrixMut, Output,
    PackedDepthwise, PackedWeights, Panels, Product, Requant, Right, Rows, Window, Windows,
};

fn main() {
    divan::main();
}

struct Case<S> {
    kernels: &'static Kernels,
    shape: S,
}

impl<S: fmt::Debug> fmt::Display for Case<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kernels.name(), self.shape)
    }
}

fn cases<S: Copy>(shapes: &[S]) -> Vec<Case<S>> {
    let with = |kernels| shapes.iter().map(move |&shape| Case { kernels, shape });
    Kernels::available().flat_map(with).collect()
}

/// Codes of activations as after a ReLU: half of them 0, large ones rare.
fn activations(len: usize) -> Vec<u8> {
    uniform(len).map(|x| (256.0 * (x - 0.5).max(0.0).powi(3) * 8.0) as u8).collect()
}

/// Codes of weights: bell-shaped, with a standard deviation of 30.
fn weights(len: usize) -> Vec<i8> {
    let mut x = uniform(4 * len);
    let mut sum = || x.by_ref().take(4).map(|x| x - 0.5).sum::<f32>();
    (0..len).map(|_| (sum() * 52.0).round() as i8).collect()
}

/// Pseudorandom numbers in 0..1.
fn uniform(len: usize) -> impl Iterator<Item = f32> {
    let step = |&x: &u32| Some(x.wrapping_mul(747_796_405).wrapping_add(2_891_336_453));
    let hash = |x: u32| (x ^ x >> 15).wrapping_mul(0x2c1b_3c6d) >> 8;
    iter::successors(Some(1), step).map(move |x| hash(x) as f32 / (1 << 24) as f32).take(len)
}

fn gemm_cases() -> Vec<Case<[usize; 3]>> {
    cases(&[
        [1024, 1024, 1024],
        [3136, 64, 576],
        [196, 512, 1152],
        [784, 128, 1152],
        [3136, 96, 24],
        [12544, 96, 16],
        [784, 96, 16],
        [784, 64, 32],
        [784, 32, 64],
        [1, 1000, 2048],
        [1, 2048, 512],
    ])
}

/// `[rows, columns, depth]`, requantized.
#[divan::bench(args = gemm_cases(), max_time = 0.5)]
fn gemm(bencher: Bencher<'_, '_>, case: &Case<[usize; 3]>) {
    let [rows, columns, depth] = case.shape;
    multiply(bencher, case, &activations(rows * depth), &weights(columns * depth));
}

/// [`gemm`] of the largest codes, with which `avx2` has to widen every byte.
#[divan::bench(args = cases(&[[1024, 1024, 1024]]), max_time = 0.5)]
fn gemm_extremes(bencher: Bencher<'_, '_>, case: &Case<[usize; 3]>) {
    let [rows, columns, depth] = case.shape;
    multiply(bencher, case, &vec![255; rows * depth], &vec![-127; columns * depth]);
}

fn multiply(bencher: Bencher<'_, '_>, case: &Case<[usize; 3]>, a: &[u8], w: &[i8]) {
    let [rows, columns, depth] = case.shape;
    let packed = PackedWeights::new(w, columns, depth);
    let (bias, multiplier) = (vec![5; columns], vec![1e-3; columns]);
    let mut out = vec![0; rows * columns];
    bencher.counter(ItemsCount::new(rows * columns * depth)).bench_local(|| {
        let requant = Requant { bias: &bias, multiplier: &multiplier, zero: 128, lo: 0, hi: 255 };
        let out = Grid::new(&mut out, rows, columns, columns);
        let a = Rows::strided(black_box(a), depth, rows, depth);
        case.kernels.gemm(&a, packed.view(), 0..packed.panels(), Output::U8 { requant, residual: None, out });
    });
}

fn product_cases() -> Vec<Case<[usize; 3]>> {
    cases(&[[512, 480, 512], [64, 3025, 144], [1000, 169, 512], [256, 196, 256], [1, 480, 512]])
}

/// f32, `[rows, columns, depth]`, the right matrix as it lies.
#[divan::bench(args = product_cases(), max_time = 0.3)]
fn product(bencher: Bencher<'_, '_>, case: &Case<[usize; 3]>) {
    let [rows, columns, depth] = case.shape;
    let (a, b) = (vec![0.5; rows * depth], vec![0.25; depth * columns]);
    let right = Right::Matrix(Matrix::new(&b, depth, columns));
    bench_product(bencher, case, &a, right);
}

/// f32, `[rows, columns, depth]`, the right matrix in panels.
#[divan::bench(args = product_cases(), max_time = 0.3)]
fn product_of_panels(bencher: Bencher<'_, '_>, case: &Case<[usize; 3]>) {
    let [rows, columns, depth] = case.shape;
    let width = case.kernels.panel_width();
    let (a, b) = (vec![0.5; rows * depth], vec![0.25; Panels::len(depth, columns, width)]);
    bench_product(bencher, case, &a, Right::Panels(Panels::new(&b, depth, columns, width)));
}

/// An item is one floating-point operation.
fn bench_product(bencher: Bencher<'_, '_>, case: &Case<[usize; 3]>, a: &[f32], right: Right<'_>) {
    let [rows, columns, depth] = case.shape;
    let mut out = vec![0.0; rows * columns];
    bencher.counter(ItemsCount::new(2 * rows * columns * depth)).bench_local(|| {
        let product = Product::new(Matrix::new(black_box(a), rows, depth), right);
        case.kernels.product(&product, &mut MatrixMut::new(&mut out, rows, columns));
    });
}

fn convolution_cases() -> Vec<Case<[usize; 3]>> {
    cases(&[[112, 3, 32], [56, 64, 64], [14, 256, 256], [32, 16, 16]])
}

/// A 3x3 convolution of `[side, input channels, output channels]`, gathered.
#[divan::bench(args = convolution_cases(), max_time = 0.5)]
fn convolution(bencher: Bencher<'_, '_>, case: &Case<[usize; 3]>) {
    let [side, channels, columns] = case.shape;
    let window = Window { pad: [0; 2], input: [side + 2; 2], kernel: [3, 1], ..square(side, channels) };
    let depth = (3 * channels).next_multiple_of(4);
    let x = activations((side + 2) * (side + 2) * channels + depth);
    let w = weights(columns * 3 * depth);
    let packed = PackedWeights::with_taps(&w, columns, 3, depth);
    let windows = Windows::new(&window, 1).expect("a small image");
    let (bias, multiplier) = (vec![5; columns], vec![1e-3; columns]);
    let mut out = vec![0; side * side * columns];
    bencher.counter(ItemsCount::new(side * side * columns * 9 * channels)).bench_local(|| {
        let requant = Requant { bias: &bias, multiplier: &multiplier, zero: 128, lo: 0, hi: 255 };
        let out = Grid::new(&mut out, side * side, columns, columns);
        let a = Rows::gathered(black_box(&x), &windows, depth);
        case.kernels.gemm(&a, packed.view(), 0..packed.panels(), Output::U8 { requant, residual: None, out });
    });
}

fn depthwise_cases() -> Vec<Case<[usize; 3]>> {
    cases(&[[56, 144, 1], [14, 576, 1], [112, 8, 1], [112, 16, 2], [56, 144, 2]])
}

/// A 3x3 depthwise convolution of `[side, channels, stride]`.
#[divan::bench(args = depthwise_cases(), max_time = 0.5)]
fn depthwise(bencher: Bencher<'_, '_>, case: &Case<[usize; 3]>) {
    let [side, channels, stride] = case.shape;
    let window = Window { stride: [stride; 2], output: [side / stride; 2], ..square(side, channels) };
    let x = activations(side * side * channels);
    let w = weights(9 * channels);
    let (bias, multiplier) = (vec![5; channels], vec![1e-3; channels]);
    let requant = Requant { bias: &bias, multiplier: &multiplier, zero: 128, lo: 0, hi: 255 };
    let packed = PackedDepthwise::new(&w, &window, 128, &requant);
    let mut out = vec![0; x.len() / (stride * stride)];
    bencher.counter(ItemsCount::new(9 * out.len())).bench_local(|| {
        case.kernels.depthwise(black_box(&x), &packed, 0..side / stride, &mut out);
    });
}

fn square(side: usize, channels: usize) -> Window {
    Window {
        input: [side; 2],
        channels,
        kernel: [3; 2],
        stride: [1; 2],
        dilation: [1; 2],
        pad: [1; 2],
        output: [side; 2],
    }
}

/// Elements of the tensors below: their f32 form fits the L2 cache.
const LEN: usize = 1 << 16;

fn tables() -> impl Iterator<Item = &'static str> {
    Kernels::available().map(Kernels::name)
}

fn table(name: &str) -> &'static Kernels {
    Kernels::available().find(|table| table.name() == name).expect("an available table")
}

fn reals() -> Vec<f32> {
    (0..LEN).map(|i| (i as f32 * 0.7).sin() * 3.0).collect()
}

#[divan::bench(args = tables(), max_time = 0.2)]
fn quantize(bencher: Bencher<'_, '_>, name: &str) {
    let (x, mut q) = (reals(), vec![0; LEN]);
    bencher
        .counter(BytesCount::new(5 * LEN))
        .bench_local(|| table(name).quantize_u8(black_box(&x), 0.03, 120, 0, 255, &mut q));
}

#[divan::bench(args = tables(), max_time = 0.2)]
fn dequantize(bencher: Bencher<'_, '_>, name: &str) {
    let (q, mut x) = (vec![77; LEN], vec![0.0; LEN]);
    bencher
        .counter(BytesCount::new(5 * LEN))
        .bench_local(|| table(name).dequantize_u8(black_box(&q), 0.03, 120, &mut x));
}

#[divan::bench(args = tables(), max_time = 0.2)]
fn min_max(bencher: Bencher<'_, '_>, name: &str) {
    let x = reals();
    bencher.counter(BytesCount::new(4 * LEN)).bench_local(|| table(name).min_max(black_box(&x)));
}

#[divan::bench(args = tables(), max_time = 0.2)]
fn histogram(bencher: Bencher<'_, '_>, name: &str) {
    let (x, mut counts) = (reals(), vec![0; 2048]);
    bencher
        .counter(BytesCount::new(4 * LEN))
        .bench_local(|| table(name).histogram(black_box(&x), -3.0, 3.0, &mut counts));
}

/// The best table on 64 MB of f32, which no cache holds: to be compared with
/// `copy`, what the memory does at most.
mod streams {
    use super::*;

    const LEN: usize = 1 << 24;

    fn reals() -> Vec<f32> {
        (0..LEN).map(|i| (i as f32 * 0.7).sin() * 3.0).collect()
    }

    #[divan::bench(max_time = 1)]
    fn copy(bencher: Bencher<'_, '_>) {
        let (x, mut y) = (reals(), vec![0.0; LEN]);
        bencher.counter(BytesCount::new(8 * LEN)).bench_local(|| y.copy_from_slice(black_box(&x)));
    }

    #[divan::bench(max_time = 1)]
    fn quantize(bencher: Bencher<'_, '_>) {
        let (x, mut q) = (reals(), vec![0; LEN]);
        bencher
            .counter(BytesCount::new(5 * LEN))
            .bench_local(|| Kernels::best().quantize_u8(black_box(&x), 0.03, 120, 0, 255, &mut q));
    }

    #[divan::bench(max_time = 1)]
    fn dequantize(bencher: Bencher<'_, '_>) {
        let (q, mut x) = (vec![77; LEN], vec![0.0; LEN]);
        bencher
            .counter(BytesCount::new(5 * LEN))
            .bench_local(|| Kernels::best().dequantize_u8(black_box(&q), 0.03, 120, &mut x));
    }

    #[divan::bench(max_time = 1)]
    fn fake_quantize(bencher: Bencher<'_, '_>) {
        let (x, mut y) = (reals(), vec![0.0; LEN]);
        bencher
            .counter(BytesCount::new(8 * LEN))
            .bench_local(|| Kernels::best().fake_quantize(black_box(&x), 0.03, 120, 0, 255, &mut y));
    }

    #[divan::bench(max_time = 1)]
    fn min_max(bencher: Bencher<'_, '_>) {
        let x = reals();
        bencher.counter(BytesCount::new(4 * LEN)).bench_local(|| Kernels::best().min_max(black_box(&x)));
    }

    #[divan::bench(max_time = 1)]
    fn histogram(bencher: Bencher<'_, '_>) {
        let (x, mut counts) = (reals(), vec![0; 2048]);
        bencher
            .counter(BytesCount::new(4 * LEN))
            .bench_local(|| Kernels::best().histogram(black_box(&x), -3.0, 3.0, &mut counts));
    }
}

/// One row by matrices of codes, so many in turn that no cache holds them: bytes
/// are those of codes and scales, to be compared with `streams::min_max`.
mod lowbit_weights {
    use super::*;

    const BYTES: usize = 256 << 20;

    /// `[depth, columns, bits, block]`, for each table but the definition.
    fn matrices() -> Vec<Case<[usize; 4]>> {
        let shapes = [
            [4096, 4096, 2, 32],
            [4096, 4096, 4, 32],
            [4096, 4096, 4, 128],
            [4096, 11008, 4, 32],
            [4096, 4096, 8, 32],
            [4096, 11008, 8, 4096],
        ];
        cases(&shapes).into_iter().filter(|case| case.kernels.name() != "scalar").collect()
    }

    fn in_turn([depth, columns, bits, block]: [usize; 4], values: CodeValues) -> Vec<LowBitWeights> {
        let shape = LowBitShape { bits, depth, columns, block };
        let code = |k: usize, n: usize| (k * 7 + n * 13 + k * n / 5) as u8;
        let packed = LowBitWeights::new(shape, values, code, |_, _| 0.01, |_, _| 0);
        vec![packed.clone(); BYTES.div_ceil(packed.bytes())]
    }

    fn measure(
        bencher: Bencher<'_, '_>,
        weights: &[LowBitWeights],
        mut product: impl FnMut(&LowBitWeights, Rows<'_, f32>, &mut MatrixMut<'_>),
    ) {
        let LowBitShape { depth, columns, .. } = weights[0].shape();
        let (x, mut y) = (uniform(depth).collect::<Vec<_>>(), vec![0.0; columns]);
        let bytes: usize = weights.iter().map(LowBitWeights::bytes).sum();
        bencher.counter(BytesCount::new(bytes)).bench_local(|| {
            for weights in weights {
                let x = Rows::strided(black_box(&x), depth, 1, depth);
                product(weights, x, &mut MatrixMut::new(&mut y, 1, columns));
            }
        });
    }

    #[divan::bench(args = matrices(), max_time = 0.5)]
    fn in_f32(bencher: Bencher<'_, '_>, case: &Case<[usize; 4]>) {
        measure(bencher, &in_turn(case.shape, CodeValues::Integers), |weights, x, y| {
            case.kernels.low_bit_product(weights, 0..weights.groups(), x, y);
        });
    }

    #[divan::bench(args = matrices(), max_time = 0.5)]
    fn in_integers(bencher: Bencher<'_, '_>, case: &Case<[usize; 4]>) {
        let weights = in_turn(case.shape, CodeValues::Integers);
        let mut memory = vec![0; LowBitRows::bytes(&weights[0], 1)];
        measure(bencher, &weights, |weights, x, y| {
            let x = LowBitRows::quantized(case.kernels, weights, x, &mut memory);
            case.kernels.low_bit_integers(weights, 0..weights.groups(), &x, y);
        });
    }

    /// Codes that index a table.
    #[divan::bench(args = matrices(), max_time = 0.5)]
    fn of_a_table(bencher: Bencher<'_, '_>, case: &Case<[usize; 4]>) {
        let table = uniform(1 << case.shape[2]).collect();
        measure(bencher, &in_turn(case.shape, CodeValues::Table(table)), |weights, x, y| {
            case.kernels.low_bit_product(weights, 0..weights.groups(), x, y);
        });
    }
}
