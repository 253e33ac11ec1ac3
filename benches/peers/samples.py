"""The samples that all tools are given."""

from pathlib import Path

import numpy as np
from PIL import Image


def images(folder, size):
    """The images of a folder as [N, 3, size, size]: centre crop, BGR less the
    mean of ImageNet, as SqueezeNet 1.0 takes them."""
    mean = np.array([104, 117, 123], np.float32)
    batch = []
    for path in sorted(Path(folder).iterdir()):
        image = Image.open(path).convert("RGB")
        scale = size / min(image.size)
        if scale > 1:
            image = image.resize([max(size, round(side * scale)) for side in image.size])
        left, top = [(side - size) // 2 for side in image.size]
        pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32)
        batch.append((pixels[..., ::-1] - mean).transpose(2, 0, 1))
    return np.ascontiguousarray(np.stack(batch))
