//! Gradients held against finite differences.

use std::sync::Arc;

use crate::op::{Op, Reverse};
use crate::random::SplitMix;
use crate::tensor::Tensor;

/// An operator and operands at which its gradient is checked.
pub struct Case {
    op: Arc<dyn Op>,
    inputs: Vec<Tensor>,
    /// The operands, the last ones, that there is no gradient by.
    fixed: usize,
    step: f32,
}

/// Evenly spread over -1 to 1, the same on every run.
fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut numbers = SplitMix::new(seed);
    (0..len).map(|_| numbers.signed_unit()).collect()
}

impl Case {
    /// `op` of random f32 operands of these shapes, between -1 and 1.
    pub fn new(op: impl Op, shapes: &[&[usize]]) -> Case {
        let input = |(i, shape): (usize, &&[usize])| {
            Tensor::new(shape, random(i as u64 + 1, shape.iter().product())).unwrap()
        };
        Case {
            op: Arc::new(op),
            inputs: shapes.iter().enumerate().map(input).collect(),
            fixed: 0,
            step: 1e-2,
        }
    }

    /// The same with one more operand.
    pub fn and(mut self, t: Tensor) -> Case {
        self.inputs.push(t);
        self
    }

    /// The same with one more operand, as operand `at`.
    pub fn insert(mut self, at: usize, t: Tensor) -> Case {
        self.inputs.insert(at, t);
        self
    }

    /// The same with values of which no two, of all operands, are closer than
    /// `least`.
    pub fn apart(mut self, least: f32) -> Case {
        let floats = |t: &Tensor| t.slice::<f32>().map(<[f32]>::to_vec).unwrap_or_default();
        let all: Vec<f32> = self.inputs.iter().flat_map(floats).collect();
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by(|&i, &j| all[i].total_cmp(&all[j]));
        let mut places = vec![0.0; all.len()];
        for (place, i) in order.into_iter().enumerate() {
            places[i] = (place as f32 - all.len() as f32 / 2.0) * least;
        }
        let mut rest = places.as_slice();
        for t in self.inputs.iter_mut().filter(|t| t.slice::<f32>().is_ok()) {
            let (own, others) = rest.split_at(t.len());
            (*t, rest) = (Tensor::new(t.shape(), own.to_vec()).unwrap(), others);
        }
        self
    }

    /// The same with more operands, vectors that there is no gradient by.
    pub fn and_fixed(mut self, vectors: &[&[f32]]) -> Case {
        self.inputs.extend(vectors.iter().map(|v| Tensor::vector(v.to_vec())));
        self.fixed += vectors.len();
        self
    }

    /// The same with other values.
    pub fn map(mut self, f: impl Fn(f32) -> f32) -> Case {
        for t in &mut self.inputs {
            if let Ok(x) = t.slice::<f32>() {
                *t = Tensor::new(t.shape(), x.iter().map(|&x| f(x)).collect()).unwrap();
            }
        }
        self
    }

    /// The same with values from `lo` to `hi`.
    pub fn between(self, lo: f32, hi: f32) -> Case {
        self.map(|x| lo + (hi - lo) * (x + 1.0) / 2.0)
    }

    /// The same with values at least `least` away from zero, where functions
    /// have their corners.
    pub fn away_from_zero(self, least: f32) -> Case {
        self.map(|x| x + least.copysign(x))
    }

    /// The scalar whose gradient is taken: the outputs, weighted.
    fn loss(&self, inputs: &[Tensor]) -> f64 {
        let outputs = self.op.eval(&inputs.iter().collect::<Vec<_>>()).unwrap();
        let each = outputs.iter().enumerate().filter_map(|(i, y)| Some((weights(i, y)?, y)));
        each.map(|(w, y)| {
            let pairs = y.slice::<f32>().unwrap().iter().zip(w.slice::<f32>().unwrap());
            pairs.map(|(&y, &w)| f64::from(y) * f64::from(w)).sum::<f64>()
        })
        .sum()
    }

    /// Along a direction: what the gradient says, and what differences say.
    fn slopes(&self, of: usize, direction: &[f32]) -> (f64, f64) {
        let moved = |step: f32| {
            let mut inputs = self.inputs.clone();
            let x = inputs[of].slice::<f32>().unwrap().iter().zip(direction).map(|(x, d)| x + step * d);
            inputs[of] = Tensor::new(inputs[of].shape(), x.collect()).unwrap();
            self.loss(&inputs)
        };
        let slope = |step: f32| (moved(step) - moved(-step)) / (2.0 * f64::from(step));
        // Richardson: the error of the second order cancels.
        let measured = (4.0 * slope(self.step) - slope(2.0 * self.step)) / 3.0;
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        let outputs = self.op.eval(&inputs).unwrap();
        let gradients: Vec<Option<Tensor>> = outputs.iter().enumerate().map(|(i, y)| weights(i, y)).collect();
        let wanted: Vec<bool> = (0..inputs.len()).map(|i| i == of).collect();
        let outputs: Vec<&Tensor> = outputs.iter().collect();
        let at = Reverse { inputs: &inputs, outputs: &outputs, gradients: &gradients, wanted: &wanted };
        let by = self.op.vjp(&at).unwrap_or_else(|e| panic!("{}: {e}", self.op.name()));
        assert_eq!(by.len(), inputs.len(), "{}: one gradient for each operand", self.op.name());
        let Some(by) = &by[of] else { return (0.0, measured) };
        assert_eq!(by.shape(), inputs[of].shape(), "{} operand {of}", self.op.name());
        let pairs = by.slice::<f32>().unwrap().iter().zip(direction);
        (pairs.map(|(&g, &d)| f64::from(g) * f64::from(d)).sum(), measured)
    }
}

fn weights(output: usize, y: &Tensor) -> Option<Tensor> {
    y.slice::<f32>().ok()?;
    Some(Tensor::new(y.shape(), random(100 + output as u64, y.len())).unwrap())
}

/// Directions in which each operand is moved.
const DIRECTIONS: u64 = 4;

/// Checks that the gradient by every f32 operand is that of central
/// differences, to 1e-3 of its size, in random directions.
///
/// # Panics
/// If one is not; all failures are shown.
pub fn check(cases: impl IntoIterator<Item = Case>) {
    let mut failures = vec![];
    for case in cases {
        let name = format!("{:?}", case.op);
        let floats = (0..case.inputs.len() - case.fixed)
            .filter(|&i| case.inputs[i].slice::<f32>().is_ok() && !case.inputs[i].is_empty());
        for of in floats {
            for seed in 0..DIRECTIONS {
                let direction = random(1000 + seed, case.inputs[of].len());
                let (said, measured) = case.slopes(of, &direction);
                let size = said.abs().max(measured.abs()).max(0.2);
                if (said - measured).abs() > 1e-3 * size {
                    let shapes: Vec<&[usize]> = case.inputs.iter().map(Tensor::shape).collect();
                    failures.push(format!(
                        "{name} {shapes:?} by operand {of}: {said}, by differences {measured}"
                    ));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
