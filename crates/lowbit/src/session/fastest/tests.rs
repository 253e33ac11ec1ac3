use super::*;
use crate::op::{Dim, Fact};
use crate::ops::linear::Gemm;
use crate::ops::unary::Unary;
use crate::qconfig::{QConfigMapping, preset};
use crate::quantize::prepare;
use crate::tensor::DType;

fn units(costs: &[(u64, u64)]) -> Vec<Unit> {
    costs.iter().enumerate().map(|(i, &(int, float))| Unit { name: i.to_string(), int, float }).collect()
}

#[test]
fn the_cheapest_choice_weighs_borders() {
    let chain =
        |cost: u64, n: usize| -> Vec<Border> { (1..n).map(|i| Border { units: [i - 1, i], cost }).collect() };
    for (costs, border, want) in [
        (vec![(1, 5), (1, 5)], 1, vec![]),
        (vec![(5, 1), (5, 1)], 1, vec![0, 1]),
        // Worth its borders, and not.
        (vec![(1, 9), (9, 1), (1, 9)], 2, vec![1]),
        (vec![(1, 9), (9, 1), (1, 9)], 5, vec![]),
        // What must be float takes its neighbours along where borders are dear.
        (vec![(1, 3), (NEVER, 4), (1, 3)], 1, vec![1]),
        (vec![(1, 3), (NEVER, 4), (1, 3)], 4, vec![0, 1, 2]),
        (vec![(0, 0), (2, 7)], 3, vec![]),
    ] {
        let found = cheapest(&units(&costs), &chain(border, costs.len()));
        let total = |float: &[usize]| -> u64 {
            let cost = |i: usize| if float.contains(&i) { costs[i].1 } else { costs[i].0 };
            let borders = (1..costs.len()).filter(|i| float.contains(i) != float.contains(&(i - 1)));
            (0..costs.len()).map(cost).sum::<u64>() + borders.count() as u64 * border
        };
        assert_eq!(total(&found), total(&want), "{costs:?} with {border}: {found:?}");
    }
}

#[test]
fn the_cut_is_the_least_of_all() {
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for round in 0..200 {
        let n = 1 + random(7) as usize;
        let units = units(&(0..n).map(|_| (random(10), random(10))).collect::<Vec<_>>());
        let borders: Vec<Border> = (0..random(9))
            .map(|_| Border {
                units: [random(n as u64) as usize, random(n as u64) as usize],
                cost: random(6),
            })
            .collect();
        let cost = |float: usize| -> u64 {
            let is_float = |i: usize| float >> i & 1 == 1;
            let units = units.iter().enumerate().map(|(i, u)| if is_float(i) { u.float } else { u.int });
            let crossed = borders.iter().filter(|b| is_float(b.units[0]) != is_float(b.units[1]));
            units.sum::<u64>() + crossed.map(|b| b.cost).sum::<u64>()
        };
        let least = (0..1 << n).map(cost).min().unwrap();
        let found = cheapest(&units, &borders).iter().fold(0, |set, i| set | 1 << i);
        assert_eq!(cost(found), least, "round {round}: {units:?} {borders:?}");
    }
}

/// Three products, each with a Relu.
fn quantized() -> (Graph, Graph, [Tensor; 1]) {
    let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
    let mut b = Builder::default();
    let mut y = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(8)]));
    for i in 0..3 {
        let w = b.constant(&format!("w{i}"), Tensor::new(&[8, 8], wave(64, 1.7 + i as f32)).unwrap());
        y = b.apply(&format!("g{i}"), Arc::new(Gemm::default()), &[y, w]).unwrap();
        y = b.apply(&format!("r{i}"), Arc::new(Unary::Relu), &[y]).unwrap();
    }
    let float = b.finish([("y".to_string(), y)]).unwrap();
    let x = [Tensor::new(&[4, 8], wave(32, 0.9)).unwrap()];
    let mut prepared = prepare(&float, &QConfigMapping::global(preset("default").unwrap())).unwrap();
    prepared.calibrate(std::iter::once(Ok(x.to_vec())), &|_| Ok(())).unwrap();
    (float, prepared.convert().unwrap().graph, x)
}

#[test]
fn nodes_in_float_read_unrounded_values() {
    let (float, quantized, x) = quantized();
    let set = |names: &[&str]| -> HashSet<Var> {
        let named = quantized.applied().filter(|(_, node, ..)| names.contains(&&*node.name));
        named.map(|(v, ..)| v).collect()
    };
    let linear = |g: &Graph| g.applied().filter(|(_, _, op, _)| op.name() == "QuantizeLinear").count();
    let coverage = |g: &Graph| Session::compile(g).unwrap().report().integer_nodes;
    for (names, quantizes, products) in [
        (&[] as &[&str], 3, 3),
        // Its operand is still read as codes' values, its result by a product of codes.
        (&["g1", "r1"], 3, 2),
        (&["g1", "r1", "g2", "r2"], 2, 1),
        (&["g0", "r0", "g1", "r1", "g2", "r2"], 0, 0),
    ] {
        let graph = in_float(&quantized, &set(names)).unwrap();
        assert_eq!(linear(&graph), quantizes, "{names:?}\n{graph}");
        let session = Session::compile(&graph).unwrap();
        let integer = session.graph().applied().filter(|(_, _, op, _)| op.name() == "QLinear").count();
        assert_eq!(integer, products, "{names:?}\n{}", session.graph());
        assert!(coverage(&graph) >= products);
        let (found, want) = (session.run(&x).unwrap().remove(0), float.run(&x).unwrap().remove(0));
        let (found, want): (&[f32], &[f32]) = (found.slice().unwrap(), want.slice().unwrap());
        let greatest = want.iter().fold(0f32, |a, x| a.max(x.abs()));
        let worst = found.iter().zip(want).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst < 0.05 * greatest, "{names:?}: {worst} of {greatest}\n{graph}");
    }
}

#[test]
fn whatever_is_fastest_runs_and_is_reported() {
    let (_, quantized, x) = quantized();
    let session = Session::compile_fastest(&quantized, &x).unwrap();
    let report = session.report();
    assert_eq!(report.macs, quantized.macs());
    let moved = report.fallbacks.iter().any(|f| f.reason.starts_with("float is faster"));
    assert_eq!(report.coverage() < 1.0, moved, "{report}");
    let (found, want) = (session.run(&x).unwrap().remove(0), quantized.run(&x).unwrap().remove(0));
    let (found, want): (&[f32], &[f32]) = (found.slice().unwrap(), want.slice().unwrap());
    let greatest = want.iter().fold(0f32, |a, x| a.max(x.abs()));
    assert!(found.iter().zip(want).all(|(a, b)| (a - b).abs() < 0.05 * greatest));
}
