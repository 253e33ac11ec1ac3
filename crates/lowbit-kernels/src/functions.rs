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

/// `erf(x) / x` for `|x| <= 3.92` as a quotient of polynomials in `x^2`: least squares
/// weighted towards an equal relative error, 1.9e-8.
#[expect(clippy::approx_constant, reason = "fitted together with the others")]
const ERF: [[f32; 6]; 2] = [
    [1.128_379_1, 0.190_397_75, 0.052_747_62, 0.003_765_261_3, 0.000_284_877_37, 2.050_182_5e-6],
    [1.0, 0.502_068_34, 0.114_105_55, 0.014_968_497, 0.001_162_454_6, 3.809_244e-5],
];

/// `tanh(x) / x` for `|x| <= 9.08` in the same way, to 2.2e-8.
const TANH: [[f32; 5]; 2] = [
    [1.0, 0.133_758_25, 0.003_489_411_2, 2.050_740_3e-5, 1.321_360_6e-8],
    [1.0, 0.467_091_38, 0.025_853_483, 0.000_327_553_22, 7.718_868e-7],
];

/// `sum_i coefficients[i] * x^i` by Horner's rule, a chain of fused multiply-adds.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[i]);
    }
    sum
}

/// `2^k` for `k` in `-126..=127`; infinite for 128.
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
    let (fraction, k) = exp_parts(x);
    // In two steps: `k` itself may be outside the exponents of f32.
    fraction * power_of_2(k >> 1) * power_of_2(k.wrapping_sub(k >> 1))
}

/// [`exp`] of what is not positive, bit for bit, in fewer steps.
#[inline(always)]
pub(crate) fn exp_below_0(x: f32) -> f32 {
    const RAISED: i32 = 64;
    let x = if x < -104.0 { -104.0 } else { x };
    let (fraction, k) = exp_parts(x);
    // `k` is at least -150, and the first product is exact.
    fraction * power_of_2(k.wrapping_add(RAISED)) * const { 1.0 / (1u64 << (RAISED - 1)) as f32 / 2.0 }
}

/// `e^r` and `k` with `e^x = 2^k e^r`, for `x` whose `k` is that of a number.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, i32) {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let whole = shifted - SHIFT;
    let r = whole.mul_add(-LN_2_REST, whole.mul_add(-LN_2, x));
    let fraction = polynomial(&EXP, r).mul_add(r * r, r) + 1.0;
    (fraction, (shifted.to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32))
}

/// The odd function that `x` times the quotient of two polynomials in `x^2` is up to
/// `top`, where it reaches 1, and beyond 1; NaN stays.
#[inline(always)]
fn odd<const N: usize>([above, below]: &[[f32; N]; 2], top: f32, x: f32) -> f32 {
    let magnitude = x.abs();
    let bounded = if magnitude > top { top } else { magnitude };
    let square = bounded * bounded;
    let quotient = bounded * polynomial(above, square) / polynomial(below, square);
    let quotient = if quotient > 1.0 { 1.0 } else { quotient };
    quotient.copysign(x)
}

/// The error function, within 6 units in the last place; NaN stays.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    odd(&ERF, 3.92, x)
}

/// `1 / (1 + e^-x)`, within 3 units in the last place where it is not subnormal;
/// NaN stays.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    // Above, `1 + e^-x` is 1; below, it is infinite.
    let x = if x > 87.0 { 87.0 } else { x };
    let x = if x < -89.0 { -89.0 } else { x };
    let (fraction, k) = exp_parts(-x);
    1.0 / (1.0 + fraction * power_of_2(k))
}

/// The hyperbolic tangent, within 6 units in the last place; NaN stays.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    odd(&TANH, 9.08, x)
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
            ("erf", erf, erf_f64, 6.0, [(-0.0, -6.0), (0.0, 6.0)]),
            ("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 3.0, [(-0.0, -87.0), (0.0, 20.0)]),
            ("tanh", tanh, f64::tanh, 6.0, [(-0.0, -12.0), (0.0, 12.0)]),
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
    fn what_is_not_positive_has_one_exponential() {
        let all =
            numbers(-0.0, -120.0).chain(numbers(-103.0, -104.1)).chain([0.0, f32::MIN, f32::NEG_INFINITY]);
        let differs = |x: &f32| exp(*x).to_bits() != exp_below_0(*x).to_bits();
        assert_eq!({ all }.find(differs), None);
        assert!(exp_below_0(f32::NAN).is_nan());
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
