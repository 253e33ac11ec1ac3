//! What reverse mode shows an operator of a node that was run.

use crate::error::{Result, invalid};
use crate::tensor::Tensor;

/// A node that was run, and the gradient of a scalar `L` by its outputs:
/// [`Op::vjp`](super::Op::vjp) makes of it the gradient by its operands.
#[derive(Clone, Copy, Debug)]
pub struct Reverse<'a> {
    /// The operands.
    pub inputs: &'a [&'a Tensor],
    /// The outputs that the node names.
    pub outputs: &'a [&'a Tensor],
    /// `dL / d outputs[i]`, f32 of the shape of the output; `None` is zero. At
    /// least one is there.
    pub gradients: &'a [Option<Tensor>],
    /// Which operands' gradients are asked for. Those are f32.
    pub wanted: &'a [bool],
}

impl<'a> Reverse<'a> {
    /// Whether the gradient by operand `i` is asked for.
    pub fn wants(&self, i: usize) -> bool {
        self.wanted.get(i).copied().unwrap_or(false)
    }

    /// The gradient by the first output.
    ///
    /// # Errors
    /// If only other outputs have one.
    pub fn gradient(&self) -> Result<&'a Tensor> {
        self.gradients
            .first()
            .and_then(Option::as_ref)
            .ok_or_else(|| invalid!("has no gradient by its first output"))
    }

    /// One entry for each operand: what `f` makes of the wanted ones.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn each(&self, mut f: impl FnMut(usize) -> Result<Tensor>) -> Result<Vec<Option<Tensor>>> {
        (0..self.inputs.len()).map(|i| self.wants(i).then(|| f(i)).transpose()).collect()
    }
}
