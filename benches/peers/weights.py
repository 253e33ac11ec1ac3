"""Latency of products with weights of 4 and 8 bits in lowbit's Session and in onnxruntime's MatMulNBits.

    weights.py --lowbit target/release/lowbit

Each model multiplies its input by several matrices in turn, as many as no cache holds together, so that a product of
one row takes what it takes to read the weights. Both engines read the same file, by turns (see `engines.py`). Its
`accuracy_level` is 0, for products in f32, or 4, for activations in int8; `f32` is a plain MatMul, for comparison with
the products of many rows.

The share of the bandwidth is that of the bytes of codes and scales per second in what the example `bandwidth` of
lowbit-kernels reads on as many threads in the same round, best of both. Times are of one matrix.
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines import OURS, Lowbit, Peak, Peer, measure, numbers

PEER = "onnxruntime"
SHAPES = ((768, 3072), (4096, 4096), (4096, 11008))
FORMATS = ((4, 32), (4, 128), (8, 32), (8, 128))
LEVELS = (0, 4)


def weight_bytes(k, n, bits, block):
    return k * n * bits // 8 + 4 * n * (k // block)


def write(path, k, n, count, bits=None, block=None, level=None):
    """A model of `count` products of x, `[N, k]`, with matrices `[k, n]`; in f32 without `bits`."""
    random = np.random.default_rng(0)
    nodes, constants = [], []
    for i in range(count):
        if bits:
            values = {
                f"b{i}": random.integers(0, 256, (n, k // block, block * bits // 8), np.uint8),
                f"s{i}": random.uniform(0.01, 0.02, n * (k // block)).astype(np.float32),
            }
            attributes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": level}
            node = helper.make_node("MatMulNBits", ["x", *values], [f"y{i}"], domain="com.microsoft", **attributes)
        else:
            values = {f"w{i}": random.standard_normal((k, n), np.float32)}
            node = helper.make_node("MatMul", ["x", *values], [f"y{i}"])
        constants += [numpy_helper.from_array(value, name) for name, value in values.items()]
        nodes.append(node)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", k])
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["N", n]) for i in range(count)]
    graph = helper.make_graph(nodes, "weights", [x], outputs, constants)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)


def compare(args, folder, rows, shape, form, level, threads):
    """What one configuration takes: a row of the table."""
    k, n = shape
    size = weight_bytes(k, n, *form) if form else 4 * k * n
    count = -(-args.bytes // size) if rows == 1 else 1
    path = folder / "weights.onnx"
    # In a process of its own: to the peak memory of a process Linux adds that of the one that started it.
    writer = multiprocessing.get_context("spawn").Process(
        target=write, args=(path, k, n, count, *(form or (None, None)), level)
    )
    writer.start()
    writer.join()
    bandwidth = Peak(Path(args.lowbit).parent / "examples" / "bandwidth", threads)
    contenders = {OURS: Lowbit(args.lowbit, path, rows, threads), PEER: Peer(PEER, "float", path, rows, threads)}
    taken = measure(contenders, args, args.rounds, bandwidth)
    memory = {name: contender.close()[0] for name, contender in contenders.items()}
    medians = {name: [median / count for median, _, _ in turns] for name, turns in taken.items()}
    least = {name: min(least for _, least, _ in turns) / count for name, turns in taken.items()}
    return {
        "rows": rows,
        "shape": shape,
        "form": f"int{form[0]}, {form[1]}" if form else "f32",
        "level": level,
        "threads": threads,
        "median_ms": {name: statistics.median(times) for name, times in medians.items()},
        "least_ms": least,
        "speed_up": statistics.median(b / a for a, b in zip(medians[OURS], medians[PEER])),
        "speed_up_of_least": least[PEER] / least[OURS],
        "bandwidth": bandwidth.best,
        "shares": {name: size / time / 1e6 / bandwidth.best for name, time in least.items()},
        "mib": memory,
        "weights_mib": count * size / 2**20,
    }


HEAD = (
    "| rows | K x N | weights, block | level | threads | lowbit ms | onnxruntime ms | over onnxruntime "
    "| of bandwidth | MiB of weights | MiB |\n|" + "---|" * 11
)


def line(row):
    times = [f"{row['median_ms'][name]:.3f} / {row['least_ms'][name]:.3f}" for name in (OURS, PEER)]
    shares = " / ".join(f"{100 * row['shares'][name]:.0f}" for name in (OURS, PEER))
    cells = [row["rows"], "x".join(map(str, row["shape"])), row["form"], row["level"], row["threads"], *times]
    cells.append(f"{row['speed_up']:.2f} / {row['speed_up_of_least']:.2f}")
    cells.append(f"{shares} % of {row['bandwidth']:.0f} GB/s" if row["rows"] == 1 else "–")
    cells += [f"{row['weights_mib']:.0f}", " / ".join(f"{row['mib'][name]:.0f}" for name in (OURS, PEER))]
    return f"| {' | '.join(map(str, cells))} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lowbit", required=True, help="the lowbit binary; the example bandwidth is beside it")
    parser.add_argument("--rows", type=numbers, default=[1, 32, 128], help="1,32,128")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of runs, about, for an engine in a round")
    parser.add_argument("--tries", type=int, default=3, help="of a turn that other processes disturb")
    parser.add_argument("--bytes", type=int, default=192 << 20, help="of weights that are read in turn for one row")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    args = parser.parse_args()
    table = []
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for rows in args.rows:
            for shape in SHAPES:
                forms = [(form, level) for form in FORMATS for level in LEVELS]
                for form, level in forms + [(None, None)] * (rows > 1):
                    for threads in args.threads:
                        table.append(compare(args, Path(folder), rows, shape, form, level, threads))
                        print(line(table[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
