//! The f32 product and what packs its right matrix.

use lowbit_kernels::{
    Gather, Kernels, Matrix, MatrixMut, Panels, Product, Right, Rows, Run, Start, Window, Windows,
};

use super::{Failures, Random, definition};

/// NaN has many forms, of which any will do.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// The chain of fused multiply-adds of each output, one at a time, for these
/// rows on the left.
fn chains<'a>(product: &Product<'_>, left: impl Fn(usize) -> &'a [f32], right: Matrix<'_>, out: &mut [f32]) {
    let [depth, cols] = right.size();
    for (i, out) in out.chunks_exact_mut(cols.max(1)).enumerate() {
        for (j, out) in out.iter_mut().enumerate() {
            let mut sum = match product.start {
                Start::Zero => 0.0,
                Start::Rows(values) => values[i],
                Start::Cols(values) => values[j],
                Start::Out => *out,
            };
            for k in 0..depth {
                sum = left(i)[k].mul_add(right.row(k)[j], sum);
            }
            let sum = if sum < product.lo { product.lo } else { sum };
            *out = if sum > product.hi { product.hi } else { sum };
        }
    }
}

/// `right` as panels, columns that do not exist as NaN.
fn packed(right: Matrix<'_>, width: usize) -> Vec<f32> {
    let [rows, cols] = right.size();
    let mut data = vec![f32::NAN; Panels::len(rows, cols, width)];
    for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
        data[j / width * width * rows + i * width + j % width] = right.row(i)[j];
    }
    data
}

/// Values about 0, some of them extreme if `special`.
pub fn reals(random: &mut Random, len: usize, special: bool) -> Vec<f32> {
    let mut x: Vec<f32> = random.f32s(len, 2.0).iter().map(|x| x - 1.0).collect();
    if special {
        let values =
            [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, -0.0, 1e-40, f32::MIN_POSITIVE];
        for (i, value) in values.into_iter().enumerate() {
            if let Some(x) = x.get_mut(11 * i + 3) {
                *x = value;
            }
        }
    }
    x
}

pub fn products(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(20);
    let (rows, width) = (kernels.product_rows(), kernels.panel_width());
    let heights = [0, 1, 2, rows - 1, rows, rows + 1, 2 * rows + 3];
    let widths = [0, 1, 7, 8, 9, 15, 16, 17, 31, width - 1, width, width + 1, 2 * width + 13];
    let depths = [0, 1, 2, 3, 4, 5, 9, 64];
    for (i, j) in (0..heights.len()).flat_map(|i| (0..widths.len()).map(move |j| (i, j))) {
        for depth in depths {
            let (m, p, special) = (heights[i], widths[j], (i + j + depth) % 3 == 0);
            // Views into larger matrices: rows lie further apart than they are long.
            let (a, b) = (
                reals(&mut random, (m + 1) * (depth + 3), special),
                reals(&mut random, depth * (p + 5), special),
            );
            let left = Matrix::new(&a, m, depth + 3).cols(2, depth);
            let right = Matrix::new(&b, depth, p + 5).cols(5, p);
            let narrow = if width > kernels.panel_step() { width - kernels.panel_step() } else { 5 };
            let [panels, narrow_panels] = [width, narrow].map(|width| packed(right, width));
            let (starts, biases) = (reals(&mut random, m, special), reals(&mut random, p, special));
            let before = reals(&mut random, m * (p + 3), special);
            let columns = [
                Right::Matrix(right),
                Right::Panels(Panels::new(&panels, depth, p, width)),
                Right::Panels(Panels::new(&narrow_panels, depth, p, narrow).followed_by(&panels)),
            ];
            for (start, lo, hi) in [
                (Start::Zero, f32::NEG_INFINITY, f32::INFINITY),
                (Start::Rows(&starts), 0.0, f32::INFINITY),
                (Start::Cols(&biases), f32::NEG_INFINITY, 6.0),
                (Start::Out, -0.5, 0.5),
            ] {
                for (form, right_form) in columns.into_iter().enumerate() {
                    let product = Product { left: left.into(), right: right_form, start, lo, hi };
                    let case = ("product", [m, depth, p], form, special, (lo, hi));
                    // Columns beside the output must stay as they are.
                    let (mut got, mut want) = (before.clone(), before.clone());
                    let (mut inner, _) = MatrixMut::new(&mut got, m, p + 3).split_cols(p);
                    kernels.product(&product, &mut inner);
                    let mut exact: Vec<f32> =
                        before.chunks_exact(p + 3).take(m).flat_map(|row| &row[..p]).copied().collect();
                    chains(&product, |i| left.row(i), right, &mut exact);
                    for (want, exact) in want.chunks_exact_mut(p + 3).zip(exact.chunks_exact(p.max(1))) {
                        want[..p].copy_from_slice(&exact[..p]);
                    }
                    failures.check(kernels, case, &bits(&got), &bits(&want));
                }
            }
        }
    }
}

/// Products of windows that are read where they lie, and of some columns of panels.
pub fn windows(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(22);
    let width = kernels.panel_width();
    for (channels, window) in
        [1, 2, 3, 5, 16].into_iter().flat_map(|c| super::windows(c).into_iter().map(move |w| (c, w)))
    {
        let window = Window { pad: [0, 0], output: window.output.map(|n| n / 3), ..window };
        let (depth, cols) = (window.taps() * channels, 2 * width + 5);
        let x = reals(&mut random, window.input[0] * window.input[1] * channels, false);
        let (b, biases) = (reals(&mut random, depth * cols, false), reals(&mut random, cols, false));
        let right = Matrix::new(&b, depth, cols);
        let panels = packed(right, width);
        let patches: Vec<f32> = definition::im2col(&window, &x, 0.0);
        let rows = patches.len() / depth;
        let windows = Windows::new(&window, 1).expect("a small image");
        let columns = Right::Panels(Panels::new(&panels, depth, cols, width).cols(width, width + 5));
        let left = Rows::gathered(&x, &windows, channels);
        let product = Product { start: Start::Cols(&biases[width..]), ..Product::new(left, columns) };
        let (mut got, mut want) = (vec![0.0; rows * (width + 5)], vec![0.0; rows * (width + 5)]);
        kernels.product(&product, &mut MatrixMut::new(&mut got, rows, width + 5));
        chains(&product, |i| &patches[i * depth..][..depth], right.cols(width, width + 5), &mut want);
        failures.check(kernels, ("product of windows", window), &bits(&got), &bits(&want));
    }
}

/// Products of right matrices whose rows begin before the last one ends: how far apart the rows of a
/// single one are says nothing.
pub fn overlapping(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(24);
    for (depth, cols, stride) in [(1, 30, 1), (1, 9, 0), (1, 70, 2), (4, 30, 1), (5, 17, 0), (3, 40, 16)] {
        let (rows, b) = (5, reals(&mut random, depth * stride + cols, false));
        let (a, right) = (reals(&mut random, rows * depth, false), Matrix::strided(&b, depth, cols, stride));
        let left = Matrix::new(&a, rows, depth);
        let product = Product::new(left, Right::Matrix(right));
        let (mut got, mut want) = (vec![f32::NAN; rows * cols], vec![0.0; rows * cols]);
        kernels.product(&product, &mut MatrixMut::new(&mut got, rows, cols));
        chains(&product, |i| left.row(i), right, &mut want);
        failures.check(kernels, ("overlapping rows", depth, cols, stride), &bits(&got), &bits(&want));
    }
}

pub fn gathered(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(21);
    let width = kernels.panel_width();
    let source = random.f32s(3 * 90, 1.0);
    let runs = |parts: &[[usize; 3]]| -> Vec<Run> {
        parts.iter().map(|&[from, to, len]| Run { from, to, len }).collect()
    };
    let cases = [
        runs(&[[0, 0, 16]]),
        runs(&[[5, 0, 3], [11, 3, 3], [17, 6, 3]]),
        runs(&[[0, 0, 13], [15, 13, 2]]),
        runs(&[[40, 0, 1]]),
    ];
    for runs in cases {
        let (taps, pitch, channels) = ([0, 3, 49], 90, 1..3);
        let rows = channels.len() * taps.len();
        let filled: usize = runs.iter().map(|r| r.len).sum();
        let mut got = vec![f32::NAN; rows * width];
        let from = Gather { source: &source, pitch, taps: &taps, runs: &runs };
        kernels.gather(&from, channels.clone(), width, &mut got);
        let got: Vec<f32> = got.chunks(width).flat_map(|row| &row[..filled]).copied().collect();
        let mut want = vec![];
        for (c, t) in channels.flat_map(|c| taps.map(|t| (c, t))) {
            want.extend(runs.iter().flat_map(|r| &source[c * pitch + t + r.from..][..r.len]));
        }
        failures.check_bits(kernels, ("gather", &runs), &got, &want);
    }
}

pub fn transposed(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(22);
    let width = kernels.panel_width();
    for (rows, cols) in [(0, 5), (1, 1), (3, 20), (8, 8), (9, 17), (width, 33), (width, 1)] {
        let stride = cols + 2;
        let source = random.f32s(rows * stride, 1.0);
        let mut got = vec![0.0; cols * width];
        kernels.transpose(Matrix::new(&source, rows, stride).cols(0, cols), width, &mut got);
        let mut want = vec![0.0; cols * width];
        for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
            want[j * width + i] = source[i * stride + j];
        }
        failures.check_bits(kernels, ("transpose", rows, cols), &got, &want);
    }
}

pub fn shifted_sums(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(23);
    for (len, taps, special) in [0, 1, 15, 16, 33, 100].into_iter().flat_map(|len| {
        [0, 1, 2, 3, 8, 9, 10, 25].into_iter().map(move |taps| (len, taps, (len + taps) % 2 == 0))
    }) {
        let x = reals(&mut random, len + 40, special);
        let weights = reals(&mut random, taps, false);
        let shifts: Vec<usize> = (0..taps).map(|t| (t * 17) % 40).collect();
        for bounds in [[f32::NEG_INFINITY, f32::INFINITY], [0.0, 0.5]] {
            let mut got = vec![f32::NAN; len];
            kernels.shifted_sums(&x, &shifts, &weights, 0.25, bounds, &mut got);
            let one = |i: usize| {
                let sum = shifts.iter().zip(&weights).fold(0.25f32, |sum, (s, w)| w.mul_add(x[s + i], sum));
                let sum = if sum < bounds[0] { bounds[0] } else { sum };
                if sum > bounds[1] { bounds[1] } else { sum }
            };
            let want: Vec<f32> = (0..len).map(one).collect();
            failures.check(kernels, ("shifted_sums", len, taps, bounds), &bits(&got), &bits(&want));
        }
    }
}
