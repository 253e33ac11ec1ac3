"""A process that holds one model in one engine and times it when asked.

    worker.py ENGINE TYPE MODEL BATCH THREADS

Once the model is ready it prints `ready` and the MiB that the process held before it was read. For each line `WARM_UP
RUNS` on the standard input it prints the milliseconds of each of RUNS runs; at the end of the input it prints the
greatest MiB that it ever held.
"""

import resource
import sys
import time

import numpy as np


def onnxruntime(_, model, batch, threads):
    import onnxruntime as ort

    before = peak()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_free_dimension_override_by_name("N", batch)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    value = session.get_inputs()[0]
    feed = {value.name: sample(value.shape)}
    return before, lambda: session.run(None, feed)


def openvino(kind, model, batch, threads):
    import openvino as ov

    core = ov.Core()
    before = peak()
    network = core.read_model(model)
    shape = [d.get_length() if d.is_static else batch for d in network.inputs[0].partial_shape]
    network.reshape({network.inputs[0]: shape})
    hints = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    if kind == "float":
        # The default is bf16 on CPUs that have it, which is another model.
        hints["INFERENCE_PRECISION_HINT"] = "f32"
    request = core.compile_model(network, "CPU", hints).create_infer_request()
    x = ov.Tensor(sample(shape))
    return before, lambda: request.infer({0: x}, share_inputs=True, share_outputs=True)


def torch(_, model, batch, threads):
    import torch

    before = peak()
    torch.set_num_threads(threads)
    nn = torch.nn

    class Block(nn.Module):
        """The block that `models.bert_block` writes."""

        def __init__(self, width=768, inner=3072):
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
            self.up, self.down, self.norms = nn.Linear(width, inner), nn.Linear(inner, width), nn.ModuleList()
            self.norms.extend(nn.LayerNorm(width) for _ in range(2))

        def forward(self, x):
            q, k, v = (f(x).view(*x.shape[:2], 12, 64).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            x = self.norms[0](x + self.out(y))
            return self.norms[1](x + self.down(nn.functional.gelu(self.up(x))))

    if model == "mlp":
        module, shape = nn.Sequential(nn.Linear(768, 3072), nn.ReLU(), nn.Linear(3072, 768)), [batch, 768]
    else:
        module, shape = Block(), [batch, 128, 768]
    best = (float("inf"), None)
    x = torch.from_numpy(sample(shape))
    for engine in ("x86", "onednn"):
        torch.backends.quantized.engine = engine
        quantized = torch.ao.quantization.quantize_dynamic(module.eval(), {torch.nn.Linear}, torch.qint8)

        def run(quantized=quantized, engine=engine):
            torch.backends.quantized.engine = engine
            with torch.inference_mode():
                quantized(x)

        run()
        start = time.perf_counter()
        for _ in range(3):
            run()
        best = min(best, (time.perf_counter() - start, run), key=lambda b: b[0])
    return before, best[1]


def sample(shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    engine, kind, model, batch, threads = sys.argv[1:]
    before, run = {"onnxruntime": onnxruntime, "openvino": openvino, "torch": torch}[engine](kind, model, int(batch), int(threads))
    print("ready", before, flush=True)
    for line in sys.stdin:
        warm_up, runs = map(int, line.split())
        for _ in range(warm_up):
            run()
        taken = []
        for _ in range(runs):
            start = time.perf_counter()
            run()
            taken.append(1e3 * (time.perf_counter() - start))
        print(*taken, flush=True)
    print(peak(), flush=True)


if __name__ == "__main__":
    main()
