"""The tensors that the golden vectors are about, and how they are written as JSON."""

import json
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def bits(values):
    """The f32 values as u32 bit patterns, row-major."""
    array = values.detach().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return array.astype(np.float32).reshape(-1).view(np.uint32).tolist()


def tensor(value):
    """A tensor as `{"shape": [...], "bits": [...]}`."""
    return {"shape": list(value.shape), "bits": bits(value)}


def write(name, document):
    """Write one JSON file: a top-level list has one record a line, so that a change shows as one."""

    def compact(value):
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    parts = []
    for key, value in document.items():
        if isinstance(value, list):
            body = "[\n" + ",\n".join(compact(item) for item in value) + "\n]"
        else:
            body = compact(value)
        parts.append(f"{compact(key)}:{body}")
    path = HERE / name
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


def sequences():
    """Name to list of batches. Every batch of a sequence has the same shape."""
    random = np.random.default_rng(2026)

    def f32(array):
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

    a = [[-0.0590, 1.1674, 0.7119, -1.1270], [-1.3974, 0.5077, -0.5601, 0.0683], [-0.0929, 0.9473, 0.7159, -0.4574]]
    b = [[-0.0236, -0.7599, 1.0290, 0.8914], [-1.1727, -1.2556, -0.2271, 0.9568], [-0.2500, 1.4579, 1.4707, 0.4043]]
    outlier = random.standard_normal((4, 12))
    outlier[2, 5] = 60.0
    return {
        "pair": [f32(a), f32(b)],
        "normal_growing": [f32(random.standard_normal((4, 16)) * scale) for scale in (1.0, 2.0, 4.0)],
        "relu": [f32(np.maximum(random.standard_normal((2, 3, 8)), 0.0) * scale) for scale in (1.0, 1.5)],
        "positive": [f32(random.uniform(0.5, 3.0, (4, 8))) for _ in range(2)],
        "negative": [f32(-random.uniform(0.25, 2.0, (4, 8))) for _ in range(2)],
        "zero": [f32(np.zeros((3, 4))) for _ in range(2)],
        "constant": [f32(np.full((3, 4), 3.5)) for _ in range(2)],
        "negative_constant": [f32(np.full((3, 4), -0.75))],
        "tiny": [f32(random.standard_normal((4, 8)) * 1e-8) for _ in range(2)],
        "large": [f32(random.standard_normal((4, 8)) * 1e6) for _ in range(2)],
        "heavy_tailed": [f32(random.standard_t(2.0, (8, 32))) for _ in range(4)],
        "outlier": [f32(random.standard_normal((4, 12))), f32(outlier), f32(random.standard_normal((4, 12)))],
        "shrinking": [f32(random.standard_normal((4, 8)) * scale) for scale in (4.0, 1.0, 0.25)],
    }
