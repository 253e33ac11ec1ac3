//! What was measured of a quantized model, as one HTML file.
//!
//! The file holds all it needs: no script, no font, no picture from elsewhere. Charts are SVG whose
//! colours are those of the style sheet, which follows the reader's choice of light or dark.

mod chart;
mod distributions;
mod findings;
mod layers;
mod provenance;
mod sensitivity;
mod steps;
mod summary;
mod text;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::Serialize;

use crate::analysis::{
    Comparison, Distribution, Latency, Level, Metric, Provenance, Remark, Score, Sensitivity, Shadow,
    WeightError,
};
use crate::doctor::Trial;
use crate::quantize::{Finding, Severity};

/// What was measured of a quantized model. What is empty or `None` was not measured, and the page
/// has no section for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// What the page is about: the model's name.
    pub title: String,
    /// The data, in a few words.
    pub data: String,
    /// The number of samples.
    pub samples: usize,
    /// The float model first, then what was made of it.
    pub models: Vec<Measured>,
    /// Value by value.
    pub comparison: Option<Comparison>,
    /// Own and inherited errors.
    pub shadow: Option<Shadow>,
    /// The weights' errors.
    pub weights: Vec<WeightError>,
    /// How weights and activations are spread.
    pub distributions: Vec<Distribution>,
    /// How many distributions of each kind are drawn, those of least SQNR first; all are in the table.
    pub drawn: usize,
    /// The layers' harm, and what they are ranked by.
    pub sensitivity: Option<(Metric, Sensitivity)>,
    /// What was tried to mend the model, in order.
    pub steps: Vec<Step>,
    /// What deserves attention.
    pub findings: Vec<Noted>,
    /// What the model was made from.
    pub provenance: Option<Provenance>,
    /// What was asked for and could not be measured, each with the reason.
    pub missing: Vec<(String, String)>,
}

/// A model and what was measured of it as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Its name.
    pub name: String,
    /// Bytes of its file, external data included.
    pub bytes: Option<u64>,
    /// Accuracy and agreement.
    pub score: Option<Score>,
    /// Time of one sample.
    pub latency: Option<Latency>,
    /// The share of multiply-accumulate operations in integers, 0 to 1.
    pub coverage: Option<f64>,
}

/// One attempt to mend a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Step {
    /// What was done, in a few words.
    pub title: String,
    /// Why, and what came of it.
    pub text: String,
    /// The share of samples of the float model's class.
    pub agreement: Option<f64>,
    /// The share of samples of the right class.
    pub top1: Option<f64>,
    /// Median time of a sample in milliseconds.
    pub latency_ms: Option<f64>,
    /// Bytes of the model's file.
    pub bytes: Option<u64>,
    /// Whether it stayed.
    pub kept: bool,
}

impl From<&Trial> for Step {
    fn from(t: &Trial) -> Step {
        let texts: Vec<&str> =
            [&t.why, &t.text].into_iter().filter(|t| !t.is_empty()).map(String::as_str).collect();
        Step {
            title: t.title.clone(),
            text: texts.join("; "),
            agreement: t.measured.scores.agreement,
            top1: t.measured.scores.top1,
            latency_ms: Some(t.measured.ms),
            bytes: Some(t.measured.bytes),
            kept: t.kept,
        }
    }
}

/// Something that deserves attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Noted {
    /// A stable code; empty if it has none.
    pub code: String,
    /// How grave it is.
    pub severity: Severity,
    /// The node or value that it is about; empty if it is about the whole model.
    pub subject: String,
    /// What is so.
    pub text: String,
    /// What to do; empty if nothing.
    pub suggestion: String,
}

impl From<&Remark> for Noted {
    fn from(r: &Remark) -> Noted {
        Noted {
            code: r.code.clone(),
            severity: match r.level {
                Level::Refused => Severity::Error,
                Level::Float => Severity::Warning,
                Level::Advice => Severity::Note,
            },
            subject: if r.node.is_empty() { r.op.clone() } else { format!("{} ({})", r.node, r.op) },
            text: r.text.clone(),
            suggestion: r.suggestion.clone(),
        }
    }
}

impl From<&Finding> for Noted {
    fn from(f: &Finding) -> Noted {
        Noted {
            code: f.code().into(),
            severity: f.severity(),
            subject: f.subject.clone(),
            text: f.text(),
            suggestion: f.suggestion().into(),
        }
    }
}

/// A part of the page.
struct Section {
    id: &'static str,
    title: &'static str,
    body: Markup,
}

impl Report {
    /// The page. The same report gives the same bytes. Names and texts are escaped: a model may
    /// call its nodes as it likes.
    pub fn html(&self) -> String {
        let sections: Vec<Section> = [
            summary::section(self),
            findings::section(self),
            layers::section(self),
            sensitivity::section(self),
            distributions::weights(self),
            distributions::activations(self),
            steps::section(self),
            provenance::section(self),
        ]
        .into_iter()
        .flatten()
        .collect();
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) " · lowbit report" }
                    style { (PreEscaped(include_str!("report/style.css"))) }
                }
                body {
                    header {
                        p.kind { "lowbit report" }
                        h1 { (self.title) }
                        @if self.samples > 0 {
                            p.about { (text::count(self.samples as u64)) " samples" @if !self.data.is_empty() { " of " (self.data) } }
                        }
                        nav aria-label="Sections" {
                            @for s in &sections { a href={ "#" (s.id) } { (s.title) } }
                        }
                    }
                    main {
                        @for s in &sections { section id=(s.id) { h2 { (s.title) } (s.body) } }
                        @if sections.is_empty() { p { "Nothing was measured." } }
                    }
                    footer { p { "Made by lowbit " (env!("CARGO_PKG_VERSION")) "." } }
                }
            }
        };
        page.into_string()
    }
}

#[cfg(test)]
mod tests;
