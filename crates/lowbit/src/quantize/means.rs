//! The mean input of each channel, and the bias that it corrects.

use crate::error::{Result, invalid};
use crate::ops::vectorized::vectorized;
use crate::tensor::Tensor;

/// The mean of each channel of an operator's input over the calibration data.
#[derive(Clone, Debug, PartialEq)]
pub struct InputMeans {
    axis: Option<usize>,
    sums: Vec<f64>,
    count: u64,
    expected: bool,
}

impl InputMeans {
    /// Channels along `axis`, or along the last one.
    pub fn new(axis: Option<usize>) -> InputMeans {
        InputMeans { axis, sums: vec![], count: 0, expected: false }
    }

    /// Means that do not come from data: batches are not looked at.
    pub fn expected(axis: Option<usize>) -> InputMeans {
        InputMeans { expected: true, ..InputMeans::new(axis) }
    }

    /// Whether they do not come from data.
    pub fn is_expected(&self) -> bool {
        self.expected
    }

    /// Sets the mean of each channel.
    pub fn expect(&mut self, means: Vec<f64>) {
        (self.sums, self.count) = (means, 1);
    }

    /// Takes a batch into account.
    ///
    /// # Errors
    /// If the number of channels changes.
    pub fn observe(&mut self, x: &Tensor) -> Result<()> {
        let axis = self.axis.unwrap_or(x.rank().saturating_sub(1));
        let channels = *x.shape().get(axis).ok_or_else(|| invalid!("has no axis {axis}"))?;
        if x.is_empty() || self.expected {
            return Ok(());
        }
        self.sums.resize(channels.max(self.sums.len()), 0.0);
        if self.sums.len() != channels {
            return Err(invalid!("has {channels} channels, and had {}", self.sums.len()));
        }
        let inner: usize = x.shape()[axis + 1..].iter().product();
        if inner == 1 {
            for row in x.slice::<f32>()?.chunks(channels) {
                self.sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        } else {
            for (i, run) in x.slice::<f32>()?.chunks(inner).enumerate() {
                self.sums[i % channels] += vectorized(
                    #[inline(always)]
                    || sum(run),
                );
            }
        }
        self.count += (x.len() / channels) as u64;
        Ok(())
    }

    /// What quantizing a weight takes from the mean output of each channel:
    /// `sum_k (w[c][k] - q[c][k]) mean(x_k)`, taken over all taps and, for
    /// grouped convolutions, the inputs of the channel's group. Adding it to
    /// the bias gives the output its mean back (Nagel et al., "Data-Free
    /// Quantization Through Weight Equalization and Bias Correction", 2019,
    /// equation 19 with observed means; padding is taken for average input).
    ///
    /// Weights are `[outputs][inputs / group][taps...]` for channel axis 0,
    /// `[inputs][outputs]` for axis 1. `None` if nothing was observed, or the
    /// layout is another one.
    pub fn correction(&self, weight: &Tensor, quantized: &Tensor, axis: usize) -> Result<Option<Vec<f32>>> {
        let shape = weight.shape();
        if self.count == 0 || axis > 1 || shape.len() < 2 {
            return Ok(None);
        }
        let (outputs, depth) = (shape[axis], shape[1 - axis]);
        let taps: usize = shape[2..].iter().product();
        let groups = self.sums.len() / depth.max(1);
        if groups * depth != self.sums.len() || groups == 0 || !outputs.is_multiple_of(groups) {
            return Ok(None);
        }
        if axis == 1 && (groups > 1 || taps > 1) {
            return Ok(None);
        }
        let mut lost = vec![0f64; outputs];
        for (i, (w, q)) in weight.slice::<f32>()?.iter().zip(quantized.slice::<f32>()?).enumerate() {
            let (c, k) =
                if axis == 0 { (i / (depth * taps), i / taps % depth) } else { (i % outputs, i / outputs) };
            let channel = c / (outputs / groups) * depth + k;
            lost[c] += f64::from(w - q) * self.sums[channel] / self.count as f64;
        }
        Ok(Some(lost.into_iter().map(|x| x as f32).collect()))
    }
}

/// The sum in f64 of eight interleaved partial sums in f32 per block.
#[inline(always)]
fn sum(run: &[f32]) -> f64 {
    run.chunks(256)
        .map(|block| {
            let (eights, rest) = block.as_chunks::<8>();
            let mut partial = [0f32; 8];
            for x in eights {
                partial.iter_mut().zip(x).for_each(|(p, x)| *p += x);
            }
            partial.iter().chain(rest).map(|&x| f64::from(x)).sum::<f64>()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_correction_is_the_mean_of_what_the_output_lost() {
        // Two groups of one input each; two taps; inputs with means 2 and -1.
        let mut means = InputMeans::new(Some(1));
        means.observe(&Tensor::new(&[2, 2, 2], vec![1f32, 3., -1., -1., 2., 2., 0., -2.]).unwrap()).unwrap();
        let w = Tensor::new(&[2, 1, 2], vec![1f32, 0.5, -1., 0.25]).unwrap();
        let q = Tensor::new(&[2, 1, 2], vec![1f32, 0.0, -0.5, 0.5]).unwrap();
        assert_eq!(means.correction(&w, &q, 0).unwrap(), Some(vec![1.0, 0.75]));
        // A matrix given as [inputs][outputs].
        let mut means = InputMeans::new(None);
        means.observe(&Tensor::new(&[2, 2], vec![1f32, -1., 3., -1.]).unwrap()).unwrap();
        let w = Tensor::new(&[2, 1], vec![1f32, 2.]).unwrap();
        let q = Tensor::new(&[2, 1], vec![0.5f32, 3.]).unwrap();
        assert_eq!(means.correction(&w, &q, 1).unwrap(), Some(vec![2.0]));
    }

    #[test]
    fn nothing_observed_corrects_nothing() {
        let w = Tensor::new(&[1, 1], vec![1f32]).unwrap();
        assert_eq!(InputMeans::new(None).correction(&w, &w, 0).unwrap(), None);
    }
}
