//! Samples in `.npy` and `.npz` files.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use globset::Glob;
use half::{bf16, f16};

use super::{Source, stack};
use crate::data::image::Picture;
use crate::data::npy;
use crate::data::npz::Npz;
use crate::data::preprocess::{Affine, ArrayRule, Preprocess};
use crate::error::{Result, invalid};
use crate::graph::Value;
use crate::tensor::{DType, Tensor};

/// Where labels are looked for if no rule names them.
const LABELS: [&str; 2] = ["y", "labels"];

/// Arrays whose rows, along the first dimension, are the samples.
#[derive(Debug)]
pub(super) struct Arrays {
    inputs: Vec<Array>,
}

#[derive(Debug)]
struct Array {
    input: String,
    stored: Stored,
    form: Form,
}

/// Where the rows of an array lie.
#[derive(Debug)]
enum Stored {
    Memory(Tensor),
    File(npy::Rows),
}

impl Stored {
    fn dtype(&self) -> DType {
        match self {
            Stored::Memory(t) => t.dtype(),
            Stored::File(rows) => rows.dtype(),
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Stored::Memory(t) => t.shape(),
            Stored::File(rows) => rows.shape(),
        }
    }

    fn rows(&self, rows: &[usize]) -> Result<Tensor> {
        match self {
            Stored::Memory(t) => gather(t, rows),
            Stored::File(file) => file.read(rows),
        }
    }
}

/// What becomes of the rows.
#[derive(Clone, Copy, Debug)]
enum Form {
    AsIs,
    Affine(Affine),
    /// 8-bit pictures `[N, C, H, W]`.
    Planar,
    /// 8-bit pictures `[N, H, W, C]`.
    Interleaved,
}

/// Members of an archive, each a sample of its own length.
#[derive(Debug)]
pub(super) struct Sequences {
    input: String,
    /// Shape `[1, ...]` each.
    members: Vec<(String, Tensor)>,
}

/// The arrays of a file by name; the only one of a `.npy` file is `x`.
enum Members {
    One(PathBuf),
    Many(Npz<BufReader<File>>),
}

impl Members {
    fn open(path: &Path) -> Result<Members> {
        let is_npz = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npz"));
        if is_npz { Npz::open(path).map(Members::Many) } else { Ok(Members::One(path.to_owned())) }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Members::One(_) => vec!["x".to_owned()],
            Members::Many(npz) => npz.names().to_vec(),
        }
    }

    fn read(&mut self, name: &str) -> Result<Tensor> {
        match self {
            Members::One(path) if name == "x" => npy::read(path),
            Members::One(_) => Err(invalid!("an .npy file has one array, x, and no {name:?}")),
            Members::Many(npz) => npz.read(name),
        }
    }

    /// An array whose rows are the samples; that of a `.npy` file stays there.
    fn stored(&mut self, name: &str) -> Result<Stored> {
        if let Members::One(path) = self
            && name == "x"
            && let Some(rows) = npy::Rows::open(path)?
        {
            return Ok(Stored::File(rows));
        }
        self.read(name).map(Stored::Memory)
    }
}

/// Opens a `.npy` or `.npz` file: its samples and labels.
pub(super) fn open(
    path: &Path,
    rule: Option<&ArrayRule>,
    inputs: &[Value],
) -> Result<(Source, Option<Vec<usize>>)> {
    let mut file = Members::open(path)?;
    let names = file.names();
    let affine = match rule {
        Some(rule) => rule.affine(|name| file.read(name))?,
        None => None,
    };
    if let Some(key) = rule.and_then(|r| r.key.as_deref())
        && !names.iter().any(|n| n == key)
    {
        let glob = Glob::new(key).map_err(|e| invalid!("array.key: {e}"))?.compile_matcher();
        let members: Vec<String> = names.iter().filter(|n| glob.is_match(n)).cloned().collect();
        if members.is_empty() {
            return Err(invalid!("no array is named {key:?}; it has {}", names.join(", ")));
        }
        let input = inputs.first().map_or(key, |v| &v.name);
        let source = sequences(&mut file, &members, affine, input)?;
        let labels = labels(&mut file, rule, source.len())?;
        return Ok((Source::Sequences(source), labels));
    }
    if let Some((input, members)) = whole_samples(&mut file, &names, inputs)? {
        let source = sequences(&mut file, &members, affine, &input)?;
        let labels = labels(&mut file, rule, source.len())?;
        return Ok((Source::Sequences(source), labels));
    }
    let mut arrays = vec![];
    for (i, (input, key)) in choose(&names, rule, inputs)?.into_iter().enumerate() {
        let stored = file.stored(&key)?;
        if stored.shape().is_empty() {
            return Err(invalid!("array {key:?} has no dimension to take samples from"));
        }
        let wanted = inputs.iter().find(|v| v.name == input).map(|v| v.fact.dtype);
        let form = match affine {
            Some(affine) if i == 0 => Form::Affine(affine),
            _ if rule.is_none() && wanted != Some(DType::U8) => picture_form(stored.dtype(), stored.shape()),
            _ => Form::AsIs,
        };
        arrays.push(Array { input, stored, form });
    }
    let count = arrays.first().map_or(0, |a| a.stored.shape()[0]);
    if let Some(other) = arrays.iter().find(|a| a.stored.shape()[0] != count) {
        return Err(invalid!(
            "{:?} has {count} samples and {:?} has {}; the first dimension is the sample",
            arrays[0].input,
            other.input,
            other.stored.shape()[0]
        ));
    }
    let labels = labels(&mut file, rule, count)?;
    Ok((Source::Arrays(Arrays { inputs: arrays }), labels))
}

/// Model inputs and the arrays that they are given.
fn choose(names: &[String], rule: Option<&ArrayRule>, inputs: &[Value]) -> Result<Vec<(String, String)>> {
    let has = |name: &str| names.iter().any(|n| n == name);
    let key = rule.and_then(|r| r.key.clone());
    let by_name = |v: &Value| (v.name.clone(), v.name.clone());
    let mut chosen: Vec<(String, String)> = inputs.iter().filter(|v| has(&v.name)).map(by_name).collect();
    if let Some(key) = key {
        let first = inputs.first().map_or(&key, |v| &v.name).clone();
        chosen.retain(|(input, _)| *input != first);
        chosen.insert(0, (first, key));
    } else if chosen.is_empty() && inputs.len() <= 1 {
        let only =
            if has("x") { Some("x") } else { names.iter().map(String::as_str).find(|n| !LABELS.contains(n)) };
        let key = only.ok_or_else(|| invalid!("holds no array of samples; it has {}", names.join(", ")))?;
        chosen.push((inputs.first().map_or(key, |v| &v.name).to_owned(), key.to_owned()));
    }
    match inputs.iter().find(|v| chosen.iter().all(|(input, _)| *input != v.name)) {
        Some(v) => Err(invalid!(
            "has no array for the model's input {:?}; it has {}; an array is named as its input",
            v.name,
            names.join(", ")
        )),
        None => Ok(chosen),
    }
}

/// 8-bit arrays of rank 4 with 1 or 3 channels are pictures.
fn picture_form(dtype: DType, shape: &[usize]) -> Form {
    match (dtype, shape) {
        _ if shape.contains(&0) => Form::AsIs,
        (DType::U8, [_, 1 | 3, _, _]) => Form::Planar,
        (DType::U8, [_, _, _, 1 | 3]) => Form::Interleaved,
        _ => Form::AsIs,
    }
}

/// The model's only input and all arrays but labels, if none of these is named
/// as it or `x`, there are several, and each lacks just the dimension of samples:
/// texts, sounds and the like, each one sample.
fn whole_samples(
    file: &mut Members,
    names: &[String],
    inputs: &[Value],
) -> Result<Option<(String, Vec<String>)>> {
    let members: Vec<String> = names.iter().filter(|n| !LABELS.contains(&n.as_str())).cloned().collect();
    let ([input], [_, _, ..]) = (inputs, members.as_slice()) else { return Ok(None) };
    if members.iter().any(|n| *n == input.name || n == "x") {
        return Ok(None);
    }
    for name in &members {
        if file.read(name)?.rank() + 1 != input.fact.rank() {
            return Ok(None);
        }
    }
    Ok(Some((input.name.clone(), members)))
}

/// These members, each one sample.
fn sequences(file: &mut Members, names: &[String], affine: Option<Affine>, input: &str) -> Result<Sequences> {
    let mut members = vec![];
    for name in names {
        let mut tensor = file.read(name)?;
        if let Some(affine) = affine {
            tensor = affine.apply(&tensor)?;
        }
        let mut shape = vec![1];
        shape.extend(tensor.shape());
        members.push((name.clone(), tensor.reshaped(&shape)?));
    }
    Ok(Sequences { input: input.to_owned(), members })
}

/// One class index per sample, from the member that the rule names, or from
/// `y` or `labels` if it is that.
fn labels(file: &mut Members, rule: Option<&ArrayRule>, count: usize) -> Result<Option<Vec<usize>>> {
    if let Some(key) = rule.and_then(|r| r.labels.as_deref()) {
        let t = file.read(key)?;
        return classes(&t, count)
            .ok_or_else(|| {
                invalid!("labels {key:?}: expected {count} class indices, one per sample, found {t:?}")
            })
            .map(Some);
    }
    let names = file.names();
    for key in LABELS.into_iter().filter(|key| names.iter().any(|n| n == key)) {
        if let Some(classes) = classes(&file.read(key)?, count) {
            return Ok(Some(classes));
        }
    }
    Ok(None)
}

/// `count` class indices, if `t` is that.
fn classes(t: &Tensor, count: usize) -> Option<Vec<usize>> {
    if !matches!(t.shape(), [n] | [n, 1] if *n == count) {
        return None;
    }
    t.integers().ok()?.into_iter().map(|c| usize::try_from(c).ok()).collect()
}

impl Arrays {
    pub fn len(&self) -> usize {
        self.inputs.first().map_or(0, |a| a.stored.shape()[0])
    }

    /// The rows `samples` of each array, prepared.
    pub fn rows(&self, samples: &[usize], preprocess: &Preprocess) -> Result<Vec<(String, Tensor)>> {
        let rows = |a: &Array| {
            let rows = a.stored.rows(samples)?;
            let shape = a.stored.shape();
            let t = match a.form {
                Form::AsIs => rows,
                Form::Affine(affine) => affine.apply(&rows)?,
                Form::Planar => prepared(&rows, samples, preprocess, |row| {
                    Picture::planar(shape[3], shape[2], shape[1], row)
                })?,
                Form::Interleaved => prepared(&rows, samples, preprocess, |row| {
                    Picture::new(shape[2], shape[1], shape[3], row.to_vec())
                })?,
            };
            Ok((a.input.clone(), t))
        };
        self.inputs.iter().map(rows).collect()
    }
}

fn prepared(
    rows: &Tensor,
    samples: &[usize],
    preprocess: &Preprocess,
    picture: impl Fn(&[u8]) -> Result<Picture>,
) -> Result<Tensor> {
    let bytes = rows.slice::<u8>()?;
    let size = (bytes.len() / samples.len().max(1)).max(1);
    let tensors: Result<Vec<Tensor>> =
        bytes.chunks_exact(size).map(|row| preprocess.apply(&picture(row)?)).collect();
    let names: Vec<String> = samples.iter().map(usize::to_string).collect();
    stack(&tensors?, &names)
}

/// Rows of a tensor along its first dimension.
fn gather(t: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let size: usize = t.shape()[1..].iter().product();
    let mut shape = t.shape().to_vec();
    shape[0] = rows.len();
    macro_rules! gather {
        ($($t:ty),*) => {
            $(if let Ok(x) = t.slice::<$t>() {
                let data: Vec<$t> = rows.iter().flat_map(|&r| &x[r * size..(r + 1) * size]).copied().collect();
                return Tensor::coded(t.dtype(), &shape, data);
            })*
        };
    }
    gather!(f32, f64, f16, bf16, i8, u8, i16, u16, i32, u32, i64, u64, bool);
    unreachable!("every storage type is listed")
}

impl Sequences {
    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn name(&self, i: usize) -> &str {
        &self.members[i].0
    }

    /// The first of `samples` and those after it that have its shape.
    pub fn equal_prefix<'a>(&self, samples: &'a [usize]) -> &'a [usize] {
        let shape = |i: &usize| self.members[*i].1.shape();
        let equal = samples.iter().take_while(|i| shape(i) == shape(&samples[0])).count();
        &samples[..equal]
    }

    /// Samples of one shape and type as one tensor.
    pub fn stacked(&self, samples: &[usize]) -> Result<Vec<(String, Tensor)>> {
        let first = &self.members[samples[0]].1;
        let mut bytes = vec![];
        for &i in samples {
            let (name, t) = &self.members[i];
            if t.dtype() != first.dtype() {
                return Err(invalid!("is {}, {:?} is {}", t.dtype(), self.name(samples[0]), first.dtype())
                    .at(format!("array {name:?}")));
            }
            bytes.extend(t.to_bytes());
        }
        let mut shape = first.shape().to_vec();
        shape[0] = samples.len();
        Ok(vec![(self.input.clone(), Tensor::from_bytes(first.dtype(), &shape, &bytes)?)])
    }
}
