//! Convolution: `y[n, m] = bias[m] + sum over c, taps of w[m, c, tap] * x[n, c, window]`.

mod by_weight;
mod columns;
mod depthwise;
pub(super) mod gradient;
mod planes;

use std::sync::Arc;

use super::float;
use super::window::{Axis, Window, three};
use crate::error::{Result, invalid};
use crate::op::{
    Attribute, Attributes, Dim, Fact, Op, Quant, ReadOp, Reverse, arity, optional, optional_fact,
};
use crate::tensor::buffers::buffer;
use crate::tensor::{Tensor, element_count};

pub(super) const READERS: &[(&str, ReadOp)] = &[("Conv", |r| {
    let kernel = r.sizes("kernel_shape")?;
    let group = read_group(r.int("group")?)?;
    Ok(Arc::new(Conv { window: Window::read(r)?, group, kernel }))
})];

/// ONNX `Conv` over one to three spatial axes. Operands: `x [N, C, spatial..]`,
/// `w [M, C / group, kernel..]`, optional `bias [M]`; output `[N, M, spatial..]`.
///
/// Computes in f32; other float types are converted and rounded back.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// Strides, dilations and padding.
    pub window: Window,
    /// Channels are convolved in this many separate groups.
    pub group: usize,
    /// The kernel's spatial sizes where the model states them; otherwise the
    /// weight's are taken.
    pub kernel: Option<Vec<usize>>,
}

/// A convolution at known sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Images.
    pub batch: usize,
    /// Groups.
    pub group: usize,
    /// Input channels of one group.
    pub in_channels: usize,
    /// Output channels of one group.
    pub out_channels: usize,
    /// Depth, height and width; axes that the operands lack are
    /// [`Axis::UNIT`].
    pub axes: [Axis; 3],
}

impl Geometry {
    /// Cells of one input channel.
    pub fn inputs(&self) -> usize {
        self.axes.iter().map(|a| a.input).product()
    }

    /// Cells of one output channel.
    pub fn outputs(&self) -> usize {
        self.axes.iter().map(|a| a.output).product()
    }

    /// Taps of one kernel.
    pub fn taps(&self) -> usize {
        self.axes.iter().map(|a| a.kernel).product()
    }
}

/// Outputs below `lo` become `lo`, those above `hi` become `hi`; NaN stays.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    lo: f32,
    hi: f32,
}

impl Bounds {
    const NONE: Bounds = Bounds { lo: f32::NEG_INFINITY, hi: f32::INFINITY };
}

impl Conv {
    /// The geometry for operands of these shapes.
    ///
    /// # Errors
    /// If channels or groups do not fit, or as [`Window::resolve`].
    pub fn geometry(&self, x: &[usize], w: &[usize]) -> Result<Geometry> {
        let kernel = kernel(self.kernel.as_deref(), x.len(), w)?;
        let (m, c) = (w[0], w[1]);
        check_groups(self.group, m)?;
        self.check_channels(x[1], w)?;
        let axes = three("Conv", &self.window.resolve(kernel, &x[2..], false)?)?;
        let geometry =
            Geometry { batch: x[0], group: self.group, in_channels: c, out_channels: m / self.group, axes };
        element_count(&[x[0], m, axes[0].output, axes[1].output, axes[2].output])?;
        Ok(geometry)
    }

    fn convolve(&self, inputs: &[&Tensor], bounds: Bounds) -> Result<Vec<Tensor>> {
        arity(inputs, 2, 3)?;
        let [x, w] = [inputs[0], inputs[1]];
        let g = self.geometry(x.shape(), w.shape())?;
        // What is gathered for a product: a thousand rows at most, of all outputs at most.
        element_count(&[(g.in_channels * g.taps()).min(1024), g.outputs()])?;
        let bias = optional(inputs, 2);
        check_bias(bias.map(Fact::of).as_ref(), w.shape()[0])?;
        let bias = bias.map(float::read).transpose()?;
        let y = convolve(&float::read(x)?, &float::read(w)?, bias.as_deref(), bounds, &g);
        let spatial = x.rank() - 2;
        let mut shape = vec![g.batch, w.shape()[0]];
        shape.extend(g.axes[3 - spatial..].iter().map(|a| a.output));
        Ok(vec![float::write(x.dtype(), &shape, y)?])
    }

    fn check_channels(&self, channels: usize, w: &[usize]) -> Result<()> {
        let group = self.group;
        if w[1].checked_mul(group) == Some(channels) {
            return Ok(());
        }
        let takes = w[1].saturating_mul(group);
        Err(invalid!(
            "the input has {channels} channels; a weight of shape {w:?} in {group} groups takes {takes}"
        ))
    }
}

impl Op for Conv {
    fn name(&self) -> &'static str {
        "Conv"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 3)?;
        float::common("Conv", inputs)?;
        let [x, w] = [inputs[0], inputs[1]];
        let shape = weight_shape(w)?;
        if let Some(x) = x.known_shape() {
            self.geometry(&x, &shape)?;
        }
        let kernel = kernel(self.kernel.as_deref(), x.rank(), &shape)?;
        check_groups(self.group, shape[0])?;
        if let Dim::Known(channels) = x.shape[1] {
            self.check_channels(channels, &shape)?;
        }
        check_bias(optional_fact(inputs, 2), shape[0])?;
        let mut out = vec![x.shape[0].clone(), Dim::Known(shape[0])];
        out.extend(self.window.dims(kernel, &x.shape[2..], false)?);
        Ok(vec![x.with_shape(out)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.convolve(inputs, Bounds::NONE)
    }

    fn eval_clamped(&self, inputs: &[&Tensor], lo: f32, hi: f32) -> Option<Result<Vec<Tensor>>> {
        Some(self.convolve(inputs, Bounds { lo, hi }))
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        gradient::vjp(self, at)
    }

    fn attributes(&self) -> Attributes {
        attributes(&self.window, self.group, self.kernel.as_deref())
    }

    fn quant(&self) -> Quant {
        Quant::Compute { weight: Some((1, 0)), bias: Some(2) }
    }

    fn macs(&self, inputs: &[&Fact], outputs: &[&Fact]) -> u64 {
        let per_output = inputs[1].shape[1..].iter().map(|d| d.known().unwrap_or(1) as u64);
        outputs[0].elements().saturating_mul(per_output.product())
    }
}

/// `group` of a convolution node.
pub(super) fn read_group(group: Option<i64>) -> Result<usize> {
    let group = group.unwrap_or(1);
    usize::try_from(group)
        .ok()
        .filter(|&g| g > 0)
        .ok_or_else(|| invalid!("attribute group = {group} must be at least 1"))
}

/// The attributes of a convolution.
pub(super) fn attributes(window: &Window, group: usize, kernel: Option<&[usize]>) -> Attributes {
    let mut a = window.attributes();
    if let Some(kernel) = kernel {
        a.push(("kernel_shape", Attribute::Ints(kernel.iter().map(|&k| k as i64).collect())));
    }
    if group != 1 {
        a.push(("group", Attribute::Int(group as i64)));
    }
    a
}

/// The kernel's spatial sizes, for an input of this rank and weight shape.
pub(super) fn kernel<'a>(stated: Option<&[usize]>, rank: usize, w: &'a [usize]) -> Result<&'a [usize]> {
    if rank < 3 || rank != w.len() {
        return Err(invalid!(
            "needs an input [N, C, spatial..] and a weight of the same rank, found rank {rank} and shape {w:?}"
        ));
    }
    match stated {
        Some(k) if *k != w[2..] => {
            Err(invalid!("attribute kernel_shape = {k:?} contradicts the weight's shape {w:?}"))
        }
        _ => Ok(&w[2..]),
    }
}

pub(super) fn weight_shape(w: &Fact) -> Result<Vec<usize>> {
    w.known_shape().ok_or_else(|| invalid!("needs a weight of fixed shape, found {w}"))
}

fn check_groups(group: usize, channels: usize) -> Result<()> {
    if group > 0 && channels.is_multiple_of(group) {
        return Ok(());
    }
    Err(invalid!("{channels} output channels do not divide into {group} groups"))
}

pub(super) fn check_bias(bias: Option<&Fact>, channels: usize) -> Result<()> {
    match bias {
        Some(b) if b.known_shape().is_some_and(|s| s != [channels]) => {
            Err(invalid!("the bias must have shape [{channels}], found {b}"))
        }
        _ => Ok(()),
    }
}

/// The convolution of `x [batch, group * in_channels, inputs]` with
/// `w [group * out_channels, in_channels, taps]`. Slices must have the sizes
/// that `g` says.
fn convolve(x: &[f32], w: &[f32], bias: Option<&[f32]>, bounds: Bounds, g: &Geometry) -> Vec<f32> {
    let mut y = buffer(g.batch * g.group * g.out_channels * g.outputs());
    if y.is_empty() {
        return y;
    }
    if let Some(planes) = depthwise::planes(g) {
        depthwise::convolve(&planes, x, w, bias, bounds, g, &mut y);
    } else {
        columns::convolve(x, w, bias, bounds, g, &mut y);
    }
    y
}

#[cfg(test)]
pub(super) mod tests;
