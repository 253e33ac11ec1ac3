//! Pooling of NHWC images, of codes or of f32 values.

use std::ops::Range;

use lowbit_kernels::{Average, Kernels, Taps, Window};

use super::codes::Codes;
use super::images::{fact, nhwc, window};
use crate::error::{Result, invalid};
use crate::op::{Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::ops::window::Window as Geometry;
use crate::parallel;
use crate::tensor::Tensor;

/// Values read that are worth a task of their own.
const TASK: usize = 1 << 17;

/// The windows of a pooling operator.
#[derive(Clone, Debug)]
pub enum Windows {
    /// One window over the whole image.
    Global,
    /// A sliding window.
    Sliding {
        /// Strides, dilations and padding.
        geometry: Geometry,
        /// Height and width.
        kernel: [usize; 2],
        /// Whether a last window may reach beyond the padding.
        ceil: bool,
    },
}

impl Windows {
    fn fact(&self, x: &Fact) -> Result<Vec<Fact>> {
        let [n, h, w, c] = &x.shape[..] else { return Err(invalid!("expected NHWC images, found {x}")) };
        let channels = c.known().ok_or_else(|| invalid!("the number of channels is not known"))?;
        let spatial = match self {
            Windows::Global => vec![1.into(), 1.into()],
            Windows::Sliding { geometry, kernel, ceil } => {
                geometry.dims(kernel, &[h.clone(), w.clone()], *ceil)?
            }
        };
        fact(x.dtype, nhwc(n, spatial, channels))
    }

    fn resolve(&self, shape: &[usize]) -> Result<Window> {
        let &[_, h, w, channels] = shape else {
            return Err(invalid!("expected NHWC images, found {shape:?}"));
        };
        match self {
            Windows::Global => window(&Geometry::default(), &[h, w], [h, w], channels, false),
            Windows::Sliding { geometry, kernel, ceil } => window(geometry, kernel, [h, w], channels, *ceil),
        }
    }

    /// A pool at the size of `x`.
    fn prepared(&self, kind: Kind, x: &Operand<'_>) -> Result<Prepared> {
        let window = self.resolve(x.shape)?;
        let taps = Taps::new(&window)
            .ok_or_else(|| invalid!("an image of {:?} pixels is too large", window.input))?;
        Prepared::routine(Pooling { kind, window, taps })
    }
}

/// The greatest code or value of each window; padding does not count.
#[derive(Clone, Debug)]
pub struct ImageMaxPool {
    /// The windows.
    pub windows: Windows,
}

impl Op for ImageMaxPool {
    fn name(&self) -> &'static str {
        "ImageMaxPool"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        self.windows.fact(x[0])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        self.windows.prepared(Kind::Greatest, &x[0])
    }
}

/// The mean of each window: sums in i32, requantized with
/// `s_x / (count s_y)` (docs/quantization.md, equation 7).
#[derive(Clone, Debug)]
pub struct QAveragePool {
    /// The windows.
    pub windows: Windows,
    /// Whether padding counts, as 0.
    pub count_include_pad: bool,
    /// Codes of the input.
    pub input: Codes,
    /// Codes of the output.
    pub output: Codes,
    /// Least code.
    pub lo: u8,
    /// Greatest code.
    pub hi: u8,
}

impl Op for QAveragePool {
    fn name(&self) -> &'static str {
        "QAveragePool"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        self.windows.fact(x[0])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        let average = Average {
            x_zero: self.input.zero as u8,
            x_scale: self.input.scale,
            scale: self.output.scale,
            zero: self.output.zero,
            lo: self.lo,
            hi: self.hi,
            padding_counts: self.count_include_pad,
        };
        self.windows.prepared(Kind::Mean(average), &x[0])
    }
}

/// The mean of each window of f32 values.
#[derive(Clone, Debug)]
pub struct ImageAveragePool {
    /// The windows.
    pub windows: Windows,
    /// Whether padding counts, as 0.
    pub count_include_pad: bool,
}

impl Op for ImageAveragePool {
    fn name(&self) -> &'static str {
        "ImageAveragePool"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        self.windows.fact(x[0])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        self.windows.prepared(Kind::PlainMean { padding_counts: self.count_include_pad }, &x[0])
    }
}

/// A pool of known size.
#[derive(Debug)]
struct Pooling {
    kind: Kind,
    window: Window,
    taps: Taps,
}

#[derive(Debug)]
enum Kind {
    Greatest,
    Mean(Average),
    PlainMean { padding_counts: bool },
}

impl Pooling {
    /// Calls `f(image, output pixels, their values)` for tasks of whole output
    /// rows of one image.
    fn each_rows<T: Sync, U: Send>(
        &self,
        x: &[T],
        y: &mut [U],
        f: impl Fn(&[T], Range<usize>, &mut [U]) + Sync,
    ) {
        let Window { input: [height, width], output: [oh, ow], channels, .. } = self.window;
        let image = height * width * channels;
        let rows = parallel::rows_of_a_task(TASK, ow * self.window.taps() * channels, oh);
        parallel::chunks(y, rows * ow * channels, |task, y| {
            let (i, first) = (task * rows / oh, task * rows % oh * ow);
            f(&x[i * image..][..image], first..first + rows * ow, y);
        });
    }
}

impl Routine for Pooling {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        let (taps, channels, kernels) = (&self.taps, self.window.channels, Kernels::best());
        match (&self.kind, x[0]) {
            (Kind::Greatest, View::F32(x)) => {
                self.each_rows(x, y.f32()?, |x, pixels, y| {
                    kernels.max_pool_f32(x, taps, channels, pixels, y)
                });
            }
            (Kind::Greatest, x) => {
                self.each_rows(x.u8()?, y.u8()?, |x, pixels, y| {
                    kernels.max_pool(x, taps, channels, pixels, y)
                });
            }
            (Kind::Mean(p), x) => {
                let pool =
                    |x: &[u8], pixels, y: &mut [u8]| kernels.average_pool(x, taps, channels, p, pixels, y);
                self.each_rows(x.u8()?, y.u8()?, pool);
            }
            (Kind::PlainMean { padding_counts }, x) => {
                let pool = |x: &[f32], pixels, y: &mut [f32]| {
                    kernels.average_pool_f32(x, taps, channels, *padding_counts, pixels, y);
                };
                self.each_rows(x.f32()?, y.f32()?, pool);
            }
        }
        Ok(())
    }
    fn algorithm(&self) -> &'static str {
        "direct"
    }
}
