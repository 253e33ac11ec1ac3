//! Products with matrices.

use std::sync::Arc;

use super::init::Init;
use super::module::{Fusing, Module, Parameter};
use super::scope::{Kind, Scope};
use crate::error::{Result, invalid};
use crate::graph::Var;
use crate::ops::einsum::Einsum;
use crate::ops::linear::Gemm;

/// `y = x W^T + b` over the last axis. Parameters: weight `[out, in]`, bias `[out]`.
#[derive(Clone, Debug)]
pub struct Linear {
    inputs: usize,
    outputs: usize,
    bias: bool,
    /// The first value of the bias.
    bias_init: Init,
}

impl Linear {
    /// From `inputs` to `outputs` features, with a bias.
    pub fn new(inputs: usize, outputs: usize) -> Linear {
        Linear { inputs, outputs, bias: true, bias_init: Init::fan_in(inputs) }
    }

    pub(super) fn bias_init(self, bias_init: Init) -> Linear {
        Linear { bias_init, ..self }
    }

    /// With or without a bias.
    pub fn bias(self, bias: bool) -> Linear {
        Linear { bias, ..self }
    }
}

impl Module for Linear {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let weight = g.parameter("weight")?;
        let bias = g.optional_parameter("bias")?;
        let kind = if g.fact(x).rank() == 2 { Kind::Module } else { Kind::Rows };
        g.as_rows(x, |g, x| {
            let inputs: Vec<Var> = [x, weight].into_iter().chain(bias).collect();
            g.ranged(Arc::new(Gemm { trans_b: true, ..Gemm::default() }), &inputs, kind)
        })
    }

    fn parameters(&self) -> Vec<Parameter> {
        let init = Init::fan_in(self.inputs);
        let mut all = vec![Parameter::new("weight", &[self.outputs, self.inputs], init)];
        all.extend(self.bias.then(|| Parameter::new("bias", &[self.outputs], self.bias_init)));
        all
    }

    fn fusing(&self) -> Fusing {
        Fusing::Linear
    }
}

/// `y[k] = a^T W[k] b + bias[k]` over the last axes of two inputs. Parameters: weight
/// `[out, in1, in2]`, bias `[out]`.
#[derive(Clone, Debug)]
pub struct Bilinear {
    inputs: [usize; 2],
    outputs: usize,
    bias: bool,
}

impl Bilinear {
    /// From features of two inputs to `outputs` features, with a bias.
    pub fn new(inputs: [usize; 2], outputs: usize) -> Bilinear {
        Bilinear { inputs, outputs, bias: true }
    }

    /// With or without a bias.
    pub fn bias(self, bias: bool) -> Bilinear {
        Bilinear { bias, ..self }
    }

    /// The map applied to `a [.., in1]` and `b [.., in2]`.
    ///
    /// # Errors
    /// If they do not fit.
    pub fn apply(&self, g: &mut Scope<'_>, a: Var, b: Var) -> Result<Var> {
        let weight = g.parameter("weight")?;
        let y = g.apply(Einsum::new("...i,oij,...j->...o")?, &[a, weight, b])?;
        match g.optional_parameter("bias")? {
            Some(bias) => g.add(y, bias),
            None => Ok(y),
        }
    }
}

impl Module for Bilinear {
    fn forward(&self, g: &mut Scope<'_>, _: Var) -> Result<Var> {
        Err(invalid!("Bilinear takes two inputs: Bilinear::apply").at(g.place()))
    }

    fn forward_all(&self, g: &mut Scope<'_>, inputs: &[Var]) -> Result<Vec<Var>> {
        match *inputs {
            [a, b] => Ok(vec![self.apply(g, a, b)?]),
            _ => Err(invalid!("Bilinear takes two inputs, found {}", inputs.len()).at(g.place())),
        }
    }

    fn parameters(&self) -> Vec<Parameter> {
        let ([a, b], init) = (self.inputs, Init::fan_in(self.inputs[0]));
        let mut all = vec![Parameter::new("weight", &[self.outputs, a, b], init)];
        all.extend(self.bias.then(|| Parameter::new("bias", &[self.outputs], init)));
        all
    }
}
