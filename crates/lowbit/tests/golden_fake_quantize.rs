//! Fake-quantization and its gradients are torch's (`tests/golden/fake_quantize.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lowbit::data::npz;
use lowbit::op::{Op, Reverse};
use lowbit::qparams::QParams;
use lowbit::scheme::{Format, Granularity, Mapping, Scheme};
use lowbit::tensor_quantizer::{fake_tensor_quant, tensor_quant};
use lowbit::train::{FakeQuantize, StepGradient};
use lowbit::{DType, Tensor};
use serde_json::Value;

fn vectors() -> BTreeMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fake_quantize/vectors.npz");
    npz::read(&path).unwrap().into_iter().collect()
}

/// The tensors that are stacked along the first axis.
fn rows(t: &Tensor) -> Vec<Tensor> {
    let all = t.slice::<f32>().unwrap();
    let rows = all.chunks(all.len() / t.shape()[0]);
    rows.map(|row| Tensor::new(&t.shape()[1..], row.to_vec()).unwrap()).collect()
}

/// How far two lists lie from each other, relative to the greatest value.
fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.len(), b.len());
    let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
    let most = b.iter().fold(1e-6f32, |most, x| most.max(x.abs()));
    a.iter().zip(&b).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / most
}

#[test]
fn values_and_gradients_are_those_of_torch() {
    let all = vectors();
    let cases: BTreeSet<&str> = all.keys().filter_map(|key| key.strip_suffix(".codes")).collect();
    assert_eq!(cases.len(), 7 * (5 + 5 + 5 + 4));
    let mut failures = vec![];
    for case in cases {
        let part = |part: &str| &all[&format!("{case}.{part}")];
        let &[least, greatest, axis] = part("codes").slice::<i64>().unwrap() else { panic!("{case}") };
        let (values, steps) = (rows(part("values")), rows(part("steps")));
        let [x, g, want, want_dx] = &values[..] else { panic!("{case}") };
        let granularity = usize::try_from(axis).map_or(Granularity::Tensor, Granularity::Axis);
        let format =
            Format::Int { bits: (greatest - least + 1).ilog2() as u8, signed: least < 0, narrow: false };
        let scheme = Scheme::new(format, Mapping::Affine).with(granularity);
        let by_scale = if steps.len() > 2 { StepGradient::Learned } else { StepGradient::None };
        let op = FakeQuantize { scheme, by_scale };
        let inputs = [x, &steps[0], &steps[1]];
        let y = op.eval(&inputs).unwrap().remove(0);
        let gradients = [Some(g.clone())];
        let at = Reverse { inputs: &inputs, outputs: &[&y], gradients: &gradients, wanted: &[true; 3] };
        let by = op.vjp(&at).unwrap();
        let [Some(dx), ds, dz] = &by[..] else { panic!("{case} has no gradient") };
        assert_eq!(ds.is_some(), steps.len() > 2, "{case}");
        let learned = [ds, dz].into_iter().flatten().zip(steps.iter().skip(2)).zip(["ds", "dz"]);
        let learned = learned.map(|((got, want), name)| (name, got, want, 1e-4));
        for (name, got, want, most) in
            [("y", &y, want, 0.0), ("dx", dx, want_dx, 0.0)].into_iter().chain(learned)
        {
            let d = distance(got, want);
            if d.is_nan() || d > most {
                failures.push(format!("{case}: {name} differs by {d}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn eight_bit_floats_are_those_of_torch() {
    let all = vectors();
    for (name, format) in [("e4m3", Format::E4M3), ("e5m2", Format::E5M2)] {
        let array = |part: &str| &all[&format!("{name}.{part}")];
        let params = QParams::new(Scheme::new(format, Mapping::Symmetric), vec![1.0], vec![0]).unwrap();
        let codes = params.quantize(array("x")).unwrap();
        assert_eq!(codes.slice::<u8>().unwrap(), array("bits").slice::<u8>().unwrap(), "{name}");
        assert_eq!(params.dequantize(&codes).unwrap(), *array("y"), "{name}");
        assert_eq!(params.fake_quantize(array("x")).unwrap(), *array("y"), "{name}");
        assert_eq!(codes.dtype(), if name == "e4m3" { DType::F8E4M3 } else { DType::F8E5M2 });
    }
}

/// The example of the guide to `pytorch-quantization`, by its formula.
#[test]
fn tensors_are_quantized_by_amax() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quantize.json");
    let document: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let float = |v: &Value| f32::from_bits(v.as_u64().unwrap() as u32);
    let floats = |v: &Value| Tensor::vector(v.as_array().unwrap().iter().map(float).collect());
    let (x, runs) = (floats(&document["amax"]["x"]), document["amax"]["runs"].as_array().unwrap());
    assert_eq!(runs.len(), 15);
    for run in runs {
        let (bits, flag) = (run["num_bits"].as_u64().unwrap() as u8, |key: &str| run[key].as_bool().unwrap());
        let amax = Tensor::scalar(float(&run["amax"]));
        let (unsigned, narrow) = (flag("unsigned"), flag("narrow_range"));
        let (codes, scale) = tensor_quant(&x, &amax, bits, unsigned, narrow).unwrap();
        let want: Vec<i64> =
            run["codes"].as_array().unwrap().iter().map(|q| q.as_f64().unwrap() as i64).collect();
        assert_eq!(codes.integers().unwrap(), want, "{run}");
        assert_eq!(scale.item::<f32>().unwrap(), float(&run["scale"]), "{run}");
        let fake = fake_tensor_quant(&x, &amax, bits, unsigned, narrow).unwrap();
        assert!(distance(&fake, &floats(&run["y"])) < 1e-6, "{run}");
    }
}
