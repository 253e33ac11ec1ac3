//! The models as a whole, side by side.

use maud::{Markup, html};

use super::chart::{bar, figure};
use super::text::{bytes, decibel, milliseconds, percent};
use super::{Measured, Report, Section};
use crate::analysis::Verdict;

/// What a measure is called, what it means, and how long a model's bar is and what it says.
struct Measure {
    title: &'static str,
    better: &'static str,
    of: fn(&Measured) -> Option<f64>,
    says: fn(f64) -> String,
    /// The length of a whole bar; the greatest value if none.
    whole: Option<f64>,
}

const MEASURES: [Measure; 6] = [
    Measure {
        title: "Top-1 accuracy",
        better: "share of samples of the right class; higher is better",
        of: |m| m.score.as_ref()?.top1,
        says: percent,
        whole: Some(1.0),
    },
    Measure {
        title: "Top-5 accuracy",
        better: "share of samples whose class is among the first five; higher is better",
        of: |m| m.score.as_ref()?.top5,
        says: percent,
        whole: Some(1.0),
    },
    Measure {
        title: "Agreement",
        better: "share of samples of the float model's class; higher is better",
        of: |m| Some(m.score.as_ref()?.agreement),
        says: percent,
        whole: Some(1.0),
    },
    Measure {
        title: "Size",
        better: "bytes of the file; lower is better",
        of: |m| Some(m.bytes? as f64),
        says: |n| bytes(n as u64),
        whole: None,
    },
    Measure {
        title: "Latency",
        better: "median time of one sample; lower is better",
        of: |m| Some(m.latency?.median_ms),
        says: milliseconds,
        whole: None,
    },
    Measure {
        title: "In int8",
        better: "share of multiply-accumulates in integers; higher is faster",
        of: |m| m.coverage,
        says: percent,
        whole: Some(1.0),
    },
];

/// Bars for each measure, what is broken, and a table of what bars do not say.
pub fn section(report: &Report) -> Option<Section> {
    let outputs = report.comparison.as_ref().map(|c| c.outputs.as_slice()).unwrap_or_default();
    if report.models.is_empty() && outputs.is_empty() {
        return None;
    }
    let body = html! {
        @if let Some(c) = &report.comparison {
            @for damage in &c.damage { p.alert.broken { strong { "Broken: " } (damage) "." } }
        }
        @if !report.models.is_empty() {
            div.cards {
                @for measure in &MEASURES { @if let Some(figure) = measured(report, measure) { (figure) } }
            }
        }
        @if !outputs.is_empty() {
            div.scroll { table {
                thead { tr { th { "output" } th.n { "SQNR dB" } th.n { "cosine" } th.n { "max error" } th { "verdict" } } }
                tbody { @for e in outputs { tr {
                    th scope="row" { (e.value) }
                    td.n { (decibel(e.sqnr_db)) }
                    td.n { (format!("{:.5}", e.cosine)) }
                    td.n { (super::text::number(e.max_abs)) }
                    td class=(class(e.verdict)) { (e.verdict) }
                } } }
            } }
        }
        @if report.models.iter().any(|m| m.score.is_some() || m.latency.is_some()) { (table(report)) }
    };
    Some(Section { id: "summary", title: "Summary", body })
}

/// The class of cells with this verdict.
pub fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Poor => "poor",
        Verdict::Broken => "broken",
    }
}

fn measured(report: &Report, measure: &Measure) -> Option<Markup> {
    let values: Vec<(&Measured, f64)> =
        report.models.iter().filter_map(|m| Some((m, (measure.of)(m)?))).collect();
    let first = report.models.first();
    let of_first = values.iter().find(|(m, _)| first.is_some_and(|f| std::ptr::eq(*m, f))).map(|(_, x)| *x);
    let whole = measure.whole.unwrap_or_else(|| values.iter().map(|(_, x)| *x).fold(0.0, f64::max));
    (!values.is_empty()).then_some(())?;
    let title = html! { strong { (measure.title) } " " small { (measure.better) } };
    let bars = html! {
        div.bars {
            @for (m, x) in &values {
                @let is_first = first.is_some_and(|f| std::ptr::eq(*m, f));
                @let text = (measure.says)(*x);
                span.name { (m.name) }
                (bar(x / whole, if is_first { "float" } else { "quantized" }, &format!("{}: {text}", m.name)))
                span.value {
                    (text)
                    @if let (Some(base), false, None) = (of_first, is_first, measure.whole) {
                        @if base > 0.0 { small { (percent(x / base)) " of float" } }
                    }
                    @if let (Some(base), false, Some(_), true) = (of_first, is_first, measure.whole, measure.title.starts_with("Top")) {
                        small { (format!("{:+.2} points", 100.0 * (x - base)).replace('-', "−")) }
                    }
                }
            }
        }
    };
    Some(figure(title, bars, html! {}))
}

/// What the bars leave out: the paired test, and the spread of times.
fn table(report: &Report) -> Markup {
    let of = |text: Option<String>| text.unwrap_or_else(|| "–".into());
    html! {
        details {
            summary { "Paired test and spread of times" }
            p { "Lost and won are samples that only the float model, or only this one, has right; p is the probability of \
                 such counts if both were equally good (McNemar's exact test)." }
            div.scroll { table {
                thead { tr {
                    th { "model" } th.n { "top-1" } th.n { "top-5" } th.n { "agreement" } th.n { "lost" } th.n { "won" } th.n { "p" }
                    th.n { "fastest run" } th.n { "median" } th.n { "9 of 10 within" }
                } }
                tbody { @for m in &report.models {
                    @let score = m.score.as_ref();
                    @let paired = score.and_then(|s| s.paired);
                    tr {
                        th scope="row" { (m.name) }
                        td.n { (of(score.and_then(|s| s.top1).map(percent))) }
                        td.n { (of(score.and_then(|s| s.top5).map(percent))) }
                        td.n { (of(score.map(|s| percent(s.agreement)))) }
                        td.n { (of(paired.map(|p| p.only_first.to_string()))) }
                        td.n { (of(paired.map(|p| p.only_this.to_string()))) }
                        td.n { (of(paired.map(|p| format!("{:.3}", p.p)))) }
                        td.n { (of(m.latency.map(|l| milliseconds(l.min_ms)))) }
                        td.n { (of(m.latency.map(|l| milliseconds(l.median_ms)))) }
                        td.n { (of(m.latency.map(|l| milliseconds(l.p90_ms)))) }
                    }
                } }
            } }
        }
    }
}
