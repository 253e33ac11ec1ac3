"""Write gradients/ops.npz: gradients by the operands of operators, which torch computes in f64.

For each case NAME the arrays NAME.x0, NAME.x1 ... (operands), NAME.g0 ... (the gradients of a scalar by the results)
and NAME.d0 ... (those by the float operands, in their order)."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from golden import HERE

FOLDER = HERE / "gradients"
random = np.random.default_rng(7)
arrays = {}


def values(*shape, scale=1.0):
    return (random.standard_normal(shape) * scale).astype(np.float32)


def case(name, f, *operands):
    """The case of `f` of the operands, whose result is a tensor or a tuple of them."""
    tensors = [torch.from_numpy(x) for x in operands]
    tensors = [t.double().requires_grad_() if t.is_floating_point() else t for t in tensors]
    made = f(*tensors)
    made = made if isinstance(made, tuple) else (made,)
    given = [values(*y.shape) for y in made]
    sum((y * torch.from_numpy(g).double()).sum() for y, g in zip(made, given)).backward()
    floats = [t for t in tensors if t.is_floating_point()]
    for key, group in (
        ("x", operands),
        ("g", given),
        ("d", [t.grad.float().numpy() for t in floats]),
    ):
        for i, x in enumerate(group):
            arrays[f"{name}.{key}{i}"] = x


def elementwise():
    x = values(3, 5, 7, scale=3.0)
    case("relu6", lambda x: F.relu6(x), x)
    case("leaky_relu", lambda x: F.leaky_relu(x, 0.1), x)
    case("elu", lambda x: F.elu(x, 1.3), x)
    case("selu", F.selu, x)
    case("celu", lambda x: F.celu(x, 0.7), x)
    case("gelu", F.gelu, x)
    case("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), x)
    case("hardswish", F.hardswish, x)
    case("hardsigmoid", F.hardsigmoid, x)
    case("silu", F.silu, x)
    case("tanh", torch.tanh, x)
    case("mish", F.mish, x)
    case("softplus", F.softplus, x)
    case("softsign", F.softsign, x)
    case("erf", torch.erf, x)
    case("prelu", F.prelu, values(2, 3, 4, 5), values(3))
    case("maximum", torch.maximum, np.round(x), np.round(values(3, 5, 7, scale=3.0)))
    case("broadcast", lambda a, b, c: (a + b) * c / (b * b + 1), x, values(5, 1), values(3, 1, 7))
    case("power", lambda a, b: (a * a + 0.5) ** b, x, values(7))
    case("where", lambda c, a, b: torch.where(c, a, b), x > 0, x, values(5, 1))


def moves():
    x = values(2, 3, 4, 5)
    case("pad_reflect", lambda x: F.pad(x, (2, 1, 1, 3), mode="reflect"), x)
    case("pad_edge", lambda x: F.pad(x, (2, 1, 0, 3), mode="replicate"), x)
    case("tile", lambda x: x.tile((1, 2, 1, 3)), x)
    case("concat", lambda a, b: torch.cat((a, b), 1), x, values(2, 2, 4, 5))
    case("split", lambda x: torch.split(x, (2, 3), 3), x)
    case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), values(2, 8, 3, 2))
    case("slice", lambda x: x[:, 1:, ::2, :-1], x)
    table = random.integers(0, 6, (4, 5))
    case("embedding", lambda i, w: F.embedding(i, w), table, values(6, 8))
    case("take", lambda i, x: torch.gather(x, 1, i), random.integers(0, 3, (2, 4, 4, 5)), x)
    case("topk", lambda x: torch.topk(x, 2, 2).values, x)


def reductions():
    x = values(3, 4, 6)
    case("softmax", lambda x: F.softmax(x, -1), x)
    case("softmax_1", lambda x: F.softmax(x, 1), x)
    case("log_softmax", lambda x: F.log_softmax(x, 1), x)
    case("mean", lambda x: x.mean((1, 2)), x)
    case("amax", lambda x: x.amax(1), np.round(2 * x))
    case("prod", lambda x: x.prod(2), np.where(np.abs(x) < 0.2, np.float32(0), x))
    case("norm", lambda x: x.norm(dim=1), x)
    case("logsumexp", lambda x: x.logsumexp((0, 2)), x)


def weights(gates, order, directions, inputs, hidden):
    """W, R and B as ONNX lays them out, and what makes torch's list of them; `order` has ONNX's place of each of
    torch's gates."""
    onnx = [
        values(directions, gates * hidden, inputs, scale=0.6),
        values(directions, gates * hidden, hidden, scale=0.6),
        values(directions, 2 * gates * hidden, scale=0.3),
    ]

    def torchs(w, r, b):
        made = []
        for d in range(directions):
            for t in (w[d], r[d], *b[d].chunk(2)):
                parts = t.chunk(gates)
                made.append(torch.cat([parts[i] for i in order]))
        return made

    return onnx, torchs


def recurrent(name, torchs_function, gates, order, cells, directions, hidden=5):
    steps, batch, inputs = 6, 3, 4
    onnx, torchs = weights(gates, order, directions, inputs, hidden)
    states = [values(directions, batch, hidden) for _ in range(cells)]

    def run(x, w, r, b, *states):
        first = states if cells == 2 else states[0]
        y, *last = torchs_function(x, first, torchs(w, r, b), True, 1, 0.0, False, directions == 2, False)
        y = y.unflatten(2, (directions, hidden)).transpose(1, 2)
        return (y, *last)

    case(name, run, values(steps, batch, inputs), *onnx, *states)


def attention(x, q, k, v, o, up, down, seen):
    """A block of a transformer without normalization: [batch, time, width] and weights of [width, heads, size]."""
    q, k, v = (torch.einsum("btd,dhk->bhtk", x, w) for w in (q, k, v))
    scores = torch.einsum("bhik,bhjk->bhij", q, k) / math.sqrt(q.shape[-1])
    scores = torch.where(seen, scores, torch.tensor(-1e4, dtype=scores.dtype))
    x = x + torch.einsum("bhij,bhjk,hkd->bid", F.softmax(scores, -1), v, o)
    return x + torch.einsum("btf,fd->btd", F.gelu(torch.einsum("btd,df->btf", x, up)), down)


def main():
    elementwise()
    moves()
    reductions()
    for directions, ending in ((1, ""), (2, "_both")):
        recurrent("lstm" + ending, torch._VF.lstm, 4, (0, 2, 3, 1), 2, directions)
        recurrent("gru" + ending, torch._VF.gru, 3, (1, 0, 2), 1, directions)
        recurrent("rnn" + ending, torch._VF.rnn_tanh, 1, (0,), 1, directions)
    case("einsum", lambda a, b, c: torch.einsum("bhij,bhjk,hkd->bid", a, b, c),
         values(2, 2, 4, 4), values(2, 2, 4, 3), values(2, 3, 6))
    block = [values(2, 5, 8)]
    block += [values(8, 2, 4, scale=0.5) for _ in range(3)]
    block += [values(2, 4, 8, scale=0.5), values(8, 16, scale=0.4), values(16, 8, scale=0.3)]
    case("attention", attention, *block, np.tril(np.ones((5, 5), dtype=bool)))
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "ops.npz", **arrays)


if __name__ == "__main__":
    main()
