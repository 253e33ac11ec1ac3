//! Branches, loops and functions that are wrong, nested without end, or
//! quantized: errors say what and where, and bodies are compiled like graphs.

use std::collections::HashMap;
use std::path::Path;

use lowbit::graph::Graph;
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::quantize::{fuse, prepare};
use lowbit::session::Session;
use lowbit::{Tensor, data::npz, onnx};
use lowbit_onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto,
    type_proto,
};
use prost::Message;

const F32: i32 = 1;
const I64: i32 = 7;
const BOOL: i32 = 9;

fn value(name: &str, dtype: i32, dims: &[i64]) -> ValueInfoProto {
    let dim = |&n: &i64| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(n)),
        ..Default::default()
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(dtype), shape };
    of_type(name, type_proto::Value::TensorType(tensor))
}

fn of_type(name: &str, value: type_proto::Value) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { value: Some(value), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

fn named(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() }
}

/// Names are separated by spaces; "-" is one left out.
fn names(s: &str) -> Vec<String> {
    s.split_whitespace().map(|n| if n == "-" { String::new() } else { n.into() }).collect()
}

fn node(name: &str, op: &str, inputs: &str, outputs: &str) -> NodeProto {
    NodeProto {
        name: Some(name.into()),
        op_type: Some(op.into()),
        input: names(inputs),
        output: names(outputs),
        ..NodeProto::default()
    }
}

fn with(mut node: NodeProto, attributes: impl IntoIterator<Item = AttributeProto>) -> NodeProto {
    node.attribute.extend(attributes);
    node
}

fn int(name: &str, i: i64) -> AttributeProto {
    let kind = Some(AttributeType::Int.into());
    AttributeProto { name: Some(name.into()), i: Some(i), r#type: kind, ..AttributeProto::default() }
}

fn refers(name: &str, to: &str) -> AttributeProto {
    AttributeProto { ref_attr_name: Some(to.into()), i: None, ..int(name, 0) }
}

fn graph(nodes: Vec<NodeProto>, inputs: &str, outputs: &str) -> GraphProto {
    GraphProto {
        name: Some("body".into()),
        node: nodes,
        input: names(inputs).iter().map(|n| named(n)).collect(),
        output: names(outputs).iter().map(|n| named(n)).collect(),
        ..GraphProto::default()
    }
}

fn body(name: &str, graph: GraphProto) -> AttributeProto {
    let kind = Some(AttributeType::Graph.into());
    AttributeProto {
        name: Some(name.into()),
        g: Some(graph.into()),
        r#type: kind,
        ..AttributeProto::default()
    }
}

/// `If` of these branches, whose results are `t` and `e`.
fn branch(condition: &str, then: Vec<NodeProto>, other: Vec<NodeProto>) -> NodeProto {
    let bodies = [body("then_branch", graph(then, "", "t")), body("else_branch", graph(other, "", "e"))];
    with(node("if1", "If", condition, "y"), bodies)
}

fn repeat(inputs: &str, outputs: &str, graph: GraphProto) -> NodeProto {
    with(node("loop1", "Loop", inputs, outputs), [body("body", graph)])
}

fn relu(x: &str, y: &str) -> NodeProto {
    node(&format!("relu_{y}"), "Relu", x, y)
}

fn scalar(name: &str, dtype: i32, x: i64) -> TensorProto {
    let mut t = TensorProto { name: Some(name.into()), data_type: Some(dtype), ..TensorProto::default() };
    match dtype {
        F32 => t.float_data = vec![x as f32],
        I64 => t.int64_data = vec![x],
        _ => t.int32_data = vec![x as i32],
    }
    t
}

fn imports() -> Vec<OperatorSetIdProto> {
    let import =
        |domain: &str, version| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
    vec![import("", 13), import("own", 1)]
}

/// A model with inputs `x` f32 [2, 3], `c` bool, `n` int64 and `two` bool [2],
/// constants `yes` and `four`, and output `y`.
fn model(nodes: Vec<NodeProto>) -> ModelProto {
    let inputs =
        vec![value("x", F32, &[2, 3]), value("c", BOOL, &[]), value("n", I64, &[]), value("two", BOOL, &[2])];
    ModelProto {
        ir_version: Some(8),
        opset_import: imports(),
        graph: Some(GraphProto {
            input: inputs,
            initializer: vec![scalar("yes", BOOL, 1), scalar("four", I64, 4)],
            ..graph(nodes, "", "y")
        }),
        ..ModelProto::default()
    }
}

fn function(
    name: &str,
    inputs: &str,
    outputs: &str,
    nodes: Vec<NodeProto>,
    attributes: &str,
) -> FunctionProto {
    FunctionProto {
        name: Some(name.into()),
        domain: Some("own".into()),
        input: names(inputs),
        output: names(outputs),
        node: nodes,
        attribute: names(attributes),
        opset_import: imports(),
        ..FunctionProto::default()
    }
}

fn call(name: &str, function: &str, inputs: &str, outputs: &str) -> NodeProto {
    NodeProto { domain: Some("own".into()), ..node(name, function, inputs, outputs) }
}

fn with_functions(model: ModelProto, functions: Vec<FunctionProto>) -> ModelProto {
    ModelProto { functions, ..model }
}

fn decoded(model: &ModelProto) -> lowbit::Result<Graph> {
    onnx::decode(&model.encode_to_vec())
}

/// A body that carries `v` on, and gives its condition back.
fn carrying(nodes: Vec<NodeProto>, outputs: &str) -> GraphProto {
    graph(nodes, "i k v", outputs)
}

/// Each model with the words that its error must have.
fn cases() -> Vec<(&'static str, ModelProto, &'static [&'static str])> {
    let one = || vec![relu("x", "t")];
    let other = || vec![relu("x", "e")];
    let calls_itself =
        |name: &'static str, inner: &str| function(name, "a", "b", vec![call("deep", inner, "a", "b")], "");
    let sequence = of_type("v", type_proto::Value::SequenceType(Box::default()));
    let scan = |states: &str, graph: GraphProto, sequences: i64| {
        with(node("scan1", "Scan", states, "y"), [body("body", graph), int("num_scan_inputs", sequences)])
    };
    vec![
        (
            "a branch that captures nothing known",
            model(vec![branch("c", vec![node("add", "Add", "x zz", "t")], other())]),
            &["if1", "\"zz\"", "no input, initializer"],
        ),
        (
            "a body in a body that captures nothing known",
            model(vec![branch(
                "c",
                vec![branch("c", vec![relu("zz", "t")], other()), relu("y", "t")],
                other(),
            )]),
            &["if1", "\"zz\""],
        ),
        (
            "a value of a body outside it",
            model(vec![with(branch("c", one(), other()), []), node("late", "Add", "t x", "z")]),
            &["late", "\"t\""],
        ),
        (
            "branches that take inputs",
            model(vec![with(
                node("if1", "If", "c", "y"),
                [body("then_branch", graph(one(), "q", "t")), body("else_branch", graph(other(), "", "e"))],
            )]),
            &["if1", "then_branch", "takes 1 inputs, not 0"],
        ),
        (
            "branches of different numbers of outputs",
            model(vec![with(
                node("if1", "If", "c", "y"),
                [body("then_branch", graph(one(), "", "t")), body("else_branch", graph(other(), "", "e x"))],
            )]),
            &["if1", "then_branch has 1 outputs, else_branch 2"],
        ),
        ("a branch left out", model(vec![node("if1", "If", "c", "y")]), &["if1", "no graph", "then_branch"]),
        (
            "branches of different types",
            model(vec![branch("c", one(), vec![node("s", "Shape", "x", "e")])]),
            &["if1", "f32[2,3]", "int64[2]"],
        ),
        (
            "branches of different ranks",
            model(vec![branch("c", one(), vec![node("s", "ReduceMax", "x", "e")])]).tap(|g| {
                g.node[0].attribute[1].g.as_mut().unwrap().node[0].attribute.push(int("keepdims", 0))
            }),
            &["if1", "f32[2,3]", "f32[]", "ranks", "not supported"],
        ),
        (
            "a float condition",
            model(vec![branch("x", one(), other())]),
            &["if1", "f32[2,3]", "not one boolean"],
        ),
        (
            "two conditions",
            model(vec![branch("two", one(), other())]),
            &["if1", "bool[2]", "not one boolean"],
        ),
        (
            "a loop on a float condition",
            model(vec![repeat("n x x", "y", carrying(vec![relu("v", "w")], "k w"))]),
            &["loop1", "f32[2,3]", "not one boolean"],
        ),
        (
            "a float trip count",
            model(vec![repeat("x c x", "y", carrying(vec![relu("v", "w")], "k w"))]),
            &["loop1", "trip count", "f32[2,3]"],
        ),
        (
            "a loop that goes on for a float",
            model(vec![repeat("n c x", "y", carrying(vec![relu("v", "w")], "w w"))]),
            &["loop1", "output 0 of the body", "f32[2,3]"],
        ),
        (
            "a loop's body without iteration",
            model(vec![repeat("n c x", "y", graph(vec![relu("v", "w")], "k v", "k w"))]),
            &["loop1", "takes 2 inputs", "are 3"],
        ),
        (
            "a loop's body without carried values",
            model(vec![repeat("n c x", "y", carrying(vec![], "k"))]),
            &["loop1", "1 outputs", "1 carried"],
        ),
        (
            "a carried value that changes its type",
            model(vec![repeat("n c x", "y", carrying(vec![node("s", "Shape", "v", "w")], "k w"))]),
            &["loop1", "v is f32[2,3] before", "int64[2] after"],
        ),
        (
            "more results than a tensor holds",
            model(vec![repeat("huge yes x", "z y", carrying(vec![relu("v", "w")], "yes w w"))])
                .tap(|g| g.initializer.push(scalar("huge", I64, 1 << 40))),
            &["loop1", "too many elements"],
        ),
        (
            "a sequence in a loop",
            model(vec![repeat("n c x", "y", carrying(vec![], "k v"))])
                .tap(|g| g.node[0].attribute[0].g.as_mut().unwrap().input[2] = sequence),
            &["loop1", "input v", "other than a tensor"],
        ),
        (
            "a scan of nothing",
            model(vec![scan("x", graph(vec![relu("v", "w")], "v", "w"), 0)]),
            &["scan1", "num_scan_inputs"],
        ),
        (
            "a scan's body of other inputs",
            model(vec![scan("x x", graph(vec![relu("v", "w")], "v", "w"), 1)]),
            &["scan1", "1 inputs", "2 operands"],
        ),
        (
            "a scan's state that changes its shape",
            model(vec![scan("x x", graph(vec![node("s", "Concat", "v v", "w")], "v u", "w"), 1)])
                .tap(|g| g.node[0].attribute[0].g.as_mut().unwrap().node[0].attribute.push(int("axis", 0))),
            &["scan1", "state 0", "f32[2,3] before", "f32[4,3] after"],
        ),
        (
            "a scan of batches",
            ModelProto {
                opset_import: vec![OperatorSetIdProto { domain: None, version: Some(8) }],
                ..model(vec![scan("x x", graph(vec![relu("v", "w")], "v u", "w"), 1)])
            },
            &["scan1", "opset 8", "not supported"],
        ),
        (
            "a function that calls itself",
            with_functions(model(vec![call("f1", "F", "x", "y")]), vec![calls_itself("F", "F")]),
            &["f1", "function F", "calls itself"],
        ),
        (
            "functions that call one another",
            with_functions(
                model(vec![call("f1", "F", "x", "y")]),
                vec![calls_itself("F", "G"), calls_itself("G", "F")],
            ),
            &["f1", "function G", "calls itself"],
        ),
        (
            "a function that the model lacks",
            with_functions(model(vec![call("f1", "F", "x", "y")]), vec![calls_itself("G", "G")]),
            &["f1", "operator F of domain own", "not supported"],
        ),
        (
            "a function defined twice",
            with_functions(model(vec![relu("x", "y")]), vec![calls_itself("F", "G"), calls_itself("F", "H")]),
            &["function F", "twice"],
        ),
        (
            "a call with too many operands",
            with_functions(
                model(vec![call("f1", "F", "x x", "y")]),
                vec![function("F", "a", "b", vec![relu("a", "b")], "")],
            ),
            &["f1", "function F", "has 1 inputs", "called with 2"],
        ),
        (
            "an attribute that a function does not declare",
            with_functions(
                model(vec![with(call("f1", "F", "x", "y"), [int("axis", 1)])]),
                vec![function("F", "a", "b", vec![relu("a", "b")], "")],
            ),
            &["f1", "function F", "attribute axis", "does not declare"],
        ),
        (
            "a function's output that nothing makes",
            with_functions(
                model(vec![call("f1", "F", "x", "y")]),
                vec![function("F", "a", "b", vec![relu("a", "q")], "")],
            ),
            &["f1", "function F", "output \"b\""],
        ),
        (
            "a function that reads a value of its caller",
            with_functions(
                model(vec![call("f1", "F", "x", "y")]),
                vec![function("F", "a", "b", vec![node("add", "Add", "a x", "b")], "")],
            ),
            &["f1", "function F", "add", "\"x\""],
        ),
    ]
}

trait Tap {
    fn tap(self, edit: impl FnOnce(&mut GraphProto)) -> Self;
}

impl Tap for ModelProto {
    fn tap(mut self, edit: impl FnOnce(&mut GraphProto)) -> Self {
        edit(self.graph.as_mut().unwrap());
        self
    }
}

#[test]
fn errors_say_what_is_wrong_and_where() {
    let failures: Vec<String> = cases()
        .into_iter()
        .filter_map(|(name, model, want)| match decoded(&model) {
            Ok(graph) => Some(format!("{name}: is read as\n{graph}")),
            Err(e) => {
                let e = e.to_string();
                let missing: Vec<&&str> = want.iter().filter(|w| !e.contains(**w)).collect();
                (!missing.is_empty()).then(|| format!("{name}: {missing:?} is not in: {e}"))
            }
        })
        .collect();
    assert!(failures.is_empty(), "{} cases:\n{}", failures.len(), failures.join("\n"));
}

/// `If` in `If`, this many.
fn nested(depth: usize) -> Vec<NodeProto> {
    (0..depth).fold(vec![relu("x", "t")], |inner, i| {
        let bodies =
            [body("then_branch", graph(inner, "", "t")), body("else_branch", graph(vec![], "", "x"))];
        let output = if i + 1 == depth { "y" } else { "t" };
        vec![with(node(&format!("if{i}"), "If", "c", output), bodies)]
    })
}

/// `Loop` in `Loop`, this many, each with a value that grows.
fn loops(depth: usize) -> Vec<NodeProto> {
    let grow = with(node("cat", "Concat", "v0 v0", "w0"), [int("axis", 0)]);
    (1..=depth).fold(vec![grow], |mut inner, i| {
        let (v, w) = (format!("v{}", i - 1), format!("w{}", i - 1));
        let graph = graph(std::mem::take(&mut inner), &format!("i{i} k{i} {v}"), &format!("yes {w}"));
        let (x, y) =
            if i == depth { ("x".to_string(), "z".to_string()) } else { (format!("v{i}"), format!("w{i}")) };
        let mut nodes = vec![with(
            node(&format!("loop{i}"), "Loop", &format!("four yes {x}"), &y),
            [body("body", graph)],
        )];
        if i == depth {
            nodes.push(relu("x", "y"));
        }
        nodes
    })
}

/// Functions that each call the next `times` times.
fn chain(length: usize, times: usize) -> ModelProto {
    let functions = (0..length).map(|i| {
        let nodes = match i + 1 == length {
            true => vec![relu("a", "b")],
            false => (0..times)
                .map(|t| {
                    let output = if t + 1 == times { "b".into() } else { format!("b{t}") };
                    call(&format!("call{t}"), &format!("F{}", i + 1), "a", &output)
                })
                .collect(),
        };
        function(&format!("F{i}"), "a", "b", nodes, "")
    });
    with_functions(model(vec![call("f1", "F0", "x", "y")]), functions.collect())
}

#[test]
fn nesting_is_bounded() {
    let inputs: Vec<Tensor> = vec![
        Tensor::full(&[2, 3], -1f32).unwrap(),
        Tensor::scalar(true),
        Tensor::scalar(3i64),
        Tensor::vector(vec![true, false]),
    ];
    for model in [model(nested(10)), chain(30, 1)] {
        let graph = decoded(&model).unwrap();
        assert_eq!(graph.run(&inputs).unwrap(), [Tensor::full(&[2, 3], 0f32).unwrap()]);
        assert_eq!(decoded(&onnx::encode(&graph).unwrap()).unwrap(), graph);
    }
    let cases = [
        ("many branches", model(nested(200)), "recursion limit"),
        ("branches in branches", model(nested(11)), "nested more than 10 deep"),
        ("loops in loops", model(loops(11)), "nested more than 10 deep"),
        ("many functions", chain(5000, 1), "more than 32 deep"),
        ("functions that grow", chain(30, 4), "nodes"),
    ];
    for (name, model, want) in cases {
        let e = decoded(&model).unwrap_err().to_string();
        assert!(e.contains(want), "{name}: {want} is not in {e}");
    }
}

#[test]
fn errors_of_a_run_name_the_node() {
    let inputs = |n: i64, two: bool| {
        vec![
            Tensor::full(&[2, 3], 1f32).unwrap(),
            Tensor::scalar(true),
            Tensor::scalar(n),
            Tensor::vector(vec![true, two]),
        ]
    };
    let grows = |collected: &str| {
        let concat = with(node("cat", "Concat", "v x", "w"), [int("axis", 0)]);
        model(vec![repeat("n c x", &format!("z {collected}"), carrying(vec![concat], "k w w"))])
    };
    let cases = [
        ("results of different shapes", grows("y"), 2, vec!["loop1", "[4, 3]", "[6, 3]"]),
        ("no results of unknown shape", grows("y"), 0, vec!["loop1", "no iteration", "any(v.0)"]),
    ];
    let mut failures = vec![];
    for (name, model, n, want) in cases {
        let graph = decoded(&model).unwrap();
        let session = Session::compile(&graph).unwrap();
        for found in [graph.run(&inputs(n, true)), session.run(&inputs(n, true))] {
            let e = found.unwrap_err().to_string();
            if let Some(word) = want.iter().find(|w| !e.contains(**w)) {
                failures.push(format!("{name}: {word} is not in: {e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn attributes_of_functions_are_those_of_the_call() {
    let inner = function(
        "Inner",
        "a",
        "b",
        vec![with(node("r", "ReduceSum", "a axes", "b"), [refers("keepdims", "keep")])],
        "keep",
    );
    let axes = AttributeProto {
        name: Some("value_ints".into()),
        ints: vec![1],
        r#type: Some(AttributeType::Ints.into()),
        ..AttributeProto::default()
    };
    let inner = FunctionProto {
        node: [vec![with(node("axes", "Constant", "", "axes"), [axes])], inner.node.clone()].concat(),
        ..inner
    };
    let pass = with(call("inner", "Inner", "a", "b"), [refers("keep", "kept")]);
    let outer = function("Outer", "a", "b", vec![pass], "");
    let outer = FunctionProto { attribute_proto: vec![int("kept", 0)], ..outer };
    for (given, shape) in [(None, vec![2]), (Some(1), vec![2, 1]), (Some(0), vec![2])] {
        let node = with(call("f1", "Outer", "x", "y"), given.map(|x| int("kept", x)));
        let model = with_functions(model(vec![node]), vec![outer.clone(), inner.clone()]);
        let graph = decoded(&model).unwrap();
        let (_, y) = graph.outputs().next().unwrap();
        assert_eq!(graph.fact(y).known_shape(), Some(shape));
        assert_eq!(graph.node(y).name, "f1/inner/r");
    }
}

#[test]
fn bodies_are_quantized_and_compiled() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/scan_lstm_13.onnx");
    let arrays: HashMap<String, Tensor> =
        npz::read(&path.with_extension("npz")).unwrap().into_iter().collect();
    let float = fuse(&onnx::load(&path).unwrap()).unwrap();
    let inputs: Vec<Tensor> = float.inputs().map(|(_, v)| arrays[&v.name].clone()).collect();
    let want = float.run(&inputs).unwrap();
    let mapping = QConfigMapping::global(preset("default").unwrap());
    let quantized = float
        .map_bodies(|body| {
            let mut prepared = prepare(body, &mapping)?;
            for scale in [-1f32, 0.3, 1.0] {
                let batch: Vec<Tensor> = body
                    .inputs()
                    .map(|(_, v)| {
                        let shape: Vec<usize> = v.fact.shape.iter().map(|d| d.known().unwrap_or(3)).collect();
                        let n: usize = shape.iter().product();
                        let x = (0..n).map(|i| scale * (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
                        Tensor::new(&shape, x).unwrap()
                    })
                    .collect();
                prepared.observe(&batch)?;
            }
            Ok(prepared.convert()?.graph)
        })
        .unwrap();
    let again = decoded(&onnx::encode(&quantized).unwrap()).unwrap();
    assert_eq!(again, quantized, "was\n{quantized}\nis\n{again}");
    let session = Session::compile(&quantized).unwrap();
    let report = session.report();
    assert!(report.integer_macs * 2 > report.macs, "{report}");
    assert!(report.fallbacks.iter().all(|f| f.node != "Scan_1"), "{report}");
    let sim = quantized.run(&inputs).unwrap();
    let found = session.run(&inputs).unwrap();
    let distance = |a: &Tensor, b: &Tensor| {
        let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
        a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs()))
    };
    for ((found, sim), want) in found.iter().zip(&sim).zip(&want) {
        assert!(distance(found, sim) < 0.02, "{} from the Q/DQ graph", distance(found, sim));
        assert!(distance(found, want) < 0.1, "{} from the float graph", distance(found, want));
    }
}

#[test]
fn a_weight_of_several_bodies_is_stored_once() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/if_shared_weight_16.onnx");
    let bytes = std::fs::read(&path).unwrap();
    let again = onnx::encode(&onnx::decode(&bytes).unwrap()).unwrap();
    let main: Vec<&str> = again.graph.as_ref().unwrap().initializer.iter().map(|t| t.name()).collect();
    assert!(main.contains(&"w"), "{main:?}");
    assert!(again.encode_to_vec().len() < bytes.len() + 500);
}
