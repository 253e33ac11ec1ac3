//! Matrix products of values that are quantized in each run.

use std::ops::Range;
use std::sync::Arc;

use lowbit_kernels::{Kernels, Output, PackedWeights, Rows};
use rayon::prelude::*;

use super::product::{End, Out, Product};
use crate::error::{Result, invalid};
use crate::op::{Dim, Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::ops::quantize::dynamic_step;
use crate::parallel;
use crate::session::images::fact;
use crate::tensor::{DType, Tensor};

/// Elements that one task looks at or quantizes.
const CHUNK: usize = 1 << 15;

/// `y[i][n] = (sum_k (q[i][k] - z) w[n][k]) as f32 * (s * s_w[n]) + bias[n]`, where
/// `q`, `s` and `z` are what [`dynamic_step`] gives for the range of all `x`, or of
/// its row `i` (docs/quantization.md, equation 23).
#[derive(Clone, Debug)]
pub struct DynamicLinear {
    weights: Arc<PackedWeights>,
    scale: Arc<[f32]>,
    bias: Option<Arc<[f32]>>,
    by_rows: bool,
}

impl DynamicLinear {
    /// The product with int8 weights given as `[n][k]`, of scale `scale[n]`; each
    /// row of the other operand has a range of its own if `by_rows`.
    pub fn new(weights: &[i8], columns: usize, scale: Vec<f32>, by_rows: bool) -> DynamicLinear {
        let depth = weights.len().checked_div(columns).unwrap_or(0);
        let weights = Arc::new(PackedWeights::new(weights, columns, depth));
        DynamicLinear { weights, scale: scale.into(), bias: None, by_rows }
    }

    /// The same product with a bias for each column; `None` if it has one or
    /// another number of columns.
    pub fn biased(&self, bias: &[f32]) -> Option<DynamicLinear> {
        let fits = self.bias.is_none() && bias.len() == self.weights.columns();
        fits.then(|| DynamicLinear { bias: Some(bias.into()), ..self.clone() })
    }
}

impl Op for DynamicLinear {
    fn name(&self) -> &'static str {
        "DynamicLinear"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        let mut shape = x[0].shape.clone();
        match shape.last_mut() {
            Some(last) => *last = Dim::Known(self.weights.columns()),
            None => return Err(invalid!("a product of a scalar")),
        }
        fact(DType::F32, shape)
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let depth = self.weights.depth();
        match x[0].shape.split_last() {
            Some((&last, rows)) if last == depth => {
                Prepared::routine(Linear { op: self.clone(), rows: rows.iter().product() })
            }
            _ => Err(invalid!("expected rows of {depth} values, found {:?}", x[0].shape)),
        }
    }
    fn macs(&self, _: &[&Fact], y: &[&Fact]) -> u64 {
        y[0].elements().saturating_mul(self.weights.depth() as u64)
    }
}

/// A [`DynamicLinear`] of known size.
#[derive(Debug)]
struct Linear {
    op: DynamicLinear,
    rows: usize,
}

impl Linear {
    /// The number of ranges.
    fn ranges(&self) -> usize {
        if self.op.by_rows { self.rows } else { 1 }
    }

    /// Bytes of the codes.
    fn codes(&self) -> usize {
        self.rows * self.op.weights.depth()
    }
}

impl Routine for Linear {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, scratch: &mut [u8]) -> Result<()> {
        let DynamicLinear { weights, scale: of_weights, bias, by_rows } = &self.op;
        let (x, depth) = (x[0].f32()?, weights.depth());
        let (codes, steps) = scratch[..self.scratch()].split_at_mut(self.codes());
        let (_, steps, _) = bytemuck::pod_align_to_mut::<u8, f32>(steps);
        let (scale, zero) = steps[..2 * self.ranges()].split_at_mut(self.ranges());
        let zero: &mut [i32] = bytemuck::cast_slice_mut(zero);
        match by_rows {
            true => quantize_rows(x, depth, codes, scale, zero),
            false => (scale[0], zero[0]) = quantize_all(x, codes),
        }
        Product {
            rows: Rows::strided(codes, depth, self.rows, depth),
            weights: weights.view(),
            panels: 0..weights.panels(),
            end: Dequantized { scale, zero, sums: weights.column_sums(), of_weights, bias: bias.as_deref() },
            out: Out::new(y, self.rows, weights.columns())?,
        }
        .run();
        Ok(())
    }
    fn scratch(&self) -> usize {
        // Scales and zero points, from the first word behind the codes on.
        self.codes() + (2 * self.ranges() + 1) * size_of::<f32>()
    }
    fn strided(&self) -> bool {
        true
    }
    fn algorithm(&self) -> &'static str {
        "dynamic gemm"
    }
}

/// Quantizes `x` by its range, and tells scale and zero point.
pub fn quantize_all(x: &[f32], codes: &mut [u8]) -> (f32, i32) {
    let union = |(a, b): (f32, f32), (c, d): (f32, f32)| (a.min(c), b.max(d));
    let (lo, hi) = match x.len() > CHUNK && rayon::current_num_threads() > 1 {
        true => x.par_chunks(CHUNK).map(range).reduce(|| (0.0, 0.0), union),
        false => range(x),
    };
    let (scale, zero) = dynamic_step(lo, hi);
    parallel::chunks(codes, CHUNK, |i, codes| {
        Kernels::best().quantize_u8(&x[i * CHUNK..][..codes.len()], scale, zero, 0, 255, codes);
    });
    (scale, zero)
}

/// The range of some values and 0.
fn range(x: &[f32]) -> (f32, f32) {
    let found = Kernels::best().min_max(x);
    (found.min.min(0.0), found.max.max(0.0))
}

/// Quantizes each run of `depth` values of `x` by its range; scales and zero
/// points are told.
fn quantize_rows(x: &[f32], depth: usize, codes: &mut [u8], scales: &mut [f32], zeros: &mut [i32]) {
    if depth == 0 {
        return scales.fill(1.0);
    }
    let some = |x: &[f32], codes: &mut [u8], scales: &mut [f32], zeros: &mut [i32]| {
        let rows = x.chunks_exact(depth).zip(codes.chunks_exact_mut(depth));
        for ((x, codes), (scale, zero)) in rows.zip(scales.iter_mut().zip(zeros)) {
            let (lo, hi) = range(x);
            (*scale, *zero) = dynamic_step(lo, hi);
            Kernels::best().quantize_u8(x, *scale, *zero, 0, 255, codes);
        }
    };
    let together = (CHUNK / depth).max(1);
    if scales.len() <= together || rayon::current_num_threads() == 1 {
        return some(x, codes, scales, zeros);
    }
    let values = x.par_chunks(together * depth).zip(codes.par_chunks_mut(together * depth));
    let steps = scales.par_chunks_mut(together).zip(zeros.par_chunks_mut(together));
    values.zip(steps).for_each(|((x, codes), (scales, zeros))| some(x, codes, scales, zeros));
}

/// Accumulators dequantized by the codes of their row and column.
#[derive(Clone, Copy)]
pub struct Dequantized<'a> {
    /// The scale of each row, or that of all.
    pub scale: &'a [f32],
    /// The zero point of each row, or that of all.
    pub zero: &'a [i32],
    /// The sum of each column's weights.
    pub sums: &'a [i32],
    /// The scale of each column's weights.
    pub of_weights: &'a [f32],
    /// Added to each column.
    pub bias: Option<&'a [f32]>,
}

impl<'a> End<'a> for Dequantized<'a> {
    fn below(self, at: usize) -> Self {
        let at = if self.scale.len() == 1 { 0 } else { at };
        Dequantized { scale: &self.scale[at..], zero: &self.zero[at..], ..self }
    }

    fn beside(self, _: usize) -> Self {
        self
    }

    fn output(self, columns: Range<usize>, out: Out<'a>) -> Output<'a> {
        let Dequantized { scale, zero, sums, of_weights, bias } = self;
        let (sums, multiplier) = (&sums[columns.clone()], &of_weights[columns.clone()]);
        match out {
            Out::F32(out) => {
                let steps = if scale.len() == 1 { 1 } else { out.rows() };
                let (scale, zero) = (&scale[..steps], &zero[..steps]);
                Output::Rows { scale, zero, sums, multiplier, bias: bias.map(|b| &b[columns]), out }
            }
            Out::U8(_) => unreachable!("the result is f32"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::quantize::DynamicQuantizeLinear;

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let value = |i: u64| ((i + 1).wrapping_mul(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32;
        (0..len as u64).map(|i| value(i) / 8_388_608.0 - 0.9).collect()
    }

    /// The formula, element by element.
    fn definition(
        x: &[f32],
        w: &[i8],
        [depth, columns]: [usize; 2],
        scale: &[f32],
        bias: Option<&[f32]>,
        by_rows: bool,
    ) -> Vec<f32> {
        let mut y = vec![];
        let run = if by_rows { depth } else { x.len() };
        for x in x.chunks(run.max(1)) {
            let made = DynamicQuantizeLinear.eval(&[&Tensor::vector(x.to_vec())]).unwrap();
            let (s, z) = (made[1].item::<f32>().unwrap(), i32::from(made[2].item::<u8>().unwrap()));
            for q in made[0].slice::<u8>().unwrap().chunks(depth) {
                for n in 0..columns {
                    let products =
                        q.iter().zip(&w[n * depth..]).map(|(q, w)| (i32::from(*q) - z) * i32::from(*w));
                    let product = products.sum::<i32>() as f32 * (s * scale[n]);
                    y.push(bias.map_or(product, |bias| product + bias[n]));
                }
            }
        }
        y
    }

    proptest! {
        #[test]
        fn any_product_equals_the_definition(
            rows in 0usize..70, columns in 1usize..70, depth in 1usize..200, by_rows: bool, biased: bool, seed in 1u64..1000,
        ) {
            let (x, w) = (noise(rows * depth, seed), noise(columns * depth, seed + 7));
            let w: Vec<i8> = w.iter().map(|w| (w * 127.0) as i8).collect();
            let (scale, bias) = (noise(columns, 3), noise(columns, 5));
            let mut op = DynamicLinear::new(&w, columns, scale.clone(), by_rows);
            if biased {
                op = op.biased(&bias).unwrap();
            }
            let want = definition(&x, &w, [depth, columns], &scale, biased.then_some(&bias[..]), by_rows);
            let x = Tensor::new(&[rows, depth], x).unwrap();
            for threads in [1, 2] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let y = pool.install(|| op.eval(&[&x])).unwrap().remove(0);
                prop_assert_eq!(y.slice::<f32>().unwrap(), &want[..]);
            }
        }
    }

    #[test]
    fn large_products_in_tasks_equal_the_definition() {
        let (rows, columns, depth) = (300, 130, 400);
        let (x, w) = (noise(rows * depth, 11), noise(columns * depth, 13));
        let w: Vec<i8> = w.iter().map(|w| (w * 127.0) as i8).collect();
        let scale = noise(columns, 3);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        for by_rows in [false, true] {
            let op = DynamicLinear::new(&w, columns, scale.clone(), by_rows);
            let want = definition(&x, &w, [depth, columns], &scale, None, by_rows);
            let x = Tensor::new(&[rows, depth], x.clone()).unwrap();
            let y = pool.install(|| op.eval(&[&x])).unwrap().remove(0);
            assert_eq!(y.slice::<f32>().unwrap(), want);
        }
    }
}
