//! Functions of one element at a time.

mod gradient;

use std::sync::Arc;

use lowbit_kernels::Grid;
use rayon::prelude::*;

use crate::error::{Error, Result, invalid};
use crate::op::{
    Attribute, Attributes, Fact, Op, Operand, Prepared, Quant, ReadOp, Reading, Reverse, Routine, View,
    ViewMut, arity,
};
use crate::parallel;
use crate::tensor::{DType, Element, Tensor};

use super::float;
use super::vectorized::{map_within, vectorized};

/// A function of one element. Its scalar definition ([`Unary::f`]) is pure
/// Rust, so that it gives the same bits on every machine; tables of quantized
/// functions are built from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    /// `max(x, 0)`
    Relu,
    /// `x` where positive, else `alpha * x`
    LeakyRelu {
        /// Slope for negative values.
        alpha: f32,
    },
    /// `x` where positive, else `alpha * (exp(x) - 1)`
    Elu {
        /// Negative limit.
        alpha: f32,
    },
    /// `gamma * x` where positive, else `gamma * alpha * (exp(x) - 1)`
    Selu {
        /// Negative limit before scaling.
        alpha: f32,
        /// Scale.
        gamma: f32,
    },
    /// `x` where positive, else `alpha * (exp(x / alpha) - 1)`
    Celu {
        /// Negative limit.
        alpha: f32,
    },
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `clamp(alpha * x + beta, 0, 1)`
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at 0.
        beta: f32,
    },
    /// Hyperbolic tangent.
    Tanh,
    /// `x * clamp(x / 6 + 1/2, 0, 1)`
    HardSwish,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`, or its approximation by tanh,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`
    Gelu {
        /// Whether the approximation is meant.
        tanh: bool,
    },
    /// `x * tanh(ln(1 + exp(x)))`
    Mish,
    /// `ln(1 + exp(x))`
    Softplus,
    /// `x / (1 + |x|)`
    Softsign,
    /// The error function.
    Erf,
    /// `e^x`
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// `1 / x`
    Reciprocal,
    /// `-x`
    Neg,
    /// `|x|`
    Abs,
    /// -1, 0 or 1.
    Sign,
    /// The greatest integer that is not above.
    Floor,
    /// The least integer that is not below.
    Ceil,
    /// The nearest integer, ties to even.
    Round,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
}

/// What is done with a scalar definition once it is chosen, so that a loop
/// over elements is compiled for each function.
trait Use<T> {
    type Output;
    fn call(self, f: impl Fn(T) -> T + Sync) -> Self::Output;
}

struct At<T>(T);

impl<T> Use<T> for At<T> {
    type Output = T;
    fn call(self, f: impl Fn(T) -> T + Sync) -> T {
        f(self.0)
    }
}

struct Each<'a, T>(&'a mut [T]);

/// Elements that one task computes; smaller tensors stay on one thread.
const CHUNK: usize = 1 << 14;

impl<T: Element> Use<T> for Each<'_, T> {
    type Output = ();
    fn call(self, f: impl Fn(T) -> T + Sync) {
        self.0.par_chunks_mut(CHUNK).for_each(|x| {
            vectorized(
                #[inline(always)]
                || x.iter_mut().for_each(|x| *x = f(*x)),
            );
        });
    }
}

/// One tensor into another, on all threads.
struct Into<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Use<f32> for Into<'_> {
    type Output = ();
    fn call(self, f: impl Fn(f32) -> f32 + Sync) {
        parallel::chunks(self.y, CHUNK, |i, y| {
            let x = &self.x[i * CHUNK..][..y.len()];
            vectorized(
                #[inline(always)]
                || y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x)),
            );
        });
    }
}

/// A matrix, in place.
struct Within<'m, 'a>(&'m mut Grid<'a, f32>);

impl Use<f32> for Within<'_, '_> {
    type Output = [f32; 2];
    fn call(self, f: impl Fn(f32) -> f32 + Sync) -> [f32; 2] {
        map_within(self.0, f)
    }
}

impl Routine for Unary {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        self.with_f32(Into { x: x[0].f32()?, y: y.f32()? });
        Ok(())
    }
}

mod math32 {
    pub(super) use libm::{
        cosf as cos, expm1f as expm1, log1pf as log1p, logf as log, sinf as sin, tanhf as tanh,
    };
    pub(super) use lowbit_kernels::{erf, exp};
    pub(super) use std::f32::consts;
}

mod math64 {
    pub(super) use libm::{cos, erf, exp, expm1, log, log1p, sin, tanh};
    pub(super) use std::f64::consts;
}

macro_rules! definitions {
    ($name:ident, $t:ident, $math:ident) => {
        fn $name<U: Use<$t>>(self, u: U) -> U::Output {
            use $math::{consts, cos, erf, exp, expm1, log, log1p, sin, tanh};
            // Computed so that neither end overflows.
            let softplus = |x: $t| x.max(0.0) + log1p(exp(-x.abs()));
            match self {
                Unary::Relu => u.call(|x| if x < 0.0 { 0.0 } else { x }),
                Unary::LeakyRelu { alpha } => {
                    let alpha = $t::from(alpha);
                    u.call(move |x| if x < 0.0 { alpha * x } else { x })
                }
                Unary::Elu { alpha } => {
                    let alpha = $t::from(alpha);
                    u.call(move |x| if x < 0.0 { alpha * expm1(x) } else { x })
                }
                Unary::Selu { alpha, gamma } => {
                    let (alpha, gamma) = ($t::from(alpha), $t::from(gamma));
                    u.call(move |x| gamma * if x < 0.0 { alpha * expm1(x) } else { x })
                }
                Unary::Celu { alpha } => {
                    let alpha = $t::from(alpha);
                    u.call(move |x| if x < 0.0 { alpha * expm1(x / alpha) } else { x })
                }
                Unary::Sigmoid => u.call(|x| 1.0 / (1.0 + exp(-x))),
                Unary::HardSigmoid { alpha, beta } => {
                    let (alpha, beta) = ($t::from(alpha), $t::from(beta));
                    u.call(move |x| (alpha * x + beta).clamp(0.0, 1.0))
                }
                Unary::Tanh => u.call(tanh),
                Unary::HardSwish => u.call(|x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
                Unary::Gelu { tanh: false } => u.call(|x| 0.5 * x * (1.0 + erf(x * consts::FRAC_1_SQRT_2))),
                Unary::Gelu { tanh: true } => {
                    let scale = consts::FRAC_2_SQRT_PI * consts::FRAC_1_SQRT_2;
                    u.call(move |x| 0.5 * x * (1.0 + tanh(scale * (x + 0.044715 * x * x * x))))
                }
                Unary::Mish => u.call(|x| x * tanh(softplus(x))),
                Unary::Softplus => u.call(softplus),
                Unary::Softsign => u.call(|x| x / (1.0 + x.abs())),
                Unary::Erf => u.call(erf),
                Unary::Exp => u.call(exp),
                Unary::Log => u.call(log),
                Unary::Sqrt => u.call($t::sqrt),
                Unary::Reciprocal => u.call($t::recip),
                Unary::Neg => u.call(|x| -x),
                Unary::Abs => u.call($t::abs),
                Unary::Sign => u.call(|x| if x == 0.0 || x.is_nan() { x } else { x.signum() }),
                Unary::Floor => u.call($t::floor),
                Unary::Ceil => u.call($t::ceil),
                Unary::Round => u.call($t::round_ties_even),
                Unary::Sin => u.call(sin),
                Unary::Cos => u.call(cos),
            }
        }
    };
}

impl Unary {
    definitions!(with_f32, f32, math32);
    definitions!(with_f64, f64, math64);

    /// [`map_within`] of the function.
    pub(crate) fn apply_within(self, matrix: &mut Grid<'_, f32>) -> [f32; 2] {
        self.with_f32(Within(matrix))
    }

    /// The function of one value: the definition.
    pub fn f(self, x: f32) -> f32 {
        self.with_f32(At(x))
    }

    /// The function of integers, where it is one.
    fn of_integers(self, t: &Tensor) -> Result<Tensor> {
        macro_rules! each {
            ($t:ty, $neg:expr, $abs:expr) => {{
                let x = t.slice::<$t>()?;
                let f: fn($t) -> $t = match self {
                    Unary::Neg => $neg,
                    Unary::Abs => $abs,
                    Unary::Relu => |x| x.max(0),
                    _ => |x| {
                        if x == 0 {
                            0
                        } else if x > 0 {
                            1
                        } else {
                            (0 as $t).wrapping_sub(1)
                        }
                    },
                };
                Tensor::new(t.shape(), x.iter().map(|&x| f(x)).collect())
            }};
        }
        match t.dtype() {
            DType::I8 => each!(i8, i8::wrapping_neg, i8::wrapping_abs),
            DType::I16 => each!(i16, i16::wrapping_neg, i16::wrapping_abs),
            DType::I32 => each!(i32, i32::wrapping_neg, i32::wrapping_abs),
            DType::I64 => each!(i64, i64::wrapping_neg, i64::wrapping_abs),
            DType::U8 => each!(u8, u8::wrapping_neg, |x| x),
            DType::U16 => each!(u16, u16::wrapping_neg, |x| x),
            DType::U32 => each!(u32, u32::wrapping_neg, |x| x),
            DType::U64 => each!(u64, u64::wrapping_neg, |x| x),
            other => Err(invalid!("{} of {other} elements is not defined", self.name())),
        }
    }

    fn takes(self, dtype: DType) -> Result<()> {
        let on_integers = matches!(self, Unary::Neg | Unary::Abs | Unary::Relu | Unary::Sign);
        if dtype.is_float() || (on_integers && dtype.is_integer() && dtype.storage() == dtype) {
            return Ok(());
        }
        Err(invalid!("{} of {dtype} elements is not defined", self.name()))
    }
}

impl Op for Unary {
    fn name(&self) -> &'static str {
        match self {
            Unary::Relu => "Relu",
            Unary::LeakyRelu { .. } => "LeakyRelu",
            Unary::Elu { .. } => "Elu",
            Unary::Selu { .. } => "Selu",
            Unary::Celu { .. } => "Celu",
            Unary::Sigmoid => "Sigmoid",
            Unary::HardSigmoid { .. } => "HardSigmoid",
            Unary::Tanh => "Tanh",
            Unary::HardSwish => "HardSwish",
            Unary::Gelu { .. } => "Gelu",
            Unary::Mish => "Mish",
            Unary::Softplus => "Softplus",
            Unary::Softsign => "Softsign",
            Unary::Erf => "Erf",
            Unary::Exp => "Exp",
            Unary::Log => "Log",
            Unary::Sqrt => "Sqrt",
            Unary::Reciprocal => "Reciprocal",
            Unary::Neg => "Neg",
            Unary::Abs => "Abs",
            Unary::Sign => "Sign",
            Unary::Floor => "Floor",
            Unary::Ceil => "Ceil",
            Unary::Round => "Round",
            Unary::Sin => "Sin",
            Unary::Cos => "Cos",
        }
    }

    fn opset(&self) -> i64 {
        match self {
            Unary::Gelu { .. } => 20,
            Unary::Mish => 18,
            Unary::HardSwish => 14,
            _ => 13,
        }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        self.takes(inputs[0].dtype)?;
        Ok(vec![inputs[0].with_shape(inputs[0].shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.eval_owned(inputs.iter().map(|&x| x.clone()).collect())
    }

    fn eval_owned(&self, mut inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        arity(&inputs, 1, 1)?;
        let x = inputs.remove(0);
        self.takes(x.dtype())?;
        let (dtype, shape) = (x.dtype(), x.shape().to_vec());
        let y = match dtype {
            DType::F64 => {
                let mut y = x.into_vec::<f64>()?;
                self.with_f64(Each(&mut y));
                Tensor::new(&shape, y)?
            }
            _ if dtype.is_float() => {
                let mut y = if dtype == DType::F32 { x.into_vec()? } else { x.to_f32()? };
                self.with_f32(Each(&mut y));
                float::write(dtype, &shape, y)?
            }
            _ => self.of_integers(&x)?,
        };
        Ok(vec![y])
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        gradient::vjp(*self, at)
    }

    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        if x[0].dtype == DType::F32 { Prepared::routine(*self) } else { Ok(Prepared::Eval) }
    }

    fn attributes(&self) -> Attributes {
        match *self {
            Unary::LeakyRelu { alpha } | Unary::Elu { alpha } | Unary::Celu { alpha } => {
                vec![("alpha", Attribute::Float(alpha))]
            }
            Unary::Selu { alpha, gamma } => {
                vec![("alpha", Attribute::Float(alpha)), ("gamma", Attribute::Float(gamma))]
            }
            Unary::HardSigmoid { alpha, beta } => {
                vec![("alpha", Attribute::Float(alpha)), ("beta", Attribute::Float(beta))]
            }
            Unary::Gelu { tanh } => {
                vec![("approximate", Attribute::Text(if tanh { "tanh" } else { "none" }.into()))]
            }
            _ => vec![],
        }
    }

    fn quant(&self) -> Quant {
        match self {
            Unary::Relu => Quant::Clamp { lo: 0.0, hi: f32::INFINITY },
            Unary::Sigmoid | Unary::HardSigmoid { .. } => Quant::Fixed { lo: 0.0, hi: 1.0 },
            Unary::Tanh => Quant::Fixed { lo: -1.0, hi: 1.0 },
            Unary::LeakyRelu { .. }
            | Unary::Elu { .. }
            | Unary::Selu { .. }
            | Unary::Celu { .. }
            | Unary::HardSwish
            | Unary::Gelu { .. }
            | Unary::Mish
            | Unary::Softplus
            | Unary::Softsign
            | Unary::Erf => Quant::Compute { weight: None, bias: None },
            _ => Quant::Float,
        }
    }
}

/// `!x` of booleans.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Not;

impl Op for Not {
    fn name(&self) -> &'static str {
        "Not"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        if inputs[0].dtype != DType::Bool {
            return Err(invalid!("takes bool, found {}", inputs[0].dtype));
        }
        Ok(vec![inputs[0].with_shape(inputs[0].shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, 1)?;
        let y = inputs[0].slice::<bool>()?.iter().map(|x| !x).collect();
        Ok(vec![Tensor::new(inputs[0].shape(), y)?])
    }
}

/// Which elements are NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IsNaN;

impl Op for IsNaN {
    fn name(&self) -> &'static str {
        "IsNaN"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        if !inputs[0].dtype.is_float() {
            return Err(invalid!("takes floats, found {}", inputs[0].dtype));
        }
        Ok(vec![Fact { dtype: DType::Bool, shape: inputs[0].shape.clone(), sizes: None }])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, 1)?;
        let y = inputs[0].to_f32()?.into_iter().map(f32::is_nan).collect();
        Ok(vec![Tensor::new(inputs[0].shape(), y)?])
    }
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("Relu", |_| Ok(Arc::new(Unary::Relu))),
    ("Sigmoid", |_| Ok(Arc::new(Unary::Sigmoid))),
    ("Tanh", |_| Ok(Arc::new(Unary::Tanh))),
    ("HardSwish", |_| Ok(Arc::new(Unary::HardSwish))),
    ("Mish", |_| Ok(Arc::new(Unary::Mish))),
    ("Softplus", |_| Ok(Arc::new(Unary::Softplus))),
    ("Softsign", |_| Ok(Arc::new(Unary::Softsign))),
    ("Erf", |_| Ok(Arc::new(Unary::Erf))),
    ("Exp", |_| Ok(Arc::new(Unary::Exp))),
    ("Log", |_| Ok(Arc::new(Unary::Log))),
    ("Sqrt", |_| Ok(Arc::new(Unary::Sqrt))),
    ("Reciprocal", |_| Ok(Arc::new(Unary::Reciprocal))),
    ("Neg", |_| Ok(Arc::new(Unary::Neg))),
    ("Abs", |_| Ok(Arc::new(Unary::Abs))),
    ("Sign", |_| Ok(Arc::new(Unary::Sign))),
    ("Floor", |_| Ok(Arc::new(Unary::Floor))),
    ("Ceil", |_| Ok(Arc::new(Unary::Ceil))),
    ("Round", |_| Ok(Arc::new(Unary::Round))),
    ("Sin", |_| Ok(Arc::new(Unary::Sin))),
    ("Cos", |_| Ok(Arc::new(Unary::Cos))),
    ("Gelu", gelu),
    ("LeakyRelu", |a| Ok(Arc::new(Unary::LeakyRelu { alpha: a.float("alpha", 0.01)? }))),
    ("Elu", |a| Ok(Arc::new(Unary::Elu { alpha: a.float("alpha", 1.0)? }))),
    ("Celu", |a| Ok(Arc::new(Unary::Celu { alpha: a.float("alpha", 1.0)? }))),
    ("Selu", |a| {
        Ok(Arc::new(Unary::Selu {
            alpha: a.float("alpha", 1.673_263_2)?,
            gamma: a.float("gamma", 1.050_701)?,
        }))
    }),
    ("HardSigmoid", |a| {
        Ok(Arc::new(Unary::HardSigmoid { alpha: a.float("alpha", 0.2)?, beta: a.float("beta", 0.5)? }))
    }),
    ("Not", |_| Ok(Arc::new(Not))),
    ("IsNaN", |_| Ok(Arc::new(IsNaN))),
];

fn gelu(a: &mut Reading) -> Result<Arc<dyn Op>> {
    let tanh = match a.text("approximate")?.as_deref() {
        None | Some("none") => false,
        Some("tanh") => true,
        Some(other) => return Err(Error::unsupported("Gelu", format!("attribute approximate = {other:?}"))),
    };
    Ok(Arc::new(Unary::Gelu { tanh }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use half::{bf16, f16};

    use super::*;
    use crate::op::eval_by_routine;

    struct Case {
        f: Unary,
        /// Argument and value, computed with 50 digits.
        points: &'static [(f64, f64)],
    }

    const SQRT_HALF: f64 = std::f64::consts::FRAC_1_SQRT_2;

    const CASES: &[Case] = &[
        Case { f: Unary::Relu, points: &[(-2.0, 0.0), (3.5, 3.5)] },
        Case { f: Unary::LeakyRelu { alpha: 0.25 }, points: &[(-2.0, -0.5), (3.0, 3.0)] },
        Case { f: Unary::Elu { alpha: 2.0 }, points: &[(-1.0, -1.264241117657115), (1.5, 1.5)] },
        Case { f: Unary::Selu { alpha: 1.5, gamma: 2.0 }, points: &[(-1.0, -1.896361676485673), (1.5, 3.0)] },
        Case { f: Unary::Celu { alpha: 2.0 }, points: &[(-2.0, -1.264241117657115), (1.5, 1.5)] },
        Case {
            f: Unary::Sigmoid,
            points: &[(0.0, 0.5), (2.0, 0.8807970779778824), (-200.0, 0.0), (200.0, 1.0)],
        },
        Case {
            f: Unary::HardSigmoid { alpha: 0.25, beta: 0.5 },
            points: &[(1.0, 0.75), (-3.0, 0.0), (3.0, 1.0)],
        },
        Case { f: Unary::Tanh, points: &[(0.5, 0.46211715726000973), (-50.0, -1.0)] },
        Case { f: Unary::HardSwish, points: &[(-4.0, 0.0), (1.5, 1.125), (4.0, 4.0)] },
        Case { f: Unary::Gelu { tanh: false }, points: &[(1.0, 0.8413447460685429), (-40.0, 0.0)] },
        Case { f: Unary::Gelu { tanh: true }, points: &[(1.0, 0.8411919906082768), (-40.0, 0.0)] },
        Case { f: Unary::Mish, points: &[(1.0, 0.8650983882673103), (100.0, 100.0)] },
        Case {
            f: Unary::Softplus,
            points: &[(0.0, std::f64::consts::LN_2), (100.0, 100.0), (-100.0, 3.720075976020836e-44)],
        },
        Case { f: Unary::Softsign, points: &[(3.0, 0.75), (-1.0, -0.5)] },
        Case { f: Unary::Erf, points: &[(0.5, 0.5204998778130465), (-9.0, -1.0)] },
        Case { f: Unary::Exp, points: &[(1.0, std::f64::consts::E), (0.0, 1.0)] },
        Case { f: Unary::Log, points: &[(10.0, std::f64::consts::LN_10), (1.0, 0.0)] },
        Case { f: Unary::Sqrt, points: &[(0.5, SQRT_HALF), (9.0, 3.0)] },
        Case { f: Unary::Reciprocal, points: &[(4.0, 0.25)] },
        Case { f: Unary::Neg, points: &[(4.0, -4.0)] },
        Case { f: Unary::Abs, points: &[(-4.0, 4.0)] },
        Case { f: Unary::Sign, points: &[(-4.0, -1.0), (0.0, 0.0), (0.25, 1.0)] },
        Case { f: Unary::Floor, points: &[(-1.5, -2.0), (1.5, 1.0)] },
        Case { f: Unary::Ceil, points: &[(-1.5, -1.0), (1.5, 2.0)] },
        Case { f: Unary::Round, points: &[(0.5, 0.0), (1.5, 2.0), (-2.5, -2.0)] },
        Case { f: Unary::Sin, points: &[(0.5, 0.479425538604203)] },
        Case { f: Unary::Cos, points: &[(0.5, 0.8775825618903728)] },
    ];

    /// Every function, in every float type, within a few units in the last
    /// place of the true value (those of f32 for f16's and f32's arithmetic).
    #[test]
    fn functions_match_their_definitions() {
        let mut failures = vec![];
        for Case { f, points } in CASES {
            let x: Vec<f64> = points.iter().map(|p| p.0).collect();
            let types: [(Tensor, f64); 4] = [
                (Tensor::vector(x.clone()), 1e-15),
                (Tensor::vector(x.iter().map(|&x| x as f32).collect()), 3e-7),
                (Tensor::vector(x.iter().map(|&x| f16::from_f64(x)).collect()), 6e-4),
                (Tensor::vector(x.iter().map(|&x| bf16::from_f64(x)).collect()), 5e-3),
            ];
            for (t, tolerance) in types {
                let y = f.eval(&[&t]).unwrap().remove(0);
                let found: Vec<f64> = match y.slice::<f64>() {
                    Ok(y) => y.to_vec(),
                    Err(_) => y.to_f32().unwrap().into_iter().map(f64::from).collect(),
                };
                assert_eq!(y.dtype(), t.dtype());
                for (&(x, expected), found) in points.iter().zip(found) {
                    if (found - expected).abs() > tolerance * expected.abs().max(0.5) {
                        failures.push(format!("{f:?}({x}) in {} = {found}, not {expected}", t.dtype()));
                    }
                }
            }
            for &(x, _) in *points {
                let one = f.eval(&[&Tensor::scalar(x as f32)]).unwrap()[0].item::<f32>().unwrap();
                assert_eq!(one.to_bits(), f.f(x as f32).to_bits());
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    #[test]
    fn nan_stays_nan() {
        for f in CASES.iter().map(|c| c.f) {
            assert!(f.f(f32::NAN).is_nan(), "{f:?}");
        }
        let t = Tensor::vector(vec![f32::NAN, 1.0]);
        assert_eq!(IsNaN.eval(&[&t]).unwrap(), [Tensor::vector(vec![true, false])]);
    }

    #[test]
    fn tensors_and_routines_compute_what_the_definition_does() {
        let x: Vec<f32> = (0..CHUNK * 2 + 3).map(|i| i as f32 / 2e3 - 7.0).collect();
        for f in CASES.iter().map(|c| c.f) {
            let t = [Tensor::vector(x.clone())];
            let expected = x.iter().map(|&x| f.f(x).to_bits()).collect::<Vec<_>>();
            for y in [f.eval(&[&t[0]]), eval_by_routine(&f, &[&t[0]])] {
                let y: Vec<f32> = y.unwrap().remove(0).into_vec().unwrap();
                let differ = y.iter().zip(&expected).find(|(y, e)| y.to_bits() != **e && !y.is_nan());
                assert_eq!(differ, None, "{f:?}");
            }
        }
    }

    #[test]
    fn integers_wrap_and_booleans_negate() {
        let x = Tensor::vector(vec![i8::MIN, -1, 0, 5]);
        for (f, expected) in [
            (Unary::Neg, [i8::MIN, 1, 0, -5]),
            (Unary::Abs, [i8::MIN, 1, 0, 5]),
            (Unary::Sign, [-1, -1, 0, 1]),
            (Unary::Relu, [0, 0, 0, 5]),
        ] {
            assert_eq!(f.eval(&[&x]).unwrap(), [Tensor::vector(expected.to_vec())], "{f:?}");
        }
        let x = Tensor::vector(vec![0u64, u64::MAX]);
        assert_eq!(Unary::Sign.eval(&[&x]).unwrap(), [Tensor::vector(vec![0u64, 1])]);
        let x = Tensor::vector(vec![true, false]);
        assert_eq!(Not.eval(&[&x]).unwrap(), [Tensor::vector(vec![false, true])]);
    }

    #[test]
    fn wrong_types_are_refused() {
        let cases: [(&dyn Op, Tensor); 5] = [
            (&Unary::Exp, Tensor::scalar(1i32)),
            (&Unary::Relu, Tensor::scalar(true)),
            (&Unary::Neg, Tensor::coded(DType::I4, &[1], vec![1i8]).unwrap()),
            (&Not, Tensor::scalar(1.0f32)),
            (&IsNaN, Tensor::scalar(1i64)),
        ];
        for (op, x) in cases {
            assert!(op.infer(&[&Fact::of(&x)]).is_err(), "{op:?} of {x:?}");
        }
        assert!(Unary::Relu.infer(&[]).is_err());
    }

    #[test]
    fn every_function_is_read_back_from_its_attributes() {
        for f in CASES.iter().map(|c| c.f) {
            let (_, read) = READERS.iter().find(|r| r.0 == f.name()).unwrap();
            let attributes: BTreeMap<_, _> =
                f.attributes().into_iter().map(|(k, v)| (k.to_string(), v)).collect();
            let mut reading = Reading::new(f.name(), 20, attributes, vec![None], 1);
            let op = read(&mut reading).unwrap();
            reading.finish().unwrap();
            assert_eq!(op.is::<Unary>(), Some(&f));
        }
    }
}
