"""Latency at batch 1: lowbit, float and int8, beside onnxruntime's float.

The tools take turns, so that what else the machine does meets all alike. The
table shows, in milliseconds, the median of the rounds' medians and, which a
busy machine disturbs less, the least time of all runs.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime


def ours(lowbit, model, threads, runs, flags=()):
    command = [lowbit, "bench", model, "--threads", str(threads), "--runs", str(runs), "--json", *flags]
    latency = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))["latency"]
    return latency["median_ms"], latency["min_ms"]


def session(model, threads, optimized=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = optimized
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def inputs(session, count):
    shape = [d if isinstance(d, int) else 1 for d in session.get_inputs()[0].shape]
    return np.random.default_rng(0).standard_normal([count, *shape[1:]], np.float32)


def theirs(model, threads, runs):
    engine = session(model, threads)
    x = {engine.get_inputs()[0].name: inputs(engine, 1)}
    seconds = []
    for _ in range(runs + 5):
        start = time.perf_counter()
        engine.run(None, x)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[5:]), 1e3 * min(seconds[5:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lowbit", required=True, help="the lowbit binary")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    print("| model | threads | onnxruntime float | lowbit float | lowbit int8 |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            folded, int8, samples = (str(Path(folder, f)) for f in ("folded.onnx", "int8.onnx", "x.npy"))
            # Batch normalization folded into the convolutions, as onnxruntime
            # does when it loads the model.
            np.save(samples, inputs(session(model, 1, optimized=folded), 8))
            quantize = [args.lowbit, "quantize", model, "--data", samples, "--output", int8]
            subprocess.run(quantize, check=True, capture_output=True)
            for threads in (1, 2):
                rounds = [
                    (
                        theirs(model, threads, args.runs),
                        ours(args.lowbit, folded, threads, args.runs, ["--reference"]),
                        ours(args.lowbit, int8, threads, args.runs),
                    )
                    for _ in range(args.rounds)
                ]
                cells = []
                for taken in zip(*rounds):
                    medians, least = zip(*taken)
                    cells.append(f"{statistics.median(medians):.2f} / {min(least):.2f}")
                print(f"| {Path(model).stem} | {threads} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
