//! Codes that stand for any values: `x = scale values[q]`.

use crate::error::{Result, invalid};
use crate::qparams::search::{Grouped, least_scale};
use crate::scheme::{Format, Scheme};
use crate::tensor::Tensor;

/// 4-bit NormalFloat: means of quantiles of the normal distribution, 8 positive
/// and 7 negative ones, and 0, scaled to -1..1 (Dettmers et al., "QLoRA", 2023,
/// appendix E).
#[allow(clippy::excessive_precision)]
const NORMAL: [f32; 16] = [
    -1.0,
    -0.696_192_800_998_687_74,
    -0.525_073_051_452_636_72,
    -0.394_917_488_098_144_53,
    -0.284_441_381_692_886_35,
    -0.184_773_430_228_233_34,
    -0.091_050_036_251_544_95,
    0.0,
    0.079_580_299_556_255_34,
    0.160_930_201_411_247_25,
    0.246_112_301_945_686_34,
    0.337_915_241_718_292_24,
    0.440_709_829_330_444_34,
    0.562_617_003_917_694_1,
    0.722_956_836_223_602_3,
    1.0,
];

/// Rounds of Lloyd's algorithm at most.
const LLOYD: usize = 50;

/// Rounds in which scales and values are fitted in turn.
const ROUNDS: usize = 3;

/// Values that codes are places of, and one scale for each group of a scheme.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    scheme: Scheme,
    /// Ascending.
    values: Vec<f32>,
    /// The middles between neighbours.
    middles: Vec<f32>,
    scale: Vec<f32>,
}

impl Codebook {
    /// A codebook given as it is.
    ///
    /// # Errors
    /// If the format has no codebook, or the values are not `2^bits`, finite and
    /// in ascending order.
    pub fn new(scheme: Scheme, values: Vec<f32>, scale: Vec<f32>) -> Result<Codebook> {
        scheme.check()?;
        let Format::Codebook { bits, .. } = scheme.format else {
            return Err(invalid!("{} has no codebook", scheme.format));
        };
        if values.len() != 1 << bits || !values.is_sorted() || values.iter().any(|v| !v.is_finite()) {
            return Err(invalid!("{scheme}: {} finite values in ascending order are needed", 1 << bits));
        }
        let middles = values.windows(2).map(|v| 0.5 * (v[0] + v[1])).collect();
        Ok(Codebook { scheme, values, middles, scale })
    }

    /// The codebook for `x` (docs/quantization.md, equation 25). Scales are
    /// those that cover each group; where `search`, those of least squared
    /// error, to which each element contributes by its `importance`. Fitted
    /// values are the means of what is nearest to them, by the same weights.
    ///
    /// # Errors
    /// If the format has no codebook, the scheme does not fit the shape, or a
    /// value is not finite.
    pub fn fit(scheme: Scheme, x: &Tensor, importance: Option<&[f32]>, search: bool) -> Result<Codebook> {
        let Format::Codebook { bits, fitted } = scheme.format else {
            return Err(invalid!("{} has no codebook", scheme.format));
        };
        let grouped = Grouped::new(x, &scheme.granularity.groups(x.shape())?, importance)?;
        let amax = |_, x: &[f32], _: &[f32]| x.iter().fold(f32::EPSILON, |most, x| most.max(x.abs()));
        let covering = grouped.map(amax);
        if !fitted {
            let book = Codebook::new(scheme, NORMAL.to_vec(), covering)?;
            return Ok(if search { book.rescaled(&grouped) } else { book });
        }
        let values = fitted_values(&grouped, &covering, quantiles(&grouped, &covering, 1 << bits));
        let mut book = Codebook::new(scheme, values, covering)?;
        for _ in 0..if search { ROUNDS } else { 0 } {
            book = book.rescaled(&grouped);
            let values = fitted_values(&grouped, &book.scale, book.values);
            book = Codebook::new(scheme, values, book.scale)?;
        }
        Ok(book)
    }

    /// With scales of least squared error, none worse than those it has.
    fn rescaled(self, grouped: &Grouped) -> Codebook {
        let scale = |g: usize, x: &[f32], importance: &[f32]| {
            least_scale(x, importance, self.scale[g], |v| self.value(v))
        };
        let scale = grouped.map(scale);
        Codebook { scale, ..self }
    }

    /// What the codes are, and what shares one scale.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// The values of the codes, in ascending order.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The values, the last repeated until each code of the element type has one.
    pub fn operand(&self) -> Tensor {
        let last = self.values.last().copied().unwrap_or(0.0);
        let mut values = self.values.clone();
        values.resize(1 << self.scheme.format.dtype().bits(), last);
        Tensor::vector(values)
    }

    /// One scale for each group.
    pub fn scale(&self) -> &[f32] {
        &self.scale
    }

    /// The code nearest to `v`, of two the lower.
    fn code(&self, v: f32) -> u8 {
        self.middles.partition_point(|m| *m < v) as u8
    }

    fn value(&self, v: f32) -> f32 {
        self.values[usize::from(self.code(v))]
    }

    /// What `x` becomes in group `g`.
    pub(crate) fn nearest(&self, g: usize, x: f32) -> f32 {
        self.value(x / self.scale[g]) * self.scale[g]
    }

    /// The codes of the values nearest to `x / scale`.
    ///
    /// # Errors
    /// If `x` is not f32, or its shape has another number of groups.
    pub fn quantize(&self, x: &Tensor) -> Result<Tensor> {
        let mut codes = vec![0u8; x.len()];
        let values: &[f32] = x.slice()?;
        self.each(x.shape(), |run, s| {
            for (q, x) in codes[run.clone()].iter_mut().zip(&values[run]) {
                *q = self.code(x / s);
            }
        })?;
        Tensor::coded(self.scheme.format.dtype(), x.shape(), codes)
    }

    /// `scale values[q]`.
    ///
    /// # Errors
    /// If the codes are not of the format's type or beyond the values, or their
    /// shape has another number of groups.
    pub fn dequantize(&self, codes: &Tensor) -> Result<Tensor> {
        let dtype = self.scheme.format.dtype();
        if codes.dtype() != dtype {
            return Err(invalid!("expected {dtype} codes, found {}", codes.dtype()));
        }
        let (mut y, q) = (vec![0f32; codes.len()], codes.slice::<u8>()?);
        if let Some(q) = q.iter().find(|q| usize::from(**q) >= self.values.len()) {
            return Err(invalid!("code {q} is beyond the {} values", self.values.len()));
        }
        self.each(codes.shape(), |run, s| {
            for (y, q) in y[run.clone()].iter_mut().zip(&q[run]) {
                *y = self.values[usize::from(*q)] * s;
            }
        })?;
        Tensor::new(codes.shape(), y)
    }

    /// `dequantize(quantize(x))`.
    ///
    /// # Errors
    /// Those of [`Codebook::quantize`].
    pub fn fake_quantize(&self, x: &Tensor) -> Result<Tensor> {
        self.dequantize(&self.quantize(x)?)
    }

    /// Calls `f` with each run of elements of one group and its scale.
    fn each(&self, shape: &[usize], mut f: impl FnMut(std::ops::Range<usize>, f32)) -> Result<()> {
        let groups = self.scheme.granularity.groups(shape)?;
        if groups.count() != self.scale.len() {
            let (n, have) = (groups.count(), self.scale.len());
            return Err(invalid!("{}: shape {shape:?} has {n} groups, not {have}", self.scheme));
        }
        groups.runs().for_each(|(run, g)| f(run, self.scale[g]));
        Ok(())
    }
}

/// Values divided by their scale, in ascending order, each with its share of
/// the squared error.
fn scaled(grouped: &Grouped, scale: &[f32]) -> Vec<(f32, f64)> {
    let of_group = |g: usize| {
        let (x, importance) = grouped.group(g);
        let s = scale[g];
        x.iter().zip(importance).map(move |(x, i)| (x / s, f64::from(i * s * s)))
    };
    let mut all: Vec<(f32, f64)> = (0..grouped.count()).flat_map(of_group).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all
}

/// `n` values that divide the scaled ones into runs of equal weight, in the
/// middle of each.
fn quantiles(grouped: &Grouped, scale: &[f32], n: usize) -> Vec<f32> {
    let all = scaled(grouped, scale);
    let total: f64 = all.iter().map(|(_, w)| w).sum();
    let (mut below, mut at) = (0.0, 0);
    let place = |i: usize| {
        let wanted = total * (i as f64 + 0.5) / n as f64;
        while at + 1 < all.len() && below + all[at].1 < wanted {
            below += all[at].1;
            at += 1;
        }
        all.get(at).map_or(0.0, |(v, _)| *v)
    };
    (0..n).map(place).collect()
}

/// Lloyd's algorithm in one dimension: each value becomes the weighted mean of
/// those nearest to it, until none moves; one that is nearest to none stays.
fn fitted_values(grouped: &Grouped, scale: &[f32], mut values: Vec<f32>) -> Vec<f32> {
    let all = scaled(grouped, scale);
    // Sums of weights and of weighted values before each place.
    let mut sums = Vec::with_capacity(all.len() + 1);
    sums.push((0f64, 0f64));
    for (v, w) in &all {
        let (n, sum) = sums[sums.len() - 1];
        sums.push((n + w, sum + w * f64::from(*v)));
    }
    for _ in 0..LLOYD {
        let ends: Vec<usize> = values
            .windows(2)
            .map(|v| 0.5 * (v[0] + v[1]))
            .map(|middle| all.partition_point(|(v, _)| *v <= middle))
            .chain([all.len()])
            .collect();
        let mut first = 0;
        let before = values.clone();
        for (value, end) in values.iter_mut().zip(ends) {
            let (n, sum) = (sums[end].0 - sums[first].0, sums[end].1 - sums[first].1);
            if n > 0.0 {
                *value = (sum / n) as f32;
            }
            first = end;
        }
        values.sort_by(f32::total_cmp);
        if values == before {
            break;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scheme::{Granularity, Mapping};

    fn scheme(format: &str, granularity: Granularity) -> Scheme {
        Scheme::new(format.parse().unwrap(), Mapping::Symmetric).with(granularity)
    }

    fn error(book: &Codebook, x: &Tensor) -> f64 {
        let y = book.fake_quantize(x).unwrap();
        let pairs = x.slice::<f32>().unwrap().iter().zip(y.slice::<f32>().unwrap());
        pairs.map(|(x, y)| f64::from((x - y) * (x - y))).sum()
    }

    /// Numbers from few clusters, as long rows.
    fn clusters(n: usize) -> Tensor {
        let x = (0..n).map(|i| [-0.7f32, 0.1, 0.35, 0.9][i * 7 % 4] + 1e-4 * (i % 10) as f32);
        Tensor::new(&[2, n / 2], x.collect()).unwrap()
    }

    proptest! {
        #[test]
        fn codes_are_of_the_nearest_value_and_searching_never_harms(
            format in prop::sample::select(vec!["nf4", "kmeans2", "kmeans3", "kmeans4", "kmeans8"]),
            blocked in any::<bool>(), x in prop::collection::vec(-3f32..4.0, 48),
        ) {
            let granularity = if blocked { Granularity::Block { axis: 1, size: 7 } } else { Granularity::Axis(0) };
            let (scheme, x) = (scheme(format, granularity), Tensor::new(&[3, 16], x).unwrap());
            let books = [false, true].map(|search| Codebook::fit(scheme, &x, None, search).unwrap());
            prop_assert!(error(&books[1], &x) <= error(&books[0], &x) * 1.001 + 1e-9);
            let groups = granularity.groups(x.shape()).unwrap();
            for book in books {
                prop_assert!(book.values().is_sorted());
                let y = book.fake_quantize(&x).unwrap();
                for (i, (x, y)) in x.slice::<f32>().unwrap().iter().zip(y.slice::<f32>().unwrap()).enumerate() {
                    let s = book.scale()[groups.of(i)];
                    let least = book.values().iter().map(|v| (x - v * s).abs()).fold(f32::MAX, f32::min);
                    prop_assert!((x - y).abs() <= least + 1e-5, "{x} -> {y}");
                    prop_assert!((book.nearest(groups.of(i), *x) - y).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn fitted_values_find_clusters() {
        let x = clusters(400);
        let book = Codebook::fit(scheme("kmeans2", Granularity::Tensor), &x, None, true).unwrap();
        assert!(error(&book, &x) < 400.0 * 1e-6, "{book:?}");
        // What counts nothing pulls no value.
        let importance: Vec<f32> = x.slice::<f32>().unwrap().iter().map(|x| f32::from(*x < 0.5)).collect();
        let book =
            Codebook::fit(scheme("kmeans2", Granularity::Tensor), &x, Some(&importance), true).unwrap();
        assert!(book.values().iter().all(|v| v * book.scale()[0] < 0.5), "{book:?}");
    }

    #[test]
    fn operands_fill_the_element_type() {
        let book = Codebook::fit(scheme("kmeans3", Granularity::Tensor), &clusters(40), None, false).unwrap();
        let operand = book.operand();
        assert_eq!(operand.shape(), [16]);
        assert_eq!(operand.slice::<f32>().unwrap()[7..], [book.values()[7]; 9]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let nf4 = scheme("nf4", Granularity::Tensor);
        let affine = Scheme { mapping: Mapping::Affine, ..nf4 };
        let falling: Vec<f32> = (0..16).map(|i| -(i as f32)).collect();
        let bad = Tensor::vector(vec![1f32, f32::INFINITY]);
        let book = Codebook::fit(nf4, &clusters(8), None, false).unwrap();
        let codes = Tensor::coded(crate::tensor::DType::U4, &[2], vec![3u8, 3]).unwrap();
        for (result, says) in [
            (Codebook::new(nf4, falling, vec![1.0]).map(|_| ()), "ascending"),
            (Codebook::new(affine, NORMAL.to_vec(), vec![1.0]).map(|_| ()), "no zero point"),
            (Codebook::new(scheme("int4", Granularity::Tensor), vec![], vec![]).map(|_| ()), "no codebook"),
            (Codebook::fit(nf4, &bad, None, false).map(|_| ()), "element 1 is inf"),
            (book.dequantize(&Tensor::vector(vec![1u8])).map(|_| ()), "expected uint4 codes"),
            (
                Codebook::new(scheme("nf4", Granularity::Axis(0)), NORMAL.to_vec(), vec![1.0])
                    .and_then(|b| b.dequantize(&codes))
                    .map(|_| ()),
                "has 2 groups, not 1",
            ),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
