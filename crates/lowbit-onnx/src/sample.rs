//! A small model with tensors in every place that the schema has for them.

use crate::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, TrainingInfoProto,
};
use crate::{DataType, TensorData};

/// A tensor of `len` counting bytes.
pub fn bytes_tensor(name: &str, len: usize) -> TensorProto {
    let bytes = (0..len).map(|i| i as u8).collect();
    TensorData::new(name, DataType::Uint8, vec![len], bytes).and_then(TensorData::into_proto).unwrap()
}

pub fn entry(key: &str, value: impl ToString) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_string()) }
}

/// The main graph holds `small` (8 bytes), `large` (5000), `typed` (400 floats) and `text`.
pub fn model() -> ModelProto {
    let sparse = |name: &str| SparseTensorProto {
        values: Some(bytes_tensor(name, 3)),
        indices: Some(bytes_tensor(&format!("{name} indices"), 3)),
        dims: vec![10],
    };
    let inner = GraphProto {
        name: Some("branch".to_owned()),
        initializer: vec![bytes_tensor("in branch", 2000)],
        sparse_initializer: vec![sparse("sparse in branch")],
        ..GraphProto::default()
    };
    let node = |name: &str| NodeProto {
        name: Some(name.to_owned()),
        op_type: Some("If".to_owned()),
        input: vec!["x".to_owned()],
        output: vec!["y".to_owned()],
        attribute: vec![AttributeProto {
            name: Some("everything".to_owned()),
            t: Some(Box::new(bytes_tensor(&format!("{name} t"), 4))),
            tensors: vec![bytes_tensor(&format!("{name} tensors"), 5)],
            sparse_tensor: Some(Box::new(sparse(&format!("{name} sparse")))),
            sparse_tensors: vec![sparse(&format!("{name} sparses"))],
            g: Some(Box::new(inner.clone())),
            graphs: vec![inner.clone()],
            floats: vec![0.5, -1.0],
            ..AttributeProto::default()
        }],
        ..NodeProto::default()
    };
    let typed = TensorProto {
        name: Some("typed".to_owned()),
        data_type: Some(DataType::Float.to_onnx()),
        dims: vec![400],
        float_data: (0..400).map(|i| i as f32).collect(),
        doc_string: Some("kept".to_owned()),
        metadata_props: vec![entry("also", "kept")],
        ..TensorProto::default()
    };
    let text = TensorProto {
        name: Some("text".to_owned()),
        data_type: Some(DataType::String.to_onnx()),
        dims: vec![1],
        string_data: vec![vec![b'a'; 2000]],
        ..TensorProto::default()
    };
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(21) }],
        producer_name: Some("lowbit".to_owned()),
        metadata_props: vec![entry("key", "value")],
        graph: Some(GraphProto {
            name: Some("main".to_owned()),
            node: vec![node("node")],
            initializer: vec![bytes_tensor("small", 8), bytes_tensor("large", 5000), typed, text],
            sparse_initializer: vec![sparse("sparse")],
            ..GraphProto::default()
        }),
        functions: vec![FunctionProto {
            name: Some("function".to_owned()),
            node: vec![node("in function")],
            attribute_proto: node("default").attribute,
            ..FunctionProto::default()
        }],
        training_info: vec![TrainingInfoProto {
            initialization: Some(inner.clone()),
            algorithm: Some(inner),
            ..TrainingInfoProto::default()
        }],
        ..ModelProto::default()
    }
}
