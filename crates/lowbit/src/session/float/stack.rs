//! Products of two f32 matrices of the run: those of attention.

use std::ops::Range;

use lowbit_kernels::{Kernels, Matrix, MatrixMut, Panels, Product, Right};

use crate::error::Result;
use crate::op::{Fact, Op, Operand, Prepared, Routine, View, ViewMut};
use crate::ops::binary::Arithmetic;
use crate::ops::layout::Transpose;
use crate::ops::linear::MatMul;
use crate::ops::softmax::Softmax;
use crate::ops::vectorized::vectorized;
use crate::session::images::fact;
use crate::session::stacks::{Axes, Stacks, Unit};
use crate::tensor::{DType, Tensor};

/// Elements of a right matrix that stay in a second-level cache while rows pass.
const KEPT: usize = 96 << 10;
/// Rows this many elements apart, or a multiple, meet in two sets in 64 of a
/// typical first-level cache.
const CONTENDING: usize = 512;
/// Bytes to which packed matrices are aligned: a cache line.
const LINE: usize = 64;

/// `y[.., m, n] = sum_k a[.., m, k] b[.., k, n]`, other axes broadcast, each a
/// chain of fused multiply-adds: [`MatMul`] of f32 operands of rank 2 and more whose
/// axes are in this order, bit for bit; then what follows.
#[derive(Clone, Debug, Default)]
pub struct StackedMatMul {
    /// The order of the operands' axes.
    pub axes: Axes,
    /// Multiplies or divides the product.
    pub factor: Option<(Arithmetic, f32)>,
    /// Whether [`Softmax`] of the rows comes last.
    pub softmax: bool,
    /// Whether the rows of the matrices along the last axis of the batch lie side by
    /// side: the axes of the result are `[.., m, b, n]`. Nothing else follows then.
    pub beside: bool,
}

impl StackedMatMul {
    /// The order of the result's axes, if `beside`.
    pub fn side_by_side(rank: usize) -> Option<Vec<usize>> {
        let mut axes: Vec<usize> = (0..rank).collect();
        axes.swap(rank.checked_sub(3)?, rank - 2);
        Some(axes)
    }
}

impl Op for StackedMatMul {
    fn name(&self) -> &'static str {
        "StackedMatMul"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        let mut shape = self.axes.product(x)?;
        if self.beside
            && let Some(first) = shape.len().checked_sub(3)
        {
            shape.swap(first, first + 1);
        }
        fact(DType::F32, shape)
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let ordered = |i: usize| -> Result<Tensor> {
            match self.axes.0[i].clone() {
                Some(axes) => Ok(Transpose { perm: Some(axes) }.eval(&x[i..=i])?.remove(0)),
                None => Ok(x[i].clone()),
            }
        };
        let mut y = MatMul.eval(&[&ordered(0)?, &ordered(1)?])?;
        if let Some((op, factor)) = self.factor {
            y = op.eval(&[&y[0], &Tensor::scalar(factor)])?;
        }
        if self.softmax {
            return Softmax::new(-1).eval(&[&y[0]]);
        }
        let perm = StackedMatMul::side_by_side(y[0].rank()).filter(|_| self.beside);
        if perm.is_some() { Transpose { perm }.eval(&[&y[0]]) } else { Ok(y) }
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let stacks = Stacks::new(&self.axes, x[0].shape, x[1].shape, self.beside)?;
        let width = Kernels::best().panel_width();
        let [_, _, depth] = stacks.size;
        // A lone product is shared out among threads by its own operator.
        let is_lone = stacks.matrices() < 2 && self.axes == Axes::default();
        if is_lone || width * depth > KEPT {
            return Ok(Prepared::Eval);
        }
        let together = KEPT / (width * depth).max(1) * width;
        let (factor, softmax) = (self.factor, self.softmax);
        Prepared::routine(Stack { stacks, together, width, factor, softmax })
    }
    fn macs(&self, x: &[&Fact], y: &[&Fact]) -> u64 {
        self.axes.macs(x, y[0])
    }
}

/// A [`StackedMatMul`] of known size. Right matrices that are slow to read where
/// they lie are packed, once for all units of a task that follow each other.
#[derive(Debug)]
struct Stack {
    stacks: Stacks,
    /// Columns that pass by all rows together.
    together: usize,
    /// Columns of a panel.
    width: usize,
    factor: Option<(Arithmetic, f32)>,
    softmax: bool,
}

impl Stack {
    /// Whether right matrices are packed: those that are transposed, and those whose
    /// rows contend for few sets of a cache, if there are rows enough to gain by it.
    fn packs(&self) -> bool {
        let ([rows, columns, _], [row, column]) = (self.stacks.size, self.stacks.right.strides);
        let contend = row != columns && row.is_multiple_of(CONTENDING);
        column != 1 || (contend && rows > Kernels::best().product_rows())
    }

    /// Elements of packed columns that one task holds, and those of products that
    /// are not yet what they become.
    fn held(&self) -> [usize; 2] {
        let [_, columns, depth] = self.stacks.size;
        let packed =
            if self.packs() { Panels::len(depth, columns.min(self.together), self.width) } else { 0 };
        [packed, if self.softmax { self.stacks.unit_rows * columns } else { 0 }]
    }

    /// Bytes that one task works with.
    fn memory_of_a_task(&self) -> usize {
        self.held().iter().sum::<usize>() * size_of::<f32>() + LINE
    }

    /// The product by its factor, in place.
    fn scale(&self, y: &mut [f32]) {
        vectorized(
            #[inline(always)]
            || match self.factor {
                Some((Arithmetic::Div, by)) => y.iter_mut().for_each(|y| *y /= by),
                Some((_, by)) => y.iter_mut().for_each(|y| *y *= by),
                None => {}
            },
        );
    }

    /// Packs some columns of the matrix at the start of `b`.
    fn pack(&self, b: &[f32], columns: Range<usize>, panels: &mut [f32]) {
        let ([_, all, depth], [row, column]) = (self.stacks.size, self.stacks.right.strides);
        let starts = columns.clone().step_by(self.width);
        for (at, panel) in starts.zip(panels.chunks_exact_mut((self.width * depth).max(1))) {
            let count = self.width.min(columns.end - at);
            if column == 1 {
                let b = Matrix::strided(b, depth, all, row).cols(at, count);
                for (i, to) in panel.chunks_exact_mut(self.width).enumerate() {
                    to[..count].copy_from_slice(b.row(i));
                }
            } else {
                let b = Matrix::strided(b, all, depth, column).rows(at, count);
                Kernels::best().transpose(b, self.width, panel);
            }
        }
    }
}

impl Routine for Stack {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, scratch: &mut [u8]) -> Result<()> {
        let (a, b, [_, columns, depth]) = (x[0].f32()?, x[1].f32()?, self.stacks.size);
        let (rows, packs) = (self.stacks.unit_rows, self.packs());
        let [packed, _] = self.held();
        let multiply = |unit: Unit, result: &mut [f32], memory: &mut [u8]| {
            let skip = memory.as_ptr().align_offset(LINE).min(LINE);
            let words = bytemuck::pod_align_to_mut::<u8, f32>(&mut memory[skip..]).1;
            let (panels, values) = words.split_at_mut(packed);
            let y = if self.softmax { &mut values[..result.len()] } else { &mut *result };
            let left = Matrix::strided(&a[unit.left..], rows, depth, self.stacks.left.strides[0]);
            let b = &b[unit.right..];
            let pitch = self.stacks.beside * columns;
            let mut rest = MatrixMut::strided(&mut y[unit.column..], rows, columns, pitch);
            for start in (0..columns).step_by(self.together) {
                let count = self.together.min(columns - start);
                let (mut out, others) = rest.split_cols(count);
                rest = others;
                let right = if packs {
                    if unit.is_first || count < columns {
                        self.pack(b, start..start + count, panels);
                    }
                    Right::Panels(Panels::new(panels, depth, count, self.width))
                } else {
                    let b = Matrix::strided(b, depth, columns, self.stacks.right.strides[0]);
                    Right::Matrix(b.cols(start, count))
                };
                Kernels::best().product(&Product::new(left, right), &mut out);
            }
            if self.softmax {
                let y = &mut values[..result.len()];
                self.scale(y);
                Kernels::best().softmax(y, columns, result);
            } else {
                self.scale(result);
            }
        };
        self.stacks.for_each_unit(y.f32()?, scratch, self.memory_of_a_task(), multiply);
        Ok(())
    }
    fn scratch(&self) -> usize {
        self.stacks.scratch(self.memory_of_a_task())
    }
    fn algorithm(&self) -> &'static str {
        match (self.packs(), self.softmax) {
            (true, true) => "gemm, packed in the run, softmax",
            (true, false) => "gemm, packed in the run",
            (false, true) => "gemm, softmax",
            (false, false) => "gemm",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::op::eval_by_routine;

    fn noise(shape: &[usize], seed: u64) -> Tensor {
        let n = shape.iter().product::<usize>() as u64;
        let value = |i: u64| {
            ((i * 2 + 1 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8_388_608.0 - 1.0
        };
        Tensor::new(shape, (0..n).map(value).collect()).unwrap()
    }

    /// A tensor that, its axes in this order, has this shape.
    fn operand(shape: &[usize], axes: &Option<Vec<usize>>, seed: u64) -> Tensor {
        let mut own = shape.to_vec();
        for (i, &axis) in axes.iter().flatten().enumerate() {
            own[axis] = shape[i];
        }
        noise(&own, seed)
    }

    /// Whether there is a routine for these operands, and it gives what `eval` does.
    fn equals_the_operator(axes: Axes, a: &[usize], b: &[usize]) -> bool {
        let (a, b) = (operand(a, &axes.0[0], 1), operand(b, &axes.0[1], 2));
        let factors = [None, Some((Arithmetic::Mul, 0.125)), Some((Arithmetic::Div, 3.0))];
        let ops = factors.map(|factor| [false, true].map(|softmax| (factor, softmax)));
        let ops = ops.into_iter().flatten();
        let ops = ops.map(|(factor, softmax)| (factor, softmax, false)).chain([(None, false, true)]);
        let ops = ops.map(|(factor, softmax, beside)| StackedMatMul {
            axes: axes.clone(),
            factor,
            softmax,
            beside,
        });
        // All of them, also where one has no routine.
        ops.map(|op| routine_equals_the_operator(&op, &a, &b)).fold(true, |all, one| all & one)
    }

    fn routine_equals_the_operator(op: &StackedMatMul, a: &Tensor, b: &Tensor) -> bool {
        let known = [Operand::of(a), Operand::of(b)];
        if let Prepared::Eval = op.prepare(&known).unwrap() {
            return false;
        }
        let bits = |y: Vec<Tensor>| {
            let bits = y[0].slice::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            (y[0].shape().to_vec(), bits)
        };
        let want = bits(op.eval(&[a, b]).unwrap());
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| eval_by_routine(op, &[a, b]).unwrap());
            assert!(bits(got) == want, "{op:?} of {a:?} and {b:?}, {threads} threads");
        }
        true
    }

    #[test]
    fn operands_are_read_where_they_lie() {
        type Shape = &'static [usize];
        let heads = || Some(vec![0, 2, 1, 3]);
        let transposed = || Some(vec![0, 2, 3, 1]);
        let cases: [(Axes, Shape, Shape, bool); 16] = [
            (Axes([heads(), transposed()]), &[1, 12, 128, 64], &[1, 12, 64, 128], true),
            (Axes([None, heads()]), &[1, 12, 128, 128], &[1, 12, 128, 64], true),
            (Axes([None, heads()]), &[1, 8, 20, 40], &[1, 8, 40, 64], true),
            (Axes([None, heads()]), &[2, 3, 1, 70], &[2, 3, 70, 33], true),
            (Axes([heads(), transposed()]), &[2, 1, 7, 5], &[1, 3, 5, 9], true),
            (Axes([None, Some(vec![1, 0])]), &[9, 300], &[300, 700], true),
            (Axes([None, Some(vec![1, 0])]), &[3, 2, 9], &[9, 1], true),
            (Axes([None, Some(vec![0, 2, 1])]), &[2, 9, 1], &[2, 1, 30], true),
            (Axes::default(), &[2, 40, 1100], &[2, 1100, 150], true),
            (Axes::default(), &[4, 3, 5], &[5, 6], true),
            (Axes::default(), &[3, 5], &[5, 6], false),
            (Axes([None, Some(vec![1, 0])]), &[1, 50_000], &[50_000, 2], false),
            (Axes([None, Some(vec![0, 2, 1])]), &[2, 3, 0], &[2, 0, 4], true),
            (Axes([None, Some(vec![0, 2, 1])]), &[2, 0, 3], &[2, 3, 4], true),
            (Axes([heads(), heads()]), &[0, 2, 3, 4], &[1, 2, 4, 5], true),
            (Axes([None, heads()]), &[1, 2, 3, 4], &[1, 2, 4, 0], true),
        ];
        for (axes, a, b, want) in cases {
            assert_eq!(equals_the_operator(axes.clone(), a, b), want, "{axes:?} {a:?} {b:?}");
        }
    }

    proptest! {
        #[test]
        fn any_product_equals_the_operator(
            batch in prop::array::uniform2(1usize..4), alone in prop::array::uniform4(prop::bool::weighted(0.2)),
            rows in 1usize..40, columns in 1usize..140, depth in 1usize..80,
            orders in prop::array::uniform2(Just(vec![0, 1, 2, 3]).prop_shuffle()),
        ) {
            let size = |i: usize| if alone[i] { 1 } else { batch[i % 2] };
            let axes = |i: usize| Axes::reads(i, &orders[i]).then(|| orders[i].clone());
            let (a, b) = ([size(0), size(1), rows, depth], [size(2), size(3), depth, columns]);
            equals_the_operator(Axes([axes(0), axes(1)]), &a, &b);
        }
    }
}
