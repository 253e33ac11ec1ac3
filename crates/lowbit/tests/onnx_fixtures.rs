//! Every model of `tests/golden/models` against onnxruntime's outputs, through
//! the reader, the writer, fusion and quantization.

mod compare;

use std::collections::HashMap;
use std::path::Path;

use compare::{Tolerance, close};
use lowbit::graph::{Graph, Kind};
use lowbit::qconfig::{QConfigMapping, preset};
use lowbit::quantize::{fuse, prepare};
use lowbit::session::Session;
use lowbit::{Tensor, data::npz, onnx};

/// Models with operators that are not supported, and what their errors say.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("pad_wrap_19", "Pad_0: Pad: attribute mode = \"wrap\" is not supported"),
    ("resize_antialias_18", "Resize_0: Resize: attribute antialias = Int(1) is not supported"),
    ("thresholded_relu_13", "ThresholdedRelu_0: operator ThresholdedRelu: it is not supported"),
];

/// Models whose products stay in float: factors of Gemm.
const IN_FLOAT: &[&str] = &["gemm_broadcast_9"];

/// Sums in another order differ in the last bits.
const EXACT_SUMS: Tolerance = Tolerance { relative: 1e-4, absolute: 1e-5, steps: 0 };

struct Fixture {
    name: String,
    arrays: HashMap<String, Tensor>,
    graph: lowbit::Result<Graph>,
}

impl Fixture {
    fn inputs(&self, graph: &Graph) -> Vec<Tensor> {
        graph.inputs().map(|(_, v)| self.arrays[&v.name].clone()).collect()
    }

    /// Compares the outputs of `graph` with those that the file holds.
    fn check(&self, graph: &Graph, outputs: &[Tensor]) -> Result<(), String> {
        for ((name, _), y) in graph.outputs().zip(outputs) {
            let want = self.arrays.get(name).ok_or_else(|| format!("no output {name} is expected"))?;
            close(y, want, EXACT_SUMS).map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(())
    }
}

fn fixtures() -> Vec<Fixture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    paths.sort();
    assert!(paths.len() >= 241, "{} models in {}", paths.len(), folder.display());
    paths
        .into_iter()
        .map(|path| Fixture {
            name: path.file_stem().unwrap().to_str().unwrap().to_string(),
            arrays: npz::read(&path.with_extension("npz")).unwrap().into_iter().collect(),
            graph: onnx::load(&path),
        })
        .collect()
}

/// Runs `check` on every supported model and shows all failures.
fn each(check: impl Fn(&Fixture, &Graph) -> Result<(), String>) {
    let failures: Vec<String> = fixtures()
        .iter()
        .filter_map(|f| {
            let graph = f.graph.as_ref().ok()?;
            Some(format!("{}: {}", f.name, check(f, graph).err()?))
        })
        .collect();
    assert!(failures.is_empty(), "{} models:\n{}", failures.len(), failures.join("\n"));
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

#[test]
fn every_model_is_read_or_its_error_names_node_and_operator() {
    let unsupported: HashMap<&str, &str> = UNSUPPORTED.iter().copied().collect();
    let failures: Vec<String> = fixtures()
        .iter()
        .filter_map(|f| match (&f.graph, unsupported.get(f.name.as_str())) {
            (Ok(_), None) => None,
            (Ok(_), Some(_)) => Some(format!("{}: is supported after all", f.name)),
            (Err(e), Some(want)) if e.to_string().ends_with(want) => None,
            (Err(e), _) => Some(format!("{}: {e}", f.name)),
        })
        .collect();
    assert!(failures.is_empty(), "{} models:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn outputs_are_those_of_onnxruntime() {
    each(|f, graph| {
        let outputs = graph.run(&f.inputs(graph)).map_err(text)?;
        let facts = graph.outputs().map(|(_, v)| graph.fact(v));
        for (fact, y) in facts.zip(&outputs) {
            let fits = fact.dtype == y.dtype()
                && fact.rank() == y.rank()
                && fact.shape.iter().zip(y.shape()).all(|(d, n)| d.known().is_none_or(|d| d == *n));
            if !fits {
                return Err(format!("inferred {fact}, computed {y:?}"));
            }
        }
        f.check(graph, &outputs)
    });
}

#[test]
fn saved_models_are_the_same_graph() {
    let folder = tempfile::tempdir().unwrap();
    each(|f, graph| {
        let path = folder.path().join(&f.name).with_extension("onnx");
        onnx::save(graph, &path).map_err(text)?;
        let again = onnx::load(&path).map_err(text)?;
        if again != *graph {
            return Err(format!("was\n{graph}\nis\n{again}"));
        }
        f.check(&again, &again.run(&f.inputs(&again)).map_err(text)?)
    });
}

#[test]
fn fusing_keeps_outputs() {
    each(|f, graph| {
        let fused = fuse(graph).map_err(text)?;
        f.check(&fused, &fused.run(&f.inputs(&fused)).map_err(text)?)
    });
}

/// The largest step of the codes at a graph's outputs, or 1/255 of the range
/// where an output is not quantized.
fn step(graph: &Graph, output: usize, value: &Tensor) -> f32 {
    let (_, v) = graph.outputs().nth(output).unwrap();
    let made = match &graph.node(v).kind {
        Kind::Apply { op, inputs } if op.name() == "DequantizeLinear" => graph.constant(inputs[1]),
        _ => None,
    };
    match made {
        Some(scale) => scale.to_f32().unwrap().into_iter().fold(0.0, f32::max),
        None => {
            let (lo, hi) =
                value.to_f32().unwrap().iter().fold((0f32, 0f32), |(lo, hi), &x| (lo.min(x), hi.max(x)));
            (hi - lo) / 255.0
        }
    }
}

/// Models of integer operators, already quantized.
fn is_quantized(graph: &Graph) -> bool {
    graph.applied().any(|(_, _, op, _)| op.name().ends_with("QuantizeLinear"))
}

/// The session's outputs against those of the Q/DQ graph that it was made
/// from: equal up to one step, since the graph sums in f32.
fn check_session(graph: &Graph, inputs: &[Tensor]) -> Result<Session, String> {
    let want = graph.run(inputs).map_err(|e| format!("Q/DQ: {e}"))?;
    let session = Session::compile(graph).map_err(|e| format!("compile: {e}"))?;
    let found = session.run(inputs).map_err(|e| format!("session: {e}"))?;
    for (i, ((name, _), (y, want))) in graph.outputs().zip(found.iter().zip(&want)).enumerate() {
        if y.to_f32().unwrap().iter().any(|x| !x.is_finite()) {
            return Err(format!("{name}: is not finite"));
        }
        let steps = Tolerance { relative: 1e-4, absolute: 1.01 * step(graph, i, want), steps: 1 };
        close(y, want, steps).map_err(|e| format!("{name}: session {e}, step {}", steps.absolute))?;
    }
    Ok(session)
}

/// Checks that products with a constant weight, images' convolutions among
/// them, are in integers.
fn check_integer(f: &Fixture, session: &Session) -> Result<(), String> {
    let graph = session.graph();
    let floats = graph.applied().filter(|(v, _, op, inputs)| match op.name() {
        "Conv" => graph.fact(*v).rank() == 4,
        "PackedMatMul" => true,
        "Gemm" | "MatMul" => graph.constant(inputs[1]).is_some_and(|w| w.rank() == 2),
        _ => false,
    });
    match (floats.count(), IN_FLOAT.contains(&f.name.as_str())) {
        (0, true) => Err("computes in integers after all".into()),
        (0, false) | (_, true) => Ok(()),
        (n, false) => Err(format!("{n} products in float: {:?}", session.report().fallbacks)),
    }
}

#[test]
fn float_models_are_quantized_and_compiled() {
    let folder = tempfile::tempdir().unwrap();
    each(|f, graph| {
        if is_quantized(graph) {
            return Ok(());
        }
        let inputs = f.inputs(graph);
        let fused = fuse(graph).map_err(text)?;
        let mapping = QConfigMapping::global(preset("default").unwrap());
        let mut prepared = prepare(&fused, &mapping).map_err(|e| format!("prepare: {e}"))?;
        prepared
            .calibrate(std::iter::once(Ok(inputs.clone())), &|_| Ok(()))
            .map_err(|e| format!("calibrate: {e}"))?;
        let converted = prepared.convert().map_err(|e| format!("convert: {e}"))?.graph;
        let path = folder.path().join(&f.name).with_extension("onnx");
        onnx::save(&converted, &path).map_err(|e| format!("save: {e}"))?;
        let again = onnx::load(&path).map_err(|e| format!("load: {e}"))?;
        if again != converted {
            return Err(format!("was\n{converted}\nis\n{again}"));
        }
        let session = check_session(&converted, &inputs)?;
        check_integer(f, &session)
    });
}

#[test]
fn quantized_models_are_compiled() {
    each(|f, graph| match is_quantized(graph) {
        true => check_integer(f, &check_session(graph, &f.inputs(graph))?),
        false => Ok(()),
    });
}
