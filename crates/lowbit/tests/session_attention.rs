//! A transformer's encoder block in the int8 engine.

use std::sync::Arc;

use lowbit::graph::{Builder, Graph, Var};
use lowbit::op::{Dim, Fact, Op};
use lowbit::ops::binary::Arithmetic;
use lowbit::ops::layout::Transpose;
use lowbit::ops::linear::MatMul;
use lowbit::ops::norm::LayerNormalization;
use lowbit::ops::shape::Reshape;
use lowbit::ops::softmax::Softmax;
use lowbit::ops::unary::Unary;
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::quantize::{fuse, prepare};
use lowbit::session::Session;
use lowbit::{DType, Tensor};

const HEADS: usize = 3;
const WIDTH: usize = 48;
const INNER: usize = 80;

/// Values between -1 and 1 without a pattern.
fn noise(shape: &[usize], seed: u64) -> Tensor {
    let n = shape.iter().product::<usize>() as u64;
    let value =
        |i: u64| ((i * 2 + 1 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8_388_608.0 - 1.0;
    Tensor::new(shape, (0..n).map(value).collect()).unwrap()
}

struct Block(Builder);

impl Block {
    fn apply(&mut self, name: &str, op: impl Op, inputs: &[Var]) -> Var {
        self.0.apply(name, Arc::new(op), inputs).unwrap()
    }

    fn linear(&mut self, name: &str, x: Var, from: usize, to: usize) -> Var {
        let seed = name.len() as u64 * 77;
        let w = self.0.constant(&format!("{name}_w"), noise(&[from, to], seed));
        let bias = self.0.constant(&format!("{name}_b"), noise(&[to], seed + 1));
        let product = self.apply(&format!("{name}_product"), MatMul, &[x, w]);
        self.apply(name, Arithmetic::Add, &[product, bias])
    }

    fn reshaped(&mut self, name: &str, x: Var, shape: &[i64]) -> Var {
        let shape = self.0.constant(&format!("{name}_shape"), Tensor::vector(shape.to_vec()));
        self.apply(name, Reshape { allowzero: false }, &[x, shape])
    }

    fn transposed(&mut self, name: &str, x: Var, perm: [usize; 4]) -> Var {
        self.apply(name, Transpose { perm: Some(perm.to_vec()) }, &[x])
    }

    fn heads(&mut self, name: &str, x: Var, perm: [usize; 4]) -> Var {
        let y = self.linear(&format!("{name}_linear"), x, WIDTH, WIDTH);
        let y = self.reshaped(&format!("{name}_heads"), y, &[0, 0, HEADS as i64, -1]);
        self.transposed(name, y, perm)
    }

    fn norm(&mut self, name: &str, x: Var) -> Var {
        let scale = self.0.constant(&format!("{name}_scale"), noise(&[WIDTH], 5));
        let shift = self.0.constant(&format!("{name}_shift"), noise(&[WIDTH], 6));
        self.apply(name, LayerNormalization { axis: -1, epsilon: 1e-5, centred: true }, &[x, scale, shift])
    }

    fn scaled(&mut self, name: &str, op: Arithmetic, x: Var, by: f32) -> Var {
        let by = self.0.constant(&format!("{name}_by"), Tensor::scalar(by));
        self.apply(name, op, &[x, by])
    }
}

/// BERT's encoder block, small, with any number of tokens.
fn block() -> Graph {
    let mut b = Block(Builder::default());
    let named = |name: &str| Dim::Named(name.into());
    let x = b.0.input("x", Fact::new(DType::F32, [named("N"), named("T"), Dim::Known(WIDTH)]));
    let (q, k) = (b.heads("q", x, [0, 2, 1, 3]), b.heads("key", x, [0, 2, 3, 1]));
    let v = b.heads("value", x, [0, 2, 1, 3]);
    let scores = b.apply("scores", MatMul, &[q, k]);
    let scores = b.scaled("scaled", Arithmetic::Mul, scores, 0.1);
    let attention = b.apply("attention", Softmax::new(-1), &[scores]);
    let y = b.apply("values", MatMul, &[attention, v]);
    let y = b.transposed("together", y, [0, 2, 1, 3]);
    let y = b.reshaped("joined", y, &[0, 0, WIDTH as i64]);
    let y = b.linear("out", y, WIDTH, WIDTH);
    let y = b.apply("first_sum", Arithmetic::Add, &[x, y]);
    let x = b.norm("first_norm", y);
    let y = b.linear("within", x, WIDTH, INNER);
    let half = b.scaled("half", Arithmetic::Mul, y, 0.5);
    let root = b.scaled("root", Arithmetic::Mul, y, std::f32::consts::FRAC_1_SQRT_2);
    let erf = b.apply("erf", Unary::Erf, &[root]);
    let one = b.scaled("one", Arithmetic::Add, erf, 1.0);
    let gelu = b.apply("gelu", Arithmetic::Mul, &[half, one]);
    let y = b.linear("outside", gelu, INNER, WIDTH);
    let y = b.apply("second_sum", Arithmetic::Add, &[x, y]);
    let y = b.norm("second_norm", y);
    b.0.finish([("y".to_string(), y)]).unwrap()
}

fn quantized() -> Graph {
    let mapping = QConfigMapping::global(preset("default").unwrap());
    let mut prepared = prepare(&fuse(&block()).unwrap(), &mapping).unwrap();
    prepared.observe(&[noise(&[2, 20, WIDTH], 9)]).unwrap();
    prepared.convert().unwrap().graph
}

#[test]
fn both_products_of_attention_are_quantized_and_run_in_integers() {
    let session = Session::compile(&quantized()).unwrap();
    let report = session.report();
    assert_eq!(report.integer_macs, report.macs, "{report}");
    let floats: Vec<&str> = report.fallbacks.iter().map(|f| f.op.as_str()).collect();
    assert_eq!(floats, ["Softmax", "LayerNormalization", "LayerNormalization"], "{report}");
    // Only the transpose of the result is left: the operands are read where they lie.
    let names = session.graph().applied().filter(|(_, _, op, _)| op.name() == "Transpose");
    assert_eq!(names.map(|(_, node, ..)| node.name.as_str()).collect::<Vec<_>>(), ["together"]);
}

#[test]
fn the_engine_is_near_the_simulation() {
    let graph = quantized();
    let session = Session::compile(&graph).unwrap();
    for tokens in [1, 7, 33] {
        let x = [noise(&[2, tokens, WIDTH], 10)];
        let (got, want) = (session.run(&x).unwrap(), graph.run(&x).unwrap());
        let (got, want) = (got[0].to_f32().unwrap(), want[0].to_f32().unwrap());
        let power = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let error: Vec<f32> = got.iter().zip(&want).map(|(a, b)| a - b).collect();
        assert!(
            power(&error) < 1e-3 * power(&want),
            "{tokens} tokens: {} of {}",
            power(&error),
            power(&want)
        );
    }
}

#[test]
fn a_float_block_is_computed_as_the_reference_does() {
    let (graph, x) = (block(), [noise(&[2, 19, WIDTH], 12)]);
    let session = Session::compile(&graph).unwrap();
    assert_eq!(session.run(&x).unwrap(), graph.run(&x).unwrap());
}

#[test]
fn plans_compute_what_the_nodes_do_and_steady_runs_allocate_nothing() {
    for (kind, graph) in [("int8", quantized()), ("float", block())] {
        let session = Session::compile(&graph).unwrap();
        let x = [noise(&[2, 19, WIDTH], 11)];
        let want = session.run_with(&x, |_, _, _| Ok(())).unwrap();
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut y = session.run(&x).unwrap();
                session.run_into(&x, &mut y).unwrap();
                let steady = allocation_counter::measure(|| session.run_into(&x, &mut y).unwrap());
                assert_eq!(y, want, "{kind}, {threads} threads");
                assert_eq!(steady.count_total, 0, "{kind}, {threads} threads");
            });
        }
    }
}
