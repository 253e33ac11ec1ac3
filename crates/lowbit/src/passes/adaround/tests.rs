use std::sync::Arc;

use super::*;
use crate::graph::{Builder, Graph, Var};
use crate::observer::ObserverConfig;
use crate::op::{Dim, Fact, Op};
use crate::ops::binary::Arithmetic;
use crate::ops::linear::{Gemm, MatMul};
use crate::ops::quantize::DequantizeLinear;
use crate::ops::unary::Unary;
use crate::qconfig::{Per, QConfig, QConfigMapping, Rounding, Spec, Target};
use crate::quantize::prepare;
use crate::random::values;
use crate::scheme::{Format, Mapping};
use crate::tensor::DType;

/// A layer, two with an addition and a Relu around them, and a last one.
fn model() -> Graph {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(8)]));
    let gemm = |b: &mut Builder, name: &str, x, seed| {
        let w = b.constant(&format!("{name}.weight"), values(seed, &[8, 8]));
        let bias = b.constant(&format!("{name}.bias"), values(seed + 10, &[8]));
        b.apply(name, Arc::new(Gemm { trans_b: true, ..Gemm::default() }), &[x, w, bias]).unwrap()
    };
    let first = gemm(&mut b, "first", x, 1);
    let start = b.apply("start", Arc::new(Unary::Relu), &[first]).unwrap();
    let one = gemm(&mut b, "one", start, 2);
    let inner = b.apply("inner", Arc::new(Unary::Relu), &[one]).unwrap();
    let two = gemm(&mut b, "two", inner, 3);
    let sum = b.apply("sum", Arc::new(Arithmetic::Add), &[two, start]).unwrap();
    let end = b.apply("end", Arc::new(Unary::Relu), &[sum]).unwrap();
    let w = b.constant("last.weight", values(4, &[8, 4]));
    let last = b.apply("last", Arc::new(MatMul), &[end, w]).unwrap();
    b.finish([("last".to_string(), last)]).unwrap()
}

fn batches() -> impl Iterator<Item = Result<Vec<Tensor>>> + Send {
    (0..4).map(|i| Ok(vec![values(100 + i, &[16, 8])]))
}

fn config(format: Format, mapping: Mapping, per: Per, activations: bool) -> QConfig {
    let activation = Spec::new(Format::UINT8, Mapping::Affine).observed_by(ObserverConfig::MinMax);
    QConfig {
        activation: activations.then_some(activation),
        weight: Spec::new(format, mapping)
            .per(per)
            .observed_by(ObserverConfig::Mse)
            .rounded_by(Rounding::Adaround),
    }
}

fn prepared(config: QConfig) -> Prepared {
    let mut prepared = prepare(&model(), &QConfigMapping::global(config)).unwrap();
    prepared.calibrate(batches(), &|_| Ok(())).unwrap();
    prepared
}

fn int3() -> QConfig {
    let int3 = Format::Int { bits: 3, signed: true, narrow: true };
    config(int3, Mapping::Symmetric, Per::Channel, true)
}

fn options(blocks: Blocks) -> AdaroundOptions {
    AdaroundOptions { blocks, steps: 200, ..AdaroundOptions::default() }
}

fn run(prepared: &Prepared, options: &AdaroundOptions) -> (Prepared, Vec<Reconstructed>) {
    let mut all = vec![];
    let found = adaround(prepared, batches(), options, &mut |r| {
        all.push(r.clone());
        Ok(())
    });
    (found.unwrap(), all)
}

/// The mean squared error of the output of `graph` on the data.
fn error(graph: &Graph) -> f64 {
    let float = model();
    let mut sum = 0.0;
    for batch in batches().map(Result::unwrap) {
        let [y, t] = [graph, &float].map(|g| g.run(&batch).unwrap().remove(0).to_f32().unwrap());
        sum +=
            y.iter().zip(t).map(|(y, t)| f64::from(y - t) * f64::from(y - t)).sum::<f64>() / y.len() as f64;
    }
    sum / 4.0
}

#[test]
fn blocks_end_where_everything_passes() {
    let of = |config: QConfig, kind| -> Vec<(Vec<String>, String)> {
        let prepared = prepared(config);
        let name = |v: &Var| prepared.graph().value(*v).name.clone();
        let blocks = blocks(&prepared, kind);
        blocks.iter().map(|b| (b.weights.iter().map(name).collect(), name(&b.output))).collect()
    };
    let named = |blocks: &[(&[&str], &str)]| -> Vec<(Vec<String>, String)> {
        let point = |w: &&str| format!("{w}.weight_point");
        blocks.iter().map(|(w, o)| (w.iter().map(point).collect(), o.to_string())).collect()
    };
    let residual = named(&[(&["first"], "start"), (&["one", "two"], "end"), (&["last"], "last")]);
    assert_eq!(of(int3(), Blocks::Residual), residual);
    let weights = QConfig { activation: None, ..int3() };
    assert_eq!(of(weights, Blocks::Residual), residual);
    let layers = [(&["first"][..], "start"), (&["one"], "inner"), (&["two"], "two"), (&["last"], "last")];
    assert_eq!(of(int3(), Blocks::Layers), named(&layers));
}

#[test]
fn errors_are_at_most_those_of_the_nearest_codes() {
    let int4 = Format::INT4;
    let cases = [
        ("3 bits a channel", int3()),
        ("a tensor", config(int4, Mapping::Symmetric, Per::Tensor, true)),
        ("affine", config(Format::UINT4, Mapping::Affine, Per::Channel, true)),
        ("blocks of 4", config(int4, Mapping::Symmetric, Per::Block(4), false)),
        ("8 bits", config(Format::INT8_NARROW, Mapping::Symmetric, Per::Channel, true)),
        ("corrected", QConfig { weight: int3().weight.correcting_bias(), ..int3() }),
    ];
    let mut failures = vec![];
    for (name, config) in cases {
        let before = prepared(config);
        for kind in [Blocks::Layers, Blocks::Residual] {
            let (after, report) = run(&before, &options(kind));
            let worse = report.iter().any(|r| r.error > r.nearest);
            let better = report.iter().filter(|r| r.error < r.nearest).count();
            let few = !name.starts_with('8') && better == 0;
            let [was, is] = [&before, &after].map(|p| error(&p.convert().unwrap().graph));
            if worse || few || (is > was && name != "corrected") {
                failures.push(format!("{name}, {kind:?}: {was} to {is}, {report:?}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_codes_found_are_those_stored_and_the_weights_stay() {
    let before = prepared(int3());
    let (after, report) = run(&before, &options(Blocks::Residual));
    let float = |p: &Prepared| p.graph().run(&batches().next().unwrap().unwrap()).unwrap();
    assert_eq!(float(&before), float(&after));
    let names: Vec<&String> = report.iter().flat_map(|r| &r.weights).collect();
    assert_eq!(names, ["first.weight", "one.weight", "two.weight", "last.weight"]);
    let converted = after.convert().unwrap().graph;
    let (settled, _) = after.settled(&model()).unwrap();
    for point in after.points().iter().filter(|p| p.role == Role::Weight) {
        let chosen = point.chosen.as_ref().unwrap();
        let v = converted.find(&format!("{}_dq", point.name)).unwrap();
        let (op, inputs) = converted.made_by::<DequantizeLinear>(v).unwrap();
        let inputs: Vec<&Tensor> = inputs.iter().map(|v| converted.constant(*v).unwrap()).collect();
        assert_eq!(op.eval(&inputs).unwrap().remove(0), *chosen, "{}", point.name);
        let settled = settled.graph().find(&point.name).and_then(|v| settled.graph().constant(v).cloned());
        assert_eq!(settled.as_ref(), Some(chosen), "{}", point.name);
    }
    // What was optimized is what is stored: the last block's error is that of the model, but
    // for the rounding of biases.
    let last = report.last().unwrap().error;
    assert!((error(&converted) - last).abs() < 0.02 * last, "{} {last}", error(&converted));
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let before = prepared(int3());
    let codes = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (found, report) = pool.install(|| run(&before, &options(Blocks::Residual)));
        (found.convert().unwrap().graph, report)
    };
    let (one, three) = (codes(1), codes(3));
    assert_eq!(one.1, three.1);
    assert!(one.0 == three.0, "the codes differ");
    let other = run(&before, &AdaroundOptions { seed: 7, ..options(Blocks::Residual) });
    assert!(other.1 != one.1, "the seed changes nothing");
}

#[test]
fn weights_without_steps_stay() {
    let nf4 = config(Format::NF4, Mapping::Symmetric, Per::Channel, false);
    let int3 = QConfig { activation: None, ..int3() };
    let mapping = QConfigMapping::global(int3).with(Target::name("one").unwrap(), Some(nf4));
    let before = prepare(&model(), &mapping).unwrap();
    let (after, report) = run(&before, &options(Blocks::Residual));
    let weights: Vec<&String> = report.iter().flat_map(|r| &r.weights).collect();
    assert_eq!(weights, ["first.weight", "two.weight", "last.weight"]);
    assert!(after.points().iter().all(|p| p.chosen.is_some() == (p.name != "one.weight")));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let good = || options(Blocks::Layers);
    let refused = |options: &AdaroundOptions, data: Vec<Result<Vec<Tensor>>>| {
        adaround(&prepared(int3()), data.into_iter(), options, &mut |_| Ok(())).err().map(|e| e.to_string())
    };
    let wide = || vec![Ok(vec![values(1, &[2, 9])])];
    let infinite = || vec![Ok(vec![Tensor::full(&[2, 8], f32::INFINITY).unwrap()])];
    for (options, data, want) in [
        (AdaroundOptions { rate: 0.0, ..good() }, batches().collect(), "rate"),
        (AdaroundOptions { lambda: f32::NAN, ..good() }, batches().collect(), "lambda"),
        (AdaroundOptions { beta: (20.0, 1.0), ..good() }, batches().collect(), "beta"),
        (AdaroundOptions { warm_up: 1.0, ..good() }, batches().collect(), "warm_up"),
        (AdaroundOptions { steps: 0, ..good() }, batches().collect(), "steps"),
        (good(), vec![], "empty"),
        (good(), wide(), "batch 0"),
        (good(), infinite(), "start"),
    ] {
        let error = refused(&options, data).unwrap_or_default();
        assert!(error.contains(want), "{want}: {error}");
    }
    let nearest = QConfig { weight: int3().weight.rounded_by(Rounding::Nearest), ..int3() };
    let unasked = adaround(&prepared(nearest), batches(), &good(), &mut |_| Ok(()));
    assert!(unasked.unwrap_err().to_string().contains("no rule asks"));
    let stopped = adaround(&prepared(int3()), batches(), &good(), &mut |_| Err(invalid!("stop")));
    assert!(stopped.unwrap_err().to_string().contains("stop"));
}
