//! Normalization: over batches, channels, groups, layers and neighbours.
//!
//! Moments and distances from the mean are f64; the rest is f32.

mod batch;
mod gradient;
mod sums;

use std::sync::Arc;

use lowbit_kernels::Kernels;
use rayon::prelude::*;

use super::float;
use crate::error::{Error, Result, invalid};
use crate::op::{
    Attribute, Attributes, Dim, Fact, Op, Operand, Prepared, ReadOp, Reading, Reverse, Routine, View,
    ViewMut, arity, optional, optional_fact,
};
use crate::parallel;
use crate::tensor::{DType, Tensor};

pub use batch::BatchNormalization;
use gradient::Rows;

pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("BatchNormalization", batch::read),
    ("InstanceNormalization", |r| Ok(Arc::new(InstanceNormalization { epsilon: r.float("epsilon", 1e-5)? }))),
    ("LayerNormalization", |r| {
        if r.outputs() > 1 {
            return Err(Error::unsupported("LayerNormalization", "outputs Mean and InvStdDev"));
        }
        layer(r, true)
    }),
    ("RMSNormalization", |r| layer(r, false)),
    ("GroupNormalization", |r| {
        r.only("stash_type", &Attribute::Int(1))?;
        let groups = r.int("num_groups")?.ok_or_else(|| invalid!("attribute num_groups is missing"))?;
        let groups = usize::try_from(groups)
            .ok()
            .filter(|&g| g > 0)
            .ok_or_else(|| invalid!("attribute num_groups = {groups} must be at least 1"))?;
        let per_group = r.opset() < 21;
        Ok(Arc::new(GroupNormalization { groups, per_group, epsilon: r.float("epsilon", 1e-5)? }))
    }),
    ("LRN", |r| {
        let size = r.int("size")?.ok_or_else(|| invalid!("attribute size is missing"))?;
        let size = usize::try_from(size)
            .ok()
            .filter(|&s| s > 0)
            .ok_or_else(|| invalid!("attribute size = {size} must be at least 1"))?;
        Ok(Arc::new(Lrn {
            alpha: r.float("alpha", 1e-4)?,
            beta: r.float("beta", 0.75)?,
            bias: r.float("bias", 1.0)?,
            size,
        }))
    }),
];

/// Checks that a parameter has one element for each of `n`.
fn check_vector(name: &str, p: &Fact, n: &Dim) -> Result<()> {
    match (p.shape.as_slice(), n) {
        ([Dim::Known(a)], Dim::Known(b)) if a != b => {
            Err(invalid!("{name} must have shape [{b}], found {p}"))
        }
        ([_], _) => Ok(()),
        _ => Err(invalid!("{name} must have shape [{n}], found {p}")),
    }
}

fn check_channels(x: &Fact) -> Result<&Dim> {
    x.shape.get(1).ok_or_else(|| invalid!("needs an input [N, C, ..], found {x}"))
}

/// Infers the facts of constants and tensors alike, so that `eval` checks what
/// `infer` does.
fn check(op: &dyn Op, inputs: &[&Tensor]) -> Result<()> {
    let facts: Vec<Fact> = inputs.iter().map(|t| Fact::of(t)).collect();
    op.infer(&facts.iter().collect::<Vec<_>>()).map(|_| ())
}

/// Elements that are worth a task.
const TASK: usize = 1 << 14;

/// Normalizes each group of `size` cells; cell `i` of group `j` is then
/// multiplied by and added to what `affine(i, j)` gives.
fn normalize(
    x: &[f32],
    size: usize,
    epsilon: f32,
    affine: impl Fn(usize, usize) -> (f32, f32) + Sync,
) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    if y.is_empty() {
        return y;
    }
    let groups = y.par_chunks_exact_mut(size).zip(x.par_chunks_exact(size)).enumerate();
    groups.with_min_len((TASK / size).max(1)).for_each(|(j, (y, x))| {
        Kernels::best().standardize(x, size, epsilon, y);
        for (i, y) in y.iter_mut().enumerate() {
            let (scale, shift) = affine(i, j);
            *y = *y * scale + shift;
        }
    });
    y
}

/// ONNX `InstanceNormalization`: each channel of each image by its own mean
/// and variance. Operands: `x [N, C, spatial..]`, scale `[C]`, B `[C]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceNormalization {
    /// Added to the variance.
    pub epsilon: f32,
}

impl Op for InstanceNormalization {
    fn name(&self) -> &'static str {
        "InstanceNormalization"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 3, 3)?;
        float::common("InstanceNormalization", inputs)?;
        let channels = check_channels(inputs[0])?;
        check_vector("scale", inputs[1], channels)?;
        check_vector("B", inputs[2], channels)?;
        Ok(vec![inputs[0].with_shape(inputs[0].shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        check(self, inputs)?;
        let x = inputs[0];
        let (scale, shift) = (float::read(inputs[1])?, float::read(inputs[2])?);
        let size = x.shape()[2..].iter().product();
        let affine = |_, j: usize| (scale[j % scale.len()], shift[j % shift.len()]);
        let y = normalize(&float::read(x)?, size, self.epsilon, affine);
        Ok(vec![float::write(x.dtype(), x.shape(), y)?])
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        let shape = at.inputs[0].shape();
        let size = shape[2..].iter().product();
        let rows = Rows { size, segment: size, firsts: (0..shape[1]).collect() };
        gradient::rows(at, &rows, self.epsilon, true)
    }

    fn attributes(&self) -> Attributes {
        vec![("epsilon", Attribute::Float(self.epsilon))]
    }
}

fn layer(r: &mut Reading, centred: bool) -> Result<Arc<dyn Op>> {
    r.only("stash_type", &Attribute::Int(1))?;
    let (axis, epsilon) = (r.int("axis")?.unwrap_or(-1), r.float("epsilon", 1e-5)?);
    Ok(Arc::new(LayerNormalization { axis, epsilon, centred }))
}

/// ONNX `LayerNormalization`, first output: the axes from `axis` on are
/// normalized together. Operands: x, scale, optional B, each of the shape of
/// the normalized axes or of one element. If not centred `RMSNormalization`,
/// which takes the mean for 0 and has no B.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNormalization {
    /// The first normalized axis; negative ones count from the end.
    pub axis: i64,
    /// Added to the variance.
    pub epsilon: f32,
    /// Whether the mean is subtracted.
    pub centred: bool,
}

impl LayerNormalization {
    fn first(&self, rank: usize) -> Result<usize> {
        let axis = if self.axis < 0 { self.axis + rank as i64 } else { self.axis };
        usize::try_from(axis)
            .ok()
            .filter(|&a| a < rank)
            .ok_or_else(|| invalid!("axis {} does not exist in rank {rank}", self.axis))
    }
}

fn check_layer(name: &str, p: &Fact, normalized: &[Dim]) -> Result<()> {
    let ones = p.shape.iter().take_while(|d| **d == Dim::Known(1)).count();
    let own = &p.shape[ones.min(p.rank().saturating_sub(normalized.len()))..];
    let agrees = |a: &Dim, b: &Dim| a == b || a.known().is_none() || b.known().is_none();
    let same = own.len() == normalized.len() && own.iter().zip(normalized).all(|(a, b)| agrees(a, b));
    if same || p.shape.iter().all(|d| *d == Dim::Known(1)) {
        return Ok(());
    }
    Err(Error::unsupported(
        "LayerNormalization",
        format!(
            "{name} {p}, which is neither of one element nor of the shape {normalized:?} that is normalized,"
        ),
    ))
}

/// [`LayerNormalization`] of rows of known size.
#[derive(Debug)]
struct Layers {
    epsilon: f32,
    centred: bool,
    /// One for each element of a row, as is `shift`.
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Layers {
    fn new(op: &LayerNormalization, size: usize, scale: &Tensor, shift: Option<&Tensor>) -> Result<Layers> {
        let row = |p: &Tensor| -> Result<Vec<f32>> {
            let p = float::read(p)?;
            Ok(if p.len() == 1 { vec![p[0]; size] } else { p.into_owned() })
        };
        let shift = shift.map_or_else(|| Ok(vec![0.0; size]), row)?;
        Ok(Layers { epsilon: op.epsilon, centred: op.centred, scale: row(scale)?, shift })
    }

    fn normalize(&self, x: &[f32], y: &mut [f32]) {
        let n = self.scale.len();
        let size = parallel::rows_of_a_task(TASK, n, x.len().checked_div(n).unwrap_or(0)) * n;
        parallel::chunks(y, size, |i, y| {
            let x = &x[i * size..][..y.len()];
            match self.centred {
                true => Kernels::best().layer_norm(x, self.epsilon, &self.scale, &self.shift, y),
                false => Kernels::best().rms_norm(x, self.epsilon, &self.scale, y),
            }
        });
    }
}

impl Routine for Layers {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        self.normalize(x[0].f32()?, y.f32()?);
        Ok(())
    }
}

impl Op for LayerNormalization {
    fn name(&self) -> &'static str {
        if self.centred { "LayerNormalization" } else { "RMSNormalization" }
    }

    fn opset(&self) -> i64 {
        if self.centred { 17 } else { 23 }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 2 + usize::from(self.centred))?;
        float::common(self.name(), inputs)?;
        let x = inputs[0];
        let normalized = &x.shape[self.first(x.rank())?..];
        check_layer("Scale", inputs[1], normalized)?;
        if let Some(b) = optional_fact(inputs, 2) {
            check_layer("B", b, normalized)?;
        }
        Ok(vec![x.with_shape(x.shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        check(self, inputs)?;
        let x = inputs[0];
        let size = x.shape()[self.first(x.rank())?..].iter().product();
        let mut y = vec![0.0; x.len()];
        Layers::new(self, size, inputs[1], optional(inputs, 2))?.normalize(&float::read(x)?, &mut y);
        Ok(vec![float::write(x.dtype(), x.shape(), y)?])
    }

    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let parameters: Option<Vec<&Tensor>> = x[1..].iter().map(|x| x.constant).collect();
        let Some(parameters) = parameters.filter(|_| x[0].dtype == DType::F32) else {
            return Ok(Prepared::Eval);
        };
        let size = x[0].shape[self.first(x[0].shape.len())?..].iter().product();
        Prepared::routine(Layers::new(self, size, parameters[0], optional(&parameters, 1))?)
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        let x = at.inputs[0];
        let size = x.shape()[self.first(x.rank())?..].iter().product();
        gradient::rows(at, &Rows { size, segment: 1, firsts: vec![0] }, self.epsilon, self.centred)
    }

    fn attributes(&self) -> Attributes {
        vec![("axis", Attribute::Int(self.axis)), ("epsilon", Attribute::Float(self.epsilon))]
    }
}

/// ONNX `GroupNormalization`: the channels of each image are normalized in
/// `groups` groups. Operands: `x [N, C, ..]`, scale and bias, `[C]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormalization {
    /// Number of groups; divides C.
    pub groups: usize,
    /// Scale and bias are `[groups]`, as opsets 18 to 20 had it.
    pub per_group: bool,
    /// Added to the variance.
    pub epsilon: f32,
}

impl Op for GroupNormalization {
    fn name(&self) -> &'static str {
        "GroupNormalization"
    }

    fn opset(&self) -> i64 {
        if self.per_group { 18 } else { 21 }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 3, 3)?;
        float::common("GroupNormalization", inputs)?;
        let channels = check_channels(inputs[0])?;
        if let Dim::Known(c) = channels
            && (self.groups == 0 || !c.is_multiple_of(self.groups))
        {
            return Err(invalid!("{c} channels do not divide into {} groups", self.groups));
        }
        let own = if self.per_group { &Dim::Known(self.groups) } else { channels };
        check_vector("scale", inputs[1], own)?;
        check_vector("bias", inputs[2], own)?;
        Ok(vec![inputs[0].with_shape(inputs[0].shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        check(self, inputs)?;
        let x = inputs[0];
        let (scale, shift) = (float::read(inputs[1])?, float::read(inputs[2])?);
        let cells: usize = x.shape()[2..].iter().product();
        let together = x.shape()[1] / self.groups;
        let affine = |i: usize, j: usize| {
            let group = j % self.groups;
            let at = if self.per_group { group } else { group * together + i / cells };
            (scale[at], shift[at])
        };
        let y = normalize(&float::read(x)?, together * cells, self.epsilon, affine);
        Ok(vec![float::write(x.dtype(), x.shape(), y)?])
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        let shape = at.inputs[0].shape();
        let (cells, together) = (shape[2..].iter().product::<usize>(), shape[1] / self.groups);
        let size = together * cells;
        let (segment, step) = if self.per_group { (size, 1) } else { (cells, together) };
        let firsts = (0..self.groups).map(|group| group * step).collect();
        gradient::rows(at, &Rows { size, segment, firsts }, self.epsilon, true)
    }

    fn attributes(&self) -> Attributes {
        vec![("num_groups", Attribute::Int(self.groups as i64)), ("epsilon", Attribute::Float(self.epsilon))]
    }
}

/// ONNX `LRN` over `x [N, C, ..]`:
/// `y[c] = x[c] / (bias + alpha / size * sum of x[i]^2)^beta` over the channels
/// `c - floor((size - 1) / 2) ..= c + ceil((size - 1) / 2)` that exist.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lrn {
    /// Factor of the mean square.
    pub alpha: f32,
    /// Exponent.
    pub beta: f32,
    /// Added to the mean square.
    pub bias: f32,
    /// Number of channels summed.
    pub size: usize,
}

impl Op for Lrn {
    fn name(&self) -> &'static str {
        "LRN"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        float::common("LRN", inputs)?;
        check_channels(inputs[0])?;
        Ok(vec![inputs[0].with_shape(inputs[0].shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        check(self, inputs)?;
        let t = inputs[0];
        let x = float::read(t)?;
        let (channels, cells) = (t.shape()[1], t.shape()[2..].iter().product::<usize>());
        let mut y = vec![0.0; x.len()];
        if y.is_empty() {
            return Ok(vec![float::write(t.dtype(), t.shape(), y)?]);
        }
        let (before, after) = ((self.size - 1) / 2, self.size / 2);
        y.par_chunks_exact_mut(cells).enumerate().for_each(|(plane, y)| {
            let (image, c) = (plane / channels, plane % channels);
            let image = &x[image * channels * cells..][..channels * cells];
            let last = c.saturating_add(after).min(channels - 1);
            for i in c.saturating_sub(before)..=last {
                y.iter_mut().zip(&image[i * cells..]).for_each(|(y, x)| *y += x * x);
            }
            let factor = self.alpha / self.size as f32;
            let own = &image[c * cells..][..cells];
            y.iter_mut().zip(own).for_each(|(y, x)| *y = x / (self.bias + factor * *y).powf(self.beta));
        });
        Ok(vec![float::write(t.dtype(), t.shape(), y)?])
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        gradient::lrn(self, at)
    }

    fn attributes(&self) -> Attributes {
        vec![
            ("alpha", Attribute::Float(self.alpha)),
            ("beta", Attribute::Float(self.beta)),
            ("bias", Attribute::Float(self.bias)),
            ("size", Attribute::Int(self.size as i64)),
        ]
    }
}

#[cfg(test)]
mod tests;
