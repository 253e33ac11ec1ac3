//! What an operator's constructor sees of the ONNX node it is read from.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Attribute, Op};
use crate::error::{Error, Result, invalid};
use crate::tensor::Tensor;

/// Makes an operator from an ONNX node: one row of the reader's table.
pub type ReadOp = fn(&mut Reading) -> Result<Arc<dyn Op>>;

/// An ONNX node as its operator's constructor reads it. Attributes are taken
/// out one by one; one that is left over is an error, never ignored.
#[derive(Debug)]
pub struct Reading {
    op: String,
    opset: i64,
    attributes: BTreeMap<String, Attribute>,
    constants: Vec<Option<Tensor>>,
    outputs: usize,
    taken: Vec<usize>,
    added: Vec<(usize, Tensor)>,
}

impl Reading {
    /// The node of type `op` in a model of this opset, with `outputs` outputs
    /// in use. `constants` holds, for each input, its value where it is known.
    pub fn new(
        op: &str,
        opset: i64,
        attributes: BTreeMap<String, Attribute>,
        constants: Vec<Option<Tensor>>,
        outputs: usize,
    ) -> Reading {
        Reading { op: op.into(), opset, attributes, constants, outputs, taken: vec![], added: vec![] }
    }

    /// The ONNX operator type.
    pub fn op(&self) -> &str {
        &self.op
    }

    /// The model's opset in the operator's domain.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// The number of inputs, left-out ones included.
    pub fn inputs(&self) -> usize {
        self.constants.len()
    }

    /// The number of outputs that the model names.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// An integer attribute.
    pub fn int(&mut self, name: &str) -> Result<Option<i64>> {
        self.take(name, |a| if let Attribute::Int(x) = a { Ok(x) } else { Err(a) })
    }

    /// A flag: an integer attribute that is 0 or 1.
    pub fn flag(&mut self, name: &str, default: bool) -> Result<bool> {
        Ok(self.int(name)?.map_or(default, |x| x != 0))
    }

    /// A float attribute.
    pub fn float(&mut self, name: &str, default: f32) -> Result<f32> {
        Ok(self.take(name, |a| if let Attribute::Float(x) = a { Ok(x) } else { Err(a) })?.unwrap_or(default))
    }

    /// A string attribute.
    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        self.take(name, |a| if let Attribute::Text(x) = a { Ok(x) } else { Err(a) })
    }

    /// A list of integers.
    pub fn ints(&mut self, name: &str) -> Result<Option<Vec<i64>>> {
        self.take(name, |a| if let Attribute::Ints(x) = a { Ok(x) } else { Err(a) })
    }

    /// A list of floats.
    pub fn floats(&mut self, name: &str) -> Result<Option<Vec<f32>>> {
        self.take(name, |a| if let Attribute::Floats(x) = a { Ok(x) } else { Err(a) })
    }

    /// A list of strings.
    pub fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>> {
        self.take(name, |a| if let Attribute::Texts(x) = a { Ok(x) } else { Err(a) })
    }

    /// A tensor.
    pub fn tensor(&mut self, name: &str) -> Result<Option<Tensor>> {
        self.take(name, |a| if let Attribute::Tensor(x) = a { Ok(x) } else { Err(a) })
    }

    /// A list of sizes (non-negative integers).
    pub fn sizes(&mut self, name: &str) -> Result<Option<Vec<usize>>> {
        let Some(ints) = self.ints(name)? else { return Ok(None) };
        let sizes = ints
            .iter()
            .map(|&x| usize::try_from(x).ok().filter(|&x| x < 1 << 31))
            .collect::<Option<Vec<_>>>();
        sizes.map(Some).ok_or_else(|| invalid!("attribute {name} = {ints:?} holds a negative or huge size"))
    }

    fn take<T>(
        &mut self,
        name: &str,
        f: impl FnOnce(Attribute) -> Result<T, Attribute>,
    ) -> Result<Option<T>> {
        let Some(a) = self.attributes.remove(name) else { return Ok(None) };
        f(a).map(Some).map_err(|a| invalid!("attribute {name} has the wrong type: {a:?}"))
    }

    /// Refuses an attribute unless it has the one value that is supported.
    pub fn only(&mut self, name: &str, supported: &Attribute) -> Result<()> {
        match self.attributes.remove(name) {
            Some(a) if a != *supported => {
                Err(Error::unsupported(&self.op, format!("attribute {name} = {a:?}")))
            }
            _ => Ok(()),
        }
    }

    /// Drops an attribute that changes nothing (training hints and the like).
    pub fn ignore(&mut self, name: &str) {
        self.attributes.remove(name);
    }

    /// Whether input `i` is left out or its value is known.
    pub fn is_constant(&self, i: usize) -> bool {
        self.constants.get(i).is_none_or(Option::is_some)
    }

    /// The value of input `i` if the model gives it as a constant; the input
    /// is then no operand any more, as the operator holds its value.
    ///
    /// # Errors
    /// If the input is there and its value is not known.
    pub fn take_constant(&mut self, i: usize) -> Result<Option<Tensor>> {
        match self.constants.get(i) {
            None => Ok(None),
            Some(Some(t)) => {
                self.taken.push(i);
                Ok(Some(t.clone()).filter(|t| t.shape() != [0]))
            }
            Some(None) => Err(Error::unsupported(&self.op, format!("input {i} that is not a constant"))),
        }
    }

    /// Gives the operator a constant operand at input `i`, which an older
    /// opset had as an attribute.
    pub fn add_operand(&mut self, i: usize, t: Tensor) {
        self.added.push((i, t));
    }

    /// Checks that every attribute was read, and tells which inputs the
    /// operator took for itself and which constant operands it gained.
    ///
    /// # Errors
    /// If an attribute is left over.
    pub fn finish(self) -> Result<(Vec<usize>, Vec<(usize, Tensor)>)> {
        match self.attributes.into_iter().next() {
            Some((name, a)) => Err(Error::unsupported(self.op, format!("attribute {name} = {a:?}"))),
            None => Ok((self.taken, self.added)),
        }
    }
}
