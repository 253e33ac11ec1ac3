//! Convolutions over one to three axes.

use super::init::Init;
use super::module::{Fusing, Module, Parameter};
use super::scope::Scope;
use super::sizes::Each;
use crate::error::Result;
use crate::graph::Var;
use crate::ops::conv::Conv as ConvOp;
use crate::ops::conv_transpose::ConvTranspose as ConvTransposeOp;
use crate::ops::window::{Padding, Window};

/// [`Conv`] over lines, `[N, C, L]`.
pub type Conv1d = Conv<1>;
/// [`Conv`] over images, `[N, C, H, W]`.
pub type Conv2d = Conv<2>;
/// [`Conv`] over volumes, `[N, C, D, H, W]`.
pub type Conv3d = Conv<3>;
/// [`ConvTranspose`] over lines, `[N, C, L]`.
pub type ConvTranspose1d = ConvTranspose<1>;
/// [`ConvTranspose`] over images, `[N, C, H, W]`.
pub type ConvTranspose2d = ConvTranspose<2>;
/// [`ConvTranspose`] over volumes, `[N, C, D, H, W]`.
pub type ConvTranspose3d = ConvTranspose<3>;

/// `y[n, m] = b[m] + sum over c, taps of W[m, c, tap] x[n, c, stride o + dilation tap -
/// padding]`. Parameters: weight `[out, in / groups, kernel..]`, bias `[out]`.
#[derive(Clone, Debug)]
pub struct Conv<const D: usize> {
    inputs: usize,
    outputs: usize,
    kernel: [usize; D],
    stride: [usize; D],
    padding: [usize; D],
    dilation: [usize; D],
    groups: usize,
    bias: bool,
}

/// The transpose of [`Conv`], in its input: output sizes are `stride (size - 1) + dilation
/// (kernel - 1) + 1 + output_padding - 2 padding`. Parameters: weight `[in, out / groups,
/// kernel..]`, bias `[out]`.
#[derive(Clone, Debug)]
pub struct ConvTranspose<const D: usize> {
    of: Conv<D>,
    output_padding: [usize; D],
}

fn window<const D: usize>(stride: [usize; D], dilation: [usize; D], padding: [usize; D]) -> Window {
    let padding = Padding::Explicit(padding.iter().map(|&p| (p, p)).collect());
    Window { strides: stride.to_vec(), dilations: dilation.to_vec(), padding }
}

impl<const D: usize> Conv<D> {
    /// From `inputs` to `outputs` channels, with stride 1, no padding, and a bias.
    pub fn new(inputs: usize, outputs: usize, kernel: impl Each<D>) -> Conv<D> {
        let kernel = kernel.each();
        let (one, none) = ([1; D], [0; D]);
        Conv { inputs, outputs, kernel, stride: one, padding: none, dilation: one, groups: 1, bias: true }
    }

    /// Steps between windows.
    pub fn stride(self, stride: impl Each<D>) -> Conv<D> {
        Conv { stride: stride.each(), ..self }
    }

    /// Zeros before and after each axis.
    pub fn padding(self, padding: impl Each<D>) -> Conv<D> {
        Conv { padding: padding.each(), ..self }
    }

    /// Steps between the taps of a window.
    pub fn dilation(self, dilation: impl Each<D>) -> Conv<D> {
        Conv { dilation: dilation.each(), ..self }
    }

    /// Channels are convolved in this many groups; it divides both numbers of them.
    pub fn groups(self, groups: usize) -> Conv<D> {
        Conv { groups, ..self }
    }

    /// With or without a bias.
    pub fn bias(self, bias: bool) -> Conv<D> {
        Conv { bias, ..self }
    }

    /// Weight, of this shape, and bias.
    fn parameters_of(&self, lead: [usize; 2]) -> Vec<Parameter> {
        let shape = [&lead[..], &self.kernel].concat();
        let init = Init::fan_in(shape[1..].iter().product());
        let mut all = vec![Parameter::new("weight", &shape, init)];
        all.extend(self.bias.then(|| Parameter::new("bias", &[self.outputs], init)));
        all
    }
}

impl<const D: usize> Module for Conv<D> {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let inputs = [x, g.parameter("weight")?];
        let inputs: Vec<Var> = inputs.into_iter().chain(g.optional_parameter("bias")?).collect();
        let window = window(self.stride, self.dilation, self.padding);
        g.layer(ConvOp { window, group: self.groups, kernel: Some(self.kernel.to_vec()) }, &inputs)
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.parameters_of([self.outputs, self.inputs / self.groups.max(1)])
    }

    fn fusing(&self) -> Fusing {
        Fusing::Conv
    }
}

impl<const D: usize> ConvTranspose<D> {
    /// From `inputs` to `outputs` channels, with stride 1, no padding, and a bias.
    pub fn new(inputs: usize, outputs: usize, kernel: impl Each<D>) -> ConvTranspose<D> {
        ConvTranspose { of: Conv::new(inputs, outputs, kernel), output_padding: [0; D] }
    }

    /// Steps between the windows of the output.
    pub fn stride(self, stride: impl Each<D>) -> ConvTranspose<D> {
        ConvTranspose { of: self.of.stride(stride), ..self }
    }

    /// Cells that the output lacks before and after each axis.
    pub fn padding(self, padding: impl Each<D>) -> ConvTranspose<D> {
        ConvTranspose { of: self.of.padding(padding), ..self }
    }

    /// Cells that the output has more after each axis.
    pub fn output_padding(self, padding: impl Each<D>) -> ConvTranspose<D> {
        ConvTranspose { output_padding: padding.each(), ..self }
    }

    /// Steps between the taps of a window.
    pub fn dilation(self, dilation: impl Each<D>) -> ConvTranspose<D> {
        ConvTranspose { of: self.of.dilation(dilation), ..self }
    }

    /// Channels are convolved in this many groups; it divides both numbers of them.
    pub fn groups(self, groups: usize) -> ConvTranspose<D> {
        ConvTranspose { of: self.of.groups(groups), ..self }
    }

    /// With or without a bias.
    pub fn bias(self, bias: bool) -> ConvTranspose<D> {
        ConvTranspose { of: self.of.bias(bias), ..self }
    }
}

impl<const D: usize> Module for ConvTranspose<D> {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let inputs = [x, g.parameter("weight")?];
        let inputs: Vec<Var> = inputs.into_iter().chain(g.optional_parameter("bias")?).collect();
        let op = ConvTransposeOp {
            window: window(self.of.stride, self.of.dilation, self.of.padding),
            group: self.of.groups,
            kernel: Some(self.of.kernel.to_vec()),
            output_padding: self.output_padding.to_vec(),
            output_shape: None,
        };
        g.layer(op, &inputs)
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.of.parameters_of([self.of.inputs, self.of.outputs / self.of.groups.max(1)])
    }

    fn fusing(&self) -> Fusing {
        Fusing::ConvTranspose
    }
}
