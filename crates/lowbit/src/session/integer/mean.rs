//! The mean of each channel of codes, in f32.

use crate::error::{Result, invalid};
use crate::op::{Fact, Op, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};
use crate::session::codes::Codes;
use crate::session::images::{fact, nhwc};
use crate::tensor::{DType, Tensor};

/// Channels that are summed together.
const LANES: usize = 32;

/// The mean of each channel of NHWC codes, `[N, 1, 1, C]`, with the sum in i32:
///
/// `y = (sum(x) - count * zero) as f32 * (scale / count as f32)`
#[derive(Clone, Debug)]
pub struct ChannelMeans {
    /// The codes.
    pub codes: Codes,
}

impl Op for ChannelMeans {
    fn name(&self) -> &'static str {
        "ChannelMeans"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        let [n, _, _, c] = &x[0].shape[..] else {
            return Err(invalid!("expected NHWC values, found {}", x[0]));
        };
        let channels = c.known().ok_or_else(|| invalid!("the number of channels is not known"))?;
        fact(DType::F32, nhwc(n, vec![1.into(), 1.into()], channels))
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        eval_by_routine(self, x)
    }
    fn prepare(&self, x: &[Operand<'_>]) -> Result<Prepared> {
        match *x[0].shape {
            [_, h, w, channels] if h * w > 0 => {
                Prepared::routine(Means { codes: self.codes, cells: h * w, channels })
            }
            ref shape => Err(invalid!("cannot average channels without cells: {shape:?}")),
        }
    }
}

/// [`ChannelMeans`] of known size.
#[derive(Debug)]
struct Means {
    codes: Codes,
    cells: usize,
    channels: usize,
}

impl Routine for Means {
    fn run(&self, x: &[View<'_>], y: ViewMut<'_>, _: &mut [u8]) -> Result<()> {
        let (x, y, channels) = (x[0].u8()?, y.f32()?, self.channels.max(1));
        let zero = (self.cells as i32).wrapping_mul(self.codes.zero);
        let scale = self.codes.scale / self.cells as f32;
        for (x, y) in x.chunks_exact(self.cells * channels).zip(y.chunks_exact_mut(channels)) {
            for (i, y) in y.chunks_mut(LANES).enumerate() {
                let mut sums = [0i32; LANES];
                for pixel in x.chunks_exact(channels) {
                    let pixel = &pixel[i * LANES..][..y.len()];
                    match pixel.first_chunk::<LANES>() {
                        Some(pixel) => {
                            (0..LANES).for_each(|c| sums[c] = sums[c].wrapping_add(pixel[c].into()))
                        }
                        None => pixel
                            .iter()
                            .zip(&mut sums)
                            .for_each(|(&x, sum)| *sum = sum.wrapping_add(x.into())),
                    }
                }
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum.wrapping_sub(zero) as f32 * scale);
            }
        }
        Ok(())
    }
    fn algorithm(&self) -> &'static str {
        "direct"
    }
}
