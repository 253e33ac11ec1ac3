use std::fs;

use super::*;
use crate::data::{Preprocess, npz};
use crate::tensor::Tensor;

#[test]
fn files_hash_as_sha256sum_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    for (content, hash) in [
        ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    ] {
        fs::write(&path, content).unwrap();
        assert_eq!(sha256_of_file(&path).unwrap(), hash);
    }
    assert!(sha256_of_file(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
}

#[test]
fn data_hash_by_their_values_and_order() {
    let folder = tempfile::tempdir().unwrap();
    let hash = |values: Vec<f32>, samples: usize, take: usize| {
        let path = folder.path().join("x.npz");
        npz::write(&path, [("x", &Tensor::new(&[samples, values.len() / samples], values).unwrap())])
            .unwrap();
        let data = Dataset::open(&path, &Preprocess::default(), &[]).unwrap().take(take);
        sha256_of_data(&data).unwrap()
    };
    let one = hash(vec![1.0, 2.0, 3.0, 4.0], 2, 2);
    assert_eq!(one, hash(vec![1.0, 2.0, 3.0, 4.0], 2, 2));
    assert_eq!(one, hash(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, 2));
    for other in [
        hash(vec![3.0, 4.0, 1.0, 2.0], 2, 2),
        hash(vec![1.0, 2.0, 3.0, 4.0], 4, 4),
        hash(vec![1.0, 2.0, 3.0, 4.5], 2, 2),
        hash(vec![1.0, 2.0, 3.0, 4.0], 2, 1),
    ] {
        assert_ne!(one, other);
    }
}

#[test]
fn what_is_recorded_is_read_back() {
    let mut graph = Graph::default();
    assert_eq!(Provenance::of(&graph), None);
    let with_data = Provenance {
        version: "1".into(),
        command: "quantize".into(),
        settings: "preset = \"default\"\n".into(),
        codes: String::new(),
        model: "ab".into(),
        data: Some("cd".into()),
        samples: Some(3),
    };
    let without = Provenance { data: None, samples: None, ..with_data.clone() };
    for recorded in [with_data, without] {
        recorded.record(&mut graph).unwrap();
        assert_eq!(Provenance::of(&graph), Some(recorded));
    }
    graph.metadata.insert(SAMPLES.into(), "-3 million".into());
    assert_eq!(Provenance::of(&graph).unwrap().samples, None);
}
