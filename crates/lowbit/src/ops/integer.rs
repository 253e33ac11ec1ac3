//! Products of 8-bit integers in exact 32-bit arithmetic: `ConvInteger` and
//! `MatMulInteger`.

use std::sync::Arc;

use rayon::prelude::*;

use super::broadcast;
use super::conv::{self, Conv};
use super::linear::MatMul;
use super::window::Window;
use crate::error::{Error, Result, invalid};
use crate::op::{Attributes, Fact, Op, ReadOp, arity, optional, optional_fact};
use crate::tensor::{DType, Tensor, element_count};

pub(super) const READERS: &[(&str, ReadOp)] = &[
    ("ConvInteger", |r| {
        let kernel = r.sizes("kernel_shape")?;
        let group = conv::read_group(r.int("group")?)?;
        Ok(Arc::new(ConvInteger(Conv { window: Window::read(r)?, group, kernel })))
    }),
    ("MatMulInteger", |_| Ok(Arc::new(MatMulInteger))),
];

/// ONNX `ConvInteger`: the convolution of `x - x_zero_point` with
/// `w - w_zero_point`, so that padding is `x_zero_point`.
///
/// Inputs: x `[N, C, spatial..]` and w `[M, C / group, kernel..]`, each int8 or
/// uint8; x's zero point, a scalar; w's zero point, a scalar or `[M]`. Output:
/// int32 `[N, M, spatial..]`, modulo 2^32.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvInteger(
    /// The geometry.
    pub Conv,
);

/// ONNX `MatMulInteger`: `(A - a_zero_point) (B - b_zero_point)`.
///
/// Inputs: A `[.., M, K]` and B `[.., K, N]`, each int8 or uint8, as those of
/// MatMul; A's zero point, a scalar, `[M]` or `[.., M, 1]`; B's zero point, a
/// scalar, `[N]` or `[.., 1, N]`. Output: int32 `[.., M, N]`, modulo 2^32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatMulInteger;

/// The operands as f32 facts of the same shapes, for the float operator's
/// inference.
fn as_floats(op: &str, inputs: &[&Fact]) -> Result<[Fact; 2]> {
    arity(inputs, 2, 4)?;
    for f in inputs.iter().filter(|f| !f.is_absent()) {
        if !matches!(f.dtype, DType::I8 | DType::U8) {
            return Err(Error::unsupported(op, format!("element type {}", f.dtype)));
        }
    }
    for i in 0..2 {
        if let Some(z) = optional_fact(inputs, 2 + i).filter(|z| z.dtype != inputs[i].dtype) {
            return Err(invalid!("input {i} is {}, and its zero point {}", inputs[i].dtype, z.dtype));
        }
    }
    Ok([0, 1].map(|i| Fact { dtype: DType::F32, ..inputs[i].clone() }))
}

/// `x - zero`, the zero point broadcast to the shape of x.
fn centred(x: &Tensor, zero: Option<&Tensor>, axis_of_vector: usize) -> Result<Vec<i32>> {
    let mut out: Vec<i32> = x.integers()?.into_iter().map(|x| x as i32).collect();
    let Some(zero) = zero else { return Ok(out) };
    let values = zero.integers()?;
    if let [z] = values[..] {
        out.iter_mut().for_each(|x| *x -= z as i32);
        return Ok(out);
    }
    let mut shape = zero.shape().to_vec();
    if let [n] = shape[..] {
        shape = vec![1; x.rank()];
        if let Some(d) = shape.get_mut(axis_of_vector) {
            *d = n;
        }
    }
    let fits = shape.len() == x.rank() && broadcast::shape(&shape, x.shape()).is_ok_and(|s| s == x.shape());
    if !fits {
        return Err(invalid!("a zero point of shape {:?} for values of shape {:?}", zero.shape(), x.shape()));
    }
    let at = broadcast::offsets(&shape, x.shape());
    out.iter_mut().zip(at).for_each(|(x, at)| *x -= values[at] as i32);
    Ok(out)
}

impl Op for ConvInteger {
    fn name(&self) -> &'static str {
        "ConvInteger"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let [x, w] = as_floats("ConvInteger", inputs)?;
        let y = self.0.infer(&[&x, &w])?.remove(0);
        Ok(vec![Fact { dtype: DType::I32, ..y }])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 2, 4)?;
        let [x, w] = [inputs[0], inputs[1]];
        let g = self.0.geometry(x.shape(), w.shape())?;
        let x_zero = optional(inputs, 2);
        if x_zero.is_some_and(|z| z.len() != 1) {
            return Err(invalid!("the input's zero point is not a scalar"));
        }
        let (xs, ws) = (centred(x, x_zero, 0)?, centred(w, optional(inputs, 3), 0)?);
        let (outputs, taps) = (g.outputs(), g.taps());
        let mut shape = vec![g.batch, w.shape()[0]];
        shape.extend(g.axes[5 - x.rank()..].iter().map(|a| a.output));
        let mut y = vec![0i32; element_count(&shape)?];
        y.par_chunks_exact_mut(outputs.max(1)).enumerate().for_each(|(plane, y)| {
            let (image, m) = (plane / w.shape()[0], plane % w.shape()[0]);
            let group = m / g.out_channels;
            for c in 0..g.in_channels {
                let x = &xs[((image * g.group + group) * g.in_channels + c) * g.inputs()..][..g.inputs()];
                let w = &ws[(m * g.in_channels + c) * taps..][..taps];
                add_plane(x, w, &g, y);
            }
        });
        Ok(vec![Tensor::new(&shape, y)?])
    }

    fn attributes(&self) -> Attributes {
        self.0.attributes()
    }

    fn macs(&self, inputs: &[&Fact], outputs: &[&Fact]) -> u64 {
        self.0.macs(inputs, outputs)
    }
}

/// Adds the convolution of one input channel with its taps to one output channel.
fn add_plane(x: &[i32], w: &[i32], g: &conv::Geometry, y: &mut [i32]) {
    let [depth, height, width] = g.axes;
    for (t, &w) in w.iter().enumerate() {
        let (td, th, tw) =
            (t / (height.kernel * width.kernel), t / width.kernel % height.kernel, t % width.kernel);
        for od in depth.inside(td) {
            let d = od * depth.stride + td * depth.dilation - depth.before;
            for oh in height.inside(th) {
                let h = oh * height.stride + th * height.dilation - height.before;
                let x = &x[(d * height.input + h) * width.input..][..width.input];
                let y = &mut y[(od * height.output + oh) * width.output..][..width.output];
                for ow in width.inside(tw) {
                    let x = x[ow * width.stride + tw * width.dilation - width.before];
                    y[ow] = y[ow].wrapping_add(w * x);
                }
            }
        }
    }
}

impl Op for MatMulInteger {
    fn name(&self) -> &'static str {
        "MatMulInteger"
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let [a, b] = as_floats("MatMulInteger", inputs)?;
        let y = MatMul.infer(&[&a, &b])?.remove(0);
        Ok(vec![Fact { dtype: DType::I32, ..y }])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let facts: Vec<Fact> = inputs.iter().map(|t| Fact::of(t)).collect();
        let y = self.infer(&facts.iter().collect::<Vec<_>>())?.remove(0);
        let shape = y.known_shape().ok_or_else(|| invalid!("the output has no fixed shape"))?;
        let [a, b] = [inputs[0], inputs[1]];
        let rows_axis = a.rank().saturating_sub(2);
        let (xs, ys) =
            (centred(a, optional(inputs, 2), rows_axis)?, centred(b, optional(inputs, 3), b.rank() - 1)?);
        let k = a.shape()[a.rank() - 1];
        let n = if b.rank() == 1 { 1 } else { b.shape()[b.rank() - 1] };
        let m = if a.rank() == 1 { 1 } else { a.shape()[rows_axis] };
        let batch = |s: &[usize]| s[..s.len().saturating_sub(2)].to_vec();
        let (batch_a, batch_b) = (batch(a.shape()), batch(b.shape()));
        let stack = broadcast::shape(&batch_a, &batch_b)?;
        let (at_a, at_b) = (broadcast::offsets(&batch_a, &stack), broadcast::offsets(&batch_b, &stack));
        let mut out = vec![0i32; element_count(&shape)?];
        out.par_chunks_exact_mut(n.max(1)).enumerate().for_each(|(row, out)| {
            let a = &xs[(at_a[row / m] * m + row % m) * k..][..k];
            let b = &ys[at_b[row / m] * k * n..][..k * n];
            for (a, b) in a.iter().zip(b.chunks_exact(n)) {
                out.iter_mut().zip(b).for_each(|(y, b)| *y = y.wrapping_add(a * b));
            }
        });
        Ok(vec![Tensor::new(&shape, out)?])
    }

    fn macs(&self, inputs: &[&Fact], outputs: &[&Fact]) -> u64 {
        MatMul.macs(inputs, outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u8s(shape: &[usize], seed: u32) -> Tensor {
        let mut x = seed.wrapping_mul(0x9e37_79b9) | 1;
        let next = |_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            (x >> 24) as u8
        };
        Tensor::new(shape, (0..shape.iter().product()).map(next).collect()).unwrap()
    }

    /// The same numbers less the zero point, in f32: sums of these sizes are exact.
    fn float(x: &Tensor, zero: impl Fn(usize) -> u8) -> Tensor {
        let values = x.slice::<u8>().unwrap().iter().enumerate();
        let values = values.map(|(i, q)| f32::from(*q) - f32::from(zero(i))).collect();
        Tensor::new(x.shape(), values).unwrap()
    }

    fn as_f32(y: &Tensor) -> Vec<f32> {
        y.slice::<i32>().unwrap().iter().map(|&y| y as f32).collect()
    }

    #[test]
    fn convolutions_equal_those_of_exact_floats() {
        let window = |strides: &[usize], dilations: &[usize], pads: &[(usize, usize)]| Window {
            strides: strides.to_vec(),
            dilations: dilations.to_vec(),
            padding: super::super::window::Padding::Explicit(pads.to_vec()),
        };
        let cases: [(&[usize], &[usize], usize, Window); 4] = [
            (&[2, 3, 7, 6], &[4, 3, 3, 2], 1, window(&[2, 1], &[1, 2], &[(1, 0), (2, 1)])),
            (&[1, 4, 5, 5], &[6, 2, 1, 1], 2, Window::default()),
            (&[2, 2, 9], &[2, 1, 4], 2, window(&[3], &[1], &[(2, 2)])),
            (
                &[1, 2, 4, 3, 5],
                &[3, 2, 2, 2, 3],
                1,
                window(&[1, 2, 1], &[2, 1, 1], &[(0, 1), (1, 0), (1, 1)]),
            ),
        ];
        for (x, w, group, window) in cases {
            let op = Conv { window, group, kernel: None };
            let (x, w) = (u8s(x, 1), u8s(w, 2));
            let (m, per) = (w.shape()[0], w.len() / w.shape()[0]);
            let zeros: Vec<u8> = (0..m).map(|m| (100 + 9 * m) as u8).collect();
            let want = op.eval(&[&float(&x, |_| 130), &float(&w, |i| zeros[i / per])]).unwrap().remove(0);
            let (xz, wz) = (Tensor::scalar(130u8), Tensor::vector(zeros));
            let inputs = [&x, &w, &xz, &wz];
            let y = ConvInteger(op.clone()).eval(&inputs).unwrap().remove(0);
            assert_eq!((y.shape(), as_f32(&y)), (want.shape(), want.to_f32().unwrap()), "{op:?}");
            let facts = inputs.map(Fact::of);
            let fact = ConvInteger(op).infer(&facts.each_ref()).unwrap().remove(0);
            assert_eq!(fact.known_shape().unwrap(), y.shape());
        }
    }

    #[test]
    fn products_equal_those_of_exact_floats() {
        // Shapes of A, B and their zero points.
        let cases: [[&[usize]; 4]; 6] = [
            [&[3, 5], &[5, 4], &[], &[]],
            [&[3, 5], &[5, 4], &[3], &[4]],
            [&[2, 3, 5], &[5, 4], &[2, 3, 1], &[1, 4]],
            [&[2, 1, 3, 5], &[3, 5, 4], &[2, 1, 3, 1], &[3, 1, 4]],
            [&[5], &[5, 4], &[], &[4]],
            [&[3, 5], &[5], &[3], &[]],
        ];
        for shapes in cases {
            let [a, b, za, zb] = [0, 1, 2, 3].map(|i| u8s(shapes[i], i as u32 + 1));
            let zero = |x: &Tensor, z: &Tensor, per_row: bool| -> Tensor {
                let (x, z, n) = (x.clone(), z.slice::<u8>().unwrap().to_vec(), x.shape()[x.rank() - 1]);
                let rows = x.len() / n;
                float(&x, |i| match z.len() {
                    1 => z[0],
                    _ if per_row => z[i / n % rows],
                    // The same columns for every row of one matrix.
                    len => z[(i / (rows * n * n / len)) * n % len + i % n],
                })
            };
            let want = MatMul.eval(&[&zero(&a, &za, true), &zero(&b, &zb, false)]).unwrap().remove(0);
            let inputs = [&a, &b, &za, &zb];
            let y = MatMulInteger.eval(&inputs).unwrap().remove(0);
            assert_eq!((y.shape(), as_f32(&y)), (want.shape(), want.to_f32().unwrap()), "{shapes:?}");
        }
    }

    #[test]
    fn operands_that_do_not_fit_are_errors() {
        let conv = ConvInteger(Conv { window: Window::default(), group: 1, kernel: None });
        let (x, w, other) = (u8s(&[1, 2, 4, 4], 1), u8s(&[3, 2, 3, 3], 2), u8s(&[3, 3, 2, 2], 3));
        let (a, b) = (u8s(&[3, 4], 1), u8s(&[4, 2], 2));
        let floats = Tensor::vector(vec![1f32; 4]);
        let cases: [(&dyn Op, Vec<&Tensor>, &str); 6] = [
            (&conv, vec![&x, &w, &b], "not a scalar"),
            (&conv, vec![&x, &other], "2 channels"),
            (&MatMulInteger, vec![&a, &a], "4 columns and 3 rows"),
            (&MatMulInteger, vec![&a, &b, &b], "a zero point of shape [4, 2] for values of shape [3, 4]"),
            (&MatMulInteger, vec![&a, &floats], "MatMulInteger: element type f32 is not supported"),
            (&MatMulInteger, vec![&a], "inputs"),
        ];
        for (op, inputs, want) in cases {
            let message = op.eval(&inputs).unwrap_err().to_string();
            assert!(message.contains(want), "{message}");
        }
    }
}
