//! Which node is quantized how: ordered rules, of which the last that matches wins.

mod correction;
mod presets;

use std::fmt;

use globset::{Glob, GlobMatcher};
use regex::Regex;
use serde::{Deserialize, Serialize};

pub use correction::BiasCorrection;
pub use presets::{PRESETS, preset};

use crate::error::{Error, Result, invalid};
use crate::graph::{Graph, Node};
use crate::observer::ObserverConfig;
use crate::op::{Op, Quant};
use crate::scheme::{Format, Granularity, Mapping, Scheme};

/// What shares one scale, before the operator says which axis its channels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// The whole tensor.
    #[default]
    Tensor,
    /// Each output channel.
    Channel,
    /// Each row, the elements along the last axis: for dynamic activations.
    Row,
    /// This many elements of an output channel of a weight, along its input axis
    /// (fewer in the last block): `per = { block = 32 }`.
    Block(usize),
}

/// How the codes of a weight are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// The code nearest to each value.
    #[default]
    Nearest,
    /// Those that change the layer's outputs least on the calibration data
    /// ([`crate::quantize::InputMoments`]).
    Gptq,
    /// Those that are learned, layer by layer or block by block, on the calibration data
    /// ([`crate::passes::adaround()`]): the best for few bits, and it takes minutes.
    Adaround,
}

impl Rounding {
    fn is_nearest(&self) -> bool {
        *self == Rounding::Nearest
    }
}

/// How one kind of value is quantized: its scheme, and who chooses its range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The codes.
    pub format: Format,
    /// How reals map to them.
    pub mapping: Mapping,
    /// What shares one scale.
    #[serde(default)]
    pub per: Per,
    /// Codes really used, where they are fewer than the format's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes: Option<(i32, i32)>,
    /// Who chooses the range.
    #[serde(default = "min_max")]
    pub observer: ObserverConfig,
    /// For weights: whether the bias makes up for what quantizing the weight takes from
    /// the mean output.
    #[serde(default, rename = "correct-bias", skip_serializing_if = "BiasCorrection::is_off")]
    pub correct_bias: BiasCorrection,
    /// For activations: how much the channels of the values read are made alike
    /// in range before quantization ([`crate::passes::equalize`]), from 0, not
    /// at all, to 1, completely.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub equalize: f32,
    /// For activations: how much the differences between the elements that matrix products
    /// read are moved into their weights ([`crate::passes::smooth`]), from 0, not at all,
    /// to 1, completely.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub smooth: f32,
    /// For weights with one scale: whether the channels of the weights around a value are
    /// made alike in range ([`crate::passes::equalize`]).
    #[serde(default, rename = "cross-layer", skip_serializing_if = "std::ops::Not::not")]
    pub cross_layer: bool,
    /// For weights: how their codes are chosen.
    #[serde(default, skip_serializing_if = "Rounding::is_nearest")]
    pub rounding: Rounding,
    /// For weights: whether channels of what the layer makes get the mean and the deviation
    /// back that they have in float ([`crate::passes::renormalize`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub renormalize: bool,
    /// For weights beside float activations: whether rows that meet great inputs
    /// get finer steps, by moving factors into what makes the inputs ([`crate::passes::awq`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub awq: bool,
    /// For activations: whether the range is that of the values of each run, so
    /// that no calibration is needed and the observer has nothing to do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dynamic: bool,
    /// For dynamic activations: whether products of two of them, such as those
    /// of attention, are quantized too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub products: bool,
    /// For activations: whether only the inputs of an operator are quantized, right
    /// where it reads them. Its output, and what other operators read of its inputs,
    /// stays in float: how `pytorch-quantization` places its quantizers.
    #[serde(default, rename = "inputs-only", skip_serializing_if = "std::ops::Not::not")]
    pub inputs_only: bool,
}

fn is_zero(x: &f32) -> bool {
    *x == 0.0
}

fn min_max() -> ObserverConfig {
    ObserverConfig::MinMax
}

impl Spec {
    /// A per-tensor spec with min-max ranges.
    pub fn new(format: Format, mapping: Mapping) -> Spec {
        Spec {
            format,
            mapping,
            per: Per::Tensor,
            codes: None,
            observer: ObserverConfig::MinMax,
            correct_bias: BiasCorrection::Off,
            equalize: 0.0,
            smooth: 0.0,
            cross_layer: false,
            rounding: Rounding::Nearest,
            renormalize: false,
            awq: false,
            dynamic: false,
            products: false,
            inputs_only: false,
        }
    }

    /// The same spec for activations that are quantized where they are read alone.
    pub fn of_inputs_only(self) -> Spec {
        Spec { inputs_only: true, ..self }
    }

    /// The same spec with ranges found in each run.
    pub fn dynamic(self) -> Spec {
        Spec { dynamic: true, ..self }
    }

    /// The same spec with another extent of a scale.
    pub fn per(self, per: Per) -> Spec {
        Spec { per, ..self }
    }

    /// The same spec with a scale for each channel.
    pub fn per_channel(self) -> Spec {
        Spec { per: Per::Channel, ..self }
    }

    /// The same spec with another observer.
    pub fn observed_by(self, observer: ObserverConfig) -> Spec {
        Spec { observer, ..self }
    }

    /// The same spec for weights whose bias makes up for their mean error.
    pub fn correcting_bias(self) -> Spec {
        Spec { correct_bias: BiasCorrection::Observed, ..self }
    }

    /// The same spec for activations whose channels are equalized this much.
    pub fn equalizing(self, strength: f32) -> Spec {
        Spec { equalize: strength, ..self }
    }

    /// The same spec for activations whose outliers are moved this much into weights.
    pub fn smoothed(self, strength: f32) -> Spec {
        Spec { smooth: strength, ..self }
    }

    /// The same spec for weights with one scale, whose channels share their ranges with
    /// those of the layers around them.
    pub fn cross_layer(self) -> Spec {
        Spec { cross_layer: true, ..self }
    }

    /// The same spec for weights whose rows that meet great inputs get finer steps.
    pub fn aware_of_activations(self) -> Spec {
        Spec { awq: true, ..self }
    }

    /// The same spec for weights whose codes are chosen like this.
    pub fn rounded_by(self, rounding: Rounding) -> Spec {
        Spec { rounding, ..self }
    }

    /// The scheme for a tensor whose output channels lie along `axis`, and its
    /// inputs along the first other one; per tensor where it has none.
    pub fn scheme(&self, axis: Option<usize>) -> Scheme {
        let granularity = match (self.per, axis) {
            (Per::Channel, Some(axis)) => Granularity::Axis(axis),
            (Per::Block(size), Some(axis)) => Granularity::Block { axis: usize::from(axis == 0), size },
            _ => Granularity::Tensor,
        };
        Scheme { format: self.format, mapping: self.mapping, granularity, codes: self.codes }
    }
}

/// How a node's activations and weights are quantized: statically, dynamically
/// ([`Spec::dynamic`]), or its weights only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QConfig {
    /// Inputs and output; `None` leaves them in float, so that only weights are quantized.
    pub activation: Option<Spec>,
    /// The weight, for operators that have one.
    pub weight: Spec,
}

impl QConfig {
    /// Weights only, in `format`: affine if its codes are unsigned integers, with
    /// scales of least squared error, and codes chosen by data where there is any.
    /// Scales are for `per`, or blocks of 32 for formats of less than 8 bits and
    /// channels for others.
    pub fn weight_only(format: Format, per: Option<Per>) -> QConfig {
        let unsigned = matches!(format, Format::Int { signed: false, .. });
        let mapping = if unsigned { Mapping::Affine } else { Mapping::Symmetric };
        let standard = if format.bits() < 8 { Per::Block(32) } else { Per::Channel };
        let weight = Spec::new(format, mapping).per(per.unwrap_or(standard));
        let weight = weight.observed_by(ObserverConfig::Mse).rounded_by(Rounding::Gptq);
        QConfig { activation: None, weight }
    }

    /// How activations are quantized, if by ranges found on calibration data.
    pub fn observed(&self) -> Option<&Spec> {
        self.activation.as_ref().filter(|a| !a.dynamic)
    }

    /// How activations are quantized, if by the ranges of each run.
    pub fn dynamic(&self) -> Option<&Spec> {
        self.activation.as_ref().filter(|a| a.dynamic)
    }
}

/// The nodes that a rule is about.
#[derive(Clone, Debug)]
pub enum Target {
    /// Every node.
    All,
    /// Nodes of one ONNX operator type.
    Op(String),
    /// Nodes whose name, or whose output's name, a glob matches (`layer4.*`).
    Name(GlobMatcher),
    /// The same by a regular expression.
    Regex(Regex),
}

impl Target {
    /// The nodes whose name matches a glob.
    ///
    /// # Errors
    /// If the glob is malformed.
    pub fn name(glob: &str) -> Result<Target> {
        let glob = Glob::new(glob).map_err(|e| invalid!("name = {glob:?}: {e}"))?;
        Ok(Target::Name(glob.compile_matcher()))
    }

    /// The nodes whose name matches a regular expression.
    ///
    /// # Errors
    /// If the expression is malformed.
    pub fn regex(expression: &str) -> Result<Target> {
        Ok(Target::Regex(Regex::new(expression).map_err(|e| invalid!("regex = {expression:?}: {e}"))?))
    }

    /// The node of this name.
    ///
    /// # Errors
    /// If the name is too long.
    pub fn exactly(name: &str) -> Result<Target> {
        Target::regex(&format!("^{}$", regex::escape(name)))
    }

    /// Whether the target is one operator type or one name, rather than a
    /// region that may well hold nodes that stay in float.
    fn is_one_kind(&self) -> bool {
        match self {
            Target::Op(_) => true,
            Target::Name(glob) => !glob.glob().glob().contains(['*', '?', '[', '{']),
            Target::All | Target::Regex(_) => false,
        }
    }

    /// Whether it matches a node of a body of control flow.
    fn matches_in_bodies(&self, graph: &Graph) -> bool {
        let of = |body: &Graph| {
            body.applied().any(|(_, node, op, _)| self.matches(node, &**op)) || self.matches_in_bodies(body)
        };
        graph.applied().any(|(_, _, op, _)| op.bodies().iter().any(of))
    }

    /// Whether it is about the module at `path`, which is an operator of type `kind`.
    pub(crate) fn matches_module(&self, path: &str, kind: &str) -> bool {
        match self {
            Target::All => true,
            Target::Op(name) => name == kind,
            Target::Name(glob) => glob.is_match(path),
            Target::Regex(regex) => regex.is_match(path),
        }
    }

    fn matches(&self, node: &Node, op: &dyn Op) -> bool {
        let mut names = std::iter::once(&node.name).chain(node.outputs.iter().map(|o| &o.name));
        match self {
            Target::All => true,
            Target::Op(name) => op.name() == name,
            Target::Name(glob) => names.any(|n| glob.is_match(n)),
            Target::Regex(regex) => names.any(|n| regex.is_match(n)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::All => f.write_str("for every node"),
            Target::Op(name) => write!(f, "op = {name:?}"),
            Target::Name(glob) => write!(f, "name = {:?}", glob.glob().glob()),
            Target::Regex(regex) => write!(f, "regex = {:?}", regex.as_str()),
        }
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Target) -> bool {
        self.to_string() == other.to_string()
    }
}

/// One rule: these nodes are quantized like this, or stay in float (`None`).
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The nodes.
    pub target: Target,
    /// How they are quantized.
    pub qconfig: Option<QConfig>,
}

/// Ordered rules; for each node the last one that matches it wins. A node that
/// no rule matches stays in float.
///
/// In TOML:
/// ```toml
/// preset = "default"            # the rule for every node that comes first
///
/// [[rule]]
/// op = "Softmax"                # or name = "layer4.*", or regex = "^conv1$"
/// float = true
///
/// [[rule]]
/// name = "/conv1/Conv"
/// [rule.activation]
/// format = "int16"
/// mapping = "symmetric"
/// observer = { kind = "min-max" }
/// [rule.weight]
/// format = "int8-narrow"
/// mapping = "symmetric"
/// per = "channel"
/// ```
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "File", into = "File")]
pub struct QConfigMapping {
    /// The rules.
    pub rules: Vec<Rule>,
}

impl QConfigMapping {
    /// Every node quantized alike.
    pub fn global(qconfig: QConfig) -> QConfigMapping {
        QConfigMapping { rules: vec![Rule { target: Target::All, qconfig: Some(qconfig) }] }
    }

    /// With one more rule, which overrides those before it.
    #[must_use]
    pub fn with(mut self, target: Target, qconfig: Option<QConfig>) -> QConfigMapping {
        self.rules.push(Rule { target, qconfig });
        self
    }

    /// The rules that match nodes of `graph`, and those for every node.
    #[must_use]
    pub fn matching(&self, graph: &Graph) -> QConfigMapping {
        let applies = |rule: &&Rule| {
            rule.target == Target::All
                || graph.applied().any(|(_, node, op, _)| rule.target.matches(node, &**op))
        };
        QConfigMapping { rules: self.rules.iter().filter(applies).cloned().collect() }
    }

    /// Whether a rule quantizes activations by ranges found on calibration data.
    pub fn is_static(&self) -> bool {
        self.rules.iter().filter_map(|r| r.qconfig.as_ref()).any(|q| q.observed().is_some())
    }

    /// Whether a rule asks for [`Spec::awq`], which needs calibration data.
    pub fn is_aware_of_activations(&self) -> bool {
        self.rules.iter().filter_map(|r| r.qconfig.as_ref()).any(|q| q.weight.awq)
    }

    /// Reads the TOML form.
    ///
    /// # Errors
    /// If a key is unknown or a value is malformed; the error says where.
    pub fn from_toml(text: &str) -> Result<QConfigMapping> {
        toml::from_str(text).map_err(|e| invalid!("{e}"))
    }

    /// The TOML form.
    ///
    /// # Errors
    /// If a value cannot be written in TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| invalid!("{e}"))
    }

    /// The configuration of the module at `path`, of the type `kind`.
    ///
    /// # Errors
    /// If it is inconsistent; the error names the rule.
    pub(crate) fn of_module(&self, path: &str, kind: &str) -> Result<Option<&QConfig>> {
        let Some(rule) = self.rules.iter().rev().find(|rule| rule.target.matches_module(path, kind)) else {
            return Ok(None);
        };
        rule.check_config().map_err(|e| e.at(path).at(format!("rule {}", rule.target)))?;
        Ok(rule.qconfig.as_ref())
    }

    /// Checks that no rule asks the module at `path`, which is the operator `op`, by
    /// name or type for what it cannot do.
    ///
    /// # Errors
    /// If one does; the error names the rule.
    pub(crate) fn check_module(&self, path: &str, op: &dyn Op) -> Result<()> {
        let mut rules = self.rules.iter().filter(|rule| rule.target.matches_module(path, op.name()));
        rules.try_for_each(|rule| rule.check(op).map_err(|e| e.at(path).at(format!("rule {}", rule.target))))
    }

    /// The configuration of every operator node, in evaluation order.
    ///
    /// # Errors
    /// If a rule matches no node, or asks a node by name or type for what it
    /// cannot do; the error names the rule and the node.
    pub fn resolve(&self, graph: &Graph) -> Result<Vec<Option<&QConfig>>> {
        let nodes: Vec<_> = graph.applied().map(|(_, node, op, _)| (node, op)).collect();
        let mut found = vec![None; nodes.len()];
        for rule in &self.rules {
            let mut matched = false;
            for ((node, op), found) in nodes.iter().zip(&mut found) {
                if rule.target.matches(node, &***op) {
                    matched = true;
                    *found = rule.qconfig.as_ref();
                    rule.check(&***op).map_err(|e| e.at(&node.name).at(format!("rule {}", rule.target)))?;
                }
            }
            if !matched && rule.target != Target::All && !rule.target.matches_in_bodies(graph) {
                return Err(invalid!("matches no node of the model").at(format!("rule {}", rule.target)));
            }
        }
        Ok(found)
    }
}

impl Rule {
    /// Checks that a node can do what the rule asks of it.
    fn check(&self, op: &dyn Op) -> Result<()> {
        self.check_config()?;
        if self.qconfig.is_some() && self.target.is_one_kind() && op.quant() == Quant::Float {
            return Err(Error::unsupported(
                op.name(),
                "quantization of it (leave it in float: float = true)",
            ));
        }
        Ok(())
    }

    /// Checks that what the rule asks for is consistent.
    fn check_config(&self) -> Result<()> {
        let Some(q) = &self.qconfig else { return Ok(()) };
        if let Some(activation) = &q.activation {
            check_activation(activation).map_err(|e| e.at("activation"))?;
        }
        check_weight(&q.weight).map_err(|e| e.at("weight"))?;
        if q.activation.is_some() && q.weight.awq {
            return Err(
                invalid!("awq is for weights beside float activations: weight-only = true").at("weight")
            );
        }
        if q.activation.is_some() && q.weight.format.is_for_storage() {
            let format = q.weight.format;
            return Err(
                invalid!("{format} is for weights beside float activations: weight-only = true").at("weight")
            );
        }
        Ok(())
    }
}

fn check_activation(spec: &Spec) -> Result<()> {
    spec.scheme(None).check()?;
    if spec.format.is_for_storage() {
        return Err(invalid!("{} is for weights", spec.format));
    }
    match spec.per {
        Per::Tensor => {}
        Per::Row if spec.dynamic => {}
        Per::Row => return Err(invalid!("per = \"row\" needs dynamic = true: rows differ from run to run")),
        Per::Channel | Per::Block(_) => {
            return Err(invalid!(
                "activations have one scale for the whole tensor; per = \"channel\" and blocks are for weights"
            ));
        }
    }
    let uint8 = Spec::new(Format::UINT8, Mapping::Affine);
    if spec.dynamic && spec.scheme(None) != uint8.scheme(None) {
        return Err(invalid!("dynamic activations are uint8, affine, as ONNX defines them"));
    }
    if spec.products && (!spec.dynamic || spec.per == Per::Row) {
        return Err(invalid!("products = true needs dynamic = true and one scale for the whole tensor"));
    }
    if !(0.0..=1.0).contains(&spec.equalize) {
        return Err(invalid!("equalize = {}: choose 0, not at all, to 1, completely", spec.equalize));
    }
    if !(0.0..=1.0).contains(&spec.smooth) {
        return Err(invalid!("smooth = {}: choose 0, not at all, to 1, completely", spec.smooth));
    }
    if spec.awq {
        return Err(invalid!("awq is for weights"));
    }
    if spec.cross_layer {
        return Err(invalid!("cross-layer is for weights"));
    }
    if spec.renormalize {
        return Err(invalid!("renormalize is for weights"));
    }
    if spec.inputs_only && spec.dynamic {
        return Err(invalid!(
            "inputs-only is for ranges found beforehand: dynamic quantizes inputs alone anyway"
        ));
    }
    if spec.rounding != Rounding::Nearest {
        return Err(invalid!("rounding is for weights: activations have the nearest codes"));
    }
    Ok(())
}

fn check_weight(spec: &Spec) -> Result<()> {
    spec.scheme(None).check()?;
    match spec.per {
        Per::Row => return Err(invalid!("per = \"row\" is for activations")),
        Per::Block(0) => return Err(invalid!("a block needs at least one element")),
        _ => {}
    }
    if spec.observer == ObserverConfig::Measured {
        return Err(invalid!("observer = \"measured\" is for activations: for weights use mse"));
    }
    if spec.cross_layer && spec.per != Per::Tensor {
        return Err(invalid!("cross-layer is for weights with one scale: per = \"tensor\""));
    }
    if spec.equalize != 0.0 {
        return Err(invalid!("equalize is for activations: weights follow them"));
    }
    if spec.smooth != 0.0 {
        return Err(invalid!("smooth is for activations: weights follow them"));
    }
    if spec.dynamic {
        return Err(invalid!("dynamic is for activations: weights do not change"));
    }
    if spec.inputs_only {
        return Err(invalid!("inputs-only is for activations"));
    }
    Ok(())
}

/// The TOML form of a mapping.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    preset: Option<String>,
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    rules: Vec<FileRule>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    op: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    regex: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    float: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    preset: Option<String>,
    #[serde(default, rename = "weight-only", skip_serializing_if = "std::ops::Not::not")]
    weight_only: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    activation: Option<Spec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<Spec>,
}

impl TryFrom<File> for QConfigMapping {
    type Error = Error;

    fn try_from(file: File) -> Result<QConfigMapping> {
        let mut mapping = QConfigMapping::default();
        if file.preset.is_some() || file.rules.is_empty() {
            let q = preset(file.preset.as_deref().unwrap_or("default"))?;
            mapping = QConfigMapping::global(q);
        }
        for rule in file.rules {
            let target = match (&rule.op, &rule.name, &rule.regex) {
                (None, None, None) => Target::All,
                (Some(op), None, None) => Target::Op(op.clone()),
                (None, Some(glob), None) => Target::name(glob)?,
                (None, None, Some(expression)) => Target::regex(expression)?,
                _ => return Err(invalid!("a rule has one of op, name and regex")),
            };
            let qconfig = rule.qconfig(mapping.rules.first().and_then(|r| r.qconfig.as_ref()));
            mapping
                .rules
                .push(Rule { qconfig: qconfig.map_err(|e| e.at(format!("rule {target}")))?, target });
        }
        Ok(mapping)
    }
}

impl FileRule {
    /// The configuration that the rule gives; what it leaves out is as in `base`.
    fn qconfig(&self, base: Option<&QConfig>) -> Result<Option<QConfig>> {
        if self.float {
            return match (&self.preset, self.weight_only, &self.activation, &self.weight) {
                (None, false, None, None) => Ok(None),
                _ => Err(invalid!("float = true leaves nothing else to say")),
            };
        }
        let mut q = match (&self.preset, base) {
            (Some(name), _) => preset(name)?,
            (None, Some(base)) => base.clone(),
            (None, None) => preset("default")?,
        };
        if self.weight_only {
            q.activation = None;
        }
        if let Some(activation) = &self.activation {
            if self.weight_only {
                return Err(invalid!("weight-only = true leaves nothing to say of activations"));
            }
            q.activation = Some(activation.clone());
        }
        if let Some(weight) = &self.weight {
            q.weight = weight.clone();
        }
        Ok(Some(q))
    }
}

impl From<QConfigMapping> for File {
    fn from(mapping: QConfigMapping) -> File {
        let rules = mapping.rules.into_iter().map(|rule| {
            let (op, name, regex) = match &rule.target {
                Target::All => (None, None, None),
                Target::Op(op) => (Some(op.clone()), None, None),
                Target::Name(glob) => (None, Some(glob.glob().glob().to_string()), None),
                Target::Regex(regex) => (None, None, Some(regex.as_str().to_string())),
            };
            let float = rule.qconfig.is_none();
            let weight_only = rule.qconfig.as_ref().is_some_and(|q| q.activation.is_none());
            let (activation, weight) = rule.qconfig.map_or((None, None), |q| (q.activation, Some(q.weight)));
            FileRule { op, name, regex, float, preset: None, weight_only, activation, weight }
        });
        File { preset: None, rules: rules.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_is_read_and_written() {
        let text = r#"
            preset = "x86"
            [[rule]]
            op = "Softmax"
            float = true
            [[rule]]
            name = "layer4.*"
            [rule.activation]
            format = "int16"
            mapping = "symmetric"
        "#;
        let mapping = QConfigMapping::from_toml(text).unwrap();
        assert_eq!(mapping.rules.len(), 3);
        assert_eq!(mapping.rules[1], Rule { target: Target::Op("Softmax".into()), qconfig: None });
        let third = mapping.rules[2].qconfig.as_ref().unwrap();
        assert_eq!(third.activation.as_ref().unwrap().format, Format::INT16);
        assert_eq!(third.weight, preset("x86").unwrap().weight);
        assert_eq!(QConfigMapping::from_toml(&mapping.to_toml().unwrap()).unwrap(), mapping);
    }

    #[test]
    fn remedies_survive_toml() {
        let mut q = preset("default").unwrap();
        q.weight = q.weight.per(Per::Tensor).cross_layer();
        q.activation = q.activation.map(|a| a.observed_by(ObserverConfig::Measured).smoothed(0.5));
        let mapping = QConfigMapping::global(q);
        let text = mapping.to_toml().unwrap();
        assert!(
            text.contains("cross-layer = true") && text.contains("measured") && text.contains("smooth = 0.5"),
            "{text}"
        );
        assert_eq!(QConfigMapping::from_toml(&text).unwrap(), mapping);
    }

    #[test]
    fn every_preset_decodes_by_name_and_survives_toml() {
        for (name, _) in PRESETS {
            let mapping = QConfigMapping::from_toml(&format!("preset = {name:?}")).unwrap();
            assert_eq!(QConfigMapping::from_toml(&mapping.to_toml().unwrap()).unwrap(), mapping, "{name}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, says) in [
            ("presets = \"x86\"", "presets"),
            ("preset = \"x87\"", "x87"),
            ("[[rule]]\nop = \"Conv\"\nname = \"a\"", "one of op, name and regex"),
            ("[[rule]]\nname = \"a[\"", "a["),
            ("[[rule]]\nregex = \"(\"", "regex"),
            ("[[rule]]\nfloat = true\npreset = \"x86\"", "nothing else to say"),
            (
                "[[rule]]\nweight-only = true\n[rule.activation]\nformat = \"uint8\"\nmapping = \"affine\"",
                "nothing to say of activations",
            ),
            ("[[rule]]\n[rule.weight]\nformat = \"int99\"\nmapping = \"affine\"", "int99"),
            ("[[rule]]\n[rule.weight]\nformat = \"int8\"\nmapping = \"affine\"\nbits = 3", "bits"),
            (
                "[[rule]]\n[rule.weight]\nformat = \"int8\"\nmapping = \"affine\"\nrounding = \"up\"",
                "nearest",
            ),
        ] {
            let error = QConfigMapping::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
