"""Architectures with seeded random weights, written as ONNX files.

The weights are Kaiming's, normal with variance 2 / fan-in, so that values keep their size from layer to layer; batch
normalization is folded into the convolutions. The first dimension of the input is the batch `N`. Random weights say
nothing of accuracy, and take as long as trained ones.

    models.py MODEL FOLDER

writes into the folder the model, an architecture's name, unless it is a file already, and inputs to quantize it with.
It prints, as JSON, where both are and the batch that the model is fixed to, if any.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


class Writer:
    """Nodes and initializers of a graph with one input `x`."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.nodes, self.initializers = [], []

    def constant(self, values) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def normal(self, shape, deviation: float) -> str:
        return self.constant((self.random.standard_normal(shape) * deviation).astype(np.float32))

    def op(self, kind: str, *inputs: str, **attributes) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, cin: int, cout: int, k: int, stride: int = 1, groups: int = 1, gain: float = 1) -> str:
        fan_in = cin // groups * k * k
        weight = self.normal((cout, cin // groups, k, k), gain * math.sqrt(2 / fan_in))
        bias = self.normal(cout, 0.1)
        pad = (k - 1) // 2
        return self.op(
            "Conv", x, weight, bias, kernel_shape=[k, k], strides=[stride] * 2, pads=[pad] * 4, group=groups
        )

    def linear(self, x: str, cin: int, cout: int) -> str:
        """Over the last dimension, of any rank."""
        return self.op("Add", self.op("MatMul", x, self.normal((cin, cout), cin**-0.5)), self.normal(cout, 0.1))

    def classifier(self, x: str, cin: int) -> str:
        x = self.op("Flatten", self.op("GlobalAveragePool", x), axis=1)
        return self.op("Gemm", x, self.normal((1000, cin), cin**-0.5), self.normal(1000, 0.1), transB=1)

    def model(self, y: str, inputs: list, outputs: list) -> onnx.ModelProto:
        value = helper.make_tensor_value_info
        self.nodes[-1].output[0] = "y"
        assert y == self.nodes[-1].name
        graph = helper.make_graph(
            self.nodes,
            "model",
            [value("x", TensorProto.FLOAT, ["N", *inputs])],
            [value("y", TensorProto.FLOAT, ["N", *outputs])],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def resnet(blocks: tuple, bottleneck: bool) -> onnx.ModelProto:
    """He and others, 2015, with the stride of a bottleneck in its 3x3 convolution."""
    w = Writer(0)
    x = w.op("Relu", w.conv("x", 3, 64, 7, stride=2))
    x = w.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    cin = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        cout = 4 * width if bottleneck else width
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            if bottleneck:
                y = w.op("Relu", w.conv(x, cin, width, 1))
                y = w.op("Relu", w.conv(y, width, width, 3, stride))
                y = w.conv(y, width, cout, 1, gain=0.5)
            else:
                y = w.op("Relu", w.conv(x, cin, width, 3, stride))
                y = w.conv(y, width, width, 3, gain=0.5)
            if block == 0 and cin != cout:
                x = w.conv(x, cin, cout, 1, stride, gain=0.7)
            x, cin = w.op("Relu", w.op("Add", y, x)), cout
    return w.model(w.classifier(x, cin), [3, 224, 224], [1000])


def mobilenet_v2() -> onnx.ModelProto:
    """Sandler and others, 2018, at width 1."""
    w = Writer(0)
    lo, hi = w.constant(np.float32(0)), w.constant(np.float32(6))

    def relu6(x):
        return w.op("Clip", x, lo, hi)

    x, cin = relu6(w.conv("x", 3, 32, 3, stride=2)), 32
    for expand, cout, count, first_stride in [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]:  # fmt: skip
        for block in range(count):
            stride, width = first_stride if block == 0 else 1, expand * cin
            y = x if expand == 1 else relu6(w.conv(x, cin, width, 1))
            y = relu6(w.conv(y, width, width, 3, stride, groups=width))
            y = w.conv(y, width, cout, 1, gain=0.7)
            x, cin = (w.op("Add", x, y) if stride == 1 and cin == cout else y), cout
    x = relu6(w.conv(x, cin, 1280, 1))
    return w.model(w.classifier(x, 1280), [3, 224, 224], [1000])


def bert_block() -> onnx.ModelProto:
    """One encoder block of BERT-base (Devlin and others, 2018): width 768, 12 heads, 3072 within, 128 tokens."""
    w = Writer(0)
    tokens, width, heads, inner = 128, 768, 12, 3072
    apart, together = w.constant(np.array([0, 0, heads, width // heads])), w.constant(np.array([0, 0, width]))
    scale, half, root, one = (w.constant(np.float32(v)) for v in ((width // heads) ** -0.5, 0.5, 0.5**0.5, 1))

    def normalize(x):
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        return w.op("LayerNormalization", x, w.constant(ones), w.constant(zeros), axis=-1)

    def projected(perm):
        return w.op("Transpose", w.op("Reshape", w.linear("x", width, width), apart), perm=perm)

    q, k, v = projected([0, 2, 1, 3]), projected([0, 2, 3, 1]), projected([0, 2, 1, 3])
    attention = w.op("Softmax", w.op("Mul", w.op("MatMul", q, k), scale), axis=-1)
    y = w.op("Reshape", w.op("Transpose", w.op("MatMul", attention, v), perm=[0, 2, 1, 3]), together)
    x = normalize(w.op("Add", "x", w.linear(y, width, width)))
    y = w.linear(x, width, inner)
    gelu = w.op("Mul", w.op("Mul", y, half), w.op("Add", w.op("Erf", w.op("Mul", y, root)), one))
    return w.model(normalize(w.op("Add", x, w.linear(gelu, inner, width))), [tokens, width], [tokens, width])


def mlp() -> onnx.ModelProto:
    """Two products with matrices and a ReLU between, of one row a sample: 768, 3072, 768."""
    w = Writer(0)
    return w.model(w.linear(w.op("Relu", w.linear("x", 768, 3072)), 3072, 768), [768], [768])


MODELS = {
    "resnet18": lambda: resnet((2, 2, 2, 2), bottleneck=False),
    "resnet50": lambda: resnet((3, 4, 6, 3), bottleneck=True),
    "mobilenet_v2": mobilenet_v2,
    "bert_block": bert_block,
}


def main():
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    if str(model) in MODELS:
        proto = MODELS[str(model)]()
        onnx.checker.check_model(proto)
        model = folder / f"{model}.onnx"
        onnx.save(proto, str(model))
    shape = [d.dim_value for d in onnx.load(model).graph.input[0].type.tensor_type.shape.dim]
    samples = folder / f"{model.stem}.npy"
    np.save(samples, np.random.default_rng(1).standard_normal([shape[0] or 4, *shape[1:]], np.float32))
    print(json.dumps({"model": str(model), "samples": str(samples), "batch": shape[0] or None}))


if __name__ == "__main__":
    main()
