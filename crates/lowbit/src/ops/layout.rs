//! Operators that move values: each is a strided copy.

use std::sync::Arc;

use crate::error::{Error, Result, invalid};
use crate::op::{
    Attribute, Attributes, Dim, Fact, Op, Operand, Prepared, Quant, ReadOp, Reading, Reverse, arity,
    optional_fact,
};
use crate::tensor::buffers::buffer;
use crate::tensor::{DType, Element, Tensor, element_count};

use super::axis;
use super::broadcast::summed_to;
use super::strided::{Moved, contiguous, each_storage, permuted, permuted_back, view};
use super::symbolic::{self, facts, output_shape};

/// The dimensions in another order; reversed if none is given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transpose {
    /// For each output dimension, the input's.
    pub perm: Option<Vec<usize>>,
}

impl Transpose {
    fn perm(&self, rank: usize) -> Result<Vec<usize>> {
        let Some(perm) = &self.perm else { return Ok((0..rank).rev().collect()) };
        let mut sorted = perm.clone();
        sorted.sort_unstable();
        if sorted != (0..rank).collect::<Vec<_>>() {
            return Err(invalid!("perm {perm:?} is not an order of {rank} dimensions"));
        }
        Ok(perm.clone())
    }
}

impl Op for Transpose {
    fn name(&self) -> &'static str {
        "Transpose"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        let perm = self.perm(inputs[0].rank())?;
        Ok(vec![inputs[0].with_shape(perm.into_iter().map(|p| inputs[0].shape[p].clone()).collect())])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, 1)?;
        Ok(vec![permuted(inputs[0], &self.perm(inputs[0].rank())?)?])
    }

    fn prepare(&self, operands: &[Operand<'_>]) -> Result<Prepared> {
        let from = operands[0].shape;
        let strides = contiguous(from);
        let perm = self.perm(from.len())?;
        let moved = Moved::new(
            &perm.iter().map(|&p| from[p]).collect::<Vec<_>>(),
            &perm.iter().map(|&p| strides[p]).collect::<Vec<_>>(),
            0,
        );
        Ok(moved.prepared(from.iter().product()))
    }

    fn attributes(&self) -> Attributes {
        let perm = self.perm.iter();
        perm.map(|p| ("perm", Attribute::Ints(p.iter().map(|&p| p as i64).collect()))).collect()
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let g = at.gradient()?;
        Ok(vec![Some(permuted_back(g, &self.perm(g.rank())?)?)])
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

/// The inputs one after the other along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Concat {
    /// The axis.
    pub axis: i64,
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "Concat"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, usize::MAX)?;
        let first = inputs[0];
        let at = axis::one(self.axis, first.rank())?;
        let mut shape = first.shape.clone();
        for f in &inputs[1..] {
            if f.dtype != first.dtype || f.rank() != first.rank() {
                return Err(invalid!("{first} and {f} do not join"));
            }
            for (i, (d, other)) in shape.iter_mut().zip(&f.shape).enumerate() {
                if i == at {
                    *d = symbolic::add(d, other);
                } else if d.known().is_none() {
                    *d = if other.known().is_some() { other.clone() } else { d.clone() };
                } else if other.known().is_some() && d != other {
                    return Err(invalid!("{first} and {f} differ beside axis {at}"));
                }
            }
        }
        let sizes = (first.rank() == 1)
            .then(|| inputs.iter().map(|f| f.sizes.clone()).collect::<Option<Vec<_>>>())
            .flatten();
        Ok(vec![first.with_shape(shape).with_sizes(sizes.map(|s| s.concat()))])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = output_shape(self, inputs, 0)?;
        let at = axis::one(self.axis, shape.len())?;
        let count = element_count(&shape)?;
        let dtype = inputs[0].dtype();
        if dtype == DType::F32 {
            return Ok(vec![Tensor::new(&shape, join::<f32>(inputs, at, buffer(count))?)?]);
        }
        each_storage!(dtype, T => {
            Ok(vec![Tensor::coded(dtype, &shape, join::<T>(inputs, at, Vec::with_capacity(count))?)?])
        })
    }

    fn prepare(&self, operands: &[Operand<'_>]) -> Result<Prepared> {
        let rank = operands.first().map_or(0, |x| x.shape.len());
        Ok(Prepared::Join { axis: axis::one(self.axis, rank)? })
    }

    fn attributes(&self) -> Attributes {
        vec![("axis", Attribute::Int(self.axis))]
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let g = at.gradient()?;
        let axis = axis::one(self.axis, g.rank())?;
        let strides = contiguous(g.shape());
        at.each(|i| {
            let before: usize = at.inputs[..i].iter().map(|t| t.shape()[axis]).sum();
            view(g, at.inputs[i].shape(), &strides, before * strides[axis] as usize)
        })
    }

    fn quant(&self) -> Quant {
        Quant::Merge
    }
}

/// The elements of the inputs, joined along an axis, in the memory of `y`.
fn join<T: Element>(inputs: &[&Tensor], axis: usize, mut y: Vec<T>) -> Result<Vec<T>> {
    y.clear();
    let rows: usize = inputs[0].shape()[..axis].iter().product();
    let mut parts = vec![];
    for t in inputs {
        parts.push((t.slice::<T>()?, t.shape()[axis..].iter().product::<usize>()));
    }
    for row in 0..rows {
        for (x, n) in &parts {
            y.extend_from_slice(&x[row * n..(row + 1) * n]);
        }
    }
    Ok(y)
}

/// Parts of the input along an axis: of the sizes that input 1 lists, or
/// equal ones, the last smaller if they do not divide the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split {
    /// The axis.
    pub axis: i64,
    /// The number of parts.
    pub parts: usize,
    /// Whether the sizes are listed.
    pub listed: bool,
}

impl Split {
    fn sizes(&self, inputs: &[&Fact]) -> Result<Vec<Dim>> {
        let x = inputs[0];
        let whole = &x.shape[axis::one(self.axis, x.rank())?];
        if self.parts == 0 {
            return Err(invalid!("a split into 0 parts"));
        }
        let parts = match optional_fact(inputs, 1) {
            Some(list) => symbolic::sizes(list, "split")?.to_vec(),
            None => match whole.known() {
                Some(n) => {
                    let each = n.div_ceil(self.parts);
                    (0..self.parts).map(|i| Dim::Known(each.min(n.saturating_sub(i * each)))).collect()
                }
                None => {
                    let parts = Dim::Known(self.parts);
                    vec![symbolic::div(whole, &parts).unwrap_or(parts); self.parts]
                }
            },
        };
        if parts.len() != self.parts || parts.iter().any(|d| d.as_integer().is_some_and(|x| x < 0)) {
            return Err(invalid!("split {parts:?} does not list {} sizes", self.parts));
        }
        let total = parts.iter().fold(Dim::Known(0), |a, b| symbolic::add(&a, b));
        if total.known().is_some() && whole.known().is_some() && total != *whole {
            return Err(invalid!("split {parts:?} does not add up to {whole}"));
        }
        Ok(parts)
    }

    fn read(a: &mut Reading) -> Result<Arc<dyn Op>> {
        let axis = a.int("axis")?.unwrap_or(0);
        let mut listed = a.inputs() > 1;
        if a.opset() < 13
            && let Some(sizes) = a.ints("split")?
        {
            a.add_operand(1, Tensor::vector(sizes));
            listed = true;
        }
        let parts = a.outputs();
        if let Some(n) = a.int("num_outputs")?
            && usize::try_from(n) != Ok(parts)
        {
            return Err(invalid!("num_outputs = {n} and there are {parts} outputs"));
        }
        Ok(Arc::new(Split { axis, parts, listed }))
    }
}

impl Op for Split {
    fn name(&self) -> &'static str {
        "Split"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 2)?;
        let x = inputs[0];
        let at = axis::one(self.axis, x.rank())?;
        let mut start = 0usize;
        let parts = self.sizes(inputs)?.into_iter().map(|d| {
            let mut shape = x.shape.clone();
            let sizes = match (&x.sizes, d.known(), x.rank()) {
                (Some(all), Some(n), 1) => all.get(start..start.saturating_add(n)).map(<[Dim]>::to_vec),
                _ => None,
            };
            start = start.saturating_add(d.known().unwrap_or(0));
            shape[at] = d;
            x.with_shape(shape).with_sizes(sizes)
        });
        Ok(parts.collect())
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, 2)?;
        let x = inputs[0];
        let at = axis::one(self.axis, x.rank())?;
        let strides = contiguous(x.shape());
        let known = facts(inputs);
        let mut start = 0;
        let mut parts = vec![];
        for d in self.sizes(&known.iter().collect::<Vec<_>>())? {
            let n = d.known().ok_or_else(|| invalid!("split size {d} is not a number"))?;
            let mut shape = x.shape().to_vec();
            shape[at] = n;
            parts.push(view(x, &shape, &strides, start * strides[at] as usize)?);
            start += n;
        }
        Ok(parts)
    }

    fn attributes(&self) -> Attributes {
        let mut all = vec![("axis", Attribute::Int(self.axis))];
        if !self.listed {
            all.push(("num_outputs", Attribute::Int(self.parts as i64)));
        }
        all
    }

    /// Opsets before 18 have no `num_outputs`.
    fn written(&self, opset: i64) -> (Attributes, Vec<Tensor>) {
        let mut all = self.attributes();
        all.truncate(if opset < 18 { 1 } else { 2 });
        (all, vec![])
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let part = |(y, g): (&&Tensor, &Option<Tensor>)| match g {
            Some(g) => Ok(g.clone()),
            None => Tensor::full(y.shape(), 0f32),
        };
        let parts: Vec<Tensor> = at.outputs.iter().zip(at.gradients).map(part).collect::<Result<_>>()?;
        let joined = Concat { axis: self.axis }.eval(&parts.iter().collect::<Vec<_>>())?;
        Ok(joined.into_iter().map(Some).chain(at.inputs[1..].iter().map(|_| None)).collect())
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

/// Input 0 repeated, as often along each dimension as input 1 lists.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tile;

impl Op for Tile {
    fn name(&self) -> &'static str {
        "Tile"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 2)?;
        let (x, repeats) = (inputs[0], symbolic::sizes(inputs[1], "repeats")?);
        if repeats.len() != x.rank() || repeats.iter().any(|d| d.as_integer().is_some_and(|x| x < 0)) {
            return Err(invalid!("repeats {repeats:?} do not list one count for each dimension of {x}"));
        }
        Ok(vec![x.with_shape(x.shape.iter().zip(repeats).map(|(d, r)| symbolic::mul(d, r)).collect())])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = output_shape(self, inputs, 0)?;
        element_count(&shape)?;
        let x = inputs[0];
        // Each dimension as two: the repetitions, which stand still, and the original.
        let (mut pairs, mut strides) = (vec![], vec![]);
        for ((r, &n), s) in inputs[1].integers()?.into_iter().zip(x.shape()).zip(contiguous(x.shape())) {
            pairs.extend([r as usize, n]);
            strides.extend([0, s]);
        }
        Ok(vec![view(x, &pairs, &strides, 0)?.reshaped(&shape)?])
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let (g, x) = (at.gradient()?, at.inputs[0]);
        let (mut pairs, mut single) = (vec![], vec![]);
        for (r, &n) in at.inputs[1].integers()?.into_iter().zip(x.shape()) {
            pairs.extend([r as usize, n]);
            single.extend([1, n]);
        }
        Ok(vec![Some(summed_to(g.reshaped(&pairs)?, &single)?.reshaped(x.shape())?), None])
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

/// Blocks of channels to blocks of pixels, `[N, C b b, H, W]` to
/// `[N, C, H b, W b]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DepthToSpace {
    /// Side of a block.
    pub block: usize,
    /// Whether the channels are ordered by channel, row, column (CRD) rather
    /// than by row, column, channel (DCR).
    pub channel_first: bool,
}

/// Blocks of pixels to blocks of channels, `[N, C, H b, W b]` to
/// `[N, b b C, H, W]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpaceToDepth {
    /// Side of a block.
    pub block: usize,
}

fn image<'a>(inputs: &[&'a Fact], block: usize) -> Result<(&'a [Dim], Dim)> {
    arity(inputs, 1, 1)?;
    if inputs[0].rank() != 4 || !(1..1 << 16).contains(&block) {
        return Err(invalid!("takes [N,C,H,W] and a positive blocksize, found {} and {block}", inputs[0]));
    }
    Ok((&inputs[0].shape, Dim::Known(block)))
}

fn divided(d: &Dim, by: &Dim) -> Result<Dim> {
    match (d.known(), by.known()) {
        (Some(n), Some(b)) if n % b != 0 => Err(invalid!("size {n} is not a multiple of {b}")),
        _ => symbolic::div(d, by).ok_or_else(|| invalid!("blocksize is 0")),
    }
}

fn read_block(a: &mut Reading) -> Result<usize> {
    let block = a.int("blocksize")?.ok_or_else(|| invalid!("attribute blocksize is missing"))?;
    usize::try_from(block).map_err(|_| invalid!("attribute blocksize = {block} is negative"))
}

impl Op for DepthToSpace {
    fn name(&self) -> &'static str {
        "DepthToSpace"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let (x, b) = image(inputs, self.block)?;
        let c = divided(&x[1], &symbolic::mul(&b, &b))?;
        let shape = vec![x[0].clone(), c, symbolic::mul(&x[2], &b), symbolic::mul(&x[3], &b)];
        Ok(vec![inputs[0].with_shape(shape)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = output_shape(self, inputs, 0)?;
        let (x, b) = (inputs[0], self.block);
        let (n, c, h, w) = (shape[0], shape[1], x.shape()[2], x.shape()[3]);
        let moved = if self.channel_first {
            permuted(&x.reshaped(&[n, c, b, b, h, w])?, &[0, 1, 4, 2, 5, 3])?
        } else {
            permuted(&x.reshaped(&[n, b, b, c, h, w])?, &[0, 3, 4, 1, 5, 2])?
        };
        Ok(vec![moved.reshaped(&shape)?])
    }

    fn attributes(&self) -> Attributes {
        let mode = if self.channel_first { "CRD" } else { "DCR" };
        vec![("blocksize", Attribute::Int(self.block as i64)), ("mode", Attribute::Text(mode.into()))]
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let (g, x, b) = (at.gradient()?, at.inputs[0].shape(), self.block);
        let (n, c, h, w) = (x[0], g.shape()[1], x[2], x[3]);
        let perm = if self.channel_first { [0, 1, 4, 2, 5, 3] } else { [0, 3, 4, 1, 5, 2] };
        Ok(vec![Some(permuted_back(&g.reshaped(&[n, c, h, b, w, b])?, &perm)?.reshaped(x)?)])
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

impl Op for SpaceToDepth {
    fn name(&self) -> &'static str {
        "SpaceToDepth"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let (x, b) = image(inputs, self.block)?;
        let c = symbolic::product([&x[1], &b, &b]);
        let shape = vec![x[0].clone(), c, divided(&x[2], &b)?, divided(&x[3], &b)?];
        Ok(vec![inputs[0].with_shape(shape)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = output_shape(self, inputs, 0)?;
        let (x, b) = (inputs[0], self.block);
        let blocks = x.reshaped(&[shape[0], x.shape()[1], shape[2], b, shape[3], b])?;
        Ok(vec![permuted(&blocks, &[0, 3, 5, 1, 2, 4])?.reshaped(&shape)?])
    }

    fn attributes(&self) -> Attributes {
        vec![("blocksize", Attribute::Int(self.block as i64))]
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let (g, x, b) = (at.gradient()?, at.inputs[0].shape(), self.block);
        let blocks = g.reshaped(&[x[0], b, b, x[1], x[2] / b, x[3] / b])?;
        Ok(vec![Some(permuted_back(&blocks, &[0, 3, 5, 1, 2, 4])?.reshaped(x)?)])
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

fn depth_to_space(a: &mut Reading) -> Result<Arc<dyn Op>> {
    let channel_first = match a.text("mode")?.as_deref() {
        None | Some("DCR") => false,
        Some("CRD") => true,
        Some(other) => return Err(Error::unsupported("DepthToSpace", format!("attribute mode = {other:?}"))),
    };
    Ok(Arc::new(DepthToSpace { block: read_block(a)?, channel_first }))
}

fn concat(a: &mut Reading) -> Result<Arc<dyn Op>> {
    let axis = a.int("axis")?.ok_or_else(|| invalid!("attribute axis is missing"))?;
    Ok(Arc::new(Concat { axis }))
}

/// How the family's ONNX nodes are read.
pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("Transpose", |a| Ok(Arc::new(Transpose { perm: a.sizes("perm")? }))),
    ("Concat", concat),
    ("Split", Split::read),
    ("Tile", |_| Ok(Arc::new(Tile))),
    ("DepthToSpace", depth_to_space),
    ("SpaceToDepth", |a| Ok(Arc::new(SpaceToDepth { block: read_block(a)? }))),
];

#[cfg(test)]
mod tests;
