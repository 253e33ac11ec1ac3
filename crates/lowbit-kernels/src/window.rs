//! Where a sliding window reads an NHWC image.

use std::ops::Range;

/// The offset that stands for a pixel outside the image.
pub(crate) const OUTSIDE: u32 = u32::MAX;

/// For each output pixel of a [`Window`] and each tap, where the input pixel's
/// first channel lies in the image, or that it lies outside.
#[derive(Clone, Debug)]
pub struct Taps {
    offsets: Vec<u32>,
    count: usize,
}

impl Taps {
    /// The offsets of all output pixels, `[oy][ox][ky][kx]`, unless the image
    /// is too large for 32 bits.
    pub fn new(window: &Window) -> Option<Taps> {
        let mut offsets = Vec::with_capacity(window.output[0] * window.output[1] * window.taps());
        for (oy, ox) in pairs(window.output) {
            for (ky, kx) in pairs(window.kernel) {
                let offset = window.offset(oy, ox, ky, kx);
                offsets.push(match offset {
                    Some(offset) => u32::try_from(offset).ok().filter(|&o| o != OUTSIDE)?,
                    None => OUTSIDE,
                });
            }
        }
        Some(Taps { offsets, count: window.taps() })
    }

    /// Output pixels.
    pub fn pixels(&self) -> usize {
        self.offsets.len().checked_div(self.count).unwrap_or(0)
    }

    /// Taps of each output pixel.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The offsets of the taps of output pixel `i` that lie in the image.
    ///
    /// # Panics
    ///
    /// There is no such pixel.
    pub fn inside(&self, i: usize) -> impl Iterator<Item = usize> {
        let taps = &self.offsets[i * self.count..][..self.count];
        taps.iter().filter(|&&o| o != OUTSIDE).map(|&o| o as usize)
    }

    pub(crate) fn offsets(&self) -> &[u32] {
        &self.offsets
    }
}

fn pairs([height, width]: [usize; 2]) -> impl Iterator<Item = (usize, usize)> {
    (0..height).flat_map(move |y| (0..width).map(move |x| (y, x)))
}

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

    /// The kernel's rows (axis 0) or columns (axis 1) by which output `o` reads
    /// inside the image.
    #[inline(always)]
    pub(crate) fn taps_inside(&self, axis: usize, o: usize) -> Range<usize> {
        let at = o * self.stride[axis];
        let taps = |reach: usize| reach.div_ceil(self.dilation[axis]).min(self.kernel[axis]);
        let end = taps((self.input[axis] + self.pad[axis]).saturating_sub(at));
        taps(self.pad[axis].saturating_sub(at)).min(end)..end
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

/// An image copied into one with a border, so that every window of a
/// convolution lies inside and each kernel row is one run of elements: what makes
/// kernels of few channels fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bordered {
    /// Whether the source is NCHW (planes) rather than NHWC.
    pub planar: bool,
    /// Height and width of the source.
    pub input: [usize; 2],
    /// Channels.
    pub channels: usize,
    /// Border above and to the left.
    pub pad: [usize; 2],
    /// Height and width of the bordered image.
    pub size: [usize; 2],
}

impl Bordered {
    /// Elements of the bordered image.
    pub fn len(&self) -> usize {
        self.size[0] * self.size[1] * self.channels
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[inline(always)]
pub(crate) fn border(x: &[u8], params: &Bordered, zero: u8, rows: Range<usize>, out: &mut [u8]) {
    bordered(x, params, zero, rows, out);
}

#[inline(always)]
pub(crate) fn border_f32(x: &[f32], params: &Bordered, rows: Range<usize>, out: &mut [f32]) {
    bordered(x, params, 0.0, rows, out);
}

#[inline(always)]
fn bordered<T: Copy>(x: &[T], params: &Bordered, zero: T, rows: Range<usize>, out: &mut [T]) {
    let Bordered { planar, input: [height, width], channels, pad, size } = *params;
    assert_eq!(x.len(), height * width * channels, "length of the image");
    assert!(rows.start <= rows.end && rows.end <= size[0], "rows {rows:?} of the bordered image");
    assert_eq!(out.len(), rows.len() * size[1] * channels, "length of the bordered rows");
    assert!(pad[0] + height <= size[0] && pad[1] + width <= size[1], "the image and its border");
    if out.is_empty() {
        return;
    }
    for (y, out) in rows.zip(out.chunks_exact_mut(size[1] * channels)) {
        let Some(y) = y.checked_sub(pad[0]).filter(|&y| y < height) else {
            out.fill(zero);
            continue;
        };
        let (before, rest) = out.split_at_mut(pad[1] * channels);
        let (row, after) = rest.split_at_mut(width * channels);
        before.fill(zero);
        after.fill(zero);
        if planar {
            interleave(|c| &x[(c * height + y) * width..][..width], channels, row);
        } else {
            row.copy_from_slice(&x[y * width * channels..][..width * channels]);
        }
    }
}

/// One row of pixels from a row of each channel.
#[inline(always)]
fn interleave<'a, T: Copy + 'a>(plane: impl Fn(usize) -> &'a [T], channels: usize, row: &mut [T]) {
    match channels {
        1 => row.copy_from_slice(plane(0)),
        3 => {
            let pixels = row.as_chunks_mut::<3>().0.iter_mut();
            let planes = plane(0).iter().zip(plane(1)).zip(plane(2));
            pixels.zip(planes).for_each(|(pixel, ((&a, &b), &c))| *pixel = [a, b, c]);
        }
        _ => {
            for c in 0..channels {
                row[c..].iter_mut().step_by(channels).zip(plane(c)).for_each(|(y, x)| *y = *x);
            }
        }
    }
}
