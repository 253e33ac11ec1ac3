"""Write fake_quantize/vectors.npz: what torch makes of values that it fake-quantizes, and the gradients.

For each case NAME the arrays NAME.values: x, the gradient of a scalar by the result, the result, and the gradient by x;
NAME.steps: scale, zero point and, where they are learned, the gradients by them; NAME.codes: least and greatest code, and
the axis or -1. For 8-bit floats FORMAT.x, FORMAT.bits (the codes) and FORMAT.y (their values).

torch multiplies by 1 / scale where lowbit divides: values lie at least 1e-3 steps from where rounding changes."""

import numpy as np
import torch

from golden import HERE

FOLDER = HERE / "fake_quantize"
random = np.random.default_rng(30)
arrays = {}


def steps(shape, least, greatest):
    """Values in steps, some beyond the codes, none near a tie."""
    spread = greatest - least
    v = random.uniform(least - 0.4 * spread, greatest + 0.4 * spread, shape)
    part = v - np.floor(v)
    return np.where(np.abs(part - 0.5) < 1e-3, v + 0.01, v)


def case(name, least, greatest, axis, zeros, learned):
    shape = (3, 4, 5) if axis >= 0 else (6, 10)
    groups = shape[axis] if axis >= 0 else 1
    scale = random.uniform(0.01, 0.2, groups).astype(np.float32)
    zero = np.array([zeros[i % len(zeros)] for i in range(groups)])
    along = [groups if i == axis else 1 for i in range(len(shape))]
    wide = [a.reshape(along) if axis >= 0 else a[0] for a in (scale, zero)]
    x = ((steps(shape, least, greatest) - wide[1]) * wide[0]).astype(np.float32)
    g = random.standard_normal(shape).astype(np.float32)
    tx = torch.from_numpy(x).requires_grad_()
    ts, tz = torch.from_numpy(scale), torch.from_numpy(zero.astype(np.float32))
    if learned:
        # The gradient by a scale is multiplied by this: LSQ's.
        factor = 1.0 / np.sqrt(x.size / groups * greatest_real(greatest, zero))
        ts.requires_grad_()
        tz.requires_grad_()
        if axis >= 0:
            y = torch._fake_quantize_learnable_per_channel_affine(tx, ts, tz, axis, least, greatest, factor)
        else:
            y = torch._fake_quantize_learnable_per_tensor_affine(tx, ts, tz, least, greatest, factor)
    elif axis >= 0:
        y = torch.fake_quantize_per_channel_affine(tx, ts, torch.from_numpy(zero.astype(np.int32)), axis, least, greatest)
    else:
        y = torch.fake_quantize_per_tensor_affine(tx, float(scale[0]), int(zero[0]), least, greatest)
    y.backward(torch.from_numpy(g))
    found = [scale, zero.astype(np.float32)] + ([ts.grad.numpy(), tz.grad.numpy()] if learned else [])
    arrays[f"{name}.values"] = np.stack([x, g, y.detach().numpy(), tx.grad.numpy()])
    arrays[f"{name}.steps"] = np.stack(found)
    arrays[f"{name}.codes"] = np.array([least, greatest, axis], np.int64)


def greatest_real(greatest, zero):
    """The greatest code less the zero point of the first group: lowbit's `hi`."""
    return max(1.0, abs(float(greatest - zero[0])))


for bits in range(2, 9):
    for signed in (True, False):
        least, greatest = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        middle = (least + greatest + 1) // 2
        for learned in (False, True):
            kind = f"{'int' if signed else 'uint'}{bits}.{'learned' if learned else 'fixed'}"
            # The backward pass of learned steps truncates zero + 0.5, which is one too many below 0.
            zeros = sorted({middle, least, middle + 1})
            for zero in [z for z in zeros if z >= 0 or not learned]:
                case(f"{kind}.tensor.{zero}", least, greatest, -1, [zero], learned)
            # Groups of one call have one factor, and so one zero point.
            zeros = [middle] if learned else [middle, least, greatest]
            for axis in (0, 1):
                case(f"{kind}.axis{axis}", least, greatest, axis, zeros, learned)

for name, dtype, most in (("e4m3", torch.float8_e4m3fn, 448.0), ("e5m2", torch.float8_e5m2, 57344.0)):
    x = np.concatenate(
        [
            random.standard_normal(200) * 2.0 ** random.integers(-12, 8, 200),
            [0.0, -0.0, most, -most, 2.0**-9, -(2.0**-9), 2.0**-10, 2.0**-16, 1.0625, 1.1875, 17.0, 19.0],
        ]
    ).astype(np.float32)
    codes = torch.from_numpy(np.clip(x, -most, most)).to(dtype)
    arrays |= {f"{name}.x": x, f"{name}.bits": codes.view(torch.uint8).numpy(), f"{name}.y": codes.float().numpy()}

FOLDER.mkdir(exist_ok=True)
np.savez_compressed(FOLDER / "vectors.npz", **arrays)
print(f"{len(arrays)} arrays, {(FOLDER / 'vectors.npz').stat().st_size} bytes")
