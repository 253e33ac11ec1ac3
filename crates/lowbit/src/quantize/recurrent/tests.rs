use crate::graph::Graph;
use crate::onnx;
use crate::op::{Dim, Fact};
use crate::ops::linear::MatMul;
use crate::ops::quantize::DequantizeLinear;
use crate::ops::recurrent::{Activation, Cell, Direction, Recurrent};
use crate::ops::shape::Squeeze;
use crate::qconfig::{QConfigMapping, Target, preset};
use crate::quantize::{Converted, Finding, Symptom, prepare};
use crate::scheme::Format;
use crate::session::Session;
use crate::tensor::{DType, Tensor};

use super::*;

const INPUT: usize = 12;
const HIDDEN: usize = 40;
const LSTM: Cell = Cell::Lstm { input_forget: false };
const GRU: Cell = Cell::Gru { linear_before_reset: false };
const RESET_AFTER: Cell = Cell::Gru { linear_before_reset: true };

/// Values of -most to most.
fn noise(seed: u32, shape: &[usize], most: f32) -> Tensor {
    let mut x = seed.wrapping_mul(0x9e37_79b9) | 1;
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x as f32 / u32::MAX as f32 * 2.0 - 1.0) * most
    };
    Tensor::new(shape, (0..shape.iter().product()).map(next).collect()).unwrap()
}

/// A layer, of whose results y is multiplied with a matrix (`z`), if `projected`,
/// and is the model's result.
struct Model {
    cell: Cell,
    functions: &'static [Activation],
    projected: bool,
}

impl Model {
    fn new(cell: Cell, functions: &'static [Activation]) -> Model {
        Model { cell, functions, projected: true }
    }

    fn gates(&self) -> usize {
        match self.cell {
            Cell::Lstm { .. } => 4,
            Cell::Gru { .. } => 3,
            Cell::Rnn => 1,
        }
    }

    fn graph(&self) -> Graph {
        let mut b = Builder::default();
        let (g, h, most) = (self.gates(), HIDDEN, 0.3);
        let steps = || Dim::Named("T".into());
        let layer = Recurrent {
            cell: self.cell,
            direction: Direction::Forward,
            hidden: Some(h),
            activations: self.functions.to_vec(),
            clip: None,
            batch_first: false,
        };
        let mut operands = vec![
            b.input("x", Fact::new(DType::F32, [steps(), 2.into(), INPUT.into()])),
            b.constant("w", noise(1, &[1, g * h, INPUT], most)),
            b.constant("r", noise(2, &[1, g * h, h], most / 2.0)),
            b.constant("b", noise(3, &[1, 2 * g * h], most)),
            b.input("lengths", Fact::new(DType::I32, [2])),
            b.input("first_h", Fact::new(DType::F32, [1, 2, h])),
        ];
        let mut names = vec!["y", "y_h"];
        if g == 4 {
            operands.push(b.input("first_c", Fact::new(DType::F32, [1, 2, h])));
            operands.push(b.constant("p", noise(4, &[1, 3 * h], most)));
            names.push("y_c");
        }
        let mut made = b.apply_all("layer", Arc::new(layer), &operands, &names).unwrap();
        if self.projected {
            let axis = b.constant("axis", Tensor::vector(vec![1i64]));
            let rows = b.apply("rows", Arc::new(Squeeze), &[made[0], axis]).unwrap();
            let matrix = b.constant("matrix", noise(5, &[h, 7], most));
            made.push(b.apply("product", Arc::new(MatMul), &[rows, matrix]).unwrap());
            names.push("z");
        }
        b.finish(names.iter().map(|n| n.to_string()).zip(made)).unwrap()
    }

    fn inputs(&self, seed: u32) -> Vec<Tensor> {
        let lengths = Tensor::vector(vec![20i32, 13]);
        let mut all = vec![noise(seed, &[20, 2, INPUT], 2.0), lengths, noise(seed + 1, &[1, 2, HIDDEN], 0.5)];
        if self.gates() == 4 {
            all.push(noise(seed + 2, &[1, 2, HIDDEN], 0.5));
        }
        all
    }

    fn converted(&self, mapping: &QConfigMapping) -> Converted {
        let mut prepared = prepare(&self.graph(), mapping).unwrap();
        (0..8).for_each(|i| _ = prepared.observe(&self.inputs(10 * i)).unwrap());
        prepared.convert().unwrap()
    }
}

fn default() -> QConfigMapping {
    QConfigMapping::global(preset("default").unwrap())
}

fn count(graph: &Graph, name: &str) -> usize {
    graph.applied().filter(|(_, _, op, _)| op.name() == name).count()
}

/// The ratio of `want` to what `found` differs by, in decibels.
fn sqnr(want: &Tensor, found: &Tensor) -> f64 {
    let pairs = || want.slice::<f32>().unwrap().iter().zip(found.slice::<f32>().unwrap());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let [signal, noise] =
        [pairs().map(|(a, _)| square(*a)).sum::<f64>(), pairs().map(|(a, b)| square(a - b)).sum()];
    10.0 * (signal / noise).log10()
}

use Activation::{Relu, Sigmoid, Tanh};

#[test]
fn layers_are_near_the_float_ones() {
    let cases = [
        (Model::new(LSTM, &[Sigmoid, Tanh, Tanh]), "QuantizedLSTM"),
        (Model::new(GRU, &[Sigmoid, Tanh]), "QuantizedGRU"),
        (Model::new(RESET_AFTER, &[Sigmoid, Tanh]), "QuantizedGRU"),
        (Model::new(Cell::Rnn, &[Tanh]), "QuantizedRNN"),
        (Model::new(Cell::Rnn, &[Relu]), "QuantizedRNN"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut failures = vec![];
    for (model, name) in cases {
        let Converted { graph, findings } = model.converted(&default());
        let own = Finding::new(name, Symptom::OwnOperator { nodes: 1 });
        assert_eq!((count(&graph, name), findings), (1, vec![own]), "{graph}");
        // Of the layer's operands, x alone is quantized.
        let layer = graph.applied().find(|(_, _, op, _)| op.name() == name).unwrap().3;
        let dequantized = |v: &&Var| graph.made_by::<DequantizeLinear>(**v).is_some();
        assert_eq!(layer.iter().filter(dequantized).collect::<Vec<_>>(), [&layer[0]], "{graph}");

        let inputs = model.inputs(1000);
        let want = model.graph().run(&inputs).unwrap();
        let found = graph.run(&inputs).unwrap();
        let session = Session::compile(&graph).unwrap();
        if session.report().coverage() != 1.0 || session.run(&inputs).unwrap()[..2] != found[..2] {
            failures.push(format!("{name}: {}", session.report()));
        }
        for (i, (want, found)) in want.iter().zip(&found).enumerate() {
            let decibels = sqnr(want, found);
            if decibels.is_nan() || decibels < 30.0 {
                failures.push(format!("{:?} {:?} result {i}: {decibels} dB", model.cell, model.functions));
            }
        }
        let path = folder.path().join("model.onnx");
        onnx::save(&graph, &path).unwrap();
        assert_eq!(onnx::load(&path).unwrap().run(&inputs).unwrap(), found, "{name}");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What a layer has that cannot be quantized, and what is then found.
#[test]
fn layers_without_steps_stay_in_float() {
    let unread = Model { projected: false, ..Model::new(Cell::Rnn, &[Relu]) };
    let mut wide = preset("default").unwrap();
    let activation = wide.activation.as_mut().unwrap();
    activation.format = Format::Int { bits: 16, signed: false, narrow: false };
    let in_float = default().with(Target::Op("LSTM".into()), None);
    let lstm = || Model::new(LSTM, &[Sigmoid, Tanh, Tanh]);
    let cases: [(Model, QConfigMapping, Option<&str>); 5] = [
        (unread, default(), Some("its states have no known range, and Y is not quantized")),
        (Model::new(GRU, &[Relu, Tanh]), default(), Some("its reset states have no known range")),
        (
            lstm(),
            default().with(Target::Op("LSTM".into()), Some(wide)),
            Some("its input is quantized to uint16, not to 8 bits"),
        ),
        (lstm(), in_float, None),
        (Model { projected: false, ..Model::new(Cell::Rnn, &[Tanh]) }, QConfigMapping::default(), None),
    ];
    for (model, mapping, reason) in cases {
        let Converted { graph, findings } = model.converted(&mapping);
        assert!(!graph.applied().any(|(_, _, op, _)| op.name().starts_with("Quantized")), "{graph}");
        let finding = |reason: &str| {
            let (nodes, reason) = (vec!["layer".into()], reason.into());
            Finding::new("layer", Symptom::InFloat { nodes, reason, share: None })
        };
        assert_eq!(findings, reason.map(finding).into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn weights_have_the_scales_that_are_asked_for() {
    for (per, shape) in [(Per::Tensor, vec![1]), (Per::Channel, vec![1, 3 * HIDDEN])] {
        let mut config = preset("default").unwrap();
        config.weight = config.weight.per(per);
        let model = Model::new(GRU, &[Sigmoid, Tanh]);
        let graph = model.converted(&QConfigMapping::global(config)).graph;
        let layer = graph.applied().find(|(_, _, op, _)| op.name() == "QuantizedGRU").unwrap().3;
        assert_eq!(graph.constant(layer[6]).unwrap().shape(), shape, "{per:?}");
    }
}

/// Weights of the run are not quantized, and neither is x then.
#[test]
fn layers_with_weights_of_the_run_stay_in_float() {
    let mut b = Builder::default();
    let shapes = [[4, 1, 2], [1, 3, 2], [1, 3, 3]];
    let operands = [0, 1, 2].map(|i| b.input(&format!("x{i}"), Fact::new(DType::F32, shapes[i])));
    let layer = Recurrent {
        cell: Cell::Rnn,
        direction: Direction::Forward,
        hidden: None,
        activations: vec![Tanh],
        clip: None,
        batch_first: false,
    };
    let y = b.apply_all("layer", Arc::new(layer), &operands, &["y"]).unwrap()[0];
    let graph = b.finish([("y".to_string(), y)]).unwrap();
    assert_eq!(prepare(&graph, &default()).unwrap().graph(), &graph);
}
