//! Which node is quantized how: ordered rules, of which the last that matches wins.

mod correction;
mod file;
mod presets;
mod spec;

use std::fmt;

use globset::{Glob, GlobMatcher};
use regex::Regex;
use serde::{Deserialize, Serialize};

pub use correction::BiasCorrection;
use file::File;
pub use presets::{PRESETS, preset};
pub use spec::{Per, QConfig, Rounding, Spec};

use crate::error::{Error, Result, invalid};
use crate::graph::{Graph, Node};
use crate::op::{Op, Quant};

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
        self.qconfig.as_ref().map_or(Ok(()), QConfig::check)
    }
}
