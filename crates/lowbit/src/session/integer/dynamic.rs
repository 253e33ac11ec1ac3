//! Matrix products of values that are quantized in each run.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lowbit_kernels::{Grid, Kernels, Output, PackedWeights, Rows};

use super::coded_rows::{CHUNK, pitch, quantize, range_of_all, step};
use super::product::{End, Out, Product};
use crate::error::{Result, invalid};
use crate::op::{Dim, Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::ops::quantize::dynamic_step;
use crate::ops::unary::Unary;
use crate::ops::vectorized::{map_within, vectorized};
use crate::parallel;
use crate::session::images::fact;
use crate::tensor::{DType, Tensor};

/// Elements of a part of a result to which the function that follows is applied
/// while they are in the first-level cache.
const PART: usize = 8 << 10;
/// Bytes of rows that stay in the second-level cache while all weights pass.
const ROWS: usize = 256 << 10;

/// `y[i][n] = f((sum_k (q[i][k] - z) w[n][k]) as f32 * (s * s_w[n]) + bias[n])`, where
/// `q`, `s` and `z` are what [`dynamic_step`] gives for the range of all `x`, or of
/// its row `i` (docs/quantization.md, equation 23).
///
/// The first operand is `x`, or what [`DynamicQuantize`](super::coded_rows::DynamicQuantize)
/// makes of it.
#[derive(Clone, Debug)]
pub struct DynamicLinear {
    weights: Arc<PackedWeights>,
    scale: Arc<[f32]>,
    bias: Option<Arc<[f32]>>,
    /// Whether each row of `x` has a range of its own.
    pub by_rows: bool,
    after: After,
    /// Whether the result is what `DynamicQuantize` makes of `y`, each row by its own
    /// range or not.
    coded: Option<bool>,
}

/// What `f` is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum After {
    /// Nothing.
    Nothing,
    /// A function.
    Function(Unary),
    /// The sum with the second operand, of the result's shape.
    Addition,
}

impl DynamicLinear {
    /// The product with int8 weights given as `[n][k]`, of scale `scale[n]`; each
    /// row of the other operand has a range of its own if `by_rows`.
    pub fn new(weights: &[i8], columns: usize, scale: Vec<f32>, by_rows: bool) -> DynamicLinear {
        let depth = weights.len().checked_div(columns).unwrap_or(0);
        let weights = Arc::new(PackedWeights::new(weights, columns, depth));
        let (after, coded) = (After::Nothing, None);
        DynamicLinear { weights, scale: scale.into(), bias: None, by_rows, after, coded }
    }

    /// The same product with a bias for each column; `None` if it has one or
    /// another number of columns.
    pub fn biased(&self, bias: &[f32]) -> Option<DynamicLinear> {
        let fits = self.is_plain() && self.bias.is_none() && bias.len() == self.weights.columns();
        fits.then(|| DynamicLinear { bias: Some(bias.into()), ..self.clone() })
    }

    /// The same product followed by `after`, if nothing follows it yet.
    pub fn followed(&self, after: After) -> Option<DynamicLinear> {
        self.is_plain().then(|| DynamicLinear { after, ..self.clone() })
    }

    /// The same product with its result quantized, unless it is or another value is
    /// added.
    pub fn coded(&self, by_rows: bool) -> Option<DynamicLinear> {
        let fits = self.coded.is_none() && self.after != After::Addition;
        fits.then(|| DynamicLinear { coded: Some(by_rows), ..self.clone() })
    }

    fn is_plain(&self) -> bool {
        self.after == After::Nothing && self.coded.is_none()
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
        let (mut shape, columns) = (x[0].shape.clone(), self.weights.columns());
        let (dtype, width) = match self.coded {
            Some(_) => (DType::U8, pitch(columns)),
            None => (DType::F32, columns),
        };
        match shape.last_mut() {
            Some(last) => *last = Dim::Known(width),
            None => return Err(invalid!("a product of a scalar")),
        }
        fact(dtype, shape)
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let is_coded = x[0].dtype == DType::U8;
        let width = if is_coded { pitch(self.weights.depth()) } else { self.weights.depth() };
        let rows = match x[0].shape.split_last() {
            Some((&last, rows)) if last == width => rows.iter().product(),
            _ => return Err(invalid!("expected rows of {width} values, found {:?}", x[0].shape)),
        };
        match x.get(1) {
            Some(added) if added.shape.iter().product::<usize>() != rows * self.weights.columns() => {
                Err(invalid!("{:?} is not the shape of the product", added.shape))
            }
            _ => Prepared::routine(Linear { op: self.clone(), rows, is_coded }),
        }
    }
    fn macs(&self, x: &[&Fact], _: &[&Fact]) -> u64 {
        let depth = if x[0].dtype == DType::U8 { pitch(self.weights.depth()) } else { self.weights.depth() };
        let rows = x[0].elements().checked_div(depth as u64).unwrap_or(0);
        rows.saturating_mul((self.weights.depth() * self.weights.columns()) as u64)
    }
}

/// A [`DynamicLinear`] of known size.
#[derive(Debug)]
struct Linear {
    op: DynamicLinear,
    rows: usize,
    /// Whether the first operand is quantized already.
    is_coded: bool,
}

impl Linear {
    /// The number of ranges.
    fn ranges(&self) -> usize {
        if self.op.by_rows { self.rows } else { self.rows.min(1) }
    }

    /// Elements of the result, if it is quantized, and bytes of the operand, if it
    /// is not.
    fn sizes(&self) -> [usize; 2] {
        let [depth, columns] = [self.op.weights.depth(), self.op.weights.columns()];
        let values = if self.op.coded.is_some() { self.rows * columns } else { 0 };
        [values, if self.is_coded { 0 } else { self.rows * pitch(depth) }]
    }
}

impl Routine for Linear {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, scratch: &mut [u8]) -> Result<()> {
        let DynamicLinear { weights, scale: of_weights, bias, by_rows, after, coded: result } = &self.op;
        let (depth, columns) = (weights.depth(), weights.columns());
        let [values, codes] = self.sizes();
        let (_, words, _) = bytemuck::pod_align_to_mut::<u8, f32>(&mut scratch[..self.scratch()]);
        let (values, words) = words.split_at_mut(values);
        let (scale, words) = words.split_at_mut(self.ranges());
        let (zero, words) = words.split_at_mut(self.ranges());
        let zero: &mut [i32] = bytemuck::cast_slice_mut(zero);
        let coded = match x[0] {
            View::U8(coded) => coded,
            x => {
                let coded = &mut bytemuck::cast_slice_mut(words)[..codes];
                quantize(x.f32()?, depth, *by_rows, None, coded);
                coded
            }
        };
        for (row, (scale, zero)) in scale.iter_mut().zip(&mut *zero).enumerate() {
            (*scale, *zero) = step(coded, depth, row);
        }
        let extremes = Extremes::default();
        let following = match after {
            After::Nothing => Following::Nothing,
            After::Function(f) => Following::Function(*f),
            After::Addition => Following::Values(x[1].f32()?, columns),
        };
        let (scale, zero, bias) = (&*scale, &*zero, bias.as_deref());
        let product = Dequantized { scale, zero, sums: weights.column_sums(), of_weights, bias };
        let multiply = |out| {
            let extremes = (*result == Some(false)).then_some(&extremes);
            let rows = Rows::strided(coded, pitch(depth), self.rows, depth);
            let end = Followed { product, following, extremes };
            Product { rows, weights: weights.view(), panels: 0..weights.panels(), end, out }.run();
        };
        match *result {
            None => multiply(Out::new(y, self.rows, columns)?),
            Some(by_rows) => {
                multiply(Out::F32(Grid::new(values, self.rows, columns, columns)));
                quantize(values, columns, by_rows, Some(extremes.range()), y.u8()?);
            }
        }
        Ok(())
    }
    fn scratch(&self) -> usize {
        let [values, codes] = self.sizes();
        // From the first whole word on.
        (values + 2 * self.ranges() + codes.div_ceil(size_of::<f32>()) + 1) * size_of::<f32>()
    }
    fn strided(&self) -> bool {
        self.op.coded.is_none()
    }
    fn algorithm(&self) -> &'static str {
        match self.op.after {
            After::Nothing => "dynamic gemm",
            After::Function(_) => "dynamic gemm, function",
            After::Addition => "dynamic gemm, sum",
        }
    }
}

/// The range of what several tasks made, and 0.
#[derive(Default)]
struct Extremes {
    /// Bits of the distance of either end from 0: those of numbers that are not
    /// negative are in the order of these.
    ends: [AtomicU32; 2],
}

impl Extremes {
    fn include(&self, range: [f32; 2]) {
        for (end, value) in self.ends.iter().zip(range) {
            end.fetch_max(value.abs().to_bits(), Ordering::Relaxed);
        }
    }

    fn range(&self) -> [f32; 2] {
        let [lo, hi] = self.ends.each_ref().map(|end| f32::from_bits(end.load(Ordering::Relaxed)));
        [0.0 - lo, hi]
    }
}

/// What follows a product: an [`After`] with its operand, and the distance of this
/// one's rows.
#[derive(Clone, Copy)]
enum Following<'a> {
    Nothing,
    Function(Unary),
    Values(&'a [f32], usize),
}

/// A [`Dequantized`] product and what follows it.
#[derive(Clone, Copy)]
struct Followed<'a> {
    product: Dequantized<'a>,
    following: Following<'a>,
    /// Where the range of the results is wanted; of sums it is not told.
    extremes: Option<&'a Extremes>,
}

impl<'a> Followed<'a> {
    /// The same where the first `at` elements of the other values are left out.
    fn from(self, at: impl Fn(usize) -> usize) -> Self {
        let following = match self.following {
            Following::Values(x, pitch) => Following::Values(&x[at(pitch)..], pitch),
            other => other,
        };
        Followed { following, ..self }
    }

    /// Ends what the product has written.
    fn end(&self, out: &mut Grid<'_, f32>) {
        let range = match self.following {
            Following::Nothing => map_within(out, |x| x),
            Following::Function(f) => f.apply_within(out),
            Following::Values(x, pitch) => {
                let columns = out.columns();
                return vectorized(
                    #[inline(always)]
                    || {
                        for row in 0..out.rows() {
                            let x = &x[row * pitch..][..columns];
                            out.run(row, 0, columns).iter_mut().zip(x).for_each(|(y, x)| *y += x);
                        }
                    },
                );
            }
        };
        if let Some(extremes) = self.extremes {
            extremes.include(range);
        }
    }
}

impl<'a> End<'a> for Followed<'a> {
    fn below(self, at: usize) -> Self {
        Followed { product: self.product.below(at), ..self.from(|pitch| at * pitch) }
    }

    fn beside(self, at: usize) -> Self {
        self.from(|_| at)
    }

    fn output(self, columns: Range<usize>, out: Out<'a>) -> Output<'a> {
        self.product.output(columns, out)
    }

    /// Part by part, each ended before the next one.
    fn multiply(product: Product<'a, Self>) {
        let count = product.rows.count();
        let columns = product.weights.columns_of(product.panels.clone());
        let ends = !matches!(product.end, Followed { following: Following::Nothing, extremes: None, .. });
        let most = (ROWS / product.weights.depth().max(1)).max(Kernels::best().rows_together());
        let parts = if ends && count > most {
            let together = Kernels::best().rows_together();
            product.split_rows((count / 2).next_multiple_of(together))
        } else if ends && count * columns.len() > PART && product.panels.len() > 1 {
            product.split_panels()
        } else {
            let Product { rows, weights, panels, end, out } = product;
            let Out::F32(mut out) = out else { unreachable!("the result is f32") };
            let part = Out::F32(out.reborrow());
            Kernels::best().gemm(&rows, weights, panels, end.product.output(columns, part));
            if ends {
                end.end(&mut out);
            }
            return;
        };
        Self::multiply(parts.0);
        Self::multiply(parts.1);
    }
}

/// Quantizes `x` by its range, and tells scale and zero point.
pub fn quantize_all(x: &[f32], codes: &mut [u8]) -> (f32, i32) {
    let [lo, hi] = range_of_all(x);
    let (scale, zero) = dynamic_step(lo, hi);
    parallel::chunks(codes, CHUNK, |i, codes| {
        Kernels::best().quantize_u8(&x[i * CHUNK..][..codes.len()], scale, zero, 0, 255, codes);
    });
    (scale, zero)
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
    use crate::ops::binary::Arithmetic;
    use crate::ops::quantize::DynamicQuantizeLinear;
    use crate::session::integer::coded_rows::DynamicQuantize;

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
    #[test]
    fn what_follows_a_product_is_computed_with_it() {
        let functions = [After::Nothing, After::Function(Unary::Gelu { tanh: false }), After::Addition];
        let pools = [1, 2].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
        let mut failures = vec![];
        for (rows, columns, depth) in [(1, 700, 40), (13, 33, 8), (1500, 70, 400), (0, 5, 3), (3, 1, 0)] {
            let (x, w) = (noise(rows * depth, 11), noise(columns * depth, 13));
            let w: Vec<i8> = w.iter().map(|w| (w * 127.0) as i8).collect();
            let x = Tensor::new(&[rows, depth], x).unwrap();
            let other = Tensor::new(&[rows, columns], noise(rows * columns, 17)).unwrap();
            for (by_rows, after, coded) in [false, true].into_iter().flat_map(|by_rows| {
                let coded = [None, Some(false), Some(true)];
                functions.iter().flat_map(move |after| coded.map(|coded| (by_rows, *after, coded)))
            }) {
                let plain = DynamicLinear::new(&w, columns, noise(columns, 3), by_rows);
                let mut y = plain.eval(&[&x]).unwrap().remove(0);
                match after {
                    After::Nothing => {}
                    After::Function(f) => y = f.eval(&[&y]).unwrap().remove(0),
                    After::Addition => y = Arithmetic::Add.eval(&[&y, &other]).unwrap().remove(0),
                }
                let mut op = plain.followed(after).unwrap();
                if let Some(by_rows) = coded {
                    let Some(coding) = op.coded(by_rows) else { continue };
                    (op, y) = (coding, DynamicQuantize { by_rows }.eval(&[&y]).unwrap().remove(0));
                }
                let codes = DynamicQuantize { by_rows }.eval(&[&x]).unwrap().remove(0);
                for (pool, x) in pools.iter().flat_map(|pool| [(pool, &x), (pool, &codes)]) {
                    let operands = [x, &other];
                    let operands = &operands[..if after == After::Addition { 2 } else { 1 }];
                    if pool.install(|| op.eval(operands)).unwrap() != [y.clone()] {
                        failures
                            .push(format!("{rows} x {depth} x {columns}, {by_rows}, {after:?}, {coded:?}"));
                    }
                }
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}
