use std::sync::Arc;

use super::*;
use crate::error::Error;
use crate::graph::Builder;
use crate::op::{Dim, Fact};
use crate::ops::binary::Arithmetic;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::unary::Unary;
use crate::passes::equalize;
use crate::qconfig::{QConfigMapping, Target, preset};
use crate::quantize::{Prepared, prepare};
use crate::scheme::Format;

fn batch(rows: &[[f32; 2]]) -> Batch {
    let x = Tensor::new(&[rows.len(), 2], rows.concat()).unwrap();
    let names = (0..rows.len()).map(|i| i.to_string()).collect();
    Batch { inputs: vec![("x".into(), x)], labels: None, names }
}

/// `y = (x W) V + x`, both matrices 2x2.
fn model(w: [f32; 4], v: [f32; 4]) -> Graph {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2)]));
    let w = b.constant("w", Tensor::new(&[2, 2], w.to_vec()).unwrap());
    let v = b.constant("v", Tensor::new(&[2, 2], v.to_vec()).unwrap());
    let h = b.apply("h", Arc::new(MatMul), &[x, w]).unwrap();
    let k = b.apply("k", Arc::new(MatMul), &[h, v]).unwrap();
    let y = b.apply("y", Arc::new(Arithmetic::Add), &[k, x]).unwrap();
    b.finish([("y".to_string(), y)]).unwrap()
}

fn quantized(float: &Graph, per_tensor: bool, data: &[[f32; 2]]) -> Graph {
    let mut q = preset("default").unwrap();
    if per_tensor {
        q.weight = q.weight.per(crate::qconfig::Per::Tensor);
    }
    let mut prepared: Prepared = prepare(float, &QConfigMapping::global(q)).unwrap();
    prepared.observe(&inputs_of(float, &batch(data)).unwrap()).unwrap();
    prepared.convert().unwrap().graph
}

fn run(float: &Graph, quantized: &Graph, data: &[[f32; 2]]) -> Result<Comparison> {
    compare(float, quantized, [Ok(batch(data))].into_iter(), &mut |_| Ok(()))
}

fn shadowed(float: &Graph, quantized: &Graph, data: &[&[[f32; 2]]]) -> Shadow {
    let mean_error = |x: &Tensor, y: &Tensor| {
        let (x, y) = (x.to_f32().unwrap(), y.to_f32().unwrap());
        x.iter().zip(&y).map(|(x, y)| f64::from(x - y).abs()).sum::<f64>() / x.len() as f64
    };
    let batches = data.iter().map(|rows| Ok(batch(rows)));
    shadow(float, quantized, batches, Some(&mean_error), &mut |_| Ok(())).unwrap()
}

const DATA: &[[f32; 2]] = &[[1.0, 0.5], [-0.25, 0.75], [0.125, -1.0]];
const PLAIN: [f32; 4] = [1.0, -0.5, 0.25, 0.75];

#[test]
fn a_model_equals_itself() {
    let m = model(PLAIN, PLAIN);
    let c = run(&m, &m, DATA).unwrap();
    let names: Vec<&str> = c.values.iter().map(|e| e.value.as_str()).collect();
    assert_eq!((c.samples, names), (3, vec!["x", "h", "k"]));
    for e in c.worst() {
        let found = (e.sqnr_db, e.mse, e.max_abs, e.verdict);
        assert_eq!(found, (f64::INFINITY, 0.0, 0.0, Verdict::Good), "{e:?}");
        assert!((e.cosine - 1.0).abs() < 1e-12, "{e:?}");
    }
    assert!(c.damage.is_empty());
}

#[test]
fn a_quantized_model_is_paired_at_its_dequantized_values() {
    let m = model(PLAIN, PLAIN);
    let c = run(&m, &quantized(&m, false, DATA), DATA).unwrap();
    let names: Vec<&str> = c.values.iter().map(|e| e.value.as_str()).collect();
    assert_eq!(names, ["x", "h", "k"]);
    for e in c.worst() {
        assert!((30.0..70.0).contains(&e.sqnr_db) && e.verdict == Verdict::Good, "{e:?}");
    }
    assert!(c.damage.is_empty());
}

#[test]
fn an_equalized_model_is_compared_in_the_scales_of_the_float_one() {
    // The channels of `h` differ a hundredfold in range; x and y have no scale.
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2)]));
    let w = b.constant("w", Tensor::new(&[2, 2], vec![1.0f32, 0.01, -0.5, 0.02]).unwrap());
    let v = b.constant("v", Tensor::new(&[2, 2], vec![0.5f32, -1.0, 30.0, 20.0]).unwrap());
    let h = b.apply("h", Arc::new(Gemm::default()), &[x, w]).unwrap();
    let h = b.apply("r", Arc::new(Unary::Relu), &[h]).unwrap();
    let y = b.apply("y", Arc::new(Gemm::default()), &[h, v]).unwrap();
    let float = b.finish([("y".to_string(), y)]).unwrap();
    let mut q = preset("default").unwrap();
    q.activation = q.activation.map(|a| a.equalizing(0.75));
    let mapping = QConfigMapping::global(q);
    let batches = || [inputs_of(&float, &batch(DATA))].into_iter();
    let equalized = equalize(&float, &mapping, batches(), &|_| Ok(())).unwrap();
    let named = |c: &Comparison| -> Vec<(String, f64)> {
        c.values.iter().map(|e| (e.value.clone(), e.sqnr_db)).collect()
    };
    let found = named(&run(&float, &equalized, DATA).unwrap());
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|(_, sqnr)| *sqnr > 100.0), "{found:?}");

    let mut prepared = prepare(&equalized, &mapping).unwrap();
    prepared.calibrate(batches(), &|_| Ok(())).unwrap();
    let mut quantized = prepared.convert().unwrap().graph;
    let scaled = run(&float, &quantized, DATA).unwrap();
    let fed = shadowed(&float, &quantized, &[DATA]);
    assert!(fed.values.iter().all(|e| e.own.sqnr_db > 30.0), "{fed:?}");
    assert!(fed.values.iter().map(|e| &e.whole).eq(scaled.values.iter().chain(&scaled.outputs)));
    // Beside the equalized model there is nothing to scale back.
    let record = quantized.metadata.remove("lowbit.equalized").unwrap();
    let same = run(&equalized, &quantized, DATA).unwrap();
    for (name, each_alike) in [("x", true), ("r", false)] {
        let sqnr = |c: &Comparison| c.values.iter().find(|e| e.value == name).unwrap().sqnr_db;
        assert!(sqnr(&scaled) > 30.0, "{name}: {}", sqnr(&scaled));
        assert_eq!((sqnr(&scaled) - sqnr(&same)).abs() < 1e-9, each_alike, "{name}");
    }
    assert!((scaled.outputs[0].sqnr_db - same.outputs[0].sqnr_db).abs() < 0.01, "{scaled:?} {same:?}");
    // Taken as they are, they would differ.
    let plain = named(&run(&float, &quantized, DATA).unwrap());
    assert!(plain.iter().any(|(name, sqnr)| name == "r" && *sqnr < 20.0), "{plain:?}");

    for (damaged, says) in [
        (record.replace("scales = \"", "scales = \"###"), "scales of equalized channels"),
        (record.replace("scales = \"", "scales = \" "), "stands for no scale"),
    ] {
        quantized.metadata.insert("lowbit.equalized".into(), damaged);
        let error = run(&float, &quantized, DATA).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    // A record of values that are not there is of no consequence.
    quantized
        .metadata
        .insert("lowbit.equalized".into(), record.replace("\"h\"", "\"no h\"").replace("\"r\"", "\"no r\""));
    assert_eq!(named(&run(&float, &quantized, DATA).unwrap()), plain);
}

#[test]
fn damage_is_traced_to_the_node_where_it_starts() {
    // One column of `v` is so small that a scale for the whole matrix rounds it
    // to zero, and the next matrix reads nothing else.
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2)]));
    let w = b.constant("w", Tensor::new(&[2, 2], vec![1000.0f32, 0.5, 500.0, -0.75]).unwrap());
    let v = b.constant("v", Tensor::new(&[2, 1], vec![0.0f32, 1.0]).unwrap());
    let h = b.apply("h", Arc::new(MatMul), &[x, w]).unwrap();
    let y = b.apply("y", Arc::new(MatMul), &[h, v]).unwrap();
    let float = b.finish([("y".to_string(), y)]).unwrap();
    let c = run(&float, &quantized(&float, true, DATA), DATA).unwrap();
    let [damage] = c.damage.as_slice() else { panic!("{c:?}") };
    assert_eq!((damage.output.as_str(), damage.per_tensor_weights), ("y", true));
    assert_eq!((damage.node.as_str(), damage.value.as_str()), ("y", "y"));
    let text = damage.to_string();
    assert!(text.contains("this model is broken") && text.contains("try per-channel weights"), "{text}");
    assert_eq!(c.worst()[0].verdict, Verdict::Broken);
}

#[test]
fn the_first_broken_value_is_named_not_the_last() {
    let float = model(PLAIN, PLAIN);
    // Another `w`: `h` is wrong, and `k` because of it.
    let wrong = model([-1.0, 0.5, -0.25, -0.75], PLAIN);
    let c = run(&float, &wrong, DATA).unwrap();
    let [damage] = c.damage.as_slice() else { panic!("{c:?}") };
    assert_eq!(
        (damage.node.as_str(), damage.before_db, damage.per_tensor_weights),
        ("h", f64::INFINITY, false)
    );
    assert!((damage.after_db - 10.0 * 0.25f64.log10()).abs() < 1e-9, "{damage:?}");
    assert!(damage.to_string().contains("keep h in float"), "{damage}");
}

#[test]
fn sums_are_exact_on_small_cases() {
    let nan = f32::NAN;
    struct Case(&'static [f32], Vec<f32>, f64, f64, f64, f64, Verdict);
    for Case(x, y, sqnr, mse, cosine, max_abs, verdict) in [
        Case(&[3.0, 4.0], vec![3.0, 4.0], f64::INFINITY, 0.0, 1.0, 0.0, Verdict::Good),
        Case(&[3.0, 4.0], vec![3.0, 3.5], 20.0, 0.125, 23.0 / (25.0f64 * 21.25).sqrt(), 0.5, Verdict::Good),
        Case(&[3.0, 4.0], vec![0.0, 0.0], 0.0, 12.5, 0.0, 4.0, Verdict::Broken),
        Case(
            &[3.0, 4.0],
            vec![3.0, 2.5],
            10.0 * (25.0f64 / 2.25).log10(),
            1.125,
            19.0 / (25.0f64 * 15.25).sqrt(),
            1.5,
            Verdict::Poor,
        ),
        Case(&[0.0, 0.0], vec![0.0, 0.0], f64::INFINITY, 0.0, 1.0, 0.0, Verdict::Good),
        Case(&[0.0, 0.0], vec![0.0, 1.0], f64::NEG_INFINITY, 0.5, 0.0, 1.0, Verdict::Broken),
        Case(&[1.0, 1.0], vec![nan, 1.0], f64::NAN, f64::NAN, f64::NAN, f64::NAN, Verdict::Broken),
    ] {
        let mut sums = Sums::default();
        // In two parts: sums run over all batches.
        for (x, y) in x.iter().zip(&y) {
            sums.add(&Tensor::vector(vec![*x]), &Tensor::vector(vec![*y])).unwrap();
        }
        let e = sums.error("v", "n".into(), "Op");
        let same = |a: f64, b: f64| a == b || (a - b).abs() < 1e-9 || (a.is_nan() && b.is_nan());
        assert!(
            same(e.sqnr_db, sqnr) && same(e.mse, mse) && same(e.cosine, cosine) && same(e.max_abs, max_abs),
            "{x:?} {y:?}: {e:?}"
        );
        assert_eq!(e.verdict, verdict, "{x:?} {y:?}");
    }
}

#[test]
fn different_models_are_refused() {
    let m = model(PLAIN, PLAIN);
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2)]));
    let w = b.constant("w", Tensor::new(&[2, 3], vec![1.0f32; 6]).unwrap());
    let y = b.apply("y", Arc::new(MatMul), &[x, w]).unwrap();
    let wider = b.finish([("y".to_string(), y)]).unwrap();
    for (quantized, data, says) in [(&wider, DATA, "not the same model"), (&m, &[][..], "no sample")] {
        let batches = if data.is_empty() { vec![] } else { vec![Ok(batch(data))] };
        let error = compare(&m, quantized, batches.into_iter(), &mut |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let stopped = compare(&m, &m, [Ok(batch(DATA))].into_iter(), &mut |_| Err(Error::Interrupted));
    assert!(matches!(stopped, Err(Error::Interrupted)));
}

#[test]
fn a_shadow_tells_own_errors_from_inherited_ones() {
    let float = model(PLAIN, PLAIN);
    let names = ["x", "h", "k", "y"];
    for bad in ["h", "k"] {
        let mut few = preset("default").unwrap();
        few.weight.format = Format::Int { bits: 2, signed: true, narrow: false };
        let mapping = QConfigMapping::global(preset("default").unwrap());
        let mapping = mapping.with(Target::name(bad).unwrap(), Some(few));
        let mut prepared = prepare(&float, &mapping).unwrap();
        prepared.observe(&inputs_of(&float, &batch(DATA)).unwrap()).unwrap();
        let quantized = prepared.convert().unwrap().graph;
        let s = shadowed(&float, &quantized, &[DATA]);
        let found: Vec<&str> = s.values.iter().map(|e| e.own.value.as_str()).collect();
        assert_eq!((s.samples, found), (3, names.to_vec()));
        assert_eq!(s.worst()[0].own.value, bad);
        for e in &s.values {
            let name = e.own.value.as_str();
            assert_eq!(e.own.sqnr_db < 20.0, name == bad, "{bad}: {e:?}");
            // What is after the bad layer inherits, what is before it does not.
            let after = names.iter().position(|n| *n == name) > names.iter().position(|n| *n == bad);
            assert_eq!(e.inherited_db < 25.0, after, "{bad}: {e:?}");
            assert_eq!(e.whole.sqnr_db < 25.0, after || name == bad, "{bad}: {e:?}");
        }
        // The first layer reads the model's input in both.
        assert!(s.values[..2].iter().all(|e| e.inherited_db == f64::INFINITY), "{s:?}");
        let c = run(&float, &quantized, DATA).unwrap();
        assert!(s.values.iter().map(|e| &e.whole).eq(c.values.iter().chain(&c.outputs)), "{s:?}\n{c:?}");
        // The mean over samples does not depend on the batches.
        let parts = shadowed(&float, &quantized, &[&DATA[..1], &DATA[1..]]);
        for (a, b) in s.values.iter().zip(&parts.values) {
            let close = |a: Option<f64>, b: Option<f64>| (a.unwrap() - b.unwrap()).abs() < 1e-9;
            assert!(
                close(a.own_metric, b.own_metric) && close(a.whole_metric, b.whole_metric),
                "{a:?} {b:?}"
            );
            assert!(a.own_metric.unwrap() <= a.own.max_abs, "{a:?}");
        }
    }
    assert!(shadow(&float, &float, std::iter::empty(), None, &mut |_| Ok(())).is_err());
}

#[test]
fn what_stays_in_float_has_no_error_in_the_shadow() {
    let float = model(PLAIN, PLAIN);
    for e in shadowed(&float, &float, &[DATA]).values {
        assert_eq!((e.own.sqnr_db, e.inherited_db, e.own_metric), (f64::INFINITY, f64::INFINITY, Some(0.0)));
    }
}

#[test]
fn values_that_are_computed_in_another_order_are_paired() {
    let branches = |order: [&str; 2]| {
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2)]));
        let w = b.constant("w", Tensor::new(&[2, 2], PLAIN.to_vec()).unwrap());
        let made = order.map(|name| {
            let x = if name == "a" { x } else { b.apply("minus", Arc::new(Unary::Neg), &[x]).unwrap() };
            b.apply(name, Arc::new(MatMul), &[x, w]).unwrap()
        });
        let [a, c] = if order[0] == "a" { made } else { [made[1], made[0]] };
        let y = b.apply("y", Arc::new(Arithmetic::Sub), &[a, c]).unwrap();
        b.finish([("y".to_string(), y), ("c".to_string(), c)]).unwrap()
    };
    let (one, other) = (branches(["a", "c"]), branches(["c", "a"]));
    let c = run(&one, &other, DATA).unwrap();
    let found: Vec<(&str, f64)> =
        c.values.iter().chain(&c.outputs).map(|e| (e.value.as_str(), e.sqnr_db)).collect();
    let equal = |name| (name, f64::INFINITY);
    assert_eq!(found, ["x", "a", "minus", "y", "c"].map(equal));
    let s = shadowed(&one, &quantized(&other, false, DATA), &[DATA, DATA]);
    assert_eq!((s.samples, s.values.len()), (6, 5));
    assert!(s.values.iter().all(|e| e.own.sqnr_db > 30.0 && e.whole.sqnr_db > 30.0), "{s:?}");
}
