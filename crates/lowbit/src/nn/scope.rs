//! Where modules apply operators: a builder, the path of the module at work, and
//! the weights.

use std::collections::HashMap;
use std::sync::Arc;

use super::eager::{Fusion, Mark, Mode};
use super::module::{Module, join};
use super::weights::Weights;
use crate::error::{Result, invalid};
use crate::graph::{Builder, Var, free};
use crate::op::{Fact, Op, Quant};
use crate::ops::unary::Unary;
use crate::quantize::{Grid, ZeroPoints, dequantized};
use crate::tensor::Tensor;

/// What a layer with a range of its own is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A module, which ReLU may have been fused into.
    Module,
    /// The same, whose output gets its axes back behind it.
    Rows,
    /// A [`FloatFunctional`](super::FloatFunctional): it reads nothing but quantized values.
    Functional {
        /// Whether ReLU is a part of it.
        relu: bool,
    },
}

/// What a [`Module`] is given to work with: it finds parameters by the path of the
/// module, and appends operators to the graph, which evaluates them in an eager run.
pub struct Scope<'a> {
    pub(super) b: Builder,
    pub(super) weights: &'a Weights,
    pub(super) mode: Mode<'a>,
    /// Whether parameters are inputs of the graph, not constants.
    pub(super) open: bool,
    /// The quantized values.
    pub(super) marks: HashMap<Var, Mark>,
    path: String,
    parameters: HashMap<String, Var>,
    /// The paths of the parameters.
    own: HashMap<Var, String>,
    /// Scale and zero point of the outputs of quantized modules.
    pub(super) steps: HashMap<String, [Var; 2]>,
    pub(super) zeros: ZeroPoints,
    fusion: &'a Fusion,
    /// What modules that were fused into others have to be called with.
    fused: HashMap<String, Var>,
    /// How often a value was called so.
    names: HashMap<String, usize>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(b: Builder, weights: &'a Weights, fusion: &'a Fusion, mode: Mode<'a>) -> Scope<'a> {
        Scope {
            b,
            weights,
            mode,
            open: false,
            marks: HashMap::new(),
            path: String::new(),
            parameters: HashMap::new(),
            own: HashMap::new(),
            steps: HashMap::new(),
            zeros: ZeroPoints::default(),
            fusion,
            fused: HashMap::new(),
            names: HashMap::new(),
        }
    }

    /// Calls the child `name` of the module at work.
    ///
    /// # Errors
    /// What the child reports.
    pub fn call(&mut self, name: &str, module: &dyn Module, x: Var) -> Result<Var> {
        self.enter(name, |g| match g.passed(&[x])? {
            true => Ok(x),
            false => {
                let y = module.forward(g, x)?;
                g.ends_group(y);
                Ok(y)
            }
        })
    }

    /// The same for modules with several inputs and outputs.
    ///
    /// # Errors
    /// What the child reports.
    pub fn call_all(&mut self, name: &str, module: &dyn Module, inputs: &[Var]) -> Result<Vec<Var>> {
        self.enter(name, |g| match g.passed(inputs)? {
            true => Ok(inputs.to_vec()),
            false => {
                let made = module.forward_all(g, inputs)?;
                made.iter().for_each(|y| g.ends_group(*y));
                Ok(made)
            }
        })
    }

    /// `f` within the path of the child `name`: for methods that modules have beside
    /// `forward`.
    ///
    /// # Errors
    /// What `f` reports.
    pub fn enter<R>(&mut self, name: &str, f: impl FnOnce(&mut Scope<'a>) -> Result<R>) -> Result<R> {
        let inner = join(&self.path, name);
        let outer = std::mem::replace(&mut self.path, inner);
        let made = f(self);
        self.path = outer;
        made
    }

    /// Whether the module at work was fused into the one before it, so that its
    /// input is its output.
    fn passed(&mut self, inputs: &[Var]) -> Result<bool> {
        let Some(head) = self.fusion.head_of(&self.path) else { return Ok(false) };
        if self.fused.get(&self.path).is_some_and(|v| inputs == [*v]) {
            return Ok(true);
        }
        Err(invalid!("is fused into {head}, and is called with another value than the output of that")
            .at(&self.path))
    }

    /// The path of the module at work; empty for the outermost one.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path, for messages.
    pub(super) fn place(&self) -> &str {
        if self.path.is_empty() { "the model" } else { &self.path }
    }

    /// The parameter `name` of the module at work: a constant named by its path.
    ///
    /// # Errors
    /// If there is none.
    pub fn parameter(&mut self, name: &str) -> Result<Var> {
        self.optional_parameter(name)?.ok_or_else(|| {
            invalid!("the weights lack it: load or initialize those of this module")
                .at(join(&self.path, name))
        })
    }

    /// The same for one that may be left out, such as a bias.
    ///
    /// # Errors
    /// If it is quantized and malformed.
    pub fn optional_parameter(&mut self, name: &str) -> Result<Option<Var>> {
        let path = join(&self.path, name);
        if let Some(v) = self.parameters.get(&path) {
            return Ok(Some(*v));
        }
        let weights = self.weights;
        let v = match (weights.get(&path), weights.quantized(&path)) {
            (Some(t), _) if self.open => self.b.input(&path, Fact::of(t)),
            (Some(t), _) => self.b.constant(&path, t.clone()),
            (None, Some(q)) => {
                let (part, grid) = (|part: &str| format!("{path}_{part}"), Grid::Steps(q.params().clone()));
                dequantized(&mut self.b, &mut self.zeros, part, q.int_repr().clone(), &grid)
                    .map_err(|e| e.at(&path))?
            }
            (None, None) => return Ok(None),
        };
        self.own.insert(v, path.clone());
        self.parameters.insert(path, v);
        Ok(Some(v))
    }

    /// The path of the parameter that `v` is.
    pub(super) fn path_of_parameter(&self, v: Var) -> Option<&str> {
        self.own.get(&v).map(String::as_str)
    }

    /// Whether values may be quantized.
    pub(super) fn is_quantizing(&self) -> bool {
        !matches!(self.mode, Mode::Float)
    }

    /// A constant of the module at work.
    pub fn constant(&mut self, name: &str, t: Tensor) -> Var {
        let name = self.label(name);
        self.b.constant(&name, t)
    }

    /// The operand that stands for one that is left out.
    pub fn absent(&mut self) -> Var {
        self.b.absent()
    }

    /// The single output of an operator that is a part of the module at work. It
    /// reads quantized values only where it moves them.
    ///
    /// # Errors
    /// If the operands do not fit, or are quantized.
    pub fn apply(&mut self, op: impl Op, inputs: &[Var]) -> Result<Var> {
        let name = self.label(op.name());
        self.float(&name, Arc::new(op), inputs, 1).map(|made| made[0])
    }

    /// The same for the first `outputs` outputs.
    ///
    /// # Errors
    /// As [`Scope::apply`].
    pub fn apply_all(&mut self, op: impl Op, inputs: &[Var], outputs: usize) -> Result<Vec<Var>> {
        let name = self.label(op.name());
        self.float(&name, Arc::new(op), inputs, outputs)
    }

    /// The output of the operator that the module at work is: a layer, with a range
    /// of its own where it is quantized ([`Op::quant`]). The node has the module's path
    /// as its name.
    ///
    /// # Errors
    /// If the operands do not fit, or are in float where they must be quantized, or
    /// the reverse: the error names the layer and the stub that is missing.
    pub fn layer(&mut self, op: impl Op, inputs: &[Var]) -> Result<Var> {
        match op.quant() {
            Quant::Float | Quant::Share | Quant::Merge => {
                let name = self.name_of_layer(&op);
                if let (Mode::Observed(points), Quant::Float) = (&self.mode, op.quant()) {
                    points.mapping.check_module(&name, &op)?;
                }
                self.float(&name, Arc::new(op), inputs, 1).map(|made| made[0])
            }
            _ => self.ranged(Arc::new(op), inputs, Kind::Module),
        }
    }

    /// [`Scope::layer`] for an operator that has a range of its own, whatever
    /// [`Op::quant`] says.
    pub(super) fn ranged(&mut self, op: Arc<dyn Op>, inputs: &[Var], kind: Kind) -> Result<Var> {
        let name = self.name_of_layer(&*op);
        let fused = self.fusion.relu_of(&self.path);
        let relu = match kind {
            Kind::Module => fused.map(String::from),
            Kind::Rows => fused.map(|_| self.label("Relu")),
            Kind::Functional { relu } => relu.then(|| self.label("Relu")),
        };
        let functional = matches!(kind, Kind::Functional { .. });
        if !self.is_quantizing() {
            return self.with_relu(&name, op, inputs, relu.as_deref());
        }
        self.quantizable((&name, op, relu.as_deref()), inputs, functional)
    }

    /// The output of an operator, or of ReLU after it. A value has the name that it has
    /// in the float model: that of the last module that is a part of it.
    pub(super) fn with_relu(
        &mut self,
        name: &str,
        op: Arc<dyn Op>,
        inputs: &[Var],
        relu: Option<&str>,
    ) -> Result<Var> {
        let value = self.fusion.norm_of(&self.path).unwrap_or(name);
        let y = self.named(name, op, inputs, &[value])?[0];
        match relu {
            Some(relu) => Ok(self.named(relu, Arc::new(Unary::Relu), &[y], &[relu])?[0]),
            None => Ok(y),
        }
    }

    /// The outputs of an operator under these names, with a suffix where other values
    /// have them: those of a module that is called again.
    fn named(&mut self, node: &str, op: Arc<dyn Op>, inputs: &[Var], outputs: &[&str]) -> Result<Vec<Var>> {
        let names: Vec<String> = outputs.iter().map(|name| free(&mut self.names, name)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.b.apply_all(node, op, inputs, &names)
    }

    /// The operator, which only moves values, that the module at work ends with.
    pub(super) fn last(&mut self, op: impl Op, inputs: &[Var]) -> Result<Var> {
        let fused = self.fusion.tail_of(&self.path).last();
        let name = fused.cloned().unwrap_or_else(|| self.label(op.name()));
        self.float(&name, Arc::new(op), inputs, 1).map(|made| made[0])
    }

    fn name_of_layer(&self, op: &dyn Op) -> String {
        if self.path.is_empty() { op.name().into() } else { self.path.clone() }
    }

    /// An operator outside of the layers that are quantized.
    fn float(&mut self, name: &str, op: Arc<dyn Op>, inputs: &[Var], outputs: usize) -> Result<Vec<Var>> {
        let mark = inputs.iter().find_map(|v| self.marks.get(v)).copied();
        let moves = op.quant() == Quant::Share && inputs.first().is_some_and(|x| self.marks.contains_key(x));
        if mark.is_some() && !moves {
            let place = if self.path.is_empty() { name } else { &self.path };
            return Err(invalid!(
                "{} computes in float, and reads a quantized value: put a DeQuantStub before it, or, for a \
                 sum, product or concatenation, use FloatFunctional",
                op.name()
            )
            .at(place));
        }
        let names: Vec<String> = match outputs {
            1 => vec![name.into()],
            n => (0..n).map(|i| format!("{name}_{i}")).collect(),
        };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let made = self.named(name, op, inputs, &names)?;
        match mark {
            Some(mark) => made.into_iter().map(|v| self.moved(v, mark)).collect(),
            None => Ok(made),
        }
    }

    /// Lets `y` be what the modules that were fused into the one at work take and give.
    fn ends_group(&mut self, y: Var) {
        for tail in self.fusion.tail_of(&self.path) {
            self.fused.insert(tail.clone(), y);
        }
    }

    /// The value of `v` in an eager run, for what the model does by it.
    ///
    /// # Errors
    /// If the model is being traced, so that values are not known.
    pub fn value(&self, v: Var) -> Result<&Tensor> {
        self.b.value(v).ok_or_else(|| {
            invalid!(
                "asks for a value that is not known while the model is traced: run the model eagerly, or let \
                 an operator choose (Where)"
            )
            .at(self.place())
        })
    }

    /// Type and shape of `v`.
    pub fn fact(&self, v: Var) -> &Fact {
        self.b.fact(v)
    }

    /// `path/what`, the name of a part of the module at work.
    fn label(&self, what: &str) -> String {
        if self.path.is_empty() { what.into() } else { format!("{}/{what}", self.path) }
    }
}

impl std::fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scope").field("path", &self.path).finish_non_exhaustive()
    }
}
