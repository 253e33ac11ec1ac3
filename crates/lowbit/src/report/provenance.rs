//! What a model was made from, and how.

use maud::html;

use super::{Report, Section};

/// Tool, hashes and settings.
pub fn section(report: &Report) -> Option<Section> {
    let p = report.provenance.as_ref()?;
    let body = html! {
        dl {
            dt { "tool" } dd { "lowbit " (p.version) " " (p.command) }
            @if !p.codes.is_empty() { dt { "codes" } dd { (p.codes) } }
            @if !p.model.is_empty() { dt { "float model, SHA-256" } dd { code { (p.model) } } }
            @if let Some(n) = p.samples { dt { "calibration samples" } dd { (n) } }
            @if let Some(data) = &p.data { dt { "calibration data, SHA-256" } dd { code { (data) } } }
        }
        @if !p.settings.trim().is_empty() {
            details { summary { "Settings" } div.scroll { pre { (p.settings) } } }
        }
    };
    Some(Section { id: "provenance", title: "Provenance", body })
}
