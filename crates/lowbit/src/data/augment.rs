//! Random changes of pictures that leave their class as it is.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Result, invalid};
use crate::random::SplitMix;
use crate::tensor::Tensor;

/// What is done to each picture of a batch `[N, C, H, W]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Mirror every other one, left to right.
    pub flip: bool,
    /// Move it by up to this many pixels each way; what comes in is 0: a crop of
    /// the padded picture.
    pub shift: usize,
}

impl Augment {
    /// Whether nothing is done.
    pub fn is_none(&self) -> bool {
        !self.flip && self.shift == 0
    }

    /// The batch with each picture changed as the numbers of its own seed say.
    ///
    /// # Errors
    /// If the batch does not hold pictures, or one for each seed.
    pub fn apply(&self, batch: &Tensor, seeds: &[u64]) -> Result<Tensor> {
        if self.is_none() {
            return Ok(batch.clone());
        }
        let &[n, channels, height, width] = batch.shape() else {
            return Err(invalid!(
                "only pictures [N, C, H, W] are augmented, found shape {:?}",
                batch.shape()
            ));
        };
        if n != seeds.len() {
            return Err(invalid!("a batch of {n} pictures takes a seed for each, found {}", seeds.len()));
        }
        let size = channels * height * width;
        let mut y = vec![0f32; batch.len()];
        let pictures = y.par_chunks_mut(size.max(1)).zip(batch.slice::<f32>()?.par_chunks(size.max(1)));
        pictures.zip(seeds).for_each(|((to, from), &seed)| {
            let mut numbers = SplitMix::new(seed);
            let mirrored = self.flip && numbers.below(2) == 1;
            let [down, right] = [(); 2].map(|()| numbers.below(2 * self.shift + 1));
            for (to, from) in to.chunks_mut(height * width).zip(from.chunks(height * width)) {
                for (row, to) in to.chunks_mut(width).enumerate() {
                    let at = (row + down).checked_sub(self.shift).filter(|at| *at < height);
                    let Some(from) = at.map(|at| &from[at * width..][..width]) else { continue };
                    for (col, to) in to.iter_mut().enumerate() {
                        let col = if mirrored { width - 1 - col } else { col };
                        let at = (col + right).checked_sub(self.shift).filter(|at| *at < width);
                        *to = at.map_or(0.0, |at| from[at]);
                    }
                }
            }
        });
        Tensor::new(batch.shape(), y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_mirrored_and_moved() {
        let x = Tensor::new(&[1, 1, 2, 2], vec![1f32, 2., 3., 4.]).unwrap();
        let made = |augment: Augment| {
            let mut seen: Vec<Vec<f32>> =
                (0..200).map(|seed| augment.apply(&x, &[seed]).unwrap().to_f32().unwrap()).collect();
            seen.sort_by(|a, b| {
                a.iter()
                    .zip(b)
                    .map(|(a, b)| a.total_cmp(b))
                    .find(|o| o.is_ne())
                    .unwrap_or(std::cmp::Ordering::Equal)
            });
            seen.dedup();
            seen
        };
        assert_eq!(made(Augment::default()), [[1., 2., 3., 4.]]);
        assert_eq!(made(Augment { flip: true, shift: 0 }), [[1., 2., 3., 4.], [2., 1., 4., 3.]]);
        let moved = made(Augment { flip: false, shift: 1 });
        assert_eq!(moved.len(), 9, "three places each way");
        assert!(moved.contains(&vec![4., 0., 0., 0.]) && moved.contains(&vec![0., 0., 0., 1.]));
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        let flip = Augment { flip: true, shift: 0 };
        let error = flip.apply(&Tensor::vector(vec![1f32]), &[0]).unwrap_err().to_string();
        assert!(error.contains("pictures"), "{error}");
    }
}
