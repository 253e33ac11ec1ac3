"""Write nbits/: products with weights of few bits, each model with an .npz of inputs and of onnxruntime's outputs.

Those named `quantizer_*` are made by onnxruntime's own quantizer, the others node by node. See README.md.
"""

import shutil

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

from golden import HERE

FOLDER = HERE / "nbits"
ROWS = 3
random = np.random.default_rng(41)


def model(nodes, k, n, constants, imports):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", k])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", n])
    constants = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "nbits", [x], [y], constants)
    imports = [helper.make_opsetid(domain, version) for domain, version in imports]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, producer_name="lowbit-fixtures")


def by_node(k, n, bits, block, zeros=None, bias=False, level=0):
    """A MatMulNBits; `zeros` is the type of the zero points."""
    blocks = -(-k // block)
    constants = {
        "b": random.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8),
        "s": random.uniform(0.01, 0.1, n * blocks).astype(np.float32),
    }
    if zeros == "codes":
        constants["z"] = random.integers(0, 256, n * -(-blocks * bits // 8)).astype(np.uint8)
    if zeros == "floats":
        constants["z"] = random.uniform(0, 2**bits - 1, n * blocks).astype(np.float32)
    if bias:
        constants["bias"] = random.standard_normal(n).astype(np.float32)
    inputs = ["x", "b", "s", "z" if zeros else "", "", "bias" if bias else ""]
    while not inputs[-1]:
        inputs.pop()
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", inputs, ["y"], name="y", domain="com.microsoft", **attributes)
    return model([node], k, n, constants, [("", 21), ("com.microsoft", 1)])


def by_quantizer(k, n, block, symmetric, form):
    w = (random.standard_normal((k, n)) * 0.1).astype(np.float32)
    made = model([helper.make_node("MatMul", ["x", "w"], ["y"], name="y")], k, n, {"w": w}, [("", 21)])
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, quant_format=form)
    quantizer = MatMulNBitsQuantizer(made, algo_config=config)
    quantizer.process()
    return quantizer.model.model


def cases():
    for bits in (4, 8):
        for k, n, block in ((64, 16, 16), (96, 33, 32), (70, 17, 64), (300, 5, 128), (100, 20, 256)):
            yield f"{bits}_bits_{k}_{n}_{block}", by_node(k, n, bits, block)
            yield f"{bits}_bits_{k}_{n}_{block}_codes_level_1", by_node(k, n, bits, block, "codes", level=1)
            yield f"{bits}_bits_{k}_{n}_{block}_level_4", by_node(k, n, bits, block, level=4)
            yield f"{bits}_bits_{k}_{n}_{block}_codes_level_4", by_node(k, n, bits, block, "codes", level=4)
    yield "4_bits_floats", by_node(64, 16, 4, 32, "floats")
    yield "4_bits_bias", by_node(64, 16, 4, 32, "codes", bias=True)
    for form in (QuantFormat.QOperator, QuantFormat.QDQ):
        for symmetric in (True, False):
            name = f"quantizer_{form.name}_{'symmetric' if symmetric else 'asymmetric'}"
            yield name.lower(), by_quantizer(96, 24, 32, symmetric, form)


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    for name, made in cases():
        path = FOLDER / f"{name}.onnx"
        onnx.save(made, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        # Of a DequantizeLinear and a MatMul it makes a MatMulNBits: one that computes in f32.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        x = random.standard_normal((ROWS, session.get_inputs()[0].shape[1])).astype(np.float32)
        np.savez(path.with_suffix(".npz"), x=x, y=session.run(["y"], {"x": x})[0])


if __name__ == "__main__":
    main()
