//! Recurrent operators with constant weights.

use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Var};
use crate::op::{Fact, Op, optional};
use crate::ops::recurrent::{Cell, PackedWeights, Recurrent};
use crate::tensor::{DType, Tensor};

/// Where operands of a [`Recurrent`] lie: the weights W, R, B and P, and x, the
/// lengths and the first states.
const WEIGHTS: [usize; 4] = [1, 2, 3, 7];
const OTHERS: [usize; 4] = [0, 4, 5, 6];

/// The graph with the constant weights of every f32 LSTM, GRU and RNN packed.
pub fn pack_recurrent(graph: &Graph) -> Result<Graph> {
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, .. } = &node.kind else { return b.copy(node, inputs) };
        let Some(packed) = packed(b, &**op, inputs)? else { return b.copy(node, inputs) };
        let operand = |i: usize| inputs.get(i).copied();
        let given: Vec<Var> = OTHERS.iter().map(|i| operand(*i).unwrap_or_else(|| b.absent())).collect();
        b.replace(node, Arc::new(packed), &given)
    })
}

fn packed(b: &Builder, op: &dyn Op, inputs: &[Var]) -> Result<Option<PackedRecurrent>> {
    let Some(op) = op.is::<Recurrent>() else { return Ok(None) };
    let graph = b.so_far();
    let weights: Option<Vec<&Tensor>> =
        WEIGHTS.iter().filter_map(|i| inputs.get(*i)).map(|v| graph.constant(*v)).collect();
    let Some(weights) = weights.filter(|_| graph.fact(inputs[0]).dtype == DType::F32) else {
        return Ok(None);
    };
    let facts = weights.iter().map(|t| Fact::of(t)).collect();
    let packed = op.pack([0, 1, 2, 3].map(|i| optional(&weights, i)))?;
    Ok(Some(PackedRecurrent { op: op.clone(), facts, weights: Arc::new(packed) }))
}

/// A [`Recurrent`] with its weights packed; the operands are x, the lengths and
/// the first states.
#[derive(Clone, Debug)]
struct PackedRecurrent {
    op: Recurrent,
    /// Of W, R, and B and P where they are given.
    facts: Vec<Fact>,
    weights: Arc<PackedWeights>,
}

impl PackedRecurrent {
    /// The operands as the [`Recurrent`] has them.
    fn operands<'a>(&'a self, x: &[&'a Fact], absent: &'a Fact) -> Vec<&'a Fact> {
        let mut all = vec![absent; 8];
        for (at, fact) in OTHERS.iter().zip(x.iter().copied()).chain(WEIGHTS.iter().zip(&self.facts)) {
            all[*at] = fact;
        }
        let given = all.iter().rposition(|f| !f.is_absent()).map_or(0, |last| last + 1);
        all.truncate(given);
        all
    }
}

impl Op for PackedRecurrent {
    fn name(&self) -> &'static str {
        match self.op.cell {
            Cell::Lstm { .. } => "PackedLSTM",
            Cell::Gru { .. } => "PackedGRU",
            Cell::Rnn => "PackedRNN",
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
        self.op.run(&self.weights, x[0], [1, 2, 3].map(|i| optional(x, i)))
    }
    fn macs(&self, x: &[&Fact], y: &[&Fact]) -> u64 {
        self.op.macs(&self.operands(x, &Fact::new(DType::F32, [0])), y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::recurrent::{Activation, Direction};

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
