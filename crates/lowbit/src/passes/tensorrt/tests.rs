use super::*;
use crate::graph::Value;
use crate::onnx;
use crate::op::{Dim, Fact};
use crate::ops::conv::Conv;
use crate::ops::unary::Unary;
use crate::ops::window::Window;
use crate::qconfig::{QConfig, QConfigMapping, Spec, Target, preset};
use crate::quantize::{fuse, prepare};
use crate::random::values;
use crate::scheme::{Format, Mapping};
use crate::session::Session;

/// Two convolutions with biases and a ReLU between them.
fn float() -> Graph {
    let mut b = Builder::default();
    let shape = [Dim::Named("N".into()), Dim::Known(3), Dim::Known(5), Dim::Known(5)];
    let mut x = b.input("x", Fact::new(DType::F32, shape));
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        let weight = b.constant(&format!("{name}.weight"), values(i as u64, &[3, 3, 2, 2]));
        let bias = b.constant(&format!("{name}.bias"), values(10 + i as u64, &[3]));
        let op = Conv { window: Window::default(), group: 1, kernel: None };
        x = b.apply(name, Arc::new(op), &[x, weight, bias]).unwrap();
        if i == 0 {
            x = b.apply("relu", Arc::new(Unary::Relu), &[x]).unwrap();
        }
    }
    b.finish([("y".to_string(), x)]).unwrap()
}

fn converted(mapping: &QConfigMapping) -> Graph {
    let mut prepared = prepare(&fuse(&float()).unwrap(), mapping).unwrap();
    prepared.observe(&[values(99, &[4, 3, 5, 5])]).unwrap();
    prepared.convert().unwrap().graph
}

fn per_tensor() -> QConfig {
    let QConfig { activation, weight } = preset("tensorrt").unwrap();
    QConfig { activation, weight: weight.per(crate::qconfig::Per::Tensor) }
}

#[test]
fn weights_and_biases_are_stored_in_float_with_the_same_results() {
    let graph = converted(&QConfigMapping::global(preset("tensorrt").unwrap()));
    let dialect = tensorrt_dialect(&graph).unwrap();
    for (v, node) in dialect.nodes() {
        if let Some(t) = dialect.constant(v) {
            let name = &dialect.value(v).name;
            let zero = t.dtype() == DType::I8 && t.to_f32().unwrap().iter().all(|z| *z == 0.0);
            assert!(t.dtype() == DType::F32 || zero || node.outputs[0].name.is_empty(), "{name}: {t:?}");
        }
    }
    let weight = dialect.find("a.weight").and_then(|v| dialect.constant(v)).unwrap();
    assert_eq!(weight.shape(), [3, 3, 2, 2]);
    let axes: Vec<i64> =
        dialect.applied().filter_map(|(_, _, op, _)| Some(op.is::<QuantizeLinear>()?.axis)).collect();
    assert!(axes.contains(&0), "{axes:?}");

    // Float arithmetic on the same values, but for biases that were on their own grid.
    let batch = [values(7, &[4, 3, 5, 5])];
    let (want, got) = (graph.run(&batch).unwrap(), dialect.run(&batch).unwrap());
    assert_eq!(got, want);
    let session = Session::compile(&dialect).unwrap();
    assert_eq!(session.report().coverage(), 1.0);
    let by_codes = Session::compile(&graph).unwrap().run(&batch).unwrap();
    assert_eq!(session.run(&batch).unwrap(), by_codes);

    let bytes = lowbit_onnx_bytes(&dialect, 13);
    assert_eq!(onnx::decode(&bytes).unwrap().run(&batch).unwrap(), want);
    assert_eq!(tensorrt_dialect(&dialect).unwrap(), dialect);
}

fn lowbit_onnx_bytes(graph: &Graph, opset: i64) -> Vec<u8> {
    use prost::Message;
    onnx::encode_at(graph, opset).unwrap().encode_to_vec()
}

#[test]
fn opset_10_has_scales_of_tensors_alone() {
    let graph = converted(&QConfigMapping::global(per_tensor()));
    let dialect = tensorrt_dialect(&graph).unwrap();
    let read = onnx::decode(&lowbit_onnx_bytes(&dialect, 10)).unwrap();
    let batch = [values(7, &[4, 3, 5, 5])];
    assert_eq!(read.run(&batch).unwrap(), dialect.run(&batch).unwrap());
    let inputs = |g: &Graph| g.inputs().map(|(_, v)| v.clone()).collect::<Vec<Value>>();
    assert_eq!(inputs(&read), inputs(&dialect));

    let by_channel = converted(&QConfigMapping::global(preset("tensorrt").unwrap()));
    let by_channel = tensorrt_dialect(&by_channel).unwrap();
    for (graph, opset, says) in [
        (&by_channel, 10, "has scales by channel, which are not there in opset 10"),
        (&by_channel, 9, "opset 9: choose 10 to 25"),
        (&by_channel, 26, "opset 26: choose 10 to 25"),
    ] {
        let error = onnx::encode_at(graph, opset).unwrap_err().to_string();
        assert!(error.contains(says), "{opset}: {error}");
    }
}

#[test]
fn what_tensorrt_has_not_is_refused_by_node() {
    let affine = |format, mapping| {
        let activation = Spec::new(format, mapping);
        QConfigMapping::global(QConfig { activation: Some(activation), weight: per_tensor().weight })
    };
    let four = Spec::new(Format::INT4, Mapping::Symmetric);
    let blocks = Spec { format: Format::INT8, ..four.clone() }.per(crate::qconfig::Per::Block(2));
    let weights = |weight| QConfigMapping::global(QConfig { activation: None, weight });
    for (mapping, says) in [
        (affine(Format::UINT8, Mapping::Affine), "x_q: has uint8 codes"),
        (affine(Format::INT8, Mapping::Affine), "TensorRT has 0 alone"),
        (affine(Format::INT16, Mapping::Symmetric), "has int16 codes"),
        (weights(four), "a.weight_dq: has int4 codes"),
        (weights(blocks), "a.weight_dq: has scales for blocks"),
        (
            QConfigMapping::global(preset("dynamic").unwrap()).with(Target::All, preset("dynamic").ok()),
            "DynamicQuantizeLinear: quantize statically",
        ),
    ] {
        let error = tensorrt_dialect(&converted(&mapping)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
