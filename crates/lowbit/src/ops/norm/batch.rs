//! Batch normalization: each channel by moments that are given, or by its own.

use std::sync::Arc;

use rayon::prelude::*;

use super::sums::sums;
use super::{TASK, check, check_channels, check_vector};
use crate::error::{Error, Result, invalid};
use crate::op::{Attribute, Attributes, Fact, Op, Reading, Reverse, arity};
use crate::ops::float;
use crate::ops::vectorized::vectorized;
use crate::tensor::Tensor;
use crate::tensor::buffers::buffer;

pub(super) fn read(r: &mut Reading) -> Result<Arc<dyn Op>> {
    r.only("spatial", &Attribute::Int(1))?;
    let momentum = r.float("momentum", 0.9)?;
    let training = r.flag("training_mode", false)?.then_some(momentum);
    if training.is_none() && r.outputs() > 1 {
        return Err(Error::unsupported("BatchNormalization", "more than one output without training_mode"));
    }
    Ok(Arc::new(BatchNormalization { epsilon: r.float("epsilon", 1e-5)?, training }))
}

/// ONNX `BatchNormalization`: `y = (x - mean) / sqrt(var + epsilon) * gamma + beta`
/// for each channel. Operands: `x [N, C, ..]`, gamma, beta, mean and var, each `[C]`.
///
/// In training the moments are those of the channel in x, `m` and `v` (divided by
/// the number of its cells), and the outputs are y, `mean * momentum + m * (1 - momentum)`
/// and `var * momentum + v * (1 - momentum)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormalization {
    /// Added to the variance.
    pub epsilon: f32,
    /// In training, the momentum: the share of the moments given that stays in
    /// those put out.
    pub training: Option<f32>,
}

impl BatchNormalization {
    /// The normalization by given moments as `y = x * scale + shift`, computed in
    /// f64: `scale = gamma / sqrt(var + epsilon)`, `shift = beta - mean * scale`.
    ///
    /// # Errors
    /// If the lengths differ.
    pub fn affine(
        &self,
        gamma: &[f32],
        beta: &[f32],
        mean: &[f32],
        var: &[f32],
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let n = gamma.len();
        if [beta.len(), mean.len(), var.len()] != [n; 3] {
            return Err(invalid!(
                "gamma, beta, mean and var have {n}, {}, {} and {} elements; they must be equal",
                beta.len(),
                mean.len(),
                var.len()
            ));
        }
        let channel = |i: usize| {
            let scale = f64::from(gamma[i]) / (f64::from(var[i]) + f64::from(self.epsilon)).sqrt();
            (scale as f32, (f64::from(beta[i]) - f64::from(mean[i]) * scale) as f32)
        };
        Ok((0..n).map(channel).unzip())
    }

    /// `1 / sqrt(var + epsilon)`.
    fn inverse(&self, var: f64) -> f64 {
        1.0 / (var + f64::from(self.epsilon)).sqrt()
    }
}

impl Op for BatchNormalization {
    fn name(&self) -> &'static str {
        "BatchNormalization"
    }

    fn opset(&self) -> i64 {
        if self.training.is_some() { 14 } else { 13 }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        arity(inputs, 5, 5)?;
        float::common("BatchNormalization", &inputs[..1])?;
        let channels = check_channels(inputs[0])?;
        for (name, p) in ["scale", "B", "mean", "var"].into_iter().zip(&inputs[1..]) {
            float::common("BatchNormalization", &[p])?;
            check_vector(name, p, channels)?;
        }
        let of = |i: usize| inputs[i].with_shape(inputs[i].shape.clone());
        Ok(if self.training.is_some() { vec![of(0), of(3), of(4)] } else { vec![of(0)] })
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        check(self, inputs)?;
        let t = inputs[0];
        let x = float::read(t)?;
        let channels = Channels::new(t, &x);
        let mut y = buffer(x.len());
        let [gamma, beta, mean, var] = [1, 2, 3, 4].map(|i| float::read(inputs[i]));
        let (gamma, beta, mean, var) = (gamma?, beta?, mean?, var?);
        let Some(momentum) = self.training.map(f64::from) else {
            let (scale, shift) = self.affine(&gamma, &beta, &mean, &var)?;
            channels.each(&mut y, |c, y| channels.map(c, y, |x| x * scale[c] + shift[c]));
            return Ok(vec![float::write(t.dtype(), t.shape(), y)?]);
        };
        if channels.count() == 0 {
            return Err(invalid!(
                "channels without cells have no moments: the input has shape {:?}",
                t.shape()
            ));
        }
        let moments = channels.each(&mut y, |c, y| {
            let [m, v] = channels.moments(c);
            let scale = f64::from(gamma[c]) * self.inverse(v);
            let (center, factor) = (m as f32, scale as f32);
            let shift = (f64::from(beta[c]) - (m - f64::from(center)) * scale) as f32;
            channels.map(c, y, |x| (x - center) * factor + shift);
            [m, v]
        });
        let kept = |i: usize, old: &[f32], of: usize| {
            let new = old.iter().zip(&moments);
            let new = new.map(|(&old, m)| (f64::from(old) * momentum + m[of] * (1.0 - momentum)) as f32);
            float::write(inputs[i].dtype(), inputs[i].shape(), new.collect())
        };
        Ok(vec![float::write(t.dtype(), t.shape(), y)?, kept(3, &mean, 0)?, kept(4, &var, 1)?])
    }

    fn vjp(&self, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
        vjp(self, at)
    }

    fn attributes(&self) -> Attributes {
        let mut a = vec![("epsilon", Attribute::Float(self.epsilon))];
        if let Some(momentum) = self.training {
            a.extend([("momentum", Attribute::Float(momentum)), ("training_mode", Attribute::Int(1))]);
        }
        a
    }
}

/// With `g = dL / dy`, `n` the cells of a channel, `d = x - mean` and
/// `r = 1 / sqrt(var + epsilon)`:
///
/// `dbeta = sum g`, `dgamma = r * sum g d`, and by given moments
/// `dx = gamma r g`, `dmean = -gamma r * dbeta`, `dvar = -gamma r^3 / 2 * sum g d`;
/// in training, `dx = gamma r (g - dbeta / n - r d dgamma / n)`, and the moments
/// put out give `(1 - momentum) / n` of their gradient, that of the variance times
/// `2 d`, to x, and `momentum` of it to the moments given.
fn vjp(op: &BatchNormalization, at: &Reverse) -> Result<Vec<Option<Tensor>>> {
    let t = at.inputs[0];
    let [gamma, mean, var]: [&[f32]; 3] =
        [at.inputs[1].slice()?, at.inputs[3].slice()?, at.inputs[4].slice()?];
    let zero;
    let g = match &at.gradients[0] {
        Some(g) => g,
        None => {
            zero = Tensor::full(t.shape(), 0f32)?;
            &zero
        }
    };
    let (x, g) = (Channels::new(t, t.slice()?), Channels::new(t, g.slice()?));
    let of_output = |i: usize| -> Result<Vec<f64>> {
        let g = at.gradients.get(i).and_then(Option::as_ref);
        let g = g.map(|g| g.slice::<f32>()).transpose()?;
        Ok(g.map_or_else(|| vec![0.0; gamma.len()], |g| g.iter().map(|&g| f64::from(g)).collect()))
    };
    let (by_mean, by_var) = (of_output(1)?, of_output(2)?);
    let n = x.count() as f64;
    let mut dx = buffer(if at.wants(0) { t.len() } else { 0 });
    let made = x.each(&mut dx, |c, dx| {
        let [m, v] = match op.training {
            Some(_) => x.moments(c),
            None => [mean[c], var[c]].map(f64::from),
        };
        let (r, gamma) = (op.inverse(v), f64::from(gamma[c]));
        let center = m as f32;
        let [sum, along] = x.sums(c, &g, |x, g| [g, g * (x - center)]);
        let (mut dmean, mut dvar) = (-gamma * r * sum, -gamma * r.powi(3) / 2.0 * along);
        let (mut slope, mut constant) = (0.0, 0.0);
        if let Some(momentum) = op.training.map(f64::from) {
            let own = (1.0 - momentum) / n;
            slope = -gamma * r.powi(3) * along / n + 2.0 * own * by_var[c];
            constant = -gamma * r * sum / n + own * by_mean[c];
            (dmean, dvar) = (momentum * by_mean[c], momentum * by_var[c]);
        }
        let [scale, slope, constant] = [gamma * r, slope, constant].map(|f| f as f32);
        for ((x, g), dx) in x.planes(c).zip(g.planes(c)).zip(dx) {
            vectorized(
                #[inline(always)]
                || {
                    let each = dx.iter_mut().zip(x).zip(g);
                    each.for_each(|((dx, x), g)| *dx = scale * g + (slope * (x - center) + constant));
                },
            );
        }
        [r * along, sum, dmean, dvar].map(|g| g as f32)
    });
    let mut dx = Some(dx);
    at.each(|i| match i {
        0 => Tensor::new(t.shape(), dx.take().unwrap_or_default()),
        _ => Ok(Tensor::vector(made.iter().map(|m| m[i - 1]).collect())),
    })
}

/// `x [N, C, ..]` by channels.
struct Channels<'a> {
    x: &'a [f32],
    images: usize,
    channels: usize,
    cells: usize,
}

impl<'a> Channels<'a> {
    /// The channels of `x`, which has the shape of `t`.
    fn new(t: &Tensor, x: &'a [f32]) -> Channels<'a> {
        let [images, channels] = [t.shape()[0], t.shape()[1]];
        Channels { x, images, channels, cells: t.shape()[2..].iter().product() }
    }

    /// Cells of a channel, of all images.
    fn count(&self) -> usize {
        self.images * self.cells
    }

    /// Channel `c` of each image.
    fn planes(&self, c: usize) -> impl Iterator<Item = &'a [f32]> + Clone {
        let (x, channels, cells) = (self.x, self.channels, self.cells);
        (0..self.images).map(move |n| &x[(n * channels + c) * cells..][..cells])
    }

    /// `f(c, y)` for each channel, `y` being its planes in `out`; none if that is
    /// empty.
    fn each<T: Send>(&self, out: &mut [f32], f: impl Fn(usize, Vec<&mut [f32]>) -> T + Sync) -> Vec<T> {
        let mut planes: Vec<Vec<&mut [f32]>> = (0..self.channels).map(|_| vec![]).collect();
        if self.channels > 0 {
            let chunks = out.chunks_exact_mut(self.cells.max(1)).enumerate();
            chunks.for_each(|(i, y)| planes[i % self.channels].push(y));
        }
        let least = (TASK / self.count().max(1)).max(1);
        planes.into_par_iter().with_min_len(least).enumerate().map(|(c, y)| f(c, y)).collect()
    }

    /// `y = f(x)` in channel `c`.
    fn map(&self, c: usize, y: Vec<&mut [f32]>, f: impl Fn(f32) -> f32) {
        for (x, y) in self.planes(c).zip(y) {
            vectorized(
                #[inline(always)]
                || y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x)),
            );
        }
    }

    /// The mean and the variance of channel `c`, divided by its cells.
    fn moments(&self, c: usize) -> [f64; 2] {
        let n = self.count() as f64;
        let mean = self.sums(c, self, |x, _| [x])[0] / n;
        let center = mean as f32;
        let [rest, squares] = self.sums(c, self, |x, _| [x - center, (x - center) * (x - center)]);
        [f64::from(center) + rest / n, squares / n - (rest / n) * (rest / n)]
    }

    /// The sums of `f(x, g)` over the cells of channel `c`.
    fn sums<const S: usize>(
        &self,
        c: usize,
        g: &Channels,
        f: impl Fn(f32, f32) -> [f32; S] + Copy,
    ) -> [f64; S] {
        sums(self.planes(c).zip(g.planes(c)), f)
    }
}
