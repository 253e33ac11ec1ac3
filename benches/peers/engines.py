"""Latency of lowbit's Session beside OpenVINO and onnxruntime, in float and on the same Q/DQ files in int8.

    engines.py --lowbit target/release/lowbit [MODEL ...]

A MODEL is the name of an architecture of `models.py`, by default each of them, or a file. `lowbit quantize` makes the
Q/DQ file, with u8 activations and s8 weights per channel, from a few seeded random inputs. The engines take turns, each
in a process of its own, so that what else the machine does meets all alike. What other processes use of the CPUs
meanwhile is measured, and a turn that they disturb is repeated.

A cell of times is the median over the rounds of a round's median, the least of all runs, and half the rounds' range
relative to the median. A speed-up is the median over the rounds of the quotient of two engines' medians; after the
slash, the quotient of their least times, which a busy machine disturbs less. The memory is the greatest of the
process, for the peers with Python, NumPy and the engine's library, which the JSON file gives apart.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "bert_block")
OURS, PEERS = "lowbit", ("openvino", "onnxruntime")
GOAL_MODELS = ("resnet18", "resnet50", "mobilenet_v2", "squeezenet1.0_dc", "mobilenet_v1_0.25_224")
# Geometric mean over GOAL_MODELS at batch 1; at any batch none is to be slower.
GOALS = {"openvino": 1.2, "onnxruntime": 1.4}
# Share of a CPU that other processes may use during a turn.
QUIET = 0.1


class Peer:
    """Another engine, in a process that lives until `close`."""

    def __init__(self, engine, kind, model, batch, threads):
        worker = Path(__file__).with_name("worker.py")
        self.process = subprocess.Popen(
            [sys.executable, worker, engine, kind, model, str(batch), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.before = float(self.answer()[1])

    def answer(self):
        line = self.process.stdout.readline().split()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self.process.args[1:]))} died; run it to see why")
        return line

    def run(self, warm_up, runs):
        """The median and the least milliseconds."""
        print(warm_up, runs, file=self.process.stdin, flush=True)
        times = [float(t) for t in self.answer()]
        return statistics.median(times), min(times)

    def close(self):
        """The greatest MiB, and those before the model was read."""
        self.process.stdin.close()
        most = float(self.answer()[0])
        self.process.wait()
        return most, self.before


class Lowbit:
    """`lowbit bench`, a process for each round."""

    def __init__(self, binary, model, batch, threads):
        self.command = [binary, "bench", model, "--threads", str(threads), "--batch", str(batch), "--json"]
        self.most = 0.0

    def run(self, warm_up, runs):
        """The median and the least milliseconds."""
        flags = ["--warm-up", str(warm_up), "--runs", str(runs)]
        with subprocess.Popen(self.command + flags, stdout=subprocess.PIPE) as process:
            out = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{self.command} failed")
        self.most = max(self.most, usage.ru_maxrss / 1024)
        report = json.loads(out)
        self.macs = report["macs"]
        return report["latency"]["median_ms"], report["latency"]["min_ms"]

    def close(self):
        return self.most, 0.0


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def foreign_seconds(peers):
    """CPU seconds that processes other than this one and its children ever used."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    total = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return total - sum(os.times()[:4]) - sum(cpu_seconds(p.process.pid) for p in peers)


def turn(contender, warm_up, runs, peers, tries):
    """Median and least milliseconds, and what others used of a CPU: less than QUIET, or the least of several tries."""
    taken = []
    for _ in range(tries):
        foreign, start = foreign_seconds(peers), time.perf_counter()
        times = contender.run(warm_up, runs)
        taken.append((*times, (foreign_seconds(peers) - foreign) / (time.perf_counter() - start)))
        if taken[-1][2] < QUIET:
            break
    return min(taken, key=lambda t: t[2])


def measure(contenders, args, rounds, probe):
    """For each contender what `turn` gives in each round; `probe` is called once a round."""
    runs, taken = {}, {name: [] for name in contenders}
    peers = [c for c in contenders.values() if isinstance(c, Peer)]
    names = list(contenders)
    for r in range(rounds):
        probe()
        for name in names[r % len(names) :] + names[: r % len(names)]:
            contender = contenders[name]
            if name not in runs:
                runs[name] = max(1, min(100, round(1e3 * args.seconds / contender.run(1, 1)[1])))
            taken[name].append(turn(contender, 1 + runs[name] // 10, runs[name], peers, args.tries))
    return taken


def summary(name, rounds, ours, macs, peak, memory):
    medians, least, foreign = zip(*rounds)
    median = statistics.median(medians)
    gmacs = macs / median / 1e6
    return {
        "engine": name,
        "median_ms": median,
        "least_ms": min(least),
        "spread": (max(medians) - min(medians)) / median,
        "speed_up": statistics.median(a[0] / b[0] for a, b in zip(rounds, ours)),
        "speed_up_of_least": min(least) / min(b[1] for b in ours),
        "gmacs": gmacs,
        "peak_share": peak and gmacs / peak,
        "mib": memory[0],
        "mib_before_model": memory[1],
        "rounds_ms": medians,
        "foreign_cpus": foreign,
    }


class Peak:
    """u8 x i8 multiply-accumulates per second of registers alone, in 10^9; None where nothing measures it."""

    def __init__(self, binary, threads):
        self.command, self.best = [binary, str(threads)], None

    def __call__(self):
        try:
            out = subprocess.check_output(self.command, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):
            return
        self.best = max(self.best or 0.0, float(out))


def prepare(lowbit, model, folder):
    """The float and the Q/DQ file of a model, and the batch that they are fixed to, if any."""
    # In a process of its own: to the peak memory of a process Linux adds that of the one that started it.
    command = [sys.executable, Path(__file__).with_name("models.py"), model, folder]
    made = json.loads(subprocess.check_output(command))
    float_file = Path(made["model"])
    int8_file = folder / f"{float_file.stem}.int8.onnx"
    command = [lowbit, "quantize", float_file, "--data", made["samples"], "--output", int8_file]
    subprocess.run(command, check=True, capture_output=True)
    return {"float": float_file, "int8": int8_file}, made["batch"]


def compare(args, files, batch, threads):
    """The rows of one model at one batch and number of threads: one for each type."""
    binary = Path(args.lowbit)
    peak = Peak(args.peak or binary.parent / "examples" / "peak", threads)
    contenders = {}
    for kind in args.types:
        contenders[kind, OURS] = Lowbit(binary, files[kind], batch, threads)
        for peer in PEERS:
            contenders[kind, peer] = Peer(peer, kind, files[kind], batch, threads)
    rounds = args.rounds if batch == 1 else max(1, args.rounds // 2)
    taken = measure(contenders, args, rounds, peak)
    memory = {name: contender.close() for name, contender in contenders.items()}
    # Of the float model: what is constant or folded in the quantized one is work all the same.
    macs = contenders[args.types[0], OURS].macs
    for kind in args.types:
        limit = peak.best if kind == "int8" else None
        engines = [
            summary(name, taken[kind, name], taken[kind, OURS], macs, limit, memory[kind, name])
            for name in (OURS, *PEERS)
        ]
        model = files["float"].stem
        yield {
            "model": model,
            "type": kind,
            "batch": batch,
            "threads": threads,
            "macs": macs,
            "peak_gmacs": peak.best,
            "engines": engines,
        }


HEAD = (
    "| model | type | batch | threads | lowbit ms | openvino ms | onnxruntime ms | over openvino | over onnxruntime "
    "| GMAC/s | of VNNI peak | MiB |\n|" + "---|" * 12
)


def line(row):
    def each(form):
        return " / ".join(map(form, row["engines"]))

    cells = [f"{row['model']} | {row['type']} | {row['batch']} | {row['threads']}"]
    cells += [f"{e['median_ms']:.2f} / {e['least_ms']:.2f} ±{50 * e['spread']:.0f} %" for e in row["engines"]]
    cells += [f"{e['speed_up']:.2f} / {e['speed_up_of_least']:.2f}" for e in row["engines"][1:]]
    cells.append(each(lambda e: f"{e['gmacs']:.0f}"))
    measured = row["engines"][0]["peak_share"] is not None
    cells.append(each(lambda e: f"{100 * e['peak_share']:.0f}") + " %" if measured else "–")
    cells.append(each(lambda e: f"{e['mib']:.0f}"))
    return f"| {' | '.join(cells)} |"


def goals(rows):
    """Whether the goals are met, by medians and by least times."""
    print("\n| type | batch | threads | over | geometric mean | least | of least times | goal | models |")
    print("|" + "---|" * 9)
    configurations = sorted({(r["type"], r["batch"], r["threads"]) for r in rows}, reverse=True)
    for kind, batch, threads in configurations:
        same = [r for r in rows if (r["type"], r["batch"], r["threads"]) == (kind, batch, threads)]
        same = [r for r in same if r["model"] in GOAL_MODELS]
        for i, peer in enumerate(PEERS, 1):
            if not same:
                continue
            speed, least = ([r["engines"][i][key] for r in same] for key in ("speed_up", "speed_up_of_least"))
            mean, mean_least = (math.exp(statistics.fmean(map(math.log, v))) for v in (speed, least))
            goal = "–"
            if kind == "int8":
                goal = f"mean {GOALS[peer]}, least 1" if batch == 1 else "least 1"
                met = min(speed) >= 1 and (batch > 1 or mean >= GOALS[peer])
                goal += ": met" if met else ": not met"
            means = f"{mean:.2f} | {min(speed):.2f} | {mean_least:.2f} / {min(least):.2f}"
            print(f"| {kind} | {batch} | {threads} | {peer} | {means} | {goal} | {len(same)} of {len(GOAL_MODELS)} |")


def numbers(text):
    return [int(n) for n in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lowbit", required=True, help="the lowbit binary")
    parser.add_argument("--peak", help="the example `peak` of lowbit-kernels; by default examples/peak beside lowbit")
    parser.add_argument("--types", type=lambda text: text.split(","), default=["float", "int8"], help="float,int8")
    parser.add_argument("--batch", type=numbers, default=[1, 32], help="1,32")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="1,2")
    parser.add_argument("--rounds", type=int, default=7, help="half as many above batch 1")
    parser.add_argument("--seconds", type=float, default=0.3, help="of runs, about, for an engine in a round")
    parser.add_argument("--tries", type=int, default=4, help="of a turn that other processes disturb")
    parser.add_argument("--keep", type=Path, help="folder for the models' files")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    parser.add_argument("models", nargs="*", default=MODELS)
    args = parser.parse_args()
    rows = []
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for model in args.models:
            files, fixed = prepare(args.lowbit, model, folder)
            for batch in sorted({fixed} if fixed else set(args.batch)):
                for threads in args.threads:
                    for row in compare(args, files, batch, threads):
                        rows.append(row)
                        print(line(row), flush=True)
    goals(rows)
    turns = [foreign for row in rows for e in row["engines"] for foreign in e["foreign_cpus"]]
    disturbed = sum(foreign >= QUIET for foreign in turns)
    print(f"\nOther processes used {100 * QUIET:.0f} % of a CPU or more in {disturbed} of {len(turns)} turns.")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
