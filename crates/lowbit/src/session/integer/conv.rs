//! Convolution on codes.

use std::sync::Arc;

use lowbit_kernels::{Depthwise, Kernels, PADDING, PackedWeights, Window};

use super::{Epilogue, Rows, fact, nhwc, rows_of_a_task, window};
use crate::error::{Result, invalid};
use crate::op::{Attribute, Attributes, Fact, Op};
use crate::ops::conv::Conv;
use crate::tensor::Tensor;

/// Below this, and for more than one tap, windows are copied: a tap's channels
/// would fill a small part of a vector.
const FEW_CHANNELS: usize = 16;
/// What a multiply-accumulate of a depthwise convolution costs beside one of a
/// matrix product.
const DEPTHWISE_WORK: usize = 8;

/// A convolution of u8 NHWC images with int8 weights, packed at compile time.
///
/// `acc[p][c] = sum_t sum_k (x[p, t][k] - z_x) w[c][t][k]` in i32, then the
/// [`Epilogue`].
#[derive(Clone, Debug)]
pub struct QConv {
    conv: Conv,
    weights: Arc<Weights>,
    input_zero: u8,
    channels: [usize; 2],
    kernel: [usize; 2],
    /// What becomes of the accumulators.
    pub epilogue: Epilogue,
}

#[derive(Debug)]
enum Weights {
    /// One matrix for each group.
    Matrices(Vec<PackedWeights>),
    /// One matrix for whole windows of few channels, which are copied.
    Columns(PackedWeights),
    /// `[tap][channel]`, where each channel has a filter of its own.
    Depthwise(Vec<i8>),
}

impl QConv {
    /// The convolution with weights `[out channels][in channels / group][kh][kw]`.
    ///
    /// `bias` is at scale `scale[c] = s_x s_w[c]`; `zero` is the input's zero point.
    pub fn new(conv: &Conv, weight: &Tensor, zero: i32, bias: &[i32], scale: Vec<f32>) -> Result<QConv> {
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
        let sum =
            |c: usize| by_tap[c * per_channel..][..per_channel].iter().map(|&w| i32::from(w)).sum::<i32>();
        let bias = bias.iter().enumerate().map(|(c, b)| b.wrapping_sub(zero.wrapping_mul(sum(c)))).collect();
        let weights = if groups == outputs && depth == 1 && groups > 1 {
            let transposed = (0..taps * outputs).map(|i| by_tap[i % outputs * taps + i / outputs]).collect();
            Weights::Depthwise(transposed)
        } else if groups == 1 && taps > 1 && depth < FEW_CHANNELS {
            Weights::Columns(PackedWeights::new(&by_tap, outputs, per_channel))
        } else {
            let share = outputs / groups;
            let pack = |g: usize| {
                PackedWeights::with_taps(
                    &by_tap[g * share * per_channel..][..share * per_channel],
                    share,
                    taps,
                    depth,
                )
            };
            Weights::Matrices((0..groups).map(pack).collect())
        };
        Ok(QConv {
            conv: conv.clone(),
            weights: Arc::new(weights),
            input_zero: zero as u8,
            channels: [depth * groups, outputs],
            kernel: [kh, kw],
            epilogue: Epilogue { bias, scale, codes: None },
        })
    }

    /// The same convolution with another epilogue.
    pub fn with(&self, epilogue: Epilogue) -> QConv {
        QConv { epilogue, ..self.clone() }
    }

    /// What a row of `width` pixels costs, in multiply-accumulates of a matrix product.
    fn row_work(&self, width: usize) -> usize {
        let [inputs, outputs] = self.channels;
        let taps = self.kernel[0] * self.kernel[1];
        match *self.weights {
            Weights::Depthwise(_) => DEPTHWISE_WORK * width * outputs * taps,
            _ => width * outputs * taps * inputs / self.conv.group,
        }
    }

    fn window(&self, shape: &[usize]) -> Result<Window> {
        let &[_, h, w, channels] = shape else {
            return Err(invalid!("expected NHWC codes, found {shape:?}"));
        };
        if channels != self.channels[0] {
            return Err(invalid!("expected {} channels, found {channels}", self.channels[0]));
        }
        window(&self.conv.window, &self.kernel, [h, w], channels, false)
    }

    fn image_rows(
        &self,
        window: &Window,
        image: &[u8],
        first: usize,
        rows: Rows,
        matrices: &[PackedWeights],
    ) {
        let kernels = Kernels::best();
        let [inputs, outputs] = self.channels;
        let (pixels, width) = (rows.len() / outputs, window.output[1]);
        let pointwise =
            window.kernel == [1, 1] && window.stride == [1, 1] && window.pad == [0, 0] && matrices.len() == 1;
        if pointwise {
            let a = &image[first * inputs..];
            kernels.gemm(a, inputs, pixels, &matrices[0], self.epilogue.output(rows, 0, outputs, outputs));
            return;
        }
        let offsets = window.offsets(first / width..(first + pixels) / width);
        let share = outputs / matrices.len();
        let depth = inputs / matrices.len();
        let padding = vec![self.input_zero; depth];
        let mut rows = rows;
        for (g, weights) in matrices.iter().enumerate() {
            let out = match &mut rows {
                Rows::U8(x) => Rows::U8(x),
                Rows::F32(x) => Rows::F32(x),
            };
            let output = self.epilogue.output(out, g * share, share, outputs);
            kernels.gemm_gathered(&image[g * depth..], &offsets, &padding, weights, output);
        }
    }
}

impl QConv {
    fn column_rows(&self, window: &Window, image: &[u8], first: usize, rows: Rows, weights: &PackedWeights) {
        let (width, depth, outputs) = (window.output[1], weights.depth(), self.channels[1]);
        let pixels = rows.len() / outputs;
        let mut columns = vec![0; pixels * depth];
        window.im2col(image, self.input_zero, first..first + pixels / width, &mut columns);
        let output = self.epilogue.output(rows, 0, outputs, outputs);
        Kernels::best().gemm(&columns, depth, pixels, weights, output);
    }

    fn depthwise_rows(&self, window: &Window, image: &[u8], first: usize, rows: Rows, weights: &[i8]) {
        let count = rows.len() / (window.output[1] * window.channels);
        match (rows, &self.epilogue.codes) {
            (Rows::U8(out), Some(target)) => {
                let requant = target.requant(&self.epilogue.bias);
                let params = Depthwise { window: *window, weights, x_zero: self.input_zero, requant };
                Kernels::best().depthwise(image, &params, first..first + count, out);
            }
            (Rows::F32(out), _) => {
                let offsets = window.offsets(first..first + count);
                for (taps, out) in offsets.chunks(window.taps()).zip(out.chunks_mut(window.channels)) {
                    for (c, y) in out.iter_mut().enumerate() {
                        let products = taps.iter().enumerate().map(|(t, &offset)| {
                            let x = if offset == PADDING { self.input_zero } else { image[offset + c] };
                            i32::from(x) * i32::from(weights[t * window.channels + c])
                        });
                        *y = (products.sum::<i32>() + self.epilogue.bias[c]) as f32 * self.epilogue.scale[c];
                    }
                }
            }
            (Rows::U8(_), None) => unreachable!("codes are written only where there is a target"),
        }
    }
}

impl Op for QConv {
    fn name(&self) -> &'static str {
        "QConv"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        let [n, h, w, _] = &x[0].shape[..] else {
            return Err(invalid!("expected NHWC codes, found {}", x[0]));
        };
        let spatial = self.conv.window.dims(&self.kernel, &[h.clone(), w.clone()], false)?;
        fact(self.epilogue.dtype(), nhwc(n, spatial, self.channels[1]))
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let shape = x[0].shape();
        let window = self.window(shape)?;
        let codes = x[0].slice::<u8>()?;
        let [oh, ow] = window.output;
        let outputs = self.channels[1];
        let image_len = shape[1..].iter().product::<usize>();
        let out_shape = [shape[0], oh, ow, outputs];
        // Tasks are whole output rows of one image.
        let rows_per_task = rows_of_a_task(self.row_work(ow), oh);
        let y = self.epilogue.matrix(&out_shape, ow * outputs, rows_per_task, |row, rows| {
            let (image, row) = (row / oh, row % oh);
            let image = &codes[image * image_len..][..image_len];
            match &*self.weights {
                Weights::Matrices(matrices) => self.image_rows(&window, image, row * ow, rows, matrices),
                Weights::Columns(weights) => self.column_rows(&window, image, row, rows, weights),
                Weights::Depthwise(weights) => self.depthwise_rows(&window, image, row, rows, weights),
            }
        })?;
        Ok(vec![y])
    }
    fn attributes(&self) -> Attributes {
        vec![("group", Attribute::Int(self.conv.group as i64))]
    }
    fn macs(&self, _: &[&Fact], y: &[&Fact]) -> u64 {
        let [inputs, _] = self.channels;
        y[0].elements() * (self.kernel[0] * self.kernel[1] * inputs / self.conv.group) as u64
    }
}
