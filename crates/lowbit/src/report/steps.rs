//! What was tried to mend a model.

use maud::{Markup, html};

use super::chart::{Axis, Plot, key, units};
use super::text::{bytes, milliseconds, percent};
use super::{Report, Section, Step};

/// The steps in order, and what they cost and brought.
pub fn section(report: &Report) -> Option<Section> {
    let steps = &report.steps;
    (!steps.is_empty()).then_some(())?;
    let of = |text: Option<String>| text.unwrap_or_else(|| "–".into());
    let body = html! {
        ol.steps {
            @for step in steps {
                li class=(if step.kept { "kept" } else { "dropped" }) {
                    h3 { (step.title) " " span.badge { (if step.kept { "kept" } else { "not kept" }) } }
                    @if !step.text.is_empty() { p { (step.text) } }
                }
            }
        }
        @if let Some(figure) = trade(steps) { div.cards { (figure) } }
        div.scroll { table {
            thead { tr { th.n { "" } th { "step" } th.n { "agreement" } th.n { "top-1" } th.n { "latency" } th.n { "size" } th { "" } } }
            tbody { @for (i, s) in steps.iter().enumerate() { tr {
                td.n { (i + 1) }
                th scope="row" { (s.title) }
                td.n { (of(s.agreement.map(percent))) }
                td.n { (of(s.top1.map(percent))) }
                td.n { (of(s.latency_ms.map(milliseconds))) }
                td.n { (of(s.bytes.map(bytes))) }
                td { @if s.kept { "kept" } }
            } } }
        } }
    };
    Some(Section { id: "steps", title: "Steps", body })
}

/// Agreement over latency.
fn trade(steps: &[Step]) -> Option<Markup> {
    let points: Vec<(usize, f64, f64, bool)> = steps
        .iter()
        .enumerate()
        .filter_map(|(i, s)| Some((i + 1, s.latency_ms?, 100.0 * s.agreement?, s.kept)))
        .collect();
    (points.len() > 1).then_some(())?;
    let slowest = points.iter().map(|p| p.1).fold(0.0, f64::max);
    let least = points.iter().map(|p| p.2).fold(100.0, f64::min);
    let mut plot = Plot::new(
        Axis::linear(0.0, 1.1 * slowest, 6, "latency of one sample, ms"),
        Axis::linear((least - 1.0).max(0.0), 100.0, 6, "agreement, %"),
        210.0,
    );
    let kept: Vec<(f64, f64)> = points.iter().filter(|p| p.3).map(|p| (p.1, p.2)).collect();
    plot.line(&kept, "line path");
    for (i, ms, agreement, kept) in points {
        let (x, y) = (plot.x(ms), plot.y(agreement));
        plot.mark(html! {
            g {
                title { "step " (i) ": " (milliseconds(ms)) ", " (percent(agreement / 100.0)) }
                circle class={ "dot " (if kept { "kept" } else { "dropped" }) } cx=(units(x)) cy=(units(y)) r="8" {}
                text.dot x=(units(x)) y=(units(y + 3.5)) text-anchor="middle" { (i) }
            }
        });
    }
    let keys = html! { (key("kept", "kept")) (key("dropped", "not kept")) };
    let says = "Agreement with the float model over latency, a point for each step";
    Some(plot.figure(html! { "Agreement over latency, by step" }, says, keys))
}
