//! Einsum against a sum over all values of all labels.

use proptest::prelude::*;

use super::*;

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let n = shape.iter().product::<usize>() as u64;
    let value =
        |i: u64| ((i * 2 + 1 + seed * 1_003).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8_388_608.0;
    Tensor::new(shape, (0..n).map(|i| value(i) - 1.0).collect()).unwrap()
}

/// The shape and the elements of the result: for each combination of indices,
/// the product of the operands' elements is added to the result's element.
fn definition(op: &Einsum, operands: &[Tensor]) -> (Vec<usize>, Vec<f64>) {
    let ranks: Vec<usize> = operands.iter().map(Tensor::rank).collect();
    let (terms, result) = op.equation.resolve(&ranks).unwrap();
    let mut sizes: BTreeMap<Axis, usize> = BTreeMap::new();
    for (term, t) in terms.iter().zip(operands) {
        for (axis, &n) in term.iter().zip(t.shape()) {
            let size = sizes.entry(*axis).or_insert(n);
            *size = if *size == 1 { n } else { *size };
        }
    }
    let shape = sizes_of(&result, &sizes);
    let mut y = vec![0.0; shape.iter().product()];
    for mut i in 0..sizes.values().product::<usize>() {
        let index: BTreeMap<Axis, usize> = sizes
            .iter()
            .map(|(axis, &n)| {
                let at = i % n;
                i /= n;
                (*axis, at)
            })
            .collect();
        let flat = |axes: &[Axis], shape: &[usize]| {
            axes.iter().zip(shape).fold(0, |at, (a, &n)| at * n + if n == 1 { 0 } else { index[a] })
        };
        let factor =
            |(term, t): (&Vec<Axis>, &Tensor)| f64::from(t.slice::<f32>().unwrap()[flat(term, t.shape())]);
        y[flat(&result, &shape)] += terms.iter().zip(operands).map(factor).product::<f64>();
    }
    (shape, y)
}

fn check(equation: &str, shapes: &[Vec<usize>]) -> Result<(), String> {
    let op = Einsum::new(equation).map_err(|e| e.to_string())?;
    let operands: Vec<Tensor> = shapes.iter().zip(1..).map(|(shape, i)| noise(shape, i)).collect();
    let operand_refs: Vec<&Tensor> = operands.iter().collect();
    let facts = symbolic::facts(&operand_refs);
    let made = op.infer(&facts.iter().collect::<Vec<_>>()).map_err(|e| e.to_string())?;
    let found = op.eval(&operand_refs).map_err(|e| e.to_string())?;
    let (shape, want) = definition(&op, &operands);
    if found[0].shape() != shape || made[0].known_shape().as_ref() != Some(&shape) {
        return Err(format!("{equation}: {:?}, inferred {}, not {shape:?}", found[0].shape(), made[0]));
    }
    for (a, b) in found[0].slice::<f32>().unwrap().iter().zip(want) {
        if (f64::from(*a) - b).abs() > 1e-4 * b.abs().max(1.0) {
            return Err(format!("{equation} of {shapes:?}: {a}, not {b}"));
        }
    }
    Ok(())
}

#[test]
fn equations_are_sums_over_all_labels() {
    let cases: [(&str, &[&[usize]]); 27] = [
        ("ij,jk->ik", &[&[2, 3], &[3, 4]]),
        ("ij,jk", &[&[2, 3], &[3, 4]]),
        ("ij,kj->ki", &[&[2, 3], &[4, 3]]),
        ("bij,bjk", &[&[2, 3, 4], &[2, 4, 5]]),
        ("bhqd,bhkd->bhqk", &[&[2, 3, 4, 5], &[2, 3, 6, 5]]),
        ("bhqk,bhkd->bhqd", &[&[2, 3, 4, 6], &[2, 3, 6, 5]]),
        ("bqhd,bkhd->bhqk", &[&[2, 4, 3, 5], &[2, 6, 3, 5]]),
        ("ii->i", &[&[3, 3]]),
        ("ii", &[&[3, 3]]),
        ("ii->", &[&[3, 3]]),
        ("iij,jk->ik", &[&[3, 3, 2], &[2, 4]]),
        ("ijk->kij", &[&[2, 3, 4]]),
        ("ijk->j", &[&[2, 3, 4]]),
        ("ba", &[&[2, 3]]),
        ("bA", &[&[2, 3]]),
        ("...ij,...jk->...ik", &[&[2, 1, 3, 4], &[5, 4, 2]]),
        ("i...j,...j", &[&[2, 5, 3], &[3]]),
        ("...", &[&[2, 3]]),
        ("...ii->...i", &[&[2, 3, 3]]),
        ("i,j->ij", &[&[2], &[3]]),
        ("i,i->i", &[&[3], &[3]]),
        ("i,i", &[&[3], &[3]]),
        ("bi,ij,bjk->kb", &[&[2, 3], &[3, 4], &[2, 4, 2]]),
        (" a b , b -> a ", &[&[2, 3], &[3]]),
        (",i->i", &[&[], &[3]]),
        ("ab,cd->", &[&[2, 3], &[4, 2]]),
        ("ij,jk->ik", &[&[2, 0], &[0, 4]]),
    ];
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|(equation, shapes)| {
            check(equation, &shapes.iter().map(|s| s.to_vec()).collect::<Vec<_>>()).err()
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

proptest! {
    #[test]
    fn any_equation_is_its_definition(
        terms in proptest::collection::vec(proptest::collection::vec(0usize..5, 0..4), 1..4),
        ellipses in proptest::collection::vec(proptest::option::of(0usize..3), 3),
        sizes in proptest::array::uniform8(1usize..4),
        ones: [[bool; 8]; 3],
        result in proptest::option::of(proptest::collection::vec(0usize..5, 0..5)),
    ) {
        let label = |i: &usize| char::from(b'a' + *i as u8);
        let mut equation: Vec<String> = vec![];
        let mut shapes = vec![];
        for ((term, ellipsis), ones) in terms.iter().zip(&ellipses).zip(ones) {
            let hidden = ellipsis.unwrap_or(0);
            let dots = if ellipsis.is_some() { "..." } else { "" };
            equation.push(dots.chars().chain(term.iter().map(label)).collect());
            // Axes of the ellipsis are sizes 7, 6 .. from the last.
            let axes = (8 - hidden..8).chain(term.iter().copied());
            shapes.push(axes.map(|a| if ones[a] { 1 } else { sizes[a] }).collect::<Vec<_>>());
        }
        let mut text = equation.join(",");
        if let Some(result) = result {
            let mut used: Vec<usize> = vec![];
            for r in result {
                if terms.concat().contains(&r) && !used.contains(&r) {
                    used.push(r);
                }
            }
            text += "->...";
            text.extend(used.iter().map(label));
        }
        prop_assert_eq!(check(&text, &shapes), Ok(()));
    }
}

#[test]
fn named_sizes_are_kept() {
    let dims = |names: &[&str]| -> Vec<Dim> {
        names.iter().map(|n| n.parse().map_or_else(|_| Dim::Named(n.to_string()), Dim::Known)).collect()
    };
    let cases: [(&str, &[&[&str]], &str); 4] = [
        ("bhqd,bhkd->bhqk", &[&["N", "4", "T", "8"], &["N", "4", "S", "8"]], "f32[N,4,T,S]"),
        ("bij,bjk->bik", &[&["N", "2", "K"], &["N", "3", "5"]], "f32[N,2,5]"),
        ("...ij,jk->...ik", &[&["N", "T", "2", "3"], &["3", "D"]], "f32[N,T,2,D]"),
        ("ab,ab->ba", &[&["N", "1"], &["N", "7"]], "f32[7,N]"),
    ];
    for (equation, shapes, want) in cases {
        let facts: Vec<Fact> = shapes.iter().map(|s| Fact::new(DType::F32, dims(s))).collect();
        let made = Einsum::new(equation).unwrap().infer(&facts.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(made[0].to_string(), want, "{equation}");
    }
}

#[test]
fn multiply_accumulates_are_counted() {
    let facts = [Fact::new(DType::F32, [2, 3]), Fact::new(DType::F32, [3, 5])];
    let facts: Vec<&Fact> = facts.iter().collect();
    assert_eq!(Einsum::new("ij,jk->ik").unwrap().macs(&facts, &[]), 30);
    assert_eq!(Einsum::new("ij->i").unwrap().macs(&facts[..1], &[]), 0);
}

#[test]
fn other_float_types_are_rounded() {
    use crate::ops::cast::cast;
    let op = Einsum::new("ij,jk->ik").unwrap();
    let [a, b] = [noise(&[2, 3], 1), noise(&[3, 2], 2)].map(|t| cast(&t, DType::F16).unwrap());
    let [wide_a, wide_b] = [&a, &b].map(|t| cast(t, DType::F32).unwrap());
    let want = cast(&op.eval(&[&wide_a, &wide_b]).unwrap()[0], DType::F16).unwrap();
    assert_eq!(op.eval(&[&a, &b]).unwrap(), [want]);
}

#[test]
fn wrong_equations_and_operands_are_errors() {
    let cases: [(&str, &[&[usize]], &str); 13] = [
        ("i1->i", &[], "equation \"i1->i\": the term \"i1\" has '1': labels are letters"),
        ("i..->i", &[], "equation \"i..->i\": the term \"i..\" has '.': labels are letters"),
        ("ij->i->j", &[], "equation \"ij->i->j\": the term \"i->j\" has '-': labels are letters"),
        ("......->i", &[], "equation \"......->i\": the term \"......\" has two ellipses"),
        ("ij->ii", &[], "equation \"ij->ii\": the result has i twice"),
        ("ij->k", &[], "equation \"ij->k\": no operand has k, which the result has"),
        ("ij,jk", &[&[2, 3]], "equation \"ij,jk\": names 2 operands, found 1"),
        ("ij", &[&[2]], "equation \"ij\": operand 0 has 1 dimensions for 2 labels"),
        ("i", &[&[2, 3]], "equation \"i\": operand 0 has 2 dimensions for 1 labels"),
        ("...ij", &[&[2]], "equation \"...ij\": operand 0 has 1 dimensions for 2 labels"),
        ("ii", &[&[2, 3]], "equation \"ii\": i is 2 and 3 in operand f32[2,3]"),
        ("ij,jk", &[&[2, 3], &[4, 5]], "equation \"ij,jk\": j is 3 in one operand and 4 in another"),
        ("...i->i", &[&[2, 3]], "equation \"...i->i\": the result has no ellipsis for the axes that"),
    ];
    let mut failures = vec![];
    for (equation, shapes, want) in cases {
        let operands: Vec<Tensor> = shapes.iter().map(|s| noise(s, 0)).collect();
        let found = Einsum::new(equation).and_then(|op| op.eval(&operands.iter().collect::<Vec<_>>()));
        match found {
            Err(e) if e.to_string().starts_with(want) => {}
            other => failures.push(format!("{equation}: {other:?}, not {want}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let message = Einsum::new("i->i").unwrap().eval(&[&Tensor::vector(vec![1i32])]).unwrap_err().to_string();
    assert_eq!(message, "Einsum: element type int32 is not supported");
    let column = Tensor::vector(vec![1.0f32; 1 << 12]);
    let outer = Einsum::new("a,b,c->abc").unwrap().eval(&[&column; 3]).unwrap_err().to_string();
    assert!(outer.contains("too many elements"), "{outer}");
}
