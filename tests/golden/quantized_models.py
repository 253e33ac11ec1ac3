"""Q/DQ graphs and integer operators, as the tools that quantize ONNX files write them."""

import numpy as np
from onnx import TensorProto, helper

from maker import FLOAT, node

UINT8, INT8 = TensorProto.UINT8, TensorProto.INT8


def quantized(m):
    """Adds every model to the maker."""
    image, y4 = {"x": m.f32(3, 4, 6, 6)}, {"y": (FLOAT, 4)}

    def scalar(value, dtype=np.float32):
        return np.array(value, dtype)

    activations = {"xs": scalar(0.0117), "xz": scalar(117, np.uint8), "ys": scalar(0.021), "yz": scalar(3, np.uint8)}
    m.add(
        "quantize_dequantize",
        10,
        [node("QuantizeLinear", "x xs xz", "q"), node("DequantizeLinear", "q xs xz", "y")],
        image,
        {"q": (UINT8, 4), "y": (FLOAT, 4)},
        {k: activations[k] for k in ("xs", "xz")},
    )
    axis = {"s": np.array([0.01, 0.02, 0.005, 0.013], np.float32), "z": np.array([0, 3, -7, 20], np.int8)}
    m.add(
        "quantize_axis",
        13,
        [node("QuantizeLinear", "x s z", "q", axis=1), node("DequantizeLinear", "q s z", "y", axis=1)],
        image,
        {"q": (INT8, 4), "y": (FLOAT, 4)},
        axis,
    )
    m.add(
        "quantize_no_zero_point",
        13,
        [node("QuantizeLinear", "x xs", "q"), node("DequantizeLinear", "q xs", "y")],
        image,
        {"q": (UINT8, 4), "y": (FLOAT, 4)},
        {"xs": activations["xs"]},
    )
    weight = m.random.integers(-127, 128, (5, 4, 3, 3)).astype(np.int8)
    channel_scales = m.random.uniform(0.002, 0.006, 5).astype(np.float32)
    bias = m.random.integers(-2000, 2000, 5).astype(np.int32)
    conv = [
        node("QuantizeLinear", "x xs xz", "xq"),
        node("DequantizeLinear", "xq xs xz", "xd"),
        node("DequantizeLinear", "wq ws wz", "wd", axis=0),
        node("DequantizeLinear", "bq bs bz", "bd", axis=0),
        node("Conv", "xd wd bd", "c", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "c", "r"),
        node("QuantizeLinear", "r ys yz", "rq"),
        node("DequantizeLinear", "rq ys yz", "y"),
    ]
    constants = activations | {
        "wq": weight,
        "ws": channel_scales,
        "wz": np.zeros(5, np.int8),
        "bq": bias,
        "bs": (channel_scales * np.float32(0.0117)).astype(np.float32),
        "bz": np.zeros(5, np.int32),
    }
    m.add("qdq_conv", 13, conv, image, y4, constants)
    # TensorRT's way: float weights quantized in the graph, float bias, symmetric int8 activations.
    nodes = [
        node("QuantizeLinear", "x xs zero", "xq"),
        node("DequantizeLinear", "xq xs zero", "xd"),
        node("QuantizeLinear", "w ws wz", "wq", axis=0),
        node("DequantizeLinear", "wq ws wz", "wd", axis=0),
        node("Conv", "xd wd b", "y", pads=[1, 1, 1, 1]),
    ]
    constants = {
        "xs": scalar(0.013),
        "zero": scalar(0, np.int8),
        "w": m.f32(5, 4, 3, 3),
        "ws": channel_scales * 3,
        "wz": np.zeros(5, np.int8),
        "b": m.f32(5),
    }
    m.add("qdq_conv_float_weights", 13, nodes, image, y4, constants)
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq"),
        node("DequantizeLinear", "xq xs xz", "xd"),
        node("DequantizeLinear", "wq ws wz", "wd"),
        node("MatMul", "xd wd", "a"),
        node("Add", "a b", "c"),
        node("QuantizeLinear", "c ys yz", "cq"),
        node("DequantizeLinear", "cq ys yz", "y"),
    ]
    constants = {
        "xs": scalar(0.012),
        "xz": scalar(130, np.uint8),
        "ys": scalar(0.03),
        "yz": scalar(120, np.uint8),
        "wq": m.random.integers(-128, 128, (6, 5)).astype(np.int8),
        "ws": scalar(0.004),
        "wz": scalar(0, np.int8),
        "b": m.f32(5),
    }
    m.add("qdq_matmul", 13, nodes, {"x": m.f32(3, 6)}, {"y": (FLOAT, 2)}, constants)
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"),
        node("MatMulInteger", "q w z", "acc"),
        node("Cast", "acc", "f", to=FLOAT),
        node("Mul", "s ws", "scale"),
        node("Mul", "f scale", "y"),
    ]
    m.add(
        "dynamic_matmul",
        11,
        nodes,
        {"x": m.f32(3, 6)},
        {"y": (FLOAT, 2)},
        {"w": m.random.integers(-128, 128, (6, 5)).astype(np.int8), "ws": scalar(0.004)},
    )
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq"),
        node("QLinearConv", "xq xs xz w ws wz ys yz b", "yq", pads=[1, 1, 1, 1]),
        node("DequantizeLinear", "yq ys yz", "y"),
    ]
    constants = activations | {"w": weight, "ws": channel_scales, "wz": np.zeros(5, np.int8), "b": bias}
    m.add("qlinear_conv", 10, nodes, image, {"yq": (UINT8, 4), "y": (FLOAT, 4)}, constants)
    blocks = {
        "wq": m.random.integers(-128, 128, (8, 5)).astype(np.int8),
        "ws": m.random.uniform(0.002, 0.01, (2, 5)).astype(np.float32),
        "wz": m.random.integers(-9, 9, (2, 5)).astype(np.int8),
    }
    m.add(
        "dequantize_blocks",
        21,
        [node("DequantizeLinear", "wq ws wz", "w", axis=0, block_size=4), node("MatMul", "x w", "y")],
        {"x": m.f32(3, 8)},
        {"y": (FLOAT, 2)},
        blocks,
    )
    int4 = helper.make_tensor("wq", TensorProto.INT4, [4, 5], m.random.integers(-8, 8, 20).tolist())
    m.add(
        "dequantize_int4",
        21,
        [node("DequantizeLinear", "wq ws", "w", axis=1), node("MatMul", "x w", "y")],
        {"x": m.f32(3, 4)},
        {"y": (FLOAT, 2)},
        {"wq": int4, "ws": m.random.uniform(0.05, 0.2, 5).astype(np.float32)},
    )
    wide = {"s": scalar(0.0001), "z": scalar(30000, np.uint16)}
    m.add(
        "quantize_uint16",
        21,
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")],
        {"x": m.f32(3, 4)},
        {"q": (TensorProto.UINT16, 2), "y": (FLOAT, 2)},
        wide,
    )
    eight = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    m.add(
        "quantize_float8",
        19,
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")],
        {"x": m.f32(3, 4)},
        {"y": (FLOAT, 2)},
        {"s": scalar(0.05), "z": eight},
    )
