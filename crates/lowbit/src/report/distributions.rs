//! How weights and activations are spread, and where their codes lie.

use maud::{Markup, html};

use super::chart::{Axis, Plot, WIDTH, decades, figure, key, units};
use super::layers::colour;
use super::text::{count, decibel, number, rate, short};
use super::{Report, Section};
use crate::analysis::{ChannelRange, Distribution, Mapped, Place, WeightError};
use crate::qparams::Range;
use crate::scheme::Mapping;

/// As many codes or fewer are drawn as lines through the picture, more as a comb below it.
const FEW_CODES: f64 = 16.0;

/// The least distance of the comb's teeth, in user units.
const TOOTH: f64 = 4.0;

/// As many channels or fewer are drawn one by one, more together with their neighbours.
const MANY_CHANNELS: usize = 300;

/// The weights.
pub fn weights(report: &Report) -> Option<Section> {
    let all = of(report, Place::Weight);
    if all.is_empty() && report.weights.is_empty() {
        return None;
    }
    let text = "What the quantized model stores, against the float weights, those with the greatest error first. The shaded \
                parts lie outside the codes: elements there are clipped. Weights with several scales are drawn in codes, \
                w / scale + zero point, so that all channels share the axis.";
    let body = html! {
        p { (text) }
        (drawn(&all, report.drawn, "weights", |d| html! { (histogram(d)) (channels(d)) }))
        @if !all.is_empty() { details { summary { "All " (all.len()) " weights, by their codes" } (table(&all)) } }
        @if !report.weights.is_empty() { (errors(&report.weights)) }
    };
    Some(Section { id: "weights", title: "Weights", body })
}

/// The activations.
pub fn activations(report: &Report) -> Option<Section> {
    let all = of(report, Place::Activation);
    (!all.is_empty()).then_some(())?;
    let text = "The float model's values over the samples, against the codes that quantize them, those that lose the most by it \
                first. Below each: the same range by an affine and by a symmetric mapping, and the error of each.";
    let body = html! {
        p { (text) }
        (drawn(&all, report.drawn, "activations", |d| html! { (histogram(d)) (mappings(d)) }))
        details { summary { "All " (all.len()) " activations" } (table(&all)) }
    };
    Some(Section { id: "activations", title: "Activations", body })
}

/// Those of one kind, the least SQNR first.
fn of(report: &Report, place: Place) -> Vec<&Distribution> {
    let mut all: Vec<&Distribution> = report.distributions.iter().filter(|d| d.place == place).collect();
    all.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    all
}

fn drawn(
    all: &[&Distribution],
    most: usize,
    what: &str,
    pictures: impl Fn(&Distribution) -> Markup,
) -> Markup {
    html! {
        div.cards.tall {
            @for d in all.iter().take(most) {
                article {
                    h3 { (d.name) }
                    p.facts {
                        (d.scheme) " · " span class={ "chip " (colour(d.sqnr_db)) } { (decibel(d.sqnr_db)) " dB" }
                        " · " (count(d.elements)) " elements · " (rate(clipped(d))) " clipped"
                        @if d.not_finite > 0 { " · " (count(d.not_finite)) " not finite" }
                    }
                    (pictures(d))
                }
            }
        }
        @if all.len() > most {
            p { "Drawn: " (most) " of " (all.len()) " " (what) ", those of least SQNR; the table has all." }
        }
    }
}

fn clipped(d: &Distribution) -> f64 {
    d.clipped as f64 / d.elements.max(1) as f64
}

/// The horizontal axis of a distribution: its elements and its codes.
fn axis(d: &Distribution) -> Axis {
    let (lo, hi) = (d.lo.min(d.clip_lo), d.hi.max(d.clip_hi));
    let margin = 0.02 * (hi - lo);
    let label = if d.in_codes { "code before rounding" } else { "value" };
    Axis::linear(lo - margin, hi + margin, 6, label)
}

fn histogram(d: &Distribution) -> Markup {
    let most = d.counts.iter().copied().max().unwrap_or(0);
    let mut plot = Plot::new(axis(d), Axis::counts(most, "elements, log"), 180.0);
    plot.band(f64::NEG_INFINITY, d.clip_lo, "outside");
    plot.band(d.clip_hi, f64::INFINITY, "outside");
    let heights: Vec<f64> = d.counts.iter().map(|n| decades(*n)).collect();
    plot.histogram(d.lo, d.hi, &heights, "elements");
    let codes = codes(&plot, d);
    match &codes {
        Some(Codes { every: 1, places, .. }) if places.len() as f64 <= FEW_CODES => {
            plot.verticals(places.iter().copied(), None, "codes");
        }
        Some(codes) => plot.verticals(codes.places.iter().copied(), Some(5.0), "codes"),
        None => {}
    }
    plot.verticals([d.clip_lo, d.clip_hi], None, "clip");
    let comb = match &codes {
        Some(Codes { every: 1, all, .. }) => format!("{all} codes"),
        Some(Codes { every, all, .. }) => format!("{all} codes, 1 in {every} drawn"),
        None => "float codes, not drawn".into(),
    };
    let title = html! {
        "Elements " (number(d.lo)) " to " (number(d.hi)) ", codes " (number(d.clip_lo)) " to " (number(d.clip_hi))
        @if let (Some(step), false) = (d.step, d.in_codes) { ", step " (number(step)) }
    };
    let says = format!(
        "Histogram of {}: {} to {}; codes reach from {} to {}",
        d.name,
        number(d.lo),
        number(d.hi),
        number(d.clip_lo),
        number(d.clip_hi)
    );
    let keys =
        html! { (key("elements", "elements")) (key("clip", "ends of the codes")) (key("codes", &comb)) };
    plot.figure(title, &says, keys)
}

/// Where codes are drawn.
struct Codes {
    places: Vec<f64>,
    /// One in so many is drawn.
    every: u64,
    /// How many there are.
    all: u64,
}

/// The codes in such a distance that they can be told apart.
fn codes(plot: &Plot, d: &Distribution) -> Option<Codes> {
    let step = d.step.filter(|s| *s > 0.0)?;
    let all = ((d.clip_hi - d.clip_lo) / step).round() as u64 + 1;
    let width = plot.x(d.clip_hi) - plot.x(d.clip_lo);
    let wanted = (all - 1) as f64 * TOOTH / width.max(TOOTH);
    let every = (wanted.ceil().max(1.0) as u64).next_power_of_two();
    let places = (0..all).step_by(every as usize).map(|i| d.clip_lo + i as f64 * step);
    Some(Codes { places: places.collect(), every, all })
}

/// The range of the elements, of the codes, and of the codes by either mapping, one above the other.
fn mappings(d: &Distribution) -> Markup {
    if d.mappings.is_empty() || d.in_codes {
        return html! {};
    }
    let quality = |mse: f64, db: f64| format!("MSE {}, {} dB", number(mse), decibel(db));
    let of = |m: &Mapped| {
        let range = m.range.map_or((0.0, 0.0), |r| (r.lo.into(), r.hi.into()));
        (name(m.mapping), name(m.mapping), range, quality(m.mse, m.sqnr_db))
    };
    let rows: Vec<(&str, &str, (f64, f64), String)> = [
        ("elements", "elements", (d.lo, d.hi), String::new()),
        ("in use", "clip", (d.clip_lo, d.clip_hi), quality(d.mse, d.sqnr_db)),
    ]
    .into_iter()
    .chain(d.mappings.iter().map(of))
    .collect();
    let lo = rows.iter().map(|r| r.2.0).fold(f64::INFINITY, f64::min);
    let hi = rows.iter().map(|r| r.2.1).fold(f64::NEG_INFINITY, f64::max);
    let place = |x: f64| WIDTH * (x - lo) / (hi - lo);
    let says: Vec<String> = rows.iter().map(|r| format!("{} {}", r.0, r.3)).collect();
    const HEIGHT: usize = 33;
    let picture = html! {
        svg viewBox={ "0 0 " (units(WIDTH)) " " (HEIGHT * rows.len()) } role="img" aria-label=(says.join("; ")) {
            @for (i, (title, class, (left, right), quality)) in rows.iter().enumerate() {
                @let top = (HEIGHT * i) as f64;
                text.row x="0" y=(units(top + 12.0)) {
                    tspan.strong { (title) } ": " (number(*left)) " to " (number(*right))
                    @if !quality.is_empty() { ", " (quality) }
                }
                rect class={ "range " (class) } x=(units(place(*left))) y=(units(top + 17.0))
                    width=(units((place(*right) - place(*left)).max(1.0))) height="8" {}
            }
        }
    };
    figure(html! { "Affine against symmetric codes of the same range" }, picture, html! {})
}

fn name(mapping: Mapping) -> &'static str {
    match mapping {
        Mapping::Affine => "affine",
        Mapping::Symmetric => "symmetric",
    }
}

/// The range of each channel's elements within what its codes cover.
fn channels(d: &Distribution) -> Markup {
    let n = d.channels.len();
    if n < 2 {
        return html! {};
    }
    let together = n.div_ceil(MANY_CHANNELS);
    let groups: Vec<ChannelRange> = d
        .channels
        .chunks(together)
        .filter_map(|c| {
            c.iter().copied().reduce(|a, b| ChannelRange {
                elements: a.elements.union(b.elements),
                codes: a.codes.union(b.codes),
            })
        })
        .collect();
    let ends = |f: fn(&ChannelRange) -> f32, g: fn(f32, f32) -> f32| groups.iter().map(f).fold(0.0, g);
    let lo = ends(|c| c.codes.lo.min(c.elements.lo), f32::min);
    let hi = ends(|c| c.codes.hi.max(c.elements.hi), f32::max);
    let last = (n - 1) as f64;
    let mut plot = Plot::new(
        Axis::linear(-0.5, last + 0.5, 6, "output channel"),
        Axis::linear(lo.into(), hi.into(), 6, "weight"),
        180.0,
    );
    let place = |i: usize| (i * together) as f64 + (together - 1) as f64 / 2.0;
    // Strokes as wide as a channel leave no gaps where there are many.
    let width = (0.7 * (plot.x(last + 0.5) - plot.x(-0.5)) / groups.len() as f64).clamp(0.6, 14.0);
    let span = |f: fn(&ChannelRange) -> Range| {
        groups.iter().enumerate().map(move |(i, c)| (place(i), f(c).lo.into(), f(c).hi.into()))
    };
    plot.spans(span(|c| c.codes), width, "covered");
    plot.spans(span(|c| c.elements), width, "channel");
    let used = |c: &&ChannelRange| f64::from(c.elements.amax() / c.codes.amax());
    let least = d.channels.iter().min_by(|a, b| used(a).total_cmp(&used(b)));
    let title = html! {
        "Range of each output channel"
        @if together > 1 { ", " (together) " together" }
        @if let Some(c) = least { "; the least uses " (rate(used(&c))) " of its codes" }
    };
    let keys = html! { (key("channel", "elements")) (key("covered", "covered by the codes")) };
    plot.figure(title, &format!("Ranges of the {n} output channels of {}", d.name), keys)
}

fn table(all: &[&Distribution]) -> Markup {
    let of = |d: &Distribution, mapping: Mapping| {
        let mapped = d.mappings.iter().find(|m| m.mapping == mapping);
        mapped.map_or("–".into(), |m| decibel(m.sqnr_db))
    };
    html! {
        div.scroll { table {
            thead { tr {
                th { "name" } th { "codes" } th.n { "SQNR dB" } th.n { "MSE" } th.n { "clipped" } th.n { "from" } th.n { "to" }
                th.n { "first code" } th.n { "last code" } th.n { "step" } th.n { "affine dB" } th.n { "symmetric dB" }
            } }
            tbody { @for d in all { tr {
                th scope="row" { (d.name) }
                td { (d.scheme) }
                td.n { (decibel(d.sqnr_db)) }
                td.n { (number(d.mse)) }
                td.n { (rate(clipped(d))) }
                td.n { (number(d.lo)) }
                td.n { (number(d.hi)) }
                td.n { (number(d.clip_lo)) }
                td.n { (number(d.clip_hi)) }
                td.n { (d.step.map_or("–".into(), number)) }
                td.n { (of(d, Mapping::Affine)) }
                td.n { (of(d, Mapping::Symmetric)) }
            } } }
        } }
    }
}

/// What was made of the weights, with their worst channels.
fn errors(weights: &[WeightError]) -> Markup {
    let mut weights: Vec<&WeightError> = weights.iter().collect();
    weights.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    html! {
        details {
            summary { "Errors of all " (weights.len()) " stored weights" }
            div.scroll { table {
                thead { tr {
                    th { "node" } th { "op" } th { "shape" } th.n { "SQNR dB" } th.n { "MSE" } th.n { "max error" } th { "worst channels (dB)" }
                } }
                tbody { @for e in weights {
                    @let worst: Vec<String> =
                        e.worst_channels(3).iter().map(|(c, db)| format!("{c} ({})", decibel(*db))).collect();
                    tr {
                        th scope="row" { (e.node) }
                        td { (e.op) }
                        td { (short(&format!("{:?}", e.shape), 24)) }
                        td.n { (decibel(e.sqnr_db)) }
                        td.n { (number(e.mse)) }
                        td.n { (number(e.max_abs)) }
                        td { (worst.join(", ")) }
                    }
                } }
            } }
        }
    }
}
