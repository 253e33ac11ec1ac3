"""Write gradients_conv.npz: gradients of convolutions, products, normalizations and pools by torch, in double precision.

Of each case `name`: operands `name.x0`, `name.x1` .., the gradient by the output `name.dy`, and those by the operands,
`name.d0`, `name.d1` .., a bias and the like included. See README.md.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

POSITIVE = "positive"


def conv(f, **options):
    return lambda x, w, b: f(x, w, b, **options)


# name, function, shapes of the operands; POSITIVE follows the shape of a variance.
CASES = [
    ("conv_3x3", conv(F.conv2d, padding=1), [(1, 5, 9, 11), (6, 5, 3, 3), (6,)]),
    ("conv_3x3_small", conv(F.conv2d, padding=1), [(5, 18, 2, 2), (17, 18, 3, 3), (17,)]),
    ("conv_1x1", conv(F.conv2d), [(2, 12, 5, 6), (9, 12, 1, 1), (9,)]),
    ("conv_1x1_stride_2", conv(F.conv2d, stride=2), [(2, 12, 6, 7), (9, 12, 1, 1), (9,)]),
    ("conv_7x7_stride_2", conv(F.conv2d, stride=2, padding=3), [(2, 3, 18, 19), (8, 3, 7, 7), (8,)]),
    ("conv_3x3_stride_2", conv(F.conv2d, stride=2, padding=1), [(2, 8, 8, 9), (10, 8, 3, 3), (10,)]),
    ("conv_dilated", conv(F.conv2d, stride=(2, 3), padding=(2, 1), dilation=(2, 1)), [(1, 4, 13, 14), (5, 4, 3, 3), (5,)]),
    ("conv_grouped", conv(F.conv2d, padding=1, groups=2), [(2, 6, 7, 7), (8, 3, 3, 3), (8,)]),
    ("conv_depthwise", conv(F.conv2d, padding=1, groups=7), [(2, 7, 9, 8), (7, 1, 3, 3), (7,)]),
    ("conv_depthwise_stride_2", conv(F.conv2d, stride=2, padding=2, groups=5), [(2, 5, 9, 8), (10, 1, 5, 5), (10,)]),
    ("conv_line", conv(F.conv1d, stride=2, padding=4), [(2, 4, 40), (6, 4, 9), (6,)]),
    ("conv_volume", conv(F.conv3d, padding=1), [(1, 3, 4, 5, 6), (4, 3, 3, 3, 3), (4,)]),
    ("transposed", conv(F.conv_transpose2d, stride=2, padding=1, output_padding=1), [(2, 5, 4, 6), (5, 3, 3, 3), (3,)]),
    ("transposed_grouped", conv(F.conv_transpose2d, stride=2, groups=2), [(1, 4, 5, 4), (4, 3, 2, 2), (6,)]),
    ("gemm", lambda a, b, c: 0.5 * a @ b.T + 2 * c, [(17, 30), (13, 30), (13,)]),
    ("gemm_transposed", lambda a, b, c: a.T @ b + c, [(30, 17), (30, 13), (17, 1)]),
    ("matmul_stack", torch.matmul, [(3, 7, 20), (20, 9)]),
    ("matmul_broadcast", torch.matmul, [(2, 1, 7, 20), (3, 20, 9)]),
    (
        "batch_norm",
        lambda x, g, b, m, v: F.batch_norm(x, m, v, g, b, training=False, eps=1e-5),
        [(3, 6, 4, 5), (6,), (6,), (6,), (6,), POSITIVE],
    ),
    (
        "batch_norm_training",
        lambda x, g, b: F.batch_norm(x, None, None, g, b, training=True, eps=1e-5),
        [(4, 3, 9, 10), (3,), (3,)],
    ),
    ("instance_norm", lambda x, g, b: F.instance_norm(x, weight=g, bias=b, eps=1e-5), [(2, 4, 5, 6), (4,), (4,)]),
    ("layer_norm", lambda x, g, b: F.layer_norm(x, (50,), g, b, eps=1e-5), [(4, 3, 50), (50,), (50,)]),
    ("rms_norm", lambda x, g: F.rms_norm(x, (50,), g, eps=1e-5), [(4, 3, 50), (50,)]),
    ("group_norm", lambda x, g, b: F.group_norm(x, 2, g, b, eps=1e-5), [(3, 6, 5, 4), (6,), (6,)]),
    ("lrn", lambda x: F.local_response_norm(x, 5, alpha=0.5, beta=0.75, k=2.0), [(2, 8, 4, 4)]),
    ("max_pool", lambda x: F.max_pool2d(x, 3, 2, 1), [(1, 4, 11, 12)]),
    ("max_pool_dilated", lambda x: F.max_pool2d(x, (2, 3), 1, 1, (2, 1)), [(1, 3, 8, 9)]),
    ("average_pool", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), [(1, 4, 11, 12)]),
    ("average_pool_padded", lambda x: F.avg_pool2d(x, 2, 2, 1), [(2, 4, 9, 8)]),
    ("global_average_pool", lambda x: x.mean((2, 3), keepdim=True), [(3, 5, 7, 6)]),
    ("resize_linear", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), [(2, 3, 5, 6)]),
    ("resize_cubic", lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), [(2, 3, 5, 6)]),
    ("resize_nearest", lambda x: F.interpolate(x, scale_factor=3, mode="nearest"), [(2, 3, 5, 6)]),
]


def main():
    random = np.random.default_rng(20)
    arrays = {}
    for name, f, shapes in CASES:
        operands = [random.standard_normal(s, dtype=np.float32) for s in shapes if s is not POSITIVE]
        if POSITIVE in shapes:
            operands[-1] = np.abs(operands[-1]) + np.float32(0.5)
        given = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in operands]
        if name == "batch_norm":
            # Torch has no gradient by the moments: the formula has.
            x, g, b, m, v = given
            each = (1, -1, 1, 1)
            y = (x - m.view(each)) / torch.sqrt(v.view(each) + 1e-5) * g.view(each) + b.view(each)
            assert torch.allclose(y, f(x, g, b, m.detach(), v.detach()))
        else:
            y = f(*given)
        dy = random.standard_normal(tuple(y.shape), dtype=np.float32)
        y.backward(torch.tensor(dy, dtype=torch.float64))
        arrays |= {f"{name}.x{i}": x for i, x in enumerate(operands)} | {f"{name}.dy": dy}
        arrays |= {f"{name}.d{i}": x.grad.numpy().astype(np.float32) for i, x in enumerate(given)}
    np.savez_compressed(Path(__file__).parent / "gradients_conv.npz", **arrays)


main()
