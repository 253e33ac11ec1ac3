//! Recurrent operators with constant weights, in f32 or in codes.

use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Var};
use crate::op::{Fact, Op, optional};
use crate::ops::recurrent::{Cell, DynamicRecurrent, PackedWeights, QuantizedRecurrent, Recurrent};
use crate::tensor::{DType, Tensor};

/// Where the operands of a [`PackedRecurrent`] lie among those that it had: x,
/// the lengths and the first states.
const OTHERS: [usize; 4] = [0, 4, 5, 6];

/// The graph with the constant weights of every LSTM, GRU and RNN packed, of f32
/// values and of codes.
pub fn pack_recurrent(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        let Some(packed) = packed(b, op, inputs)? else { return b.copy(node, inputs) };
        let operand = |i: usize| inputs.get(i).copied().filter(|_| i < packed.first_parameter);
        let given: Vec<Var> = OTHERS.iter().map(|i| operand(*i).unwrap_or_else(|| b.absent())).collect();
        b.replace(node, Arc::new(packed), &given)
    })
}

fn packed(b: &Builder, op: &Arc<dyn Op>, inputs: &[Var]) -> Result<Option<PackedRecurrent>> {
    let (dynamic, fixed) = (op.is::<DynamicRecurrent>(), op.is::<QuantizedRecurrent>());
    let coded = dynamic.map(|op| &op.0).or(fixed.map(|op| &op.0));
    let Some(float) = coded.or(op.is::<Recurrent>()) else { return Ok(None) };
    let graph = b.so_far();
    let first_parameter = float.most_operands();
    let weights: Option<Vec<(usize, &Tensor)>> = (0..inputs.len())
        .filter(|i| !OTHERS.contains(i) || *i >= first_parameter)
        .map(|i| Some((i, graph.constant(inputs[i])?)))
        .collect();
    let Some(weights) = weights.filter(|_| graph.fact(inputs[0]).dtype == DType::F32) else {
        return Ok(None);
    };
    let absent = Tensor::vector(Vec::<f32>::new());
    let mut operands = vec![&absent; inputs.len()];
    weights.iter().for_each(|(i, t)| operands[*i] = t);
    let packed = match (dynamic, fixed) {
        (Some(op), _) => op.pack(&operands)?,
        (_, Some(op)) => op.pack(&operands)?,
        _ => float.pack([1, 2, 3, 7].map(|i| optional(&operands, i)))?,
    };
    let facts = weights.iter().map(|(i, t)| (*i, Fact::of(t))).collect();
    let (op, float) = (op.clone(), float.clone());
    Ok(Some(PackedRecurrent { op, float, first_parameter, facts, weights: Arc::new(packed) }))
}

/// A [`Recurrent`], [`DynamicRecurrent`] or [`QuantizedRecurrent`] with its
/// weights packed; the operands are x, the lengths and the first states.
#[derive(Clone, Debug)]
struct PackedRecurrent {
    op: Arc<dyn Op>,
    /// The same in float.
    float: Recurrent,
    /// Operands from this one on are none of the [`Recurrent`].
    first_parameter: usize,
    /// Of the weights.
    facts: Vec<(usize, Fact)>,
    weights: Arc<PackedWeights>,
}

impl PackedRecurrent {
    /// The operands as the operator had them.
    fn operands<'a>(&'a self, x: &[&'a Fact], absent: &'a Fact) -> Vec<&'a Fact> {
        let given = OTHERS.iter().copied().zip(x.iter().copied());
        let given = given.filter(|(_, f)| !f.is_absent()).chain(self.facts.iter().map(|(i, f)| (*i, f)));
        let mut all = vec![];
        for (i, fact) in given {
            all.resize(all.len().max(i + 1), absent);
            all[i] = fact;
        }
        all
    }
}

impl Op for PackedRecurrent {
    fn name(&self) -> &'static str {
        match (self.float.cell, self.op.is::<Recurrent>()) {
            (Cell::Lstm { .. }, Some(_)) => "PackedLSTM",
            (Cell::Gru { .. }, Some(_)) => "PackedGRU",
            (Cell::Rnn, Some(_)) => "PackedRNN",
            (Cell::Lstm { .. }, None) => "QLSTM",
            (Cell::Gru { .. }, None) => "QGRU",
            (Cell::Rnn, None) => "QRNN",
        }
    }
    fn domain(&self) -> &'static str {
        "lowbit"
    }
    fn infer(&self, x: &[&Fact]) -> Result<Vec<Fact>> {
        self.op.infer(&self.operands(x, &Fact::new(DType::F32, [0])))
    }
    fn eval(&self, x: &[&Tensor]) -> Result<Vec<Tensor>> {
        let facts: Vec<Fact> = x.iter().map(|t| Fact::of(t)).collect();
        self.infer(&facts.iter().collect::<Vec<_>>())?;
        self.float.run(&self.weights, x[0], [1, 2, 3].map(|i| optional(x, i)))
    }
    fn macs(&self, x: &[&Fact], y: &[&Fact]) -> u64 {
        self.op.macs(&self.operands(x, &Fact::new(DType::F32, [0])), y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Dim;
    use crate::ops::recurrent::{Activation, Direction, quantize_recurrent};
    use crate::session::Session;

    fn noise(shape: &[usize], seed: usize) -> Tensor {
        let n = shape.iter().product::<usize>();
        Tensor::new(shape, (0..n).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0).collect())
            .unwrap()
    }

    /// The constant weights are packed, the other operands stay, and the bits too.
    #[test]
    fn packed_weights_change_nothing() {
        use Activation::{Sigmoid, Tanh};
        let cases: [(Cell, &[Activation], usize); 3] = [
            (Cell::Lstm { input_forget: false }, &[Sigmoid, Tanh, Tanh], 4),
            (Cell::Gru { linear_before_reset: true }, &[Sigmoid, Tanh], 3),
            (Cell::Rnn, &[Tanh], 1),
        ];
        let (d, h) = (2, 5);
        for (cell, functions, gates) in cases {
            // How many operands are given, and which of these is not.
            for (count, absent) in [(8, 0), (8, 3), (8, 5), (7, 3), (6, 4), (4, 0), (3, 0)] {
                let op = Recurrent {
                    cell,
                    direction: Direction::Bidirectional,
                    hidden: Some(h),
                    activations: functions.repeat(d),
                    clip: None,
                    batch_first: false,
                };
                let mut operands = vec![
                    noise(&[4, 3, 2], 0),
                    noise(&[d, gates * h, 2], 1),
                    noise(&[d, gates * h, h], 2),
                    noise(&[d, 2 * gates * h], 3),
                    Tensor::vector(vec![4i32, 0, 2]),
                    noise(&[d, 3, h], 4),
                    noise(&[d, 3, h], 5),
                    noise(&[d, 3 * h], 6),
                ];
                operands.truncate(if gates == 4 { count } else { count.min(6) });
                let mut b = Builder::default();
                let mut given = vec![];
                let vars: Vec<Var> = operands
                    .iter()
                    .enumerate()
                    .map(|(i, t)| match i {
                        _ if i == absent && i > 0 => b.absent(),
                        1..=3 | 7 => b.constant(&format!("w{i}"), t.clone()),
                        _ => {
                            given.push(t.clone());
                            b.input(&format!("x{i}"), Fact::of(t))
                        }
                    })
                    .collect();
                let made = b.apply_all("y", Arc::new(op), &vars, &["y", "y_h"]).unwrap();
                let outputs = ["y", "y_h"].map(String::from).into_iter().zip(made);
                let graph = b.finish(outputs).unwrap();
                let packed = pack_recurrent(&graph).unwrap();
                assert!(packed.applied().all(|(_, _, op, _)| op.name().starts_with("Packed")), "{packed}");
                assert_eq!(
                    packed.run(&given).unwrap(),
                    graph.run(&given).unwrap(),
                    "{cell:?} {count} {absent}"
                );
            }
        }
    }

    /// How a layer computes.
    #[derive(Clone, Copy, PartialEq)]
    enum Form {
        Float,
        Dynamic,
        Quantized,
    }

    /// A graph of one forward layer of a form with inputs x `[T, 2, 3]`, h and c.
    fn stateful(cell: Cell, functions: &[Activation], gates: usize, form: Form) -> Graph {
        let h = 40;
        let float = Recurrent {
            cell,
            direction: Direction::Forward,
            hidden: Some(h),
            activations: functions.to_vec(),
            clip: None,
            batch_first: false,
        };
        let states = if gates == 4 { 2 } else { 1 };
        let (w, r) = (noise(&[1, gates * h, 3], 1), noise(&[1, gates * h, h], 2));
        let mut b = Builder::default();
        let x = b.input("x", Fact::new(DType::F32, [Dim::Named("T".into()), 2.into(), 3.into()]));
        let mut operands = vec![b.absent(); float.most_operands()];
        operands[0] = x;
        operands[3] = b.constant("b", noise(&[1, 2 * gates * h], 3));
        for i in 0..states {
            operands[5 + i] = b.input(["h", "c"][i], Fact::new(DType::F32, [1, 2, h]));
        }
        let op: Arc<dyn Op> = if form == Form::Float {
            (operands[1], operands[2]) = (b.constant("w", w), b.constant("r", r));
            Arc::new(float)
        } else {
            let (op, constants) = quantize_recurrent(&float, &w, &r, true).unwrap().unwrap();
            for (i, t) in constants {
                operands.resize(operands.len().max(i + 1), operands[4]);
                operands[i] = b.constant(&format!("w{i}"), t);
            }
            if form == Form::Quantized {
                for (k, scale) in [1f32 / 127.5, 1.0 / 127.0].into_iter().enumerate() {
                    operands.push(b.constant(&format!("s{k}"), Tensor::scalar(scale)));
                    operands.push(b.constant(&format!("z{k}"), Tensor::scalar(128u8)));
                }
                Arc::new(QuantizedRecurrent(op.0))
            } else {
                Arc::new(op)
            }
        };
        let names = &["y", "y_h", "y_c"][..1 + states];
        let made = b.apply_all("layer", op, &operands, names).unwrap();
        b.finish(names.iter().map(|n| n.to_string()).zip(made)).unwrap()
    }

    /// Steps run one by one, the caller carrying the state, are those of one run:
    /// exactly, or nearly where codes are those of ranges, which then differ.
    #[test]
    fn the_caller_carries_the_state() {
        use Activation::{Sigmoid, Tanh};
        let cases: [(Cell, &[Activation], usize); 3] = [
            (Cell::Lstm { input_forget: false }, &[Sigmoid, Tanh, Tanh], 4),
            (Cell::Gru { linear_before_reset: false }, &[Sigmoid, Tanh], 3),
            (Cell::Rnn, &[Tanh], 1),
        ];
        let steps = 6;
        let x = noise(&[steps, 2, 3], 5);
        let mut failures = vec![];
        for (cell, functions, gates) in cases {
            for (form, prefix, bound) in
                [(Form::Float, "Packed", 0.0), (Form::Dynamic, "Q", 0.05), (Form::Quantized, "Q", 0.0)]
            {
                let graph = stateful(cell, functions, gates, form);
                let session = Session::compile(&graph).unwrap();
                let name = session.graph().applied().next().unwrap().2.name();
                let mut state: Vec<Tensor> =
                    (1..graph.inputs().len()).map(|i| noise(&[1, 2, 40], 6 + i)).collect();
                let whole = session.run(&[vec![x.clone()], state.clone()].concat()).unwrap();
                let mut y = vec![];
                for frame in x.slice::<f32>().unwrap().chunks(6) {
                    let x = Tensor::new(&[1, 2, 3], frame.to_vec()).unwrap();
                    let inputs = [vec![x], state].concat();
                    let mut made = session.run(&inputs).unwrap();
                    if made != graph.run(&inputs).unwrap() {
                        failures.push(format!("{name}: not what the graph gives"));
                    }
                    state = made.split_off(1);
                    y.extend_from_slice(made[0].slice::<f32>().unwrap());
                }
                let want = whole[0].slice::<f32>().unwrap();
                let most = y.iter().zip(want).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                if !name.starts_with(prefix) || most > bound {
                    failures.push(format!("{name}: {most}"));
                }
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn weights_of_the_run_are_not_packed() {
        let op = Recurrent {
            cell: Cell::Rnn,
            direction: Direction::Forward,
            hidden: None,
            activations: vec![Activation::Tanh],
            clip: None,
            batch_first: false,
        };
        let mut b = Builder::default();
        let x = [[4, 1, 2], [1, 3, 2], [1, 3, 3]];
        let vars = [0, 1, 2].map(|i| b.input(&format!("x{i}"), Fact::new(DType::F32, x[i])));
        let y = b.apply_all("y", Arc::new(op), &vars, &["y"]).unwrap()[0];
        let graph = b.finish([("y".to_string(), y)]).unwrap();
        assert_eq!(pack_recurrent(&graph).unwrap(), graph);
    }
}
