//! Where values are quantized.

use super::gptq::InputMoments;
use super::means::InputMeans;
use crate::error::Result;
use crate::observer::AnyObserver;
use crate::op::{Attribute, Attributes, Fact, Op, arity};
use crate::qparams::QParams;
use crate::scheme::Scheme;
use crate::tensor::Tensor;

/// What a point's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// They change from run to run.
    Activation,
    /// They are constants of the model.
    Weight,
}

/// A quantization point: one scheme and one observer, for all the values that
/// share them.
#[derive(Clone, Debug)]
pub struct Point {
    /// The name of the first value that it quantizes.
    pub name: String,
    /// What the values are.
    pub role: Role,
    /// How they will be quantized.
    pub scheme: Scheme,
    /// What has been seen of them.
    pub observer: AnyObserver,
    /// For weights whose bias is to make up for their quantization: the mean
    /// inputs of the operator.
    pub means: Option<InputMeans>,
    /// For weights whose codes are chosen by the inputs of the operator: their
    /// second moments.
    pub moments: Option<InputMoments>,
    /// How many values of the graph are shown to it.
    pub(super) sites: usize,
}

impl Point {
    /// Takes a value into account.
    ///
    /// # Errors
    /// If it is NaN, or of a shape that does not fit those before.
    pub fn observe(&mut self, x: &Tensor) -> Result<()> {
        let observed = match self.role {
            Role::Activation => self.observer.observe(x),
            Role::Weight => {
                let means = self.means.as_mut().map(|means| means.observe(x));
                let moments = self.moments.as_mut().map(|moments| moments.observe(x));
                means.into_iter().chain(moments).collect()
            }
        };
        observed.map_err(|e| e.at(&self.name))
    }

    /// Scale and zero point for what has been seen.
    ///
    /// # Errors
    /// If nothing has been seen.
    pub fn params(&self) -> Result<QParams> {
        self.observer.qparams()
    }
}

/// The operator that stands in a prepared graph where a value will be
/// quantized. It changes nothing.
#[derive(Clone, Debug)]
pub struct PointOp {
    /// Index into [`super::Prepared::points`].
    pub point: usize,
    /// Whether the values are those of another place of the point, moved (or
    /// a constant), so that they need not be watched.
    pub moved: bool,
}

impl Op for PointOp {
    fn name(&self) -> &'static str {
        "Point"
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        arity(x, 1, 1)?;
        Ok(vec![x[0].clone()])
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![x[0].clone()])
    }
    fn attributes(&self) -> Attributes {
        vec![("point", Attribute::Int(self.point as i64))]
    }
    fn folds(&self) -> bool {
        false
    }
}
