//! The values of a model's parameters, by path.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::init::Init;
use super::module::{Module, Parameter, named_parameters};
use crate::error::{Result, invalid};
use crate::graph::Graph;
use crate::qparams::QParams;
use crate::qtensor::{self, QTensor, Stored};
use crate::scheme::{Format, Granularity, Mapping, Scheme};
use crate::tensor::{DType, Tensor};

/// The state of a model: its parameters and buffers under PyTorch's names
/// (`layer1.0.conv1.weight`). In that of a quantized model, weights are codes, and
/// `path.scale` and `path.zero_point` are those of the output of the module at `path`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    entries: BTreeMap<String, Stored>,
}

impl Weights {
    /// PyTorch's first values of every parameter of `module`, drawn by `seed`.
    ///
    /// # Errors
    /// If a parameter is too large.
    pub fn initialized(module: &dyn Module, seed: u64) -> Result<Weights> {
        let drawn = named_parameters(module).into_iter().map(|p| {
            let values = p.init.values(&p.name, &p.shape, seed).map_err(|e| e.at(&p.name))?;
            Ok((p.name, Stored::Plain(values)))
        });
        Ok(Weights { entries: drawn.collect::<Result<_>>()? })
    }

    /// The values in a safetensors file that PyTorch or [`Weights::save`] wrote.
    /// Floats of other types become f32; a missing `num_batches_tracked` is 0.
    ///
    /// # Errors
    /// If the file cannot be read, or its values are not those of `module`: the
    /// error lists what is missing, unexpected, or of another shape.
    pub fn load(path: &Path, module: &dyn Module) -> Result<Weights> {
        let weights = Weights { entries: qtensor::load(path)? };
        weights.completed(module).map_err(|e| e.at(path.display().to_string()))
    }

    /// The parameters of `module` among the constants of a graph: those of a model that
    /// PyTorch exported without folding them, under their names.
    ///
    /// # Errors
    /// If one is missing, or of another shape; the error lists them.
    pub fn of_graph(graph: &Graph, module: &dyn Module) -> Result<Weights> {
        let wanted: HashSet<String> = named_parameters(module).into_iter().map(|p| p.name).collect();
        let mut weights = Weights::default();
        for (v, _) in graph.nodes() {
            let name = &graph.value(v).name;
            if let (Some(t), true) = (graph.constant(v), wanted.contains(name)) {
                weights.insert(name, t.clone());
            }
        }
        weights.completed(module)
    }

    /// With floats as f32, and counts of batches, and checked against `module`.
    fn completed(mut self, module: &dyn Module) -> Result<Weights> {
        for stored in self.entries.values_mut() {
            if let Stored::Plain(t) = stored
                && t.dtype() != DType::F32
                && t.dtype().is_float()
            {
                *t = Tensor::new(t.shape(), t.to_f32()?)?;
            }
        }
        for p in named_parameters(module).into_iter().filter(|p| p.init == Init::Count) {
            self.entries.entry(p.name).or_insert(Stored::Plain(Tensor::new(&p.shape, vec![0i64])?));
        }
        self.check(module)?;
        Ok(self)
    }

    /// Writes a safetensors file that [`Weights::load`] and PyTorch read.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        qtensor::save(path, &self.entries)
    }

    /// Checks that these are the parameters of `module`, and no others.
    ///
    /// # Errors
    /// If they are not; the error lists every difference.
    pub fn check(&self, module: &dyn Module) -> Result<()> {
        self.check_against(&named_parameters(module), |_| false)
    }

    /// [`Weights::check`] with `more(name)` saying what may be there besides.
    pub(super) fn check_against(&self, wanted: &[Parameter], more: impl Fn(&str) -> bool) -> Result<()> {
        let wanted: BTreeMap<&str, &Parameter> = wanted.iter().map(|p| (p.name.as_str(), p)).collect();
        let mut wrong = vec![];
        for (name, p) in &wanted {
            let (dtype, shape) = match self.entries.get(*name) {
                None => {
                    wrong.push(format!("{name} {:?} is missing", p.shape));
                    continue;
                }
                Some(Stored::Plain(t)) => (t.dtype(), t.shape()),
                Some(Stored::Quantized(q)) => (DType::F32, q.shape()),
            };
            let expected = if p.init == Init::Count { DType::I64 } else { DType::F32 };
            if (dtype, shape) != (expected, &p.shape[..]) {
                wrong.push(format!("{name} is {dtype}{shape:?}, not {expected}{:?}", p.shape));
            }
        }
        let unexpected =
            self.entries.keys().filter(|name| !wanted.contains_key(name.as_str()) && !more(name));
        wrong.extend(unexpected.map(|name| format!("{name} is unexpected")));
        if wrong.is_empty() {
            return Ok(());
        }
        Err(invalid!("the weights are not those of the module: {}", wrong.join("; ")))
    }

    /// The tensor called `name`, unless it is quantized.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        match self.entries.get(name)? {
            Stored::Plain(t) => Some(t),
            Stored::Quantized(_) => None,
        }
    }

    /// The quantized tensor called `name`.
    pub fn quantized(&self, name: &str) -> Option<&QTensor> {
        match self.entries.get(name)? {
            Stored::Quantized(q) => Some(q),
            Stored::Plain(_) => None,
        }
    }

    /// The same with these values in the place of those of their names: what training changed
    /// ([`Network::values`](crate::train::Network::values)). Other names are left out.
    #[must_use]
    pub fn with_values(mut self, values: &BTreeMap<String, Tensor>) -> Weights {
        for (name, stored) in &mut self.entries {
            if let Some(t) = values.get(name) {
                *stored = Stored::Plain(t.clone());
            }
        }
        self
    }

    /// Sets the tensor called `name`.
    pub fn insert(&mut self, name: impl Into<String>, t: Tensor) {
        self.store(name, Stored::Plain(t));
    }

    pub(super) fn store(&mut self, name: impl Into<String>, stored: Stored) {
        self.entries.insert(name.into(), stored);
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.entries.remove(name);
    }

    /// Every entry, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.entries.iter().map(|(name, stored)| (name.as_str(), stored))
    }

    /// Scale and zero point of the output of the module at `path`, in a quantized
    /// model.
    ///
    /// # Errors
    /// If they are malformed.
    pub fn output_params(&self, path: &str) -> Result<Option<QParams>> {
        let [scale, zero] = output_names(path);
        let (Some(scale), Some(zero)) = (self.get(&scale), self.get(&zero)) else { return Ok(None) };
        output_params(scale, zero).map(Some).map_err(|e| e.at(path))
    }

    pub(super) fn set_output_params(&mut self, path: &str, params: &QParams) {
        let (scale, zero) = params.operands();
        let [scale_name, zero_name] = output_names(path);
        self.insert(scale_name, scale);
        self.insert(zero_name, zero);
    }
}

/// The names of scale and zero point of the output of the module at `path`.
pub(super) fn output_names(path: &str) -> [String; 2] {
    ["scale", "zero_point"].map(|part| super::module::join(path, part))
}

/// Scale and zero point, whose type is that of the codes.
fn output_params(scale: &Tensor, zero: &Tensor) -> Result<QParams> {
    let format = Format::of(zero.dtype())?;
    let zeros = if format.is_float() { vec![0] } else { zero.integers()? };
    let [zero_point] = zeros[..] else {
        return Err(invalid!("one zero point is expected, found {}", zeros.len()));
    };
    let zero_point =
        i32::try_from(zero_point).map_err(|_| invalid!("zero point {zero_point} is too great"))?;
    let mapping = if format.is_float() { Mapping::Symmetric } else { Mapping::Affine };
    let scheme = Scheme { format, mapping, granularity: Granularity::Tensor, codes: None };
    QParams::new(scheme, vec![scale.item::<f32>()?], vec![zero_point])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_steps_of_an_output_are_errors() {
        let (one, zero) = (Tensor::scalar(0.5f32), Tensor::scalar(3u8));
        for (scale, zero, want) in [
            (Tensor::scalar(0f32), zero.clone(), "not a positive finite number"),
            (Tensor::vector(vec![1f32, 2.0]), zero.clone(), "one element"),
            (Tensor::scalar(1f64), zero.clone(), "expected f32"),
            (one.clone(), Tensor::vector(vec![1u8, 2]), "one zero point"),
            (one.clone(), Tensor::scalar(1f32), "not a quantized type"),
            (one.clone(), Tensor::scalar(1i64), "not a quantized type"),
        ] {
            let mut weights = Weights::default();
            weights.insert("a.scale", scale);
            weights.insert("a.zero_point", zero);
            let e = weights.output_params("a").unwrap_err().to_string();
            assert!(e.starts_with("a: ") && e.contains(want), "{want}: {e}");
        }
        let mut weights = Weights::default();
        assert_eq!(weights.output_params("a").unwrap(), None);
        weights.insert("a.scale", one);
        weights.insert("a.zero_point", zero);
        let params = weights.output_params("a").unwrap().unwrap();
        assert_eq!((params.scale, params.zero_point), (vec![0.5], vec![3]));
    }
}
