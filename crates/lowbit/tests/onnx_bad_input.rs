//! What is wrong with a model is said, and where; nothing panics or grows
//! without bound.

use std::path::Path;

use lowbit::{DType, Tensor, onnx};
use lowbit_onnx::DataType;
use lowbit_onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_proto::DataLocation, tensor_shape_proto, type_proto,
};
use prost::Message;
use tensor_shape_proto::{Dimension, dimension::Value as Size};

/// A dimension of a declared shape.
#[derive(Clone, Copy)]
enum D {
    Size(i64),
    Name(&'static str),
}

const N: D = D::Name("N");

fn value(name: &str, dtype: DataType, dims: &[D]) -> ValueInfoProto {
    let dim = |d: &D| Dimension {
        value: Some(match d {
            D::Size(n) => Size::DimValue(*n),
            D::Name(n) => Size::DimParam((*n).into()),
        }),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(dtype.to_onnx()),
        shape: Some(TensorShapeProto { dim: dims.iter().map(dim).collect() }),
    };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

fn node(name: &str, op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let names = |x: &[&str]| x.iter().map(|s| s.to_string()).collect();
    NodeProto {
        name: Some(name.into()),
        op_type: Some(op.into()),
        input: names(inputs),
        output: names(outputs),
        ..NodeProto::default()
    }
}

fn with(mut node: NodeProto, attribute: AttributeProto) -> NodeProto {
    node.attribute.push(attribute);
    node
}

fn int(name: &str, i: i64) -> AttributeProto {
    let kind = AttributeType::Int.into();
    AttributeProto { name: Some(name.into()), i: Some(i), r#type: Some(kind), ..AttributeProto::default() }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    let kind = AttributeType::Ints.into();
    AttributeProto {
        name: Some(name.into()),
        ints: ints.to_vec(),
        r#type: Some(kind),
        ..AttributeProto::default()
    }
}

fn text(name: &str, s: &str) -> AttributeProto {
    let kind = AttributeType::String.into();
    AttributeProto {
        name: Some(name.into()),
        s: Some(s.into()),
        r#type: Some(kind),
        ..AttributeProto::default()
    }
}

fn floats(name: &str, dims: &[i64]) -> TensorProto {
    let n = dims.iter().product::<i64>().max(0) as usize;
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(DataType::Float.to_onnx()),
        raw_data: Some(vec![0; 4 * n]),
        ..TensorProto::default()
    }
}

fn integers(name: &str, x: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: vec![x.len() as i64],
        data_type: Some(DataType::Int64.to_onnx()),
        int64_data: x.to_vec(),
        ..TensorProto::default()
    }
}

fn external(name: &str, location: &str, offset: u64) -> TensorProto {
    let entry = |k: &str, v: String| StringStringEntryProto { key: Some(k.into()), value: Some(v) };
    TensorProto {
        raw_data: None,
        data_location: Some(DataLocation::External.into()),
        external_data: vec![entry("location", location.into()), entry("offset", offset.to_string())],
        ..floats(name, &[2])
    }
}

/// A model of opset 13 with input `x`, f32 [N, 3], and output `y`.
fn model(nodes: Vec<NodeProto>, initializers: Vec<TensorProto>) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(13) }],
        graph: Some(GraphProto {
            name: Some("test".into()),
            input: vec![value("x", DataType::Float, &[N, D::Size(3)])],
            output: vec![value("y", DataType::Float, &[])],
            node: nodes,
            initializer: initializers,
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

fn of_opset(version: i64, model: ModelProto) -> ModelProto {
    ModelProto { opset_import: vec![OperatorSetIdProto { domain: None, version: Some(version) }], ..model }
}

fn edited(mut model: ModelProto, edit: impl FnOnce(&mut GraphProto)) -> ModelProto {
    edit(model.graph.as_mut().unwrap());
    model
}

fn relu() -> NodeProto {
    node("act", "Relu", &["x"], &["y"])
}

fn good() -> ModelProto {
    model(vec![relu()], vec![])
}

/// Shapes and initializers as most of the cases want them: `x` through an
/// operator with operands.
fn applied(op: NodeProto, initializers: Vec<TensorProto>) -> ModelProto {
    model(vec![op], initializers)
}

fn saved(model: &ModelProto, folder: &Path) -> std::path::PathBuf {
    let path = folder.join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

/// Each model with the words that its error must have.
fn cases() -> Vec<(&'static str, ModelProto, &'static [&'static str])> {
    let shaped = |dims: &[D]| {
        let dims = dims.to_vec();
        move |g: &mut GraphProto| g.input = vec![value("x", DataType::Float, &dims)]
    };
    let image = [N, D::Size(3), D::Size(8), D::Size(8)];
    let conv = |w: &[i64]| {
        edited(applied(node("c1", "Conv", &["x", "w"], &["y"]), vec![floats("w", w)]), shaped(&image))
    };
    let sparse = SparseTensorProto { values: Some(floats("s", &[1])), ..SparseTensorProto::default() };
    const HUGE: i64 = 1 << 40;
    vec![
        (
            "a cycle",
            model(vec![node("a", "Add", &["x", "q"], &["p"]), node("b", "Relu", &["p"], &["q"])], vec![]),
            &["a, b", "cycle"],
        ),
        ("a node that reads itself", applied(node("a", "Relu", &["y"], &["y"]), vec![]), &["a", "cycle"]),
        (
            "a missing initializer",
            applied(node("sum", "Add", &["x", "bias"], &["y"]), vec![]),
            &["sum", "\"bias\"", "no input, initializer"],
        ),
        (
            "too few bytes",
            applied(
                node("sum", "Add", &["x", "b"], &["y"]),
                vec![TensorProto { dims: vec![4], ..floats("b", &[3]) }],
            ),
            &["b", "[4]", "16 bytes", "12"],
        ),
        (
            "a negative dimension of an initializer",
            applied(
                node("sum", "Add", &["x", "b"], &["y"]),
                vec![TensorProto { dims: vec![-3], ..floats("b", &[3]) }],
            ),
            &["b", "dimension 0 is -3"],
        ),
        (
            "a huge initializer without data",
            applied(
                node("sum", "Add", &["x", "b"], &["y"]),
                vec![TensorProto { dims: vec![HUGE, HUGE], ..floats("b", &[0]) }],
            ),
            &["b", "does not fit in memory"],
        ),
        (
            "an element type that does not exist",
            applied(
                node("sum", "Add", &["x", "b"], &["y"]),
                vec![TensorProto { data_type: Some(99), ..floats("b", &[3]) }],
            ),
            &["b", "99"],
        ),
        (
            "a tensor of strings",
            applied(
                node("sum", "Add", &["x", "b"], &["y"]),
                vec![TensorProto { data_type: Some(DataType::String.to_onnx()), ..floats("b", &[0]) }],
            ),
            &["b", "strings are not supported"],
        ),
        ("channels of a convolution", conv(&[4, 5, 3, 3]), &["c1", "Conv", "3 channels", "takes 5"]),
        ("rank of a convolution", conv(&[4, 3, 3]), &["c1", "Conv", "rank 4", "[4, 3, 3]"]),
        ("a kernel larger than the image", conv(&[4, 3, 9, 9]), &["c1", "Conv", "9 taps", "8 cells"]),
        (
            "shapes that do not broadcast",
            applied(node("sum", "Add", &["x", "b"], &["y"]), vec![floats("b", &[4])]),
            &["sum", "Add", "do not broadcast"],
        ),
        (
            "an unknown operator",
            applied(node("f1", "Frobnicate", &["x"], &["y"]), vec![]),
            &["f1", "operator Frobnicate", "not supported"],
        ),
        (
            "an unnamed node",
            applied(node("", "Frobnicate", &["x"], &["y"]), vec![]),
            &["y: operator Frobnicate"],
        ),
        (
            "a domain that is not imported",
            applied(NodeProto { domain: Some("com.acme".into()), ..relu() }, vec![]),
            &["act", "com.acme", "does not import"],
        ),
        (
            "an operator of another domain",
            {
                let mut m = applied(NodeProto { domain: Some("com.acme".into()), ..relu() }, vec![]);
                m.opset_import.push(OperatorSetIdProto { domain: Some("com.acme".into()), version: Some(1) });
                m
            },
            &["act", "operator Relu of domain com.acme"],
        ),
        (
            "an attribute that does not exist",
            applied(with(relu(), int("speed", 3)), vec![]),
            &["act", "Relu", "attribute speed"],
        ),
        (
            "an attribute of another type",
            applied(with(node("a", "LeakyRelu", &["x"], &["y"]), int("alpha", 1)), vec![]),
            &["a", "LeakyRelu", "alpha", "wrong type"],
        ),
        (
            "an attribute value that is not supported",
            applied(
                with(node("p", "Pad", &["x", "n"], &["y"]), text("mode", "sideways")),
                vec![integers("n", &[0, 0, 0, 0])],
            ),
            &["p", "Pad", "sideways"],
        ),
        (
            "external data above the folder",
            applied(node("sum", "Add", &["x", "b"], &["y"]), vec![external("b", "../secret", 0)]),
            &["b", "outside the folder"],
        ),
        (
            "external data at an absolute path",
            applied(node("sum", "Add", &["x", "b"], &["y"]), vec![external("b", "/etc/passwd", 0)]),
            &["b", "outside the folder"],
        ),
        (
            "external data that is not there",
            applied(node("sum", "Add", &["x", "b"], &["y"]), vec![external("b", "none.data", 0)]),
            &["b", "none.data"],
        ),
        (
            "external data past the end",
            applied(node("sum", "Add", &["x", "b"], &["y"]), vec![external("b", "short.data", 8)]),
            &["b", "8 bytes at offset 8", "has 12 bytes"],
        ),
        ("an old opset", of_opset(6, good()), &["opset 6", "7 to 25"]),
        ("an opset of the future", of_opset(99, good()), &["opset 99", "7 to 25"]),
        (
            "a value made twice",
            model(vec![relu(), node("again", "Neg", &["x"], &["y"])], vec![]),
            &["again", "\"y\" is defined twice"],
        ),
        (
            "a node that makes an input",
            applied(node("a", "Relu", &["x"], &["x"]), vec![]),
            &["a", "\"x\" is defined twice"],
        ),
        (
            "two inputs of one name",
            edited(good(), |g| g.input.push(value("x", DataType::Float, &[N]))),
            &["\"x\" is defined twice"],
        ),
        (
            "two initializers of one name",
            model(vec![relu()], vec![floats("w", &[1]), floats("w", &[1])]),
            &["\"w\" is defined twice"],
        ),
        (
            "two outputs of one name",
            edited(good(), |g| g.output.push(g.output[0].clone())),
            &["two outputs", "\"y\""],
        ),
        ("no outputs", edited(good(), |g| g.output.clear()), &["no output"]),
        (
            "an output that nothing makes",
            edited(good(), |g| g.output.push(value("z", DataType::Float, &[]))),
            &["output z", "nothing makes it"],
        ),
        (
            "an output without a name",
            edited(good(), |g| g.output.push(value("", DataType::Float, &[]))),
            &["output has no name"],
        ),
        (
            "an input without a name",
            edited(good(), |g| g.input.push(value("", DataType::Float, &[]))),
            &["input has no name"],
        ),
        (
            "an input without a shape",
            edited(good(), |g| {
                if let Some(type_proto::Value::TensorType(t)) = &mut g.input[0].r#type.as_mut().unwrap().value
                {
                    t.shape = None;
                }
            }),
            &["input x", "no shape"],
        ),
        (
            "an input that is no tensor",
            edited(good(), |g| g.input[0].r#type.as_mut().unwrap().value = None),
            &["input x", "type other than a tensor"],
        ),
        (
            "an input of strings",
            edited(good(), |g| g.input[0] = value("x", DataType::String, &[N])),
            &["input x", "String"],
        ),
        (
            "an input with a negative dimension",
            edited(good(), shaped(&[N, D::Size(-3)])),
            &["input x", "dimension 1 is -3"],
        ),
        (
            "an input of impossible size",
            edited(good(), shaped(&[D::Size(HUGE), D::Size(HUGE)])),
            &["input x", "too many elements"],
        ),
        (
            "a sparse initializer",
            edited(good(), |g| g.sparse_initializer.push(sparse)),
            &["sparse initializer", "s"],
        ),
        (
            "a huge Expand",
            applied(node("e", "Expand", &["x", "n"], &["y"]), vec![integers("n", &[HUGE, 1, 3])]),
            &["e", "Expand", "too many elements"],
        ),
        (
            "a huge ConstantOfShape",
            applied(node("e", "ConstantOfShape", &["n"], &["y"]), vec![integers("n", &[HUGE, 3])]),
            &["e", "ConstantOfShape", "too many elements"],
        ),
        (
            "a negative ConstantOfShape",
            applied(node("e", "ConstantOfShape", &["n"], &["y"]), vec![integers("n", &[-2, 3])]),
            &["e", "ConstantOfShape", "-2"],
        ),
        (
            "a huge Tile",
            edited(
                applied(node("t", "Tile", &["x", "n"], &["y"]), vec![integers("n", &[HUGE, 1])]),
                shaped(&[D::Size(2), D::Size(3)]),
            ),
            &["t", "Tile", "too many elements"],
        ),
        (
            "a huge Pad",
            edited(
                applied(node("p", "Pad", &["x", "n"], &["y"]), vec![integers("n", &[0, 0, HUGE, 0])]),
                shaped(&[D::Size(2), D::Size(3)]),
            ),
            &["p", "Pad", "huge count"],
        ),
        (
            "a huge Resize",
            edited(
                applied(
                    node("r", "Resize", &["x", "", "", "n"], &["y"]),
                    vec![integers("n", &[1, 3, HUGE, 8])],
                ),
                shaped(&[D::Size(1), D::Size(3), D::Size(8), D::Size(8)]),
            ),
            &["r", "Resize", "too"],
        ),
        (
            "a huge Range",
            applied(
                node("r", "Range", &["a", "b", "c"], &["y"]),
                [("a", 0), ("b", i64::MAX), ("c", 1)]
                    .map(|(n, x)| TensorProto { dims: vec![], ..integers(n, &[x]) })
                    .into(),
            ),
            &["r", "Range", "too many"],
        ),
        (
            "a huge padding of a convolution",
            edited(
                applied(
                    with(node("c1", "Conv", &["x", "w"], &["y"]), ints("pads", &[0, 0, HUGE, 0])),
                    vec![floats("w", &[4, 3, 3, 3])],
                ),
                shaped(&image),
            ),
            &["c1", "Conv", "pads", "huge"],
        ),
    ]
}

#[test]
fn errors_say_what_is_wrong_and_where() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("short.data"), [0; 12]).unwrap();
    let path = saved(&good(), folder.path());
    assert!(onnx::load(&path).is_ok());
    let failures: Vec<String> = cases()
        .into_iter()
        .filter_map(|(name, model, want)| match onnx::load(saved(&model, folder.path())) {
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

#[test]
fn bytes_that_are_no_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(saved(&good(), folder.path())).unwrap();
    assert!(onnx::decode(&whole).is_ok());
    for end in 0..whole.len() {
        let message = onnx::decode(&whole[..end]).unwrap_err().to_string();
        assert!(message.contains("cut short"), "{end} bytes: {message}");
    }
    let noise: Vec<u8> = (0..500u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for bytes in [&noise[..], b"PK\x03\x04 an archive", b"<!doctype html>"] {
        let message = onnx::decode(bytes).unwrap_err().to_string();
        assert!(message.contains("ONNX model"), "{message}");
    }
}

/// Every byte of a model, changed: an error or another model, never a panic.
#[test]
fn damaged_models_do_not_panic() {
    let folder = tempfile::tempdir().unwrap();
    let conv = with(node("c1", "Conv", &["x", "w", "b"], &["p"]), ints("pads", &[1, 1, 1, 1]));
    let shape = node("r", "Reshape", &["p", "n"], &["y"]);
    let model = edited(
        model(
            vec![conv, shape],
            vec![floats("w", &[2, 3, 3, 3]), floats("b", &[2]), integers("n", &[0, -1])],
        ),
        |g| g.input[0] = value("x", DataType::Float, &[N, D::Size(3), D::Size(4), D::Size(4)]),
    );
    let mut bytes = std::fs::read(saved(&model, folder.path())).unwrap();
    let x = Tensor::full(&[1, 3, 4, 4], 1f32).unwrap();
    let mut read = 0;
    for i in 0..bytes.len() {
        let whole = bytes[i];
        for flip in [0x01, 0x08, 0x80, 0xff] {
            bytes[i] = whole ^ flip;
            if let Ok(graph) = onnx::decode(&bytes) {
                read += 1;
                let _ = graph.run(std::slice::from_ref(&x));
            }
        }
        bytes[i] = whole;
    }
    assert!(read > 100, "{read} of {} are still models", 4 * bytes.len());
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_name() {
    let two = edited(model(vec![node("sum", "Add", &["x", "z"], &["y"])], vec![]), |g| {
        g.input.push(value("z", DataType::Float, &[N, D::Size(3)]));
    });
    let folder = tempfile::tempdir().unwrap();
    let graph = onnx::load(saved(&two, folder.path())).unwrap();
    let floats = |shape: &[usize]| Tensor::full(shape, 1f32).unwrap();
    let bytes = Tensor::full(&[2, 3], 1u8).unwrap();
    let cases: [(Vec<Tensor>, &str); 6] = [
        (vec![floats(&[2, 3])], "the model takes 2 inputs (x, z), found 1"),
        (vec![bytes, floats(&[2, 3])], "input x: the model takes f32[N,3], found uint8[2, 3]"),
        (vec![floats(&[2, 4]), floats(&[2, 3])], "input x: the model takes f32[N,3], found f32[2, 4]"),
        (vec![floats(&[2, 3]), floats(&[6])], "input z: the model takes f32[N,3], found f32[6]"),
        (vec![floats(&[2, 3]), floats(&[5, 3])], "input z: the model takes f32[N,3], found f32[5, 3]"),
        (vec![floats(&[2, 3]), floats(&[2, 3]), floats(&[])], "found 3"),
    ];
    for (inputs, want) in cases {
        let message = graph.run(&inputs).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }
    assert!(graph.run(&[floats(&[2, 3]), floats(&[2, 3])]).is_ok());
}

/// Names that are negative numbers name no size: two dimensions called -1 may differ.
#[test]
fn dimensions_called_minus_one_are_unknown() {
    let folder = tempfile::tempdir().unwrap();
    for minus_one in [D::Name("-1"), D::Size(-1)] {
        let model = edited(good(), |g| g.input[0] = value("x", DataType::Float, &[minus_one, minus_one]));
        let graph = onnx::load(saved(&model, folder.path())).unwrap();
        let (_, x) = graph.inputs().next().unwrap();
        assert_eq!(x.fact.to_string(), "f32[x.0,x.1]");
        assert_eq!(graph.run(&[Tensor::full(&[2, 5], -1f32).unwrap()]).unwrap()[0].shape(), [2, 5]);
    }
}

/// A constant of 16 million elements, doubled a hundred times: a file of a few
/// kilobytes must not become gigabytes while it is read.
#[test]
fn folding_is_bounded() {
    let mut nodes = vec![node("big", "ConstantOfShape", &["n"], &["v0"])];
    for i in 0..100 {
        let (from, to) = (format!("v{i}"), format!("v{}", i + 1));
        nodes.push(node(&to, "Add", &[&from, &from], &[&to]));
    }
    nodes.push(node("top", "Add", &["v100", "x"], &["y"]));
    let folder = tempfile::tempdir().unwrap();
    let graph = onnx::load(saved(&model(nodes, vec![integers("n", &[1 << 22, 1])]), folder.path())).unwrap();
    let held: usize = graph.nodes().filter_map(|(v, _)| graph.constant(v)).map(Tensor::len).sum();
    assert!(held <= 1 << 24, "{held} elements are held");
    assert_eq!(graph.value(graph.find("y").unwrap()).fact.dtype, DType::F32);
}
