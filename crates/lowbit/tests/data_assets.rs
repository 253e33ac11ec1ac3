//! Real data sets are read whole and look as they should.

mod assets;

use lowbit::data::{Batch, Dataset, Preprocess};
use lowbit::graph::Value;
use lowbit::op::{Dim, Fact};
use lowbit::{DType, Tensor};

fn input(name: &str, dtype: DType, sample: &[usize]) -> Vec<Value> {
    let shape = [Dim::Named("N".into())].into_iter().chain(sample.iter().map(|&n| Dim::Known(n)));
    vec![Value { name: name.into(), fact: Fact::new(dtype, shape) }]
}

fn mean(t: &Tensor) -> f64 {
    let x = t.to_f32().unwrap();
    x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64
}

struct Case {
    path: &'static str,
    toml: &'static str,
    input: Vec<Value>,
    len: usize,
    /// Labels of the first samples.
    labels: &'static [usize],
    /// Bounds of the mean of the first 50 samples.
    mean: std::ops::Range<f64>,
}

const MOBILENET: &str = "crop = 224\nscale = 0.00784313725490196\nmean = [1]";
const SQUEEZENET: &str = "crop = 227\nchannels = 'bgr'\nmean = [104, 117, 123]";
const CIFAR: &str = "scale = 0.00392156862745098\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]";
const KWS: &str = "[array]\nkey = 'x_int8'\nscale = 'scale'\nzero_point = 'zero_point'";

#[test]
fn every_data_set_is_read() {
    let Some(assets) = assets::find("every_data_set_is_read") else { return };
    let f = DType::F32;
    let cases = [
        Case {
            path: "imagenet/calib100",
            toml: MOBILENET,
            input: input("input", f, &[3, 224, 224]),
            len: 100,
            labels: &[0, 10, 20],
            mean: -0.3..0.1,
        },
        Case {
            path: "imagenet/dev400",
            toml: SQUEEZENET,
            input: input("data", f, &[3, 227, 227]),
            len: 400,
            labels: &[],
            mean: -30.0..15.0,
        },
        Case {
            path: "cifar10/test2000.bin.gz",
            toml: CIFAR,
            input: input("input", f, &[3, 32, 32]),
            len: 2000,
            labels: &[1, 2, 6, 2, 4, 8, 4, 8, 9, 8],
            mean: 0.0641..0.0642,
        },
        Case {
            path: "cifar10/train5000.bin.gz",
            toml: CIFAR,
            input: input("input", f, &[3, 32, 32]),
            len: 5000,
            labels: &[5, 9, 7, 6, 5, 7, 5, 2, 1, 1],
            mean: -0.3..0.5,
        },
        Case {
            path: "mnist/t10k-images-idx3-ubyte.gz",
            toml: "",
            input: input("Input3", f, &[1, 28, 28]),
            len: 10_000,
            labels: &[7, 2, 1, 0, 4, 1, 4, 9, 5, 9],
            mean: 29.004..29.005,
        },
        Case {
            path: "kws01.npz",
            toml: KWS,
            input: input("features", f, &[49, 10, 1]),
            len: 1000,
            labels: &[7, 2, 6, 8, 5, 0, 8, 9, 4, 3],
            mean: -1.967..-1.966,
        },
    ];
    let mut failures = vec![];
    for Case { path, toml, input, len, labels, mean: bounds } in &cases {
        let preprocess = Preprocess::from_toml(toml).unwrap();
        let dataset = Dataset::open(&assets.join("data").join(path), &preprocess, input).unwrap();
        let Batch { inputs, labels: found, names } = dataset.batches(50).next().unwrap().unwrap();
        let found = found.unwrap_or_default();
        let mean = mean(&inputs[0].1);
        if dataset.len() != *len || names.len() != 50 || !found.starts_with(labels) || !bounds.contains(&mean)
        {
            failures.push(format!("{path}: {} samples, labels {found:?}, mean {mean}", dataset.len()));
        }
        let classes = dataset.labels().unwrap();
        let distinct = classes.iter().collect::<std::collections::BTreeSet<_>>().len();
        if classes.len() != *len || distinct < 10 {
            failures.push(format!("{path}: {} labels of {distinct} classes", classes.len()));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn the_first_image_is_what_it_was() {
    let Some(assets) = assets::find("the_first_image_is_what_it_was") else { return };
    let folder = assets.join("data/imagenet/calib100");
    let picture = lowbit::data::image::read(&folder.join("0000_n01440764.jpg")).unwrap();
    assert_eq!((picture.width(), picture.height(), picture.channels()), (256, 256, 3));
    let mean = picture.samples().iter().map(|&x| f64::from(x)).sum::<f64>() / (256.0 * 256.0 * 3.0);
    assert!((20.0..235.0).contains(&mean), "{mean}");
}

#[test]
fn stories_are_samples_of_their_own_length() {
    let Some(assets) = assets::find("stories_are_samples_of_their_own_length") else { return };
    let preprocess = Preprocess::from_toml("[array]\nkey = 'story*'").unwrap();
    let ids = Value {
        name: "ids".into(),
        fact: Fact::new(DType::I64, [Dim::Named("N".into()), Dim::Named("T".into())]),
    };
    let dataset = Dataset::open(&assets.join("data/stories_tokens.npz"), &preprocess, &[ids]).unwrap();
    let shapes: Vec<Vec<usize>> =
        dataset.batches(2).map(|b| b.unwrap().inputs[0].1.shape().to_vec()).collect();
    assert_eq!(shapes, [[1, 374], [1, 330], [1, 223], [1, 425], [1, 457]]);
}
