"""Write observers.json: what torch.ao.quantization's observers compute. See README.md for the schema."""

import warnings

import torch
from torch.ao.quantization.observer import (
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)

from golden import bits, sequences, tensor, write

DTYPES = {"quint8": torch.quint8, "qint8": torch.qint8, "qint32": torch.qint32}

# dtype, quant_min, quant_max: None leaves the range to the dtype.
FORMATS = [
    ("quint8", None, None),
    ("qint8", None, None),
    ("qint8", -127, 127),
    ("quint8", 0, 15),
    ("qint8", -8, 7),
    ("quint8", 0, 127),
    ("qint32", None, None),
    ("qint32", -32768, 32767),
    # Ranges that torch refuses: they leave out 0, or are empty.
    ("quint8", 1, 255),
    ("qint8", 0, 0),
]

SCHEMES = [
    {"qscheme": qscheme, "dtype": dtype, "quant_min": low, "quant_max": high, "reduce_range": reduce_range}
    for dtype, low, high in FORMATS
    for qscheme in ("affine", "symmetric")
    for reduce_range in (False, True)
    if not reduce_range or (dtype, low, high) in FORMATS[:4]
]

KINDS = [
    {"kind": "MinMax"},
    {"kind": "MovingAverageMinMax", "averaging_constant": 0.01},
    {"kind": "MovingAverageMinMax", "averaging_constant": 0.5},
    {"kind": "Histogram", "bins": 2048},
    {"kind": "Histogram", "bins": 128},
    {"kind": "PerChannelMinMax", "ch_axis": 0},
    {"kind": "PerChannelMinMax", "ch_axis": 1},
    {"kind": "MovingAveragePerChannelMinMax", "ch_axis": 0, "averaging_constant": 0.01},
]

searched = {}


class SearchOnce(HistogramObserver):
    """HistogramObserver whose search, slow and blind to the scheme, runs once per histogram and width."""

    def _non_linear_param_search(self):
        key = (self.bins, self.dst_nbins, *bits(self.min_val), *bits(self.max_val), *bits(self.histogram))
        if key not in searched:
            searched[key] = super()._non_linear_param_search()
        self.range = searched[key]
        return self.range


CLASSES = {
    "MinMax": MinMaxObserver,
    "MovingAverageMinMax": MovingAverageMinMaxObserver,
    "Histogram": SearchOnce,
    "PerChannelMinMax": PerChannelMinMaxObserver,
    "MovingAveragePerChannelMinMax": MovingAveragePerChannelMinMaxObserver,
}


def run(observer_kind, batches, scheme):
    """The parameters after the batches, and the observer; raises where torch refuses."""
    kind = observer_kind["kind"]
    level = "per_channel" if "PerChannel" in kind else "per_tensor"
    observer = CLASSES[kind](
        dtype=DTYPES[scheme["dtype"]],
        qscheme=getattr(torch, f"{level}_{scheme['qscheme']}"),
        reduce_range=scheme["reduce_range"],
        quant_min=scheme["quant_min"],
        quant_max=scheme["quant_max"],
        **{key: value for key, value in observer_kind.items() if key != "kind"},
    )
    for batch in batches:
        observer(batch)
    return *observer.calculate_qparams(), observer


REFUSALS = (AssertionError, NotImplementedError)


def refused(batches):
    """The schemes that torch refuses, by kind: a refusal does not depend on the values."""
    records = []
    for kind in KINDS:
        for index, scheme in enumerate(SCHEMES):
            try:
                run(kind, batches, scheme)
            except REFUSALS as error:
                records.append({**kind, "scheme": index, "error": " ".join(str(error).split())})
    return records


def observe(name, batches, kind):
    """One observer kind over one sequence, with every scheme that torch takes."""
    channelwise = "PerChannel" in kind["kind"]
    results, state = [], None
    for index, scheme in enumerate(SCHEMES):
        # Per-channel results are long: the first four formats cover every branch of the formulas.
        if channelwise and (scheme["dtype"], scheme["quant_min"], scheme["quant_max"]) not in FORMATS[:4]:
            continue
        try:
            scale, zero_point, observer = run(kind, batches, scheme)
        except REFUSALS:
            continue
        record = {"scheme": index, "scale": bits(scale), "zero_point": [int(z) for z in zero_point.flatten()]}
        if not channelwise:
            record["scale_f32"] = float(f"{float(scale):.9g}")
        if kind["kind"] == "Histogram":
            record["range"] = bits(torch.stack(observer.range))
        results.append(record)
        state = observer
    record = {"sequence": name, **kind, "min_val": bits(state.min_val), "max_val": bits(state.max_val)}
    if kind["kind"] == "Histogram":
        filled = state.histogram.nonzero().flatten()
        record["histogram"] = [filled.tolist(), bits(state.histogram[filled])]
    return record | {"results": results}


def used_ranges():
    """SCHEMES, each with the integer range that torch then uses (null where every observer refuses it)."""
    records = []
    for scheme in SCHEMES:
        try:
            # HistogramObserver refuses the fewest schemes.
            *_, observer = run({"kind": "Histogram", "bins": 128}, [torch.zeros(1)], scheme)
            used = {"used_min": observer.quant_min, "used_max": observer.quant_max}
        except REFUSALS:
            used = {"used_min": None, "used_max": None}
        records.append(scheme | used)
    return records


def fixed():
    """FixedQParams observers: what they are given is what they return, whatever they see."""
    records = []
    for scale, zero_point, dtype, quant_min, quant_max in [
        (1.0 / 256.0, 0, "quint8", 0, 255),
        (2.0 / 256.0, 128, "quint8", 0, 255),
        (1.0 / 128.0, 0, "qint8", -128, 127),
    ]:
        observer = FixedQParamsObserver(
            scale, zero_point, dtype=DTYPES[dtype], quant_min=quant_min, quant_max=quant_max
        )
        observer(torch.tensor([-100.0, 100.0]))
        s, z = observer.calculate_qparams()
        records.append(
            {
                "dtype": dtype,
                "quant_min": quant_min,
                "quant_max": quant_max,
                "scale": bits(s),
                "zero_point": [int(v) for v in z.flatten()],
            }
        )
    return records


def unobserved():
    """Parameters of observers that saw no value."""
    records = []
    for kind, observer in [("MinMax", MinMaxObserver()), ("Histogram", HistogramObserver())]:
        observer(torch.zeros(0, 4))
        scale, zero_point = observer.calculate_qparams()
        records.append({"kind": kind, "scale": bits(scale), "zero_point": [int(z) for z in zero_point]})
    return records


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    data = sequences()
    write(
        "observers.json",
        {
            "torch": torch.__version__.split("+")[0],
            "eps": bits([torch.finfo(torch.float32).eps])[0],
            "sequences": [
                {"name": name, "batches": [tensor(batch) for batch in batches]} for name, batches in data.items()
            ],
            "schemes": used_ranges(),
            "refused": refused(data["pair"]),
            "observers": [observe(name, batches, kind) for name, batches in data.items() for kind in KINDS],
            "fixed": fixed(),
            "unobserved": unobserved(),
        },
    )


if __name__ == "__main__":
    main()
