//! Channels-last (NHWC) images: shapes, windows, borders.

use lowbit_kernels::{Bordered, Window};

use crate::error::Result;
use crate::op::{Dim, Fact};
use crate::ops::window::{Axis, Window as Geometry};
use crate::tensor::DType;

/// An NHWC shape from batch, spatial sizes and channels.
pub fn nhwc(batch: &Dim, spatial: Vec<Dim>, channels: usize) -> Vec<Dim> {
    std::iter::once(batch.clone()).chain(spatial).chain([Dim::Known(channels)]).collect()
}

/// The kernels' form of a window over an image of this size.
///
/// # Errors
/// If the window does not fit.
pub fn window(
    window: &Geometry,
    kernel: &[usize; 2],
    input: [usize; 2],
    channels: usize,
    ceil: bool,
) -> Result<Window> {
    let axes = window.resolve(kernel, &input, ceil)?;
    let pair = |f: fn(&Axis) -> usize| [f(&axes[0]), f(&axes[1])];
    Ok(Window {
        input,
        channels,
        kernel: *kernel,
        stride: pair(|a| a.stride),
        dilation: pair(|a| a.dilation),
        pad: pair(|a| a.before),
        output: pair(|a| a.output),
    })
}

/// The fact of an operator's output.
pub fn fact(dtype: DType, shape: Vec<Dim>) -> Result<Vec<Fact>> {
    Ok(vec![Fact { dtype, shape, sizes: None }])
}

/// Whether a window reads outside the image, on any side.
pub fn is_padded(window: &Window) -> bool {
    (0..2).any(|axis| {
        let last = window.output[axis].saturating_sub(1) * window.stride[axis];
        let span = (window.kernel[axis].max(1) - 1) * window.dilation[axis] + 1;
        window.pad[axis] > 0 || last + span > window.input[axis]
    })
}

/// The border that makes all windows lie inside, `columns` pixels wide.
pub fn bordered(window: &Window, planar: bool, columns: usize) -> Bordered {
    let needed = |axis: usize, span: usize| {
        let read = window.output[axis].saturating_sub(1) * window.stride[axis] + span;
        read.max(window.pad[axis] + window.input[axis])
    };
    let rows = (window.kernel[0].max(1) - 1) * window.dilation[0] + 1;
    Bordered {
        planar,
        input: window.input,
        channels: window.channels,
        pad: window.pad,
        size: [needed(0, rows), needed(1, columns)],
    }
}
