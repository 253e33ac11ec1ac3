//! Transposed convolution: the adjoint of [`super::conv`] in its input.

use std::sync::Arc;

use lowbit_kernels::{Kernels, Matrix, MatrixMut, Product, Right};
use rayon::prelude::*;

use super::conv::{Geometry, attributes, check_bias, gradient, kernel, read_group, weight_shape};
use super::float;
use super::product::with_scratch;
use super::window::{Axis, Padding, Window, three};
use crate::error::{Result, invalid};
use crate::op::{
    Attribute, Attributes, Dim, Fact, Op, Quant, ReadOp, Reverse, arity, optional, optional_fact,
};
use crate::tensor::{Tensor, element_count};

pub(super) const READERS: &[(&str, ReadOp)] = &[("ConvTranspose", |r| {
    Ok(Arc::new(ConvTranspose {
        kernel: r.sizes("kernel_shape")?,
        group: read_group(r.int("group")?)?,
        output_padding: r.sizes("output_padding")?.unwrap_or_default(),
        output_shape: r.sizes("output_shape")?,
        window: Window::read(r)?,
    }))
})];

/// ONNX `ConvTranspose` over one to three spatial axes. Operands:
/// `x [N, C, spatial..]`, `w [C, M / group, kernel..]`, optional `bias [M]`;
/// output `[N, M, stride * (spatial - 1) + output_padding + span - pads ..]`.
///
/// Computes in f32; other float types are converted and rounded back.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvTranspose {
    /// Strides, dilations and padding of the adjoint convolution.
    pub window: Window,
    /// Channels are convolved in this many separate groups.
    pub group: usize,
    /// The kernel's spatial sizes where the model states them.
    pub kernel: Option<Vec<usize>>,
    /// Cells added after each output axis; empty means none.
    pub output_padding: Vec<usize>,
    /// Spatial output sizes, from which the padding follows.
    pub output_shape: Option<Vec<usize>>,
}

impl ConvTranspose {
    /// The adjoint convolution's axes: their `output` is the size of `x`,
    /// their `input` that of the result.
    fn axes(&self, kernel: &[usize], x: &[usize]) -> Result<Vec<Axis>> {
        for (name, n) in [
            ("output_padding", Some(self.output_padding.len()).filter(|&n| n > 0)),
            ("output_shape", self.output_shape.as_ref().map(Vec::len)),
        ] {
            if n.is_some_and(|n| n != kernel.len()) {
                return Err(invalid!("{name} has {} axes, the kernel {kernel:?}", n.unwrap_or(0)));
            }
        }
        let axes = self.window.axes(kernel)?;
        axes.into_iter().enumerate().map(|(i, axis)| self.axis(i, axis, x[i])).collect()
    }

    fn axis(&self, i: usize, mut a: Axis, x: usize) -> Result<Axis> {
        let extra = self.output_padding.get(i).copied().unwrap_or(0);
        if extra >= a.stride.max(a.dilation) {
            return Err(invalid!("output_padding {extra} must be below the stride or the dilation"));
        }
        let full = x.checked_sub(1).and_then(|n| n.checked_mul(a.stride)).map(|n| n + extra + a.span());
        let full = full.filter(|&n| n < 1 << 32).ok_or_else(|| {
            invalid!("an input size of {x} is not within what a stride of {} can spread", a.stride)
        })?;
        let same = matches!(self.window.padding, Padding::SameUpper | Padding::SameLower);
        let stated = match &self.output_shape {
            Some(shape) => Some(shape[i]),
            None => same.then(|| x * a.stride),
        };
        match stated {
            Some(n) => {
                let total = full.saturating_sub(n);
                let upper = self.window.padding == Padding::SameUpper;
                a.before = if upper { total / 2 } else { total.div_ceil(2) };
                a.after = total - a.before;
                a.input = n;
            }
            None => {
                a.input = full.checked_sub(a.before + a.after).ok_or_else(|| {
                    invalid!("pads ({}, {}) exceed the {full} output cells", a.before, a.after)
                })?;
            }
        }
        a.output = x;
        Ok(a)
    }

    /// The geometry of the adjoint convolution: its `in_channels` are the
    /// output's, and its `axes` as in [`ConvTranspose::axes`].
    fn geometry(&self, x: &[usize], w: &[usize]) -> Result<Geometry> {
        let kernel = kernel(self.kernel.as_deref(), x.len(), w)?;
        let (c, m) = (w[0], w[1]);
        if c != x[1] || self.group == 0 || !c.is_multiple_of(self.group) {
            return Err(invalid!(
                "the input has {} channels; a weight of shape {w:?} takes {c}, in {} groups",
                x[1],
                self.group
            ));
        }
        let axes = three("ConvTranspose", &self.axes(kernel, &x[2..])?)?;
        element_count(&[x[0], self.group, m, axes[0].input, axes[1].input, axes[2].input])?;
        Ok(Geometry { batch: x[0], group: self.group, in_channels: m, out_channels: c / self.group, axes })
    }

    fn formula(&self, i: usize, a: &Axis, s: &str) -> Dim {
        if let Some(shape) = &self.output_shape {
            return Dim::Known(shape[i]);
        }
        let same = matches!(self.window.padding, Padding::SameUpper | Padding::SameLower);
        let extra = self.output_padding.get(i).copied().unwrap_or(0);
        let more = if same { 0 } else { (a.span() + extra) as i64 - (a.stride + a.before + a.after) as i64 };
        Dim::Named(match (a.stride, more) {
            (1, 0) => s.into(),
            (1, _) => format!("({s}{more:+})"),
            (n, 0) => format!("({n}*{s})"),
            (n, _) => format!("({n}*{s}{more:+})"),
        })
    }
}

impl Op for ConvTranspose {
    fn name(&self) -> &'static str {
        "ConvTranspose"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 2, 3)?;
        float::common("ConvTranspose", inputs)?;
        let [x, w] = [inputs[0], inputs[1]];
        let shape = weight_shape(w)?;
        let kernel = kernel(self.kernel.as_deref(), x.rank(), &shape)?;
        // Checks what does not depend on named sizes, taken as 1.
        let sizes: Vec<usize> = x.shape[2..].iter().map(|d| d.known().unwrap_or(1)).collect();
        let axes = match self.axes(kernel, &sizes) {
            Ok(axes) => axes,
            Err(_) if x.shape[2..].iter().any(|d| d.known().is_none()) => self.window.axes(kernel)?,
            Err(e) => return Err(e),
        };
        if let Some(x) = x.known_shape() {
            self.geometry(&x, &shape)?;
        }
        let channels = shape[1].saturating_mul(self.group);
        check_bias(optional_fact(inputs, 2), channels)?;
        let mut out = vec![x.shape[0].clone(), Dim::Known(channels)];
        for (i, (d, a)) in x.shape[2..].iter().zip(&axes).enumerate() {
            out.push(match d {
                Dim::Known(_) => Dim::Known(a.input),
                Dim::Named(s) => self.formula(i, a, s),
            });
        }
        Ok(vec![x.with_shape(out)])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 2, 3)?;
        let [x, w] = [inputs[0], inputs[1]];
        let g = self.geometry(x.shape(), w.shape())?;
        let bias = optional(inputs, 2);
        check_bias(bias.map(Fact::of).as_ref(), g.group * g.in_channels)?;
        let bias = bias.map(float::read).transpose()?;
        let y = scatter(&float::read(x)?, &float::read(w)?, bias.as_deref(), &g);
        let mut shape = vec![g.batch, g.group * g.in_channels];
        shape.extend(g.axes[5 - x.rank()..].iter().map(|a| a.input));
        Ok(vec![float::write(x.dtype(), &shape, y)?])
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        gradient::transposed_vjp(&self.geometry(at.inputs[0].shape(), at.inputs[1].shape())?, at)
    }

    fn attributes(&self) -> Attributes {
        let mut a = attributes(&self.window, self.group, self.kernel.as_deref());
        let ints = |x: &[usize]| Attribute::Ints(x.iter().map(|&x| x as i64).collect());
        if !self.output_padding.is_empty() {
            a.push(("output_padding", ints(&self.output_padding)));
        }
        if let Some(shape) = &self.output_shape {
            a.push(("output_shape", ints(shape)));
        }
        a
    }

    /// The weight's axis 1 counts the output channels of one group, so only
    /// without groups does it name channels.
    fn quant(&self) -> Quant {
        match self.group {
            1 => Quant::Compute { weight: Some((1, 1)), bias: Some(2) },
            _ => Quant::Float,
        }
    }

    fn macs(&self, inputs: &[&Fact], _outputs: &[&Fact]) -> u64 {
        let per_input = inputs[1].shape[1..].iter().map(|d| d.known().unwrap_or(1) as u64);
        inputs[0].elements().saturating_mul(per_input.product())
    }
}

/// Elements of a block of columns.
const BLOCK: usize = 1 << 16;

/// Each output channel is the sum of its windows: what every input cell gives
/// to every tap is one matrix product, then added where the taps lie.
pub(super) fn scatter(x: &[f32], w: &[f32], bias: Option<&[f32]>, g: &Geometry) -> Vec<f32> {
    let (cells, positions, taps) = (g.inputs(), g.outputs(), g.taps());
    let (c, m) = (g.out_channels, g.in_channels);
    let mut y = vec![0.0; g.batch * g.group * m * cells];
    if y.is_empty() {
        return y;
    }
    let block = (BLOCK / taps).clamp(16, positions.max(16));
    y.par_chunks_exact_mut(cells).enumerate().for_each(|(channel, y)| {
        let (image, m_all) = (channel / (g.group * m), channel % (g.group * m));
        let (group, m_here) = (m_all / m, m_all % m);
        y.fill(bias.map_or(0.0, |b| b[m_all]));
        let x = Matrix::new(&x[(image * g.group + group) * c * positions..], c, positions);
        let w = w.get((group * c * m + m_here) * taps..).unwrap_or_default();
        let w: Vec<f32> = (0..taps * c).map(|i| w[i % c * m * taps + i / c]).collect();
        let w = Matrix::new(&w, taps, c);
        for start in (0..positions).step_by(block) {
            let count = block.min(positions - start);
            with_scratch(taps * count, |columns| {
                let product = Product::new(w, Right::Matrix(x.cols(start, count)));
                Kernels::best().product(&product, &mut MatrixMut::new(columns, taps, count));
                add_columns(columns, &g.axes, start, count, y);
            });
        }
    });
    y
}

/// Adds to each output cell what the input positions give to their taps.
fn add_columns(columns: &[f32], axes: &[Axis; 3], start: usize, count: usize, y: &mut [f32]) {
    let [depth, height, width] = axes;
    let segments = segments(axes, start, count);
    let mut columns = columns;
    for (d, h) in (0..depth.kernel).flat_map(|d| (0..height.kernel).map(move |h| (d, h))) {
        for w in 0..width.kernel {
            let inside = width.inside(w);
            for s in &segments {
                let (cells, rest) = columns.split_at(s.len);
                columns = rest;
                let row = depth.at(s.row[0], d).zip(height.at(s.row[1], h));
                let from = inside.start.clamp(s.start, s.start + s.len) - s.start;
                let to = inside.end.clamp(s.start, s.start + s.len) - s.start;
                let Some((id, ih)) = row.filter(|_| from < to) else { continue };
                let first = (s.start + from) * width.stride + w * width.dilation - width.before;
                let y = &mut y[(id * height.input + ih) * width.input + first..];
                let y = y.iter_mut().step_by(width.stride);
                y.zip(&cells[from..to]).for_each(|(y, x)| *y += x);
            }
        }
    }
}

/// A run of positions in one row of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    /// Depth and height.
    row: [usize; 2],
    /// First width.
    start: usize,
    /// Number of positions.
    len: usize,
}

/// The rows that the `count` output positions from `start` run through.
fn segments(axes: &[Axis; 3], start: usize, count: usize) -> Vec<Segment> {
    let [_, height, width] = axes.map(|a| a.output);
    let mut at = start;
    let mut segments = vec![];
    while at < start + count {
        let (row, first) = (at / width, at % width);
        let len = (width - first).min(start + count - at);
        segments.push(Segment { row: [row / height, row % height], start: first, len });
        at += len;
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Reading;
    use crate::ops::conv::tests::{assert_close, random};
    use crate::ops::differences::{Case, check};
    use crate::tensor::DType;

    fn op(strides: &[usize], dilations: &[usize], padding: Padding, group: usize) -> ConvTranspose {
        let window = Window { strides: strides.to_vec(), dilations: dilations.to_vec(), padding };
        ConvTranspose { window, group, kernel: None, output_padding: vec![], output_shape: None }
    }

    fn pads(p: &[(usize, usize)]) -> Padding {
        Padding::Explicit(p.to_vec())
    }

    /// The definition: every input cell adds its product with every tap.
    fn naive(x: &Tensor, w: &Tensor, bias: &[f32], g: &Geometry) -> Vec<f32> {
        let (x, w): (&[f32], &[f32]) = (x.slice().unwrap(), w.slice().unwrap());
        let [d, h, v] = g.axes;
        let (c_all, m_all) = (g.group * g.out_channels, g.group * g.in_channels);
        let mut y: Vec<f32> =
            (0..g.batch * m_all * g.inputs()).map(|i| bias[i / g.inputs() % m_all]).collect();
        for (i, x) in x.iter().enumerate() {
            let (n, c, p) = (i / g.outputs() / c_all, i / g.outputs() % c_all, i % g.outputs());
            let at = (p / (h.output * v.output), p / v.output % h.output, p % v.output);
            for (m, t) in (0..g.in_channels).flat_map(|m| (0..g.taps()).map(move |t| (m, t))) {
                let tap = (t / (h.kernel * v.kernel), t / v.kernel % h.kernel, t % v.kernel);
                if let (Some(i), Some(j), Some(k)) = (d.at(at.0, tap.0), h.at(at.1, tap.1), v.at(at.2, tap.2))
                {
                    let channel = n * m_all + c / g.out_channels * g.in_channels + m;
                    y[((channel * d.input + i) * h.input + j) * v.input + k] +=
                        x * w[(c * g.in_channels + m) * g.taps() + t];
                }
            }
        }
        y
    }

    #[test]
    fn equals_the_definition() {
        let spread =
            |o: ConvTranspose, extra: &[usize]| ConvTranspose { output_padding: extra.to_vec(), ..o };
        let shaped =
            |o: ConvTranspose, shape: &[usize]| ConvTranspose { output_shape: Some(shape.to_vec()), ..o };
        type Shape<'a> = &'a [usize];
        // operator, x, w, spatial output
        let cases: [(ConvTranspose, Shape, Shape, Shape); 13] = [
            (op(&[], &[], pads(&[]), 1), &[1, 3, 4, 5], &[3, 4, 3, 3], &[6, 7]),
            (op(&[2, 2], &[], pads(&[(1, 1), (1, 1)]), 1), &[2, 3, 4, 5], &[3, 4, 3, 3], &[7, 9]),
            (op(&[2, 2], &[], pads(&[]), 1), &[1, 5, 13, 7], &[5, 2, 2, 2], &[26, 14]),
            (op(&[3, 2], &[2, 1], pads(&[(0, 2), (1, 0)]), 2), &[1, 4, 5, 6], &[4, 3, 2, 4], &[13, 13]),
            (spread(op(&[2, 2], &[], pads(&[(1, 1); 2]), 1), &[1, 0]), &[1, 2, 4, 4], &[2, 3, 3, 3], &[8, 7]),
            (op(&[2, 2], &[], Padding::SameUpper, 1), &[1, 2, 4, 5], &[2, 3, 3, 3], &[8, 10]),
            (op(&[2, 2], &[], Padding::SameLower, 1), &[1, 2, 4, 5], &[2, 3, 3, 3], &[8, 10]),
            (op(&[2, 2], &[], Padding::SameUpper, 1), &[1, 2, 4, 5], &[2, 3, 1, 1], &[8, 10]),
            (shaped(op(&[2, 2], &[], pads(&[]), 1), &[8, 10]), &[1, 2, 4, 5], &[2, 3, 3, 3], &[8, 10]),
            (shaped(op(&[1, 1], &[], pads(&[]), 1), &[7, 4]), &[1, 2, 4, 4], &[2, 3, 3, 3], &[7, 4]),
            (op(&[2], &[], pads(&[(1, 0)]), 4), &[2, 4, 9], &[4, 1, 4], &[19]),
            (
                op(&[1, 2, 1], &[], pads(&[(1, 1), (0, 1), (0, 0)]), 1),
                &[1, 2, 3, 3, 3],
                &[2, 2, 3, 2, 2],
                &[3, 5, 4],
            ),
            (op(&[2, 2], &[], pads(&[]), 1), &[1, 3, 80, 90], &[3, 2, 8, 8], &[166, 186]),
        ];
        for (op, x, w, out) in cases {
            let g = op.geometry(x, w).unwrap();
            let channels = g.group * g.in_channels;
            let (x, w, b) = (random(x, 1), random(w, 2), random(&[channels], 3));
            let y = op.eval(&[&x, &w, &b]).unwrap().remove(0);
            assert_eq!(y.shape()[1..], [&[channels], out].concat(), "{op:?}");
            assert_close(y.slice().unwrap(), &naive(&x, &w, b.slice().unwrap(), &g), &op);
            let fact = op.infer(&[&Fact::of(&x), &Fact::of(&w), &Fact::of(&b)]).unwrap().remove(0);
            assert_eq!(fact.known_shape().unwrap(), y.shape(), "{op:?}");
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let spread = ConvTranspose { output_padding: vec![1, 0], ..op(&[2, 2], &[], pads(&[(1, 1); 2]), 1) };
        let shaped = ConvTranspose { output_shape: Some(vec![7, 4]), ..op(&[1, 1], &[], pads(&[]), 1) };
        type Shape<'a> = &'a [usize];
        let cases: [(ConvTranspose, Shape, Shape); 8] = [
            (op(&[], &[], pads(&[]), 1), &[1, 3, 4, 5], &[3, 4, 3, 3]),
            (op(&[2, 2], &[], pads(&[(1, 1), (1, 1)]), 1), &[2, 3, 4, 5], &[3, 4, 3, 3]),
            (op(&[3, 2], &[2, 1], pads(&[(0, 2), (1, 0)]), 2), &[1, 4, 5, 6], &[4, 3, 2, 4]),
            (spread, &[1, 2, 4, 4], &[2, 3, 3, 3]),
            (shaped, &[1, 2, 4, 4], &[2, 3, 3, 3]),
            (op(&[2, 2], &[], Padding::SameLower, 1), &[1, 2, 4, 5], &[2, 3, 3, 3]),
            (op(&[2], &[], pads(&[(1, 0)]), 4), &[2, 4, 9], &[4, 1, 4]),
            (op(&[1, 2, 1], &[], pads(&[(1, 1), (0, 1), (0, 0)]), 1), &[1, 2, 3, 3, 3], &[2, 2, 3, 2, 2]),
        ];
        check(cases.map(|(op, x, w)| {
            let bias = [op.group * w[1]];
            Case::new(op, &[x, w, &bias])
        }));
    }

    #[test]
    fn the_reader_takes_every_attribute() {
        let ints = |x: &[i64]| Attribute::Ints(x.to_vec());
        let attributes = [
            ("dilations", ints(&[1, 2])),
            ("strides", ints(&[2, 3])),
            ("pads", ints(&[0, 1, 2, 0])),
            ("kernel_shape", ints(&[3, 2])),
            ("group", Attribute::Int(2)),
            ("output_padding", ints(&[1, 0])),
            ("output_shape", ints(&[9, 9])),
        ];
        let map = attributes.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
        let mut r = Reading::new("ConvTranspose", 11, map, vec![None; 2], 1);
        let read = READERS[0].1(&mut r).unwrap();
        r.finish().unwrap();
        assert_eq!(read.attributes(), attributes);
        assert_eq!(read.quant(), Quant::Float);
        let plain = op(&[], &[], pads(&[]), 1);
        assert_eq!(plain.quant(), Quant::Compute { weight: Some((1, 1)), bias: Some(2) });
    }

    #[test]
    fn symbolic_sizes_are_carried() {
        let x = Fact::new(DType::F32, vec![Dim::Named("N".into()), 2.into(), Dim::Named("H".into())]);
        let w = Fact::new(DType::F32, [2, 3, 4]);
        let cases = [
            (op(&[2], &[], pads(&[(1, 1)]), 1), "(2*H)"),
            (op(&[2], &[], pads(&[]), 1), "(2*H+2)"),
            (op(&[], &[], pads(&[(2, 2)]), 1), "(H-1)"),
            (op(&[], &[], pads(&[(1, 2)]), 1), "H"),
            (op(&[3], &[], Padding::SameUpper, 1), "(3*H)"),
        ];
        for (op, want) in cases {
            let y = op.infer(&[&x, &w]).unwrap().remove(0);
            assert_eq!(y.shape, [Dim::Named("N".into()), 3.into(), Dim::Named(want.into())], "{op:?}");
        }
    }

    #[test]
    fn operands_that_do_not_fit_are_errors() {
        let cases: [(ConvTranspose, &[usize], &[usize], &str); 7] = [
            (op(&[], &[], pads(&[]), 1), &[1, 3, 4], &[2, 3, 3], "has 3 channels"),
            (op(&[], &[], pads(&[]), 2), &[1, 3, 4], &[3, 3, 3], "2 groups"),
            (op(&[], &[], pads(&[(9, 9)]), 1), &[1, 3, 4], &[3, 3, 3], "exceed"),
            (op(&[], &[], pads(&[]), 1), &[1, 3, 0], &[3, 3, 3], "input size of 0"),
            (op(&[0], &[], pads(&[]), 1), &[1, 3, 4], &[3, 3, 3], "at least 1"),
            (
                ConvTranspose { output_padding: vec![2], ..op(&[2], &[], pads(&[]), 1) },
                &[1, 3, 4],
                &[3, 3, 3],
                "output_padding 2",
            ),
            (op(&[(1 << 31) - 1], &[], pads(&[]), 1), &[1, 3, 4], &[3, 3, 3], "can spread"),
        ];
        for (op, x, w, want) in cases {
            let (x, w) = (random(x, 1), random(w, 2));
            for result in
                [op.infer(&[&Fact::of(&x), &Fact::of(&w)]).map(|_| ()), op.eval(&[&x, &w]).map(|_| ())]
            {
                let message = result.unwrap_err().to_string();
                assert!(message.contains(want), "{op:?}: {message}");
            }
        }
    }
}
