//! The pieces that charts are made of.
//!
//! A chart is [`WIDTH`] units wide and scales with the page, so that its text has the size of the
//! page's on a phone and beside others on a wide screen alike. Colours are classes of the style sheet.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::text::significant;

/// The width of a chart in user units.
pub const WIDTH: f64 = 360.0;

/// What lies around the axes: left, right, above, below.
const MARGINS: [f64; 4] = [44.0, 10.0, 8.0, 36.0];

/// One direction of a plot.
#[derive(Clone, Debug)]
pub struct Axis {
    lo: f64,
    hi: f64,
    ticks: Vec<(f64, String)>,
    label: String,
}

impl Axis {
    /// From `lo` to `hi`, with about `most` round ticks between.
    pub fn linear(lo: f64, hi: f64, most: usize, label: &str) -> Axis {
        let (lo, hi) = proper(lo, hi);
        let ticks = round_ticks(lo, hi, most);
        let ticks = ticks.into_iter().map(|t| (t, significant(t, 6))).collect();
        Axis { lo, hi, ticks, label: label.into() }
    }

    /// Counts from 0 to `most`, by [`decades`].
    pub fn counts(most: u64, label: &str) -> Axis {
        let top = decades(most).max(1.0);
        let powers = top.floor() as i32;
        let every = (powers / 4).max(1);
        let power = |p: i32| {
            let name = match p {
                1..=3 => 10u64.pow(p as u32 - 1).to_string(),
                4..=6 => format!("{}k", 10u64.pow(p as u32 - 4)),
                7..=9 => format!("{}M", 10u64.pow(p as u32 - 7)),
                _ => format!("1e{}", p - 1),
            };
            (f64::from(p), name)
        };
        let powers = (1..=powers).step_by(every as usize).map(power);
        let ticks = std::iter::once((0.0, "0".into())).chain(powers).collect();
        Axis { lo: 0.0, hi: 1.05 * top, ticks, label: label.into() }
    }
}

/// Where a count stands on a logarithmic axis that has a place for 0: `1 + log10 n`, and 0 for none.
pub fn decades(n: u64) -> f64 {
    if n == 0 { 0.0 } else { 1.0 + (n as f64).log10() }
}

/// Finite ends with a width.
fn proper(lo: f64, hi: f64) -> (f64, f64) {
    let (lo, hi) = (if lo.is_finite() { lo } else { 0.0 }, if hi.is_finite() { hi } else { 0.0 });
    if lo < hi { (lo, hi) } else { (lo - 0.5, lo + 0.5) }
}

/// Multiples of 1, 2 or 5 times a power of ten from `lo` to `hi`: the most that are at most `most`.
pub fn round_ticks(lo: f64, hi: f64, most: usize) -> Vec<f64> {
    let least = (hi - lo) / most.max(1) as f64;
    if !(least.is_finite() && least > 0.0) {
        return vec![];
    }
    let power = least.log10().floor() as i32;
    let steps = (power - 1..=power + 1).flat_map(|p| [1.0, 2.0, 5.0].map(|m| (m, p)));
    // Divided rather than multiplied, 0.3 is 3 / 10.
    let tick = |i: f64, (m, p): (f64, i32)| match p {
        0.. => i * m * 10f64.powi(p),
        _ => i * m / 10f64.powi(-p),
    };
    for step in steps {
        let (first, last) = ((lo / tick(1.0, step)).ceil(), (hi / tick(1.0, step)).floor());
        if last - first + 1.0 <= most as f64 {
            let n = (last - first + 1.0).max(0.0) as usize;
            return (0..n).map(|i| tick(first + i as f64, step) + 0.0).collect();
        }
    }
    vec![]
}

/// A length in user units.
pub fn units(x: f64) -> String {
    let text = format!("{:.1}", if x.is_finite() { x } else { 0.0 });
    text.strip_suffix(".0").unwrap_or(&text).into()
}

/// Axes and what is drawn between them.
pub struct Plot {
    x: Axis,
    y: Axis,
    height: f64,
    marks: Vec<Markup>,
}

impl Plot {
    /// Axes alone.
    pub fn new(x: Axis, y: Axis, height: f64) -> Plot {
        Plot { x, y, height, marks: vec![] }
    }

    /// The horizontal place of `x`, within the axes.
    pub fn x(&self, x: f64) -> f64 {
        let [left, right, ..] = MARGINS;
        left + (WIDTH - left - right) * ((x - self.x.lo) / (self.x.hi - self.x.lo)).clamp(0.0, 1.0)
    }

    /// The vertical place of `y`, within the axes.
    pub fn y(&self, y: f64) -> f64 {
        let [.., above, below] = MARGINS;
        above
            + (self.height - above - below)
                * (1.0 - (y - self.y.lo) / (self.y.hi - self.y.lo)).clamp(0.0, 1.0)
    }

    /// Draws something.
    pub fn mark(&mut self, mark: Markup) {
        self.marks.push(mark);
    }

    /// Bars side by side from `lo` to `hi`, filled from the bottom.
    pub fn histogram(&mut self, lo: f64, hi: f64, heights: &[f64], class: &str) {
        let bottom = self.y(self.y.lo);
        let edge = |i: usize| self.x(lo + (hi - lo) * i as f64 / heights.len() as f64);
        let mut path = format!("M{} {}", units(edge(0)), units(bottom));
        for (i, h) in heights.iter().enumerate() {
            let _ = write!(path, "V{}H{}", units(self.y(*h)), units(edge(i + 1)));
        }
        let _ = write!(path, "V{}Z", units(bottom));
        self.mark(html! { path class=(class) d=(path) {} });
    }

    /// Points joined by lines; a gap where one is not finite.
    pub fn line(&mut self, points: &[(f64, f64)], class: &str) {
        let mut path = String::new();
        let mut broken = true;
        for &(x, y) in points {
            if y.is_finite() {
                let _ = write!(
                    path,
                    "{}{} {}",
                    if broken { "M" } else { "L" },
                    units(self.x(x)),
                    units(self.y(y))
                );
                // A point alone is a dot, by the round ends of strokes.
                path.push_str(if broken { "h0" } else { "" });
            }
            broken = !y.is_finite();
        }
        self.mark(html! { path class=(class) d=(path) {} });
    }

    /// Vertical lines over the whole height, or of `length` from the bottom.
    pub fn verticals(&mut self, places: impl IntoIterator<Item = f64>, length: Option<f64>, class: &str) {
        let bottom = self.y(self.y.lo);
        let top = length.map_or(self.y(self.y.hi), |l| bottom - l);
        let mut path = String::new();
        for x in places {
            let _ = write!(path, "M{} {}V{}", units(self.x(x)), units(bottom), units(top));
        }
        self.mark(html! { path class=(class) d=(path) {} });
    }

    /// Vertical strokes of a width in user units, each at `x` from `lo` to `hi`.
    pub fn spans(&mut self, spans: impl IntoIterator<Item = (f64, f64, f64)>, width: f64, class: &str) {
        let mut path = String::new();
        for (x, lo, hi) in spans {
            // A stroke of no length would not be seen.
            let (top, bottom) = (self.y(hi), self.y(lo));
            let _ = write!(path, "M{} {}V{}", units(self.x(x)), units(top), units(bottom.max(top + 0.5)));
        }
        self.mark(html! { path class=(class) stroke-width=(units(width)) d=(path) {} });
    }

    /// The part between two places of the horizontal axis, shaded.
    pub fn band(&mut self, lo: f64, hi: f64, class: &str) {
        let (left, right, top) = (self.x(lo), self.x(hi), self.y(self.y.hi));
        self.mark(html! {
            rect class=(class) x=(units(left)) y=(units(top)) width=(units(right - left))
                height=(units(self.y(self.y.lo) - top)) {}
        });
    }

    /// The figure. `says` is what a reader who does not see the picture is told.
    pub fn figure(self, title: Markup, says: &str, legend: Markup) -> Markup {
        let (left, right) = (self.x(self.x.lo), self.x(self.x.hi));
        let (top, bottom) = (self.y(self.y.hi), self.y(self.y.lo));
        let mut grid = String::new();
        for (y, _) in &self.y.ticks {
            let _ = write!(grid, "M{} {}H{}", units(left), units(self.y(*y)), units(right));
        }
        let middle = (top + bottom) / 2.0;
        // Text in the middle of a tick at an end would be cut.
        let anchor = |x: f64| if x > WIDTH - 24.0 { "end" } else { "middle" };
        let picture = html! {
            svg viewBox={ "0 0 " (units(WIDTH)) " " (units(self.height)) } role="img" aria-label=(says) {
                path.grid d=(grid) {}
                @for mark in &self.marks { (mark) }
                path.axis d={ "M" (units(left)) " " (units(top)) "V" (units(bottom)) "H" (units(right)) } {}
                @for (x, name) in &self.x.ticks {
                    path.axis d={ "M" (units(self.x(*x))) " " (units(bottom)) "v3" } {}
                    text.tick x=(units(self.x(*x))) y=(units(bottom + 13.0)) text-anchor=(anchor(self.x(*x))) { (name) }
                }
                @for (y, name) in &self.y.ticks {
                    text.tick x=(units(left - 4.0)) y=(units(self.y(*y) + 3.5)) text-anchor="end" { (name) }
                }
                text.label x=(units((left + right) / 2.0)) y=(units(self.height - 5.0)) text-anchor="middle" { (self.x.label) }
                text.label x="9" y=(units(middle)) text-anchor="middle"
                    transform={ "rotate(-90 9 " (units(middle)) ")" } { (self.y.label) }
            }
        };
        figure(title, picture, legend)
    }
}

/// A picture with its title and what its colours mean.
pub fn figure(title: Markup, picture: Markup, legend: Markup) -> Markup {
    html! {
        figure { figcaption { (title) } (picture) @if !legend.0.is_empty() { p.legend { (legend) } } }
    }
}

/// A colour and what it means.
pub fn key(class: &str, means: &str) -> Markup {
    html! { span.key { i class={ "swatch " (class) } {} (means) } }
}

/// A bar of `share` of the width, 0 to 1.
pub fn bar(share: f64, class: &str, says: &str) -> Markup {
    let width = 100.0 * if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    html! {
        svg.bar role="img" aria-label=(says) {
            rect.rail width="100%" height="100%" {}
            rect class=(class) width={ (units(width)) "%" } height="100%" {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for (lo, hi, most, expected) in [
            (0.0, 1.0, 5, &[0.0, 0.5, 1.0][..]),
            (0.0, 1.0, 6, &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (-0.13, 0.31, 5, &[-0.1, 0.0, 0.1, 0.2, 0.3]),
            (-128.0, 127.0, 6, &[-100.0, -50.0, 0.0, 50.0, 100.0]),
            (3.0, 3.5, 2, &[3.0, 3.5]),
            (0.0, 6e9, 4, &[0.0, 2e9, 4e9, 6e9]),
            (0.0, 3e-7, 4, &[0.0, 1e-7, 2e-7, 3e-7]),
            (1.0, 1.0, 4, &[]),
            (0.0, f64::INFINITY, 4, &[]),
            (f64::NAN, 1.0, 4, &[]),
        ] {
            assert_eq!(round_ticks(lo, hi, most), expected, "{lo}..{hi}");
        }
        for i in 1..400 {
            let (lo, hi) = (-1.7 * f64::from(i), 10f64.powi(i % 13 - 6) * f64::from(i));
            for most in 2..8 {
                let ticks = round_ticks(lo, hi, most);
                assert!((1..=most).contains(&ticks.len()), "{lo}..{hi} {most}: {ticks:?}");
                assert!(ticks.iter().all(|t| (lo..=hi).contains(t)), "{lo}..{hi} {most}: {ticks:?}");
            }
        }
    }

    #[test]
    fn counts_are_ticked_by_powers_of_ten() {
        for (most, names) in [
            (0, &["0", "1"][..]),
            (1, &["0", "1"]),
            (50, &["0", "1", "10"]),
            (20_000, &["0", "1", "10", "100", "1k", "10k"]),
            (3_000_000_000, &["0", "1", "100", "10k", "1M", "100M"]),
        ] {
            let found: Vec<String> = Axis::counts(most, "").ticks.into_iter().map(|t| t.1).collect();
            assert_eq!(found, names, "{most}");
        }
    }

    #[test]
    fn nothing_is_drawn_outside_the_axes() {
        let plot = Plot::new(Axis::linear(0.0, 10.0, 5, "x"), Axis::linear(-1.0, 1.0, 5, "y"), 200.0);
        for v in [-1e30, -1.0, 0.0, 5.0, 11.0, 1e300, f64::INFINITY] {
            assert!((44.0..=350.0).contains(&plot.x(v)) && (8.0..=164.0).contains(&plot.y(v)), "{v}");
        }
        assert_eq!((plot.x(5.0), plot.y(0.0)), (197.0, 86.0));
        let empty = Plot::new(Axis::linear(f64::NAN, 0.0, 5, "x"), Axis::linear(2.0, 2.0, 5, "y"), 200.0);
        assert_eq!((empty.x(0.0), empty.y(2.0)), (197.0, 86.0));
        assert_eq!((units(1.04), units(-3.0), units(f64::NAN)), ("1".into(), "-3".into(), "0".into()));
    }

    #[test]
    fn lines_have_gaps() {
        let mut plot = Plot::new(Axis::linear(0.0, 3.0, 4, "x"), Axis::linear(0.0, 1.0, 4, "y"), 200.0);
        plot.line(&[(0.0, 0.0), (1.0, 1.0), (2.0, f64::INFINITY), (3.0, 0.0)], "c");
        assert_eq!(plot.marks[0].0, r#"<path class="c" d="M44 164h0L146 8M350 164h0"></path>"#);
    }
}
