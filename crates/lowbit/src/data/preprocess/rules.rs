//! The preparation of arrays.

use serde::{Deserialize, Serialize};

use crate::error::{Result, invalid};
use crate::tensor::Tensor;

/// How the arrays of a `.npy` or `.npz` file become a model's input:
/// `(x - zero_point) * scale`, in f32, if either is given; as they are if not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArrayRule {
    /// The member that is the model's first input. A pattern such as `story*`
    /// takes each matching member, whatever its length, as one sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The member that holds the labels; `y` or `labels` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// Multiplies last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<Factor>,
    /// Subtracted first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_point: Option<Factor>,
}

/// A number, or the name of the member of the `.npz` that holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Factor {
    /// The number.
    Value(f32),
    /// A member of one element.
    Member(String),
}

/// `(x - zero_point) * scale`.
#[derive(Clone, Copy, Debug)]
pub(in crate::data) struct Affine {
    zero_point: f32,
    scale: f32,
}

impl ArrayRule {
    pub(super) fn check(&self) -> Result<()> {
        for (key, factor) in [("scale", &self.scale), ("zero_point", &self.zero_point)] {
            if let Some(Factor::Value(x)) = factor
                && !x.is_finite()
            {
                return Err(invalid!("array.{key}: {x} is not finite"));
            }
        }
        Ok(())
    }

    /// The numbers, members read by `member`; `None` if arrays go in as they are.
    pub(in crate::data) fn affine(
        &self,
        mut member: impl FnMut(&str) -> Result<Tensor>,
    ) -> Result<Option<Affine>> {
        if self.scale.is_none() && self.zero_point.is_none() {
            return Ok(None);
        }
        let mut number = |factor: &Option<Factor>, default: f32| match factor {
            None => Ok(default),
            Some(Factor::Value(x)) => Ok(*x),
            Some(Factor::Member(name)) => {
                let t = member(name)?;
                match t.to_f32()?.as_slice() {
                    [x] if x.is_finite() => Ok(*x),
                    _ => Err(invalid!("array {name:?} should be one finite number, is {t:?}")),
                }
            }
        };
        Ok(Some(Affine { zero_point: number(&self.zero_point, 0.0)?, scale: number(&self.scale, 1.0)? }))
    }
}

impl Affine {
    /// `(x - zero_point) * scale` of every element, as f32.
    pub(in crate::data) fn apply(self, x: &Tensor) -> Result<Tensor> {
        let data = x.to_f32()?.into_iter().map(|x| (x - self.zero_point) * self.scale).collect::<Vec<f32>>();
        Tensor::new(x.shape(), data)
    }
}
