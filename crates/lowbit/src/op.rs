//! What an operator is: shapes, values, and how its neighbours are quantized.

mod reading;
mod reverse;
mod routine;

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::error::{Result, invalid};
use crate::graph::Graph;
use crate::tensor::buffers::recycle;
use crate::tensor::{DType, Tensor};

pub use reading::{ReadOp, Reading};
pub use reverse::Reverse;
pub use routine::{DataMut, Operand, Prepared, Routine, View, ViewMut, eval_by_routine};

/// One dimension of a value: a number, or a name such as `N` that every run
/// binds anew. Computed dimensions carry their formula as the name, so equal
/// names mean equal sizes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A size fixed by the model.
    Known(usize),
    /// A size fixed by the input.
    Named(String),
}

impl Dim {
    /// A size that follows from nothing known before the run, in what
    /// [`Op::infer`] returns. [`Builder`](crate::graph::Builder) names it after
    /// the value that has it: `any(y.0)` is that of dimension 0 of `y`.
    pub fn unknown() -> Dim {
        Dim::Named("any()".into())
    }

    /// The name of the size of dimension `axis` of `value`, which follows from
    /// nothing else.
    pub(crate) fn any(value: &str, axis: usize) -> Dim {
        Dim::Named(format!("any({value}.{axis})"))
    }

    /// The size, if it is fixed.
    pub fn known(&self) -> Option<usize> {
        match self {
            Dim::Known(n) => Some(*n),
            Dim::Named(_) => None,
        }
    }

    /// An integer of shape arithmetic ([`Fact::sizes`]): a negative one, such as
    /// the -1 of a Reshape, is its own formula.
    pub fn integer(x: i64) -> Dim {
        usize::try_from(x).map_or_else(|_| Dim::Named(x.to_string()), Dim::Known)
    }

    /// The integer that [`Dim::integer`] was given.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Dim::Known(n) => i64::try_from(*n).ok(),
            Dim::Named(s) => s.parse().ok().filter(|&x| x < 0),
        }
    }

    /// `f` of a fixed size; the formula `what(self)` of a named one.
    pub fn map(&self, what: &str, f: impl FnOnce(usize) -> usize) -> Dim {
        match self {
            Dim::Known(n) => Dim::Known(f(*n)),
            Dim::Named(s) => Dim::Named(format!("{what}({s})")),
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::Known(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Named(s) => f.write_str(s),
        }
    }
}

/// What is known of a value before it is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<Dim>,
    /// The elements of a small integer or boolean value: shape arithmetic
    /// (Shape, Gather, Concat ...) is carried along here, symbols included. A
    /// negative integer is the formula of itself ([`Dim::integer`]).
    pub sizes: Option<Vec<Dim>>,
}

/// Integer values of at most this many elements are followed as sizes.
pub(crate) const MAX_SIZES: usize = 32;

impl Fact {
    /// A value of this type and shape.
    pub fn new(dtype: DType, shape: impl IntoIterator<Item = impl Into<Dim>>) -> Fact {
        Fact { dtype, shape: shape.into_iter().map(Into::into).collect(), sizes: None }
    }

    /// What is known of a constant.
    pub fn of(t: &Tensor) -> Fact {
        let sizes = (t.len() <= MAX_SIZES).then(|| match t.dtype() {
            DType::I64 | DType::I32 => t.integers().ok().map(|x| x.into_iter().map(Dim::integer).collect()),
            DType::Bool => {
                t.slice::<bool>().ok().map(|x| x.iter().map(|&x| Dim::Known(usize::from(x))).collect())
            }
            _ => None,
        });
        let sizes = sizes.flatten();
        Fact { dtype: t.dtype(), shape: t.shape().iter().map(|&n| Dim::Known(n)).collect(), sizes }
    }

    /// The same type with another shape.
    pub fn with_shape(&self, shape: Vec<Dim>) -> Fact {
        Fact { dtype: self.dtype, shape, sizes: None }
    }

    /// The same value with its elements, if they are few enough to follow.
    pub fn with_sizes(mut self, sizes: Option<Vec<Dim>>) -> Fact {
        self.sizes = sizes.filter(|s| s.len() <= MAX_SIZES);
        self
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The shape, if every dimension is fixed.
    pub fn known_shape(&self) -> Option<Vec<usize>> {
        self.shape.iter().map(Dim::known).collect()
    }

    /// The number of elements, named dimensions counted as 1: per-sample cost.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |n: u64, d| n.saturating_mul(d.known().unwrap_or(1) as u64))
    }

    /// Whether this stands for an operand that the model leaves out.
    pub fn is_absent(&self) -> bool {
        self.shape == [Dim::Known(0)]
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { "," } else { "" })?;
        }
        f.write_str("]")
    }
}

/// An operator's attribute, as ONNX has them.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
    Tensor(Tensor),
    Graph(Graph),
}

/// Attributes in the order in which they are written.
pub type Attributes = Vec<(&'static str, Attribute)>;

/// How an operator behaves when its neighbours are quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quant {
    /// Computes in integers: its float inputs (of a recurrent layer, the first)
    /// and its output have points.
    Compute {
        /// Input and channel axis of the weight, if it has one.
        weight: Option<(usize, usize)>,
        /// Input of the bias, kept in i32.
        bias: Option<usize>,
    },
    /// Moves the values of input 0: input and output share one point.
    Share,
    /// Moves the values of all inputs: they and the output share one point.
    Merge,
    /// Restricts values to a range: folded into the clamp of the operator
    /// before it, and otherwise like [`Quant::Compute`].
    Clamp {
        /// Least value.
        lo: f32,
        /// Greatest value.
        hi: f32,
    },
    /// Computes in integers, and its output lies in a range known beforehand.
    Fixed {
        /// Least value.
        lo: f32,
        /// Greatest value.
        hi: f32,
    },
    /// Stays in float.
    Float,
}

/// One operator: a struct of its attributes, with its semantics.
///
/// A new operator is one struct in `ops/<family>.rs` and one row of the table
/// that reads ONNX nodes.
pub trait Op: Any + fmt::Debug + Send + Sync {
    /// The ONNX operator type.
    fn name(&self) -> &'static str;

    /// The ONNX domain; the standard one is empty.
    fn domain(&self) -> &'static str {
        ""
    }

    /// The lowest opset in which the operator can be written as it is.
    fn opset(&self) -> i64 {
        13
    }

    /// Types and shapes of the outputs.
    ///
    /// # Errors
    /// If the inputs do not fit the operator.
    fn infer(&self, inputs: &[&Fact]) -> Result<Vec<Fact>>;

    /// The outputs: the reference semantics.
    ///
    /// # Errors
    /// If the inputs do not fit the operator.
    fn eval(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>>;

    /// [`Op::eval`] of operands that are given away: an operator that writes
    /// its output over its input need not copy what nobody else holds.
    ///
    /// # Errors
    /// As [`Op::eval`].
    fn eval_owned(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let made = self.eval(&inputs.iter().collect::<Vec<_>>());
        inputs.into_iter().for_each(recycle);
        made
    }

    /// [`Op::eval`] with outputs below `lo` set to `lo` and those above `hi` to
    /// `hi` (NaN stays), in one pass; `None` if the operator has no such form.
    ///
    /// # Errors
    /// As [`Op::eval`].
    fn eval_clamped(&self, _inputs: &[&Tensor], _lo: f32, _hi: f32) -> Option<Result<Vec<Tensor>>> {
        None
    }

    /// The vector-Jacobian product: of the gradients by the outputs, those by the
    /// operands, one entry for each, `None` where it is zero or not
    /// [wanted](Reverse::wanted). Sums are made in an order that does not depend
    /// on the number of threads.
    ///
    /// # Errors
    /// If the operator has no gradient.
    fn vjp(&self, _at: &Reverse<'_>) -> Result<Vec<Option<Tensor>>> {
        Err(invalid!("has no gradient: it cannot lie between a trained value and the loss"))
    }

    /// How a plan runs the operator on operands of these types and shapes.
    ///
    /// # Errors
    /// If the operands do not fit the operator.
    fn prepare(&self, _operands: &[Operand<'_>]) -> Result<Prepared> {
        Ok(Prepared::Eval)
    }

    /// The attributes, complete: two operators are equal if name and
    /// attributes are.
    fn attributes(&self) -> Attributes {
        vec![]
    }

    /// Attributes and additional constant operands as opset `opset` writes
    /// them, where opsets differ.
    fn written(&self, _opset: i64) -> (Attributes, Vec<Tensor>) {
        (self.attributes(), vec![])
    }

    /// The graphs that the operator runs. The last [`Op::captured`] inputs of
    /// each are the last operands of the node: values of the graph around it.
    fn bodies(&self) -> &[Graph] {
        &[]
    }

    /// How many operands, the last ones, the bodies capture.
    fn captured(&self) -> usize {
        0
    }

    /// The same operator with these bodies, of which the last `captured` inputs
    /// are captured.
    ///
    /// # Errors
    /// If they do not fit the operator.
    fn with_bodies(&self, _bodies: Vec<Graph>, _captured: usize) -> Result<Arc<dyn Op>> {
        Err(invalid!("{} has no bodies", self.name()))
    }

    /// The operator with its bodies made for operands of these types and
    /// shapes; nothing where they are already.
    ///
    /// # Errors
    /// If the operands do not fit the bodies.
    fn fitted(&self, _inputs: &[&Fact]) -> Result<Option<Arc<dyn Op>>> {
        Ok(None)
    }

    /// What the operator computes, in operators of the standard domain: files
    /// that hold an operator of a domain of its own hold this function beside
    /// it, so that every runtime can run them. The inputs of the graph are those
    /// of the node, left-out ones included.
    fn function(&self, _inputs: &[&Fact]) -> Option<Result<Graph>> {
        None
    }

    /// How its neighbours are quantized.
    fn quant(&self) -> Quant {
        Quant::Float
    }

    /// Whether a result of constant inputs may be stored in its place.
    fn folds(&self) -> bool {
        true
    }

    /// Multiply-accumulate operations for one sample (named dimensions
    /// counted as 1).
    fn macs(&self, _inputs: &[&Fact], _outputs: &[&Fact]) -> u64 {
        0
    }
}

impl dyn Op {
    /// The operator as a `T`, if it is one.
    pub fn is<T: Op>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

impl PartialEq for dyn Op {
    fn eq(&self, other: &dyn Op) -> bool {
        (self.name(), self.domain()) == (other.name(), other.domain())
            && self.attributes() == other.attributes()
    }
}

/// Input `i`, unless the model leaves it out (no such input, or the empty
/// tensor that stands for an absent one).
pub fn optional<'a>(inputs: &[&'a Tensor], i: usize) -> Option<&'a Tensor> {
    inputs.get(i).copied().filter(|t| t.shape() != [0])
}

/// The fact of input `i`, unless the model leaves it out.
pub fn optional_fact<'a>(inputs: &[&'a Fact], i: usize) -> Option<&'a Fact> {
    inputs.get(i).copied().filter(|f| !f.is_absent())
}

/// Checks the number of inputs.
///
/// # Errors
/// If there are fewer than `least` or more than `most`.
pub fn arity<T>(inputs: &[T], least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&inputs.len()) {
        return Ok(());
    }
    let range = if least == most { least.to_string() } else { format!("{least} to {most}") };
    Err(invalid!("takes {range} inputs, found {}", inputs.len()))
}
