//! Dropout, at inference and in training.

use std::sync::Arc;

use crate::error::{Error, Result, invalid};
use crate::graph::Graph;
use crate::op::{Attribute, Attributes, Fact, Op, Operand, Prepared, Quant, Reading, Reverse, arity};
use crate::ops::vectorized::vectorized;
use crate::parallel;
use crate::tensor::buffers::buffer;
use crate::tensor::{DType, Tensor};

/// Dropout. At inference, ONNX's: the input, and a mask that keeps every element.
///
/// In training, an operator of lowbit's own: `y = x * mask / (1 - ratio)`, and
/// the mask. Its operands are x (f32) and the number of the step (a scalar, int64).
/// Element `i` is kept if a hash of the seed, the step and `i` is at least `ratio`
/// (SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014), so that a run can be repeated, on any number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The part of the elements that training drops; none if the model computes
    /// it (input 1, which inference does not read).
    pub ratio: Option<f32>,
    /// The seed of the masks, in training.
    pub training: Option<i64>,
}

impl Default for Dropout {
    /// ONNX's ratio of a half, at inference.
    fn default() -> Dropout {
        Dropout::new(0.5)
    }
}

/// Elements that are worth a task.
const TASK: usize = 1 << 15;

/// The bits of the hash that are compared with the ratio: those that f32 holds.
const BITS: u32 = 24;

/// SplitMix64's increment.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's mixing of a state.
#[inline(always)]
fn mixed(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Dropout {
    /// Dropout of this part of the elements, at inference.
    pub fn new(ratio: f32) -> Dropout {
        Dropout { ratio: Some(ratio), training: None }
    }

    /// The form for training, whose masks follow from this seed.
    pub fn in_training(self, seed: i64) -> Dropout {
        Dropout { training: Some(seed), ..self }
    }

    /// The ratio, for training.
    fn known_ratio(self) -> Result<f32> {
        match self.ratio {
            Some(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
            Some(ratio) => Err(invalid!("ratio = {ratio} is not between 0 and 1")),
            None => Err(Error::unsupported("Dropout", "training with a ratio that is not a constant")),
        }
    }

    /// Which of `len` elements are kept in a step.
    fn mask(self, seed: i64, step: i64, len: usize) -> Result<Vec<bool>> {
        let least = (self.known_ratio()? * (1u64 << BITS) as f32) as u64;
        let key = mixed(mixed(seed as u64).wrapping_add((step as u64).wrapping_mul(GOLDEN)));
        let mut mask = vec![false; len];
        parallel::chunks(&mut mask, TASK, |task, mask| {
            let first = (task * TASK) as u64;
            vectorized(
                #[inline(always)]
                || {
                    for (i, kept) in (first + 1..).zip(mask.iter_mut()) {
                        *kept = mixed(key.wrapping_add(i.wrapping_mul(GOLDEN))) >> (64 - BITS) >= least;
                    }
                },
            );
        });
        Ok(mask)
    }

    /// `x * mask / (1 - ratio)`: 0 throughout for a ratio of 1.
    fn masked(self, x: &Tensor, mask: &[bool]) -> Result<Tensor> {
        let kept = 1.0 - self.known_ratio()?;
        let scale = if kept > 0.0 { 1.0 / kept } else { 0.0 };
        let (x, shape) = (x.slice::<f32>()?, x.shape());
        let mut y = buffer(x.len());
        parallel::chunks(&mut y, TASK, |task, y| {
            let own = task * TASK..task * TASK + y.len();
            let (x, mask) = (&x[own.clone()], &mask[own]);
            vectorized(
                #[inline(always)]
                || {
                    let each = y.iter_mut().zip(x).zip(mask);
                    each.for_each(|((y, x), kept)| *y = if *kept { x * scale } else { 0.0 });
                },
            );
        });
        Tensor::new(shape, y)
    }

    /// The ratio is an attribute before opset 12, then input 1.
    pub(super) fn read(a: &mut Reading) -> Result<Arc<dyn Op>> {
        a.ignore("seed");
        let mut ratio = Some(a.float("ratio", 0.5)?);
        if !a.is_constant(1) {
            ratio = None;
        } else if let Some(t) = a.take_constant(1)? {
            ratio = t.to_f32()?.first().copied();
        }
        if let Some(training) = a.take_constant(2)?
            && training.item::<bool>()?
        {
            return Err(Error::unsupported(
                "Dropout",
                "training_mode = true (export the model for inference, and turn dropout on in training)",
            ));
        }
        Ok(Arc::new(Dropout { ratio, training: None }))
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "Dropout"
    }

    fn domain(&self) -> &'static str {
        if self.training.is_some() { "lowbit" } else { "" }
    }

    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>> {
        let x = inputs.first().ok_or_else(|| invalid!("takes inputs, found none"))?;
        if self.training.is_some() {
            arity(inputs, 2, 2)?;
            self.known_ratio()?;
            if x.dtype != DType::F32
                || *inputs[1] != Fact::new(DType::I64, [0usize; 0]).with_sizes(inputs[1].sizes.clone())
            {
                return Err(invalid!(
                    "in training takes f32 and the step, i64[], found {x} and {}",
                    inputs[1]
                ));
            }
        } else {
            arity(inputs, 1, if self.ratio.is_some() { 1 } else { 2 })?;
        }
        let mask = Fact { dtype: DType::Bool, shape: x.shape.clone(), sizes: None };
        let kept = if self.training.is_some() { x.with_shape(x.shape.clone()) } else { (*x).clone() };
        Ok(vec![kept, mask])
    }

    fn prepare(&self, _operands: &[Operand<'_>]) -> Result<Prepared> {
        Ok(if self.training.is_some() { Prepared::Eval } else { Prepared::Alias })
    }

    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        arity(inputs, 1, 2)?;
        let x = inputs[0];
        let Some(seed) = self.training else {
            return Ok(vec![x.clone(), Tensor::full(x.shape(), true)?]);
        };
        arity(inputs, 2, 2)?;
        let mask = self.mask(seed, inputs[1].item()?, x.len())?;
        Ok(vec![self.masked(x, &mask)?, Tensor::new(x.shape(), mask)?])
    }

    fn vjp(&self, at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        let g = at.gradient()?;
        at.each(|_| match self.training {
            None => Ok(g.clone()),
            Some(seed) => self.masked(g, &self.mask(seed, at.inputs[1].item()?, g.len())?),
        })
    }

    fn attributes(&self) -> Attributes {
        let ratio = self.ratio.map(|ratio| ("ratio", Attribute::Float(ratio)));
        ratio.into_iter().chain(self.training.map(|seed| ("seed", Attribute::Int(seed)))).collect()
    }

    /// The ratio as an operand, unless it is the default.
    fn written(&self, _opset: i64) -> (Attributes, Vec<Tensor>) {
        (vec![], self.ratio.filter(|ratio| *ratio != 0.5).map(Tensor::scalar).into_iter().collect())
    }

    /// A model is written in the form for inference.
    fn function(&self, _inputs: &[&Fact]) -> Option<Result<Graph>> {
        self.training.map(|_| Err(Error::unsupported("Dropout", "a file of the form for training")))
    }

    fn quant(&self) -> Quant {
        if self.training.is_some() { Quant::Float } else { Quant::Share }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::differences::{Case, check};

    fn read(opset: i64, ratio: Option<f32>, inputs: Vec<Option<Tensor>>) -> Result<Arc<dyn Op>> {
        let attributes = ratio.map(|x| ("ratio".to_string(), Attribute::Float(x))).into_iter().collect();
        let constants = std::iter::once(None).chain(inputs).collect();
        Dropout::read(&mut Reading::new("Dropout", opset, attributes, constants, 1))
    }

    #[test]
    fn the_ratio_is_read_and_written() {
        let constant = |x: f32| Some(Tensor::scalar(x));
        let off = || Some(Tensor::scalar(false));
        let cases = [
            (10, Some(0.3), vec![], Some(0.3), vec![Tensor::scalar(0.3f32)]),
            (13, None, vec![], Some(0.5), vec![]),
            (13, None, vec![constant(0.1), off()], Some(0.1), vec![Tensor::scalar(0.1f32)]),
            (13, None, vec![Some(Tensor::vector(Vec::<f32>::new())), off()], Some(0.5), vec![]),
            (13, None, vec![None], None, vec![]),
        ];
        for (opset, attribute, inputs, ratio, written) in cases {
            let op = read(opset, attribute, inputs).unwrap();
            assert_eq!(op.is::<Dropout>(), Some(&Dropout { ratio, training: None }));
            assert_eq!(op.written(13), (vec![], written));
        }
        let message = read(13, None, vec![None, Some(Tensor::scalar(true))]).unwrap_err().to_string();
        assert!(message.contains("training_mode"), "{message}");
    }

    #[test]
    fn inference_keeps_every_element() {
        let x = Tensor::vector(vec![1f32, 2.]);
        let kept = Tensor::vector(vec![true; 2]);
        assert_eq!(Dropout::new(0.9).eval(&[&x]).unwrap(), [x, kept]);
    }

    #[test]
    fn training_drops_the_ratio_and_keeps_the_mean() {
        let n = 200_000;
        let x = Tensor::full(&[n], 3f32).unwrap();
        for ratio in [0.0, 0.1, 0.5, 0.9, 1.0] {
            let y = Dropout::new(ratio).in_training(7).eval(&[&x, &Tensor::scalar(5i64)]).unwrap();
            let kept = y[1].slice::<bool>().unwrap().iter().filter(|kept| **kept).count() as f32 / n as f32;
            assert!((kept - (1.0 - ratio)).abs() < 5e-3, "{ratio}: {kept}");
            let each = y[0].slice::<f32>().unwrap().iter().zip(y[1].slice::<bool>().unwrap());
            each.for_each(|(y, kept)| assert_eq!(*y, if *kept { 3.0 * (1.0 / (1.0 - ratio)) } else { 0.0 }));
        }
    }

    #[test]
    fn masks_follow_from_seed_and_step_alone() {
        let op = Dropout::new(0.5);
        let mask = |seed, step, n| op.mask(seed, step, n).unwrap();
        let first = mask(1, 0, 100_000);
        assert_eq!(first, mask(1, 0, 100_000));
        assert_eq!(first[..1000], mask(1, 0, 1000));
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(first, one.install(|| mask(1, 0, 100_000)));
        // Independent masks agree in half of the elements, also shifted by one.
        let others = [mask(1, 1, 100_000), mask(2, 0, 100_000), mask(0, 1, 100_000), first[1..].to_vec()];
        for (i, other) in others.iter().enumerate() {
            let same = first.iter().zip(other).filter(|(a, b)| a == b).count();
            assert!((49_000..51_000).contains(&same), "{i}: {same}");
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let training = Dropout::new(0.3).in_training(11);
        check([
            Case::new(Dropout::new(0.3), &[&[3, 5]]),
            Case::new(training, &[&[3, 5]]).and(Tensor::scalar(2i64)),
            Case::new(training, &[&[2, 1, 40]]).and(Tensor::scalar(3i64)),
        ]);
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let (x, step) = (Fact::new(DType::F32, [3]), Fact::new(DType::I64, [0usize; 0]));
        let training = Dropout::new(0.5).in_training(0);
        assert!(training.infer(&[&x, &step]).is_ok());
        let half = Fact::new(DType::F16, [3]);
        let cases: [(Dropout, Vec<&Fact>); 7] = [
            (training, vec![&x]),
            (training, vec![&half, &step]),
            (training, vec![&x, &x]),
            (Dropout::new(1.5).in_training(0), vec![&x, &step]),
            (Dropout::new(f32::NAN).in_training(0), vec![&x, &step]),
            (Dropout { ratio: None, training: Some(0) }, vec![&x, &step]),
            (Dropout::new(0.5), vec![]),
        ];
        for (op, inputs) in cases {
            assert!(op.infer(&inputs).is_err(), "{op:?} of {inputs:?}");
        }
        assert!(training.function(&[&x, &step]).unwrap().is_err());
        assert!(Dropout::new(0.5).function(&[&x]).is_none());
    }
}
