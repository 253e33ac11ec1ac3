//! How a model wants its input prepared, as data that stands beside it.

mod rules;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use image::imageops::FilterType;
use serde::{Deserialize, Serialize};

use super::image::{MAX_PIXELS, Picture};
use crate::error::{Error, Result, invalid};
use crate::tensor::Tensor;

pub(super) use rules::Affine;
pub use rules::{ArrayRule, Factor};

/// The way from a picture to a model's input, in this order: resize, centre
/// crop, channel order, then for each sample `x` of channel `c`
///
/// `(x * scale - mean[c]) / std[c]`, in f32.
///
/// It is written as TOML; every key may be left out and no other is allowed:
///
/// ```toml
/// resize = 256                  # the short side; or [height, width]
/// crop = [224, 224]             # height and width; or one number for both
/// interpolation = "bilinear"    # or "bicubic"
/// channels = "rgb"              # or "bgr", "gray"
/// scale = 0.00392156862745098
/// mean = [0.485, 0.456, 0.406]  # in the order of `channels`; one number serves all
/// std = [0.229, 0.224, 0.225]
/// layout = "nchw"               # or "nhwc"
///
/// [array]                       # for .npy and .npz, in place of the above
/// key = "x_int8"
/// labels = "y"
/// scale = "scale"               # a number, or the member that holds it
/// zero_point = 0
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preprocess {
    /// The size to resize to; the picture's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// Height and width of the centre that is kept; everything if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<Size>,
    /// How pixels between pixels are computed.
    pub interpolation: Interpolation,
    /// The channels that the model wants; if absent, RGB of image files and
    /// the channels that arrays and records have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<Channels>,
    /// Multiplies each 8-bit sample.
    pub scale: f32,
    /// Subtracted after scaling: one per channel, or one for all.
    pub mean: Vec<f32>,
    /// Divides last: one per channel, or one for all.
    pub std: Vec<f32>,
    /// The order of the result's dimensions.
    pub layout: Layout,
    /// How arrays are prepared. Without it 8-bit arrays of rank 4 are pictures
    /// and all others go in as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array: Option<ArrayRule>,
}

/// A size to resize to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Resize {
    /// The short side; the long side keeps the proportion, rounded down.
    Short(usize),
    /// Height and width.
    Exact([usize; 2]),
}

/// Height and width of a crop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// The same height and width.
    Square(usize),
    /// Height and width.
    Exact([usize; 2]),
}

/// How pixels between pixels are computed; antialiased when shrinking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// From 2 x 2 neighbours, linearly.
    #[default]
    Bilinear,
    /// From 4 x 4 neighbours, by the Catmull-Rom cubic.
    Bicubic,
}

/// The channels of a model's input, in order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// Luma (ITU-R 601).
    Gray,
}

/// The order of an image tensor's dimensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Batch, channel, height, width.
    #[default]
    Nchw,
    /// Batch, height, width, channel.
    Nhwc,
}

impl Default for Preprocess {
    /// The samples 0..255 as they are, in f32 NCHW.
    fn default() -> Preprocess {
        Preprocess {
            resize: None,
            crop: None,
            interpolation: Interpolation::Bilinear,
            channels: None,
            scale: 1.0,
            mean: vec![0.0],
            std: vec![1.0],
            layout: Layout::Nchw,
            array: None,
        }
    }
}

impl Preprocess {
    /// Reads the TOML form.
    ///
    /// # Errors
    /// If a key is unknown or a value cannot be; with line and column.
    pub fn from_toml(text: &str) -> Result<Preprocess> {
        let preprocess: Preprocess = toml::from_str(text).map_err(|e| invalid!("{e}"))?;
        preprocess.check()?;
        Ok(preprocess)
    }

    /// The TOML form.
    ///
    /// # Errors
    /// If a value cannot be.
    pub fn to_toml(&self) -> Result<String> {
        self.check()?;
        toml::to_string(self).map_err(|e| invalid!("{e}"))
    }

    /// Reads a TOML file.
    ///
    /// # Errors
    /// Those of [`Preprocess::from_toml`], or if the file cannot be read; all
    /// name the file.
    pub fn read(path: &Path) -> Result<Preprocess> {
        let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        Preprocess::from_toml(&text).map_err(|e| e.at(path.display().to_string()))
    }

    /// Where the preparation of `model.onnx` is kept: `model.preprocess.toml`.
    pub fn path_beside(model: &Path) -> PathBuf {
        let mut name = OsString::from(model.file_stem().unwrap_or_default());
        name.push(".preprocess.toml");
        model.with_file_name(name)
    }

    /// Reads the file at [`Preprocess::path_beside`]; `None` if there is none.
    ///
    /// # Errors
    /// Those of [`Preprocess::read`].
    pub fn beside(model: &Path) -> Result<Option<Preprocess>> {
        match Preprocess::read(&Preprocess::path_beside(model)) {
            Ok(preprocess) => Ok(Some(preprocess)),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Refuses values by which nothing could be prepared.
    pub(super) fn check(&self) -> Result<()> {
        for (key, [height, width]) in
            [("resize", self.resize.map(Resize::least)), ("crop", self.crop.map(Size::height_width))]
                .into_iter()
                .filter_map(|(key, size)| size.map(|size| (key, size)))
        {
            let pixels = (height as u64).checked_mul(width as u64);
            if !pixels.is_some_and(|n| (1..=MAX_PIXELS).contains(&n)) {
                return Err(invalid!("{key}: {height} x {width} is not 1 to {MAX_PIXELS} pixels"));
            }
        }
        for (key, values) in [("mean", &self.mean), ("std", &self.std)] {
            let wanted: &[usize] = match self.channels {
                Some(Channels::Gray) => &[1],
                _ => &[1, 3],
            };
            if !wanted.contains(&values.len()) {
                return Err(invalid!("{key}: has {} values, expected one of {wanted:?}", values.len()));
            }
            if values.iter().any(|x| !x.is_finite()) {
                return Err(invalid!("{key}: {values:?} are not all finite"));
            }
        }
        if self.std.contains(&0.0) {
            return Err(invalid!("std: {:?} divides by zero", self.std));
        }
        if !self.scale.is_finite() {
            return Err(invalid!("scale: {} is not finite", self.scale));
        }
        self.array.as_ref().map_or(Ok(()), ArrayRule::check)
    }

    /// Prepares one picture: f32 of shape `[C, H, W]` or `[H, W, C]`.
    ///
    /// # Errors
    /// If the crop does not fit, a size has too many pixels, or `mean` or `std`
    /// has another number of channels.
    pub fn apply(&self, picture: &Picture) -> Result<Tensor> {
        let mut picture = match self.channels {
            Some(Channels::Gray) => picture.to_gray(),
            Some(Channels::Rgb | Channels::Bgr) => picture.to_rgb(),
            None => picture.clone(),
        };
        if let Some(resize) = self.resize {
            let [height, width] = resize.of(picture.height(), picture.width());
            picture = picture.resized(width, height, self.interpolation.filter())?;
        }
        if let Some(crop) = self.crop {
            let [height, width] = crop.height_width();
            picture = picture.centre_crop(width, height)?;
        }
        let channels = picture.channels();
        let of = |key: &str, values: &[f32], c: usize| match values {
            [one] => Ok(*one),
            _ if values.len() == channels => Ok(values[c]),
            _ => Err(invalid!("{key} has {} values for {channels} channels", values.len())),
        };
        let mut tables = Vec::with_capacity(channels);
        for c in 0..channels {
            let (mean, std) = (of("mean", &self.mean, c)?, of("std", &self.std, c)?);
            let source = if self.channels == Some(Channels::Bgr) { channels - 1 - c } else { c };
            let table: Vec<f32> = (0..=255u8).map(|x| (f32::from(x) * self.scale - mean) / std).collect();
            tables.push((source, table));
        }
        let (height, width) = (picture.height(), picture.width());
        let samples = picture.samples();
        let value = |i: usize, (source, table): &(usize, Vec<f32>)| {
            table[usize::from(samples[i * channels + source])]
        };
        let pixels = height * width;
        match self.layout {
            Layout::Nchw => {
                let data = tables.iter().flat_map(|t| (0..pixels).map(move |i| value(i, t))).collect();
                Tensor::new(&[channels, height, width], data)
            }
            Layout::Nhwc => {
                let tables = &tables;
                let data = (0..pixels).flat_map(|i| tables.iter().map(move |t| value(i, t))).collect();
                Tensor::new(&[height, width, channels], data)
            }
        }
    }
}

impl Resize {
    /// Height and width of a picture of `height` x `width` after resizing.
    fn of(self, height: usize, width: usize) -> [usize; 2] {
        match self {
            Resize::Exact(size) => size,
            Resize::Short(short) => {
                let long = |a: usize, b: usize| short.saturating_mul(a) / b.max(1);
                if height <= width { [short, long(width, height)] } else { [long(height, width), short] }
            }
        }
    }

    /// The fewest pixels that this can give.
    fn least(self) -> [usize; 2] {
        self.of(1, 1)
    }
}

impl Size {
    fn height_width(self) -> [usize; 2] {
        match self {
            Size::Square(n) => [n, n],
            Size::Exact(size) => size,
        }
    }
}

impl Interpolation {
    fn filter(self) -> FilterType {
        match self {
            Interpolation::Bilinear => FilterType::Triangle,
            Interpolation::Bicubic => FilterType::CatmullRom,
        }
    }
}

#[cfg(test)]
mod tests;
