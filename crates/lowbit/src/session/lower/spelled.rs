//! Functions that are spelled out, as single operators.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Builder, Graph, Kind, Node, Var};
use crate::op::Dim;
use crate::ops::binary::Arithmetic;
use crate::ops::norm::LayerNormalization;
use crate::ops::unary::Unary;
use crate::quantize::patterns::{Function, patterns};
use crate::tensor::{DType, Tensor};

/// The graph with GELU and RMS normalization in one operator each, where they
/// are spelled out in f32.
pub fn in_one(graph: &Graph) -> Result<Graph> {
    let found: HashMap<Var, _> =
        patterns(graph).into_iter().filter_map(|p| Some((*p.values.last()?, (p.function, p.x)))).collect();
    if found.is_empty() {
        return Ok(graph.clone());
    }
    let mut made: HashMap<Var, Var> = HashMap::new();
    graph.rebuild(|b, v, node, inputs| {
        let rebuilt = match found.get(&v) {
            // The operand comes before what is made of it; inputs keep their places.
            Some((function, x)) => {
                let x = made.get(x).copied().or_else(|| b.so_far().find(&graph.value(*x).name));
                match x {
                    Some(x) => single(b, node, *function, x)?,
                    None => None,
                }
            }
            None => scaled(b, node, inputs)?,
        };
        let outputs = match rebuilt {
            Some(y) => vec![y],
            None => b.copy(node, inputs)?,
        };
        outputs.iter().enumerate().for_each(|(slot, y)| _ = made.insert(v.output(slot), *y));
        Ok(outputs)
    })
}

fn single(b: &mut Builder, node: &Node, function: Function, x: Var) -> Result<Option<Var>> {
    match function {
        Function::Gelu { tanh } => b.apply(&node.name, Arc::new(Unary::Gelu { tanh }), &[x]).map(Some),
        Function::RootMeanSquare { epsilon } => {
            let Some(&Dim::Known(row)) = b.fact(x).shape.last() else { return Ok(None) };
            let ones = b.constant(&format!("{}.scale", node.name), Tensor::full(&[row], 1f32)?);
            let op = LayerNormalization { axis: -1, epsilon, centred: false };
            b.apply(&node.name, Arc::new(op), &[x, ones]).map(Some)
        }
    }
}

/// A normalization times a constant row, which becomes its scale.
fn scaled(b: &mut Builder, node: &Node, inputs: &[Var]) -> Result<Option<Var>> {
    let Kind::Apply { op, .. } = &node.kind else { return Ok(None) };
    if op.is::<Arithmetic>() != Some(&Arithmetic::Mul) {
        return Ok(None);
    }
    for (norm, scale) in [(inputs[0], inputs[1]), (inputs[1], inputs[0])] {
        let Some((op, operands)) = b.so_far().made_by::<LayerNormalization>(norm) else { continue };
        let ones = |t: &Tensor| t.slice::<f32>().is_ok_and(|x| x.iter().all(|x| *x == 1.0));
        let plain = !op.centred && b.so_far().constant(operands[1]).is_some_and(ones);
        let row = b.fact(operands[1]).shape.clone();
        let fits = |t: &&Tensor| t.dtype() == DType::F32 && t.rank() == 1 && Some(t.len()) == row[0].known();
        if plain && b.so_far().constant(scale).filter(fits).is_some() {
            let (op, x) = (*op, operands[0]);
            return b.apply(&node.name, Arc::new(op), &[x, scale]).map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Fact, Op};
    use crate::ops::reduce::{Reduce, Reduction};

    /// A graph written in short: operands are values or constants.
    struct Writer(Builder, usize);

    impl Writer {
        fn op(&mut self, op: impl Op, inputs: &[Var]) -> Var {
            self.1 += 1;
            self.0.apply(&format!("v{}", self.1), Arc::new(op), inputs).unwrap()
        }
        fn two(&mut self, op: Arithmetic, a: Var, b: Var) -> Var {
            self.op(op, &[a, b])
        }
        fn c(&mut self, x: f32) -> Var {
            self.1 += 1;
            self.0.constant(&format!("c{}", self.1), Tensor::scalar(x))
        }
    }

    /// The operators of the graph that `write` makes of an `[N, 8]` input, and how
    /// far they change its results.
    fn folded(write: impl Fn(&mut Writer, Var) -> Var) -> (Vec<&'static str>, f32) {
        let mut w = Writer(Builder::default(), 0);
        let x = w.0.input("x", Fact::new(DType::F32, [Dim::Named("N".into()), 8.into()]));
        let y = write(&mut w, x);
        let graph = w.0.finish([("y".to_string(), y)]).unwrap();
        let single = in_one(&graph).unwrap();
        let x = Tensor::new(&[4, 8], (0..32).map(|i| (i as f32 - 15.0) / 4.0).collect()).unwrap();
        let [a, b] =
            [&graph, &single].map(|g| g.run(std::slice::from_ref(&x)).unwrap().remove(0).to_f32().unwrap());
        let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        (single.applied().map(|(_, _, op, _)| op.name()).collect(), apart)
    }

    #[test]
    fn spellings_become_single_operators() {
        use Arithmetic::{Add, Div, Mul, Pow};
        type Spelling = fn(&mut Writer, Var) -> Var;
        let cases: [(&str, Spelling, &[&str]); 8] = [
            (
                "PyTorch's gelu",
                |w, x| {
                    let (root, one, half) = (w.c(2f32.sqrt()), w.c(1.0), w.c(0.5));
                    let scaled = w.two(Div, x, root);
                    let erf = w.op(Unary::Erf, &[scaled]);
                    let sum = w.two(Add, erf, one);
                    let product = w.two(Mul, x, sum);
                    w.two(Mul, product, half)
                },
                &["Gelu"],
            ),
            (
                "half of x first",
                |w, x| {
                    let (root, one, half) = (w.c(0.5f32.sqrt()), w.c(1.0), w.c(0.5));
                    let (halved, scaled) = (w.two(Mul, half, x), w.two(Mul, x, root));
                    let erf = w.op(Unary::Erf, &[scaled]);
                    let sum = w.two(Add, one, erf);
                    w.two(Mul, sum, halved)
                },
                &["Gelu"],
            ),
            (
                "by tanh",
                |w, x| {
                    let (k, small, one, half, three) =
                        (w.c(0.797_884_6), w.c(0.044_715), w.c(1.0), w.c(0.5), w.c(3.0));
                    let cube = w.two(Pow, x, three);
                    let cube = w.two(Mul, cube, small);
                    let sum = w.two(Add, x, cube);
                    let scaled = w.two(Mul, sum, k);
                    let tanh = w.op(Unary::Tanh, &[scaled]);
                    let sum = w.two(Add, tanh, one);
                    let halved = w.two(Mul, x, half);
                    w.two(Mul, halved, sum)
                },
                &["Gelu"],
            ),
            (
                "another factor",
                |w, x| {
                    let (root, one, half) = (w.c(0.5), w.c(1.0), w.c(0.5));
                    let (halved, scaled) = (w.two(Mul, half, x), w.two(Mul, x, root));
                    let erf = w.op(Unary::Erf, &[scaled]);
                    let sum = w.two(Add, one, erf);
                    w.two(Mul, sum, halved)
                },
                &["Mul", "Mul", "Erf", "Add", "Mul"],
            ),
            (
                "RMS normalization with a scale",
                |w, x| {
                    let epsilon = w.c(1e-5);
                    let square = w.two(Mul, x, x);
                    let mean = w.op(Reduce::new(Reduction::Mean, &[-1]), &[square]);
                    let sum = w.two(Add, mean, epsilon);
                    let root = w.op(Unary::Sqrt, &[sum]);
                    let y = w.two(Div, x, root);
                    let scale = w.0.constant("scale", Tensor::vector((0..8).map(|i| i as f32).collect()));
                    w.two(Mul, y, scale)
                },
                &["RMSNormalization"],
            ),
            (
                "by the reciprocal",
                |w, x| {
                    let (epsilon, two) = (w.c(1e-5), w.c(2.0));
                    let square = w.two(Pow, x, two);
                    let mean = w.op(Reduce::new(Reduction::Mean, &[1]), &[square]);
                    let sum = w.two(Add, epsilon, mean);
                    let root = w.op(Unary::Sqrt, &[sum]);
                    let inverse = w.op(Unary::Reciprocal, &[root]);
                    w.two(Mul, inverse, x)
                },
                &["RMSNormalization"],
            ),
            (
                "over another axis",
                |w, x| {
                    let epsilon = w.c(1e-5);
                    let square = w.two(Mul, x, x);
                    let mean = w.op(Reduce::new(Reduction::Mean, &[0]), &[square]);
                    let sum = w.two(Add, mean, epsilon);
                    let root = w.op(Unary::Sqrt, &[sum]);
                    w.two(Div, x, root)
                },
                &["Mul", "ReduceMean", "Add", "Sqrt", "Div"],
            ),
            (
                "whose square is read elsewhere too",
                |w, x| {
                    let epsilon = w.c(1e-5);
                    let square = w.two(Mul, x, x);
                    let mean = w.op(Reduce::new(Reduction::Mean, &[-1]), &[square]);
                    let sum = w.two(Add, mean, epsilon);
                    let root = w.op(Unary::Sqrt, &[sum]);
                    let y = w.two(Div, x, root);
                    w.two(Add, y, square)
                },
                &["Mul", "ReduceMean", "Add", "Sqrt", "Div", "Add"],
            ),
        ];
        for (what, write, want) in cases {
            let (names, apart) = folded(write);
            assert_eq!(names, want, "{what}");
            assert!(apart <= 2e-6, "{what}: {apart}");
        }
    }
}
