//! The equation of an `Einsum`.

use std::fmt;

use crate::error::{Result, invalid};

/// An axis of an operand or of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Axis {
    /// One that the ellipsis stands for, counted from its last.
    Broadcast(usize),
    /// One with a label.
    Label(char),
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Axis::Broadcast(back) => write!(f, "axis -{} of the ellipsis", back + 1),
            Axis::Label(label) => write!(f, "{label}"),
        }
    }
}

/// A label, or the ellipsis.
type Symbol = Option<char>;

/// A parsed equation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Equation {
    terms: Vec<Vec<Symbol>>,
    result: Vec<Symbol>,
}

impl Equation {
    pub(super) fn parse(text: &str) -> Result<Equation> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (operands, result) = match text.split_once("->") {
            Some((operands, result)) => (operands, Some(symbols(result)?)),
            None => (text.as_str(), None),
        };
        let terms = operands.split(',').map(symbols).collect::<Result<Vec<_>>>()?;
        let Some(result) = result else {
            let result = implied(&terms);
            return Ok(Equation { terms, result });
        };
        for (i, symbol) in result.iter().enumerate() {
            let Some(label) = symbol else { continue };
            if result[..i].contains(symbol) {
                return Err(invalid!("the result has {label} twice"));
            }
            if !terms.iter().any(|t| t.contains(symbol)) {
                return Err(invalid!("no operand has {label}, which the result has"));
            }
        }
        Ok(Equation { terms, result })
    }

    /// The axes of operands of these ranks, and those of the result.
    pub(super) fn resolve(&self, ranks: &[usize]) -> Result<(Vec<Vec<Axis>>, Vec<Axis>)> {
        if ranks.len() != self.terms.len() {
            return Err(invalid!("names {} operands, found {}", self.terms.len(), ranks.len()));
        }
        let mut widest = 0;
        let terms = self.terms.iter().zip(ranks).enumerate().map(|(i, (term, &rank))| {
            let labels = term.iter().flatten().count();
            let hidden = rank.checked_sub(labels).filter(|&n| n == 0 || term.contains(&None));
            let hidden =
                hidden.ok_or_else(|| invalid!("operand {i} has {rank} dimensions for {labels} labels"))?;
            widest = widest.max(hidden);
            Ok(axes(term, hidden))
        });
        let terms = terms.collect::<Result<Vec<_>>>()?;
        if widest > 0 && !self.result.contains(&None) {
            return Err(invalid!("the result has no ellipsis for the axes that operands have in theirs"));
        }
        Ok((terms, axes(&self.result, widest)))
    }
}

/// The result where none is written: the axes of the ellipsis, and the labels
/// that occur once.
fn implied(terms: &[Vec<Symbol>]) -> Vec<Symbol> {
    let mut all: Vec<Symbol> = terms.concat();
    all.sort_unstable();
    let ellipsis = all.contains(&None).then_some(None);
    let once = all.chunk_by(|a, b| a == b).filter(|same| same.len() == 1 && same[0].is_some());
    ellipsis.into_iter().chain(once.map(|same| same[0])).collect()
}

fn axes(term: &[Symbol], hidden: usize) -> Vec<Axis> {
    let axes = term.iter().flat_map(|symbol| match symbol {
        Some(label) => vec![Axis::Label(*label)],
        None => (0..hidden).rev().map(Axis::Broadcast).collect(),
    });
    axes.collect()
}

fn symbols(term: &str) -> Result<Vec<Symbol>> {
    let (mut symbols, mut rest) = (vec![], term);
    while let Some(next) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("...") {
            if symbols.contains(&None) {
                return Err(invalid!("the term {term:?} has two ellipses"));
            }
            symbols.push(None);
            rest = after;
        } else if next.is_ascii_alphabetic() {
            symbols.push(Some(next));
            rest = &rest[1..];
        } else {
            return Err(invalid!("the term {term:?} has {next:?}: labels are letters"));
        }
    }
    Ok(symbols)
}
