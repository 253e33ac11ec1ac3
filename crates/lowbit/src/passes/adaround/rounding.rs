//! The rounding of one weight while it is learned.

use rayon::prelude::*;

use crate::error::{Result, invalid};
use crate::qparams::QParams;
use crate::scheme::Format;
use crate::tensor::Tensor;
use crate::train::Optimizer;

/// The sigmoid is stretched to these ends, so that 0 and 1 are reached.
const GAMMA: f32 = -0.1;
const ZETA: f32 = 1.1;

/// Elements of a task.
const TASK: usize = 1 << 12;

/// A weight whose elements lie between two neighbouring codes (docs/quantization.md,
/// equation 33):
///
/// `W = s (r + h(V))`, `h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)`
///
/// with `r` the code below `w / s`, less the zero point, zeta 1.1 and gamma -0.1. A
/// weight beyond the codes lies between the last two.
pub struct Rounding {
    shape: Vec<usize>,
    below: Vec<f32>,
    step: Vec<f32>,
    v: Tensor,
    slots: Vec<Tensor>,
}

/// What keeps `h` from staying between 0 and 1:
/// `factor sum_i (1 - |2 h_i - 1|^beta)`.
#[derive(Clone, Copy, Debug)]
pub struct Regularizer {
    pub factor: f32,
    pub beta: f32,
}

/// Whether codes of a format have neighbours one step apart, which f32 tells apart.
pub fn has_steps(format: Format) -> bool {
    matches!(format, Format::Int { bits, .. } if bits <= 16)
}

impl Rounding {
    /// That of `weight` with `W = weight`, where that lies within the codes.
    ///
    /// # Errors
    /// If the parameters do not fit the weight, or are not steps between integers.
    pub fn new(weight: &Tensor, params: &QParams, optimizer: &Optimizer) -> Result<Rounding> {
        if !has_steps(params.scheme.format) {
            return Err(invalid!("{}: only integers of at most 16 bits are rounded", params.scheme));
        }
        let groups = params.scheme.granularity.groups(weight.shape())?;
        if groups.count() != params.scale.len() {
            let (n, have) = (groups.count(), params.scale.len());
            return Err(invalid!("{:?} has {n} groups, the parameters {have}", weight.shape()));
        }
        let (qmin, qmax) = params.scheme.bounds();
        let w = weight.to_f32()?;
        let (mut below, mut step) = (vec![0f32; w.len()], vec![0f32; w.len()]);
        let mut v = vec![0f32; w.len()];
        for (run, g) in groups.runs() {
            let (s, z) = (params.scale[g], params.zero_point[g]);
            let (lo, last) = ((qmin - z) as f32, (qmax - z - 1) as f32);
            for i in run {
                let code = w[i] / s;
                below[i] = code.floor().clamp(lo, last);
                step[i] = s;
                v[i] = inverse((code - below[i]).clamp(0.0, 1.0));
            }
        }
        let empty = Tensor::full(weight.shape(), 0f32)?;
        let slots = vec![empty; optimizer.slots()];
        Ok(Rounding {
            shape: weight.shape().to_vec(),
            below,
            step,
            v: Tensor::new(weight.shape(), v)?,
            slots,
        })
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.below.len()
    }

    /// `s (r + h(V))`.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn soft(&self) -> Result<Tensor> {
        self.weight(h)
    }

    /// The values of the codes chosen: `s (r + 1)` where `h(V)` is at least 1/2, else `s r`.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn hard(&self) -> Result<Tensor> {
        self.weight(|v| if v >= 0.0 { 1.0 } else { 0.0 })
    }

    fn weight(&self, h: impl Fn(f32) -> f32 + Sync) -> Result<Tensor> {
        let mut values = vec![0f32; self.below.len()];
        let parts = values.par_chunks_mut(TASK).zip(self.v.slice::<f32>()?.par_chunks(TASK));
        let parts = parts.zip(self.below.par_chunks(TASK).zip(self.step.par_chunks(TASK)));
        parts.for_each(|((values, v), (below, step))| {
            for (i, value) in values.iter_mut().enumerate() {
                *value = (below[i] + h(v[i])) * step[i];
            }
        });
        Tensor::new(&self.shape, values)
    }

    /// Moves `V` in step `t`, from 1, along the gradient of `L` and of the regularizer;
    /// `by_weight` is `dL / dW`.
    ///
    /// # Errors
    /// If the gradient is not one of the weight.
    pub fn descend(
        &mut self,
        by_weight: &Tensor,
        regularizer: Option<Regularizer>,
        optimizer: &Optimizer,
        rate: f32,
        t: u64,
    ) -> Result<()> {
        let gradient = self.gradient(by_weight, regularizer)?;
        optimizer.step(&mut self.v, gradient, &mut self.slots, rate, t)
    }

    /// `dL / dV = (dL / dW s + dR / dh) h'(V)`.
    fn gradient(&self, by_weight: &Tensor, regularizer: Option<Regularizer>) -> Result<Tensor> {
        let mut by_v = by_weight.to_f32()?;
        if by_v.len() != self.step.len() {
            return Err(invalid!(
                "a gradient of shape {:?} is not one of {:?}",
                by_weight.shape(),
                self.shape
            ));
        }
        let v = self.v.slice::<f32>()?;
        let parts = by_v.par_chunks_mut(TASK).zip(v.par_chunks(TASK).zip(self.step.par_chunks(TASK)));
        parts.for_each(|(by_v, (v, step))| {
            for (i, by) in by_v.iter_mut().enumerate() {
                let of_h = regularizer.map_or(0.0, |r| r.slope(h(v[i])));
                *by = (*by * step[i] + of_h) * slope(v[i]);
            }
        });
        Tensor::new(&self.shape, by_v)
    }
}

impl Regularizer {
    /// Its derivative by one `h`.
    fn slope(self, h: f32) -> f32 {
        let x = 2.0 * h - 1.0;
        -2.0 * self.factor * self.beta * libm::powf(x.abs(), self.beta - 1.0) * x.signum()
    }
}

fn sigmoid(v: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-v))
}

fn h(v: f32) -> f32 {
    (sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)
}

/// `h'(v)`, 0 where it is clipped.
fn slope(v: f32) -> f32 {
    let p = sigmoid(v);
    let within = (0.0..=1.0).contains(&(p * (ZETA - GAMMA) + GAMMA));
    if within { p * (1.0 - p) * (ZETA - GAMMA) } else { 0.0 }
}

/// The `v` for which `h(v)` is what is given, from 0 to 1.
fn inverse(h: f32) -> f32 {
    let p = (h - GAMMA) / (ZETA - GAMMA);
    libm::logf(p / (1.0 - p))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qparams::Range;
    use crate::random::values;
    use crate::scheme::{Granularity, Mapping, Scheme};

    /// Twelve weights from -1 to 1, which a symmetric scheme clips at 0.8.
    fn case(scheme: Scheme) -> (Tensor, QParams) {
        let weight = values(3, &[3, 4]);
        let ranges =
            vec![Range::new(-0.7, 0.8).unwrap(); scheme.granularity.groups(&[3, 4]).unwrap().count()];
        (weight, QParams::from_ranges(scheme, &ranges).unwrap())
    }

    fn schemes() -> [Scheme; 4] {
        let int4 = Scheme::new(Format::INT4, Mapping::Symmetric);
        [
            int4,
            Scheme::new(Format::UINT4, Mapping::Affine).with(Granularity::Axis(0)),
            int4.with(Granularity::Block { axis: 1, size: 2 }),
            Scheme { codes: Some((-1, 1)), ..int4.with(Granularity::Axis(1)) },
        ]
    }

    #[test]
    fn it_starts_at_the_weight_and_ends_on_the_nearest_codes() {
        for scheme in schemes() {
            let (weight, params) = case(scheme);
            let rounding = Rounding::new(&weight, &params, &Optimizer::adam()).unwrap();
            let (lo, hi) = scheme.bounds();
            let groups = scheme.granularity.groups(&[3, 4]).unwrap();
            let (w, soft) = (weight.to_f32().unwrap(), rounding.soft().unwrap().to_f32().unwrap());
            for (i, (w, soft)) in w.iter().zip(soft).enumerate() {
                let (s, z) = (params.scale[groups.of(i)], params.zero_point[groups.of(i)]);
                let within = w.clamp((lo - z) as f32 * s, (hi - z) as f32 * s);
                assert!((soft - within).abs() < 1e-6, "{scheme}: {soft} for {w}");
            }
            let hard = rounding.hard().unwrap();
            assert_eq!(hard, params.fake_quantize(&weight).unwrap(), "{scheme}");
            assert_eq!(hard, params.fake_quantize(&hard).unwrap(), "{scheme}");
        }
    }

    #[test]
    fn the_gradient_is_that_of_differences() {
        let (weight, params) = case(schemes()[1]);
        let mut rounding = Rounding::new(&weight, &params, &Optimizer::adam()).unwrap();
        // The first two are clipped; the others lie between the kinks at -2.4 and 2.4.
        let mut v: Vec<f32> = (0..12).map(|i| 0.4 * i as f32 - 2.3).collect();
        (v[0], v[1]) = (3.5, -4.0);
        rounding.v = Tensor::new(&[3, 4], v.clone()).unwrap();
        let by_weight = values(4, &[3, 4]);
        for regularizer in [None, Some(Regularizer { factor: 0.3, beta: 4.0 })] {
            let loss = |v: &[f32]| -> f64 {
                let mut moved = Rounding::new(&weight, &params, &Optimizer::adam()).unwrap();
                moved.v = Tensor::new(&[3, 4], v.to_vec()).unwrap();
                let (w, g) = (moved.soft().unwrap().to_f32().unwrap(), by_weight.to_f32().unwrap());
                let linear: f64 = w.iter().zip(g).map(|(w, g)| f64::from(*w) * f64::from(g)).sum();
                let of = |r: Regularizer| -> f64 {
                    v.iter()
                        .map(|v| f64::from(r.factor * (1.0 - (2.0 * h(*v) - 1.0).abs().powf(r.beta))))
                        .sum()
                };
                linear + regularizer.map_or(0.0, of)
            };
            let found = rounding.gradient(&by_weight, regularizer).unwrap().to_f32().unwrap();
            assert_eq!(found[..2], [0.0, 0.0], "what is clipped moves no more");
            for (i, found) in found.iter().enumerate() {
                let at = |d: f32| {
                    let mut v = v.clone();
                    v[i] += d;
                    loss(&v)
                };
                let want = (at(0.01) - at(-0.01)) / 0.02;
                assert!((f64::from(*found) - want).abs() < 2e-3, "{i}, {regularizer:?}: {found} for {want}");
            }
        }
    }

    #[test]
    fn what_has_no_steps_is_refused() {
        let scheme = Scheme::new(Format::E4M3, Mapping::Symmetric);
        let (weight, params) = case(scheme);
        let error = Rounding::new(&weight, &params, &Optimizer::adam()).err().unwrap().to_string();
        assert!(error.contains("16 bits"), "{error}");
        let (_, params) = case(schemes()[1]);
        let error =
            Rounding::new(&values(1, &[2, 4]), &params, &Optimizer::adam()).err().unwrap().to_string();
        assert!(error.contains("2 groups"), "{error}");
    }
}
