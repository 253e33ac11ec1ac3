"""Write models/: small ONNX files, each with an .npz of inputs and of onnxruntime's outputs. See README.md."""

import shutil
import warnings

import numpy as np
import onnx
import onnxruntime
import torch

from golden import HERE
from handmade_models import models
from torch_models import cases

FOLDER = HERE / "models"
SEED = 11
LARGEST = 30_000
# Exported with batch 2 and run with 3: a batch size that is baked in shows.
BATCH = 3


def value(shape, random):
    """A random input: normal f32, or token ids for ("ids", count, shape)."""
    if shape[0] == "ids":
        return random.integers(0, shape[1], shape[2]).astype(np.int64)
    return random.standard_normal(shape).astype(np.float32)


def with_batch(shape):
    return (*shape[:2], with_batch(shape[2])) if shape[0] == "ids" else (BATCH, *shape[1:])


def randomize_statistics(module):
    """Batch normalization statistics and affine parameters away from 0 and 1."""
    for layer in module.modules():
        if isinstance(layer, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            layer.running_mean.uniform_(-0.3, 0.3)
            layer.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.uniform_(layer.bias, -0.2, 0.2)


def export(case, opset, path):
    """Export one torch case; a model with several inputs has x, y; several outputs out0, out1, ..."""
    random = np.random.default_rng(SEED)
    examples = tuple(torch.from_numpy(value(shape, random)) for shape in case.shapes)
    result = case.module(*examples)
    outputs = ["out"] if isinstance(result, torch.Tensor) else [f"out{i}" for i in range(len(result))]
    inputs = ["x", "y"][: len(examples)]
    # The widths and heights of two inputs differ.
    axes = {
        name: {axis: label if axis == 0 else f"{label}_{name}" for axis, label in case.axes.items()} for name in inputs
    }
    torch.onnx.export(
        case.module,
        examples,
        path,
        dynamo=False,
        opset_version=opset,
        training=torch.onnx.TrainingMode.PRESERVE if case.preserve else torch.onnx.TrainingMode.EVAL,
        do_constant_folding=not case.preserve,
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=axes | {name: {0: "N"} for name in outputs},
    )
    return {name: value(with_batch(shape), random) for name, shape in zip(inputs, case.shapes, strict=True)}


def record(path, inputs):
    """Check the file, run it in onnxruntime as written, and store inputs and outputs beside it."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, inputs), strict=True))
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{path.name}: output {name} is not finite")
    np.savez_compressed(path.with_suffix(".npz"), **inputs, **outputs)
    return outputs


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    with torch.no_grad():
        for case in cases():
            randomize_statistics(case.module)
            case.module.eval()
            graphs = []
            for opset in case.opsets:
                path = FOLDER / f"{case.name}_{opset}.onnx"
                inputs = export(case, opset, path)
                graph = onnx.load(path).graph
                # Another opset matters only where the nodes differ.
                if graph in graphs:
                    path.unlink()
                    continue
                graphs.append(graph)
                outputs = record(path, inputs)
                expected = case.module(*(torch.from_numpy(array) for array in inputs.values()))
                expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
                for array, tensor in zip(outputs.values(), expected, strict=True):
                    np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-4, atol=1e-5, err_msg=path.name)
    for name, model, inputs in models():
        path = FOLDER / f"{name}.onnx"
        onnx.save(model, path)
        record(path, inputs)
    files = list(FOLDER.iterdir())
    print(f"{len(files) // 2} models, {sum(file.stat().st_size for file in files)} bytes")


if __name__ == "__main__":
    main()
