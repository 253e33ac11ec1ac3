//! Writing of models: whole or not at all, large tensors beside the model.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::model::{MESSAGE_LIMIT, check, folder_of};
use crate::proto::tensor_proto::DataLocation;
use crate::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, StringStringEntryProto, TensorProto,
};
use crate::tensor::{Layout, is_external};
use crate::{DataType, TensorData};

/// Size of the encoded model above which tensors go to an external file: 1.8 GB.
const DEFAULT_EXTERNAL_THRESHOLD: u64 = 1_800_000_000;

/// Smallest tensor that goes to the external file, in bytes.
const EXTERNAL_MIN_BYTES: usize = 1024;

/// Tensors begin at multiples of the page size, so that readers can map them.
const ALIGNMENT: u64 = 4096;

/// How to write a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// The initializers of 1 KiB and more go to a file `<name>.data` beside the model
    /// (`net.onnx.data` for `net.onnx`) where the model with all its tensors inside would be
    /// larger than this many bytes. `None` means 1.8 GB, `Some(0)` forces the external file.
    pub external_threshold: Option<u64>,
}

/// Writes `model` to `path`.
///
/// The file, and before it the external file, is written under a temporary name, flushed to
/// the disk and renamed; on an error the temporary files are removed and the target is as it
/// was. A target that exists is replaced.
///
/// # Errors
/// - [`Error::Io`] with the path;
/// - [`Error::NotAFile`] where the target exists and is no regular file;
/// - [`Error::InFile`] around [`Error::Missing`] (the model has no graph or operator set),
///   [`Error::Tensor`] (a tensor to move is malformed, or is itself external: a message alone
///   does not know the folder of its data, [`Model::write`](crate::Model::write) does) and
///   [`Error::MessageTooLarge`] (over 2 GiB even without the initializers).
pub fn write(model: &ModelProto, path: impl AsRef<Path>, options: &WriteOptions) -> Result<()> {
    save(model, None, path.as_ref(), options, MESSAGE_LIMIT)
}

/// [`write`], with the folder of the external data and the limit of a message as parameters.
pub(crate) fn save(
    model: &ModelProto,
    source: Option<&Path>,
    path: &Path,
    options: &WriteOptions,
    limit: u64,
) -> Result<()> {
    let in_file = |error: Error| match error {
        Error::Io { .. } | Error::NotAFile { .. } | Error::InFile { .. } => error,
        other => other.in_file(path),
    };
    check(model).map_err(in_file)?;
    refuse_irregular(path)?;
    let mut data = DataFile::new(path);
    let message = arrange(model, source, options, &mut data)
        .and_then(|arranged| {
            let message = arranged.as_ref().unwrap_or(model);
            let bytes = message.encoded_len() as u64;
            if bytes > limit {
                return Err(Error::MessageTooLarge { bytes });
            }
            Ok(message.encode_to_vec())
        })
        .map_err(in_file)?;

    let mut file = temporary(path)?;
    file.write_all(&message).map_err(refused("write", path))?;
    file.as_file().sync_all().map_err(refused("write", path))?;
    data.finish()?;
    rename(file, path)
}

/// The message to write instead of `model`, or `None` where `model` itself will do.
fn arrange(
    model: &ModelProto,
    source: Option<&Path>,
    options: &WriteOptions,
    data: &mut DataFile,
) -> Result<Option<ModelProto>> {
    let Some(graph) = &model.graph else {
        return Ok(None);
    };
    let mut arranged = without_initializers(model, graph);
    let mut foreign = false;
    let mut size = model.encoded_len() as u64;
    for tensor in graph.initializer.iter().filter(|t| is_external(t)) {
        foreign = true;
        size = size.saturating_add(packed_bytes(tensor)? as u64);
    }
    visit_tensors(&mut arranged, &mut |tensor| {
        if is_external(tensor) {
            foreign = true;
            size = size.saturating_add(packed_bytes(tensor)? as u64);
            *tensor = inlined(tensor, source)?;
        }
        Ok(())
    })?;
    let threshold = options.external_threshold;
    let outside = size > threshold.unwrap_or(DEFAULT_EXTERNAL_THRESHOLD);
    if !outside && !foreign {
        return Ok(None);
    }

    let mut initializers = Vec::with_capacity(graph.initializer.len());
    for tensor in &graph.initializer {
        let strings = tensor.data_type() == DataType::String.to_onnx();
        let packable = !strings && tensor.segment.is_none();
        initializers.push(if outside && packable && packed_bytes(tensor)? >= EXTERNAL_MIN_BYTES {
            let bytes = TensorData::from_proto(tensor, source)?.bytes;
            let external_data = data.append(&bytes)?;
            TensorProto {
                external_data,
                data_location: Some(DataLocation::External as i32),
                ..without_data(tensor)
            }
        } else if is_external(tensor) {
            inlined(tensor, source)?
        } else {
            tensor.clone()
        });
    }
    if let Some(graph) = &mut arranged.graph {
        graph.initializer = initializers;
    }
    Ok(Some(arranged))
}

fn packed_bytes(tensor: &TensorProto) -> Result<usize> {
    let layout =
        Layout::of(tensor).map_err(|fault| Error::Tensor { tensor: tensor.name().to_owned(), fault })?;
    Ok(layout.bytes)
}

/// The same tensor with its data in `raw_data`.
fn inlined(tensor: &TensorProto, source: Option<&Path>) -> Result<TensorProto> {
    Ok(TensorProto { raw_data: Some(TensorData::from_proto(tensor, source)?.bytes), ..without_data(tensor) })
}

fn without_data(tensor: &TensorProto) -> TensorProto {
    TensorProto {
        dims: tensor.dims.clone(),
        data_type: tensor.data_type,
        name: tensor.name.clone(),
        doc_string: tensor.doc_string.clone(),
        metadata_props: tensor.metadata_props.clone(),
        ..TensorProto::default()
    }
}

/// A copy of all but the main graph's initializers, where the bulk of a model is.
///
/// Every field is named, so that a new one in the schema cannot be forgotten.
fn without_initializers(model: &ModelProto, graph: &GraphProto) -> ModelProto {
    ModelProto {
        ir_version: model.ir_version,
        opset_import: model.opset_import.clone(),
        producer_name: model.producer_name.clone(),
        producer_version: model.producer_version.clone(),
        domain: model.domain.clone(),
        model_version: model.model_version,
        doc_string: model.doc_string.clone(),
        metadata_props: model.metadata_props.clone(),
        training_info: model.training_info.clone(),
        functions: model.functions.clone(),
        configuration: model.configuration.clone(),
        graph: Some(GraphProto {
            node: graph.node.clone(),
            name: graph.name.clone(),
            initializer: Vec::new(),
            sparse_initializer: graph.sparse_initializer.clone(),
            doc_string: graph.doc_string.clone(),
            input: graph.input.clone(),
            output: graph.output.clone(),
            value_info: graph.value_info.clone(),
            quantization_annotation: graph.quantization_annotation.clone(),
            metadata_props: graph.metadata_props.clone(),
        }),
    }
}

type Visit<'a> = &'a mut dyn FnMut(&mut TensorProto) -> Result<()>;

fn visit_tensors(model: &mut ModelProto, visit: Visit) -> Result<()> {
    let training = model.training_info.iter_mut();
    let training = training.flat_map(|t| [t.initialization.as_mut(), t.algorithm.as_mut()]);
    for graph in model.graph.iter_mut().chain(training.flatten()) {
        visit_graph(graph, visit)?;
    }
    for function in &mut model.functions {
        visit_nodes(&mut function.node, visit)?;
        visit_attributes(&mut function.attribute_proto, visit)?;
    }
    Ok(())
}

fn visit_graph(graph: &mut GraphProto, visit: Visit) -> Result<()> {
    graph.initializer.iter_mut().try_for_each(&mut *visit)?;
    visit_sparse(&mut graph.sparse_initializer, visit)?;
    visit_nodes(&mut graph.node, visit)
}

fn visit_nodes(nodes: &mut [NodeProto], visit: Visit) -> Result<()> {
    nodes.iter_mut().try_for_each(|node| visit_attributes(&mut node.attribute, visit))
}

fn visit_attributes(attributes: &mut [AttributeProto], visit: Visit) -> Result<()> {
    for attribute in attributes {
        if let Some(tensor) = attribute.t.as_deref_mut() {
            visit(tensor)?;
        }
        attribute.tensors.iter_mut().try_for_each(&mut *visit)?;
        visit_sparse(attribute.sparse_tensor.as_deref_mut(), visit)?;
        visit_sparse(&mut attribute.sparse_tensors, visit)?;
        let graph = attribute.g.as_deref_mut();
        for graph in graph.into_iter().chain(&mut attribute.graphs) {
            visit_graph(graph, visit)?;
        }
    }
    Ok(())
}

fn visit_sparse<'a>(sparse: impl IntoIterator<Item = &'a mut SparseTensorProto>, visit: Visit) -> Result<()> {
    let tensors = sparse.into_iter().flat_map(|sparse| [sparse.values.as_mut(), sparse.indices.as_mut()]);
    tensors.flatten().try_for_each(visit)
}

/// The external file of a model, created when the first tensor comes.
struct DataFile {
    path: PathBuf,
    file: Option<BufWriter<NamedTempFile>>,
    len: u64,
}

impl DataFile {
    fn new(model: &Path) -> DataFile {
        let mut path = OsString::from(model);
        path.push(".data");
        DataFile { path: path.into(), file: None, len: 0 }
    }

    /// Appends `bytes` at the next aligned offset; returns the entries that tell where.
    fn append(&mut self, bytes: &[u8]) -> Result<Vec<StringStringEntryProto>> {
        let location = self.path.file_name().and_then(|name| name.to_str());
        let location = location.ok_or_else(|| {
            let error = io::Error::other("its name must be UTF-8 to be stored in the model");
            refused("name", &self.path)(error)
        })?;
        let file = match &mut self.file {
            Some(file) => file,
            empty => {
                refuse_irregular(&self.path)?;
                empty.insert(BufWriter::new(temporary(&self.path)?))
            }
        };
        let offset = self.len.next_multiple_of(ALIGNMENT);
        let padding = vec![0; (offset - self.len) as usize];
        file.write_all(&padding)
            .and_then(|()| file.write_all(bytes))
            .map_err(refused("write", &self.path))?;
        self.len = offset + bytes.len() as u64;
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        Ok(vec![
            entry("location", location.to_owned()),
            entry("offset", offset.to_string()),
            entry("length", bytes.len().to_string()),
        ])
    }

    fn finish(self) -> Result<()> {
        let Some(file) = self.file else {
            return Ok(());
        };
        let file = file.into_inner().map_err(|error| refused("write", &self.path)(error.into_error()))?;
        let synced = file.as_file().sync_all();
        synced.map_err(refused("write", &self.path))?;
        rename(file, &self.path)
    }
}

fn refused(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Io { action, path: path.to_owned(), error }
}

/// A rename would replace a device as readily as a file.
fn refuse_irregular(path: &Path) -> Result<()> {
    let irregular = path.metadata().is_ok_and(|target| !target.is_file());
    if irregular || path.file_name().is_none() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    Ok(())
}

/// A new file beside `target`, removed on drop, with the permissions of an ordinary one.
fn temporary(target: &Path) -> Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".lowbit-")
        .suffix(".tmp")
        .make_in(folder_of(target), |path| File::create_new(path))
        .map_err(refused("write", target))
}

fn rename(file: NamedTempFile, target: &Path) -> Result<()> {
    match file.persist(target) {
        Ok(_) => Ok(()),
        Err(refusal) => Err(refused("write", target)(refusal.error)),
    }
}

#[cfg(test)]
mod tests;
