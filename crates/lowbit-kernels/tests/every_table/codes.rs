//! Products of two matrices of codes, one of which is packed at run time.

use lowbit_kernels::{CodeMatrix, Grid, Kernels, Output, Requant, Rows, Weights};

use crate::{Failures, Random, definition};

/// `sum_k (a[i][k] - zeros[0]) * (b[k][n] - zeros[1])`, the codes of row i and of
/// column n given by functions.
struct Case<'a> {
    size: [usize; 3],
    zeros: [i32; 2],
    a: &'a [u8],
    a_stride: usize,
    b: &'a [u8],
    strides: [usize; 2],
}

impl Case<'_> {
    fn sums(&self) -> Vec<i32> {
        let [rows, columns, depth] = self.size;
        let a = |i: usize, k: usize| i32::from(self.a[i * self.a_stride + k]) - self.zeros[0];
        let b =
            |k: usize, n: usize| i32::from(self.b[k * self.strides[0] + n * self.strides[1]]) - self.zeros[1];
        let sum = |i: usize| (0..depth).map(|k| a(i / columns, k) * b(k, i % columns)).sum();
        (0..rows * columns).map(sum).collect()
    }

    fn check(&self, kernels: &Kernels, failures: &mut Failures) {
        let Case { size, zeros, a, a_stride, b, strides } = *self;
        let [rows, columns, depth] = size;
        let want = self.sums();
        let (za, zb) = (zeros[0], zeros[1] - 128);
        // Not where a line begins, and with other values than 0 in it.
        let mut memory = vec![0xa5; Weights::bytes(depth, columns) + 1];
        kernels.pack_codes(&CodeMatrix::new(b, depth, columns, strides), &mut memory[1..]);
        let weights = Weights::of_codes(&memory[1..], depth, columns);
        let mut terms = vec![0; rows];
        kernels.row_sums(a, a_stride, depth, -zb, &mut terms);
        let constant = za * zb * depth as i32;
        let bias: Vec<i32> = weights.column_sums().iter().map(|sum| constant - za * sum).collect();
        let left = Rows::strided(a, a_stride, rows, depth).with_terms(&terms);
        let panels = 0..weights.panels();

        let mut out = vec![0; rows * columns];
        let to = Output::I32 { bias: Some(&bias), out: Grid::new(&mut out, rows, columns, columns) };
        kernels.gemm(&left, weights, panels.clone(), to);
        failures.check(kernels, (size, zeros, "i32"), &out, &want);

        let multiplier: Vec<f32> = (0..columns).map(|n| 1e-3 / (1 + n % 3) as f32).collect();
        let requant = Requant { bias: &vec![0; columns], multiplier: &multiplier, zero: 100, lo: 1, hi: 254 };
        let requantized = |i: usize| definition::requantize_channel(want[i], i % columns, &requant);
        let mut out = vec![0; rows * columns];
        let to = Output::U8 {
            requant: Requant { bias: &bias, ..requant },
            residual: None,
            out: Grid::new(&mut out, rows, columns, columns),
        };
        kernels.gemm(&left, weights, panels.clone(), to);
        let codes: Vec<u8> = (0..want.len()).map(requantized).collect();
        failures.check(kernels, (size, zeros, "u8"), &out, &codes);

        // The last rows of a product of several parts.
        let from = rows / 2;
        let mut out = vec![0.0; (rows - from) * columns];
        let to = Output::F32 {
            bias: &bias,
            multiplier: &multiplier,
            out: Grid::new(&mut out, rows - from, columns, columns),
        };
        kernels.gemm(&left.range(from..rows), weights, panels, to);
        let values: Vec<f32> =
            (from * columns..want.len()).map(|i| want[i] as f32 * multiplier[i % columns]).collect();
        failures.check_bits(kernels, (size, zeros, "f32"), &out, &values);
    }
}

pub fn products(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(31);
    let sizes = (1..=9)
        .map(|depth| [3, 5, depth])
        .chain([1, 16, 17, 31, 32, 33, 63, 64, 65].map(|columns| [5, columns, 8]))
        .chain([[0, 3, 4], [2, 3, 0], [1, 1, 1], [13, 40, 131], [128, 64, 65], [50, 40, 133]]);
    for size @ [rows, columns, depth] in sizes.collect::<Vec<_>>() {
        let a_stride = depth + 2;
        let a = random.u8s(rows * a_stride);
        for (strides, len) in
            [([columns + 1, 1], depth * (columns + 1)), ([1, depth + 3], columns * (depth + 3))]
        {
            let b = random.u8s(len);
            for zeros in [[0, 128], [128, 0], [7, 255], [255, 130]] {
                Case { size, zeros, a: &a, a_stride, b: &b, strides }.check(kernels, failures);
            }
        }
    }
}

/// The extremes of codes and zero points, of which the deepest sums just fit i32.
pub fn extremes(kernels: &Kernels, failures: &mut Failures) {
    for depth in [16, 67, Weights::MOST_CODES] {
        let size = [2, 33, depth];
        for (a, za) in [(0, 255), (255, 0), (255, 255)] {
            for (b, zb) in [(0, 255), (255, 0), (0, 0), (127, 0)] {
                let (a, b) = (vec![a; 2 * depth], vec![b; 33 * depth]);
                let case = Case { size, zeros: [za, zb], a: &a, a_stride: depth, b: &b, strides: [33, 1] };
                case.check(kernels, failures);
            }
        }
    }
}
