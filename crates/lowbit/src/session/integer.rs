//! Integer operators: u8 codes in, u8 codes (or f32 values) out. Images are
//! channels-last (NHWC).

pub mod boundary;
pub mod conv;
pub mod elementwise;
pub mod linear;
pub mod mean;
pub mod pool;
pub mod product;

use lowbit_kernels::Window;

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
