//! Fake-quantize: the values that codes stand for, with a gradient.

use rayon::prelude::*;

use crate::error::{Result, invalid};
use crate::op::{Attribute, Attributes, Fact, Op, Reverse, arity};
use crate::ops::vectorized::vectorized;
use crate::qparams::QParams;
use crate::scheme::{Format, Scheme};
use crate::tensor::Tensor;
use crate::tensor::buffers::buffer;

/// What the gradient by a scale is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepGradient {
    /// There is none: the scale follows from ranges.
    None,
    /// That of learned step sizes (Esser et al., "Learned Step Size
    /// Quantization", 2020; with the zero point, LSQ+, Bhalgat et al., 2020).
    Learned,
    /// That of a learned clipping bound (Choi et al., "PACT", 2018): of clipped
    /// values alone.
    Clipped,
}

/// `y = dequantize(quantize(x))` with the scales and zero points of operands:
/// x, scale and zero point (rounded), f32 with one element for each group of the
/// scheme. Scales below f32 epsilon count as epsilon.
///
/// With `v = x / s`, `lo = qmin - z`, `hi = qmax - z` and `q = round(v)`, the
/// gradients are (straight-through estimator):
///
/// - by x: `g` where `lo <= q <= hi`, else 0
/// - by s, of each element: `g (q - v)` within, `g lo` below and `g hi` above;
///   for [`StepGradient::Clipped`] 0 within
/// - by z, of each element: 0 within, `-g s` elsewhere
///
/// summed over the group; those by s and z are divided by
/// `sqrt(elements of the group * hi)` ([`StepGradient::Learned`]) or by `hi^2`
/// ([`StepGradient::Clipped`]: s then moves as if the bound `hi s` was moved).
/// docs/quantization.md, equations 29 and 30.
#[derive(Clone, Debug)]
pub struct FakeQuantize {
    /// The codes, and what shares a scale.
    pub scheme: Scheme,
    /// The gradient by the scale.
    pub by_scale: StepGradient,
}

/// Elements of a task; sums are made task by task, so that they do not depend
/// on the number of threads.
const TASK: usize = 1 << 14;

/// One group's step in reals.
#[derive(Clone, Copy)]
struct Bounds {
    s: f32,
    lo: f32,
    hi: f32,
}

/// What one task gives to the gradients by scale and zero point.
#[derive(Clone, Copy, Default)]
struct Sums {
    scale: f64,
    zero: f64,
}

impl FakeQuantize {
    /// The parameters that operands stand for.
    ///
    /// # Errors
    /// If their numbers do not fit the scheme, or one is not finite.
    pub fn params(scheme: Scheme, scale: &Tensor, zero: &Tensor) -> Result<QParams> {
        let (lo, hi) = if scheme.format.is_float() { (0, 0) } else { scheme.bounds() };
        let zero = zero.slice::<f32>()?.iter().map(|z| (z.round_ties_even() as i32).clamp(lo, hi));
        let scale = scale.slice::<f32>()?.iter().map(|s| if s.is_nan() { *s } else { s.max(f32::EPSILON) });
        QParams::new(scheme, scale.collect(), zero.collect())
    }

    fn operands(&self, inputs: &[&Tensor]) -> Result<QParams> {
        arity(inputs, 3, 3)?;
        FakeQuantize::params(self.scheme, inputs[1], inputs[2])
    }

    fn bounds(&self, params: &QParams, group: usize) -> Bounds {
        let s = params.scale[group];
        if self.scheme.format.is_float() {
            let most = self.scheme.format.dtype().decode(self.scheme.format.dtype().encode(f32::INFINITY));
            let most = if most.is_finite() { most } else { f32::MAX };
            return Bounds { s, lo: -most, hi: most };
        }
        let ((qmin, qmax), z) = (self.scheme.bounds(), params.zero_point[group]);
        let less = |q: i32| (i64::from(q) - i64::from(z)) as f32;
        Bounds { s, lo: less(qmin), hi: less(qmax) }
    }
}

impl Op for FakeQuantize {
    fn name(&self) -> &'static str {
        "FakeQuantize"
    }

    fn domain(&self) -> &'static str {
        "lowbit"
    }

    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        arity(x, 3, 3)?;
        if matches!(self.scheme.format, Format::Codebook { .. }) {
            return Err(invalid!("{}: codebooks are not trained", self.scheme));
        }
        Ok(vec![x[0].with_shape(x[0].shape.clone())])
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let (params, x) = (self.operands(inputs)?, inputs[0]);
        let groups = self.scheme.granularity.groups(x.shape())?;
        if groups.count() != params.scale.len() {
            let (n, have) = (groups.count(), params.scale.len());
            return Err(invalid!("{}: {:?} has {n} groups, the scale {have}", self.scheme, x.shape()));
        }
        let (values, mut y) = (x.slice::<f32>()?, buffer(x.len()));
        for (run, g) in groups.runs() {
            let pairs = y[run.clone()].par_chunks_mut(TASK).zip(values[run].par_chunks(TASK));
            pairs.for_each(|(y, x)| {
                vectorized(
                    #[inline(always)]
                    || params.fake_quantize_run(g, x, y),
                );
            });
        }
        Ok(vec![Tensor::new(x.shape(), y)?])
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let (params, x, gradient) = (self.operands(at.inputs)?, at.inputs[0], at.gradient()?);
        let groups = self.scheme.granularity.groups(x.shape())?;
        let (values, of) = (x.slice::<f32>()?, gradient.slice::<f32>()?);
        let mut by_x = buffer(x.len());
        let mut sums = vec![Sums::default(); groups.count()];
        let sums_wanted = self.by_scale != StepGradient::None && (at.wants(1) || at.wants(2));
        for (run, g) in groups.runs() {
            let bounds = self.bounds(&params, g);
            let tasks = by_x[run.clone()]
                .par_chunks_mut(TASK)
                .zip(values[run.clone()].par_chunks(TASK))
                .zip(of[run].par_chunks(TASK));
            if !sums_wanted {
                tasks.for_each(|((to, x), g)| straight_through(bounds, x, g, to));
                continue;
            }
            let parts: Vec<Sums> = tasks.map(|((to, x), g)| self.task(bounds, x, g, to)).collect();
            for part in parts {
                sums[g].scale += part.scale;
                sums[g].zero += part.zero;
            }
        }
        let of_a_group = x.len() as f64 / groups.count().max(1) as f64;
        let largest = f64::from(self.bounds(&params, 0).hi.abs().max(1.0));
        let factor = match self.by_scale {
            StepGradient::Learned => 1.0 / (of_a_group * largest).sqrt(),
            _ => 1.0 / (largest * largest),
        };
        let by_group = |i: usize, f: &dyn Fn(&Sums) -> f64| -> Result<Option<Tensor>> {
            if !(sums_wanted && at.wants(i)) {
                return Ok(None);
            }
            let by = sums.iter().map(|s| (f(s) * factor) as f32).collect();
            Tensor::new(at.inputs[i].shape(), by).map(Some)
        };
        Ok(vec![
            at.wants(0).then(|| Tensor::new(x.shape(), by_x)).transpose()?,
            by_group(1, &|s| s.scale)?,
            by_group(2, &|s| s.zero)?,
        ])
    }

    fn attributes(&self) -> Attributes {
        vec![
            ("scheme", Attribute::Text(self.scheme.to_string())),
            ("by_scale", Attribute::Text(format!("{:?}", self.by_scale))),
        ]
    }

    fn folds(&self) -> bool {
        false
    }
}

/// The integer nearest to `v`, which is clamped to one beyond the bounds: an
/// addition and a subtraction round half to even.
#[inline(always)]
fn rounded(b: Bounds, v: f32) -> f32 {
    const ROUND: f32 = (3 << 22) as f32;
    let v = v.max(b.lo - 1.0).min(b.hi + 1.0);
    if b.hi - b.lo < 4e6 { (v + ROUND) - ROUND } else { v.round_ties_even() }
}

fn straight_through(b: Bounds, x: &[f32], gradient: &[f32], to: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            for ((to, x), g) in to.iter_mut().zip(x).zip(gradient) {
                let q = rounded(b, x / b.s);
                *to = if q >= b.lo && q <= b.hi { *g } else { 0.0 };
            }
        },
    );
}

/// Sums that are made side by side.
const LANES: usize = 16;

impl FakeQuantize {
    /// Gradients by the elements, and their sums for the group.
    fn task(&self, b: Bounds, x: &[f32], gradient: &[f32], to: &mut [f32]) -> Sums {
        let within = if self.by_scale == StepGradient::Clipped { 0.0 } else { 1.0 };
        let mut lanes = Lanes { scale: [0.0; LANES], zero: [0.0; LANES] };
        if self.scheme.format.is_float() {
            let dtype = self.scheme.format.dtype();
            let nearest = |v: f32| if v.abs() <= b.hi { dtype.decode(dtype.encode(v)) } else { 2.0 * v };
            lanes.add(b, within, nearest, (x, gradient), to);
        } else {
            vectorized(
                #[inline(always)]
                || lanes.add(b, within, |v| rounded(b, v), (x, gradient), to),
            );
        }
        let sum = |lanes: [f32; LANES]| lanes.iter().map(|&x| f64::from(x)).sum();
        Sums { scale: sum(lanes.scale), zero: sum(lanes.zero) }
    }
}

/// The sums of every [`LANES`]th element.
struct Lanes {
    scale: [f32; LANES],
    zero: [f32; LANES],
}

impl Lanes {
    #[inline(always)]
    fn add(
        &mut self,
        b: Bounds,
        within: f32,
        nearest: impl Fn(f32) -> f32,
        (x, gradient): (&[f32], &[f32]),
        to: &mut [f32],
    ) {
        for ((x, gradient), to) in x.chunks(LANES).zip(gradient.chunks(LANES)).zip(to.chunks_mut(LANES)) {
            let sums = self.scale.iter_mut().zip(&mut self.zero);
            for (((to, x), g), (scale, zero)) in to.iter_mut().zip(x).zip(gradient).zip(sums) {
                let v = x / b.s;
                let q = nearest(v);
                let (inside, above) = (q >= b.lo && q <= b.hi, q > b.hi);
                *to = if inside { *g } else { 0.0 };
                let clipped = if above { b.hi } else { b.lo };
                *scale += g * if inside { within * (q - v) } else { clipped };
                *zero += if inside { 0.0 } else { -g * b.s };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::{Granularity, Mapping};

    fn run(op: &FakeQuantize, x: &Tensor, scale: &[f32], zero: &[f32], g: &Tensor) -> [Tensor; 4] {
        let (scale, zero) = (Tensor::vector(scale.to_vec()), Tensor::vector(zero.to_vec()));
        let inputs = [x, &scale, &zero];
        let y = op.eval(&inputs).unwrap().remove(0);
        let gradients = [Some(g.clone())];
        let at = Reverse { inputs: &inputs, outputs: &[&y], gradients: &gradients, wanted: &[true; 3] };
        let by = op.vjp(&at).unwrap();
        let [x, s, z] = <[Option<Tensor>; 3]>::try_from(by).unwrap();
        let zeros = || Tensor::vector(vec![0f32; scale.len()]);
        [y, x.unwrap(), s.unwrap_or_else(zeros), z.unwrap_or_else(zeros)]
    }

    #[test]
    fn gradients_by_hand() {
        // Codes 0..3, zero point 1: reals -1, 0, 1, 2 times the scale of 0.5.
        let scheme = Scheme::new(Format::Int { bits: 2, signed: false, narrow: false }, Mapping::Affine);
        let x = Tensor::vector(vec![-2f32, -0.4, 0.1, 0.6, 3.0]);
        let g = Tensor::vector(vec![1f32, 2., 3., 4., 5.]);
        let learned = FakeQuantize { scheme, by_scale: StepGradient::Learned };
        let [y, by_x, by_s, by_z] = run(&learned, &x, &[0.5], &[1.0], &g);
        assert_eq!(y, Tensor::vector(vec![-0.5f32, -0.5, 0.0, 0.5, 1.0]));
        assert_eq!(by_x, Tensor::vector(vec![0f32, 2., 3., 4., 0.]));
        // -1 below, q - v within (-0.2, -0.2, -0.2), 2 above; sqrt(5 elements * 2).
        let factor = 10f32.sqrt();
        let want = (-1.0 + (2. + 3. + 4.) * -0.2 + 5. * 2.) / factor;
        assert!((by_s.item::<f32>().unwrap() - want).abs() < 1e-5, "{by_s:?}");
        assert!((by_z.item::<f32>().unwrap() + (1. + 5.) * 0.5 / factor).abs() < 1e-5, "{by_z:?}");
        let clipped = FakeQuantize { scheme, by_scale: StepGradient::Clipped };
        let [.., by_s, _] = run(&clipped, &x, &[0.5], &[1.0], &g);
        assert_eq!(by_s, Tensor::vector(vec![9f32 / 4.0]));
        let fixed = FakeQuantize { scheme, by_scale: StepGradient::None };
        let [y2, by_x2, by_s, _] = run(&fixed, &x, &[0.5], &[1.0], &g);
        assert_eq!((y2, by_x2, by_s), (y, by_x, Tensor::vector(vec![0f32])));
    }

    #[test]
    fn each_group_has_its_own_scale_and_float_formats_saturate() {
        let scheme = Scheme {
            granularity: Granularity::Axis(0),
            ..Scheme::new(Format::INT8_NARROW, Mapping::Symmetric)
        };
        let x = Tensor::new(&[2, 2], vec![1f32, 300., 1., 300.]).unwrap();
        let g = Tensor::new(&[2, 2], vec![1f32; 4]).unwrap();
        let op = FakeQuantize { scheme, by_scale: StepGradient::Clipped };
        let [y, by_x, by_s, _] = run(&op, &x, &[1.0, 4.0], &[0.0; 2], &g);
        assert_eq!(y, Tensor::new(&[2, 2], vec![1f32, 127., 0., 300.]).unwrap());
        assert_eq!(by_x, Tensor::new(&[2, 2], vec![1f32, 0., 1., 1.]).unwrap());
        assert_eq!(by_s, Tensor::vector(vec![1f32 / 127., 0.]));
        let op = FakeQuantize {
            scheme: Scheme::new(Format::E4M3, Mapping::Symmetric),
            by_scale: StepGradient::Clipped,
        };
        let x = Tensor::vector(vec![500f32, -0.3, -1e6]);
        let [y, by_x, by_s, _] = run(&op, &x, &[1.0], &[0.0], &Tensor::vector(vec![1f32, 1., 2.]));
        assert_eq!(y, Tensor::vector(vec![448f32, -0.3125, -448.]));
        assert_eq!((by_x, by_s), (Tensor::vector(vec![0f32, 1., 0.]), Tensor::vector(vec![-1f32 / 448.])));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let op = FakeQuantize {
            scheme: Scheme::new(Format::INT8, Mapping::Symmetric),
            by_scale: StepGradient::None,
        };
        let x = Tensor::vector(vec![1f32, 2.]);
        for (scale, want) in [(vec![1f32, 1.], "do not fit"), (vec![f32::NAN], "not a positive finite")] {
            let zero = Tensor::vector(vec![0f32; scale.len()]);
            let error = op.eval(&[&x, &Tensor::vector(scale), &zero]).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
