//! int8 filters, and the products of windows with them.

use std::sync::Arc;

use lowbit_kernels::{Bordered, Kernels, MOST_TAPS, PackedWeights, Rows, Window, Windows};

use crate::error::{Result, invalid};
use crate::ops::conv::Conv;
use crate::session::images::{self, ImageShape, bordered, is_padded};
use crate::session::integer::product::{End, Out, Product};
use crate::tensor::Tensor;

/// int8 filters, packed at compile time, and the images that they are for.
#[derive(Clone, Debug)]
pub struct Filters {
    /// Geometry and channels.
    pub shape: ImageShape,
    /// The filters.
    pub weights: Arc<Weights>,
}

/// The weights of a convolution.
#[derive(Debug)]
pub enum Weights {
    /// One matrix for each group. The taps of a matrix are the kernel's rows, all
    /// columns and channels of each, filled up with zeros to whole words, where
    /// these lie together; else the kernel's positions.
    Matrices {
        /// The matrices.
        matrices: Vec<PackedWeights>,
        /// Whether taps are rows.
        by_rows: bool,
    },
    /// `[tap][channel]`, where each channel has a filter of its own.
    Depthwise(Vec<i8>),
}

impl Filters {
    /// Those with weights `[out channels][in channels / group][kh][kw]`, and the sum
    /// of each output channel's.
    ///
    /// # Errors
    /// If the weights are no int8 images.
    pub fn new(conv: &Conv, weight: &Tensor) -> Result<(Filters, Vec<i32>)> {
        let &[outputs, depth, kh, kw] = weight.shape() else {
            return Err(invalid!("a weight of shape {:?} for an image", weight.shape()));
        };
        let groups = conv.group;
        let codes = weight.slice::<i8>()?;
        let taps = kh * kw;
        // [out][k][tap] to [out][tap][k].
        let by_tap: Vec<i8> = (0..codes.len())
            .map(|i| {
                let (c, t, k) = (i / (taps * depth), i / depth % taps, i % depth);
                codes[(c * depth + k) * taps + t]
            })
            .collect();
        let per_channel = taps * depth;
        let sum = |c: usize| by_tap[c * per_channel..][..per_channel].iter().map(|&w| i32::from(w)).sum();
        let sums = (0..outputs).map(sum).collect();
        let adjacent = conv.window.dilations.get(1).is_none_or(|&d| d == 1);
        let weights = if groups == outputs && depth == 1 && groups > 1 && taps <= MOST_TAPS {
            let transposed = (0..taps * outputs).map(|i| by_tap[i % outputs * taps + i / outputs]).collect();
            Weights::Depthwise(transposed)
        } else {
            let by_rows = groups == 1 && adjacent;
            let (taps, depth) = if by_rows { (kh, kw * depth) } else { (taps, depth) };
            let filled = depth.next_multiple_of(4);
            let mut runs = vec![0; outputs * taps * filled];
            for (to, from) in runs.chunks_exact_mut(filled.max(1)).zip(by_tap.chunks_exact(depth.max(1))) {
                to[..depth].copy_from_slice(from);
            }
            let (share, of_group) = (outputs / groups, outputs / groups * taps * filled);
            let group = |g: usize| &runs[g * of_group..][..of_group];
            let matrices = (0..groups).map(|g| PackedWeights::with_taps(group(g), share, taps, filled));
            Weights::Matrices { matrices: matrices.collect(), by_rows }
        };
        let shape = ImageShape {
            conv: conv.clone(),
            channels: [depth * groups, outputs],
            kernel: [kh, kw],
            planar: false,
        };
        Ok((Filters { shape, weights: Arc::new(weights) }, sums))
    }

    /// The same filters for NCHW images, where that is as fast.
    pub fn of_planes(&self) -> Option<Filters> {
        let shape = self.shape.of_planes().filter(|_| !self.is_depthwise())?;
        Some(Filters { shape, weights: self.weights.clone() })
    }

    /// Whether each channel has a filter of its own.
    pub fn is_depthwise(&self) -> bool {
        matches!(*self.weights, Weights::Depthwise(_))
    }
}

/// Where the left matrix of a convolution's product lies.
#[derive(Debug)]
pub enum Lies {
    /// The pixels are its rows.
    Pointwise,
    /// Its rows are windows, read where they lie, in the image or in a copy of it
    /// with a border.
    Gathered {
        /// The border.
        border: Option<Bordered>,
        /// The windows.
        windows: Windows,
    },
}

/// Products of `batch` images with [`Filters`] that are matrices.
#[derive(Debug)]
pub struct WindowProduct {
    filters: Filters,
    batch: usize,
    window: Window,
    lies: Lies,
}

impl WindowProduct {
    /// Those over `window`, that of the filters' shape.
    ///
    /// # Errors
    /// If the images are too large, or the filters depthwise.
    pub fn new(filters: &Filters, batch: usize, window: Window) -> Result<WindowProduct> {
        let (shape, filters) = (&filters.shape, filters.clone());
        let Weights::Matrices { matrices, by_rows } = &*filters.weights else {
            return Err(invalid!("depthwise filters are not products"));
        };
        let plain = (window.kernel, window.stride) == ([1, 1], [1, 1]) && !is_padded(&window);
        let filled = matrices.first().map_or(0, PackedWeights::depth);
        let channels = shape.channels[0];
        let lies = if plain && matrices.len() == 1 && filled == channels {
            Lies::Pointwise
        } else {
            // Pixels that a window spans, with those that its last run reads beyond its own.
            let share = channels / matrices.len();
            let reach = |bytes: usize| bytes.div_ceil(channels.max(1));
            let (run, columns) = match by_rows {
                true => (shape.kernel[1] * channels, reach(filled)),
                false => {
                    let last = (shape.kernel[1].max(1) - 1) * window.dilation[1];
                    (share, last + reach(channels - share + filled))
                }
            };
            let inside = !shape.planar && !is_padded(&window) && filled == run;
            let border = (!inside).then(|| bordered(&window, shape.planar, columns));
            let size = border.map_or(window.input, |b| b.size);
            let kernel = if *by_rows { [shape.kernel[0], 1] } else { shape.kernel };
            let inside = Window { input: size, kernel, pad: [0, 0], ..window };
            let windows = Windows::new(&inside, batch)
                .ok_or_else(|| invalid!("images of {:?} pixels are too large", window.input))?;
            Lies::Gathered { border, windows }
        };
        Ok(WindowProduct { filters, batch, window, lies })
    }

    /// Writes the products of the images `codes`, whose border is `zero`; `end(first,
    /// weights)` says what becomes of the columns of a group's matrix, from output
    /// channel `first` on.
    ///
    /// # Errors
    /// If the filters are depthwise.
    pub fn run<'a, E: End<'a>>(
        &'a self,
        codes: &'a [u8],
        zero: u8,
        mut out: Out<'a>,
        scratch: &'a mut [u8],
        end: impl Fn(usize, &'a PackedWeights) -> E,
    ) -> Result<()> {
        let Weights::Matrices { matrices, .. } = &*self.filters.weights else {
            return Err(invalid!("depthwise filters are not products"));
        };
        let inputs = self.filters.shape.channels[0];
        let (a, windows) = match &self.lies {
            Lies::Gathered { border: Some(border), windows } => {
                (self.bordered(codes, border, zero, scratch), Some(windows))
            }
            Lies::Gathered { border: None, windows } => (codes, Some(windows)),
            Lies::Pointwise => (codes, None),
        };
        let (share, pixels) = (inputs / matrices.len(), self.pixels());
        for (g, weights) in matrices.iter().enumerate() {
            let (of_group, others) = out.split_columns(weights.columns());
            out = others;
            let rows = match windows {
                Some(windows) => Rows::gathered(&a[g * share..], windows, weights.depth()),
                None => Rows::strided(a, inputs, pixels, inputs),
            };
            let (panels, end) = (0..weights.panels(), end(g * weights.columns(), weights));
            Product { rows, weights: weights.view(), panels, end, out: of_group }.run();
        }
        Ok(())
    }

    /// The images with a border, in `scratch`.
    fn bordered<'a>(&self, x: &[u8], border: &Bordered, zero: u8, scratch: &'a mut [u8]) -> &'a [u8] {
        let image = self.window.input[0] * self.window.input[1] * self.filters.shape.channels[0];
        let copies = &mut scratch[..self.scratch()];
        images::each_bordered(copies, border, |i, rows, copy| {
            Kernels::best().border(&x[i * image..][..image], border, zero, rows, copy);
        });
        copies
    }

    /// Pixels of the result.
    pub fn pixels(&self) -> usize {
        self.batch * self.window.output[0] * self.window.output[1]
    }

    /// Bytes of the copy with a border.
    pub fn scratch(&self) -> usize {
        match &self.lies {
            Lies::Gathered { border: Some(border), .. } => self.batch * border.len(),
            _ => 0,
        }
    }

    /// The algorithm in a few words.
    pub fn algorithm(&self) -> &'static str {
        match self.lies {
            Lies::Pointwise => "gemm",
            Lies::Gathered { border: None, .. } => "indirect gemm",
            Lies::Gathered { border: Some(_), .. } => "bordered gemm",
        }
    }
}
