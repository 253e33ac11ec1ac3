use std::fs;

use super::*;
use crate::data::{Dataset, Preprocess, npz};
use crate::graph::Value;
use crate::op::{Dim, Fact};
use crate::tensor::{DType, Tensor};

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
        data.sha256().unwrap()
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
fn the_hash_is_that_of_single_samples_however_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npz");
    let (a, b) = (Tensor::vector(vec![1i64, 2, 3]), Tensor::new(&[3, 2], vec![1f32; 6]).unwrap());
    npz::write(&path, [("a", &a), ("b", &b)]).unwrap();
    let value = |name: &str, dtype, rank| Value {
        name: name.into(),
        fact: Fact::new(
            dtype,
            (0..rank).map(|i| if i == 0 { Dim::Named("N".into()) } else { Dim::Known(2) }),
        ),
    };
    let inputs = [value("a", DType::I64, 1), value("b", DType::F32, 2)];
    let open = || Dataset::open(&path, &Preprocess::default(), &inputs).unwrap();
    let mut single = SampleHash::default();
    let data = open();
    data.batches(1).for_each(|batch| single.update(&batch.unwrap()));
    let expected = single.finish();
    assert_eq!(data.sha256().unwrap(), expected);
    for size in [1, 2, 3, 5] {
        let data = open();
        assert_eq!(data.batches(size).hashed().count(), 3usize.div_ceil(size));
        assert_eq!(data.sha256().unwrap(), expected, "batches of {size}");
        assert_ne!(data.take(2).sha256().unwrap(), expected, "a part of it");
    }
    let part = open();
    assert!(part.batches(1).hashed().next().is_some());
    assert_eq!(part.sha256().unwrap(), expected, "after a pass that was not finished");
}
