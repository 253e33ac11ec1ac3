//! Quantized recurrent operators against their definition, one number at a time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{
    Activation, Cell, Direction, DynamicRecurrent, QuantizedRecurrent, StateRange, quantize_recurrent,
};
use super::*;
use crate::op::{Attribute, Reading};

/// Operands of one case; sizes are `[steps, batch, input, hidden]`.
#[derive(Clone, Debug)]
struct Case {
    op: DynamicRecurrent,
    /// Scales and zero points of x and h, where they are not those of the run; the
    /// zero points are of int8 if that of weights is.
    steps: Option<[(f32, u8); 2]>,
    sizes: [usize; 4],
    lengths: Option<Vec<i32>>,
    /// Which of B, initial_h, initial_c and P are given.
    given: [bool; 4],
    /// Whether there is a scale for each unit, and the zero point of uint8 weights.
    per_channel: bool,
    unsigned: Option<u8>,
    seed: u64,
}

fn values(shape: &[usize], seed: u64) -> Tensor {
    Tensor::new(shape, bits(shape, seed).map(|b| b as f32 / 2_147_483_648.0 - 1.0).collect()).unwrap()
}

fn bits(shape: &[usize], seed: u64) -> impl Iterator<Item = u32> {
    (0..shape.iter().product::<usize>() as u64).map(move |i| {
        let mixed = (i * 2 + 1 + seed * 1_000_003).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ (mixed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
    })
}

impl Case {
    fn operands(&self) -> Vec<Tensor> {
        let [t, n, i, h] = self.sizes;
        let op = &self.op.0;
        let (d, g) = (op.direction.count(), op.cell.gates());
        let codes = |shape: &[usize], seed: u64| match self.unsigned {
            Some(_) => Tensor::new(shape, bits(shape, seed).map(|b| (b >> 24) as u8).collect()),
            None => Tensor::new(shape, bits(shape, seed).map(|b| (b >> 24) as u8 as i8).collect()),
        };
        let mut all = vec![
            values(&[t, n, i], self.seed),
            codes(&[d, i, g * h], self.seed + 1).unwrap(),
            codes(&[d, h, g * h], self.seed + 2).unwrap(),
            values(&[d, 2 * g * h], self.seed + 3),
            self.lengths.clone().map_or_else(|| Tensor::vector(Vec::<f32>::new()), Tensor::vector),
            values(&[d, n, h], self.seed + 4),
        ];
        if op.states() == 2 {
            all.extend([values(&[d, n, h], self.seed + 5), values(&[d, 3 * h], self.seed + 6)]);
        }
        for (at, given) in [3, 5, 6, 7].into_iter().zip(self.given) {
            if !given && at < all.len() {
                all[at] = Tensor::vector(Vec::<f32>::new());
            }
        }
        let shape: &[usize] = if self.per_channel { &[d, g * h] } else { &[d] };
        for seed in [7, 8] {
            let scale = values(shape, self.seed + seed).to_f32().unwrap();
            all.push(Tensor::new(shape, scale.iter().map(|s| 0.005 + 0.003 * s).collect()).unwrap());
            all.push(match self.unsigned {
                Some(zero) => Tensor::full(shape, zero).unwrap(),
                None => Tensor::full(shape, 0i8).unwrap(),
            });
        }
        for (scale, zero) in self.steps.into_iter().flatten() {
            all.push(Tensor::scalar(scale));
            all.push(match self.unsigned {
                Some(_) => Tensor::scalar(zero),
                None => Tensor::scalar((zero ^ 0x80).cast_signed()),
            });
        }
        all
    }

    fn op(&self) -> Box<dyn Op> {
        match self.steps {
            Some(_) => Box::new(QuantizedRecurrent(self.op.0.clone())),
            None => Box::new(self.op.clone()),
        }
    }

    fn eval(&self) -> Result<Vec<Tensor>> {
        self.op().eval(&self.operands().iter().collect::<Vec<_>>())
    }
}

/// Codes over a range and 0.
struct Coding {
    scale: f32,
    zero: f32,
}

impl Coding {
    /// Those given, or over the range of `x`.
    fn of(step: Option<(f32, u8)>, x: impl Iterator<Item = f32>) -> Coding {
        if let Some((scale, zero)) = step {
            return Coding { scale, zero: f32::from(zero) };
        }
        let (lo, hi) = x.fold((0f32, 0f32), |(lo, hi), x| (lo.min(x), hi.max(x)));
        let scale = if lo == hi { 1.0 } else { (hi - lo) / 255.0 };
        Coding { scale, zero: (-lo / scale).round_ties_even().clamp(0.0, 255.0) }
    }
    /// The code less the zero point.
    fn code(&self, x: f32) -> i64 {
        (((x / self.scale).round_ties_even() + self.zero).clamp(0.0, 255.0) - self.zero) as i64
    }
}

/// The outputs by the formulas.
fn definition(case: &Case) -> Vec<Vec<f32>> {
    let [t, batch, inputs, hidden] = case.sizes;
    let op = &case.op.0;
    let (d, g) = (op.direction.count(), op.cell.gates());
    let operands = case.operands();
    let read = |at: usize, k: usize| {
        let t = operands.get(at).filter(|t| !t.is_empty());
        t.map_or(0.0, |t| t.slice::<f32>().unwrap()[k])
    };
    let first = op.most_operands();
    let lengths: Vec<usize> = match &case.lengths {
        Some(l) => l.iter().map(|l| *l as usize).collect(),
        None => vec![t; batch],
    };
    let seen = lengths.iter().copied().max().unwrap_or(0);
    let x = |step: usize, n: usize, k: usize| read(0, (step * batch + n) * inputs + k);
    let [x_step, h_step] = case.steps.map_or([None; 2], |steps| steps.map(Some));
    let of_x = Coding::of(x_step, (0..seen * batch * inputs).map(|k| read(0, k)));
    let mut y = vec![0.0; t * d * batch * hidden];
    let mut ends = vec![vec![0.0; d * batch * hidden]; op.states()];
    let codes: Vec<Vec<i64>> = [1, 2].iter().map(|i| operands[*i].integers().unwrap()).collect();
    for q in 0..d {
        let activate = |which: usize, x: f32| {
            let x = op.clip.map_or(x, |clip| x.clamp(-clip, clip));
            let mut x = [x];
            op.activations[q * op.cell.functions().len() + which].apply(&mut x);
            x[0]
        };
        // Row `v` times column `column` of W (0) or R (1).
        let product = |matrix: usize, v: &dyn Fn(usize) -> f32, coding: &Coding, column: usize| {
            let depth = [inputs, hidden][matrix];
            let scale = first + 2 * matrix;
            let of_scale = if case.per_channel { q * g * hidden + column } else { q };
            let zero = operands[scale + 1].integers().unwrap()[of_scale];
            let weight = |k: usize| codes[matrix][(q * depth + k) * g * hidden + column] - zero;
            let sum: i64 = (0..depth).map(|k| coding.code(v(k)) * weight(k)).sum();
            sum as f32 * (coding.scale * read(scale, of_scale))
        };
        let wb = |column: usize| read(3, 2 * q * g * hidden + column);
        let rb = |column: usize| read(3, (2 * q + 1) * g * hidden + column);
        let p = |gate: usize, j: usize| read(7, (q * 3 + gate) * hidden + j);
        let state = |at: usize| -> Vec<Vec<f32>> {
            let row = |n: usize| (0..hidden).map(|j| read(at, (q * batch + n) * hidden + j)).collect();
            (0..batch).map(row).collect()
        };
        let (mut h, mut c) = (state(5), if op.states() == 2 { state(6) } else { vec![vec![]; batch] });
        for step in 0..seen {
            let rows: Vec<usize> = (0..batch).filter(|n| step < lengths[*n]).collect();
            let backward = q == 1 || op.direction == Direction::Reverse;
            let at = |n: usize| if backward { lengths[n] - 1 - step } else { step };
            let counting = (0..batch).filter(|n| step <= lengths[*n]);
            let of_h = Coding::of(h_step, counting.flat_map(|n| h[n].clone()));
            let of_w = |n: usize, column: usize| product(0, &|k| x(at(n), n, k), &of_x, column);
            let gate = |n: usize, gate: usize, j: usize| {
                let column = gate * hidden + j;
                let of_r = product(1, &|k| h[n][k], &of_h, column);
                (of_w(n, column) + of_r) + (wb(column) + rb(column))
            };
            let mut next = h.clone();
            match op.cell {
                Cell::Rnn => rows
                    .iter()
                    .for_each(|&n| (0..hidden).for_each(|j| next[n][j] = activate(0, gate(n, 0, j)))),
                Cell::Lstm { input_forget } => {
                    for (&n, j) in rows.iter().flat_map(|n| (0..hidden).map(move |j| (n, j))) {
                        let own = &mut c[n][j];
                        let peep = |which: usize, c: f32| gate(n, which, j) + p(which, j) * c;
                        let i = activate(0, peep(0, *own));
                        let f = if input_forget { 1.0 - i } else { activate(0, peep(2, *own)) };
                        *own = f * *own + i * activate(1, gate(n, 3, j));
                        next[n][j] = activate(2, *own) * activate(0, peep(1, *own));
                    }
                }
                Cell::Gru { linear_before_reset } => {
                    let r = |n: usize, j: usize| activate(0, gate(n, 1, j));
                    let reset: Vec<Vec<f32>> = (0..batch)
                        .map(|n| {
                            if rows.contains(&n) {
                                (0..hidden).map(|j| r(n, j) * h[n][j]).collect()
                            } else {
                                vec![]
                            }
                        })
                        .collect();
                    let of_reset = Coding::of(h_step, reset.iter().flatten().copied());
                    for (&n, j) in rows.iter().flat_map(|n| (0..hidden).map(move |j| (n, j))) {
                        let column = 2 * hidden + j;
                        let new = if linear_before_reset {
                            let of_r = product(1, &|k| h[n][k], &of_h, column) + rb(column);
                            (of_w(n, column) + wb(column)) + r(n, j) * of_r
                        } else {
                            let of_r = product(1, &|k| reset[n][k], &of_reset, column);
                            (of_w(n, column) + of_r) + (wb(column) + rb(column))
                        };
                        let z = activate(0, gate(n, 0, j));
                        next[n][j] = (1.0 - z) * activate(1, new) + z * h[n][j];
                    }
                }
            }
            h = next;
            for &n in &rows {
                y[((at(n) * d + q) * batch + n) * hidden..][..hidden].copy_from_slice(&h[n]);
            }
        }
        for (end, own) in ends.iter_mut().zip([&h, &c]) {
            end[q * batch * hidden..][..batch * hidden].copy_from_slice(&own.concat());
        }
    }
    std::iter::once(y).chain(ends).collect()
}

fn recurrent(cell: Cell, direction: Direction) -> DynamicRecurrent {
    let activations = cell.functions().repeat(direction.count());
    DynamicRecurrent(Recurrent { cell, direction, hidden: None, activations, clip: None, batch_first: false })
}

const LSTM: Cell = Cell::Lstm { input_forget: false };

fn cells() -> impl Strategy<Value = Cell> {
    prop_oneof![
        any::<bool>().prop_map(|input_forget| Cell::Lstm { input_forget }),
        any::<bool>().prop_map(|linear_before_reset| Cell::Gru { linear_before_reset }),
        Just(Cell::Rnn),
    ]
}

prop_compose! {
    fn cases()(
        cell in cells(),
        direction in prop_oneof![Just(Direction::Forward), Just(Direction::Reverse), Just(Direction::Bidirectional)],
        functions in proptest::option::of(proptest::collection::vec(
            proptest::sample::select(&[Activation::Sigmoid, Activation::Softsign, Activation::Elu { alpha: 0.5 }][..]), 6)),
        clip in proptest::option::of(0.1f32..1.0),
        t in 0usize..5, n in 0usize..4, i in 1usize..7, h in 1usize..40,
        lengths in proptest::option::of(proptest::collection::vec(0i32..5, 4)),
        given: [bool; 4],
        per_channel: bool,
        unsigned: Option<u8>,
        steps in proptest::option::of([(0.002f32..0.02, any::<u8>()), (0.002f32..0.02, any::<u8>())]),
        seed in 0u64..1000,
    ) -> Case {
        let mut op = recurrent(cell, direction);
        op.0.clip = clip;
        if let Some(functions) = functions {
            op.0.activations = functions[..op.0.activations.len()].to_vec();
        }
        let lengths = lengths.filter(|_| n > 0);
        let lengths = lengths.map(|l| l[..n].iter().map(|l| *l.min(&(t as i32))).collect());
        Case { op, steps, sizes: [t, n, i, h], lengths, given, per_channel, unsigned, seed }
    }
}

proptest! {
    #[test]
    fn all_options_are_the_definition(case in cases()) {
        let (found, want) = (case.eval().unwrap(), definition(&case));
        prop_assert_eq!(found.len(), want.len());
        let facts = symbolic::facts(&case.operands().iter().collect::<Vec<_>>());
        let made = case.op().infer(&facts.iter().collect::<Vec<_>>()).unwrap();
        for (k, (fact, (found, want))) in made.iter().zip(found.iter().zip(want)).enumerate() {
            prop_assert_eq!(fact.known_shape().unwrap(), found.shape());
            prop_assert_eq!(found.slice::<f32>().unwrap(), want, "output {}", k);
        }
    }

    #[test]
    fn what_is_written_is_read_again(case in cases(), hidden in proptest::option::of(1usize..9)) {
        let dynamic = DynamicRecurrent(Recurrent { hidden, ..case.op.0.clone() });
        let op = Case { op: dynamic.clone(), ..case }.op();
        let attributes: BTreeMap<String, Attribute> =
            op.attributes().into_iter().map(|(name, a)| (name.to_string(), a)).collect();
        let mut reading = Reading::new(op.name(), 1, attributes, vec![None; 16], 1);
        let again = crate::ops::reader(op.domain(), op.name()).unwrap()(&mut reading).unwrap();
        reading.finish().unwrap();
        let again: &dyn Op = &*again;
        prop_assert_eq!(again.name(), op.name());
        let layers = [again.is::<DynamicRecurrent>().map(|op| &op.0), again.is::<QuantizedRecurrent>().map(|op| &op.0)];
        prop_assert_eq!(layers.into_iter().flatten().next(), Some(&dynamic.0));
    }
}

fn case(op: DynamicRecurrent, sizes: [usize; 4]) -> Case {
    Case {
        op,
        steps: None,
        sizes,
        lengths: None,
        given: [true; 4],
        per_channel: true,
        unsigned: None,
        seed: 3,
    }
}

#[test]
fn threads_do_not_show() {
    for cell in
        [LSTM, Cell::Gru { linear_before_reset: false }, Cell::Gru { linear_before_reset: true }, Cell::Rnn]
    {
        let case = case(recurrent(cell, Direction::Bidirectional), [5, 17, 70, 200]);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.eval().unwrap())
        };
        assert!(run(1) == run(3), "{cell:?}");
    }
}

#[test]
fn quantized_weights_are_near_the_float_ones() {
    let mut failures = vec![];
    for (cell, gates) in [(LSTM, 4), (Cell::Gru { linear_before_reset: true }, 3), (Cell::Rnn, 1)] {
        for per_channel in [true, false] {
            let (d, i, h) = (2, 9, 13);
            let float = recurrent(cell, Direction::Bidirectional).0;
            let [x, w, r] =
                [values(&[7, 3, i], 1), values(&[d, gates * h, i], 2), values(&[d, gates * h, h], 3)];
            let (op, operands) = quantize_recurrent(&float, &w, &r, per_channel).unwrap().unwrap();
            let absent = Tensor::vector(Vec::<f32>::new());
            let mut all = vec![&x; op.0.most_operands() + 4];
            all[3..op.0.most_operands()].fill(&absent);
            operands.iter().for_each(|(i, t)| all[*i] = t);
            let (found, want) = (op.eval(&all).unwrap(), float.eval(&[&x, &w, &r]).unwrap());
            if let Some(function) = op.function(&symbolic::facts(&all).iter().collect::<Vec<_>>()) {
                let all: Vec<Tensor> = all.iter().map(|t| (*t).clone()).collect();
                let inexact = function.unwrap().run(&all).unwrap();
                let pairs = inexact[0].slice::<f32>().unwrap().iter().zip(found[0].slice::<f32>().unwrap());
                let most = pairs.fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(most > 0.0 && most < 0.05, "{cell:?} {per_channel}: function differs by {most}");
            } else {
                assert_eq!(cell, LSTM);
            }
            let shape: &[usize] = if per_channel { &[d, gates * h] } else { &[d] };
            assert_eq!(all[op.0.most_operands()].shape(), shape);
            let square = |x: f32| f64::from(x) * f64::from(x);
            let pairs = found[0].slice::<f32>().unwrap().iter().zip(want[0].slice::<f32>().unwrap());
            let (signal, noise) =
                pairs.fold((0.0, 0.0), |(s, n), (a, b)| (s + square(*b), n + square(a - b)));
            if signal < 1000.0 * noise {
                failures.push(format!("{cell:?} {per_channel}: {signal} and {noise}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let (w, r) = (values(&[1, 4, 3], 1), values(&[1, 4, 1], 2));
    let first = Recurrent { batch_first: true, ..recurrent(LSTM, Direction::Forward).0 };
    assert_eq!(quantize_recurrent(&first, &w, &r, true).unwrap(), None);
    let op = recurrent(LSTM, Direction::Forward).0;
    let nan = Tensor::full(&[1, 4, 3], f32::NAN).unwrap();
    let message = quantize_recurrent(&op, &nan, &r, true).unwrap_err().to_string();
    assert_eq!(message, "a weight is NaN");
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let cases: [(usize, Tensor, &str); 16] = [
        (0, values(&[6, 2], 0), "X must have 3 dimensions, found f32[6,2]"),
        (
            0,
            Tensor::full(&[6, 2, 4], 0i8).unwrap(),
            "DynamicQuantizeLSTM: input 0 of type int8 is not supported",
        ),
        (1, Tensor::full(&[1, 3, 20], 0i8).unwrap(), "W must have shape [1,4,20], found int8[1,3,20]"),
        (1, values(&[1, 4, 20], 0), "DynamicQuantizeLSTM: input 1 of type f32 is not supported"),
        (2, Tensor::full(&[1, 20, 5], 0i8).unwrap(), "W must have shape [1,4,80], found int8[1,4,20]"),
        (2, Tensor::full(&[1, 5, 15], 0i8).unwrap(), "R must have shape [1,5,20], found int8[1,5,15]"),
        (2, Tensor::full(&[1, 0, 20], 0i8).unwrap(), "R is for a state without elements: int8[1,0,20]"),
        (4, Tensor::vector(vec![6i32, 7]), "sequence_lens[1] = 7 is no length of a sequence in 6 steps"),
        (4, Tensor::vector(vec![-1i32, 2]), "sequence_lens[0] = -1 is no length of a sequence in 6 steps"),
        (5, values(&[2, 1, 5], 0), "initial_h must have shape [1,2,5], found f32[2,1,5]"),
        (6, values(&[1, 2, 4], 0), "initial_c must have shape [1,2,5], found f32[1,2,4]"),
        (7, values(&[1, 20], 0), "P must have shape [1,15], found f32[1,20]"),
        (8, values(&[2], 0), "W_scale must be f32[1] or f32[1,20], found f32[2]"),
        (9, Tensor::full(&[1], 0u8).unwrap(), "W_zero_point must be int8[1] or int8[1,20], found uint8[1]"),
        (10, values(&[1, 5], 0), "R_scale must be f32[1] or f32[1,20], found f32[1,5]"),
        (
            11,
            Tensor::new(&[1, 20], (0..20).collect::<Vec<i8>>()).unwrap(),
            "R_zero_point has several values in direction 0",
        ),
    ];
    let case = case(recurrent(LSTM, Direction::Forward), [6, 2, 4, 5]);
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
    let operands = case.operands();
    let message = case.op.eval(&operands.iter().take(11).collect::<Vec<_>>()).unwrap_err().to_string();
    assert_eq!(message, "takes 12 inputs, found 11");
    let deep = Case { sizes: [0, 1, 40_000, 1], ..case.clone() };
    let message = deep.eval().unwrap_err().to_string();
    assert_eq!(message, "W sums 40000 products, more than the 33025 that fit 32 bits");
    let attributes = [("layout".to_string(), Attribute::Int(1))].into();
    let mut reading = Reading::new("DynamicQuantizeGRU", 1, attributes, vec![None; 10], 1);
    let message = crate::ops::reader("lowbit", "DynamicQuantizeGRU").unwrap()(&mut reading).unwrap_err();
    assert_eq!(message.to_string(), "DynamicQuantizeGRU: attribute layout = 1 is not supported");
}

#[test]
fn steps_that_do_not_fit_are_errors() {
    let scale = |s: f32| Tensor::scalar(s);
    let cases: [(usize, Tensor, &str); 9] = [
        (12, values(&[1], 0), "x_scale must be a scalar of type f32, found f32[1]"),
        (12, Tensor::scalar(1u8), "x_scale must be a scalar of type f32, found uint8[]"),
        (12, scale(0.0), "x_scale = 0 must be positive and finite"),
        (12, scale(f32::NAN), "x_scale = NaN must be positive and finite"),
        (13, Tensor::scalar(1i32), "x_zero_point must be a scalar of type uint8 or int8, found int32[]"),
        (14, values(&[1, 20], 0), "h_scale must be a scalar of type f32, found f32[1,20]"),
        (14, scale(f32::INFINITY), "h_scale = inf must be positive and finite"),
        (
            15,
            Tensor::vector(vec![1u8, 2]),
            "h_zero_point must be a scalar of type uint8 or int8, found uint8[2]",
        ),
        (8, values(&[2], 0), "W_scale must be f32[1] or f32[1,20], found f32[2]"),
    ];
    let dynamic = case(recurrent(LSTM, Direction::Forward), [6, 2, 4, 5]);
    let case = Case { steps: Some([(0.01, 128); 2]), ..dynamic };
    let mut failures = vec![];
    for (at, operand, want) in cases {
        let mut operands = case.operands();
        operands[at] = operand;
        match case.op().eval(&operands.iter().collect::<Vec<_>>()) {
            Err(e) if e.to_string() == want => {}
            other => failures.push(format!("operand {at}: {other:?}, not {want}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let operands = case.operands();
    let message = case.op().eval(&operands.iter().take(12).collect::<Vec<_>>()).unwrap_err().to_string();
    assert_eq!(message, "takes 16 inputs, found 12");
}

/// The functions by which it is known where h lies.
#[test]
fn ranges_of_states_follow_from_functions() {
    use Activation::{Relu, Sigmoid, Softsign, Tanh};
    use StateRange::{OfResults, Unit, Unknown};
    let gru = |linear_before_reset| Cell::Gru { linear_before_reset };
    let cases: [(Cell, &[Activation], StateRange); 11] = [
        (LSTM, &[Sigmoid, Tanh, Tanh], Unit),
        (LSTM, &[Sigmoid, Relu, Softsign], Unit),
        (LSTM, &[Sigmoid, Tanh, Relu], OfResults),
        (LSTM, &[Relu, Tanh, Tanh], OfResults),
        (gru(false), &[Sigmoid, Tanh], Unit),
        (gru(false), &[Sigmoid, Relu], OfResults),
        (gru(false), &[Tanh, Tanh], Unknown),
        (gru(true), &[Tanh, Tanh], OfResults),
        (Cell::Rnn, &[Tanh], Unit),
        (Cell::Rnn, &[Relu], OfResults),
        (Cell::Rnn, &[Tanh, Relu], OfResults),
    ];
    for (cell, functions, want) in cases {
        let backward = functions.len() > cell.functions().len();
        let direction = if backward { Direction::Bidirectional } else { Direction::Forward };
        let op = Recurrent { activations: functions.to_vec(), ..recurrent(cell, direction).0 };
        assert_eq!(op.state_range(), want, "{cell:?} {functions:?}");
    }
}
