//! What a user should know about a quantized model.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::qparams::Range;

/// Something about a quantized model that deserves attention. `docs/findings.md` has a
/// section for each code.
///
/// As JSON, the fields of its [`Symptom`] stand beside `code`, `severity`, `subject`, `text`
/// and `suggestion`.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The node, value or operator that it is about.
    pub subject: String,
    /// What is the matter with it.
    pub symptom: Symptom,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The model cannot be quantized like this.
    Error,
    /// It probably costs accuracy or speed.
    Warning,
    /// Good to know.
    Note,
}

/// What is the matter with a node or a value.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "symptom", rename_all = "kebab-case")]
pub enum Symptom {
    /// No sample gave the value an element.
    Uncalibrated,
    /// Elements are NaN or infinite.
    NotFinite {
        /// How many are NaN.
        nan: u64,
        /// How many are infinite.
        infinite: u64,
        /// The first sample that makes one.
        sample: String,
    },
    /// All elements are 0, for every sample.
    Zero,
    /// All elements are equal, for every sample.
    Constant {
        /// To this.
        constant: f32,
    },
    /// Channels of a convolution's output hold one value for every sample.
    DeadChannels {
        /// The channels.
        channels: Vec<usize>,
        /// How many channels there are.
        of: usize,
    },
    /// Elements lie far outside the reals of the codes.
    Saturating {
        /// The share below them, 0 to 1.
        below: f64,
        /// The share above them, 0 to 1.
        above: f64,
        /// What the codes stand for.
        range: Range,
    },
    /// Channels use few codes of an activation, which has one scale.
    UnlikeChannels {
        /// Those that do.
        channels: Vec<usize>,
        /// How many channels are not dead.
        of: usize,
        /// How many codes these channels use at most.
        codes: f64,
    },
    /// A bias does not fit into 32 bits at the scale of its accumulator; the
    /// weight scales of these channels were enlarged until it did.
    BiasOverflow {
        /// The channels.
        channels: Vec<usize>,
    },
    /// Channels use few codes of a weight, which has one scale.
    UnlikeWeightChannels {
        /// Those that do.
        channels: Vec<usize>,
        /// How many channels are not 0.
        of: usize,
        /// How many codes these channels use at most.
        codes: f64,
    },
    /// Nodes stay in float.
    InFloat {
        /// The nodes.
        nodes: Vec<String>,
        /// Why.
        reason: String,
        /// Their share of the model's multiply-accumulate operations, 0 to 1, where it was
        /// counted.
        share: Option<f64>,
    },
    /// The model broke with this node quantized: it stays in float
    /// ([`super::quantize_sparing`]).
    Spared {
        /// The least SQNR of an output with this node alone quantized, in dB.
        sqnr_db: f64,
    },
    /// Other runtimes lack this operator and run, in float, the function of
    /// standard operators that the file holds beside it.
    OwnOperator {
        /// How many nodes of it there are.
        nodes: usize,
    },
    /// Nodes that were measured to take longer in int8 than in float.
    Slower {
        /// The nodes, and what was measured.
        nodes: Vec<(String, String)>,
    },
    /// Elements of other samples lie far outside the range of the calibration samples.
    BeyondRange {
        /// The share of elements that do, 0 to 1.
        share: f64,
        /// The range of the calibration samples.
        calibrated: Range,
        /// The range of the others.
        found: Range,
    },
    /// The channels of an input are distributed otherwise than in calibration.
    UnlikeInput {
        /// The channel that differs the most.
        channel: usize,
        /// Mean and standard deviation in calibration.
        calibrated: [f64; 2],
        /// Mean and standard deviation of the other samples.
        found: [f64; 2],
    },
}

impl Finding {
    /// `symptom` of `subject`.
    pub fn new(subject: impl Into<String>, symptom: Symptom) -> Finding {
        Finding { subject: subject.into(), symptom }
    }

    /// What always holds `value`, for every sample.
    pub fn constant(subject: impl Into<String>, value: f32) -> Finding {
        let symptom = if value == 0.0 { Symptom::Zero } else { Symptom::Constant { constant: value } };
        Finding::new(subject, symptom)
    }

    /// Stable: `LB-Q` and a number. 1xx are about values, 2xx about weights, 3xx about
    /// operators, 4xx about samples.
    pub fn code(&self) -> &'static str {
        match self.symptom {
            Symptom::Uncalibrated => "LB-Q101",
            Symptom::NotFinite { .. } => "LB-Q102",
            Symptom::Zero => "LB-Q103",
            Symptom::Constant { .. } => "LB-Q104",
            Symptom::DeadChannels { .. } => "LB-Q105",
            Symptom::Saturating { .. } => "LB-Q106",
            Symptom::UnlikeChannels { .. } => "LB-Q107",
            Symptom::BiasOverflow { .. } => "LB-Q201",
            Symptom::UnlikeWeightChannels { .. } => "LB-Q202",
            Symptom::InFloat { .. } => "LB-Q301",
            Symptom::Spared { .. } => "LB-Q302",
            Symptom::OwnOperator { .. } => "LB-Q303",
            Symptom::Slower { .. } => "LB-Q304",
            Symptom::BeyondRange { .. } => "LB-Q401",
            Symptom::UnlikeInput { .. } => "LB-Q402",
        }
    }

    /// How grave it is.
    pub fn severity(&self) -> Severity {
        /// The share of the model's operations from which staying in float costs time.
        const MUCH: f64 = 0.01;
        match &self.symptom {
            Symptom::Uncalibrated => Severity::Error,
            Symptom::NotFinite { nan, .. } if *nan > 0 => Severity::Error,
            Symptom::InFloat { share: Some(share), .. } if *share < MUCH => Severity::Note,
            Symptom::DeadChannels { .. }
            | Symptom::BiasOverflow { .. }
            | Symptom::OwnOperator { .. }
            | Symptom::Slower { .. } => Severity::Note,
            _ => Severity::Warning,
        }
    }

    /// What is the matter, in plain words, without the subject.
    pub fn text(&self) -> String {
        match &self.symptom {
            Symptom::Uncalibrated => "no calibration sample gave it a value".into(),
            Symptom::NotFinite { nan, infinite, sample } => {
                format!("has {nan} NaN and {infinite} infinite elements, the first for sample {sample}")
            }
            Symptom::Zero => "is 0 for every calibration sample".into(),
            Symptom::Constant { constant } => format!("is {constant} for every calibration sample"),
            Symptom::DeadChannels { channels, of } => {
                format!(
                    "{} of {of} channels hold one value for every sample: {}",
                    channels.len(),
                    some(channels)
                )
            }
            Symptom::Saturating { below, above, range } => format!(
                "{} of its elements lie far outside the {} to {} that its codes stand for ({} below)",
                percent(below + above),
                short(range.lo),
                short(range.hi),
                percent(*below)
            ),
            Symptom::UnlikeChannels { channels, of, codes } => format!(
                "{} of {of} channels use {codes:.1} or fewer of its codes: {}",
                channels.len(),
                some(channels)
            ),
            Symptom::BiasOverflow { channels } => format!(
                "the weights of some channels are so small that the bias beside them does not fit into 32 \
                 bits; their scales were enlarged: {}",
                some(channels)
            ),
            Symptom::UnlikeWeightChannels { channels, of, codes } => format!(
                "{} of {of} output channels use {codes:.1} or fewer of the codes of its one scale: {}",
                channels.len(),
                some(channels)
            ),
            Symptom::InFloat { nodes, reason, share } => {
                let stay = match nodes.len() {
                    0 | 1 => "stays in float".into(),
                    n => format!("{n} nodes stay in float ({})", some(nodes)),
                };
                let share = share.filter(|s| *s > 0.0);
                let share = share.map_or(String::new(), |s| format!(", {} of the MACs", percent(s)));
                format!("{stay}{share}: {reason}")
            }
            Symptom::Spared { sqnr_db } => format!(
                "stays in float, as it breaks the model: quantized alone it leaves the outputs \
                 {sqnr_db:.1} dB above their errors"
            ),
            Symptom::OwnOperator { nodes } => format!(
                "{nodes} nodes are of an operator of lowbit's own: other runtimes run it in float, by \
                 the function that the file holds"
            ),
            Symptom::Slower { nodes } => match &nodes[..] {
                [(_, measured)] => measured.clone(),
                _ => {
                    let names: Vec<&String> = nodes.iter().map(|(name, _)| name).collect();
                    format!("{} nodes take longer in int8 than in float: {}", nodes.len(), some(&names))
                }
            },
            Symptom::BeyondRange { share, calibrated, found } => format!(
                "{} of the evaluation elements lie far outside the {} to {} of calibration; they reach {} to {}",
                percent(*share),
                short(calibrated.lo),
                short(calibrated.hi),
                short(found.lo),
                short(found.hi)
            ),
            Symptom::UnlikeInput { channel, calibrated: [mean, std], found: [new_mean, new_std] } => format!(
                "channel {channel} has mean {new_mean:.3} and standard deviation {new_std:.3} in evaluation, \
                 {mean:.3} and {std:.3} in calibration"
            ),
        }
    }

    /// What to do.
    pub fn suggestion(&self) -> &'static str {
        match &self.symptom {
            Symptom::Uncalibrated => {
                "give samples for which the model computes it, or keep what reads it in float (--skip)"
            }
            Symptom::NotFinite { .. } => {
                "leave the sample out if it is broken; else mend the model where the value is made"
            }
            Symptom::Zero | Symptom::Constant { .. } => {
                "check the preprocessing; if the samples are right, the value can be cut from the model"
            }
            Symptom::DeadChannels { .. } => {
                "nothing for accuracy; if the samples are varied enough, prune them to save time"
            }
            Symptom::Saturating { .. } => {
                "compare the accuracy with --calibrator min-max, or percentile=99.99"
            }
            Symptom::UnlikeChannels { .. } => {
                "make the channels alike (--equalize 0.5), or keep what reads the value in float (--skip)"
            }
            Symptom::BiasOverflow { .. } => {
                "nothing, as a rule: beside such a bias the weights hardly count; else keep the node in float (--skip)"
            }
            Symptom::UnlikeWeightChannels { .. } => {
                "give each output channel a scale: leave out --per-tensor, or per = \"channel\" in the rules"
            }
            Symptom::InFloat { .. } => {
                "quantize what the nodes read and make, if the reason allows; else this is their price"
            }
            Symptom::Spared { .. } => "leave it so, or quantize statically, with sample data",
            Symptom::OwnOperator { .. } => {
                "for another runtime choose --preset dynamic, or quantize statically with the layer skipped"
            }
            Symptom::Slower { .. } => "run with --fastest, or keep them in float (--skip)",
            Symptom::BeyondRange { .. } => {
                "calibrate on samples like those of the evaluation, or on more of them"
            }
            Symptom::UnlikeInput { .. } => {
                "prepare both alike (scale, mean, std, channels), or calibrate on samples like these"
            }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}; {}", self.code(), self.subject, self.text(), self.suggestion())
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Told<'a> {
            code: &'a str,
            severity: Severity,
            subject: &'a str,
            #[serde(flatten)]
            symptom: &'a Symptom,
            text: String,
            suggestion: &'a str,
        }
        let Finding { subject, symptom } = self;
        let (code, severity) = (self.code(), self.severity());
        Told { code, severity, subject, symptom, text: self.text(), suggestion: self.suggestion() }
            .serialize(serializer)
    }
}

/// The first few of a list.
fn some(all: &[impl fmt::Display]) -> String {
    const MOST: usize = 8;
    let mut list: Vec<String> = all.iter().take(MOST).map(ToString::to_string).collect();
    if all.len() > MOST {
        list.push("...".into());
    }
    list.join(", ")
}

/// A share as a percentage, with two digits where it is small.
fn percent(share: f64) -> String {
    match 100.0 * share {
        p if p == 0.0 || p >= 10.0 => format!("{p:.0} %"),
        p if p >= 0.01 => format!("{p:.2} %"),
        _ => "less than 0.01 %".into(),
    }
}

/// A number to three or so digits.
fn short(x: f32) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if (0.01..1e4).contains(&a) => format!("{:.*}", if a < 10.0 { 3 } else { 1 }, x),
        _ => format!("{x:.2e}"),
    }
}

#[cfg(test)]
mod tests;
