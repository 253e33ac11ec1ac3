"""Write float8.json: torch's casts between f32 and the 8-bit float formats. See README.md for the schema."""

import itertools
import math

import torch

from golden import bits, write

FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


def decoded(dtype):
    """The f32 value of each of the 256 codes."""
    return torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32)


def values(dtype):
    """Every finite value, every midpoint (a tie) and its f32 neighbours, and the ends of the range."""
    finite = sorted({float(v) for v in decoded(dtype) if math.isfinite(v) and v >= 0})
    middles = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(finite)])
    up, down = torch.tensor(math.inf), torch.tensor(0.0)
    top, step = finite[-1], finite[-1] - finite[-2]
    edges = torch.tensor([top + step / 4, top + step / 2, top + step, top * 2, 1e30, math.inf, 1e-30, 1e-45])
    middle_of_top = torch.tensor([top + step / 2])
    positive = torch.cat(
        [
            middles,
            torch.nextafter(middles, up.expand_as(middles)),
            torch.nextafter(middles, down.expand_as(middles)),
            edges,
            torch.nextafter(middle_of_top, up.expand_as(middle_of_top)),
            torch.nextafter(middle_of_top, down.expand_as(middle_of_top)),
        ]
    )
    # Signs are symmetric: the negative half of the midpoints is enough to show it.
    return torch.cat([positive, -middles, -edges, torch.tensor([0.0, -0.0, math.nan])])


def main():
    records = []
    for name, dtype in FORMATS.items():
        x = values(dtype)
        codes = x.to(dtype).view(torch.uint8)
        records.append({"format": name, "decoded": bits(decoded(dtype)), "x": bits(x), "codes": codes.tolist()})
    write("float8.json", {"torch": torch.__version__.split("+")[0], "formats": records})


if __name__ == "__main__":
    main()
