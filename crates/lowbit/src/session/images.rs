//! Channels-last (NHWC) images: shapes, windows, borders.

use std::ops::Range;

use lowbit_kernels::{Bordered, Window};

use crate::error::{Result, invalid};
use crate::op::{Dim, Fact};
use crate::ops::conv::Conv;
use crate::ops::window::{Axis, Window as Geometry};
use crate::parallel;
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

/// Bytes of a bordered image that are worth a task of their own.
const BORDER_TASK: usize = 1 << 15;

/// Below this many channels, NCHW images are as good as NHWC.
const FEW_CHANNELS: usize = 16;

/// What a convolution of images is, but for its weights.
#[derive(Clone, Debug)]
pub struct ImageShape {
    /// Strides, dilations, padding and groups.
    pub conv: Conv,
    /// Input and output channels.
    pub channels: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Whether the input is NCHW; for few channels only.
    pub planar: bool,
}

impl ImageShape {
    /// The same convolution of NCHW images, where that is as fast.
    pub fn of_planes(&self) -> Option<ImageShape> {
        let few = self.channels[0] < FEW_CHANNELS && self.kernel != [1, 1];
        few.then(|| ImageShape { planar: true, ..self.clone() })
    }

    /// The kernels' form of the window over images of this shape.
    ///
    /// # Errors
    /// If these are no images of as many channels, or the window does not fit.
    pub fn window(&self, shape: &[usize]) -> Result<Window> {
        let (channels, size) = match *shape {
            [_, channels, h, w] if self.planar => (channels, [h, w]),
            [_, h, w, channels] => (channels, [h, w]),
            _ => return Err(invalid!("expected a batch of images, found {shape:?}")),
        };
        if channels != self.channels[0] {
            return Err(invalid!("expected {} channels, found {channels}", self.channels[0]));
        }
        window(&self.conv.window, &self.kernel, size, channels, false)
    }

    /// The fact of the result, of this type.
    ///
    /// # Errors
    /// If `x` is no batch of images, or the window does not fit.
    pub fn infer(&self, x: &Fact, dtype: DType) -> Result<Vec<Fact>> {
        let (n, size) = match &x.shape[..] {
            [n, _, h, w] if self.planar => (n, [h.clone(), w.clone()]),
            [n, h, w, _] => (n, [h.clone(), w.clone()]),
            _ => return Err(invalid!("expected a batch of images, found {x}")),
        };
        let spatial = self.conv.window.dims(&self.kernel, &size, false)?;
        fact(dtype, nhwc(n, spatial, self.channels[1]))
    }

    /// Multiply-accumulate operations that make `y`.
    pub fn macs(&self, y: &Fact) -> u64 {
        let [inputs, _] = self.channels;
        y.elements() * (self.kernel[0] * self.kernel[1] * inputs / self.conv.group) as u64
    }
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

/// Calls `f(image, rows, their elements)` for tasks of some rows of one bordered image, of
/// those that `copies` holds.
pub fn each_bordered<T: Send>(
    copies: &mut [T],
    border: &Bordered,
    f: impl Fn(usize, Range<usize>, &mut [T]) + Sync,
) {
    let (height, row) = (border.size[0], border.size[1] * border.channels);
    let rows = parallel::rows_of_a_task(BORDER_TASK, row * size_of::<T>(), height);
    parallel::chunks(copies, rows * row, |task, copy| {
        let (image, first) = (task * rows / height.max(1), task * rows % height.max(1));
        f(image, first..first + rows, copy);
    });
}
