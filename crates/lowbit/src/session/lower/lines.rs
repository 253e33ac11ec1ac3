//! Convolutions of lines `[N, C, W]` as those of images one pixel high.

use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Var};
use crate::ops::conv::Conv;
use crate::ops::quantize::DequantizeLinear;
use crate::ops::shape::{Squeeze, Unsqueeze};
use crate::ops::window::{Padding, Window};
use crate::tensor::Tensor;

/// The axis of the height of 1.
const HEIGHT: i64 = 2;

/// The graph with every convolution of lines with constant weights, dequantized
/// or not, as one of images.
pub fn as_images(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        let Some(conv) = op.is::<Conv>().filter(|_| b.fact(inputs[0]).rank() == 3) else {
            return b.copy(node, inputs);
        };
        let Some(w) = high(b, inputs[1])? else { return b.copy(node, inputs) };
        let mut inputs = inputs.to_vec();
        (inputs[0], inputs[1]) = (image(b, inputs[0])?, w);
        let y = b.apply(&node.name, Arc::new(of_images(conv)), &inputs)?;
        line(b, y).map(|y| vec![y])
    })
}

/// `x` as images one pixel high.
pub fn image(b: &mut Builder, x: Var) -> Result<Var> {
    let (name, axes) = (format!("{}_image", b.name(x)), b.constant("axis", Tensor::vector(vec![HEIGHT])));
    b.apply(&name, Arc::new(Unsqueeze), &[x, axes])
}

/// The images `y`, one pixel high, as lines.
pub fn line(b: &mut Builder, y: Var) -> Result<Var> {
    let (name, axes) = (format!("{}_line", b.name(y)), b.constant("axis", Tensor::vector(vec![HEIGHT])));
    b.apply(&name, Arc::new(Squeeze), &[y, axes])
}

/// The convolution of images that `conv` is.
pub fn of_images(conv: &Conv) -> Conv {
    let with_height = |steps: &[usize]| match steps {
        [] => vec![],
        steps => [&[1], steps].concat(),
    };
    let padding = match &conv.window.padding {
        Padding::Explicit(pads) if !pads.is_empty() => Padding::Explicit([&[(0, 0)], &pads[..]].concat()),
        other => other.clone(),
    };
    let strides = with_height(&conv.window.strides);
    let window = Window { strides, dilations: with_height(&conv.window.dilations), padding };
    let kernel = conv.kernel.as_ref().map(|kernel| with_height(kernel));
    Conv { window, kernel, ..conv.clone() }
}

/// Filters of lines as those of images.
pub fn filters(w: &Tensor) -> Result<Tensor> {
    let [outputs, inputs, taps] = *w.shape() else { return Ok(w.clone()) };
    w.reshaped(&[outputs, inputs, 1, taps])
}

/// The constant, or dequantized constant, `w` as filters of images.
fn high(b: &mut Builder, w: Var) -> Result<Option<Var>> {
    let name = format!("{}_image", b.name(w));
    if let Some(t) = b.so_far().constant(w) {
        let t = filters(t)?;
        return Ok(Some(b.constant(&name, t)));
    }
    let Some((dq, operands)) = b.so_far().made_by::<DequantizeLinear>(w) else { return Ok(None) };
    let (dq, mut operands) = (dq.clone(), operands.to_vec());
    let of_channels = dq.block == 0 && (dq.axis == 0 || b.fact(operands[1]).elements() == 1);
    let Some(t) = b.so_far().constant(operands[0]).filter(|_| of_channels) else { return Ok(None) };
    let t = filters(t)?;
    operands[0] = b.constant(&format!("{name}_q"), t);
    b.apply(&name, Arc::new(dq), &operands).map(Some)
}
