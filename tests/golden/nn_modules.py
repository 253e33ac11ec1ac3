"""Modules of torch.nn with their parameters, inputs and outputs: nn/modules.safetensors and nn/modules.npz.

Every case is a module of one ModuleDict, whose state dict is the safetensors file. The arrays are called `case/x0`,
`case/x1` .. and `case/y0`, `case/y1` ..
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

FOLDER = Path(__file__).parent / "nn"


def floats(*shape):
    return torch.randn(*shape)


def integers(most, *shape):
    return torch.randint(most, shape)


def cases():
    """Name, module, inputs."""
    line, image, volume = floats(2, 4, 9), floats(2, 4, 7, 8), floats(2, 2, 5, 4, 6)
    yield "linear", nn.Linear(5, 3), [floats(4, 5)]
    yield "linear_3d", nn.Linear(5, 3, bias=False), [floats(2, 4, 5)]
    yield "linear_1d", nn.Linear(5, 3), [floats(5)]
    yield "bilinear", nn.Bilinear(3, 4, 5), [floats(2, 6, 3), floats(2, 6, 4)]
    yield "conv1d", nn.Conv1d(4, 6, 3, stride=2, padding=1), [line]
    yield "conv2d", nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), [image]
    yield "conv2d_no_bias", nn.Conv2d(4, 3, 1, bias=False), [image]
    yield "conv3d", nn.Conv3d(2, 3, (2, 3, 3), stride=(1, 2, 1), padding=1), [volume]
    yield "conv_transpose1d", nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1), [line]
    yield (
        "conv_transpose2d",
        nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2, dilation=2),
        [image],
    )
    yield "conv_transpose3d", nn.ConvTranspose3d(2, 3, 2, stride=2, bias=False), [volume]
    yield "batch_norm1d", nn.BatchNorm1d(4), [line]
    yield "batch_norm1d_rows", nn.BatchNorm1d(4, eps=1e-3), [floats(3, 4)]
    yield "batch_norm2d", nn.BatchNorm2d(4), [image]
    yield "batch_norm3d", nn.BatchNorm3d(2), [volume]
    yield "layer_norm", nn.LayerNorm(9), [line]
    yield "layer_norm_2", nn.LayerNorm([7, 8], eps=1e-3), [image]
    yield "layer_norm_plain", nn.LayerNorm(9, elementwise_affine=False), [line]
    yield "group_norm", nn.GroupNorm(2, 4), [image]
    yield "group_norm_plain", nn.GroupNorm(4, 4, affine=False), [line]
    yield "instance_norm1d", nn.InstanceNorm1d(4), [line]
    yield "instance_norm2d", nn.InstanceNorm2d(4, affine=True), [image]
    yield "instance_norm3d", nn.InstanceNorm3d(2, eps=1e-2), [volume]
    yield "embedding", nn.Embedding(7, 3, padding_idx=2), [integers(7, 2, 5)]
    for mode in ("sum", "mean", "max"):
        yield f"bag_{mode}", nn.EmbeddingBag(7, 3, mode=mode), [integers(7, 2, 5)]
        yield f"bags_{mode}", nn.EmbeddingBag(7, 3, mode=mode), [integers(7, 9), torch.tensor([0, 4, 4, 7])]
    yield "lstm", nn.LSTM(4, 3), [floats(5, 2, 4)]
    yield (
        "lstm_deep",
        nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True),
        [floats(2, 5, 4), floats(4, 2, 3), floats(4, 2, 3)],
    )
    yield "lstm_no_bias", nn.LSTM(4, 3, num_layers=2, bias=False), [floats(5, 2, 4)]
    yield "gru", nn.GRU(4, 3, bidirectional=True), [floats(5, 2, 4)]
    yield "gru_deep", nn.GRU(4, 3, num_layers=2, batch_first=True), [floats(2, 5, 4), floats(2, 2, 3)]
    yield "rnn", nn.RNN(4, 3), [floats(5, 2, 4)]
    relu = nn.RNN(4, 3, nonlinearity="relu", num_layers=2, bidirectional=True)
    yield "rnn_relu", relu, [floats(5, 2, 4), floats(4, 2, 3)]
    yield "lstm_cell", nn.LSTMCell(4, 3), [floats(2, 4), floats(2, 3), floats(2, 3)]
    yield "gru_cell", nn.GRUCell(4, 3), [floats(2, 4), floats(2, 3)]
    yield "rnn_cell", nn.RNNCell(4, 3, bias=False), [floats(2, 4), floats(2, 3)]
    yield "rnn_cell_relu", nn.RNNCell(4, 3, nonlinearity="relu"), [floats(2, 4), floats(2, 3)]
    tokens = floats(5, 2, 8)
    yield "attention", nn.MultiheadAttention(8, 2), [tokens, tokens, tokens]
    yield (
        "attention_batch_first",
        nn.MultiheadAttention(8, 4, bias=False, batch_first=True),
        [floats(2, 3, 8), floats(2, 5, 8), floats(2, 5, 8)],
    )
    yield (
        "attention_features",
        nn.MultiheadAttention(8, 2, kdim=6, vdim=4),
        [floats(3, 2, 8), floats(5, 2, 6), floats(5, 2, 4)],
    )
    for name, module in [
        ("relu", nn.ReLU()),
        ("relu6", nn.ReLU6()),
        ("leaky_relu", nn.LeakyReLU(0.2)),
        ("elu", nn.ELU(0.5)),
        ("prelu", nn.PReLU(4)),
        ("prelu_one", nn.PReLU()),
        ("gelu", nn.GELU()),
        ("gelu_tanh", nn.GELU(approximate="tanh")),
        ("silu", nn.SiLU()),
        ("hardswish", nn.Hardswish()),
        ("hardsigmoid", nn.Hardsigmoid()),
        ("sigmoid", nn.Sigmoid()),
        ("tanh", nn.Tanh()),
        ("softmax", nn.Softmax(dim=1)),
        ("log_softmax", nn.LogSoftmax(dim=-1)),
    ]:
        yield name, module, [4 * line]
    yield "max_pool1d", nn.MaxPool1d(3, stride=2), [line]
    yield "max_pool2d", nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), [image]
    yield "max_pool2d_dilated", nn.MaxPool2d((2, 3), stride=1, dilation=(2, 1)), [image]
    yield "max_pool3d", nn.MaxPool3d(2), [volume]
    yield "avg_pool1d", nn.AvgPool1d(3, stride=2, padding=1), [line]
    yield "avg_pool2d", nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True), [image]
    yield "avg_pool2d_alone", nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), [image]
    yield "avg_pool3d", nn.AvgPool3d((2, 1, 3)), [volume]
    yield "adaptive_avg_pool1d", nn.AdaptiveAvgPool1d(3), [line]
    yield "adaptive_avg_pool2d", nn.AdaptiveAvgPool2d(1), [image]
    yield "adaptive_avg_pool2d_parts", nn.AdaptiveAvgPool2d((7, 4)), [image]
    yield "adaptive_avg_pool3d", nn.AdaptiveAvgPool3d(1), [volume]
    yield "adaptive_max_pool2d", nn.AdaptiveMaxPool2d(1), [image]
    yield "adaptive_max_pool2d_parts", nn.AdaptiveMaxPool2d((1, 2)), [image]
    yield "upsample", nn.Upsample(scale_factor=2), [image]
    yield "upsample_size", nn.Upsample(size=(10, 19)), [image]
    yield "upsample_linear", nn.Upsample(scale_factor=2, mode="linear"), [line]
    yield "upsample_bilinear", nn.Upsample(scale_factor=(1.5, 2), mode="bilinear"), [image]
    yield "upsample_corners", nn.Upsample(size=(10, 12), mode="bilinear", align_corners=True), [image]
    yield "flatten", nn.Flatten(), [image]
    yield "flatten_middle", nn.Flatten(1, 2), [image]
    yield "flatten_from_0", nn.Flatten(0, 1), [image]
    yield "dropout", nn.Dropout(0.3), [line]
    yield "identity", nn.Identity(), [line]
    yield "sequential", nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2)), [line]


def flat(y):
    return [t for part in y for t in flat(part)] if isinstance(y, (tuple, list)) else [y]


def main():
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    modules, arrays = nn.ModuleDict(), {}
    for name, module, inputs in cases():
        for key, value in module.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point() and key.split(".")[-1] in ("running_mean", "weight", "bias", "in_proj_bias"):
                value.add_(0.3 * torch.randn(value.shape))
        module.eval()
        modules[name] = module
        given = inputs
        if isinstance(module, nn.LSTM) and len(inputs) == 3:
            given = [inputs[0], tuple(inputs[1:])]
        if isinstance(module, nn.LSTMCell):
            given = [inputs[0], tuple(inputs[1:])]
        with torch.no_grad():
            outputs = flat(module(*given))
        for kind, tensors in (("x", inputs), ("y", outputs)):
            arrays.update({f"{name}/{kind}{i}": t.numpy() for i, t in enumerate(tensors)})
    save_file({key: value.contiguous() for key, value in modules.state_dict().items()}, FOLDER / "modules.safetensors")
    np.savez_compressed(FOLDER / "modules.npz", **arrays)


if __name__ == "__main__":
    main()
