use std::collections::BTreeMap;

use super::*;
use crate::op::Reading;
use crate::ops::conv::tests::{assert_close, random};
use crate::ops::differences::{self, Case};
use crate::tensor::DType;

/// Means, variances and what follows, directly: `group(i)` tells which cells
/// are normalized together and `param(i)` which parameter cell `i` has.
fn naive(
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    group: impl Fn(usize) -> usize,
    param: impl Fn(usize) -> usize,
) -> Vec<f32> {
    (0..x.len())
        .map(|i| {
            let own: Vec<f64> =
                (0..x.len()).filter(|&j| group(j) == group(i)).map(|j| f64::from(x[j])).collect();
            let mean = own.iter().sum::<f64>() / own.len() as f64;
            let var = own.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / own.len() as f64;
            let normal = (f64::from(x[i]) - mean) / (var + 1e-5).sqrt();
            (normal * f64::from(scale[param(i)]) + f64::from(shift[param(i)])) as f32
        })
        .collect()
}

fn eval(op: &dyn Op, inputs: &[&Tensor]) -> Vec<f32> {
    let facts: Vec<Fact> = inputs.iter().map(|t| Fact::of(t)).collect();
    let fact = op.infer(&facts.iter().collect::<Vec<_>>()).unwrap().remove(0);
    let y = op.eval(inputs).unwrap().remove(0);
    assert_eq!(fact.known_shape().unwrap(), y.shape(), "{op:?}");
    y.slice::<f32>().unwrap().to_vec()
}

#[test]
fn normalizations_equal_their_definitions() {
    let x = random(&[2, 6, 3, 5], 1);
    let xs: &[f32] = x.slice().unwrap();
    let p = |n: usize| (random(&[n], 2), random(&[n], 3));
    let slice = |t: &Tensor| t.slice::<f32>().unwrap().to_vec();

    let (s, b) = p(6);
    let op = InstanceNormalization { epsilon: 1e-5 };
    let want = naive(xs, &slice(&s), &slice(&b), |i| i / 15, |i| i / 15 % 6);
    assert_close(&eval(&op, &[&x, &s, &b]), &want, &op);

    let op = GroupNormalization { groups: 3, per_group: false, epsilon: 1e-5 };
    let want = naive(xs, &slice(&s), &slice(&b), |i| i / 30, |i| i / 15 % 6);
    assert_close(&eval(&op, &[&x, &s, &b]), &want, &op);

    let (s, b) = p(3);
    let op = GroupNormalization { groups: 3, per_group: true, epsilon: 1e-5 };
    let want = naive(xs, &slice(&s), &slice(&b), |i| i / 30, |i| i / 30 % 3);
    assert_close(&eval(&op, &[&x, &s, &b]), &want, &op);

    for (axis, size) in [(-1, 5), (2, 15), (-3, 90), (0, 180)] {
        let shape = &x.shape()[(axis + 4) as usize % 4..];
        let (s, b) = (random(shape, 2), random(shape, 3));
        let op = LayerNormalization { axis, epsilon: 1e-5, centred: true };
        let want = naive(xs, &slice(&s), &slice(&b), |i| i / size, |i| i % size);
        assert_close(&eval(&op, &[&x, &s, &b]), &want, &op);
        let zero = vec![0.0; size];
        let want = naive(xs, &slice(&s), &zero, |i| i / size, |i| i % size);
        assert_close(&eval(&op, &[&x, &s]), &want, &op);
    }
    let op = LayerNormalization { axis: -1, epsilon: 1e-5, centred: true };
    let want = naive(xs, &[2.0], &[0.0], |i| i / 5, |_| 0);
    assert_close(&eval(&op, &[&x, &Tensor::vector(vec![2.0f32])]), &want, &op);
}

#[test]
fn batch_normalization_equals_its_formula() {
    let x = random(&[2, 4, 7], 1);
    let [gamma, beta, mean] = [2, 3, 4].map(|seed| random(&[4], seed));
    let var = Tensor::vector(vec![0.5f32, 1.0, 2.0, 0.0]);
    let op = BatchNormalization { epsilon: 0.25, training: None };
    let at = |t: &Tensor, c: usize| t.slice::<f32>().unwrap()[c];
    let want: Vec<f32> = (0..56)
        .map(|i| {
            let c = i / 7 % 4;
            (at(&x, i) - at(&mean, c)) / (at(&var, c) + 0.25).sqrt() * at(&gamma, c) + at(&beta, c)
        })
        .collect();
    assert_close(&eval(&op, &[&x, &gamma, &beta, &mean, &var]), &want, &op);
    let (scale, shift) = op.affine(&[3.0], &[1.0], &[2.0], &[3.75]).unwrap();
    assert_eq!((scale, shift), (vec![1.5], vec![-2.0]));
    assert!(op.affine(&[1.0], &[1.0, 2.0], &[0.0], &[1.0]).is_err());
}

#[test]
fn batch_normalization_in_training_takes_the_moments_of_the_batch() {
    // The greater input has sums of several blocks, and moments far from 0 and 1.
    for shape in [&[3, 2, 5][..], &[2, 3], &[1, 2, 71, 97]] {
        let channels = shape[1];
        let cells: usize = shape[2..].iter().product();
        let x =
            random(shape, 1).slice::<f32>().unwrap().iter().map(|x| 50.0 + 0.25 * x).collect::<Vec<f32>>();
        let [gamma, beta, mean, var] = [2, 3, 4, 5].map(|seed| random(&[channels], seed));
        let op = BatchNormalization { epsilon: 1e-5, training: Some(0.75) };
        let t = Tensor::new(shape, x.clone()).unwrap();
        let inputs = [&t, &gamma, &beta, &mean, &var];
        let made = op.eval(&inputs).unwrap();
        let facts: Vec<Fact> = inputs.iter().map(|t| Fact::of(t)).collect();
        let facts = op.infer(&facts.iter().collect::<Vec<_>>()).unwrap();
        for (fact, y) in facts.iter().zip(&made) {
            assert_eq!(fact.known_shape().unwrap(), y.shape());
        }
        let channel = |i: usize| i / cells % channels;
        let (scale, shift): (&[f32], &[f32]) = (gamma.slice().unwrap(), beta.slice().unwrap());
        assert_close(made[0].slice().unwrap(), &naive(&x, scale, shift, channel, channel), &shape);
        for c in 0..channels {
            let own: Vec<f64> = (0..x.len()).filter(|&i| channel(i) == c).map(|i| f64::from(x[i])).collect();
            let m = own.iter().sum::<f64>() / own.len() as f64;
            let v = own.iter().map(|x| (x - m).powi(2)).sum::<f64>() / own.len() as f64;
            for (slot, old, new) in [(1, &mean, m), (2, &var, v)] {
                let want = 0.75 * f64::from(old.slice::<f32>().unwrap()[c]) + 0.25 * new;
                let got = f64::from(made[slot].slice::<f32>().unwrap()[c]);
                assert!((got - want).abs() < 1e-5 * want.abs(), "{shape:?} output {slot}: {got}, not {want}");
            }
        }
    }
    let op = BatchNormalization { epsilon: 1e-5, training: Some(0.75) };
    let p = random(&[2], 1);
    let message = op.eval(&[&random(&[0, 2, 3], 1), &p, &p, &p, &p]).unwrap_err().to_string();
    assert!(message.contains("without cells"), "{message}");
}

#[test]
fn lrn_equals_its_formula() {
    for size in [1, 2, 3, 4, 9] {
        let op = Lrn { alpha: 0.5, beta: 0.75, bias: 2.0, size };
        let x = random(&[2, 5, 3], 1);
        let xs: &[f32] = x.slice().unwrap();
        let want: Vec<f32> = (0..30)
            .map(|i| {
                let (n, c, p) = (i / 15, (i / 3 % 5) as i64, i % 3);
                let half = size as i64 - 1;
                let window = c - half / 2..=c + (half + 1) / 2;
                let sum: f32 = (0..5)
                    .filter(|c| window.contains(c))
                    .map(|c| xs[n * 15 + c as usize * 3 + p].powi(2))
                    .sum();
                xs[i] / (2.0 + 0.5 / size as f32 * sum).powf(0.75)
            })
            .collect();
        assert_close(&eval(&op, &[&x]), &want, &op);
    }
}

#[test]
fn empty_inputs_stay_empty() {
    let s = Tensor::vector(vec![1.0f32; 4]);
    let x = random(&[0, 4, 3], 1);
    assert!(eval(&InstanceNormalization { epsilon: 0.0 }, &[&x, &s, &s]).is_empty());
    assert!(eval(&BatchNormalization { epsilon: 0.0, training: None }, &[&x, &s, &s, &s, &s]).is_empty());
    assert!(eval(&Lrn { alpha: 1.0, beta: 1.0, bias: 1.0, size: 3 }, &[&x]).is_empty());
}

fn read(op: &str, opset: i64, attributes: &[(&str, Attribute)], outputs: usize) -> Result<Arc<dyn Op>> {
    let map: BTreeMap<_, _> = attributes.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
    let mut r = Reading::new(op, opset, map, vec![None; 5], outputs);
    let read = READERS.iter().find(|(name, _)| *name == op).unwrap().1;
    let made = read(&mut r)?;
    r.finish().map(|_| made)
}

#[test]
fn readers_take_every_attribute() {
    let (int, float) = (Attribute::Int, Attribute::Float);
    let old = [("epsilon", float(0.5)), ("momentum", float(0.9)), ("spatial", int(1))];
    let batch = read("BatchNormalization", 7, &old, 1).unwrap();
    assert_eq!(batch.attributes(), [("epsilon", float(0.5))]);
    let new = read("BatchNormalization", 15, &[("training_mode", int(0))], 1).unwrap();
    assert_eq!(new.attributes(), [("epsilon", float(1e-5))]);
    let training = [("epsilon", float(0.5)), ("momentum", float(0.75)), ("training_mode", int(1))];
    let batch = read("BatchNormalization", 14, &training, 3).unwrap();
    assert_eq!((batch.attributes(), batch.opset()), (training.to_vec(), 14));
    for (opset, per_group) in [(18, true), (20, true), (21, false), (24, false)] {
        let op = read("GroupNormalization", opset, &[("num_groups", int(2))], 1).unwrap();
        assert_eq!(op.is::<GroupNormalization>().unwrap().per_group, per_group, "{opset}");
    }
    let layer = [("axis", int(1)), ("epsilon", float(0.5))];
    assert_eq!(read("LayerNormalization", 17, &layer, 1).unwrap().attributes(), layer);
    let lrn = [("alpha", float(1.0)), ("beta", float(2.0)), ("bias", float(3.0)), ("size", int(5))];
    assert_eq!(read("LRN", 13, &lrn, 1).unwrap().attributes(), lrn);
    let errors = [
        (read("BatchNormalization", 7, &[("spatial", int(0))], 1), "spatial"),
        (read("BatchNormalization", 9, &[], 3), "training_mode"),
        (read("LayerNormalization", 17, &[], 2), "InvStdDev"),
        (read("LayerNormalization", 17, &[("stash_type", int(10))], 1), "stash_type"),
        (read("GroupNormalization", 21, &[], 1), "num_groups is missing"),
        (read("GroupNormalization", 21, &[("num_groups", int(0))], 1), "at least 1"),
        (read("LRN", 13, &[], 1), "size is missing"),
        (read("LRN", 13, &[("size", int(0))], 1), "at least 1"),
        (read("InstanceNormalization", 13, &[("consumed_inputs", int(0))], 1), "consumed_inputs"),
    ];
    for (result, want) in errors {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let (batch, layer) = (
        BatchNormalization { epsilon: 0.0, training: None },
        LayerNormalization { axis: 1, epsilon: 0.0, centred: true },
    );
    let group = GroupNormalization { groups: 4, per_group: false, epsilon: 0.0 };
    let instance = InstanceNormalization { epsilon: 0.0 };
    let cases: [(&dyn Op, &[&[usize]], &str); 8] = [
        (&batch, &[&[1, 3, 5], &[3], &[3], &[3], &[2]], "var must have shape [3]"),
        (&batch, &[&[3], &[3], &[3], &[3], &[3]], "needs an input [N, C, ..]"),
        (&batch, &[&[1, 3], &[3]], "takes 5 inputs"),
        (&instance, &[&[1, 3, 5], &[2], &[3]], "scale must have shape [3]"),
        (&layer, &[&[2, 3, 4], &[3]], "not supported"),
        (&LayerNormalization { axis: 3, epsilon: 0.0, centred: true }, &[&[2, 3, 4], &[4]], "axis 3"),
        (&group, &[&[1, 6, 2], &[6], &[6]], "6 channels"),
        (&group, &[&[1, 8, 2], &[4], &[8]], "scale must have shape [8]"),
    ];
    for (op, shapes, want) in cases {
        let tensors: Vec<Tensor> = shapes.iter().map(|s| random(s, 1)).collect();
        let facts: Vec<Fact> = tensors.iter().map(Fact::of).collect();
        for result in [
            op.infer(&facts.iter().collect::<Vec<_>>()).map(|_| ()),
            op.eval(&tensors.iter().collect::<Vec<_>>()).map(|_| ()),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(want), "{op:?}: {message}");
        }
    }
    let named = Fact::new(DType::F32, vec![Dim::Named("N".into()), 3.into(), Dim::Named("T".into())]);
    let p = Fact::new(DType::F32, [3]);
    assert_eq!(instance.infer(&[&named, &p, &p]).unwrap()[0].shape, named.shape);
}

#[test]
fn gradients_are_those_of_differences() {
    let batch = |training, shape: &[usize]| {
        let p = [shape[1]];
        Case::new(BatchNormalization { epsilon: 0.1, training }, &[shape, &p, &p, &p, &p])
    };
    let shapes: [&[usize]; 4] = [&[2, 3, 4, 5], &[4, 3], &[3, 1, 7], &[1, 2, 3, 3, 2]];
    let trained = shapes.map(|s| batch(Some(0.75), s));
    let given = shapes.map(|s| batch(None, s).map(|x| x.abs() + 0.25));
    let instance = InstanceNormalization { epsilon: 0.1 };
    let group = |per_group| GroupNormalization { groups: 2, per_group, epsilon: 0.1 };
    let layer = |axis, centred| LayerNormalization { axis, epsilon: 0.1, centred };
    let lrn = |size| Lrn { alpha: 0.5, beta: 0.75, bias: 2.0, size };
    let own = [
        Case::new(instance, &[&[2, 3, 4, 5], &[3], &[3]]),
        Case::new(instance, &[&[1, 2, 9], &[2], &[2]]),
        Case::new(group(false), &[&[2, 6, 3, 3], &[6], &[6]]),
        Case::new(group(true), &[&[2, 6, 3, 3], &[2], &[2]]),
        Case::new(layer(-1, true), &[&[4, 5, 6], &[6], &[6]]),
        Case::new(layer(1, true), &[&[4, 2, 6], &[2, 6], &[1, 2, 6]]),
        Case::new(layer(-1, true), &[&[4, 6], &[1], &[6]]),
        Case::new(layer(0, true), &[&[4, 6], &[4, 6]]),
        Case::new(layer(-1, true), &[&[40, 700], &[700], &[700]]),
        Case::new(layer(-1, false), &[&[4, 5, 6], &[6]]),
        Case::new(lrn(3), &[&[2, 5, 3]]),
        Case::new(lrn(4), &[&[1, 3, 2, 2]]),
        Case::new(lrn(9), &[&[1, 5, 2]]),
    ];
    differences::check(trained.into_iter().chain(given).chain(own));
}
