use std::fs;

use proptest::prelude::*;

use super::*;
use crate::proto::{AttributeProto, NodeProto, ValueInfoProto};
use crate::sample;

/// Reads all that can be read; the point is that nothing panics.
fn exercise(bytes: &[u8]) -> Result<()> {
    let model = Model::decode(bytes)?;
    for tensor in &model.graph().initializer {
        let _ = model.tensor(tensor);
    }
    let again = Model::decode(&model.proto().encode_to_vec())?;
    assert_eq!(again.proto().encode_to_vec(), model.proto().encode_to_vec());
    Ok(())
}

#[test]
fn decodes_what_was_encoded() {
    let proto = sample::model();
    let model = Model::decode(&proto.encode_to_vec()).unwrap();
    assert_eq!(model.proto(), &proto);
    assert_eq!(Some(model.graph()), proto.graph.as_ref());
    assert_eq!(model.into_proto(), proto);
}

/// A message cut between two fields is a legal message. The operator sets are the last of the
/// fields that every model has, so a cut before them is noticed; what may follow is left out.
#[test]
fn refuses_every_truncation() {
    let proto = ModelProto {
        training_info: Vec::new(),
        functions: Vec::new(),
        metadata_props: Vec::new(),
        ..sample::model()
    };
    let bytes = proto.encode_to_vec();
    let accepted: Vec<usize> = (0..bytes.len()).filter(|&len| Model::decode(&bytes[..len]).is_ok()).collect();
    assert!(accepted.is_empty(), "of {}: {accepted:?}", bytes.len());
    assert!(Model::decode(&bytes).is_ok());
}

#[test]
fn names_what_is_wrong_with_the_bytes() {
    let mut no_opset = sample::model();
    no_opset.opset_import.clear();
    let mut no_graph = sample::model();
    no_graph.graph = None;
    let mut deep = GraphProto::default();
    for _ in 0..60 {
        let attribute = AttributeProto { g: Some(Box::new(deep)), ..AttributeProto::default() };
        deep = GraphProto {
            node: vec![NodeProto { attribute: vec![attribute], ..NodeProto::default() }],
            ..GraphProto::default()
        };
    }
    let too_deep = ModelProto { graph: Some(deep), ..sample::model() };
    let graph_of_length = |varint: &[u8]| [&[0x3a], varint, &[0x00]].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "the model has no graph"),
        (no_graph.encode_to_vec(), "the model has no graph"),
        (no_opset.encode_to_vec(), "the model has no operator set"),
        (too_deep.encode_to_vec(), "recursion limit"),
        (b"<!DOCTYPE html><html>".to_vec(), "not an ONNX model, or cut short"),
        (b"PK\x03\x04 a zip archive".to_vec(), "not an ONNX model, or cut short"),
        (graph_of_length(&[0xff, 0xff, 0xff, 0xff, 0x07]), "not an ONNX model, or cut short"),
        (graph_of_length(&[0xff; 9]), "not an ONNX model, or cut short"),
        (b"\x12\x02\xff\xfe".to_vec(), "UTF-8"),
    ];
    let mut failures = Vec::new();
    for (bytes, expected) in cases {
        match Model::decode(&bytes) {
            Ok(_) => failures.push(format!("accepted, not {expected:?}")),
            Err(error) if error.to_string().contains(expected) => {}
            Err(error) => failures.push(format!("{error}, not {expected:?}")),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn old_models_need_no_operator_set() {
    let proto = ModelProto { ir_version: Some(2), opset_import: Vec::new(), ..sample::model() };
    assert!(Model::decode(&proto.encode_to_vec()).is_ok());
}

#[test]
fn names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("empty.onnx"), b"").unwrap();
    fs::write(path("page.onnx"), b"<html>").unwrap();
    let huge = File::create(path("huge.onnx")).unwrap();
    huge.set_len(3 << 30).unwrap();
    let cases = [
        ("absent.onnx", "cannot open "),
        ("", "not a regular file"),
        ("empty.onnx", "no graph"),
        ("page.onnx", "not an ONNX "),
        ("huge.onnx", "3221225472 bytes or more, over the 2 GiB"),
    ];
    for (name, expected) in cases {
        let message = read(path(name)).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(message.contains(path(name).to_str().unwrap()), "{message}");
    }
    for (name, expected) in [
        ("absent.pb", "cannot open"),
        ("empty.onnx", "tensor \"\": unknown element type number 0"),
        ("page.onnx", "not an ONNX tensor"),
    ] {
        let message = read_tensor(path(name)).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(message.contains(path(name).to_str().unwrap()), "{message}");
    }
}

#[test]
fn reads_a_tensor_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("input_0.pb");
    let proto = sample::bytes_tensor("x", 3);
    fs::write(&path, proto.encode_to_vec()).unwrap();
    assert_eq!(read_tensor(&path).unwrap().bytes, [0, 1, 2]);
}

/// Two bytes of file can ask for one empty message, so its size is the factor by which
/// decoding may multiply the size of a hostile file.
#[test]
fn repeated_messages_are_small() {
    let sizes = [
        ("AttributeProto", size_of::<AttributeProto>()),
        ("NodeProto", size_of::<NodeProto>()),
        ("TensorProto", size_of::<TensorProto>()),
        ("ValueInfoProto", size_of::<ValueInfoProto>()),
    ];
    for (message, size) in sizes {
        assert!(size <= 400, "{message} has {size} bytes");
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = exercise(&bytes);
    }

    #[test]
    fn damaged_models_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let mut proto = sample::model();
        if let Some(graph) = &mut proto.graph {
            graph.initializer.retain(|t| t.name() == "small" || t.name() == "typed");
            graph.node.clear();
        }
        proto.functions.clear();
        proto.training_info.clear();
        let mut bytes = proto.encode_to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = exercise(&bytes);
    }
}
