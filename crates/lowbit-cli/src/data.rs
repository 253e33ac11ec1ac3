//! The arguments that say where samples come from and how they are prepared.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use lowbit::data::{ArrayRule, Channels, Dataset, Factor, Layout, Preprocess, Resize, Size};
use lowbit::graph::Graph;
use serde::de::DeserializeOwned;

use crate::model;

/// Samples, and how they are prepared.
#[derive(Args)]
pub struct DataArgs {
    /// Folder of images (a folder for each class gives labels), .jpg, .png, .npy,
    /// .npz (arrays named as the inputs, or x; labels y), CIFAR-10 .bin(.gz), IDX -ubyte(.gz).
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    #[command(flatten)]
    pub samples: SampleArgs,
}

/// How many samples, and how they are prepared.
#[derive(Args)]
pub struct SampleArgs {
    /// Use only the first N samples.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub samples: Option<usize>,
    #[command(flatten)]
    pub preprocess: PreprocessArgs,
}

/// How pictures and arrays become a model's input. What is not given is as in
/// the file.
#[derive(Args)]
#[command(next_help_heading = "Preprocessing")]
pub struct PreprocessArgs {
    /// TOML file; by default `MODEL.preprocess.toml` beside the model, if there is one.
    #[arg(long, value_name = "FILE.toml")]
    preprocess: Option<PathBuf>,
    /// Resize the short side to N, or to HxW.
    #[arg(long, value_name = "N|HxW", value_parser = resize)]
    resize: Option<Resize>,
    /// Keep the centre of N x N, or of HxW.
    #[arg(long, value_name = "N|HxW", value_parser = crop)]
    crop: Option<Size>,
    /// Channels that the model wants: rgb, bgr or gray.
    #[arg(long, value_parser = named::<Channels>)]
    channels: Option<Channels>,
    /// Multiply samples first.
    #[arg(long, allow_hyphen_values = true)]
    scale: Option<f32>,
    /// Subtract then: one number, or one for each channel.
    #[arg(long, value_name = "X[,X,X]", value_delimiter = ',', allow_hyphen_values = true)]
    mean: Option<Vec<f32>>,
    /// Divide last: one number, or one for each channel.
    #[arg(long, value_name = "X[,X,X]", value_delimiter = ',', allow_hyphen_values = true)]
    std: Option<Vec<f32>>,
    /// Order of dimensions: nchw or nhwc.
    #[arg(long, value_parser = named::<Layout>)]
    layout: Option<Layout>,
    /// Take this array of an .npz; only --scale is applied to it.
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// Take labels from this array of an .npz.
    #[arg(long, value_name = "NAME")]
    label_key: Option<String>,
}

impl PreprocessArgs {
    /// The preprocessing for a model: file, then flags.
    pub fn of(&self, model: &Path) -> lowbit::Result<Preprocess> {
        let file = match &self.preprocess {
            Some(path) => Some(Preprocess::read(path)?),
            None => Preprocess::beside(model)?,
        };
        let mut p = file.unwrap_or_default();
        p.resize = self.resize.or(p.resize);
        p.crop = self.crop.or(p.crop);
        p.channels = self.channels.or(p.channels);
        p.layout = self.layout.unwrap_or(p.layout);
        p.scale = self.scale.unwrap_or(p.scale);
        p.mean = self.mean.clone().unwrap_or(p.mean);
        p.std = self.std.clone().unwrap_or(p.std);
        if let (Some(array), Some(scale)) = (&mut p.array, self.scale) {
            array.scale = Some(Factor::Value(scale));
        }
        Ok(p)
    }

    /// `p` with the arrays that the flags choose.
    fn keyed(&self, mut p: Preprocess) -> Preprocess {
        if self.key.is_some() || self.label_key.is_some() {
            let stated = self.scale.or((p.scale != 1.0).then_some(p.scale)).map(Factor::Value);
            let array = p.array.get_or_insert_with(|| ArrayRule { scale: stated, ..ArrayRule::default() });
            array.key = self.key.clone().or(array.key.take());
            array.labels = self.label_key.clone().or(array.labels.take());
        }
        p
    }
}

impl DataArgs {
    /// Opens the data for `graph`, which `model` was loaded from.
    pub fn open(&self, model: &Path, graph: &Graph) -> lowbit::Result<Dataset> {
        self.samples.open(&self.data, model, graph)
    }
}

impl SampleArgs {
    /// Opens the data at `path` for `graph`, which `model` was loaded from.
    pub fn open(&self, path: &Path, model: &Path, graph: &Graph) -> lowbit::Result<Dataset> {
        let preprocess = self.preprocess.keyed(self.preprocess.of(model)?);
        let data = Dataset::open(path, &preprocess, &model::inputs(graph))?;
        Ok(match self.samples {
            Some(n) => data.take(n),
            None => data,
        })
    }
}

/// A value by the name that it has in files.
pub fn named<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(name.into())).map_err(|e| e.to_string())
}

/// A count of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected a whole number, 1 or more".into()),
    }
}

fn height_width(text: &str) -> Result<(usize, Option<usize>), String> {
    let number = |s: &str| usize::from_str(s).map_err(|_| format!("{text:?} is not N or HxW"));
    match text.split_once('x') {
        Some((h, w)) => Ok((number(h)?, Some(number(w)?))),
        None => Ok((number(text)?, None)),
    }
}

fn resize(text: &str) -> Result<Resize, String> {
    Ok(match height_width(text)? {
        (h, Some(w)) => Resize::Exact([h, w]),
        (n, None) => Resize::Short(n),
    })
}

fn crop(text: &str) -> Result<Size, String> {
    Ok(match height_width(text)? {
        (h, Some(w)) => Size::Exact([h, w]),
        (n, None) => Size::Square(n),
    })
}
