//! How far tensors may differ.

use lowbit::{DType, Tensor};

/// What two numbers may differ by.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Part of the expected magnitude.
    pub relative: f32,
    /// Beside it.
    pub absolute: f32,
    /// Steps between integers.
    pub steps: i64,
}

/// Checks type, shape and every element; the error tells the first that is
/// too far off, and how many are.
pub fn close(found: &Tensor, want: &Tensor, tolerance: Tolerance) -> Result<(), String> {
    if (found.dtype(), found.shape()) != (want.dtype(), want.shape()) {
        return Err(format!("is {found:?} instead of {want:?}"));
    }
    let integer = want.dtype() != DType::Bool && want.dtype().is_integer();
    let off: Vec<(usize, String)> = if integer {
        let (found, want) = (found.integers().unwrap(), want.integers().unwrap());
        let pairs = found.iter().zip(&want).enumerate();
        pairs
            .filter(|(_, (a, b))| a.abs_diff(**b) > tolerance.steps as u64)
            .map(|(i, (a, b))| (i, format!("{a} instead of {b}")))
            .collect()
    } else {
        let (found, want) = (found.to_f32().unwrap(), want.to_f32().unwrap());
        let pairs = found.iter().zip(&want).enumerate();
        pairs
            .filter(|(_, (a, b))| !near(**a, **b, tolerance))
            .map(|(i, (a, b))| (i, format!("{a} instead of {b}")))
            .collect()
    };
    match off.first() {
        Some((i, what)) => Err(format!("{} of {} elements: [{i}] is {what}", off.len(), want.len())),
        None => Ok(()),
    }
}

fn near(found: f32, want: f32, tolerance: Tolerance) -> bool {
    found == want
        || (found.is_nan() && want.is_nan())
        || (found - want).abs() <= tolerance.absolute + tolerance.relative * want.abs()
}
