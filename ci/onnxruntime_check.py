"""Compares models that lowbit exported with what onnxruntime makes of them.

    onnxruntime_check.py FOLDER

FOLDER is what the example `export_check` writes: a folder for each model, with `float.onnx`, `float.npz`
(`inputs`, `labels`, `logits`, `batch`) and for each configuration its Q/DQ model and the logits of lowbit's Session.

Every model passes onnx.checker with full checks. Of the float model, onnxruntime's logits are within 1e-4 of lowbit's
(relative to the image's greatest) and the best class is the same on every image. Each Q/DQ model runs in onnxruntime
twice: with its integer kernels (`fused`, the default of onnxruntime), and as it is written, without optimization
(`graph`), where everything is computed in f32 and sums near the middle of two codes may round the other way.

An output step is 1/127 of the image's greatest logit: what 8 bits could tell apart. The default configuration, fused,
has the Session's best class on at least 99.5 % of the images and logits within DEFAULT_STEPS. In every form of every
configuration no logit is more than STEPS away, and all but two images, or 99.5 %, have the same best class, where
classes within one step count as tied. LOOSE has less: ranges that are found in each run, of whole batches and through many
layers, follow the last bits of f32 sums, in which runtimes differ.

What onnxruntime cannot run is in the table with its error, and passes only if REFUSED expects it.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

FLOAT_TOLERANCE = 1e-4
AGREEMENT = 99.5  # per cent
DEFAULT_STEPS = 6
STEPS = 16

# Per cent of the places with the same best class, ties given, and steps, of models in a configuration.
LOOSE = {("stories260K", "dynamic"): (97.0, 24)}

CPU = Path("/proc/cpuinfo")
HAS_VNNI = CPU.exists() and "vnni" in CPU.read_text()

# Part of the message with which onnxruntime refuses a configuration.
REFUSED = {("e4m3", "fused"): "Unexpected data type for QuantizeLinear input y_zero_point"}


def session(path: Path, optimize: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    # Without it the u8 x s8 kernels of CPUs that lack VNNI saturate at 16 bits; with it onnxruntime 1.31.1
    # refuses to optimize most of the models ("Attempt to replace the existing tensor").
    if not HAS_VNNI:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, inputs: np.ndarray, size: int, optimize: bool) -> np.ndarray:
    model = session(path, optimize)
    (value,) = model.get_inputs()
    batches = [inputs[i : i + size] for i in range(0, len(inputs), size)]
    return flat(np.concatenate([model.run(None, {value.name: batch})[0] for batch in batches]))


def flat(logits: np.ndarray) -> np.ndarray:
    """A row for each image, or for each place of a sequence."""
    return logits.reshape(-1, logits.shape[-1]) if logits.ndim == 3 else logits.reshape(len(logits), -1)


def steps_of(logits: np.ndarray) -> np.ndarray:
    """The output step of each image."""
    return np.abs(logits).max(1, keepdims=True) / 127


def agreement(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Per cent of the images whose best class is the same: as it is, and with ties within one step given."""
    rows, a, b = np.arange(len(ours)), ours.argmax(1), theirs.argmax(1)
    tied = np.minimum(ours[rows, a] - ours[rows, b], theirs[rows, b] - theirs[rows, a]) <= steps_of(ours)[:, 0]
    return 100 * float(np.mean(a == b)), 100 * float(np.mean(tied))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float(np.mean(logits.argmax(1) == labels[: len(logits)]))


def check_float(folder: Path, data: dict) -> tuple[str, list[str]]:
    onnx.checker.check_model(str(folder / "float.onnx"), full_check=True)
    ours, theirs = flat(data["logits"]), run(folder / "float.onnx", data["inputs"], int(data["batch"]), optimize=True)
    far = np.abs(ours - theirs).max(1) / np.abs(theirs).max(1)
    same, _ = agreement(ours, theirs)
    labels = data["labels"]
    row = (
        f"{len(ours):6} {accuracy(ours, labels):6.2f} {accuracy(theirs, labels):6.2f} {same:7.2f} {far.max():9.1e}"
    )
    failures = []
    if not far.max() <= FLOAT_TOLERANCE:
        failures.append(f"float logits differ by {far.max():.1e} of the greatest")
    if same != 100:
        failures.append(f"the float model's best class is the same on {same:.2f} % of the images only")
    return row, failures


def check_quantized(path: Path, data: dict) -> tuple[str, list[str]]:
    ours = flat(np.load(path.with_suffix(".npz"))["logits"])
    inputs, labels = data["inputs"][: len(ours)], data["labels"]
    onnx.checker.check_model(str(path), full_check=True)
    row, failures = f"{len(ours):6} {accuracy(ours, labels):6.2f}", []
    for form, optimize in (("graph", False), ("fused", True)):
        try:
            theirs = run(path, inputs, int(data["batch"]), optimize)
        except Exception as error:  # onnxruntime's exceptions have no common base
            message = " ".join(str(error).split())
            row += f"   {form}: refused: {message}"
            expected = REFUSED.get((path.stem, form))
            if expected is None or expected not in message:
                failures.append(f"onnxruntime ({form}) refuses: {message}")
            continue
        same, tied = agreement(ours, theirs)
        steps = float((np.abs(ours - theirs) / steps_of(ours)).max())
        row += f"   {accuracy(theirs, labels):6.2f} {same:6.2f} {tied:6.2f} {steps:6.2f}"
        strict = path.stem == "default" and form == "fused"
        least = AGREEMENT if strict else min(AGREEMENT, 100 * (1 - 2 / len(ours)))
        least, most = LOOSE.get((path.parent.name, path.stem), (least, DEFAULT_STEPS if strict else STEPS))
        if (same if strict else tied) < least:
            failures.append(f"{form}: the best class is the same on {same:.2f} % of the images only")
        if not steps <= most:
            failures.append(f"{form}: a logit is {steps:.1f} steps away")
    return row, failures


def main() -> int:
    folders = sorted(p.parent for p in Path(sys.argv[1]).glob("*/float.onnx"))
    failures = [] if folders else [f"{sys.argv[1]} holds no model"]
    print(f"onnxruntime {ort.__version__}, onnx {onnx.__version__}")
    print("\nfloat: top-1 of lowbit and onnxruntime, same best class, greatest relative difference of logits (%)")
    print(f"{'model':14} {'images':>6} {'lowbit':>6} {'ort':>6} {'same':>7} {'far':>9}")
    for folder in folders:
        row, found = check_float(folder, np.load(folder / "float.npz"))
        print(f"{folder.name:14} {row}", flush=True)
        failures += [f"{folder.name}: {f}" for f in found]
    print("\nQ/DQ: top-1 of the Session; then for the graph as written, and for onnxruntime's integer kernels:")
    print("top-1 there, same best class, the same with ties given (%), greatest difference in output steps")
    columns = f"{'top-1':>6} {'same':>6} {'tied':>6} {'steps':>6}"
    print(f"{'model':14} {'configuration':18} {'images':>6} {'top-1':>6}   {columns}   {columns}")
    for folder in folders:
        data = dict(np.load(folder / "float.npz"))
        for path in sorted(p for p in folder.glob("*.onnx") if p.stem != "float"):
            row, found = check_quantized(path, data)
            print(f"{folder.name:14} {path.stem:18} {row}", flush=True)
            failures += [f"{folder.name} {path.stem}: {f}" for f in found]
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"{len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
