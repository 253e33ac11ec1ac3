//! The ONNX standard's own test cases for quantization operators: each a model
//! of one node with inputs and outputs.

mod assets;
mod compare;

use std::path::Path;

use compare::{Tolerance, close};
use lowbit::session::Session;
use lowbit::{DType, Tensor, onnx};
use lowbit_onnx::{DataType, read_tensor};

/// The standard's own tolerance for floats; integers are equal.
const STANDARD: Tolerance = Tolerance { relative: 1e-3, absolute: 1e-7, steps: 0 };

const TYPES: &[(DataType, DType)] = &[
    (DataType::Float, DType::F32),
    (DataType::Float16, DType::F16),
    (DataType::Int8, DType::I8),
    (DataType::Uint8, DType::U8),
    (DataType::Int16, DType::I16),
    (DataType::Uint16, DType::U16),
    (DataType::Int32, DType::I32),
    (DataType::Int4, DType::I4),
    (DataType::Uint4, DType::U4),
    (DataType::Int2, DType::I2),
    (DataType::Uint2, DType::U2),
    (DataType::Float8E4m3fn, DType::F8E4M3),
    (DataType::Float8E5m2, DType::F8E5M2),
    (DataType::Float4E2m1, DType::F4E2M1),
];

/// The tensors `<kind>_0.pb`, `<kind>_1.pb` ... of a case.
fn tensors(case: &Path, kind: &str) -> Vec<Tensor> {
    (0..)
        .map(|i| case.join(format!("test_data_set_0/{kind}_{i}.pb")))
        .take_while(|path| path.exists())
        .map(|path| {
            let data = read_tensor(&path).unwrap();
            let dtype = TYPES.iter().find(|(onnx, _)| *onnx == data.dtype).map(|(_, ours)| *ours);
            let dtype = dtype.unwrap_or_else(|| panic!("{} is {:?}", path.display(), data.dtype));
            Tensor::from_bytes(dtype, &data.dims, &data.bytes).unwrap()
        })
        .collect()
}

fn check(case: &Path) -> Result<(), String> {
    let graph = onnx::load(case.join("model.onnx")).map_err(|e| e.to_string())?;
    let (inputs, want) = (tensors(case, "input"), tensors(case, "output"));
    if want.is_empty() {
        return Err("has no outputs".into());
    }
    let session = Session::compile(&graph).map_err(|e| format!("compile: {e}"))?;
    for (how, found) in [("graph", graph.run(&inputs)), ("session", session.run(&inputs))] {
        let found = found.map_err(|e| format!("{how}: {e}"))?;
        if found.len() != want.len() {
            return Err(format!("{how}: {} outputs instead of {}", found.len(), want.len()));
        }
        for (i, (y, want)) in found.iter().zip(&want).enumerate() {
            close(y, want, STANDARD).map_err(|e| format!("{how}: output {i}: {e}"))?;
        }
    }
    Ok(())
}

#[test]
fn every_case_of_the_standard_holds() {
    let Some(folder) = assets::find("every_case_of_the_standard_holds") else { return };
    let folder = folder.join("onnx_node_quant");
    let mut cases: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 45, "{} cases in {}", cases.len(), folder.display());
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| Some(format!("{}: {}", case.file_name()?.display(), check(case).err()?)))
        .collect();
    assert!(failures.is_empty(), "{} cases:\n{}", failures.len(), failures.join("\n"));
}
