//! Laws on random graphs: what is saved is read again, and names survive the
//! passes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lowbit::graph::{Builder, Graph, Var};
use lowbit::op::{Dim, Fact, Op, Quant};
use lowbit::ops::binary::Arithmetic;
use lowbit::ops::conv::Conv;
use lowbit::ops::layout::{Concat, Transpose};
use lowbit::ops::linear::{Gemm, MatMul};
use lowbit::ops::norm::BatchNormalization;
use lowbit::ops::pool::{GlobalAveragePool, MaxPool, Pool};
use lowbit::ops::quantize::DequantizeLinear;
use lowbit::ops::shape::{Dropout, Flatten, Identity, Reshape};
use lowbit::ops::unary::Unary;
use lowbit::ops::window::{Padding, Window};
use lowbit::qconfig::{PRESETS, QConfigMapping};
use lowbit::quantize::{fuse, prepare};
use lowbit::session::Session;
use lowbit::{DType, Tensor, onnx};
use proptest::prelude::*;

/// One operator of a chain, or a layer that ends the image.
#[derive(Clone, Debug)]
enum Step {
    Unary(usize),
    /// With the value this many steps back, if it has the same shape.
    Binary(Arithmetic, usize),
    /// With a constant for each channel, on this side.
    Constant(Arithmetic, bool),
    Conv {
        outputs: usize,
        kernel: usize,
        stride: usize,
        bias: bool,
    },
    Depthwise,
    Normalize,
    MaxPool,
    Join(usize),
    Nothing(bool),
    Transpose,
    Dense {
        outputs: usize,
        bias: bool,
    },
    Product(usize),
    GlobalPool,
}

const UNARY: [Unary; 6] =
    [Unary::Relu, Unary::Sigmoid, Unary::Tanh, Unary::LeakyRelu { alpha: 0.1 }, Unary::HardSwish, Unary::Neg];

fn step() -> impl Strategy<Value = Step> {
    let arithmetic = prop_oneof![Just(Arithmetic::Add), Just(Arithmetic::Mul), Just(Arithmetic::Sub)];
    prop_oneof![
        3 => (0..UNARY.len()).prop_map(Step::Unary),
        2 => (arithmetic.clone(), 0usize..4).prop_map(|(f, back)| Step::Binary(f, back)),
        2 => (arithmetic, any::<bool>()).prop_map(|(f, left)| Step::Constant(f, left)),
        4 => (1usize..5, 1usize..4, 1usize..3, any::<bool>())
            .prop_map(|(outputs, kernel, stride, bias)| Step::Conv { outputs, kernel, stride, bias }),
        1 => Just(Step::Depthwise),
        2 => Just(Step::Normalize),
        1 => Just(Step::MaxPool),
        1 => (0usize..4).prop_map(Step::Join),
        1 => any::<bool>().prop_map(Step::Nothing),
        1 => Just(Step::Transpose),
        1 => (1usize..5, any::<bool>()).prop_map(|(outputs, bias)| Step::Dense { outputs, bias }),
        1 => (1usize..5).prop_map(Step::Product),
        1 => Just(Step::GlobalPool),
    ]
}

/// Builds a chain: node `n<i>` makes value `v<i>`.
struct Chain {
    b: Builder,
    values: Vec<Var>,
    steps: usize,
    seed: u32,
}

impl Chain {
    fn numbers(&mut self, name: &str, shape: &[usize]) -> Var {
        let mut next = || {
            self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.seed >> 8) as f32 / (1 << 23) as f32 - 0.99
        };
        let t = Tensor::new(shape, (0..shape.iter().product()).map(|_| next()).collect()).unwrap();
        self.b.constant(name, t)
    }

    fn sizes(&self) -> Vec<usize> {
        let last = self.values[self.values.len() - 1];
        self.b.fact(last).shape[1..].iter().map(|d| d.known().unwrap()).collect()
    }

    fn apply(&mut self, op: impl Op, inputs: &[Var]) {
        let (node, value) = (format!("n{}", self.steps), format!("v{}", self.steps));
        self.steps += 1;
        let made = self.b.apply_all(&node, Arc::new(op), inputs, &[&value]).unwrap();
        self.values.push(made[0]);
    }

    /// Applies a step, if it suits the value at hand.
    fn add(&mut self, step: &Step) {
        let x = self.values[self.values.len() - 1];
        let (sizes, i) = (self.sizes(), self.steps);
        let channels = sizes[0];
        let image = sizes.len() == 3;
        let back = |back: &usize| self.values[self.values.len().saturating_sub(1 + back)];
        let per_channel: &[usize] = if image { &[channels, 1, 1] } else { &[channels] };
        match step {
            Step::Unary(f) => self.apply(UNARY[*f], &[x]),
            Step::Binary(f, n) if self.b.fact(back(n)).shape == self.b.fact(x).shape => {
                let y = back(n);
                self.apply(*f, &[x, y]);
            }
            Step::Constant(f, left) => {
                let c = self.numbers(&format!("c{i}"), per_channel);
                self.apply(*f, &if *left { [c, x] } else { [x, c] });
            }
            Step::Conv { outputs, kernel, stride, bias } if image && sizes[1].min(sizes[2]) >= *kernel => {
                let mut inputs =
                    vec![x, self.numbers(&format!("w{i}"), &[*outputs, channels, *kernel, *kernel])];
                inputs.extend(bias.then(|| self.numbers(&format!("b{i}"), &[*outputs])));
                let padding = Padding::Explicit(vec![(1, 0), (0, 1)]);
                let window = Window { strides: vec![*stride; 2], dilations: vec![], padding };
                self.apply(Conv { window, group: 1, kernel: None }, &inputs);
            }
            Step::Depthwise if image => {
                let w = self.numbers(&format!("w{i}"), &[channels, 1, 1, 1]);
                self.apply(Conv { window: Window::default(), group: channels, kernel: None }, &[x, w]);
            }
            Step::Normalize if image => {
                let [scale, shift, mean] =
                    ["s", "b", "m"].map(|p| self.numbers(&format!("{p}{i}"), &[channels]));
                let var = self.b.constant(&format!("var{i}"), Tensor::full(&[channels], 0.5f32).unwrap());
                self.apply(
                    BatchNormalization { epsilon: 1e-5, training: None },
                    &[x, scale, shift, mean, var],
                );
            }
            Step::MaxPool if image && sizes[1].min(sizes[2]) >= 2 => {
                let pool = Pool { kernel: vec![2, 2], window: Window::default(), ceil: false };
                self.apply(MaxPool { pool }, &[x]);
            }
            Step::Join(n) if self.b.fact(back(n)).shape == self.b.fact(x).shape && channels < 8 => {
                let y = back(n);
                self.apply(Concat { axis: 1 }, &[x, y]);
            }
            Step::Nothing(true) => self.apply(Identity, &[x]),
            Step::Nothing(false) => self.apply(Dropout::new(0.25), &[x]),
            Step::Transpose if image => self.apply(Transpose { perm: Some(vec![0, 1, 3, 2]) }, &[x]),
            Step::Dense { outputs, bias } => {
                let x = self.flat(x, image, i % 2 == 0);
                let inputs = self.sizes()[0];
                let i = self.steps;
                let mut operands = vec![x, self.numbers(&format!("w{i}"), &[*outputs, inputs])];
                operands.extend(bias.then(|| self.numbers(&format!("b{i}"), &[*outputs])));
                self.apply(Gemm { trans_b: true, ..Gemm::default() }, &operands);
            }
            Step::Product(outputs) => {
                let x = self.flat(x, image, i % 2 == 0);
                let (inputs, i) = (self.sizes()[0], self.steps);
                let w = self.numbers(&format!("w{i}"), &[inputs, *outputs]);
                self.apply(MatMul, &[x, w]);
            }
            Step::GlobalPool if image => self.apply(GlobalAveragePool, &[x]),
            _ => {}
        }
    }

    /// The image `x` as a row for each sample, by one of the two operators for it.
    fn flat(&mut self, x: Var, image: bool, reshape: bool) -> Var {
        if image && reshape {
            let target = self.b.constant(&format!("t{}", self.steps), Tensor::vector(vec![0i64, -1]));
            self.apply(Reshape::default(), &[x, target]);
        } else if image {
            self.apply(Flatten { axis: 1 }, &[x]);
        }
        self.values[self.values.len() - 1]
    }
}

fn graph(steps: &[Step], seed: u32) -> Graph {
    let mut b = Builder::default();
    let dims = [Dim::Named("N".into()), Dim::Known(2), Dim::Known(6), Dim::Known(5)];
    let x = b.input("x", Fact { dtype: DType::F32, shape: dims.to_vec(), sizes: None });
    let mut chain = Chain { b, values: vec![x], steps: 0, seed };
    steps.iter().for_each(|s| chain.add(s));
    let last = chain.values[chain.values.len() - 1];
    chain.b.finish([("y".to_string(), last)]).unwrap()
}

fn batch() -> Vec<Tensor> {
    let values = (0..3 * 60).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
    vec![Tensor::new(&[3, 2, 6, 5], values).unwrap()]
}

/// Every computed value by name.
fn values(g: &Graph) -> BTreeMap<String, Tensor> {
    let mut found = BTreeMap::new();
    g.run_with(&batch(), |v, _, t| {
        found.insert(g.value(v).name.clone(), t.clone());
        Ok(())
    })
    .unwrap();
    found
}

fn assert_close(a: &Tensor, b: &Tensor, what: &str) {
    assert_eq!(a.shape(), b.shape(), "{what}");
    let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
    let most = b.iter().fold(1f32, |m, x| m.max(x.abs()));
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() <= 1e-5 * most, "{what}: {a} is not {b}");
    }
}

fn reread(g: &Graph) -> Graph {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("g.onnx");
    onnx::save(g, &path).unwrap();
    onnx::load(&path).unwrap()
}

/// Names of the nodes with a weight.
fn layers(g: &Graph) -> BTreeSet<String> {
    let weighted =
        g.applied().filter(|(_, _, op, _)| matches!(op.quant(), Quant::Compute { weight: Some(_), .. }));
    weighted.map(|(_, node, ..)| node.name.clone()).collect()
}

fn all_nodes(g: &Graph) -> BTreeSet<String> {
    g.applied().map(|(_, node, ..)| node.name.clone()).collect()
}

fn ends(g: &Graph) -> (Vec<(String, String)>, Vec<(String, String)>) {
    let inputs = g.inputs().map(|(_, v)| (v.name.clone(), v.fact.to_string()));
    let outputs = g.outputs().map(|(name, v)| (name.to_string(), g.fact(v).to_string()));
    (inputs.collect(), outputs.collect())
}

#[test]
fn operands_left_out_at_the_end_are_no_operands() {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::U8, [2]));
    let scale = b.constant("scale", Tensor::scalar(0.5f32));
    let absent = b.absent();
    let y = b.apply("y", Arc::new(DequantizeLinear::default()), &[x, scale, absent]).unwrap();
    let g = b.finish([("y".to_string(), y)]).unwrap();
    assert_eq!(g.applied().next().unwrap().3.len(), 2);
    assert_eq!(reread(&g), g);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn graphs_survive_saving_and_names_survive_passes(
        steps in prop::collection::vec(step(), 0..14), seed: u32, preset in 0..PRESETS.len(),
    ) {
        let g = graph(&steps, seed);
        prop_assert_eq!(&reread(&g), &g);

        let fused = fuse(&g).unwrap();
        prop_assert_eq!(&reread(&fused), &fused);
        prop_assert_eq!(ends(&fused), ends(&g));
        prop_assert!(layers(&g).is_subset(&all_nodes(&fused)), "{g}\n{fused}");
        let (before, after) = (values(&g), values(&fused));
        for (name, value) in after.iter().filter_map(|(n, v)| Some((n, (v, before.get(n)?)))) {
            assert_close(value.0, value.1, name);
        }

        let mut prepared = prepare(&fused, &QConfigMapping::global(PRESETS[preset].1())).unwrap();
        prop_assert_eq!(ends(prepared.graph()), ends(&fused));
        prop_assert!(layers(&fused).is_subset(&all_nodes(prepared.graph())));
        let watched = values(prepared.graph());
        for (name, value) in after.iter().filter(|(n, _)| prepared.graph().find(n).is_some()) {
            prop_assert_eq!(&watched[name], value);
        }

        prepared.calibrate(std::iter::once(Ok(batch())), &|_| Ok(())).unwrap();
        let converted = prepared.convert().unwrap().graph;
        prop_assert_eq!(&reread(&converted), &converted);
        prop_assert_eq!(ends(&converted), ends(&g));
        prop_assert!(layers(&fused).is_subset(&all_nodes(&converted)), "{fused}\n{converted}");

        let session = Session::compile(&converted).unwrap();
        prop_assert_eq!(ends(session.graph()), ends(&g));
        prop_assert!(layers(&fused).is_subset(&all_nodes(session.graph())), "{converted}\n{}", session.graph());
        let found = session.run(&batch()).unwrap();
        let want = converted.run(&batch()).unwrap();
        prop_assert_eq!(found[0].shape(), want[0].shape());
    }
}
