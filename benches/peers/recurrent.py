"""Latency of an LSTM in float and with dynamic int8, in lowbit, onnxruntime and torch.

    recurrent.py --lowbit target/release/lowbit

One layer of 256 inputs and a state of 512, over 64 steps. lowbit and onnxruntime run the same files: a float LSTM, and
the DynamicQuantizeLSTM that onnxruntime's quantize_dynamic makes of it, with a scale for each gate and unit. torch runs
its own nn.LSTM and what its quantize_dynamic makes of that. Turns, cells and columns are those of `engines.py`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import engines
import worker

STEPS, INPUT, HIDDEN = 64, 256, 512
GOAL = 1.3


class Torch(engines.Peer):
    """torch, in a process that lives until `close`."""

    def __init__(self, kind, batch, threads):
        command = [sys.executable, __file__, "--torch", kind, str(batch), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.before = float(self.answer()[1])


def serve_torch(kind, batch, threads):
    """What `worker.py` does, with torch."""
    import torch

    torch.set_num_threads(threads)
    before = worker.peak()
    model = torch.nn.Sequential(torch.nn.LSTM(INPUT, HIDDEN)).eval()
    if kind == "int8":
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.LSTM}, torch.qint8)
    x = torch.from_numpy(worker.sample([STEPS, batch, INPUT]))
    print("ready", before, flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            warm_up, runs = map(int, line.split())
            for _ in range(warm_up):
                model(x)
            taken = []
            for _ in range(runs):
                start = time.perf_counter()
                model(x)
                taken.append(1e3 * (time.perf_counter() - start))
            print(*taken, flush=True)
    print(worker.peak(), flush=True)


def files(folder, batch):
    """The float and the int8 file, of a fixed batch."""
    # In a process of its own: to the peak memory of a process Linux adds that of the one that started it.
    subprocess.run([sys.executable, __file__, "--files", folder, str(batch)], check=True, capture_output=True)
    return {kind: Path(folder) / f"lstm_{batch}.{kind}.onnx" for kind in ("float", "int8")}


def write(folder, batch):
    """Writes them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic

    random = np.random.default_rng(0)

    def weights(*shape):
        return (random.uniform(-1, 1, shape) / HIDDEN**0.5).astype(np.float32)

    rows = 4 * HIDDEN
    constants = {"w": weights(1, rows, INPUT), "r": weights(1, rows, HIDDEN), "b": weights(1, 2 * rows)}
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], "lstm", hidden_size=HIDDEN)],
        "lstm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, batch, INPUT])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [STEPS, 1, batch, HIDDEN])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    of_float, of_int8 = (Path(folder) / f"lstm_{batch}.{kind}.onnx" for kind in ("float", "int8"))
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), of_float)
    quantize_dynamic(of_float, of_int8, per_channel=True, weight_type=QuantType.QInt8)


HEAD = (
    "| type | batch | threads | lowbit ms | onnxruntime ms | torch ms | over onnxruntime | over torch | GMAC/s | MiB |\n|"
    + "---|" * 10
)


def main():
    if sys.argv[1:2] == ["--torch"]:
        kind, batch, threads = sys.argv[2:]
        return serve_torch(kind, int(batch), int(threads))
    if sys.argv[1:2] == ["--files"]:
        return write(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lowbit", required=True, help="the lowbit binary")
    parser.add_argument("--batch", type=engines.numbers, default=[1, 32], help="1,32")
    parser.add_argument("--threads", type=engines.numbers, default=[1, 2], help="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of runs, about, for an engine in a round")
    parser.add_argument("--tries", type=int, default=4, help="of a turn that other processes disturb")
    args = parser.parse_args()
    least, turns = [], []
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for batch in args.batch:
            made = files(folder, batch)
            macs = STEPS * batch * 4 * HIDDEN * (INPUT + HIDDEN)
            for threads in args.threads:
                for kind, model in made.items():
                    contenders = {
                        "lowbit": engines.Lowbit(args.lowbit, model, batch, threads),
                        "onnxruntime": engines.Peer("onnxruntime", kind, model, batch, threads),
                        "torch": Torch(kind, batch, threads),
                    }
                    taken = engines.measure(contenders, args, args.rounds, lambda: None)
                    memory = {name: contender.close() for name, contender in contenders.items()}
                    rows = [
                        engines.summary(name, taken[name], taken["lowbit"], macs, None, memory[name])
                        for name in contenders
                    ]
                    cells = [kind, str(batch), str(threads)]
                    cells += [f"{r['median_ms']:.2f} / {r['least_ms']:.2f} ±{50 * r['spread']:.0f} %" for r in rows]
                    cells += [f"{r['speed_up']:.2f} / {r['speed_up_of_least']:.2f}" for r in rows[1:]]
                    cells += [" / ".join(f"{r[key]:.0f}" for r in rows) for key in ("gmacs", "mib")]
                    print(f"| {' | '.join(cells)} |", flush=True)
                    turns += [foreign for r in rows for foreign in r["foreign_cpus"]]
                    if kind == "int8":
                        least.append(min(r["speed_up"] for r in rows[1:]))
    met = "met" if min(least) >= GOAL else "not met"
    print(f"\nInt8 over the better peer: {min(least):.2f} to {max(least):.2f}. Goal {GOAL}: {met}.")
    disturbed = sum(foreign >= engines.QUIET for foreign in turns)
    print(f"Other processes used {100 * engines.QUIET:.0f} % of a CPU or more in {disturbed} of {len(turns)} turns.")


if __name__ == "__main__":
    main()
