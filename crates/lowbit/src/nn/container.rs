//! Modules made of modules.

use std::ops::Index;

use super::module::{Children, Module};
use super::scope::Scope;
use crate::error::{Result, invalid};
use crate::graph::Var;

/// Modules one after another, called `0`, `1` and so on, or by names.
#[derive(Default)]
pub struct Sequential {
    modules: Vec<(String, Box<dyn Module>)>,
}

impl Sequential {
    /// With no module yet.
    pub fn new() -> Sequential {
        Sequential::default()
    }

    /// With one more module, called by its number.
    pub fn then(self, module: impl Module + 'static) -> Sequential {
        let name = self.modules.len().to_string();
        self.then_named(&name, module)
    }

    /// With one more module, called `name`.
    pub fn then_named(mut self, name: &str, module: impl Module + 'static) -> Sequential {
        self.modules.push((name.into(), Box::new(module)));
        self
    }
}

impl Module for Sequential {
    fn forward(&self, g: &mut Scope<'_>, x: Var) -> Result<Var> {
        self.modules.iter().try_fold(x, |x, (name, module)| g.call(name, module, x))
    }

    fn children(&self) -> Children<'_> {
        self.modules.iter().map(|(name, module)| (name.clone(), module as &dyn Module)).collect()
    }
}

/// Modules in a list, called `0`, `1` and so on by the module that has the list:
/// `g.call(&format!("layers.{i}"), &self.layers[i], x)`.
pub struct ModuleList<M> {
    modules: Vec<M>,
}

impl<M: Module> ModuleList<M> {
    /// Of these modules.
    pub fn new(modules: impl IntoIterator<Item = M>) -> ModuleList<M> {
        ModuleList { modules: modules.into_iter().collect() }
    }

    /// The modules in order.
    pub fn iter(&self) -> std::slice::Iter<'_, M> {
        self.modules.iter()
    }
}

impl<M> Index<usize> for ModuleList<M> {
    type Output = M;

    fn index(&self, i: usize) -> &M {
        &self.modules[i]
    }
}

impl<M: Module> Module for ModuleList<M> {
    fn forward(&self, g: &mut Scope<'_>, _: Var) -> Result<Var> {
        Err(uncallable(g, "ModuleList"))
    }

    fn children(&self) -> Children<'_> {
        self.modules.iter().enumerate().map(|(i, module)| (i.to_string(), module as &dyn Module)).collect()
    }
}

/// Modules by name, called by the module that has them:
/// `g.call(&format!("heads.{name}"), &self.heads[name], x)`.
pub struct ModuleDict<M> {
    modules: Vec<(String, M)>,
}

impl<M: Module> ModuleDict<M> {
    /// Of these modules.
    pub fn new<'a>(modules: impl IntoIterator<Item = (&'a str, M)>) -> ModuleDict<M> {
        ModuleDict { modules: modules.into_iter().map(|(name, module)| (name.into(), module)).collect() }
    }

    /// The module called `name`.
    pub fn get(&self, name: &str) -> Option<&M> {
        self.modules.iter().find(|(n, _)| n == name).map(|(_, module)| module)
    }

    /// Names and modules in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &M)> {
        self.modules.iter().map(|(name, module)| (name.as_str(), module))
    }
}

impl<M: Module> Module for ModuleDict<M> {
    fn forward(&self, g: &mut Scope<'_>, _: Var) -> Result<Var> {
        Err(uncallable(g, "ModuleDict"))
    }

    fn children(&self) -> Children<'_> {
        self.modules.iter().map(|(name, module)| (name.clone(), module as &dyn Module)).collect()
    }
}

fn uncallable(g: &Scope<'_>, kind: &str) -> crate::error::Error {
    invalid!("a {kind} is not called itself: call its modules").at(g.place())
}
