//! Gradients are those of torch's autograd (`tests/golden/gradients_ops.py`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lowbit::data::npz;
use lowbit::graph::{Builder, Var};
use lowbit::op::{Fact, Op};
use lowbit::ops::binary::{Arithmetic, Variadic};
use lowbit::ops::clip::Clip;
use lowbit::ops::compare::Where;
use lowbit::ops::einsum::Einsum;
use lowbit::ops::gather::{Gather, GatherElements};
use lowbit::ops::layout::{Concat, DepthToSpace, Split, Tile};
use lowbit::ops::pad::{Fill, Pad};
use lowbit::ops::recurrent::{Activation, Cell, Direction, Recurrent};
use lowbit::ops::reduce::{Reduce, Reduction};
use lowbit::ops::slice::Slice;
use lowbit::ops::softmax::Softmax;
use lowbit::ops::topk::TopK;
use lowbit::ops::unary::Unary;
use lowbit::{DType, Tensor};

/// A graph as it is built: each node gets a name of its own.
struct Trace {
    b: Builder,
    nodes: usize,
}

impl Trace {
    fn name(&mut self) -> String {
        self.nodes += 1;
        format!("node{}", self.nodes)
    }

    fn apply(&mut self, op: impl Op, x: &[Var]) -> Var {
        let name = self.name();
        self.b.apply(&name, Arc::new(op), x).unwrap()
    }

    /// The first `count` results.
    fn apply_all(&mut self, op: impl Op, x: &[Var], count: usize) -> Vec<Var> {
        let name = self.name();
        let results: Vec<String> = (0..count).map(|i| format!("{name}.{i}")).collect();
        let results: Vec<&str> = results.iter().map(String::as_str).collect();
        self.b.apply_all(&name, Arc::new(op), x, &results).unwrap()
    }

    fn constant(&mut self, t: Tensor) -> Var {
        let name = self.name();
        self.b.constant(&name, t)
    }

    fn list(&mut self, x: &[i64]) -> Var {
        self.constant(Tensor::vector(x.to_vec()))
    }

    fn scalar(&mut self, x: f32) -> Var {
        self.constant(Tensor::scalar(x))
    }

    fn einsum(&mut self, equation: &str, x: &[Var]) -> Var {
        self.apply(Einsum::new(equation).unwrap(), x)
    }
}

/// The results of one case, of its operands.
type Build = fn(&mut Trace, &[Var]) -> Vec<Var>;

/// A case that is one operator.
macro_rules! one {
    ($op:expr) => {
        |t, x| vec![t.apply($op, x)]
    };
}

const ELEMENTWISE: &[(&str, Build)] = &[
    ("relu6", one!(Clip::new(0.0, 6.0))),
    ("leaky_relu", one!(Unary::LeakyRelu { alpha: 0.1 })),
    ("elu", one!(Unary::Elu { alpha: 1.3 })),
    ("selu", one!(Unary::Selu { alpha: 1.673_263_2, gamma: 1.050_701 })),
    ("celu", one!(Unary::Celu { alpha: 0.7 })),
    ("gelu", one!(Unary::Gelu { tanh: false })),
    ("gelu_tanh", one!(Unary::Gelu { tanh: true })),
    ("hardswish", one!(Unary::HardSwish)),
    ("hardsigmoid", one!(Unary::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 })),
    ("silu", |t, x| {
        let gate = t.apply(Unary::Sigmoid, x);
        vec![t.apply(Arithmetic::Mul, &[x[0], gate])]
    }),
    ("tanh", one!(Unary::Tanh)),
    ("mish", one!(Unary::Mish)),
    ("softplus", one!(Unary::Softplus)),
    ("softsign", one!(Unary::Softsign)),
    ("erf", one!(Unary::Erf)),
    ("prelu", |t, x| {
        let shape = t.list(&[3, 1, 1]);
        let slope = t.apply(lowbit::ops::shape::Reshape::default(), &[x[1], shape]);
        vec![t.apply(Arithmetic::PRelu, &[x[0], slope])]
    }),
    ("maximum", one!(Variadic::Max)),
    ("broadcast", |t, x| {
        let sum = t.apply(Arithmetic::Add, &x[..2]);
        let above = t.apply(Arithmetic::Mul, &[sum, x[2]]);
        let square = t.apply(Arithmetic::Mul, &[x[1], x[1]]);
        let one = t.scalar(1.0);
        let below = t.apply(Arithmetic::Add, &[square, one]);
        vec![t.apply(Arithmetic::Div, &[above, below])]
    }),
    ("power", |t, x| {
        let two = t.scalar(2.0);
        let half = t.scalar(0.5);
        let square = t.apply(Arithmetic::Pow, &[x[0], two]);
        let base = t.apply(Arithmetic::Add, &[square, half]);
        vec![t.apply(Arithmetic::Pow, &[base, x[1]])]
    }),
    ("where", one!(Where)),
];

const MOVES: &[(&str, Build)] = &[
    ("pad_reflect", one!(Pad { pads: vec![1, 2, 3, 1], axes: Some(vec![2, 3]), fill: Fill::Reflect })),
    ("pad_edge", one!(Pad { pads: vec![0, 2, 3, 1], axes: Some(vec![2, 3]), fill: Fill::Edge })),
    ("tile", |t, x| {
        let repeats = t.list(&[1, 2, 1, 3]);
        vec![t.apply(Tile, &[x[0], repeats])]
    }),
    ("concat", one!(Concat { axis: 1 })),
    ("split", |t, x| {
        let sizes = t.list(&[2, 3]);
        t.apply_all(Split { axis: 3, parts: 2, listed: true }, &[x[0], sizes], 2)
    }),
    ("pixel_shuffle", one!(DepthToSpace { block: 2, channel_first: true })),
    ("slice", |t, x| {
        let lists = [&[1, 0, 0][..], &[i64::MAX, i64::MAX, -1], &[1, 2, 3], &[1, 2, 1]].map(|l| t.list(l));
        vec![t.apply(Slice, &[&[x[0]], &lists[..]].concat())]
    }),
    ("embedding", |t, x| vec![t.apply(Gather { axis: 0 }, &[x[1], x[0]])]),
    ("take", |t, x| vec![t.apply(GatherElements { axis: 1 }, &[x[1], x[0]])]),
    ("topk", |t, x| {
        let k = t.list(&[2]);
        vec![t.apply(TopK { axis: 2, largest: true }, &[x[0], k])]
    }),
];

fn reduced(t: &mut Trace, x: &[Var], to: Reduction, axes: &[i64]) -> Vec<Var> {
    vec![t.apply(Reduce { keepdims: false, ..Reduce::new(to, axes) }, x)]
}

const REDUCTIONS: &[(&str, Build)] = &[
    ("softmax", one!(Softmax::new(-1))),
    ("softmax_1", one!(Softmax::new(1))),
    ("log_softmax", one!(Softmax { axis: 1, log: true })),
    ("mean", |t, x| reduced(t, x, Reduction::Mean, &[1, 2])),
    ("amax", |t, x| reduced(t, x, Reduction::Max, &[1])),
    ("prod", |t, x| reduced(t, x, Reduction::Prod, &[2])),
    ("norm", |t, x| reduced(t, x, Reduction::L2, &[1])),
    ("logsumexp", |t, x| reduced(t, x, Reduction::LogSumExp, &[0, 2])),
];

/// Operands x, W, R, B and the first states.
fn recurrent(
    t: &mut Trace,
    x: &[Var],
    cell: Cell,
    functions: &[Activation],
    direction: Direction,
) -> Vec<Var> {
    let both = direction == Direction::Bidirectional;
    let activations = functions.repeat(if both { 2 } else { 1 });
    let absent = t.b.absent();
    let operands = [&x[..4], &[absent], &x[4..]].concat();
    let op = Recurrent { cell, direction, hidden: None, activations, clip: None, batch_first: false };
    t.apply_all(op, &operands, x.len() - 3)
}

/// A layer of this cell and these functions.
macro_rules! layer {
    ($cell:expr, $functions:expr, $direction:ident) => {
        |t, x| recurrent(t, x, $cell, $functions, Direction::$direction)
    };
}

const LSTM: Cell = Cell::Lstm { input_forget: false };
const GRU: Cell = Cell::Gru { linear_before_reset: true };
const OF_LSTM: &[Activation] = &[Activation::Sigmoid, Activation::Tanh, Activation::Tanh];
const OF_GRU: &[Activation] = &[Activation::Sigmoid, Activation::Tanh];
const OF_RNN: &[Activation] = &[Activation::Tanh];

const LAYERS: &[(&str, Build)] = &[
    ("lstm", layer!(LSTM, OF_LSTM, Forward)),
    ("lstm_both", layer!(LSTM, OF_LSTM, Bidirectional)),
    ("gru", layer!(GRU, OF_GRU, Forward)),
    ("gru_both", layer!(GRU, OF_GRU, Bidirectional)),
    ("rnn", layer!(Cell::Rnn, OF_RNN, Forward)),
    ("rnn_both", layer!(Cell::Rnn, OF_RNN, Bidirectional)),
    ("einsum", |t, x| vec![t.einsum("bhij,bhjk,hkd->bid", x)]),
    ("attention", attention),
];

/// A block of a transformer without normalization.
fn attention(t: &mut Trace, given: &[Var]) -> Vec<Var> {
    let &[x, q, k, v, out, up, down, seen] = given else { panic!("8 operands") };
    let [q, k, v] = [q, k, v].map(|w| t.einsum("btd,dhk->bhtk", &[x, w]));
    let products = t.einsum("bhik,bhjk->bhij", &[q, k]);
    let half = t.scalar(0.5);
    let scores = t.apply(Arithmetic::Mul, &[products, half]);
    let hidden = t.scalar(-1e4);
    let scores = t.apply(Where, &[seen, scores, hidden]);
    let parts = t.apply(Softmax::new(-1), &[scores]);
    let attended = t.einsum("bhij,bhjk,hkd->bid", &[parts, v, out]);
    let x = t.apply(Arithmetic::Add, &[x, attended]);
    let wide = t.einsum("btd,df->btf", &[x, up]);
    let wide = t.apply(Unary::Gelu { tanh: false }, &[wide]);
    let narrow = t.einsum("btf,fd->btd", &[wide, down]);
    vec![t.apply(Arithmetic::Add, &[x, narrow])]
}

/// The greatest difference, relative to the greatest magnitude.
fn distance(found: &[f32], want: &[f32]) -> f32 {
    let most = want.iter().fold(f32::MIN_POSITIVE, |most, x| most.max(x.abs()));
    found.iter().zip(want).fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / most
}

/// The arrays `key0`, `key1` ... of a case.
fn numbered(arrays: &BTreeMap<String, Tensor>, name: &str, key: &str) -> Vec<Tensor> {
    (0..).map_while(|i| arrays.get(&format!("{name}.{key}{i}")).cloned()).collect()
}

fn check(name: &str, build: Build, arrays: &BTreeMap<String, Tensor>) -> Vec<String> {
    let [inputs, given, want] = ["x", "g", "d"].map(|key| numbered(arrays, name, key));
    assert!(!inputs.is_empty() && !given.is_empty() && !want.is_empty(), "{name} is not in the file");
    let mut t = Trace { b: Builder::default(), nodes: 0 };
    let operand = |(i, x): (usize, &Tensor)| {
        t.b.input(&format!("x{i}"), Fact::new(x.dtype(), x.shape().iter().copied()))
    };
    let operands: Vec<Var> = inputs.iter().enumerate().map(operand).collect();
    let results = build(&mut t, &operands);
    assert_eq!(results.len(), given.len(), "{name}");
    let named = results.into_iter().enumerate().map(|(i, y)| (format!("y{i}"), y));
    let graph = t.b.finish(named).unwrap();
    let wanted: Vec<Var> =
        graph.inputs().filter(|(_, x)| x.fact.dtype == DType::F32).map(|(v, _)| v).collect();
    let results: Vec<Var> = graph.outputs().map(|(_, y)| y).collect();
    let tape = graph.record(&inputs, &wanted).unwrap();
    let found = tape.backward(results.into_iter().zip(given)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(found.len(), want.len(), "{name}");
    let mut failures = vec![];
    for (i, (found, want)) in found.iter().zip(&want).enumerate() {
        let Some(found) = found else {
            failures.push(format!("{name}: no gradient by float operand {i}"));
            continue;
        };
        assert_eq!(found.shape(), want.shape(), "{name}, float operand {i}");
        let distance = distance(found.slice().unwrap(), want.slice().unwrap());
        if distance > 1e-4 || distance.is_nan() {
            failures.push(format!("{name}, float operand {i}: {distance}"));
        }
    }
    failures
}

#[test]
fn gradients_are_those_of_torch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gradients/ops.npz");
    let arrays: BTreeMap<String, Tensor> = npz::read(&path).unwrap().into_iter().collect();
    let cases: Vec<_> = [ELEMENTWISE, MOVES, REDUCTIONS, LAYERS].concat();
    let stored = arrays.keys().filter(|name| name.ends_with(".x0")).count();
    assert_eq!(cases.len(), stored, "cases that are stored and not checked");
    let failures: Vec<String> = cases.iter().flat_map(|(name, f)| check(name, *f, &arrays)).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
