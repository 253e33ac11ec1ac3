//! Tables for people.

use std::fmt;

/// A table with a line of titles.
pub struct Table {
    titles: Vec<String>,
    /// Whether a column holds numbers, which are aligned right.
    numbers: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns; a title that begins with `>` is a column of
    /// numbers.
    pub fn new(titles: &[&str]) -> Table {
        Table {
            titles: titles.iter().map(|t| t.trim_start_matches('>').to_string()).collect(),
            numbers: titles.iter().map(|t| t.starts_with('>')).collect(),
            rows: vec![],
        }
    }

    /// Appends a row. Control characters, which names in a file may hold, are
    /// not sent to the terminal.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.titles.len());
        self.rows.push(cells.into_iter().map(|c| c.replace(char::is_control, "?")).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.titles).chain(&self.rows);
        let width = |c: usize| lines().map(|line| line[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.titles.len()).map(width).collect();
        for line in lines() {
            let cells = line.iter().zip(&widths).zip(&self.numbers).map(|((cell, &width), number)| {
                if *number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A size in decimal units: `12.7 kB`.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, "B")
}

/// A count in decimal units: `12.7 M`.
pub fn count(n: u64) -> String {
    scaled(n as f64, "").trim_end().to_string()
}

fn scaled(n: f64, unit: &str) -> String {
    let (divisor, prefix) = match n {
        n if n >= 1e9 => (1e9, "G"),
        n if n >= 1e6 => (1e6, "M"),
        n if n >= 1e3 => (1e3, "k"),
        _ => return format!("{n} {unit}"),
    };
    format!("{:.1} {prefix}{unit}", n / divisor)
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// A ratio in decibel; `exact` where nothing was lost.
pub fn decibel(db: f64) -> String {
    if db == f64::INFINITY { "exact".into() } else { format!("{db:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut t = Table::new(&["name", ">ms"]);
        t.row(["a\u{1b}[31m".into(), "1.5".into()]);
        t.row(["b".into(), "12.5".into()]);
        assert_eq!(t.to_string(), "name      ms\na?[31m   1.5\nb       12.5\n");
    }

    #[test]
    fn numbers_are_readable() {
        for (n, text) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_730_000, "12.7 MB"), (3_000_000_000, "3.0 GB")]
        {
            assert_eq!(bytes(n), text);
        }
        assert_eq!((count(12), count(1500)), ("12".into(), "1.5 k".into()));
        assert_eq!(
            (percent(0.5), decibel(f64::INFINITY), decibel(-1.25)),
            ("50.00 %".into(), "exact".into(), "-1.2".into())
        );
    }
}
