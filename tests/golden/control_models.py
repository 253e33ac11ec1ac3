"""Branches, loops and scans with the ways in which bodies capture values, and functions of the model's own."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from maker import FLOAT, INT64, node

BOOL = TensorProto.BOOL
BATCH, STEPS, INPUT, HIDDEN = 3, 5, 4, 6


def value(name, kind=FLOAT, rank=None):
    return helper.make_tensor_value_info(name, kind, None if rank is None else [None] * rank)


def body(name, nodes, inputs="", outputs="", constants=()):
    """A body; "i:int" and "c:bool" are scalars that are no f32, and "v:4" is a vector."""
    kinds = {"int": INT64, "bool": BOOL}

    def declared(item):
        name, _, kind = item.partition(":")
        if kind.isdigit():
            return helper.make_tensor_value_info(name, FLOAT, [int(kind)])
        return value(name, kinds[kind], 0) if kind else value(name)

    def values(names):
        return [declared(item) for item in names.split()]

    stored = [numpy_helper.from_array(np.asarray(v), key) for key, v in dict(constants).items()]
    for index, item in enumerate(nodes):
        item.name = f"{name}_{item.op_type}_{index}"
    return helper.make_graph(nodes, name, values(inputs), values(outputs), stored)


def scalar(x, kind=np.float32):
    return np.array(x, kind)


def branches(m):
    x = {"x": m.f32(BATCH, INPUT)}
    y2 = {"y": (FLOAT, 2), "z": (FLOAT, 2)}
    # Both branches of one condition; each reads values of the main graph, and their results differ in shape.
    then = [node("MatMul", "x w", "p"), node("Add", "p b", "then")]
    other = [node("Relu", "doubled", "else")]
    again = [node("Sub", "x doubled", "then2")]
    last = [node("Slice", "x one two one", "else2")]
    m.add(
        "if_captured",
        13,
        [
            node("ReduceSum", "x", "sum", keepdims=0),
            node("Greater", "sum limit", "c"),
            node("Not", "c", "n"),
            node("Add", "x x", "doubled"),
            node("If", "c", "y", then_branch=body("t", then, "", "then"), else_branch=body("e", other, "", "else")),
            node("If", "n", "z", then_branch=body("t2", again, "", "then2"), else_branch=body("e2", last, "", "else2")),
        ],
        x,
        y2,
        {
            "limit": scalar(-1e3),
            "w": m.f32(INPUT, 2),
            "b": m.f32(2),
            "one": np.array([1], np.int64),
            "two": np.array([3], np.int64),
        },
    )
    # As exporters write squeeze(1): the condition follows from shapes, and the branches' ranks differ.
    m.add(
        "if_of_shapes",
        11,
        [
            node("Shape", "x", "s"),
            node("Gather", "s at", "d"),
            node("Equal", "d one", "c"),
            node(
                "If",
                "c",
                "y",
                then_branch=body("t", [node("ReduceSum", "x", "then", axes=[1], keepdims=0)], "", "then"),
                else_branch=body("e", [node("Neg", "x", "else")], "", "else"),
            ),
        ],
        x,
        {"y": (FLOAT, 1)},
        {"at": scalar(1, np.int64), "one": scalar(INPUT, np.int64)},
    )
    large = m.f32(24, 24)
    # A large weight that both branches capture: it is stored once.
    m.add(
        "if_shared_weight",
        16,
        [
            node("ReduceMax", "x", "most", keepdims=0),
            node("Less", "most limit", "c"),
            node(
                "If",
                "c",
                "y",
                then_branch=body("t", [node("MatMul", "x w", "then")], "", "then"),
                else_branch=body("e", [node("MatMul", "x w", "q"), node("Tanh", "q", "else")], "", "else"),
            ),
        ],
        {"x": m.f32(BATCH, 24)},
        {"y": (FLOAT, 2)},
        {"limit": scalar(-1e3), "w": large},
    )


def loops(m):
    x = {"x": m.f32(BATCH, INPUT)}
    inner = [
        node(
            "If",
            "even",
            "next",
            then_branch=body("t", [node("MatMul", "v w", "p"), node("Add", "p base", "then")], "", "then"),
            else_branch=body("e", [node("Mul", "v half", "q"), node("Sub", "q w0", "else")], "", "else"),
        )
    ]
    m.add(
        "loop_of_branches",
        13,
        [
            node("Relu", "x", "base"),
            node("Gather", "w zero", "w0"),
            node(
                "Loop",
                "trips - x",
                "y",
                body=body(
                    "b",
                    [
                        node("Mod", "i two", "odd"),
                        node("Equal", "odd zero", "even"),
                        *inner,
                        node("Identity", "c", "goes"),
                    ],
                    "i:int c:bool v",
                    "goes:bool next",
                    {"half": scalar(0.5)},
                ),
            ),
        ],
        x,
        {"y": (FLOAT, 2)},
        {
            "trips": scalar(3, np.int64),
            "w": m.f32(INPUT, INPUT),
            "two": scalar(2, np.int64),
            "zero": scalar(0, np.int64),
        },
    )
    m.add(
        "loop_while",
        11,
        [
            node("Abs", "x", "a"),
            node(
                "Loop",
                "- true a",
                "y count",
                body=body(
                    "b",
                    [
                        node("Add", "v a", "next"),
                        node("ReduceMax", "next", "most", keepdims=0),
                        node("Less", "most limit", "goes"),
                        node("Cast", "i", "step", to=FLOAT),
                    ],
                    "i:int c:bool v",
                    "goes:bool next step",
                    {"limit": scalar(20.0)},
                ),
            ),
        ],
        x,
        {"y": (FLOAT, 2), "count": (FLOAT, 1)},
        {"true": scalar(True, bool)},
    )
    # A value that grows, with as many steps as the input has rows, and one result a step.
    m.add(
        "loop_growing",
        13,
        [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "n"),
            node(
                "Loop",
                "n true start",
                "all rows",
                body=body(
                    "b",
                    [
                        node("Gather", "x i", "row", axis=0),
                        node("Mul", "row row", "squared"),
                        node("Unsqueeze", "squared axes", "one"),
                        node("Concat", "one v", "next", axis=0),
                    ],
                    "i:int c:bool v",
                    "c:bool next row",
                ),
            ),
            node("ReduceSum", "all axes", "y", keepdims=0),
        ],
        x,
        {"y": (FLOAT, 1), "all": (FLOAT, 2), "rows": (FLOAT, 2)},
        {
            "zero": scalar(0, np.int64),
            "true": scalar(True, bool),
            "axes": np.array([0], np.int64),
            "start": np.zeros((0, INPUT), np.float32),
        },
    )
    def idle(name):
        nodes = [node("Neg", f"{name}v", f"{name}next"), node("ReduceSum", f"{name}v axes", f"{name}one", keepdims=0)]
        inputs, outputs = f"{name}i:int {name}c:bool {name}v", f"{name}c:bool {name}next {name}one:{INPUT}"
        return body(name, nodes, inputs, outputs)

    m.add(
        "loop_no_iterations",
        13,
        [
            node("Loop", "none true x", "y ys", body=idle("a")),
            node("Loop", "less - x", "z zs", body=idle("b")),
            node("Loop", "some false x", "u us", body=idle("d")),
        ],
        x,
        {key: (FLOAT, 2) for key in ["y", "ys", "z", "zs", "u", "us"]},
        {
            "axes": np.array([0], np.int64),
            "none": scalar(0, np.int64),
            "less": scalar(-2, np.int64),
            "some": scalar(4, np.int64),
            "true": scalar(True, bool),
            "false": scalar(False, bool),
        },
    )
    inside = body(
        "in",
        [node("Add", "u v", "u1"), node("Mul", "u1 x", "u2"), node("Identity", "k", "k1")],
        "j:int k:bool u",
        "k1:bool u2",
    )
    m.add(
        "loop_in_loop",
        16,
        [
            node(
                "Loop",
                "trips - x",
                "y",
                body=body("out", [node("Loop", "trips c v", "next", body=inside)], "i:int c:bool v", "c:bool next"),
            )
        ],
        x,
        {"y": (FLOAT, 2)},
        {"trips": scalar(2, np.int64)},
    )


def scans(m):
    sequence = {"x": m.f32(BATCH, STEPS, INPUT), "z": m.f32(BATCH, INPUT, STEPS)}
    m.add(
        "scan_directions",
        9,
        [
            node(
                "Scan",
                "start x z",
                "last a b",
                num_scan_inputs=2,
                scan_input_axes=[1, 2],
                scan_input_directions=[0, 1],
                scan_output_axes=[1, 0],
                scan_output_directions=[1, 0],
                body=body(
                    "b",
                    [
                        node("Add", "xt zt", "both"),
                        node("Mul", "h half", "decayed"),
                        node("Add", "decayed both", "h1"),
                        node("Tanh", "h1", "at"),
                        node("Neg", "both", "bt"),
                    ],
                    "h xt zt",
                    "h1 at bt",
                    {"half": scalar(0.5)},
                ),
            )
        ],
        sequence | {"start": m.f32(BATCH, INPUT)},
        {"last": (FLOAT, 2), "a": (FLOAT, 3), "b": (FLOAT, 3)},
    )
    cell = [
        node("MatMul", "xt w", "gx"),
        node("MatMul", "h r", "gh"),
        node("Add", "gx gh", "g0"),
        node("Add", "g0 b", "g"),
        node("Split", "g", "gi gf go gc", axis=1),
        node("Sigmoid", "gi", "i"),
        node("Sigmoid", "gf", "f"),
        node("Sigmoid", "go", "o"),
        node("Tanh", "gc", "cc"),
        node("Mul", "f c", "kept"),
        node("Mul", "i cc", "new"),
        node("Add", "kept new", "c1"),
        node("Tanh", "c1", "ct"),
        node("Mul", "o ct", "h1"),
        node("Identity", "h1", "yt"),
    ]
    m.add(
        "scan_lstm",
        13,
        [
            node("Transpose", "x", "steps", perm=[1, 0, 2]),
            node("Scan", "h0 c0 steps", "hn cn ys", num_scan_inputs=1, body=body("cell", cell, "h c xt", "h1 c1 yt", {
                "w": m.f32(INPUT, 4 * HIDDEN),
                "r": m.f32(HIDDEN, 4 * HIDDEN),
                "b": m.f32(4 * HIDDEN),
            })),
            node("MatMul", "hn v", "y"),
        ],
        {"x": sequence["x"], "h0": m.f32(BATCH, HIDDEN), "c0": m.f32(BATCH, HIDDEN)},
        {"y": (FLOAT, 2), "cn": (FLOAT, 2), "ys": (FLOAT, 3)},
        {"v": m.f32(HIDDEN, 2)},
    )


def functions(m):
    """Functions that call functions, and attributes that refer to those of the call."""
    domain, opset = "lowbit.fixtures", 18
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(domain, 1)]

    def refers(item, name, to, kind):
        attribute = item.attribute.add(name=name, ref_attr_name=to)
        attribute.type = kind
        return item

    leaky = refers(node("LeakyRelu", "a", "b"), "alpha", "slope", 1)
    linear = helper.make_function(
        domain, "Linear", ["a", "w", "bias"], ["y"],
        [refers(node("Gemm", "a w bias", "y"), "transB", "turned", 2)], imports, ["turned"],
    )
    inner = helper.make_function(domain, "Act", ["a"], ["b"], [leaky], imports, ["slope"])
    call = node("Act", "h", "r", domain=domain)
    refers(call, "slope", "slope", 1)
    default = node("Linear", "x w2 bias", "h", domain=domain)
    refers(default, "turned", "turned", 2)
    choice = node(
        "If",
        "big",
        "y",
        then_branch=body("t", [node("Act", "h", "small", domain=domain, slope=0.5)], "", "small"),
        else_branch=body("e", [node("Add", "r w0", "else")], "", "else"),
    )
    block = helper.make_function(
        domain,
        "Block",
        ["x", "w2", "bias"],
        ["y", "r"],
        [
            default,
            call,
            node("ReduceMax", "h", "most", keepdims=0),
            node("Constant", "", "limit", value_float=1e3),
            node("Constant", "", "w0", value_float=0.25),
            node("Greater", "most limit", "big"),
            choice,
        ],
        imports,
        ["turned"],
        [helper.make_attribute("slope", 0.1)],
    )
    w = m.f32(HIDDEN, INPUT)
    m.add(
        "functions",
        opset,
        [
            node("Block", "x w b", "first r1", domain=domain, turned=1),
            node("Block", "first w3 b3", "y r2", domain=domain, slope=0.3),
            node("Add", "r1 r1", "z"),
        ],
        {"x": m.f32(BATCH, INPUT)},
        {"y": (FLOAT, 2), "z": (FLOAT, 2)},
        {"w": w, "b": m.f32(HIDDEN), "w3": m.f32(HIDDEN, 2), "b3": m.f32(2)},
        functions=[block, linear, inner],
        imports=imports,
    )


def control(m):
    branches(m)
    loops(m)
    scans(m)
    functions(m)
