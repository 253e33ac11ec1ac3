//! Resampling: `Resize`, and `Upsample` as the case of it that it is.
//!
//! Axes are resampled one after another: each output cell of an axis is a
//! weighted sum of a few input cells (one of weight 1 where the mode is
//! nearest, so that any element type can be resized).

mod taps;

use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;

use super::float;
use crate::error::{Error, Result, invalid};
use crate::op::{
    Attribute, Attributes, Dim, Fact, Op, Quant, ReadOp, Reading, Reverse, arity, optional_fact,
};
use crate::tensor::{DType, Element, Tensor, element_count};

pub use taps::{Coordinates, Mode, Nearest};
use taps::{Resampling, Taps};

pub(super) const READERS: &[(&str, ReadOp)] = &[("Resize", read_resize), ("Upsample", read_upsample)];

/// What the output's sizes follow from.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Output size over input size, for each axis.
    Scales(Vec<f32>),
    /// Output sizes.
    Sizes(Vec<usize>),
    /// Output sizes given by operand 3.
    Operand,
}

/// ONNX `Resize`. Operands: x; or, where the target is [`Target::Operand`],
/// x, roi (left out or unused), scales (left out) and sizes.
///
/// Nearest resampling takes any element type, the others floats, which are
/// computed in f32 and rounded back.
#[derive(Clone, Debug, PartialEq)]
pub struct Resize {
    /// How output cells come from input cells.
    pub mode: Mode,
    /// Where an output cell lies in the input.
    pub coordinates: Coordinates,
    /// The axes that the target lists, negative ones counted from the end;
    /// all if `None`.
    pub axes: Option<Vec<i64>>,
    /// The output's sizes.
    pub target: Target,
}

fn read_resize(r: &mut Reading) -> Result<Arc<dyn Op>> {
    let text = |r: &mut Reading, name: &str, default: &str| -> Result<String> {
        Ok(r.text(name)?.unwrap_or_else(|| default.into()))
    };
    if r.opset() < 11 {
        return read_old(r, Some(1));
    }
    r.only("antialias", &Attribute::Int(0))?;
    r.only("keep_aspect_ratio_policy", &Attribute::Text("stretch".into()))?;
    r.ignore("extrapolation_value");
    let name = text(r, "coordinate_transformation_mode", "half_pixel")?;
    let coordinates = Coordinates::parse(&name).ok_or_else(|| {
        Error::unsupported("Resize", format!("attribute coordinate_transformation_mode = {name:?}"))
    })?;
    let nearest = text(r, "nearest_mode", "round_prefer_floor")?;
    let a = r.float("cubic_coeff_a", -0.75)?;
    let exclude_outside = r.flag("exclude_outside", false)?;
    let mode =
        match text(r, "mode", "nearest")?.as_str() {
            "nearest" => Mode::Nearest(Nearest::parse(&nearest).ok_or_else(|| {
                invalid!("attribute nearest_mode = {nearest:?} is not one that ONNX defines")
            })?),
            "linear" => Mode::Linear,
            "cubic" => Mode::Cubic { a, exclude_outside },
            other => return Err(Error::unsupported("Resize", format!("attribute mode = {other:?}"))),
        };
    let axes = r.ints("axes")?;
    let target = match r.take_constant(3) {
        Ok(Some(sizes)) => Target::Sizes(read_sizes(&sizes)?),
        Ok(None) => Target::Scales(read_scales(r, 2)?),
        Err(_) => return Ok(Arc::new(Resize { mode, coordinates, axes, target: Target::Operand })),
    };
    if r.take_constant(2)?.is_some() && matches!(target, Target::Sizes(_)) {
        return Err(invalid!("scales and sizes exclude each other"));
    }
    // Read by tf_crop_and_resize alone.
    if r.inputs() > 1 {
        r.take_constant(1)?;
    }
    Ok(Arc::new(Resize { mode, coordinates, axes, target }))
}

fn read_upsample(r: &mut Reading) -> Result<Arc<dyn Op>> {
    if r.opset() >= 9 {
        return read_old(r, Some(1));
    }
    read_old(r, None)
}

/// `Upsample`, and `Resize` of opset 10: scales at an input or an attribute,
/// no offset between the grids, and nearest cells rounded towards the input's
/// interior where it shrinks.
fn read_old(r: &mut Reading, input: Option<usize>) -> Result<Arc<dyn Op>> {
    let scales = match input {
        Some(i) => read_scales(r, i)?,
        None => r.floats("scales")?.ok_or_else(|| invalid!("attribute scales is missing"))?,
    };
    let mode = match r.text("mode")?.as_deref() {
        None | Some("nearest") if scales.iter().all(|&s| s >= 1.0) => Mode::Nearest(Nearest::Floor),
        None | Some("nearest") if scales.iter().all(|&s| s <= 1.0) => Mode::Nearest(Nearest::Ceil),
        None | Some("nearest") => {
            return Err(Error::unsupported(
                r.op(),
                format!("growing some axes and shrinking others by {scales:?}"),
            ));
        }
        Some("linear") => Mode::Linear,
        Some(other) => return Err(Error::unsupported(r.op(), format!("attribute mode = {other:?}"))),
    };
    let target = Target::Scales(scales);
    Ok(Arc::new(Resize { mode, coordinates: Coordinates::Asymmetric, axes: None, target }))
}

fn read_scales(r: &mut Reading, i: usize) -> Result<Vec<f32>> {
    let scales = r.take_constant(i)?.ok_or_else(|| invalid!("neither scales nor sizes are given"))?;
    Ok(scales.slice::<f32>()?.to_vec())
}

fn read_sizes(t: &Tensor) -> Result<Vec<usize>> {
    let sizes = t.integers()?;
    let checked = sizes.iter().map(|&s| usize::try_from(s).ok());
    checked.collect::<Option<_>>().ok_or_else(|| invalid!("sizes {sizes:?} must not be negative"))
}

impl Resize {
    /// For each axis of an input of this rank, where the target lists it.
    fn listed(&self, rank: usize, listed: usize) -> Result<Vec<Option<usize>>> {
        let all: Vec<i64>;
        let axes = match &self.axes {
            Some(axes) => axes,
            None => {
                all = (0..rank as i64).collect();
                &all
            }
        };
        if axes.len() != listed {
            return Err(invalid!("{listed} scales or sizes for {} axes", axes.len()));
        }
        let mut at = vec![None; rank];
        for (i, &axis) in axes.iter().enumerate() {
            let own = if axis < 0 { axis + rank as i64 } else { axis };
            match usize::try_from(own).ok().and_then(|a| at.get_mut(a)) {
                Some(slot @ None) => *slot = Some(i),
                _ => return Err(invalid!("axes {axes:?} do not name axes of rank {rank} once each")),
            }
        }
        Ok(at)
    }

    /// Output size and scale of each axis.
    fn resolve(&self, x: &[usize], sizes: Option<&[usize]>) -> Result<Vec<(usize, f32)>> {
        let by_size = |sizes: &[usize]| -> Result<Vec<(usize, f32)>> {
            let at = self.listed(x.len(), sizes.len())?;
            x.iter().zip(at).map(|(&n, at)| at.map_or(Ok((n, 1.0)), |i| to_size(n, sizes[i]))).collect()
        };
        match (&self.target, sizes) {
            (Target::Scales(scales), _) => {
                let at = self.listed(x.len(), scales.len())?;
                x.iter().zip(at).map(|(&n, at)| at.map_or(Ok((n, 1.0)), |i| by_scale(n, scales[i]))).collect()
            }
            (Target::Sizes(sizes), _) => by_size(sizes),
            (Target::Operand, Some(sizes)) => by_size(sizes),
            (Target::Operand, None) => Err(invalid!("needs operand 3, the sizes")),
        }
    }

    fn axes_of(&self, inputs: &[&Tensor]) -> Result<Vec<Resampling>> {
        let sizes = if self.target == Target::Operand { Some(read_sizes(inputs[3])?) } else { None };
        let x = inputs[0].shape();
        let to = self.resolve(x, sizes.as_deref())?;
        let axis = |(&input, (output, scale))| Resampling { input, output, scale };
        Ok(x.iter().zip(to).map(axis).collect())
    }

    fn check_type(&self, x: &Fact) -> Result<()> {
        match self.mode {
            Mode::Nearest(_) => Ok(()),
            _ => float::common("Resize", &[x]).map(|_| ()),
        }
    }
}

/// The order in which axes are resampled: those that shrink go first, so that nothing
/// in between is larger than the input or the output.
fn order(axes: &[Resampling]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..axes.len()).collect();
    order.sort_by_key(|&i| axes[i].output > axes[i].input);
    order
}

/// `floor(n * scale)`.
fn by_scale(n: usize, scale: f32) -> Result<(usize, f32)> {
    if !(scale.is_finite() && scale > 0.0) {
        return Err(invalid!("a scale of {scale} is not a positive number"));
    }
    Ok(((n as f32 * scale).floor() as usize, scale))
}

fn to_size(n: usize, size: usize) -> Result<(usize, f32)> {
    if n == 0 && size > 0 {
        return Err(invalid!("an axis without cells cannot be resized to {size}"));
    }
    Ok((size, if n == size { 1.0 } else { size as f32 / n as f32 }))
}

impl Op for Resize {
    fn name(&self) -> &'static str {
        "Resize"
    }

    fn opset(&self) -> i64 {
        match (self.coordinates, &self.axes) {
            (Coordinates::HalfPixelSymmetric, _) => 19,
            (_, Some(_)) => 18,
            _ => 13,
        }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let operand = self.target == Target::Operand;
        if operand {
            arity(inputs, 4, 4)?
        } else {
            arity(inputs, 1, 1)?
        }
        let x = inputs[0];
        self.check_type(x)?;
        let named = |i: usize, size: &Dim| -> Result<Dim> {
            Ok(match (&x.shape[i], size) {
                (Dim::Known(n), Dim::Known(size)) => Dim::Known(to_size(*n, *size)?.0),
                _ => size.clone(),
            })
        };
        let shape: Result<Vec<Dim>> = match &self.target {
            Target::Scales(scales) => {
                let at = self.listed(x.rank(), scales.len())?;
                let axis = |(d, at): (&Dim, Option<usize>)| match (d, at.map(|i| scales[i])) {
                    (_, None) => Ok(d.clone()),
                    (Dim::Known(n), Some(scale)) => Ok(Dim::Known(by_scale(*n, scale)?.0)),
                    (Dim::Named(s), Some(scale)) => {
                        by_scale(1, scale)?;
                        Ok(Dim::Named(match scale {
                            1.0 => s.clone(),
                            _ if scale.fract() == 0.0 => format!("({scale}*{s})"),
                            _ => format!("floor({scale}*{s})"),
                        }))
                    }
                };
                x.shape.iter().zip(at).map(axis).collect()
            }
            Target::Sizes(sizes) => {
                let at = self.listed(x.rank(), sizes.len())?;
                let axis = |(i, at): (usize, Option<usize>)| match at {
                    None => Ok(x.shape[i].clone()),
                    Some(at) => named(i, &Dim::Known(sizes[at])),
                };
                at.into_iter().enumerate().map(axis).collect()
            }
            Target::Operand => {
                if optional_fact(inputs, 2).is_some() {
                    return Err(invalid!("scales and sizes exclude each other"));
                }
                let sizes = inputs[3].sizes.as_ref().ok_or_else(|| {
                    Error::unsupported("Resize", "a size that is neither constant nor computed from shapes")
                })?;
                let at = self.listed(x.rank(), sizes.len())?;
                let axis = |(i, at): (usize, Option<usize>)| match at {
                    None => Ok(x.shape[i].clone()),
                    Some(at) => named(i, &sizes[at]),
                };
                at.into_iter().enumerate().map(axis).collect()
            }
        };
        let y = x.with_shape(shape?);
        if let Some(shape) = y.known_shape() {
            element_count(&shape)?;
        }
        Ok(vec![y])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let operand = self.target == Target::Operand;
        if operand {
            arity(inputs, 4, 4)?
        } else {
            arity(inputs, 1, 1)?
        }
        let x = inputs[0];
        self.check_type(&Fact::of(x))?;
        let axes = self.axes_of(inputs)?;
        let shape: Vec<usize> = axes.iter().map(|a| a.output).collect();
        let len = element_count(&shape)?;
        if len == 0 {
            return Ok(vec![empty(x.dtype(), &shape)?]);
        }
        let order = order(&axes);
        if let Mode::Nearest(_) = self.mode {
            return Ok(vec![self.move_cells(x, &shape, &axes, &order)?]);
        }
        let mut data = float::read(x)?.into_owned();
        let mut now = x.shape().to_vec();
        for i in order {
            if let Some(taps) = Taps::new(self.mode, self.coordinates, &axes[i]) {
                data = blend(&data, &now, i, &taps);
                now[i] = axes[i].output;
            }
        }
        Ok(vec![float::write(x.dtype(), &shape, data)?])
    }

    /// Each output cell's gradient goes to the input cells by the weights that made it,
    /// axes in the opposite order.
    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        let x = at.inputs[0];
        let axes = self.axes_of(at.inputs)?;
        let g = at.gradient()?;
        let (mut data, mut now) = (g.slice::<f32>()?.to_vec(), g.shape().to_vec());
        if x.is_empty() || g.is_empty() {
            data = vec![0.0; x.len()];
        } else {
            for &i in order(&axes).iter().rev() {
                if let Some(taps) = Taps::new(self.mode, self.coordinates, &axes[i]) {
                    data = spread(&data, &now, i, axes[i].input, &taps);
                    now[i] = axes[i].input;
                }
            }
        }
        let mut by = vec![None; at.inputs.len()];
        by[0] = Some(Tensor::new(x.shape(), data)?);
        Ok(by)
    }

    fn attributes(&self) -> Attributes {
        let text = |s: &str| Attribute::Text(s.into());
        let mut a = vec![("coordinate_transformation_mode", text(self.coordinates.name()))];
        match self.mode {
            Mode::Nearest(rounding) => {
                a.push(("mode", text("nearest")));
                a.push(("nearest_mode", text(rounding.name())));
            }
            Mode::Linear => a.push(("mode", text("linear"))),
            Mode::Cubic { a: coefficient, exclude_outside } => {
                a.push(("mode", text("cubic")));
                a.push(("cubic_coeff_a", Attribute::Float(coefficient)));
                a.push(("exclude_outside", Attribute::Int(i64::from(exclude_outside))));
            }
        }
        if let Some(axes) = &self.axes {
            a.push(("axes", Attribute::Ints(axes.clone())));
        }
        // The target is an operand when written, and part of what the
        // operator is when compared.
        match &self.target {
            Target::Scales(s) => a.push(("scales", Attribute::Floats(s.clone()))),
            Target::Sizes(s) => a.push(("sizes", Attribute::Ints(s.iter().map(|&s| s as i64).collect()))),
            Target::Operand => {}
        }
        a
    }

    fn written(&self, _opset: i64) -> (Attributes, Vec<Tensor>) {
        let mut a = self.attributes();
        a.retain(|(name, _)| !matches!(*name, "scales" | "sizes"));
        let absent = || Tensor::vector(Vec::<f32>::new());
        let operands = match &self.target {
            Target::Scales(s) => vec![absent(), Tensor::vector(s.clone())],
            Target::Sizes(s) => {
                vec![absent(), absent(), Tensor::vector(s.iter().map(|&s| s as i64).collect())]
            }
            Target::Operand => vec![],
        };
        (a, operands)
    }

    /// Cubic interpolation alone leaves the range of its input.
    fn quant(&self) -> Quant {
        match self.mode {
            Mode::Nearest(_) | Mode::Linear => Quant::Share,
            Mode::Cubic { .. } => Quant::Float,
        }
    }
}

impl Resize {
    /// Nearest resampling of any element type.
    fn move_cells(
        &self,
        x: &Tensor,
        shape: &[usize],
        axes: &[Resampling],
        order: &[usize],
    ) -> Result<Tensor> {
        macro_rules! moved {
            ($($t:ty)|*) => {
                match x.dtype().storage() {
                    $(<$t>::DTYPE => {
                        let mut data = x.slice::<$t>()?.to_vec();
                        let mut now = x.shape().to_vec();
                        for &i in order {
                            if let Some(taps) = Taps::new(self.mode, self.coordinates, &axes[i]) {
                                data = gather(&data, &now, i, &taps);
                                now[i] = axes[i].output;
                            }
                        }
                        Tensor::coded(x.dtype(), shape, data)
                    })*
                    other => Err(Error::unsupported("Resize", format!("element type {other}"))),
                }
            };
        }
        moved!(f32 | f64 | f16 | bf16 | i8 | u8 | i16 | u16 | i32 | u32 | i64 | u64 | bool)
    }
}

fn empty(dtype: DType, shape: &[usize]) -> Result<Tensor> {
    macro_rules! made {
        ($($t:ty)|*) => {
            match dtype.storage() {
                $(<$t>::DTYPE => Tensor::coded(dtype, shape, Vec::<$t>::new()),)*
                other => Err(Error::unsupported("Resize", format!("element type {other}"))),
            }
        };
    }
    made!(f32 | f64 | f16 | bf16 | i8 | u8 | i16 | u16 | i32 | u32 | i64 | u64 | bool)
}

/// Cells that follow axis `i`, and those of one index before it.
fn strides(shape: &[usize], i: usize) -> (usize, usize) {
    let inner = shape[i + 1..].iter().product();
    (inner, shape[i] * inner)
}

/// Copies along axis `i` what each output's only tap reads.
fn gather<T: Element>(x: &[T], shape: &[usize], i: usize, taps: &Taps) -> Vec<T> {
    let (inner, outer) = strides(shape, i);
    let mut y = Vec::with_capacity(x.len() / shape[i] * taps.index.len());
    for x in x.chunks_exact(outer) {
        for &at in &taps.index {
            y.extend_from_slice(&x[at * inner..][..inner]);
        }
    }
    y
}

/// The weighted sums along axis `i`.
fn blend(x: &[f32], shape: &[usize], i: usize, taps: &Taps) -> Vec<f32> {
    let (inner, outer) = strides(shape, i);
    let outputs = taps.index.len() / taps.each;
    let mut y = vec![0.0; x.len() / outer * outputs * inner];
    let chunks = y.par_chunks_exact_mut(outputs * inner).zip(x.par_chunks_exact(outer));
    chunks.with_min_len(((1 << 14) / outer).max(1)).for_each(|(y, x)| {
        for (o, y) in y.chunks_exact_mut(inner).enumerate() {
            for t in o * taps.each..(o + 1) * taps.each {
                let (w, x) = (taps.weight[t], &x[taps.index[t] * inner..]);
                if w != 0.0 {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y += w * x);
                }
            }
        }
    });
    y
}

/// The adjoint of [`blend`]: `shape` is that of `g`, and `input` the size of axis `i`
/// of the result.
fn spread(g: &[f32], shape: &[usize], i: usize, input: usize, taps: &Taps) -> Vec<f32> {
    let (inner, outer) = strides(shape, i);
    let mut dx = vec![0.0; g.len() / outer * input * inner];
    let chunks = dx.par_chunks_exact_mut(input * inner).zip(g.par_chunks_exact(outer));
    chunks.with_min_len(((1 << 14) / outer).max(1)).for_each(|(dx, g)| {
        for (o, g) in g.chunks_exact(inner).enumerate() {
            for t in o * taps.each..(o + 1) * taps.each {
                let (w, dx) = (taps.weight[t], &mut dx[taps.index[t] * inner..]);
                dx.iter_mut().zip(g).for_each(|(dx, g)| *dx += w * g);
            }
        }
    });
    dx
}

#[cfg(test)]
mod tests;
