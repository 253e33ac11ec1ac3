//! Pooling over one to three axes.

use super::module::Module;
use super::scope::Scope;
use super::sizes::Each;
use crate::error::{Error, Result};
use crate::graph::Var;
use crate::op::{Dim, Op};
use crate::ops::pool::{AveragePool, GlobalAveragePool, GlobalMaxPool, MaxPool as MaxPoolOp, Pool};
use crate::ops::window::{Padding, Window};

macro_rules! over_axes {
    ($($name:ident: $one:ident, $two:ident, $three:ident;)*) => {$(
        #[doc = concat!("[`", stringify!($name), "`] over lines, `[N, C, L]`.")]
        pub type $one = $name<1>;
        #[doc = concat!("[`", stringify!($name), "`] over images, `[N, C, H, W]`.")]
        pub type $two = $name<2>;
        #[doc = concat!("[`", stringify!($name), "`] over volumes, `[N, C, D, H, W]`.")]
        pub type $three = $name<3>;
    )*};
}
over_axes! {
    MaxPool: MaxPool1d, MaxPool2d, MaxPool3d;
    AvgPool: AvgPool1d, AvgPool2d, AvgPool3d;
    AdaptiveAvgPool: AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d;
    AdaptiveMaxPool: AdaptiveMaxPool1d, AdaptiveMaxPool2d, AdaptiveMaxPool3d;
}

/// The greatest value of each window, `x[stride o + dilation tap - padding]`.
#[derive(Clone, Debug)]
pub struct MaxPool<const D: usize> {
    kernel: [usize; D],
    stride: [usize; D],
    padding: [usize; D],
    dilation: [usize; D],
    ceil: bool,
}

impl<const D: usize> MaxPool<D> {
    /// Windows beside each other.
    pub fn new(kernel: impl Each<D>) -> MaxPool<D> {
        let kernel = kernel.each();
        MaxPool { kernel, stride: kernel, padding: [0; D], dilation: [1; D], ceil: false }
    }

    /// Steps between windows.
    pub fn stride(self, stride: impl Each<D>) -> MaxPool<D> {
        MaxPool { stride: stride.each(), ..self }
    }

    /// Cells before and after each axis that are less than any value.
    pub fn padding(self, padding: impl Each<D>) -> MaxPool<D> {
        MaxPool { padding: padding.each(), ..self }
    }

    /// Steps between the taps of a window.
    pub fn dilation(self, dilation: impl Each<D>) -> MaxPool<D> {
        MaxPool { dilation: dilation.each(), ..self }
    }

    /// Whether a last window that is cut off counts.
    pub fn ceil_mode(self, ceil: bool) -> MaxPool<D> {
        MaxPool { ceil, ..self }
    }
}

fn pool<const D: usize>([kernel, stride, padding, dilation]: [[usize; D]; 4], ceil: bool) -> Pool {
    let padding = Padding::Explicit(padding.iter().map(|&p| (p, p)).collect());
    let window = Window { strides: stride.to_vec(), dilations: dilation.to_vec(), padding };
    Pool { kernel: kernel.to_vec(), window, ceil }
}

impl<const D: usize> Module for MaxPool<D> {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let sizes = [self.kernel, self.stride, self.padding, self.dilation];
        g.layer(MaxPoolOp { pool: pool(sizes, self.ceil) }, &[x])
    }
}

/// The mean of each window, `x[stride o + tap - padding]`.
#[derive(Clone, Debug)]
pub struct AvgPool<const D: usize> {
    kernel: [usize; D],
    stride: [usize; D],
    padding: [usize; D],
    ceil: bool,
    include_padding: bool,
}

impl<const D: usize> AvgPool<D> {
    /// Windows beside each other.
    pub fn new(kernel: impl Each<D>) -> AvgPool<D> {
        let kernel = kernel.each();
        AvgPool { kernel, stride: kernel, padding: [0; D], ceil: false, include_padding: true }
    }

    /// Steps between windows.
    pub fn stride(self, stride: impl Each<D>) -> AvgPool<D> {
        AvgPool { stride: stride.each(), ..self }
    }

    /// Zeros before and after each axis.
    pub fn padding(self, padding: impl Each<D>) -> AvgPool<D> {
        AvgPool { padding: padding.each(), ..self }
    }

    /// Whether a last window that is cut off counts.
    pub fn ceil_mode(self, ceil: bool) -> AvgPool<D> {
        AvgPool { ceil, ..self }
    }

    /// Whether the zeros count.
    pub fn count_include_pad(self, include_padding: bool) -> AvgPool<D> {
        AvgPool { include_padding, ..self }
    }
}

impl<const D: usize> Module for AvgPool<D> {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let sizes = [self.kernel, self.stride, self.padding, [1; D]];
        let op = AveragePool { pool: pool(sizes, self.ceil), include_padding: self.include_padding };
        g.layer(op, &[x])
    }
}

/// Means, as many along each axis as are asked for: one, or as many as divide the
/// size.
#[derive(Clone, Debug)]
pub struct AdaptiveAvgPool<const D: usize> {
    output: [usize; D],
}

/// Greatest values, as many along each axis as are asked for: one, or as many as
/// divide the size.
#[derive(Clone, Debug)]
pub struct AdaptiveMaxPool<const D: usize> {
    output: [usize; D],
}

macro_rules! adaptive {
    ($name:ident, $global:expr, |$pool:ident| $windows:expr) => {
        impl<const D: usize> $name<D> {
            /// To these sizes.
            pub fn new(output: impl Each<D>) -> $name<D> {
                $name { output: output.each() }
            }
        }

        impl<const D: usize> Module for $name<D> {
            fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
                adaptive(g, x, self.output, $global, |$pool| $windows)
            }
        }
    };
}
adaptive!(AdaptiveAvgPool, GlobalAveragePool, |pool| AveragePool { pool, include_padding: false });
adaptive!(AdaptiveMaxPool, GlobalMaxPool, |pool| MaxPoolOp { pool });

fn adaptive<const D: usize, W: Op>(
    g: &mut Scope<'_>,
    x: Var,
    output: [usize; D],
    global: impl Op,
    windows: impl FnOnce(Pool) -> W,
) -> Result<Var> {
    if output == [1; D] && g.fact(x).rank() == D + 2 {
        return g.layer(global, &[x]);
    }
    let fact = g.fact(x);
    let sizes: Option<Vec<usize>> = fact.shape.iter().skip(2).map(Dim::known).collect();
    let sizes: Option<[usize; D]> = sizes.and_then(|sizes| sizes.try_into().ok());
    let divides = |(n, out): (&usize, &usize)| *out > 0 && n.is_multiple_of(*out) && *n > 0;
    let Some(sizes) = sizes.filter(|sizes| sizes.iter().zip(&output).all(divides)) else {
        return Err(Error::unsupported(
            "adaptive pooling",
            format!("output {output:?} of {fact}, whose sizes it does not divide,"),
        )
        .at(g.place()));
    };
    let kernel: [usize; D] = std::array::from_fn(|i| sizes[i] / output[i]);
    let op = windows(pool([kernel, kernel, [0; D], [1; D]], false));
    g.layer(op, &[x])
}
