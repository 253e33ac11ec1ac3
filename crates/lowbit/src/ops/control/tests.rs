use std::sync::Arc;

use super::*;
use crate::graph::Builder;
use crate::op::Dim;
use crate::ops::binary::Arithmetic;
use crate::ops::compare::Comparison;
use crate::ops::layout::Concat;
use crate::ops::unary::Unary;

fn named(dtype: DType, shape: &[&str]) -> Fact {
    let dim = |s: &&str| s.parse().map_or_else(|_| Dim::Named((*s).into()), Dim::Known);
    Fact { dtype, shape: shape.iter().map(dim).collect(), sizes: None }
}

fn scalar(dtype: DType) -> Fact {
    named(dtype, &[])
}

/// `v + 1` while it is less than the captured limit, and the doubled `v` of each iteration.
fn counting() -> Graph {
    let mut b = Builder::default();
    b.input("i", scalar(DType::I64));
    b.input("going", scalar(DType::Bool));
    let v = b.input("v", scalar(DType::I64));
    let limit = b.input("limit", scalar(DType::I64));
    let one = b.constant("one", Tensor::scalar(1i64));
    let next = b.apply("next", Arc::new(Arithmetic::Add), &[v, one]).unwrap();
    let goes = b.apply("goes", Arc::new(Comparison::Less), &[next, limit]).unwrap();
    let twice = b.apply("twice", Arc::new(Arithmetic::Add), &[v, v]).unwrap();
    b.finish([("goes".into(), goes), ("next".into(), next), ("twice".into(), twice)]).unwrap()
}

#[test]
fn loops_count_and_ask() {
    let op = Loop::new(counting(), 1, 1).unwrap();
    let (absent, yes, no) = (Tensor::vector(Vec::<f32>::new()), Tensor::scalar(true), Tensor::scalar(false));
    let count = Tensor::scalar;
    // Trips, condition, limit; the last value and the number of iterations.
    let cases = [
        (count(5i64), &absent, 100, 5),
        (count(5), &yes, 3, 3),
        (absent.clone(), &yes, 4, 4),
        (absent.clone(), &absent, 2, 2),
        (count(5), &no, 100, 0),
        (count(0), &yes, 100, 0),
        (count(-3), &absent, 100, 0),
        (Tensor::vector(vec![2i64]), &Tensor::vector(vec![true]), 100, 2),
    ];
    for (trips, condition, limit, want) in cases {
        let case = format!("{trips:?} {condition:?} {limit}");
        let found = op.eval(&[&trips, condition, &count(0), &count(limit)]).unwrap();
        assert_eq!(found[0].item::<i64>().unwrap(), want, "{case}");
        assert_eq!(found[1], Tensor::vector((0..want).map(|i| 2 * i).collect::<Vec<i64>>()), "{case}");
    }
}

#[test]
fn loops_know_what_stays() {
    let grows = || {
        let mut b = Builder::default();
        b.input("i", scalar(DType::I64));
        let going = b.input("going", scalar(DType::Bool));
        let v = b.input("v", named(DType::F32, &["any(v.0)", "C"]));
        let w = b.apply("w", Arc::new(Concat { axis: 0 }), &[v, v]).unwrap();
        let e = b.apply("e", Arc::new(Unary::Exp), &[v]).unwrap();
        b.finish([("going".into(), going), ("w".into(), w), ("e".into(), e)]).unwrap()
    };
    let op = Loop::new(grows(), 1, 0).unwrap();
    let trips = |n: i64| Fact::of(&Tensor::scalar(n));
    let yes = Fact::of(&Tensor::scalar(true));
    let unknown = scalar(DType::Bool);
    let v = |rows: &str| named(DType::F32, &[rows, "4"]);
    let cases = [
        (trips(3), &yes, v("2"), "[any(),4]", "[3,any(),4]"),
        (trips(-3), &yes, v("2"), "[any(),4]", "[0,any(),4]"),
        (trips(3), &unknown, v("N"), "[any(),4]", "[any(),any(),4]"),
        (scalar(DType::I64), &yes, v("N"), "[any(),4]", "[any(),any(),4]"),
    ];
    for (trips, condition, v, last, all) in cases {
        let found = op.infer(&[&trips, condition, &v]).unwrap();
        let [last, all] = [last, all].map(|shape| format!("f32{shape}"));
        assert_eq!([found[0].to_string(), found[1].to_string()], [last, all]);
    }
    // Refused: other types, ranks, numbers of operands.
    let refused: [&[&Fact]; 4] = [
        &[&trips(3), &yes, &scalar(DType::F32)],
        &[&trips(3), &yes, &named(DType::I64, &["2", "4"])],
        &[&trips(3), &yes],
        &[&yes, &yes, &v("2")],
    ];
    for facts in refused {
        assert!(op.infer(facts).is_err(), "{facts:?}");
    }
}

#[test]
fn branches_know_what_they_share() {
    let branch = |rows: &str, name: &str| {
        let mut b = Builder::default();
        let x = b.input("x", named(DType::F32, &["N", "4"]));
        let y = b.input("y", named(DType::F32, &[rows, "4"]));
        let v = b.apply(name, Arc::new(Unary::Exp), &[if name == "x" { x } else { y }]).unwrap();
        b.finish([(name.into(), v)]).unwrap()
    };
    let op = If::new([branch("M", "a"), branch("M", "b")], 2).unwrap();
    let c = scalar(DType::Bool);
    let fact = |rows: &str| named(DType::F32, &[rows, "4"]);
    assert_eq!(op.infer(&[&c, &fact("N"), &fact("M")]).unwrap(), [fact("M")]);
    assert_eq!(op.infer(&[&c, &fact("2"), &fact("3")]).unwrap(), [fact("3")]);
    let op = If::new([branch("M", "x"), branch("M", "b")], 2).unwrap();
    assert_eq!(op.infer(&[&c, &fact("N"), &fact("M")]).unwrap(), [fact("any()")]);
    assert_eq!(op.infer(&[&c, &fact("3"), &fact("3")]).unwrap(), [fact("3")]);
    for (then, want) in [(true, 1), (false, 2)] {
        let [x, y] = [1, 2].map(|n| Tensor::full(&[n, 4], 0f32).unwrap());
        let found = op.eval(&[&Tensor::scalar(then), &x, &y]).unwrap();
        assert_eq!(found[0], Tensor::full(&[want, 4], 1f32).unwrap());
    }
    assert!(
        op.eval(&[&Tensor::vector(vec![true, true]), &Tensor::scalar(0f32), &Tensor::scalar(0f32)]).is_err()
    );
    assert!(If::new([branch("M", "x"), branch("M", "b")], 1).is_err());
}

#[test]
fn scans_follow_axes_and_directions() {
    let sums = || {
        let mut b = Builder::default();
        let h = b.input("h", named(DType::F32, &["2"]));
        let x = b.input("x", named(DType::F32, &["2"]));
        let next = b.apply("next", Arc::new(Arithmetic::Add), &[h, x]).unwrap();
        let y = b.apply("y", Arc::new(Arithmetic::Sub), &[next, h]).unwrap();
        b.finish([("next".into(), next), ("y".into(), y)]).unwrap()
    };
    let track = |axis, reverse| Track { axis, reverse };
    // Elements in rows or columns of [[1, 2, 3], [4, 5, 6]].
    let x = Tensor::new(&[2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let columns = vec![1f32, 4.0, 2.0, 5.0, 3.0, 6.0];
    let cases = [
        (track(1, false), track(0, false), vec![3, 2], columns.clone()),
        (track(-1, true), track(0, true), vec![3, 2], columns),
        (track(1, true), track(0, false), vec![3, 2], vec![3.0, 6.0, 2.0, 5.0, 1.0, 4.0]),
        (track(1, false), track(-1, false), vec![2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    ];
    let start = Tensor::vector(vec![0f32, 1.0]);
    for (sequence, collected, shape, want) in cases {
        let op = Scan::new(sums(), vec![sequence], vec![collected], 0).unwrap();
        let found = op.eval(&[&start, &x]).unwrap();
        assert_eq!(found, [Tensor::vector(vec![6f32, 16.0]), Tensor::new(&shape, want).unwrap()]);
        let facts = op.infer(&[&Fact::of(&start), &Fact::of(&x)]).unwrap();
        assert_eq!(facts[1].known_shape(), Some(shape));
        let none = Tensor::new(&[2, 0], Vec::<f32>::new()).unwrap();
        let found = op.eval(&[&start, &none]).unwrap();
        assert_eq!((&found[0], found[1].len()), (&start, 0));
    }
    assert!(Scan::new(sums(), vec![], vec![track(0, false)], 0).is_err());
    let op = Scan::new(sums(), vec![track(2, false)], vec![track(0, false)], 0).unwrap();
    assert!(op.infer(&[&Fact::of(&start), &Fact::of(&x)]).is_err());
}
