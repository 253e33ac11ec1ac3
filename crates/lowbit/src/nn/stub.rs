//! Where eager mode quantizes: stubs, and operators without parameters as modules.
//! Elsewhere stubs do nothing.

use std::sync::Arc;

use super::module::Module;
use super::scope::{Kind, Scope};
use crate::error::{Result, invalid};
use crate::graph::Var;
use crate::op::Op;
use crate::ops::binary::Arithmetic;
use crate::ops::layout::Concat;
use crate::ops::linear::MatMul;

/// From float to quantized values.
#[derive(Clone, Debug, Default)]
pub struct QuantStub;

impl Module for QuantStub {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        g.quantized_stub(x)
    }
}

/// From quantized values to float.
#[derive(Clone, Debug, Default)]
pub struct DeQuantStub;

impl Module for DeQuantStub {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        g.dequantized_stub(x)
    }
}

fn functional(g: &mut Scope<'_>, op: impl Op, inputs: &[Var]) -> Result<Var> {
    ranged(g, op, inputs, Kind::Functional { relu: false })
}

fn ranged(g: &mut Scope<'_>, op: impl Op, inputs: &[Var], kind: Kind) -> Result<Var> {
    if g.path().is_empty() {
        return Err(invalid!(
            "a FloatFunctional needs a path: g.enter(\"skip\", |g| self.skip.add(g, x, y))"
        ));
    }
    g.ranged(Arc::new(op), inputs, kind)
}

/// Operators of quantized values, whose results have a range of their own: one module
/// for each place. Called within its path, as in
/// `g.enter("skip", |g| self.skip.add(g, x, y))`.
#[derive(Clone, Debug, Default)]
pub struct FloatFunctional;

#[allow(clippy::missing_errors_doc)]
impl FloatFunctional {
    /// `a + b`
    pub fn add(&self, g: &mut Scope<'_>, a: Var, b: Var) -> Result<Var> {
        functional(g, Arithmetic::Add, &[a, b])
    }

    /// `a b`
    pub fn mul(&self, g: &mut Scope<'_>, a: Var, b: Var) -> Result<Var> {
        functional(g, Arithmetic::Mul, &[a, b])
    }

    /// The matrix product of the last two axes.
    pub fn matmul(&self, g: &mut Scope<'_>, a: Var, b: Var) -> Result<Var> {
        functional(g, MatMul, &[a, b])
    }

    /// `max(a + b, 0)`
    pub fn add_relu(&self, g: &mut Scope<'_>, a: Var, b: Var) -> Result<Var> {
        ranged(g, Arithmetic::Add, &[a, b], Kind::Functional { relu: true })
    }

    /// The values one after another along `axis`.
    pub fn cat(&self, g: &mut Scope<'_>, values: &[Var], axis: i64) -> Result<Var> {
        functional(g, Concat { axis }, values)
    }

    /// `x + c`
    pub fn add_scalar(&self, g: &mut Scope<'_>, x: Var, c: f32) -> Result<Var> {
        let c = g.scalar(c);
        functional(g, Arithmetic::Add, &[x, c])
    }

    /// `c x`
    pub fn mul_scalar(&self, g: &mut Scope<'_>, x: Var, c: f32) -> Result<Var> {
        let c = g.scalar(c);
        functional(g, Arithmetic::Mul, &[x, c])
    }
}

impl Module for FloatFunctional {
    fn forward(&self, g: &mut Scope<'_>, _: Var) -> Result<Var> {
        Err(invalid!("a FloatFunctional is not called itself: call add, mul, cat ..").at(g.place()))
    }
}
