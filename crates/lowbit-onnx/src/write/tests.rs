use std::fs;

use super::*;
use crate::sample::{self, bytes_tensor};
use crate::{Model, read};

const FORCED: WriteOptions = WriteOptions { external_threshold: Some(0) };

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Every tensor but strings, read.
fn tensors(model: &Model) -> Vec<TensorData> {
    let mut all = Vec::new();
    visit_tensors(&mut model.proto().clone(), &mut |tensor| {
        if tensor.data_type() != DataType::String.to_onnx() {
            all.push(model.tensor(tensor)?);
        }
        Ok(())
    })
    .unwrap();
    all
}

#[test]
fn a_small_model_is_one_identical_message() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    write(&sample::model(), &path, &WriteOptions::default()).unwrap();
    assert_eq!(names_in(folder.path()), ["m.onnx"]);
    assert_eq!(read(&path).unwrap().proto(), &sample::model());
}

#[test]
fn external_data_give_the_same_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let proto = sample::model();
    write(&proto, &path, &FORCED).unwrap();
    assert_eq!(names_in(folder.path()), ["m.onnx", "m.onnx.data"]);

    let model = read(&path).unwrap();
    let whole = Model::new(proto.clone()).unwrap();
    assert_eq!(tensors(&model), tensors(&whole));

    let moved: Vec<_> = model
        .graph()
        .initializer
        .iter()
        .map(|tensor| {
            let entries = tensor.external_data.iter();
            (tensor.name(), entries.map(|e| e.value()).collect::<Vec<_>>())
        })
        .collect();
    assert_eq!(
        moved,
        [
            ("small", vec![]),
            ("large", vec!["m.onnx.data", "0", "5000"]),
            ("typed", vec!["m.onnx.data", "8192", "1600"]),
            ("text", vec![]),
        ]
    );
    let typed = &model.graph().initializer[2];
    assert_eq!((typed.doc_string(), typed.metadata_props.len()), ("kept", 1));
    assert_eq!(fs::metadata(folder.path().join("m.onnx.data")).unwrap().len(), 9792);

    let others = |model: &Model| {
        let mut proto = model.proto().clone();
        proto.graph.as_mut().unwrap().initializer.clear();
        proto
    };
    assert_eq!(others(&model), others(&whole));
}

/// The sample's main graph has 4 initializers and a sparse tensor of 2, either graph of the
/// training information 3, and each of three attribute lists 1 + 1 + 2 + 2 + 3 + 3.
#[test]
fn every_place_for_a_tensor_is_visited() {
    let mut visited = 0;
    visit_tensors(&mut sample::model(), &mut |_| {
        visited += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(visited, 4 + 2 + 2 * 3 + 3 * 12);
}

#[test]
fn the_threshold_counts_the_whole_model() {
    let folder = tempfile::tempdir().unwrap();
    let size = sample::model().encoded_len() as u64;
    for (threshold, files) in [(size, 1), (size - 1, 2)] {
        let folder = tempfile::tempdir_in(folder.path()).unwrap();
        let options = WriteOptions { external_threshold: Some(threshold) };
        write(&sample::model(), folder.path().join("m.onnx"), &options).unwrap();
        assert_eq!(names_in(folder.path()).len(), files, "threshold {threshold}");
    }
}

#[test]
fn external_data_move_with_their_model() {
    let root = tempfile::tempdir().unwrap();
    let [first, second, third] = ["a", "b", "c"].map(|name| root.path().join(name));
    for folder in [&first, &second, &third] {
        fs::create_dir(folder).unwrap();
    }
    let first = first.join("m.onnx");
    write(&sample::model(), &first, &FORCED).unwrap();
    let expected = tensors(&read(&first).unwrap());

    read(&first).unwrap().write(second.join("n.onnx"), &FORCED).unwrap();
    assert_eq!(names_in(&second), ["n.onnx", "n.onnx.data"]);

    let inside = third.join("m.onnx");
    let options = WriteOptions::default();
    read(second.join("n.onnx")).unwrap().write(&inside, &options).unwrap();
    assert_eq!(names_in(&third), ["m.onnx"]);

    let itself = read(&first).unwrap();
    itself.write(&first, &FORCED).unwrap();

    for path in [&first, &second.join("n.onnx"), &inside] {
        assert_eq!(tensors(&read(path).unwrap()), expected, "{}", path.display());
    }
}

/// An exporter may put the data of any tensor outside, nested ones too.
#[test]
fn nested_external_tensors_are_taken_along() {
    let root = tempfile::tempdir().unwrap();
    let expected = tensors(&Model::new(sample::model()).unwrap());
    let mut proto = sample::model();
    let mut data = DataFile::new(&root.path().join("m.onnx"));
    visit_tensors(&mut proto, &mut |tensor| {
        if let Some(bytes) = tensor.raw_data.take() {
            tensor.external_data = data.append(&bytes)?;
            tensor.data_location = Some(DataLocation::External as i32);
        }
        Ok(())
    })
    .unwrap();
    data.finish().unwrap();
    let path = root.path().join("m.onnx");
    fs::write(&path, proto.encode_to_vec()).unwrap();
    let model = read(&path).unwrap();
    assert_eq!(tensors(&model), expected);

    let elsewhere = tempfile::tempdir().unwrap();
    let copy = elsewhere.path().join("copy.onnx");
    model.write(&copy, &WriteOptions::default()).unwrap();
    assert_eq!(names_in(elsewhere.path()), ["copy.onnx"]);
    assert_eq!(tensors(&read(&copy).unwrap()), expected);

    let message = write(model.proto(), &copy, &WriteOptions::default()).unwrap_err().to_string();
    assert!(message.contains("came without a folder"), "{message}");
}

#[test]
fn a_failed_write_leaves_everything_as_it_was() {
    let broken = |index: usize, tensor: TensorProto| {
        let mut proto = sample::model();
        proto.graph.as_mut().unwrap().initializer[index] = tensor;
        proto
    };
    let short = TensorProto { dims: vec![5001], ..bytes_tensor("short", 5000) };
    let mut empty = sample::model();
    empty.graph = None;
    let no_limit = MESSAGE_LIMIT;
    let cases: Vec<(ModelProto, &str, u64, &str)> = vec![
        (empty, "m.onnx", no_limit, "the model has no graph"),
        (broken(2, short), "m.onnx", no_limit, "tensor \"short\": shape [5001]"),
        (sample::model(), "m.onnx", 2000, "over the 2 GiB"),
        (sample::model(), "folder.onnx", no_limit, "not a regular file"),
        (sample::model(), "blocked.onnx", no_limit, "not a regular file"),
        (sample::model(), "absent/m.onnx", no_limit, "cannot write"),
        (sample::model(), "m.onnx/m.onnx", no_limit, "cannot write"),
        (sample::model(), "..", no_limit, "not a regular file"),
    ];
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("m.onnx"), "before").unwrap();
    fs::write(folder.path().join("m.onnx.data"), "data before").unwrap();
    fs::create_dir(folder.path().join("folder.onnx")).unwrap();
    fs::create_dir(folder.path().join("blocked.onnx.data")).unwrap();
    let names = names_in(folder.path());
    for (proto, name, limit, expected) in cases {
        let path = folder.path().join(name);
        let message = save(&proto, None, &path, &FORCED, limit).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}, not {expected:?}");
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        assert_eq!(names_in(folder.path()), names, "{expected}");
        let kept = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(kept("m.onnx"), "before", "{expected}");
        assert_eq!(kept("m.onnx.data"), "data before", "{expected}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn refuses_names_that_a_model_cannot_hold() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(std::ffi::OsStr::from_bytes(b"\xff.onnx"));
    let message = write(&sample::model(), &path, &FORCED).unwrap_err().to_string();
    assert!(message.contains("must be UTF-8"), "{message}");
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
    write(&sample::model(), &path, &WriteOptions::default()).unwrap();
    assert!(read(&path).is_ok());
}

#[cfg(unix)]
#[test]
fn files_have_ordinary_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |name: &str| {
        let metadata = fs::metadata(folder.path().join(name)).unwrap();
        metadata.permissions().mode()
    };
    fs::write(folder.path().join("plain"), "").unwrap();
    write(&sample::model(), folder.path().join("m.onnx"), &FORCED).unwrap();
    assert_eq!(mode("m.onnx"), mode("plain"));
    assert_eq!(mode("m.onnx.data"), mode("plain"));
}
