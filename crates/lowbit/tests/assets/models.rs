//! The classifiers among the asset models, with their data.

use std::path::Path;

use lowbit::data::{Batch, Dataset, Preprocess};
use lowbit::graph::Graph;
use lowbit::{Result, Tensor, onnx};

/// A classifier, and where and how its data is read.
#[derive(Clone, Copy, Debug)]
pub struct Classifier {
    /// What reports call it.
    pub name: &'static str,
    model: &'static str,
    calibration: Source,
    evaluation: Source,
    preprocess: &'static str,
    /// How many of the first samples of the evaluation data also calibrate.
    pub seen: usize,
    /// Samples that go through the model together.
    pub batch: usize,
}

/// Consecutive samples of a data set.
#[derive(Clone, Copy, Debug)]
struct Source {
    path: &'static str,
    first: usize,
    most: usize,
}

const fn all(path: &'static str) -> Source {
    Source { path, first: 0, most: usize::MAX }
}

/// MNIST and the keyword data have one part only: its first 100 samples calibrate.
const fn first_hundred(path: &'static str) -> Source {
    Source { path, first: 0, most: 100 }
}

const MNIST: &str = "mnist/t10k-images-idx3-ubyte.gz";

/// Every classifier of the assets.
pub const CLASSIFIERS: [Classifier; 5] = [
    Classifier {
        name: "mobilenet_v1",
        model: "mobilenet_v1_0.25_224.onnx",
        calibration: all("imagenet/calib100"),
        evaluation: all("imagenet/dev400"),
        preprocess: "crop = 224\nscale = 0.00784313725490196\nmean = [1]",
        seen: 0,
        batch: 8,
    },
    Classifier {
        name: "squeezenet",
        model: "squeezenet1.0_dc.onnx",
        calibration: all("imagenet/calib100"),
        evaluation: all("imagenet/dev400"),
        preprocess: "crop = 227\nchannels = 'bgr'\nmean = [104, 117, 123]",
        seen: 0,
        batch: 8,
    },
    Classifier {
        name: "resnet20",
        model: "resnet20_cifar10.onnx",
        calibration: Source { path: "cifar10/train5000.bin.gz", first: 0, most: 200 },
        evaluation: all("cifar10/test2000.bin.gz"),
        preprocess: "scale = 0.00392156862745098\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]",
        seen: 0,
        batch: 50,
    },
    Classifier {
        name: "kws",
        model: "kws_dscnn.onnx",
        calibration: first_hundred("kws01.npz"),
        evaluation: all("kws01.npz"),
        preprocess: "[array]\nkey = 'x_int8'\nscale = 'scale'\nzero_point = 'zero_point'",
        seen: 100,
        batch: 50,
    },
    Classifier {
        name: "mnist",
        model: "mnist-cntk.onnx",
        calibration: first_hundred(MNIST),
        evaluation: all(MNIST),
        preprocess: "",
        seen: 100,
        batch: 1,
    },
];

impl Classifier {
    /// The model's file under the assets' folder.
    pub fn path(&self, assets: &Path) -> std::path::PathBuf {
        assets.join("models").join(self.model)
    }

    /// The float model.
    pub fn load(&self, assets: &Path) -> Result<Graph> {
        onnx::load(self.path(assets))
    }

    /// The samples to calibrate on.
    pub fn calibration(&self, assets: &Path) -> Result<Dataset> {
        self.open(assets, self.calibration)
    }

    /// The samples to measure accuracy on.
    pub fn evaluation(&self, assets: &Path) -> Result<Dataset> {
        self.open(assets, self.evaluation)
    }

    fn open(&self, assets: &Path, source: Source) -> Result<Dataset> {
        let inputs: Vec<_> = self.load(assets)?.inputs().map(|(_, v)| v.clone()).collect();
        let preprocess = Preprocess::from_toml(self.preprocess)?;
        let dataset = Dataset::open(&assets.join("data").join(source.path), &preprocess, &inputs)?;
        Ok(dataset.skip(source.first).take(source.most))
    }
}

/// What a model with one input takes.
pub fn inputs(batch: Result<Batch>) -> Result<Vec<Tensor>> {
    Ok(batch?.inputs.into_iter().map(|(_, t)| t).collect())
}
