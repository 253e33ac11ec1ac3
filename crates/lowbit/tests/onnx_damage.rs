//! The golden models with numbers, names and types changed at random: each is
//! refused or another model, and nothing panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use lowbit::graph::Graph;
use lowbit::op::Fact;
use lowbit::quantize::fuse;
use lowbit::session::Session;
use lowbit::{Tensor, onnx};
use lowbit_onnx::proto::{GraphProto, ModelProto, tensor_shape_proto::dimension::Value as Size, type_proto};
use prost::Message;

/// Elements of a value, and multiply-accumulates of a run, that a damaged
/// model may have to be run.
const SMALL: u64 = 1 << 14;

/// Numbers at which arithmetic breaks.
const INTEGERS: [i64; 16] = [
    0,
    1,
    -1,
    2,
    3,
    -2,
    7,
    64,
    -100,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    1 << 40,
    i64::MAX,
    i64::MIN,
    i64::MAX / 2,
];

const FLOATS: [f32; 8] = [0.0, -0.0, -1.0, 1e30, 1e-40, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];

struct Damage(u64);

impl Damage {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }

    fn integer(&mut self, x: &mut i64) {
        *x = match self.below(3) {
            0 => x.wrapping_add(1),
            1 => x.wrapping_neg(),
            _ => INTEGERS[self.below(INTEGERS.len())],
        };
    }

    fn integers(&mut self, x: &mut Vec<i64>) {
        let i = self.below(x.len());
        match self.below(5) {
            0 => x.push(INTEGERS[self.below(INTEGERS.len())]),
            1 => drop(x.pop()),
            2 => x.clear(),
            _ => x.iter_mut().skip(i).take(1).for_each(|x| self.integer(x)),
        }
    }

    /// One change somewhere in the model: in its graph, a body, or a function.
    fn model(&mut self, m: &mut ModelProto) {
        let n = m.functions.len();
        match m.functions.get_mut(self.below(2 * n)) {
            Some(f) => {
                let mut graph = GraphProto { node: std::mem::take(&mut f.node), ..GraphProto::default() };
                self.within(&mut graph);
                f.node = graph.node;
            }
            None => self.within(m.graph.as_mut().unwrap()),
        }
    }

    /// One change in a graph or in one of its bodies.
    fn within(&mut self, g: &mut GraphProto) {
        let attributes = g.node.iter_mut().flat_map(|n| &mut n.attribute);
        let mut bodies: Vec<&mut GraphProto> = attributes.filter_map(|a| a.g.as_deref_mut()).collect();
        let n = bodies.len();
        match bodies.get_mut(self.below(2 * n)) {
            Some(body) => self.within(body),
            None => self.graph(g),
        }
    }

    /// One change somewhere in the graph.
    fn graph(&mut self, g: &mut GraphProto) {
        let (nodes, stored) = (g.node.len(), g.initializer.len());
        match self.below(10) {
            0..4 if nodes > 0 => {
                let node = &mut g.node[self.below(nodes)];
                let n = node.attribute.len();
                let Some(a) = node.attribute.get_mut(self.below(n)) else { return };
                match self.below(12) {
                    0 => a.name = Some("axis".into()),
                    1 => a.r#type = None,
                    2 => drop(node.attribute.pop()),
                    _ => {
                        a.i.iter_mut().for_each(|x| self.integer(x));
                        self.integers(&mut a.ints);
                        a.f.iter_mut().for_each(|x| *x = FLOATS[self.below(FLOATS.len())]);
                        if let Some(t) = &mut a.t {
                            self.integers(&mut t.dims);
                        }
                    }
                }
            }
            4 | 5 if nodes > 0 => {
                let names: Vec<String> = g.node.iter().flat_map(|n| n.input.clone()).collect();
                let node = &mut g.node[self.below(nodes)];
                let n = node.input.len();
                let other = names.get(self.below(names.len())).cloned().unwrap_or_default();
                match (self.below(4), self.below(n)) {
                    (0, _) => node.input.push(other),
                    (1, _) => drop(node.input.pop()),
                    (2, i) if i < n => node.input[i] = String::new(),
                    (_, i) if i < n => node.input[i] = other,
                    _ => {}
                }
            }
            6 if nodes > 0 => {
                let op = g.node[self.below(nodes)].op_type.clone();
                g.node[self.below(nodes)].op_type = op;
            }
            7 if stored > 0 => {
                let t = &mut g.initializer[self.below(stored)];
                match self.below(4) {
                    0 => t.data_type = Some(self.below(26) as i32),
                    1 => self.integers(&mut t.dims),
                    2 => t.dims.push(1),
                    _ => t.dims.reverse(),
                }
            }
            8 if stored > 0 => {
                let t = &mut g.initializer[self.below(stored)];
                self.integers(&mut t.int64_data);
                if let Some(raw) = &mut t.raw_data {
                    let i = self.below(raw.len());
                    if t.data_type == Some(7) && raw.len() >= 8 {
                        let x = INTEGERS[self.below(INTEGERS.len())];
                        raw[i / 8 * 8..][..8].copy_from_slice(&x.to_le_bytes());
                    } else if !raw.is_empty() {
                        raw[i] ^= 0x80;
                    }
                }
            }
            _ => {
                let n = g.input.len();
                let Some(t) = g.input.get_mut(self.below(n)).and_then(|v| v.r#type.as_mut()) else { return };
                let Some(type_proto::Value::TensorType(t)) = &mut t.value else { return };
                let number = self.below(26) as i32;
                match &mut t.shape {
                    Some(shape) if !shape.dim.is_empty() && number % 4 > 0 => {
                        let i = self.below(shape.dim.len());
                        let mut n = 3;
                        self.integer(&mut n);
                        shape.dim[i].value = Some(Size::DimValue(n));
                    }
                    _ => t.elem_type = Some(number),
                }
            }
        }
    }
}

/// The model with every named dimension of an input set to 2, so that the
/// sizes of most values are known before it runs.
fn sized(mut model: ModelProto) -> ModelProto {
    for input in model.graph.iter_mut().flat_map(|g| &mut g.input) {
        if let Some(type_proto::Value::TensorType(t)) = input.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            for d in t.shape.iter_mut().flat_map(|s| &mut s.dim) {
                if !matches!(d.value, Some(Size::DimValue(_))) {
                    d.value = Some(Size::DimValue(2));
                }
            }
        }
    }
    model
}

/// Whether every loop has few iterations at most.
fn is_bounded(graph: &Graph) -> bool {
    graph.applied().all(|(_, _, op, inputs)| {
        let trips = inputs.first().and_then(|v| graph.constant(*v)?.item::<i64>().ok());
        let counts = op.name() != "Loop" || trips.is_some_and(|n| n < 64);
        counts && op.bodies().iter().all(is_bounded)
    })
}

/// Runs a graph whose values are all small on zeros, in each of the ways.
fn run(graph: &Graph) {
    let small = |f: &Fact| f.known_shape().is_some() && f.elements() <= SMALL;
    if graph.macs() > SMALL
        || !is_bounded(graph)
        || !graph.nodes().all(|(_, n)| n.outputs.iter().all(|o| small(&o.fact)))
    {
        return;
    }
    let zeros: Vec<Tensor> = graph
        .inputs()
        .map(|(_, v)| {
            let shape = v.fact.known_shape().unwrap();
            let bytes = v.fact.dtype.bytes_of(shape.iter().product());
            Tensor::from_bytes(v.fact.dtype, &shape, &vec![0; bytes]).unwrap()
        })
        .collect();
    let found = graph.run(&zeros);
    if let Ok(found) = &found {
        for ((_, v), y) in graph.outputs().zip(found) {
            let fact = graph.fact(v);
            assert_eq!((fact.dtype, fact.known_shape()), (y.dtype(), Some(y.shape().to_vec())), "{graph}");
        }
    }
    if let Ok(fused) = fuse(graph) {
        let _ = fused.run(&zeros);
    }
    if let Ok(session) = Session::compile(graph) {
        let _ = session.run(&zeros);
    }
}

#[test]
fn damaged_golden_models_do_not_panic() {
    let rounds: u64 = std::env::var("LOWBIT_DAMAGE").map_or(6, |n| n.parse().unwrap());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    paths.sort();
    let (mut failures, mut read) = (vec![], 0);
    for (i, path) in paths.iter().enumerate() {
        let whole = ModelProto::decode(&std::fs::read(path).unwrap()[..]).unwrap();
        for round in 0..rounds {
            let mut damage = Damage(round * 1000 + i as u64);
            let mut model = sized(whole.clone());
            for _ in 0..1 + damage.below(3) {
                damage.model(&mut model);
            }
            let bytes = model.encode_to_vec();
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let Ok(graph) = onnx::decode(&bytes) else { return false };
                let again = onnx::decode(&onnx::encode(&graph).unwrap().encode_to_vec()).unwrap();
                let (before, after) = (graph.to_string(), again.to_string());
                assert_eq!(before.lines().count(), after.lines().count(), "{before}\n{after}");
                run(&graph);
                true
            }));
            match outcome {
                Ok(is_model) => read += usize::from(is_model),
                Err(_) => failures.push(format!("{} round {round}", path.display())),
            }
        }
    }
    assert!(failures.is_empty(), "{}:\n{}", failures.len(), failures.join("\n"));
    assert!(read > paths.len(), "only {read} damaged models are still models");
}
