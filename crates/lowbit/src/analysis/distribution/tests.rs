use std::sync::Arc;

use super::*;
use crate::graph::Builder;
use crate::op::{Dim, Fact};
use crate::ops::linear::Gemm;
use crate::ops::unary::Unary;
use crate::qconfig::{Per, QConfigMapping, preset};
use crate::quantize::prepare;
use crate::scheme::{Format, Granularity, Scheme};
use crate::tensor::DType;

fn tallied(params: &QParams, batches: &[Tensor]) -> Distribution {
    let mut tally = Tally::new(params.clone());
    batches.iter().for_each(|x| tally.range(x).unwrap());
    tally.settle().unwrap();
    batches.iter().for_each(|x| tally.count(x).unwrap());
    tally.distribution("x".into(), Place::Activation)
}

fn params(format: Format, mapping: Mapping, scale: &[f32], zero: &[i32]) -> QParams {
    let per = if scale.len() > 1 { Granularity::Axis(0) } else { Granularity::Tensor };
    QParams::new(Scheme::new(format, mapping).with(per), scale.to_vec(), zero.to_vec()).unwrap()
}

#[test]
fn counts_are_those_of_a_naive_count() {
    let x: Vec<f32> = (0..500).map(|i| ((i * 37 % 500) as f32 - 130.0) / 50.0).collect();
    let batches = [&x[..200], &x[200..]].map(|x| Tensor::new(&[x.len()], x.to_vec()).unwrap());
    let p = params(Format::UINT8, Mapping::Affine, &[0.02], &[100]);
    let d = tallied(&p, &batches);
    let (lo, hi) = (-2.6f64, f64::from(369f32 / 50.0));
    let mut naive = vec![0u64; BINS];
    for &x in &x {
        let edge = |i: usize| d.lo + (d.hi - d.lo) * i as f64 / BINS as f64;
        let bin = (0..BINS).rev().find(|i| f64::from(x) >= edge(*i) - 1e-12).unwrap();
        naive[bin] += 1;
    }
    assert!((d.lo - lo).abs() < 1e-6 && d.hi == hi, "{} {}", d.lo, d.hi);
    assert_eq!((&d.counts, d.elements), (&naive, 500));
    let y = p.fake_quantize(&Tensor::vector(x.clone())).unwrap().to_f32().unwrap();
    let errors = x.iter().zip(&y).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>() / 500.0;
    assert!((d.mse - errors).abs() < 1e-6 * errors, "{} is not {errors}", d.mse);
    // The codes reach from -2 to 3.1, with half a step around.
    let outside = x.iter().filter(|x| !(-2.01..=3.11).contains(*x)).count();
    assert_eq!((d.clipped as usize, d.step), (outside, Some(f64::from(0.02f32))));
}

#[test]
fn several_scales_share_an_axis_of_codes() {
    let x = Tensor::new(&[2, 2], vec![-1.0f32, 1.0, 100.0, -50.0]).unwrap();
    let mut tally = Tally::new(params(Format::INT8, Mapping::Symmetric, &[0.25, 25.0], &[0, 0]));
    tally.range(&x).unwrap();
    tally.settle().unwrap();
    tally.count(&x).unwrap();
    let channels = tally.channels(&x, 0).unwrap();
    let d = tally.distribution("w".into(), Place::Weight);
    assert_eq!((d.in_codes, d.lo, d.hi, d.clip_lo, d.clip_hi), (true, -4.0, 4.0, -128.0, 127.0));
    assert_eq!((d.elements, d.clipped, d.mse, d.sqnr_db), (4, 0, 0.0, f64::INFINITY));
    assert_eq!(channels[1].elements, Range { lo: -50.0, hi: 100.0 });
    assert_eq!(channels[0].codes, Range { lo: -32.0, hi: 31.75 });
    assert!(d.mappings.iter().all(|m| m.range.is_none()));
}

#[test]
fn the_better_mapping_of_what_is_never_negative_is_affine() {
    let x = Tensor::vector((0..1000).map(|i| i as f32 / 1000.0).collect::<Vec<_>>());
    for (format, zero) in [(Format::UINT8, 0), (Format::INT8, 0), (Format::INT4, -8)] {
        let d = tallied(&params(format, Mapping::Affine, &[0.07], &[zero]), std::slice::from_ref(&x));
        let [affine, symmetric] = d.mappings.as_slice() else { panic!("{d:?}") };
        assert!(affine.sqnr_db > symmetric.sqnr_db + 5.0, "{format} {zero}: {d:?}");
        let (a, s) = (affine.range.unwrap(), symmetric.range.unwrap());
        assert!(a.lo == 0.0 && a.hi < 1.01 && s.lo < -0.99, "{a:?} {s:?}");
    }
}

#[test]
fn degenerate_values_have_a_width() {
    let p = params(Format::UINT8, Mapping::Affine, &[0.01], &[0]);
    for (x, elements, not_finite) in [
        (vec![], 0, 0),
        (vec![0.0f32; 3], 3, 0),
        (vec![2.0; 3], 3, 0),
        (vec![f32::NAN, f32::INFINITY, 1.0], 1, 2),
        (vec![f32::MIN, f32::MAX], 2, 0),
    ] {
        let d = tallied(&p, &[Tensor::vector(x.clone())]);
        assert_eq!((d.elements, d.not_finite), (elements, not_finite), "{x:?}");
        assert!(d.lo < d.hi && d.counts.iter().sum::<u64>() == elements, "{x:?}: {d:?}");
    }
    // Float codes are not evenly spaced.
    let d = tallied(&params(Format::E4M3, Mapping::Symmetric, &[1.0], &[0]), &[Tensor::vector(vec![500f32])]);
    assert_eq!((d.step, d.clipped, d.mappings.len(), d.clip_hi), (None, 1, 0, 448.0));
}

fn model() -> Graph {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2)]));
    let w = b.constant("w", Tensor::new(&[2, 3], vec![1.0f32, 0.5, -0.25, 2.0, 0.1, -1.0]).unwrap());
    let h = b.apply("h", Arc::new(Gemm::default()), &[x, w]).unwrap();
    let r = b.apply("r", Arc::new(Unary::Relu), &[h]).unwrap();
    let v = b.constant("v", Tensor::new(&[3, 1], vec![1.0f32, 1.0, 1.0]).unwrap());
    let y = b.apply("y", Arc::new(Gemm::default()), &[r, v]).unwrap();
    b.finish([("y".to_string(), y)]).unwrap()
}

fn batches() -> impl Iterator<Item = Result<Batch>> {
    (0..3).map(|i| {
        let x = Tensor::new(&[2, 2], vec![i as f32, 1.0, -1.0, 0.5]).unwrap();
        let names = vec![format!("{i}a"), format!("{i}b")];
        Ok(Batch { inputs: vec![("x".into(), x)], labels: None, names })
    })
}

#[test]
fn values_are_found_by_the_points_of_the_quantized_model() {
    let float = model();
    for (per, channels) in [(Per::Channel, true), (Per::Tensor, false)] {
        let mut q = preset("default").unwrap();
        q.weight = q.weight.per(per);
        let mut prepared = prepare(&float, &QConfigMapping::global(q)).unwrap();
        batches().for_each(|b| drop(prepared.observe(&[b.unwrap().inputs[0].1.clone()]).unwrap()));
        let quantized = prepared.convert().unwrap().graph;
        let mut done = 0;
        let activations = activation_distributions(&float, &quantized, batches, &mut |n| {
            done = n;
            Ok(())
        });
        let found: Vec<_> = activations.unwrap().into_iter().map(|d| (d.name, d.elements)).collect();
        assert_eq!(found, [("x".to_string(), 12), ("r".to_string(), 18)]);
        assert_eq!(done, 12);
        let weights = weight_distributions(&float, &quantized).unwrap();
        let names: Vec<&str> = weights.iter().map(|d| d.name.as_str()).collect();
        assert_eq!((names, weights[0].in_codes), (vec!["h", "y"], channels));
        assert_eq!(weights[0].channels.len(), 3);
        assert!(weights[0].sqnr_db > 30.0, "{weights:?}");
    }
}

#[test]
fn it_needs_data_that_fits() {
    let float = model();
    let none = activation_distributions(&float, &float, std::iter::empty, &mut |_| Ok(()));
    assert!(none.unwrap_err().to_string().contains("no sample"));
    let stopped = activation_distributions(&float, &float, batches, &mut |_| Err(Error::Interrupted));
    assert!(matches!(stopped, Err(Error::Interrupted)));
    let mut tally = Tally::new(params(Format::INT8, Mapping::Symmetric, &[1.0, 2.0], &[0, 0]));
    let error = tally.range(&Tensor::vector(vec![1f32; 3])).unwrap_err().to_string();
    assert!(error.contains("3 groups") && error.contains("2 scales"), "{error}");
}
