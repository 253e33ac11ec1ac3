"""The time of a training step: lowbit beside torch, on the same network.

    training.py --example target/release/examples/training_speed [--rounds 3] [resnet18 resnet20]

`resnet18` takes 16 pictures of 64 x 64, `resnet20` 128 of 32 x 32, both with random weights. A step is forward, backward
and SGD with momentum. torch trains in eager mode; its QAT step is that of `torch.ao.quantization.prepare_qat_fx` with the
`fbgemm` configuration, the same as lowbit's: moving averages, batch normalization folded with the statistics of the batch.
The tools take turns, a process each.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SHAPES = {"resnet18": (16, 64), "resnet20": (128, 32)}


def network(name):
    """The torch module."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.relu = nn.ReLU()
            self.shortcut = None
            if stride != 1 or inputs != outputs:
                self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

        def forward(self, x):
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            return self.relu(y + (x if self.shortcut is None else self.shortcut(x)))

    def stack(widths, blocks):
        layers, inputs = [], widths[0]
        for i, width in enumerate(widths):
            for j in range(blocks):
                layers.append(Block(inputs, width, 2 if i > 0 and j == 0 else 1))
                inputs = width
        return layers

    torch.manual_seed(0)
    if name == "resnet18":
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        body, width, classes = stack([64, 128, 256, 512], 2), 512, 1000
    else:
        stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        body, width, classes = stack([16, 32, 64], 3), 64, 10
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
    return nn.Sequential(*stem, *body, *head)


def export(name, path):
    """Writes the network with its batch normalizations."""
    import torch

    _, size = SHAPES[name]
    torch.onnx.export(
        network(name).eval(),
        torch.zeros(1, 3, size, size),
        path,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        dynamo=False,
    )


def torch_steps(name, steps):
    """Prints `float MS` and `qat MS` in turns."""
    import time
    import warnings

    import torch
    from torch.ao.quantization import get_default_qat_qconfig_mapping, quantize_fx

    warnings.filterwarnings("ignore")
    batch, size = SHAPES[name]
    x = torch.randn(batch, 3, size, size)
    torch.backends.quantized.engine = "fbgemm"
    mapping = get_default_qat_qconfig_mapping("fbgemm")
    prepared = quantize_fx.prepare_qat_fx(network(name).train(), mapping, (x,))
    models = {"float": network(name).train(), "qat": prepared.train()}
    y = torch.arange(batch) % 10
    movers = {k: torch.optim.SGD(m.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4) for k, m in models.items()}
    for _ in range(steps):
        for kind, model in models.items():
            start = time.perf_counter()
            movers[kind].zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            movers[kind].step()
            print(kind, (time.perf_counter() - start) * 1e3)


def times(command, threads, warm):
    """The times that a process prints, by kind, without the first ones."""
    variables = ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]
    environment = os.environ | {name: str(threads) for name in variables}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    found = {"float": [], "qat": []}
    for line in printed.splitlines():
        kind, ms = line.split()
        found[kind].append(float(ms))
    return {kind: ms[warm:] for kind, ms in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--example", help="lowbit's example training_speed, built")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("models", nargs="*", default=list(SHAPES))
    args = parser.parse_args()
    if args.torch:
        return torch_steps(args.torch, args.steps)
    print("| model | lowbit float ms | torch float ms | ratio | lowbit QAT ms | torch QAT ms | ratio | QAT / float, ours |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.models:
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / f"{name}.onnx"
            export(name, model)
            batch, size = SHAPES[name]
            ours = [args.example, model, str(batch), str(size), str(args.steps)]
            theirs = [sys.executable, __file__, "--torch", name, "--steps", str(args.steps)]
            taken = {tool: {"float": [], "qat": []} for tool in ("lowbit", "torch")}
            for _ in range(args.rounds):
                for tool, command in (("lowbit", ours), ("torch", theirs)):
                    for kind, ms in times(command, args.threads, 2).items():
                        taken[tool][kind] += ms
        middle = {(tool, kind): statistics.median(ms) for tool, kinds in taken.items() for kind, ms in kinds.items()}
        least = {(tool, kind): min(ms) for tool, kinds in taken.items() for kind, ms in kinds.items()}

        def cell(tool, kind):
            return f"{middle[tool, kind]:.0f} [{least[tool, kind]:.0f}]"

        def ratio(a, b):
            return f"{middle[a] / middle[b]:.2f} [{least[a] / least[b]:.2f}]"

        print(
            f"| {name} | {cell('lowbit', 'float')} | {cell('torch', 'float')} | "
            f"{ratio(('lowbit', 'float'), ('torch', 'float'))} | {cell('lowbit', 'qat')} | {cell('torch', 'qat')} | "
            f"{ratio(('lowbit', 'qat'), ('torch', 'qat'))} | {ratio(('lowbit', 'qat'), ('lowbit', 'float'))} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
