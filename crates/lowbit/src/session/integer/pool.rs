//! Pooling of NHWC codes.

use lowbit_kernels::{Kernels, PADDING, UniformRequant, Window};
use rayon::prelude::*;

use super::{fact, nhwc, window};
use crate::error::{Result, invalid};
use crate::op::{Fact, Op};
use crate::ops::window::Window as Geometry;
use crate::session::codes::Codes;
use crate::tensor::{DType, Tensor, element_count};

/// Codes read that are worth a task of their own.
const TASK: usize = 1 << 18;

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

    /// Computes each output row with `f(window, image, index of the row, row)`.
    fn pool(&self, x: &Tensor, f: impl Fn(&Window, &[u8], usize, &mut [u8]) + Sync) -> Result<Vec<Tensor>> {
        let window = self.resolve(x.shape())?;
        let [oh, ow] = window.output;
        let shape = [x.shape()[0], oh, ow, window.channels];
        let mut out = vec![0u8; element_count(&shape)?];
        let (codes, row) = (x.slice::<u8>()?, (ow * window.channels).max(1));
        let image_len: usize = x.shape()[1..].iter().product();
        let least = (TASK / (row * window.taps()).max(1)).max(1);
        out.par_chunks_mut(row).with_min_len(least).enumerate().for_each(|(i, out)| {
            f(&window, &codes[i / oh * image_len..][..image_len], i % oh, out);
        });
        Ok(vec![Tensor::new(&shape, out)?])
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
        let maximum = |x: &[u8], out: &mut [u8]| Kernels::best().maximum(x, out);
        self.windows.pool(x[0], |window, image, oy, out| {
            let (pitch, channels) = (window.input[1] * window.channels, window.channels);
            // Down the columns first, whole rows at a time.
            let mut greatest = vec![0u8; pitch];
            for y in (0..window.kernel[0]).filter_map(|k| window.position(0, oy, k)) {
                maximum(&image[y * pitch..][..pitch], &mut greatest);
            }
            for (ox, out) in out.chunks_mut(channels.max(1)).enumerate() {
                for x in (0..window.kernel[1]).filter_map(|k| window.position(1, ox, k)) {
                    maximum(&greatest[x * channels..][..channels], out);
                }
            }
        })
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
        self.windows.pool(x[0], |window, image, oy, out| {
            let mut sums = vec![0i32; window.channels];
            let offsets = window.offsets(oy..oy + 1);
            let pixels = out.chunks_mut(window.channels).zip(offsets.chunks(window.taps()));
            for (out, taps) in pixels {
                sums.fill(0);
                let mut inside = 0;
                for &offset in taps.iter().filter(|&&o| o != PADDING) {
                    Kernels::best().accumulate(&image[offset..][..window.channels], &mut sums);
                    inside += 1;
                }
                let count = if self.count_include_pad { taps.len() } else { inside };
                let requant = UniformRequant {
                    bias: -(inside as i32 * self.input.zero),
                    multiplier: self.input.scale / (count as f32 * self.output.scale),
                    zero: self.output.zero,
                    lo: self.lo,
                    hi: self.hi,
                };
                Kernels::best().requantize(&sums, &requant, out);
            }
        })
    }
}
