//! Every table that this CPU can run equals the definition, bit for bit.

mod codes;
mod definition;
mod low_bit;
mod product;
mod rows;

use std::fmt::Debug;
use std::ops::Range;

use lowbit_kernels::{
    Add, Average, Bordered, Filters, Grid, Kernels, Mul, Output, PackedDepthwise, PackedWeights, Requant,
    Residual, Rows, Taps, Window, Windows,
};

#[test]
fn every_table_equals_the_definition() {
    let checks = [
        gemm,
        gemm_extremes,
        gemm_limits,
        gathered,
        depthwise,
        quantize,
        dequantize,
        fake_quantize,
        min_max,
        histogram,
        elementwise,
        pooling,
        pooling_f32,
        product::products,
        product::windows,
        product::overlapping,
        product::gathered,
        product::transposed,
        product::shifted_sums,
        bordered,
        codes::products,
        codes::extremes,
        rows::softmax_and_norms,
        low_bit::in_f32,
        low_bit::in_integers,
        low_bit::blocks_of_codes,
    ];
    let mut failures = Failures::default();
    for kernels in Kernels::available() {
        for check in checks {
            check(kernels, &mut failures);
        }
    }
    assert!(failures.0.is_empty(), "{} differ:\n{}", failures.0.len(), failures.0.join("\n"));
}

#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn check<T: PartialEq + Debug>(&mut self, kernels: &Kernels, case: impl Debug, got: &[T], want: &[T]) {
        let name = kernels.name();
        if got.len() != want.len() {
            self.0.push(format!("{name} {case:?}: {} elements, not {}", got.len(), want.len()));
        } else if let Some(i) = (0..got.len()).find(|&i| got[i] != want[i]) {
            self.0.push(format!("{name} {case:?}: [{i}] is {:?}, not {:?}", got[i], want[i]));
        }
    }

    fn check_bits(&mut self, kernels: &Kernels, case: impl Debug, got: &[f32], want: &[f32]) {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        self.check(kernels, case, &bits(got), &bits(want));
    }
}

/// A xorshift generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn u8s(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn i8s(&mut self, len: usize) -> Vec<i8> {
        (0..len).map(|_| self.next() as i8).collect()
    }

    fn i32s(&mut self, len: usize) -> Vec<i32> {
        (0..len).map(|_| self.next() as i32 >> 16).collect()
    }

    /// In 0..limit.
    fn f32s(&mut self, len: usize, limit: f32) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 * limit).collect()
    }
}

/// Lengths around the widths of vectors and blocks.
const LENGTHS: [usize; 16] = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 259];

/// A byte that no kernel may overwrite, between the columns of an output and its stride.
const UNTOUCHED: u8 = 0xa5;

/// Runs all outputs of one product and compares them.
fn compare_products(
    kernels: &Kernels,
    failures: &mut Failures,
    case: impl Debug + Copy,
    acc: &[i32],
    columns: usize,
    scales: (&[i32], &[f32]),
    run: impl Fn(Output<'_>),
) {
    let (bias, multiplier) = scales;
    let rows = acc.len() / columns;
    // Another tensor to add, its rows apart.
    let added: Vec<u8> = (0..rows * (columns + 1)).map(|i| (i * 89 + 7) as u8).collect();
    let stride = columns + 3;
    let len = (rows * stride).saturating_sub(3);
    let inside = |i: usize| i % stride < columns;
    let at = |i: usize| (acc[i / stride * columns + i % stride], i % stride);

    for (zero, lo, hi) in [(0, 0, 255), (128, 0, 255), (255, 3, 250), (7, 7, 7)] {
        let requant = Requant { bias, multiplier, zero, lo, hi };
        let product = |i| definition::requantize_channel(at(i).0, at(i).1, &requant);
        let mut out = vec![UNTOUCHED; len];
        run(Output::U8 { requant, residual: None, out: Grid::new(&mut out, rows, columns, stride) });
        let want = |i| if inside(i) { product(i) } else { UNTOUCHED };
        failures.check(kernels, (case, "u8", zero), &out, &(0..len).map(want).collect::<Vec<_>>());

        // The last ones overflow to infinities of both signs.
        for (a_ratio, b_ratio) in [(0.7, 0.25), (f32::MAX, f32::MIN)] {
            let add = Add { a_zero: zero as u8, a_ratio, b_zero: 90, b_ratio, zero: 41, lo: 3, hi: 250 };
            let residual = Residual {
                codes: &added,
                stride: columns + 1,
                a_ratio: add.a_ratio,
                zero: add.b_zero,
                ratio: add.b_ratio,
                y_zero: add.zero,
                lo: add.lo,
                hi: add.hi,
            };
            out.fill(UNTOUCHED);
            let grid = Grid::new(&mut out, rows, columns, stride);
            run(Output::U8 { requant, residual: Some(residual), out: grid });
            let want = |i| match inside(i) {
                true => definition::add(product(i), added[i / stride * (columns + 1) + i % stride], &add),
                false => UNTOUCHED,
            };
            failures.check(
                kernels,
                (case, "added", zero, a_ratio),
                &out,
                &(0..len).map(want).collect::<Vec<_>>(),
            );
        }
    }

    let mut out = vec![f32::MAX; len];
    run(Output::F32 { bias, multiplier, out: Grid::new(&mut out, rows, columns, stride) });
    let want = |i| match inside(i) {
        true => at(i).0.wrapping_add(bias[at(i).1]) as f32 * multiplier[at(i).1],
        false => f32::MAX,
    };
    failures.check_bits(kernels, (case, "f32"), &out, &(0..len).map(want).collect::<Vec<_>>());

    let scales: Vec<f32> = (0..rows).map(|i| 0.25 / (i as f32 + 1.0)).collect();
    let zeros: Vec<i32> = (0..rows as i32).map(|i| i * 37 % 256).collect();
    for (scale, zero, offset) in [(&scales[..], &zeros[..], None), (&[0.125], &[200], Some(multiplier))] {
        let mut out = vec![f32::MAX; len];
        let to = Grid::new(&mut out, rows, columns, stride);
        run(Output::Rows { scale, zero, sums: bias, multiplier, bias: offset, out: to });
        let want = |i| {
            if !inside(i) {
                return f32::MAX;
            }
            let ((acc, n), row) = (at(i), if scale.len() == 1 { 0 } else { i / stride });
            let acc = acc.wrapping_sub(zero[row].wrapping_mul(bias[n]));
            acc as f32 * (scale[row] * multiplier[n]) + offset.map_or(0.0, |offset| offset[n])
        };
        failures.check_bits(kernels, (case, "rows"), &out, &(0..len).map(want).collect::<Vec<_>>());
    }

    for bias in [None, Some(bias)] {
        let mut out = vec![i32::MAX; len];
        run(Output::I32 { bias, out: Grid::new(&mut out, rows, columns, stride) });
        let want = |i| match inside(i) {
            true => at(i).0.wrapping_add(bias.map_or(0, |bias| bias[at(i).1])),
            false => i32::MAX,
        };
        failures.check(kernels, (case, "i32"), &out, &(0..len).map(want).collect::<Vec<_>>());
    }
}

fn gemm(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(1);
    let shapes = (1..=14)
        .map(|rows| (rows, 33, 8))
        .chain((1..=9).map(|depth| (3, 5, depth)))
        .chain([1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65].map(|columns| (5, columns, 7)))
        .chain([(0, 3, 4), (2, 3, 0), (1, 1, 1), (13, 40, 131), (300, 33, 1021)])
        .chain([16, 17, 31, 32, 33, 49, 64, 65, 97].map(|rows| (rows, 72, 128)))
        .chain([60, 61, 63, 64, 65, 68, 124, 192].map(|depth| (20, 48, depth)));
    for (rows, columns, depth) in shapes.collect::<Vec<(usize, usize, usize)>>() {
        let a_stride = depth + 1;
        // The last row ends where the slice ends.
        let a = random.u8s((rows * a_stride).saturating_sub(1));
        let w = random.i8s(columns * depth);
        let (bias, multiplier) = (random.i32s(columns), random.f32s(columns, 3e-3));
        let row = |i: usize| &a[i * a_stride..][..depth];
        let acc: Vec<i32> = (0..rows * columns)
            .map(|i| definition::dot(row(i / columns), &w[i % columns * depth..][..depth]))
            .collect();
        let weights = PackedWeights::new(&w, columns, depth);
        let case = ("gemm", rows, columns, depth);
        compare_products(kernels, failures, case, &acc, columns, (&bias, &multiplier), |output| {
            let rows = Rows::strided(&a, a_stride, rows, depth);
            kernels.gemm(&rows, weights.view(), 0..weights.panels(), output);
        });
    }
}

/// The largest products, sums that wrap, and extreme multipliers.
fn gemm_extremes(kernels: &Kernels, failures: &mut Failures) {
    const COLUMNS: usize = 33;
    const BELOW_ONE: f32 = 1.0 - f32::EPSILON / 2.0;
    let below_one = [0.0, -0.0, BELOW_ONE, -BELOW_ONE, 0.5, 1e-30, -0.25, f32::MIN_POSITIVE, 1e-7];
    let any = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, f32::MAX, f32::MIN];
    let biases = [0, 1, -1, i32::MAX, i32::MIN, 1 << 24, (1 << 24) + 1, 255];
    let bias: Vec<i32> = biases.into_iter().cycle().take(COLUMNS).collect();
    let cycled = |multipliers: [f32; 9]| multipliers.into_iter().cycle().take(COLUMNS).collect::<Vec<_>>();
    let scales = [cycled(below_one), cycled(any)];
    for (a, w) in [(255, -128), (255, 127), (0, -128), (1, -1)] {
        for (rows, depth) in [(2, 1), (2, 4), (2, 5), (2, 64), (33, 132), (1, 70_001)] {
            let left = vec![a; rows * depth];
            let weights = PackedWeights::new(&vec![w; COLUMNS * depth], COLUMNS, depth);
            let sum = (i64::from(a) * i64::from(w) * depth as i64) as i32;
            let acc = vec![sum; rows * COLUMNS];
            let case = ("gemm extremes", a, w, depth);
            for multiplier in &scales {
                compare_products(kernels, failures, case, &acc, COLUMNS, (&bias, multiplier), |output| {
                    let rows = Rows::strided(&left, depth, rows, depth);
                    kernels.gemm(&rows, weights.view(), 0..weights.panels(), output);
                });
            }

            let sums = weights.column_sums();
            failures.check(kernels, (case, "column sums"), sums, &[i32::from(w) * depth as i32; COLUMNS]);
        }
    }
}

/// Sums that just fit 16 bits, and that just do not: in pairs, in runs of
/// groups, of either sign, in one column and row among small ones.
fn gemm_limits(kernels: &Kernels, failures: &mut Failures) {
    const PAIRS: [[i8; 2]; 9] = [
        [64, 64],
        [65, 64],
        [127, 1],
        [127, 2],
        [127, 127],
        [-64, -64],
        [-64, -65],
        [-128, -128],
        [127, -128],
    ];
    for pair in PAIRS {
        for pairs in 1..=8 {
            for (depth, columns, rows) in [(16, 33, 9), (39, 9, 17)] {
                for a in [254, 255, 128, 129, 127, 64, 63, 32] {
                    let mut w = vec![1i8; columns * depth];
                    // Every other pair, so that all of a run fall to the same 16-bit sum.
                    for (k, w) in w[(columns - 1) * depth..].iter_mut().enumerate() {
                        *w = if k / 2 % 2 == 0 && k / 4 < pairs { pair[k % 2] } else { 0 };
                    }
                    let mut left = vec![3; rows * depth];
                    left[(rows - 2) * depth..][..depth].fill(a);
                    let dot = |i: usize| {
                        definition::dot(
                            &left[i / columns * depth..][..depth],
                            &w[i % columns * depth..][..depth],
                        )
                    };
                    let want: Vec<i32> = (0..rows * columns).map(dot).collect();
                    let mut got = vec![0; want.len()];
                    let weights = PackedWeights::new(&w, columns, depth);
                    let out = Grid::new(&mut got, rows, columns, columns);
                    let left = Rows::strided(&left, depth, rows, depth);
                    kernels.gemm(&left, weights.view(), 0..weights.panels(), Output::I32 { bias: None, out });
                    failures.check(kernels, ("gemm limits", pair, pairs, depth, a), &got, &want);
                }
            }
        }
    }
}

/// Windows of every kind: 1x1, strides, dilations, padding, uneven sides.
fn windows(channels: usize) -> Vec<Window> {
    let base = Window {
        input: [5, 6],
        channels,
        kernel: [3, 3],
        stride: [1, 1],
        dilation: [1, 1],
        pad: [1, 1],
        output: [5, 6],
    };
    vec![
        base,
        Window { kernel: [1, 1], pad: [0, 0], ..base },
        Window { stride: [2, 3], output: [3, 2], ..base },
        Window { dilation: [2, 2], pad: [2, 2], ..base },
        Window { kernel: [2, 5], pad: [0, 2], output: [4, 6], ..base },
        Window { kernel: [4, 3], pad: [3, 0], output: [7, 4], ..base },
        Window { input: [1, 1], kernel: [3, 3], output: [1, 1], ..base },
    ]
}

fn gathered(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(2);
    for (channels, columns) in [(1, 1), (3, 16), (4, 33), (17, 5), (32, 40), (64, 33), (65, 70)] {
        for window in windows(channels) {
            let window = Window { pad: [0, 0], output: window.output.map(|n| n / 3), ..window };
            // Of many channels enough rows for what computes blocks of them.
            let images = if channels < 32 { 2 } else { 12 };
            let [height, width] = window.output;
            let (rows, depth) = (images * height * width, window.taps() * channels);
            let image = window.input[0] * window.input[1] * channels;
            let x = random.u8s(images * image);
            let w = random.i8s(columns * depth);
            let (bias, multiplier) = (random.i32s(columns), random.f32s(columns, 3e-3));
            let patches: Vec<u8> =
                x.chunks_exact(image).flat_map(|x| definition::im2col(&window, x, 130)).collect();
            let acc: Vec<i32> = (0..rows * columns)
                .map(|i| {
                    definition::dot(
                        &patches[i / columns * depth..][..depth],
                        &w[i % columns * depth..][..depth],
                    )
                })
                .collect();
            let weights = PackedWeights::with_taps(&w, columns, window.taps(), channels);
            let windows = Windows::new(&window, images).unwrap();
            let scales = (&*bias, &*multiplier);
            compare_products(kernels, failures, (window, columns), &acc, columns, scales, |output| {
                let rows = Rows::gathered(&x, &windows, channels);
                kernels.gemm(&rows, weights.view(), 0..weights.panels(), output);
            });
        }
    }
}

fn depthwise(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(3);
    for channels in [1, 4, 7, 8, 9, 16, 24, 31, 32, 33, 64, 65, 75, 130] {
        let wide = Window { input: [5, 40], output: [5, 40], ..windows(channels)[0] };
        let halved = Window { stride: [1, 2], output: [5, 20], ..wide };
        for window in windows(channels).into_iter().chain([wide, halved]) {
            let [height, width] = window.output;
            let len = window.input[0] * window.input[1] * channels;
            let bias = random.i32s(channels);
            let inputs = [
                (random.u8s(len), random.i8s(window.taps() * channels), random.f32s(channels, 0.02)),
                (vec![255; len], vec![-128; window.taps() * channels], random.f32s(channels, 0.02)),
                (random.u8s(len), random.i8s(window.taps() * channels), random.f32s(channels, 1e9)),
            ];
            for (x, w, multiplier) in inputs {
                let requant = Requant { bias: &bias, multiplier: &multiplier, zero: 120, lo: 2, hi: 253 };
                let packed = PackedDepthwise::new(&w, &window, 129, &requant);
                let want = definition::depthwise(&x, &window, &w, 129, &requant);
                // Two parts, as two threads would compute them.
                let (top, row) = (height / 2, width * channels);
                let mut got = vec![0; height * row];
                let (above, below) = got.split_at_mut(top * row);
                kernels.depthwise(&x, &packed, 0..top, above);
                kernels.depthwise(&x, &packed, top..height, below);
                failures.check(kernels, ("depthwise", window), &got, &want);
            }
        }
    }
}

/// Ties, saturation, special values, and random ones, of exactly `len` elements.
fn reals(random: &mut Random, len: usize) -> Vec<f32> {
    let special = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        0.0,
        -0.0,
        -1e-8,
        3e9,
        -3e9,
        4_194_304.5,
    ];
    let ties = (-20..20).map(|i| (i as f32 + 0.5) * 0.25);
    let mut x: Vec<f32> = special.into_iter().chain(ties).take(len).collect();
    x.extend(random.f32s(len - x.len(), 80.0).iter().map(|x| x - 40.0));
    x
}

fn quantize(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(5);
    for len in LENGTHS {
        let x = reals(&mut random, len);
        for scale in [0.25, 0.1, 1e-30, f32::EPSILON, 7.7] {
            for (zero, lo, hi) in [(0, 0, 255), (255, 0, 255), (131, 1, 200), (3, 100, 120)] {
                let mut got = vec![0; len];
                kernels.quantize_u8(&x, scale, zero, lo, hi, &mut got);
                let one = |&x: &f32| definition::quantize(x, scale, zero, lo.into(), hi.into()) as u8;
                let want: Vec<u8> = x.iter().map(one).collect();
                failures.check(kernels, ("quantize_u8", len, scale, zero), &got, &want);
            }
            for (zero, lo, hi) in [(0, -128, 127), (0, -127, 127), (-128, -128, 127), (127, -8, 7)] {
                let mut got = vec![0; len];
                kernels.quantize_i8(&x, scale, zero, lo, hi, &mut got);
                let one = |&x: &f32| definition::quantize(x, scale, zero, lo.into(), hi.into()) as i8;
                let want: Vec<i8> = x.iter().map(one).collect();
                failures.check(kernels, ("quantize_i8", len, scale, zero), &got, &want);
            }
        }
    }
}

fn dequantize(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(6);
    for len in LENGTHS {
        let (unsigned, signed) = (random.u8s(len), random.i8s(len));
        for (scale, zero) in [(0.1, 0), (1e30, 255), (f32::EPSILON, -128), (0.3, 77)] {
            let mut got = vec![0.0; len];
            kernels.dequantize_u8(&unsigned, scale, zero, &mut got);
            let want: Vec<f32> =
                unsigned.iter().map(|&q| definition::dequantize(q.into(), scale, zero)).collect();
            failures.check_bits(kernels, ("dequantize_u8", len, scale), &got, &want);
            kernels.dequantize_i8(&signed, scale, zero, &mut got);
            let want: Vec<f32> =
                signed.iter().map(|&q| definition::dequantize(q.into(), scale, zero)).collect();
            failures.check_bits(kernels, ("dequantize_i8", len, scale), &got, &want);
        }
    }
}

fn fake_quantize(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(7);
    for len in LENGTHS {
        let x = reals(&mut random, len);
        for scale in [0.25, 0.1, 1e-30, 7.7] {
            for (zero, qmin, qmax) in [
                (128, 0, 255),
                (0, -127, 127),
                (5, 0, 15),
                (3, 10, 15),
                (0, -32768, 32767),
                (1 << 24, 1, 1 << 25),
            ] {
                let mut got = vec![0.0; len];
                kernels.fake_quantize(&x, scale, zero, qmin, qmax, &mut got);
                let one = |&x: &f32| {
                    definition::dequantize(definition::quantize(x, scale, zero, qmin, qmax), scale, zero)
                };
                let want: Vec<f32> = x.iter().map(one).collect();
                failures.check_bits(kernels, ("fake_quantize", len, scale, zero), &got, &want);
            }
        }
    }
}

fn min_max(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(8);
    for len in LENGTHS {
        let ordinary: Vec<f32> = random.f32s(len, 2.0).iter().map(|x| x - 1.0).collect();
        let nan = vec![f32::NAN; len];
        let mut last = ordinary.clone();
        if let Some(last) = last.last_mut() {
            *last = f32::NEG_INFINITY;
        }
        for x in [ordinary, nan, last, reals(&mut random, len), vec![-0.0; len]] {
            let got = kernels.min_max(&x);
            let (min, max, has_nan) = definition::min_max(&x);
            failures.check(kernels, ("has_nan", len), &[got.has_nan], &[has_nan]);
            failures.check_bits(kernels, ("min_max", len), &[got.min, got.max], &[min + 0.0, max + 0.0]);
        }
    }
}

fn histogram(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(9);
    for len in LENGTHS {
        let mut x = reals(&mut random, len);
        x.extend([-10.0, 10.0, 10.000001, -10.000001, 0.0, 9.999999]);
        for (lo, hi) in [(-10.0, 10.0), (0.0, 1.0), (-0.1, 39.3), (-1e-38, 1e-38), (-1e38, 1e38)] {
            for bins in [1, 2, 3, 7, 128, 2048] {
                // Counts are added to.
                let mut got = vec![1; bins];
                kernels.histogram(&x, lo, hi, &mut got);
                let want: Vec<u64> = definition::histogram(&x, lo, hi, bins).iter().map(|n| n + 1).collect();
                failures.check(kernels, ("histogram", len, lo, hi, bins), &got, &want);
            }
        }
    }
}

fn elementwise(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(10);
    for len in LENGTHS {
        let (a, b) = (random.u8s(len), random.u8s(len));
        let pairs = || a.iter().copied().zip(b.iter().copied());
        let mut got = vec![0; len];
        for ratio in [0.5, 0.37, 1e-3, 1e30, f32::INFINITY] {
            let params =
                Add { a_zero: 128, a_ratio: ratio, b_zero: 3, b_ratio: 0.5, zero: 77, lo: 5, hi: 251 };
            kernels.add(&a, &b, &params, &mut got);
            let want: Vec<u8> = pairs().map(|(a, b)| definition::add(a, b, &params)).collect();
            failures.check(kernels, ("add", len, ratio), &got, &want);

            let params = Mul { a_zero: 0, b_zero: 255, ratio, zero: 250, lo: 5, hi: 251 };
            kernels.mul(&a, &b, &params, &mut got);
            let want: Vec<u8> = pairs().map(|(a, b)| definition::mul(a, b, &params)).collect();
            failures.check(kernels, ("mul", len, ratio), &got, &want);
        }
        let table: [u8; 256] = random.u8s(256).try_into().unwrap();
        kernels.map(&a, &table, &mut got);
        let want: Vec<u8> = a.iter().map(|&a| table[usize::from(a)]).collect();
        failures.check(kernels, ("map", len), &got, &want);
    }
}

fn pooling(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(11);
    for channels in [1, 7, 63, 64, 65, 130] {
        for window in windows(channels) {
            let x = random.u8s(window.input[0] * window.input[1] * channels);
            let taps = Taps::new(&window).unwrap();
            let all = taps.pixels();
            let (mut got, middle) = (vec![0; all * channels], all / 2);
            let (above, below) = got.split_at_mut(middle * channels);
            kernels.max_pool(&x, &taps, channels, 0..middle, above);
            kernels.max_pool(&x, &taps, channels, middle..all, below);
            failures.check(kernels, ("max_pool", window), &got, &definition::max_pool(&window, &x));

            for padding_counts in [false, true] {
                let params = Average {
                    x_zero: 90,
                    x_scale: 0.3,
                    scale: 0.2,
                    zero: 110,
                    lo: 5,
                    hi: 240,
                    padding_counts,
                };
                let (above, below) = got.split_at_mut(middle * channels);
                kernels.average_pool(&x, &taps, channels, &params, 0..middle, above);
                kernels.average_pool(&x, &taps, channels, &params, middle..all, below);
                let want = definition::average_pool(&window, &x, &params);
                failures.check(kernels, ("average_pool", window, padding_counts), &got, &want);
            }
        }
    }
}

fn pooling_f32(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(14);
    for channels in [1, 2, 7, 16, 31, 64, 65, 130] {
        let wide = Window { input: [5, 40], output: [5, 40], ..windows(channels)[0] };
        for window in windows(channels).into_iter().chain([wide]) {
            let x = product::reals(&mut random, window.input[0] * window.input[1] * channels, false);
            let (weights, start) =
                (random.f32s(window.taps() * channels, 1.0), product::reals(&mut random, channels, false));
            let filters = Filters::new(&weights, &start);
            let taps = Taps::new(&window).unwrap();
            let (all, middle) = (taps.pixels(), window.output[0] / 2 * window.output[1]);
            let seen = definition::seen(&window, &x);
            let want = |value: &dyn Fn(usize, &[(usize, f32)]) -> f32| -> Vec<f32> {
                seen.iter().enumerate().map(|(i, taps)| value(i % channels, taps)).collect()
            };
            let mut check = |case: &str, run: &dyn Fn(Range<usize>, &mut [f32]), want: Vec<f32>| {
                let mut got = vec![0.0; all * channels];
                let (above, below) = got.split_at_mut(middle * channels);
                run(0..middle, above);
                run(middle..all, below);
                failures.check_bits(kernels, (case, window), &got, &want);
            };
            let greatest = |_, taps: &[(usize, f32)]| taps.iter().fold(f32::NEG_INFINITY, |a, t| a.max(t.1));
            check("max_pool_f32", &|p, y| kernels.max_pool_f32(&x, &taps, channels, p, y), want(&greatest));
            for padding_counts in [false, true] {
                let mean = |_, taps: &[(usize, f32)]| {
                    let count = if padding_counts { window.taps() } else { taps.len().max(1) };
                    taps.iter().fold(0.0, |sum, t| sum + t.1) / count as f32
                };
                let run = |p: Range<usize>, y: &mut [f32]| {
                    kernels.average_pool_f32(&x, &taps, channels, padding_counts, p, y);
                };
                check("average_pool_f32", &run, want(&mean));
            }
            let weighted = |c: usize, taps: &[(usize, f32)]| {
                let chain = |sum, &(t, x): &(usize, f32)| weights[t * channels + c].mul_add(x, sum);
                taps.iter().fold(start[c], chain).clamp(-0.25, 2.5)
            };
            let width = window.output[1];
            let run = |p: Range<usize>, y: &mut [f32]| {
                let rows = p.start / width..p.end / width;
                kernels.depthwise_f32(&x, &window, &filters, [-0.25, 2.5], rows, y);
            };
            check("depthwise_f32", &run, want(&weighted));
        }
    }
}

fn bordered(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(13);
    for channels in [1, 2, 3, 5] {
        for (input, pad, size) in
            [([4, 5], [1, 2], [7, 9]), ([3, 33], [0, 0], [3, 33]), ([1, 1], [2, 0], [3, 4])]
        {
            let x = random.u8s(input[0] * input[1] * channels);
            for planar in [false, true] {
                let params = Bordered { planar, input, channels, pad, size };
                let mut got = vec![0; params.len()];
                let (above, below) = got.split_at_mut(2 * size[1] * channels);
                kernels.border(&x, &params, 77, 0..2, above);
                kernels.border(&x, &params, 77, 2..size[0], below);
                let want: Vec<u8> = (0..params.len())
                    .map(|i| {
                        let (c, column, row) = (i % channels, i / channels % size[1], i / channels / size[1]);
                        let inside =
                            |at: usize, axis: usize| at.checked_sub(pad[axis]).filter(|&p| p < input[axis]);
                        match (inside(row, 0), inside(column, 1)) {
                            (Some(y), Some(x_)) if planar => x[(c * input[0] + y) * input[1] + x_],
                            (Some(y), Some(x_)) => x[(y * input[1] + x_) * channels + c],
                            _ => 77,
                        }
                    })
                    .collect();
                failures.check(kernels, ("border", params), &got, &want);
                let values: Vec<f32> = x.iter().map(|&x| f32::from(x) - 77.0).collect();
                let mut got = vec![1.0; params.len()];
                kernels.border_f32(&values, &params, 0..size[0], &mut got);
                let want: Vec<f32> = want.iter().map(|&x| f32::from(x) - 77.0).collect();
                failures.check_bits(kernels, ("border_f32", params), &got, &want);
            }
        }
    }
}

#[test]
fn windows_are_gathered_as_defined() {
    let mut random = Random(12);
    for channels in [1, 3, 8] {
        for window in windows(channels) {
            // Padding is 255, which no byte of this image equals.
            let x = random.u8s(window.input[0] * window.input[1] * channels);
            let x: Vec<u8> = x.iter().map(|&b| b.min(250)).collect();
            let taps = Taps::new(&window).unwrap();
            let rows = (0..taps.pixels())
                .map(|row| taps.inside(row).flat_map(|o| &x[o..][..channels]).copied().collect::<Vec<u8>>());
            let want = definition::im2col(&window, &x, 255);
            let want = want.chunks(window.taps() * channels);
            let want = want.map(|w| w.iter().copied().filter(|&b| b != 255).collect::<Vec<u8>>());
            assert!(rows.eq(want), "{window:?}");
        }
    }
}
