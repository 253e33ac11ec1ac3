"""onnxruntime's DynamicQuantizeLSTM: as its quantize_dynamic writes it, and with the operator's options."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from maker import FLOAT, node
from recurrent_models import HIDDEN, INPUT, STEPS, states, steps_first

BATCH = 3
BOTH = {"direction": "bidirectional", "hidden_size": HIDDEN}


def dynamic(m):
    x = {"x": m.f32(BATCH, STEPS, INPUT)}
    lengths = {"n": np.array([6, 1, 4], np.int32)}

    def codes(name, *shape, low=-127, high=128, zero=None, per_channel=True):
        """Weights [directions, depth, columns], their scales and zero points."""
        dtype = np.uint8 if low >= 0 else np.int8
        of_scale = (shape[0], shape[2]) if per_channel else shape[:1]
        return {
            name: m.random.integers(low, high, shape).astype(dtype),
            f"{name}s": m.random.uniform(0.002, 0.008, of_scale).astype(np.float32),
            f"{name}z": np.full(of_scale, zero or 0, dtype),
        }

    def weights(directions, **options):
        columns = 4 * HIDDEN
        return {
            **codes("w", directions, INPUT, columns, **options),
            **codes("r", directions, HIDDEN, columns, **options),
            "b": m.f32(directions, 2 * columns),
        }

    def add(name, inputs, outputs, constants, given=x, before=(), **attributes):
        operator = node("DynamicQuantizeLSTM", f"xt {inputs} ws wz rs rz", outputs, **attributes)
        operator.domain = "com.microsoft"
        made = {key: (FLOAT, 4 if key == "y" else 3) for key in operator.output if key}
        imports = [helper.make_opsetid("", 14), helper.make_opsetid("com.microsoft", 1)]
        m.add(name, 14, [steps_first(), *before, operator], given, made, constants, imports=imports)

    add("dynamic_lstm", "w r b - - - -", "y h c", weights(1), hidden_size=HIDDEN)
    add("dynamic_lstm_tensor", "w r b - - - -", "y h c", weights(1, per_channel=False), hidden_size=HIDDEN)
    unsigned = weights(2, low=0, high=256, zero=117, per_channel=False)
    add("dynamic_lstm_uint8", "w r b - - - -", "y h", unsigned, **BOTH)
    add("dynamic_lstm_uint8_channels", "w r b - - - -", "y", weights(2, low=0, high=256, zero=128), **BOTH)
    bare = {key: value for key, value in weights(1).items() if key != "b"}
    add("dynamic_lstm_reverse", "w r - - - - -", "y h c", bare, direction="reverse", hidden_size=HIDDEN)
    given, before = states(m, 2, ["h0", "c0"])
    peepholes = weights(2) | lengths | {"p": m.f32(2, 3 * HIDDEN)}
    add("dynamic_lstm_peepholes", "w r b n h0t c0t p", "y h c", peepholes, x | given, before, **BOTH)
    add(
        "dynamic_lstm_functions",
        "w r b - - - -",
        "y h c",
        weights(1),
        hidden_size=HIDDEN,
        clip=0.7,
        input_forget=1,
        activations=["HardSigmoid", "LeakyRelu", "Softsign"],
        activation_alpha=[0.3, 0.2],
        activation_beta=[0.4],
    )
    written(m, x)


def written(m, x):
    """What onnxruntime's own tool makes of a float LSTM."""
    rows = 4 * HIDDEN
    constants = {"w": m.f32(2, rows, INPUT), "r": m.f32(2, rows, HIDDEN), "b": m.f32(2, 2 * rows)}
    lstm = node("LSTM", "xt w r b", "y h c", **BOTH)
    m.add("float", 14, [steps_first(), lstm], x, {"y": (FLOAT, 4), "h": (FLOAT, 3), "c": (FLOAT, 3)}, constants)
    _, model, inputs = m.made.pop()
    for name, per_channel in [("dynamic_lstm_written", False), ("dynamic_lstm_written_channels", True)]:
        made = quantized(model, per_channel)
        made.graph.name = name
        m.made.append((f"{name}_14", made, inputs))


def quantized(model, per_channel):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        quantize_dynamic(path, path, per_channel=per_channel, weight_type=QuantType.QInt8)
        made = onnx.load(path)
    del made.metadata_props[:]
    return made
