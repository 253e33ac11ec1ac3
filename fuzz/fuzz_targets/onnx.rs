//! Arbitrary bytes read as an ONNX model: no panic, and memory and time in
//! proportion to the bytes. What is read survives being saved; with small
//! inputs it runs, fused, quantized engine and all.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowbit::graph::Graph;
use lowbit::op::Fact;
use lowbit::quantize::fuse;
use lowbit::session::Session;
use lowbit::{Tensor, onnx};
use lowbit_onnx::proto::{ModelProto, tensor_shape_proto::dimension::Value, type_proto};
use prost::Message;

/// Elements of a value, and multiply-accumulates of a run.
const SMALL: u64 = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(graph) = onnx::decode(bytes) {
        let saved = onnx::encode(&graph).unwrap().encode_to_vec();
        let again = onnx::decode(&saved).unwrap();
        assert!(again == graph || has_nan(&graph), "{graph}\n{again}");
        let _ = fuse(&graph);
    }
    if let Ok(graph) = ModelProto::decode(bytes).map(sized).and_then(|m| Ok(onnx::decode(&m.encode_to_vec())))
        && let Ok(graph) = graph
    {
        run(&graph);
    }
});

/// Whether the graph holds a NaN, which equals nothing.
fn has_nan(graph: &Graph) -> bool {
    let constants = graph.nodes().filter_map(|(v, _)| graph.constant(v));
    let mut numbers = constants.filter_map(|t| t.to_f32().ok()).flatten();
    numbers.any(f32::is_nan) || graph.applied().any(|(_, _, op, _)| format!("{op:?}").contains("NaN"))
}

/// The model with every named dimension of an input set to 2.
fn sized(mut model: ModelProto) -> ModelProto {
    for input in model.graph.iter_mut().flat_map(|g| &mut g.input) {
        if let Some(type_proto::Value::TensorType(t)) = input.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            for d in t.shape.iter_mut().flat_map(|s| &mut s.dim) {
                if !matches!(d.value, Some(Value::DimValue(n)) if n >= 0) {
                    d.value = Some(Value::DimValue(2));
                }
            }
        }
    }
    model
}

/// Runs a graph on zeros where all its values are small.
fn run(graph: &Graph) {
    let small = |f: &Fact| f.known_shape().is_some() && f.elements() <= SMALL;
    if graph.macs() > SMALL || !graph.nodes().all(|(_, n)| n.outputs.iter().all(|o| small(&o.fact))) {
        return;
    }
    let zeros: Option<Vec<Tensor>> = graph
        .inputs()
        .map(|(_, v)| {
            let shape = v.fact.known_shape()?;
            let bytes = v.fact.dtype.bytes_of(shape.iter().product());
            Tensor::from_bytes(v.fact.dtype, &shape, &vec![0; bytes]).ok()
        })
        .collect();
    let Some(zeros) = zeros else { return };
    let _ = graph.run(&zeros);
    if let Ok(fused) = fuse(graph) {
        let _ = fused.run(&zeros);
    }
    if let Ok(session) = Session::compile(graph) {
        let _ = session.run(&zeros);
    }
}
