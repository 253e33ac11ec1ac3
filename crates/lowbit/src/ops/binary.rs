//! Arithmetic of two or more operands that broadcast to one shape.

mod gradient;

use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::op::{
    Attribute, Attributes, Dim, Fact, Op, Operand, Prepared, Quant, ReadOp, Reading, Reverse, Routine, View,
    ViewMut, arity,
};
use crate::parallel;
use crate::tensor::{DType, Tensor};

use super::cast::cast;
use super::strided::{self, Nest, zip};
use super::{broadcast, symbolic};

/// Arithmetic of two operands of one type. Integers wrap; dividing one by
/// zero is an error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arithmetic {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`, of integers rounded toward zero.
    Div,
    /// `a` to the power `b`, which may be of another type.
    Pow,
    /// The remainder of `a / b`.
    Mod {
        /// Whether it has the sign of `a`, as C's `fmod` gives it, and not of `b`.
        fmod: bool,
    },
    /// `a` where not negative, else `a * b`.
    PRelu,
}

impl Arithmetic {
    fn sizes(self, a: &Dim, b: &Dim) -> Option<Dim> {
        match self {
            Arithmetic::Add => Some(symbolic::add(a, b)),
            Arithmetic::Sub => Some(symbolic::sub(a, b)),
            Arithmetic::Mul => Some(symbolic::mul(a, b)),
            Arithmetic::Div => symbolic::div(a, b),
            _ => None,
        }
    }

    fn compute(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let shape = broadcast::shape(a.shape(), b.shape())?;
        macro_rules! floats {
            ($t:ident, $powf:path) => {{
                let x = (a.slice::<$t>()?, a.shape());
                let y = (b.slice::<$t>()?, b.shape());
                let z = match self {
                    Arithmetic::Add => zip(&shape, x, y, |a, b| a + b),
                    Arithmetic::Sub => zip(&shape, x, y, |a, b| a - b),
                    Arithmetic::Mul => zip(&shape, x, y, |a, b| a * b),
                    Arithmetic::Div => zip(&shape, x, y, |a, b| a / b),
                    Arithmetic::Pow if y.0 == [2.0] => zip(&shape, x, y, |a, _| a * a),
                    Arithmetic::Pow if y.0 == [0.5] => zip(&shape, x, y, |a, _| a.sqrt()),
                    Arithmetic::Pow => zip(&shape, x, y, $powf),
                    Arithmetic::Mod { fmod: true } => zip(&shape, x, y, |a, b| a % b),
                    Arithmetic::Mod { fmod: false } => {
                        return Err(invalid!("Mod of floats takes fmod = 1"));
                    }
                    Arithmetic::PRelu => zip(&shape, x, y, |a, b| if a < 0.0 { a * b } else { a }),
                };
                Tensor::new(&shape, z?)
            }};
        }
        macro_rules! integers {
            ($t:ident) => {{
                let x = (a.slice::<$t>()?, a.shape());
                let y = (b.slice::<$t>()?, b.shape());
                let divides = matches!(self, Arithmetic::Div | Arithmetic::Mod { .. });
                if divides && y.0.contains(&0) {
                    return Err(invalid!("division of integers by zero"));
                }
                let z = match self {
                    Arithmetic::Add => zip(&shape, x, y, $t::wrapping_add),
                    Arithmetic::Sub => zip(&shape, x, y, $t::wrapping_sub),
                    Arithmetic::Mul => zip(&shape, x, y, $t::wrapping_mul),
                    Arithmetic::Div => zip(&shape, x, y, $t::wrapping_div),
                    Arithmetic::Pow => zip(&shape, x, y, |a, b| match u32::try_from(b) {
                        Ok(b) => a.wrapping_pow(b),
                        Err(_) => libm::pow(a as f64, b as f64) as $t,
                    }),
                    Arithmetic::Mod { fmod: true } => zip(&shape, x, y, $t::wrapping_rem),
                    Arithmetic::Mod { fmod: false } => zip(&shape, x, y, |a, b| {
                        let r = a.wrapping_rem(b);
                        if r != 0 && (r > 0) != (b > 0) { r.wrapping_add(b) } else { r }
                    }),
                    Arithmetic::PRelu => zip(&shape, x, y, |a, b| if a > 0 { a } else { a.wrapping_mul(b) }),
                };
                Tensor::new(&shape, z?)
            }};
        }
        match a.dtype() {
            DType::F32 => floats!(f32, libm::powf),
            DType::F64 => floats!(f64, libm::pow),
            DType::F16 | DType::BF16 => {
                cast(&self.compute(&cast(a, DType::F32)?, &cast(b, DType::F32)?)?, a.dtype())
            }
            DType::I8 => integers!(i8),
            DType::U8 => integers!(u8),
            DType::I16 => integers!(i16),
            DType::U16 => integers!(u16),
            DType::I32 => integers!(i32),
            DType::U32 => integers!(u32),
            DType::I64 => integers!(i64),
            DType::U64 => integers!(u64),
            other => Err(invalid!("arithmetic of {other} elements is not defined")),
        }
    }
}

fn is_number(dtype: DType) -> bool {
    dtype.is_float() || (dtype.is_integer() && dtype.storage() == dtype)
}

/// Checks that all operands have one type, which holds numbers.
fn one_type(inputs: &[&Fact]) -> Result<DType> {
    let dtype = inputs[0].dtype;
    match inputs.iter().find(|f| f.dtype != dtype) {
        Some(other) => Err(invalid!("takes operands of one type, found {dtype} and {}", other.dtype)),
        None if !is_number(dtype) => Err(invalid!("takes numbers, found {dtype}")),
        None => Ok(dtype),
    }
}

/// `f` of the elements of two small integer operands, where both are known.
pub(super) fn zip_sizes(a: &Fact, b: &Fact, f: impl Fn(&Dim, &Dim) -> Option<Dim>) -> Option<Vec<Dim>> {
    let (x, y) = (a.sizes.as_deref()?, b.sizes.as_deref()?);
    if a.rank().max(b.rank()) > 1 {
        return None;
    }
    let n = if x.len() == 1 { y.len() } else { x.len() };
    let at = |s: &[Dim], i: usize| s.get(if s.len() == 1 { 0 } else { i }).cloned();
    (0..n).map(|i| f(&at(x, i)?, &at(y, i)?)).collect()
}

impl Op for Arithmetic {
    fn name(&self) -> &'static str {
        match self {
            Arithmetic::Add => "Add",
            Arithmetic::Sub => "Sub",
            Arithmetic::Mul => "Mul",
            Arithmetic::Div => "Div",
            Arithmetic::Pow => "Pow",
            Arithmetic::Mod { .. } => "Mod",
            Arithmetic::PRelu => "PRelu",
        }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 2)?;
        let (a, b) = (inputs[0], inputs[1]);
        if *self == Arithmetic::Pow {
            one_type(&[a])?;
            one_type(&[b])?;
        } else {
            one_type(inputs)?;
        }
        let shape = broadcast::dims(&a.shape, &b.shape)?;
        if *self == Arithmetic::PRelu && b.rank() > a.rank() {
            return Err(invalid!("the slope {b} does not broadcast to the input {a}"));
        }
        let sizes = zip_sizes(a, b, |a, b| self.sizes(a, b));
        Ok(vec![a.with_shape(shape).with_sizes(sizes)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 2, 2)?;
        let (a, b) = (inputs[0], inputs[1]);
        if a.dtype() == b.dtype() {
            return Ok(vec![self.compute(a, b)?]);
        }
        if *self != Arithmetic::Pow {
            return Err(invalid!("takes operands of one type, found {} and {}", a.dtype(), b.dtype()));
        }
        // The result has the base's type; computed in the wider kind of number.
        if b.dtype().is_float() && a.dtype().is_integer() {
            let power = self.compute(&cast(a, DType::F64)?, &cast(b, DType::F64)?)?;
            return Ok(vec![cast(&power, a.dtype())?]);
        }
        let wide = if a.dtype().is_integer() { DType::I64 } else { a.dtype() };
        Ok(vec![cast(&self.compute(&cast(a, wide)?, &cast(b, wide)?)?, a.dtype())?])
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        gradient::vjp(self, at)
    }

    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        /// Rows shorter than this are not worth the look-up of where they begin.
        const SHORTEST: usize = 8;
        let plain = matches!(self, Arithmetic::Add | Arithmetic::Sub | Arithmetic::Mul | Arithmetic::Div);
        if !plain || x.iter().any(|x| x.dtype != DType::F32) {
            return Ok(Prepared::Eval);
        }
        let shape = broadcast::shape(x[0].shape, x[1].shape)?;
        let [a, b] = [x[0], x[1]].map(|x| strided::broadcast(x.shape, &shape));
        let nest = Nest::new(&shape, [&a, &b]);
        let (n, steps) = nest.inner();
        if n < SHORTEST || !matches!(steps, [1, 1] | [1, 0] | [0, 1]) {
            return Ok(Prepared::Eval);
        }
        let mut starts = vec![];
        nest.rows([0; 2], |at| starts.push(at));
        Prepared::routine(Broadcast { op: *self, n, steps, starts })
    }

    fn attributes(&self) -> Attributes {
        match self {
            Arithmetic::Mod { fmod } => vec![("fmod", Attribute::Int(i64::from(*fmod)))],
            _ => vec![],
        }
    }

    fn quant(&self) -> Quant {
        match self {
            Arithmetic::Add | Arithmetic::Sub | Arithmetic::Mul => {
                Quant::Compute { weight: None, bias: None }
            }
            _ => Quant::Float,
        }
    }
}

/// Arithmetic of f32 operands of known shapes: in rows of `n` elements, each
/// operand's neighbours or one element throughout.
#[derive(Debug)]
struct Broadcast {
    op: Arithmetic,
    n: usize,
    steps: [isize; 2],
    /// Where the operands of each row begin.
    starts: Vec<[usize; 2]>,
}

impl Broadcast {
    fn compute(&self, [a, b]: [&[f32]; 2], y: &mut [f32], f: impl Fn(f32, f32) -> f32 + Sync) {
        /// Elements that are worth a task.
        const TASK: usize = 1 << 15;
        // Whole rows, or parts of one.
        let rows = TASK / self.n;
        let size = if rows == 0 { TASK } else { rows * self.n };
        let part = |[i, j]: [usize; 2], at: usize, y: &mut [f32]| match self.steps {
            [1, 1] => {
                let (a, b) = (&a[i + at..][..y.len()], &b[j + at..][..y.len()]);
                y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = f(a, b));
            }
            [1, _] => y.iter_mut().zip(&a[i + at..]).for_each(|(y, &a)| *y = f(a, b[j])),
            _ => y.iter_mut().zip(&b[j + at..]).for_each(|(y, &b)| *y = f(a[i], b)),
        };
        if rows == 0 {
            for (row, &start) in y.chunks_exact_mut(self.n).zip(&self.starts) {
                parallel::chunks(row, size, |i, y| part(start, i * size, y));
            }
        } else {
            parallel::chunks(y, size, |i, y| {
                for (y, &start) in y.chunks_exact_mut(self.n).zip(&self.starts[i * rows..]) {
                    part(start, 0, y);
                }
            });
        }
    }
}

impl Routine for Broadcast {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        let (x, y) = ([x[0].f32()?, x[1].f32()?], y.f32()?);
        match self.op {
            Arithmetic::Add => self.compute(x, y, |a, b| a + b),
            Arithmetic::Sub => self.compute(x, y, |a, b| a - b),
            Arithmetic::Mul => self.compute(x, y, |a, b| a * b),
            Arithmetic::Div => self.compute(x, y, |a, b| a / b),
            op => return Err(invalid!("{} has no routine", op.name())),
        }
        Ok(())
    }
}

/// A fold over one or more operands that broadcast to one shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Variadic {
    /// The least; NaN if one is NaN.
    Min,
    /// The greatest; NaN if one is NaN.
    Max,
    /// The sum.
    Sum,
    /// The arithmetic mean.
    Mean,
}

impl Variadic {
    fn pair(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        if matches!(self, Variadic::Sum | Variadic::Mean) {
            return Arithmetic::Add.compute(a, b);
        }
        let shape = broadcast::shape(a.shape(), b.shape())?;
        super::strided::each_storage!(a.dtype(), T => {
            let (x, y) = ((a.slice::<T>()?, a.shape()), (b.slice::<T>()?, b.shape()));
            let nan = |x: T| x.partial_cmp(&x).is_none();
            let z = match self {
                Variadic::Min => zip(&shape, x, y, |a, b| if a.lt(&b) || nan(a) { a } else { b }),
                _ => zip(&shape, x, y, |a, b| if a.gt(&b) || nan(a) { a } else { b }),
            };
            Tensor::new(&shape, z?)
        })
    }
}

impl Op for Variadic {
    fn name(&self) -> &'static str {
        match self {
            Variadic::Min => "Min",
            Variadic::Max => "Max",
            Variadic::Sum => "Sum",
            Variadic::Mean => "Mean",
        }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, usize::MAX)?;
        let dtype = one_type(inputs)?;
        if matches!(self, Variadic::Sum | Variadic::Mean) && !dtype.is_float() {
            return Err(invalid!("takes floats, found {dtype}"));
        }
        let first = inputs[0].shape.clone();
        let shape = inputs[1..].iter().try_fold(first, |s, f| broadcast::dims(&s, &f.shape))?;
        let sizes = inputs[1..].iter().try_fold(inputs[0].clone(), |a, b| {
            let sizes = zip_sizes(&a, b, |x, y| match (x.as_integer(), y.as_integer(), self) {
                (Some(x), Some(y), Variadic::Min) => Some(Dim::integer(x.min(y))),
                (Some(x), Some(y), Variadic::Max) => Some(Dim::integer(x.max(y))),
                _ => (x == y).then(|| x.clone()),
            })?;
            Some(Fact { sizes: Some(sizes), ..a })
        });
        Ok(vec![inputs[0].with_shape(shape).with_sizes(sizes.and_then(|f| f.sizes))])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, usize::MAX)?;
        let folded = inputs[1..].iter().try_fold(inputs[0].clone(), |a, b| self.pair(&a, b))?;
        if *self != Variadic::Mean {
            return Ok(vec![folded]);
        }
        let n = cast(&Tensor::scalar(inputs.len() as f64), folded.dtype())?;
        Ok(vec![Arithmetic::Div.compute(&folded, &n)?])
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        gradient::vjp_of_fold(*self, at)
    }
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("Add", |_| Ok(Arc::new(Arithmetic::Add))),
    ("Sub", |_| Ok(Arc::new(Arithmetic::Sub))),
    ("Mul", |_| Ok(Arc::new(Arithmetic::Mul))),
    ("Div", |_| Ok(Arc::new(Arithmetic::Div))),
    ("Pow", |_| Ok(Arc::new(Arithmetic::Pow))),
    ("Mod", |a: &mut Reading| Ok(Arc::new(Arithmetic::Mod { fmod: a.flag("fmod", false)? }))),
    ("PRelu", |_| Ok(Arc::new(Arithmetic::PRelu))),
    ("Min", |_| Ok(Arc::new(Variadic::Min))),
    ("Max", |_| Ok(Arc::new(Variadic::Max))),
    ("Sum", |_| Ok(Arc::new(Variadic::Sum))),
    ("Mean", |_| Ok(Arc::new(Variadic::Mean))),
];

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::*;
    use crate::op::eval_by_routine;

    #[test]
    fn routines_compute_what_tensors_do() {
        let ramp = |shape: &[usize], from: f32| {
            let n = shape.iter().product::<usize>();
            Tensor::new(shape, (0..n).map(|i| from + (i % 1013) as f32 / 7.0).collect()).unwrap()
        };
        let cases: [(&[usize], &[usize]); 9] = [
            (&[70_001], &[70_001]),
            (&[3, 40_000], &[3, 1]),
            (&[300, 129], &[129]),
            (&[300, 129], &[]),
            (&[], &[300, 129]),
            (&[2, 1, 16], &[5, 16]),
            (&[2, 3, 16], &[2, 1, 16]),
            (&[2, 3, 1], &[2, 1, 16]),
            (&[0, 16], &[16]),
        ];
        let ops = [Arithmetic::Add, Arithmetic::Sub, Arithmetic::Mul, Arithmetic::Div];
        for (op, (a, b)) in ops.into_iter().flat_map(|op| cases.map(|case| (op, case))) {
            let (a, b) = (ramp(a, -40.0), ramp(b, 3.0));
            let want = op.eval(&[&a, &b]).unwrap();
            assert_eq!(eval_by_routine(&op, &[&a, &b]).unwrap(), want, "{op:?} {a:?} {b:?}");
        }
    }

    fn check(cases: Vec<(&dyn Op, Vec<Tensor>, Tensor)>) {
        let mut failures = vec![];
        for (op, inputs, expected) in cases {
            let operands: Vec<&Tensor> = inputs.iter().collect();
            let facts = symbolic::facts(&operands);
            let inferred = op.infer(&facts.iter().collect::<Vec<_>>()).unwrap().remove(0);
            let found = op.eval(&operands).unwrap().remove(0);
            if found != expected
                || inferred.dtype != found.dtype()
                || inferred.known_shape().unwrap() != found.shape()
            {
                failures.push(format!("{op:?} of {inputs:?} = {found:?} ({inferred}), not {expected:?}"));
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    #[test]
    fn arithmetic_matches_its_definition() {
        use Arithmetic as A;
        let f = |x: &[f32]| Tensor::vector(x.to_vec());
        let i = |x: &[i64]| Tensor::vector(x.to_vec());
        check(vec![
            (&A::Add, vec![f(&[1.0, 2.0]), f(&[0.5])], f(&[1.5, 2.5])),
            (&A::Sub, vec![f(&[1.0]), f(&[0.5, 2.0])], f(&[0.5, -1.0])),
            (&A::Mul, vec![i(&[i64::MAX, 3]), i(&[2, -4])], i(&[-2, -12])),
            (&A::Div, vec![i(&[-7, i64::MIN]), i(&[2, -1])], i(&[-3, i64::MIN])),
            (&A::Div, vec![f(&[1.0]), f(&[0.0])], f(&[f32::INFINITY])),
            (&A::Pow, vec![f(&[3.0]), f(&[2.0])], f(&[9.0])),
            (&A::Pow, vec![f(&[4.0, 2.0]), i(&[-1])], f(&[0.25, 0.5])),
            (&A::Pow, vec![i(&[3, -2]), i(&[3])], i(&[27, -8])),
            (&A::Pow, vec![i(&[2, 1]), i(&[-1])], i(&[0, 1])),
            (&A::Pow, vec![i(&[9]), f(&[0.5])], i(&[3])),
            (&A::Mod { fmod: false }, vec![i(&[-7, 7, 6]), i(&[3, -3, 3])], i(&[2, -2, 0])),
            (&A::Mod { fmod: true }, vec![i(&[-7, 7]), i(&[3, -3])], i(&[-1, 1])),
            (&A::Mod { fmod: true }, vec![f(&[-5.5]), f(&[2.0])], f(&[-1.5])),
            (&A::PRelu, vec![f(&[-4.0, 4.0]), f(&[0.25])], f(&[-1.0, 4.0])),
            (
                &A::Add,
                vec![Tensor::scalar(f16::from_f32(1.5)), Tensor::scalar(f16::ONE)],
                Tensor::scalar(f16::from_f32(2.5)),
            ),
            (&A::Sub, vec![Tensor::scalar(1u8), Tensor::scalar(2u8)], Tensor::scalar(255u8)),
        ]);
    }

    #[test]
    fn folds_match_their_definition() {
        let f = |x: &[f32]| Tensor::vector(x.to_vec());
        check(vec![
            (&Variadic::Max, vec![f(&[1.0, 5.0]), f(&[3.0]), f(&[2.0, 9.0])], f(&[3.0, 9.0])),
            (&Variadic::Min, vec![f(&[1.0, 5.0]), f(&[3.0])], f(&[1.0, 3.0])),
            (
                &Variadic::Min,
                vec![Tensor::vector(vec![2u8, 9]), Tensor::scalar(4u8)],
                Tensor::vector(vec![2u8, 4]),
            ),
            (&Variadic::Sum, vec![f(&[1.0, 2.0])], f(&[1.0, 2.0])),
            (&Variadic::Mean, vec![f(&[1.0, 2.0]), f(&[2.0, 4.0])], f(&[1.5, 3.0])),
        ]);
        for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            for op in [Variadic::Min, Variadic::Max] {
                let y = op.eval(&[&Tensor::scalar(a), &Tensor::scalar(b)]).unwrap();
                assert!(y[0].item::<f32>().unwrap().is_nan());
            }
        }
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let zero = Tensor::scalar(0i32);
        assert!(Arithmetic::Div.eval(&[&zero, &zero]).is_err());
        assert!(Arithmetic::Mod { fmod: false }.eval(&[&zero, &zero]).is_err());
        let f = |shape: &[usize], dtype| Fact::new(dtype, shape.to_vec());
        let cases: [(&dyn Op, [Fact; 2]); 5] = [
            (&Arithmetic::Add, [f(&[2], DType::F32), f(&[3], DType::F32)]),
            (&Arithmetic::Add, [f(&[2], DType::F32), f(&[2], DType::I32)]),
            (&Arithmetic::Mul, [f(&[2], DType::Bool), f(&[2], DType::Bool)]),
            (&Arithmetic::PRelu, [f(&[2], DType::F32), f(&[2, 2], DType::F32)]),
            (&Variadic::Sum, [f(&[2], DType::I32), f(&[2], DType::I32)]),
        ];
        for (op, [a, b]) in cases {
            assert!(op.infer(&[&a, &b]).is_err(), "{op:?} of {a} and {b}");
        }
    }

    #[test]
    fn shape_arithmetic_is_followed() {
        let fact = |d: Dim| Fact::new(DType::I64, [0usize; 0]).with_sizes(Some(vec![d]));
        let (n, four) = (fact(Dim::Named("N".into())), fact(Dim::Known(4)));
        let cases = [
            (Arithmetic::Mul, "(N*4)"),
            (Arithmetic::Add, "(N+4)"),
            (Arithmetic::Sub, "(N-4)"),
            (Arithmetic::Div, "(N/4)"),
        ];
        for (op, expected) in cases {
            let sizes = op.infer(&[&n, &four]).unwrap().remove(0).sizes;
            assert_eq!(sizes, Some(vec![Dim::Named(expected.into())]));
        }
        assert_eq!(Variadic::Max.infer(&[&n, &n]).unwrap()[0].sizes, n.sizes);
        assert_eq!(Variadic::Max.infer(&[&n, &four]).unwrap()[0].sizes, None);
    }

    /// A shape and one that broadcasts to it.
    fn shapes() -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
        prop::collection::vec((1usize..5, 0u8..4), 0..5).prop_map(|dims| {
            let a = dims.iter().map(|&(n, k)| if k == 1 { 1 } else { n }).collect();
            let b: Vec<usize> = dims.iter().map(|&(n, k)| if k == 2 { 1 } else { n }).collect();
            let from = dims.iter().take_while(|d| d.1 == 3).count();
            (a, b[from..].to_vec())
        })
    }

    proptest! {
        #[test]
        fn broadcasting_equals_its_naive_definition((a, b) in shapes()) {
            let count = |s: &[usize]| s.iter().product::<usize>() as i32;
            let x = Tensor::new(&a, (0..count(&a)).collect::<Vec<i32>>()).unwrap();
            let y = Tensor::new(&b, (0..count(&b)).map(|i| 1000 * i).collect::<Vec<i32>>()).unwrap();
            let shape = broadcast::shape(&a, &b).unwrap();
            let naive = |i: usize, s: &[usize]| {
                let (mut rest, mut at, mut step) = (i, 0, 1);
                for (k, &n) in shape.iter().enumerate().rev() {
                    let size = (k + s.len()).checked_sub(shape.len()).map_or(1, |k| s[k]);
                    at += (rest % n) % size * step;
                    step *= size;
                    rest /= n;
                }
                at as i32
            };
            let expected: Vec<i32> =
                (0..count(&shape) as usize).map(|i| naive(i, &a) + 1000 * naive(i, &b)).collect();
            let found = Arithmetic::Add.eval(&[&x, &y]).unwrap();
            prop_assert_eq!(found, [Tensor::new(&shape, expected).unwrap()]);
        }
    }
}
