//! Where along the model errors arise.

use maud::{Markup, html};

use super::chart::{Axis, Plot, WIDTH, figure, key, units};
use super::summary::class;
use super::text::{decibel, number};
use super::{Report, Section};
use crate::analysis::{BROKEN_DB, POOR_DB, ValueError};

/// The greatest SQNR of each colour but the last, in dB.
const BOUNDS: [f64; 5] = [BROKEN_DB, 14.0, POOR_DB, 30.0, 40.0];

/// The class of the colour of an SQNR.
pub fn colour(db: f64) -> &'static str {
    const CLASSES: [&str; 6] = ["h0", "h1", "h2", "h3", "h4", "h5"];
    if db.is_nan() { CLASSES[0] } else { CLASSES[BOUNDS.iter().filter(|b| db >= **b).count()] }
}

/// What is known of one value.
struct Row<'a> {
    whole: &'a ValueError,
    own: Option<&'a ValueError>,
    inherited_db: Option<f64>,
}

/// Heat maps, a plot along the model, and the values as a table.
pub fn section(report: &Report) -> Option<Section> {
    let rows: Vec<Row<'_>> = match (&report.shadow, &report.comparison) {
        (Some(shadow), _) => shadow
            .values
            .iter()
            .map(|e| Row { whole: &e.whole, own: Some(&e.own), inherited_db: Some(e.inherited_db) })
            .collect(),
        (None, Some(c)) => c
            .values
            .iter()
            .chain(&c.outputs)
            .map(|e| Row { whole: e, own: None, inherited_db: None })
            .collect(),
        (None, None) => vec![],
    };
    let shadowed = report.shadow.is_some();
    (!rows.is_empty()).then_some(())?;
    let whole = |r: &Row<'_>| Some(r.whole.sqnr_db);
    let own = |r: &Row<'_>| r.own.map(|e| e.sqnr_db);
    let inherited = |r: &Row<'_>| r.inherited_db;
    let body = html! {
        p {
            "The signal-to-noise ratio of each value against the float model's: 20 dB and more are good, below 8 dB the value is \
             broken. "
            @if shadowed { "A layer's own error is that of the layer fed with the float model's values; the rest is inherited." }
        }
        p.legend { (legend()) }
        div.cards.two {
            (heat_map("SQNR of each value, in evaluation order", &rows, whole))
            @if shadowed {
                (heat_map("SQNR of the layer's own error alone", &rows, own))
                (heat_map("SQNR of what it inherits alone", &rows, inherited))
            }
            (along(&rows, shadowed))
        }
        details { summary { "All " (rows.len()) " values" } (table(&rows, shadowed)) }
    };
    Some(Section { id: "layers", title: "Layers", body })
}

fn legend() -> Markup {
    let name = |i: usize| match (i.checked_sub(1).map(|i| BOUNDS[i]), BOUNDS.get(i)) {
        (None, Some(to)) => format!("< {to} dB"),
        (Some(from), Some(to)) => format!("{from}–{to}"),
        (Some(from), None) => format!("≥ {from}"),
        (None, None) => String::new(),
    };
    html! {
        @for i in 0..=BOUNDS.len() {
            @let db = if i == 0 { 0.0 } else { BOUNDS[i - 1] };
            (key(colour(db), &name(i)))
        }
    }
}

fn heat_map(title: &str, rows: &[Row<'_>], db: impl Fn(&Row<'_>) -> Option<f64>) -> Markup {
    let columns = match rows.len() {
        ..=60 => 10,
        61..=240 => 16,
        _ => 24,
    };
    let left = 34.0;
    let size = (WIDTH - left) / columns as f64;
    let height = if rows.len() <= 60 { size.min(26.0) } else { size };
    let lines = rows.len().div_ceil(columns);
    let worst = rows.iter().filter_map(&db).fold(f64::INFINITY, f64::min);
    let says = format!("{title}: {} values, the least {} dB", rows.len(), decibel(worst));
    let picture = html! {
        svg viewBox={ "0 0 " (units(WIDTH)) " " (units(lines as f64 * height)) } role="img" aria-label=(says) {
            @for line in 0..lines {
                text.tick x=(units(left - 4.0)) y=(units((line as f64 + 0.5) * height + 3.5)) text-anchor="end" {
                    (line * columns + 1)
                }
            }
            @for (i, row) in rows.iter().enumerate() {
                @if let Some(db) = db(row) {
                    @let (x, y) = (left + (i % columns) as f64 * size, (i / columns) as f64 * height);
                    g {
                        title { (row.whole.value) " (" (row.whole.op) "): " (decibel(db)) " dB" }
                        rect class={ "cell " (colour(db)) } x=(units(x + 0.5)) y=(units(y + 0.5))
                            width=(units(size - 1.0)) height=(units(height - 1.0)) {}
                        @if columns == 10 {
                            text class={ "in " (colour(db)) } x=(units(x + size / 2.0)) y=(units(y + height / 2.0 + 3.5))
                                text-anchor="middle" { (in_cell(db)) }
                        }
                    }
                }
            }
        }
    };
    figure(html! { (title) ", in dB" }, picture, html! {})
}

fn in_cell(db: f64) -> String {
    if db == f64::INFINITY { "=".into() } else { format!("{db:.0}").replace('-', "−") }
}

/// The SQNR over the place in the model.
fn along(rows: &[Row<'_>], shadowed: bool) -> Markup {
    let all = || {
        let of = |r: &Row<'_>| [Some(r.whole.sqnr_db), r.own.map(|e| e.sqnr_db), r.inherited_db];
        rows.iter().flat_map(of).flatten().filter(|db| db.is_finite())
    };
    let (lo, hi) = (all().fold(0.0, f64::min), all().fold(POOR_DB, f64::max));
    let mut plot = Plot::new(
        Axis::linear(1.0, rows.len() as f64, 7, "value, in evaluation order"),
        Axis::linear(lo, hi, 6, "SQNR, dB"),
        210.0,
    );
    let series = |of: &dyn Fn(&Row<'_>) -> f64| -> Vec<(f64, f64)> {
        rows.iter().enumerate().map(|(i, r)| ((i + 1) as f64, of(r))).collect()
    };
    if shadowed {
        plot.line(&series(&|r| r.own.map_or(f64::NAN, |e| e.sqnr_db)), "line own");
    }
    plot.line(&series(&|r| r.whole.sqnr_db), "line whole");
    if shadowed {
        plot.line(&series(&|r| r.inherited_db.unwrap_or(f64::NAN)), "line inherited");
    }
    let keys = html! {
        (key("whole", if shadowed { "both together" } else { "value" }))
        @if shadowed { (key("own", "own error")) (key("inherited", "inherited")) }
    };
    plot.figure(
        html! { "SQNR along the model; exact values are left out" },
        "SQNR of each value along the model",
        keys,
    )
}

fn table(rows: &[Row<'_>], shadowed: bool) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                th.n { "" } th { "value" } th { "node" } th { "op" } th.n { "SQNR dB" }
                @if shadowed { th.n { "own dB" } th.n { "inherited dB" } }
                th.n { "MSE" } th.n { "cosine" } th.n { "max error" } th.n { "max |x|" } th { "verdict" }
            } }
            tbody { @for (i, r) in rows.iter().enumerate() { tr {
                td.n { (i + 1) }
                th scope="row" { (r.whole.value) }
                td.wrap { (r.whole.node) }
                td { (r.whole.op) }
                td.n { (decibel(r.whole.sqnr_db)) }
                @if shadowed {
                    td.n { (r.own.map_or(String::new(), |e| decibel(e.sqnr_db))) }
                    td.n { (r.inherited_db.map_or(String::new(), decibel)) }
                }
                td.n { (number(r.whole.mse)) }
                td.n { (format!("{:.5}", r.whole.cosine)) }
                td.n { (number(r.whole.max_abs)) }
                td.n { (number(r.whole.amplitude)) }
                td class=(class(r.whole.verdict)) { (r.whole.verdict) }
            } } }
        } }
    }
}

#[cfg(test)]
mod tests {
    use super::colour;

    #[test]
    fn colours_change_where_verdicts_do() {
        for (db, class) in [
            (f64::NAN, "h0"),
            (f64::NEG_INFINITY, "h0"),
            (7.9, "h0"),
            (8.0, "h1"),
            (19.9, "h2"),
            (20.0, "h3"),
            (39.0, "h4"),
            (f64::INFINITY, "h5"),
        ] {
            assert_eq!(colour(db), class, "{db}");
        }
    }
}
