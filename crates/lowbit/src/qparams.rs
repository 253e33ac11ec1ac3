//! Scales and zero points: the only place where a range becomes a scale, and
//! where reals become codes and codes reals.

pub(crate) mod search;

use std::borrow::Cow;

use half::f16;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, invalid};
use crate::scheme::{Format, Granularity, Groups, Mapping, Scheme};
use crate::tensor::{DType, Tensor};

/// The least and the greatest value that codes should represent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Ends")]
pub struct Range {
    /// Least value.
    pub lo: f32,
    /// Greatest value.
    pub hi: f32,
}

/// A range as it is written, unchecked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ends {
    lo: f32,
    hi: f32,
}

impl TryFrom<Ends> for Range {
    type Error = Error;
    fn try_from(Ends { lo, hi }: Ends) -> Result<Range> {
        Range::new(lo, hi)
    }
}

impl Range {
    /// `lo..hi`.
    ///
    /// # Errors
    /// If an end is not finite or `lo > hi`.
    pub fn new(lo: f32, hi: f32) -> Result<Range> {
        if !(lo.is_finite() && hi.is_finite() && lo <= hi) {
            return Err(invalid!("{lo}..{hi} is not a range: its ends must be finite and in order"));
        }
        Ok(Range { lo, hi })
    }

    /// The smallest range that holds both.
    pub fn union(self, other: Range) -> Range {
        Range { lo: self.lo.min(other.lo), hi: self.hi.max(other.hi) }
    }

    /// The part of the range within `-a..a`.
    pub fn within(self, a: f32) -> Range {
        Range { lo: self.lo.clamp(-a, a), hi: self.hi.clamp(-a, a) }
    }

    /// The largest magnitude.
    pub fn amax(self) -> f32 {
        self.lo.abs().max(self.hi.abs())
    }
}

/// A scheme with one scale and one zero point for each of its groups:
/// `x = scale (q - zero_point)`.
#[derive(Clone, Debug, PartialEq)]
pub struct QParams {
    /// What the codes are, and what shares one scale.
    pub scheme: Scheme,
    /// One for each group, positive and finite.
    pub scale: Vec<f32>,
    /// One for each group, within the scheme's codes; 0 for floats.
    pub zero_point: Vec<i32>,
}

impl QParams {
    /// Parameters given as they are.
    ///
    /// # Errors
    /// If the scheme is inconsistent, a scale is not positive and finite, a
    /// zero point lies outside the codes, or their numbers differ.
    pub fn new(scheme: Scheme, scale: Vec<f32>, zero_point: Vec<i32>) -> Result<QParams> {
        scheme.check()?;
        let float = scheme.format.is_float();
        if matches!(scheme.format, Format::Codebook { .. }) {
            return Err(invalid!("{scheme}: its codes stand for values of a codebook, not for steps"));
        }
        if scale.len() != zero_point.len() || scheme.granularity == Granularity::Tensor && scale.len() != 1 {
            let (s, z) = (scale.len(), zero_point.len());
            return Err(invalid!("{scheme}: {s} scales and {z} zero points do not fit together"));
        }
        if let Some(s) = scale.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
            return Err(invalid!("scale {s} is not a positive finite number"));
        }
        let (lo, hi) = if float { (0, 0) } else { scheme.bounds() };
        if let Some(z) = zero_point.iter().find(|z| !(lo..=hi).contains(*z)) {
            return Err(invalid!("zero point {z} of {scheme} lies outside {lo}..{hi}"));
        }
        Ok(QParams { scheme, scale, zero_point })
    }

    /// The parameters whose codes cover the ranges, one for each group, each
    /// widened to hold 0. With codes `qmin..qmax`:
    ///
    /// - affine: `s = (hi - lo) / (qmax - qmin)`, `z = clamp(qmin - round(lo / s))`
    /// - symmetric: `s = max(-lo, hi) / ((qmax - qmin) / 2)`; `z = 0` for
    ///   signed codes, else the middle: the upper of two for a whole format
    ///   (128), the lower for custom codes
    /// - float: `s = max(-lo, hi) / largest finite code`, `z = 0`; 1 for fp16
    ///
    /// with `s` at least f32 epsilon. Operations are in f32 in the order of
    /// `torch.ao.quantization`'s `_calculate_qparams`, so that scales equal
    /// torch's bit for bit; `lo / s` of a 32-bit format therefore has 24 exact
    /// bits. The difference `qmin - ...` is taken in `i64`, and a range wider
    /// than f32's largest number is divided in f64.
    ///
    /// # Errors
    /// If a range is not one, or the scheme is inconsistent.
    pub fn from_ranges(scheme: Scheme, ranges: &[Range]) -> Result<QParams> {
        let (qmin, qmax) = scheme.bounds();
        let (qmin, qmax) = (i64::from(qmin), i64::from(qmax));
        let middle = match (scheme.format.is_signed(), scheme.codes) {
            (true, _) => 0,
            (false, None) => (qmin + qmax + 1) / 2,
            (false, Some(_)) => (qmin + qmax).div_euclid(2),
        };
        let (mut scale, mut zero_point) =
            (Vec::with_capacity(ranges.len()), Vec::with_capacity(ranges.len()));
        for range in ranges {
            let Range { lo, hi } = Range::new(range.lo, range.hi)?;
            let (lo, hi) = (lo.min(0.0), hi.max(0.0));
            let (s, z) = match scheme.mapping {
                _ if scheme.format == Format::FP16 => (1.0, 0),
                _ if scheme.format.is_float() => (hi.max(-lo) / qmax as f32, 0),
                Mapping::Symmetric => (hi.max(-lo) / ((qmax - qmin) as f64 / 2.0) as f32, middle),
                Mapping::Affine => {
                    let levels = (qmax - qmin) as f32;
                    let s = match (hi - lo) / levels {
                        s if s.is_finite() => s,
                        _ => ((f64::from(hi) - f64::from(lo)) / f64::from(levels)) as f32,
                    };
                    let below = (lo / s.max(f32::EPSILON)).round_ties_even() as i64;
                    (s, (qmin - below).clamp(qmin, qmax))
                }
            };
            scale.push(s.max(f32::EPSILON));
            zero_point.push(z as i32);
        }
        QParams::new(scheme, scale, zero_point)
    }

    /// The codes `clamp(round_half_even(x / s) + z)`, in true f32 division;
    /// NaN becomes `z`, infinities saturate. For float formats the code
    /// nearest to `x / s`.
    ///
    /// # Errors
    /// If `x` is not floating point, or its shape has another number of groups.
    pub fn quantize(&self, x: &Tensor) -> Result<Tensor> {
        let (groups, values) = (self.groups(x.shape())?, floats(x)?);
        let dtype = self.scheme.format.dtype();
        macro_rules! codes {
            ($t:ty, $f:expr) => {{
                let mut codes = vec![<$t>::default(); values.len()];
                for (run, g) in groups.runs() {
                    let step = self.step(g);
                    for (q, &x) in codes[run.clone()].iter_mut().zip(&values[run]) {
                        *q = $f(step, x) as $t;
                    }
                }
                Tensor::coded(dtype, x.shape(), codes)
            }};
        }
        match dtype.storage() {
            DType::F16 => {
                let mut halves = vec![f16::ZERO; values.len()];
                for (run, g) in groups.runs() {
                    let step = self.step(g);
                    let pairs = halves[run.clone()].iter_mut().zip(&values[run]);
                    pairs.for_each(|(q, &x)| *q = half(step.real(x)));
                }
                Tensor::new(x.shape(), halves)
            }
            _ if self.scheme.format.is_float() => codes!(u8, |step: Step, x: f32| dtype.encode(step.real(x))),
            DType::I8 => codes!(i8, Step::code),
            DType::U8 => codes!(u8, Step::code),
            DType::I16 => codes!(i16, Step::code),
            DType::U16 => codes!(u16, Step::code),
            DType::U32 => codes!(u32, Step::wide_code),
            _ => codes!(i32, Step::wide_code),
        }
    }

    /// The reals `(q - z) as f32 * s`.
    ///
    /// # Errors
    /// If `codes` has not the format's element type, or its shape has another
    /// number of groups.
    pub fn dequantize(&self, codes: &Tensor) -> Result<Tensor> {
        let (groups, dtype) = (self.groups(codes.shape())?, self.scheme.format.dtype());
        if codes.dtype() != dtype {
            return Err(invalid!("expected {dtype} codes, found {}", codes.dtype()));
        }
        macro_rules! reals {
            ($t:ty, $f:expr) => {{
                let (codes, mut y) = (codes.slice::<$t>()?, vec![0f32; codes.len()]);
                for (run, g) in groups.runs() {
                    let step = self.step(g);
                    for (y, &q) in y[run.clone()].iter_mut().zip(&codes[run]) {
                        *y = $f(step, q);
                    }
                }
                y
            }};
        }
        macro_rules! narrow {
            ($t:ty) => {
                reals!($t, |step: Step, q: $t| (i32::from(q) - step.z) as f32 * step.s)
            };
        }
        macro_rules! wide {
            ($t:ty) => {
                reals!($t, |step: Step, q: $t| (i64::from(q) - i64::from(step.z)) as f32 * step.s)
            };
        }
        let y = match dtype.storage() {
            DType::F16 => reals!(f16, |step: Step, q: f16| q.to_f32() * step.s),
            _ if self.scheme.format.is_float() => reals!(u8, |step: Step, q: u8| dtype.decode(q) * step.s),
            DType::I8 => narrow!(i8),
            DType::U8 => narrow!(u8),
            DType::I16 => narrow!(i16),
            DType::U16 => narrow!(u16),
            DType::U32 => wide!(u32),
            _ => wide!(i32),
        };
        Tensor::new(codes.shape(), y)
    }

    /// `dequantize(quantize(x))`, in one pass.
    ///
    /// # Errors
    /// Those of [`QParams::quantize`].
    pub fn fake_quantize(&self, x: &Tensor) -> Result<Tensor> {
        let (groups, values) = (self.groups(x.shape())?, floats(x)?);
        let mut y = vec![0f32; values.len()];
        for (run, g) in groups.runs() {
            self.fake_quantize_run(g, &values[run.clone()], &mut y[run]);
        }
        Tensor::new(x.shape(), y)
    }

    /// [`QParams::fake_quantize`] of values that all belong to group `g`.
    pub(crate) fn fake_quantize_run(&self, g: usize, x: &[f32], y: &mut [f32]) {
        let (step, dtype) = (self.step(g), self.scheme.format.dtype());
        let pairs = y.iter_mut().zip(x);
        if dtype == DType::F16 {
            pairs.for_each(|(y, &x)| *y = half(step.real(x)).to_f32() * step.s);
        } else if self.scheme.format.is_float() {
            pairs.for_each(|(y, &x)| *y = dtype.decode(dtype.encode(step.real(x))) * step.s);
        } else if dtype.bits() <= 16 {
            pairs.for_each(|(y, &x)| *y = (step.rounded(x) - ROUND) * step.s);
        } else {
            pairs.for_each(|(y, &x)| *y = (step.wide_code(x) - i64::from(step.z)) as f32 * step.s);
        }
    }

    fn groups(&self, shape: &[usize]) -> Result<Groups> {
        let groups = self.scheme.granularity.groups(shape)?;
        if groups.count() != self.scale.len() || self.zero_point.len() != self.scale.len() {
            let (n, have) = (groups.count(), self.scale.len());
            return Err(invalid!("{}: shape {shape:?} has {n} groups, the parameters {have}", self.scheme));
        }
        Ok(groups)
    }

    fn step(&self, g: usize) -> Step {
        let ((qmin, qmax), z) = (self.scheme.bounds(), self.zero_point[g]);
        let less = |q: i32| (i64::from(q) - i64::from(z)) as f32;
        Step { s: self.scale[g], z, lo: less(qmin), hi: less(qmax), qmin, qmax }
    }
}

/// Added to a number of magnitude below 2^22, it leaves no fraction bits: the
/// addition rounds half to even.
const ROUND: f32 = (3 << 22) as f32;

/// One group's parameters, ready for inner loops.
#[derive(Clone, Copy)]
struct Step {
    s: f32,
    z: i32,
    /// Least code minus the zero point.
    lo: f32,
    /// Greatest code minus the zero point.
    hi: f32,
    qmin: i32,
    qmax: i32,
}

impl Step {
    /// `x / s`, 0 for NaN.
    #[inline(always)]
    fn real(self, x: f32) -> f32 {
        let v = x / self.s;
        if v.is_nan() { 0.0 } else { v }
    }

    /// `ROUND + q - z`, for codes of at most 16 bits. To clamp before rounding
    /// is the same, since the bounds are integers.
    #[inline(always)]
    fn rounded(self, x: f32) -> f32 {
        let v = self.real(x);
        let v = if v < self.lo { self.lo } else { v };
        (if v > self.hi { self.hi } else { v }) + ROUND
    }

    /// The code, of at most 16 bits.
    #[inline(always)]
    fn code(self, x: f32) -> i32 {
        (self.rounded(x).to_bits().cast_signed() - ROUND.to_bits().cast_signed()) + self.z
    }

    /// The code, where f32 could not hold it.
    fn wide_code(self, x: f32) -> i64 {
        let q = f64::from(self.real(x).round_ties_even()) + f64::from(self.z);
        q.clamp(f64::from(self.qmin), f64::from(self.qmax)) as i64
    }
}

/// The nearest half-precision number, the largest finite one for what lies beyond.
fn half(x: f32) -> f16 {
    f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

fn floats(x: &Tensor) -> Result<Cow<'_, [f32]>> {
    match x.dtype() {
        DType::F32 => Ok(Cow::Borrowed(x.slice()?)),
        dtype if dtype.is_float() => Ok(Cow::Owned(x.to_f32()?)),
        dtype => Err(invalid!("expected floating-point values to quantize, found {dtype}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn params(format: Format, mapping: Mapping, lo: f32, hi: f32) -> QParams {
        QParams::from_ranges(Scheme::new(format, mapping), &[Range { lo, hi }]).unwrap()
    }

    #[test]
    fn ranges_become_scales() {
        let e2m1 = Format::Float { exponent: 2, mantissa: 1 };
        for (format, mapping, (lo, hi), scale, zero_point) in [
            (Format::UINT8, Mapping::Affine, (-1.3974, 1.4707), 0.011247451, 124),
            (Format::INT8, Mapping::Affine, (-1.3974, 1.4707), 0.011247451, -4),
            (Format::UINT8, Mapping::Affine, (0.5, 2.55), 0.01, 0),
            (Format::UINT8, Mapping::Affine, (-2.55, -0.5), 0.01, 255),
            (Format::UINT8, Mapping::Affine, (0.0, 0.0), f32::EPSILON, 0),
            (Format::UINT8, Mapping::Symmetric, (-1.0, 0.5), 1.0 / 127.5, 128),
            (Format::INT8, Mapping::Symmetric, (-1.0, 0.5), 1.0 / 127.5, 0),
            (Format::INT8_NARROW, Mapping::Symmetric, (-1.0, 1.27), 0.01, 0),
            (Format::UINT4, Mapping::Symmetric, (-1.0, 0.5), 1.0 / 7.5, 8),
            (Format::UINT16, Mapping::Symmetric, (-1.0, 0.5), 1.0 / 32767.5, 1 << 15),
            (Format::INT32, Mapping::Affine, (-1e6, 1e6), 2e6 / 4294967296.0, 0),
            (Format::E4M3, Mapping::Symmetric, (-4.48, 1.0), 0.01, 0),
            (Format::FP16, Mapping::Symmetric, (-4.48, 1.0), 1.0, 0),
            (e2m1, Mapping::Symmetric, (-4.48, 6.0), 1.0, 0),
            (Format::UINT8, Mapping::Affine, (f32::MIN, f32::MAX), f32::MAX / 127.5, 128),
        ] {
            let p = params(format, mapping, lo, hi);
            let error = (p.scale[0] - scale).abs() / scale;
            assert!(error < 1e-7 && p.zero_point == [zero_point], "{format} {mapping:?} {lo}..{hi}: {p:?}");
        }
        let custom = Scheme { codes: Some((0, 15)), ..Scheme::new(Format::UINT8, Mapping::Symmetric) };
        let p = QParams::from_ranges(custom, &[Range { lo: -1.0, hi: 0.0 }]).unwrap();
        assert_eq!(p.zero_point, [7]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let affine = Scheme::new(Format::UINT8, Mapping::Affine);
        for (lo, hi) in [(f32::NAN, 1.0), (0.0, f32::INFINITY), (1.0, -1.0)] {
            let e = QParams::from_ranges(affine, &[Range { lo, hi }]).unwrap_err().to_string();
            assert!(e.contains("is not a range"), "{e}");
        }
        let codes = Scheme { codes: Some((1, 7)), ..Scheme::new(Format::INT8, Mapping::Symmetric) };
        let float = Scheme { codes: Some((-7, 7)), ..Scheme::new(Format::E4M3, Mapping::Symmetric) };
        for (scheme, scale, zero_point, want) in [
            (affine, vec![0.0], vec![0], "not a positive finite number"),
            (affine, vec![f32::NAN], vec![0], "not a positive finite number"),
            (affine, vec![1.0], vec![256], "lies outside 0..255"),
            (affine, vec![1.0, 1.0], vec![0, 0], "do not fit together"),
            (affine, vec![1.0], vec![], "do not fit together"),
            (codes, vec![1.0], vec![0], "lies outside 1..7"),
            (float, vec![1.0], vec![0], "takes no custom codes"),
        ] {
            let e = QParams::new(scheme, scale, zero_point).unwrap_err().to_string();
            assert!(e.contains(want), "{e}");
        }
        let p = params(Format::UINT8, Mapping::Affine, 0.0, 1.0);
        assert!(p.quantize(&Tensor::vector(vec![1i32])).is_err());
        assert!(p.dequantize(&Tensor::vector(vec![1i8])).is_err());
        let per_channel = QParams::new(affine.with(Granularity::Axis(0)), vec![1.0; 2], vec![0; 2]).unwrap();
        assert!(per_channel.quantize(&Tensor::vector(vec![0f32; 3])).is_err());
    }

    #[test]
    fn rounding_is_half_even_of_true_division_and_saturates() {
        let x =
            [0.5f32, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0];
        let p = QParams::new(Scheme::new(Format::UINT8, Mapping::Affine), vec![1.0], vec![10]).unwrap();
        let q = p.quantize(&Tensor::vector(x.to_vec())).unwrap();
        assert_eq!(q.slice::<u8>().unwrap(), [10, 12, 12, 10, 8, 255, 0, 255, 0, 10, 10]);
        let p = QParams::new(Scheme::new(Format::INT32, Mapping::Affine), vec![1.0], vec![i32::MIN]).unwrap();
        let q = p.quantize(&Tensor::vector(vec![1.0f32, 16777217.0, -5.0, 1e20, f32::NAN])).unwrap();
        let want = [1 + i32::MIN, 16777216 + i32::MIN, i32::MIN, i32::MAX, i32::MIN];
        assert_eq!(q.slice::<i32>().unwrap(), want);
        assert_eq!(p.dequantize(&q).unwrap().slice::<f32>().unwrap()[3], 4294967296.0);
        let p = QParams::new(Scheme::new(Format::E4M3, Mapping::Symmetric), vec![0.5], vec![0]).unwrap();
        let y = p.fake_quantize(&Tensor::vector(vec![0.53f32, 1e9, f32::NAN])).unwrap();
        assert_eq!(y.slice::<f32>().unwrap(), [0.5, 224.0, 0.0]);
    }

    #[test]
    fn each_group_has_its_own_scale() {
        let x = Tensor::new(&[2, 4], vec![1f32, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0]).unwrap();
        let scheme = Scheme::new(Format::INT8, Mapping::Affine);
        for (granularity, scale, want) in [
            (Granularity::Axis(0), vec![1.0, 10.0], [1i8, 2, 3, 4, 1, 2, 3, 4]),
            (Granularity::Axis(1), vec![1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1, 10, 10, 10, 10]),
            (Granularity::Block { axis: 1, size: 2 }, vec![1.0, 0.5, 10.0, 5.0], [1, 2, 6, 8, 1, 2, 6, 8]),
            (Granularity::Block { axis: 0, size: 2 }, vec![1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1, 10, 10, 10, 10]),
        ] {
            let n = scale.len();
            let p = QParams::new(scheme.with(granularity), scale, vec![0; n]).unwrap();
            let q = p.quantize(&x).unwrap();
            assert_eq!(q.slice::<i8>().unwrap(), want, "{granularity:?}");
            assert_eq!(p.dequantize(&q).unwrap(), x, "{granularity:?}");
        }
    }

    fn formats() -> impl Strategy<Value = (Format, Mapping)> {
        let int =
            (2u8..=32, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(bits, signed, narrow, a)| {
                let mapping = if a { Mapping::Affine } else { Mapping::Symmetric };
                (Format::Int { bits, signed, narrow }, mapping)
            });
        prop_oneof![
            9 => int,
            1 => Just((Format::E4M3, Mapping::Symmetric)),
            1 => Just((Format::E5M2, Mapping::Symmetric)),
            1 => Just((Format::FP16, Mapping::Symmetric)),
            1 => Just((Format::Float { exponent: 2, mantissa: 1 }, Mapping::Symmetric)),
        ]
    }

    proptest! {
        #[test]
        fn fake_quantize_is_dequantize_of_quantize(
            (format, mapping) in formats(),
            x in prop::collection::vec(-100f32..100.0, 1..40),
            (a, b) in (-50f32..50.0, -50f32..50.0),
        ) {
            let p = params(format, mapping, a.min(b), a.max(b));
            let x = Tensor::vector(x);
            prop_assert_eq!(p.fake_quantize(&x).unwrap(), p.dequantize(&p.quantize(&x).unwrap()).unwrap());
        }

        #[test]
        fn the_error_is_at_most_half_a_step_inside_the_range(
            bits in 2u8..=16, affine in any::<bool>(), (a, b) in (-50f32..50.0, -50f32..50.0), t in 0f32..1.0,
        ) {
            let mapping = if affine { Mapping::Affine } else { Mapping::Symmetric };
            let format = Format::Int { bits, signed: true, narrow: !affine };
            let (lo, hi) = (a.min(b), a.max(b));
            let p = params(format, mapping, lo, hi);
            let (qmin, qmax) = p.scheme.bounds();
            let s = p.scale[0];
            let x = lo + (hi - lo) * t;
            let x = x.clamp((qmin - p.zero_point[0]) as f32 * s, (qmax - p.zero_point[0]) as f32 * s);
            let y = p.fake_quantize(&Tensor::scalar(x)).unwrap().item::<f32>().unwrap();
            prop_assert!((x - y).abs() <= s * 0.5 + x.abs() * 1e-6, "{x} -> {y}, step {s}");
        }
    }
}
