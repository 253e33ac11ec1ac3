//! Products of the run with what follows them, and with each other.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Graph, Kind, Uses, Var};
use crate::op::Dim;
use crate::ops::binary::Arithmetic;
use crate::ops::layout::Transpose;
use crate::ops::softmax::Softmax;
use crate::ops::unary::Unary;
use crate::session::float::stack::StackedMatMul;
use crate::session::integer::coded_rows::DynamicQuantize;
use crate::session::integer::dynamic::{After, DynamicLinear};
use crate::tensor::DType;

/// The graph with what follows a product folded into it where nothing else reads the
/// product: a factor and Softmax, or a transpose that lays heads side by side, into
/// those of two f32 matrices of the run, functions and additions into those of values
/// quantized in the run. Such values are quantized once for all products that read
/// them, and by the product that makes them where only these do.
pub fn chained(graph: &Graph) -> Result<Graph> {
    quantized_once(&followed(&side_by_side(&scaled(graph)?)?)?)
}

fn scaled(graph: &Graph) -> Result<Graph> {
    let uses = graph.uses();
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        let order: &[[usize; 2]] = match (op.is::<Softmax>(), op.is::<Arithmetic>()) {
            (Some(_), _) => &[[0, 0]],
            (_, Some(Arithmetic::Mul)) => &[[0, 1], [1, 0]],
            (_, Some(Arithmetic::Div)) => &[[0, 1]],
            _ => return b.copy(node, inputs),
        };
        for &[i, other] in order.iter().filter(|[i, _]| uses.of(old[*i]) == 1) {
            let Some((product, operands)) = b.so_far().made_by::<StackedMatMul>(inputs[i]) else { continue };
            let mut product = product.clone();
            if product.softmax {
                continue;
            }
            if let Some(softmax) = op.is::<Softmax>() {
                let is_last = [-1, b.fact(inputs[i]).rank() as i64 - 1].contains(&softmax.axis);
                if softmax.log || !is_last {
                    continue;
                }
                product.softmax = true;
            } else if let (Some(by), Some(op)) = (b.so_far().constant(inputs[other]), op.is::<Arithmetic>())
                && product.factor.is_none()
                && by.rank() <= b.fact(inputs[i]).rank()
                && let [by] = by.slice::<f32>()?
            {
                product.factor = Some((*op, *by));
            } else {
                continue;
            }
            let (operands, name) = (operands.to_vec(), b.so_far().node(inputs[i]).name.clone());
            return b.apply_all(&name, Arc::new(product), &operands, &[&node.outputs[0].name]);
        }
        b.copy(node, inputs)
    })
}

fn side_by_side(graph: &Graph) -> Result<Graph> {
    let uses = graph.uses();
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        if let Some(transpose) = op.is::<Transpose>()
            && uses.of(old[0]) == 1
            && let Some(axes) = StackedMatMul::side_by_side(b.fact(inputs[0]).rank())
            && transpose.perm.as_ref() == Some(&axes)
            && let Some((product, operands)) = b.so_far().made_by::<StackedMatMul>(inputs[0])
            && !product.softmax
            && !product.beside
            && product.factor.is_none()
        {
            let product = StackedMatMul { beside: true, ..product.clone() };
            let (operands, name) = (operands.to_vec(), b.so_far().node(inputs[0]).name.clone());
            return b.apply_all(&name, Arc::new(product), &operands, &[&node.outputs[0].name]);
        }
        b.copy(node, inputs)
    })
}

fn followed(graph: &Graph) -> Result<Graph> {
    let uses = graph.uses();
    graph.rebuild(|b, _, node, inputs| {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        let after = match (op.is::<Unary>(), op.is::<Arithmetic>()) {
            (Some(function), _) => After::Function(*function),
            (_, Some(Arithmetic::Add)) if old[0] != old[1] => After::Addition,
            _ => return b.copy(node, inputs),
        };
        let same = inputs.iter().all(|v| b.fact(*v).shape == b.fact(inputs[0]).shape);
        for (i, v) in inputs.iter().enumerate().filter(|(i, _)| same && uses.of(old[*i]) == 1) {
            let Some((product, operands)) = b.so_far().made_by::<DynamicLinear>(*v) else { continue };
            let Some(product) = product.followed(after) else { continue };
            let others = inputs.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, v)| *v);
            let operands: Vec<Var> = operands.iter().copied().chain(others).collect();
            let name = b.so_far().node(*v).name.clone();
            return b.apply_all(&name, Arc::new(product), &operands, &[&node.outputs[0].name]);
        }
        b.copy(node, inputs)
    })
}

/// For each value that products quantize, in one way: whether by rows, and how many
/// products.
fn quantized(graph: &Graph) -> HashMap<Var, (bool, usize)> {
    let mut found: HashMap<Var, Option<(bool, usize)>> = HashMap::new();
    for (_, _, op, inputs) in graph.applied() {
        let Some(product) = op.is::<DynamicLinear>() else { continue };
        let fact = graph.fact(inputs[0]);
        if fact.dtype == DType::F32 && matches!(fact.shape.last(), Some(Dim::Known(_))) {
            let before = found.get(&inputs[0]).copied().unwrap_or(Some((product.by_rows, 0)));
            let now = before.filter(|(by_rows, _)| *by_rows == product.by_rows);
            found.insert(inputs[0], now.map(|(by_rows, count)| (by_rows, count + 1)));
        }
    }
    found.into_iter().filter_map(|(v, how)| Some((v, how?))).collect()
}

fn quantized_once(graph: &Graph) -> Result<Graph> {
    let (uses, quantized): (Uses, _) = (graph.uses(), quantized(graph));
    let mut coded: HashMap<Var, Var> = HashMap::new();
    graph.rebuild(|b, v, node, inputs| {
        let Kind::Apply { op, inputs: old } = &node.kind else { return b.copy(node, inputs) };
        let Some(product) = op.is::<DynamicLinear>() else { return b.copy(node, inputs) };
        let name_of = |v: Var| format!("{}_coded", graph.value(v).name);
        let mut operands = inputs.to_vec();
        if let Some((by_rows, _)) = quantized.get(&old[0]).filter(|(_, count)| *count > 1)
            && !coded.contains_key(&old[0])
        {
            let op = DynamicQuantize { by_rows: *by_rows };
            coded.insert(old[0], b.apply(&name_of(old[0]), Arc::new(op), &inputs[..1])?);
        }
        if let Some(codes) = coded.get(&old[0]) {
            operands[0] = *codes;
        }
        let only = quantized.get(&v).filter(|(_, count)| *count == uses.of(v));
        if let Some(quantizing) = only.and_then(|(by_rows, _)| product.coded(*by_rows)) {
            let made = b.apply_all(&node.name, Arc::new(quantizing), &operands, &[&name_of(v)])?;
            coded.insert(v, made[0]);
            return Ok(made);
        }
        b.replace(node, op.clone(), &operands)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Builder;
    use crate::op::{Fact, Op};
    use crate::tensor::Tensor;

    /// A graph written in short.
    struct Writer {
        b: Builder,
        count: usize,
        by_rows: bool,
    }

    impl Writer {
        fn op(&mut self, op: impl Op, inputs: &[Var]) -> Var {
            self.count += 1;
            self.b.apply(&format!("v{}", self.count), Arc::new(op), inputs).unwrap()
        }
        /// A product with a matrix of 40 x 40.
        fn linear(&mut self, x: Var) -> Var {
            let codes: Vec<i8> = (0..1600).map(|i| (i * (self.count + 37) % 255) as u8 as i8).collect();
            self.op(DynamicLinear::new(&codes, 40, vec![0.01; 40], self.by_rows), &[x])
        }
        fn add(&mut self, a: Var, b: Var) -> Var {
            self.op(Arithmetic::Add, &[a, b])
        }
    }

    #[test]
    fn products_take_over_what_follows_them() {
        const GELU: Unary = Unary::Gelu { tanh: false };
        type Graphs = fn(&mut Writer, Var) -> Vec<Var>;
        let cases: [(&str, Graphs, &[&str]); 8] = [
            (
                "three of one value",
                |w, x| vec![w.linear(x), w.linear(x), w.linear(x)],
                &["DynamicQuantize", "DynamicLinear", "DynamicLinear", "DynamicLinear"],
            ),
            (
                "one after the other",
                |w, x| {
                    let y = w.linear(x);
                    let y = w.op(GELU, &[y]);
                    let y = w.linear(y);
                    vec![w.add(x, y)]
                },
                &["DynamicLinear", "DynamicLinear"],
            ),
            (
                "without a function between",
                |w, x| {
                    let y = w.linear(x);
                    vec![w.linear(y), w.linear(y)]
                },
                &["DynamicLinear", "DynamicLinear", "DynamicLinear"],
            ),
            (
                "a function read twice",
                |w, x| {
                    let y = w.linear(x);
                    let y = w.op(Unary::Relu, &[y]);
                    let z = w.linear(y);
                    vec![w.add(z, y)]
                },
                &["DynamicLinear", "DynamicLinear"],
            ),
            (
                "a product read twice",
                |w, x| {
                    let y = w.linear(x);
                    let z = w.op(Unary::Tanh, &[y]);
                    vec![w.add(z, y)]
                },
                &["DynamicLinear", "Tanh", "Add"],
            ),
            (
                "a function of a sum",
                |w, x| {
                    let y = w.linear(x);
                    let y = w.add(y, x);
                    vec![w.op(Unary::Relu, &[y])]
                },
                &["DynamicLinear", "Relu"],
            ),
            (
                "twice the same",
                |w, x| {
                    let y = w.linear(x);
                    vec![w.add(y, y)]
                },
                &["DynamicLinear", "Add"],
            ),
            (
                "the sum of two",
                |w, x| {
                    let (y, z) = (w.linear(x), w.linear(x));
                    vec![w.add(y, z)]
                },
                &["DynamicQuantize", "DynamicLinear", "DynamicLinear"],
            ),
        ];
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 300.0 - 1.7;
        let x = Tensor::new(&[3, 11, 40], (0..1320).map(value).collect()).unwrap();
        let mut failures = vec![];
        for by_rows in [false, true] {
            for (name, write, want) in cases {
                let mut w = Writer { b: Builder::default(), count: 0, by_rows };
                let shape = [Dim::Named("N".into()), 11.into(), 40.into()];
                let input = w.b.input("x", Fact::new(DType::F32, shape));
                let outputs = write(&mut w, input);
                let named = outputs.into_iter().enumerate().map(|(i, v)| (format!("y{i}"), v));
                let graph = w.b.finish(named).unwrap();
                let made = chained(&graph).unwrap();
                let ops: Vec<&str> = made.applied().map(|(_, _, op, _)| op.name()).collect();
                let [a, b] = [&graph, &made].map(|g| g.run(std::slice::from_ref(&x)).unwrap());
                if ops != want || a != b || graph.macs() != made.macs() {
                    failures.push(format!("{name}, by rows {by_rows}: {ops:?}, equal {}", a == b));
                }
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
    #[test]
    fn attention_is_one_operator() {
        type Graphs = fn(&mut Writer, Var, Var) -> Var;
        let cases: [(&str, Graphs, &[&str]); 9] = [
            (
                "multiplied",
                |w, y, c| {
                    let y = w.op(Arithmetic::Mul, &[c, y]);
                    w.op(Softmax::new(-1), &[y])
                },
                &["StackedMatMul"],
            ),
            (
                "divided",
                |w, y, c| {
                    let y = w.op(Arithmetic::Div, &[y, c]);
                    w.op(Softmax::new(2), &[y])
                },
                &["StackedMatMul"],
            ),
            ("a divisor", |w, y, c| w.op(Arithmetic::Div, &[c, y]), &["StackedMatMul", "Div"]),
            ("heads", |w, y, _| w.op(Transpose { perm: Some(vec![1, 0, 2]) }, &[y]), &["StackedMatMul"]),
            (
                "heads, read twice",
                |w, y, _| {
                    let heads = || Transpose { perm: Some(vec![1, 0, 2]) };
                    let z = w.op(heads(), &[y]);
                    let z = w.op(heads(), &[z]);
                    w.op(Arithmetic::Mul, &[y, z])
                },
                &["StackedMatMul", "Transpose", "Transpose", "Mul"],
            ),
            (
                "columns before rows",
                |w, y, _| w.op(Transpose { perm: Some(vec![0, 2, 1]) }, &[y]),
                &["StackedMatMul", "Transpose"],
            ),
            ("columns", |w, y, _| w.op(Softmax::new(1), &[y]), &["StackedMatMul", "Softmax"]),
            (
                "read twice",
                |w, y, _| {
                    let z = w.op(Softmax::new(2), &[y]);
                    w.op(Arithmetic::Mul, &[y, z])
                },
                &["StackedMatMul", "Softmax", "Mul"],
            ),
            (
                "a factor behind Softmax",
                |w, y, c| {
                    let y = w.op(Softmax::new(2), &[y]);
                    w.op(Arithmetic::Mul, &[y, c])
                },
                &["StackedMatMul", "Mul"],
            ),
        ];
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 300.0 - 1.7;
        let x = Tensor::new(&[3, 10, 10], (0..300).map(value).collect()).unwrap();
        for (name, write, want) in cases {
            let mut w = Writer { b: Builder::default(), count: 0, by_rows: false };
            let x_fact = Fact::new(DType::F32, [Dim::Named("N".into()), 10.into(), 10.into()]);
            let input = w.b.input("x", x_fact);
            let c = w.b.constant("c", Tensor::scalar(0.3f32));
            let product = w.op(StackedMatMul::default(), &[input, input]);
            let y = write(&mut w, product, c);
            let graph = w.b.finish([("y".to_string(), y)]).unwrap();
            let made = chained(&graph).unwrap();
            let ops: Vec<&str> = made.applied().map(|(_, _, op, _)| op.name()).collect();
            assert_eq!(ops, want, "{name}");
            let [a, b] = [&graph, &made].map(|g| g.run(std::slice::from_ref(&x)).unwrap());
            assert_eq!(a, b, "{name}");
        }
    }
}
