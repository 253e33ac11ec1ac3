use std::sync::Arc;

use super::*;
use crate::graph::Builder;
use crate::observer::ObserverConfig;
use crate::op::{Dim, Fact};
use crate::ops::conv::Conv;
use crate::ops::linear::Gemm;
use crate::ops::unary::Unary;
use crate::ops::window::Window;
use crate::qconfig::{Per, QConfig, Target, preset};
use crate::session::Fallback;
use crate::tensor::{DType, Tensor};

/// Numbers within -1..1 that look random, always the same.
fn noise(seed: usize, n: usize) -> Vec<f32> {
    (0..n)
        .map(|i| ((i * 7919 + seed * 104_729 + 12345) * 2_654_435_761 % 65536) as f32 / 32768.0 - 1.0)
        .collect()
}

/// Two convolutions 1 x 1 of 4 channels, with a Relu between: weights of the first changed by
/// `change`, channel by channel, and its bias.
fn model(change: impl Fn(usize, &mut [f32], &mut f32)) -> Graph {
    let mut b = Builder::default();
    let mut v = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), 4.into(), 3.into(), 3.into()]));
    for (layer, name) in ["first", "second"].into_iter().enumerate() {
        let (mut w, mut bias) = (noise(layer + 1, 16), vec![0.25; 4]);
        if layer == 0 {
            w.chunks_mut(4).zip(&mut bias).enumerate().for_each(|(c, (w, bias))| change(c, w, bias));
        }
        let w = b.constant(&format!("w{layer}"), Tensor::new(&[4, 4, 1, 1], w).unwrap());
        let bias = b.constant(&format!("b{layer}"), Tensor::vector(bias));
        v = b
            .apply(name, Arc::new(Conv { window: Window::default(), group: 1, kernel: None }), &[v, w, bias])
            .unwrap();
        if layer == 0 {
            v = b.apply("relu", Arc::new(Unary::Relu), &[v]).unwrap();
        }
    }
    b.finish([("y".to_string(), v)]).unwrap()
}

/// Samples of noise, each changed by `change`.
fn samples(n: usize, change: impl Fn(usize, &mut [f32])) -> Vec<Batch> {
    let sample = |i: usize| {
        let mut x = noise(i + 10, 36);
        change(i, &mut x);
        Batch {
            inputs: vec![("x".into(), Tensor::new(&[1, 4, 3, 3], x).unwrap())],
            labels: None,
            names: vec![format!("sample {i}")],
        }
    };
    (0..n).map(sample).collect()
}

fn config() -> QConfig {
    let mut q = preset("default").unwrap();
    q.activation = q.activation.map(|spec| spec.observed_by(ObserverConfig::MinMax));
    q
}

/// What is found for a model that is calibrated on `data`, if it can be.
fn found(
    float: &Graph,
    mapping: &QConfigMapping,
    data: &[Batch],
    other: Option<&[Batch]>,
    threads: usize,
) -> Diagnosis {
    let mut prepared = prepare(float, mapping).unwrap();
    let batches = data.iter().map(|b| crate::data::inputs_of(float, b));
    let converted = prepared.calibrate(batches, &|_| Ok(())).and_then(|()| prepared.convert());
    let quantized = converted.as_ref().ok().map(|converted| (&prepared, converted));
    let subject = Subject { float, mapping, quantized, fastest: None };
    let batches = |data| <[Batch]>::iter(data).cloned().map(Ok);
    diagnose(&subject, batches(data), other.map(batches), Some(threads), &|_| Ok(())).unwrap()
}

/// Code and subject of each finding.
fn said(d: &Diagnosis) -> Vec<String> {
    d.findings.iter().map(|f| format!("{} {}", f.code(), f.subject)).collect()
}

/// A model, its rules and its samples, and the findings.
struct Case {
    name: &'static str,
    float: Graph,
    config: QConfig,
    data: Vec<Batch>,
    other: Option<Vec<Batch>>,
    findings: &'static [&'static str],
}

impl Default for Case {
    fn default() -> Case {
        let data = samples(16, |_, _| ());
        Case {
            name: "healthy",
            float: model(|_, _, _| ()),
            config: config(),
            data,
            other: None,
            findings: &[],
        }
    }
}

#[test]
fn each_symptom_is_found_and_nothing_else() {
    let other = |change: fn(usize, &mut [f32])| Some(samples(12, |i, x| change(i + 50, x)));
    let dead = |c: usize, w: &mut [f32], bias: &mut f32| {
        if c == 2 {
            w.fill(0.0);
            *bias = -1.0;
        }
    };
    let per_tensor = || {
        let mut q = config();
        q.weight = q.weight.per(Per::Tensor);
        q
    };
    let clipping = |percentile| {
        let mut q = config();
        q.activation = q.activation.map(|spec| spec.observed_by(ObserverConfig::Percentile { percentile }));
        q
    };
    let small = |by: f32| {
        move |c: usize, w: &mut [f32], bias: &mut f32| {
            if c == 1 {
                w.iter_mut().for_each(|w| *w *= by);
                *bias = 0.0;
            }
        }
    };
    let all = [
        Case::default(),
        Case { name: "like data", other: other(|_, _| ()), ..Case::default() },
        Case {
            name: "dead channel",
            float: model(dead),
            findings: &["LB-Q105 relu", "LB-Q201 first"],
            ..Case::default()
        },
        Case {
            name: "zero",
            float: model(|_, _, bias| *bias = -100.0),
            findings: &["LB-Q103 relu"],
            ..Case::default()
        },
        Case {
            name: "constant",
            float: model(|_, w, _| w.fill(0.0)),
            findings: &["LB-Q104 relu"],
            ..Case::default()
        },
        Case {
            name: "NaN",
            data: samples(4, |i, x| x[0] = if i >= 2 { f32::NAN } else { x[0] }),
            findings: &["LB-Q102 x"],
            ..Case::default()
        },
        Case {
            name: "infinite product",
            float: model(|c, w, _| w[0] = if c == 0 { 3e38 } else { w[0] }),
            data: samples(4, |i, x| x[0] = if i == 3 { 3e38 } else { x[0] }),
            findings: &["LB-Q102 first"],
            ..Case::default()
        },
        Case { name: "little clipped", config: clipping(99.9), ..Case::default() },
        Case {
            name: "much clipped",
            config: clipping(80.0),
            findings: &["LB-Q106 relu", "LB-Q106 x"],
            ..Case::default()
        },
        Case { name: "unlike weights", float: model(small(0.1)), config: per_tensor(), ..Case::default() },
        Case {
            name: "very unlike weights",
            float: model(small(0.01)),
            config: per_tensor(),
            findings: &["LB-Q107 relu", "LB-Q202 first"],
            ..Case::default()
        },
        Case {
            name: "a scale each, one channel of relu too narrow",
            float: model(small(0.01)),
            findings: &["LB-Q107 relu"],
            ..Case::default()
        },
        Case {
            name: "bias",
            float: model(|c, w, bias| {
                if c == 3 {
                    w.iter_mut().for_each(|w| *w *= 1e-9);
                    *bias = 1.0;
                }
            }),
            findings: &["LB-Q105 relu", "LB-Q201 first"],
            ..Case::default()
        },
        Case {
            name: "scaled data",
            other: other(|_, x| x.iter_mut().for_each(|x| *x *= 3.0)),
            findings: &["LB-Q401 x", "LB-Q401 relu", "LB-Q402 x"],
            ..Case::default()
        },
        Case {
            name: "shifted channel",
            other: other(|_, x| x[27..].iter_mut().for_each(|x| *x = 0.6 + 0.4 * *x)),
            findings: &["LB-Q401 relu", "LB-Q402 x"],
            ..Case::default()
        },
        Case {
            name: "other data with NaN",
            other: other(|i, x| x[0] = if i == 55 { f32::NAN } else { x[0] }),
            findings: &["LB-Q102 x"],
            ..Case::default()
        },
    ];
    let mut failures = vec![];
    for case in &all {
        let mapping = QConfigMapping::global(case.config.clone());
        let diagnosis = found(&case.float, &mapping, &case.data, case.other.as_deref(), 2);
        let mut said = said(&diagnosis);
        let mut wanted = case.findings.to_vec();
        said.sort();
        wanted.sort_unstable();
        if said != wanted {
            failures.push(format!("{}: wanted {wanted:?}: {:#?}", case.name, diagnosis.findings));
        }
        let severities: Vec<_> = diagnosis.findings.iter().map(Finding::severity).collect();
        assert!(severities.is_sorted(), "{}: {severities:?}", case.name);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn findings_have_the_numbers() {
    let symptom = |float: &Graph, config: QConfig, data: &[Batch], other: Option<&[Batch]>| {
        found(float, &QConfigMapping::global(config), data, other, 1).findings.remove(0).symptom
    };
    let nan = samples(4, |i, x| x[..2].fill(if i >= 2 { f32::NAN } else { 0.0 }));
    assert_eq!(
        symptom(&model(|_, _, _| ()), config(), &nan, None),
        Symptom::NotFinite { nan: 4, infinite: 0, sample: "sample 2".into() }
    );
    let like = samples(8, |_, _| ());
    let far = samples(8, |_, x| x.iter_mut().for_each(|x| *x += 2.0));
    let Symptom::BeyondRange { share, calibrated, found } =
        symptom(&model(|_, _, _| ()), config(), &like, Some(&far))
    else {
        panic!("the ranges differ")
    };
    assert!(share > 0.9 && calibrated.hi < 1.0 && found.hi > 2.9, "{share} {calibrated:?} {found:?}");
}

#[test]
fn values_that_no_sample_has_are_all_named() {
    let mut b = Builder::default();
    let mut outputs = vec![];
    for name in ["x", "u", "v"] {
        let x = b.input(name, Fact::new(DType::F32, [Dim::Named(format!("N{name}")), 3.into()]));
        let w = b.constant(&format!("w{name}"), Tensor::new(&[3, 3], noise(1, 9)).unwrap());
        let y = b.apply(&format!("y{name}"), Arc::new(Gemm::default()), &[x, w]).unwrap();
        outputs.push((format!("y{name}"), y));
    }
    let float = b.finish(outputs).unwrap();
    let row =
        |name: &str, rows: usize| (name.to_string(), Tensor::new(&[rows, 3], noise(2, 3 * rows)).unwrap());
    let inputs = vec![row("x", 1), row("u", 0), row("v", 0)];
    let data = vec![Batch { inputs, labels: None, names: vec!["0".into()] }; 3];
    let diagnosis = found(&float, &QConfigMapping::global(config()), &data, None, 1);
    assert_eq!(said(&diagnosis), ["LB-Q101 u", "LB-Q101 v"]);
}

#[test]
fn what_stays_in_float_is_said_once_an_operator_and_reason() {
    let fallback = |node: &str, op: &str, macs, reason: &str| Fallback {
        node: node.into(),
        op: op.into(),
        macs,
        reason: reason.into(),
    };
    let fallbacks = vec![
        fallback("gelu1", "Gelu", 0, "no form"),
        fallback("conv", "Conv", 30, "no form"),
        fallback("gelu2", "Gelu", 0, "no form"),
        fallback("gelu3", "Gelu", 0, "other"),
        fallback("lstm", "LSTM", 50, "not quantized"),
        fallback("spared", "MatMul", 20, "not quantized"),
    ];
    let report = Report { macs: 200, fallbacks, ..Report::default() };
    let in_float = Symptom::InFloat { nodes: vec!["lstm".into()], reason: "known".into(), share: None };
    let known = [Finding::new("lstm", in_float), Finding::new("spared", Symptom::Spared { sqnr_db: 1.0 })];
    let texts: Vec<String> =
        model::in_float(&report, &known).iter().map(|f| format!("{}: {}", f.subject, f.text())).collect();
    assert_eq!(
        texts,
        [
            "conv: stays in float, 15 % of the MACs: no form",
            "Gelu: 2 nodes stay in float (gelu1, gelu2): no form",
            "gelu3: stays in float: other"
        ]
    );
    let mapping = QConfigMapping::global(config()).with(Target::name("second").unwrap(), None);
    let diagnosis = found(&model(|_, _, _| ()), &mapping, &samples(4, |_, _| ()), None, 1);
    assert_eq!(said(&diagnosis), ["LB-Q301 second"]);
}

#[test]
fn slower_nodes_are_those_that_speed_moves_into_float() {
    let report = |nodes: &[&str], integer_nodes| Report {
        integer_nodes,
        fallbacks: nodes
            .iter()
            .map(|n| Fallback {
                node: (*n).into(),
                op: "Add".into(),
                macs: 0,
                reason: format!("{n} is slow"),
            })
            .collect(),
        ..Report::default()
    };
    let (graph, int8) = (model(|_, _, _| ()), report(&["relu"], 5));
    let both = "2 nodes take longer in int8 than in float: first, second";
    for (fastest, subject, text) in [
        (report(&["relu"], 5), "", ""),
        (report(&["second", "relu", "second_clipped"], 4), "second", "second is slow"),
        (report(&["first", "second"], 3), "several nodes", both),
        (report(&["first", "second"], 0), "the whole model", both),
    ] {
        let finding = model::slower(&graph, &int8, &fastest);
        let said = finding.map_or((String::new(), String::new()), |f| (f.subject.clone(), f.text()));
        assert_eq!(said, (subject.to_string(), text.to_string()));
    }
}

#[test]
fn threads_change_nothing() {
    let (float, mapping) = (model(|_, _, _| ()), QConfigMapping::global(preset("onednn").unwrap()));
    let data = samples(33, |i, x| x.iter_mut().for_each(|x| *x *= 1.0 + i as f32 / 20.0));
    let other = samples(17, |_, x| x.iter_mut().for_each(|x| *x *= 4.0));
    let one = found(&float, &mapping, &data, Some(&other), 1);
    assert!(!one.findings.is_empty() && !one.advice.points.is_empty());
    for threads in [2, 5] {
        assert_eq!(found(&float, &mapping, &data, Some(&other), threads), one);
    }
}

#[test]
fn advice_tells_whether_ranges_still_grow_and_who_stretches_them() {
    let (float, mapping) = (model(|_, _, _| ()), QConfigMapping::global(config()));
    let advice = |data: Vec<Batch>| found(&float, &mapping, &data, None, 2).advice;

    let alike = advice(samples(100, |_, _| ()));
    assert_eq!((alike.samples, alike.enough), (100, Some(true)), "{alike}");
    let last = alike.convergence.last().unwrap();
    assert_eq!((last.from, last.to), (64, 100), "{last:?}");
    assert!(alike.to_string().ends_with("more samples would hardly help"), "{alike}");
    let counts: Vec<usize> = alike.points[0].ranges.iter().map(|(n, _)| *n).collect();
    assert_eq!(counts, [1, 2, 4, 8, 16, 32, 64, 100]);
    let widths: Vec<f32> = alike.points[0].ranges.iter().map(|(_, r)| r.hi - r.lo).collect();
    assert!(widths.is_sorted() && alike.stretching.is_empty(), "{widths:?} {:?}", alike.stretching);

    let growing = advice(samples(64, |i, x| x.iter_mut().for_each(|x| *x *= 1.0 + i as f32)));
    assert_eq!(growing.enough, Some(false), "{growing}");
    assert!(growing.to_string().ends_with("more samples would help"), "{growing}");

    let odd = advice(samples(32, |i, x| x[5] = if i == 13 { 4.0 } else { x[5] }));
    let worst = &odd.stretching[0];
    assert_eq!((worst.sample.as_str(), worst.value.as_str()), ("sample 13", "x"));
    assert!(
        worst.by > 1.3 && worst.others.hi < 1.0 && (worst.reaches - 4.0).abs() < 0.02 && worst.values >= 2,
        "{worst:?}"
    );

    for (n, text) in [(1, "one sample does not show"), (3, "too few to tell")] {
        let few = advice(samples(n, |_, _| ()));
        assert!(few.enough.is_none() && few.to_string().contains(text), "{few}");
    }
    let none = QConfigMapping::global(preset("dynamic").unwrap());
    let none = found(&float, &none, &samples(4, |_, _| ()), None, 1).advice;
    assert!(none.points.is_empty() && none.to_string().contains("does not matter"), "{none}");
}

#[test]
fn what_cannot_be_run_is_refused() {
    let (float, mapping) = (model(|_, _, _| ()), QConfigMapping::global(config()));
    let subject = Subject { float: &float, mapping: &mapping, quantized: None, fastest: None };
    let refused = |data: Vec<Batch>| {
        let none: Option<std::iter::Map<_, fn(_) -> _>> = None;
        let batches: std::iter::Map<std::vec::IntoIter<Batch>, fn(Batch) -> Result<Batch>> =
            data.into_iter().map(Ok);
        diagnose(&subject, batches, none, Some(2), &|_| Ok(())).unwrap_err().to_string()
    };
    assert!(refused(vec![]).contains("holds no sample"));
    let mut data = samples(3, |_, _| ());
    data[1].inputs[0].1 = Tensor::new(&[1, 4], vec![0f32; 4]).unwrap();
    let message = refused(data);
    assert!(message.contains("sample 1") && message.contains("found"), "{message}");
    let stopped = diagnose(&subject, samples(3, |_, _| ()).into_iter().map(Ok), None, Some(2), &|_| {
        Err(crate::Error::Interrupted)
    });
    assert!(matches!(stopped, Err(crate::Error::Interrupted)));
}
