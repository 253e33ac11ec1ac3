//! Class scores: which output holds them, and which class comes first.

use crate::error::{Result, invalid};
use crate::tensor::Tensor;

/// The number of classes of an output that holds class scores: `[samples, classes]`,
/// other dimensions of size 1.
///
/// # Errors
/// If it has another shape.
pub fn classes(output: &Tensor, samples: usize) -> Result<usize> {
    let rest = output.shape().get(1..).unwrap_or_default();
    let single = rest.iter().filter(|&&n| n != 1).count() <= 1;
    if output.shape().first() == Some(&samples) && single && !output.is_empty() {
        return Ok(output.len() / samples);
    }
    let shape = output.shape();
    Err(invalid!("the output has shape {shape:?}, expected class scores of shape [{samples}, classes]"))
}

/// The class of the greatest score, the first of equal ones; none if all are NaN.
pub fn first(scores: &[f32]) -> Option<usize> {
    let numbers = scores.iter().enumerate().filter(|(_, x)| !x.is_nan());
    numbers.fold(None, |best: Option<usize>, (i, x)| match best {
        Some(b) if *x <= scores[b] => best,
        _ => Some(i),
    })
}

/// The classes of the `k` greatest scores, the greatest first; ties in the
/// order of classes, without NaN.
pub fn top(scores: &[f32], k: usize) -> Vec<usize> {
    let mut classes: Vec<usize> = (0..scores.len()).filter(|&i| !scores[i].is_nan()).collect();
    let value = |i: usize| scores[i] + 0.0;
    let order = |a: &usize, b: &usize| value(*b).total_cmp(&value(*a)).then(a.cmp(b));
    if k < classes.len() && k > 0 {
        classes.select_nth_unstable_by(k - 1, order);
    }
    classes.truncate(k);
    classes.sort_unstable_by(order);
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_scores_come_first() {
        let nan = f32::NAN;
        for (scores, k, classes) in [
            (&[0.1, 0.7, 0.2][..], 2, &[1, 2][..]),
            (&[1.0, 1.0, 2.0, 1.0], 3, &[2, 0, 1]),
            (&[nan, 1.0, nan], 3, &[1]),
            (&[nan, nan], 1, &[]),
            (&[0.0, -0.0], 2, &[0, 1]),
            (&[-0.0, 0.0], 2, &[0, 1]),
            (&[3.0, 1.0], 0, &[]),
        ] {
            assert_eq!(top(scores, k), classes, "{scores:?}");
        }
    }

    #[test]
    fn the_first_class_is_the_first_of_the_greatest() {
        let nan = f32::NAN;
        for (scores, want) in [
            (&[][..], None),
            (&[nan, nan], None),
            (&[nan, -1.0, -2.0], Some(1)),
            (&[0.0, 3.0, 3.0], Some(1)),
            (&[-0.0, 0.0], Some(0)),
        ] {
            assert_eq!(first(scores), want, "{scores:?}");
            assert_eq!(top(scores, 1).first().copied(), want, "{scores:?}");
        }
    }

    #[test]
    fn only_rows_of_scores_have_classes() {
        for (shape, samples, want) in [
            (&[2, 3][..], 2, Some(3)),
            (&[2, 3, 1, 1], 2, Some(3)),
            (&[2], 2, Some(1)),
            (&[2, 3], 3, None),
            (&[2, 3, 2], 2, None),
            (&[0, 3], 0, None),
        ] {
            let t = Tensor::full(shape, 0f32).unwrap();
            assert_eq!(classes(&t, samples).ok(), want, "{shape:?}, {samples} samples");
        }
    }
}
