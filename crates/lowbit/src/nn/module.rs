//! What a module is: sizes and options, parameters by name, and a forward pass.

use super::Scope;
use crate::error::{Result, invalid};
use crate::graph::Var;
use crate::nn::init::Init;

/// A part of a model: a description, without the values of its parameters, which
/// lie in [`Weights`](super::Weights) under their paths. So loading, converting and
/// training change values, never modules.
pub trait Module: Send + Sync {
    /// Applies the module to `x`.
    ///
    /// # Errors
    /// If `x` does not fit, or a parameter is missing; the error names the module.
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var>;

    /// The same for any number of inputs and outputs: modules that have several
    /// say here what they are.
    ///
    /// # Errors
    /// As [`Module::forward`], or if there are more or fewer inputs.
    fn forward_all(&self, g: &mut Scope<'_>, inputs: &[Var]) -> Result<Vec<Var>> {
        match inputs {
            [x] => Ok(vec![self.forward(g, *x)?]),
            many => Err(invalid!("takes one input, found {}", many.len()).at(g.place())),
        }
    }

    /// Parameters and buffers of its own, not those of its children.
    fn parameters(&self) -> Vec<Parameter> {
        vec![]
    }

    /// The modules that it calls, by name.
    fn children(&self) -> Children<'_> {
        vec![]
    }

    /// What it is to [`fuse_modules`](super::eager::fuse_modules).
    fn fusing(&self) -> Fusing {
        Fusing::None
    }
}

/// Modules by name.
pub type Children<'a> = Vec<(String, &'a dyn Module)>;

/// The children of a module whose fields have their names:
/// `children!(self; conv1, bn1, fc)`.
#[doc(hidden)]
#[macro_export]
macro_rules! __children {
    ($module:expr; $($name:ident),* $(,)?) => {
        vec![$((stringify!($name).to_string(), &$module.$name as &dyn $crate::nn::Module)),*]
    };
}

/// What a module is when modules are fused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fusing {
    /// A convolution: batch normalization and ReLU may follow.
    Conv,
    /// A transposed convolution: batch normalization may follow.
    ConvTranspose,
    /// A product with a matrix: batch normalization or ReLU may follow.
    Linear,
    /// Batch normalization; ReLU may follow.
    BatchNorm {
        /// Added to the variance.
        epsilon: f32,
    },
    /// ReLU, which may follow.
    Relu,
    /// Stays by itself.
    None,
}

/// A parameter, or a buffer, of a module: PyTorch's name, shape and first value.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// The name, in lists of whole models the path.
    pub name: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// The values that it begins with.
    pub init: Init,
    /// Whether training changes it: not a buffer.
    pub trained: bool,
}

impl Parameter {
    /// A parameter.
    pub fn new(name: impl Into<String>, shape: &[usize], init: Init) -> Parameter {
        Parameter { name: name.into(), shape: shape.to_vec(), init, trained: true }
    }

    /// A buffer: a value that training does not change by a gradient.
    pub fn buffer(name: impl Into<String>, shape: &[usize], init: Init) -> Parameter {
        Parameter { trained: false, ..Parameter::new(name, shape, init) }
    }
}

/// `path.name`; either may be empty.
pub(super) fn join(path: &str, name: &str) -> String {
    match (path, name) {
        ("", name) => name.into(),
        (path, "") => path.into(),
        (path, name) => format!("{path}.{name}"),
    }
}

/// Every module by its path, that of `module` itself being empty.
pub fn named_modules(module: &dyn Module) -> Children<'_> {
    fn walk<'a>(path: &str, module: &'a dyn Module, all: &mut Children<'a>) {
        all.push((path.into(), module));
        for (name, child) in module.children() {
            walk(&join(path, &name), child, all);
        }
    }
    let mut all = vec![];
    walk("", module, &mut all);
    all
}

/// The parameters and buffers of all modules, named by their paths.
pub fn named_parameters(module: &dyn Module) -> Vec<Parameter> {
    let modules = named_modules(module).into_iter();
    let own = modules.flat_map(|(path, module)| {
        module.parameters().into_iter().map(move |p| Parameter { name: join(&path, &p.name), ..p })
    });
    own.collect()
}

macro_rules! through_pointer {
    ($($pointer:ty),*) => {$(
        impl<M: Module + ?Sized> Module for $pointer {
            fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
                (**self).forward(g, x)
            }
            fn forward_all(&self, g: &mut Scope<'_>, inputs: &[Var]) -> Result<Vec<Var>> {
                (**self).forward_all(g, inputs)
            }
            fn parameters(&self) -> Vec<Parameter> {
                (**self).parameters()
            }
            fn children(&self) -> Children<'_> {
                (**self).children()
            }
            fn fusing(&self) -> Fusing {
                (**self).fusing()
            }
        }
    )*};
}
through_pointer!(&M, Box<M>);
