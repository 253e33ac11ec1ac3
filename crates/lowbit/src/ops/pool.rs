//! Pooling: the greatest or the mean value of each window, or of each channel.

mod gradient;

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::float;
use super::vectorized::vectorized;
use super::window::{Axis, Padding, Window, three};
use crate::error::{Error, Result, invalid};
use crate::op::{Attribute, Attributes, Dim, Fact, Op, Quant, ReadOp, Reading, Reverse, arity};
use crate::tensor::buffers::buffer;
use crate::tensor::{DType, Element, Tensor, element_count};

pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("MaxPool", |r| {
        if r.outputs() > 1 {
            return Err(Error::unsupported("MaxPool", "output Indices"));
        }
        r.only("storage_order", &Attribute::Int(0))?;
        Ok(Arc::new(MaxPool { pool: Pool::read(r)? }))
    }),
    ("AveragePool", |r| {
        let include_padding = r.flag("count_include_pad", false)?;
        Ok(Arc::new(AveragePool { pool: Pool::read(r)?, include_padding }))
    }),
    ("GlobalAveragePool", |_| Ok(Arc::new(GlobalAveragePool))),
    ("GlobalMaxPool", |_| Ok(Arc::new(GlobalMaxPool))),
];

/// The windows of a pooling operator over `[N, C, spatial..]`, with one to
/// three spatial axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// The window's spatial sizes.
    pub kernel: Vec<usize>,
    /// Strides, dilations and padding.
    pub window: Window,
    /// A last window that begins within the input or the padding before it
    /// counts even where it reaches beyond the padding after it.
    pub ceil: bool,
}

impl Pool {
    fn read(r: &mut Reading) -> Result<Pool> {
        let kernel = r.sizes("kernel_shape")?.ok_or_else(|| invalid!("attribute kernel_shape is missing"))?;
        Ok(Pool { kernel, window: Window::read(r)?, ceil: r.flag("ceil_mode", false)? })
    }

    fn attributes(&self) -> Attributes {
        let kernel = self.kernel.iter().map(|&k| k as i64).collect();
        let mut a = vec![("kernel_shape", Attribute::Ints(kernel))];
        a.extend(self.window.attributes());
        if self.ceil {
            a.push(("ceil_mode", Attribute::Int(1)));
        }
        a
    }

    /// The axes for an input of this shape.
    ///
    /// # Errors
    /// As [`Window::resolve`], or if a window could lie in the padding alone.
    pub fn axes(&self, x: &[usize]) -> Result<Vec<Axis>> {
        check_rank(x.len())?;
        let axes = self.window.resolve(&self.kernel, &x[2..], self.ceil)?;
        self.check_padding(&axes)?;
        Ok(axes)
    }

    fn check_padding(&self, axes: &[Axis]) -> Result<()> {
        let explicit = matches!(self.window.padding, Padding::Explicit(_));
        match axes.iter().find(|a| explicit && a.before.max(a.after) >= a.span()) {
            None => Ok(()),
            Some(a) => Err(invalid!(
                "pads ({}, {}) must be smaller than the window, which spans {} cells",
                a.before,
                a.after,
                a.span()
            )),
        }
    }

    fn infer(&self, x: &Fact) -> Result<Fact> {
        check_rank(x.rank())?;
        let spatial = self.window.dims(&self.kernel, &x.shape[2..], self.ceil)?;
        self.check_padding(&self.window.axes(&self.kernel)?)?;
        let mut shape = x.shape[..2].to_vec();
        shape.extend(spatial);
        Ok(x.with_shape(shape))
    }

    /// Axes as depth, height and width, and the output's shape.
    fn resolve(&self, op: &str, x: &[usize]) -> Result<([Axis; 3], Vec<usize>)> {
        let axes = self.axes(x)?;
        let mut shape = x[..2].to_vec();
        shape.extend(axes.iter().map(|a| a.output));
        element_count(&shape)?;
        Ok((three(op, &axes)?, shape))
    }
}

fn check_rank(rank: usize) -> Result<()> {
    if rank >= 3 {
        return Ok(());
    }
    Err(invalid!("needs an input [N, C, spatial..], found rank {rank}"))
}

/// ONNX `MaxPool` without `Indices`, over floats or 8-bit integers. A window
/// of padding alone gives the type's least value.
#[derive(Clone, Debug, PartialEq)]
pub struct MaxPool {
    /// The windows.
    pub pool: Pool,
}

impl Op for MaxPool {
    fn name(&self) -> &'static str {
        "MaxPool"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        check_comparable("MaxPool", inputs[0])?;
        Ok(vec![self.pool.infer(inputs[0])?])
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        gradient::max(self, at)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, 1)?;
        let x = inputs[0];
        let (axes, shape) = self.pool.resolve("MaxPool", x.shape())?;
        let y = match x.dtype() {
            DType::U8 => Tensor::new(&shape, windows(x.slice::<u8>()?, &axes, 0, Ord::max, |n| vec![0; n])),
            DType::I8 => {
                Tensor::new(&shape, windows(x.slice::<i8>()?, &axes, i8::MIN, Ord::max, |n| vec![0; n]))
            }
            dtype => {
                let y = windows(&float::read(x)?, &axes, f32::NEG_INFINITY, greater, buffer);
                float::write(dtype, &shape, y)
            }
        };
        Ok(vec![y?])
    }

    fn attributes(&self) -> Attributes {
        self.pool.attributes()
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

fn check_comparable(op: &str, x: &Fact) -> Result<()> {
    match x.dtype {
        DType::U8 | DType::I8 => Ok(()),
        _ => float::common(op, &[x]).map(|_| ()),
    }
}

#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// ONNX `AveragePool`: the mean of each window's cells.
///
/// Computes in f32; other float types are converted and rounded back.
#[derive(Clone, Debug, PartialEq)]
pub struct AveragePool {
    /// The windows.
    pub pool: Pool,
    /// Padding counts as cells of value 0. What a window of `ceil_mode`
    /// reaches beyond the padding never counts.
    pub include_padding: bool,
}

impl AveragePool {
    /// The number of cells that output `o` of an axis averages.
    pub fn count(&self, axis: &Axis, o: usize) -> usize {
        let taps = if self.include_padding { axis.taps_padded(o) } else { axis.taps(o) };
        taps.len()
    }
}

impl Op for AveragePool {
    fn name(&self) -> &'static str {
        "AveragePool"
    }

    /// Dilations came with opset 19.
    fn opset(&self) -> i64 {
        if self.pool.window.dilations.iter().any(|&d| d != 1) { 19 } else { 13 }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        float::common("AveragePool", inputs)?;
        Ok(vec![self.pool.infer(inputs[0])?])
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        gradient::average(self, at)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, 1)?;
        let x = inputs[0];
        let (axes, shape) = self.pool.resolve("AveragePool", x.shape())?;
        let mut y = windows(&float::read(x)?, &axes, 0.0, |a, b| a + b, buffer);
        let [depth, height, width] =
            axes.map(|a| (0..a.output).map(|o| self.count(&a, o)).collect::<Vec<_>>());
        for (row, y) in y.chunks_exact_mut(width.len().max(1)).enumerate() {
            let above = depth[row / height.len() % depth.len()] * height[row % height.len()];
            // A dilated window may meet no cell at all: its sum is 0.
            y.iter_mut().zip(&width).for_each(|(y, n)| *y /= (above * n).max(1) as f32);
        }
        Ok(vec![float::write(x.dtype(), &shape, y)?])
    }

    fn attributes(&self) -> Attributes {
        let mut a = self.pool.attributes();
        if self.include_padding {
            a.push(("count_include_pad", Attribute::Int(1)));
        }
        a
    }

    fn quant(&self) -> Quant {
        Quant::Compute { weight: None, bias: None }
    }
}

/// `combine` over the cells of each window within the input, from `start` on.
/// Across the rows first, each read once, then down the columns of what they gave.
fn windows<T: Element>(
    x: &[T],
    axes: &[Axis; 3],
    start: T,
    combine: impl Fn(T, T) -> T + Copy + Sync,
    memory: impl Fn(usize) -> Vec<T>,
) -> Vec<T> {
    let inputs: usize = axes.iter().map(|a| a.input).product();
    let outputs: usize = axes.iter().map(|a| a.output).product();
    if inputs == 0 || outputs == 0 {
        return vec![];
    }
    let mut y = memory(x.len() / inputs * outputs);
    let least = ((1 << 15) / inputs).max(1);
    let planes = y.par_chunks_exact_mut(outputs).zip(x.par_chunks_exact(inputs)).with_min_len(least);
    planes.for_each_init(
        || Rows::new(axes, start),
        |rows, (y, x)| {
            vectorized(
                #[inline(always)]
                || plane(x, axes, start, combine, rows, y),
            );
        },
    );
    y
}

/// Elements computed at once.
const LANES: usize = 16;

/// Buffers of one task.
struct Rows<T> {
    /// Outputs along a row whose windows lie within it and are computed by
    /// whole vectors.
    inside: Range<usize>,
    /// The end of a channel, and elements behind it that whole vectors read.
    end: Vec<T>,
    /// What each row of the channel gives, `pitch` apart.
    across: Vec<T>,
    pitch: usize,
    /// Where in `across` the rows of a window begin.
    lines: Vec<usize>,
}

impl<T: Element> Rows<T> {
    fn new([depth, height, width]: &[Axis; 3], start: T) -> Rows<T> {
        let inside = width.inside(0).start..width.inside(width.kernel - 1).end;
        let vectors = inside.start < inside.end && width.stride <= 2;
        let inside = if vectors { inside } else { 0..0 };
        let computed = inside.len().next_multiple_of(LANES);
        let reach = if vectors { computed * width.stride + width.span() - 1 } else { 0 };
        let pitch = width.output.max(inside.start + computed).next_multiple_of(LANES);
        let across = vec![start; depth.input * height.input * pitch];
        Rows { inside, end: vec![start; reach], across, pitch, lines: vec![] }
    }
}

#[inline(always)]
fn plane<T: Element>(
    x: &[T],
    [depth, height, width]: &[Axis; 3],
    start: T,
    combine: impl Fn(T, T) -> T + Copy,
    rows: &mut Rows<T>,
    y: &mut [T],
) {
    let Rows { inside, end, across, pitch, lines } = rows;
    for (row, across) in across.chunks_exact_mut(*pitch).enumerate() {
        let line = &x[row * width.input..];
        if inside.start < inside.end {
            // Vectors read on into the next row: what that gives is left out.
            let from = &line[inside.start * width.stride - width.before..];
            let from = match from.get(..end.len()) {
                Some(from) => from,
                None => {
                    end[..from.len()].copy_from_slice(from);
                    &*end
                }
            };
            let shifts = (0..width.kernel).map(|t| t * width.dilation);
            let y = &mut across[inside.start..];
            let y = &mut y[..inside.len().next_multiple_of(LANES)];
            match width.stride {
                1 => fold::<T, 1, LANES>(from, shifts, start, combine, y),
                _ => fold::<T, 2, { 2 * LANES }>(from, shifts, start, combine, y),
            }
        }
        for o in (0..inside.start).chain(inside.end..width.output) {
            let taps = width.taps(o).map(|t| line[o * width.stride + t * width.dilation - width.before]);
            across[o] = taps.fold(start, combine);
        }
    }
    for i in 0..y.len() / width.output {
        let (od, oh) = (i / height.output, i % height.output);
        lines.clear();
        for d in depth.taps(od) {
            let id = od * depth.stride + d * depth.dilation - depth.before;
            for h in height.taps(oh) {
                let ih = oh * height.stride + h * height.dilation - height.before;
                lines.push((id * height.input + ih) * *pitch);
            }
        }
        for at in (0..width.output).step_by(LANES) {
            let mut lanes = [start; LANES];
            fold::<T, 1, LANES>(&across[at..], lines.iter().copied(), start, combine, &mut lanes);
            // What a whole vector writes beyond the row, the next row writes again.
            let y = &mut y[i * width.output + at..];
            match y.first_chunk_mut() {
                Some(y) => *y = lanes,
                None => y.copy_from_slice(&lanes[..y.len()]),
            }
        }
    }
}

/// `y[i] = combine` over `x[shift + S * i]`, for a whole number of vectors; `W = S * LANES`.
#[inline(always)]
fn fold<T: Element, const S: usize, const W: usize>(
    x: &[T],
    shifts: impl Iterator<Item = usize> + Clone,
    start: T,
    combine: impl Fn(T, T) -> T,
    y: &mut [T],
) {
    for (at, y) in (0..).step_by(W).zip(y.as_chunks_mut::<LANES>().0) {
        let mut lanes = [start; W];
        for shift in shifts.clone() {
            let x = &x[at + shift..][..W];
            for j in 0..W {
                lanes[j] = combine(lanes[j], x[j]);
            }
        }
        for j in 0..LANES {
            y[j] = lanes[S * j];
        }
    }
}

/// ONNX `GlobalAveragePool`: the mean of each channel, `[N, C, 1, 1, ..]`.
/// Sums in f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GlobalAveragePool;

/// ONNX `GlobalMaxPool`: the greatest value of each channel, `[N, C, 1, 1, ..]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GlobalMaxPool;

fn global_dims(x: &Fact) -> Result<Fact> {
    check_rank(x.rank())?;
    if x.shape[2..].contains(&Dim::Known(0)) {
        return Err(invalid!("cannot pool channels without cells: {x}"));
    }
    let mut shape = x.shape[..2].to_vec();
    shape.resize(x.rank(), Dim::Known(1));
    Ok(x.with_shape(shape))
}

/// The output's shape and the cells of one channel.
fn global_shape(x: &Tensor) -> Result<(Vec<usize>, usize)> {
    let shape = global_dims(&Fact::of(x))?.known_shape().ok_or_else(|| invalid!("has no fixed shape"))?;
    Ok((shape, x.shape()[2..].iter().product()))
}

impl Op for GlobalAveragePool {
    fn name(&self) -> &'static str {
        "GlobalAveragePool"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        float::common("GlobalAveragePool", inputs)?;
        Ok(vec![global_dims(inputs[0])?])
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        gradient::global(at, gradient::shared)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, 1)?;
        let (shape, cells) = global_shape(inputs[0])?;
        let mean = |c: &[f32]| {
            let sum = vectorized(
                #[inline(always)]
                || super::reduce::sum(c, |x| x),
            );
            (sum / cells as f64) as f32
        };
        let y = float::read(inputs[0])?.chunks_exact(cells).map(mean).collect();
        Ok(vec![float::write(inputs[0].dtype(), &shape, y)?])
    }

    fn quant(&self) -> Quant {
        Quant::Compute { weight: None, bias: None }
    }
}

impl Op for GlobalMaxPool {
    fn name(&self) -> &'static str {
        "GlobalMaxPool"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 1, 1)?;
        check_comparable("GlobalMaxPool", inputs[0])?;
        Ok(vec![global_dims(inputs[0])?])
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        gradient::global(at, gradient::to_greatest)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, 1)?;
        let x = inputs[0];
        let (shape, cells) = global_shape(x)?;
        fn fold<T: Element>(x: &[T], cells: usize, f: impl Fn(T, T) -> T) -> Vec<T> {
            x.chunks_exact(cells).filter_map(|c| c.iter().copied().reduce(&f)).collect()
        }
        let y = match x.dtype() {
            DType::U8 => Tensor::new(&shape, fold(x.slice::<u8>()?, cells, Ord::max)),
            DType::I8 => Tensor::new(&shape, fold(x.slice::<i8>()?, cells, Ord::max)),
            dtype => float::write(dtype, &shape, fold(&float::read(x)?, cells, greater)),
        };
        Ok(vec![y?])
    }

    fn quant(&self) -> Quant {
        Quant::Share
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::ops::conv::tests::{assert_close, random};

    fn pool(kernel: &[usize], strides: &[usize], dilations: &[usize], padding: Padding, ceil: bool) -> Pool {
        let window = Window { strides: strides.to_vec(), dilations: dilations.to_vec(), padding };
        Pool { kernel: kernel.to_vec(), window, ceil }
    }

    fn pads(p: &[(usize, usize)]) -> Padding {
        Padding::Explicit(p.to_vec())
    }

    /// The cells of each window within the input, and the number of cells
    /// within the padded input.
    fn cells(x: &[f32], axes: &[Axis; 3]) -> Vec<(Vec<f32>, usize)> {
        let [d, h, v] = axes;
        let inputs = d.input * h.input * v.input;
        let mut out = vec![];
        for x in x.chunks_exact(inputs) {
            for o in 0..d.output * h.output * v.output {
                let (od, oh, ow) = (o / (h.output * v.output), o / v.output % h.output, o % v.output);
                let (mut found, mut padded) = (vec![], 0);
                for t in 0..d.kernel * h.kernel * v.kernel {
                    let (kd, kh, kw) = (t / (h.kernel * v.kernel), t / v.kernel % h.kernel, t % v.kernel);
                    let within =
                        |a: &Axis, o, t| o * a.stride + t * a.dilation < a.input + a.before + a.after;
                    padded += usize::from(within(d, od, kd) && within(h, oh, kh) && within(v, ow, kw));
                    if let (Some(i), Some(j), Some(k)) = (d.at(od, kd), h.at(oh, kh), v.at(ow, kw)) {
                        found.push(x[(i * h.input + j) * v.input + k]);
                    }
                }
                out.push((found, padded));
            }
        }
        out
    }

    fn check(pool: &Pool, shape: &[usize]) {
        let x = random(shape, 1);
        let axes =
            three("X", &pool.axes(shape).unwrap_or_else(|e| panic!("{pool:?} {shape:?}: {e}"))).unwrap();
        let cells = cells(x.slice().unwrap(), &axes);
        let max: Vec<f32> =
            cells.iter().map(|(c, _)| c.iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect();
        let mean = |(c, padded): &(Vec<f32>, usize), all: bool| {
            c.iter().sum::<f32>() / (if all { *padded } else { c.len() }).max(1) as f32
        };
        let inner: Vec<f32> = cells.iter().map(|c| mean(c, false)).collect();
        let outer: Vec<f32> = cells.iter().map(|c| mean(c, true)).collect();
        let average = |include_padding| AveragePool { pool: pool.clone(), include_padding };
        let ops: [(&dyn Op, Vec<f32>); 3] =
            [(&MaxPool { pool: pool.clone() }, max), (&average(false), inner), (&average(true), outer)];
        for (op, want) in ops {
            let y = op.eval(&[&x]).unwrap().remove(0);
            assert_close(y.slice().unwrap(), &want, &(op, shape));
            let fact = op.infer(&[&Fact::of(&x)]).unwrap().remove(0);
            assert_eq!(fact.known_shape().unwrap(), y.shape(), "{op:?}");
        }
    }

    #[test]
    fn a_window_far_larger_than_the_image_is_the_whole_image() {
        let widest = (1 << 31) - 1;
        let pool = pool(&[widest, widest], &[2, 2], &[], Padding::SameLower, false);
        let x = Tensor::new(&[1, 1, 2, 2], vec![1f32, 2.0, 4.0, 3.0]).unwrap();
        let mean = AveragePool { pool: pool.clone(), include_padding: false }.eval(&[&x]).unwrap();
        assert_eq!(mean[0].slice::<f32>().unwrap(), [2.5]);
        assert_eq!(MaxPool { pool }.eval(&[&x]).unwrap()[0].slice::<f32>().unwrap(), [4.0]);
    }

    #[test]
    fn equals_the_definition() {
        let cases: [(Pool, &[usize]); 13] = [
            (pool(&[2, 2], &[2, 2], &[], pads(&[]), false), &[2, 3, 8, 9]),
            (pool(&[3, 3], &[2, 2], &[], pads(&[]), false), &[1, 2, 111, 55]),
            (pool(&[3, 3], &[2, 2], &[], pads(&[]), true), &[1, 2, 12, 14]),
            (pool(&[3, 3], &[2, 2], &[], pads(&[(1, 1), (1, 1)]), true), &[1, 2, 8, 9]),
            (pool(&[2, 3], &[2, 3], &[], pads(&[(0, 1), (2, 0)]), true), &[1, 2, 7, 7]),
            (pool(&[3, 2], &[1, 2], &[2, 3], pads(&[(1, 4), (0, 2)]), false), &[1, 2, 9, 11]),
            (pool(&[3, 3], &[2, 2], &[], Padding::SameUpper, false), &[1, 2, 8, 9]),
            (pool(&[3, 3], &[2, 2], &[], Padding::SameLower, false), &[1, 2, 8, 9]),
            (pool(&[3, 3], &[1, 1], &[], Padding::SameUpper, false), &[1, 2, 2, 1]),
            (pool(&[5], &[3], &[], pads(&[(2, 1)]), true), &[2, 3, 20]),
            (pool(&[2, 2, 3], &[1, 2, 2], &[], pads(&[(1, 0), (0, 1), (1, 1)]), false), &[1, 2, 3, 5, 6]),
            // Both taps lie in the padding.
            (pool(&[2], &[1], &[2], pads(&[(1, 1)]), false), &[1, 1, 1]),
            (pool(&[1, 1], &[], &[], pads(&[]), false), &[1, 2, 3, 3]),
        ];
        for (pool, shape) in cases {
            check(&pool, shape);
        }
    }

    #[test]
    fn codes_are_pooled_as_codes() {
        let op = MaxPool { pool: pool(&[2], &[2], &[], pads(&[(1, 0)]), false) };
        let y = op.eval(&[&Tensor::new(&[1, 1, 3], vec![-5i8, -128, 7]).unwrap()]).unwrap();
        assert_eq!(y[0].slice::<i8>().unwrap(), [-5, 7]);
        let x = Tensor::new(&[1, 1, 3], vec![0u8, 255, 7]).unwrap();
        assert_eq!(op.eval(&[&x]).unwrap()[0].slice::<u8>().unwrap(), [0, 255]);
        assert_eq!(GlobalMaxPool.eval(&[&x]).unwrap()[0].slice::<u8>().unwrap(), [255]);
    }

    #[test]
    fn global_pools_reduce_channels() {
        let x = Tensor::new(&[1, 2, 1, 2, 2], (0..8).map(|i| i as f32).collect::<Vec<f32>>()).unwrap();
        for (op, want) in [(&GlobalAveragePool as &dyn Op, [1.5, 5.5]), (&GlobalMaxPool, [3.0, 7.0])] {
            let y = op.eval(&[&x]).unwrap().remove(0);
            assert_eq!((y.shape(), y.slice::<f32>().unwrap()), (&[1, 2, 1, 1, 1][..], &want[..]));
            let named = Fact::new(DType::F32, vec![Dim::Named("N".into()), 3.into(), Dim::Named("H".into())]);
            let y = op.infer(&[&named]).unwrap().remove(0);
            assert_eq!(y.shape, [Dim::Named("N".into()), 3.into(), 1.into()]);
            for bad in [&[1, 2][..], &[1, 2, 0]] {
                assert!(op.infer(&[&Fact::new(DType::F32, bad.iter().copied())]).is_err());
            }
        }
    }

    fn reading(op: &str, attributes: &[(&str, Attribute)], outputs: usize) -> Result<Arc<dyn Op>> {
        let map: BTreeMap<_, _> = attributes.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
        let mut r = Reading::new(op, 13, map, vec![None], outputs);
        let read = READERS.iter().find(|(name, _)| *name == op).unwrap().1;
        let made = read(&mut r)?;
        r.finish().map(|_| made)
    }

    #[test]
    fn readers_take_every_attribute() {
        let ints = |x: &[i64]| Attribute::Ints(x.to_vec());
        let kernel = ("kernel_shape", ints(&[2, 2]));
        let attributes = [
            kernel.clone(),
            ("dilations", ints(&[1, 2])),
            ("strides", ints(&[2, 2])),
            ("pads", ints(&[0, 1, 1, 0])),
            ("ceil_mode", Attribute::Int(1)),
        ];
        assert_eq!(reading("MaxPool", &attributes, 1).unwrap().attributes(), attributes);
        let average = [&attributes[..], &[("count_include_pad", Attribute::Int(1))]].concat();
        let op = reading("AveragePool", &average, 1).unwrap();
        assert_eq!((op.attributes(), op.opset()), (average.clone(), 19));
        let storage = |order| [kernel.clone(), ("storage_order", Attribute::Int(order))];
        assert!(reading("MaxPool", &storage(0), 1).is_ok());
        let errors = [
            (reading("MaxPool", &attributes, 2), "Indices"),
            (reading("MaxPool", &storage(1), 1), "storage_order"),
            (reading("MaxPool", &[], 1), "kernel_shape is missing"),
            (reading("MaxPool", &average, 1), "count_include_pad"),
            (reading("GlobalMaxPool", &attributes[..1], 1), "kernel_shape"),
        ];
        for (result, want) in errors {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(want), "{message}");
        }
    }

    #[test]
    fn windows_that_do_not_fit_are_errors() {
        let cases: [(Pool, &[usize], &str); 6] = [
            (
                pool(&[2, 2], &[], &[], pads(&[(2, 0), (0, 0)]), false),
                &[1, 1, 4, 4],
                "smaller than the window",
            ),
            (pool(&[5, 2], &[], &[], pads(&[]), false), &[1, 1, 4, 4], "does not fit"),
            (pool(&[2, 2], &[0, 1], &[], pads(&[]), false), &[1, 1, 4, 4], "at least 1"),
            (pool(&[0, 2], &[], &[], pads(&[]), false), &[1, 1, 4, 4], "kernel size of 0"),
            (pool(&[2], &[], &[], pads(&[]), false), &[1, 1, 4, 4], "spatial axes"),
            (pool(&[], &[], &[], pads(&[]), false), &[1, 1], "found rank 2"),
        ];
        for (pool, shape, want) in cases {
            let x = random(shape, 1);
            let op = MaxPool { pool };
            for result in [op.infer(&[&Fact::of(&x)]).map(|_| ()), op.eval(&[&x]).map(|_| ())] {
                let message = result.unwrap_err().to_string();
                assert!(message.contains(want), "{op:?}: {message}");
            }
        }
    }

    proptest! {
        #[test]
        fn equals_the_definition_everywhere(
            size in prop::array::uniform2(1usize..12), kernel in prop::array::uniform2(1usize..5),
            strides in prop::array::uniform2(1usize..4), dilations in prop::array::uniform2(1usize..3),
            before in prop::array::uniform2(0usize..3), after in prop::array::uniform2(0usize..3),
            ceil: bool,
        ) {
            let padding = pads(&[(before[0], after[0]), (before[1], after[1])]);
            let pool = pool(&kernel, &strides, &dilations, padding, ceil);
            let shape = [1, 2, size[0], size[1]];
            prop_assume!(pool.axes(&shape).is_ok());
            check(&pool, &shape);
        }
    }
}
