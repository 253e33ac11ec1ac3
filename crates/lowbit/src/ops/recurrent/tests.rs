//! Recurrent operators against ONNX's formulas, one number at a time in f64.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn f64_of(f: Activation, x: f64) -> f64 {
    let d = f64::from;
    match f {
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Affine { alpha, beta } => d(alpha) * x + d(beta),
        Activation::LeakyRelu { alpha } => {
            if x < 0.0 {
                d(alpha) * x
            } else {
                x
            }
        }
        Activation::ThresholdedRelu { alpha } => {
            if x >= d(alpha) {
                x
            } else {
                0.0
            }
        }
        Activation::ScaledTanh { alpha, beta } => d(alpha) * (d(beta) * x).tanh(),
        Activation::HardSigmoid { alpha, beta } => (d(alpha) * x + d(beta)).clamp(0.0, 1.0),
        Activation::Elu { alpha } => {
            if x < 0.0 {
                d(alpha) * (x.exp() - 1.0)
            } else {
                x
            }
        }
        Activation::Softsign => x / (1.0 + x.abs()),
        Activation::Softplus => (1.0 + x.exp()).ln(),
    }
}

const ALL: [Activation; 11] = [
    Activation::Relu,
    Activation::Tanh,
    Activation::Sigmoid,
    Activation::Affine { alpha: 0.75, beta: -0.25 },
    Activation::LeakyRelu { alpha: 0.125 },
    // Continuous, so that a rounding error stays one.
    Activation::ThresholdedRelu { alpha: 0.0 },
    Activation::ScaledTanh { alpha: 1.5, beta: 0.75 },
    Activation::HardSigmoid { alpha: 0.25, beta: 0.375 },
    Activation::Elu { alpha: 0.5 },
    Activation::Softsign,
    Activation::Softplus,
];

#[test]
fn activations_are_their_formulas() {
    let mut failures = vec![];
    for f in ALL.into_iter().chain([Activation::ThresholdedRelu { alpha: 0.5 }]) {
        for x in [-90.0f32, -7.5, -1.0, -0.3, -0.0, 0.0, 0.25, 0.5, 0.7, 3.0, 40.0] {
            let (mut found, want) = ([x], f64_of(f, f64::from(x)));
            f.apply(&mut found);
            if (f64::from(found[0]) - want).abs() > 3e-7 * want.abs().max(0.1) {
                failures.push(format!("{f:?} of {x}: {}, not {want}", found[0]));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Operands of one case; sizes are `[steps, batch, input, hidden]`.
#[derive(Clone, Debug)]
struct Case {
    op: Recurrent,
    sizes: [usize; 4],
    lengths: Option<Vec<i32>>,
    /// Which of B, initial_h, initial_c and P are given.
    given: [bool; 4],
    seed: u64,
}

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let n = shape.iter().product::<usize>() as u64;
    let value = |i: u64| {
        let mixed = (i * 2 + 1 + seed * 1_000_003).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40
    };
    Tensor::new(shape, (0..n).map(|i| value(i) as f32 / 8_388_608.0 - 1.0).collect()).unwrap()
}

impl Case {
    fn operands(&self) -> Vec<Tensor> {
        let [t, n, i, h] = self.sizes;
        let (d, g) = (self.op.direction.count(), self.op.cell.gates());
        let absent = || Tensor::vector(Vec::<f32>::new());
        let mut all = vec![
            noise(&self.op.laid_out([t, n, i]), self.seed),
            noise(&[d, g * h, i], self.seed + 1),
            noise(&[d, g * h, h], self.seed + 2),
            noise(&[d, 2 * g * h], self.seed + 3),
            self.lengths.clone().map_or_else(absent, Tensor::vector),
            noise(&self.op.laid_out([d, n, h]), self.seed + 4),
        ];
        if self.op.states() == 2 {
            all.push(noise(&self.op.laid_out([d, n, h]), self.seed + 5));
            all.push(noise(&[d, 3 * h], self.seed + 6));
        }
        for (at, given) in [3, 5, 6, 7].into_iter().zip(self.given) {
            if !given && at < all.len() {
                all[at] = absent();
            }
        }
        all
    }

    fn eval(&self) -> Result<Vec<Tensor>> {
        self.op.eval(&self.operands().iter().collect::<Vec<_>>())
    }

    /// The outputs by ONNX's formulas.
    fn definition(&self) -> Vec<Vec<f64>> {
        let [t, n, i, h] = self.sizes;
        let op = &self.op;
        let (d, g) = (op.direction.count(), op.cell.gates());
        let operands = self.operands();
        let read = |at: usize, k: usize| {
            operands
                .get(at)
                .filter(|t| !t.is_empty())
                .map_or(0.0, |t| f64::from(t.slice::<f32>().unwrap()[k]))
        };
        let first = op.batch_first;
        let x = |s: usize, b: usize, k: usize| {
            read(0, if first { (b * t + s) * i + k } else { (s * n + b) * i + k })
        };
        let at_state =
            |q: usize, b: usize, k: usize| if first { (b * d + q) * h + k } else { (q * n + b) * h + k };
        let at_y = |s: usize, q: usize, b: usize, k: usize| {
            if first { ((b * t + s) * d + q) * h + k } else { ((s * d + q) * n + b) * h + k }
        };
        let mut y = vec![0.0; t * d * n * h];
        let mut ends = vec![vec![0.0; d * n * h]; 2];
        for q in 0..d {
            let f = |which: usize, x: f64| {
                let clip = op.clip.map_or(f64::INFINITY, f64::from);
                f64_of(op.activations[q * op.cell.functions().len() + which], x.clamp(-clip, clip))
            };
            let w = |gate: usize, j: usize, x: &dyn Fn(usize) -> f64| -> f64 {
                let row = (q * g + gate) * h + j;
                (0..i).map(|k| read(1, row * i + k) * x(k)).sum::<f64>() + read(3, (2 * q * g + gate) * h + j)
            };
            let rb = |gate: usize, j: usize| read(3, ((2 * q + 1) * g + gate) * h + j);
            let r = |gate: usize, j: usize, state: &[f64]| -> f64 {
                let row = (q * g + gate) * h + j;
                (0..h).map(|k| read(2, row * h + k) * state[k]).sum::<f64>()
            };
            let p = |gate: usize, j: usize| read(7, (q * 3 + gate) * h + j);
            for b in 0..n {
                let mut state: Vec<f64> = (0..h).map(|k| read(5, at_state(q, b, k))).collect();
                let mut cell: Vec<f64> = (0..h).map(|k| read(6, at_state(q, b, k))).collect();
                let length = self.lengths.as_ref().map_or(t, |l| l[b] as usize);
                for step in 0..length {
                    let backward = q == 1 || op.direction == Direction::Reverse;
                    let s = if backward { length - 1 - step } else { step };
                    let x = |k: usize| x(s, b, k);
                    let gate = |gate: usize, j: usize| w(gate, j, &x) + r(gate, j, &state) + rb(gate, j);
                    let next: Vec<f64> = match op.cell {
                        Cell::Rnn => (0..h).map(|j| f(0, gate(0, j))).collect(),
                        Cell::Lstm { input_forget } => (0..h)
                            .map(|j| {
                                let i = f(0, gate(0, j) + p(0, j) * cell[j]);
                                let forget =
                                    if input_forget { 1.0 - i } else { f(0, gate(2, j) + p(2, j) * cell[j]) };
                                cell[j] = forget * cell[j] + i * f(1, gate(3, j));
                                f(0, gate(1, j) + p(1, j) * cell[j]) * f(2, cell[j])
                            })
                            .collect(),
                        Cell::Gru { linear_before_reset } => {
                            let reset: Vec<f64> = (0..h).map(|j| f(0, gate(1, j))).collect();
                            let damped: Vec<f64> = (0..h).map(|j| reset[j] * state[j]).collect();
                            (0..h)
                                .map(|j| {
                                    let of_state = match linear_before_reset {
                                        true => reset[j] * (r(2, j, &state) + rb(2, j)),
                                        false => r(2, j, &damped) + rb(2, j),
                                    };
                                    let (z, new) = (f(0, gate(0, j)), f(1, w(2, j, &x) + of_state));
                                    (1.0 - z) * new + z * state[j]
                                })
                                .collect()
                        }
                    };
                    state = next;
                    (0..h).for_each(|k| y[at_y(s, q, b, k)] = state[k]);
                }
                for (end, own) in ends.iter_mut().zip([&state, &cell]) {
                    (0..h).for_each(|k| end[at_state(q, b, k)] = own[k]);
                }
            }
        }
        ends.truncate(op.states());
        std::iter::once(y).chain(ends).collect()
    }
}

fn recurrent(cell: Cell, direction: Direction) -> Recurrent {
    let activations = cell.functions().repeat(direction.count());
    Recurrent { cell, direction, hidden: None, activations, clip: None, batch_first: false }
}

fn cells() -> impl Strategy<Value = Cell> {
    prop_oneof![
        any::<bool>().prop_map(|input_forget| Cell::Lstm { input_forget }),
        any::<bool>().prop_map(|linear_before_reset| Cell::Gru { linear_before_reset }),
        Just(Cell::Rnn),
    ]
}

fn directions() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::Forward), Just(Direction::Reverse), Just(Direction::Bidirectional)]
}

prop_compose! {
    fn cases()(
        cell in cells(),
        direction in directions(),
        functions in proptest::option::of(proptest::collection::vec(proptest::sample::select(&ALL[..]), 6)),
        clip in proptest::option::of(0.1f32..1.0),
        batch_first: bool,
        t in 0usize..6, n in 0usize..4, i in 1usize..5, h in 1usize..20,
        lengths in proptest::option::of(proptest::collection::vec(0i32..6, 4)),
        given: [bool; 4],
        seed in 0u64..1000,
    ) -> Case {
        let mut op = Recurrent { clip, batch_first, ..recurrent(cell, direction) };
        if let Some(functions) = functions {
            op.activations = functions[..op.activations.len()].to_vec();
        }
        let lengths = lengths.filter(|_| n > 0);
        let lengths = lengths.map(|l| l[..n].iter().map(|l| *l.min(&(t as i32))).collect());
        Case { op, sizes: [t, n, i, h], lengths, given, seed }
    }
}

proptest! {
    #[test]
    fn all_options_are_onnx_formulas(case in cases()) {
        let (found, want) = (case.eval().unwrap(), case.definition());
        prop_assert_eq!(found.len(), want.len());
        // With unbounded functions values grow, and errors with them.
        let most = want.iter().flatten().fold(1.0, |a: f64, b| a.max(b.abs()));
        prop_assume!(most < 100.0);
        let operands = case.operands();
        let made = case.op.infer(&symbolic::facts(&operands.iter().collect::<Vec<_>>()).iter().collect::<Vec<_>>());
        for (k, (fact, (found, want))) in made.unwrap().iter().zip(found.iter().zip(&want)).enumerate() {
            prop_assert_eq!(fact.known_shape().unwrap(), found.shape());
            for (a, b) in found.slice::<f32>().unwrap().iter().zip(want) {
                prop_assert!((f64::from(*a) - b).abs() <= 1e-4 * most, "output {k}: {a}, not {b}");
            }
        }
    }

    #[test]
    fn what_is_written_is_read_again(case in cases(), hidden in proptest::option::of(1usize..9)) {
        let op = Recurrent { hidden, ..case.op };
        let attributes: BTreeMap<String, Attribute> =
            op.attributes().into_iter().map(|(name, a)| (name.to_string(), a)).collect();
        let mut reading = Reading::new(op.name(), 14, attributes, vec![None; 3], 1);
        let again = crate::ops::reader("", op.name()).unwrap()(&mut reading).unwrap();
        reading.finish().unwrap();
        prop_assert_eq!((&*again as &dyn Op).is::<Recurrent>(), Some(&op));
    }
}

#[test]
fn values_worked_out_by_hand() {
    // h = relu(x - h / 2 + 1): 2, then 3 - 1 + 1 = 3, then -4 - 1.5 + 1.
    let op = Recurrent { activations: vec![Activation::Relu], ..recurrent(Cell::Rnn, Direction::Forward) };
    let one = |shape: &[usize], x: Vec<f32>| Tensor::new(shape, x).unwrap();
    let operands = [
        one(&[3, 1, 1], vec![1.0, 3.0, -4.0]),
        one(&[1, 1, 1], vec![1.0]),
        one(&[1, 1, 1], vec![-0.5]),
        one(&[1, 2], vec![0.75, 0.25]),
    ];
    let found = op.eval(&operands.each_ref()).unwrap();
    assert_eq!(found, [one(&[3, 1, 1, 1], vec![2.0, 3.0, 0.0]), one(&[1, 1, 1], vec![0.0])]);
}

/// A run over all steps is that over the first ones and, from its state on,
/// over the others, bit for bit, however many inputs are multiplied together.
#[test]
fn runs_are_taken_up_again() {
    for cell in [Cell::Lstm { input_forget: false }, Cell::Gru { linear_before_reset: true }, Cell::Rnn] {
        let op = recurrent(cell, Direction::Forward);
        let (steps, batch, half) = (900, 600, 450);
        let case = Case { op, sizes: [steps, batch, 1, 2], lengths: None, given: [true; 4], seed: 5 };
        let whole = case.eval().unwrap();
        let mut operands = case.operands();
        let x = operands[0].slice::<f32>().unwrap().to_vec();
        let mut y = vec![];
        let mut last = vec![];
        for part in x.chunks(half * batch) {
            operands[0] = Tensor::new(&[half, batch, 1], part.to_vec()).unwrap();
            last = case.op.eval(&operands.iter().collect::<Vec<_>>()).unwrap();
            y.extend_from_slice(last[0].slice::<f32>().unwrap());
            operands[5..5 + case.op.states()].clone_from_slice(&last[1..]);
        }
        assert_eq!(whole[0].slice::<f32>().unwrap(), y, "{cell:?}");
        assert_eq!(whole[1..], last[1..], "{cell:?}");
    }
}

#[test]
fn threads_do_not_show() {
    for cell in [Cell::Lstm { input_forget: false }, Cell::Gru { linear_before_reset: false }] {
        let op = recurrent(cell, Direction::Bidirectional);
        let case = Case { op, sizes: [5, 17, 70, 200], lengths: None, given: [true; 4], seed: 8 };
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.eval().unwrap())
        };
        assert!(run(1) == run(4), "{cell:?}");
    }
}

#[test]
fn other_float_types_are_rounded() {
    use crate::ops::cast::cast;
    let op = recurrent(Cell::Gru { linear_before_reset: false }, Direction::Forward);
    let case = Case { op, sizes: [2, 2, 3, 4], lengths: None, given: [true; 4], seed: 1 };
    for dtype in [DType::F16, DType::BF16, DType::F64] {
        let operands: Vec<Tensor> = case
            .operands()
            .iter()
            .map(|t| if t.is_empty() { t.clone() } else { cast(t, dtype).unwrap() })
            .collect();
        let back: Vec<Tensor> = operands.iter().map(|t| cast(t, DType::F32).unwrap()).collect();
        let found = case.op.eval(&operands.iter().collect::<Vec<_>>()).unwrap();
        let want = case.op.eval(&back.iter().collect::<Vec<_>>()).unwrap();
        for (found, want) in found.iter().zip(want) {
            assert_eq!(*found, cast(&want, dtype).unwrap(), "{dtype}");
        }
    }
}

#[test]
fn named_sizes_are_kept() {
    let facts = |x: [Dim; 3]| {
        [Fact::new(DType::F32, x), Fact::new(DType::F32, [2, 20, 4]), Fact::new(DType::F32, [2, 20, 5])]
    };
    let named = |s: &str| Dim::Named(s.into());
    for batch_first in [false, true] {
        let cell = Cell::Lstm { input_forget: false };
        let op = Recurrent { batch_first, ..recurrent(cell, Direction::Bidirectional) };
        let made = op.infer(&facts(op.laid_out([named("T"), named("N"), 4.into()])).each_ref()).unwrap();
        let shapes: Vec<String> = made.iter().map(Fact::to_string).collect();
        let want = match batch_first {
            false => ["f32[T,2,N,5]", "f32[2,N,5]", "f32[2,N,5]"],
            true => ["f32[N,T,2,5]", "f32[N,2,5]", "f32[N,2,5]"],
        };
        assert_eq!(shapes, want);
        assert_eq!(op.opset(), if batch_first { 14 } else { 13 });
        // Two directions of 5 states, for each 4 gates of 4 inputs and 5 states.
        assert_eq!(
            op.macs(&facts([1, 1, 4].map(Dim::from)).each_ref(), &made.iter().collect::<Vec<_>>()),
            360
        );
    }
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let cases: [(usize, Tensor, &str); 12] = [
        (0, noise(&[6, 2], 0), "X must have 3 dimensions, found f32[6,2]"),
        (1, noise(&[1, 20, 3], 0), "W must have shape [1,20,4], found f32[1,20,3]"),
        (1, noise(&[2, 20, 4], 0), "W must have shape [1,20,4], found f32[2,20,4]"),
        (2, noise(&[1, 15, 5], 0), "R must have shape [1,20,5], found f32[1,15,5]"),
        (2, noise(&[1, 20, 0], 0), "R is for a state without elements: f32[1,20,0]"),
        (3, noise(&[1, 20], 0), "B must have shape [1,40], found f32[1,20]"),
        (4, Tensor::vector(vec![6i32, 7]), "sequence_lens[1] = 7 is no length of a sequence in 6 steps"),
        (4, Tensor::vector(vec![-1i32, 2]), "sequence_lens[0] = -1 is no length of a sequence in 6 steps"),
        (4, Tensor::vector(vec![1i64, 2]), "sequence_lens must be int32, found int64[2]"),
        (5, noise(&[2, 1, 5], 0), "initial_h must have shape [1,2,5], found f32[2,1,5]"),
        (6, noise(&[1, 2, 4], 0), "initial_c must have shape [1,2,5], found f32[1,2,4]"),
        (7, noise(&[1, 20], 0), "P must have shape [1,15], found f32[1,20]"),
    ];
    let op = recurrent(Cell::Lstm { input_forget: false }, Direction::Forward);
    let case = Case { op, sizes: [6, 2, 4, 5], lengths: None, given: [true; 4], seed: 0 };
    let mut failures = vec![];
    for (at, operand, want) in cases {
        let mut operands = case.operands();
        operands[at] = operand;
        match case.op.eval(&operands.iter().collect::<Vec<_>>()) {
            Err(e) if e.to_string() == want => {}
            other => failures.push(format!("operand {at}: {other:?}, not {want}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // Without a state for each element of the weights, or more of them than memory has.
    let op = Recurrent { hidden: Some(6), ..case.op.clone() };
    let message = op.eval(&case.operands().iter().collect::<Vec<_>>()).unwrap_err().to_string();
    assert_eq!(message, "W must have shape [1,24,4], found f32[1,20,4]");
    let message = case.op.eval(&[&case.operands()[0]]).unwrap_err().to_string();
    assert_eq!(message, "takes 3 to 8 inputs, found 1");
    let huge = Case { sizes: [1 << 16, 1 << 16, 0, 5], given: [false; 4], ..case };
    let message = huge.eval().unwrap_err().to_string();
    assert!(message.contains("too many elements"), "{message}");
}

#[test]
fn attributes_that_do_not_fit_are_errors() {
    let texts = |names: &[&str]| Attribute::Texts(names.iter().map(|n| n.to_string()).collect());
    let lstm = ["Sigmoid", "Tanh", "Relu"];
    let cases: [(&str, &[(&str, Attribute)], &str); 10] = [
        (
            "LSTM",
            &[("direction", Attribute::Text("up".into()))],
            "direction = \"up\" must be forward, reverse or",
        ),
        ("LSTM", &[("hidden_size", Attribute::Int(0))], "hidden_size = 0 must be at least 1"),
        ("GRU", &[("hidden_size", Attribute::Int(-3))], "hidden_size = -3 must be at least 1"),
        ("RNN", &[("activations", texts(&["Gelu"]))], "activations: \"Gelu\" is not supported"),
        ("GRU", &[("activations", texts(&lstm))], "3 functions; GRU takes 2 for each of 1 directions"),
        (
            "LSTM",
            &[("activations", texts(&lstm)), ("activation_beta", Attribute::Floats(vec![0.5]))],
            "activation_beta has a value 0.5 that no activation takes",
        ),
        (
            "RNN",
            &[("activations", texts(&["ScaledTanh"]))],
            "ScaledTanh has no default: attribute activation_alpha",
        ),
        ("RNN", &[("clip", Attribute::Float(-1.0))], "clip = -1 must be at least 0"),
        ("RNN", &[("clip", Attribute::Float(f32::NAN))], "clip = NaN must be at least 0"),
        ("GRU", &[("layout", Attribute::Int(2))], "layout = 2 must be 0 or 1"),
    ];
    let mut failures = vec![];
    for (op, attributes, want) in cases {
        let attributes = attributes.iter().map(|(name, a)| (name.to_string(), a.clone())).collect();
        let mut reading = Reading::new(op, 14, attributes, vec![None; 3], 1);
        match crate::ops::reader("", op).unwrap()(&mut reading) {
            Err(e) if e.to_string().contains(want) => {}
            other => failures.push(format!("{op}: {other:?}, not {want}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let given = [("activations".to_string(), texts(&["hardsigmoid"]))].into();
    let mut reading = Reading::new("RNN", 14, given, vec![None; 3], 1);
    let op = crate::ops::reader("", "RNN").unwrap()(&mut reading).unwrap();
    let read = &(&*op as &dyn Op).is::<Recurrent>().unwrap().activations;
    assert_eq!(*read, [Activation::HardSigmoid { alpha: 0.2, beta: 0.5 }]);
}
