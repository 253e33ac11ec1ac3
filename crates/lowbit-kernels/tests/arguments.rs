//! Slices and parameters that do not fit together are refused, whatever the table.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lowbit_kernels::{
    Grid, Kernels, Output, PackedDepthwise, PackedWeights, Requant, Residual, Rows, Window, Windows,
};

type Call = fn(&Kernels);

fn requant() -> Requant<'static> {
    Requant { bias: &[0; 3], multiplier: &[1.0; 3], zero: 0, lo: 0, hi: 255 }
}

fn weights() -> PackedWeights {
    PackedWeights::new(&[1; 15], 3, 5)
}

/// A 2 x 5 by 5 x 3 product, with what is to be wrong about it.
fn gemm(kernels: &Kernels, a: usize, rows: usize, requant: Requant<'_>, residual: Option<Residual<'_>>) {
    let (a, mut out) = (vec![1; a], vec![0; 3 * rows]);
    let output = Output::U8 { requant, residual, out: Grid::new(&mut out, rows, 3, 3) };
    kernels.gemm(&Rows::strided(&a, 5, 2, 5), weights().view(), 0..1, output);
}

fn residual(len: usize) -> Option<Residual<'static>> {
    let codes = &[0; 8][..len];
    Some(Residual { codes, stride: 4, a_ratio: 1.0, zero: 0, ratio: 1.0, y_zero: 0, lo: 0, hi: 255 })
}

/// A 1 x 2 kernel over an image of 1 x 3 pixels of 3 channels.
fn gathered(kernels: &Kernels, image: usize, pad: usize) {
    let window = Window { input: [1, 3], kernel: [1, 2], pad: [0, pad], output: [1, 2], ..pointwise() };
    let weights = PackedWeights::with_taps(&[1; 12], 2, 2, 3);
    let (image, windows, mut out) = (vec![1; image], Windows::new(&window, 1).unwrap(), [0; 4]);
    let rows = Rows::gathered(&image, &windows, 3);
    kernels.gemm(&rows, weights.view(), 0..1, Output::I32 { bias: None, out: Grid::new(&mut out, 2, 2, 2) });
}

fn pointwise() -> Window {
    Window {
        input: [2, 2],
        channels: 3,
        kernel: [1, 1],
        stride: [1, 1],
        dilation: [1, 1],
        pad: [0, 0],
        output: [2, 2],
    }
}

fn depthwise(kernels: &Kernels, x: usize, weights: usize, out: usize) {
    let packed = PackedDepthwise::new(&vec![1; weights], &pointwise(), 0, &requant());
    kernels.depthwise(&vec![1; x], &packed, 0..2, &mut vec![0; out]);
}

#[test]
fn right_arguments_are_accepted() {
    for kernels in Kernels::available() {
        gemm(kernels, 10, 2, requant(), residual(7));
        gathered(kernels, 9, 0);
        depthwise(kernels, 12, 3, 12);
        kernels.quantize_u8(&[0.0], 1.0, 0, 0, 0, &mut [0]);
        kernels.fake_quantize(&[0.0], 1.0, 0, -1 << 24, 1 << 24, &mut [0.0]);
        kernels.histogram(&[0.0], 0.0, 1.0, &mut [0]);
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let cases: &[(&str, Call)] = &[
        ("short left matrix", |k| gemm(k, 9, 2, requant(), None)),
        ("short output", |k| gemm(k, 10, 1, requant(), None)),
        ("long output", |k| gemm(k, 10, 3, requant(), None)),
        ("short residual", |k| gemm(k, 10, 2, requant(), residual(6))),
        ("short bias", |k| gemm(k, 10, 2, Requant { bias: &[0; 2], ..requant() }, None)),
        ("long multiplier", |k| gemm(k, 10, 2, Requant { multiplier: &[1.0; 4], ..requant() }, None)),
        ("infinite multiplier", |k| {
            gemm(k, 10, 2, Requant { multiplier: &[1.0, f32::INFINITY, 1.0], ..requant() }, None);
        }),
        ("empty range", |k| gemm(k, 10, 2, Requant { lo: 9, hi: 8, ..requant() }, None)),
        ("zero point of 9 bits", |k| gemm(k, 10, 2, Requant { zero: 256, ..requant() }, None)),
        ("rows that overflow", |_| _ = Rows::strided(&[1; 5], usize::MAX, 3, 5)),
        ("rows that do not exist", |_| _ = Rows::strided(&[1; 5], 5, 1, 5).range(0..2)),
        ("panels that do not exist", |k| {
            let mut out = [0; 3];
            let output = Output::I32 { bias: None, out: Grid::new(&mut out, 1, 3, 3) };
            k.gemm(&Rows::strided(&[1; 5], 5, 1, 5), weights().view(), 0..2, output);
        }),
        ("taps in a plain product", |k| {
            let weights = PackedWeights::with_taps(&[1; 12], 2, 2, 3);
            let mut out = [0; 2];
            let output = Output::I32 { bias: None, out: Grid::new(&mut out, 1, 2, 2) };
            k.gemm(&Rows::strided(&[1; 6], 6, 1, 6), weights.view(), 0..1, output);
        }),
        ("weights of another shape", |_| drop(PackedWeights::new(&[1; 14], 3, 5))),
        ("weights whose size overflows", |_| drop(PackedWeights::with_taps(&[], 2, usize::MAX, 3))),
        ("window too near the end", |k| gathered(k, 8, 0)),
        ("windows with padding", |k| gathered(k, 9, 1)),
        ("short image", |k| depthwise(k, 11, 3, 12)),
        ("short depthwise weights", |k| depthwise(k, 12, 2, 12)),
        ("too many taps", |_| {
            let window = Window { kernel: [5, 13], ..pointwise() };
            drop(PackedDepthwise::new(&[1; 195], &window, 0, &requant()));
        }),
        ("long depthwise output", |k| depthwise(k, 12, 3, 13)),
        ("quantize lengths", |k| k.quantize_u8(&[0.0], 1.0, 0, 0, 255, &mut [])),
        ("quantize range", |k| k.quantize_i8(&[0.0], 1.0, 0, 5, 4, &mut [0])),
        ("fake-quantize range", |k| k.fake_quantize(&[0.0], 1.0, 0, 0, (1 << 24) + 1, &mut [0.0])),
        ("softmax lengths", |k| k.softmax(&[0.0], 1, &mut [])),
        ("softmax rows", |k| k.softmax(&[0.0; 3], 2, &mut [0.0; 3])),
        ("softmax of empty rows", |k| k.softmax(&[0.0], 0, &mut [0.0])),
        ("scale without shift", |k| k.layer_norm(&[0.0], 0.0, &[1.0], &[], &mut [0.0])),
        ("histogram without width", |k| k.histogram(&[0.0], 1.0, 1.0, &mut [0])),
        ("histogram of NaN", |k| k.histogram(&[0.0], f32::NAN, 1.0, &mut [0])),
        ("histogram without bounds", |k| k.histogram(&[0.0], f32::MIN, f32::MAX, &mut [0])),
        ("histogram without bins", |k| k.histogram(&[0.0], 0.0, 1.0, &mut [])),
    ];
    let accepted: Vec<_> = Kernels::available()
        .flat_map(|kernels| cases.iter().map(move |(name, call)| (kernels, name, call)))
        .filter(|(kernels, _, call)| catch_unwind(AssertUnwindSafe(|| call(kernels))).is_ok())
        .map(|(kernels, name, _)| (kernels.name(), name))
        .collect();
    assert!(accepted.is_empty(), "accepted: {accepted:?}");
}
