//! Modules that become parts of those before them.

use std::collections::{BTreeMap, HashMap};

use crate::error::{Result, invalid};
use crate::nn::module::{Fusing, Module, join, named_modules};
use crate::nn::weights::Weights;
use crate::ops::norm::BatchNormalization;
use crate::quantize::folded;
use crate::tensor::Tensor;

/// Which modules are parts of which.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::nn) struct Fusion {
    /// The first module of a group, for each of the others.
    heads: BTreeMap<String, String>,
    /// The others, for each first one.
    tails: BTreeMap<String, Vec<String>>,
    /// The batch normalization that is folded into a module.
    norms: BTreeMap<String, String>,
    /// The ReLU of a group.
    relus: BTreeMap<String, String>,
}

impl Fusion {
    /// The module that the one at `path` is a part of.
    pub fn head_of(&self, path: &str) -> Option<&str> {
        self.heads.get(path).map(String::as_str)
    }

    /// The modules that are parts of the one at `path`.
    pub fn tail_of(&self, path: &str) -> &[String] {
        self.tails.get(path).map_or(&[], Vec::as_slice)
    }

    /// The batch normalization that is folded into the module at `path`.
    pub fn norm_of(&self, path: &str) -> Option<&str> {
        self.norms.get(path).map(String::as_str)
    }

    /// The ReLU that is a part of the module at `path`.
    pub fn relu_of(&self, path: &str) -> Option<&str> {
        self.relus.get(path).map(String::as_str)
    }
}

/// A model's weights with batch normalization folded in, and which modules are
/// parts of others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fused {
    pub(in crate::nn) weights: Weights,
    pub(in crate::nn) fusion: Fusion,
}

impl Fused {
    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }
}

impl From<Weights> for Fused {
    /// No module is a part of another.
    fn from(weights: Weights) -> Fused {
        Fused { weights, fusion: Fusion::default() }
    }
}

/// Fuses each group of modules, given by their paths, into its first one:
/// convolution and ReLU, convolution and batch normalization, all three, matrix
/// product and one of both, transposed convolution and batch normalization, batch
/// normalization and ReLU.
///
/// Batch normalization is folded into weight and bias (equation 16 of
/// docs/quantization.md); where the others of a group are called, they do nothing.
///
/// # Errors
/// If a group is none of these, a path is unknown or in two groups, or weights are
/// missing; the error names the modules.
pub fn fuse_modules(module: &dyn Module, weights: &Weights, groups: &[&[&str]]) -> Result<Fused> {
    let mut fused = Fused::from(weights.clone());
    for group in groups {
        let place = || group.join(", ");
        fused.fusion.add(module, group).map_err(|e| e.at(place()))?;
        fused.fold(module, group).map_err(|e| e.at(place()))?;
    }
    Ok(fused)
}

impl Fusion {
    /// The groups of [`fuse_modules`], without their weights.
    pub fn new(module: &dyn Module, groups: &[&[&str]]) -> Result<Fusion> {
        let mut fusion = Fusion::default();
        groups.iter().try_for_each(|g| fusion.add(module, g).map_err(|e| e.at(g.join(", "))))?;
        Ok(fusion)
    }

    fn add(&mut self, module: &dyn Module, group: &[&str]) -> Result<()> {
        use Fusing::{BatchNorm, Conv, ConvTranspose, Linear, Relu};
        let kinds = kinds(module, group)?;
        match kinds[..] {
            [Conv, Relu]
            | [Conv, BatchNorm { .. }]
            | [Conv, BatchNorm { .. }, Relu]
            | [Linear, Relu]
            | [Linear, BatchNorm { .. }]
            | [ConvTranspose, BatchNorm { .. }]
            | [BatchNorm { .. }, Relu] => {}
            _ => {
                return Err(invalid!(
                    "these modules cannot be fused: what can is convolution, batch normalization and ReLU, or \
                     two of them; matrix product and one of the latter; transposed convolution and batch \
                     normalization"
                ));
            }
        }
        if let Some(twice) =
            group.iter().find(|p| self.heads.contains_key(**p) || self.tails.contains_key(**p))
        {
            return Err(invalid!("{twice} is in another group too"));
        }
        let (head, tail) = (group[0].to_string(), group[1..].iter().map(|p| p.to_string()));
        self.heads.extend(tail.clone().map(|path| (path, head.clone())));
        self.tails.insert(head.clone(), tail.collect());
        if let [_, BatchNorm { .. }, ..] = kinds[..] {
            self.norms.insert(head.clone(), group[1].to_string());
        }
        if let (Some(Relu), Some(path)) = (kinds.last(), group.last()) {
            self.relus.insert(head, path.to_string());
        }
        Ok(())
    }
}

impl Fused {
    /// Folds the batch normalization of a group into the module before it.
    fn fold(&mut self, module: &dyn Module, group: &[&str]) -> Result<()> {
        let kinds = kinds(module, group)?;
        let [kind, Fusing::BatchNorm { epsilon }, ..] = kinds[..] else { return Ok(()) };
        let get = |path: &str, name: &str| {
            let name = join(path, name);
            self.weights.get(&name).ok_or_else(|| invalid!("the weights lack {name}"))
        };
        let bn = ["weight", "bias", "running_mean", "running_var"].map(|name| get(group[1], name)?.to_f32());
        let [gamma, beta, mean, var] = bn;
        let (scale, shift) =
            BatchNormalization { epsilon, training: None }.affine(&gamma?, &beta?, &mean?, &var?)?;
        let axis = usize::from(kind == Fusing::ConvTranspose);
        let weight = get(group[0], "weight")?;
        let channels = weight.shape().get(axis).copied().unwrap_or(0);
        if channels != scale.len() {
            return Err(invalid!(
                "batch normalization of {} channels follows one of {channels} (of one group)",
                scale.len()
            ));
        }
        let bias = match self.weights.get(&join(group[0], "bias")) {
            Some(bias) => bias.to_f32()?,
            None => vec![0.0; channels],
        };
        let (weight, bias) = folded(weight, axis, &bias, (&scale, &shift))?;
        self.weights.insert(join(group[0], "weight"), weight);
        self.weights.insert(join(group[0], "bias"), Tensor::vector(bias));
        for p in parameters(module, group[1])? {
            self.weights.remove(&p);
        }
        Ok(())
    }
}

/// What the modules at these paths are.
fn kinds(module: &dyn Module, group: &[&str]) -> Result<Vec<Fusing>> {
    let modules: HashMap<String, &dyn Module> = named_modules(module).into_iter().collect();
    let kind = |path: &&str| {
        let found = modules.get(*path).ok_or_else(|| invalid!("there is no module {path:?}"))?;
        Ok(found.fusing())
    };
    group.iter().map(kind).collect()
}

/// The names of the parameters of the module at `path`.
fn parameters(module: &dyn Module, path: &str) -> Result<Vec<String>> {
    let modules = named_modules(module);
    let found = modules.iter().find(|(p, _)| p == path);
    let (_, found) = found.ok_or_else(|| invalid!("there is no module {path:?}"))?;
    Ok(found.parameters().into_iter().map(|p| join(path, &p.name)).collect())
}
