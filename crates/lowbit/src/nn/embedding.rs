//! Rows of a table.

use super::init::Init;
use super::module::{Module, Parameter};
use super::scope::Scope;
use crate::error::{Result, invalid};
use crate::graph::Var;
use crate::ops::binary::Variadic;
use crate::ops::compare::{Comparison, Logic, Where};
use crate::ops::gather::Gather;
use crate::ops::generate::Range;
use crate::ops::reduce::{Reduce, Reduction};
use crate::ops::shape::Shape;
use crate::tensor::{DType, Tensor};

/// `y[..] = weight[x[..]]`, for integers `x`. Parameter: weight `[rows, columns]`.
#[derive(Clone, Debug)]
pub struct Embedding {
    rows: usize,
    columns: usize,
    padding: Option<usize>,
}

impl Embedding {
    /// A table of `rows` vectors of `columns` elements.
    pub fn new(rows: usize, columns: usize) -> Embedding {
        Embedding { rows, columns, padding: None }
    }

    /// With a row that begins as zeros.
    pub fn padding_idx(self, row: usize) -> Embedding {
        Embedding { padding: Some(row), ..self }
    }
}

impl Module for Embedding {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        let weight = g.parameter("weight")?;
        g.layer(Gather { axis: 0 }, &[weight, x])
    }

    fn parameters(&self) -> Vec<Parameter> {
        let init = Init::Normal { zero_row: self.padding };
        vec![Parameter::new("weight", &[self.rows, self.columns], init)]
    }
}

/// What the rows of a bag become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BagMode {
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
    /// The greatest of each column.
    Max,
}

/// Rows of a table, those of each bag reduced to one; a bag of none is 0. A bag is a
/// row of an input `[bags, size]`; or, of a list of indices and the positions where bags
/// begin, what lies up to the next one. Parameter: weight `[rows, columns]`.
#[derive(Clone, Debug)]
pub struct EmbeddingBag {
    rows: usize,
    columns: usize,
    mode: BagMode,
}

impl EmbeddingBag {
    /// A table of `rows` vectors of `columns` elements.
    pub fn new(rows: usize, columns: usize, mode: BagMode) -> EmbeddingBag {
        EmbeddingBag { rows, columns, mode }
    }

    /// Bags in a list `indices [n]`, which begin at `offsets [bags]` (int64).
    ///
    /// # Errors
    /// If the operands do not fit.
    pub fn bags(&self, g: &mut Scope<'_>, indices: Var, offsets: Var) -> Result<Var> {
        let weight = g.parameter("weight")?;
        let rows = g.apply(Gather { axis: 0 }, &[weight, indices])?;
        let count = g.apply(Shape { start: 0, end: None }, &[indices])?;
        let [zero, one] = [0i64, 1].map(|x| g.constant("step", Tensor::scalar(x)));
        let n = g.squeeze(count, 0)?;
        let positions = g.apply(Range, &[zero, n, one])?;
        let later = g.slice(offsets, 0, 1, i64::MAX)?;
        let ends = g.cat(&[later, count], 0)?;
        let (begins, ends) = (g.unsqueeze(offsets, 1)?, g.unsqueeze(ends, 1)?);
        let after = g.apply(Comparison::GreaterOrEqual, &[positions, begins])?;
        let before = g.apply(Comparison::Less, &[positions, ends])?;
        let member = g.apply(Logic::And, &[after, before])?;
        if self.mode == BagMode::Max {
            let (outside, none) = (g.scalar(f32::NEG_INFINITY), g.scalar(0.0));
            let member = g.unsqueeze(member, 2)?;
            let kept = g.apply(Where, &[member, rows, outside])?;
            let most = g.apply(Reduce { keepdims: false, ..Reduce::new(Reduction::Max, &[1]) }, &[kept])?;
            let empty = g.apply(Comparison::Equal, &[most, outside])?;
            return g.apply(Where, &[empty, none, most]);
        }
        let member = g.cast(member, DType::F32)?;
        let sum = g.matmul(member, rows)?;
        if self.mode == BagMode::Sum {
            return Ok(sum);
        }
        let sizes = g.apply(Reduce::new(Reduction::Sum, &[1]), &[member])?;
        let one = g.scalar(1.0);
        let sizes = g.apply(Variadic::Max, &[sizes, one])?;
        g.div(sum, sizes)
    }
}

impl Module for EmbeddingBag {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        if g.fact(x).rank() != 2 {
            return Err(invalid!(
                "takes [bags, size], found {}; for a list of indices: EmbeddingBag::bags",
                g.fact(x)
            )
            .at(g.place()));
        }
        let weight = g.parameter("weight")?;
        let rows = g.apply(Gather { axis: 0 }, &[weight, x])?;
        let to = match self.mode {
            BagMode::Sum => Reduction::Sum,
            BagMode::Mean => Reduction::Mean,
            BagMode::Max => Reduction::Max,
        };
        g.apply(Reduce { keepdims: false, ..Reduce::new(to, &[1]) }, &[rows])
    }

    fn forward_all(&self, g: &mut Scope<'_>, inputs: &[Var]) -> Result<Vec<Var>> {
        match *inputs {
            [x] => Ok(vec![self.forward(g, x)?]),
            [indices, offsets] => Ok(vec![self.bags(g, indices, offsets)?]),
            _ => Err(invalid!("takes indices and offsets, found {} inputs", inputs.len()).at(g.place())),
        }
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("weight", &[self.rows, self.columns], Init::Normal { zero_row: None })]
    }
}
