//! The elements of a tensor, to be looked at.

use std::borrow::Cow;

use crate::error::Result;
use crate::tensor::Tensor;

/// The elements as f32, without a copy where they are.
///
/// # Errors
/// If they are no numbers.
pub(super) fn elements(x: &Tensor) -> Result<Cow<'_, [f32]>> {
    match x.slice::<f32>() {
        Ok(values) => Ok(Cow::Borrowed(values)),
        Err(_) => Ok(Cow::Owned(x.to_f32()?)),
    }
}
