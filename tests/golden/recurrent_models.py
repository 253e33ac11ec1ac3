"""Recurrent operators with the options that exporters use, and Einsum."""

import numpy as np

from maker import FLOAT, node

BATCH, STEPS, INPUT, HIDDEN = 3, 6, 4, 5


def weights(m, gates, directions):
    """W, R and B."""
    rows = gates * HIDDEN
    return {"w": m.f32(directions, rows, INPUT), "r": m.f32(directions, rows, HIDDEN), "b": m.f32(directions, 2 * rows)}


def steps_first():
    """x, `[batch, steps, input]`, with the steps first, as xt."""
    return node("Transpose", "x", "xt", perm=[1, 0, 2])


def states(m, directions, names):
    """First states, `[batch, directions, hidden]`, and what puts the directions first, with a t behind the name."""
    values = {name: m.f32(BATCH, directions, HIDDEN) for name in names}
    return values, [node("Transpose", name, f"{name}t", perm=[1, 0, 2]) for name in names]


def recurrent(m):
    """All take x as [batch, steps, input] and states as [batch, directions, hidden], so that the batch is dynamic."""
    x = {"x": m.f32(BATCH, STEPS, INPUT)}
    lengths = {"n": np.array([6, 1, 4], np.int32)}

    def add(name, opset, operator, constants, inputs=x, before=()):
        ranks = {key: 4 if key == "y" else 3 for key in operator.output if key}
        outputs = {key: (FLOAT, rank) for key, rank in ranks.items()}
        m.add(name, opset, [steps_first(), *before, operator], inputs, outputs, constants)

    both = {"direction": "bidirectional", "hidden_size": HIDDEN}
    add("gru_bidirectional", 14, node("GRU", "xt w r b", "y h", **both), weights(m, 3, 2))
    given, before = states(m, 1, ["h0"])
    add(
        "gru_reverse_lengths",
        7,
        node(
            "GRU",
            "xt w r b n h0t",
            "y h",
            direction="reverse",
            hidden_size=HIDDEN,
            linear_before_reset=1,
            activations=["HardSigmoid", "Softsign"],
            activation_alpha=[0.3],
            activation_beta=[0.4],
        ),
        weights(m, 3, 1) | lengths,
        x | given,
        before,
    )
    add(
        "rnn_relu",
        14,
        node("RNN", "xt w r", "y h", hidden_size=HIDDEN, activations=["Relu"]),
        {key: value for key, value in weights(m, 1, 1).items() if key != "b"},
    )
    add("rnn_lengths", 7, node("RNN", "xt w r b n", "- h", **both), weights(m, 1, 2) | lengths)
    given, before = states(m, 2, ["h0", "c0"])
    peepholes = weights(m, 4, 2) | lengths | {"p": m.f32(2, 3 * HIDDEN)}
    add("lstm_peepholes", 14, node("LSTM", "xt w r b n h0t c0t p", "y h c", **both), peepholes, x | given, before)
    add(
        "lstm_clip",
        7,
        node(
            "LSTM",
            "xt w r b - - - p",
            "- h c",
            hidden_size=HIDDEN,
            clip=0.4,
            input_forget=1,
            activations=["Sigmoid", "LeakyRelu", "ScaledTanh"],
            activation_alpha=[0.2, 1.7],
            activation_beta=[0.6],
        ),
        weights(m, 4, 1) | {"p": m.f32(1, 3 * HIDDEN)},
    )
    functions = ["Affine", "Elu", "Softplus", "Sigmoid", "ThresholdedRelu", "Relu"]
    add(
        "lstm_activations",
        14,
        node("LSTM", "xt w r b", "y", activations=functions, activation_alpha=[0.4, 0.7, 0.1], activation_beta=[0.2], **both),
        weights(m, 4, 2),
    )
    einsum(m)


def einsum(m):
    """Attention, batches, diagonals, sums, and results that are implied."""
    heads = {key: m.f32(3, 2, 5, 4) for key in "qkv"}
    m.add(
        "einsum_attention",
        13,
        [
            node("Einsum", "q k", "s", equation="bhqd,bhkd->bhqk"),
            node("Softmax", "s", "w", axis=-1),
            node("Einsum", "w v", "y", equation="bhqk,bhkd->bhqd"),
        ],
        heads,
        {"y": (FLOAT, 4)},
    )
    cases = [
        ("implied", "bij,bjk", [(3, 2, 4), (3, 4, 5)], 2),
        ("diagonal", "ii->i", [(4, 4)], 1),
        ("trace", "...ii->...", [(3, 2, 4, 4)], 2),
        ("ellipsis", "...ij,...jk->...ik", [(3, 2, 3, 4), (1, 1, 4, 5)], 4),
        ("three", "bi, ij, bjk -> kb", [(3, 4), (4, 2), (3, 2, 5)], 2),
        ("outer", "bi,bj->bji", [(3, 4), (3, 2)], 3),
        ("sum", "bij->b", [(3, 4, 2)], 1),
    ]
    for name, equation, shapes, rank in cases:
        values = {key: m.f32(*shape) for key, shape in zip("xyz", shapes)}
        # Only operands of the batch are inputs.
        inputs = {key: value for key, value in values.items() if value.shape[0] == 3} or values
        constants = {key: value for key, value in values.items() if key not in inputs}
        operator = node("Einsum", " ".join(values), "out", equation=equation)
        m.add(f"einsum_{name}", 13, [operator], inputs, {"out": (FLOAT, rank)}, constants)
