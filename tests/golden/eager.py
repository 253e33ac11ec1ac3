"""Models quantized in eager mode by torch.ao.quantization: eager/<name>.safetensors and eager/<name>.npz.

The safetensors file is the state dict of the float model. The arrays are `x` (four batches that the model was
calibrated with, one after another), `float` and `quantized`, the outputs for `x`; and, of the quantized model,
`<path>.scale` and `<path>.zero_point` of each module's output and `<path>.weight`, codes.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub, convert, fuse_modules, get_default_qconfig, prepare

FOLDER = Path(__file__).parent / "eager"


class ConvNet(nn.Module):
    """Convolution, batch normalization and ReLU."""

    groups = [["conv", "bn", "relu"]]

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.dequant(self.relu(self.bn(self.conv(self.quant(x)))))


class Residual(nn.Module):
    """A sum behind two convolutions, a pool, and a matrix product."""

    groups = [["conv1", "bn1", "relu1"], ["conv2", "bn2"]]

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.skip = FloatFunctional()
        self.pool = nn.MaxPool2d(4)
        self.fc = nn.Linear(8 * 2 * 2, 10)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(self.quant(x))))
        x = self.skip.add_relu(self.bn2(self.conv2(x)), x)
        return self.dequant(self.fc(torch.flatten(self.pool(x), 1)))


class Perceptron(nn.Module):
    """Two matrix products."""

    groups = [["fc1", "relu"]]

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.fc1, self.relu, self.fc2 = nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)

    def forward(self, x):
        return self.dequant(self.fc2(self.relu(self.fc1(self.quant(x)))))


def main():
    warnings.filterwarnings("ignore")
    FOLDER.mkdir(exist_ok=True)
    torch.backends.quantized.engine = "fbgemm"
    for name, model, shape in [
        ("conv_net", ConvNet(), (8, 3, 8, 8)),
        ("residual", Residual(), (8, 3, 8, 8)),
        ("perceptron", Perceptron(), (32, 12)),
    ]:
        torch.manual_seed(0)
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                mean = 1.0 if "bn" in key and key.endswith("weight") else 0.0
                value.copy_(torch.randn(value.shape) * (0.3 if value.ndim > 1 else 0.2) + mean)
        model.eval()
        save_file(model.state_dict(), FOLDER / f"{name}.safetensors")
        x = torch.randn(shape)
        with torch.no_grad():
            arrays = {"x": x, "float": model(x)}
            quantized = fuse_modules(model, model.groups)
            quantized.qconfig = get_default_qconfig("fbgemm")
            prepare(quantized, inplace=True)
            for batch in x.chunk(4):
                quantized(batch)
            convert(quantized, inplace=True)
            arrays["quantized"] = quantized(x)
        for key, value in quantized.state_dict().items():
            if key.endswith((".scale", ".zero_point")):
                arrays[key] = value.reshape(())
        for path, module in quantized.named_modules():
            if callable(getattr(module, "weight", None)):
                arrays[f"{path}.weight"] = module.weight().int_repr()
        np.savez_compressed(FOLDER / f"{name}.npz", **{key: value.numpy() for key, value in arrays.items()})


if __name__ == "__main__":
    main()
