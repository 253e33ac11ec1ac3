//! Arithmetic on dimensions: numbers are computed, names become formulas.
//!
//! Products are kept in a normal form, names sorted and the number last
//! (`(C*N*4)`), so that equal products have equal names.

use crate::error::{Error, Result, invalid};
use crate::op::{Dim, Fact};
use crate::tensor::Tensor;

/// `a + b`.
pub(super) fn add(a: &Dim, b: &Dim) -> Dim {
    match (a.as_integer(), b.as_integer()) {
        (Some(x), Some(y)) if x.checked_add(y).is_some() => Dim::integer(x + y),
        (Some(0), _) => b.clone(),
        (_, Some(0)) => a.clone(),
        (_, Some(y)) if y < 0 && y > i64::MIN => sub(a, &Dim::integer(-y)),
        _ => Dim::Named(format!("({a}+{b})")),
    }
}

/// `a - b`.
pub(super) fn sub(a: &Dim, b: &Dim) -> Dim {
    match (a.as_integer(), b.as_integer()) {
        (Some(x), Some(y)) if x.checked_sub(y).is_some() => Dim::integer(x - y),
        (_, Some(0)) => a.clone(),
        _ if a == b => Dim::Known(0),
        _ => Dim::Named(format!("({a}-{b})")),
    }
}

/// `a * b`.
pub(super) fn mul(a: &Dim, b: &Dim) -> Dim {
    product([a, b])
}

/// `a / b`, rounded toward zero; nothing for a division by zero.
pub(super) fn div(a: &Dim, b: &Dim) -> Option<Dim> {
    if let (Some(x), Some(y)) = (a.as_integer(), b.as_integer()) {
        return x.checked_div(y).map(Dim::integer);
    }
    match ratio(Factors::of(a), Factors::of(b)) {
        Ratio::Exact(d) => Some(d),
        _ if b.as_integer() == Some(0) => None,
        _ => Some(Dim::Named(format!("({a}/{b})"))),
    }
}

/// The product of all of `dims`.
pub(super) fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
    let mut all = Factors { number: Some(1), names: vec![] };
    for d in dims {
        let f = Factors::of(d);
        all.number = all.number.zip(f.number).and_then(|(x, y)| x.checked_mul(y));
        all.names.extend(f.names);
    }
    all.into_dim()
}

/// The size that completes `parts` to the same number of elements as `whole`.
///
/// # Errors
/// If no size does.
pub(super) fn missing_size(whole: &[Dim], parts: &[&Dim]) -> Result<Dim> {
    let (total, rest) = (product(whole), product(parts.iter().copied()));
    if rest.as_integer() == Some(0) {
        return Err(invalid!("a size of -1 beside a size of 0 can be anything"));
    }
    match ratio(Factors::of(&total), Factors::of(&rest)) {
        Ratio::Exact(d) => Ok(d),
        Ratio::Fraction => Ok(Dim::Named(format!("({total}/{rest})"))),
        Ratio::Never => Err(invalid!("{total} elements cannot be split into groups of {rest}")),
    }
}

/// A product: a number (nothing where it overflows) and names.
struct Factors {
    number: Option<i64>,
    names: Vec<String>,
}

impl Factors {
    fn of(d: &Dim) -> Factors {
        let name = match (d.as_integer(), d) {
            (None, Dim::Named(name)) => name,
            (number, _) => return Factors { number, names: vec![] },
        };
        let mut f = Factors { number: Some(1), names: vec![] };
        for part in split_product(name).unwrap_or_else(|| vec![name]) {
            match part.parse::<i64>() {
                Ok(x) => f.number = f.number.and_then(|n| n.checked_mul(x)),
                Err(_) => f.names.push(part.to_string()),
            }
        }
        f
    }

    fn into_dim(mut self) -> Dim {
        self.names.sort();
        match (self.number, self.names.as_slice()) {
            (Some(0), _) => Dim::Known(0),
            (Some(n), []) => Dim::integer(n),
            (Some(1), [name]) => Dim::Named(name.clone()),
            (Some(1), names) => Dim::Named(format!("({})", names.join("*"))),
            (Some(n), names) => Dim::Named(format!("({}*{n})", names.join("*"))),
            (None, names) => {
                Dim::Named(format!("(huge{}{})", if names.is_empty() { "" } else { "*" }, names.join("*")))
            }
        }
    }
}

/// The factors of a formula `(a*b*4)`.
fn split_product(formula: &str) -> Option<Vec<&str>> {
    let inner = formula.strip_prefix('(')?.strip_suffix(')')?;
    let (mut depth, mut from, mut parts) = (0i32, 0, vec![]);
    for (i, c) in inner.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            '*' if depth == 0 => {
                parts.push(&inner[from..i]);
                from = i + 1;
            }
            '+' | '-' | '/' | ',' if depth == 0 => return None,
            _ => {}
        }
        if depth < 0 {
            return None;
        }
    }
    parts.push(&inner[from..]);
    (parts.len() > 1 && parts.iter().all(|p| !p.is_empty())).then_some(parts)
}

enum Ratio {
    /// A product.
    Exact(Dim),
    /// Depends on what the names stand for.
    Fraction,
    /// Not a whole number.
    Never,
}

fn ratio(mut a: Factors, b: Factors) -> Ratio {
    let mut left = false;
    for name in &b.names {
        match a.names.iter().position(|n| n == name) {
            Some(i) => drop(a.names.swap_remove(i)),
            None => left = true,
        }
    }
    match (a.number, b.number) {
        (Some(x), Some(y)) if y != 0 && !left => match x.checked_rem(y) {
            Some(0) => Ratio::Exact(Factors { number: x.checked_div(y), names: a.names }.into_dim()),
            _ if a.names.is_empty() => Ratio::Never,
            _ => Ratio::Fraction,
        },
        _ => Ratio::Fraction,
    }
}

/// The elements of the integer operand `what`.
///
/// # Errors
/// If they depend on values that are only known at run time.
pub(super) fn sizes<'a>(fact: &'a Fact, what: &str) -> Result<&'a [Dim]> {
    fact.sizes
        .as_deref()
        .ok_or_else(|| Error::unsupported(what, format!("{fact} whose values are not known")))
}

/// The elements of the integer operand `what`, which must be numbers.
///
/// # Errors
/// If they depend on values that are only known at run time.
pub(super) fn integers(fact: &Fact, what: &str) -> Result<Vec<i64>> {
    let numbers = sizes(fact, what)?.iter().map(Dim::as_integer).collect::<Option<_>>();
    numbers.ok_or_else(|| Error::unsupported(what, "a value that depends on the input's shape"))
}

/// What is known of each of `inputs`.
pub(super) fn facts(inputs: &[&Tensor]) -> Vec<Fact> {
    inputs.iter().map(|t| Fact::of(t)).collect()
}

/// The shape of output `i` for these operands, by the operator's own `infer`.
///
/// # Errors
/// As `infer`.
pub(super) fn output_shape(op: &impl crate::op::Op, inputs: &[&Tensor], i: usize) -> Result<Vec<usize>> {
    let facts = facts(inputs);
    let outputs = op.infer(&facts.iter().collect::<Vec<_>>())?;
    outputs
        .get(i)
        .and_then(Fact::known_shape)
        .ok_or_else(|| invalid!("the shape of output {i} does not follow from the inputs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dim(s: &str) -> Dim {
        s.parse().map_or_else(|_| Dim::Named(s.into()), Dim::integer)
    }

    #[test]
    fn formulas_are_in_normal_form() {
        let cases = [
            (add(&dim("2"), &dim("3")), "5"),
            (add(&dim("N"), &dim("0")), "N"),
            (add(&dim("N"), &dim("-2")), "(N-2)"),
            (sub(&dim("N"), &dim("N")), "0"),
            (sub(&dim("1"), &dim("3")), "-2"),
            (mul(&dim("N"), &dim("4")), "(N*4)"),
            (mul(&dim("4"), &dim("N")), "(N*4)"),
            (mul(&dim("(N*4)"), &dim("(C*2)")), "(C*N*8)"),
            (mul(&dim("(N+1)"), &dim("2")), "((N+1)*2)"),
            (mul(&dim("N"), &dim("0")), "0"),
            (div(&dim("(N*4)"), &dim("4")).unwrap(), "N"),
            (div(&dim("(N*4)"), &dim("N")).unwrap(), "4"),
            (div(&dim("-7"), &dim("2")).unwrap(), "-3"),
            (div(&dim("N"), &dim("2")).unwrap(), "(N/2)"),
        ];
        for (found, expected) in cases {
            assert_eq!(found, dim(expected));
        }
        assert_eq!(div(&dim("N"), &dim("0")), None);
        assert_eq!(div(&dim("3"), &dim("0")), None);
    }

    #[test]
    fn the_missing_size_cancels_names() {
        let cases: [(&[&str], &[&str], Option<&str>); 7] = [
            (&["N", "2", "8"], &["N"], Some("16")),
            (&["N", "2", "8"], &["16"], Some("N")),
            (&["N", "2", "8"], &["8"], Some("(N*2)")),
            (&["2", "8"], &["4"], Some("4")),
            (&["N", "3"], &["2"], Some("((N*3)/2)")),
            (&["2", "8"], &["3"], None),
            (&["2", "8"], &["0"], None),
        ];
        for (whole, parts, expected) in cases {
            let whole: Vec<Dim> = whole.iter().map(|s| dim(s)).collect();
            let parts: Vec<Dim> = parts.iter().map(|s| dim(s)).collect();
            let found = missing_size(&whole, &parts.iter().collect::<Vec<_>>());
            assert_eq!(found.ok(), expected.map(dim), "{whole:?} / {parts:?}");
        }
    }
}
