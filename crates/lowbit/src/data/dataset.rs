//! A data set: samples in a fixed order, read lazily in batches.

mod arrays;
mod folder;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;

use super::digest::{Digest, SampleHash};
use super::image::{self, Picture};
use super::preprocess::Preprocess;
use super::records::{self, Records};
use crate::error::{Error, Result, invalid};
use crate::graph::Value;
use crate::op::{Dim, Fact};
use crate::random::SplitMix;
use crate::tensor::{DType, Tensor};
use arrays::{Arrays, Sequences};

/// Samples with a fixed order and, where the source has them, class labels.
#[derive(Debug)]
pub struct Dataset {
    source: Source,
    preprocess: Preprocess,
    /// The model input that pictures are for.
    input: String,
    /// Class of every sample of the source.
    labels: Option<Vec<usize>>,
    /// The source's samples that are used, in order.
    order: Vec<usize>,
    /// The hash of these, once it was asked for.
    digest: OnceLock<Digest>,
}

#[derive(Debug)]
enum Source {
    /// Image files, decoded when their batch is asked for.
    Files(Vec<PathBuf>),
    Records(Records),
    Arrays(Arrays),
    Sequences(Sequences),
}

/// Consecutive samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// A tensor for each model input; the samples lie along its first dimension.
    pub inputs: Vec<(String, Tensor)>,
    /// The class of each sample, if the source has labels.
    pub labels: Option<Vec<usize>>,
    /// File, member or index of each sample, for messages and reports.
    pub names: Vec<String>,
}

impl Dataset {
    /// Opens a data set. What `path` is decides how it is read:
    ///
    /// | path | samples | labels |
    /// |---|---|---|
    /// | folder of subfolders | JPEG and PNG files, sorted by path | index of the subfolder, sorted by name |
    /// | folder of images | JPEG and PNG files, sorted by name | four digits and `_` that begin every file's name, or none |
    /// | `.jpg` `.jpeg` `.png` | one image | none |
    /// | `.npz` | rows of the arrays named as the model's inputs, or of [`ArrayRule::key`](super::ArrayRule::key), else of `x` or the first | `y` or `labels`, if it has one class index per row |
    /// | `.npz` of several arrays, none named as the model's only input or `x`, each without the dimension of samples | the arrays | `y` or `labels` |
    /// | `.npy` | rows of the array | none |
    /// | `.bin` `.bin.gz` | CIFAR-10 records | in the records |
    /// | `-ubyte` `-ubyte.gz` | IDX pictures (MNIST) | IDX file beside it, `labels` and `idx1` in its name for `images` and `idx3` |
    ///
    /// Pictures are prepared by `preprocess` when their batch is asked for;
    /// rows of `.npy` files are read then, other arrays and records held as they
    /// are in the file. `inputs` are the
    /// model's inputs, against which the samples are checked; without a model
    /// they are empty, and a picture's input is named `input`.
    ///
    /// # Errors
    /// If the path cannot be read, is none of these or holds no sample, or a
    /// sample is not what the model expects ([`Dataset::check`]); all name the
    /// file.
    pub fn open(path: &Path, preprocess: &Preprocess, inputs: &[Value]) -> Result<Dataset> {
        let place = || path.display().to_string();
        preprocess.check().map_err(|e| e.at("preprocessing"))?;
        let (source, labels) = open_source(path, preprocess, inputs)?;
        let dataset = Dataset {
            order: (0..source.len()).collect(),
            source,
            preprocess: preprocess.clone(),
            input: inputs.first().map_or("input", |v| &v.name).to_owned(),
            labels,
            digest: OnceLock::new(),
        };
        if dataset.is_empty() {
            return Err(invalid!("holds no sample").at(place()));
        }
        if !inputs.is_empty() {
            dataset.check(inputs).map_err(|e| e.at(place()))?;
        }
        Ok(dataset)
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is no sample, after [`Dataset::skip`] or [`Dataset::take`].
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The class of each sample, if the source has labels.
    pub fn labels(&self) -> Option<Vec<usize>> {
        self.labels.as_ref().map(|labels| self.order.iter().map(|&i| labels[i]).collect())
    }

    /// The first `n` samples.
    #[must_use]
    pub fn take(self, n: usize) -> Dataset {
        self.reordered(|order| order.truncate(n))
    }

    /// All but the first `n` samples.
    #[must_use]
    pub fn skip(self, n: usize) -> Dataset {
        self.reordered(|order| drop(order.drain(..n.min(order.len()))))
    }

    /// The samples in an order drawn by `seed` (Fisher-Yates over SplitMix64);
    /// the same seed gives the same order on every machine.
    #[must_use]
    pub fn shuffled(self, seed: u64) -> Dataset {
        self.reordered(|order| SplitMix::new(seed).shuffle(order))
    }

    fn reordered(self, change: impl FnOnce(&mut Vec<usize>)) -> Dataset {
        let mut order = self.order;
        change(&mut order);
        Dataset { order, digest: OnceLock::new(), ..self }
    }

    /// The SHA-256 of the samples, as they are prepared for the model, in order: of each sample, and of
    /// each of its inputs, the line `name type[shape]` and the little-endian bytes. It does not depend on
    /// how samples are stored. It is known once all batches were read [`hashed`](Batches::hashed); else
    /// they are read for it.
    ///
    /// # Errors
    /// If a sample cannot be read; the error names it.
    pub fn sha256(&self) -> Result<Digest> {
        if self.digest.get().is_none() {
            self.batches(1).hashed().try_for_each(|batch| batch.map(drop))?;
        }
        Ok(self.digest.get_or_init(|| SampleHash::default().finish()).clone())
    }

    /// The samples at these positions, as one batch.
    ///
    /// # Errors
    /// If a position is out of range, or a sample cannot be read.
    pub fn at(&self, positions: &[usize]) -> Result<Batch> {
        let of = |&i: &usize| self.order.get(i).copied().ok_or_else(|| invalid!("there is no sample {i}"));
        self.batch(&positions.iter().map(of).collect::<Result<Vec<_>>>()?)
    }

    /// The samples in batches of `size` (0 counts as 1), the last one smaller
    /// where they do not divide; samples of unequal length share no batch.
    /// Images of a batch are decoded in parallel; batches are not kept. After
    /// an error there is nothing more.
    pub fn batches(&self, size: usize) -> Batches<'_> {
        Batches { dataset: self, at: 0, size: size.max(1), hash: None }
    }

    /// Refuses samples that are not what `inputs` expect: an input without
    /// data, or another element type, rank or size. The first dimension is the
    /// batch's, and free. Of image files only the first is looked at; those of
    /// other sizes are refused in their batch.
    ///
    /// # Errors
    /// If they differ; it names the input, what is expected and what was found.
    pub fn check(&self, inputs: &[Value]) -> Result<()> {
        let samples = match self.source {
            Source::Sequences(_) => self.len(),
            _ => self.len().min(1),
        };
        for at in 0..samples {
            let batch = self.batch(&self.order[at..at + 1])?;
            for Value { name, fact } in inputs {
                let Some((_, found)) = batch.inputs.iter().find(|(n, _)| n == name) else {
                    let have: Vec<&str> = batch.inputs.iter().map(|(n, _)| n.as_str()).collect();
                    return Err(invalid!(
                        "the model's input {name:?} has no data; the data is for {}",
                        have.join(", ")
                    ));
                };
                self.check_input(fact, found)
                    .map_err(|e| e.at(format!("input {name:?} of sample {}", batch.names[0])))?;
            }
        }
        Ok(())
    }

    fn check_input(&self, expected: &Fact, found: &Tensor) -> Result<()> {
        let mut fact = Fact::of(found);
        if let Some(batch) = fact.shape.first_mut() {
            *batch = Dim::Named("N".into());
        }
        let fits = |(e, f): (&Dim, &Dim)| e.known().is_none_or(|e| f.known() == Some(e));
        let shape_fits =
            expected.rank() == fact.rank() && expected.shape.iter().zip(&fact.shape).skip(1).all(fits);
        let advice = match self.source {
            _ if shape_fits && expected.dtype == fact.dtype => return Ok(()),
            Source::Files(_) | Source::Records(_) => {
                "set resize, crop, channels or layout of the preprocessing"
            }
            _ if shape_fits && expected.dtype == DType::F32 => {
                "store it as f32, or set [array] scale = 1 in the preprocessing to convert it"
            }
            _ => "choose another array with [array] key in the preprocessing, or store it so",
        };
        Err(invalid!("the model expects {expected}, the data gives {fact}; {advice}"))
    }

    fn batch(&self, samples: &[usize]) -> Result<Batch> {
        let names: Vec<String> = samples.iter().map(|&i| self.source.name(i)).collect();
        let pictures = |read: &(dyn Fn(usize) -> Result<Picture> + Sync)| {
            let tensors: Result<Vec<Tensor>> = samples
                .par_iter()
                .zip(&names)
                .map(|(&i, name)| self.preprocess.apply(&read(i)?).map_err(|e| e.at(name)))
                .collect();
            Ok::<_, Error>(vec![(self.input.clone(), stack(&tensors?, &names)?)])
        };
        let inputs = match &self.source {
            Source::Files(paths) => pictures(&|i| image::read(&paths[i]))?,
            Source::Records(records) => pictures(&|i| records.picture(i))?,
            Source::Arrays(arrays) => arrays.rows(samples, &self.preprocess)?,
            Source::Sequences(sequences) => sequences.stacked(samples)?,
        };
        let labels = self.labels.as_ref().map(|labels| samples.iter().map(|&i| labels[i]).collect());
        Ok(Batch { inputs, labels, names })
    }
}

impl Source {
    fn len(&self) -> usize {
        match self {
            Source::Files(paths) => paths.len(),
            Source::Records(records) => records.len(),
            Source::Arrays(arrays) => arrays.len(),
            Source::Sequences(sequences) => sequences.len(),
        }
    }

    fn name(&self, i: usize) -> String {
        match self {
            Source::Files(paths) => paths[i].display().to_string(),
            Source::Sequences(sequences) => sequences.name(i).to_owned(),
            _ => i.to_string(),
        }
    }
}

fn open_source(
    path: &Path,
    preprocess: &Preprocess,
    inputs: &[Value],
) -> Result<(Source, Option<Vec<usize>>)> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if metadata.is_dir() {
        let (paths, labels) = folder::list(path)?;
        return Ok((Source::Files(paths), labels));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|e| name.ends_with(e));
    let of_records = |mut r: Records| {
        let labels = r.labels.take();
        (Source::Records(r), labels)
    };
    if ends(&folder::READ) {
        Ok((Source::Files(vec![path.to_path_buf()]), None))
    } else if ends(&[".npz", ".npy"]) {
        arrays::open(path, preprocess.array.as_ref(), inputs).map_err(|e| e.at(path.display().to_string()))
    } else if ends(&[".bin", ".bin.gz"]) {
        records::cifar(path).map(of_records)
    } else if ends(&["-ubyte", "-ubyte.gz"]) {
        records::idx(path).map(of_records)
    } else {
        Err(invalid!(
            "is no known data set; give a folder of images, a .jpg, .png, .npz, .npy or .bin(.gz) file, or an IDX file ending in -ubyte(.gz)"
        )
        .at(path.display().to_string()))
    }
}

/// f32 samples of one shape, along a new first dimension.
fn stack(samples: &[Tensor], names: &[String]) -> Result<Tensor> {
    let Some(first) = samples.first() else {
        return Err(invalid!("a batch has at least one sample"));
    };
    let mut data = Vec::with_capacity(first.len() * samples.len());
    for (sample, name) in samples.iter().zip(names) {
        if sample.shape() != first.shape() {
            return Err(invalid!(
                "has shape {:?}, {} of the same batch has {:?}; set resize or crop in the preprocessing",
                sample.shape(),
                names[0],
                first.shape()
            )
            .at(name));
        }
        data.extend_from_slice(sample.slice::<f32>()?);
    }
    let mut shape = vec![samples.len()];
    shape.extend(first.shape());
    Tensor::new(&shape, data)
}

/// The batches of a [`Dataset`], in order.
#[derive(Debug)]
pub struct Batches<'a> {
    dataset: &'a Dataset,
    at: usize,
    size: usize,
    hash: Option<SampleHash>,
}

impl Batches<'_> {
    /// The same, of which the hash is taken as they are read, if it is not known: [`Dataset::sha256`]
    /// then need not read them again.
    #[must_use]
    pub fn hashed(mut self) -> Self {
        self.hash = self.dataset.digest.get().is_none().then(SampleHash::default);
        self
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let rest = &self.dataset.order[self.at..];
        let mut samples = &rest[..self.size.min(rest.len())];
        if let Source::Sequences(sequences) = &self.dataset.source {
            samples = sequences.equal_prefix(samples);
        }
        if samples.is_empty() {
            return None;
        }
        self.at += samples.len();
        let batch = self.dataset.batch(samples);
        match (&batch, &mut self.hash) {
            (Ok(batch), Some(hash)) => hash.update(batch),
            (Ok(_), None) => {}
            (Err(_), _) => (self.at, self.hash) = (self.dataset.order.len(), None),
        }
        if self.at == self.dataset.order.len()
            && let Some(hash) = self.hash.take()
        {
            self.dataset.digest.get_or_init(|| hash.finish());
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests;
