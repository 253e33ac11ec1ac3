//! What the engine plans: the same values as node by node, in memory that
//! steady runs reuse.

mod assets;
#[allow(dead_code, reason = "other tests evaluate the models too")]
#[path = "assets/models.rs"]
mod models;

use lowbit::graph::{Builder, Graph};
use lowbit::op::{Dim, Fact};
use lowbit::ops::binary::Arithmetic;
use lowbit::ops::conv::Conv;
use lowbit::ops::layout::{Concat, Transpose};
use lowbit::ops::linear::MatMul;
use lowbit::ops::shape::{Flatten, Identity};
use lowbit::ops::unary::Unary;
use lowbit::ops::window::{Padding, Window};
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::quantize::{fuse, prepare};
use lowbit::session::Session;
use lowbit::{DType, Result, Tensor};
use models::{CLASSIFIERS, inputs};
use std::sync::Arc;

/// The outputs of a run node by node.
fn node_by_node(session: &Session, x: &[Tensor]) -> Vec<Tensor> {
    session.run_with(x, |_, _, _| Ok(())).unwrap()
}

/// The int8 forms of the real models, with inputs.
fn real_models() -> Vec<(&'static str, Session, Vec<Tensor>)> {
    let Some(assets) = assets::find("plans_compute_what_the_nodes_do") else { return vec![] };
    let load = |c: &models::Classifier| -> Result<(Session, Vec<Tensor>)> {
        let mut prepared = prepare(&fuse(&c.load(&assets)?)?, &QConfigMapping::global(preset("default")?))?;
        let data = c.calibration(&assets)?;
        let x = inputs(data.batches(c.batch).next().expect("a batch"))?;
        prepared.observe(&x)?;
        Ok((Session::compile(&prepared.convert()?.graph)?, x))
    };
    CLASSIFIERS.iter().map(|c| load(c).map(|(s, x)| (c.name, s, x)).unwrap()).collect()
}

#[test]
fn plans_compute_what_the_nodes_do_and_steady_runs_allocate_nothing() {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let two = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let mut failures = vec![];
    for (name, session, x) in real_models() {
        let want = node_by_node(&session, &x);
        for pool in [&one, &two] {
            let threads = pool.current_num_threads();
            pool.install(|| {
                let mut y = session.run(&x).unwrap();
                session.run_into(&x, &mut y).unwrap();
                let steady = allocation_counter::measure(|| {
                    session.run_into(&x, &mut y).unwrap();
                    session.run_into(&x, &mut y).unwrap();
                });
                if y != want {
                    failures.push(format!("{name}, {threads} threads: other values than node by node"));
                }
                if steady.count_total != 0 {
                    failures.push(format!("{name}, {threads} threads: {} allocations", steady.count_total));
                }
            });
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn ramp(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    Tensor::new(shape, (0..n).map(|i| (i * 37 % 101) as f32 - 50.0).collect()).unwrap()
}

/// Joins of every kind: parts used twice, aliased, constant, nested, inputs, and
/// along an inner axis.
fn joins() -> Graph {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), Dim::Known(2), Dim::Known(3)]));
    let t = b.apply("t", Arc::new(Transpose { perm: Some(vec![0, 2, 1]) }), &[x]).unwrap();
    let back = b.apply("back", Arc::new(Transpose { perm: Some(vec![0, 2, 1]) }), &[t]).unwrap();
    let alias = b.apply("alias", Arc::new(Identity), &[back]).unwrap();
    let again = b.apply("again", Arc::new(Transpose { perm: Some(vec![0, 2, 1]) }), &[t]).unwrap();
    let last = b.apply("last", Arc::new(Concat { axis: 2 }), &[x, again, back, back]).unwrap();
    let middle = b.apply("middle", Arc::new(Concat { axis: 1 }), &[alias, x]).unwrap();
    let relu = b.apply("relu", Arc::new(Unary::Relu), &[middle]).unwrap();
    let nested = b.apply("nested", Arc::new(Concat { axis: -1 }), &[relu, middle]).unwrap();
    let first = b.apply("first", Arc::new(Concat { axis: 0 }), &[nested, nested]).unwrap();
    let sum = b.apply("sum", Arc::new(Arithmetic::Add), &[first, first]).unwrap();
    b.finish([("last".to_string(), last), ("sum".to_string(), sum), ("copy".to_string(), alias)]).unwrap()
}

#[test]
fn joined_values_lie_where_they_belong() {
    let graph = joins();
    let session = Session::compile(&graph).unwrap();
    for n in [1, 3, 0, 1] {
        let x = [ramp(&[n, 2, 3])];
        assert_eq!(session.run(&x).unwrap(), graph.run(&x).unwrap(), "batch {n}");
    }
}

#[test]
fn several_threads_run_one_session() {
    let session = Session::compile(&joins()).unwrap();
    let x: Vec<[Tensor; 1]> = (1..=4).map(|n| [ramp(&[n, 2, 3])]).collect();
    let want: Vec<_> = x.iter().map(|x| session.run(x).unwrap()).collect();
    std::thread::scope(|s| {
        for (x, want) in x.iter().zip(&want) {
            let session = &session;
            s.spawn(move || (0..50).for_each(|_| assert_eq!(&session.run(x).unwrap(), want)));
        }
    });
}

#[test]
fn outputs_are_written_into_tensors_of_any_shape() {
    let session = Session::compile(&joins()).unwrap();
    let x = [ramp(&[2, 2, 3])];
    let want = session.run(&x).unwrap();
    let mut y = vec![ramp(&[1]), want[1].clone(), ramp(&[2, 2, 3])];
    session.run_into(&x, &mut y).unwrap();
    assert_eq!(y, want);
    let error = session.run_into(&x, &mut y[..2]).unwrap_err().to_string();
    assert!(error.contains("3 outputs, and 2 tensors"), "{error}");
}

/// Images to classes, each by itself.
fn classifier() -> Graph {
    let mut b = Builder::default();
    let shape = [Dim::Named("N".into()), Dim::Known(3), Dim::Known(8), Dim::Known(8)];
    let x = b.input("x", Fact::new(DType::F32, shape));
    let filters = b.constant("filters", ramp(&[20, 3, 3, 3]));
    let window = Window { padding: Padding::Explicit(vec![(1, 1); 2]), ..Window::default() };
    let conv = b.apply("conv", Arc::new(Conv { window, group: 1, kernel: None }), &[x, filters]).unwrap();
    let relu = b.apply("relu", Arc::new(Unary::Relu), &[conv]).unwrap();
    let flat = b.apply("flat", Arc::new(Flatten { axis: 1 }), &[relu]).unwrap();
    let weights = b.constant("weights", ramp(&[20 * 8 * 8, 5]));
    let y = b.apply("y", Arc::new(MatMul), &[flat, weights]).unwrap();
    b.finish([("relu".to_string(), relu), ("y".to_string(), y)]).unwrap()
}

#[test]
fn batches_in_parts_are_what_each_sample_is() {
    let session = Session::compile(&classifier()).unwrap();
    let image = 3 * 8 * 8;
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for n in [0usize, 1, 2, 7, 9, 12] {
            let x = ramp(&[n, 3, 8, 8]);
            let one = |i: usize| {
                let sample = x.slice::<f32>().unwrap()[i * image..][..image].to_vec();
                session.run(&[Tensor::new(&[1, 3, 8, 8], sample).unwrap()]).unwrap()
            };
            let alone: Vec<Vec<Tensor>> = (0..n).map(one).collect();
            pool.install(|| {
                let mut got = session.run(std::slice::from_ref(&x)).unwrap();
                for round in 0..2 {
                    for (i, got) in got.iter().enumerate() {
                        let values = |y: &Vec<Tensor>| y[i].slice::<f32>().unwrap().to_vec();
                        let want: Vec<f32> = alone.iter().flat_map(values).collect();
                        let case = format!("{threads} threads, {n} images, output {i}, round {round}");
                        assert_eq!(got.slice::<f32>().unwrap(), want, "{case}");
                        assert_eq!(got.shape()[0], n, "{case}");
                    }
                    session.run_into(std::slice::from_ref(&x), &mut got).unwrap();
                }
                let mut macs = 0;
                session.time(std::slice::from_ref(&x), &mut |t| macs += t.macs).unwrap();
                assert_eq!(macs, (n * (20 * 27 * 64 + 20 * 64 * 5)) as u64, "{threads} threads, {n} images");
            });
        }
    }
}
