//! Elementary functions of f32, as polynomials with the same bits on every CPU.

/// `1.5 * 2^23`: added to a small number, it leaves the nearest integer in the low bits.
const SHIFT: f32 = 12_582_912.0;
/// `ln 2` less [`LN_2_REST`].
const LN_2: f32 = std::f32::consts::LN_2;
/// What f32's `ln 2` lacks.
const LN_2_REST: f32 = -1.904_654_2e-9;

/// `(e^r - 1 - r) / r^2` for `|r| <= ln(2) / 2`, the least power first: least
/// squares weighted towards an equal relative error of `e^r`, 3e-9.
const EXP: [f32; 5] = [0.5, 0.166_665_18, 0.041_666_206, 0.008_368_89, 0.001_395_048_9];

/// `erf(x) / x - 1` in powers of `x^2`, for `|x| <= 1`, to 1.2e-9.
const ERF: [f32; 7] = [
    0.128_379_17,
    -0.376_126_26,
    0.112_836,
    -0.026_854_444,
    0.005_189_535,
    -0.000_802_084_1,
    0.000_078_891_19,
];

/// `-ln(1 - erf(x))` for `1 <= x <= 4`, such that `erf` has a relative error of 1.1e-9.
const LOG_ERFC: [f32; 7] = [
    0.000_341_512_58,
    1.127_089_3,
    0.638_144_73,
    0.103_106_81,
    -0.021_838_097,
    0.002_947_667,
    -0.000_186_380_09,
];

/// `(tanh(x) / x - 1) / x^2` in powers of `x^2`, for `|x| <= 0.65`, such that `tanh`
/// has a relative error of 1.1e-8.
const TANH: [f32; 5] = [-0.333_332_6, 0.133_308_19, -0.053_687_472, 0.020_468_397, -0.005_514_525];

/// `sum_i coefficients[i] * x^i` by Horner's rule, a chain of fused multiply-adds.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[i]);
    }
    sum
}

/// `2^k` for `k` in `-126..=127`.
#[inline(always)]
fn power_of_2(k: i32) -> f32 {
    f32::from_bits((k.wrapping_add(127) as u32) << 23)
}

/// `e^x`, within 1 unit in the last place: `2^k e^r` with `k = round(x / ln 2)`
/// and `r = x - k ln 2`. Subnormal results are rounded once; NaN stays.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Beyond, the result is 0 or infinite.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let whole = shifted - SHIFT;
    let r = whole.mul_add(-LN_2_REST, whole.mul_add(-LN_2, x));
    let fraction = polynomial(&EXP, r).mul_add(r * r, r) + 1.0;
    // In two steps: `k` itself may be outside the exponents of f32.
    let k = (shifted.to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32);
    fraction * power_of_2(k >> 1) * power_of_2(k.wrapping_sub(k >> 1))
}

/// The error function, within 2 units in the last place; NaN stays.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let magnitude = x.abs();
    let small = polynomial(&ERF, x * x).mul_add(x, x);
    // From 4 on, the result is 1.
    let bounded = if magnitude > 4.0 { 4.0 } else { magnitude };
    let large = (1.0 - exp(-polynomial(&LOG_ERFC, bounded))).copysign(x);
    if magnitude < 1.0 { small } else { large }
}

/// `1 / (1 + e^-x)`, within 3 units in the last place where it is not subnormal;
/// NaN stays.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent, within 2 units in the last place; NaN stays.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let magnitude = x.abs();
    let square = x * x;
    let small = (polynomial(&TANH, square) * square).mul_add(magnitude, magnitude);
    // From 10 on, the result is 1.
    let bounded = if magnitude > 10.0 { 10.0 } else { magnitude };
    let large = 1.0 - 2.0 / (exp(bounded + bounded) + 1.0);
    let result = if magnitude < 0.65 { small } else { large };
    result.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Error in units in the last place of `right`.
    fn units(found: f32, right: f64) -> f64 {
        let near = right as f32;
        let unit = f64::from(near.abs().next_up()) - f64::from(near.abs());
        (f64::from(found) - right).abs() / unit
    }

    /// The error function in f64: its series, and its continued fraction from 3 on.
    fn erf_f64(x: f64) -> f64 {
        let scale = 2.0 / std::f64::consts::PI.sqrt();
        if x.abs() < 3.0 {
            let (mut term, mut sum) = (x, x);
            for n in 1..100 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return scale * sum;
        }
        let t = x.abs();
        let fraction = (1..60).rev().fold(t, |below, n| t + f64::from(n) / 2.0 / below);
        (1.0 - scale / 2.0 * (-t * t).exp() / fraction).copysign(x)
    }

    /// Every 37th f32 of `lo..=hi` (of one sign), and both ends.
    fn numbers(lo: f32, hi: f32) -> impl Iterator<Item = f32> {
        let (a, b) = (lo.to_bits().min(hi.to_bits()), lo.to_bits().max(hi.to_bits()));
        (a..=b).step_by(37 * 64 + 1).chain([b]).map(f32::from_bits)
    }

    #[test]
    fn functions_are_near_their_definitions() {
        type Case = (&'static str, fn(f32) -> f32, fn(f64) -> f64, f64, [(f32, f32); 2]);
        let cases: [Case; 4] = [
            ("exp", exp, f64::exp, 1.0, [(-0.0, -103.0), (0.0, 88.72)]),
            ("erf", erf, erf_f64, 2.0, [(-0.0, -6.0), (0.0, 6.0)]),
            ("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 3.0, [(-0.0, -87.0), (0.0, 20.0)]),
            ("tanh", tanh, f64::tanh, 2.0, [(-0.0, -12.0), (0.0, 12.0)]),
        ];
        let mut failures = vec![];
        for (name, f, right, most, ranges) in cases {
            let mut worst = (0.0, 0.0);
            for x in ranges.into_iter().flat_map(|(lo, hi)| numbers(lo, hi)) {
                let error = units(f(x), right(f64::from(x)));
                if error > worst.0 || error.is_nan() {
                    worst = (error, x);
                }
            }
            if worst.0 > most || worst.0.is_nan() {
                failures.push(format!("{name}({}): {} units", worst.1, worst.0));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn ends_of_the_range_are_exact() {
        type Case = (fn(f32) -> f32, f32, f32);
        let cases: [Case; 20] = [
            (exp, 0.0, 1.0),
            (exp, -0.0, 1.0),
            (exp, f32::NEG_INFINITY, 0.0),
            (exp, f32::MIN, 0.0),
            (exp, 88.8, f32::INFINITY),
            (exp, f32::INFINITY, f32::INFINITY),
            (erf, 0.0, 0.0),
            (erf, -0.0, -0.0),
            (erf, 5.0, 1.0),
            (erf, f32::INFINITY, 1.0),
            (erf, f32::NEG_INFINITY, -1.0),
            (erf, f32::MIN, -1.0),
            (sigmoid, 0.0, 0.5),
            (sigmoid, f32::MIN, 0.0),
            (sigmoid, f32::NEG_INFINITY, 0.0),
            (sigmoid, f32::INFINITY, 1.0),
            (tanh, -0.0, -0.0),
            (tanh, 12.0, 1.0),
            (tanh, f32::INFINITY, 1.0),
            (tanh, f32::NEG_INFINITY, -1.0),
        ];
        for (i, (f, x, want)) in cases.into_iter().enumerate() {
            assert_eq!(f(x).to_bits(), want.to_bits(), "case {i}: {} for {x}, not {want}", f(x));
        }
        assert!([exp, erf, sigmoid, tanh].iter().all(|f| f(f32::NAN).is_nan()));
    }
}
