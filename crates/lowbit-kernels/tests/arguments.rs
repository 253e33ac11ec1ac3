//! Slices and parameters that do not fit together are refused, whatever the table.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lowbit_kernels::{Depthwise, Kernels, Output, PADDING, PackedWeights, Requant, Window};

type Call = fn(&Kernels);

fn requant() -> Requant<'static> {
    Requant { bias: &[0; 3], multiplier: &[1.0; 3], zero: 0, lo: 0, hi: 255 }
}

fn weights() -> PackedWeights {
    PackedWeights::new(&[1; 15], 3, 5)
}

/// A 2 x 5 by 5 x 3 product, with what is to be wrong about it.
fn gemm(kernels: &Kernels, a: usize, out: usize, stride: usize, requant: Requant<'_>) {
    let (a, mut out) = (vec![1; a], vec![0; out]);
    kernels.gemm(&a, 5, 2, &weights(), Output::U8 { requant, out: &mut out, stride });
}

fn gathered(kernels: &Kernels, offsets: &[usize], padding: &[u8]) {
    let weights = PackedWeights::with_taps(&[1; 12], 2, 2, 3);
    let mut out = [0; 2];
    kernels.gemm_gathered(
        &[1; 9],
        offsets,
        padding,
        &weights,
        Output::I32 { bias: None, out: &mut out, stride: 2 },
    );
}

fn depthwise(kernels: &Kernels, x: usize, weights: usize, out: usize) {
    let window = Window {
        input: [2, 2],
        channels: 3,
        kernel: [1, 1],
        stride: [1, 1],
        dilation: [1, 1],
        pad: [0, 0],
        output: [2, 2],
    };
    let mut out = vec![0; out];
    let params = Depthwise { window, weights: &vec![1; weights], x_zero: 0, requant: requant() };
    kernels.depthwise(&vec![1; x], &params, 0..2, &mut out);
}

#[test]
fn right_arguments_are_accepted() {
    for kernels in Kernels::available() {
        gemm(kernels, 10, 6, 3, requant());
        gathered(kernels, &[6, PADDING], &[0; 3]);
        depthwise(kernels, 12, 3, 12);
        kernels.quantize_u8(&[0.0], 1.0, 0, 0, 0, &mut [0]);
        kernels.fake_quantize(&[0.0], 1.0, 0, -1 << 24, 1 << 24, &mut [0.0]);
        kernels.histogram(&[0.0], 0.0, 1.0, &mut [0]);
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let cases: &[(&str, Call)] = &[
        ("short left matrix", |k| gemm(k, 9, 6, 3, requant())),
        ("short output", |k| gemm(k, 10, 5, 3, requant())),
        ("stride below columns", |k| gemm(k, 10, 6, 2, requant())),
        ("short bias", |k| gemm(k, 10, 6, 3, Requant { bias: &[0; 2], ..requant() })),
        ("long multiplier", |k| gemm(k, 10, 6, 3, Requant { multiplier: &[1.0; 4], ..requant() })),
        ("empty range", |k| gemm(k, 10, 6, 3, Requant { lo: 9, hi: 8, ..requant() })),
        ("zero point of 9 bits", |k| gemm(k, 10, 6, 3, Requant { zero: 256, ..requant() })),
        ("rows that overflow", |k| {
            let output = Output::I32 { bias: None, out: &mut [0; 3], stride: usize::MAX };
            k.gemm(&[1; 5], usize::MAX, 3, &weights(), output);
        }),
        ("taps in a plain product", |k| {
            let weights = PackedWeights::with_taps(&[1; 12], 2, 2, 3);
            k.gemm(&[1; 6], 6, 1, &weights, Output::I32 { bias: None, out: &mut [0; 2], stride: 2 });
        }),
        ("weights of another shape", |_| drop(PackedWeights::new(&[1; 14], 3, 5))),
        ("weights whose size overflows", |_| drop(PackedWeights::with_taps(&[], 2, usize::MAX, 3))),
        ("offset too near the end", |k| gathered(k, &[0, 7], &[0; 3])),
        ("offset that overflows", |k| gathered(k, &[0, usize::MAX - 1], &[0; 3])),
        ("half a row of offsets", |k| gathered(k, &[0], &[0; 3])),
        ("short padding", |k| gathered(k, &[0, 0], &[0; 2])),
        ("short image", |k| depthwise(k, 11, 3, 12)),
        ("short depthwise weights", |k| depthwise(k, 12, 2, 12)),
        ("long depthwise output", |k| depthwise(k, 12, 3, 13)),
        ("quantize lengths", |k| k.quantize_u8(&[0.0], 1.0, 0, 0, 255, &mut [])),
        ("quantize range", |k| k.quantize_i8(&[0.0], 1.0, 0, 5, 4, &mut [0])),
        ("fake-quantize range", |k| k.fake_quantize(&[0.0], 1.0, 0, 0, (1 << 24) + 1, &mut [0.0])),
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
