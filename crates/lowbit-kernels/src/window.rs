//! Where a sliding window reads an NHWC image.

use std::ops::Range;

/// The offset that stands for a pixel outside the image.
pub const PADDING: usize = usize::MAX;

/// The geometry of a convolution or pooling window over one NHWC image.
///
/// Output pixel `(oy, ox)` and kernel position (tap) `(ky, kx)` read the input
/// pixel `(oy * stride[0] + ky * dilation[0] - pad[0],
/// ox * stride[1] + kx * dilation[1] - pad[1])`, which is padding where it
/// lies outside the image. Pairs are (height, width).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Input height and width.
    pub input: [usize; 2],
    /// Channels, the fastest axis of the image.
    pub channels: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Input pixels from one output pixel to the next.
    pub stride: [usize; 2],
    /// Input pixels from one tap to the next.
    pub dilation: [usize; 2],
    /// Padding above and to the left.
    pub pad: [usize; 2],
    /// Output height and width; padding below and to the right follows from it.
    pub output: [usize; 2],
}

impl Window {
    /// Kernel positions: kernel height x kernel width.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// For each output pixel of the output rows `rows` and each tap, in
    /// row-major order `[oy][ox][ky][kx]`, the offset of the input pixel's first
    /// channel in the image, or [`PADDING`].
    pub fn offsets(&self, rows: Range<usize>) -> Vec<usize> {
        let mut offsets = Vec::with_capacity(rows.len() * self.output[1] * self.taps());
        for oy in rows {
            for ox in 0..self.output[1] {
                for ky in 0..self.kernel[0] {
                    for kx in 0..self.kernel[1] {
                        offsets.push(self.offset(oy, ox, ky, kx).unwrap_or(PADDING));
                    }
                }
            }
        }
        offsets
    }

    /// Copies each window of the output rows `rows` into one row of `out`,
    /// `[oy][ox]` by `[ky][kx][channel]`, with `zero` as padding: the left
    /// matrix of [`Kernels::gemm`] for kernels of few channels, where gathering
    /// pixel by pixel would be slow.
    ///
    /// [`Kernels::gemm`]: crate::Kernels::gemm
    ///
    /// # Panics
    ///
    /// `x` is not one image, or `out` is not exactly that matrix.
    pub fn im2col(&self, x: &[u8], zero: u8, rows: Range<usize>, out: &mut [u8]) {
        self.check_input(x.len());
        let row = self.taps() * self.channels;
        assert_eq!(out.len(), rows.len() * self.output[1] * row, "length of the im2col matrix");
        if row == 0 {
            return;
        }
        let pixels = rows.flat_map(|oy| (0..self.output[1]).map(move |ox| (oy, ox)));
        for ((oy, ox), out) in pixels.zip(out.chunks_exact_mut(row)) {
            for (ky, out) in out.chunks_exact_mut(self.kernel[1] * self.channels).enumerate() {
                let first = self.offset(oy, ox, ky, 0);
                let last = self.offset(oy, ox, ky, self.kernel[1] - 1);
                if let (1, Some(first), Some(_)) = (self.dilation[1], first, last) {
                    copy(&x[first..][..out.len()], out);
                    continue;
                }
                for (kx, out) in out.chunks_exact_mut(self.channels).enumerate() {
                    match self.offset(oy, ox, ky, kx) {
                        Some(offset) => out.copy_from_slice(&x[offset..][..self.channels]),
                        None => out.fill(zero),
                    }
                }
            }
        }
    }

    /// The offset of the input pixel that one tap of one output pixel reads.
    #[inline(always)]
    pub(crate) fn offset(&self, oy: usize, ox: usize, ky: usize, kx: usize) -> Option<usize> {
        let y = self.position(0, oy, ky)?;
        let x = self.position(1, ox, kx)?;
        Some((y * self.input[1] + x) * self.channels)
    }

    /// The output columns none of whose taps reads padding to the left or right.
    pub(crate) fn inside_columns(&self) -> Range<usize> {
        let first = self.pad[1].div_ceil(self.stride[1]).min(self.output[1]);
        let reach = (self.kernel[1].max(1) - 1) * self.dilation[1];
        let end = match (self.input[1] + self.pad[1]).checked_sub(reach + 1) {
            Some(last) => (last / self.stride[1] + 1).clamp(first, self.output[1]),
            None => first,
        };
        first..end
    }

    /// The input row (axis 0) or column (axis 1) that tap `k` of output `o`
    /// reads, if it lies inside the image.
    #[inline(always)]
    pub fn position(&self, axis: usize, o: usize, k: usize) -> Option<usize> {
        let at = (o * self.stride[axis] + k * self.dilation[axis]).checked_sub(self.pad[axis])?;
        (at < self.input[axis]).then_some(at)
    }

    #[inline(always)]
    pub(crate) fn check_input(&self, len: usize) {
        let [height, width] = self.input;
        let expected = height.checked_mul(width).and_then(|pixels| pixels.checked_mul(self.channels));
        assert_eq!(Some(len), expected, "image is not {height} x {width} x {}", self.channels);
    }
}

/// `to = from`, which have one length: short ones by two copies of fixed size,
/// which may overlap.
#[inline(always)]
fn copy(from: &[u8], to: &mut [u8]) {
    #[inline(always)]
    fn ends<const N: usize>(from: &[u8], to: &mut [u8]) {
        let last = to.len() - N;
        to[..N].copy_from_slice(&from[..N]);
        to[last..][..N].copy_from_slice(&from[last..][..N]);
    }
    match to.len() {
        8..=16 => ends::<8>(from, to),
        17..=32 => ends::<16>(from, to),
        _ => to.copy_from_slice(from),
    }
}
