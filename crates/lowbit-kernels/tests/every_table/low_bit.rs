//! Products with weights in codes.

use lowbit_kernels::{
    CodeValues, CodedBlock, Kernels, LowBitRows, LowBitShape, LowBitWeights, Matrix, MatrixMut, Product,
    Right, Rows, Start,
};

use super::product::reals;
use super::{Failures, Random};

/// A matrix of weights and what it was made of.
struct Sample {
    shape: LowBitShape,
    values: CodeValues,
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<i8>,
    packed: LowBitWeights,
}

impl Sample {
    fn new(random: &mut Random, shape: LowBitShape, table: bool, zeros: bool) -> Sample {
        let LowBitShape { bits, depth, columns, .. } = shape;
        let codes = random.u8s(depth * columns);
        let scales: Vec<f32> = random.f32s(shape.blocks() * columns, 0.1).iter().map(|s| s + 0.001).collect();
        let middle = 1 << (bits - 1);
        let zero = |q: i8| if zeros { (i32::from(q).rem_euclid(2 * middle) - middle) as i8 } else { 0 };
        let zeros: Vec<i8> = random.i8s(shape.blocks() * columns).into_iter().map(zero).collect();
        let values = match table {
            true => CodeValues::Table(random.f32s(1 << bits, 2.0).iter().map(|x| x - 1.0).collect()),
            false => CodeValues::Integers,
        };
        let at = |i: usize, n: usize| i * columns + n;
        let packed = LowBitWeights::new(
            shape,
            values.clone(),
            |k, n| codes[at(k, n)],
            |b, n| scales[at(b, n)],
            |b, n| zeros[at(b, n)],
        );
        Sample { shape, values, codes, scales, zeros, packed }
    }

    fn code(&self, k: usize, n: usize) -> i32 {
        let (code, bits) = (self.codes[k * self.shape.columns + n], self.shape.bits);
        match &self.values {
            CodeValues::Integers => i32::from((code << (8 - bits)).cast_signed() >> (8 - bits)),
            CodeValues::Table(_) => i32::from(code & ((1u16 << bits) - 1) as u8),
        }
    }

    fn of_block(&self, k: usize, n: usize) -> (f32, i8) {
        let at = k / self.shape.block * self.shape.columns + n;
        (self.scales[at], self.zeros[at])
    }

    /// The weights in f32, row-major.
    fn weights(&self) -> Vec<f32> {
        let LowBitShape { depth, columns, .. } = self.shape;
        let at = |i: usize| {
            let (k, n) = (i / columns, i % columns);
            let ((scale, zero), code) = (self.of_block(k, n), self.code(k, n));
            let value = match &self.values {
                CodeValues::Integers => code as f32,
                CodeValues::Table(table) => table[code as usize],
            };
            (value - f32::from(zero)) * scale
        };
        (0..depth * columns).map(at).collect()
    }
}

fn shapes() -> Vec<LowBitShape> {
    let mut shapes = vec![];
    for bits in [2, 4, 8] {
        for columns in [0, 1, 15, 16, 17, 63, 65, 127, 128, 129, 200] {
            for (depth, block) in
                [(0, 16), (1, 16), (33, 16), (31, 32), (96, 32), (70, 128), (17, 17), (530, 256)]
            {
                shapes.push(LowBitShape { bits, depth, columns, block });
            }
        }
    }
    shapes
}

pub fn in_f32(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(31);
    for (i, shape) in shapes().into_iter().enumerate() {
        for table in [false, true] {
            let LowBitShape { depth, columns, .. } = shape;
            let sample = Sample::new(&mut random, shape, table, i % 3 == 1);
            let weights = sample.weights();
            let case = (shape, table);
            for n in 0..columns.min(3) {
                let mut got = vec![f32::NAN; depth];
                sample.packed.column(n, &mut got);
                let want: Vec<f32> = (0..depth).map(|k| weights[k * columns + n]).collect();
                failures.check_bits(kernels, (case, "column"), &got, &want);
            }
            for m in [0, 1, 2, 9] {
                let x = reals(&mut random, m * depth, i % 4 == 3);
                let start = random.f32s(m * columns, 1.0);
                let mut want = start.clone();
                let right = Right::Matrix(Matrix::new(&weights, depth, columns));
                let product = Product { start: Start::Out, ..Product::new(Matrix::new(&x, m, depth), right) };
                kernels.product(&product, &mut MatrixMut::new(&mut want, m, columns));
                for at in 0..=sample.packed.groups() {
                    let mut got = start.clone();
                    let split = sample.packed.columns_of(0..at).end;
                    let (mut left, mut right) = MatrixMut::new(&mut got, m, columns).split_cols(split);
                    let rows = || Rows::strided(&x, depth, m, depth);
                    kernels.low_bit_product(&sample.packed, 0..at, rows(), &mut left);
                    kernels.low_bit_product(&sample.packed, at..sample.packed.groups(), rows(), &mut right);
                    failures.check_bits(kernels, (case, m, at), &no_nan(&got), &no_nan(&want));
                }
            }
            unpacked(kernels, failures, &sample, &weights);
        }
    }
}

/// NaNs, whose signs nothing defines, as one.
fn no_nan(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| if x.is_nan() { f32::NAN } else { x }).collect()
}

fn unpacked(kernels: &Kernels, failures: &mut Failures, sample: &Sample, weights: &[f32]) {
    let LowBitShape { bits, depth, columns, .. } = sample.shape;
    let word = 32 / bits;
    let second = if depth > word { word } else { 0 };
    for (first, rows) in [(0, 0..depth), (1, second..depth), (0, 0..depth.saturating_sub(1))] {
        let width = 32;
        let mut panel = vec![0.0; rows.len() * width];
        kernels.low_bit_unpack(&sample.packed, first, rows.clone(), width, &mut panel);
        let count = width.min(columns.saturating_sub(16 * first));
        let got: Vec<f32> = panel.chunks(width).flat_map(|row| &row[..count]).copied().collect();
        let want: Vec<f32> = rows
            .flat_map(|k| &weights[k * columns..][(16 * first).min(columns)..][..count])
            .copied()
            .collect();
        failures.check_bits(kernels, (sample.shape, "panel", first), &got, &want);
    }
}

pub fn in_integers(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(32);
    for (i, shape) in shapes().into_iter().enumerate() {
        let LowBitShape { depth, columns, block, .. } = shape;
        let sample = Sample::new(&mut random, shape, false, i % 3 == 1);
        assert!(sample.packed.has_integers());
        for m in [0, 1, 5, 8] {
            let x = random.f32s(m * depth, 2.0).iter().map(|x| x - 1.0).collect::<Vec<_>>();
            let start = random.f32s(m * columns, 1.0);
            let mut want = start.clone();
            for (m, x) in x.chunks_exact(depth.max(1)).enumerate() {
                for n in 0..columns {
                    let total = &mut want[m * columns + n];
                    for (b, x) in x.chunks(block).enumerate() {
                        let (codes, of_block) = quantized(x);
                        let (scale, zero) = sample.of_block(b * block, n);
                        let product =
                            |(i, q): (usize, &i32)| q * (sample.code(b * block + i, n) - i32::from(zero));
                        let acc: i32 = codes.iter().enumerate().map(product).sum();
                        *total = (of_block.scale * scale).mul_add(acc as f32, *total);
                    }
                }
            }
            let mut memory = vec![0xa5; LowBitRows::bytes(&sample.packed, m)];
            let rows = Rows::strided(&x, depth, m, depth);
            let rows = LowBitRows::quantized(kernels, &sample.packed, rows, &mut memory);
            for at in 0..=sample.packed.groups() {
                let mut got = start.clone();
                let split = sample.packed.columns_of(0..at).end;
                let (mut left, mut right) = MatrixMut::new(&mut got, m, columns).split_cols(split);
                kernels.low_bit_integers(&sample.packed, 0..at, &rows, &mut left);
                kernels.low_bit_integers(&sample.packed, at..sample.packed.groups(), &rows, &mut right);
                failures.check_bits(kernels, (shape, m, at), &got, &want);
            }
        }
    }
}

/// The codes of a block by their definition.
fn quantized(x: &[f32]) -> (Vec<i32>, CodedBlock) {
    let scale = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let codes: Vec<i32> =
        x.iter().map(|x| (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i32).collect();
    let sum = codes.iter().sum();
    (codes, CodedBlock { scale, sum })
}

pub fn blocks_of_codes(kernels: &Kernels, failures: &mut Failures) {
    let mut random = Random(33);
    for (len, block) in [(0, 1), (1, 16), (33, 32), (64, 32), (100, 1000), (259, 7)] {
        let mut x: Vec<f32> = random.f32s(len, 2.0).iter().map(|x| x - 1.0).collect();
        // Ties, and a block of zeros.
        x.iter_mut().zip([127.0, 0.5, 1.5, -2.5, 126.5]).for_each(|(x, tie)| *x = tie);
        x.iter_mut().skip(32).take(32).for_each(|x| *x = 0.0);
        let mut codes = vec![0x55; len];
        let mut blocks = vec![CodedBlock::default(); len.div_ceil(block)];
        kernels.quantize_blocks(&x, block, &mut codes, &mut blocks);
        let want: Vec<_> = x.chunks(block).map(quantized).collect();
        let want_codes: Vec<i8> = want.iter().flat_map(|(codes, _)| codes).map(|&q| q as i8).collect();
        failures.check(kernels, ("codes", len, block), &codes, &want_codes);
        let want: Vec<CodedBlock> = want.into_iter().map(|(_, of_block)| of_block).collect();
        failures.check(kernels, ("blocks", len, block), &blocks, &want);
    }
}
