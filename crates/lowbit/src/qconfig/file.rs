//! The TOML form of a mapping.

use serde::{Deserialize, Serialize};

use super::{QConfig, QConfigMapping, Rule, Spec, Target, preset};
use crate::error::{Error, Result, invalid};

/// The TOML form of a mapping.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
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
    use crate::observer::ObserverConfig;
    use crate::qconfig::{PRESETS, Per};
    use crate::scheme::Format;

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
