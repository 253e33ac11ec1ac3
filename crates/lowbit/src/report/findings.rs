//! What deserves attention, and what could not be measured.

use maud::html;

use super::{Noted, Report, Section};
use crate::quantize::Severity;

/// How many findings, and how many subjects of one, are shown unfolded.
const SHOWN: usize = 12;

/// The findings, the gravest first; what is said of several subjects is said once.
pub fn section(report: &Report) -> Option<Section> {
    if report.findings.is_empty() && report.missing.is_empty() {
        return None;
    }
    let mut groups: Vec<(&Noted, Vec<&str>)> = vec![];
    for f in &report.findings {
        let same = |g: &Noted| {
            (g.severity, &g.code, &g.text, &g.suggestion) == (f.severity, &f.code, &f.text, &f.suggestion)
        };
        match groups.iter_mut().find(|(g, _)| same(g)) {
            Some((_, subjects)) => subjects.push(&f.subject),
            None => groups.push((f, vec![&f.subject])),
        }
    }
    groups.sort_by_key(|(f, _)| f.severity);
    let item = |(f, subjects): &(&Noted, Vec<&str>)| {
        html! { li class={ "finding " (class(f.severity)) } {
            p {
                span.badge { (name(f.severity)) }
                @if !f.code.is_empty() { " " code { (f.code) } }
                " " strong { (subjects[..subjects.len().min(SHOWN)].join(", ")) }
            }
            p { (f.text) }
            @if !f.suggestion.is_empty() { p.advice { "→ " (f.suggestion) } }
            @if subjects.len() > SHOWN {
                details { summary { "and " (subjects.len() - SHOWN) " more" } p { (subjects[SHOWN..].join(", ")) } }
            }
        } }
    };
    let body = html! {
        ul.findings { @for group in groups.iter().take(SHOWN) { (item(group)) } }
        @if groups.len() > SHOWN {
            details {
                summary { "The other " (groups.len() - SHOWN) " findings" }
                ul.findings { @for group in groups.iter().skip(SHOWN) { (item(group)) } }
            }
        }
        @if !report.missing.is_empty() {
            h3 { "Not measured" }
            ul { @for (what, why) in &report.missing { li { (what) ": " (why) } } }
        }
    };
    Some(Section { id: "findings", title: "Findings", body })
}

fn name(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    }
}

fn class(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "broken",
        Severity::Warning => "poor",
        Severity::Note => "plain",
    }
}
