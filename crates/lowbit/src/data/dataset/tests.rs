use std::fs;

use ::image::ImageFormat;
use proptest::prelude::*;

use super::super::image::tests::encoded;
use super::super::{npy, npz};
use super::*;

fn value(name: &str, dtype: DType, shape: &[&str]) -> Value {
    let dims = shape.iter().map(|d| d.parse().map_or_else(|_| Dim::Named((*d).into()), Dim::Known));
    Value { name: name.into(), fact: Fact::new(dtype, dims) }
}

fn png(path: &Path, width: u32, red: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, encoded(ImageFormat::Png, width, 2, |_, _| [red, 0, 0])).unwrap();
}

fn open(path: &Path, toml: &str, inputs: &[Value]) -> Result<Dataset> {
    Dataset::open(path, &Preprocess::from_toml(toml).unwrap(), inputs)
}

/// The first element of each sample of each batch of the first input.
fn firsts(dataset: &Dataset, size: usize) -> Vec<Vec<f32>> {
    dataset
        .batches(size)
        .map(|batch| {
            let (_, t) = &batch.unwrap().inputs[0];
            t.to_f32().unwrap().chunks(t.len() / t.shape()[0]).map(|row| row[0]).collect()
        })
        .collect()
}

#[test]
fn image_folders_are_sorted_and_labelled() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for (i, name) in ["flat/b.png", "flat/a.PNG", "flat/c_1.png"].iter().enumerate() {
        png(&root.join(name), 2, i as u8 + 1);
    }
    fs::write(root.join("flat/notes.txt"), "not a picture").unwrap();
    fs::write(root.join("flat/.hidden.webp"), "not listed").unwrap();
    for (i, name) in ["prefix/0007_x.png", "prefix/0002_y.png"].iter().enumerate() {
        png(&root.join(name), 2, i as u8 + 1);
    }
    for (i, name) in ["tree/dog/1.png", "tree/cat/2.png", "tree/cat/1.png"].iter().enumerate() {
        png(&root.join(name), 2, i as u8 + 1);
    }
    let cases = [
        ("flat", vec![vec![2.0, 1.0], vec![3.0]], None),
        ("prefix", vec![vec![2.0, 1.0]], Some(vec![2, 7])),
        ("tree", vec![vec![3.0, 2.0], vec![1.0]], Some(vec![0, 0, 1])),
        ("flat/b.png", vec![vec![1.0]], None),
    ];
    for (name, reds, labels) in cases {
        let dataset = open(&root.join(name), "", &[]).unwrap();
        assert_eq!((firsts(&dataset, 2), dataset.labels()), (reds, labels), "{name}");
    }
    let batch = open(&root.join("tree"), "", &[]).unwrap().batches(9).next().unwrap().unwrap();
    assert_eq!((batch.inputs[0].0.as_str(), batch.inputs[0].1.shape()), ("input", [3, 3, 2, 2].as_slice()));
    assert!(batch.names[2].ends_with("1.png") && batch.names[2].contains("dog"), "{:?}", batch.names);
}

#[test]
fn wrong_folders_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir(root.join("empty")).unwrap();
    png(&root.join("mixed/a.png"), 2, 0);
    png(&root.join("mixed/sub/b.png"), 2, 0);
    png(&root.join("hole/sub/b.png"), 2, 0);
    fs::create_dir(root.join("hole/none")).unwrap();
    png(&root.join("deep/a/b/c.png"), 2, 0);
    png(&root.join("webp/a.png"), 2, 0);
    fs::write(root.join("webp/b.webp"), "x").unwrap();
    fs::write(root.join("a.csv"), "x").unwrap();
    let cases = [
        ("missing", "missing"),
        ("empty", "empty: holds no JPEG or PNG image"),
        ("mixed", "beside folders"),
        ("hole", "none: a class's folder holds"),
        ("deep", "a: a class's folder holds"),
        ("webp", "b.webp: only JPEG and PNG"),
        ("a.csv", "a.csv: is no known data set"),
    ];
    for (name, expected) in cases {
        let message = open(&root.join(name), "", &[]).unwrap_err().to_string();
        assert!(message.contains(expected), "{name}: {message}");
    }
}

#[test]
fn an_unreadable_image_ends_the_batches() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.png", "b.png", "d.png"] {
        png(&dir.path().join(name), 2, 0);
    }
    fs::write(dir.path().join("c.png"), "no picture").unwrap();
    let dataset = open(dir.path(), "", &[]).unwrap();
    let results: Vec<_> = dataset.batches(1).collect();
    assert_eq!(results.len(), 3);
    assert!(results[..2].iter().all(Result::is_ok));
    assert!(results[2].as_ref().unwrap_err().to_string().contains("c.png"));

    png(&dir.path().join("c.png"), 5, 0);
    let message = dataset.batches(4).next().unwrap().unwrap_err().to_string();
    assert!(["c.png", "[3, 2, 5]", "a.png", "[3, 2, 2]"].iter().all(|s| message.contains(s)), "{message}");
}

#[test]
fn arrays_are_chosen_prepared_and_labelled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let x = Tensor::new(&[3, 2], vec![-128i8, 0, 127, 1, 5, 6]).unwrap();
    let z = Tensor::new(&[3, 1], vec![1.0f32, 2.0, 3.0]).unwrap();
    let (scale, zero) = (Tensor::scalar(0.5f64), Tensor::scalar(-2i64));
    let (y, other) = (Tensor::vector(vec![4i64, 0, 9]), Tensor::new(&[3, 1], vec![1u8, 2, 3]).unwrap());
    let members = [("x", &x), ("z", &z), ("s", &scale), ("zp", &zero), ("y", &y), ("other", &other)];
    npz::write(&path, members).unwrap();
    let f = DType::F32;
    struct Case<'a> {
        toml: &'a str,
        inputs: Vec<Value>,
        expected: Vec<(&'a str, DType, Vec<f32>)>,
        labels: Option<Vec<usize>>,
    }
    let raw = vec![-128., 0., 127., 1., 5., 6.];
    let cases = [
        Case {
            toml: "",
            inputs: vec![],
            expected: vec![("x", DType::I8, raw.clone())],
            labels: Some(vec![4, 0, 9]),
        },
        Case {
            toml: "",
            inputs: vec![value("z", f, &["N", "1"])],
            expected: vec![("z", f, vec![1., 2., 3.])],
            labels: Some(vec![4, 0, 9]),
        },
        Case {
            toml: "",
            inputs: vec![value("z", f, &["N", "1"]), value("x", DType::I8, &["N", "2"])],
            expected: vec![("z", f, vec![1., 2., 3.]), ("x", DType::I8, raw.clone())],
            labels: Some(vec![4, 0, 9]),
        },
        Case {
            toml: "[array]\nkey = 'x'\nscale = 's'\nzero_point = 'zp'\nlabels = 'other'",
            inputs: vec![value("features", f, &["N", "2"])],
            expected: vec![("features", f, vec![-63., 1., 64.5, 1.5, 3.5, 4.])],
            labels: Some(vec![1, 2, 3]),
        },
        Case {
            toml: "[array]\nkey = 'x'\nscale = 2",
            inputs: vec![value("a", f, &["1", "2"]), value("z", f, &["N", "D"])],
            expected: vec![("a", f, vec![-256., 0., 254., 2., 10., 12.]), ("z", f, vec![1., 2., 3.])],
            labels: Some(vec![4, 0, 9]),
        },
    ];
    let mut failures = vec![];
    for Case { toml, inputs, expected, labels } in cases {
        let dataset = open(&path, toml, &inputs).unwrap();
        let batch = dataset.batches(3).next().unwrap().unwrap();
        let found: Vec<(&str, DType, Vec<f32>)> =
            batch.inputs.iter().map(|(n, t)| (n.as_str(), t.dtype(), t.to_f32().unwrap())).collect();
        if found != expected || dataset.labels() != labels || batch.labels != labels {
            failures.push(format!("{toml:?}: {found:?} {labels:?}, expected {expected:?}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");

    let refused: [(&str, Vec<Value>, &str); 9] = [
        ("[array]\nkey = 'w'", vec![], "no array is named \"w\"; it has x, z, s"),
        ("[array]\nkey = 's'", vec![], "\"s\" has no dimension"),
        ("[array]\nscale = 'q'", vec![], "has no array \"q\""),
        ("[array]\nscale = 'x'", vec![], "should be one finite number"),
        ("[array]\nlabels = 'z'", vec![], "expected 3 class indices, one per sample, found f32[3, 1]"),
        ("", vec![value("x", f, &["N", "2"])], "expects f32[N,2], the data gives int8[N,2]; store it as f32"),
        ("", vec![value("x", DType::I8, &["N", "3"])], "expects int8[N,3], the data gives int8[N,2]"),
        ("", vec![value("x", DType::I8, &["N", "2", "1"])], "expects int8[N,2,1]"),
        (
            "",
            vec![value("z", f, &["N", "1"]), value("state", f, &["N"])],
            "no array for the model's input \"state\"",
        ),
    ];
    for (toml, inputs, expected) in refused {
        let message = open(&path, toml, &inputs).unwrap_err().to_string();
        if !message.contains(expected) || !message.contains("a.npz") {
            failures.push(format!("{toml:?}: {message}, expected {expected:?}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn unequal_and_empty_arrays_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let (a, b) = (Tensor::full(&[3, 1], 0f32).unwrap(), Tensor::full(&[2, 1], 0f32).unwrap());
    npz::write(&path, [("a", &a), ("b", &b)]).unwrap();
    let inputs = [value("a", DType::F32, &["N", "1"]), value("b", DType::F32, &["N", "1"])];
    let message = open(&path, "", &inputs).unwrap_err().to_string();
    assert!(message.contains("\"a\" has 3 samples and \"b\" has 2"), "{message}");
    npz::write(&path, [("x", &Tensor::full(&[0, 4], 0f32).unwrap())]).unwrap();
    assert!(open(&path, "", &[]).unwrap_err().to_string().contains("a.npz: holds no sample"));
    npz::write(&path, [("y", &Tensor::vector(vec![0u8]))]).unwrap();
    assert!(open(&path, "", &[]).unwrap_err().to_string().contains("holds no array of samples; it has y"));
}

#[test]
fn arrays_without_the_dimension_of_samples_are_samples() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("texts.npz");
    let texts = [vec![1i64, 5, 6], vec![1, 7], vec![1, 8]].map(Tensor::vector);
    let labels = Tensor::vector(vec![4u8, 2, 0]);
    let members = ["b", "a", "c"].into_iter().zip(&texts).chain([("y", &labels)]);
    npz::write(&path, members).unwrap();
    let ids = |rank: &[&str]| vec![value("ids", DType::I64, rank)];
    let dataset = open(&path, "", &ids(&["N", "T"])).unwrap();
    let batches: Vec<_> = dataset.batches(8).map(Result::unwrap).collect();
    let found: Vec<_> = batches.iter().map(|b| (b.inputs[0].1.shape(), b.names.clone())).collect();
    assert_eq!(found, [(&[1, 3][..], vec!["b".to_string()]), (&[2, 2], vec!["a".into(), "c".into()])]);
    assert_eq!((batches[0].inputs[0].0.as_str(), dataset.labels()), ("ids", Some(vec![4, 2, 0])));
    // Rows of the first array, where these are samples; nothing, where they are not all alike.
    let rows = open(&path, "", &ids(&["N"])).unwrap();
    assert_eq!(rows.batches(8).next().unwrap().unwrap().inputs[0].1, texts[0]);
}

#[test]
fn eight_bit_arrays_of_rank_4_are_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npy");
    let samples: Vec<u8> = (0..24).collect();
    let toml = "scale = 0.5\nmean = [1]\nchannels = 'rgb'\ncrop = [1, 2]";
    for (shape, channel_stride) in [([2, 3, 2, 2], 4u8), ([2, 2, 2, 3], 1)] {
        npy::write(&path, &Tensor::new(&shape, samples.clone()).unwrap()).unwrap();
        let input = value("input", DType::F32, &["N", "3", "1", "2"]);
        let batch = open(&path, toml, &[input]).unwrap().batches(2).next().unwrap().unwrap();
        let (name, t) = &batch.inputs[0];
        assert_eq!((name.as_str(), t.shape()), ("input", [2, 3, 1, 2].as_slice()));
        // The crop of 1 of 2 rows keeps row 0.
        let expected: Vec<f32> =
            [0u8, 1, 2].iter().map(|c| f32::from(12 + c * channel_stride) * 0.5 - 1.0).collect();
        let found: Vec<f32> = t.to_f32().unwrap()[6..].iter().step_by(2).copied().collect();
        assert_eq!(found, expected, "{shape:?}");
        let raw = value("input", DType::U8, &["N", "A", "B", "C"]);
        let batch = open(&path, toml, &[raw]).unwrap().batches(2).next().unwrap().unwrap();
        assert_eq!(batch.inputs[0].1, Tensor::new(&shape, samples.clone()).unwrap());
    }
}

#[test]
fn a_pattern_takes_members_as_samples() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let story = |n: usize, first: i64| Tensor::vector((0..n as i64).map(|i| first + i).collect());
    let tensors = [("s0", story(3, 0)), ("s1", story(3, 10)), ("s2", story(2, 20)), ("s3", story(3, 30))];
    npz::write(&path, tensors.iter().map(|(n, t)| (*n, t))).unwrap();
    let ids = value("ids", DType::I64, &["N", "T"]);
    let dataset = open(&path, "[array]\nkey = 's*'", std::slice::from_ref(&ids)).unwrap();
    assert_eq!(dataset.len(), 4);
    assert_eq!(firsts(&dataset, 8), [vec![0.0, 10.0], vec![20.0], vec![30.0]]);
    let batch = dataset.batches(8).next().unwrap().unwrap();
    assert_eq!(batch.names, ["s0", "s1"]);
    assert_eq!(batch.inputs[0].1, Tensor::new(&[2, 3], vec![0i64, 1, 2, 10, 11, 12]).unwrap());
    let fixed = value("ids", DType::I64, &["N", "3"]);
    let message = open(&path, "[array]\nkey = 's*'", &[fixed]).unwrap_err().to_string();
    assert!(message.contains("sample s2") && message.contains("expects int64[N,3]"), "{message}");
}

#[test]
fn pictures_are_checked_against_the_model() {
    let dir = tempfile::tempdir().unwrap();
    png(&dir.path().join("a.png"), 4, 0);
    let fits = value("image", DType::F32, &["1", "3", "H", "4"]);
    let dataset = open(dir.path(), "", std::slice::from_ref(&fits)).unwrap();
    assert_eq!(dataset.batches(1).next().unwrap().unwrap().inputs[0].0, "image");
    for (inputs, expected) in [
        (
            vec![value("i", DType::F32, &["N", "3", "8", "8"])],
            "expects f32[N,3,8,8], the data gives f32[N,3,2,4]; set resize",
        ),
        (vec![value("i", DType::U8, &["N", "3", "2", "4"])], "expects uint8"),
        (vec![fits, value("mask", DType::F32, &["N"])], "input \"mask\" has no data; the data is for image"),
    ] {
        let message = open(dir.path(), "", &inputs).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

fn numbered(n: usize) -> (tempfile::TempDir, Dataset) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n.npy");
    npy::write(&path, &Tensor::vector((0..n).map(|x| x as f32).collect())).unwrap();
    let dataset = Dataset::open(&path, &Preprocess::default(), &[]).unwrap();
    (dir, dataset)
}

#[test]
fn samples_are_skipped_taken_and_shuffled() {
    let (_dir, dataset) = numbered(10);
    let dataset = dataset.skip(2).take(5);
    assert_eq!(firsts(&dataset, 2), [vec![2., 3.], vec![4., 5.], vec![6.]]);
    assert_eq!(firsts(&dataset, 0).len(), 5);
    let shuffled = numbered(10).1.shuffled(1);
    assert_eq!(firsts(&shuffled, 10), [vec![9., 0., 1., 4., 8., 2., 3., 7., 6., 5.]]);
    assert_eq!(numbered(3).1.skip(5).batches(2).count(), 0);
}

proptest! {
    #[test]
    fn batches_hold_each_sample_once(n in 1usize..40, size in 0usize..9, seed: u64, skip in 0usize..50) {
        let (_dir, dataset) = numbered(n);
        let dataset = dataset.shuffled(seed).skip(skip);
        let mut all: Vec<f32> = firsts(&dataset, size).concat();
        prop_assert_eq!(all.len(), n.saturating_sub(skip));
        prop_assert_eq!(dataset.len(), all.len());
        all.sort_by(f32::total_cmp);
        all.dedup();
        prop_assert_eq!(all.len(), dataset.len());
    }
}
