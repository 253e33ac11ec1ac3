//! The values that parameters begin with.

use std::f64::consts::TAU;

use crate::error::Result;
use crate::random::SplitMix;
use crate::tensor::{Tensor, element_count};

/// How a parameter begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// This value everywhere.
    Full(f32),
    /// Evenly distributed over `-bound..bound`.
    Uniform {
        /// The bound.
        bound: f32,
    },
    /// Normally distributed, with mean 0 and variance 1; 0 in this row.
    Normal {
        /// The row of zeros, if there is one.
        zero_row: Option<usize>,
    },
    /// An integer (int64), 0.
    Count,
}

impl Init {
    /// PyTorch's for weights and biases of layers whose outputs are sums of
    /// `fan_in` products: `uniform(-1 / sqrt(fan_in), 1 / sqrt(fan_in))`, which is
    /// `kaiming_uniform_(a = sqrt(5))` of the weight.
    pub fn fan_in(fan_in: usize) -> Init {
        Init::Uniform { bound: 1.0 / (fan_in.max(1) as f32).sqrt() }
    }

    /// The first value of the parameter `name` of this shape: the same for the same
    /// seed and name, whatever other parameters there are.
    ///
    /// # Errors
    /// If the shape is too large.
    pub fn values(self, name: &str, shape: &[usize], seed: u64) -> Result<Tensor> {
        let n = element_count(shape)?;
        let mut random = Random::new(name, seed);
        let values: Vec<f32> = match self {
            Init::Count => return Tensor::new(shape, vec![0i64; n]),
            Init::Full(x) => vec![x; n],
            Init::Uniform { bound } => {
                (0..n).map(|_| ((2.0 * random.unit() - 1.0) * f64::from(bound)) as f32).collect()
            }
            Init::Normal { zero_row } => {
                let mut values: Vec<f32> = (0..n).map(|_| random.normal()).collect();
                let row = shape.iter().skip(1).product::<usize>();
                if let Some(row) = zero_row.and_then(|i| values.chunks_exact_mut(row.max(1)).nth(i)) {
                    row.fill(0.0);
                }
                values
            }
        };
        Tensor::new(shape, values)
    }
}

/// Random numbers that follow from a seed and a name.
struct Random(SplitMix);

impl Random {
    fn new(name: &str, seed: u64) -> Random {
        // FNV-1a.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        Random(SplitMix::of(&[seed, hash]))
    }

    /// In 0..1, with the 53 bits that f64 holds.
    fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Box-Muller.
    fn normal(&mut self) -> f32 {
        let (u, v) = (1.0 - self.unit(), self.unit());
        (libm::sqrt(-2.0 * libm::log(u)) * libm::cos(TAU * v)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_have_their_moments() {
        struct Case {
            init: Init,
            mean: f64,
            variance: f64,
            most: f32,
        }
        let cases = [
            Case { init: Init::Full(0.25), mean: 0.25, variance: 0.0, most: 0.25 },
            Case { init: Init::fan_in(4), mean: 0.0, variance: 1.0 / 12.0, most: 0.5 },
            Case { init: Init::Normal { zero_row: None }, mean: 0.0, variance: 1.0, most: 6.0 },
        ];
        let mut failures = vec![];
        for c in cases {
            let x = c.init.values("w", &[100, 100], 1).unwrap().to_f32().unwrap();
            let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / x.len() as f64;
            let most = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            if (mean - c.mean).abs() > 0.03 || (variance - c.variance).abs() > 0.05 || most > c.most {
                failures.push(format!("{:?}: mean {mean}, variance {variance}, most {most}", c.init));
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    #[test]
    fn values_follow_from_seed_and_name() {
        let draw = |name, seed| Init::Normal { zero_row: Some(1) }.values(name, &[3, 2], seed).unwrap();
        assert_eq!(draw("a", 1), draw("a", 1));
        assert_ne!(draw("a", 1), draw("b", 1));
        assert_ne!(draw("a", 1), draw("a", 2));
        assert_eq!(draw("a", 1).slice::<f32>().unwrap()[2..4], [0.0, 0.0]);
    }
}
