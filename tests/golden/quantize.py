"""Write quantize.json: quantized codes, dequantized and fake-quantized values, and gradients from torch.

See README.md for the schema.
"""

import numpy as np
import torch

from golden import bits, sequences, tensor, write

RANGES = {
    "quint8": (torch.quint8, 0, 255),
    "qint8": (torch.qint8, -128, 127),
    "qint32": (torch.qint32, -(2**31), 2**31 - 1),
}

# The example of NVIDIA's pytorch-quantization user guide.
AMAX = [0.9817, 0.8796, 0.9921, 0.4611, 0.0832, 0.1784, 0.3674, 0.5676, 0.3376, 0.2119]


def onnx_codes(x, scale, zero_point, low, high):
    """ONNX's QuantizeLinear: one true f32 division, ties to even, then the zero point, then saturation."""
    rounded = np.rint(x.numpy() / scale.numpy())
    shifted = rounded.astype(np.float64) + zero_point.numpy()
    return np.clip(shifted, low, high).astype(np.int64).reshape(-1).tolist()


def inputs():
    """Name to (tensor, scale, zero point) where the values meet ties, saturation and the smallest scales."""
    data = sequences()
    halves = torch.arange(-12, 13, dtype=torch.float32) / 2
    return [
        ("ties_unit", halves, 1.0, 0),
        ("ties_quarter", halves * 0.25, 0.25, 3),
        ("ties_tenth", halves * 0.1, 0.1, 128),
        ("ties_inexact", halves * 0.0117, 0.0117, 10),
        (
            "saturation",
            torch.tensor([-1e30, -1000.0, -12.85, -12.8, -0.0, 0.0, 12.7, 12.75, 25.5, 25.6, 1000.0, 1e30]),
            0.1,
            0,
        ),
        ("small_scale", data["tiny"][0], float(torch.finfo(torch.float32).eps), 0),
        ("pair", data["pair"][0], 0.011247451417148113, 124),
        ("normal", data["normal_growing"][0], 0.017, 120),
        ("outlier", data["outlier"][1], 0.25, 16),
        ("amax", torch.tensor(AMAX), 0.9921 / 127, 0),
    ]


def per_tensor():
    """Each input in each dtype that holds its zero point."""
    records = []
    for name, x, scale, zero_point in inputs():
        for dtype, (torch_dtype, low, high) in RANGES.items():
            if not low <= zero_point <= high or (dtype == "qint32" and name == "saturation"):
                continue
            s, z = torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point)
            quantized = torch.quantize_per_tensor(x, float(s), zero_point, torch_dtype)
            records.append(
                {
                    "name": name,
                    "dtype": dtype,
                    "x": tensor(x),
                    "scale": bits(s)[0],
                    "zero_point": zero_point,
                    "int_repr": quantized.int_repr().flatten().tolist(),
                    "dequantized": bits(quantized.dequantize()),
                    "onnx_codes": onnx_codes(x, s, z, low, high),
                }
            )
    return records


def per_channel():
    """A scale and a zero point for each slice along an axis."""
    x = torch.cat([batch for batch in sequences()["relu"]], dim=0) - 0.4
    records = []
    for axis in range(3):
        count = x.shape[axis]
        scale = 0.011 * torch.arange(1, count + 1, dtype=torch.float32)
        for dtype, zero in (("quint8", torch.arange(count) * 9 + 2), ("qint8", torch.arange(count) * -5 + 3)):
            torch_dtype, low, high = RANGES[dtype]
            quantized = torch.quantize_per_channel(x, scale, zero, axis, torch_dtype)
            shape = [count if i == axis else 1 for i in range(3)]
            records.append(
                {
                    "axis": axis,
                    "dtype": dtype,
                    "x": tensor(x),
                    "scale": bits(scale),
                    "zero_point": zero.tolist(),
                    "int_repr": quantized.int_repr().flatten().tolist(),
                    "dequantized": bits(quantized.dequantize()),
                    "onnx_codes": onnx_codes(x, scale.view(shape), zero.view(shape), low, high),
                }
            )
    return records


def fake_quantize():
    """Outputs and straight-through gradients; with `learnable`, also those of scale and zero point (LSQ)."""
    records = []
    for name, x, scale, zero_point in inputs():
        for low, high in ((0, 255), (-128, 127), (-127, 127), (0, 15), (-8, 7)):
            if not low <= zero_point <= high:
                continue
            s = torch.tensor([scale], dtype=torch.float32)
            z = torch.tensor([zero_point], dtype=torch.int32)
            leaf = x.clone().requires_grad_()
            y = torch.fake_quantize_per_tensor_affine(leaf, s, z, low, high)
            y.sum().backward()
            record = {
                "name": name,
                "quant_min": low,
                "quant_max": high,
                "x": tensor(x),
                "scale": bits(s)[0],
                "zero_point": zero_point,
                "y": bits(y),
                "pass": [int(g) for g in leaf.grad.flatten()],
            }
            if x.numel() <= 25 and name != "saturation":
                # Upstream gradient 1, 2, 3 ..., so that no two elements weigh alike.
                upstream = torch.arange(1, x.numel() + 1, dtype=torch.float32).view(x.shape)
                leaves = [t.clone().requires_grad_() for t in (x, s, z.to(torch.float32))]
                learned = torch._fake_quantize_learnable_per_tensor_affine(*leaves, low, high, 1.0)
                learned.backward(upstream)
                record["learnable"] = {
                    "grad_x": bits(leaves[0].grad),
                    "grad_scale": bits(leaves[1].grad)[0],
                    "grad_zero_point": bits(leaves[2].grad)[0],
                }
            records.append(record)
    return records


def amax():
    """NVIDIA's symmetric form: scale = bound / amax, codes = clamp(round(x * scale)), y = codes / scale."""
    x = torch.tensor(AMAX)
    records = []
    for num_bits, unsigned, narrow in (
        (8, False, True),
        (8, False, False),
        (8, True, False),
        (4, False, True),
        (4, True, False),
    ):
        high = 2.0 ** (num_bits - 1 + int(unsigned)) - 1.0
        low = 0.0 if unsigned else -high if narrow else -high - 1.0
        for limit in (x.abs().max(), torch.tensor(0.5), torch.tensor(2.0)):
            scale = high / limit
            codes = torch.clamp((x * scale).round(), low, high)
            records.append(
                {
                    "num_bits": num_bits,
                    "unsigned": unsigned,
                    "narrow_range": narrow,
                    "amax": bits(limit)[0],
                    "scale": bits(scale)[0],
                    "codes": codes.int().tolist(),
                    "y": bits(codes / scale),
                }
            )
    return {"x": bits(x), "runs": records}


def main():
    torch.set_num_threads(1)
    write(
        "quantize.json",
        {
            "torch": torch.__version__.split("+")[0],
            "per_tensor": per_tensor(),
            "per_channel": per_channel(),
            "fake_quantize": fake_quantize(),
            "amax": amax(),
        },
    )


if __name__ == "__main__":
    main()
