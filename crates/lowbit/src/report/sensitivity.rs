//! Which layers harm the model the most.

use maud::{Markup, html};

use super::chart::bar;
use super::text::{decibel, number, percent, rate};
use super::{Report, Section};
use crate::analysis::{LayerScore, Metric, Scores};

/// How many layers are shown unfolded.
const SHOWN: usize = 20;

/// The layers, ranked, with a bar for the harm of each.
pub fn section(report: &Report) -> Option<Section> {
    let (metric, found) = report.sensitivity.as_ref()?;
    // A metric that was not measured ranks nothing: the order is that of the model.
    let ranked = found.ranked(*metric).unwrap_or_else(|_| found.layers.iter().collect());
    let harm = |s: &Scores| harm(s, *metric, found.float_top1);
    let most = ranked.iter().filter_map(|l| harm(&l.scores)).filter(|h| h.is_finite()).fold(0.0, f64::max);
    let (what, text) = match found.all_but_one {
        false => (
            "quantized alone",
            "Each layer was quantized alone; the one that harms the outputs the most comes first.",
        ),
        true => {
            ("left in float", "Each layer was left in float alone; the one that gains the most comes first.")
        }
    };
    let row = |rank: usize, layer: &LayerScore| {
        let scores = &layer.scores;
        html! { tr {
            td.n { (rank) }
            th.fill scope="row" {
                (layer.layer)
                @if let Some(h) = harm(scores) {
                    (bar(if most > 0.0 { h / most } else { 0.0 }, "harm", &format!("{}: {}", layer.layer, says(h, *metric))))
                }
            }
            td.n { (harm(scores).map_or("–".into(), |h| says(h, *metric))) }
            (columns(scores))
        } }
    };
    let head = html! { thead { tr {
        th.n { "" } th { "layer " (what) } th.n { (unit(*metric)) } th.n { "SQNR dB" } th.n { "agreement" } th.n { "top-1" }
    } } };
    let body = html! {
        p { (text) " The bars are " (meaning(*metric)) ". Measured on " (found.samples) " samples"
            @if let Some(top1) = found.float_top1 { ", of which the float model has " (percent(top1)) " right" } "." }
        div.scroll { table.ranking {
            (head)
            tbody {
                @for (i, layer) in ranked.iter().take(SHOWN).enumerate() { (row(i + 1, layer)) }
                tr.all {
                    td {} th scope="row" { @if found.all_but_one { "no layer in float" } @else { "all layers quantized" } }
                    td.n { (harm(&found.everything).map_or("–".into(), |h| says(h, *metric))) }
                    (columns(&found.everything))
                }
            }
        } }
        @if ranked.len() > SHOWN {
            details {
                summary { "The other " (ranked.len() - SHOWN) " layers" }
                div.scroll { table.ranking { (head) tbody {
                    @for (i, layer) in ranked.iter().enumerate().skip(SHOWN) { (row(i + 1, layer)) }
                } } }
            }
        }
    };
    Some(Section { id: "sensitivity", title: "Sensitivity", body })
}

fn columns(s: &Scores) -> Markup {
    html! {
        td.n { (decibel(s.sqnr_db)) }
        td.n { (s.agreement.map_or("–".into(), percent)) }
        td.n { (s.top1.map_or("–".into(), percent)) }
    }
}

/// A score as an error: 0 without harm.
fn harm(s: &Scores, metric: Metric, float_top1: Option<f64>) -> Option<f64> {
    Some(match metric {
        Metric::Sqnr => 10f64.powf(-s.sqnr_db / 20.0),
        Metric::Mse => s.mse,
        Metric::Kl => s.kl?,
        Metric::Agreement => 1.0 - s.agreement?,
        Metric::Top1 => float_top1? - s.top1?,
    })
}

/// What is drawn as bars.
fn meaning(metric: Metric) -> &'static str {
    match metric {
        Metric::Sqnr => "the error of the outputs, as a share of their amplitude",
        Metric::Mse => "the mean squared error of the outputs",
        Metric::Kl => "the KL divergence of the classes' probabilities, in nats",
        Metric::Agreement => "the share of samples of another class",
        Metric::Top1 => "the points of top-1 accuracy that are lost",
    }
}

/// The same as the title of a column.
fn unit(metric: Metric) -> &'static str {
    match metric {
        Metric::Sqnr => "error / output",
        Metric::Mse => "MSE",
        Metric::Kl => "KL, nats",
        Metric::Agreement => "other class",
        Metric::Top1 => "points lost",
    }
}

fn says(harm: f64, metric: Metric) -> String {
    match metric {
        Metric::Sqnr | Metric::Agreement => rate(harm),
        Metric::Mse | Metric::Kl => number(harm),
        Metric::Top1 => number(100.0 * harm),
    }
}
