//! The values that a weight's codes can stand for.

use crate::codebook::Codebook;
use crate::error::{Result, invalid};
use crate::qparams::QParams;
use crate::scheme::Scheme;
use crate::tensor::Tensor;

/// How the reals of a weight become codes.
#[derive(Clone, Debug, PartialEq)]
pub enum Grid {
    /// Steps of a scale, or the numbers of a float format.
    Steps(QParams),
    /// The values of a codebook.
    Lookup(Codebook),
}

impl Grid {
    /// What the codes are, and what shares one scale.
    pub fn scheme(&self) -> &Scheme {
        match self {
            Grid::Steps(params) => &params.scheme,
            Grid::Lookup(book) => book.scheme(),
        }
    }

    /// One scale for each group.
    pub fn scale(&self) -> &[f32] {
        match self {
            Grid::Steps(params) => &params.scale,
            Grid::Lookup(book) => book.scale(),
        }
    }

    /// The steps, where an integer operator needs them.
    ///
    /// # Errors
    /// If codes stand for the values of a codebook.
    pub fn steps(&self) -> Result<&QParams> {
        match self {
            Grid::Steps(params) => Ok(params),
            Grid::Lookup(book) => Err(invalid!("{}: only float operators take codebooks", book.scheme())),
        }
    }

    /// The nearest codes.
    ///
    /// # Errors
    /// If `x` is not floating point, or its shape has another number of groups.
    pub fn quantize(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Grid::Steps(params) => params.quantize(x),
            Grid::Lookup(book) => book.quantize(x),
        }
    }

    /// The values of the nearest codes.
    ///
    /// # Errors
    /// Those of [`Grid::quantize`].
    pub fn fake_quantize(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Grid::Steps(params) => params.fake_quantize(x),
            Grid::Lookup(book) => book.fake_quantize(x),
        }
    }

    /// The value of the code of group `g` that is nearest to `x`.
    pub(super) fn nearest(&self, g: usize, x: f32) -> f32 {
        match self {
            Grid::Steps(params) => {
                let mut y = [0.0];
                params.fake_quantize_run(g, &[x], &mut y);
                y[0]
            }
            Grid::Lookup(book) => book.nearest(g, x),
        }
    }
}
