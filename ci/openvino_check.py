"""Compares models that lowbit exported in OpenVINO with what onnxruntime makes of them.

    openvino_check.py FOLDER

FOLDER is what the example `export_check` writes (see `onnxruntime_check.py`). Every model of a configuration in
CONFIGURATIONS is compiled for the CPU, and run on the first IMAGES inputs: with the integer kernels that OpenVINO
chooses, which add in another order than onnxruntime's. All but two images have the same best class as in onnxruntime,
where classes within one output step (1/127 of the image's greatest logit) count as tied, and of a hundred logits 99 are
within STEPS. The last one may be further: a residual network carries a code that rounding tipped over to its end.

The configurations are those of `--target openvino`. Signed activations, which other targets have, are not among them:
OpenVINO 2026.4 computes something else of SqueezeNet with these, and refuses ResNet20.
"""

import sys
from pathlib import Path

import numpy as np
import openvino as ov

from onnxruntime_check import agreement, flat, run, steps_of

IMAGES = 64
STEPS = 8
CONFIGURATIONS = ("default", "per-tensor", "int16-activations", "int4-weights")


def logits(core: ov.Core, path: Path, inputs: np.ndarray, size: int) -> np.ndarray:
    # Without the hint, what stays in float would be computed in bfloat16 where the CPU has it.
    model = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    batches = [inputs[i : i + size] for i in range(0, len(inputs), size)]
    return flat(np.concatenate([model(batch)[0] for batch in batches]))


def main() -> int:
    core, failures, count = ov.Core(), [], 0
    print(f"openvino {ov.__version__}: the same best class as in onnxruntime, ties given (%), 99 % of differences in output steps")
    for folder in sorted(p.parent for p in Path(sys.argv[1]).glob("*/float.onnx")):
        data = dict(np.load(folder / "float.npz"))
        inputs, size = data["inputs"][:IMAGES], int(data["batch"])
        for path in (folder / f"{name}.onnx" for name in CONFIGURATIONS):
            if not path.exists():
                continue
            count += 1
            try:
                theirs = logits(core, path, inputs, size)
            except Exception as error:  # of several kinds
                failures.append(f"{folder.name} {path.stem}: refused: {' '.join(str(error).split())}")
                continue
            ours = run(path, inputs, size, optimize=True)
            same, tied = agreement(ours, theirs)
            steps = float(np.percentile(np.abs(ours - theirs) / steps_of(ours), 99))
            print(f"{folder.name:14} {path.stem:18} {same:6.2f} {tied:6.2f} {steps:6.2f}", flush=True)
            if tied < 100 * (1 - 2 / len(ours)) or not steps <= STEPS:
                failures.append(f"{folder.name} {path.stem}: {tied:.2f} % agree, {steps:.1f} steps")
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"{count} models, {len(failures)} failures")
    return bool(failures) or count == 0


if __name__ == "__main__":
    sys.exit(main())
