"""Forms of operators that older exporters wrote, and that newer or other ones write."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from control_models import control
from dynamic_models import dynamic
from maker import FLOAT, INT64, Maker, node
from quantized_models import quantized
from recurrent_models import recurrent


def old_forms(m):
    """Attributes that later opsets turned into inputs, or dropped."""
    x, image = {"x": m.f32(3, 4, 6)}, {"x": m.f32(3, 4, 6, 6)}
    norm = {"scale": m.f32(4) + 1, "bias": m.f32(4), "mean": m.f32(4), "var": np.abs(m.f32(4)) + 0.5}
    y3, y4 = {"y": (FLOAT, 3)}, {"y": (FLOAT, 4)}

    m.add(
        "batch_norm_spatial",
        8,
        [node("BatchNormalization", "x scale bias mean var", "y", spatial=1, momentum=0.9)],
        image,
        y4,
        norm,
    )
    m.add("batch_norm", 9, [node("BatchNormalization", "x scale bias mean var", "y", epsilon=1e-3)], image, y4, norm)
    m.add(
        "batch_norm", 15, [node("BatchNormalization", "x scale bias mean var", "y", training_mode=0)], image, y4, norm
    )
    m.add(
        "upsample_scales_attribute",
        8,
        [node("Upsample", "x", "y", mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])],
        image,
        y4,
    )
    scales = {"scales": np.array([1, 1, 2, 3], np.float32)}
    m.add("upsample_nearest", 9, [node("Upsample", "x scales", "y", mode="nearest")], image, y4, scales)
    m.add(
        "upsample_linear",
        9,
        [node("Upsample", "x scales", "y", mode="linear")],
        image,
        y4,
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    )
    m.add("resize", 10, [node("Resize", "x scales", "y", mode="nearest")], image, y4, scales)
    m.add("dropout", 9, [node("Relu", "x", "a"), node("Dropout", "a", "y", ratio=0.3)], x, y3)
    m.add("dropout_two_outputs", 10, [node("Dropout", "x", "y mask", ratio=0.3)], x, y3)
    m.add(
        "slice_attribute",
        9,
        [node("Slice", "x", "y", axes=[1, 2], starts=[1, -4], ends=[3, 9223372036854775807])],
        x,
        y3,
    )
    m.add("slice_no_axes", 9, [node("Slice", "x", "y", starts=[0, 1], ends=[2, 3])], x, y3)
    m.add(
        "pad_attribute",
        9,
        [node("Pad", "x", "y", mode="constant", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.5)],
        image,
        y4,
    )
    m.add(
        "pad_reflect_attribute", 10, [node("Pad", "x", "y", mode="reflect", pads=[0, 0, 1, 2, 0, 0, 3, 1])], image, y4
    )
    m.add("clip_attribute", 9, [node("Clip", "x", "y", min=-0.25, max=0.5)], x, y3)
    m.add("clip_attribute_one_sided", 10, [node("Clip", "x", "y", min=0.0)], x, y3)
    m.add(
        "squeeze_attribute",
        11,
        [node("Unsqueeze", "x", "a", axes=[0, 4]), node("Squeeze", "a", "y", axes=[0, 4])],
        x,
        y3,
    )
    m.add(
        "split_attribute", 11, [node("Split", "x", "y z", axis=2, split=[2, 4])], x, {"y": (FLOAT, 3), "z": (FLOAT, 3)}
    )
    m.add(
        "reduce_attribute",
        11,
        [
            node("ReduceSum", "x", "a", axes=[1], keepdims=0),
            node("ReduceMean", "x", "b", axes=[-1], keepdims=0),
            node("ReduceMax", "x", "c", keepdims=0),
        ],
        x,
        {"a": (FLOAT, 2), "b": (FLOAT, 2), "c": (FLOAT, 0)},
    )
    # Until opset 13 softmax coerces to two dimensions at the axis.
    m.add(
        "softmax_flattened",
        11,
        [node("Softmax", "x", "y", axis=1), node("LogSoftmax", "x", "z")],
        x,
        {"y": (FLOAT, 3), "z": (FLOAT, 3)},
    )
    m.add(
        "gemm_broadcast",
        9,
        [node("Gemm", "x w b", "y", transA=0, transB=1, alpha=0.5, beta=2.0)],
        {"x": m.f32(3, 4)},
        {"y": (FLOAT, 2)},
        {"w": m.f32(5, 4), "b": m.f32(1, 5)},
    )
    m.add("gemm_no_bias", 11, [node("Gemm", "x w", "y")], {"x": m.f32(3, 4)}, {"y": (FLOAT, 2)}, {"w": m.f32(4, 5)})
    m.add("add_zero_rank", 7, [node("Add", "x c", "y")], x, y3, {"c": np.array(0.25, np.float32)})
    weights = {"w": m.f32(5, 4, 3, 3), "b": m.f32(5)}
    m.add(
        "initializers_as_inputs",
        8,
        [node("Conv", "x w b", "y", pads=[1, 1, 1, 1])],
        image,
        y4,
        weights,
        ir=3,
        initializers_are_inputs=True,
    )


def layouts(m):
    """Padding modes, and ways of storing constants."""
    image, y4 = {"x": m.f32(3, 4, 7, 7)}, {"y": (FLOAT, 4)}
    w = {"w": m.f32(3, 4, 3, 2)}
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        label = mode.lower()
        m.add(f"conv_{label}", 13, [node("Conv", "x w", "y", auto_pad=mode, strides=[2, 2])], image, y4, w)
        m.add(
            f"max_pool_{label}",
            13,
            [node("MaxPool", "x", "y", auto_pad=mode, kernel_shape=[3, 2], strides=[2, 2])],
            image,
            y4,
        )
        m.add(
            f"average_pool_{label}",
            13,
            [node("AveragePool", "x", "y", auto_pad=mode, kernel_shape=[2, 2], strides=[2, 2])],
            image,
            y4,
        )
    m.add("conv_asymmetric_pads", 13, [node("Conv", "x w", "y", pads=[0, 1, 2, 0])], image, y4, w)
    m.add(
        "average_pool_include_pad",
        13,
        [node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[1, 0, 1, 2], count_include_pad=1)],
        image,
        y4,
    )
    m.add(
        "transposed_same",
        11,
        [node("ConvTranspose", "x w", "y", auto_pad="SAME_UPPER", strides=[2, 2])],
        image,
        y4,
        {"w": m.f32(4, 2, 3, 3)},
    )
    m.add(
        "transposed_output_shape",
        11,
        [node("ConvTranspose", "x w", "y", output_shape=[14, 15], strides=[2, 2])],
        image,
        y4,
        {"w": m.f32(4, 2, 3, 3)},
    )
    for transform in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"):
        for mode in ("nearest", "linear"):
            for nearest in ("floor", "round_prefer_floor") if mode == "nearest" else ("round_prefer_floor",):
                name = f"resize_{mode}_{transform}" + ("_floor" if nearest == "floor" else "")
                attributes = {"coordinate_transformation_mode": transform, "mode": mode, "nearest_mode": nearest}
                m.add(
                    name,
                    13,
                    [node("Resize", "x - - sizes", "y", **attributes)],
                    image,
                    y4,
                    {"sizes": np.array([3, 4, 10, 4], np.int64)},
                )

    vector = {"x": m.f32(3, 4)}
    as_floats = helper.make_tensor("c", FLOAT, [4], [0.5, -1.0, 2.0, 0.25])
    m.add("constant_float_data", 13, [node("Mul", "x c", "y")], vector, {"y": (FLOAT, 2)}, {"c": as_floats})
    half = numpy_helper.from_array(m.f32(4).astype(np.float16), "h")
    m.add(
        "constant_float16",
        13,
        [node("Cast", "h", "c", to=FLOAT), node("Add", "x c", "y")],
        vector,
        {"y": (FLOAT, 2)},
        {"h": half},
    )
    half_bits = helper.make_tensor("h", TensorProto.FLOAT16, [4], [1.5, -0.25, 3.0, 0.125])
    m.add(
        "constant_float16_int32_data",
        13,
        [node("Cast", "h", "c", to=FLOAT), node("Add", "x c", "y")],
        vector,
        {"y": (FLOAT, 2)},
        {"h": half_bits},
    )
    double = np.array([0.1, 0.2, 0.3, 0.4])
    m.add(
        "constant_double",
        13,
        [node("Cast", "d", "c", to=FLOAT), node("Sub", "x c", "y")],
        vector,
        {"y": (FLOAT, 2)},
        {"d": double},
    )
    nodes = [
        node("Constant", "", "f", value_float=0.5),
        node("Constant", "", "fs", value_floats=[1.0, 2.0, 3.0, 4.0]),
        node("Constant", "", "shape", value_ints=[-1, 2, 2]),
        node("Mul", "x f", "a"),
        node("Add", "a fs", "b"),
        node("Reshape", "b shape", "y"),
    ]
    m.add("constant_nodes", 13, nodes, vector, {"y": (FLOAT, 3)})
    nodes = [
        node("Shape", "x", "s"),
        node("ConstantOfShape", "s", "ones", value=numpy_helper.from_array(np.array([1.5], np.float32))),
        node("Add", "x ones", "y"),
    ]
    m.add("constant_of_shape", 13, nodes, vector, {"y": (FLOAT, 2)})


def other_operators(m):
    """Operators and forms that torch's older exporter does not write."""
    x, image, square = {"x": m.f32(3, 4, 6)}, {"x": m.f32(3, 4, 6, 6)}, {"x": m.f32(3, 4)}
    y2, y3, y4 = {"y": (FLOAT, 2)}, {"y": (FLOAT, 3)}, {"y": (FLOAT, 4)}
    m.add("hard_swish", 14, [node("HardSwish", "x", "y")], x, y3)
    m.add("hard_sigmoid", 13, [node("HardSigmoid", "x", "y", alpha=0.25, beta=0.4)], x, y3)
    m.add("gelu", 20, [node("Gelu", "x", "a"), node("Gelu", "a", "y", approximate="tanh")], x, y3)
    m.add("mish", 18, [node("Mish", "x", "y")], x, y3)
    m.add("softsign", 13, [node("Softsign", "x", "y")], x, y3)
    m.add("thresholded_relu", 13, [node("ThresholdedRelu", "x", "y", alpha=0.3)], x, y3)
    m.add("celu", 13, [node("Celu", "x", "y", alpha=0.8)], x, y3)
    m.add("lrn", 13, [node("LRN", "x", "y", size=3, alpha=0.01, beta=0.75, bias=1.0)], image, y4)
    m.add("global_max_pool", 13, [node("GlobalMaxPool", "x", "y")], image, y4)
    m.add(
        "group_norm",
        21,
        [node("GroupNormalization", "x s b", "y", num_groups=2)],
        image,
        y4,
        {"s": m.f32(4), "b": m.f32(4)},
    )
    m.add(
        "layer_norm_no_bias",
        17,
        [node("LayerNormalization", "x s", "y", axis=-1, epsilon=1e-6)],
        x,
        y3,
        {"s": m.f32(6)},
    )
    m.add(
        "pad_axes",
        18,
        [node("Pad", "x pads - axes", "y", mode="edge")],
        image,
        y4,
        {"pads": np.array([1, 2, 0, 1], np.int64), "axes": np.array([2, -1], np.int64)},
    )
    m.add(
        "pad_wrap",
        19,
        [node("Pad", "x pads", "y", mode="wrap")],
        x,
        y3,
        {"pads": np.array([0, 0, 1, 0, 0, 2], np.int64)},
    )
    m.add(
        "reduce_axes_input",
        18,
        [
            node("ReduceMean", "x axes", "a", keepdims=0),
            node("ReduceMax", "x axes", "b", keepdims=1),
            node("ReduceMean", "x", "c", keepdims=0),
        ],
        x,
        {"a": (FLOAT, 2), "b": (FLOAT, 3), "c": (FLOAT, 0)},
        {"axes": np.array([-1], np.int64)},
    )
    m.add(
        "split_count",
        18,
        [node("Split", "x", "a b c d", axis=2, num_outputs=4)],
        {"x": m.f32(3, 4, 7)},
        {k: (FLOAT, 3) for k in "abcd"},
    )
    m.add(
        "resize_axes",
        18,
        [node("Resize", "x - - sizes", "y", mode="linear", axes=[2, 3])],
        image,
        y4,
        {"sizes": np.array([9, 5], np.int64)},
    )
    m.add(
        "resize_antialias",
        18,
        [node("Resize", "x - - sizes", "y", mode="linear", axes=[2, 3], antialias=1)],
        image,
        y4,
        {"sizes": np.array([3, 4], np.int64)},
    )
    m.add(
        "shape_slice",
        15,
        [node("Shape", "x", "s", start=1, end=-1), node("Shape", "x", "t")],
        image,
        {"s": (INT64, 1), "t": (INT64, 1)},
    )
    m.add(
        "reshape_zero",
        14,
        [node("Reshape", "x shape", "y", allowzero=0)],
        x,
        {"y": (FLOAT, 4)},
        {"shape": np.array([0, 0, -1, 2], np.int64)},
    )
    m.add(
        "flatten_axis",
        13,
        [node("Flatten", "x", "y", axis=-1), node("Flatten", "x", "z", axis=0)],
        x,
        {"y": (FLOAT, 2), "z": (FLOAT, 2)},
    )
    m.add(
        "gather_negative",
        13,
        [node("Gather", "x i", "y", axis=-1)],
        x,
        y4,
        {"i": np.array([[-1, 0], [2, -6]], np.int64)},
    )
    m.add(
        "gather_elements",
        13,
        [node("GatherElements", "x i", "y", axis=1)],
        square,
        y2,
        {"i": np.array([[0, -1], [3, 1], [2, 2]], np.int64)},
    )
    m.add(
        "slice_backwards",
        13,
        [node("Slice", "x s e a t", "y")],
        x,
        y3,
        {
            "s": np.array([-1, 5], np.int64),
            "e": np.array([-100, 0], np.int64),
            "a": np.array([1, 2], np.int64),
            "t": np.array([-1, -2], np.int64),
        },
    )
    m.add("tile", 13, [node("Tile", "x r", "y")], x, y3, {"r": np.array([1, 2, 3], np.int64)})
    m.add(
        "variadic",
        13,
        [node("Sum", "x x c", "a"), node("Max", "a c x", "b"), node("Min", "b c", "d"), node("Mean", "d x", "y")],
        x,
        y3,
        {"c": m.f32(4, 1)},
    )
    m.add(
        "power",
        15,
        [node("Pow", "x two", "a"), node("Neg", "a", "b"), node("Reciprocal", "three", "r"), node("Mul", "b r", "y")],
        x,
        y3,
        {"two": np.array(2, np.int64), "three": np.array(3, np.float32)},
    )
    m.add(
        "rounding",
        13,
        [
            node("Mul", "x c", "a"),
            node("Round", "a", "b"),
            node("Floor", "a", "d"),
            node("Ceil", "a", "e"),
            node("Sign", "a", "f"),
        ],
        x,
        {k: (FLOAT, 3) for k in "bdef"},
        {"c": np.array(4, np.float32)},
    )
    m.add(
        "argmax_last",
        13,
        [
            node("Round", "x", "r"),
            node("ArgMax", "r", "y", axis=2, keepdims=0, select_last_index=1),
            node("ArgMin", "r", "z", axis=1),
        ],
        x,
        {"y": (INT64, 2), "z": (INT64, 3)},
    )
    m.add(
        "logic",
        13,
        [
            node("Greater", "x c", "a"),
            node("Less", "x d", "b"),
            node("Xor", "a b", "e"),
            node("Not", "e", "f"),
            node("And", "a f", "g"),
            node("Where", "g x c", "y"),
        ],
        x,
        y3,
        {"c": np.array(0.1, np.float32), "d": np.array(0.4, np.float32)},
    )
    m.add(
        "top_k",
        13,
        [node("TopK", "x k", "v i", axis=-1)],
        x,
        {"v": (FLOAT, 3), "i": (INT64, 3)},
        {"k": np.array([3], np.int64)},
    )
    m.add(
        "depth_to_space",
        13,
        [node("DepthToSpace", "x", "a", blocksize=2, mode="DCR"), node("SpaceToDepth", "a", "y", blocksize=2)],
        image,
        y4,
    )
    m.add("einsum", 13, [node("Einsum", "x w", "y", equation="bij,jk->bik")], x, y3, {"w": m.f32(6, 5)})
    m.add(
        "unused_and_identity",
        13,
        [node("Relu", "x", "unused"), node("Identity", "x", "a"), node("Sigmoid", "a", "y")],
        x,
        y3,
    )
    m.add(
        "input_twice",
        13,
        [node("MatMul", "x w", "a"), node("Add", "a a", "b"), node("Concat", "b a b", "y", axis=-1)],
        square,
        y2,
        {"w": m.f32(4, 3)},
    )


def models():
    """(name, model, inputs) of each."""
    maker = Maker()
    for family in (old_forms, layouts, other_operators, quantized, recurrent, control, dynamic):
        family(maker)
    return maker.made
