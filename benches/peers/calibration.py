"""Calibration: `lowbit quantize` beside onnxruntime's quantize_static.

Both read the same preprocessed samples from one .npy file and write an int8
model. Each run is a process of its own, the two tools take turns, and the
table shows the median wall time, the median CPU time, which a busy machine
disturbs less, and the greatest peak of resident memory (that of this small
process, from which the tools are started, at least). onnxruntime's times
are those of quantize_static alone, without starting Python; lowbit's are those
of the whole process, with what its default preset does beyond ranges (codes by
GPTQ, biases, means and deviations of channels) and, as "ranges alone", without.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from samples import images

OURS = ["min-max", "moving-average", "histogram", "percentile", "entropy", "mse"]
RANGES_ALONE = ["--rounding", "nearest", "--correct-bias", "off", "--renormalize=false", "--batch", "1"]
THEIRS = {"MinMax": "min-max", "Percentile": "percentile", "Entropy": "entropy"}


def child(model, samples, method, output):
    """Runs quantize_static and prints its seconds, wall and CPU."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    import onnx

    name = onnx.load(model).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.samples = iter(np.load(samples, mmap_mode="r"))

        def get_next(self):
            x = next(self.samples, None)
            return None if x is None else {name: np.array(x)[None]}

    start, cpu = time.perf_counter(), time.process_time()
    quantize_static(
        model,
        output,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )
    print(json.dumps([time.perf_counter() - start, time.process_time() - cpu]))


def write_samples(path, folder):
    np.save(path, images(folder, 227))


def measured(command):
    """Seconds (wall, CPU), peak resident MiB and output of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(command)} failed")
    seconds = [time.perf_counter() - start, usage.ru_utime + usage.ru_stime]
    return seconds, usage.ru_maxrss / 1024, output


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lowbit", required=True, help="the lowbit binary")
    parser.add_argument("--model", required=True, help="squeezenet1.0_dc.onnx")
    parser.add_argument("--images", required=True, help="folder of calibration images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="calibrators, by lowbit's names")
    parser.add_argument("--child", nargs=2, metavar=("METHOD", "OUTPUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.model, args.images, *args.child)

    with tempfile.TemporaryDirectory() as folder:
        samples, output = Path(folder, "samples.npy"), str(Path(folder, "out.onnx"))
        # In a process of its own: the peak of memory of a process counts what started it.
        writer = multiprocessing.Process(target=write_samples, args=(samples, args.images))
        writer.start()
        writer.join()
        runs = {}
        for _ in range(args.rounds):
            for calibrator in args.only or OURS:
                ours = [args.lowbit, "quantize", args.model, "--data", str(samples), "--calibrator", calibrator]
                for tool, flags in (("lowbit", []), ("lowbit, ranges alone", RANGES_ALONE)):
                    seconds, peak, _ = measured([*ours, *flags, "--output", output])
                    runs.setdefault((tool, calibrator), []).append((seconds, peak))
                for method, same in THEIRS.items():
                    if same == calibrator:
                        theirs = [sys.executable, __file__, "--lowbit", "", "--model", args.model]
                        theirs += ["--images", str(samples), "--child", method, output]
                        _, peak, printed = measured(theirs)
                        seconds = json.loads(printed.splitlines()[-1])
                        runs.setdefault(("onnxruntime", calibrator), []).append((seconds, peak))
    print("| tool | calibrator | wall s | CPU s | peak MiB |\n|---|---|---|---|---|")
    for (tool, calibrator), taken in sorted(runs.items(), key=lambda run: run[0][1]):
        wall, cpu = (statistics.median(s[i] for s, _ in taken) for i in range(2))
        peak = max(peak for _, peak in taken)
        print(f"| {tool} | {calibrator} | {wall:.2f} | {cpu:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
