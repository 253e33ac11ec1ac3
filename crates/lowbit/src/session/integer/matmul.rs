//! Products of two matrices of codes, both made at run time: those of attention.

use lowbit_kernels::{CodeMatrix, Grid, Kernels, Output, Requant, Rows, Weights};

use crate::error::{Error, Result, invalid};
use crate::op::{DataMut, Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::session::codes::Codes;
use crate::session::images::fact;
use crate::session::stacks::{Axes, Stacks};
use crate::tensor::{DType, Tensor};

/// `acc[.., m, n] = sum_k (a[.., m, k] - z_a) (b[.., k, n] - z_b)` in i32, other
/// axes broadcast, as f32 or requantized (docs/quantization.md, equation 6, with
/// the scale of `b` for `s_w`).
#[derive(Clone, Debug)]
pub struct QMatMul {
    /// Codes of the operands.
    pub inputs: [Codes; 2],
    /// The order of the operands' axes.
    pub axes: Axes,
    /// Codes of the result, the least and the greatest; f32 where there are none.
    pub output: Option<(Codes, u8, u8)>,
}

impl QMatMul {
    fn scale(&self) -> f32 {
        self.inputs[0].scale * self.inputs[1].scale
    }
}

impl Op for QMatMul {
    fn name(&self) -> &'static str {
        "QMatMul"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        fact(if self.output.is_some() { DType::U8 } else { DType::F32 }, self.axes.product(x)?)
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        Prepared::routine(Stack::new(self, x[0].shape, x[1].shape)?)
    }
    fn macs(&self, x: &[&Fact], y: &[&Fact]) -> u64 {
        self.axes.macs(x, y[0])
    }
}

/// Bias and multiplier of each column.
type Parameters<'a> = (&'a [i32], &'a [f32]);

/// A [`QMatMul`] of known size. Where a right matrix comes first, it is packed;
/// each unit finds the row sums of its left rows, and multiplies.
#[derive(Debug)]
struct Stack {
    op: QMatMul,
    stacks: Stacks,
    /// `s_a s_b`, or that divided by `s_y`, for each column.
    multiplier: Vec<f32>,
}

impl Stack {
    fn new(op: &QMatMul, a: &[usize], b: &[usize]) -> Result<Stack> {
        let stacks = Stacks::new(&op.axes, a, b, false)?;
        let [_, n, k] = stacks.size;
        if k > Weights::MOST_CODES {
            return Err(Error::unsupported(op.name(), format!("a sum of {k} products, which may overflow,")));
        }
        let scale = op.scale();
        // A multiplier beyond f32 saturates any sum but 0, as f32's greatest does.
        let multiplier = op.output.map_or(scale, |(codes, ..)| (scale / codes.scale).min(f32::MAX));
        Ok(Stack { op: op.clone(), stacks, multiplier: vec![multiplier; n] })
    }

    /// Bytes that one task works with: the packed matrix, a bias for each column
    /// and a term for each row.
    fn memory_of_a_task(&self) -> usize {
        let [_, columns, depth] = self.stacks.size;
        Weights::bytes(depth, columns) + (columns + self.stacks.unit_rows + 1) * size_of::<i32>()
    }

    /// Computes all units; `output` says what becomes of the sums of one.
    fn compute<T: Send>(
        &self,
        [a, b]: [&[u8]; 2],
        y: &mut [T],
        scratch: &mut [u8],
        output: impl for<'o> Fn(Parameters<'o>, Grid<'o, T>) -> Output<'o> + Sync,
    ) {
        let kernels = Kernels::best();
        let ([_, columns, depth], unit_rows) = (self.stacks.size, self.stacks.unit_rows);
        // The packed codes are less by 128.
        let (za, zb) = (self.op.inputs[0].zero, self.op.inputs[1].zero - 128);
        self.stacks.for_each_unit(y, scratch, self.memory_of_a_task(), |unit, y, memory| {
            let (packed, words) = memory.split_at_mut(Weights::bytes(depth, columns));
            let (bias, terms) = bytemuck::pod_align_to_mut::<u8, i32>(words).1.split_at_mut(columns);
            if unit.is_first {
                let right = CodeMatrix::new(&b[unit.right..], depth, columns, self.stacks.right.strides);
                kernels.pack_codes(&right, packed);
                let sums = Weights::of_codes(packed, depth, columns).column_sums();
                let constant = za * zb * depth as i32;
                bias.iter_mut().zip(sums).for_each(|(bias, sum)| *bias = constant - za * sum);
            }
            let weights = Weights::of_codes(packed, depth, columns);
            let (a, stride) = (&a[unit.left..], self.stacks.left.strides[0]);
            let mut left = Rows::strided(a, stride, unit_rows, depth);
            let terms = &mut terms[..unit_rows];
            if zb != 0 {
                kernels.row_sums(a, stride, depth, -zb, terms);
                left = left.with_terms(terms);
            }
            let out = Grid::new(y, unit_rows, columns, columns);
            kernels.gemm(&left, weights, 0..weights.panels(), output((bias, &self.multiplier), out));
        });
    }
}

impl Routine for Stack {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, scratch: &mut [u8]) -> Result<()> {
        let operands = [x[0].u8()?, x[1].u8()?];
        match (y.data, self.op.output) {
            (DataMut::U8(y), Some((codes, lo, hi))) => {
                self.compute(operands, y, scratch, |(bias, multiplier), out| Output::U8 {
                    requant: Requant { bias, multiplier, zero: codes.zero, lo, hi },
                    residual: None,
                    out,
                })
            }
            (DataMut::F32(y), None) => {
                self.compute(operands, y, scratch, |(bias, multiplier), out| Output::F32 {
                    bias,
                    multiplier,
                    out,
                });
            }
            _ => return Err(invalid!("the result has another type than was planned")),
        }
        Ok(())
    }
    fn scratch(&self) -> usize {
        self.stacks.scratch(self.memory_of_a_task())
    }
    fn algorithm(&self) -> &'static str {
        "gemm, packed in the run"
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::broadcast;

    fn codes(shape: &[usize], seed: u64) -> Tensor {
        let n = shape.iter().product::<usize>() as u64;
        let code = |i: u64| ((i * 2 + 1 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        Tensor::new(shape, (0..n).map(code).collect()).unwrap()
    }

    /// The axes of `t` moved to where `axes` says.
    fn permuted(t: &Tensor, axes: &Option<Vec<usize>>) -> Tensor {
        match axes {
            Some(axes) => {
                crate::ops::layout::Transpose { perm: Some(axes.clone()) }.eval(&[t]).unwrap().remove(0)
            }
            None => t.clone(),
        }
    }

    /// Equation 6 of the exact sums, which f64 products of codes less zero points give.
    fn definition(op: &QMatMul, a: &Tensor, b: &Tensor) -> Tensor {
        let [a, b] = [(0, a), (1, b)].map(|(i, t)| {
            let t = permuted(t, &op.axes.0[i]);
            let centred =
                t.slice::<u8>().unwrap().iter().map(|&q| f64::from(i32::from(q) - op.inputs[i].zero));
            (t.shape().to_vec(), centred.collect::<Vec<f64>>())
        });
        let (batch_a, batch_b) = (&a.0[..a.0.len() - 2], &b.0[..b.0.len() - 2]);
        let batch = broadcast::shape(batch_a, batch_b).unwrap();
        let (at_a, at_b) = (broadcast::offsets(batch_a, &batch), broadcast::offsets(batch_b, &batch));
        let [m, k] = *a.0.last_chunk().unwrap();
        let n = b.0[b.0.len() - 1];
        let mut sums = vec![];
        for (i, j) in at_a.into_iter().zip(at_b) {
            for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                let products = (0..k).map(|d| a.1[(i * m + row) * k + d] * b.1[(j * k + d) * n + column]);
                sums.push(products.sum::<f64>() as i32);
            }
        }
        let shape = [batch, vec![m, n]].concat();
        match op.output {
            None => Tensor::new(&shape, sums.iter().map(|&acc| acc as f32 * op.scale()).collect()).unwrap(),
            Some((to, lo, hi)) => {
                let multiplier = op.scale() / to.scale;
                let code = |&acc: &i32| {
                    let q = (acc as f32 * multiplier).round_ties_even() + to.zero as f32;
                    q.clamp(lo.into(), hi.into()) as u8
                };
                Tensor::new(&shape, sums.iter().map(code).collect()).unwrap()
            }
        }
    }

    fn product(zeros: [i32; 2], output: Option<(Codes, u8, u8)>) -> QMatMul {
        let inputs = [Codes { scale: 0.01, zero: zeros[0] }, Codes { scale: 0.02, zero: zeros[1] }];
        QMatMul { inputs, axes: Axes::default(), output }
    }

    const TO: Option<(Codes, u8, u8)> = Some((Codes { scale: 0.7, zero: 100 }, 3, 250));

    #[test]
    fn products_equal_the_definition() {
        type Shape = &'static [usize];
        let cases: [(Shape, Shape); 12] = [
            (&[3, 4], &[4, 5]),
            (&[12, 128, 64], &[12, 64, 128]),
            (&[2, 200, 300], &[2, 300, 40]),
            (&[3, 4], &[2, 4, 5]),
            (&[2, 3, 4], &[4, 5]),
            (&[2, 1, 3, 4], &[5, 4, 6]),
            (&[40, 2, 4], &[1, 4, 6]),
            (&[2, 0, 4], &[4, 5]),
            (&[2, 3, 0], &[0, 5]),
            (&[0, 3, 4], &[1, 4, 5]),
            (&[2, 3, 4], &[2, 4, 0]),
            (&[1, 1, 1], &[7, 1, 1]),
        ];
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (a, b) in cases {
                let (a, b) = (codes(a, 1), codes(b, 2));
                for (zeros, output) in [([0, 128], TO), ([255, 0], None), ([7, 255], TO)] {
                    let op = product(zeros, output);
                    let y = pool.install(|| op.eval(&[&a, &b])).unwrap().remove(0);
                    assert_eq!(y, definition(&op, &a, &b), "{threads} threads, {zeros:?}");
                }
            }
        }
    }

    #[test]
    fn transposed_operands_are_read_where_they_lie() {
        let (a, b) = (codes(&[2, 7, 3, 8], 1), codes(&[2, 9, 3, 8], 2));
        let op =
            QMatMul { axes: Axes([Some(vec![0, 2, 1, 3]), Some(vec![0, 2, 3, 1])]), ..product([9, 200], TO) };
        assert_eq!(op.eval(&[&a, &b]).unwrap(), [definition(&op, &a, &b)]);
        let b = codes(&[2, 8, 3, 9], 2);
        let op = QMatMul { axes: Axes([Some(vec![0, 2, 1, 3]), Some(vec![0, 2, 1, 3])]), ..op };
        assert_eq!(op.eval(&[&a, &b]).unwrap(), [definition(&op, &a, &b)]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let cases: [(&[usize], &[usize], &str); 3] = [
            (&[3, 4], &[5, 4], "must be equal"),
            (&[2, 3, 4], &[3, 4, 5], "do not broadcast"),
            (&[1, 40_000], &[40_000, 1], "may overflow"),
        ];
        for (a, b, want) in cases {
            let message = product([0, 0], None).eval(&[&codes(a, 1), &codes(b, 2)]).unwrap_err().to_string();
            assert!(message.contains(want), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_product_equals_the_definition(
            matrices in 0usize..4, rows in 1usize..40, columns in 1usize..40, depth in 1usize..40,
            zeros in prop::array::uniform2(0i32..256), to_codes: bool,
        ) {
            let (a, b) = (codes(&[matrices, rows, depth], 3), codes(&[matrices, depth, columns], 4));
            let op = product(zeros, TO.filter(|_| to_codes));
            prop_assert_eq!(op.eval(&[&a, &b]).unwrap(), [definition(&op, &a, &b)]);
        }
    }
}
