"""Exports torchvision's classifiers, quantizes them with lowbit, and compares lowbit with onnxruntime.

    classifiers.py --lowbit target/release/lowbit [MODEL ...]

Weights are random, batch statistics those of two passes over noise: this shows that the operators of each architecture
are read, quantized and run alike, not how accurate the models are. Needs torch, torchvision, onnx, onnxruntime, numpy.
"""

import argparse
import json
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import torchvision.models

MODELS = (
    "resnet18 resnet50 mobilenet_v2 mobilenet_v3_small efficientnet_b0 shufflenet_v2_x0_5 squeezenet1_1 vgg11_bn "
    "densenet121 inception_v3 googlenet regnet_y_400mf mnasnet0_5 convnext_tiny"
).split()


def export(name: str, folder: Path) -> np.ndarray:
    """Writes the model with a dynamic batch, and returns the inputs to run."""
    size = {"inception_v3": 299, "vgg11_bn": 224}.get(name, 128)
    options = {"init_weights": False, "aux_logits": True} if name in ("inception_v3", "googlenet") else {}
    model = getattr(torchvision.models, name)(weights=None, **options).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, size, size))
    axes = {"x": {0: "N"}, "y": {0: "N"}}
    torch.onnx.export(
        model.eval(), torch.randn(2, 3, size, size), str(folder / "model.onnx"), dynamo=False, opset_version=13,
        input_names=["x"], output_names=["y"], dynamic_axes=axes,
    )  # fmt: skip
    inputs = np.random.default_rng(0).standard_normal((3, 3, size, size)).astype(np.float32)
    np.savez(folder / "x.npz", x=inputs)
    return inputs


def ours(lowbit: str, folder: Path, model: str, *flags: str) -> np.ndarray:
    out = folder / "y.npz"
    subprocess.run(
        [lowbit, "run", folder / model, "--data", folder / "x.npz", "--output", out, *flags],
        check=True, capture_output=True,
    )  # fmt: skip
    return np.load(out)["y"]


def theirs(path: Path, inputs: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"x": inputs})[0]


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lowbit", required=True)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    print("| model | int8 share of MACs | size | float: lowbit to onnxruntime | int8: lowbit to onnxruntime | int8 SQNR |")
    print("|---|---|---|---|---|---|")
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            inputs = export(name, folder)
            float_model, int8_model = folder / "model.onnx", folder / "model.int8.onnx"
            subprocess.run(
                [args.lowbit, "quantize", float_model, "--data", folder / "x.npz", "--output", int8_model],
                check=True, capture_output=True,
            )  # fmt: skip
            report = subprocess.run(
                [args.lowbit, "inspect", int8_model, "--json"], check=True, capture_output=True, text=True
            )
            share = 100 * json.loads(report.stdout)["coverage"]
            size = 100 * int8_model.stat().st_size / float_model.stat().st_size
            want = theirs(float_model, inputs)
            float_far = far(ours(args.lowbit, folder, "model.onnx", "--reference"), want)
            session = ours(args.lowbit, folder, "model.int8.onnx")
            int8_far = far(session, theirs(int8_model, inputs))
            sqnr = 10 * np.log10((want**2).sum() / ((want - session) ** 2).sum())
            print(f"| {name} | {share:.1f} % | {size:.1f} % | {float_far:.0e} | {int8_far:.0e} | {sqnr:.1f} dB |", flush=True)


if __name__ == "__main__":
    main()
