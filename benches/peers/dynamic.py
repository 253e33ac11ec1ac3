"""Latency of dynamic int8: lowbit beside onnxruntime's `quantize_dynamic` and torch's, on the same layers.

    dynamic.py --lowbit target/release/lowbit [--batch 1,32] [encoder mlp]

`encoder` is a block of BERT-base (width 768, 3072 within, 128 tokens), `mlp` the two products 768-3072-768 of one row
a sample. onnxruntime runs its own quantized file and lowbit's; torch runs `torch.ao.quantization.quantize_dynamic` of
the same layers under its best engine. The engines take turns as those of `engines.py`.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from engines import Lowbit, Peer, measure, numbers, summary


def files(lowbit, name, folder):
    """lowbit's dynamic file and onnxruntime's."""
    model = folder / f"{name}.onnx"
    made = f"import onnx, models; onnx.save(models.{name}(), {str(model)!r})"
    subprocess.run([sys.executable, "-c", made], check=True, cwd=Path(__file__).parent)
    ours, theirs = folder / f"{name}.dynamic.onnx", folder / f"{name}.onnxruntime.onnx"
    command = [lowbit, "quantize", model, "--method", "dynamic", "--output", ours]
    subprocess.run(command, check=True, capture_output=True)
    made = (
        "from onnxruntime.quantization import quantize_dynamic, QuantType\n"
        f"quantize_dynamic({str(model)!r}, {str(theirs)!r}, weight_type=QuantType.QInt8)"
    )
    subprocess.run([sys.executable, "-c", made], check=True, capture_output=True)
    return ours, theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lowbit", required=True, help="the lowbit binary")
    parser.add_argument("--batch", type=numbers, default=[1, 32], help="1,32")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of runs, about, for an engine in a round")
    parser.add_argument("--tries", type=int, default=2, help="of a turn that other processes disturb")
    parser.add_argument("models", nargs="*", default=["bert_block", "mlp"])
    args = parser.parse_args()
    print("| model | batch | threads | engine | ms | least | lowbit is faster by | by least times |\n|" + "---|" * 8)
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.models:
            ours, theirs = files(args.lowbit, name, Path(scratch))
            for batch in args.batch:
                for threads in args.threads:
                    contenders = {
                        "lowbit": Lowbit(args.lowbit, ours, batch, threads),
                        "onnxruntime": Peer("onnxruntime", "int8", theirs, batch, threads),
                        "onnxruntime on lowbit's file": Peer("onnxruntime", "int8", ours, batch, threads),
                        "torch": Peer("torch", "int8", name, batch, threads),
                    }
                    taken = measure(contenders, args, args.rounds, lambda: None)
                    for engine, contender in contenders.items():
                        contender.close()
                        row = summary(engine, taken[engine], taken["lowbit"], 0, None, (0, 0))
                        times = f"{row['median_ms']:.3f} | {row['least_ms']:.3f}"
                        speed = f"{row['speed_up']:.2f} | {row['speed_up_of_least']:.2f}"
                        print(f"| {name} | {batch} | {threads} | {engine} | {times} | {speed} |", flush=True)


if __name__ == "__main__":
    main()
