//! Pooling of NHWC codes.

use lowbit_kernels::{Average, Kernels, Taps, Window};

use super::{fact, nhwc, window};
use crate::error::{Result, invalid};
use crate::op::{Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::ops::window::Window as Geometry;
use crate::parallel;
use crate::session::codes::Codes;
use crate::tensor::{DType, Tensor};

/// Codes read that are worth a task of their own.
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
        let [n, h, w, c] = &x.shape[..] else { return Err(invalid!("expected NHWC codes, found {x}")) };
        let channels = c.known().ok_or_else(|| invalid!("the number of channels is not known"))?;
        let spatial = match self {
            Windows::Global => vec![1.into(), 1.into()],
            Windows::Sliding { geometry, kernel, ceil } => {
                geometry.dims(kernel, &[h.clone(), w.clone()], *ceil)?
            }
        };
        fact(DType::U8, nhwc(n, spatial, channels))
    }

    fn resolve(&self, shape: &[usize]) -> Result<Window> {
        let &[_, h, w, channels] = shape else {
            return Err(invalid!("expected NHWC codes, found {shape:?}"));
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

/// The greatest code of each window; padding does not count.
#[derive(Clone, Debug)]
pub struct QMaxPool {
    /// The windows.
    pub windows: Windows,
}

impl Op for QMaxPool {
    fn name(&self) -> &'static str {
        "QMaxPool"
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
}

impl Routine for Pooling {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        let Window { input: [height, width], channels, .. } = self.window;
        let (x, image) = (x[0].u8()?, height * width * channels);
        // Tasks are whole output rows of one image.
        let [oh, ow] = self.window.output;
        let rows = parallel::rows_of_a_task(TASK, ow * self.window.taps() * channels, oh);
        parallel::chunks(y.u8()?, rows * ow * channels, |task, out| {
            let (i, first) = (task * rows / oh, task * rows % oh * ow);
            let image = &x[i * image..][..image];
            let pixels = first..first + rows * ow;
            match &self.kind {
                Kind::Greatest => Kernels::best().max_pool(image, &self.taps, channels, pixels, out),
                Kind::Mean(p) => Kernels::best().average_pool(image, &self.taps, channels, p, pixels, out),
            }
        });
        Ok(())
    }
    fn algorithm(&self) -> &'static str {
        "direct"
    }
}
