//! Parameters of least squared error for values at hand.

use rayon::prelude::*;

use super::{QParams, Range};
use crate::error::{Result, invalid};
use crate::scheme::{Format, Granularity, Groups, Mapping, Scheme};
use crate::tensor::Tensor;

/// Fractions of the scale that covers all values from which the search starts.
/// The second lets the largest magnitude be the greatest code of a 4-bit format
/// that has one negative code more.
const STARTS: [f32; 11] = [1.0, 15.0 / 14.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5];

/// Refits from each start.
const ROUNDS: usize = 3;

/// The values of a tensor, group by group, and what the squared error of each counts.
pub struct Grouped {
    starts: Vec<usize>,
    values: Vec<f32>,
    importance: Vec<f32>,
}

impl Grouped {
    /// `x` as it falls into `groups`; each value counts 1 if `importance` is not
    /// given, or sums up to 0 over its group.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn new(x: &Tensor, groups: &Groups, importance: Option<&[f32]>) -> Result<Grouped> {
        let x = super::floats(x)?;
        if let Some(i) = x.iter().position(|x| !x.is_finite()) {
            return Err(invalid!("element {i} is {}: only finite values can be quantized", x[i]));
        }
        let mut starts = vec![0; groups.count() + 1];
        groups.runs().for_each(|(run, g)| starts[g + 1] += run.len());
        (1..starts.len()).for_each(|g| starts[g] += starts[g - 1]);
        let mut next = starts.clone();
        let mut grouped = Grouped { values: vec![0.0; x.len()], importance: vec![1.0; x.len()], starts };
        for (run, g) in groups.runs() {
            let to = next[g]..next[g] + run.len();
            next[g] = to.end;
            grouped.values[to.clone()].copy_from_slice(&x[run.clone()]);
            if let Some(importance) = importance {
                grouped.importance[to].copy_from_slice(&importance[run]);
            }
        }
        for g in 0..grouped.count() {
            let of_group = &mut grouped.importance[grouped.starts[g]..grouped.starts[g + 1]];
            if of_group.iter().all(|i| *i == 0.0) {
                of_group.fill(1.0);
            }
        }
        Ok(grouped)
    }

    /// The number of groups.
    pub fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// Values and importances of group `g`.
    pub fn group(&self, g: usize) -> (&[f32], &[f32]) {
        let of_group = self.starts[g]..self.starts[g + 1];
        (&self.values[of_group.clone()], &self.importance[of_group])
    }

    /// What `f` makes of each group, its values and their importances.
    pub fn map<T: Send>(&self, f: impl Fn(usize, &[f32], &[f32]) -> T + Sync) -> Vec<T> {
        let of_group = |g| {
            let (x, importance) = self.group(g);
            f(g, x, importance)
        };
        (0..self.count()).into_par_iter().map(of_group).collect()
    }
}

impl QParams {
    /// The parameters that quantize `x` with the least squared error, as far as
    /// alternating least squares finds them (docs/quantization.md, equation 24);
    /// never worse than those of [`QParams::from_ranges`]. The error of each
    /// element counts `importance`.
    ///
    /// # Errors
    /// If the scheme is inconsistent or does not fit the shape, or a value is not finite.
    pub fn least_squares(scheme: Scheme, x: &Tensor, importance: Option<&[f32]>) -> Result<QParams> {
        let whole = scheme.with(Granularity::Tensor);
        QParams::from_ranges(whole, &[Range { lo: 0.0, hi: 0.0 }])?;
        let grouped = Grouped::new(x, &scheme.granularity.groups(x.shape())?, importance)?;
        let found = grouped.map(|_, x, importance| of_group(whole, x, importance));
        let (scale, zero_point) = found.into_iter().collect::<Result<Vec<_>>>()?.into_iter().unzip();
        QParams::new(scheme, scale, zero_point)
    }
}

/// Scale and zero point of one group.
fn of_group(scheme: Scheme, x: &[f32], importance: &[f32]) -> Result<(f32, i32)> {
    let range = x.iter().fold(Range { lo: 0.0, hi: 0.0 }, |r, &x| r.union(Range { lo: x, hi: x }));
    let params = QParams::from_ranges(scheme, &[range])?;
    let (start, zero) = (params.scale[0], params.zero_point[0]);
    if range.amax() == 0.0 || scheme.format == Format::FP16 {
        return Ok((start, zero));
    }
    let dtype = scheme.format.dtype();
    if scheme.format.is_float() {
        let level = |v: f32| dtype.decode(dtype.encode(v));
        return Ok((least_scale(x, importance, start, level), 0));
    }
    let (least, greatest) = scheme.bounds();
    if scheme.mapping == Mapping::Symmetric {
        let (least, greatest) = ((least - zero) as f32, (greatest - zero) as f32);
        let level = |v: f32| v.round_ties_even().clamp(least, greatest);
        return Ok((least_scale(x, importance, start, level), zero));
    }
    Ok(least_affine(x, importance, (start, zero), range.lo, (least, greatest)))
}

/// The scale `s` of least `sum_i importance_i (x_i - s level(x_i / s))^2`, where
/// `level` is the nearest of the values that codes stand for.
pub fn least_scale(x: &[f32], importance: &[f32], start: f32, level: impl Fn(f32) -> f32) -> f32 {
    let mut best = (f64::INFINITY, start);
    for fraction in STARTS {
        let mut s = start * fraction;
        for _ in 0..=ROUNDS {
            if !(s.is_finite() && s >= f32::EPSILON) {
                break;
            }
            let (mut error, mut xv, mut vv) = (0.0, 0.0, 0.0);
            for (&x, &i) in x.iter().zip(importance) {
                let v = level(x / s);
                let e = x - v * s;
                error += f64::from(i * e * e);
                xv += f64::from(i * x * v);
                vv += f64::from(i * v * v);
            }
            if error < best.0 {
                best = (error, s);
            }
            s = (xv / vv) as f32;
        }
    }
    best.1
}

/// Scale and zero point of least error; `start` covers all values, of which
/// `lo` is the least.
fn least_affine(
    x: &[f32],
    importance: &[f32],
    start: (f32, i32),
    lo: f32,
    (least, greatest): (i32, i32),
) -> (f32, i32) {
    let zero = |offset: f32| (offset.round_ties_even()).clamp(least as f32, greatest as f32);
    let (qmin, qmax) = (least as f32, greatest as f32);
    let mut best = (f64::INFINITY, start);
    for fraction in STARTS {
        let (mut s, mut z) = (start.0 * fraction, start.1 as f32);
        if fraction != 1.0 {
            z = zero(qmin - lo / start.0);
        }
        for _ in 0..=ROUNDS {
            if !(s.is_finite() && s >= f32::EPSILON) {
                break;
            }
            let code = |x: f32| (x / s).round_ties_even().clamp(qmin - z, qmax - z) + z;
            // Moments of codes and values about 0.
            let [mut error, mut n, mut q1, mut x1, mut qq, mut qx] = [0f64; 6];
            for (&x, &i) in x.iter().zip(importance) {
                let q = code(x);
                let e = x - (q - z) * s;
                let (w, q, x) = (f64::from(i), f64::from(q), f64::from(x));
                error += w * f64::from(e * e);
                (n, q1, x1) = (n + w, q1 + w * q, x1 + w * x);
                (qq, qx) = (qq + w * q * q, qx + w * q * x);
            }
            if error < best.0 {
                best = (error, (s, z as i32));
            }
            // The line through the codes' values gives the zero point, and the
            // best scale for it as a whole number the scale.
            let slope = (qx - q1 * x1 / n) / (qq - q1 * q1 / n);
            if slope.is_finite() && slope > 0.0 {
                z = zero(((q1 - x1 / slope) / n) as f32);
            }
            let zf = f64::from(z);
            s = ((qx - zf * x1) / (qq - 2.0 * zf * q1 + zf * zf * n)) as f32;
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(params: &QParams, x: &Tensor, importance: &[f32]) -> f64 {
        let y = params.fake_quantize(x).unwrap();
        let (x, y) = (x.slice::<f32>().unwrap(), y.slice::<f32>().unwrap());
        x.iter().zip(y).zip(importance).map(|((x, y), i)| f64::from(i * (x - y) * (x - y))).sum()
    }

    fn min_max(scheme: Scheme, x: &Tensor) -> QParams {
        let grouped = Grouped::new(x, &scheme.granularity.groups(x.shape()).unwrap(), None).unwrap();
        let zero = Range { lo: 0.0, hi: 0.0 };
        let ranges = grouped.map(|_, x, _| x.iter().fold(zero, |r, &x| r.union(Range { lo: x, hi: x })));
        QParams::from_ranges(scheme, &ranges).unwrap()
    }

    proptest! {
        #[test]
        fn the_error_is_at_most_that_of_the_whole_range(
            name in prop::sample::select(vec!["int4", "uint4", "int8", "int3-narrow", "e4m3", "e2m1", "int16"]),
            affine in any::<bool>(), axis in 0usize..2, size in 1usize..9,
            x in prop::collection::vec(-3f32..5.0, 60), importance in prop::collection::vec(0f32..4.0, 60),
        ) {
            let format: Format = name.parse().unwrap();
            let mapping =
                if affine && !format.is_float() { Mapping::Affine } else { Mapping::Symmetric };
            let scheme = Scheme::new(format, mapping).with(Granularity::Block { axis, size });
            let x = Tensor::new(&[5, 12], x).unwrap();
            let found = QParams::least_squares(scheme, &x, Some(&importance)).unwrap();
            let (ours, theirs) = (error(&found, &x, &importance), error(&min_max(scheme, &x), &x, &importance));
            prop_assert!(ours <= theirs * 1.00001 + 1e-9, "{ours} > {theirs}");
        }
    }

    #[test]
    fn values_on_a_grid_are_met() {
        let of = |format, mapping, scale: f32, codes: &[i32]| {
            let scheme = Scheme::new(format, mapping);
            let x: Vec<f32> = codes.iter().map(|q| *q as f32 * scale).collect();
            let x = Tensor::vector(x);
            let params = QParams::least_squares(scheme, &x, None).unwrap();
            error(&params, &x, &vec![1.0; codes.len()])
        };
        // 7 of -8..7 is beyond what amax / 7.5 reaches.
        assert!(of(Format::INT4, Mapping::Symmetric, 0.1, &[1, 7, -3, 0, -7, 2]) < 1e-12);
        assert!(of(Format::INT4, Mapping::Symmetric, 0.3, &[1, -8, -3, 0, 5]) < 1e-12);
        assert!(of(Format::UINT4, Mapping::Affine, 0.1, &[-3, 12, 5, 1]) < 1e-12);
    }

    #[test]
    fn groups_without_spread_and_bad_values() {
        let scheme = Scheme::new(Format::UINT4, Mapping::Affine).with(Granularity::Axis(0));
        let x = Tensor::new(&[3, 2], vec![0f32, 0.0, 2.0, 2.0, -1.0, 0.0]).unwrap();
        let found = QParams::least_squares(scheme, &x, Some(&[0.0; 6])).unwrap();
        let y = found.fake_quantize(&x).unwrap();
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
        assert!(x.slice::<f32>().unwrap().iter().zip(y.slice::<f32>().unwrap()).all(near), "{y:?}");
        let bad = Tensor::new(&[1, 2], vec![0f32, f32::NAN]).unwrap();
        let message = QParams::least_squares(scheme, &bad, None).unwrap_err().to_string();
        assert!(message.contains("element 1 is NaN"), "{message}");
    }
}
